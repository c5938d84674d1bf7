"""Power: the seeds that a difference or a claim needs, the smallest difference that some seeds can show, and their cost.

From the two variances of `stats/intervals.py`: more seeds shrink only the first. Where the test items alone leave more doubt
than the difference is large, no number of seeds is enough, and that is said. A pilot's own estimate plays no part: seeds are
planned for a difference that was declared, and a pilot's standard deviation is itself uncertain.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from analysis.stats.allocation import Mix, best_seeds_per_generator
from analysis.stats.intervals import Effect, Replicates, half_width
from analysis.stats.statistics import Interval, ends
from analysis.verdicts.evidence import Evidence
from pipelines.errors import UserError

POWER = 0.8
ALPHA = 0.05
MOST_SEEDS = 1000
MOST_SETTLING_SEEDS = 1_000_000
"""So many that what they still leave in doubt is left by the test items."""
MOST_SEEDS_PER_GENERATOR = 100
FEWEST_PILOT_SEEDS = 3
ITEMS_LEAVE_DOUBT = "no number of seeds settles a difference as small as the margin: the test items alone leave more doubt"
SD_CONFIDENCE, SD_CONFIDENCE_OF_SEVERAL = 0.82, 0.70
"""Of the one-sided upper bound of a pilot's standard deviation, from which the upper end of `settling` is taken: so that it is
enough in three of four pilots. Of several parts the largest estimate decides, which errs upwards, at a divided level."""
ITEM_CONFIDENCE = 0.99
"""With which the items leave more doubt than the margin before it is said that no number of seeds is enough."""
SEEDS = (3, 5, 10, 20, 30, 50)
EFFECTS = (0.01, 0.02, 0.05, 0.10)
COMPARISONS = (("synthetic", "original"), ("synthetic", "none"), ("biased_synthetic", "synthetic"))


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
        """95% interval of the seeds' standard deviation (chi-squared); None for a guess. Wide: a pilot says little of it."""
        if self.num_seeds < 2:
            return None
        df = self.num_seeds - 1
        low, high = (math.sqrt(df * self.seed_variance / stats.chi2.ppf(share, df)) for share in (0.975, 0.025))
        return Interval(low, high)

    def with_upper_sd(self, confidence: float) -> Variance:
        """The same with the seeds' variance at its one-sided upper bound (chi-squared); a guess stays."""
        if self.num_seeds < 2:
            return self
        df = self.num_seeds - 1
        return replace(self, seed_variance=self.seed_variance * df / float(stats.chi2.ppf(1 - confidence, df)))

    def with_lower_item_variance(self) -> Variance:
        """The same with the items' variance at its lower bound (chi-squared, one-sided, ITEM_CONFIDENCE)."""
        if math.isinf(self.item_df):
            return self
        return replace(self, item_variance=self.item_variance * self.item_df / stats.chi2.ppf(ITEM_CONFIDENCE, self.item_df))

    def power(self, num_seeds: int, effect: float, alpha: float = ALPHA) -> float:
        """The chance that the two-sided test of `stats/intervals.py` sees a true difference of `effect`, on its side of 0."""
        error, df, critical = self._at(num_seeds, alpha / 2)
        shift = abs(effect) / error
        # The noncentral t loses its digits far out, where there is no doubt left.
        return 1.0 if shift - critical > 10 else 1 - float(special.nctdtr(df, shift, critical))

    def equivalence_power(self, num_seeds: int, margin: float, alpha: float) -> float:
        """The chance that two one-sided tests find a true difference of 0 to lie within ±`margin`."""
        error, df, critical = self._at(num_seeds, alpha)
        return max(0.0, 2 * float(special.stdtr(df, margin / error - critical)) - 1)

    def seeds_for(self, effect: float) -> int | None:
        """The fewest seeds that see `effect` with a chance of POWER; None if not even MOST_SEEDS do."""
        return fewest(lambda num_seeds: self.power(num_seeds, effect) >= POWER)

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


def fewest(is_enough: Callable[[int], bool], most: int = MOST_SEEDS) -> int | None:
    """The smallest number of seeds, of 2 or more, that is enough, more being enough, too; None if `most` are not."""
    return bisect_left(range(most), True, lo=2, key=is_enough) if is_enough(most) else None


