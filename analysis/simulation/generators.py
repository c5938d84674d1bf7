"""False verdicts and power where generators differ: one generator judged by its seeds, and generators as units.

An interval over seeds of one generator's pool is right about that generator, and says nothing of another. A generator's
standard deviation is given in units of the seeds', both of the difference between two kinds of training set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.simulation.scenarios import HANS_SEED_SD, Scenario, hans, intervals_of

RATIOS = (0.0, 0.5, 1.0)
"""Standard deviations of generators, in units of that of the seeds' differences."""
SEEDS = (3, 5, 10, 20)
DEALT = ((3, 3), (3, 9), (5, 5), (5, 10), (5, 20), (10, 10), (10, 20))
"""Generators, and seeds in all."""
DIFFERENCE = -0.10


@dataclass(frozen=True)
class FalseVerdicts:
    """Shares of studies at a two-sided 5%: the interval leaves out a truth that it should hold, or sees one that is there.

    `about_own`: leaves out the true difference of the generators that it has seen; `about_others`: leaves out 0 where
    generators do not differ from original data in the mean; `power`: lies below 0 where they are 10 points worse in the mean.
    `num_generators` is the number of units, 0 where seeds of one generator are the units.
    """

    ratio: float
    num_generators: int
    num_seeds: int
    about_own: float
    about_others: float
    power: float


def one_generator(ratio: float, num_seeds: int, *, seed: int, num: int) -> FalseVerdicts:
    """Studies of one generator, judged by its seeds. Deterministic for a `seed`."""
    own, others, _ = _rates(_scenario(ratio), 1, num_seeds, False, seed, num)
    *_, power = _rates(_scenario(ratio, DIFFERENCE), 1, num_seeds, False, seed + 1, num)
    return FalseVerdicts(ratio, 0, num_seeds, own, others, power)


def many_generators(ratio: float, num_generators: int, num_seeds: int, *, seed: int, num: int) -> FalseVerdicts:
    """Studies whose seeds are dealt over generators, which are the units. `num_seeds` is a multiple of `num_generators`."""
    own, others, _ = _rates(_scenario(ratio), num_generators, num_seeds, True, seed, num)
    *_, power = _rates(_scenario(ratio, DIFFERENCE), num_generators, num_seeds, True, seed + 1, num)
    return FalseVerdicts(ratio, num_generators, num_seeds, own, others, power)


def _scenario(ratio: float, difference: float = 0.0) -> Scenario:
    # Of a difference: √2 of a seed's standard deviation.
    return hans("", difference, generator_sd=ratio * math.sqrt(2) * HANS_SEED_SD)


def _rates(
    scenario: Scenario, num_generators: int, num_seeds: int, are_units: bool, seed: int, num: int
) -> tuple[float, float, float]:
    """Shares of intervals that leave out the seen generators' own difference, leave out 0, and lie below 0."""
    random = np.random.default_rng([seed, num_generators, num_seeds])
    counts = np.zeros(3)
    for num_studies in scenario.chunk_sizes(num_seeds, num):
        generators = random.standard_normal((num_studies, num_generators)) * scenario.generator_sd
        control, treatment = scenario.draw(num_seeds, num_studies, random, generators)
        difference = treatment - control
        if are_units:
            # Seeds are dealt in turn: those of a generator lie num_generators apart.
            rounds = num_seeds // num_generators
            difference = difference.reshape(num_studies, rounds, num_generators, -1).mean(axis=1)
        found = intervals_of(difference, scenario.sizes)
        own = scenario.difference_of(generators).mean(axis=1)
        leaves_out_own = np.abs(found.means - own) > found.half
        counts += [leaves_out_own.sum(), (np.abs(found.means) > found.half).sum(), (found.means < -found.half).sum()]
    own_rate, other_rate, below = counts / num
    return float(own_rate), float(other_rate), float(below)
