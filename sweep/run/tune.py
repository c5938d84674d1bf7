"""One Ray Tune experiment over the step graph. All that is peculiar to Tune is in this file.

Every missing step is a trial, or is in one with others that the same workers take on. The searcher withholds a trial
until its inputs are built, and until the resources that it needs are free: a trial that Tune starts never waits for
another's, so it cannot deadlock. Trials are drivers and take no resources of their own; Ray Train, Ray Data and tasks
inside them do.
"""

import contextlib
import functools
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.graph.queue import Capacity, StepQueue
from sweep.graph.records import Store
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.run.failures import one_line
from sweep.run.machine import git_state
from sweep.run.progress import Progress
from sweep.run.tracking import Card
from sweep.run.trial import Order, Outcome, carry_out

TUNE_SETTINGS = {
    # A run has its own display.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Results are in records and in MLflow: no CSV, JSON and TensorBoard files of each trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that waits is withheld by the searcher; Tune would warn of a cluster that is too small.
    "TUNE_WARN_INSUFFICIENT_RESOURCE_THRESHOLD_S": "1000000",
    # With a searcher, Tune starts the next trial's process only when the last one's is up: seconds for each.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    # Ctrl-C must end the run at once, not after Tune's farewell.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The store is the state of a run; Tune's own snapshots would only cost time.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
}
# Any positive amount: Tune refuses a trial of nothing. On the head node a driver is safe from spot loss.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}
SHORT_STEP_S, PROCESS_START_S = 1.0, 5.0
"""A step that takes less than the first is over before a process is up; within the second, one surely is."""

Listener = Callable[[str, Step, Progress], None]
"""Called with "start", "done", "retry", "failed" or "blocked"."""


def run_steps(run: "Run") -> Progress:
    """Build every step of `run` that is not cached, inside a `sweep.run.session`; failures are in the returned progress."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray import tune

    folder = tempfile.mkdtemp(prefix="blindsweep-tune-")
    try:
        tune.Tuner(
            tune.with_resources(_trial, TRIAL_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(run),
                # Each once more than it may fail, for those that a neighbour takes along.
                num_samples=len(run.queue.waiting) * (run.max_failures + 2),
                # A trial's process goes on with the next trial.
                reuse_actors=True,
                # Short names: they are folders, and nobody reads them.
                trial_name_creator=str,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="steps",
                storage_path=folder,
                verbose=0,
                callbacks=[_callback(run)],
            ),
        ).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return run.progress


def _remove_placement_groups() -> None:
    """Give back what this run's stages hold; only to be called while none of them runs."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    # An id ends with the job's: on a shared cluster, other runs' groups are not ours to remove.
    job = ray.get_runtime_context().get_job_id()
    for identifier, group in placement_group_table().items():
        is_trials = any(TRIAL_RESOURCES.keys() & bundle.keys() for bundle in group["bundles"].values())
        if identifier.endswith(job) and group["state"] != "REMOVED" and not is_trials:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identifier))))


