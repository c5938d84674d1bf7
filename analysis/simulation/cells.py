"""How often the interval of one cell's accuracy holds the truth: at the ends, too.

Beside `stats/shares.py` stand the intervals that do not look at the bounds: the two-level interval of `stats/intervals.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from analysis.simulation.scenarios import HANS_TEMPLATES, Intervals, Scenario, hans, intervals_of
from analysis.stats.shares import num_effective, share_ends

SEEDS = (1, 3, 5, 10)
LEVELS = (0.005, 0.01, 0.05, 0.277, 0.5, 0.95, 0.99)
FEW_TEMPLATES = HANS_TEMPLATES[6:12]
"""Those of one subcase, `ln_preposition`: 6 of 147 to 194 items."""


@dataclass(frozen=True)
class CellCoverage:
    """Shares of replications in which an interval holds the truth, and the median widths.

    `by_t` are of the two-level interval, which covers nothing where there is no variance.
    """

    name: str
    num_seeds: int
    accuracy: float
    covered: float
    width: float
    covered_by_t: float
    width_by_t: float


def cell_coverage(name: str, scenario: Scenario, num_seeds: int, *, seed: int, num: int) -> CellCoverage:
    """The control of `scenario` alone. Of one seed, the truth is that task model's accuracy on further clusters."""
    random = np.random.default_rng([seed, num_seeds])
    deviations = random.standard_normal((num, num_seeds)) * scenario.seed_sd
    right, _ = scenario.draw(num_seeds, num, random, seeds=deviations)
    truth = np.full(num, scenario.accuracy)
    if num_seeds == 1:
        others = scenario.variance - scenario.seed_sd**2
        truth = ndtr((scenario.bases[0] + deviations[:, 0]) / math.sqrt(1 + others))
    found = intervals_of(right, scenario.sizes)
    ends = share_ends(*found.mean, _effective(scenario))
    return CellCoverage(name, num_seeds, scenario.accuracy, *_rates(ends, found, truth))


def cells_at(accuracy: float) -> list[tuple[str, Scenario]]:
    """Cells of this accuracy on all templates of the adversarial slice, and on those of one subcase."""
    on_hans = hans("", accuracy=accuracy)
    return [("25 templates", on_hans), ("6 templates", replace(on_hans, sizes=FEW_TEMPLATES))]


def _effective(scenario: Scenario) -> float:
    return num_effective(scenario.sizes, np.zeros(len(scenario.sizes), dtype=int))


def _rates(ends: tuple[np.ndarray, np.ndarray], found: Intervals, truth: np.ndarray) -> tuple[float, float, float, float]:
    low, high = ends
    rates = []
    for least, most in ((low, high), (found.means - found.half, found.means + found.half)):
        held = (least <= truth) & (truth <= most) & (least < most)
        rates += [float(held.mean()), float(np.median(most - least))]
    return rates[0], rates[1], rates[2], rates[3]
