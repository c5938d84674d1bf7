"""What a run has spent and is going to spend, against the study's budget.

A GPU costs while it is held, idle or not: on one machine those that the run may use, on a cluster those of every node that is
up, whoever uses them. A model behind an endpoint costs by the text, as the pool that it writes reports. What is spent is kept
with the store (`sweep.graph.spending`) and counts for the study, over its runs.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import UserError
from pipelines.generate.prompting import Endpoint
from sweep.graph.queue import Capacity
from sweep.graph.records import Store
from sweep.graph.spending import (
    NOTHING,
    ON_DEMAND,
    SPOT,
    BudgetReached,
    Held,
    RunSpending,
    Spending,
    describe,
    dollars,
    read_spending,
    write_run,
)
from sweep.graph.step import Step
from sweep.index.client import within
from sweep.plan.costs import StepCost, endpoint_costs, lane_seconds
from sweep.plan.throughputs import CostTable, Gpu, NoEstimate
from sweep.run.machine import live_nodes
from sweep.run.progress import Progress, seconds_left
from sweep.run.session import ACCELERATOR_TYPE, RayOptions

WRITE_EVERY_S = 60.0
"""What a run that is killed forgets, at most."""
SAVE_S = 5.0
"""How long a run waits for its store to take what was spent, and for what others have."""
LOOK_EVERY_S = 10.0
"""How often a cluster's nodes are looked at."""
NOTHING_LEFT = "nothing is left of it"
MARKET_LABEL = "market"

Look = Callable[[], Mapping[tuple[str, str], float]]
"""Says how many GPUs are held now, by GPU and market."""


def gpus_of_nodes(nodes: Iterable[Mapping[str, Any]], name_of: Callable[[str], str]) -> dict[tuple[str, str], float]:
    """GPUs of `nodes` (`live_nodes()`), by GPU and market; `name_of` names a GPU that Ray calls an accelerator type.

    A node's market is its label `market`, as cluster.yaml sets it; a node without one is taken to be on demand, the dearer.
    """
    held: dict[tuple[str, str], float] = {}
    for node in nodes:
        resources = node["Resources"]
        if not resources.get("GPU"):
            continue
        types = [name.removeprefix(ACCELERATOR_TYPE) for name in resources if name.startswith(ACCELERATOR_TYPE)]
        market = SPOT if node.get("Labels", {}).get(MARKET_LABEL) == SPOT else ON_DEMAND
        key = name_of(types[0] if types else ""), market
        held[key] = held.get(key, 0.0) + resources["GPU"]
    return held


@dataclass(frozen=True)
class Prices:
    """What an hour of one GPU costs: of `gpu` as the user has priced it, of others as in `table`.

    `gpu` is what the run was estimated for, None if nobody could say. A spot GPU without a spot price is reckoned at the price
    on demand; a GPU that has no row, or no price, as `gpu`.
    """

    table: CostTable
    gpu: Gpu | None

    def name_of(self, accelerator_type: str) -> str:
        """The name of the row of a GPU that Ray calls `accelerator_type`."""
        with contextlib.suppress(NoEstimate):
            if accelerator_type:
                return self.table.gpu_of_nodes([accelerator_type])
        return self.gpu.name if self.gpu else accelerator_type or "unknown"

    def of(self, name: str, market: str) -> float | None:
        """Dollars an hour of the GPU called `name`; None if unknown."""
        listed = None if self.gpu and name == self.gpu.name else self.table.gpus.get(name)
        for row in filter(None, (listed, self.gpu)):
            price = row.spot_price if market == SPOT and row.spot_price is not None else row.price
            if price is not None:
                return price
        return None

    @property
    def usual(self) -> float | None:
        """The price on demand of what the run was estimated for."""
        return self.gpu.price if self.gpu else None


def look_at(options: RayOptions, capacity: Capacity, prices: Prices) -> Look:
    """How to see what is held: this machine's GPUs that the run may use, or those of the joined cluster's nodes."""
    if options.address is None:
        held = {(prices.name_of(""), ON_DEMAND): capacity.gpus} if capacity.gpus else {}
        return lambda: held
    return lambda: gpus_of_nodes(live_nodes(), prices.name_of)


