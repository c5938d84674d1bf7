"""What each stage of a study takes when it has the machine to itself, in a table: no schedule on one GPU is much below the sum.

    python -m benchmarks.stages demo --parameters seeds=0,1
    python -m benchmarks.stages mini --parameters data=DATA model=SMOLLM2.gguf seeds=0,1,2 --limit 500

The study is built from nothing with its steps on one whole GPU, or one CPU, so that no lane has another one beside it. What a
stage trains together stays together, and so do a pool's engines. A stage's seconds are those in which its lanes work, `start`
those in which workers start, of all stages. `busy` are the seconds of a stage's work in which the GPU has a kernel to run, by
NVML's samples of every half second; of a CPU there are none. A study that is cut off gives what it has built.
"""

import argparse
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import Figure, answer, finish, in_own_process, make_parser, parse, phase, until_cut_off, visible_gpus
from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.graph.records import STAGES, Store, Study
from sweep.graph.timeline import Timeline, timelines
from sweep.plan.plan import Plan, make_plan
from sweep.run.session import RayOptions
from sweep.run.study_run import run_study
from sweep.run.tracking import default_tracking_uri
from sweep.study.grid import build_grid
from sweep.study.inputs import with_inputs
from sweep.study.loading import load_experiment

SAMPLE_EVERY_MS = 500
Sample = tuple[float, float]
"""When, in seconds since 1970, and the share of the time before in which a kernel ran."""


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("experiment", help="a built-in study, or a file")
    parser.add_argument("--parameters", nargs="*", default=[], metavar="NAME=VALUE", help="of the study")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.store:
        build(arguments)
        return

    samples: list[Sample] = []
    figures: list[Figure] = []
    details = {"num_built": 0, "num_steps": 0}
    with tempfile.TemporaryDirectory() as folder, until_cut_off():
        threading.Thread(target=sample, args=(samples,), daemon=True).start()
        try:
            own = [arguments.experiment, f"--store={folder}", "--parameters", *arguments.parameters]
            in_own_process("benchmarks.stages", own)
        finally:
            store = Store(folder)
            for name in store.studies():
                study = Study.load(store, name)
                runs = timelines(study)
                figures = figures_of(runs[-1], samples) if runs else []
                details = {"num_built": sum(len(run.spans) for run in runs), "num_steps": len(study.steps)}
    # Data and models lie elsewhere on other machines.
    arguments.parameters = [by_last_name(parameter) for parameter in arguments.parameters]
    finish(parser, arguments, figures, details=details)


def build(arguments: argparse.Namespace) -> None:
    """Build the study into `--store`, in a process of its own, which a run ends with."""
    loaded = load_experiment(arguments.experiment, arguments.parameters)
    experiment = replace(loaded.experiment, resources=on_a_whole_gpu(loaded.experiment.resources))
    loaded = replace(loaded, experiment=with_inputs(experiment))
    store = Store(arguments.store)
    plan = Plan(loaded.experiment, make_plan(build_grid(loaded.experiment), store, reasons=False), None)
    phase(f"{len(plan.steps):,} artifacts of {loaded.experiment.name}, one lane at a time")
    options = RayOptions(max_gpus=1) if visible_gpus() else RayOptions(max_cpus=1)
    result = run_study(loaded, store, default_tracking_uri(store), options, plan)
    if result.failures:
        raise UserError(f"{len(result.failures):,} artifacts were not built, see above")
    answer({"num_built": result.num_built})


def on_a_whole_gpu(resources: Mapping[str, Resources]) -> dict[str, Resources]:
    """Each stage's steps on one GPU, if they have a part of one: one worker has it all, or as many as share one in the study.

    One engine of a small model leaves most of a GPU idle, however much of it is its own.
    """
    return {stage: _on_one(each) if each.gpus_per_worker else each for stage, each in resources.items()}


def _on_one(resources: Resources) -> Resources:
    num_workers = resources.num_workers if resources.gpus_per_worker < 1 else 1
    return replace(resources, num_workers=num_workers, gpus_per_worker=1 / num_workers)


def figures_of(timeline: Timeline, samples: Sequence[Sample]) -> list[Figure]:
    """Seconds of each stage's work, of starts and in all, and of work with the GPU busy, if it was looked at."""
    work, busy = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
    for lane in timeline.lanes:
        stage = lane.spans[0].stage
        work[stage] += lane.work_s
        began, ended = (timeline.began + of for of in (min(span.began for span in lane.spans), lane.ended))
        shares = [share for at, share in samples if began <= at <= ended]
        busy[stage] += lane.work_s * sum(shares) / len(shares) if shares else 0.0
    seconds = work | {"start": sum(lane.start_s for lane in timeline.lanes)}
    seconds["in all"] = sum(seconds.values())
    figures = [Figure(name, "s", {"alone": [value]}, lower_is_better=True) for name, value in seconds.items() if value]
    if samples:
        busy["in all"] = sum(busy.values())
        figures += [
            Figure(f"{name}, busy", "s", {"alone": [value]}, lower_is_better=True) for name, value in busy.items() if value
        ]
    return figures


def sample(samples: list[Sample]) -> None:
    """Add samples of the first GPU for as long as this process lives; none where there is no GPU."""
    if shutil.which("nvidia-smi") is None:
        return
    query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={SAMPLE_EVERY_MS}"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdecimal():
                samples.append((time.time(), int(line) / 100))


def by_last_name(parameter: str) -> str:
    """A parameter whose value is a path by the path's last name."""
    name, _, value = parameter.partition("=")
    return f"{name}={Path(value).name}" if "/" in value else parameter


if __name__ == "__main__":
    main()
