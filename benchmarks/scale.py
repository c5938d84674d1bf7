"""How far a study scales, without a GPU:

    python -m benchmarks.scale schedule   the paper on 1 to 256 GPUs, played through by the run's own queue in virtual time
    python -m benchmarks.scale played     a run's own timeline (--timeline), played through as `schedule` does it
    python -m benchmarks.scale driver     a real run whose stages only sleep, on so many lanes: driver, store and MLflow
    python -m benchmarks.scale step       what a step of such a run takes of the store and of MLflow
    python -m benchmarks.scale pool       the real stage of the synthetic pool with engines that only sleep

`schedule` is reckoned: the plan's rates (sweep/plan/throughputs.toml), its steps and lanes. The others are measured on the
machine at hand: CPU, memory and requests are what they would be on another. docs/scale.md has the figures.
"""

import argparse
import importlib
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import scale_played
from benchmarks.common import Figure, alternately, answer, finish, in_own_process, make_parser, parse, values_of
from sweep.graph.records import Store
from sweep.plan.plan import PlanCosts, plan_study
from sweep.plan.schedule import Schedule, last_chain
from sweep.plan.throughputs import read_table
from sweep.run.ends import kill_descendants
from sweep.study.grid import build_grid
from sweep.study.loading import load_experiment

FLAGS = ("seeds", "faster", "seconds", "processes", "shards", "shard-s")
"""Options that a part's own process is given."""
PARTS = ("schedule", "played", "driver", "step", "pool")
STUDIES: Mapping[str, Sequence[str]] = {
    "1 seed": ("seeds=0",),
    "10 seeds": ("seeds=0,1,2,3,4,5,6,7,8,9",),
    "10 seeds, 5 generators": ("seeds=0,1,2,3,4,5,6,7,8,9", "generators=5"),
    "10 seeds, 8 engines a pool": ("seeds=0,1,2,3,4,5,6,7,8,9", "generation_workers=8"),
}
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUSIEST_S = (10, 60, 300)
"""Seconds of which the busiest are looked for."""
NEAR = 1.1
"""A wall time is near the least if it is at most so many times that."""
HEAD = """\
| GPUs | wall, h | idle | starts | lanes | steps/s | in a minute | work, h | beside | starts, turns | room | most of it |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--experiment", default="paper", help="schedule, played: a study")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES), help="schedule: what of it")
    parser.add_argument("--parameters", nargs="+", default=[], help="played: the study's, as `-p` has them")
    parser.add_argument("--timeline", type=Path, help="played: what `blindsweep timeline STUDY --json` printed")
    parser.add_argument("--gpu", default="h200", help="schedule: a row of the plan's table")
    parser.add_argument("--gpus", type=int, nargs="+", default=list(GPUS), help="schedule, played (the first): so many")
    parser.add_argument("--figure", type=Path, help="schedule: a PNG of wall times by GPUs")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="driver: so many at once")
    parser.add_argument("--seeds", type=int, default=10, help="driver: of a study like the paper's")
    parser.add_argument("--faster", type=float, default=20, help="driver: stages sleep for what they take, divided by this")
    parser.add_argument("--seconds", type=float, default=0.0, help="driver: cut a run short after so many (0: none)")
    parser.add_argument("--processes", choices=("few", "own"), default="few", help="driver: a lane's, shared or its own")
    parser.add_argument("--stores", nargs="+", choices=("local", "s3"), default=["local"], help="all but schedule and played")
    parser.add_argument("--steps", type=int, default=60, help="step: so many")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4, 8], help="pool: so many workers")
    parser.add_argument("--shards", type=int, default=300, help="pool: shards of 1,024 texts")
    parser.add_argument("--shard-s", type=float, default=0.0, help="pool: seconds that an engine sleeps for a shard")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.part == "schedule":
        _schedule(parser, arguments)
        return
    if arguments.part == "played":
        _played(parser, arguments)
        return
    if arguments.only:
        number, store = arguments.only.split("-")
        with tempfile.TemporaryDirectory() as folder:
            measured = _measured(arguments, int(number), store, folder)
        _answer(measured)
        return
    numbers = {"driver": arguments.lanes, "step": [arguments.steps], "pool": arguments.engines}[arguments.part]
    flags = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in FLAGS]

    def run_alone(only: str) -> dict[str, Any] | None:
        return in_own_process("benchmarks.scale", [arguments.part, *flags, f"--only={only}"])

    names = [f"{number}-{store}" for store in arguments.stores for number in numbers]
    results = alternately({name: partial(run_alone, name) for name in names}, arguments.repeats)
    titles = importlib.import_module(f"benchmarks.scale_{arguments.part}").FIGURES
    figures = []
    for store in arguments.stores:
        of_store = {f"ours_{name.removesuffix(f'-{store}')}": runs for name, runs in results.items() if name.endswith(store)}
        beside = "" if store == "local" else ", S3"
        figures += [
            Figure(f"{title}{beside}", unit, values_of(of_store, name), lower_is_better="/s" not in unit)
            for name, (title, unit) in titles.items()
        ]
    finish(parser, arguments, figures, details={"runs": results})


def _answer(measured: Mapping[str, Any]) -> None:
    answer({name: value for name, value in measured.items() if value is not None})


def _leave(folder: str, measured: Mapping[str, Any]) -> None:
    """End this process in the midst of a run. Ray would wait for what is under way, and the run for MLflow."""
    _answer(measured)
    kill_descendants()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _measured(arguments: argparse.Namespace, number: int, store: str, folder: str) -> dict[str, Any]:
    if arguments.part == "driver":
        from benchmarks.scale_driver import measure_driver

        return measure_driver(
            number,
            store,
            folder,
            num_seeds=arguments.seeds,
            faster=arguments.faster,
            seconds=arguments.seconds,
            has_own_processes=arguments.processes == "own",
            cut_short=partial(_leave, folder),
        )
    if arguments.part == "step":
        from benchmarks.scale_step import measure_step

        return measure_step(number, store, folder)
    from benchmarks.scale_pool import measure_pool

    return measure_pool(number, store, folder, num_shards=arguments.shards, shard_s=arguments.shard_s)


def _schedule(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}

    def play(study: str) -> dict[str, float]:
        costs = plan_of(arguments.experiment, STUDIES[study], arguments.gpu, arguments.gpus)
        alone = {cost.step.name: cost.seconds - cost.setup_s for cost in costs.estimate.steps}
        rows[study] = [described(schedule, alone) for schedule in costs.schedules]
        found = knee(costs.schedules)
        print("\n".join([f"\n{study}\n", HEAD, *map(line, rows[study])]))
        least = f"The longest chain alone takes {found.critical_s / 3600:.2f} h"
        print(f"\n{least}; within a tenth of the least: {found.num_gpus:g} GPUs, {cause(found, alone)}.", flush=True)
        return {f"{schedule.num_gpus:g}": schedule.seconds / 3600 for schedule in costs.schedules}

    results = alternately({study: partial(play, study) for study in arguments.studies}, 1)
    if arguments.figure:
        draw(rows, arguments.figure)
    figures = [
        Figure(
            f"wall, {study}",
            "h",
            {f"{gpus} GPUs": [hours] for run in runs for gpus, hours in run.items()},
            lower_is_better=True,
        )
        for study, runs in results.items()
    ]
    finish(parser, arguments, figures, details={"studies": rows})


def _played(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.timeline is None:
        parser.error("played: give --timeline FILE, what `blindsweep timeline STUDY --json` printed")
    run = scale_played.last_run(arguments.timeline)
    steps = build_grid(load_experiment(arguments.experiment, arguments.parameters).experiment)
    said = scale_played.described(scale_played.played(steps, run, arguments.gpus[0]), run)
    print(", ".join(f"{name}: {value:,.3f}" for name, value in said.items()))
    values = {"the run": [said["seconds"]], "played": [said["played_s"]]}
    finish(parser, arguments, [Figure(f"wall, {arguments.experiment}", "s", values, lower_is_better=True)], details=said)


def plan_of(experiment: str, assignments: Sequence[str], gpu: str, gpus: Sequence[int]) -> PlanCosts:
    """The costs of a study of which nothing is built, on so many GPUs as its largest step asks for or more."""
    loaded = load_experiment(experiment, assignments)
    table = read_table()
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_study(
            loaded.experiment, Store(folder), table, lambda _: table.gpu(gpu), max(gpus), others=gpus, reasons=False
        )
    assert plan.costs is not None, plan.why_no_costs
    return plan.costs


def knee(schedules: Sequence[Schedule]) -> Schedule:
    """The one with the fewest GPUs whose wall time is near the least that any number of GPUs could give."""
    least = min(schedule.seconds for schedule in schedules)
    return next(schedule for schedule in schedules if schedule.seconds <= NEAR * least)


def parts(schedule: Schedule, alone: Mapping[str, float]) -> dict[str, float]:
    """What the wall time is made of, along the chain that led to the last step's end, in seconds that add up to it.

    `room_s` without a GPU, `start_s` while workers started or others in the lane went first, `beside_s` by which steps took
    longer than their work does `alone` since others were trained at once, `work_s` the rest.
    """
    assert schedule.timeline is not None
    chain = last_chain(schedule.timeline)
    work_s = sum(min(alone[span.name], span.ended - span.began) for span in chain)
    took_s = sum(span.ended - span.began for span in chain)
    return {
        "work_s": work_s,
        "beside_s": took_s - work_s,
        "start_s": sum(span.turn_s for span in chain),
        "room_s": sum(span.room_s for span in chain),
    }


def cause(schedule: Schedule, alone: Mapping[str, float]) -> str:
    """What the end of a study waited for most: a GPU, a place beside fewer others, or one step of the chain that led to it."""
    assert schedule.timeline is not None
    longest = max(last_chain(schedule.timeline), key=lambda span: min(alone[span.name], span.ended - span.began))
    of = parts(schedule, alone)
    waits = {"too few GPUs": of["room_s"], "many in a lane": of["beside_s"], longest.name: alone[longest.name]}
    what = max(waits, key=waits.__getitem__)
    return f"{what}, {waits[what] / 3600:.2f} h"


def most_ends(schedule: Schedule, within_s: float) -> int:
    """The most steps that end within so many seconds: what a driver has to keep up with."""
    assert schedule.timeline is not None
    ends = sorted(span.ended for span in schedule.timeline.spans)
    return max(place + 1 - bisect_left(ends, ended - within_s) for place, ended in enumerate(ends))


def described(schedule: Schedule, alone: Mapping[str, float]) -> dict[str, Any]:
    """A row of the table, for programs. `chain` is how the last step came to end when it did."""
    assert schedule.timeline is not None
    of = parts(schedule, alone)
    return {
        "num_gpus": schedule.num_gpus,
        "seconds": round(schedule.seconds, 1),
        "idle_share": round(schedule.idle_share, 4),
        "start_share": round(schedule.start_share, 4),
        "num_lanes": len(schedule.timeline.lanes),
        "steps_per_s": round(len(schedule.timeline.spans) / schedule.seconds, 4),
        "busiest_steps_per_s": {f"{within_s} s": round(most_ends(schedule, within_s) / within_s, 2) for within_s in BUSIEST_S},
        "critical_s": round(schedule.critical_s, 1),
        "cause": cause(schedule, alone),
        "parts": {name: round(value, 1) for name, value in of.items()},
        "chain": [span.name for span in last_chain(schedule.timeline)],
    }


def line(row: Mapping[str, Any]) -> str:
    """The same, as a row of a table in Markdown."""
    hours = [f"{row['parts'][name] / 3600:.2f}" for name in ("work_s", "beside_s", "start_s", "room_s")]
    shares = [f"{row['idle_share']:.0%}", f"{row['start_share']:.1%}"]
    rates = [f"{row['steps_per_s']:.3f}", f"{row['busiest_steps_per_s']['60 s']:.2f}"]
    counts = [f"{row['num_lanes']:,}", *rates]
    cells = [f"{row['num_gpus']:g}", f"{row['seconds'] / 3600:.2f}", *shares, *counts, *hours, row["cause"]]
    return "| " + " | ".join(cells) + " |"


def draw(rows: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Wall times by GPUs, and the longest chains as dotted lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    for study, points in rows.items():
        (drawn,) = axes.plot(
            [point["num_gpus"] for point in points],
            [point["seconds"] / 3600 for point in points],
            marker="o",
            ms=3,
            label=study,
        )
        axes.axhline(points[0]["critical_s"] / 3600, color=drawn.get_color(), lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="hours")
    hours = [point["seconds"] / 3600 for points in rows.values() for point in points]
    axes.set_xticks(sorted({point["num_gpus"] for points in rows.values() for point in points}))
    axes.set_yticks(
        [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= 2 * max(hours) and tick >= min(hours) / 2]
    )
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
