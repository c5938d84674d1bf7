"""Golden values worked out by hand or taken from tables, not from the code under test."""

import math

import pytest

from analysis.stats.statistics import mean_estimate, odds_ratio, paired_difference, ratio_interval, wilson_interval


def test_wilson_interval_of_8_in_10() -> None:
    # (0.8 + z²/20 ± z √(0.16/10 + z²/400)) / (1 + z²/10) with z = 1.959964.
    interval = wilson_interval(8, 10)
    assert interval.low == pytest.approx(0.49016, abs=1e-5)
    assert interval.high == pytest.approx(0.94332, abs=1e-5)


def test_wilson_interval_at_the_ends_is_one_sided() -> None:
    # z² / (n + z²) = 3.8415 / 103.8415.
    assert wilson_interval(0, 100).low == 0.0
    assert wilson_interval(0, 100).high == pytest.approx(0.03699, abs=1e-5)
    assert wilson_interval(100, 100).high == 1.0
    assert wilson_interval(100, 100).low == pytest.approx(0.96301, abs=1e-5)


@pytest.mark.parametrize(("num_correct", "num_examples"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(num_correct: int, num_examples: int) -> None:
    with pytest.raises(ValueError, match=str(num_correct)):
        wilson_interval(num_correct, num_examples)


def test_paired_difference_of_three_seeds() -> None:
    # Differences 1, 2, 3: mean 2, SD 1, standard error 1/√3, t(0.975, 2) = 4.30265: 2 ± 2.48414.
    estimate = paired_difference({7: 11.0, 8: 22.0, 9: 33.0}, {9: 30.0, 8: 20.0, 7: 10.0})
    assert (estimate.mean, estimate.n, estimate.low, estimate.high) == (2.0, 3, 1.0, 3.0)
    assert estimate.interval is not None
    assert estimate.interval.low == pytest.approx(-0.48414, abs=1e-5)
    assert estimate.interval.high == pytest.approx(4.48414, abs=1e-5)
    assert estimate.method == "t over 3 seeds"


def test_two_seeds_have_a_very_wide_interval() -> None:
    # t(0.975, 1) = 12.7062, standard error of (0, 1) is 0.5.
    estimate = mean_estimate([0.0, 1.0])
    assert estimate.interval is not None
    assert estimate.interval.high - estimate.interval.low == pytest.approx(12.7062, abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    estimate = paired_difference({1: 0.5}, {1: 0.4})
    assert estimate.interval is None
    assert estimate.method == "no interval (n=1)"
    assert estimate.n == 1


def test_seeds_that_agree_exactly_do_not_give_an_interval_of_width_zero() -> None:
    estimate = paired_difference({1: 1.0, 2: 1.0, 3: 1.0}, {1: 0.9, 2: 0.9, 3: 0.9})
    assert estimate.interval is None
    assert "agree exactly" in estimate.method


def test_unpaired_seeds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"seeds \[2, 3\]"):
        paired_difference({1: 0.5, 2: 0.5}, {1: 0.4, 3: 0.4})


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_the_mean_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError):
        mean_estimate(values)


def test_ratio_interval_by_hand() -> None:
    # ln 2 ± 1.959964 √(1/20 − 1/100 + 1/10 − 1/100) = 0.693147 ± 0.706675.
    interval = ratio_interval(20, 100, 10, 100)
    assert interval is not None
    assert interval.low == pytest.approx(math.exp(-0.013528), abs=1e-4)
    assert interval.high == pytest.approx(math.exp(1.399822), abs=1e-4)
    assert ratio_interval(0, 100, 10, 100) is None
    with pytest.raises(ValueError, match="empty group"):
        ratio_interval(0, 0, 10, 100)


def test_odds_ratio_of_a_fourfold_table() -> None:
    # (10 × 40) / (20 × 30) = 2/3; √(1/10 + 1/20 + 1/30 + 1/40) = √0.208333.
    estimate = odds_ratio((10, 20), (30, 40))
    assert estimate.ratio == pytest.approx(2 / 3)
    assert estimate.standard_error == pytest.approx(0.456435, abs=1e-6)
    # exp(−0.405465 ± 1.959964 × 0.456435).
    assert estimate.interval().low == pytest.approx(0.272515, abs=1e-6)
    assert estimate.interval().high == pytest.approx(1.630900, abs=1e-6)


def test_one_half_is_added_only_where_a_count_is_0() -> None:
    # (0.5 × 40.5) / (20.5 × 30.5); √(2 + 1/20.5 + 1/30.5 + 1/40.5).
    estimate = odds_ratio((0, 20), (30, 40))
    assert estimate.ratio == pytest.approx(20.25 / 625.25)
    assert estimate.standard_error == pytest.approx(1.451296, abs=1e-6)


def test_a_ratio_of_odds_ratios_adds_the_variances() -> None:
    ratio = odds_ratio((10, 20), (30, 40)).over(odds_ratio((20, 10), (40, 30)))
    # (2/3) / (60/40); √(2 × 0.208333).
    assert ratio.ratio == pytest.approx(4 / 9)
    assert ratio.standard_error == pytest.approx(0.645497, abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [((0, 0), (1, 1)), ((1, 1), (0, 0)), ((-1, 2), (1, 1))])
def test_odds_ratio_refuses_empty_groups_and_negative_counts(first: tuple[int, int], second: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="an empty group has no odds"):
        odds_ratio(first, second)
