"""Progress of a run and its display: a live table on a terminal, one plain line an event in a log."""

import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TextIO

from pipelines.terminal import console as new_console
from sweep.graph.records import STAGES, Record, throughputs
from sweep.graph.step import Step
from sweep.live.heartbeat import Pulse, Working
from sweep.run.trial import Outcome


class Pace(NamedTuple):
    """How far a running step says that it is, None before it has; the seconds since it first did; about how many are left by
    what it has done since, None while that is too little to go by.
    """

    part_done: float | None
    seen_s: float
    left_s: float | None


@dataclass
class Progress:
    """The steps of a run by what has become of them; the display reads it."""

    steps: Sequence[Step]
    cached: set[str]
    running: dict[str, float] = field(default_factory=dict)  # fingerprint → monotonic start
    built: dict[str, Record] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)  # of what is built, the fingerprints of what another run has built meanwhile
    failed: dict[str, Outcome] = field(default_factory=dict)
    retried: dict[str, Outcome] = field(default_factory=dict)  # how the last attempt ended of a step that is tried again
    blocked: dict[str, str] = field(default_factory=dict)  # fingerprint → name of the step that failed
    throughput: dict[str, dict[str, float]] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)  # how often a step lost its machine or a process, by fingerprint
    waits: dict[str, str] = field(default_factory=dict)  # fingerprint → what a step has been waiting for
    spent: str = ""  # a line of what the study has cost, if that is reckoned
    num_lanes: int = 0  # that have steps under way
    first_seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Fingerprint → when a step first said how far it was, in monotonic seconds, and how far. Before, it waited in its lane."""

    def begin(self, fingerprint: str) -> None:
        """A step is given to a lane."""
        self.running[fingerprint] = time.monotonic()
        self.first_seen.pop(fingerprint, None)

    def pace(self, fingerprint: str) -> Pace:
        """How far a running step is, and how fast."""
        done = self.throughput.get(fingerprint, {}).get("fraction_done")
        if done is None:
            return Pace(None, 0.0, None)
        now = time.monotonic()
        since, first = self.first_seen.setdefault(fingerprint, (now, done))
        if done > first and (now - since > PACE_S or done - first > PACE_PART):
            return Pace(done, now - since, (now - since) * (1 - done) / (done - first))
        return Pace(done, now - since, None)

    @property
    def num_done(self) -> int:
        return len(self.cached) + len(self.built)


def pulse_of(progress: Progress, seconds_left: float | None, hold: str = "") -> Pulse:
    """What others can see of a run while it goes on; `hold` is why nothing new starts."""
    now = time.monotonic()
    steps = {step.fingerprint: step for step in progress.steps}
    done = Counter(step.stage for step in progress.steps if step.fingerprint in progress.cached)
    done.update(record.stage for record in progress.built.values())
    working = []
    for fingerprint, since in progress.running.items():
        step = steps[fingerprint]
        working.append(
            Working(
                step.stage,
                step.slug,
                fingerprint,
                now - since,
                step.resources.num_workers,
                _rate(progress.throughput.get(fingerprint, {})).removeprefix(", "),
                progress.pace(fingerprint).part_done,
            )
        )
    blocked: dict[str, Counter[str]] = {}
    for fingerprint, name in progress.blocked.items():
        blocked.setdefault(name, Counter())[steps[fingerprint].stage] += 1
    failures = tuple(
        {**asdict(steps[fingerprint].id), "error": outcome.error, "log": outcome.log}
        for fingerprint, outcome in progress.failed.items()
    )
    again = {
        steps[fingerprint].name: outcome.error
        for fingerprint, outcome in progress.retried.items()
        if fingerprint not in progress.built and fingerprint not in progress.failed
    }
    return Pulse(done, tuple(working), failures, blocked, again, seconds_left, progress.spent, hold)


def seconds(value: float) -> str:
    """42s, 3m07s or 2h05m."""
    whole = round(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def mean_durations(records: Iterable[Record], known: Mapping[str, float] | None = None) -> dict[str, float]:
    """Mean seconds of an artifact by stage; each of `known`, by stage as well, counts as one artifact more."""
    times = {stage: [value] for stage, value in (known or {}).items()}
    for record in records:
        times.setdefault(record.stage, []).append(record.durations["total_s"])
    return {stage: sum(values) / len(values) for stage, values in times.items()}


def time_left(progress: Progress, known: Mapping[str, float], parallel: float) -> float | None:
    """Estimated seconds until the end; None while a stage is left of which no step has ended.

    `known` is the mean duration of earlier steps by stage; this run's own are added. A running step that says
    how far it is speaks for itself. `parallel` is how many lanes have run side by side, whose steps have shares of their time.
    """
    means = mean_durations(progress.built.values(), known)
    over = {*progress.cached, *progress.built, *progress.failed, *progress.blocked}
    left = [seconds_left(step, progress, means.get(step.stage)) for step in progress.steps if step.fingerprint not in over]
    estimated = [value for value in left if value is not None]
    if len(estimated) < len(left):
        return None
    return max(sum(estimated) / max(parallel, 1), max(estimated, default=0.0))


def seconds_left(step: Step, progress: Progress, mean: float | None) -> float | None:
    """Estimated seconds of one step's work that are left, where it takes `mean` if that is known."""
    if step.fingerprint not in progress.running:
        return mean
    elapsed = time.monotonic() - progress.running[step.fingerprint]
    done, seen_s, left_s = progress.pace(step.fingerprint)
    if left_s is not None:
        return left_s
    if not done:
        return None if mean is None else max(mean - elapsed, 0)
    # Since it was given to its lane, where it may have waited: at most so long.
    at_most = elapsed * (1 / done - 1)
    return at_most if mean is None else min(at_most, max(mean * (1 - done) - seen_s, 0))


