"""The order in which the steps of a graph are built, and the refusal of steps that never could be. Pure: no Ray."""

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step, dependents

MAX_OVERTAKES = 4
"""How often smaller steps may start before a ready one that does not fit yet, until it is waited for."""


@dataclass(frozen=True)
class Capacity:
    """The CPUs and GPUs that may be used at once. `nodes` are the resources of each machine, empty if they may come and go."""

    cpus: float
    gpus: float
    nodes: tuple[Mapping[str, float], ...] = ()


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
    """The settings that all members of a group share with `step`, hashable; None if it is to be run alone."""
    stage = REGISTRY[step.stage]
    if stage.run_group is None or step.resources.max_group == 1:
        return None
    common = stage.in_common(step.config, {name: source.fingerprint for name, source in step.inputs.items()})
    return None if common is None else (step.stage, step.resources, tuple(sorted(step.options.items())), common)


class StepQueue:
    """The steps of a run by their state: waiting for inputs, ready, running or done; gives out what comes next."""

    def __init__(self, steps: Sequence[Step], done: Iterable[str], capacity: Capacity) -> None:
        self.capacity = capacity
        self._steps = {step.fingerprint: step for step in steps}
        self.users = dependents(steps)
        self.done = set(done)
        self.waiting = {step.fingerprint: step for step in steps if step.fingerprint not in self.done}
        self.running: dict[str, Step] = {}
        self._need = {step.fingerprint: (step.resources.total_cpus, step.resources.total_gpus) for step in steps}
        self._rank = self._ranks(steps)
        self._unbuilt = {fingerprint: self._num_unbuilt(step) for fingerprint, step in self.waiting.items()}
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

    def _num_unbuilt(self, step: Step) -> int:
        return len({source.fingerprint for source in step.inputs.values()} - self.done)

    def _rank_of(self, step: Step) -> tuple[int, int]:
        return self._rank[step.fingerprint]

    def next(self) -> Step | None:
        """The most urgent ready step that fits into what is free, moved to running; None if there is none."""
        fits = self._fits()
        # Few kinds of need and many steps: most often nothing fits, and no step has to be looked at to know it.
        if not any(map(fits, self._ready_needs)):
            return None
        for place, step in enumerate(self._ready):
            if fits(self._need[step.fingerprint]):
                for other in self._ready[:place]:
                    self._overtaken[other.fingerprint] = self._overtaken.get(other.fingerprint, 0) + 1
                self._start(place)
                return step
            if self._overtaken.get(step.fingerprint, 0) >= MAX_OVERTAKES:
                return None
        return None

    def _fits(self) -> Callable[[tuple[float, float]], bool]:
        """A test of whether CPUs and GPUs are free, for as long as nothing starts or ends."""
        taken = [self._need[fingerprint] for fingerprint in self.running]
        free_cpus = self.capacity.cpus - sum(cpus for cpus, _ in taken) + 1e-9
        free_gpus = self.capacity.gpus - sum(gpus for _, gpus in taken) + 1e-9
        return lambda need: need[0] <= free_cpus and need[1] <= free_gpus

    def next_group(self) -> list[Step]:
        """As `next`, with ready steps that the same workers can take on; empty if there is none.

        A group is no larger than leaves work for all the groups that fit side by side. Steps of the first one's size come
        first, so that a group's members end together.
        """
        first = self.next()
        if first is None:
            return []
        common = in_common(first)
        if common is None:
            return [first]
        alike = [step for step in self._ready if in_common(step) == common]
        size = first.coordinates.get("size")
        num_members = min(first.resources.max_group, self._fair_share(first, 1 + len(alike)))
        members = sorted(alike, key=lambda step: step.coordinates.get("size") != size)[: num_members - 1]
        for member in members:
            self._start(self._ready.index(member))
            # The workers are the first member's; the others bring none.
            self._need[member.fingerprint] = (0.0, 0.0)
        return [first, *members]

    def _fair_share(self, first: Step, num_alike: int) -> int:
        """The part of `num_alike` steps that leaves as much to each of the groups that fit beside that of `first`."""
        cpus, gpus = self._need[first.fingerprint]
        num_fitting = min(there / need for there, need in ((self.capacity.cpus, cpus), (self.capacity.gpus, gpus)) if need)
        if math.isinf(num_fitting):
            return 1  # all of them at once
        common = in_common(first)
        num_running = sum(
            any(self._need[step.fingerprint]) and in_common(step) == common
            for step in self.running.values()
            if step is not first
        )
        return math.ceil(num_alike / max(1, int(num_fitting + 1e-9) - num_running))

    def without_room(self, cpus: float, gpus: float) -> Step | None:
        """The first running step that does not fit into so much any more; with none running, the first such ready one."""
        taken_cpus = taken_gpus = 0.0
        for step in self.running.values() or self._ready:
            need = self._need[step.fingerprint]
            if self.running:
                taken_cpus, taken_gpus = taken_cpus + need[0], taken_gpus + need[1]
            else:
                taken_cpus, taken_gpus = need
            if taken_cpus > cpus + 1e-9 or taken_gpus > gpus + 1e-9:
                return step
        return None

    def _start(self, place: int) -> None:
        step = self._withdraw(place)
        self.running[step.fingerprint] = self.waiting.pop(step.fingerprint)

    def _withdraw(self, place: int) -> Step:
        step = self._ready.pop(place)
        need = self._need[step.fingerprint]
        self._ready_needs[need] -= 1
        if not self._ready_needs[need]:
            del self._ready_needs[need]
        return step

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
                    self._make_ready(self.waiting[user.fingerprint])

    def again(self, fingerprint: str, *, alone: bool = False) -> None:
        """Put a running step back, from now on to be run `alone` if that is asked; it is ready when its inputs are built."""
        step = self.running.pop(fingerprint)
        if alone:
            step = replace(step, resources=replace(step.resources, max_group=1))
        self._need[fingerprint] = (step.resources.total_cpus, step.resources.total_gpus)
        self._wait(step)

    def rebuild(self, fingerprints: Iterable[str]) -> None:
        """Take built steps back: they are to be built again, and steps that wait for their inputs wait for them."""
        for fingerprint in self.done.intersection(fingerprints):
            self.done.discard(fingerprint)
            step = self._steps[fingerprint]
            self._need[fingerprint] = (step.resources.total_cpus, step.resources.total_gpus)
            self._wait(step)
            for user in {user.fingerprint for user in self.users[fingerprint]} & self.waiting.keys():
                if not self._unbuilt[user]:
                    self._withdraw(next(place for place, ready in enumerate(self._ready) if ready.fingerprint == user))
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