def to_come(
    groups: Iterable[Sequence[Step]], progress: Progress, costs: Mapping[str, StepCost], num_held: float | None
) -> float:
    """GPU-seconds that `groups` are still going to take, those that are running and those that are not yet.

    `costs` are by a step's name; what has no estimate counts as nothing, and a step that says how far it is speaks for itself.
    `num_held` GPUs are held until the last group has ended, idle or not; None: only those that work, as on a cluster that
    gives idle machines back.
    """
    times = []
    for group in groups:
        known = [costs[step.name] for step in group if step.name in costs]
        estimate = lane_seconds(known) if known else 0.0
        left = max(seconds_left(step, progress, estimate) or 0.0 for step in group)
        times.append((left, group[0].resources.total_gpus))
    if num_held is None:
        return sum(left * num_gpus for left, num_gpus in times)
    return num_held * max((left for left, _ in times), default=0.0)


def pools_paid_for(progress: Progress) -> dict[str, float]:
    """Fingerprint → dollars of each pool that this run has had an endpoint write, as far as it is."""
    paid = {}
    for step in progress.steps:
        built = progress.built.get(step.fingerprint)
        reported = built.metrics if built else progress.throughput.get(step.fingerprint, {})
        if is_asked(step) and (amount := reported.get("dollars")) is not None:
            paid[step.fingerprint] = float(amount)
    return paid


def is_asked(step: Step) -> bool:
    """Whether a step has a model behind an endpoint write, at a price."""
    endpoint = getattr(step.config, "endpoint", None)
    return isinstance(endpoint, Endpoint) and endpoint.dollars(1, 1) > 0


