"""Task models over one frozen base, finetuned at once by one worker: the authors' batch of 2 fills a GPU when many train.

    for place, result in train_together(members, gpu_share=1.0): ...

A member trains as it would alone: its own examples in its own order, optimizer state, schedule, clipping, dropout masks, seed,
number of steps, log, checkpoints and failure. Members keep no step in common (`bank.py`), and one that ends makes room for the
next. What members begin with is read, and what they keep is written, by threads beside the training of the others: only
copies from and to the device are made in between. Trunks and branches (`recipe.py`) are trained here only: a trunk's state is
kept in its output at each branch's first step.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch

from pipelines.errors import NoticeError, portable
from pipelines.finetune.bank import MAX_SLOTS, Bank, Layout, write_trunk_state
from pipelines.finetune.checkpoints import (
    TOGETHER,
    Checkpoints,
    Part,
    Progress,
    checkpointing_engine,
    save_result,
    trunk_state,
)
from pipelines.finetune.course import Course
from pipelines.finetune.job import Member
from pipelines.models.process import free_memory
from pipelines.models.weights import weights_of
from pipelines.storage import fetch, working_folder
from pipelines.workers.notice import notice_given

MOST_WRITES = 4
"""Members that wait, with copies in memory, until what they keep is written: with more of them training waits for the disk."""
Result = dict[str, Any] | Exception


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
) -> Iterator[tuple[int, Result]]:
    """Train `members`, which have one `shape_together`; yields the place and the metrics (or failure) of each as it ends.

    Its output is whole on the disk by then. `gpu_share` is the part of a GPU that is this worker's, 0 for the CPU. Whenever
    there is room, those that are `joining` are asked for, and have the next places; at least as many as `members` are
    `expected` in all. At a notice all are saved and end with a NoticeError.
    """
    group = _Group(gpu_share, max(expected, len(members)))
    try:
        yield from group.train(members, joining)
    finally:
        group.close()


class _Group:
    """Members that are waiting, being read, trained or written, by their places."""

    def __init__(self, gpu_share: float, expected: int) -> None:
        self.gpu_share, self.expected = gpu_share, expected
        self.most = min(MAX_SLOTS, expected)
        self.bank: Bank | None = None
        self.waiting: deque[tuple[int, Member]] = deque()
        self.reading: dict[int, tuple[Member, Future[_Beginning]]] = {}
        self.courses: dict[int, tuple[int, Course]] = {}  # slot → place, course
        self.writes = _Writes()
        # One thread: a tokenizer is not made for several.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)
        self.writes.close()
        self.bank = None
        free_memory()

    def train(self, members: Sequence[Member], joining: Joining) -> Iterator[tuple[int, Result]]:
        """`train_together`."""
        self.waiting.extend(enumerate(members))
        num_members = len(members)
        while True:
            if notice_given():
                yield from self._stop()
                return
            for place, result in self.writes.ended():
                # A checkpoint's failure is its member's.
                self.courses = {slot: course for slot, course in self.courses.items() if course[0] != place}
                yield place, result
            num_slots = self.bank.num_slots if self.bank else self.most
            is_idle = not self.courses and not self.waiting and not self.reading
            if is_idle:
                yield from self.writes.ended(wait_for_all=True)
            if (room := num_slots - len(self.courses) - len(self.waiting) - len(self.reading)) > 0:
                for member in joining(room, is_idle=is_idle):
                    self.waiting.append((num_members, member))
                    num_members += 1
            if is_idle and not self.waiting:
                return
            yield from self._begin_those_read()
            if self.courses:
                yield from self._step()

    def _begin_those_read(self) -> Iterator[tuple[int, Result]]:
        """Have as many read as there is room for, and begin with those that are; most of the room is filled before a step."""
        while self.waiting and (self.bank is None or len(self.courses) + len(self.reading) < self.bank.num_slots):
            place, member = self.waiting.popleft()
            course = None
            try:
                if self.bank is None:
                    course = self._reader.submit(Course, member).result()
                    self.bank = Bank(member, self.gpu_share, self.most, num_passes=course.num_passes(self.expected))
            except Exception as error:
                yield place, portable(error)
            else:
                self.reading[place] = member, self._reader.submit(_read, member, self.bank.layout, course)
        for place, (_, future) in list(self.reading.items()):
            assert self.bank is not None
            if self.courses and len(self.reading) <= self.bank.num_slots // 4 and not future.done():
                continue
            try:
                beginning = future.result()
                slot = next(slot for slot in range(self.bank.num_slots) if slot not in self.courses)
                _begin(beginning, self.bank, slot)
            except Exception as error:
                yield place, portable(error)
            else:
                self.courses[slot] = place, beginning.course
            del self.reading[place]

    def _step(self) -> Iterator[tuple[int, Result]]:
        """One step of those under way, and what is due after it; the place and the failure of each that failed."""
        assert self.bank is not None
        try:
            self.bank.step({slot: course for slot, (_, course) in self.courses.items()})
        except torch.OutOfMemoryError as error:
            yield from self._go_on_with_fewer(error)
            return
        for slot, (place, course) in list(self.courses.items()):
            if not course.needs_attention:
                continue
            try:
                _attend(place, course, self.bank, slot, len(self.courses), self.writes)
            except Exception as error:
                del self.courses[slot]
                self.writes.forget(place)
                yield place, portable(error)
            else:
                if course.is_over:
                    del self.courses[slot]

    def _go_on_with_fewer(self, error: torch.OutOfMemoryError) -> Iterator[tuple[int, Result]]:
        """Make room for a smaller bank; one that failed alone ends as it would by itself."""
        assert self.bank is not None
        # Members go on from what they last kept.
        failed = dict(self.writes.ended(wait_for_all=True))
        yield from failed.items()
        if self.bank.num_slots == 1:
            ((place, _),) = self.courses.values()
            # The next may be smaller.
            if place not in failed:
                yield place, portable(error)
        else:
            self.most = self.bank.num_slots * 3 // 4
            again = [(place, course.member) for place, course in self.courses.values() if place not in failed]
            again += [(place, member) for place, (member, _) in self.reading.items()]
            self.waiting.extendleft(reversed(again))
        self.courses.clear()
        self.reading.clear()
        # The frames of the error hold the tensors of the step.
        error.__traceback__ = self.bank = None
        free_memory()

    def _stop(self) -> Iterator[tuple[int, Result]]:
        """Save all at a notice; each ends with a NoticeError."""
        for slot, (place, course) in self.courses.items():
            stopped = NoticeError(course.stopped_at)
            try:
                if course.next_step > course.committed:
                    assert self.bank is not None
                    _save(place, course, self.bank, slot, self.writes, result=stopped)
                else:
                    self.writes.begin(place, lambda: None, result=stopped)
            except Exception as error:
                yield place, portable(error)
        yield from self.writes.ended(wait_for_all=True)
        for place in (*self.reading, *(place for place, _ in self.waiting)):
            yield place, NoticeError("a notice came before it began")


class _Writes:
    """What members keep, written by a thread in the order in which it is given; of each member one thing at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._under_way: dict[int, tuple[Future[None], Result | None]] = {}

    def close(self) -> None:
        self._thread.shutdown()

    def begin(self, place: int, work: Callable[[], None], *, result: Result | None = None) -> None:
        """Have `work` done for the member at `place`, which ends with its `result`, if there is one.

        Waits for the member's earlier work, and raises what failed it; and where too many wait to be written.
        """
        if place in self._under_way:
            self._under_way.pop(place)[0].result()
        while len(running := [future for future, _ in self._under_way.values() if not future.done()]) >= MOST_WRITES:
            wait(running, return_when=FIRST_COMPLETED)
        self._under_way[place] = self._thread.submit(work), result

    def forget(self, place: int) -> None:
        """Leave it unsaid how the work for the member at `place` ends, which has failed by something else."""
        self._under_way.pop(place, None)

    def ended(self, *, wait_for_all: bool = False) -> Iterator[tuple[int, Result]]:
        """The place and the result of each member whose last work is done, or what failed its work."""
        for place, (future, result) in list(self._under_way.items()):
            if not wait_for_all and not future.done():
                continue
            del self._under_way[place]
            try:
                future.result()
            except Exception as error:
                yield place, portable(error)
            else:
                if result is not None:
                    yield place, result


