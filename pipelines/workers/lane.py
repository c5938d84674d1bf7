"""A lane: workers that start once and take on jobs, together or one after another, until it is closed.

    lane = Lane(serve)                          # serve(desk) starts the workers and returns when they have ended
    result = lane.run(job)                      # from any thread, whenever a job is there
    lane.close()

    intake = Intake(desk)                       # in a worker
    while intake.wait():
        number, job = intake.begin()
        intake.end(number, result_of(job))

A job's result leaves the worker when the job ends, whatever becomes of the others. A lane whose worker is the process itself is
given its jobs first, and works on them when it is closed.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import NeighbourFailedError, NotBegunError
from pipelines.workers.watchdog import beat, naming_stalls, patiently

LOOK_EVERY_S = 0.1
"""How often a worker that has work looks whether there is more."""
ASK_S = 5.0
"""How long a question for more work stands."""
MOST_WAITING = 256
"""Threads of the desk's actor: one for each job that is waited for."""


@dataclass
class Times:
    """When the first worker of a job's lane was up, when the job began and ended, in seconds since 1970; 0.0 for never.

    `share_s` is its part of the lane's time. Jobs that are under way at once have equal ones, which add up to the lane's.
    """

    up: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    share_s: float = 0.0


@dataclass
class _Entry:
    job: Any
    times: Times = field(default_factory=Times)
    result: Any = None
    has_ended: bool = False


class Desk:
    """Where a lane's jobs lie, and their results. Its methods may be called from any thread, `take` by one worker."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[int, _Entry] = {}
        self._waiting: deque[int] = deque()
        self._is_closed = self._is_lost = False
        self._up = self._counted_at = 0.0

    def put(self, job: Any) -> int:
        """Hand in a job; its number, from 0."""
        with self._changed:
            number = len(self._entries)
            self._count()
            # Nobody takes it on any more from a desk that is lost.
            self._entries[number] = _Entry(job, has_ended=self._is_lost)
            self._waiting.append(number)
            self._changed.notify_all()
            return number

    def close(self) -> None:
        """Say that no more jobs will come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self, wait_s: float) -> tuple[dict[int, Any], bool]:
        """The jobs that have come since it was last asked, by number, and whether none will come any more.

        Waits so long at most if there is neither.
        """
        with self._changed:
            self._up = self._up or time.time()
            self._changed.wait_for(lambda: self._waiting or self._is_closed, wait_s)
            taken = {number: self._entries[number].job for number in self._waiting}
            self._waiting.clear()
            return taken, self._is_closed

    def job(self, number: int) -> Any:
        return self._entries[number].job

    def begin(self, number: int) -> None:
        """A job has begun; several workers that do it together may each say so."""
        with self._changed:
            self._count()
            times = self._entries[number].times
            times.began = times.began or time.time()

    def wait_for(self, number: int, wait_s: float) -> tuple[Any, bool]:
        """A job, None where it has not come after so long, and whether none will come any more."""
        with self._changed:
            self._up = self._up or (time.time() if wait_s else 0.0)
            self._changed.wait_for(lambda: number in self._entries or self._is_closed, wait_s)
            entry = self._entries.get(number)
            return entry and entry.job, self._is_closed

    def end(self, number: int, result: Any) -> None:
        """Hand back a job's result, an exception if it failed."""
        with self._changed:
            self._count()
            entry, now = self._entries[number], time.time()
            entry.result, entry.has_ended = result, True
            entry.times.up, entry.times.ended = self._up or entry.times.began, now
            # What is kept of a lane that takes on thousands of jobs.
            entry.job = None
            self._changed.notify_all()

    def result(self, number: int) -> tuple[Any, Times]:
        """Wait for a job's end. None where its workers ended before it (`lose`)."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries[number].has_ended)
            entry = self._entries[number]
            return entry.result, entry.times

    def unfinished(self) -> list[Any]:
        with self._changed:
            return [entry.job for entry in self._entries.values() if not entry.has_ended]

    def lose(self) -> tuple[int, int]:
        """End all unfinished jobs without a result: their workers are gone. How many there were, and had begun of them."""
        with self._changed:
            left = [number for number, entry in self._entries.items() if not entry.has_ended]
            num_begun = sum(self._entries[number].times.began > 0 for number in left)
            for number in left:
                self.end(number, None)
            self._is_lost = True
            return len(left), num_begun

    def _count(self) -> None:
        """Share out the time since this was last called: among the jobs that are under way, else among those that wait."""
        now = time.monotonic()
        left = [entry for entry in self._entries.values() if not entry.has_ended]
        for entry in (under_way := [entry for entry in left if entry.times.began] or left):
            entry.times.share_s += (now - self._counted_at) / len(under_way)
        self._counted_at = now


def _ask(desk: Any, name: str, *arguments: Any) -> Any:
    """What a method of a desk gives, which is in this process or an actor's handle."""
    if isinstance(desk, Desk):
        return getattr(desk, name)(*arguments)
    import ray

    return ray.get(getattr(desk, name).remote(*arguments))


def _sealed(desk: Any, job: Any) -> Any:
    """`job` as it lies at `desk`, which imports nothing of what it is made of: whoever does it waits for that otherwise."""
    if isinstance(desk, Desk):
        return job
    import ray

    # In a list, where Ray passes a reference on as it is.
    return [ray.put(job)]


def _unsealed(desk: Any, sealed: Any) -> Any:
    if isinstance(desk, Desk) or sealed is None:
        return sealed
    import ray

    return ray.get(sealed[0])


