"""When a study's artifacts were built, lane by lane: `blindsweep timeline`."""

import json as js
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from sweep.commands.options import DEFAULT_STORE, Json, StoreUri, StudyName, study_name
from sweep.graph.records import STAGES, Store, Study

if TYPE_CHECKING:
    from sweep.graph.timeline import LaneTime, Timeline

WIDTH = 60
"""Characters of a lane's bar, which is as long as the run."""
LETTERS = {
    "sources": "s",
    "base_model": "b",
    "starting_set": "d",
    "starting_point": "p",
    "generator": "g",
    "synthetic_pool": "w",
    "judgement": "j",
    "training_set": "d",
    "task_model": "t",
    "evaluation": "e",
}
START, IDLE = ".", "_"


def timeline(
    study: StudyName,
    store: StoreUri = DEFAULT_STORE,
    steps: Annotated[bool, typer.Option("--steps", help="Every step, too: what it waited for, and how long.")] = False,
    json: Json = False,
) -> None:
    """Show which lane built what when, with starts and waits: of the last run, or of all runs as JSON."""
    from sweep.graph.timeline import as_json, timelines

    where, name = Store(store), study_name(study)
    runs = timelines(Study.load(where, name))
    if json:
        print(js.dumps([as_json(run) for run in runs], indent=1))
        return
    if not runs:
        raise UserError(
            f"no artifact of {name} in {where.uri} says when it was built: they are older than timelines, or there is none; "
            "run the study"
        )
    print("\n".join(_lines(runs[-1], steps=steps)))
    if len(runs) > 1:
        num = sum(len(run.spans) for run in runs[:-1])
        print(f"\n{num} more artifacts are of {len(runs) - 1} earlier runs, which --json has, too")


def _lines(run: "Timeline", *, steps: bool) -> list[str]:
    from sweep.run.progress import seconds

    lines = [f"{len(run.spans):,} artifacts in {len(run.lanes)} lanes, {seconds(run.seconds)}"]
    width = max(len(", ".join(lane.stages)) for lane in run.lanes)
    for row in run.rows:
        stages, spans = ", ".join(row[0].stages), [span for lane in row for span in lane.spans]
        work, start, idle = (seconds(sum(getattr(lane, name) for lane in row)) for name in ("work_s", "start_s", "idle_s"))
        lines.append(
            f"{stages:<{width}} {len(spans):>4}  |{_bar(row, run.seconds)}|  {work:>6} work, {start:>6} start, {idle:>6} idle"
        )
        if steps:
            lines += [
                f"    {span.slug}: {seconds(span.ended - span.began)} from {seconds(span.began)}, after "
                f"{seconds(span.room_s)} for room and {seconds(span.turn_s)} in the lane"
                + (f"; ready with {span.waited_for}" if span.waited_for else "")
                for span in spans
            ]
    used = {stage for lane in run.lanes for stage in lane.stages}
    legend = ", ".join(f"{LETTERS[stage]} {stage}" for stage in STAGES if stage in used)
    lines.append(f"{legend}; {START} workers start, {IDLE} nothing is ready")
    return lines


def _bar(row: "list[LaneTime]", of_s: float) -> str:
    """What the lanes of a row did in each part of the run: a step that was under way, a start of workers, or nothing."""
    bar = ""
    for place in range(WIDTH):
        first, end = (of_s * number / WIDTH for number in (place, place + 1))
        there = [lane for lane in row if lane.opened < end and lane.ended > first]
        under_way = [span for lane in there for span in lane.spans if span.began < end and span.ended > first]
        if under_way:
            longest = max(under_way, key=lambda span: min(span.ended, end) - max(span.began, first))
            bar += LETTERS.get(longest.stage, "?")
        elif there:
            bar += START if first < there[0].spans[0].began else IDLE
        else:
            bar += " "
    return bar