@dataclass
class Meter:
    """A run's account: counts what is held, writes it down, and says when nothing more may start.

    `costs` are the estimates of the study's steps. Without a `budget` it only counts. `tell` is given the
    metrics whenever they are written; `clock` gives monotonic seconds.
    """

    store: Store
    study: str
    prices: Prices
    costs: Sequence[StepCost] = ()
    budget: float | None = None
    tell: Callable[[Mapping[str, float]], None] = lambda metrics: None
    clock: Callable[[], float] = time.monotonic
    is_reached: bool = field(default=False, init=False)
    """Whether the budget has kept a step from starting or from going on."""

    def __post_init__(self) -> None:
        self._cost_of = {cost.step.name: cost for cost in self.costs}
        self._seconds: dict[tuple[str, str], float] = {}
        self._asked: dict[str, float] = {}
        self._held: Mapping[tuple[str, str], float] = {}
        self._look: Look | None = None
        self._run = self._started = ""
        self._keeps_all = False
        self._counted_at = self._looked_at = self._wrote_at = 0.0
        self._earlier = NOTHING
        self._committed = 0.0

    def begin(self, look: Look, *, keeps_all: bool) -> None:
        """Count from now what `look` says is held. `keeps_all`: GPUs stay held until the run ends, as on one machine.

        With a budget, raises UserError if what was spent before cannot be read. Raises OSError if nothing can be written: the
        next run has to find what this one has spent.
        """
        now = datetime.now(UTC)
        self._run = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self._started = now.isoformat(timespec="seconds")
        self._look, self._keeps_all = look, keeps_all
        self._counted_at = self._looked_at = self._wrote_at = self.clock()
        self._held = look()
        with contextlib.suppress(*(() if self.budget is not None else (UserError,))):
            self._read_others()
        write_run(self.store, self.study, self._own())

    def count(self) -> None:
        """Add what was held since the last call; look again, and write, where it is time."""
        if self._look is None:
            return
        now = self.clock()
        for key, num_gpus in self._held.items():
            self._seconds[key] = self._seconds.get(key, 0.0) + num_gpus * (now - self._counted_at)
        self._counted_at = now
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            # A cluster that does not answer has what it had.
            with contextlib.suppress(Exception):
                self._held = self._look()
        if now - self._wrote_at >= WRITE_EVERY_S:
            self.write()

    def see(self, progress: Progress) -> None:
        """Take up what endpoints were paid in this run; nothing if it was not begun."""
        if self._look is not None:
            self._asked |= pools_paid_for(progress)

    def write(self) -> None:
        """Write down what is counted, and tell it; nothing if it was not begun."""
        if self._look is not None:
            self._save()
            self.tell(self.metrics())

    def end(self) -> None:
        """Count and write for the last time; does nothing if it was never begun. Whom it told may be gone."""
        if self._look is not None:
            self.tell = lambda metrics: None
            self.count()
            self._save()
            self._look, self._committed = None, 0.0

    def watch(self, groups: Iterable[Sequence[Step]], progress: Progress, *, is_waiting: bool = False) -> str:
        """Count, and say in a line what is spent and committed; `groups` are the steps that run together.

        Raises BudgetReached if the budget itself is spent while any run, which are to stop, or one waits for a machine.
        """
        groups = list(groups)
        self.count()
        self.see(progress)
        self._committed = self._dollars(groups, progress)
        if self.budget is not None and (groups or is_waiting) and self.spending.dollars > self.budget:
            self.is_reached = True
            raise BudgetReached(NOTHING_LEFT)
        return self.line() if self.is_of_use else ""

    def why_not(self, group: Sequence[Step], groups: Iterable[Sequence[Step]], progress: Progress) -> str:
        """The reason that `group` may not start beside `groups`, which run; "" if it may.

        It may if what is spent, what runs is still going to cost and the estimate of `group` are within the budget.
        """
        if self.budget is None:
            return ""
        self.count()
        self.see(progress)
        spent = self.spending.dollars
        whole = spent + self._dollars([*groups, group], progress)
        if whole <= self.budget:
            return ""
        self.is_reached = True
        return NOTHING_LEFT if spent > self.budget else f"with {group[0].name} it would be {dollars(whole)}, over the budget"

    @property
    def spending(self) -> Spending:
        """The study's spending, this run's included."""
        return Spending((*self._earlier.runs, self._own())) if self._run else self._earlier

    @property
    def is_of_use(self) -> bool:
        """Whether there is anything to say: nothing is reckoned where no GPU is held and no endpoint paid."""
        return self.budget is not None or bool(self.spending.gpu_hours or self.spending.asked)

    def line(self) -> str:
        """`spent $12.40 of $500.00, $3.10 committed`."""
        spending = self.spending
        of = "" if self.budget is None else f" of {dollars(self.budget)}"
        spent = describe(spending) if spending.unpriced_gpu_hours else dollars(spending.dollars)
        return f"spent {spent}{of}" + (f", {dollars(self._committed)} committed" if self._committed else "")

    def metrics(self) -> dict[str, float]:
        """The same for MLflow: dollars, in all and by market."""
        spending = self.spending
        values = {"spent/dollars": spending.dollars, "spent/gpu_hours": spending.gpu_hours, "spent/committed": self._committed}
        values |= {f"spent/{market.replace(' ', '_')}": amount for market, amount in spending.by_market.items()}
        return values if self.budget is None else {**values, "spent/budget": self.budget}

    def _dollars(self, groups: Iterable[Sequence[Step]], progress: Progress) -> float:
        """What `groups` are still going to cost: GPUs at the mean price of what is held (before anything is, that on demand),
        and what endpoints are still to be paid.
        """
        groups = list(groups)
        num_held = sum(self._held.values())
        paid = sum(number * (self.prices.of(*key) or 0.0) for key, number in self._held.items())
        price = paid / num_held if num_held else self.prices.usual or 0.0
        gpus = to_come(groups, progress, self._cost_of, num_held if self._keeps_all else None) / 3600 * price
        return gpus + sum(self._still_asked(step) for group in groups for step in group if is_asked(step))

    def _still_asked(self, step: Step) -> float:
        cost = endpoint_costs([step], self.prices.table)
        return max(cost.dollars - self._asked.get(step.fingerprint, 0.0), 0.0) if cost else 0.0

    def _own(self) -> RunSpending:
        held = tuple(
            Held(gpu, market, seconds, self.prices.of(gpu, market)) for (gpu, market), seconds in self._seconds.items()
        )
        return RunSpending(
            self._run, self._started, datetime.now(UTC).isoformat(timespec="seconds"), self.budget, held, dict(self._asked)
        )

    def _save(self) -> None:
        self._wrote_at = self.clock()
        # A store that is away for a while does not end the run: the next time writes all of it. One that does not answer at all
        # holds up nobody who is to see to notices and steps.
        with contextlib.suppress(Exception):
            within(SAVE_S, write_run, self.store, self.study, self._own())
            within(SAVE_S, self._read_others)

    def _read_others(self) -> None:
        """Take up what other runs of the study have spent, one that goes on at the same time included."""
        everything = read_spending(self.store, self.study).priced(self.prices.usual)
        self._earlier = Spending(tuple(run for run in everything.runs if run.run != self._run))
