"""The end of a run that a signal stops: one exception, one line, one exit code.

SIGTERM, SIGINT and SIGHUP (a closed terminal) take the same path. Steps are stopped by ending their processes: a step
resumes at its last commit, so that nothing has to be written first. SIGUSR1 is notice of such an end (Slurm's `--signal`):
steps commit what they have done, then the run ends in the same way, but with exit code 0. A time limit is a notice that a run
gives itself.
"""

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pipelines.workers.notice import tell_run
from sweep.run.machine import live_nodes

NOTICE = signal.SIGUSR1
NOTICE_S = 110.0
"""Seconds that steps have after a notice: ten less than Amazon gives a spot machine."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT_S = 12
"""Seconds after which a run ends even if its MLflow server does not answer."""
PR_SET_CHILD_SUBREAPER = 36
"""From Linux's <linux/prctl.h>."""


class Held(Protocol):
    """What `sweep.run.tune.Run` has to do with a notice."""

    hold: str
    queue: Any


class Stop:
    """A context around a run: the first signal raises KeyboardInterrupt in the main thread, a second ends at once.

    A run that was stopped does not leave the context: the process ends with 128 + signal. `state` says what is built.
    SIGUSR1 is heard by `hold` and `check`, which the run calls: steps have `notice_s` seconds, then the process ends with 0.
    The same happens by itself `notice_s` before `limit_s` after `began`, a time of `time.monotonic`. `notes` are said where the
    context is left in another way than by its end.
    """

    def __init__(self, notice_s: float = NOTICE_S, limit_s: float | None = None, began: float | None = None) -> None:
        self.state: Callable[[], str] = lambda: "what is built is kept"
        self.notes: list[str] = []
        self.notice_s = notice_s
        began = time.monotonic() if began is None else began
        self._due = math.inf if limit_s is None else began + limit_s - notice_s
        self._cause = f"a notice ({NOTICE.name})"
        self._too_late = ""
        self._noticed_at: float | None = None
        self._told: list[Any] | None = None
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        # A signal to the whole process group ends Ray's daemon before its workers: they become ours instead of init's.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in SIGNALS:
            # `nohup`, or a shell that starts the run in its background.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        if signal.getsignal(NOTICE) is not signal.SIG_IGN:
            self._handlers[NOTICE] = signal.signal(NOTICE, self._on_notice)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._signal is not None:
            self._end(self._signal)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if exception[0] is not None:
            print(self._warnings(), end="", file=sys.stderr, flush=True)

    def _warnings(self) -> str:
        return "".join(f"Warning: {note}\n" for note in self.notes)

    def _on_notice(self, number: int, frame: FrameType | None) -> None:
        if self._noticed_at is None:
            self._noticed_at = time.monotonic()

    def hold(self, run: "Held") -> None:
        """After a notice, let nothing new of `run` start, and its workers know; stop it when the time is over.

        To be called again and again while it runs.
        """
        if self._noticed_at is None and time.monotonic() >= self._due:
            self._noticed_at, self._cause = time.monotonic(), "the time limit"
        if self._noticed_at is None:
            return
        if self._told is None:
            run.hold = run.hold or "a notice came that it will be ended"
            self._told = tell_all_nodes()
        if time.monotonic() - self._noticed_at > self.notice_s:
            self._on_signal(NOTICE, None)

    @property
    def has_limit(self) -> bool:
        return math.isfinite(self._due)

    def why_not(self, name: str, seconds: float) -> str:
        """The reason that `name` may not start, of which nothing is kept for so many seconds; "" if the limit leaves them."""
        left = self._due - time.monotonic()
        if seconds <= left:
            return ""
        self._too_late = (
            f"nothing of {name} would be kept before {seconds:.0f} s, and {max(left, 0):.0f} s are left to begin in"
        )
        return self._too_late

    def check(self, run: "Held") -> None:
        """Stop `run`, of which nothing runs any more, if a notice or the time limit has kept it from its end."""
        if self._too_late and run.hold == self._too_late:
            self._noticed_at, self._cause = time.monotonic(), f"the time limit, since {self._too_late}"
        if self._noticed_at is not None and not run.queue.is_exhausted:
            self._on_signal(NOTICE, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            self._end(self._signal)
        self._signal = signal.Signals(number)
        signal.signal(signal.SIGALRM, self._on_signal)
        signal.alarm(LIMIT_S)
        # Nothing else: Ray's core passes on this and SystemExit only, and the latter ends in a C++ abort.
        raise KeyboardInterrupt

    def _end(self, number: signal.Signals) -> None:
        for other in (*SIGNALS, NOTICE, signal.SIGALRM):
            signal.signal(other, signal.SIG_IGN)
        kill_descendants()
        line = f"stopped by {number.name}: {self.state()}; the same command goes on\n"
        if number == NOTICE:
            line = f"stopped at {self._cause}: {self.state()}; the same command goes on\n"
        # A closed terminal takes no line, and a signal may have come in the middle of a print.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, (self._warnings() + line).encode(errors="backslashreplace"))
        # Without Python's own end: there Ray waits for processes that are gone.
        os._exit(0 if number == NOTICE else 128 + number)


def tell_all_nodes() -> list[Any]:
    """Let `notice_given` say so to all of this run's workers, in a moment; returns what is to be held on to meanwhile."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tell_run()
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in live_nodes() if node["NodeID"] != here]
    task = ray.remote(num_cpus=0, max_retries=0)(tell_run)
    return [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in others]


@contextlib.contextmanager
def deaf_to_notices() -> Iterator[None]:
    """Whatever is started in here does not hear SIGUSR1, nor what that starts: Slurm may send it to all processes of a job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {NOTICE})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_descendants() -> None:
    """SIGKILL all that this process has started, and what that has started."""
    stopped: set[int] = set()
    # Whatever starts while the tree is walked is found in the next round.
    while new := _descendants(os.getpid()) - stopped:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> set[int]:
    children: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children.update(int(child) for child in (thread / "children").read_text().split())
    return children.union(*(_descendants(child) for child in children))
