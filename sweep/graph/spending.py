"""What the runs of a study have spent in its store: GPU-seconds held, by GPU and market, at the price that was paid, and what
endpoints were paid for its pools. Light.

Each run keeps a file of its own under `{store}/spend/{study}/` and writes it anew about once a minute, so that two runs at a
time lose nothing of each other's and a killed one loses a minute. The study's spending is the sum over them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.errors import UserError
from pipelines.storage import join
from sweep.graph.records import Store
from sweep.graph.sealed import seal, unseal

FORMAT = 1
ON_DEMAND, SPOT = "on demand", "spot"
"""The markets that a GPU's hour is bought on."""
ENDPOINT = "endpoint"
"""Stands beside the markets for what a model behind an endpoint was paid."""


class BudgetReached(BaseException):
    """The budget is spent while steps run. Not an Exception: Ray Tune must pass it on, and no stage may catch it."""


@dataclass(frozen=True)
class Held:
    """GPUs of one kind and market that a run has held, idle or not. `price`, dollars an hour of one, is None if unknown."""

    gpu: str
    market: str
    gpu_seconds: float
    price: float | None

    @property
    def dollars(self) -> float | None:
        return None if self.price is None else self.gpu_seconds / 3600 * self.price


@dataclass(frozen=True)
class RunSpending:
    """One run's part: `started` and `updated` are ISO 8601 in UTC, `budget` the dollars that its command allowed the study.

    `asked` are a pool's fingerprint → the dollars that its endpoint was paid so far, those of earlier runs included.
    """

    run: str
    started: str
    updated: str
    budget: float | None
    held: tuple[Held, ...] = ()
    asked: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spending:
    """All runs of a study in one store."""

    runs: tuple[RunSpending, ...] = ()

    @property
    def held(self) -> tuple[Held, ...]:
        return tuple(held for run in self.runs for held in run.held)

    @property
    def asked(self) -> float:
        """Dollars that endpoints were paid: of each pool what the run says that has seen most of it."""
        most: dict[str, float] = {}
        for run in self.runs:
            for pool, amount in run.asked.items():
                most[pool] = max(most.get(pool, 0.0), amount)
        return sum(most.values())

    def priced(self, price: float | None) -> "Spending":
        """The same, with GPU-hours whose price was not known then reckoned at `price`."""

        def at(held: Held) -> Held:
            return dataclasses.replace(held, price=price) if held.price is None else held

        return Spending(tuple(dataclasses.replace(run, held=tuple(map(at, run.held))) for run in self.runs))

    @property
    def gpu_hours(self) -> float:
        return sum(held.gpu_seconds for held in self.held) / 3600

    @property
    def unpriced_gpu_hours(self) -> float:
        """Those that are in no sum of dollars."""
        return sum(held.gpu_seconds for held in self.held if held.price is None) / 3600

    @property
    def by_market(self) -> dict[str, float]:
        """Market → dollars, and what endpoints were paid as `ENDPOINT`; one on which nothing was paid is left out."""
        sums: dict[str, float] = {}
        for held in self.held:
            if held.dollars is not None:
                sums[held.market] = sums.get(held.market, 0.0) + held.dollars
        return sums | ({ENDPOINT: self.asked} if self.asked else {})

    @property
    def dollars(self) -> float:
        return sum(self.by_market.values())

    @property
    def budget(self) -> float | None:
        """The budget of the run that began last."""
        return max(self.runs, key=lambda run: run.started).budget if self.runs else None


NOTHING = Spending()


def folder(store: Store, study: str) -> str:
    return join(store.uri, "spend", study)


def read_spending(store: Store, study: str) -> Spending:
    """The spending of all runs so far. Raises UserError for a file that cannot be read: a budget cannot be kept without it."""
    where = folder(store, study)
    runs = []
    for name in sorted(store.names(where)):
        if name.startswith(".") or not name.endswith(".json"):
            continue
        path = join(where, name)
        try:
            values = unseal(store._read(path) or b"")
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            values["held"] = tuple(Held(**held) for held in values["held"])
            values["asked"] = {str(pool): float(amount) for pool, amount in values.get("asked", {}).items()}
            runs.append(RunSpending(**values))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is not a readable account of what a run has spent ({error}); restore it, or remove it to forget "
                "what that run has cost"
            ) from error
    return Spending(tuple(runs))


def write_run(store: Store, study: str, run: RunSpending) -> None:
    """Write or replace the account of one run."""
    text = seal({"format": FORMAT, **dataclasses.asdict(run)})
    store.write_bytes(join(folder(store, study), f"{run.run}.json"), text.encode())


def dollars(amount: float) -> str:
    """$1,234.50; below a cent to four places, so that what is cheap is not free."""
    return f"${amount:,.4f}" if 0.00005 <= amount < 0.01 else f"${amount:,.2f}"


def describe(spending: Spending) -> str:
    """What is spent, in words: in all, by market, and the GPU-hours."""
    by_market = spending.by_market
    parts = [f"{dollars(amount)} {market}" for market, amount in by_market.items()] if len(by_market) > 1 else list(by_market)
    hours = [_hours(spending.gpu_hours)] if spending.gpu_hours or not spending.asked else []
    text = f"{dollars(spending.dollars)} ({', '.join([*parts, *hours])})"
    if spending.unpriced_gpu_hours:
        text += f", of which {_hours(spending.unpriced_gpu_hours)} have no price"
    return text


def spent_in_words(store: Store, study: str) -> str:
    """What a study has cost; "" if it has held no GPU and paid no endpoint. A damaged account is named and does not hide the
    rest of a page.
    """
    try:
        spending = read_spending(store, study)
    except UserError as error:
        return f"an unknown sum: {error}"
    of = "" if spending.budget is None else f" of {dollars(spending.budget)}, the last run's budget"
    return f"{describe(spending)}{of}" if spending.gpu_hours or spending.asked else ""


def _hours(hours: float) -> str:
    return f"{hours:,.2f} GPU-hours" if hours >= 0.1 else f"{hours * 3600:,.0f} GPU-seconds"


def as_json(spending: Spending) -> dict[str, object]:
    """For programs: dollars, GPU-hours, and both by GPU and market."""
    sums: dict[tuple[str, str, float | None], float] = {}
    for held in spending.held:
        key = (held.gpu, held.market, held.price)
        sums[key] = sums.get(key, 0.0) + held.gpu_seconds
    return {
        "dollars": spending.dollars,
        "by_market": spending.by_market,
        "endpoint_dollars": spending.asked,
        "gpu_hours": spending.gpu_hours,
        "unpriced_gpu_hours": spending.unpriced_gpu_hours,
        "budget": spending.budget,
        "held": [
            {"gpu": gpu, "market": market, "gpu_hours": seconds / 3600, "price": price}
            for (gpu, market, price), seconds in sums.items()
        ],
        "runs": len(spending.runs),
    }
