"""Against textbook sample sizes and by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.stats.intervals import Effect
from analysis.study.power import Variance, fewest, power_table, variance_table
from pipelines.errors import UserError


def test_seeds_for_an_effect_of_one_and_of_half_a_standard_deviation() -> None:
    # Paired t test, 80 % power, two-sided 5 %: 10 and 34 pairs (Cohen 1988; G*Power).
    one = Variance("d", 1.0)
    assert (one.seeds_for(1.0), one.seeds_for(0.5)) == (10, 34)


def test_ten_points_of_100_bert_runs_need_about_thirty_seeds() -> None:
    # A standard deviation of 12.4 points on each side: 17.5 of the difference. 10 points are 0.57 of it.
    one = Variance("HANS", 2 * 0.124**2)
    assert one.power(5, 0.10) < 0.25
    assert one.power(30, 0.10) > 0.8
    assert one.seeds_for(0.10) == 27


def test_items_set_a_limit_that_no_seeds_pass() -> None:
    # 1.95996 + 0.84162 = 2.80159 standard errors of 0.02 is what can be seen with any number of seeds.
    one = Variance("d", 0.01**2, 0.02**2)
    assert one.seeds_for(0.05) is None
    assert one.seeds_for(0.0562) is not None
    assert one.detectable(1000) == pytest.approx(0.0560, abs=2e-4)


def test_detectable_is_the_inverse_of_power() -> None:
    one = Variance("d", 0.05**2, 0.01**2, item_df=12)
    assert one.power(7, one.detectable(7)) == pytest.approx(0.8)
    with pytest.raises(UserError, match="at least 2"):
        one.detectable(1)


def test_seeds_for_equivalence() -> None:
    # Normal approximation, true 0, sd of 2 margins: n = (1.645 + 1.2816)² × 4 = 34.3; Student's t needs one or two more.
    one = Variance("d", 0.02**2)
    assert one.seeds_for_equivalence(0.0, 0.01) in (35, 36, 37)
    assert one.seeds_for_equivalence(0.02, 0.01) is None


def test_a_pilot_says_how_little_it_knows_of_the_standard_deviation() -> None:
    # 5 seeds: chi-squared quantiles with 4 degrees of freedom are 0.48442 and 11.14329.
    pilot = Variance.of("d", Effect(0.0, 5, 100, 0.04, 0.0))
    interval = pilot.seed_sd_interval()
    assert interval is not None
    assert interval.low == pytest.approx(math.sqrt(4 * 0.04 / 11.14329), abs=1e-5)
    assert interval.high == pytest.approx(math.sqrt(4 * 0.04 / 0.48442), abs=1e-3)


@pytest.mark.parametrize("variance", [math.nan, 0.0])
def test_one_seed_and_equal_seeds_are_no_pilot(variance: float) -> None:
    with pytest.raises(UserError, match="two seeds that differ"):
        Variance.of("HANS", Effect(0.1, 1, 100, variance, 0.01))


def test_fewest() -> None:
    assert fewest(lambda num: num >= 17) == 17
    assert fewest(lambda num: True) == 2
    assert fewest(lambda num: False) is None


def test_tables() -> None:
    one = Variance("d", 0.01**2, 0.02**2)
    table = variance_table([one], effects=(0.05, 0.1))
    assert pd.isna(table["seeds_for_0.05"].iloc[0])
    assert table["seeds_for_0.1"].iloc[0] == one.seeds_for(0.1)
    assert table["seed_sd"].iloc[0] == pytest.approx(0.01)
    costs = power_table([one], seeds=(3, 5), cost_per_seed=7.5)
    assert costs["cost"].tolist() == [22.5, 37.5]
    assert costs["detectable"].is_monotonic_decreasing
    assert np.isnan(power_table([one], seeds=(3,))["cost"].iloc[0])
