"""The cheapest mix of generators and seeds, against formulas worked out by hand and against trying every mix."""

import itertools
import math
from typing import Any

import pytest

from analysis.stats.allocation import best_seeds_per_generator, cheapest_mix
from pipelines.errors import UserError

ALIKE = {"sd_generator": 1.0, "sd_seed": 1.0, "cost_generator": 1.0, "cost_seed": 1.0}


def test_seeds_per_generator_by_hand() -> None:
    assert best_seeds_per_generator(**ALIKE) == 1
    # A generator that costs nine seeds is worth three seeds; one whose standard deviation is twice a seed's, half as many.
    assert best_seeds_per_generator(**ALIKE | {"cost_generator": 9.0}) == 3
    assert best_seeds_per_generator(**ALIKE | {"cost_generator": 9.0, "sd_generator": 2.0}) == 1.5
    assert best_seeds_per_generator(**ALIKE | {"sd_generator": 0.0}) == math.inf


def test_a_mix_by_hand() -> None:
    # Of three seeds each: (1 + 1/3) / 16 is the square of 0.2887, and 16 · (9 + 3) is paid.
    mix = cheapest_mix(0.28868, **ALIKE | {"cost_generator": 9.0})
    assert (mix.generators, mix.seeds_per_generator, mix.seeds, mix.cost) == (16, 3, 48, 192)
    assert mix.standard_error == pytest.approx(math.sqrt(4 / 3 / 16))


def test_where_generators_cost_nothing_each_seed_has_its_own() -> None:
    mix = cheapest_mix(0.5, **ALIKE | {"cost_generator": 0.0})
    assert (mix.generators, mix.seeds_per_generator, mix.cost) == (8, 1, 8)


def test_where_generators_are_alike_there_are_as_few_as_may_be() -> None:
    alike = ALIKE | {"sd_generator": 0.0, "cost_generator": 5.0}
    mix = cheapest_mix(0.25, **alike)
    assert (mix.generators, mix.seeds_per_generator, mix.standard_error) == (2, 8, 0.25)
    assert cheapest_mix(0.25, **alike, least_generators=5).seeds_per_generator == 4  # 16 seeds, rounded up


@pytest.mark.parametrize(("sd_generator", "sd_seed"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.2), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("cost_generator", [0.0, 0.5, 4.0, 30.0])
@pytest.mark.parametrize("standard_error", [0.2, 0.35, 0.9])
def test_no_other_mix_is_cheaper(sd_generator: float, sd_seed: float, cost_generator: float, standard_error: float) -> None:
    def cost(generators: int, seeds: int) -> float:
        error = math.sqrt((sd_generator**2 + sd_seed**2 / seeds) / generators)
        return generators * (cost_generator + seeds) if error <= standard_error + 1e-9 else math.inf

    spread: dict[str, Any] = {"sd_generator": sd_generator, "sd_seed": sd_seed}
    mix = cheapest_mix(standard_error, **spread, cost_generator=cost_generator, cost_seed=1.0)
    assert mix.standard_error <= standard_error + 1e-9
    assert mix.cost == cost(mix.generators, mix.seeds_per_generator)
    assert mix.cost == min(cost(*tried) for tried in itertools.product(range(2, 80), range(1, 80)))


@pytest.mark.parametrize(
    ("standard_error", "change", "message"),
    [
        (0.0, {}, "standard_error=0.0: give a number above 0"),
        (math.nan, {}, "standard_error=nan"),
        (0.1, {"cost_seed": 0.0}, "cost_seed=0.0: give a finite number above 0"),
        (0.1, {"sd_seed": -1.0}, "sd_seed=-1.0: give a finite number of at least 0"),
        (0.1, {"cost_generator": math.inf}, "cost_generator=inf"),
        (0.1, {"least_generators": 0}, "least_generators=0"),
        (0.001, {}, "would take 2,000,000 generators with one seed each; give a larger one"),
    ],
)
def test_what_has_no_answer_is_refused(standard_error: float, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cheapest_mix(standard_error, **ALIKE | change)
