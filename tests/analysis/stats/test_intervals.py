"""Golden values worked out by hand or taken from tables, not from the code under test."""

import math

import numpy as np
import pytest

from analysis.stats.intervals import LEAST_P, Effect, Replicates, mean_of, replicates, two_level_bootstrap, variances
from pipelines.errors import UserError

ONE_STRATUM = np.zeros(4, dtype=int)


def test_items_to_values_and_residuals_by_hand() -> None:
    # Seed 7 has the first cluster right only: mean 0.5, the cluster's two items are 1 above it together, of 4 items: 0.25.
    items = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    found = replicates([7, 9], items, np.array([3, 3, 8, 8]), ONE_STRATUM)
    assert found.values.tolist() == [0.5, 0.75]
    assert found.residuals.tolist() == [[0.25, -0.25], [-0.125, 0.125]]
    assert (found.num_items, found.num_clusters) == (4, 2)


def test_a_stratum_whose_share_is_fixed_adds_nothing_to_the_variance() -> None:
    # All items of one stratum are right and all of the other wrong: half of any such test set would be right.
    items = np.array([[1.0, 1.0, 0.0, 0.0]])
    strata = np.array([0, 0, 1, 1])
    assert replicates([0], items, np.arange(4), strata).effect().item_variance == 0.0
    assert replicates([0], items, np.arange(4), ONE_STRATUM).effect().item_variance > 0.05


def test_variances_by_hand() -> None:
    # Two clusters of equal size: leverage 1/2, so residuals count double. Seeds' means over clusters are ±(0.1 + 0.05):
    # 2 × 0.15² = 0.045; from seed to seed they differ by 0.1: variance 0.005 twice, over 2 seeds: 0.005. 0.045 − 0.005 = 0.04.
    residuals = np.array([[0.1, -0.1], [0.05, -0.05]])
    seed_variance, item_variance = variances(np.array([0.2, 0.4]), residuals, np.array([0.5, 0.5]))
    assert seed_variance == pytest.approx(0.02)
    assert item_variance == pytest.approx(0.04)


def test_item_variance_that_the_seeds_account_for_is_not_counted_twice() -> None:
    # The seeds' residuals cancel: what differs over items is a matter of the seed alone.
    residuals = np.array([[0.1, -0.1], [-0.1, 0.1]])
    assert variances(np.array([0.2, 0.4]), residuals, np.array([0.5, 0.5]))[1] == 0.0


def test_interval_of_seeds_and_items_by_hand() -> None:
    # t(0.975, 2) = 4.30265 over 3 seeds, 1.95996 over many items: √(4.30265² / 3 + 1.95996² × 0.25) = 2.67045.
    interval = Effect(2.0, 3, 1000, 1.0, 0.25).interval()
    assert interval is not None
    assert interval.low == pytest.approx(-0.67045, abs=1e-4)
    assert interval.high == pytest.approx(4.67045, abs=1e-4)


def test_p_value_without_item_variance_is_the_t_test() -> None:
    # t = 2 √3 with 2 degrees of freedom: two-sided p = 1 − t / √(t² + 2) = 0.074180.
    effect = Effect(2.0, 3, 1000, 1.0, 0.0)
    assert 2 * effect.p_above() == pytest.approx(0.074180, abs=1e-5)
    assert effect.p_below() == pytest.approx(1 - 0.037090, abs=1e-5)
    assert effect.p_above(2.0) == 0.5
    assert effect.p_above(3.0) > 0.5


def test_p_value_far_out_is_small_and_finite() -> None:
    assert Effect(1.0, 2, 100, 1e-20, 0.0, item_df=1.0).p_above() == pytest.approx(1e-10 / math.sqrt(2) / math.pi, rel=1e-3)
    assert Effect(1.0, 30, 100, 1e-10, 0.0, item_df=1.0).p_above() == pytest.approx(LEAST_P)


@pytest.mark.parametrize("mean", [-1.0, 3.0])
def test_p_value_and_interval_agree(mean: float) -> None:
    effect = Effect(mean, 5, 1000, 1.0, 0.3, item_df=6.0)
    interval = effect.interval()
    assert interval is not None
    assert effect.p_above(interval.low) == pytest.approx(0.025)
    assert effect.p_below(interval.high) == pytest.approx(0.025)


