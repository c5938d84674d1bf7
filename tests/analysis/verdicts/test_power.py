"""Against textbook sample sizes and by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.stats.intervals import Effect
from analysis.verdicts.power import (
    Settling,
    Variance,
    averaged_over,
    cheapest_mix_that_sees,
    fewest,
    power_table,
    settling,
    variance_table,
)
from pipelines.errors import UserError


def test_seeds_for_an_effect_of_one_and_of_half_a_standard_deviation() -> None:
    # Paired t test, 80% power, two-sided 5%: 10 and 34 pairs (Cohen 1988; G*Power).
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


def test_one_part_is_settled_by_the_seeds_that_see_the_margin() -> None:
    # As above: 27 seeds at the estimated standard deviation. Chi-squared with 4 degrees of freedom leaves 18% below 1.53738,
    # so the upper end is for 2.60183 times the variance.
    one = Variance("HANS", 2 * 0.124**2, num_seeds=5)
    assert settling([one], 0.10, 0.05).seeds == (27, Variance("HANS", 2.60183 * 2 * 0.124**2).seeds_for(0.10))
    # Standard deviations of 100 seeds are known better.
    many = settling([Variance("HANS", 2 * 0.124**2, num_seeds=100)], 0.10, 0.05).seeds
    assert many is not None
    assert many[0] == 27
    assert many[1] < 35


def test_three_parts_need_more_seeds_than_one_and_the_noisiest_decides() -> None:
    one, noisy = Variance("d", 0.05**2, num_seeds=5), Variance("d", 0.10**2, num_seeds=5)
    alone, three = settling([one], 0.05, 0.05).seeds, settling([one] * 3, 0.05, 0.05).seeds
    assert alone is not None and three is not None
    # Normal approximation: (1.96 + 1.501)² and (1.96 + 0.842)², for power of 1 − 0.2/3 and of 0.8; Student's t adds two or so.
    assert (alone[0], three[0]) == (10, 15)
    # The other two are seen by then: nearly the whole chance to miss is left to the noisy one.
    one_noisy, noisy_alone, all_noisy = (
        settling(parts, 0.05, 0.05).seeds for parts in ([one, one, noisy], [noisy], [noisy] * 3)
    )
    assert one_noisy is not None and noisy_alone is not None and all_noisy is not None
    assert noisy_alone[0] <= one_noisy[0] < all_noisy[0]


@pytest.mark.parametrize("sds", [(0.175,), (0.175, 0.175, 0.175), (0.175, 0.02, 0.05)])
def test_the_upper_end_reaches_80_percent_power_in_three_of_four_pilots_of_five_seeds(sds: tuple[float, ...]) -> None:
    margin, num_pilots = 0.10, 200
    truth = [Variance("d", sd**2) for sd in sds]

    def power(num_seeds: int) -> float:
        # Parts that vary independently of each other.
        return math.prod(one.power(num_seeds, margin) for one in truth)

    def power_against(num_seeds: int) -> float:
        # One part, the noisiest, differs the other way; its p value is multiplied by the number of parts.
        return min(one.power(num_seeds, margin, 0.05 / len(sds)) for one in truth)

    needed = fewest(lambda num_seeds: min(power(num_seeds), power_against(num_seeds)) >= 0.8)
    random = np.random.default_rng(5)
    upper = []
    for _ in range(num_pilots):
        pilots = [Variance("d", float(random.normal(0, sd, 5).var(ddof=1)), num_seeds=5) for sd in sds]
        found = settling(pilots, margin, 0.05).seeds
        # A number in every pilot.
        assert found is not None
        upper.append(found[1])
    assert needed is not None
    assert np.mean([power(number) >= 0.8 for number in upper]) >= 0.75
    assert np.median(upper) <= 3 * needed


def test_most_of_several_parts_do_not_wait_for_the_noisiest() -> None:
    one, noisy = Variance("d", 0.05**2, num_seeds=5), Variance("d", 0.30**2, num_seeds=5)
    most = settling([one, one, noisy], 0.05, 0.05, at_least=2).seeds
    every = settling([one, one, noisy], 0.05, 0.05).seeds
    assert most is not None and every is not None
    assert most[1] < every[0]
    with pytest.raises(ValueError, match="at_least=4 of 3"):
        settling([one] * 3, 0.05, 0.05, at_least=4)


def test_equivalence_is_settled_by_the_seeds_that_find_no_difference_within_the_margin() -> None:
    # Normal approximation, true 0, sd of 2 margins: n = (1.645 + 1.2816)² × 4 = 34.3; Student's t needs one or two more.
    found = settling([Variance("d", 0.02**2, num_seeds=5)], 0.01, 0.05, is_equivalence=True).seeds
    assert found is not None and found[0] in (35, 36, 37)


def test_items_that_seem_to_leave_too_much_doubt_do_so_by_chance_unless_they_are_many() -> None:
    # An error of 0.038, where at most 0.033 can be settled: 11 degrees of freedom leave that open, 1,000 do not.
    few, many = (Variance("HANS", 2 * 0.124**2, 0.038**2, df, num_seeds=5) for df in (11.5, 1000.0))
    assert settling([few], 0.10, 0.05).seeds is not None
    assert settling([many], 0.10, 0.05).seeds is None


def test_no_number_for_a_pilot_of_two_seeds_nor_where_items_leave_more_doubt_than_the_margin() -> None:
    assert settling([Variance("d", 0.02**2, num_seeds=2)], 0.01, 0.05) == Settling(None, "a pilot of 2 seeds gives no number")
    # Any number of seeds sees 2.8 standard errors of the items, 5.6 points.
    of_items = settling([Variance("d", 0.01**2, 0.02**2, num_seeds=5)], 0.05, 0.05)
    assert of_items.seeds is None
    assert "items" in of_items.why_not
    assert settling([Variance("d", 0.01**2, 0.02**2, num_seeds=5)], 0.06, 0.05).seeds is not None


def test_fewest() -> None:
    assert fewest(lambda num: num >= 17) == 17
    assert fewest(lambda num: True) == 2
    assert fewest(lambda num: False) is None


def test_a_pilot_says_over_what_its_differences_are_averaged() -> None:
    assert averaged_over(2, 3) == ", mean of 2 starting points × 3 sizes"
    assert averaged_over(2, 1) == ", mean of 2 starting points"
    assert averaged_over(1, 1) == ""


def test_the_cheapest_mix_of_generators_and_seeds_by_hand() -> None:
    one = Variance("d", 0.02**2)
    # Alike and for nothing: each seed may as well have its own, as in a study of one generator.
    alike = cheapest_mix_that_sees(one, 0.02, sd_generator=0.0, cost_generator=0.0, cost_seed=1.0)
    assert alike is not None
    assert (alike.generators, alike.seeds_per_generator, alike.cost) == (one.seeds_for(0.02), 1, 10.0)
    # A generator that costs as much as nine seeds, and differs as they do: three seeds each, or so.
    dear = cheapest_mix_that_sees(one, 0.02, sd_generator=0.02, cost_generator=9.0, cost_seed=1.0)
    assert dear is not None
    assert dear.seeds_per_generator in (2, 3, 4)
    assert dear.generators == Variance("d", 0.02**2 * (1 + 1 / dear.seeds_per_generator)).seeds_for(0.02)
    # Any other number of seeds each costs more.
    for num_seeds in range(1, 12):
        generators = Variance("d", 0.02**2 * (1 + 1 / num_seeds)).seeds_for(0.02)
        assert generators is not None
        assert generators * (9 + num_seeds) >= dear.cost
    beyond = Variance("d", 0.02**2, 0.01**2)
    assert cheapest_mix_that_sees(beyond, 0.02, sd_generator=0.01, cost_generator=1.0, cost_seed=1.0) is None


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
