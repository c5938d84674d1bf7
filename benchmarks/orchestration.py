"""The time that scheduling, storing and tracking add to a study's own work, beside plain Ray Tune:

    python -m benchmarks.orchestration --note "two cores, shared with other work"

  ours          `demo` with so many seeds that it has at least NUM artifacts, as `run` builds it: graph, store, Tune and
                MLflow are real; its stages write one small file and report once
  tune          what one would write with Ray Tune alone: a function that writes such a file, one trial an artifact,
                NUM_PEER trials
  tune-reusing  the same with reuse_actors=True

Each starts a Ray of its own with CONCURRENT CPUs, runs as many at a time, and is divided by its artifacts. All of ours is
counted, Ray's start included; of the peers, which may have fewer artifacts to spread it over, what comes after that start.
Then the wall time of commands that compute nothing: `plan` of the paper's study with ten seeds (540 cells), `plan` of the
study that `ours` has built, and `--help`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, alternately, answer, finish, in_own_process, keep, make_parser, parse, values_of

VARIANTS = ("ours", "tune", "tune-reusing")
COMMAND = (sys.executable, "-c", "from sweep.cli import main; main()")


def main() -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--num", type=int, default=600, help="artifacts")
    parser.add_argument("--num-peer", type=int, default=600, help="artifacts of the peers")
    parser.add_argument("--concurrent", type=int, default=2, help="at a time, one CPU each")
    parser.add_argument("--seeds", type=int, default=10, help="of the paper's study that is planned")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.only:
        run = run_ours if arguments.only == "ours" else run_tune
        with tempfile.TemporaryDirectory() as folder:
            answer(run(arguments, folder))
        return

    flags = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in ("num", "num_peer", "concurrent")]

    def run_alone(variant: str) -> dict[str, float] | None:
        return in_own_process("benchmarks.orchestration", [*flags, "--only", variant])

    results = alternately({name: partial(run_alone, name) for name in arguments.variants}, arguments.repeats)
    commands = alternately(
        {
            "plan": lambda: plan_command("paper", arguments.seeds),
            "help": lambda: {"seconds": seconds_of("--help")},
        },
        max(arguments.repeats, 3),
    )
    finish(
        parser,
        arguments,
        [
            Figure("artifact", "s", values_of(results, "artifact_s"), peer="tune", lower_is_better=True, target=1),
            Figure(f"plan, {54 * arguments.seeds} cells", "s", values_of({"ours": commands["plan"]}, "seconds"),
                   lower_is_better=True, target=2),
            Figure("plan, all built", "s", values_of(results, "plan_built_s"), lower_is_better=True),
            Figure("--help", "s", values_of({"ours": commands["help"]}, "seconds"), lower_is_better=True, target=0.5),
        ],
        details={"runs": results},
    )  # fmt: skip


def run_ours(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    """The study's real graph, store, scheduler and tracker; only the stages do nothing."""
    from sweep.graph import stages
    from sweep.graph.records import Store
    from sweep.run.session import RayOptions
    from sweep.run.study_run import run_study
    from sweep.run.tracking import default_tracking_uri
    from sweep.study.grid import build_grid
    from sweep.study.loading import load_experiment

    for name, stage in stages.REGISTRY.items():
        # Under their own versions, so that `plan` finds what was built.
        stages.REGISTRY[name] = replace(stage, run=write_file, open=None, prepare=None)
    num_seeds = 1
    while len(build_grid(load_experiment("demo", [seeds(num_seeds)]).experiment)) < arguments.num:
        num_seeds += 1
    loaded = load_experiment("demo", [seeds(num_seeds)])
    store = Store(Path(folder) / "store")
    started = time.perf_counter()
    result = run_study(loaded, store, default_tracking_uri(store), RayOptions(max_cpus=arguments.concurrent))
    total_s = time.perf_counter() - started
    keep({"num_artifacts": result.num_built, "total_s": total_s, "artifact_s": total_s / result.num_built})
    assert result.num_built == result.num_steps, f"{result.num_built} of {result.num_steps} artifacts built"
    assert not result.tracking_errors, result.tracking_errors[0]
    return {"plan_built_s": seconds_of("plan", "demo", "-p", seeds(num_seeds), "--store", store.uri)}


def seeds(num: int) -> str:
    return "seeds=" + ",".join(map(str, range(num)))


def write_file(job: Any) -> Mapping[str, Any]:
    job.report({"loss": 1.0}, 1)
    (Path(job.output) / "value.txt").write_text("0")
    return {"value": 0}


def run_tune(arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    """A trial an artifact, as Ray's documentation has it; only Tune's table of trials is left out."""
    import ray
    from ray import tune

    outputs = Path(folder) / "outputs"
    outputs.mkdir()

    def build(config: dict[str, Any]) -> dict[str, float]:
        (outputs / f"{config['number']}.txt").write_text("0")
        return {"value": 0}

    ray.init(num_cpus=arguments.concurrent, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(build, {"CPU": 1}),
        param_space={"number": tune.grid_search(list(range(arguments.num_peer)))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=arguments.concurrent,
            reuse_actors=arguments.only == "tune-reusing",
        ),
        run_config=tune.RunConfig(storage_path=str(Path(folder) / "tune"), verbose=0),
    ).fit()
    total_s = time.perf_counter() - started
    ray.shutdown()
    assert not results.errors and len(list(outputs.iterdir())) == arguments.num_peer, results.errors
    return {"num_artifacts": arguments.num_peer, "total_s": total_s, "artifact_s": total_s / arguments.num_peer}


def plan_command(experiment: str, num_seeds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return {"seconds": seconds_of("plan", experiment, "-p", seeds(num_seeds), "--store", folder)}


def seconds_of(*words: str) -> float:
    """Wall time of a `blindsweep` command."""
    started = time.perf_counter()
    subprocess.run([*COMMAND, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
