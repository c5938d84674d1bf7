"""The end of a run that a signal stops: one exception, one line, one exit code.

SIGTERM, SIGINT and SIGHUP (a closed terminal) take the same path. Steps are stopped by ending their processes: a step
resumes at its last commit, so that nothing has to be written first.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT_S = 12
"""Seconds after which a run ends even if its MLflow server does not answer."""
PR_SET_CHILD_SUBREAPER = 36
"""From Linux's <linux/prctl.h>."""


class Stop:
    """A context around a run: the first signal raises KeyboardInterrupt in the main thread, a second ends at once.

    A run that was stopped does not leave the context: the process ends with 128 + signal. `state` says what is built.
    """

    def __init__(self) -> None:
        self.state: Callable[[], str] = lambda: "what is built is kept"
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        # A signal to the whole process group ends Ray's daemon before its workers: they become ours instead of init's.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in SIGNALS:
            # `nohup`, or a shell that starts the run in its background.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._signal is not None:
            self._end(self._signal)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            self._end(self._signal)
        self._signal = signal.Signals(number)
        signal.signal(signal.SIGALRM, self._on_signal)
        signal.alarm(LIMIT_S)
        # Nothing else: Ray's core passes on this and SystemExit only, and the latter ends in a C++ abort.
        raise KeyboardInterrupt

    def _end(self, number: signal.Signals) -> None:
        for other in (*SIGNALS, signal.SIGALRM):
            signal.signal(other, signal.SIG_IGN)
        kill_descendants()
        line = f"stopped by {number.name}: {self.state()}; the same command goes on\n"
        # A closed terminal takes no line, and a signal may have come in the middle of a print.
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        # Without Python's own end: there Ray waits for processes that are gone.
        os._exit(128 + number)


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
