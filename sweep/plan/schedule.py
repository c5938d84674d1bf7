"""The time that a study would take on so many GPUs: its step graph, played through by the run's own queue. Pure.

What a run does all the time (`sweep.run.tune.Run.attend`, then `suggest`) is done here whenever something ends: lanes take on
what is ready for them, those of no more use end, others are opened, also ahead of their steps. Only the time is reckoned.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.errors import UserError
from sweep.graph.pieces import seeds_of
from sweep.graph.queue import Capacity, Lane, StepQueue, delay_of, in_common, num_at_once, starts_with
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.graph.timeline import LaneTime, Span, Timeline

LINGER_S = 30.0
"""How long a lane waits for a step whose inputs are being built,"""
NEAR_S = 120.0
"""how long before its inputs are there a lane is opened ahead of a step, and"""
OVERDUE_S = 300.0
"""how long a ready step waits for room while lanes of others go on: as `sweep.run.tune` has them."""


@dataclass(frozen=True)
class StepTime:
    """How long a step takes: `setup_s` until the workers of its lane are up, once a lane; then `begin_s`, in which a lane that
    trains several at once does nothing else, `once_s`, which those that are trained at once take together, and `own_s`.

    `load` is how many GPUs its work keeps busy alone, where its workers hold parts of them: what all such lanes ask for beyond
    what there is makes each of them slower. None is work that no other's slows.
    """

    setup_s: float = 0.0
    once_s: float = 0.0
    own_s: float = 0.0
    begin_s: float = 0.0
    load: float | None = None

    @property
    def alone_s(self) -> float:
        return self.setup_s + self.work_s

    @property
    def work_s(self) -> float:
        return self.begin_s + self.paced_s

    @property
    def paced_s(self) -> float:
        """What others in the lane, or on the GPU, slow."""
        return self.once_s + self.own_s


@dataclass(frozen=True)
class Schedule:
    """A study played through on `num_gpus` that are there all the time.

    `seconds` are those from the first step's start to the last one's end. `idle_share` is the part of the GPUs' time in
    which they do nothing, 0.0 if there is nothing to do, and `start_share` that in which workers start.
    `critical_path` is the chain of steps that takes longest, and `critical_s` how long if workers are up where they may be: no
    number of GPUs is quicker. `peak_bytes` is the most that the checkpoints of the steps running together take. `timeline` says
    which lane built what when, as a run's records do; None if there was nothing to build. `seed_ends` is when the last step of
    each seed ended of which any was to be built, its pool's judgement included: from then on the seed is whole. `gpu_seconds`
    are, by fingerprint, those that each step's lane held while it worked or started for it, idle ones left out.
    """

    num_gpus: float
    seconds: float
    idle_share: float
    critical_path: tuple[Step, ...]
    critical_s: float
    peak_bytes: float = 0.0
    start_share: float = 0.0
    timeline: Timeline | None = None
    seed_ends: Mapping[int, float] = field(default_factory=dict)
    gpu_seconds: Mapping[str, float] = field(default_factory=dict)


def simulate(
    steps: Sequence[Step],
    times: Mapping[str, StepTime],
    done: Iterable[str],
    num_gpus: float,
    *,
    checkpoint_bytes: Mapping[str, float] | None = None,
    seeds_at_once: int | None = None,
) -> Schedule:
    """Play the steps that are not `done`, in the order, the lanes and with the admission rule of a run.

    `times` and `checkpoint_bytes` are by fingerprint; so many `seeds_at_once` are built before the next ones. CPUs are taken to
    be plenty. Raises UserError if a step asks for more GPUs than there are.
    """
    done = set(done)
    missing = [step for step in steps if step.fingerprint not in done]
    for step in missing:
        if step.resources.total_gpus > num_gpus:
            raise UserError(
                f"{step.name} asks for {step.resources.total_gpus:g} GPUs and num_gpus={num_gpus:g}; give at least as many"
            )
    queue = StepQueue(steps, done, Capacity(math.inf, num_gpus), seeds_at_once=seeds_at_once)
    play = _Play(queue, times, checkpoint_bytes or {})
    wall_s = play.run()
    # Workers of a lane may be up before a step is ready, so that it waits for none.
    seconds = {
        step.fingerprint: times[step.fingerprint].work_s
        if in_common(step) is not None or starts_with(step) is not None
        else times[step.fingerprint].alone_s
        for step in missing
    }
    path = critical_path(missing, seconds)
    there = wall_s * num_gpus
    return Schedule(
        num_gpus,
        wall_s,
        1 - play.busy_s / there if there else 0.0,
        path,
        sum(seconds[step.fingerprint] for step in path),
        play.peak_bytes,
        play.start_s / there if there else 0.0,
        Timeline(0.0, tuple(lane.time for lane in play.lanes if lane.spans)) if play.lanes else None,
        _seed_ends(steps, play.built),
        play.gpu_seconds,
    )


def _seed_ends(steps: Sequence[Step], ended: Mapping[str, float]) -> dict[int, float]:
    ends: dict[int, float] = {}
    for fingerprint, seeds in seeds_of(steps).items():
        for seed in seeds if fingerprint in ended else ():
            ends[seed] = max(ends.get(seed, 0.0), ended[fingerprint])
    return dict(sorted(ends.items()))


@dataclass
class _Under:
    """A step under way in a lane; `left_s` is what is left of its work if it went on alone, `load` how many GPUs that keeps
    busy. `begin_s` is how long the others are to wait when it begins, which they have done if it `has_begun`.
    """

    step: Step
    ready: float
    given: float
    waited_for: str
    left_s: float
    load: float | None = None
    begin_s: float = 0.0
    has_begun: bool = False
    began: float | None = None


@dataclass(eq=False)
class _Lane:
    """A lane of the queue in simulated time, with `most` steps, of which `slots` may be trained at once.

    `share` is, of a step's work alone, what those at once take once. Until `goes_on` it works on none, since its workers start
    or steps begin. One that is `in_parts` holds parts of GPUs: `crowding` is how much longer its work takes since others are
    on them.
    """

    number: int
    lane: Lane
    opened: float
    up: float
    most: int
    at_once: bool
    share: float
    in_parts: bool
    slots: int
    under_way: dict[str, _Under] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    seen: float = 0.0
    idle_since: float | None = None
    moved: float = 0.0
    version: int = 0
    goes_on: float = 0.0
    crowding: float = 1.0

    @property
    def active(self) -> list[_Under]:
        """Those that are worked on: all that are trained at once, else the first."""
        steps = list(self.under_way.values())
        return steps[: self.slots] if self.at_once else steps[:1]

    @property
    def slowdown(self) -> float:
        """How much longer a second of a step's work takes than it would alone."""
        return self.company * self.crowding

    @property
    def company(self) -> float:
        """The same, of the others in the lane alone."""
        return self.share + (1 - self.share) * len(self.active)

    def demand(self, now: float) -> float:
        """How many GPUs it would keep busy `now` if no other were on them."""
        if now < self.goes_on or not self.under_way:
            return 0.0
        return sum(under.load or 0.0 for under in self.active) / self.company

    def let_begin(self, now: float) -> None:
        """Have all wait for those that there is room for `now`."""
        joining = [under for under in self.active if not under.has_begun]
        if joining:
            self.goes_on = max(self.goes_on, max(now, self.up) + max(under.begin_s for under in joining))
        for under in joining:
            under.has_begun = True

    def advance(self, now: float) -> None:
        """Work until `now`."""
        if now >= self.up:
            for under in self.active:
                under.began = max(self.seen, self.up) if under.began is None else under.began
        if now >= self.goes_on and self.under_way:
            worked_s = (now - max(self.seen, self.goes_on)) / self.slowdown
            for under in self.active:
                under.left_s -= worked_s
        self.seen = now

    @property
    def next_end(self) -> float:
        """When the next step ends if nothing joins; infinite without one."""
        least = min((under.left_s for under in self.active), default=math.inf)
        return max(self.seen, self.goes_on) + max(least, 0.0) * self.slowdown if self.under_way else math.inf

    def end_of(self, step: Step) -> float:
        """When `step`, which is under way, ends at the pace that it has now."""
        before = 0.0 if self.at_once else sum(under.left_s for under in self._until(step))
        return max(self.seen, self.goes_on) + (before + self.under_way[step.fingerprint].left_s) * self.slowdown

    def _until(self, step: Step) -> Iterator[_Under]:
        return itertools.takewhile(lambda under: under.step is not step, self.under_way.values())

    def end(self, now: float) -> list[Step]:
        """The steps that end `now`, which is `next_end` or a moment at which the lane has none."""
        self.advance(now)
        least = min((under.left_s for under in self.active), default=0.0)
        # What rounding leaves of the others' last second is none.
        ended = [under for under in self.active if under.left_s <= least + 1e-6]
        for under in ended:
            step, began = under.step, now if under.began is None else under.began
            del self.under_way[step.fingerprint]
            self.spans[step.fingerprint] = Span(step.stage, step.slug, under.ready, under.given, began, now, under.waited_for)
        self.let_begin(now)
        return [under.step for under in ended]

    @property
    def time(self) -> LaneTime:
        return LaneTime(str(self.number), self.opened, self.up, tuple(sorted(self.spans.values(), key=lambda span: span.began)))


