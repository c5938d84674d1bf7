"""Against Wilson's interval and by hand; how often they cover is in tests/analysis/simulation/test_cells.py."""

import math

import numpy as np
import pytest

from analysis.stats.intervals import Replicates, replicates
from analysis.stats.shares import num_effective, share_ends, share_interval
from analysis.stats.statistics import wilson_interval

ONE_STRATUM = np.zeros(40, dtype=int)


def answers(*rights: int) -> Replicates:
    """A seed for each number of right items, of 40 in ten clusters of four; whole clusters are right first."""
    items = np.array([[1.0] * right + [0.0] * (40 - right) for right in rights])
    return replicates(range(len(rights)), items, np.arange(40) // 4, ONE_STRATUM)


def test_with_the_binomial_variance_it_is_wilsons_interval() -> None:
    for right, num in ((8, 10), (0, 100), (100, 100)):
        wilson, share = wilson_interval(right, num), right / num
        low, high = share_ends(share, 0.0, 0, share * (1 - share) / num, math.inf, num)
        assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def test_all_wrong_and_all_right_have_an_interval_of_the_clusters() -> None:
    # Ten equal clusters, of which each counts for four items, as it has no more: t(0.975, 9) = 2.26216, squared 5.11736;
    # 5.11736 / (40 + 5.11736) = 0.11342.
    wrong, right = share_interval(answers(0, 0, 0)), share_interval(answers(40, 40))
    assert wrong is not None and right is not None
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 0.11342), abs=1e-4)
    assert (right.low, right.high) == pytest.approx((1 - 0.11342, 1.0), abs=1e-4)


def test_no_cluster_counts_for_more_than_ten_items() -> None:
    assert num_effective(np.full(10, 500), np.zeros(10, dtype=int)) == pytest.approx(100)
    assert num_effective(np.full(10, 4), np.zeros(10, dtype=int)) == 40
    # Sizes 1 and 3 weigh as much as 4² / (1² + 3²) = 1.6 equal ones.
    assert num_effective(np.array([100, 300]), np.zeros(2, dtype=int)) == pytest.approx(16)


def test_clusters_make_the_interval_of_one_seed_wider() -> None:
    clustered = share_interval(answers(20))
    apart = share_interval(replicates([0], np.array([[1.0] * 20 + [0.0] * 20]), np.arange(40), ONE_STRATUM))
    assert clustered is not None and apart is not None
    assert clustered.high - clustered.low > 1.7 * (apart.high - apart.low)


def test_seeds_that_agree_exactly_in_the_middle_have_no_interval() -> None:
    assert share_interval(answers(20, 20)) is None
    assert share_interval(answers(20)) is not None
