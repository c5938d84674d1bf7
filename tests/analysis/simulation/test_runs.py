"""On the 100 real BERT runs, where they lie beside the repository, and on numbers that are known."""

from pathlib import Path

import numpy as np
import pytest

from analysis.simulation.runs import SETS, SUBCASE_ITEMS, read_runs, run_coverage, simulated_runs, subcases
from analysis.simulation.scenarios import hans
from pipelines.errors import UserError

FILE = Path(__file__).parents[4] / "shared" / "data" / "hans" / "bert_100_runs.csv"
needs_runs = pytest.mark.skipif(not FILE.is_file(), reason="no bert_100_runs.csv beside the repository")


@needs_runs
def test_real_runs_are_read_without_the_summary_below_them() -> None:
    runs = read_runs(FILE)
    assert {len(values) for values in runs.values()} == {100}
    assert runs["Lexical (nonent)"].mean() == pytest.approx(0.276572)
    assert len(subcases(runs)) == 28


@needs_runs
@pytest.mark.parametrize("column", SETS)
@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_real_runs_are_covered_and_seldom_found_to_differ(column: str, num_seeds: int) -> None:
    found = run_coverage(column, read_runs(FILE)[column], num_seeds, seed=1, num=1000)
    assert found.rejected <= 0.075
    assert found.covered >= 0.92


@needs_runs
def test_subcases_are_covered_at_the_floor_and_the_ceiling() -> None:
    runs = read_runs(FILE)
    for name in subcases(runs):
        found = run_coverage(name, runs[name], 5, seed=1, num=500, num_items=SUBCASE_ITEMS)
        assert found.rejected <= 0.09, name
        assert found.covered >= 0.92, name


def test_draws_of_normal_runs_are_covered_as_promised() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.05, 100)
    found = run_coverage("", values, 10, seed=1, num=4000)
    assert found.rejected == pytest.approx(0.05, abs=0.015)
    assert found.covered == pytest.approx(0.95, abs=0.015)


def test_simulated_runs_have_the_spread_of_the_real_ones() -> None:
    runs = simulated_runs(hans(""), 100, 20, seed=1)
    assert runs.shape == (20, 100)
    assert runs.std(axis=1, ddof=1).mean() == pytest.approx(0.124, abs=0.01)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("Run,accuracy\nRun 0,0.5\n")
    with pytest.raises(UserError, match=r"bert_100_runs\.csv"):
        read_runs(tmp_path / "other.csv")
