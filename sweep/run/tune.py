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
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import UserError
from sweep.graph.integrity import changed_inputs, why_stale
from sweep.graph.queue import Capacity, StepQueue
from sweep.graph.records import Record, Store
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.run.budget import BudgetReached
from sweep.run.failures import MACHINE_LOST, PROCESS_DIED, Kind, one_line
from sweep.run.machine import git_state, live_nodes, temporary_folder
from sweep.run.progress import Progress
from sweep.run.tracking import Card
from sweep.run.trial import Order, Outcome, carry_out, is_taken_over, keep_log

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
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
"""What Tune would put into its trials' runtime environments, which Ray prints and everyone can read."""
# Any positive amount: Tune refuses a trial of nothing. On the head node a driver is safe from spot loss.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}
MOST_REBUILDS = 3
"""How often an artifact is built again in one run because it was damaged, or its inputs came out otherwise."""
SHORT_STEP_S, PROCESS_START_S = 1.0, 5.0
"""A step that takes less than the first is over before a process is up; within the second, one surely is."""
MAX_LOSSES = 8
"""How often in a row a step may be lost without having committed anything; then it is given up."""
DETECTION_S = 30.0
"""How long Ray may take to find that a machine is gone, of which the processes on others know at once."""
LEFTOVERS_S = 60.0
"""How long after a failure placement groups are looked for that nobody owns any more."""
LOOK_S, WAIT_S = 5.0, 60.0
"""How often the cluster is looked at, and how long a step waits for a machine until that is said."""

Listener = Callable[[str, Step, Progress], None]
"""Called with "start", "done", "lost", "retry", "failed", "blocked" or "waits"."""


class _RayDied(BaseException):
    """Ray has died on the machine of the run. Not an Exception: Ray Tune must pass it on."""


@contextlib.contextmanager
def _ended_from_within(run: "Run") -> Iterator[None]:
    """Held at the budget. Raises UserError if Ray has died on this machine."""
    try:
        yield
    except BudgetReached as reached:
        run.hold = str(reached)
    except _RayDied as died:
        raise UserError("Ray has died on the machine of the run, and its steps with it; the same command goes on") from died


def run_steps(run: "Run") -> Progress:
    """Build every step of `run` that is not cached, inside a `sweep.run.session`; failures are in the returned progress."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray import tune
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    # Processes of this machine inherit the keys; nodes of a cluster have a role, or their own.
    ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    # At the budget, what runs ends with Ray, at its last commit.
    with temporary_folder("blindsweep-tune-") as folder, _ended_from_within(run):
        tune.Tuner(
            tune.with_resources(_trial, TRIAL_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(run),
                # Without a limit of Tune's: how often a step is tried is the run's to say.
                num_samples=-1,
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
    return run.progress


def _check_own_ray() -> None:
    """Raise _RayDied if this machine is out of Ray's cluster: nothing can start any more, and Tune would wait for ever."""
    import ray

    # Ray's control store may be out of reach for a while; Ray itself ends a driver that does without it for a minute.
    nodes = {}
    with contextlib.suppress(Exception):
        nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
    if nodes.get(ray.get_runtime_context().get_node_id()) is False:
        raise _RayDied


