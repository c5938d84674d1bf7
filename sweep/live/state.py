"""How far a study is, by what lies in its store: records, heartbeats of its runs, and what unfinished steps have left."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.graph.integrity import HOLDING
from sweep.graph.pieces import seeds_lacking
from sweep.graph.records import RECORD_FILE, STAGES, Store, Study, StudyStep
from sweep.live.heartbeat import Beat, Working, read_beats


@dataclass(frozen=True)
class StageState:
    """One stage's artifacts by what has become of them. `interrupted` ones were begun, and are neither built nor running."""

    stage: str
    total: int
    done: int
    running: int = 0
    interrupted: int = 0
    failed: int = 0

    @property
    def to_build(self) -> int:
        """Those that were not begun, or fell with one that failed."""
        return max(self.total - self.done - self.running - self.interrupted - self.failed, 0)


@dataclass(frozen=True)
class StudyState:
    """A study at one moment. `stages` are in the order of the pipeline; `failures` are those that nothing has made good,
    without blocked steps; `blocked` maps the name of a failed step to stage → how many were given up for it.
    """

    study: Study
    stages: tuple[StageState, ...]
    runs: tuple[Beat, ...] = ()
    failures: tuple[Mapping[str, str], ...] = ()
    blocked: Mapping[str, Mapping[str, int]] | None = None

    @property
    def live(self) -> tuple[Beat, ...]:
        return tuple(beat for beat in self.runs if beat.is_live)

    @property
    def dead(self) -> tuple[Beat, ...]:
        """Runs that died: they have neither ended nor been heard of in time."""
        return tuple(beat for beat in self.runs if not beat.is_live)

    @property
    def working(self) -> tuple[Working, ...]:
        """The steps that run now."""
        return tuple(step for beat in self.live for step in beat.pulse.working)

    @property
    def num_workers(self) -> int:
        return sum(step.num_workers for step in self.working)

    @property
    def seconds_left(self) -> float | None:
        """Until the last of the runs ends, as they estimate it; None where none does."""
        return max((beat.pulse.seconds_left for beat in self.live if beat.pulse.seconds_left is not None), default=None)

    def count(self, name: str) -> int:
        """How many artifacts are `done`, `running`, `interrupted`, `failed`, `to_build`, or there are in all (`total`)."""
        return sum(getattr(stage, name) for stage in self.stages)

    @property
    def is_built(self) -> bool:
        return self.count("done") >= self.count("total")


