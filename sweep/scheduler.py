"""One Ray Tune experiment over the step graph.

Every missing step is a trial. The searcher withholds a trial until its inputs are built, and until the
resources that it needs are free: a trial that Tune starts never waits for another's, so it cannot deadlock.
Trials are drivers and take no resources of their own; Ray Train, Ray Data and tasks inside them do.
"""

import contextlib
import math
import os
import shutil
import socket
import tempfile
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.records import Record, Store
from sweep.stages import REGISTRY
from sweep.step import Step, dependents
from sweep.trial import Order, Outcome, carry_out, git_state, local_resources, one_line

# Any positive amount: Tune refuses a trial of nothing. On the head node a driver is safe from spot loss.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}
SHORT_STEP_S, PROCESS_START_S = 1.0, 5.0
"""A step that takes less than the first is over before a process is up; within the second, one surely is."""
MAX_OVERTAKES = 4
"""How often smaller steps may start before a ready one that does not fit yet, until it is waited for."""


@dataclass(frozen=True)
class Capacity:
    """What may be used at once. `nodes` are the resources of each machine, empty if they may come and go."""

    cpus: float
    gpus: float
    nodes: tuple[Mapping[str, float], ...] = ()


@dataclass
class Progress:
    """What has become of the steps of a run; the display reads it."""

    steps: Sequence[Step]
    cached: set[str]
    running: dict[str, float] = field(default_factory=dict)  # fingerprint → monotonic start
    built: dict[str, Record] = field(default_factory=dict)
    failed: dict[str, Outcome] = field(default_factory=dict)
    retried: dict[str, Outcome] = field(default_factory=dict)  # how the last attempt ended of a step that is tried again
    blocked: dict[str, str] = field(default_factory=dict)  # fingerprint → name of the step that failed
    throughput: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def num_done(self) -> int:
        return len(self.cached) + len(self.built)


Listener = Callable[[str, Step, Progress], None]
"""Called with "start", "done", "retry", "failed" or "blocked"."""


def check_resources(steps: Iterable[Step], capacity: Capacity) -> None:
    """Raise UserError for the first step that could never run, however long it waited."""
    for step in steps:
        need = step.resources
        for name, wanted, there in (
            ("GPU", need.total_gpus, capacity.gpus),
            ("CPU", need.total_cpus, capacity.cpus),
        ):
            if wanted > there:
                raise UserError(_too_little(step, name, wanted, there))
        if capacity.nodes and not _fits_on(need, capacity.nodes):
            raise UserError(
                f"{step.name} needs {need.num_workers} workers of {need.as_bundle()} each, and no machine "
                "of the cluster has room for one more of them; ask for smaller workers or larger machines"
            )


def _too_little(step: Step, name: str, wanted: float, there: float) -> str:
    have = f"this run may use {there:g}" if there else "this machine has none"
    cure = (
        "choose the CPU if the experiment has a parameter for it (such as -p device=cpu), or join a cluster "
        "with --address; if the cluster adds machines on demand, say how far it may grow with --max-gpus"
        if name == "GPU"
        else "lower the stage's resources in the experiment, raise --max-cpus, or join a cluster"
    )
    return f"{step.name} needs {wanted:g} {name}; {have}: {cure}"