def _remove_orphaned_placement_groups() -> None:
    """Give back what stages of this run hold that were cut off: Ray keeps it until the whole run ends."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for serialized in state._connect_and_get_accessor().get_placement_group_table():
        group = Group.FromString(serialized)
        # Those of the driver itself, which are Tune's, have no actor that made them.
        is_orphan = group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil()
        if is_orphan and group.state != Group.REMOVED and group.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


@dataclass
class Run:
    """The steps to build, of which at least one is not `cached`, and what the searcher and the callback of their Tune
    experiment share, in the driver.

    `tracker` is an actor handle of `sweep.run.tracking.Tracker`, or None. `look` says what may be used by now of a cluster
    whose machines come and go. `records` are those of what is built, by fingerprint: a built step whose input came out
    otherwise in this run is built again, unless `keep_dependents`. `hold` is the reason for which nothing new starts; with
    one, the experiment ends when nothing runs any more. `why_not` says, of steps that are about to start, why they may not
    beside what runs, "" if they may; where nothing runs, that is a hold.
    """

    steps: Sequence[Step]
    cached: set[str]
    store: Store
    capacity: Capacity
    tracker: Any = None
    listener: Listener = lambda event, step, progress: None
    tick: Callable[[Progress], None] = lambda progress: None
    max_failures: int = 1
    look: Callable[[], Capacity] | None = None
    records: dict[str, Record] = field(default_factory=dict)
    keep_dependents: bool = False
    why_not: Callable[[Sequence[Step]], str] = lambda group: ""
    hold: str = ""

    def __post_init__(self) -> None:
        self.queue = StepQueue(self.steps, self.cached, self.capacity)
        self.progress = Progress(self.steps, self.cached)
        self.git = git_state()
        self.trials: dict[str, list[Step]] = {}
        self.attempts: Counter[str] = Counter()
        self.rebuilds: Counter[str] = Counter()
        self.seconds: dict[tuple[str, type], float] = {}  # stage and type of config → of the last trial that built one
        self._losses_in_a_row: Counter[str] = Counter()
        self._last_commits: dict[str, Any] = {}
        self._leftovers_until = self._looked_at = 0.0
        self._waiting: tuple[str, float] | None = None  # a step without room, and since when
        self._asked: Any = None
        self._asked_at = 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        # Here as well: while nothing runs, Tune asks for the next trial and does nothing else.
        self._look_around()
        if (self.hold or self.queue.is_exhausted) and not self.queue.running:
            return "FINISHED"
        if self.hold:
            return None
        if self._one_ends_soon():
            return None
        group = self.queue.next_group()
        if not group:
            return None
        if reason := self.why_not(group):
            for step in group:
                self.queue.again(step.fingerprint)
            # What runs may take less than was thought, and leave room.
            if self.queue.running:
                return None
            self.hold = reason
            return "FINISHED"
        self.trials[trial_id] = group
        for step in group:
            self.progress.running[step.fingerprint] = time.monotonic()
            if self.tracker:
                self.tracker.start.remote(Card.of(step))
            self.listener("start", step, self.progress)
        return {
            "orders": _Sealed([Order(step, REGISTRY[step.stage], self.store.uri, self.tracker, self.git) for step in group])
        }

    @property
    def groups(self) -> list[list[Step]]:
        """The steps that run, those together that the same workers have taken on."""
        # A step that is tried again is of its last trial.
        trial_of = {step.fingerprint: trial for trial, group in self.trials.items() for step in group}
        return [self.trials[trial] for trial in dict.fromkeys(trial_of[fingerprint] for fingerprint in self.progress.running)]

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
        unfinished = [step for step, outcome in zip(group, outcomes, strict=True) if outcome.record is None]
        has_progress = self._has_progress(unfinished) or len(unfinished) < len(group)
        for step, outcome in zip(group, outcomes, strict=True):
            self.progress.running.pop(step.fingerprint, None)
            if outcome.record is None:
                self._failed(step, outcome, has_progress)
                continue
            self.queue.succeeded(step.fingerprint)
            durations = outcome.record.durations
            self.seconds[_kind(step)] = durations.get("group_s", durations["total_s"])
            self.progress.built[step.fingerprint] = outcome.record
            if self.tracker:
                self.tracker.finish.remote(outcome.record)
            self.listener("done", step, self.progress)
            self.records[step.fingerprint] = outcome.record
            for user in {user.fingerprint: user for user in (step, *self.queue.users[step.fingerprint])}.values():
                self._rebuild_if_stale(user)

    def _rebuild_if_stale(self, step: Step) -> None:
        record = self.records.get(step.fingerprint)
        if self.keep_dependents or record is None or step.fingerprint not in self.queue.done:
            return
        changed = changed_inputs(record, self.records)
        if changed and self.queue.is_possible(step) and self._take_back([step.fingerprint]):
            self.progress.retried[step.fingerprint] = Outcome(None, why_stale(record, changed))
            self.listener("retry", step, self.progress)

    def _take_back(self, fingerprints: Sequence[str]) -> bool:
        """Have built artifacts built again, unless they are waiting for it; False if one of them was so too often."""
        fingerprints = [fingerprint for fingerprint in fingerprints if fingerprint in self.queue.done]
        self.rebuilds.update(fingerprints)
        if any(self.rebuilds[fingerprint] > MOST_REBUILDS for fingerprint in fingerprints):
            return False
        for fingerprint in fingerprints:
            self.records.pop(fingerprint, None)
            self.progress.cached.discard(fingerprint)
            self.progress.built.pop(fingerprint, None)
        self.queue.rebuild(fingerprints)
        return True

    def _has_progress(self, unfinished: Sequence[Step]) -> bool:
        """Whether one of a group's unfinished steps would go on from a later place than after the last time it was cut off."""
        before, now = self._last_commits, {}
        for step in unfinished:
            # What is wrong with a store or a checkpoint, the step itself says.
            with contextlib.suppress(Exception):
                now[step.fingerprint] = REGISTRY[step.stage].last_commit(self.store.folder(step.id))
        self._last_commits = before | now
        return any(now[fingerprint] != before.get(fingerprint) for fingerprint in now)

    def _failed(self, step: Step, outcome: Outcome, has_progress: bool) -> None:
        if not outcome.is_final:
            self._leftovers_until = time.monotonic() + LEFTOVERS_S
        if outcome.unusable and self._take_back(outcome.unusable) and self.queue.is_possible(step):
            self.queue.again(step.fingerprint)
            self.progress.retried[step.fingerprint] = outcome
            self.listener("retry", step, self.progress)
            return
        event, outcome = self._verdict(step, outcome, has_progress)
        if event != "failed" and self.queue.is_possible(step):
            self.queue.again(step.fingerprint, alone=event == "retry" and outcome.was_neighbour)
            self.progress.retried[step.fingerprint] = outcome
            self.listener(event, step, self.progress)
            return
        self.progress.failed[step.fingerprint] = outcome
        if self.tracker:
            self.tracker.fail.remote(step.fingerprint, outcome.error)
        blocked = self.queue.failed(step.fingerprint)
        self.progress.blocked |= {user.fingerprint: step.name for user in blocked}
        self.listener("failed", step, self.progress)
        for user in blocked:
            self.listener("blocked", user, self.progress)

    def _verdict(self, step: Step, outcome: Outcome, has_progress: bool) -> tuple[str, Outcome]:
        """What follows from a step's bad end: "lost" and "retry" are tried again, the second having counted unless a neighbour
        is at fault.
        """
        fingerprint = step.fingerprint
        if has_progress:
            self._losses_in_a_row[fingerprint] = 0
        if outcome.is_final:
            return "failed", outcome
        if outcome.was_stopped:
            return "retry", outcome
        # A process that dies twice at one place dies of what it does there; one that had got on may have been killed.
        if outcome.kind is Kind.LOSS or (outcome.kind is Kind.DEATH and has_progress):
            self.progress.losses[fingerprint] += 1
            self._losses_in_a_row[fingerprint] += 1
            if self._losses_in_a_row[fingerprint] < MAX_LOSSES:
                return "lost", outcome
            return "failed", replace(outcome, error=f"lost {MAX_LOSSES} times without progress: {outcome.error}")
        if outcome.was_neighbour:
            return "retry", outcome
        self.attempts[fingerprint] += 1
        return ("retry" if self.attempts[fingerprint] <= self.max_failures else "failed"), outcome

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
        self._look_around()
        self.tick(self.progress)

    def _look_around(self) -> None:
        import ray

        # Asked for anything, it would start a Ray of its own.
        if not ray.is_initialized():
            return
        has_leftovers = time.monotonic() < self._leftovers_until
        if time.monotonic() - self._looked_at < (1 if has_leftovers else LOOK_S):
            return
        self._looked_at = time.monotonic()
        # Ray's control store may be out of reach for a while.
        with contextlib.suppress(Exception):
            if has_leftovers:
                _remove_orphaned_placement_groups()
            self._look_at_cluster()
        _check_own_ray()

    def _look_at_cluster(self) -> None:
        """Follow the machines that come and go, and say once what a step has been waiting for."""
        if self.look is None:
            return
        import ray

        self.queue.capacity = self.look()
        there = ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        step = self.queue.without_room(cpus, gpus)
        if step is None:
            self._waiting = None
        elif self._waiting is None or self._waiting[0] != step.fingerprint:
            self._waiting = step.fingerprint, time.monotonic()
        elif time.monotonic() - self._waiting[1] > WAIT_S and step.fingerprint not in self.progress.waits:
            workers = f"{step.resources.num_workers} x " if step.resources.num_workers > 1 else ""
            need = ", ".join(f"{amount:g} {name}" for name, amount in step.resources.as_bundle().items())
            self.progress.waits[step.fingerprint] = (
                f"it needs {workers}{need}, and the cluster's machines have {cpus:g} CPU, {gpus:g} GPU in all by now; "
                "it goes on when another one joins"
            )
            self.listener("waits", step, self.progress)


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
    machines = _machines()
    host = _stage_host()
    try:
        outcomes: list[Outcome] = ray.get(host.carry_out.remote(orders))
    except ray.exceptions.RayError as error:
        # A step's own failure is an outcome: this one is of the process, or of what came back from it.
        lost = _lost(orders, _why_it_ended(error, orders))
        outcomes = [replace(lost, log=keep_log(error, order.step, Store(order.store_uri))) for order in orders]
    if any(outcome.record is None for outcome in outcomes):
        # The actors and tasks that a failed stage left behind go with the process that owns them.
        ray.kill(host)
        _stage_host.cache_clear()
    return {"outcomes": _judged(outcomes, machines)}


