"""The seeds of one generator that cost least, worked out by hand."""

import math

import pytest

from analysis.stats.allocation import best_seeds_per_generator
from pipelines.errors import UserError

ALIKE = {"sd_generator": 1.0, "sd_seed": 1.0, "cost_generator": 1.0, "cost_seed": 1.0}


def test_seeds_per_generator_by_hand() -> None:
    assert best_seeds_per_generator(**ALIKE) == 1
    # A generator that costs nine seeds is worth three seeds; one whose standard deviation is twice a seed's, half as many.
    assert best_seeds_per_generator(**ALIKE | {"cost_generator": 9.0}) == 3
    assert best_seeds_per_generator(**ALIKE | {"cost_generator": 9.0, "sd_generator": 2.0}) == 1.5
    assert best_seeds_per_generator(**ALIKE | {"sd_generator": 0.0}) == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost_seed": 0.0}, "cost_seed=0.0: give a finite number above 0"),
        ({"sd_seed": -1.0}, "sd_seed=-1.0: give a finite number of at least 0"),
        ({"cost_generator": math.inf}, "cost_generator=inf"),
    ],
)
def test_what_has_no_answer_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        best_seeds_per_generator(**ALIKE | change)