@dataclass
class Run:
    """The steps to build, of which at least one is not `cached`, and what the searcher and the callback of their Tune
    experiment share, in the driver.

    `tracker` is an actor handle of `sweep.run.tracking.Tracker`, or None.
    """

    steps: Sequence[Step]
    cached: set[str]
    store: Store
    capacity: Capacity
    tracker: Any = None
    listener: Listener = lambda event, step, progress: None
    tick: Callable[[Progress], None] = lambda progress: None
    max_failures: int = 0

    def __post_init__(self) -> None:
        self.queue = StepQueue(self.steps, self.cached, self.capacity)
        self.progress = Progress(self.steps, self.cached)
        self.git = git_state()
        self.trials: dict[str, list[Step]] = {}
        self.attempts: Counter[str] = Counter()
        self.seconds: dict[tuple[str, type], float] = {}  # stage and type of config → of the last trial that built one
        # A stage that was cut off may hold placement groups, which Ray keeps until the whole run ends; a step
        # that waits for them would wait for ever.
        self.has_leftovers = False
        self._asked: Any = None
        self._asked_at = 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.queue.is_exhausted and not self.queue.running:
            return "FINISHED"
        if self.has_leftovers:
            if self.queue.running:
                return None
            _remove_placement_groups()
            self.has_leftovers = False
        if self._one_ends_soon():
            return None
        group = self.queue.next_group()
        if not group:
            return None
        self.trials[trial_id] = group
        for step in group:
            self.progress.running[step.fingerprint] = time.monotonic()
            if self.tracker:
                self.tracker.start.remote(Card.of(step))
            self.listener("start", step, self.progress)
        return {
            "orders": _Sealed([Order(step, REGISTRY[step.stage], self.store.uri, self.tracker, self.git) for step in group])
        }

    def _one_ends_soon(self) -> bool:
        """Whether a step is running that leaves its process to the next one sooner than another would start.

        Tune starts a process for every trial that finds none idle, and stops it again if one is idle before it is up: short
        steps, side by side, would keep the CPUs busy with processes that nothing ever runs in.
        """
        now = time.monotonic()
        return any(
            self.seconds.get(_kind(step), math.inf) < SHORT_STEP_S
            and now - self.progress.running[fingerprint] < PROCESS_START_S
            for fingerprint, step in self.queue.running.items()
        )

    def complete(self, trial_id: str, result: Mapping[str, Any] | None, error: bool) -> None:
        group = self.trials[trial_id]
        outcomes: list[Outcome] = (result or {}).get("outcomes") or []
        if error or not outcomes:
            outcomes = [_lost(group, "the process that drove it was lost")] * len(group)
        for step, outcome in zip(group, outcomes, strict=True):
            self.progress.running.pop(step.fingerprint, None)
            if outcome.record is None:
                self._failed(step, outcome)
                continue
            self.queue.succeeded(step.fingerprint)
            durations = outcome.record.durations
            self.seconds[_kind(step)] = durations.get("group_s", durations["total_s"])
            self.progress.built[step.fingerprint] = outcome.record
            if self.tracker:
                self.tracker.finish.remote(outcome.record)
            self.listener("done", step, self.progress)

    def _failed(self, step: Step, outcome: Outcome) -> None:
        if not outcome.was_neighbour:
            self.attempts[step.fingerprint] += 1
        if not outcome.is_final:
            self.has_leftovers = True
            if outcome.was_neighbour or self.attempts[step.fingerprint] <= self.max_failures:
                self.queue.again(step.fingerprint, alone=outcome.was_neighbour)
                self.progress.retried[step.fingerprint] = outcome
                self.listener("retry", step, self.progress)
                return
        self.progress.failed[step.fingerprint] = outcome
        if self.tracker:
            self.tracker.fail.remote(step.fingerprint, outcome.error)
        blocked = self.queue.failed(step.fingerprint)
        self.progress.blocked |= {user.fingerprint: step.name for user in blocked}
        self.listener("failed", step, self.progress)
        for user in blocked:
            self.listener("blocked", user, self.progress)

    def poll(self) -> None:
        """Fetch the latest throughput without waiting for it."""
        import ray

        if self.tracker:
            if self._asked is None and time.monotonic() - self._asked_at > 1:
                self._asked, self._asked_at = self.tracker.snapshot.remote(), time.monotonic()
            elif self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                with contextlib.suppress(Exception):
                    self.progress.throughput = ray.get(self._asked)
                self._asked = None
        self.tick(self.progress)


def _kind(step: Step) -> tuple[str, type]:
    """Steps of one kind take about as long: an untrained starting point is written, the others are finetuned."""
    return step.stage, type(step.config)


class _Sealed:
    """A value that Tune passes on as it is, instead of looking for search spaces in it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return ", ".join(order.step.name for order in self.value)

    def __deepcopy__(self, memo: Any) -> "_Sealed":
        return self


def _trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """One step, or a group of them, run in an actor outside the trial's placement group.

    Inside it, Ray would place the stage's own tasks into the trial's group, which has no CPU. The actor stays
    for the following trials of this process, so that torch is imported once.
    """
    import ray

    orders: list[Order] = config["orders"].value
    host = _stage_host()
    try:
        outcomes: list[Outcome] = ray.get(host.carry_out.remote(orders))
    except ray.exceptions.RayError as error:
        # A step's own failure is an outcome: this one is of the process, or of what came back from it.
        outcomes = [_lost(orders, one_line(error))] * len(orders)
    if any(outcome.record is None for outcome in outcomes):
        # The actors and tasks that a failed stage left behind go with the process that owns them.
        ray.kill(host)
        _stage_host.cache_clear()
    return {"outcomes": outcomes}


def _lost(group: Sequence[Any], error: str) -> Outcome:
    """The outcome of each of `group` when the process that drove them was lost."""
    return Outcome(None, error, was_neighbour=len(group) > 1)


@functools.cache
def _stage_host() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_StageHost).options(num_cpus=0, scheduling_strategy=here).remote()


class _StageHost:
    def carry_out(self, orders: list[Order]) -> list[Outcome]:
        return carry_out(orders)


def _searcher(run: Run) -> Any:
    from ray.tune.search import Searcher

    class StepSearcher(Searcher):
        def suggest(self, trial_id: str) -> Any:
            suggestion = run.suggest(trial_id)
            return Searcher.FINISHED if suggestion == "FINISHED" else suggestion

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            run.complete(trial_id, result, error)

        def save(self, checkpoint_path: str) -> None:
            """The store is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """The store is the state."""

        def __reduce__(self) -> Any:
            # Tune pickles the whole tuner for a restore that we never make.
            return (Searcher, ())

    return StepSearcher()


def _callback(run: Run) -> Any:
    from ray.tune import Callback

    class StepCallback(Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            run.poll()

        def __reduce__(self) -> Any:
            return (Callback, ())

    return StepCallback()