def _why_it_ended(error: Exception, orders: Sequence[Order]) -> str:
    """The line of a process that is gone: it ends itself when its lease is another driver's, which Ray does not pass on."""
    # A store that is away says so when the step is tried again.
    with contextlib.suppress(Exception):
        if is_taken_over(orders):
            return "another driver has taken its artifact over"
    return one_line(error)


def _lost(group: Sequence[Any], error: str) -> Outcome:
    """The outcome of each of `group` when the process that drove them was lost."""
    return Outcome(None, error, was_neighbour=len(group) > 1, kind=Kind.DEATH)


def _judged(outcomes: Sequence[Outcome], machines: set[str]) -> list[Outcome]:
    """`outcomes` with what became of the cluster's `machines`, which the processes that are left do not always know."""
    kinds = {outcome.kind for outcome in outcomes if outcome.record is None}
    if len(machines) == 1:
        # There is no other one to lose: what cannot be reached any more has died.
        known = {Kind.LOSS: (Kind.DEATH, PROCESS_DIED)}
    elif Kind.DEATH in kinds and _one_is_lost(machines):
        known = {Kind.DEATH: (Kind.LOSS, MACHINE_LOST)}
    else:
        known = {}
    judged = []
    for outcome in outcomes:
        kind, error = known.get(outcome.kind, (outcome.kind, outcome.error))
        judged.append(outcome if outcome.record else replace(outcome, kind=kind, error=error))
    return judged


def _machines() -> set[str]:
    """Ray's ids of the machines that are up."""
    return {node["NodeID"] for node in live_nodes()}


def _one_is_lost(machines: set[str]) -> bool:
    """Whether one of `machines` is gone; the answer is no only when Ray has had the time to find out."""
    deadline = time.monotonic() + DETECTION_S
    while machines <= _machines():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


@functools.cache
def _stage_host() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_StageHost).options(num_cpus=0, scheduling_strategy=here).remote()


class _StageHost:
    def carry_out(self, orders: list[Order]) -> list[Outcome]:
        # What the stage has started ends with this process.
        return carry_out(orders, when_lost=functools.partial(os._exit, 1))


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

    on_notice = signal.getsignal(signal.SIGUSR1)

    class StepCallback(Callback):
        def setup(self, **info: Any) -> None:
            # Tune has just taken it, with no setting to prevent it, and would end at once.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGUSR1, on_notice)

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            run.poll()

        def __reduce__(self) -> Any:
            return (Callback, ())

    return StepCallback()
