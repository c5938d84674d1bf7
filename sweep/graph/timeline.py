"""When each artifact of a study was built, in which lane, and what it waited for: from its records. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sweep.graph.records import STAGES, Study


@dataclass(frozen=True)
class Span:
    """A step's way through its lane, in seconds since its run began.

    Its inputs were `ready`, the last one being `waited_for` ("" if it was there before); its lane was `given` it, and there it
    `began` and `ended`.
    """

    stage: str
    slug: str
    ready: float
    given: float
    began: float
    ended: float
    waited_for: str

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.slug}"

    @property
    def room_s(self) -> float:
        """How long it waited, ready, for CPUs, GPUs or a lane that has them."""
        return max(self.given - self.ready, 0.0)

    @property
    def turn_s(self) -> float:
        """How long it waited in its lane: for workers to start, or for those before it."""
        return max(self.began - self.given, 0.0)


@dataclass(frozen=True)
class LaneTime:
    """A lane: its steps in the order in which they began; when it was opened and its workers were up."""

    name: str
    opened: float
    up: float
    spans: tuple[Span, ...]

    @property
    def ended(self) -> float:
        return max(span.ended for span in self.spans)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if any(span.stage == stage for span in self.spans))

    @property
    def start_s(self) -> float:
        """From its opening until its first step began, or until its workers were up if they waited for that step."""
        began = min(span.began for span in self.spans)
        waited = self.up < min(span.given for span in self.spans)
        return max((self.up if waited else began) - self.opened, 0.0)

    @property
    def work_s(self) -> float:
        """How long at least one step was under way."""
        total, until = 0.0, 0.0
        for span in self.spans:
            total += max(span.ended - max(span.began, until), 0.0)
            until = max(until, span.ended)
        return total

    @property
    def idle_s(self) -> float:
        """Between its first step's begin and its last one's end, how long none was under way."""
        return max(self.ended - self.opened - self.start_s - self.work_s, 0.0)


@dataclass(frozen=True)
class Timeline:
    """The lanes of one run of a study, in the order in which they were opened. `began` is in seconds since 1970."""

    began: float
    lanes: tuple[LaneTime, ...]

    @property
    def seconds(self) -> float:
        """Until the last artifact was built."""
        return max(lane.ended for lane in self.lanes)

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(span for lane in self.lanes for span in lane.spans)

    @property
    def rows(self) -> list[list[LaneTime]]:
        """The lanes as they are drawn: those of the same stages in one row, where one was opened after the other's end."""
        rows: list[list[LaneTime]] = []
        for lane in self.lanes:
            for row in rows:
                if row[0].stages == lane.stages and row[-1].ended <= lane.opened:
                    row.append(lane)
                    break
            else:
                rows.append([lane])
        return rows


def timelines(study: Study) -> list[Timeline]:
    """The timeline of each run that built something of `study`, oldest first.

    An artifact that was built again is in the run that did. Records of before there were timelines are in none.
    """
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for step in study.steps:
        if step.record is not None and (times := dict(step.record.timeline)):
            run, _, _ = str(times["lane"]).rpartition("-")
            runs.setdefault(run, {}).setdefault(times["lane"], []).append({**times, "stage": step.stage, "slug": step.slug})
    found = [_timeline(list(lanes.items())) for lanes in runs.values()]
    return sorted(found, key=lambda timeline: timeline.began)


def _timeline(lanes: Iterable[tuple[str, list[dict[str, Any]]]]) -> Timeline:
    lanes = list(lanes)
    began = min(min(times["ready"], times["opened"]) for _, steps in lanes for times in steps)
    made = []
    for name, steps in lanes:
        spans = [
            Span(
                times["stage"],
                times["slug"],
                **{moment: times[moment] - began for moment in ("ready", "given", "began", "ended")},
                waited_for=times["waited_for"],
            )
            for times in steps
        ]
        spans.sort(key=lambda span: (span.began, span.ended))
        opened, up = (min(times[moment] for times in steps) - began for moment in ("opened", "up"))
        made.append(LaneTime(name, opened, up, tuple(spans)))
    return Timeline(began, tuple(sorted(made, key=lambda lane: lane.opened)))


def as_json(timeline: Timeline) -> dict[str, Any]:
    """For programs: seconds since the run began, rounded to milliseconds."""
    return {
        "began": round(timeline.began, 3),
        "seconds": round(timeline.seconds, 3),
        "lanes": [
            {
                "lane": lane.name,
                **{name: round(getattr(lane, name), 3) for name in ("opened", "up", "ended", "start_s", "work_s", "idle_s")},
                "steps": [
                    {
                        "stage": span.stage,
                        "slug": span.slug,
                        **{name: round(getattr(span, name), 3) for name in ("ready", "given", "began", "ended")},
                        "waited_for": span.waited_for,
                    }
                    for span in lane.spans
                ],
            }
            for lane in timeline.lanes
        ],
    }