class _Play:
    """A run in simulated time: `lanes` with all that they built, when each step was `built`, by fingerprint, and the
    GPU-seconds in which GPUs work and workers start.

    Lanes that hold parts of GPUs are on what no lane of whole ones holds, and get as much of it as they can use; if that is
    more than there is, all of them are as much slower.
    """

    def __init__(self, queue: StepQueue, times: Mapping[str, StepTime], checkpoint_bytes: Mapping[str, float]) -> None:
        self.queue, self._times, self._checkpoint_bytes = queue, times, checkpoint_bytes
        self.lanes: list[_Lane] = []
        self.busy_s = self.start_s = self.peak_bytes = 0.0
        self._open: dict[Lane, _Lane] = {}
        self.built: dict[str, float] = {}
        self.gpu_seconds: dict[str, float] = {}
        self._ready: dict[str, tuple[float, str]] = {}
        self._kinds_built: set[tuple[str, type]] = set()
        self._lane_of: dict[str, _Lane] = {}
        # When, of which lane (its number, and its version then), and whether a step of it ends.
        self._events: list[tuple[float, int, int, bool]] = []
        self._late: set[tuple[float, int, int, bool]] = set()
        self._now = 0.0

    def run(self) -> float:
        """Build everything; the seconds until the last step has ended."""
        wall_s = 0.0
        self._attend()
        self._crowd()
        while self._next_event() is not None:
            now, number, _, is_end = heapq.heappop(self._events)
            lane = self.lanes[number]
            self._now = now
            if is_end:
                wall_s = now
                for step in lane.end(now):
                    self.built[step.fingerprint] = now
                    self._kinds_built.add((step.stage, type(step.config)))
                    self.queue.succeeded(step.fingerprint)
                lane.moved = now
                self._expect(lane)
            # What ends at the same moment ends before anything is made of it.
            if self._next_event() != now:
                self._attend()
                self._crowd()
        return wall_s

    def _next_event(self) -> float | None:
        """When the next thing happens, None if nothing will; what no longer holds is dropped."""
        while self._events:
            now, number, version, _ = self._events[0]
            if version == self.lanes[number].version and self.lanes[number].lane in self._open:
                return now
            heapq.heappop(self._events)
        return None

    def _crowd(self) -> None:
        """Let lanes on parts of GPUs go on as quickly as those that work now allow."""
        in_parts = [lane for lane in self._open.values() if lane.in_parts]
        if not in_parts:
            return
        room = self.queue.capacity.gpus - sum(lane.lane.need[1] for lane in self._open.values() if not lane.in_parts)
        crowding = max(1.0, sum(lane.demand(self._now) for lane in in_parts) / room)
        for lane in in_parts:
            if not lane.under_way:
                lane.crowding = crowding
            elif not math.isclose(lane.crowding, crowding):
                lane.advance(self._now)
                lane.crowding = crowding
                self._expect(lane)

    def _attend(self) -> None:
        """Have lanes take on what is ready, end those of no more use, and open others, until nothing changes."""
        while True:
            is_changed = False
            ending: list[_Lane] = []
            for lane in list(self._open.values()):
                # To ask for a lane that is full costs as much, and gives nothing.
                if len(lane.lane.steps) < lane.most and (joined := self._joined(lane)):
                    self._give(lane, joined)
                    is_changed = True
                if lane.lane.steps:
                    lane.idle_since = None
                    continue
                lane.idle_since = self._now if lane.idle_since is None else lane.idle_since
                if not self._may_wait(lane):
                    lane.lane.is_ending, lane.lane.awaited = True, None
                    ending.append(lane)
                elif self._now < lane.idle_since + LINGER_S:
                    heapq.heappush(self._events, (lane.idle_since + LINGER_S, lane.number, lane.version, False))
            for lane in ending:
                self.queue.close(lane.lane)
                del self._open[lane.lane]
                self._account(lane)
                is_changed = True
            while opened := self.queue.open_ahead(self._is_near) or self.queue.open(self._is_served):
                self._begin(opened)
                is_changed = True
            if not is_changed:
                break
        held = sum(self._checkpoint_bytes.get(fingerprint, 0) for fingerprint in self.queue.running)
        self.peak_bytes = max(self.peak_bytes, held)

    def _begin(self, opened: Lane) -> None:
        steps = list(opened.steps.values())
        first = steps[0] if steps else opened.awaited
        assert first is not None
        time = self._times[first.fingerprint]
        is_shared = opened.kind is not None and first.resources.num_workers == 1
        at_once = is_shared and REGISTRY[first.stage].is_together(first.config)
        share = time.once_s / time.paced_s if time.paced_s else 0.0
        up = self._now + time.setup_s
        lane = _Lane(
            len(self.lanes),
            opened,
            self._now,
            up,
            num_at_once(first),
            at_once,
            share,
            in_parts=time.load is not None,
            # A lane has as many at once as it was opened for. Those of whole GPUs are reckoned as if they had all.
            slots=num_at_once(first) if time.load is None else min(num_at_once(first), opened.expected),
            seen=self._now,
            goes_on=up,
        )
        self.lanes.append(lane)
        self._open[opened] = lane
        if steps:
            self._give(lane, steps)

    def _may_wait(self, lane: _Lane) -> bool:
        assert lane.idle_since is not None
        lingers = self._now < lane.idle_since + LINGER_S
        return self.queue.may_wait(lane.lane, self._is_near) or (lingers and self.queue.may_wait(lane.lane))

    def _is_near(self, step: Step) -> bool:
        return self._seconds_until(step) <= NEAR_S

    def _seconds_until(self, step: Step) -> float:
        """Until a step is built, as a run knows it: by what it says itself, or else by one of its kind before."""
        if step.fingerprint in self.queue.done:
            return 0.0
        if step.fingerprint in self.queue.running:
            return self._lane_of[step.fingerprint].end_of(step) - self._now
        if (step.stage, type(step.config)) not in self._kinds_built:
            return math.inf
        inputs = max((self._seconds_until(source) for source in step.inputs.values()), default=0.0)
        return self._times[step.fingerprint].alone_s + inputs

    def _give(self, lane: _Lane, steps: Sequence[Step]) -> None:
        lane.advance(self._now)
        if not lane.under_way:
            lane.moved = self._now
        for step in steps:
            ready, waited_for = self._readiness(step)
            time = self._times[step.fingerprint]
            # Alone each has its own begin; at once, those that join have it together, and the others wait for them.
            left_s, begin_s = (time.paced_s, time.begin_s) if lane.at_once else (time.work_s, 0.0)
            lane.under_way[step.fingerprint] = _Under(step, ready, self._now, waited_for, left_s, time.load, begin_s)
            self._lane_of[step.fingerprint] = lane
        lane.let_begin(self._now)
        self._expect(lane)

    def _expect(self, lane: _Lane) -> None:
        lane.version += 1
        if lane.under_way:
            heapq.heappush(self._events, (lane.next_end, lane.number, lane.version, True))
            if lane.in_parts and lane.goes_on > self._now:
                heapq.heappush(self._events, (lane.goes_on, lane.number, lane.version, False))
            if (near := lane.next_end - NEAR_S) > self._now:
                heapq.heappush(self._events, (near, lane.number, lane.version, False))

    def _readiness(self, step: Step) -> tuple[float, str]:
        """When the inputs of a ready step were built, and the name of the last one, "" if all were there before."""
        if step.fingerprint not in self._ready:
            built = {source.name: self.built.get(source.fingerprint, 0.0) for source in step.inputs.values()}
            last = max(built, key=built.__getitem__, default="")
            self._ready[step.fingerprint] = (built[last], last) if last and built[last] else (0.0, "")
        return self._ready[step.fingerprint]

    def _joined(self, lane: _Lane) -> list[Step]:
        return self.queue.join(lane.lane, self._is_overdue, self._is_served)

    def _is_served(self, step: Step) -> bool:
        """As `sweep.run.tune` says it; asked again when a lane that it counts on is late."""
        time = self._times[step.fingerprint]
        late: list[tuple[float, int, int, bool]] = []

        def delay_s(lane: Lane) -> float:
            own = self._open[lane]
            due = max(own.moved, own.up) + time.work_s
            # Most often it ends its step before.
            if self._now < due + time.setup_s < own.next_end:
                late.append((due + time.setup_s, own.number, own.version, False))
            return delay_of(lane, own.up - self._now, self._now - due, time.setup_s)

        is_served = self.queue.wait_s(step, time.work_s, delay_s) < time.setup_s
        for event in late if is_served else ():
            if event not in self._late:
                self._late.add(event)
                heapq.heappush(self._events, event)
        return is_served

    def _is_overdue(self, step: Step) -> bool:
        return self._now - self._readiness(step)[0] > OVERDUE_S

    def _account(self, lane: _Lane) -> None:
        gpus, start_s = lane.lane.need[1], min(lane.up, self._now) - lane.opened
        held_s = gpus * (start_s + (lane.time.work_s if lane.spans else 0.0))
        self.start_s += gpus * start_s
        self.busy_s += held_s
        in_all = sum(span.ended - span.began for span in lane.spans.values())
        for fingerprint, span in lane.spans.items():
            part = (span.ended - span.began) / in_all if in_all else 1 / len(lane.spans)
            self.gpu_seconds[fingerprint] = held_s * part


def last_chain(timeline: Timeline) -> tuple[Span, ...]:
    """How the last step came to end when it did: the last input that each one waited for, from the first.

    Their waits for room (`room_s`), for their turn (`turn_s`) and their work add up to the wall time.
    """
    by_name = {span.name: span for span in timeline.spans}
    chain = [max(timeline.spans, key=lambda span: span.ended)]
    while chain[-1].waited_for:
        chain.append(by_name[chain[-1].waited_for])
    return tuple(reversed(chain))


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
