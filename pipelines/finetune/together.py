"""Task models over one frozen base, finetuned at once by one worker: the authors' batch of 2 fills a GPU when many train.

    for place, result in train_together(members, gpu_share=1.0): ...

A member trains as it would alone: its own examples in its own order, optimizer state, schedule, clipping, dropout masks, seed,
number of steps, log, checkpoints and failure. Members keep no step in common (`bank.py`), and one that ends makes room for the
next. Trunks and branches (`recipe.py`) are trained here only: a trunk's state is kept in its output at each branch's first
step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch

from pipelines.errors import NoticeError, portable
from pipelines.finetune.bank import MAX_SLOTS, Bank
from pipelines.finetune.checkpoints import TOGETHER, Checkpoints, checkpointing_engine, save_result, trunk_state
from pipelines.finetune.course import Course
from pipelines.finetune.job import Member
from pipelines.models.process import free_memory
from pipelines.models.weights import weights_of
from pipelines.storage import fetch, working_folder
from pipelines.workers.notice import notice_given


def shape_together(member: Member) -> Any:
    """What members agree in that can be trained at once: adapters of one shape for a classifier over the same weights.

    Hashable; None for one that cannot be: another engine has begun it, or its model is an encoder.
    """
    job, config = member.job, member.job.config
    if job.objective != "classification" or config.method != "lora" or job.reads_whole_texts:
        return None
    if checkpointing_engine(member.output) not in (None, TOGETHER):
        return None
    weights = weights_of(job.starting_point, job.base_model)
    shape = (config.lora_rank, config.lora_alpha, config.lora_targets, config.lora_dropout, config.dtype)
    limits = (config.max_grad_norm, config.tokens_per_microbatch, config.gradient_checkpointing)
    return weights, shape, limits


def is_trained_together(member: Member, expected: int, *, on_gpu: bool = False) -> bool:
    """Whether `member` is trained here, in a lane of one worker that expects so many jobs in all.

    A job that was checkpointed here goes on here, if need be alone, and one on a trajectory is for here only. On a GPU one
    in bfloat16 is trained here even if it is alone: its whole step is one captured graph.
    """
    config = member.job.config
    is_captured = on_gpu and config.dtype == "bfloat16" and config.zero_stage < 3
    is_bound = member.job.is_on_trajectory or checkpointing_engine(member.output) == TOGETHER
    return (is_bound or is_captured or expected > 1) and shape_together(member) is not None


class Joining(Protocol):
    """Gives members that can be trained with those that are, `most` at once; with none under way it may wait for them."""

    def __call__(self, most: int, *, is_idle: bool = False) -> Iterable[Member]: ...


def _nobody(most: int, *, is_idle: bool = False) -> Iterable[Member]:
    return ()


def train_together(
    members: Sequence[Member], gpu_share: float, *, joining: Joining = _nobody, expected: int = 0
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Train `members`, which have one `shape_together`; yields the place and the metrics (or failure) of each as it ends.

    `gpu_share` is the part of a GPU that is this worker's, 0 for the CPU. Whenever there is room, those that are `joining` are
    asked for, and have the next places; at least as many as `members` are `expected` in all. At a notice all are saved and end
    with a NoticeError.
    """
    expected = max(expected, len(members))
    waiting = deque(enumerate(members))
    num_members = len(members)
    most = MAX_SLOTS
    bank: Bank | None = None
    courses: dict[int, tuple[int, Course]] = {}  # slot → place, course
    try:
        while True:
            if notice_given():
                for slot, (place, course) in courses.items():
                    if course.next_step > course.committed:
                        assert bank is not None
                        _save(course, bank, slot)
                    yield place, NoticeError(course.stopped_at)
                for place, _ in waiting:
                    yield place, NoticeError("a notice came before it began")
                return
            num_slots = bank.num_slots if bank else min(most, expected)
            is_idle = not courses and not waiting
            if (room := num_slots - len(courses) - len(waiting)) > 0:
                for member in joining(room, is_idle=is_idle):
                    waiting.append((num_members, member))
                    num_members += 1
            if is_idle and not waiting:
                return
            while waiting and (bank is None or len(courses) < bank.num_slots):
                place, member = waiting.popleft()
                try:
                    course = Course(member)
                    if bank is None:
                        bank = Bank(member, gpu_share, min(most, expected), num_passes=course.num_passes(expected))
                    bank.widen(member)
                    slot = next(slot for slot in range(bank.num_slots) if slot not in courses)
                    _begin(course, bank, slot)
                except Exception as error:
                    yield place, portable(error)
                else:
                    courses[slot] = place, course
            if not courses:
                continue
            try:
                assert bank is not None
                bank.step({slot: course for slot, (_, course) in courses.items()})
            except torch.OutOfMemoryError as error:
                assert bank is not None
                if bank.num_slots == 1:
                    # As it ends by itself; the next may be smaller.
                    ((place, _),) = courses.values()
                    yield place, portable(error)
                else:
                    # Fewer at a time, from where each was last saved.
                    most = bank.num_slots * 3 // 4
                    waiting.extendleft((place, course.member) for place, course in reversed(courses.values()))
                courses.clear()
                # The frames of the error hold the tensors of the step.
                error.__traceback__ = bank = None
                free_memory()
                continue
            yield from _ended(courses, bank)
    finally:
        bank = None
        free_memory()


def _ended(courses: dict[int, tuple[int, Course]], bank: Bank) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Attend to those that need it; the place and the metrics (or failure) of each that has ended, which leaves `courses`."""
    for slot, (place, course) in list(courses.items()):
        if not course.needs_attention:
            continue
        try:
            _attend(course, bank, slot, len(courses))
        except Exception as error:
            del courses[slot]
            yield place, portable(error)
        else:
            if course.is_over:
                del courses[slot]
                own = {"branched_at_step": course.branched_at or None, "mean_trained_together": fmean(course.neighbours)}
                yield place, course.metrics(bank.num_parameters, on_gpu=bank.on_gpu) | own


def _begin(course: Course, bank: Bank, slot: int) -> None:
    """Begin in `slot`, a branch where it leaves its trunk, or go on from the last checkpoint."""
    bank.fill(slot, course.job)
    if course.branched_at:
        assert course.job.trunk is not None
        bank.read_trunk_state(slot, Path(fetch(trunk_state(course.job.trunk, course.branched_at))))
    state = bank.blank_state()
    progress = _checkpoints(course).load([state])
    if progress is not None:
        bank.set_state(slot, state, loss=progress.loss)
    course.begin(progress)


def _checkpoints(course: Course) -> Checkpoints:
    return Checkpoints(course.member.output, TOGETHER)


def _attend(course: Course, bank: Bank, slot: int, num_courses: int) -> None:
    """Log, check and save what is due after a step. Raises UserError if it diverged."""
    course.needs_attention = False
    if course.is_logged:
        course.log_step(bank.take_loss(slot))
        course.neighbours.append(num_courses)
    if course.is_kept:
        with working_folder(trunk_state(course.member.output, course.next_step)) as folder:
            bank.write_trunk_state(slot, folder)
    if course.is_over:
        save_result(course.member, bank.tensors(slot), course.log)
        course.end()
    elif course.is_saved:
        _save(course, bank, slot)


def _save(course: Course, bank: Bank, slot: int) -> None:
    course.committed = course.next_step
    progress = course.progress(bank.losses[slot].item(), num_updates=course.next_step)
    _checkpoints(course).save(progress, [bank.state(slot)])
