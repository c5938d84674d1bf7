"""A study of cheap stages that write a small file: run by Ray Tune in the tests, or as a script to be killed.

python fake_study.py STORE SECONDS_A_CELL NUM_CELLS [FAILS]
"""

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipelines.errors import NoticeError, UserError
from pipelines.identity import runtime
from pipelines.resources import Resources
from pipelines.workers.lane import Lane, Times
from pipelines.workers.notice import notice_given
from sweep.graph import stages
from sweep.graph.records import Store
from sweep.graph.stages import Job, Stage, Workers
from sweep.graph.step import Step
from sweep.plan.plan import make_plan
from sweep.run.progress import Display
from sweep.run.session import RayOptions, ray_session
from sweep.run.tune import Run, run_steps


@dataclass(frozen=True)
class Config:
    """`fails` says how: a user's mistake, a full disk, a lost process, a defect, a worker without a library, only once, or
    at a notice, which it waits for.
    """

    value: int = 0
    fails: str = ""
    base: str = runtime("base")
    seconds: float = runtime(0.0)


def run(job: Job) -> dict[str, float]:
    """Write the value, use the CPUs that were asked for, and leave a trace of having run."""
    with (Path(job.output).parents[1] / "calls.txt").open("a") as calls:
        calls.write(f"{Path(job.output).name}\n")
    state = Path(job.output) / ".checkpoints"
    is_resumed = state.exists()
    state.mkdir(exist_ok=True)
    match job.config.fails:
        case "user":
            raise UserError("value=1 is bad; give 2")
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device", job.output)
        case "process":
            print("the last words of a process:", os.environ.get("A_SECRET", "no secret"), flush=True)
            os._exit(3)
        case "defect":
            _use_workers(Resources(num_workers=2), keep=True)
            raise TypeError("unexpected")
        case "worker":
            _use_pool()
        case "notice":
            job.report({"loss": 1.0}, 0)
            while not notice_given():
                time.sleep(0.1)
            raise NoticeError("a notice stopped it at step 1 of 3, which is committed")
        case "once" if not is_resumed:
            raise ConnectionError("a machine went away")
    if job.resources.num_workers > 1:
        _use_workers(job.resources)
    for step in range(3):
        job.report({"loss": 1 / (step + 1), "examples_per_s": 10.0}, step)
        time.sleep(job.config.seconds / 3)
    (Path(job.output) / "value.txt").write_text(str(job.config.value))
    lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(3)]
    (Path(job.output) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return {"value": job.config.value, "hans/accuracy": 0.25, "hans/lexical_overlap/margin": 1.5}


class FakeLane:
    """Does one job after another in its host; a lost process is lost for all that it has."""

    def __init__(self, first: Job) -> None:
        self.log = Path(first.output).parents[1] / "lanes.txt"
        self.lock = threading.Lock()
        with self.log.open("a") as lanes:
            lanes.write("\n")

    def run(self, job: Job) -> tuple[Mapping[str, Any], Times]:
        with self.lock:
            with self.log.open("a") as lanes:
                lanes.write(f"{job.config.value} ")
            began, started = time.time(), time.monotonic()
            metrics = run(job)
            return metrics, Times(began, began, time.time(), time.monotonic() - started)

    def close(self) -> None:
        with self.log.open("a") as lanes:
            lanes.write("closed")


def open_lane(job: Job) -> Workers:
    return Workers(cast(Lane, FakeLane(job)), lambda job: job)


def _use_workers(resources: Resources, *, keep: bool = False) -> None:
    """Hold a placement group of all workers, as Ray Train does, and run a plain task as well."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([resources.as_bundle()] * resources.num_workers)
    ray.get(group.ready())
    if keep:
        return
    remove_placement_group(group)
    ray.get(ray.remote(num_cpus=1)(lambda: 1).remote())


class _NoWorker:
    def __init__(self) -> None:
        raise ImportError("libnuma.so.1: cannot open shared object file: No such file or directory")

    def __call__(self, batch: Any) -> Any:
        return batch


def _use_pool() -> None:
    """A pool of actors that cannot start, as synthetic examples are generated with."""
    import ray.data

    strategy = ray.data.ActorPoolStrategy(
        size=1, max_tasks_in_flight_per_actor=2, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
    )
    ray.data.range(4).map_batches(_NoWorker, batch_size=1, compute=strategy).take_all()


def make_steps(seconds: float = 0.0, num_cells: int = 6) -> list[Step]:
    """A root, cells of two workers and of one in turn, and an evaluation of each."""
    root = Step("sources", "data", Config())
    steps = [root]
    for value in range(1, num_cells + 1):
        coordinates = {"starting_size": 0, "kind": "original", "size": value, "seed": 0}
        resources = Resources(num_workers=2) if value % 2 else Resources()
        config = Config(value, seconds=seconds)
        cell = Step("task_model", f"cell{value}", config, {"training_set": root}, coordinates, resources)
        evaluation = Step("evaluation", f"cell{value}", Config(value), {"task_model": cell}, coordinates)
        steps += [cell, evaluation]
    return steps


def failing_steps() -> list[Step]:
    """A step that fails in each way, what depends on it, and one that has nothing to do with them."""
    one, two = Resources(), Resources(num_workers=2)
    steps = []
    for fails in ("user", "disk", "process", "defect"):
        broken = Step("task_model", fails, Config(fails=fails), resources=two if fails == "defect" else one)
        after = Step("evaluation", f"after-{fails}", Config(), {"task_model": broken})
        steps += [broken, after, Step("task_model", f"after-after-{fails}", Config(), {"x": after})]
    # Last in line, and needs all that the defect did not give back.
    return [*steps, Step("task_model", "sound", Config(value=9), resources=two)]


def lane_steps(fails: str = "") -> list[Step]:
    """Seven alike of which the fourth fails, and one of another base."""
    steps = []
    for value in range(7):
        config = Config(value, fails if value == 3 else "")
        steps.append(Step("task_model", f"cell{value}", config, resources=Resources(cpus_per_worker=2, max_group=4)))
    other = Config(7, base="other")
    return [*steps, Step("task_model", "other", other, resources=Resources(cpus_per_worker=2, max_group=4))]


def register() -> None:
    """Put the fake stages in the place of the real ones, in this process."""
    for name in ("sources", "task_model", "evaluation"):
        stages.REGISTRY[name] = Stage(1, run, open_lane, lambda config, inputs: config.base)


if __name__ == "__main__":
    register()
    store = Store(sys.argv[1])
    fails = sys.argv[4:]
    steps = [Step("task_model", how, Config(fails=how)) for how in fails] or make_steps(float(sys.argv[2]), int(sys.argv[3]))
    cached = [one.step.fingerprint for one in make_plan(steps, store) if one.is_cached]
    with ray_session(RayOptions(max_cpus=2), steps) as capacity, Display({}) as display:
        progress = run_steps(Run(steps, set(cached), store, capacity, listener=display.on_event, max_failures=0))
    print(f"cached={len(cached)} built={len(progress.built)}")
