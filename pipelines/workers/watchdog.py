"""Watchdogs: what makes no progress for a stated time is ended, by name, and the stacks of its threads are kept.

    beat()                                   # whenever something is done: a step, a batch
    with patiently():                        # what is written in here may be large
    wait_for(future, "a vLLM engine")        # its result, or StalledError
    with watched("a finetuning", output):    # or the process ends, and
    with naming_stalls(lambda: [output]):    # in the process that waits for it, StalledError says so

The time without a beat is counted in ticks of the process itself: there are none while a machine is suspended or the process
stopped, and the clock can be set. Where a step takes long, twenty times its own time is waited.
"""

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from pipelines.errors import StalledError, UserError
from pipelines.storage import join, read_text, remove, write_text

STALL_AFTER = "BLINDSWEEP_STALL_S"
"""The environment variable for the seconds without progress."""
DEFAULT_S = 600.0
SLOW_FACTOR = 3
"""How many times as long a start may take, and a checkpoint: an engine of 7 billion parameters is read and compiled in up to a
quarter of an hour from a slow disk, and all of such a model's optimizer is 84 GB."""
TICK_S = 5.0
STEPS = 20
STALLED_FILE = ".stalled.txt"

Result = TypeVar("Result")


def stall_after() -> float:
    """Seconds without progress after which work is ended. Raises UserError for a setting that is no such number."""
    text = os.environ.get(STALL_AFTER, str(DEFAULT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{STALL_AFTER}={text}: give a number of seconds above 0")
    return seconds


def beat() -> None:
    """Say that something was done in this process. Costs next to nothing."""
    _pulse.beat()


@contextlib.contextmanager
def patiently() -> Iterator[None]:
    """What is done in here has no beats, and may take as long as a start."""
    _pulse.slow(1)
    try:
        yield
    finally:
        _pulse.slow(-1)
        _pulse.beat(counts=False)


def wait_for(future: "Future[Result]", what: str) -> Result:
    """The result of `future`. Raises StalledError, with the stacks of all threads as a note, if nothing beats for too long."""
    watch = _Watch()
    while True:
        try:
            return future.result(timeout=min(TICK_S, watch.limit_s / 4))
        except TimeoutError:
            if future.done():
                raise
        if watch.tick():
            error = StalledError(watch.message(what))
            error.add_note(_stacks())
            raise error


@contextlib.contextmanager
def watched(what: str, output: str | Callable[[], str]) -> Iterator[None]:
    """End this process if nothing beats for too long in here, after a file in `output` that says so.

    A function says which output that is by then.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(what, output, over), daemon=True, name="watchdog")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def naming_stalls(outputs: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Raise StalledError instead of an error in here that came of the end of a process that was `watched`.

    `outputs` gives those that it may have been working on.
    """
    try:
        yield
    except Exception as error:
        for output in outputs():
            path = join(output, STALLED_FILE)
            if text := read_text(path):
                remove(path)
                stalled = StalledError(text.partition("\n")[0])
                stalled.add_note(text)
                raise stalled from error
        raise


class _Pulse:
    """How often this process has said that something was done, and how long that took in the mean."""

    def __init__(self) -> None:
        self.num_beats = 0
        self.num_slow = 0
        """How many things are done `patiently` now."""
        self.step_s = 0.0
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def slow(self, number: int) -> None:
        # By several threads at once.
        with self._lock:
            self.num_slow += number

    def beat(self, *, counts: bool = True) -> None:
        now = time.monotonic()
        # The first one had a start before it; and of the last hundred or so, so that one that compiled is forgotten.
        if counts and self.num_beats:
            self.step_s += (now - self._last - self.step_s) / min(self.num_beats, 100)
        self._last = now
        self.num_beats += 1


_pulse = _Pulse()


class _Watch:
    """The ticks since the last beat, as one that waits counts them."""

    def __init__(self) -> None:
        self._seconds = stall_after()
        self._first = self._seen = _pulse.num_beats
        self._quiet_s = 0.0

    @property
    def limit_s(self) -> float:
        # The first step may have to compile.
        if self._seen < self._first + 2 or _pulse.num_slow:
            return SLOW_FACTOR * self._seconds
        return max(self._seconds, STEPS * _pulse.step_s)

    def tick(self) -> bool:
        """Count one tick; whether there were too many."""
        seen = _pulse.num_beats
        if seen != self._seen:
            self._seen, self._quiet_s = seen, 0.0
        else:
            self._quiet_s += min(TICK_S, self.limit_s / 4)
        return self._quiet_s > self.limit_s

    def message(self, what: str) -> str:
        return f"{what} stood still for {self.limit_s:g} s ({STALL_AFTER} sets how long it may)"


def _watch(what: str, output: str | Callable[[], str], over: threading.Event) -> None:
    watch = _Watch()
    while not over.wait(min(TICK_S, watch.limit_s / 4)):
        if watch.tick() and not over.is_set():
            with contextlib.suppress(Exception):
                where = output if isinstance(output, str) else output()
                write_text(join(where, STALLED_FILE), f"{watch.message(what)}\n\n{_stacks()}")
            os._exit(1)


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
