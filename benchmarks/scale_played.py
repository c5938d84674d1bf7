"""A run's own timeline played through by the queue in virtual time: what the reckoned schedules leave out."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sweep.graph.step import Step
from sweep.plan.schedule import Schedule, StepTime, simulate


def last_run(path: Path) -> dict[str, Any]:
    """The last run of what `blindsweep timeline STUDY --json` has printed."""
    runs: Sequence[dict[str, Any]] = json.loads(path.read_text())
    return runs[-1]


def played(steps: Sequence[Step], run: Mapping[str, Any], num_gpus: float) -> Schedule:
    """The schedule of those of `steps` that `run` has built, each with its share of the time of the lane that built it, and a
    lane's start with that of this lane.
    """
    times = {name: (lane["start_s"], share_s) for lane in run["lanes"] for name, share_s in shares(lane["steps"]).items()}
    taken = {step.fingerprint: times[step.stage, step.slug] for step in steps if (step.stage, step.slug) in times}
    done = [step.fingerprint for step in steps if step.fingerprint not in taken]
    return simulate(steps, {name: StepTime(start_s, 0.0, took_s) for name, (start_s, took_s) in taken.items()}, done, num_gpus)


def shares(steps: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Seconds of a lane's steps, by stage and slug: those that are under way at once share the time equally."""
    found = {(of["stage"], of["slug"]): 0.0 for of in steps}
    for began, ended in pairwise(sorted({of[moment] for of in steps for moment in ("began", "ended")})):
        under_way = [of for of in steps if of["began"] <= began and of["ended"] >= ended]
        for of in under_way:
            found[of["stage"], of["slug"]] += (ended - began) / len(under_way)
    return found


def described(schedule: Schedule, run: Mapping[str, Any]) -> dict[str, float]:
    """Both wall times in seconds, the lanes of both, and the mean distance of a step's two ends as a part of the wall time."""
    assert schedule.timeline is not None
    ends = {(of["stage"], of["slug"]): of["ended"] for lane in run["lanes"] for of in lane["steps"]}
    apart = [abs(span.ended - ends[span.stage, span.slug]) for span in schedule.timeline.spans]
    return {
        "seconds": run["seconds"],
        "played_s": schedule.seconds,
        "lanes": len(run["lanes"]),
        "played_lanes": len(schedule.timeline.lanes),
        "apart": sum(apart) / len(apart) / run["seconds"],
    }
