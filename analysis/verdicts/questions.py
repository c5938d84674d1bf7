"""What is asked of a study's numbers: parts with a claimed sign, in settings, and how many settings have to agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from analysis.stats.hypotheses import equivalence
from analysis.stats.intervals import Effect, Replicates, half_width
from analysis.stats.statistics import ends

Unit = Literal["share", "ratio", "number"]


@dataclass(frozen=True)
class Part:
    """One difference, or level, and what is claimed of it.

    `sign` is the claimed side of `threshold`: 1 above, -1 below, 0 about there. `unit` "share" is of accuracies (0..1),
    "number" of what has no bound or name of its own, and "ratio" is kept as a logarithm here and reported as a ratio. `by_seed`
    are the values of seeds, or of generators, empty where training plays no part.
    """

    name: str
    effect: Effect
    sign: int
    unit: Unit = "share"
    by_seed: tuple[float, ...] = ()
    bound: float = 1.0
    """The largest that a "share" can be: 1 for a difference of accuracies, 2 for a difference of such."""
    threshold: float = 0.0

    @classmethod
    def of(
        cls, name: str, data: Replicates, sign: int, *, unit: Unit = "share", bound: float = 1.0, threshold: float = 0.0
    ) -> Part:
        return cls(name, data.effect(), sign, unit, tuple(float(value) for value in data.values), bound, threshold)

    def in_unit(self) -> tuple[float, float, float]:
        """Estimate and 95% interval in `unit`: of logarithms their ratio, of shares cut at `bound`; NaN for none."""
        low, high = ends(self.effect.interval())
        if self.unit == "ratio":
            return math.exp(self.effect.mean), math.exp(low), math.exp(high)
        # NaN stays: it is not beyond any bound.
        return self.effect.mean, -self.bound if low < -self.bound else low, self.bound if high > self.bound else high

    @property
    def is_of_training(self) -> bool:
        return bool(self.by_seed)

    @property
    def can_be_tested(self) -> bool:
        """Whether it has a p value: not with one seed of training, nor where all seeds agree exactly."""
        return self.effect.has_interval and not (self.is_of_training and self.effect.num_seeds == 1)

    def p_claimed(self, margin: float) -> float:
        """P value of what is claimed: two-sided for a side, of two one-sided tests for sign 0; NaN if it cannot be tested."""
        if not self.can_be_tested:
            return math.nan
        if self.sign == 0:
            return self.p_equivalent(margin)
        return min(1.0, 2 * self._tail())

    def p_opposite(self, margin: float) -> float:
        """P value of the other side, two-sided, or of lying beyond `margin`; NaN if it cannot be tested."""
        if not self.can_be_tested:
            return math.nan
        if self.sign == 0:
            above, below = self.effect.p_above(self.threshold + margin), self.effect.p_below(self.threshold - margin)
            return min(1.0, 2 * min(above, below))
        return min(1.0, 2 * (1 - self._tail()))

    def p_equivalent(self, margin: float) -> float:
        """P value of two one-sided tests that it lies within `margin` of the threshold; NaN if it cannot be tested."""
        if not self.can_be_tested:
            return math.nan
        return equivalence(replace(self.effect, mean=self.effect.mean - self.threshold), margin)

    def smallest_margin(self, alpha: float) -> float:
        """The smallest margin within which two one-sided tests at level `alpha` would find it; NaN if it cannot be tested."""
        if not self.can_be_tested:
            return math.nan
        effect = self.effect
        of_seeds = 0.0 if effect.num_seeds == 1 else effect.seed_variance / effect.num_seeds
        half = float(half_width(of_seeds, effect.num_seeds - 1, effect.item_variance, effect.item_df, alpha))
        return abs(effect.mean - self.threshold) + half

    def _tail(self) -> float:
        """One-sided p value of the claimed side."""
        return self.effect.p_above(self.threshold) if self.sign > 0 else self.effect.p_below(self.threshold)


@dataclass(frozen=True)
class Setting:
    """One place of a study's grid and a claim's parts there, the headline first; without parts, why there are none."""

    name: str
    parts: tuple[Part, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Question:
    """A claim as it is put to one study's numbers.

    All parts have to hold in `rule` ("every" or "most") of the settings. `headline` is the first part averaged over the
    settings that could be had, None for none. `measure` and `is_on_blindspot` say which positive control it needs, `control`
    that it is one, and `compares_on_blindspot` that, where it is supported, kinds differ there. `margin` is in the parts' unit.
    `why_not` says why nothing is asked.
    """

    name: str
    statement: str
    settings: tuple[Setting, ...] = ()
    headline: Part | None = None
    paper: str = ""
    rule: str = "every"
    margin: float = 0.01
    measure: str = "accuracy"
    primary: bool = True
    control: bool = False
    is_on_blindspot: bool = False
    compares_on_blindspot: bool = False
    is_from_pool: bool = False
    why_not: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fewest_settings(self) -> int:
        """In how many settings it has to hold."""
        return len(self.settings) if self.rule == "every" else len(self.settings) // 2 + 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts of all settings."""
        return tuple(part for setting in self.settings for part in setting.parts)

    @property
    def is_of_training(self) -> bool:
        return any(part.is_of_training for part in self.parts)
