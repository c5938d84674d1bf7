"""The processes of lanes: each takes on steps, in a thread each, and starts the workers that they share.

A lane's host is an actor of the driver's, on its machine. Orders are its calls, and an order's outcome is what the call gives.
A host is kept for the next lane, so that torch is imported once.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sweep.graph.stages import REGISTRY, Job, Stage, Workers
from sweep.graph.step import Step
from sweep.run.failures import MACHINE_LOST, PROCESS_DIED, Kind, kind, one_line
from sweep.run.machine import live_nodes
from sweep.run.trial import Order, Outcome, carry_out, job_ahead

MOST_AT_ONCE = 128
"""Threads of a host: one for each step that it has, and for whoever waits for the lane's end."""
DETECTION_S = 30.0
"""How long Ray may take to find that a machine is gone, of which the processes on others know at once."""


@dataclass(frozen=True)
class HostLost(Outcome):
    """The outcome of all that a host had, whose process has ended: who drives the lane says when."""


def host_lost(error: Exception) -> HostLost:
    """What the end of a host, on the machine of the run, means for its steps."""
    return HostLost(None, one_line(error), kind=Kind.MEMORY if kind(error) is Kind.MEMORY else Kind.DEATH)


class LaneHost:
    """Takes on the steps of one lane after another. Its methods are called in threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._workers: dict[str, Workers] = {}
        self._ended: set[str] = set()

    def prepare(self, runner: Stage) -> None:
        """Import what a step of a stage needs in this process."""
        assert runner.prepare is not None
        # What is missing is said when it is to be used.
        with contextlib.suppress(Exception):
            runner.prepare()

    def open(self, lane: str, order: Order) -> None:
        """Start the workers of `lane`, ahead of the step of `order`. What goes wrong is said when it is to be built."""
        with contextlib.suppress(Exception):
            self._open(lane, order, job_ahead(order))

    def carry_out(self, lane: str, order: Order) -> Outcome:
        """Build the artifact of `order`, with the workers that `lane` shares."""
        machines = machines_up()
        shares = order.kind is not None and not order.step.resources.in_process
        run = functools.partial(self._run, lane, order) if shares else None
        try:
            # What has been started for it ends with this process.
            return judged(carry_out(order, run, when_lost=functools.partial(os._exit, 1)), machines)
        finally:
            if order.kind is None:
                self.close(lane)

    def _run(self, lane: str, order: Order, job: Job) -> Any:
        self._open(lane, order, job)
        return self._workers[lane].run(job)

    def _open(self, lane: str, order: Order, job: Job) -> None:
        with self._changed:
            if lane not in self._workers and lane not in self._ended:
                assert order.runner.open is not None
                self._workers[lane] = order.runner.open(job)

    def close(self, lane: str) -> None:
        """End the workers of a lane that has no step any more, and will have none. One of a single step does so by itself."""
        workers = self._workers.pop(lane, None)
        try:
            if workers is not None:
                workers.close()
        finally:
            with self._changed:
                self._ended.add(lane)
                self._changed.notify_all()

    def give_up(self, lane: str) -> None:
        """End a lane that was opened ahead for nothing: its workers end with this process."""
        with self._changed:
            self._ended.add(lane)
            self._changed.notify_all()

    def serve(self, lane: str) -> None:
        """Wait until a lane has ended."""
        with self._changed:
            self._changed.wait_for(lambda: lane in self._ended)


class Hosts:
    """The hosts of a run, as its driver has them."""

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self._prepared: dict[str, Any] = {}  # by the fingerprint of the step that it is for

    def prepare(self, steps: Iterable[Step]) -> None:
        """Start hosts for those of `steps` that need much imported, of which they import it."""
        for step in steps:
            if (stage := REGISTRY[step.stage]).prepare is not None:
                self._prepared[step.fingerprint] = host = self._new()
                host.prepare.remote(stage)

    def take(self, step: Step) -> Any:
        """A host for a lane that begins with `step`: the one that was prepared for it, one that is idle, or a new one, which
        need not be up yet."""
        if step.fingerprint in self._prepared:
            return self._prepared.pop(step.fingerprint)
        return self._idle.pop() if self._idle else self._new()

    def _new(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(LaneHost).options(num_cpus=0, max_concurrency=MOST_AT_ONCE, scheduling_strategy=here).remote()

    def open(self, host: Any, lane: str, order: Order) -> None:
        """Have a host start the workers of a lane, ahead of a step."""
        host.open.remote(lane, order)

    def give_up(self, host: Any, lane: str) -> None:
        """End a lane that never had a step; its host is not sound any more."""
        host.give_up.remote(lane)

    def send(self, host: Any, lane: str, order: Order) -> Any:
        """Have a host take on a step; what `arrived` knows it by."""
        return host.carry_out.remote(lane, order)

    def arrived(self, sent: Iterable[Any], *, wait_s: float = 0.0) -> Iterator[tuple[Any, Outcome]]:
        """Those of `sent` whose outcome is there, and it. All are waited for so long at most."""
        import ray

        waiting = list(sent)
        if not waiting:
            return
        for ref in ray.wait(waiting, num_returns=len(waiting), timeout=wait_s)[0]:
            try:
                yield ref, ray.get(ref)
            except (ray.exceptions.ActorDiedError, ray.exceptions.OutOfMemoryError) as error:
                yield ref, host_lost(error)
            except ray.exceptions.RayError as error:
                # A step's own failure is an outcome: this one is of what came back from it.
                yield ref, Outcome(None, one_line(error), kind=Kind.DEATH)

    def close(self, host: Any, lane: str) -> None:
        """Have a host end a lane that has no step."""
        host.close.remote(lane)

    def give_back(self, host: Any, *, is_sound: bool) -> None:
        """A host is free for another lane. With one that is not sound goes all that failed steps have left behind."""
        if is_sound:
            self._idle.append(host)
            return
        import ray

        with contextlib.suppress(Exception):
            ray.kill(host)


def judged(outcome: Outcome, machines: set[str]) -> Outcome:
    """`outcome` with what became of the cluster's `machines`, which the processes that are left do not always know."""
    if outcome.record is not None:
        return outcome
    if len(machines) == 1:
        # There is no other one to lose: what cannot be reached any more has died.
        known = {Kind.LOSS: (Kind.DEATH, PROCESS_DIED)}
    elif outcome.kind is Kind.DEATH and _one_is_lost(machines):
        known = {Kind.DEATH: (Kind.LOSS, MACHINE_LOST)}
    else:
        known = {}
    kind, error = known.get(outcome.kind, (outcome.kind, outcome.error))
    return replace(outcome, kind=kind, error=error)


def machines_up() -> set[str]:
    """Ray's ids of the machines that are up."""
    return {node["NodeID"] for node in live_nodes()}


def _one_is_lost(machines: set[str]) -> bool:
    """Whether one of `machines` is gone; the answer is no only when Ray has had the time to find out."""
    deadline = time.monotonic() + DETECTION_S
    while machines <= machines_up():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True
