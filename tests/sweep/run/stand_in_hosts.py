"""Lanes of a run whose steps end as a test says. No Ray runs."""

from collections.abc import Iterable, Iterator
from typing import Any

from sweep.graph.step import Step
from sweep.run.lanes import Hosts
from sweep.run.trial import Order, Outcome
from sweep.run.tune import Run


class StandInHosts(Hosts):
    """`orders` are all that were given to any lane; `outcomes`, by place, are those that are there and not fetched yet, and
    `late` those that are only there if they are waited for. `opened`, and `given_up` of them, are lanes ahead, by name; `sound`
    is said of each host that was given back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []
        self.outcomes: dict[int, Outcome] = {}
        self.late: dict[int, Outcome] = {}
        self.opened: dict[str, Order] = {}
        self.given_up: list[str] = []
        self.sound: list[bool] = []

    def take(self, step: Step) -> Any:
        return self

    def send(self, host: Any, lane: str, order: Order) -> int:
        self.orders.append(order)
        return len(self.orders) - 1

    def arrived(self, sent: Iterable[Any], *, wait_s: float = 0.0) -> Iterator[tuple[int, Outcome | None]]:
        self.outcomes |= self.late if wait_s else {}
        for place in [place for place in sent if place in self.outcomes]:
            yield place, self.outcomes.pop(place)

    def open(self, host: Any, lane: str, order: Order) -> None:
        self.opened[lane] = order

    def give_up(self, host: Any, lane: str) -> None:
        self.given_up.append(lane)

    def close(self, host: Any, lane: str) -> None:
        pass

    def give_back(self, host: Any, *, is_sound: bool) -> None:
        self.sound.append(is_sound)


def orders_of(run: Run, trial: str) -> list[Order]:
    """What the lane of a trial has under way, in the order in which it was given it."""
    assert isinstance(run.hosts, StandInHosts)
    return [run.hosts.orders[place] for place in run.lanes[trial].sent]


def end(run: Run, trial: str, *outcomes: Outcome) -> None:
    """All that the lane of a trial has under way ends so; and with its last step the lane, if it takes on no other."""
    assert isinstance(run.hosts, StandInHosts)
    lane = run.lanes[trial]
    run.hosts.outcomes |= dict(zip(lane.sent, outcomes, strict=True))
    run.attend()
    if lane.is_closed:
        run.complete(trial, {"lost": None}, error=False)
