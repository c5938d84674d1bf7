"""Lanes that only sleep, many in a process, for a run that is real but for them.

A lane of a run is two processes of Ray's: its host, which takes on steps, and its trial of Ray Tune, which waits for its end.
Here the hosts of some lanes are threads of one process, and the trials of all lanes are threads of another. What such processes
take to start, and of memory, is left out; orders, outcomes, leases, records, placement groups and calls of actors are as ever.

The work of a step is a stand-in, too: it sleeps, reports and writes small files.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from pipelines.finetune.checkpoints import METRICS_FILE
from pipelines.workers.lane import Lane, Times
from sweep.graph import stages
from sweep.graph.records import Store
from sweep.graph.stages import Job, Workers
from sweep.run import study_run
from sweep.run import tune as tune_of_run
from sweep.run.lanes import Hosts, LaneHost

FASTER = "BLINDSWEEP_SCALE_FASTER"
"""Environment variable for the processes of a run: how much faster stages are than those of a study."""
REPORTS = 10
"""Of a step while it is under way."""
LANES_A_PROCESS, STEPS_A_LANE = 8, 40
"""A process has threads for so many lanes, with a full group and those who wait for a lane's end."""
HALVES = ("accuracy", "accuracy_2way", "margin", "auc")
"""What an evaluation measures of each half of a test set."""


@dataclass(frozen=True)
class Takes:
    """Seconds until workers are up; then those that all which are trained at once take together, and each one's own."""

    start_s: float
    once_s: float
    own_s: float


TAKES = {
    "sources": Takes(0, 0, 10),
    "base_model": Takes(0, 0, 60),
    "starting_set": Takes(0, 0, 5),
    "starting_point": Takes(50, 500, 400),
    "generator": Takes(60, 0, 2_400),
    "synthetic_pool": Takes(68, 0, 3_100),
    "training_set": Takes(0, 0, 15),
    "task_model": Takes(60, 240, 190),
    "evaluation": Takes(40, 0, 31),
}
"""Of a step in `paper` on an H200, on the mean of its stage and to two digits: the plan's estimate, from measured rates."""


def faster() -> float:
    return float(os.environ[FASTER])


def use_stand_in_stages() -> None:
    """Have all stages only sleep, in this process and in those that get their orders from it."""
    for name, stage in stages.REGISTRY.items():
        opens = None if stage.open is None else _open
        stages.REGISTRY[name] = replace(stage, run=sleep, open=opens, is_together=_is_together, prepare=None)


def _is_together(config: Any) -> bool:
    return hasattr(config, "finetune")


def sleep(job: Job) -> Mapping[str, Any]:
    """A step whose workers are its own."""
    return StandInLane(job).run(job)[0]


def _open(job: Job) -> Workers:
    return Workers(cast(Lane, StandInLane(job)), lambda job: job)


class StandInLane:
    """In the place of workers: each step in the thread that brings it. Those that are trained at once slow each other."""

    def __init__(self, job: Job) -> None:
        self._up = time.time() + TAKES[stage_of(job)].start_s / faster()
        self._changed = threading.Condition()
        self._num_under_way = 0

    def run(self, job: Job) -> tuple[Mapping[str, Any], Times]:
        time.sleep(max(0.0, self._up - time.time()))
        most = STEPS_A_LANE if _is_together(job.config) else 1
        with self._changed:
            self._changed.wait_for(lambda: self._num_under_way < most)
            self._num_under_way += 1
        began, started, share_s, takes = time.time(), time.monotonic(), 0.0, TAKES[stage_of(job)]
        try:
            for number in range(REPORTS):
                slice_s = (takes.once_s + takes.own_s * self._num_under_way) / faster() / REPORTS
                share_s += slice_s / self._num_under_way
                time.sleep(slice_s)
                job.report(reported(number), number + 1)
            metrics = write(job)
            return metrics, Times(self._up, began, time.time(), min(share_s, time.monotonic() - started))
        finally:
            with self._changed:
                self._num_under_way -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """There is nothing to end."""


def stage_of(job: Job) -> str:
    return job.output.rstrip("/").split("/")[-2]


def reported(number: int) -> dict[str, float]:
    done = (number + 1) / REPORTS
    return {"loss": 2.0 - done, "learning_rate": 1e-4, "examples_per_s": 10.0, "tokens_per_s": 500.0, "fraction_done": done}


