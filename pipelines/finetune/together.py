"""Task models over one frozen base, finetuned at once by one worker: the authors' batch of 2 fills a GPU when many train.

    for place, result in train_together(members, gpu_share=1.0): ...

A member trains as it would alone: its own examples in its own order, optimizer state, schedule, clipping, dropout masks, seed,
number of steps, log, checkpoints and failure. Members keep no step in common (`bank.py`), and one that ends makes room for the
next. Trunks and branches (`recipe.py`) are trained here only: a trunk's state is kept in its output at each branch's first
step.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

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


def compatible(members: Sequence[Member], places: Sequence[int]) -> list[list[int]]:
    """Groups of `places` that can be trained at once: adapters of one shape for a classifier over the same weights.

    A job that was checkpointed here goes on here, if need be alone, and one on a trajectory is for here only. One that another
    engine has begun is left out, and so is an encoder's.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    bound = set()
    for place in places:
        job, config = members[place].job, members[place].job.config
        engine = checkpointing_engine(members[place].output)
        if engine == TOGETHER or job.is_on_trajectory:
            bound.add(place)
        if job.objective != "classification" or config.method != "lora" or engine not in (None, TOGETHER):
            continue
        if job.reads_whole_texts:
            continue
        weights = weights_of(job.starting_point, job.base_model)
        shape = (config.lora_rank, config.lora_alpha, config.lora_targets, config.lora_dropout, config.dtype)
        limits = (config.max_grad_norm, config.tokens_per_microbatch, config.gradient_checkpointing)
        groups[weights, shape, limits].append(place)
    return [group for group in groups.values() if len(group) > 1 or bound.intersection(group)]


def train_together(members: Sequence[Member], gpu_share: float) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Train `members`, which `compatible` has put together; yields the place and the metrics (or failure) of each as it ends.

    `gpu_share` is the part of a GPU that is this worker's, 0 for the CPU. At a notice all are saved and end with a NoticeError.
    """
    waiting = deque(enumerate(members))
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
            while waiting and (bank is None or len(courses) < bank.num_slots):
                place, member = waiting.popleft()
                try:
                    course = Course(member)
                    if bank is None:
                        bank = Bank(members, gpu_share, most, num_passes=course.num_passes(len(members)))
                    slot = next(slot for slot in range(bank.num_slots) if slot not in courses)
                    _begin(course, bank, slot)
                except Exception as error:
                    yield place, portable(error)
                else:
                    courses[slot] = place, course
            if bank is None or not courses:
                return
            try:
                bank.step({slot: course for slot, (_, course) in courses.items()})
            except torch.OutOfMemoryError as error:
                if bank.num_slots == 1:
                    raise
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
