"""One Ray Tune experiment over the step graph. All that is peculiar to Tune is in this file.

A trial is a lane (`sweep.graph.queue`): it stands for workers that take on steps, from its first one until it has none. The
searcher withholds a trial until a step's inputs are built, and until the resources that it needs are free: a trial that Tune
starts never waits for another's, so it cannot deadlock. Trials take no resources of their own; Ray Train, Ray Data and tasks
of their lanes do.
"""

import contextlib
import errno
import functools
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import UserError
from sweep.graph.integrity import changed_inputs, why_stale
from sweep.graph.queue import Capacity, FirstNear, Lane, Near, StepQueue, delay_of
from sweep.graph.records import Record, Store
from sweep.graph.spending import BudgetReached
from sweep.graph.stages import REGISTRY, Stage
from sweep.graph.step import Step
from sweep.index.client import within
from sweep.run.failures import Kind, one_line
from sweep.run.lanes import HostLost, Hosts, host_lost, judged, machines_up
from sweep.run.machine import full_disk_of_ray, git_state, memory_in_use, temporary_folder
from sweep.run.progress import Progress
from sweep.run.tracking import Card
from sweep.run.trial import Order, Outcome, is_taken_over, keep_log

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
LINGER_S = 30.0
"""How long a lane waits for a step that lacks only what is being built: about as long as workers take to start. So it costs no
more than twice what knowing the future would."""
NEAR_S = 120.0
"""How long before its inputs are there a lane is opened ahead of a step: an engine of 7 billion weights takes up to 100 s."""
AHEAD_EVERY_S = 1.0
"""How often is looked for what can be started ahead."""
OVERDUE_S = 300.0
"""How long a ready step waits for room while lanes of others go on: so long that starts take no more than about a tenth."""
ARRIVAL_S = 30.0
"""How long an outcome may be on its way from a host that lives."""
STORE_S = 30.0
"""How long a run that looks after all its steps waits for its store to answer, and then does without one that did not."""
LEFTOVERS_S = 60.0
"""How long after a failure placement groups are looked for that nobody owns any more."""
LOOK_S, WAIT_S = 5.0, 60.0
"""How often the cluster is looked at, and how long a step waits for a machine, or for memory, until that is said."""
MEMORY_LIMIT, USUAL_LIMIT, START_GB = "RAY_memory_usage_threshold", 0.95, 1.0
"""Ray's setting for the part of the memory above which it ends processes, what it is by itself, and what one takes to start."""

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
    # While Tune starts.
    run.hosts.prepare(run.queue.ready)
    have_tune_survive_low_memory()
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


