"""The page that is made from results."""

import json
from pathlib import Path

import pytest

from benchmarks.common import Figure, Limits, Part, Work, describe, make_parser
from benchmarks.page import PAGE, RESULTS, read_result, render
from pipelines.errors import UserError


def test_a_table_has_medians_ratios_fractions_and_targets() -> None:
    parser = make_parser("", repeats=1)
    figures = [
        Figure(
            "training", "examples/s", {"ours": [300, 340], "peer": [80]}, peer="peer", work=Work((Part("model", 1e12),), "all")
        ),
        Figure("artifact", "s", {"ours": [0.25], "slow": [3.0]}, peer="tune", lower_is_better=True, target=1),
        Figure("plan", "s", {"ours": [2.5]}, lower_is_better=True, target=2),
    ]
    arguments = parser.parse_args(["--note", "two cores"])
    result = describe("task_model", parser, arguments, figures, limits=Limits("g", 1e15, 1e12, "the maker"))
    page = render([result | {"date": "2026-01-02T00:00:00", "versions": {"torch": "2"}}])
    assert "## Task model, 2026-01-02" in page
    assert "Two cores. Commit" in page
    assert "| training | ours | 320 examples/s (300 to 340) | 4.00 | 32% |  |" in page
    assert "| training | peer (peer) | 80 examples/s |  | 8% |  |" in page
    assert "| artifact | ours | 0.25 s |  |  | 1 s: met |" in page
    assert "| artifact | slow | 3 s |  |  |  |" in page
    assert "| plan | ours | 2.5 s |  |  | 2 s: missed |" in page
    assert "the limit is 1,000 examples/s, at 1000 TFLOP/s and 1 TB/s (the maker)" in page


def test_newer_results_of_a_benchmark_come_first() -> None:
    parser = make_parser("", repeats=1)
    one = describe("generation", parser, parser.parse_args([]), [Figure("texts", "texts/s", {"raw": [1]})])
    page = render(
        [one | {"date": "2026-01-01"}, one | {"date": "2026-02-01"}, one | {"benchmark": "adapters", "date": "2025-01-01"}]
    )
    order = [page.index(title) for title in ("Adapters, 2025-01-01", "Generation, 2026-02-01", "Generation, 2026-01-01")]
    assert order == sorted(order)


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"arguments": {}}))
    with pytest.raises(UserError, match=r"old\.json is not a result of format 1"):
        read_result(path)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render([read_result(path) for path in sorted(RESULTS.glob("*.json"))])
