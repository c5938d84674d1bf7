"""A run's heartbeat: a small file in the store that says what the run does, so that it can be seen from anywhere.

`{store}/live/{study}/{run}.json` is written anew every few seconds and removed when the run ends. One that stands unwritten for
`LENGTH_S` seconds, or whose process is gone, is of a run that died. How old it is goes by the store's clock where the store
tells it (`pipelines.storage.read_with_age`), so that two machines' clocks are not compared on S3.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pipelines.storage import join, read_with_age, remove
from sweep.graph.records import Store
from sweep.graph.sealed import seal, unseal
from sweep.live.process import is_gone, name_of_process

FOLDER = "live"
FORMAT = 1
EVERY_S = 10.0
"""Seconds between two writes at most, and at least `SOON_S` when something has changed."""
SOON_S = 2.0
SHOW_S = 1.0
"""Seconds between two looks of a run at itself."""
LENGTH_S = 60.0
"""Seconds without a write after which a run counts as interrupted, as with the lease of an artifact."""
END_S = 5.0
"""How long the end of a run waits for a write that is under way."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Working:
    """A step that workers have taken on: for how many seconds, how fast (in words), and what part is done, None if unknown."""

    stage: str
    slug: str
    fingerprint: str
    seconds: float
    num_workers: int = 1
    rate: str = ""
    fraction_done: float | None = None


@dataclass(frozen=True)
class Pulse:
    """What a run says of itself. `done` counts artifacts by stage, those that were there included.

    `failures` are as in a study's manifest, without blocked steps; `blocked` has these: name of the failed step → stage → how
    many. `again` are the last errors of steps that are tried again, by the step's name. `seconds_left` is an estimate, `spent`
    a line on money, `hold` why nothing new starts.
    """

    done: Mapping[str, int] = field(default_factory=dict)
    working: tuple[Working, ...] = ()
    failures: tuple[Mapping[str, str], ...] = ()
    blocked: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    again: Mapping[str, str] = field(default_factory=dict)
    seconds_left: float | None = None
    spent: str = ""
    hold: str = ""

    def later(self, seconds: float) -> "Pulse":
        """The same `seconds` later, if nothing has changed but the time."""
        working = tuple(replace(step, seconds=step.seconds + seconds) for step in self.working)
        left = None if self.seconds_left is None else max(self.seconds_left - seconds, 0.0)
        return replace(self, working=working, seconds_left=left)


@dataclass(frozen=True)
class Beat:
    """A heartbeat as it is read. `started` is ISO 8601 in UTC by the run's clock; `age_s` the seconds since it was written.

    `quiet_s` is for how many seconds the run had not looked at its steps when it was written; `nothing_new_s` for how many
    seconds no step of it has begun, ended or reported anything.
    """

    run: str
    study: str
    started: str
    host: str
    process: str
    pulse: Pulse
    age_s: float
    quiet_s: float = 0.0
    nothing_new_s: float = 0.0

    @cached_property
    def is_live(self) -> bool:
        """Whether the run goes on: it was heard of in time, and its process is not known to be gone. As it was when it was
        read, or first asked for.
        """
        return self.age_s <= LENGTH_S and not is_gone(self.process)


def read_beats(store: Store, study: str) -> tuple[Beat, ...]:
    """The heartbeats of a study's runs, the first begun first. One that cannot be read is left out: its run writes it anew."""
    folder = join(store.uri, FOLDER, study)
    beats = []
    for name in sorted(store.names(folder)):
        if name.startswith(".") or not name.endswith(".json"):
            continue
        # It may be removed meanwhile.
        found = read_with_age(join(folder, name))
        if found is not None and (beat := _parsed(*found)) is not None and name == f"{beat.run}.json":
            _ = beat.is_live
            beats.append(beat)
    return tuple(sorted(beats, key=lambda beat: beat.started))