def write(job: Job) -> Mapping[str, Any]:
    """Write what a step of the stage leaves, weights and rows aside; its metrics, as many as a study's have."""
    store = Store(job.output)
    store.write_bytes(f"{job.output}/value.txt", b"0")
    if _is_together(job.config):
        lines = [json.dumps({"step": number + 1, **reported(number)}) for number in range(REPORTS)]
        store.write_bytes(f"{job.output}/{METRICS_FILE}", "\n".join(lines).encode())
    metrics: dict[str, Any] = {"num_examples": 900, "seconds": 1.0, "peak_gpu_memory_gib": 1.0}
    for set_ in getattr(job.config, "sets", ()):
        metrics |= {f"{set_}/accuracy": 0.5, f"{set_}/accuracy_2way": 0.5}
        metrics |= {f"{set_}/{half}/{name}": 0.5 for half in ("adversarial", "aligned") for name in HALVES}
    return metrics


def use_stand_in_processes() -> None:
    """Have lanes of a run in this process be threads of few processes."""
    study_run.Run = partial(tune_of_run.Run, hosts=SharedHosts())  # type: ignore[assignment, misc]
    tune_of_run._trial = _stand_in_trial()
    from ray.tune.execution import tune_controller

    tune_controller._ActorClassCache = _TrialClasses


class SharedHosts(Hosts):
    """Hosts of which some lanes share a process, which no lane's end or failure ends."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[Any] = []
        self._num_hosts = 0

    def _new(self) -> Any:
        if self._num_hosts % LANES_A_PROCESS == 0:
            import ray

            threads = LANES_A_PROCESS * STEPS_A_LANE
            self._processes.append(ray.remote(LaneHost).options(num_cpus=0, max_concurrency=threads).remote())
        self._num_hosts += 1
        return self._processes[-1]

    def give_back(self, host: Any, *, is_sound: bool) -> None:
        self._idle.append(host)


class Trials:
    """The trials of all lanes, in an actor with a thread for each call."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._trials: dict[int, Any] = {}

    def make(self, number: int, given: Mapping[str, Any]) -> None:
        self._trials[number] = self._cls(**given)

    def call(self, number: int, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "__ray_ready__":
            return True
        if name == "__ray_terminate__":
            del self._trials[number]
            return None
        return getattr(self._trials[number], name)(*arguments, **options)


class _TrialClasses:
    """In the place of Ray Tune's cache of actors' classes: it has one, of trials that are threads."""

    def __init__(self) -> None:
        self._found: _TrialClass | None = None

    def get(self, trainable_cls: type) -> "_TrialClass":
        self._found = self._found or _TrialClass(trainable_cls)
        return self._found


class _TrialClass:
    """In the place of Ray's class of an actor, for which Ray Tune takes it."""

    def __init__(self, cls: type) -> None:
        import ray

        self._actor = ray.remote(Trials).options(num_cpus=0, max_concurrency=1_024).remote(cls)
        self._num_trials = 0

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        import ray

        return ray.actor.ActorClass

    def options(self, **_: Any) -> "_TrialClass":
        """Those of the placement group: its threads are in another."""
        return self

    def remote(self, **given: Any) -> "_Trial":
        import ray

        self._num_trials += 1
        ray.get(self._actor.make.remote(self._num_trials, given))
        return _Trial(self._actor, self._num_trials)


class _Trial:
    """In the place of an actor's handle: its methods are calls of the actor of all trials."""

    def __init__(self, actor: Any, number: int) -> None:
        self._actor, self._number = actor, number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and not name.startswith("__ray_"):
            raise AttributeError(name)
        return _Method(self._actor, self._number, name)


class _Method:
    def __init__(self, actor: Any, number: int, name: str) -> None:
        self._actor, self._number, self._name = actor, number, name

    def remote(self, *arguments: Any, **options: Any) -> Any:
        return self._actor.call.remote(self._number, self._name, *arguments, **options)


def _stand_in_trial() -> type:
    """A trial as a class: Ray Tune has one function that is a trial in a process."""
    from ray.tune import Trainable

    function = tune_of_run._trial

    class StandInTrial(Trainable):
        def step(self) -> dict[str, Any]:
            return {**function(self.config), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    return StandInTrial
