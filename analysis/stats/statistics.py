"""Estimates with their n and their interval. Pure: numbers in, numbers out.

The unit of replication is the seed: it moves the subset drawn, the order, the head and the dropout together,
and kinds are compared paired by seed. An interval over seeds says nothing about another generator, another
pool or other test items; one over generators, each the mean of its seeds, says nothing about other items.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats
from scipy.stats import contingency

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Interval:
    """A closed interval [low, high] at a confidence level (0.95 is 95%)."""

    low: float
    high: float
    confidence: float = CONFIDENCE


def ends(interval: Interval | None) -> tuple[float, float]:
    """Low and high; NaN where there is no interval."""
    return (interval.low, interval.high) if interval else (math.nan, math.nan)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds or generators: its n, smallest and largest value, and an interval, or the reason for none."""

    mean: float
    n: int
    low: float
    high: float
    interval: Interval | None
    method: str


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio with the standard error of its natural logarithm, on which its interval is symmetric."""

    ratio: float
    standard_error: float

    def interval(self) -> Interval:
        """The normal interval of the logarithm, exponentiated."""
        half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * self.standard_error
        return Interval(self.ratio * math.exp(-half), self.ratio * math.exp(half))

    def over(self, other: RatioEstimate) -> RatioEstimate:
        """This ratio over another, independent one: the variances of the logarithms add up."""
        return RatioEstimate(self.ratio / other.ratio, math.hypot(self.standard_error, other.standard_error))


def odds_ratio(first: tuple[int, int], second: tuple[int, int]) -> RatioEstimate:
    """The odds of `first` over the odds of `second`, each (count with the trait, count without it), all independent.

    The logarithm's variance is the sum of the four reciprocal counts (Woolf 1955). Where a count is 0, which has no
    logarithm, one half is added to each of the four (Haldane 1956; Anscombe 1956). Raises ValueError for a negative count
    and for an empty group.
    """
    counts = (*first, *second)
    if min(counts) < 0 or not sum(first) or not sum(second):
        raise ValueError(f"groups {first} and {second}: counts are 0 or more, and an empty group has no odds; leave it out")
    with_trait, without, other_with, other_without = (count + 0.5 if 0 in counts else float(count) for count in counts)
    error = math.sqrt(1 / with_trait + 1 / without + 1 / other_with + 1 / other_without)
    return RatioEstimate(with_trait * other_without / (without * other_with), error)


def wilson_interval(num_correct: int, num_examples: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927): where the accuracy on more such items may lie.

    Raises ValueError for an empty slice, because the accuracy of nothing is not 0, and for impossible counts.
    """
    if num_examples <= 0:
        raise ValueError(f"num_examples={num_examples}: an empty slice has no accuracy; leave the slice out")
    if not 0 <= num_correct <= num_examples:
        raise ValueError(f"num_correct={num_correct} is not between 0 and num_examples={num_examples}")
    low, high = stats.binomtest(num_correct, num_examples).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(low), float(high))


def ratio_interval(treated: int, num_treated: int, control: int, num_control: int) -> Interval | None:
    """Interval of the ratio of two independent shares, treated/num_treated over control/num_control (Katz 1978).

    None when either count is 0: the logarithm that it is built on does not exist there. Raises ValueError for
    an empty group.
    """
    if num_treated <= 0 or num_control <= 0:
        raise ValueError(f"groups of {num_treated} and {num_control}: an empty group has no share; leave it out")
    if treated == 0 or control == 0:
        return None
    ratio = contingency.relative_risk(treated, num_treated, control, num_control)
    low, high = ratio.confidence_interval(CONFIDENCE)
    return Interval(float(low), float(high))


def mean_estimate(values: Sequence[float], unit: str = "seeds") -> Estimate:
    """Mean of one value per seed (or other `unit`), with Student's t interval for the mean when it can be had.

    n=1 has no interval. Neither have values that are all the same: a t interval of width 0 would claim
    certainty from what is often only an accuracy stuck at 0 or 1. Raises ValueError when `values` is empty or
    not finite.
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("no values: the mean of nothing does not exist; leave the cell out")
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"values={numbers} are not all finite; an accuracy or a difference of two is needed")
    n, low, high, mean = len(numbers), min(numbers), max(numbers), math.fsum(numbers) / len(numbers)
    if n == 1:
        return Estimate(mean, n, low, high, None, "no interval (n=1)")
    # The resolution of a float64 difference of accuracies, not of the data.
    if high - low < 1e-12:
        return Estimate(mean, n, low, high, None, f"no interval (the {n} {unit} agree exactly)")
    standard_error = statistics.stdev(numbers) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * standard_error
    return Estimate(mean, n, low, high, Interval(mean - half, mean + half), f"t over {n} {unit}")


def paired_difference(treatment: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Mean of treatment minus control, paired by seed (both map seed -> accuracy), with its t interval.

    Raises ValueError when the two do not have the same seeds: leaving the odd ones out is the caller's
    decision and has to be said.
    """
    if treatment.keys() != control.keys():
        odd = sorted(treatment.keys() ^ control.keys())
        raise ValueError(f"seeds {odd} are on one side only; a paired difference needs the same seeds on both")
    return mean_estimate([treatment[seed] - control[seed] for seed in sorted(treatment)])
