"""The cheapest mix of generators and seeds, two random factors of which each seed has one generator. Pure.

    cheapest_mix(0.01, sd_generator=0.02, sd_seed=0.03, cost_generator=40.0, cost_seed=10.0)

The mean over G generators with m seeds each has the variance sd_generator²/G + sd_seed²/(G m): more seeds of the same
generators shrink the second part only. It costs G (cost_generator + m cost_seed), in GPU-hours, dollars or any other unit.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipelines.errors import UserError

LEAST_GENERATORS = 2
"""One generator leaves no degree of freedom, and so no interval."""
MOST_GENERATORS = 100_000


@dataclass(frozen=True)
class Mix:
    """`generators` with `seeds_per_generator` seeds each; the standard error of their mean, and what they cost."""

    generators: int
    seeds_per_generator: int
    standard_error: float
    cost: float

    @property
    def seeds(self) -> int:
        return self.generators * self.seeds_per_generator


def best_seeds_per_generator(*, sd_generator: float, sd_seed: float, cost_generator: float, cost_seed: float) -> float:
    """The seeds per generator at which a standard error costs least, were they divisible; infinite where generators are alike.

    √(cost_generator / cost_seed) · sd_seed / sd_generator, whatever the standard error: the optimum of sampling in two stages
    (Cochran 1977, chapter 10). Raises UserError as `cheapest_mix`.
    """
    _check(sd_generator, sd_seed, cost_generator, cost_seed)
    if sd_generator == 0:
        return math.inf
    return math.sqrt(cost_generator / cost_seed) * sd_seed / sd_generator


def cheapest_mix(
    standard_error: float,
    *,
    sd_generator: float,
    sd_seed: float,
    cost_generator: float,
    cost_seed: float,
    least_generators: int = LEAST_GENERATORS,
) -> Mix:
    """The cheapest whole numbers whose mean has at most this standard error, and of equally cheap ones the most generators.

    `standard_error` and both standard deviations are in one unit; what the test items add, which no replicate shrinks, is
    not in it. `sd_seed` is that of seeds of one generator. `cost_generator` is of one with its pool, `cost_seed` of one seed's
    cells. Raises UserError for a standard error or a cost of a seed that is not above 0, a standard deviation or a cost below
    0, fewer generators than 1, or a standard error that MOST_GENERATORS do not reach.
    """
    _check(sd_generator, sd_seed, cost_generator, cost_seed)
    if not (math.isfinite(standard_error) and standard_error > 0):
        raise UserError(f"standard_error={standard_error}: give a number above 0")
    if least_generators < 1:
        raise UserError(f"least_generators={least_generators}: give 1 or more")
    # A hair more than was asked for, so that rounding asks for no further replicate.
    variance = standard_error**2 * (1 + 1e-9)
    # With one seed each, no more generators are of use.
    most = max(least_generators, math.ceil((sd_generator**2 + sd_seed**2) / variance))
    if most > MOST_GENERATORS:
        raise UserError(
            f"standard_error={standard_error:g} is far below the standard deviations {sd_generator:g} and {sd_seed:g}, and "
            f"would take {most:,} generators with one seed each; give a larger one"
        )
    generators = np.arange(least_generators, most + 1)
    left = generators * variance - sd_generator**2
    with np.errstate(divide="ignore", invalid="ignore"):
        seeds = np.where(left > 0, np.maximum(1, np.ceil(sd_seed**2 / left)), math.inf)
    seeds[-1] = 1
    costs = generators * (cost_generator + seeds * cost_seed)
    best = len(costs) - 1 - int(np.argmin(costs[::-1]))
    num_generators, num_seeds = int(generators[best]), int(seeds[best])
    error = math.sqrt((sd_generator**2 + sd_seed**2 / num_seeds) / num_generators)
    return Mix(num_generators, num_seeds, error, float(costs[best]))


def _check(sd_generator: float, sd_seed: float, cost_generator: float, cost_seed: float) -> None:
    given = {"sd_generator": sd_generator, "sd_seed": sd_seed, "cost_generator": cost_generator, "cost_seed": cost_seed}
    for name, value in given.items():
        least = "above 0" if name == "cost_seed" else "of at least 0"
        if not math.isfinite(value) or value < 0 or (value == 0 and name == "cost_seed"):
            raise UserError(f"{name}={value}: give a finite number {least}")