def _parsed(text: bytes, age_s: float) -> Beat | None:
    try:
        values = unseal(text)
        if values.pop("format") != FORMAT:
            return None
        pulse = values.pop("pulse")
        pulse["working"] = tuple(Working(**step) for step in pulse["working"])
        pulse["failures"] = tuple({key: str(value) for key, value in failure.items()} for failure in pulse["failures"])
        pulse["done"] = {stage: int(count) for stage, count in pulse["done"].items()}
        pulse["blocked"] = {name: {stage: int(count) for stage, count in of.items()} for name, of in pulse["blocked"].items()}
        # Its times are those of its writing.
        values["nothing_new_s"] = values.get("nothing_new_s", 0.0) + age_s
        return Beat(**values, pulse=Pulse(**pulse).later(age_s), age_s=age_s)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class Heartbeat:
    """A run's own heartbeat, as a context: written when it is entered, by a thread from then on, and removed when it is left.

    `show` says what has become of the run; the thread writes it down, soon if it is news. A store that cannot be written for a
    while, or at all, disturbs nothing: the run then shows as interrupted, or not at all.
    """

    def __init__(self, store: Store, study: str, pulse: Pulse, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._study, self._clock = store, study, clock
        now = datetime.now(UTC)
        self._run = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self._fixed = {
            "format": FORMAT,
            "run": self._run,
            "study": study,
            "started": now.isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "process": name_of_process(os.getpid()),
        }
        self._pulse, self._shown_at = pulse, clock()
        self._reports: object = None
        self._new_at = self._shown_at
        self._is_news, self._ended = threading.Event(), threading.Event()
        self._has_warned = False
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)

    @property
    def uri(self) -> str:
        return join(self._store.uri, FOLDER, self._study, f"{self._run}.json")

    def __enter__(self) -> "Heartbeat":
        with contextlib.suppress(Exception):
            self._bury_the_dead()
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._is_news.set()
        self._thread.join(END_S)
        with contextlib.suppress(Exception):
            remove(self.uri)
            # What one had under way that was killed beside this one, this one has taken on.
            self._bury_the_dead()

    @property
    def is_due(self) -> bool:
        """Whether it is time to `show` again: a run looks at itself many times a second."""
        return self._clock() - self._shown_at >= SHOW_S

    def show(self, pulse: Pulse, reports: object = None) -> None:
        """Have `pulse` written down; quick, and nothing of it is written here.

        `reports` are the steps' last ones: something is new while they change.
        """
        before, self._pulse, self._shown_at = self._pulse, pulse, self._clock()
        is_news = _lasting(before) != _lasting(pulse)
        if is_news:
            self._is_news.set()
        if is_news or reports != self._reports:
            self._reports, self._new_at = reports, self._shown_at

    def _keep(self) -> None:
        while not self._ended.wait(SOON_S):
            self._is_news.wait(EVERY_S - SOON_S)
            self._is_news.clear()
            if not self._ended.is_set():
                self._write()

    def _write(self) -> None:
        # In this order: what is shown in between is newer than it says, not older.
        shown_at, pulse = self._shown_at, self._pulse
        quiet_s = self._clock() - shown_at
        values: dict[str, Any] = {
            **self._fixed,
            "quiet_s": round(quiet_s, 1),
            "nothing_new_s": round(self._clock() - self._new_at, 1),
            "pulse": _plain(pulse.later(quiet_s)),
        }
        try:
            self._store.write_bytes(self.uri, seal(values).encode())
        except Exception as error:
            # Once: it comes again every few seconds.
            level = logging.DEBUG if self._has_warned else logging.WARNING
            logger.log(level, "`status` shows nothing of this run for now, whose heartbeat cannot be written: %s", error)
            self._has_warned = True

    def _bury_the_dead(self) -> None:
        """Remove what other runs of the study left that were killed: this one goes on with what they have done."""
        for beat in read_beats(self._store, self._study):
            if not beat.is_live:
                remove(join(self._store.uri, FOLDER, self._study, f"{beat.run}.json"))


def _plain(pulse: Pulse) -> dict[str, Any]:
    """A pulse as JSON has it; counts may be Counters, of which `dataclasses.asdict` makes something else."""
    return {
        **{each.name: getattr(pulse, each.name) for each in dataclasses.fields(pulse)},
        "done": dict(pulse.done),
        "working": [dataclasses.asdict(step) for step in pulse.working],
        "failures": [dict(failure) for failure in pulse.failures],
        "blocked": {name: dict(of) for name, of in pulse.blocked.items()},
        "again": dict(pulse.again),
    }


def _lasting(pulse: Pulse) -> tuple[Any, ...]:
    """What of a pulse is news when it changes: not times and speeds."""
    working = {step.fingerprint for step in pulse.working}
    return working, dict(pulse.done), len(pulse.failures), dict(pulse.again), pulse.hold