def _fits_on(need: Resources, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether all workers find room on empty machines; workers are alike, so counting is exact."""
    room = 0
    for node in nodes:
        room += min(int(node.get(name, 0) / amount + 1e-9) for name, amount in need.as_bundle().items())
    return room >= need.num_workers


def in_common(step: Step) -> Any:
    """What the members of a group agree in with `step`, hashable; None if it is to be run alone."""
    stage = REGISTRY.get(step.stage)
    if stage is None or stage.run_group is None or step.resources.max_group == 1:
        return None
    common = stage.in_common(step.config, {name: source.fingerprint for name, source in step.inputs.items()})
    return None if common is None else (step.stage, step.resources, tuple(sorted(step.options.items())), common)


class StepQueue:
    """Which step comes next. Pure bookkeeping: no Ray."""

    def __init__(self, steps: Sequence[Step], done: Iterable[str], capacity: Capacity) -> None:
        self.capacity = capacity
        self.users = dependents(steps)
        self.done = set(done)
        self.waiting = {step.fingerprint: step for step in steps if step.fingerprint not in self.done}
        self.running: dict[str, Step] = {}
        self._need = {step.fingerprint: (step.resources.total_cpus, step.resources.total_gpus) for step in steps}
        self._rank = self._ranks(steps)
        self._unbuilt = {fingerprint: self._unbuilt_inputs(step) for fingerprint, step in self.waiting.items()}
        self._ready = sorted((step for step in self.waiting.values() if not self._unbuilt[step.fingerprint]), key=self._rank_of)
        self._ready_needs = Counter(self._need[step.fingerprint] for step in self._ready)
        self._overtaken: dict[str, int] = {}

    def _ranks(self, steps: Sequence[Step]) -> dict[str, tuple[int, int]]:
        """(minus the steps on the longest path that begins here, place in the grid): smaller comes first.

        What nothing is built from is not counted, so that a model is evaluated before the next is trained.
        """
        length: dict[str, int] = {}
        for step in reversed(steps):
            users = [user for user in self.users[step.fingerprint] if self.users[user.fingerprint]]
            length[step.fingerprint] = 1 + max((length[user.fingerprint] for user in users), default=0)
        return {step.fingerprint: (-length[step.fingerprint], i) for i, step in enumerate(steps)}

    def _rank_of(self, step: Step) -> tuple[int, int]:
        return self._rank[step.fingerprint]

    def _unbuilt_inputs(self, step: Step) -> int:
        return len({source.fingerprint for source in step.inputs.values()} - self.done)

    def next(self) -> Step | None:
        """The most urgent ready step that fits into what is free, moved to running; None if there is none."""
        taken = [self._need[fingerprint] for fingerprint in self.running]
        free_cpus = self.capacity.cpus - sum(cpus for cpus, _ in taken) + 1e-9
        free_gpus = self.capacity.gpus - sum(gpus for _, gpus in taken) + 1e-9
        # Few kinds of need and many steps: most often nothing fits, and no step has to be looked at to know it.
        if not any(cpus <= free_cpus and gpus <= free_gpus for cpus, gpus in self._ready_needs):
            return None
        for place, step in enumerate(self._ready):
            cpus, gpus = self._need[step.fingerprint]
            if cpus <= free_cpus and gpus <= free_gpus:
                for other in self._ready[:place]:
                    self._overtaken[other.fingerprint] = self._overtaken.get(other.fingerprint, 0) + 1
                self._start(place)
                return step
            if self._overtaken.get(step.fingerprint, 0) >= MAX_OVERTAKES:
                return None
        return None

    def next_group(self) -> list[Step]:
        """As `next`, with ready steps that the same workers can take on; empty if there is none.

        A group is no larger than leaves work for all the groups that fit side by side. Steps of the first one's size come
        first, so that a group's members end together.
        """
        step = self.next()
        if step is None:
            return []
        common = in_common(step)
        if common is None:
            return [step]
        alike = [other for other in self._ready if in_common(other) == common]
        cpus, gpus = self._need[step.fingerprint]
        most = min(there / need for there, need in ((self.capacity.cpus, cpus), (self.capacity.gpus, gpus)) if need)
        others = sum(
            any(self._need[one.fingerprint]) and in_common(one) == common for one in self.running.values() if one is not step
        )
        # All of them at once, if there is no end of room.
        fair = math.ceil((1 + len(alike)) / max(1, int(most + 1e-9) - others)) if math.isfinite(most) else 1
        size = step.coordinates.get("size")
        alike.sort(key=lambda other: other.coordinates.get("size") != size)
        members = alike[: min(step.resources.max_group, fair) - 1]
        for member in members:
            self._start(self._ready.index(member))
            # The workers are the first member's; the others bring none.
            self._need[member.fingerprint] = (0.0, 0.0)
        return [step, *members]

    def _start(self, place: int) -> None:
        step = self._ready.pop(place)
        need = self._need[step.fingerprint]
        self._ready_needs[need] -= 1
        if not self._ready_needs[need]:
            del self._ready_needs[need]
        self.running[step.fingerprint] = self.waiting.pop(step.fingerprint)

    def _make_ready(self, step: Step) -> None:
        self._ready_needs[self._need[step.fingerprint]] += 1
        insort(self._ready, step, key=self._rank_of)

    def succeeded(self, fingerprint: str) -> None:
        del self.running[fingerprint]
        self.done.add(fingerprint)
        for user in {user.fingerprint: user for user in self.users[fingerprint]}.values():
            if user.fingerprint in self.waiting:
                self._unbuilt[user.fingerprint] -= 1
                if not self._unbuilt[user.fingerprint]:
                    self._make_ready(user)

    def again(self, fingerprint: str, *, alone: bool = False) -> None:
        """Put a running step back, from now on to be run `alone` if that is asked."""
        step = self.running.pop(fingerprint)
        if alone:
            step = replace(step, resources=replace(step.resources, max_group=1))
        self._need[fingerprint] = (step.resources.total_cpus, step.resources.total_gpus)
        self.waiting[fingerprint] = step
        self._make_ready(step)

    def failed(self, fingerprint: str) -> list[Step]:
        """Give up a step; returns the steps that can no longer be built."""
        step = self.running.pop(fingerprint)
        blocked: list[Step] = []
        todo = [step]
        while todo:
            for user in self.users[todo.pop().fingerprint]:
                if self.waiting.pop(user.fingerprint, None):
                    blocked.append(user)
                    todo.append(user)
        return blocked

    @property
    def is_exhausted(self) -> bool:
        return not self.waiting


@dataclass(frozen=True)
class RayOptions:
    """Where to run: `address` None starts a Ray of our own on this machine."""

    address: str | None = None
    max_cpus: float | None = None
    max_gpus: float | None = None
    max_failures: int = 0
    debug: bool = False


def quiet_ray(*, debug: bool) -> None:
    """Settings that must stand before Ray is imported; the environment is inherited by local workers."""
    defaults = {
        # What a worker raised, and how it died, is in the failure that the run shows.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "" if debug else "Traceback|worker died",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_WARN_INSUFFICIENT_RESOURCE_THRESHOLD_S": "1000000",
        # With a searcher, Tune starts the next trial's process only when the last one's is up: seconds for each.
        "TUNE_MAX_PENDING_TRIALS_PG": "16",
        # Ctrl-C must end the run at once, not after Tune's farewell.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        # The store is the state of a run; Tune's own snapshots would only cost time.
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def ray_session(options: RayOptions, steps: Sequence[Step]) -> Iterator[Capacity]:
    """Start or join Ray, and leave it again; gives what `steps` may use of it.

    Raises UserError if there is no cluster to join, or a step could never run: without an address, before
    Ray is even started.
    """
    capacity = local_capacity(options)
    if options.address is None:
        check_resources(steps, capacity)
    quiet_ray(debug=options.debug)
    import logging

    import ray

    common: dict[str, Any] = {
        "log_to_driver": options.debug,
        "logging_level": logging.INFO if options.debug else logging.ERROR,
        "configure_logging": True,
    }
    if options.address is None:
        # No machine of a Ray of our own is taken away with notice; the watcher costs a process a finetuning.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        if not capacity.gpus:
            # DeepSpeed looks for an accelerator when it is first imported, in whichever worker that is.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Drivers and controllers take no CPU, so that a small machine has more processes than Ray expects and
        # warns of.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(16, int(capacity.cpus))))
        # "local", or a cluster named in the environment or left behind by a killed run would be joined.
        # Ray's dashboard is for people; only *stopped* trials need it (to give their placement groups
        # back), and a step is never stopped here.
        ray.init(
            address="local",
            num_cpus=int(capacity.cpus),
            num_gpus=int(capacity.gpus),
            include_dashboard=False,
            **common,
        )
    else:
        import pipelines
        import sweep

        _check_address(options.address)
        environment = {"py_modules": [pipelines, sweep], "env_vars": {"RAY_TRAIN_V2_ENABLED": "1"}}
        try:
            ray.init(address=options.address, runtime_env=environment, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--address {options.address}: {one_line(error)}; start a cluster (ray up cluster.yaml) and "
                "run this on its head node, or leave --address out to use this machine"
            ) from error
    try:
        _quiet_tune(options)
        if options.address is not None:
            capacity = cluster_capacity(options)
            check_resources(steps, capacity)
        yield capacity
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself would try for six minutes to reach a host that does not answer."""
    if "://" in address:
        raise UserError(
            f"--address {address}: a run belongs on the cluster; start it on the head node (ray attach) with --address auto"
        )
    host, separator, port = address.rpartition(":")
    if separator:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"--address {address}: no Ray answers there ({error}); start a cluster (ray up cluster.yaml) "
                "and run this on its head node, or leave --address out to use this machine"
            ) from error


