"""Intervals of cells hold their truth at the floor, in the middle and at the ceiling; the whole table is docs/coverage.md."""

import pytest

from analysis.simulation.cells import cell_coverage, cells_at
from analysis.simulation.scenarios import hans

NUM = 600
"""At 93% the Monte Carlo standard error is 1 point."""


@pytest.mark.parametrize("num_seeds", [1, 3, 5, 10])
@pytest.mark.parametrize("accuracy", [0.005, 0.01, 0.05, 0.95, 0.99])
def test_a_cell_is_covered_near_the_ends(accuracy: float, num_seeds: int) -> None:
    for name, scenario in cells_at(accuracy):
        found = cell_coverage(name, scenario, num_seeds, seed=1, num=NUM)
        assert found.covered >= 0.93, name
        # The interval that does not look at the ends does not cover there: what is tested here can fail.
        assert found.covered_by_t < 0.93, name
        # An interval of everything would cover, too.
        assert found.width < 0.35, name


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_in_the_middle_it_is_no_wider_than_students_t(num_seeds: int) -> None:
    found = cell_coverage("25 templates", hans("", accuracy=0.5), num_seeds, seed=1, num=NUM)
    assert found.covered >= 0.93
    assert found.width < found.width_by_t