@functools.cache
def have_tune_survive_low_memory() -> None:
    """Have Tune take a trial whose process Ray's memory monitor has ended for one that failed.

    Ray says so by an error that is none of an actor's, of which Tune ends the whole experiment: when a trial's work has ended,
    and when it is asked how it began.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.tune.experiment.trial import Trial

    failed, began = RayActorManager._actor_task_failed, Trial._get_default_result_or_future

    def actor_task_failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        failed(manager, tracked_actor_task, exception)

    def default_result(trial: Any) -> Any:
        try:
            return began(trial)
        except OutOfMemoryError:
            trial._default_result_or_future = None
            return None

    RayActorManager._actor_task_failed, Trial._get_default_result_or_future = actor_task_failed, default_result


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
class _Lane:
    """A lane of the queue, its host, and what was sent there: step by what `Hosts.arrived` knows its outcome by."""

    name: str
    lane: Lane
    host: Any
    opened: float = field(default_factory=lambda: round(time.time(), 3))
    sent: dict[Any, Step] = field(default_factory=dict)
    num_built: int = 0
    built_before: dict[str, int] = field(default_factory=dict)
    """By fingerprint: how many the lane had built when it was given a step."""
    idle_since: float | None = None
    moved: float = field(default_factory=time.monotonic)
    """When it last ended a step, or was given one that it had to begin at once."""
    has_ended_one: bool = False
    has_failed: bool = False
    got_on: bool | None = None
    """Whether its steps had got on when they were cut off; None before that."""
    is_closed: bool = False
    num_trials: int = 1
    lost: Outcome | None = None
    """What became of the steps that it has, by what its host has left."""

    @property
    def steps(self) -> list[Step]:
        """Its steps that are under way, else the one that it was opened ahead for."""
        return list(self.lane.steps.values()) or [step for step in (self.lane.awaited,) if step is not None]


@dataclass
class Run:
    """The steps to build, of which at least one is not `cached`, and what the searcher and the callback of their Tune
    experiment share, in the driver.

    `tracker` is an actor handle of `sweep.run.tracking.Tracker`, or None. `look` says what may be used by now of a cluster
    whose machines come and go. `records` are those of what is built, by fingerprint: a built step whose input came out
    otherwise in this run is built again, unless `keep_dependents`. `hold` is the reason for which nothing new starts; with
    one, the experiment ends when nothing runs any more. `why_not` says, of a lane's steps, why they may not run beside those of
    the others, "" if they may; where nothing runs, that is a hold. So many `seeds_at_once` are built before the next ones.
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
    why_not: Callable[[Sequence[Step], Sequence[Sequence[Step]]], str] = lambda steps, beside: ""
    hold: str = ""
    seeds_at_once: int | None = None
    hosts: Hosts = field(default_factory=Hosts)

    def __post_init__(self) -> None:
        self.queue = StepQueue(self.steps, self.cached, self.capacity, seeds_at_once=self.seeds_at_once)
        self.progress = Progress(self.steps, self.cached)
        self.git = git_state()
        self.lanes: dict[str, _Lane] = {}  # by the trial's id
        self._without_trial: list[_Lane] = []
        self._started = time.time()
        self._built_at: dict[str, float] = {}
        self._num_lanes = 0
        self.attempts: Counter[str] = Counter()
        self.rebuilds: Counter[str] = Counter()
        self.seconds: dict[tuple[str, type], float] = {}  # stage and type of config → of the last trial that built one
        # The same → of a lane's start, of the last one's work.
        self._lane_times: dict[tuple[str, type], tuple[float, float]] = {}
        self._losses_in_a_row: Counter[str] = Counter()
        self._last_commits: dict[str, Any] = {}
        self._store_is_silent_until = 0.0
        self._leftovers_until = self._looked_at = 0.0
        self._waiting: tuple[str, float] | None = None  # a step without room, and since when
        self._low_since: float | None = None  # when memory was short, and has been since
        self._asked: Any = None
        self._asked_at = self._looked_ahead_at = 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        # While nothing runs, Tune asks for the next trial and does nothing else.
        if self.lanes:
            self._look_around()
        else:
            self.poll()
        if (self.hold or self.queue.is_exhausted) and not self.queue.running:
            return "FINISHED"
        if self._lacks_memory():
            return None
        if self._without_trial:
            self.lanes[trial_id] = taken_up = self._without_trial.pop()
            return _handed(taken_up)
        if self.hold:
            return None
        if self._one_ends_soon():
            return None
        if (ahead := self._open_ahead(trial_id)) is not None:
            return ahead
        lane = self.queue.open(self._is_served)
        if lane is None:
            return None
        steps = list(lane.steps.values())
        if reason := self.why_not(steps, self.groups):
            for step in steps:
                self.queue.again(step.fingerprint)
            self.queue.close(lane)
            # What runs may take less than was thought, and leave room.
            if self.queue.running:
                return None
            self.hold = reason
            return "FINISHED"
        opened = self._opened(trial_id, lane)
        self._give(opened, steps)
        return _handed(opened)

    def _opened(self, trial_id: str, lane: Lane) -> "_Lane":
        self._num_lanes += 1
        name = f"{datetime.fromtimestamp(self._started, UTC):%Y%m%dT%H%M%S}-{self._num_lanes}"
        first = next(iter(lane.steps.values()), lane.awaited)
        assert first is not None
        self.lanes[trial_id] = opened = _Lane(name, lane, self.hosts.take(first))
        return opened

    def _open_ahead(self, trial_id: str) -> dict[str, Any] | None:
        """A lane whose workers start before its first step is ready, if there is one to open now."""
        if time.monotonic() - self._looked_ahead_at < AHEAD_EVERY_S:
            return None
        self._looked_ahead_at = time.monotonic()
        lane = self.queue.open_ahead(self._may_be_near, lambda step: not self.why_not([step], self.groups))
        if lane is None:
            return None
        assert lane.awaited is not None
        opened = self._opened(trial_id, lane)
        self.hosts.open(opened.host, opened.name, self._order(opened, lane.awaited))
        return _handed(opened)

    def _is_near(self, step: Step) -> bool:
        return self._seconds_until(step, unsaid_s=math.inf) <= NEAR_S

    def _may_be_near(self, step: Step) -> bool:
        """Also of a step that has begun not long ago, and of which nothing is known yet."""
        return self._seconds_until(step, unsaid_s=0.0) <= NEAR_S

    def _seconds_until(self, step: Step, unsaid_s: float) -> float:
        """About how long it takes until a step is built; `unsaid_s` where it has just begun and nothing is known."""
        if step.fingerprint in self.queue.done:
            return 0.0
        begun, known = self.progress.running.get(step.fingerprint), self.seconds.get(_kind(step))
        now = time.monotonic()
        if begun is None:
            inputs = max((self._seconds_until(source, unsaid_s) for source in step.inputs.values()), default=0.0)
            return math.inf if known is None else known + inputs
        if (left_s := self.progress.pace(step.fingerprint).left_s) is not None:
            return left_s
        if known is not None:
            return max(known - (now - begun), 0.0)
        return unsaid_s if now - begun < NEAR_S else math.inf

    @property
    def groups(self) -> list[list[Step]]:
        """The steps that run, or whose workers start ahead of them, those together that are in one lane."""
        return [lane.steps for lane in self.lanes.values() if lane.steps]

    def seconds_until_kept(self, steps: Sequence[Step], estimates: Mapping[str, tuple[float, float]]) -> tuple[str, float]:
        """Of a lane's `steps` that do not run yet, the one of which something is kept first, and about how long that takes.

        A stage that commits on its way needs no more than its workers' start, another all of its time; as the run has seen
        them, else by `estimates` of both, by the step's name; 0.0 of what nothing is known.
        """
        new = [step for step in steps if step.fingerprint not in self.progress.running]

        def kept_s(step: Step) -> float:
            start_s, work_s = self._lane_times.get(_kind(step)) or estimates.get(step.name, (0.0, 0.0))
            is_up, commits = len(new) < len(steps), REGISTRY[step.stage].last_commit is not Stage.last_commit
            return (0.0 if is_up else start_s) + (0.0 if commits else work_s)

        return min(((step.name, kept_s(step)) for step in new), key=lambda one: one[1], default=("", 0.0))

    def _order(self, lane: "_Lane", step: Step) -> Order:
        timeline = {"lane": lane.name, "opened": lane.opened, **self._readiness(step), "given": round(time.time(), 3)}
        stage, kind, expected = REGISTRY[step.stage], lane.lane.kind, lane.lane.expected
        return Order(step, stage, self.store.uri, self.tracker, self.git, kind, expected, timeline)

    def _give(self, lane: "_Lane", steps: Sequence[Step]) -> None:
        # What is behind these may be near now, and less urgent steps wait for its room.
        self._looked_ahead_at = 0.0
        if not lane.sent:
            lane.moved = time.monotonic()
        for step in steps:
            self.progress.begin(step.fingerprint)
            if self.tracker:
                self.tracker.start.remote(Card.of(step))
            self.listener("start", step, self.progress)
            lane.built_before[step.fingerprint] = lane.num_built
            lane.sent[self.hosts.send(lane.host, lane.name, self._order(lane, step))] = step

    def _readiness(self, step: Step) -> dict[str, Any]:
        """When the inputs of a step were built, and the name of the last one, if that was in this run."""
        built = {source.name: self._built_at.get(source.fingerprint, 0.0) for source in step.inputs.values()}
        last = max(built, key=built.__getitem__, default="")
        if not built or not built[last]:
            return {"ready": round(self._started, 3), "waited_for": ""}
        return {"ready": round(built[last], 3), "waited_for": last}

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
        """A trial has ended: its lane has, or one of its processes was lost, and with it the steps that were under way."""
        lane = self.lanes.pop(trial_id)
        said = (result or {}).get("lost")
        # Of a lane that has ended, the last outcome may still be on its way: another process has said so.
        self._collect(lane, wait_s=0.0 if error or said else ARRIVAL_S)
        if error and lane.lost is None and lane.num_trials < MAX_LOSSES:
            # Only what stood for it in Tune has ended. If its host has, too, the next one says so.
            lane.num_trials += 1
            self._without_trial.append(lane)
            return
        lost = said or lane.lost or Outcome(None, "the process that drove it was lost", kind=Kind.DEATH)
        left = list(lane.lane.steps.values())
        for step in left:
            self._ended(lane, step, replace(self._with_log(lost, step), was_neighbour=len(left) > 1))
        self.hosts.give_back(lane.host, is_sound=not (error or said or left or lane.has_failed))
        self.queue.close(lane.lane)

    def _with_log(self, lost: Outcome, step: Step) -> Outcome:
        """The outcome of a step whose host has died, and of which nothing was written yet."""
        # A store that is away says so when the step is tried again.
        with contextlib.suppress(Exception):
            if lost.kind is not Kind.MEMORY and self._answer_of_store(is_taken_over, self.store, step):
                # A process ends itself when its lease is another driver's, which Ray does not pass on.
                lost = replace(lost, error="another driver has taken its artifact over")
            elif lost.kind is Kind.DEATH and (folder := full_disk_of_ray()):
                lost = replace(lost, error=one_line(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)), is_final=True)
        with contextlib.suppress(TimeoutError):
            return replace(lost, log=self._answer_of_store(keep_log, RuntimeError(lost.error), step, self.store))
        return lost

    def _answer_of_store(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The value of a call that waits for the store, or TimeoutError: at once for a while after one that had no answer.

        A lane may lose many steps at a time, and each asks.
        """
        if time.monotonic() < self._store_is_silent_until:
            raise TimeoutError("the store gave no answer a moment ago")
        try:
            return within(STORE_S, function, *arguments)
        except TimeoutError:
            self._store_is_silent_until = time.monotonic() + STORE_S
            raise

    def _collect(self, *lanes: "_Lane", wait_s: float = 0.0) -> None:
        """Take in what has become of the steps of lanes."""
        lane_of = {sent: lane for lane in lanes for sent in lane.sent}
        for sent, outcome in list(self.hosts.arrived(lane_of, wait_s=wait_s)):
            lane = lane_of[sent]
            step = lane.sent.pop(sent)
            if isinstance(outcome, HostLost):
                lane.lost = outcome
            else:
                self._ended(lane, step, outcome)

    def attend(self) -> None:
        """Take in outcomes, have lanes take on what is ready for them, and end those that are of no more use."""
        self._collect(*self.lanes.values())
        first_near = functools.cache(self.queue.first_near)
        is_near, may_be_near = functools.cache(self._is_near), functools.cache(self._may_be_near)
        for lane in [lane for lane in self.lanes.values() if not lane.is_closed]:
            if not self.hold and (steps := self.queue.join(lane.lane, self._is_overdue, self._is_served)):
                if self.why_not(list(lane.lane.steps.values()), [group for group in self.groups if steps[0] not in group]):
                    for step in steps:
                        self.queue.again(step.fingerprint)
                else:
                    self._give(lane, steps)
            if lane.lane.steps:
                lane.idle_since = None
                continue
            lane.idle_since = lane.idle_since or time.monotonic()
            if self.hold or not self._may_wait(lane, may_be_near if lane.lane.awaited else is_near, first_near):
                self._close(lane)
        self.progress.num_lanes = sum(bool(lane.lane.steps) for lane in self.lanes.values())

    def _may_wait(self, lane: "_Lane", is_near: Near, first_near: FirstNear) -> bool:
        """Whether a lane without a step may go on: a start takes no longer than it has waited, or its next step is near."""
        assert lane.idle_since is not None
        # First, so that paces are known early.
        return self.queue.may_wait(lane.lane, is_near, first_near) or (
            time.monotonic() - lane.idle_since <= LINGER_S and self.queue.may_wait(lane.lane, first_near=first_near)
        )

    def _close(self, lane: "_Lane") -> None:
        lane.is_closed = lane.lane.is_ending = True
        if lane.lane.awaited is None:
            self.hosts.close(lane.host, lane.name)
            return
        # Its workers may be in the midst of their start, for which nobody waits any more.
        lane.lane.awaited, lane.has_failed = None, True
        self._leftovers_until = time.monotonic() + LEFTOVERS_S
        self.hosts.give_up(lane.host, lane.name)

    def _is_served(self, step: Step) -> bool:
        """Whether lanes that do one after another get to a ready step sooner than another one would have started."""
        start_s, each_s = self._lane_times.get(_kind(step), (0.0, 0.0))
        if not start_s:
            return False
        lanes = {lane.lane: lane for lane in self.lanes.values()}

        def delay_s(lane: Lane) -> float:
            own = lanes[lane]
            up_s = math.inf if own.has_ended_one else time.time() - own.opened - start_s
            return delay_of(lane, -up_s, min(time.monotonic() - own.moved, up_s) - each_s, start_s)

        return self.queue.wait_s(step, each_s, delay_s) < start_s

    def _is_overdue(self, step: Step) -> bool:
        ready = max((self._built_at.get(source.fingerprint, 0.0) for source in step.inputs.values()), default=0.0)
        return time.time() - (ready or self._started) > OVERDUE_S

    def _ended(self, lane: "_Lane", step: Step, outcome: Outcome) -> None:
        lane.moved, lane.has_ended_one = time.monotonic(), True
        if outcome.kind is Kind.MEMORY and self.look is None:
            self._low_since = self._low_since or time.monotonic()
        if outcome.record is None:
            lane.has_failed = True
            lane.lane.is_ending |= (
                outcome.kind not in (Kind.FAILURE, Kind.GPU_MEMORY) or outcome.was_neighbour or outcome.was_stopped
            )
            lane.lane.is_ending |= lane.lane.takes_one
            has_progress = self._got_on(lane, step, outcome)
            self.progress.running.pop(step.fingerprint, None)
            self._failed(step, outcome, has_progress)
            return
        self.progress.running.pop(step.fingerprint, None)
        lane.num_built += 1
        self._built_at[step.fingerprint] = time.time()
        self.queue.succeeded(step.fingerprint)
        self.seconds[_kind(step)] = outcome.record.durations["total_s"]
        self._note_times(lane, step, outcome.record.timeline)
        self.progress.built[step.fingerprint] = outcome.record
        # One that was there may be this run's own, of an attempt whose process died of nothing else than its last word.
        if outcome.was_there and str(outcome.record.timeline.get("lane")).rpartition("-")[0] != lane.name.rpartition("-")[0]:
            self.progress.taken.add(step.fingerprint)
        if self.tracker:
            self.tracker.finish.remote(outcome.record)
        self.listener("done", step, self.progress)
        self.records[step.fingerprint] = outcome.record
        for user in {user.fingerprint: user for user in (step, *self.queue.users[step.fingerprint])}.values():
            self._rebuild_if_stale(user)

    def _note_times(self, lane: "_Lane", step: Step, times: Mapping[str, Any]) -> None:
        """How long the start of a lane takes is known from one that was opened with its first step."""
        if not {"began", "ended"} <= times.keys():
            return
        start_s, _ = self._lane_times.get(_kind(step), (0.0, 0.0))
        if lane.num_built == 1 and times["given"] - times["opened"] < AHEAD_EVERY_S:
            start_s = times["began"] - times["opened"]
        self._lane_times[_kind(step)] = start_s, times["ended"] - times["began"]

    def _got_on(self, lane: "_Lane", step: Step, outcome: Outcome) -> bool:
        """Whether a step that was cut off had got on: it has a newer commit.

        Or, fallen with others of its lane, one of these has, or the lane has built another since it was given this one.
        """
        if not outcome.was_neighbour:
            return self._has_progress([step])
        if lane.got_on is None:
            lane.got_on = self._has_progress(list(lane.lane.steps.values()))
        return lane.got_on or lane.num_built > lane.built_before[step.fingerprint]

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
            self.progress.taken.discard(fingerprint)
        self.queue.rebuild(fingerprints)
        return True

    def _has_progress(self, unfinished: Sequence[Step]) -> bool:
        """Whether one of these would go on from a later place than after the last time it was cut off."""
        before, now = self._last_commits, {}
        for step in unfinished:
            # What is wrong with a store or a checkpoint, the step itself says.
            with contextlib.suppress(Exception):
                now[step.fingerprint] = self._answer_of_store(REGISTRY[step.stage].last_commit, self.store.folder(step.id))
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
            alone = event == "retry" and outcome.was_neighbour
            whole_gpus = self._is_to_have_whole_gpus(step, outcome)
            self.queue.again(step.fingerprint, alone=alone, with_all=self._is_to_have_all(outcome), whole_gpus=whole_gpus)
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
            # Workers that end each time before they take it on would be started for ever.
            self._losses_in_a_row[fingerprint] += not outcome.had_begun
            if self._losses_in_a_row[fingerprint] < MAX_LOSSES:
                return "retry", outcome
            return "failed", replace(outcome, error=f"lost {MAX_LOSSES} times without progress: {outcome.error}")
        if self._is_to_have_all(outcome) and not self.queue.has_all(step):
            return "retry", replace(outcome, error=f"{outcome.error}: it is tried again with nothing of this run beside it")
        # A process that dies twice at one place dies of what it does there; one that had got on may have been killed.
        if outcome.kind in (Kind.LOSS, Kind.AWAY) or (outcome.kind in (Kind.DEATH, Kind.MEMORY) and has_progress):
            self.progress.losses[fingerprint] += 1
            self._losses_in_a_row[fingerprint] += 1
            if self._losses_in_a_row[fingerprint] < MAX_LOSSES:
                return "lost", outcome
            return "failed", replace(outcome, error=f"lost {MAX_LOSSES} times without progress: {outcome.error}")
        if outcome.was_neighbour:
            return "retry", outcome
        self.attempts[fingerprint] += 1
        if self.attempts[fingerprint] <= self.max_failures:
            return "retry", outcome
        if self._is_to_have_whole_gpus(step, outcome):
            return "retry", replace(outcome, error=f"{outcome.error}: it is tried again with a GPU to itself")
        if outcome.kind is Kind.GPU_MEMORY:
            more = "a GPU that has more memory, or fewer tokens at once (tokens_per_microbatch)"
            outcome = replace(outcome, error=f"{outcome.error}; it needs {more}")
        if outcome.kind is Kind.MEMORY:
            beside = "with nothing of this run beside it" if self.queue.has_all(step) else "beside others"
            outcome = replace(outcome, error=f"{outcome.error}, {beside}; free memory on it, or use one that has more")
        return "failed", outcome

    def _is_to_have_whole_gpus(self, step: Step, outcome: Outcome) -> bool:
        """Whether a step that has failed as often as it may would do well with nothing beside it on its GPUs."""
        is_crowded = outcome.kind is Kind.GPU_MEMORY and 0 < step.resources.gpus_per_worker < 1
        has_failed = self.attempts[step.fingerprint] > self.max_failures
        return is_crowded and has_failed and step.resources.num_workers <= self.queue.capacity.gpus

    def _is_to_have_all(self, outcome: Outcome) -> bool:
        """Whether a step may do well with the machine to itself. Of a cluster's machines it would wait for all."""
        is_own = not (outcome.was_neighbour or outcome.was_stopped or outcome.is_final)
        return outcome.kind is Kind.MEMORY and is_own and self.look is None

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
        self.attend()
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

    def _lacks_memory(self) -> bool:
        """Whether memory has been short since Ray ended a process for it, so that it would end what starts now."""
        if self._low_since is None:
            return False
        try:
            used, total = memory_in_use()
            limit = total * float(os.environ.get(MEMORY_LIMIT, USUAL_LIMIT))
        except (OSError, ValueError, KeyError):
            used, limit, total = 0.0, math.inf, math.inf
        if used + START_GB < limit:
            self._low_since = None
            return False
        step = next(iter(self.queue.ready), None)
        has_lasted = time.monotonic() - self._low_since > WAIT_S
        if has_lasted and step is not None and step.fingerprint not in self.progress.waits:
            self.progress.waits[step.fingerprint] = (
                f"{used:.1f} of this machine's {total:.1f} GB of memory are in use, and above {limit:.1f} GB Ray ends what "
                "runs; it goes on when there is memory"
            )
            self.listener("waits", step, self.progress)
        return True

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


def _handed(lane: _Lane) -> dict[str, Any]:
    """What a trial is told of the lane that it stands for."""
    return {"lane": _Sealed((lane.name, lane.host))}


def _kind(step: Step) -> tuple[str, type]:
    """Steps of one kind take about as long: an untrained starting point is written, the others are finetuned."""
    return step.stage, type(step.config)


class _Sealed:
    """A value that Tune passes on as it is, instead of looking for search spaces in it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return str(self.value)

    def __deepcopy__(self, memo: Any) -> "_Sealed":
        return self


def _trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Wait for a lane's end. Its host lies outside the trial's placement group, which has no CPU for what it starts.

    If the host dies, the trial says in `lost` what of.
    """
    import ray

    name, host = config["lane"].value
    machines = machines_up()
    try:
        ray.get(host.serve.remote(name))
    except ray.exceptions.RayError as error:
        return {"lost": judged(host_lost(error), machines)}
    # Of a trial without any result Tune prints a line.
    return {"lost": False}


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