def _quiet_tune(options: RayOptions) -> None:
    import logging

    for name in ("ray.tune", "ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.INFO if options.debug else logging.CRITICAL)


def local_capacity(options: RayOptions) -> Capacity:
    """What a Ray of our own on this machine is given."""
    there = local_resources()
    cpus = there["CPU"] if options.max_cpus is None else max(1, int(options.max_cpus))
    gpus = there["GPU"] if options.max_gpus is None else min(int(options.max_gpus), there["GPU"])
    return Capacity(cpus, gpus, ({"CPU": cpus, "GPU": gpus},))


def remove_placement_groups() -> None:
    """Give back what this run's stages hold; only to be called while none of them runs."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    # An id ends with the job's: on a shared cluster, other runs' groups are not ours to remove.
    job = ray.get_runtime_context().get_job_id()
    for identifier, group in placement_group_table().items():
        is_trials = any(TRIAL_RESOURCES.keys() & bundle.keys() for bundle in group["bundles"].values())
        if identifier.endswith(job) and group["state"] != "REMOVED" and not is_trials:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identifier))))


def cluster_capacity(options: RayOptions) -> Capacity:
    """What the Ray that was joined has, or may grow to if the options say so."""
    import ray

    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    there = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    grows = options.address is not None and ((options.max_cpus or 0) > there["CPU"] or (options.max_gpus or 0) > there["GPU"])
    cpus = there["CPU"] if options.max_cpus is None else options.max_cpus
    gpus = there["GPU"] if options.max_gpus is None else options.max_gpus
    if grows:
        # Machines that are not there yet bring CPUs as well; Ray's autoscaler knows how many.
        return Capacity(cpus if options.max_cpus is not None else float("inf"), gpus)
    return Capacity(min(cpus, there["CPU"]), min(gpus, there["GPU"]), nodes)


def run_steps(
    steps: Sequence[Step],
    cached: Iterable[str],
    store: Store,
    capacity: Capacity,
    *,
    tracker: Any = None,
    listener: Listener = lambda event, step, progress: None,
    tick: Callable[[Progress], None] = lambda progress: None,
    max_failures: int = 0,
) -> Progress:
    """Build every step that is not cached, inside a `ray_session`; failures are in the returned progress.

    At least one step must be missing. `tracker` is an actor handle of `sweep.tracking.Tracker`, or None.
    """
    from ray import tune

    cached = set(cached)
    num_missing = sum(step.fingerprint not in cached for step in steps)
    run = _Run(steps, cached, store, capacity, tracker, listener, tick, max_failures)
    folder = tempfile.mkdtemp(prefix="blindsweep-tune-")
    try:
        tune.Tuner(
            tune.with_resources(_trial, TRIAL_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(run),
                # Each once more than it may fail, for those that a neighbour takes along.
                num_samples=num_missing * (max_failures + 2),
                reuse_actors=True,
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


class _Run:
    """The state that the searcher and the callback of one Tune experiment share, in the driver."""

    def __init__(
        self,
        steps: Sequence[Step],
        cached: set[str],
        store: Store,
        capacity: Capacity,
        tracker: Any,
        listener: Listener,
        tick: Callable[[Progress], None],
        max_failures: int,
    ) -> None:
        self.queue = StepQueue(steps, cached, capacity)
        self.progress = Progress(steps, cached)
        self.store, self.tracker, self.listener, self.tick = store, tracker, listener, tick
        self.max_failures = max_failures
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
            remove_placement_groups()
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
                from sweep.tracking import Card

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
        self.progress.blocked |= {one.fingerprint: step.name for one in blocked}
        self.listener("failed", step, self.progress)
        for one in blocked:
            self.listener("blocked", one, self.progress)

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


_host: Any = None


def _trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """One step, or a group of them, run in an actor outside the trial's placement group.

    Inside it, Ray would place the stage's own tasks into the trial's group, which has no CPU. The actor stays
    for the following trials of this process, so that torch is imported once.
    """
    global _host
    import ray

    orders: list[Order] = config["orders"].value
    try:
        outcomes: list[Outcome] = ray.get(_stage_host().carry_out.remote(orders))
    except ray.exceptions.RayActorError as error:
        _host = None
        outcomes = [_lost(orders, one_line(error))] * len(orders)
    if any(outcome.record is None for outcome in outcomes) and _host is not None:
        # The actors and tasks that a failed stage left behind go with the process that owns them.
        ray.kill(_host)
        _host = None
    return {"outcomes": outcomes}


def _lost(group: Sequence[Any], error: str) -> Outcome:
    """How each of `group` ended when the process that drove them was lost."""
    return Outcome(None, error, was_neighbour=len(group) > 1)


def _stage_host() -> Any:
    global _host
    if _host is None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        _host = ray.remote(_StageHost).options(num_cpus=0, scheduling_strategy=here).remote()
    return _host


class _StageHost:
    def carry_out(self, orders: list[Order]) -> list[Outcome]:
        return carry_out(orders)


def _searcher(run: _Run) -> Any:
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


def _callback(run: _Run) -> Any:
    from ray.tune import Callback

    class StepCallback(Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            run.poll()

        def __reduce__(self) -> Any:
            return (Callback, ())

    return StepCallback()