@dataclass(frozen=True)
class _Beginning:
    """What a member begins with, on the CPU: weights, its trunk's or its checkpoint's state, and of the latter the progress."""

    course: Course
    weights: torch.Tensor
    state: Part | None
    progress: Progress | None


def _read(member: Member, layout: Layout, course: Course | None) -> _Beginning:
    """Read a member's examples, unless they are, and what it begins with: at its trunk's state, at its last checkpoint."""
    course = course or Course(member)
    weights, state = layout.beginning(course.job), None
    if course.branched_at:
        assert course.job.trunk is not None
        state = layout.read_trunk_state(Path(fetch(trunk_state(course.job.trunk, course.branched_at))))
    saved = layout.blank_state()
    progress = _checkpoints(course).load([saved])
    return _Beginning(course, weights, state if progress is None else saved, progress)


def _begin(beginning: _Beginning, bank: Bank, slot: int) -> None:
    """Begin in `slot` with what was read."""
    bank.widen(beginning.course.member)
    bank.fill(slot, beginning.weights)
    if beginning.state is not None:
        bank.set_state(slot, beginning.state, loss=beginning.progress.loss if beginning.progress else 0.0)
    beginning.course.begin(beginning.progress)


def _checkpoints(course: Course) -> Checkpoints:
    return Checkpoints(course.member.output, TOGETHER)


def _attend(place: int, course: Course, bank: Bank, slot: int, num_courses: int, writes: _Writes) -> None:
    """Log and check what is due after a step, and have written what is. Raises UserError if it diverged."""
    course.needs_attention = False
    if course.is_logged:
        course.log_step(bank.take_loss(slot))
        course.neighbours.append(num_courses)
    if course.is_kept:
        writes.begin(place, functools.partial(_keep, trunk_state(course.member.output, course.next_step), bank.state(slot)))
    if course.is_over:
        tensors = bank.tensors(slot)
        course.end()
        own = {"branched_at_step": course.branched_at or None, "mean_trained_together": fmean(course.neighbours)}
        metrics = course.metrics(bank.num_parameters, on_gpu=bank.on_gpu) | own
        writes.begin(place, functools.partial(save_result, course.member, tensors, course.log), result=metrics)
    elif course.is_saved:
        _save(place, course, bank, slot, writes)


def _keep(output: str, state: Callable[[], Part]) -> None:
    with working_folder(output) as folder:
        write_trunk_state(state(), folder)


def _save(place: int, course: Course, bank: Bank, slot: int, writes: _Writes, *, result: Result | None = None) -> None:
    course.committed = course.next_step
    progress = course.progress(bank.losses[slot].item(), num_updates=course.next_step)
    state = bank.state(slot)
    writes.begin(place, lambda: _checkpoints(course).save(progress, [state()]), result=result)