@dataclass(frozen=True)
class Settling:
    """The seeds in all that settle a claim, from and to, or why there is no number.

    `seeds` have 80% power at the pilot's standard deviation as estimated (from) and at its upper bound (to).
    """

    seeds: tuple[int, int] | None
    why_not: str = ""


def settling(
    variances: Sequence[Variance], margin: float, alpha: float, *, is_equivalence: bool = False, at_least: int | None = None
) -> Settling:
    """The seeds that settle a claim with a chance of POWER, from a pilot's variances of its parts and not from its estimates.

    A claim of a sign is settled when true differences of `margin` (a share) in all parts support it, and when a part that
    differs by as much the other way refutes it; of m parts `at_least` have to show it, by default all
    (`stats.hypotheses.partial_conjunction`). A claim of equivalence is settled when no difference is found to lie within
    ±`margin`. `alpha` is the claim's two-sided level after the family's correction. Raises ValueError for no part, or an
    `at_least` that is not 1 to their number.
    """
    at_least = len(variances) if at_least is None else at_least
    if not 1 <= at_least <= len(variances):
        raise ValueError(f"at_least={at_least} of {len(variances)} parts: choose from 1 to their number")
    num_seeds = min(variance.num_seeds for variance in variances)
    if 0 < num_seeds < FEWEST_PILOT_SEEDS:
        return Settling(None, f"a pilot of {num_seeds} seeds gives no number")

    def seeds(parts: Sequence[Variance]) -> int | None:
        return fewest(lambda num: _settles(parts, num, margin, alpha, is_equivalence, at_least), MOST_SETTLING_SEEDS)

    confidence = SD_CONFIDENCE if len(variances) == 1 else SD_CONFIDENCE_OF_SEVERAL
    # Items of a pilot that seem to leave too much doubt may do so by chance.
    for parts in (variances, [variance.with_lower_item_variance() for variance in variances]):
        low, high = seeds(parts), seeds([part.with_upper_sd(confidence) for part in parts])
        if low is not None and high is not None:
            return Settling((low, high))
    return Settling(None, ITEMS_LEAVE_DOUBT)


def _settles(
    parts: Sequence[Variance], num_seeds: int, margin: float, alpha: float, is_equivalence: bool, at_least: int
) -> bool:
    """Whether so many seeds settle a claim. Parts are seen together unless one is missed: chances of that add up at most.

    Of parts of which not all are needed the easiest count. The level is divided as by `partial_conjunction`.
    """
    num_against = len(parts) - at_least + 1

    def misses(level: float) -> list[float]:
        chances = [
            part.equivalence_power(num_seeds, margin, level) if is_equivalence else part.power(num_seeds, margin, level)
            for part in parts
        ]
        return sorted(1 - chance for chance in chances)

    supported = sum(misses(alpha / num_against)[:at_least]) <= 1 - POWER
    # Refuted by whichever parts differ the other way, the hardest for one.
    return supported and (
        is_equivalence or sum(misses(alpha / at_least)[: max(at_least, num_against)][-num_against:]) <= 1 - POWER
    )


def pilot(evidence: Evidence) -> tuple[list[Variance], list[str]]:
    """The variances of a study's differences, averaged over its starting points and sizes, and why others cannot be had.

    Each metric's name says over what, and in which of several arms. "adversarial" is the blindspot's slice, where going by the
    heuristic is wrong. Raises UserError when none can be had, as with one seed.
    """
    variances: list[Variance] = []
    why_not: list[str] = []
    most_seeds = 0
    for arm, of_arm in evidence.by_arm.items():
        for metric, change in _changes(of_arm):
            metric = f"{metric}; arm {arm}" if arm else metric
            try:
                effect = change().effect()
                most_seeds = max(most_seeds, effect.num_seeds)
                variances.append(Variance.of(metric, effect))
            except UserError as error:
                why_not.append(f"{metric}: {error}")
    if not variances and most_seeds == 1:
        raise UserError(
            "this study has one seed, which says nothing of how seeds differ: a pilot needs two; run it with more, as "
            "-p seeds=0,1, or give --seed-sd"
        )
    if not variances:
        raise UserError(f"no variance can be had from this study ({why_not[0]}); give one with --seed-sd")
    return variances, why_not