PACE_S, PACE_PART = 10.0, 0.05
"""A step's pace is gone by when it has been seen for so many seconds, or has done so much."""
SAY_SPENT_EVERY_S = 600.0
"""How often a log says what is spent; a live table always does."""
LEFT_EVERY_S = 1.0
"""How often the time left is estimated anew: over thousands of steps that takes milliseconds, and each one's line has it."""


class Display:
    """Use as a context manager; `on_event` and `on_tick` are called by `run_steps`."""

    def __init__(self, known: Mapping[str, float], stream: TextIO | None = None, live: bool | None = None):
        self.known = known
        self.stream = stream or sys.stdout
        self.is_live = self.stream.isatty() if live is None else live
        self.started = time.monotonic()
        self._progress: Progress | None = None
        self._live: Any = None
        self._parallel = 1.0
        self._said_spent_at = self.started
        self._left: float | None = None
        self._left_at = -math.inf

    def __enter__(self) -> "Display":
        if self.is_live:
            from rich.live import Live

            self._live = Live(console=new_console(file=self.stream), get_renderable=self._table, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            # A terminal that is closed must not hide why the run ends.
            with contextlib.suppress(OSError):
                self._live.stop()

    def on_tick(self, progress: Progress) -> None:
        self._progress = progress
        if progress.running:
            self._parallel = 0.98 * self._parallel + 0.02 * (progress.num_lanes or len(progress.running))
        if progress.spent and not self.is_live and time.monotonic() - self._said_spent_at >= SAY_SPENT_EVERY_S:
            self._said_spent_at = time.monotonic()
            print(f"{seconds(self._elapsed):>6}  {self._position(progress)}  {progress.spent}", file=self.stream, flush=True)

    def on_event(self, event: str, step: Step, progress: Progress) -> None:
        self._progress = progress
        if event == "blocked":
            return  # the line of the failed step says how many
        if not self.is_live:
            print(self._line(event, step, progress), file=self.stream, flush=True)
        elif event in ("failed", "retry", "lost", "waits"):
            self._live.console.print(self._line(event, step, progress), markup=False, highlight=False)

    def say(self, text: str) -> None:
        """A line of its own, after the time and how far the run is."""
        line = f"{seconds(self._elapsed):>6}  {self._position(self._progress) if self._progress else ''}  {text}"
        if self.is_live:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self.stream, flush=True)

    def _line(self, event: str, step: Step, progress: Progress) -> str:
        detail = ""
        if event == "done":
            record = progress.built[step.fingerprint]
            by = " by another run" if step.fingerprint in progress.taken else ""
            detail = f"{by} in {seconds(record.durations['total_s'])}{_rate(record.metrics)}"
        elif event == "waits":
            detail = f": {progress.waits[step.fingerprint]}"
        elif event == "lost":
            detail = f": {progress.retried[step.fingerprint].error}; goes on (loss {progress.losses[step.fingerprint]})"
        elif event in ("failed", "retry"):
            outcome = (progress.failed if event == "failed" else progress.retried)[step.fingerprint]
            detail = f": {outcome.error}" + (f" (traceback: {outcome.log})" if outcome.log else "")
            if blocked := sum(name == step.name for name in progress.blocked.values()):
                detail += f"; {blocked:,} steps that need it are" if blocked > 1 else "; 1 step that needs it is"
                detail += " given up"
        return f"{seconds(self._elapsed):>6}  {self._position(progress)}  {event:<7} {step.name}{detail}"

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def seconds_left(self, progress: Progress) -> float | None:
        """The estimate that is shown of the seconds until the end; None where there is none yet."""
        if (now := time.monotonic()) - self._left_at >= LEFT_EVERY_S:
            self._left, self._left_at = time_left(progress, self.known, self._parallel), now
        return self._left

    def _position(self, progress: Progress) -> str:
        left = self.seconds_left(progress)
        # Of less than a second there is nothing to say: what runs has taken longer than was thought.
        estimate = f"  about {seconds(left)} left" if left is not None and round(left) and progress.built else ""
        return f"[{progress.num_done}/{len(progress.steps)}]{estimate}"

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self._progress
        if progress is None:
            return Text("starting Ray ...")
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        for title in ("stage", "", "done", "cached", "running"):
            table.add_column(title, justify="left" if title in ("stage", "", "running") else "right")
        totals = Counter(step.stage for step in progress.steps)
        cached = Counter(step.stage for step in progress.steps if step.fingerprint in progress.cached)
        built = Counter(record.stage for record in progress.built.values())
        running = _running(progress)
        for stage in filter(totals.get, STAGES):
            done = cached[stage] + built[stage]
            bar = ProgressBar(total=totals[stage], completed=done, width=20)
            now = running.get(stage, [])
            shown = ", ".join(now[:2]) + (f" and {len(now) - 2} more" if len(now) > 2 else "")
            table.add_row(stage, bar, f"{done}/{totals[stage]}", str(cached[stage] or ""), shown)
        lost = f"  {len(progress.failed)} failed, {len(progress.blocked)} blocked" if progress.failed else ""
        spent = f"  {progress.spent}" if progress.spent else ""
        footer = Text(f"{seconds(self._elapsed)}  {self._position(progress)}{lost}{spent}")
        return Group(table, footer)


