"""The order in which the steps of a graph are built, and the refusal of steps that never could be. Pure: no Ray.

Steps run in lanes: workers that start once and take on ready steps of one kind (`in_common`). What there is of CPUs and GPUs is
shared out to lanes, the most urgent ready step first: the one with the longest path of steps behind it. A lane takes on further
steps of its kind, unless a ready step waits for room that has a longer path, or is overdue. Where paths are as long, the lane
that is up goes on, since a start costs. So none that much depends on waits for a lane's end, and none waits for ever.
Where seeds are to be whole one after another (`seeds_at_once`), what an earlier one needs goes before what a later one does,
whatever their paths; but later ones have what room it leaves.
A ready step for which there is room starts a lane of its own, unless a lane of its kind has nothing to do.

A lane is opened ahead for a step that is not ready yet, where its workers need less than the step does (`Stage.starts_with`),
what it lacks is about to be built, and no ready step that is as urgent has a use for the room (`open_ahead`). A lane with
nothing to do waits as long as the same holds (`may_wait`); else it ends.
"""

import functools
import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.graph.pieces import seeds_of
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step, dependents

MAX_OVERTAKES = 4
"""How often smaller steps may start before a ready one that does not fit yet, until it is waited for."""
FORESIGHT = 2
"""How many steps behind what is under way a lane may be opened ahead for: a pool's training sets, and the cells over them."""


@dataclass(frozen=True)
class Capacity:
    """The CPUs and GPUs that may be used at once. `nodes` are the resources of each machine, empty if they may come and go.

    `there` is what `place` has of each, where the run's options say another number; only a refusal's words go by it.
    """

    cpus: float
    gpus: float
    nodes: tuple[Mapping[str, float], ...] = ()
    place: str = "this machine"
    there: Mapping[str, float] = field(default_factory=dict)


def check_resources(steps: Iterable[Step], capacity: Capacity) -> None:
    """Raise UserError for the first step that could never run, however long it waited."""
    for step in steps:
        need = step.resources
        for name, wanted, may_use in (
            ("GPU", need.total_gpus, capacity.gpus),
            ("CPU", need.total_cpus, capacity.cpus),
        ):
            if wanted > may_use:
                raise UserError(_too_little(step, name, wanted, may_use, capacity))
        if capacity.nodes and not _fits_on(need, capacity.nodes):
            raise UserError(
                f"{step.name} needs {need.num_workers} workers of {need.as_bundle()} each, and no machine "
                "of the cluster has room for one more of them; ask for smaller workers or larger machines"
            )


def _too_little(step: Step, name: str, wanted: float, may_use: float, capacity: Capacity) -> str:
    there, option = capacity.there.get(name, may_use), f"--max-{name.lower()}s"
    have = f"{capacity.place} has {f'{there:g}' if there else 'none'}"
    if there != may_use:
        have = f"by {option} this run may use {f'{may_use:g}' if may_use else 'none'}, and {have}"
    if name == "CPU":
        cure = f"lower the stage's resources in the experiment, raise {option}, or join a cluster"
    elif wanted <= there:
        cure = f"raise {option}, or choose the CPU if the experiment has a parameter for it (such as -p device=cpu)"
    else:
        cure = (
            "choose the CPU if the experiment has a parameter for it (such as -p device=cpu), or join a cluster "
            f"with --address; if the cluster adds machines on demand, say how far it may grow with {option}"
        )
    return f"{step.name} needs {wanted:g} {name}; {have}: {cure}"


