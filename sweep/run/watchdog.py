"""Steps from which nothing is heard any more: all that a run can say of a worker that is not able to look after itself.

Workers end themselves when they stand still (`pipelines/workers/watchdog.py`). One that the system holds cannot, nor can one
that has no machine yet; which of them it is, somebody has to look at.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.workers.watchdog import SLOW_FACTOR, STEPS, stall_after
from sweep.graph.step import Step
from sweep.run.progress import Progress

MOST_S = 5.0
"""The most that counts between two looks: a machine that was suspended has not been silent."""


@dataclass
class _Heard:
    """The last report of a step, how long nothing has followed it, and the longest such time before."""

    report: Any
    quiet_s: float = 0.0
    longest_s: float = 0.0
    is_said: bool = False


class Silences:
    """Finds the running steps that have reported before, and then nothing for longer than they may; each time once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit_s = SLOW_FACTOR * stall_after()
        self._last_look = clock()
        self._last_snapshot: Any = None
        self._heard: dict[str, _Heard] = {}

    def look(self, progress: Progress) -> Iterator[tuple[Step, float]]:
        """Steps that have become silent, and for how many seconds they are."""
        # While the tracker does not answer, nothing is known of anyone.
        if progress.throughput is self._last_snapshot:
            return
        self._last_snapshot = progress.throughput
        now = self._clock()
        elapsed, self._last_look = min(now - self._last_look, MOST_S), now
        running = {fingerprint: heard for fingerprint, heard in self._heard.items() if fingerprint in progress.running}
        self._heard = running
        for step in progress.steps:
            report = progress.throughput.get(step.fingerprint)
            if step.fingerprint not in progress.running or report is None:
                continue
            heard = running.get(step.fingerprint)
            if heard is None or heard.report != report:
                longest_s = max(heard.longest_s, 0.0 if heard.is_said else heard.quiet_s) if heard else 0.0
                running[step.fingerprint] = _Heard(report, longest_s=longest_s)
                continue
            heard.quiet_s += elapsed
            if not heard.is_said and heard.quiet_s > max(self._limit_s, STEPS * heard.longest_s):
                heard.is_said = True
                yield step, heard.quiet_s