class Watch:
    """Looks at one study again and again; what is known to be built is not read again.

    While a run goes on, what it says is believed of what is built; the records of the steps that it had are read, and all that
    are missing when it has ended.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._study: Study | None = None
        self._begun: frozenset[str] = frozenset()
        self._seen: set[str] = set()
        self._were_live = False

    def look(self) -> StudyState:
        """Raises UserError where the study cannot be read."""
        beats = read_beats(self._store, self._name)
        live = [beat for beat in beats if beat.is_live]
        working = {step.fingerprint for beat in live for step in beat.pulse.working}
        fresh = Study.listed(self._store, self._name)
        before = self._study
        is_other = before is None or [one.fingerprint for one in before.steps] != [one.fingerprint for one in fresh.steps]
        if before is not None and not is_other:
            known = {step.fingerprint: step for step in before.steps}
            fresh = Study(fresh.experiment, fresh.title, fresh.parameters, tuple(known.values()), fresh.failures)
        if is_other or not live or not self._were_live:
            fresh = fresh.with_records(self._store)
            self._begun = frozenset(_begun(self._store, fresh))
        else:
            fresh = fresh.with_records(self._store, self._seen - working)
        self._study, self._were_live = fresh, bool(live)
        self._seen |= working
        return state_of(fresh, beats, self._begun)


def look(store: Store, name: str) -> StudyState:
    """How far the study `name` is. Raises UserError where it cannot be read."""
    return Watch(store, name).look()


def state_of(study: Study, beats: tuple[Beat, ...], begun: Collection[str] = ()) -> StudyState:
    """The state of `study`, whose records are read. `begun` are the fingerprints of which something lies in the store."""
    done = {step.fingerprint for step in study.steps if step.record is not None}
    live = [beat for beat in beats if beat.is_live]
    running = {step.fingerprint for beat in live for step in beat.pulse.working} - done
    failures = {
        failure["fingerprint"]: failure
        for failure in (*study.failures, *(failure for beat in beats for failure in beat.pulse.failures))
        if failure["fingerprint"] not in done | running
    }
    blocked = blocked_by(failures.values())
    for beat in live or beats:
        for name, of in beat.pulse.blocked.items():
            blocked.setdefault(name, Counter()).update(of)
    failed = {fingerprint: failure for fingerprint, failure in failures.items() if not is_blocked(failure)}
    left = {step.fingerprint for beat in beats if not beat.is_live for step in beat.pulse.working}
    interrupted = (left | set(begun)) - done - running - failed.keys()
    stages = []
    totals = Counter(step.stage for step in study.steps)
    for stage in sorted(totals, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES)):
        of_stage = {step.fingerprint for step in study.steps if step.stage == stage}
        # A run knows sooner than a look from elsewhere, which does not read all records again.
        num_done = max(len(of_stage & done), *(beat.pulse.done.get(stage, 0) for beat in live), 0)
        stages.append(
            StageState(
                stage,
                len(of_stage),
                min(num_done, len(of_stage)),
                len(of_stage & running),
                min(len(of_stage & interrupted), max(len(of_stage) - num_done - len(of_stage & running), 0)),
                len(of_stage & failed.keys()),
            )
        )
    return StudyState(study, tuple(stages), beats, tuple(failed.values()), blocked)


def blocked_lines(blocked: Mapping[str, Mapping[str, int]]) -> list[str]:
    """One line for each step that others were given up for; `blocked` as in a `StudyState`."""
    return [
        f"  blocked by {name}: " + ", ".join(f"{count} {stage}" for stage, count in of.items()) for name, of in blocked.items()
    ]


def blocked_by(failures: Iterable[Mapping[str, str]]) -> dict[str, Counter[str]]:
    """Name of a failed step → stage → how many of `failures` were given up for it."""
    counts: dict[str, Counter[str]] = {}
    for failure in filter(is_blocked, failures):
        counts.setdefault(failure["error"].removeprefix("blocked by "), Counter())[failure["stage"]] += 1
    return counts


def is_blocked(failure: Mapping[str, str]) -> bool:
    """Whether a step was given up for another one's failure."""
    return failure["error"].startswith("blocked by")


def _begun(store: Store, study: Study) -> set[str]:
    """The fingerprints of the steps without a record whose folder holds more than a lock."""
    missing: dict[str, list[StudyStep]] = {}
    for step in study.steps:
        if step.record is None and not step.damage:
            missing.setdefault(step.stage, []).append(step)
    begun = set()
    for stage, steps in missing.items():
        there = {(slug, digits) for slug, all_digits in store.folders(stage).items() for digits in all_digits}
        for step in steps:
            folder = store.folder(step.id)
            if (step.slug, folder.rpartition("-")[2]) in there and any(
                name not in (*HOLDING, RECORD_FILE) for name in store.names(folder)
            ):
                begun.add(step.fingerprint)
    return begun


def as_json(state: StudyState) -> dict[str, Any]:
    """For programs: artifacts by stage, the runs, and what failed."""
    return {
        "built": state.count("done"),
        "artifacts": state.count("total"),
        "stages": {
            stage.stage: {
                "built": stage.done,
                "running": stage.running,
                "interrupted": stage.interrupted,
                "failed": stage.failed,
                "to_build": stage.to_build,
                "artifacts": stage.total,
            }
            for stage in state.stages
        },
        "whole_seeds": [seed for seed, num_lacking in seeds_lacking(state.study.steps).items() if not num_lacking],
        "workers": state.num_workers,
        "seconds_left": state.seconds_left,
        "runs": [
            {
                "run": beat.run,
                "state": "running" if beat.is_live else "interrupted",
                "host": beat.host,
                "started": beat.started,
                "heard_of_s_ago": round(beat.age_s, 1),
                "nothing_new_s": round(beat.nothing_new_s, 1),
                "spent": beat.pulse.spent,
                "hold": beat.pulse.hold,
                "tried_again": dict(beat.pulse.again),
                "working": [
                    {
                        "stage": step.stage,
                        "slug": step.slug,
                        "seconds": round(step.seconds, 1),
                        "workers": step.num_workers,
                        "rate": step.rate,
                        "fraction_done": step.fraction_done,
                    }
                    for step in beat.pulse.working
                ],
            }
            for beat in state.runs
        ],
        "not_built": [dict(failure) for failure in state.failures],
        "blocked": {name: dict(of) for name, of in (state.blocked or {}).items()},
    }
