"""A generator's own difference is covered, other generators' are not, and with generators as units they are."""

import pytest

from analysis.simulation.generators import DEALT, many_generators, one_generator
from analysis.simulation.scenarios import hans

NUM = 600


def test_without_differences_between_generators_both_ask_the_same() -> None:
    found = one_generator(0.0, 5, seed=3, num=NUM)
    assert found.about_own == found.about_others
    assert found.about_others <= 0.07


def test_further_generators_are_misjudged_the_more_the_more_seeds_there_are() -> None:
    few, many = (one_generator(1.0, num_seeds, seed=3, num=NUM) for num_seeds in (3, 20))
    # About the one generator it is right, however many.
    assert max(few.about_own, many.about_own) <= 0.08
    assert few.about_others > 0.08
    assert many.about_others > 0.4


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("num_generators", "num_seeds"), DEALT)
def test_with_generators_as_units_verdicts_are_right(ratio: float, num_generators: int, num_seeds: int) -> None:
    found = many_generators(ratio, num_generators, num_seeds, seed=3, num=NUM)
    assert found.about_others <= 0.08
    assert found.power > found.about_others


def test_a_generators_own_difference_by_hand() -> None:
    # A mean generator has the difference of the mean over generators up to the curvature of the normal distribution.
    scenario = hans("", generator_sd=0.0)
    assert scenario.difference_of(0.0) == pytest.approx(0.0)
    # One standard deviation of 1.4 seeds on the probit scale: Φ((−0.825 + 0.714) / 1.41) − 0.277 or so.
    assert scenario.difference_of(0.714) == pytest.approx(0.187, abs=0.01)