def _running(progress: Progress) -> dict[str, list[str]]:
    """Stage → slug, age and speed of each of its running steps."""
    running: dict[str, list[str]] = {}
    for step in progress.steps:
        if step.fingerprint in progress.running:
            rate = _rate(progress.throughput.get(step.fingerprint, {}))
            age = seconds(time.monotonic() - progress.running[step.fingerprint])
            running.setdefault(step.stage, []).append(f"{step.slug} {age}{rate}")
    return running


class Transfers:
    """Downloads as they go: bars on a terminal, else a line at each tenth. Use as a context manager.

    Call it with a download's name, its bytes so far and its bytes in all; `say` prints a line.
    """

    def __init__(self, stream: TextIO | None = None, live: bool | None = None) -> None:
        self.stream = stream or sys.stdout
        self.is_live = self.stream.isatty() if live is None else live
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._tenths: dict[str, int] = {}

    def __enter__(self) -> "Transfers":
        if self.is_live:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=new_console(file=self.stream))
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, line: str) -> None:
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    def __call__(self, name: str, num_bytes: int, total: int) -> None:
        if self._bars:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(self._tasks[name], completed=num_bytes)
        elif (tenth := 10 * num_bytes // total) != self._tenths.get(name):
            self._tenths[name] = tenth
            self.say(f"{name}: {num_bytes / 1e6:,.1f} of {total / 1e6:,.1f} MB")


QUIET_S = 3.0
"""Work that is done sooner shows nothing."""
SAY_EVERY_S = 10.0
"""How often a log says how far the work is."""


class Work:
    """Work of a few phases as it goes: a bar with the time left on a terminal, else a line at times. Use as a context manager.

    Call it with what is being done, how much of it is, and of how much, None if that is not known. It shows nothing of work
    that takes no longer than QUIET_S.
    """

    def __init__(self, stream: TextIO | None = None, live: bool | None = None) -> None:
        self.stream = stream or sys.stderr
        self.is_live = self.stream.isatty() if live is None else live
        self._started = self._phase_started = self._said = time.monotonic()
        self._doing = ""
        self._bar: Any = None

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def __call__(self, doing: str, done: int, of: int | None) -> None:
        now = time.monotonic()
        is_new = doing != self._doing
        if is_new:
            self._doing, self._phase_started = doing, now
        if now - self._started < QUIET_S:
            return
        if self.is_live:
            self._show(doing, done, of, is_new)
        elif is_new or now - self._said >= SAY_EVERY_S:
            self._said = now
            print(self._line(doing, done, of, now), file=self.stream, flush=True)

    def _show(self, doing: str, done: int, of: int | None, is_new: bool) -> None:
        if not self._bar:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=new_console(file=self.stream), transient=True)
            self._task = self._bar.add_task(doing, total=of)
            self._bar.start()
        if is_new:
            self._bar.reset(self._task, total=of, description=doing)
        self._bar.update(self._task, completed=done, total=of)

    def _line(self, doing: str, done: int, of: int | None, now: float) -> str:
        elapsed = now - self._phase_started
        amount = "" if not done else f": {done:,}" + (f" of about {of:,}" if of else "")
        left_s = elapsed * (of / done - 1) if of and 0 < done <= of and elapsed > 1 else 0.0
        left = f", about {seconds(left_s)} left" if round(left_s) else ""
        return f"{seconds(now - self._started):>6}  {doing}{amount}{left}"


def _rate(metrics: Mapping[str, Any]) -> str:
    """The first throughput among metrics, for people."""
    for name, value in throughputs(metrics).items():
        return f", {value:,.0f} {name.removesuffix('_per_s').rsplit('/', 1)[-1]}/s"
    return ""