def test_one_seed_speaks_of_items_only_and_equal_seeds_have_no_interval() -> None:
    # 1.95996 × √0.04.
    interval = Effect(0.1, 1, 100, math.nan, 0.04).interval()
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 0.391993, abs=1e-5)
    stuck = Effect(0.1, 3, 100, 0.0, 0.04)
    assert stuck.interval() is None
    assert math.isnan(stuck.p_above())


def test_different_test_sets_subtract_by_seed() -> None:
    first = replicates([1, 2], np.array([[1.0, 0.0], [1.0, 1.0]]), np.arange(2), np.zeros(2, dtype=int))
    second = replicates([1, 2], np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), np.arange(3), np.zeros(3, dtype=int))
    both = first - second
    assert both.values.tolist() == pytest.approx([0.5 - 1 / 3, 1 - 1 / 3])
    assert (both.num_clusters, both.num_items) == (5, 5)
    assert both.effect().item_df == pytest.approx(1 + 2)
    with pytest.raises(ValueError, match="seeds"):
        first.of([1]) - second


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="none may be empty"):
        replicates([], np.empty((0, 2)), np.arange(2), np.zeros(2, dtype=int))
    with pytest.raises(UserError, match="1 cluster"):
        replicates([0], np.ones((1, 2)), np.zeros(2, dtype=int), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="two strata"):
        replicates([0], np.ones((1, 3)), np.array([0, 0, 1]), np.array([0, 1, 1]))


def bootstrap_data(num_seeds: int) -> Replicates:
    random = np.random.default_rng(5)
    items = random.normal(size=(num_seeds, 40)) + random.normal(size=(num_seeds, 1))
    return replicates(list(range(num_seeds)), items, np.arange(40), np.zeros(40, dtype=int))


def test_bootstrap_resamples_seeds_and_items() -> None:
    data = bootstrap_data(30)
    interval, effect = two_level_bootstrap(data, seed=1), data.effect()
    assert interval == two_level_bootstrap(data, seed=1)
    assert interval != two_level_bootstrap(data, seed=2)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * effect.standard_error, rel=0.15)
    around = effect.interval()
    few = bootstrap_data(3)
    wide, narrow = few.effect().interval(), two_level_bootstrap(few, seed=1)
    assert around is not None and wide is not None
    assert (wide.high - wide.low) > 2 * (narrow.high - narrow.low)
    with pytest.raises(UserError, match="1 seed"):
        two_level_bootstrap(data.of([3]), seed=1)


def test_values_on_the_same_items_subtract_over_the_seeds_that_both_have() -> None:
    clusters, strata = np.array([0, 0, 1]), np.zeros(3, dtype=int)
    first = replicates([1, 2, 3], np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), clusters, strata)
    items = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    second = replicates([3, 1], items, clusters, strata)
    direct = replicates([1, 3], np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), clusters, strata)
    found = first.minus(second)
    assert (found.seeds, found.num_items, found.num_clusters) == ((1, 3), 3, 2)
    assert found.values == pytest.approx(direct.values)
    assert found.residuals == pytest.approx(direct.residuals)
    assert mean_of([first, second]).values == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(UserError, match="no seed is on all sides"):
        first.of([2]).minus(second)
    with pytest.raises(ValueError, match="other items"):
        first.minus(replicates([1], items[:1], np.arange(3), strata))


def test_seeds_of_a_group_stand_as_one() -> None:
    data = replicates([4, 5, 6], np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), np.arange(2), np.zeros(2, dtype=int))
    found = data.grouped({4: 1, 5: 0, 6: 1, 7: 2})
    assert (found.seeds, found.num_seeds_each) == ((0, 1), (1, 2))
    assert found.values.tolist() == [0.0, 0.75]
    assert found.residuals.tolist() == [[0.0, 0.0], [0.125, -0.125]]
    assert found.of([1]).num_seeds_each == (2,)
    assert (found - found).num_seeds_each == (1, 2)
    assert found.effect().num_seeds == 2
