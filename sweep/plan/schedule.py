"""The time that a study would take on so many GPUs: its step graph, played through by the run's own queue. Pure."""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.errors import UserError
from sweep.graph.queue import Capacity, Lane, StepQueue
from sweep.graph.step import Step


@dataclass(frozen=True)
class Schedule:
    """A study played through on `num_gpus` that are there all the time.

    `seconds` are those from the first step's start to the last one's end. `idle_share` is the part of the GPUs' time in
    which they do nothing, 0.0 if there is nothing to do.
    `critical_path` is the chain of steps that takes longest, and `critical_s` how long: no number of GPUs is
    quicker. `peak_bytes` is the most that the checkpoints of the steps running together take.
    """

    num_gpus: float
    seconds: float
    idle_share: float
    critical_path: tuple[Step, ...]
    critical_s: float
    peak_bytes: float = 0.0


def simulate(
    steps: Sequence[Step],
    seconds: Mapping[str, float],
    done: Iterable[str],
    num_gpus: float,
    *,
    group_s: Callable[[Sequence[Step]], float] | None = None,
    checkpoint_bytes: Mapping[str, float] | None = None,
) -> Schedule:
    """Play the steps that are not `done`, in the order, the lanes and with the admission rule of a run.

    `seconds` of a step alone, and `checkpoint_bytes`, are by fingerprint; `group_s` says how long several take in the same
    lane, by default one after another. What a lane takes on at once ends at once, and no lane waits. CPUs are taken to be
    plenty. Raises UserError if a step asks for more GPUs than there are.
    """
    done = set(done)
    missing = [step for step in steps if step.fingerprint not in done]
    for step in missing:
        if step.resources.total_gpus > num_gpus:
            raise UserError(
                f"{step.name} asks for {step.resources.total_gpus:g} GPUs and num_gpus={num_gpus:g}; give at least as many"
            )

    def taken_s(members: Sequence[Step]) -> float:
        if group_s and len(members) > 1:
            return group_s(members)
        return sum(seconds[step.fingerprint] for step in members)

    queue = StepQueue(steps, done, Capacity(math.inf, num_gpus))
    wall_s, busy_s, peak_bytes = _play(queue, taken_s, checkpoint_bytes or {})
    path = critical_path(missing, seconds)
    idle = 1 - busy_s / (wall_s * num_gpus) if wall_s and num_gpus else 0.0
    return Schedule(num_gpus, wall_s, idle, path, sum(seconds[step.fingerprint] for step in path), peak_bytes)


def _play(
    queue: StepQueue, taken_s: Callable[[Sequence[Step]], float], checkpoint_bytes: Mapping[str, float]
) -> tuple[float, float, float]:
    """Seconds until all is built, seconds in which GPUs work (of each), and the most bytes of checkpoints at once."""
    running: list[tuple[float, int, Lane, list[Step]]] = []
    before: dict[int, list[Step]] = {}  # what a lane has taken on so far, by the number of its start
    now = busy_s = peak_bytes = 0.0

    def begin(number: int, lane: Lane, members: list[Step]) -> None:
        nonlocal busy_s
        earlier = before.setdefault(number, [])
        # It has started, and what its steps share is done.
        own_s = taken_s([*earlier, *members]) - (taken_s(earlier) if earlier else 0.0)
        earlier += members
        busy_s += own_s * lane.need[1]
        # The number of the start: lanes themselves cannot be compared where two end together.
        heapq.heappush(running, (now + own_s, number, lane, members))

    while True:
        while lane := queue.open():
            begin(len(before), lane, list(lane.steps.values()))
        if not running:
            return now, busy_s, peak_bytes
        held = sum(checkpoint_bytes.get(step.fingerprint, 0) for *_, members in running for step in members)
        peak_bytes = max(peak_bytes, held)
        now, number, lane, ended = heapq.heappop(running)
        for step in ended:
            queue.succeeded(step.fingerprint)
        if members := queue.join(lane):
            begin(number, lane, members)
        else:
            queue.close(lane)


def critical_path(steps: Sequence[Step], seconds: Mapping[str, float]) -> tuple[Step, ...]:
    """The chain of steps, each an input of the next, that takes longest. `steps` come after their inputs."""
    best: dict[str, tuple[float, Step | None]] = {}
    for step in steps:
        before = [source for source in step.inputs.values() if source.fingerprint in best]
        longest = max(before, key=lambda source: best[source.fingerprint][0], default=None)
        waited = best[longest.fingerprint][0] if longest else 0.0
        best[step.fingerprint] = waited + seconds[step.fingerprint], longest
    path: list[Step] = []
    last = max(steps, key=lambda step: best[step.fingerprint][0], default=None)
    while last is not None:
        path.append(last)
        last = best[last.fingerprint][1]
    return tuple(reversed(path))