def shared_job(desk: Any, *, wait: bool = True) -> Any:
    """The one job of a lane, which all its workers do together; it has begun then. None if it is not there and not to be
    waited for. Raises NotBegunError if the lane ends without it.
    """
    while True:
        job, is_closed = _ask(desk, "wait_for", 0, ASK_S if wait else 0.0)
        beat()
        if job is not None:
            _ask(desk, "begin", 0)
            return _unsealed(desk, job)
        if is_closed:
            raise NotBegunError("its lane ended before it had begun")
        if not wait:
            return None


class Lane:
    """The side of the process that has the jobs. `serve` is called with the desk, and returns when the workers have ended.

    `output_of` is the folder or URI that a job writes to, where a worker that stood still has left a word. Unless it is
    `in_process`, the desk is an actor of its own on this machine.
    """

    def __init__(self, serve: Callable[[Any], None], output_of: Callable[[Any], str], *, in_process: bool) -> None:
        self._serve, self._output_of = serve, output_of
        self._error: Exception | None = None
        self._num_lost = self._num_begun = 0
        self._thread: threading.Thread | None = None
        if in_process:
            self._desk: Any = Desk()
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=MOST_WAITING, scheduling_strategy=here).remote()
        self._thread = threading.Thread(target=self._work, daemon=True, name="lane")
        self._thread.start()

    def _work(self) -> None:
        try:
            with naming_stalls(lambda: map(self._output_of, self._unfinished())):
                self._serve(self._desk)
        except Exception as error:
            self._error = error
        # Without a desk, nobody waits for a result any more.
        with contextlib.suppress(Exception):
            self._num_lost, self._num_begun = _ask(self._desk, "lose")

    def _unfinished(self) -> list[Any]:
        return [_unsealed(self._desk, job) for job in _ask(self._desk, "unfinished")]

    def run(self, job: Any) -> tuple[Any, Times]:
        """Have a job done, and wait for it; its result and times. Raises what it failed with, as `result` does."""
        return self.result(self.put(job))

    def run_all(self, jobs: Sequence[Any]) -> list[Any]:
        """Have these jobs done and no others: the lane is closed. Each one's result, or what it failed with (`result`)."""
        numbers = [self.put(job) for job in jobs]
        self.close()
        results: list[Any] = []
        for number in numbers:
            try:
                results.append(self.result(number)[0])
            except Exception as error:
                results.append(error)
        return results

    def put(self, job: Any) -> int:
        return int(_ask(self._desk, "put", _sealed(self._desk, job)))

    def result(self, number: int) -> tuple[Any, Times]:
        """Wait for the result of a job and its times.

        Raises what the job failed with. If its workers were lost: their error, `NeighbourFailedError` with that as its cause if
        several jobs had begun, `NotBegunError` if this one had not and others had.
        """
        result, times = _ask(self._desk, "result", number)
        if isinstance(result, Exception):
            raise result
        if result is not None:
            return result, times
        if self._thread is not None:
            self._thread.join()
        error = self._error or RuntimeError("the workers ended before their jobs")
        if not times.began and (self._num_begun or not times.ended):
            raise NotBegunError(str(error)) from error
        if 1 in (self._num_lost, self._num_begun):
            raise error
        raise NeighbourFailedError(str(error)) from error

    def close(self) -> None:
        """No more jobs will come: wait until all have ended, and the workers with them."""
        # The workers of a desk that is gone have ended.
        with contextlib.suppress(Exception):
            _ask(self._desk, "close")
        if self._thread is None:
            self._work()
        else:
            self._thread.join()


class Intake:
    """The jobs of a lane as a worker takes them on."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self.waiting: dict[int, Any] = {}
        """Jobs that have come and not begun, by number."""
        self._is_closed = False
        self._asked: Any = None
        self._looked_at = 0.0

    def wait(self) -> bool:
        """Wait until there is a job; False if none will come any more."""
        with patiently():
            while not self.waiting and not self._is_closed:
                self.look(ASK_S)
        return bool(self.waiting)

    def look(self, wait_s: float = 0.0) -> None:
        """Take what has come, and wait so long at most if nothing has."""
        if self._is_closed or (not wait_s and time.monotonic() - self._looked_at < LOOK_EVERY_S):
            return
        self._looked_at = time.monotonic()
        if isinstance(self._desk, Desk):
            taken = self._desk.take(wait_s)
        else:
            import ray

            # One question stands at a time, so that looking costs next to nothing.
            self._asked = self._asked or self._desk.take.remote(ASK_S)
            if not ray.wait([self._asked], timeout=wait_s)[0]:
                return
            taken, self._asked = ray.get(self._asked), None
        jobs, self._is_closed = taken
        self.waiting |= {number: _unsealed(self._desk, job) for number, job in jobs.items()}

    def begin(self, number: int | None = None) -> tuple[int, Any]:
        """Take on a job that waits, the first if no number is given; its number and itself."""
        number = next(iter(self.waiting)) if number is None else number
        # Waited for: its end could overtake it, and it would be lost with a worker that dies of the job at once.
        _ask(self._desk, "begin", number)
        return number, self.waiting.pop(number)

    def job(self, number: int) -> Any:
        """A job that another worker has begun."""
        return _unsealed(self._desk, _ask(self._desk, "job", number))

    def end(self, number: int, result: Any) -> None:
        """Hand back the result of a job, an exception if it failed."""
        _ask(self._desk, "end", number, result)
