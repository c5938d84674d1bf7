"""What a study has spent, kept with its store: sums worked out by hand."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweep.graph.records import Store
from sweep.graph.spending import (
    ENDPOINT,
    ON_DEMAND,
    SPOT,
    Held,
    RunSpending,
    Spending,
    as_json,
    describe,
    dollars,
    read_spending,
    spent_in_words,
    write_run,
)

FIRST = RunSpending("a", "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00", 10.0, (Held("l4", ON_DEMAND, 7_200, 1.5),))
SECOND = RunSpending(
    "b",
    "2026-01-02T00:00:00+00:00",
    "2026-01-02T01:00:00+00:00",
    20.0,
    (Held("l4", SPOT, 3_600, 0.5), Held("t4", ON_DEMAND, 1_800, None)),
)


def test_the_runs_of_a_study_add_up_whoever_wrote_them_and_another_studys_do_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_spending(store, "study") == Spending()
    for run in (FIRST, SECOND, FIRST):  # written anew in its place
        write_run(store, "study", run)
    write_run(store, "other", FIRST)
    found = read_spending(Store(tmp_path), "study")
    assert found.runs == (FIRST, SECOND)
    assert found.by_market == {ON_DEMAND: 3.0, SPOT: 0.5} and found.dollars == 3.5
    assert (found.gpu_hours, found.unpriced_gpu_hours, found.budget) == (3.5, 0.5, 20.0)
    assert describe(found) == "$3.50 ($3.00 on demand, $0.50 spot, 3.50 GPU-hours), of which 0.50 GPU-hours have no price"
    assert found.priced(4).dollars == 5.5 and found.priced(4).unpriced_gpu_hours == 0
    shown = as_json(found)
    assert shown["by_market"] == {ON_DEMAND: 3.0, SPOT: 0.5} and shown["runs"] == 2
    assert {"gpu": "t4", "market": ON_DEMAND, "gpu_hours": 0.5, "price": None} in shown["held"]  # type: ignore[operator]


def test_what_endpoints_were_paid_for_a_pool_is_counted_once_over_its_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stamps = FIRST.started, FIRST.updated
    write_run(store, "study", RunSpending("a", *stamps, None, asked={"pool": 2.0, "other": 1.0}))
    # The second run went on with the first pool, and says what both have paid for it.
    write_run(store, "study", RunSpending("b", *stamps, None, asked={"pool": 3.5}))
    found = read_spending(store, "study")
    assert found.asked == 4.5 == found.dollars == found.priced(2.0).dollars and found.by_market == {ENDPOINT: 4.5}
    assert describe(found) == "$4.50 (endpoint)" == spent_in_words(store, "study")
    assert as_json(found)["endpoint_dollars"] == 4.5
    write_run(store, "study", dataclasses.replace(FIRST, run="c"))
    both = "$7.50 ($3.00 on demand, $4.50 endpoint, 2.00 GPU-hours)"
    assert describe(read_spending(store, "study")) == both


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "run": "a"}', '{"format": 1, "held": [1]}'])
def test_a_damaged_account_is_named_instead_of_being_forgotten(content: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_run(store, "study", FIRST)
    (tmp_path / "spend" / "study" / "b.json").write_text(content)
    with pytest.raises(UserError, match=r"spend/study/b\.json is not a readable account .*restore it, or remove it"):
        read_spending(store, "study")


def test_a_half_written_account_is_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_run(store, "study", FIRST)
    (tmp_path / "spend" / "study" / ".b.json.partial").write_text("{")
    assert read_spending(store, "study").runs == (FIRST,)


@pytest.mark.parametrize(("amount", "shown"), [(0, "$0.00"), (0.0004, "$0.0004"), (12.4, "$12.40"), (1234.5, "$1,234.50")])
def test_dollars(amount: float, shown: str) -> None:
    assert dollars(amount) == shown
