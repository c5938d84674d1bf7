"""Power: the seeds that a difference needs, the smallest difference that some seeds can show, and their cost.

From the two variances of `stats/intervals.py`: more seeds shrink only the first. Where the test items alone leave more doubt
than the difference is large, no number of seeds is enough, and that is said.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.stats.intervals import Effect, half_width
from analysis.stats.statistics import Interval, ends
from analysis.study.claims import Evidence
from pipelines.errors import UserError

POWER = 0.8
ALPHA = 0.05
MOST_SEEDS = 1000
SEEDS = (3, 5, 10, 20, 30, 50)
EFFECTS = (0.01, 0.02, 0.05, 0.10)
COMPARISONS = (("synthetic", "original"), ("synthetic", "none"), ("biased_synthetic", "none"))


@dataclass(frozen=True)
class Variance:
    """A pilot's, or a guess's, variances of one difference: variances of shares (0..1), not of points.

    `seed_variance` is of one seed's difference, `item_variance` of the mean over the test items, whatever the seeds;
    `num_seeds` are the pilot's, 0 for a guess.
    """

    metric: str
    seed_variance: float
    item_variance: float = 0.0
    item_df: float = math.inf
    num_seeds: int = 0

    def __post_init__(self) -> None:
        if not (self.seed_variance > 0 and self.item_variance >= 0):
            raise UserError(
                f"{self.metric}: seed variance {self.seed_variance}, item variance {self.item_variance}; the first must be "
                "above 0 and the second not below: a pilot needs two seeds that differ"
            )

    @classmethod
    def of(cls, metric: str, effect: Effect) -> Variance:
        """Variances of a pilot's effect. Raises UserError for one seed, and for seeds that agree exactly."""
        return cls(metric, effect.seed_variance, effect.item_variance, effect.item_df, effect.num_seeds)

    def seed_sd_interval(self) -> Interval | None:
        """95 % interval of the seeds' standard deviation (chi-squared); None for a guess. Wide: a pilot says little of it."""
        if self.num_seeds < 2:
            return None
        df = self.num_seeds - 1
        low, high = (math.sqrt(df * self.seed_variance / stats.chi2.ppf(share, df)) for share in (0.975, 0.025))
        return Interval(low, high)

    def power(self, num_seeds: int, effect: float, alpha: float = ALPHA) -> float:
        """The chance that the two-sided test of `stats/intervals.py` sees a true difference of `effect`, on its side of 0."""
        error, df, critical = self._at(num_seeds, alpha / 2)
        shift = abs(effect) / error
        # The noncentral t loses its digits far out, where there is no doubt left.
        return 1.0 if shift - critical > 10 else float(stats.nct.sf(critical, df, shift))

    def equivalence_power(self, num_seeds: int, effect: float, margin: float, alpha: float = ALPHA) -> float:
        """The chance that two one-sided tests find a true difference of `effect` to lie within ±`margin`."""
        error, df, critical = self._at(num_seeds, alpha)
        sides = [float(stats.t.cdf((margin + way * effect) / error - critical, df)) for way in (-1, 1)]
        return max(0.0, sum(sides) - 1)

    def seeds_for(self, effect: float, alpha: float = ALPHA) -> int | None:
        """The fewest seeds that see `effect` with a chance of POWER; None if not even MOST_SEEDS do."""
        return fewest(lambda num_seeds: self.power(num_seeds, effect, alpha) >= POWER)

    def seeds_for_equivalence(self, effect: float, margin: float, alpha: float = ALPHA) -> int | None:
        """The fewest seeds that find `effect` to lie within ±`margin`; None if not even MOST_SEEDS do."""
        return fewest(lambda num_seeds: self.equivalence_power(num_seeds, effect, margin, alpha) >= POWER)

    def detectable(self, num_seeds: int) -> float:
        """The smallest difference (a share, 0..1) that `num_seeds` see. Raises UserError for fewer than 2."""
        if num_seeds < 2:
            raise UserError(f"num_seeds={num_seeds}: a difference between trainings needs at least 2 seeds")
        error, _, critical = self._at(num_seeds, ALPHA / 2)
        most = error * (critical + 20)
        return float(optimize.brentq(lambda effect: self.power(num_seeds, effect) - POWER, 0.0, most, xtol=1e-9))

    def _at(self, num_seeds: int, tail: float) -> tuple[float, float, float]:
        """Standard error, its degrees of freedom (Satterthwaite 1946) and the critical value in standard errors."""
        seeds = self.seed_variance / num_seeds
        variance = seeds + self.item_variance
        df = variance**2 / (seeds**2 / (num_seeds - 1) + self.item_variance**2 / self.item_df)
        half = float(half_width(seeds, num_seeds - 1, self.item_variance, self.item_df, tail))
        return math.sqrt(variance), df, half / math.sqrt(variance)


def fewest(is_enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds, of 2 or more, that is enough, more being enough, too; None if MOST_SEEDS are not."""
    return bisect_left(range(MOST_SEEDS), True, lo=2, key=is_enough) if is_enough(MOST_SEEDS) else None


def pilot(evidence: Evidence) -> tuple[list[Variance], list[str]]:
    """The variances of a study's differences, averaged over its starting points and sizes, and why others cannot be had.

    "adversarial" is the blindspot's slice, where going by the heuristic is wrong. Raises UserError when none can be had, as
    with one seed.
    """
    variances, why_not = [], []
    tests = (("general", evidence.general), ("blindspot", evidence.blindspot), ("adversarial", evidence.adversarial))
    for treatment, control in COMPARISONS:
        for test, change in tests:
            metric = f"{test}: {treatment.replace('_', ' ')} − {'starting point' if control == 'none' else control}"
            try:
                variances.append(Variance.of(metric, change(treatment, control, evidence.starting_sizes).effect()))
            except UserError as error:
                why_not.append(f"{metric}: {error}")
    if not variances:
        raise UserError(f"no variance can be had from this study ({why_not[0]}); give one with --seed-sd")
    return variances, why_not


def variance_table(variances: Sequence[Variance], effects: Sequence[float] = EFFECTS) -> pd.DataFrame:
    """One row per metric: its variances, and the seeds that differences of `effects` need (NA: no number of seeds is enough).

    Columns: metric, num_seeds (the pilot's), seed_sd with its interval, item_error (of the mean), and per effect `seeds_for_…`.
    """
    rows = []
    for variance in variances:
        low, high = ends(variance.seed_sd_interval())
        row = {
            "metric": variance.metric,
            "num_seeds": variance.num_seeds,
            "seed_sd": math.sqrt(variance.seed_variance),
            "seed_sd_low": low,
            "seed_sd_high": high,
            "item_error": math.sqrt(variance.item_variance),
        }
        rows.append(row | {f"seeds_for_{effect:g}": variance.seeds_for(effect) for effect in effects})
    table = pd.DataFrame(rows)
    return table.astype({name: "Int64" for name in table.columns if name.startswith("seeds_for_")})


def power_table(
    variances: Sequence[Variance], seeds: Sequence[int] = SEEDS, cost_per_seed: float | None = None
) -> pd.DataFrame:
    """One row per metric and number of seeds: the difference they detect (80 % power, two-sided 5 %) and their cost.

    Columns: metric, seeds, detectable (a share), cost (NaN without `cost_per_seed`).
    """
    return pd.DataFrame(
        [
            {
                "metric": variance.metric,
                "seeds": num,
                "detectable": variance.detectable(num),
                "cost": np.nan if cost_per_seed is None else num * cost_per_seed,
            }
            for variance in variances
            for num in seeds
        ],
        columns=["metric", "seeds", "detectable", "cost"],
    )