def _fits_on(need: Resources, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether all workers find room on empty machines; workers are alike, so counting is exact."""
    room = 0
    for node in nodes:
        room += min(int(node.get(name, 0) / amount + 1e-9) for name, amount in need.as_bundle().items())
    return room >= need.num_workers


AHEAD = 2
"""Steps that a lane has which does one after another: one is ready when the other ends."""


def in_common(step: Step) -> Any:
    """The settings that all steps of a lane share with `step`, hashable; None if it is to be run alone.

    Workers that do one after another do those of all stages that open the same ones: starting points, then task models.
    """
    stage = REGISTRY[step.stage]
    if stage.open is None or step.resources.max_group == 1:
        return None
    common = stage.in_common(step.config, {name: source.fingerprint for name, source in step.inputs.items()})
    if common is None:
        return None
    # Of those that are trained at once, the urgent ones would be slowed by what can wait.
    workers = step.stage if stage.is_together(step.config) else stage.open
    return workers, step.resources, tuple(sorted(step.options.items())), common


def starts_with(step: Step) -> Mapping[str, Step] | None:
    """What has to be built before workers can be started ahead of `step`, by its name there; None if they cannot be."""
    stage = REGISTRY[step.stage]
    if stage.open is None or stage.starts_with is None or step.resources.in_process:
        return None
    return stage.starts_with(step)


def num_at_once(step: Step) -> int:
    """How many steps like this one a lane has at once: as many as may be together where they are trained so."""
    resources = step.resources
    if resources.in_process or in_common(step) is None:
        return 1
    is_together = resources.num_workers == 1 and REGISTRY[step.stage].is_together(step.config)
    return resources.max_group if is_together else min(AHEAD, resources.max_group)


@dataclass(eq=False)
class Lane:
    """Workers that take on steps which have `kind` in common, None for one that has a single step, and what they hold.

    `steps` are those under way, by fingerprint. `expected` is about how many it takes on in all. One that `is_ending` takes on
    no more. `awaited` is the step for which it was opened ahead, until it has had one.
    """

    kind: Any
    need: tuple[float, float]
    steps: dict[str, Step] = field(default_factory=dict)
    expected: int = 1
    is_ending: bool = False
    awaited: Step | None = None

    @property
    def stage(self) -> str:
        """That of the steps under way, "" without any."""
        return next((step.stage for step in self.steps.values()), "")

    @property
    def takes_one(self) -> bool:
        """Whether it is of one step alone, whose workers could be started ahead."""
        return isinstance(self.kind, str)


def delay_of(lane: Lane, until_up_s: float, overdue_s: float, start_s: float) -> float:
    """How much longer than its steps' work `lane` takes: until it is up, or as long as what it is at is overdue by now.

    Infinite where that is longer than another lane's start: nobody knows when it ends.
    """
    if not lane.steps:
        return max(until_up_s, 0.0)
    return max(until_up_s, overdue_s, 0.0) if overdue_s < start_s else math.inf


class Rank(NamedTuple):
    """How urgent a step is: the smaller, the more. `path` is minus the steps on the longest path that begins there."""

    turn: int
    path: int
    place: int


def turns(steps: Sequence[Step], seeds_at_once: int) -> dict[str, int]:
    """By fingerprint, whose turn each of `steps` is: that of the first `seeds_at_once` seeds, of as many next ones, and so on.

    What several seeds need has the earliest one's turn; a pool's judgement, its pool's; what none needs comes last. `steps`
    come after their inputs.
    """
    seeds = dict.fromkeys(step.coordinates["seed"] for step in steps if "seed" in step.coordinates)
    of_seed = {seed: place // seeds_at_once for place, seed in enumerate(seeds)}
    return {
        fingerprint: min((of_seed[seed] for seed in of_step), default=len(of_seed))
        for fingerprint, of_step in seeds_of(steps).items()
    }


Near = Callable[[Step], bool]
"""Whether a step that is not built will be before long."""
FirstNear = Callable[[Any, Near], Step | None]
Fits = Callable[[tuple[float, float]], bool]


class StepQueue:
    """The steps of a run by their state: waiting for inputs, ready, running or done; gives out what comes next.

    With `seeds_at_once`, so many seeds are built before the next ones (`turns`); else none waits for another.
    """

    def __init__(
        self, steps: Sequence[Step], done: Iterable[str], capacity: Capacity, *, seeds_at_once: int | None = None
    ) -> None:
        self.capacity = capacity
        self._steps = {step.fingerprint: step for step in steps}
        self.users = dependents(steps)
        self.done = set(done)
        self.waiting = {step.fingerprint: step for step in steps if step.fingerprint not in self.done}
        self.running: dict[str, Step] = {}
        self.lanes: list[Lane] = []
        self._lane_of: dict[str, Lane] = {}
        self._need = {step.fingerprint: (step.resources.total_cpus, step.resources.total_gpus) for step in steps}
        self._ahead_needs = {self._need[step.fingerprint] for step in steps if starts_with(step) is not None}
        self._rank = self._ranks(steps, turns(steps, seeds_at_once) if seeds_at_once else {})
        self._unbuilt = {fingerprint: self._num_unbuilt(step) for fingerprint, step in self.waiting.items()}
        self._overtaken: dict[str, int] = {}
        self._kinds: dict[str, Any] = {}
        self._same_kind: dict[Any, Any] = {}
        # The same steps as a whole and by kind, stage and need: lanes look for theirs again and again.
        self._ready: list[Step] = []
        self._ready_alike: dict[tuple[Any, str, tuple[float, float]], list[Step]] = {}
        for step in self.waiting.values():
            if not self._unbuilt[step.fingerprint]:
                self._make_ready(step)

    def _ranks(self, steps: Sequence[Step], turn: Mapping[str, int]) -> dict[str, Rank]:
        """By fingerprint; `place` is that in the grid.

        What nothing is built from is not counted in a path, so that a model is evaluated before the next is trained.
        """
        length: dict[str, int] = {}
        for step in reversed(steps):
            users = [user for user in self.users[step.fingerprint] if self.users[user.fingerprint]]
            length[step.fingerprint] = 1 + max((length[user.fingerprint] for user in users), default=0)
        return {
            step.fingerprint: Rank(turn.get(step.fingerprint, 0), -length[step.fingerprint], place)
            for place, step in enumerate(steps)
        }

    def _num_unbuilt(self, step: Step) -> int:
        return len({source.fingerprint for source in step.inputs.values()} - self.done)

    @property
    def ready(self) -> tuple[Step, ...]:
        """The steps whose inputs are built and that no lane has, the most urgent first."""
        return tuple(self._ready)

    def _rank_of(self, step: Step) -> Rank:
        return self._rank[step.fingerprint]

    def open(self, is_served: Callable[[Step], bool] = lambda step: False) -> Lane | None:
        """A lane for the most urgent ready step that fits into what is free, with others that it takes on; None if none fits.

        One that `is_served` gets to a lane that is up sooner than to another. It has no more of them than leaves work for all
        the lanes that fit side by side. In a lane that is full, steps of the first one's size come first, so that those that
        are trained at once end together. One that has only its part of what is ready takes it in order, which mixes sizes, so
        that all have about as much to do.
        """
        first = self._next(is_served)
        if first is None:
            return None
        lane = Lane(self._kind(first), self._need[first.fingerprint])
        alike = [step for step in self._ready_of(lane) if step is not first and step.stage == first.stage]
        # Before it is among the lanes that share them.
        most = min(num_at_once(first), self._fair_share(lane, 1 + len(alike)))
        if in_common(first) is not None:
            num_to_come = sum(self._kind(step) == lane.kind for step in self._not_ready())
            lane.expected = self._fair_share(lane, 1 + len(alike) + num_to_come)
        self.lanes.append(lane)
        self._start(first, lane)
        if most == num_at_once(first):
            size = first.coordinates.get("size")
            alike.sort(key=lambda step: (self._rank_of(step).turn, step.coordinates.get("size") != size))
        for step in alike[: most - 1]:
            self._start(step, lane)
        return lane

    def join(
        self,
        lane: Lane,
        is_overdue: Callable[[Step], bool] = lambda step: False,
        is_served: Callable[[Step], bool] = lambda step: False,
    ) -> list[Step]:
        """Further ready steps that `lane` takes on now, moved to running. None while one that `is_overdue` waits for room."""
        joined: list[Step] = []
        while not lane.is_ending and (step := self._next_of(lane, is_overdue, is_served)):
            self._start(step, lane)
            joined.append(step)
        return joined

    def wait_s(self, step: Step, each_s: float, delay_s: Callable[[Lane], float]) -> float:
        """Seconds until the lanes that do steps like `step` one after another have done those that are ready or under way.

        Each step takes them `each_s`, beside each lane's delay (`delay_of`). Infinite without a lane that is counted on.
        """
        kind = self._kind(step)
        if kind is None or REGISTRY[step.stage].is_together(step.config):
            return math.inf
        lanes = [lane for lane in self.lanes if lane.kind == kind and lane.stage in ("", step.stage) and not lane.is_ending]
        delays = {lane: delay for lane in lanes if math.isfinite(delay := delay_s(lane))}
        if not delays:
            return math.inf
        num_steps = len(self._ready_of(Lane(kind, (0, 0)))) + sum(len(lane.steps) for lane in delays)
        return (num_steps * each_s + sum(delays.values())) / len(delays)

    def _next_of(self, lane: Lane, is_overdue: Callable[[Step], bool], is_served: Callable[[Step], bool]) -> Step | None:
        ready = self._ready_of(lane)
        if not ready or len(lane.steps) >= num_at_once(ready[0]):
            return None
        fits = self._fits()
        # It is to start a lane of its own.
        if lane.steps and fits(lane.need) and not is_served(ready[0]):
            return None
        next_one = self._rank_of(ready[0])
        for step in self._waiting_for_room(lane, fits):
            turn, path, _ = self._rank_of(step)
            if turn <= next_one.turn and ((path, turn) < (next_one.path, next_one.turn) or is_overdue(step)):
                return None
        # One that has fewer goes first.
        return None if any(len(other.steps) < len(lane.steps) for other in self._others(lane)) else ready[0]

    def _waiting_for_room(self, lane: Lane, fits: Fits) -> Iterator[Step]:
        """The ready steps that wait for room of which `lane` holds some: no lane that is up takes them on."""
        # Most of what is ready is of a kind that has lanes.
        waiting = [
            steps
            for (kind, stage, need), steps in self._ready_alike.items()
            if not fits(need) and any(map(min, need, lane.need)) and not self._has_lane(kind, stage)
        ]
        return heapq.merge(*waiting, key=self._rank_of)

    def _has_lane(self, kind: Any, stage: str) -> bool:
        """Whether a lane is up that takes on such steps."""
        return kind is not None and any(
            lane.kind is kind and not lane.is_ending and lane.stage in ("", stage) for lane in self.lanes
        )

    def open_ahead(self, is_near: Near, may_start: Callable[[Step], bool] = lambda step: True) -> Lane | None:
        """A lane without a step, for the most urgent one that is not ready, can be started ahead and lacks only what `is_near`.

        None if there is no such step, or no room, or a ready step has a use for it that is as urgent; or any use where the lane
        would hold no GPU, since a CPU that waits works for nobody.
        """
        fits = self._fits()
        # Most often there is no room for any.
        if not any(map(fits, self._ahead_needs)):
            return None
        num_lanes = Counter(lane.kind for lane in self.lanes if not lane.is_ending)
        wanted: dict[Any, bool] = {}
        for step in self._foreseen(is_near):
            kind = self._kind(step)
            num_lanes[kind] -= 1
            needed = starts_with(step)
            if num_lanes[kind] >= 0 or needed is None or any(source.fingerprint not in self.done for source in needed.values()):
                continue
            lane = Lane(kind, self._need[step.fingerprint], awaited=step)
            # Many steps are alike in both, and so is what is said of them.
            of = lane.need, self._rank_of(step)[:2]
            if of not in wanted:
                wanted[of] = not fits(lane.need) or self._is_wanted(lane, step, fits)
            if wanted[of] or not may_start(step):
                continue
            if in_common(step) is not None:
                lane.expected = self._fair_share(lane, sum(self._kind(other) == kind for other in self.waiting.values()))
            self.lanes.append(lane)
            return lane
        return None

    def may_wait(self, lane: Lane, is_near: Near | None = None, first_near: FirstNear | None = None) -> bool:
        """Whether `lane`, which has no step, is worth keeping.

        A step of its kind lacks only what `is_near` (without that: what is ready or being built), and no ready step waits for
        its room that would keep it from being opened ahead. `first_near` is the queue's own, unless that has a memory.
        """
        if lane.is_ending or lane.kind is None:
            return False
        step = (first_near or self.first_near)(lane.kind, is_near or self._is_under_way)
        # What lanes that end hold is on its way.
        return step is not None and not self._is_wanted(lane, step, self._fits(but_ending=True), if_served=is_near is not None)

    def first_near(self, kind: Any, is_near: Near) -> Step | None:
        """The most urgent step of `kind` that is not ready and lacks only what `is_near`."""
        return next(self._foreseen(is_near, kind), None)

    def _is_under_way(self, step: Step) -> bool:
        return step.fingerprint in self.running or self._unbuilt.get(step.fingerprint) == 0

    def _is_wanted(self, lane: Lane, awaited: Step, fits: Fits, *, if_served: bool = True) -> bool:
        """Whether a ready step has a better use for the room that `lane` holds, or would hold, until `awaited` is ready.

        One whose kind has a lane may wait for that; not, `if_served`, where room is held for longer than a start takes and
        those lanes have all that they take at once.
        """
        turn, path, _ = self._rank_of(awaited) if lane.need[1] else Rank(0, 0, 0)

        def is_as_urgent(step: Step) -> bool:
            # One of a later turn as well: nothing of it is held up for the sake of what is not ready.
            return self._rank_of(step).turn < turn or self._rank_of(step).path <= path

        if any(map(is_as_urgent, self._waiting_for_room(lane, fits))):
            return True
        # One of each kind, since they are alike in all that is asked of them.
        firsts = (next(filter(is_as_urgent, steps), None) for steps in self._ready_alike.values())
        as_urgent = [step for step in firsts if step is not None]
        if lane not in self.lanes and any(fits(self._need[step.fingerprint]) for step in as_urgent):
            return True
        return if_served and any(self._lacks_lane(step, lane, fits) for step in as_urgent)

    def _lacks_lane(self, step: Step, lane: Lane, fits: Fits) -> bool:
        """Whether a ready step has no room but that of `lane`, and no lane of its kind has a place for it."""
        need = self._need[step.fingerprint]
        if fits(need) or not any(map(min, need, lane.need)):
            return False
        kind, most = self._kind(step), num_at_once(step)
        return not any(
            other.kind == kind and other.stage in ("", step.stage) and len(other.steps) < most and not other.is_ending
            for other in self.lanes
        )

    def _foreseen(self, is_near: Near, kind: Any = None) -> Iterator[Step]:
        """Steps of lanes, or of one `kind`, that are not ready and lack only what `is_near`, the most urgent first."""
        found: dict[str, Step] = {}
        # What many lack is asked for once.
        is_near = functools.cache(is_near)
        # Of thousands of steps, only those behind what is under way can be, and is near itself.
        sources: Iterable[Step] = [*self.running.values(), *self._ready]
        for _ in range(FORESIGHT):
            behind = {user.fingerprint for source in sources if is_near(source) for user in self.users[source.fingerprint]}
            sources = [self.waiting[one] for one in behind if one in self.waiting and self._unbuilt[one]]
            found |= {
                step.fingerprint: step
                for step in sources
                if (of := self._kind(step)) is not None and (kind is None or of == kind)
            }
        return (step for step in sorted(found.values(), key=self._rank_of) if self._lacks_only(step, is_near))

    def _lacks_only(self, step: Step, is_near: Near) -> bool:
        return all(source.fingerprint in self.done or is_near(source) for source in step.inputs.values())

    def close(self, lane: Lane) -> None:
        """Give back what `lane` holds, which has no step any more."""
        assert not lane.steps
        self.lanes.remove(lane)

    def _next(self, is_served: Callable[[Step], bool]) -> Step | None:
        fits = self._fits()
        # Few kinds and many steps: most often nothing fits, and no step has to be looked at to know it.
        if not any(fits(need) for _, _, need in self._ready_alike):
            return None
        awaited = {lane.awaited.fingerprint for lane in self.lanes if lane.awaited is not None and not lane.is_ending}
        for place, step in enumerate(self._ready):
            if step.fingerprint in awaited or is_served(step):
                # It joins that lane.
                continue
            if fits(self._need[step.fingerprint]):
                for other in self._ready[:place]:
                    self._overtaken[other.fingerprint] = self._overtaken.get(other.fingerprint, 0) + 1
                return step
            if self._overtaken.get(step.fingerprint, 0) >= MAX_OVERTAKES:
                return None
        return None

    def _fits(self, *, but_ending: bool = False) -> Fits:
        """A test of whether CPUs and GPUs are free, or will be when lanes have ended; for as long as nothing starts or ends."""
        lanes = [lane for lane in self.lanes if lane.steps or not (but_ending and lane.is_ending)]
        free_cpus = self.capacity.cpus - sum(lane.need[0] for lane in lanes) + 1e-9
        free_gpus = self.capacity.gpus - sum(lane.need[1] for lane in lanes) + 1e-9
        return lambda need: need[0] <= free_cpus and need[1] <= free_gpus

    def _kind(self, step: Step) -> Any:
        """What it may share a lane by; equal ones are the same object."""
        if step.fingerprint not in self._kinds:
            alone = step.fingerprint if starts_with(step) is not None else None
            kind = in_common(step) or alone
            self._kinds[step.fingerprint] = self._same_kind.setdefault(kind, kind)
        return self._kinds[step.fingerprint]

    def _ready_of(self, lane: Lane) -> Sequence[Step]:
        """Of one that has steps, those of their stage: where a starting point is trained, a task model would wait for long."""
        if lane.kind is None:
            return ()
        alike = [
            steps for (kind, stage, _), steps in self._ready_alike.items() if kind is lane.kind and lane.stage in ("", stage)
        ]
        return alike[0] if len(alike) == 1 else list(heapq.merge(*alike, key=self._rank_of))

    def _not_ready(self) -> list[Step]:
        return [step for fingerprint, step in self.waiting.items() if self._unbuilt[fingerprint]]

    def _others(self, lane: Lane) -> list[Lane]:
        return [other for other in self.lanes if other is not lane and other.kind == lane.kind and not other.is_ending]

    def _fair_share(self, lane: Lane, num_alike: int) -> int:
        """The part of `num_alike` steps that leaves as much to each of the lanes that fit beside `lane`, to others of its kind
        with what they have under way."""
        others = [] if lane.kind is None else self._others(lane)
        cpus, gpus = lane.need
        num_fitting = min(there / need for there, need in ((self.capacity.cpus, cpus), (self.capacity.gpus, gpus)) if need)
        if math.isinf(num_fitting):
            return 1  # all of them at once
        num_lanes, num_under_way = max(1, int(num_fitting + 1e-9)), sum(len(other.steps) for other in others)
        # Others that are up take on more when they have room: what is ready is theirs as well.
        return min(math.ceil(num_alike / max(1, num_lanes - len(others))), math.ceil((num_alike + num_under_way) / num_lanes))

    def without_room(self, cpus: float, gpus: float) -> Step | None:
        """The first running step that does not fit into so much any more; with none running, the first such ready one."""
        taken_cpus = taken_gpus = 0.0
        under_way = [lane for lane in self.lanes if lane.steps]
        for lane in under_way:
            taken_cpus, taken_gpus = taken_cpus + lane.need[0], taken_gpus + lane.need[1]
            if taken_cpus > cpus + 1e-9 or taken_gpus > gpus + 1e-9:
                return next(iter(lane.steps.values()))
        for step in () if under_way else self._ready:
            need = self._need[step.fingerprint]
            if need[0] > cpus + 1e-9 or need[1] > gpus + 1e-9:
                return step
        return None

    def _start(self, step: Step, lane: Lane) -> None:
        self._withdraw(step)
        lane.awaited = None
        self.running[step.fingerprint] = lane.steps[step.fingerprint] = self.waiting.pop(step.fingerprint)
        self._lane_of[step.fingerprint] = lane

    def _stop(self, fingerprint: str) -> Step:
        del self._lane_of.pop(fingerprint).steps[fingerprint]
        return self.running.pop(fingerprint)

    def _withdraw(self, step: Step) -> None:
        of = self._kind(step), step.stage, self._need[step.fingerprint]
        for steps in (self._ready, self._ready_alike[of]):
            del steps[bisect_left(steps, self._rank_of(step), key=self._rank_of)]
        if not self._ready_alike[of]:
            del self._ready_alike[of]

    def _make_ready(self, step: Step) -> None:
        of = self._kind(step), step.stage, self._need[step.fingerprint]
        for steps in (self._ready, self._ready_alike.setdefault(of, [])):
            insort(steps, step, key=self._rank_of)

    def succeeded(self, fingerprint: str) -> None:
        self._stop(fingerprint)
        self.done.add(fingerprint)
        for user in {user.fingerprint: user for user in self.users[fingerprint]}.values():
            if user.fingerprint in self.waiting:
                self._unbuilt[user.fingerprint] -= 1
                if not self._unbuilt[user.fingerprint]:
                    self._make_ready(self.waiting[user.fingerprint])

    def again(self, fingerprint: str, *, alone: bool = False, with_all: bool = False, whole_gpus: bool = False) -> None:
        """Put a running step back; it is ready when its inputs are built.

        From now on it has a lane `alone` if that is asked, or one with `whole_gpus` in the place of parts, or one `with_all`
        that there is, beside which nothing runs.
        """
        step = self._stop(fingerprint)
        if alone or with_all or whole_gpus:
            step = replace(step, resources=replace(step.resources, max_group=1))
            self._kinds.pop(fingerprint, None)
        if whole_gpus:
            step = replace(step, resources=replace(step.resources, gpus_per_worker=1))
            self._need[fingerprint] = step.resources.total_cpus, step.resources.total_gpus
        if with_all:
            self._need[fingerprint] = self._all
        self._wait(step)

    @property
    def _all(self) -> tuple[float, float]:
        return self.capacity.cpus, self.capacity.gpus

    def has_all(self, step: Step) -> bool:
        """Whether nothing else runs beside a step."""
        return self._need[step.fingerprint] == self._all

    def rebuild(self, fingerprints: Iterable[str]) -> None:
        """Take built steps back: they are to be built again, and steps that wait for their inputs wait for them."""
        for fingerprint in self.done.intersection(fingerprints):
            self.done.discard(fingerprint)
            self._wait(self._steps[fingerprint])
            for user in {user.fingerprint for user in self.users[fingerprint]} & self.waiting.keys():
                if not self._unbuilt[user]:
                    self._withdraw(next(ready for ready in self._ready if ready.fingerprint == user))
                self._unbuilt[user] += 1

    def is_possible(self, step: Step) -> bool:
        """Whether all inputs of `step` are built or may yet be: none was given up."""
        hopeful = self.done.union(self.waiting, self.running)
        return all(source.fingerprint in hopeful for source in step.inputs.values())

    def _wait(self, step: Step) -> None:
        self.waiting[step.fingerprint] = step
        self._unbuilt[step.fingerprint] = self._num_unbuilt(step)
        if not self._unbuilt[step.fingerprint]:
            self._make_ready(step)

    def failed(self, fingerprint: str) -> list[Step]:
        """Give up a step; returns the steps that can no longer be built."""
        step = self._stop(fingerprint)
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
