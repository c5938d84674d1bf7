"""The cheapest mix of generators and seeds, two random factors of which each seed has one generator. Pure.

The mean over G generators with m seeds each has the variance sd_generator²/G + sd_seed²/(G m): more seeds of the same
generators shrink the second part only. It costs G (cost_generator + m cost_seed), in GPU-hours, dollars or any other unit.
"""

import math
from dataclasses import dataclass

from pipelines.errors import UserError


@dataclass(frozen=True)
class Mix:
    """`generators` with `seeds_per_generator` seeds each; the standard error of their mean, and what they cost."""

    generators: int
    seeds_per_generator: int
    standard_error: float
    cost: float


def best_seeds_per_generator(*, sd_generator: float, sd_seed: float, cost_generator: float, cost_seed: float) -> float:
    """The seeds per generator at which a standard error costs least, were they divisible; infinite where generators are alike.

    √(cost_generator / cost_seed) · sd_seed / sd_generator, whatever the standard error: the optimum of sampling in two stages
    (Cochran 1977, chapter 10). `sd_seed` is of seeds of one generator, `cost_generator` of one with its pool. Raises UserError
    for a cost of a seed that is not above 0, and for any other number below 0.
    """
    given = {"sd_generator": sd_generator, "sd_seed": sd_seed, "cost_generator": cost_generator, "cost_seed": cost_seed}
    for name, value in given.items():
        least = "above 0" if name == "cost_seed" else "of at least 0"
        if not math.isfinite(value) or value < 0 or (value == 0 and name == "cost_seed"):
            raise UserError(f"{name}={value}: give a finite number {least}")
    if sd_generator == 0:
        return math.inf
    return math.sqrt(cost_generator / cost_seed) * sd_seed / sd_generator