def _changes(evidence: Evidence) -> Iterator[tuple[str, Callable[[], Replicates]]]:
    """Each difference of one arm by its name."""
    # Of a blindspot set that is the general set, its accuracy is general accuracy once more.
    blindspot = () if evidence.blindspot_set == evidence.general_set else ("blindspot",)
    for treatment, control in COMPARISONS:
        for test in ("general", *blindspot, "adversarial"):
            # An untrained model's level on a blindspot is its random head's.
            from_head = control == "none" and test != "general"
            starts = [start for start in evidence.starting_sizes if start or not from_head]
            if not starts:
                continue
            of = f"{treatment.replace('_', ' ')} − {'starting point' if control == 'none' else control.replace('_', ' ')}"
            metric = f"{test}: {of}{averaged_over(len(starts), len(evidence.sizes))}"
            yield metric, partial(evidence.change, evidence.place(test), treatment, control, starts)


def averaged_over(num_starts: int, num_sizes: int) -> str:
    """', mean of 6 starting points × 3 sizes', or nothing where there is one of each: a single setting varies more."""
    counts = ((num_starts, "starting points"), (num_sizes, "sizes"))
    several = [f"{count} {what}" for count, what in counts if count > 1]
    return f", mean of {' × '.join(several)}" if several else ""


def cheapest_mix_that_sees(
    variance: Variance,
    effect: float,
    *,
    sd_generator: float,
    cost_generator: float,
    cost_seed: float,
) -> Mix | None:
    """The cheapest generators, with seeds each, by which a true difference of `effect` is seen with a chance of POWER.

    Generators are the units, so that few of them leave few degrees of freedom. `variance` is of seeds of one generator,
    `sd_generator` (a share) of generators' true differences; `cost_generator` is of one with its pool, `cost_seed` of one
    seed's cells. None where no number is enough. Raises UserError for what `best_seeds_per_generator` refuses.
    """
    seed_sd = math.sqrt(variance.seed_variance)
    best = best_seeds_per_generator(
        sd_generator=sd_generator, sd_seed=seed_sd, cost_generator=cost_generator, cost_seed=cost_seed
    )
    # Fewer degrees of freedom than the closed form knows of speak for more generators, whole numbers for one seed more or less.
    most = min(2 + math.ceil(min(best, MOST_SEEDS_PER_GENERATOR)), MOST_SEEDS_PER_GENERATOR)
    mixes = []
    for num_seeds in range(1, most + 1):
        of_generators = replace(variance, seed_variance=sd_generator**2 + variance.seed_variance / num_seeds)
        if (num_generators := of_generators.seeds_for(effect)) is not None:
            error = math.sqrt(of_generators.seed_variance / num_generators + variance.item_variance)
            cost = num_generators * (cost_generator + num_seeds * cost_seed)
            mixes.append(Mix(num_generators, num_seeds, error, cost))
    return min(mixes, key=lambda mix: (mix.cost, -mix.generators), default=None)


def mix_table(
    variances: Sequence[Variance],
    *,
    sd_generator: float,
    cost_generator: float,
    cost_seed: float,
) -> pd.DataFrame:
    """`cheapest_mix_that_sees` for each metric and each of EFFECTS; a metric that no number is enough for has NA.

    Columns: metric, effect (a share), generators, seeds (of each), cost.
    """
    rows = []
    for variance in variances:
        for effect in EFFECTS:
            mix = cheapest_mix_that_sees(
                variance, effect, sd_generator=sd_generator, cost_generator=cost_generator, cost_seed=cost_seed
            )
            found = (mix.generators, mix.seeds_per_generator, mix.cost) if mix else (None, None, None)
            rows.append((variance.metric, effect, *found))
    table = pd.DataFrame(rows, columns=["metric", "effect", "generators", "seeds", "cost"])
    return table.astype({"generators": "Int64", "seeds": "Int64", "cost": "float64"})


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
    """One row per metric and number of seeds: the difference they detect (80% power, two-sided 5%) and their cost.

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
