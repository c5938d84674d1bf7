"""A mean over seeds and over test items, with an interval for both: what further seeds *and* further items would give.

The seeds of a study all see the same test items, so seeds and items are crossed, and items come in clusters (the three
hypotheses of a MultiNLI premise, the sentences of a HANS template). Further seeds shrink only one of the two variances:

    variance of the mean = seed_variance / num_seeds + item_variance

`seed_variance` is the variance of the seeds' own values. `item_variance` is that of the seeds' average over clusters of items,
less the part that the seeds' own variance has already; each cluster's residual is divided by 1 - leverage, the jackknife over
clusters, which keeps it honest for few and unequal ones (Bell and McCaffrey 2002). Each part has its own Student's t, and the
half-widths add in squares (Howe 1974, on the mean of a sum of two), so that few seeds cannot borrow degrees of freedom from
many items. `python -m analysis.simulation` measures what that covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from analysis.stats.statistics import CONFIDENCE, Interval
from pipelines.errors import UserError

RESOLUTION = 1e-12
"""The resolution of a difference of two accuracies in float64, not of the data."""

LEAST_P = 1e-60
"""Smaller p values are given as this: no model of the data is true that far out, and quantiles overflow."""


@dataclass(frozen=True)
class Effect:
    """A mean over seeds and items with its two variances.

    `seed_variance` is of one seed's value (NaN for one seed), `item_variance` of the mean, however many seeds there are.
    `item_df` are the degrees of freedom of the latter: about the number of clusters.
    """

    mean: float
    num_seeds: int
    num_items: int
    seed_variance: float
    item_variance: float
    item_df: float = math.inf

    @property
    def standard_error(self) -> float:
        """The mean's standard error; for one seed from its items alone, so that it says nothing of training."""
        of_seeds = 0.0 if self.num_seeds == 1 else self.seed_variance / self.num_seeds
        return math.sqrt(of_seeds + self.item_variance)

    @property
    def has_interval(self) -> bool:
        """Whether a width can be had: not if the seeds, or the items of the one seed, agree exactly.

        An interval of width 0 would claim certainty from what is often only an accuracy stuck at 0 or 1.
        """
        varies = self.item_variance if self.num_seeds == 1 else self.seed_variance
        return varies > RESOLUTION**2

    def interval(self) -> Interval | None:
        if not self.has_interval:
            return None
        half = self._half_of_tail((1 - CONFIDENCE) / 2)
        return Interval(self.mean - half, self.mean + half)

    def p_above(self, value: float = 0.0) -> float:
        """One-sided p value against a true mean of at most `value`: the level at which the interval ends there.

        Not below LEAST_P. NaN where there is no interval.
        """
        if not self.has_interval:
            return math.nan
        distance = abs(self.mean - value)
        # On the scale of the logarithm, where a p value of 1e-30 is as easy as one of 0.1.
        least, most = math.log(LEAST_P), math.log(0.5)
        if self._half_of_tail(math.exp(least)) <= distance:
            tail = math.exp(least)
        elif distance == 0:
            tail = 0.5
        else:
            tail = math.exp(optimize.brentq(lambda x: self._half_of_tail(math.exp(x)) - distance, least, most))
        return tail if self.mean >= value else 1 - tail

    def p_below(self, value: float = 0.0) -> float:
        """One-sided p value against a true mean of at least `value`; NaN where there is no interval."""
        return replace(self, mean=-self.mean).p_above(-value)

    def _half_of_tail(self, tail: float) -> float:
        seeds = 0.0 if self.num_seeds == 1 else self.seed_variance / self.num_seeds
        return float(half_width(seeds, self.num_seeds - 1, self.item_variance, self.item_df, tail))


@dataclass(frozen=True)
class Replicates:
    """One value per seed, and what each cluster of test items adds to it.

    `values` float [n]: a mean over items (or a function of one) per seed. `residuals` float [n, m]: how much cluster c pulls
    seed s's value away from its stratum's, so that each row sums to 0 within a stratum. `sizes` [m] are the clusters'
    items, or their weights, `strata` int [m] the clusters' strata: the parts of a test set whose share is fixed by design.
    `num_items` counts all items. Where a value is the mean of several seeds (`grouped`), `num_seeds_each` [n] counts them.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    residuals: np.ndarray
    sizes: np.ndarray
    strata: np.ndarray
    num_items: int
    num_seeds_each: tuple[int, ...] = ()

    @property
    def num_clusters(self) -> int:
        return len(self.sizes)

    def effect(self) -> Effect:
        """The mean over seeds with its variances."""
        leverage = leverages(self.sizes, self.strata)
        seed_variance, item_variance = variances(self.values, self.residuals, leverage)
        df = effective_df(self.sizes, self.strata)
        n = len(self.seeds)
        return Effect(float(self.values.mean()), n, self.num_items, float(seed_variance), float(item_variance), df)

    def of(self, seeds: Sequence[int]) -> Replicates:
        """The same for some of the seeds, in that order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        each = tuple(self.num_seeds_each[row] for row in rows) if self.num_seeds_each else ()
        return replace(self, seeds=tuple(seeds), values=self.values[rows], residuals=self.residuals[rows], num_seeds_each=each)

    def grouped(self, groups: Mapping[int, int]) -> Replicates:
        """The mean over the seeds of each group, which then stand as `seeds`: seed → group, such as its generator.

        Groups weigh alike, however many seeds they have. Raises KeyError for a seed without a group.
        """
        group_of = np.array([groups[seed] for seed in self.seeds])
        names = sorted(set(group_of.tolist()))
        members = [group_of == name for name in names]
        return replace(
            self,
            seeds=tuple(names),
            values=np.stack([self.values[rows].mean() for rows in members]),
            residuals=np.stack([self.residuals[rows].mean(axis=0) for rows in members]),
            num_seeds_each=tuple(int(rows.sum()) for rows in members),
        )

    def minus(self, other: Replicates) -> Replicates:
        """The difference of two values on the same items, paired by the seeds that both have.

        Raises UserError where there is no such seed, and ValueError for other items.
        """
        return mean_of([self, other * -1]) * 2  # the mean of a and -b is half their difference

    def __mul__(self, factor: float) -> Replicates:
        return replace(self, values=self.values * factor, residuals=self.residuals * factor)

    def __sub__(self, other: Replicates) -> Replicates:
        return self + other * -1

    def __add__(self, other: Replicates) -> Replicates:
        """The sum of two values that share no test item, paired by seed. Raises ValueError for other seeds."""
        if self.seeds != other.seeds:
            raise ValueError(f"seeds {self.seeds} and {other.seeds} differ; a paired value needs the same on both sides")
        shifted = other.strata + (int(self.strata.max()) + 1)
        return Replicates(
            self.seeds,
            self.values + other.values,
            np.concatenate([self.residuals, other.residuals], axis=1),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.strata, shifted]),
            self.num_items + other.num_items,
            self.num_seeds_each,
        )


def mean_of(data: Sequence[Replicates]) -> Replicates:
    """The mean of several values on the same items, over the seeds that all have.

    Raises UserError where there is no such seed, and ValueError for none or for other items.
    """
    first = data[0]
    for one in data[1:]:
        if not (np.array_equal(one.sizes, first.sizes) and np.array_equal(one.strata, first.strata)):
            raise ValueError("values of other items; on disjoint ones they can be added, and else not be compared")
    seeds = sorted(set.intersection(*(set(one.seeds) for one in data)))
    if not seeds:
        raise UserError("no seed is on all sides; a paired value needs the same seeds on each")
    chosen = [one.of(seeds) for one in data]
    return replace(
        chosen[0],
        values=np.mean([one.values for one in chosen], axis=0),
        residuals=np.mean([one.residuals for one in chosen], axis=0),
    )


def replicates(seeds: Sequence[int], items: np.ndarray, clusters: np.ndarray, strata: np.ndarray) -> Replicates:
    """Replicates from one number per seed and item.

    `items` float [n, num_items]; `clusters` and `strata` int [num_items], each cluster within one stratum. Raises ValueError
    for no seed or no item, and UserError for a stratum of one cluster: how it would differ from another cannot be known.
    """
    if items.ndim != 2 or 0 in items.shape or items.shape != (len(seeds), len(clusters)):
        raise ValueError(f"items of shape {items.shape} for {len(seeds)} seeds and {len(clusters)} clusters: none may be empty")
    num_items = items.shape[1]
    return clustered(seeds, items.sum(axis=1) / num_items, items / num_items, np.ones(num_items), clusters, strata)


def clustered(
    seeds: Sequence[int],
    values: np.ndarray,
    components: np.ndarray,
    weights: np.ndarray,
    clusters: np.ndarray,
    strata: np.ndarray,
) -> Replicates:
    """Replicates of `values` float [n] from what each item adds to them, `components` float [n, num_items].

    A stratum's sum of components is fixed by its design and taken off its items by their `weights` [num_items]. `clusters`,
    `strata` and errors as of `replicates`.
    """
    names, codes = np.unique(clusters, return_inverse=True)
    of_items = np.unique(strata, return_inverse=True)[1]
    stratum_of = np.empty(len(names), dtype=np.int64)
    stratum_of[codes] = of_items
    # One cluster that lies in two strata would be given to the last.
    if (stratum_of[codes] != of_items).any():
        raise ValueError("a cluster lies in two strata; give clusters within strata")
    if (alone := np.bincount(stratum_of).min()) < 2:
        raise UserError(f"a part of the test set has {alone} cluster of items; with less than 2 its variance cannot be known")
    sizes = np.bincount(codes, weights=weights)
    sums = np.stack([np.bincount(codes, weights=row, minlength=len(names)) for row in components])
    of_stratum = np.stack([np.bincount(stratum_of, weights=row) for row in sums]) / np.bincount(stratum_of, weights=sizes)
    residuals = sums - of_stratum[:, stratum_of] * sizes
    return Replicates(tuple(seeds), values, residuals, sizes, stratum_of, components.shape[1])


def leverages(sizes: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Each cluster's share of its stratum's items: float [m]."""
    return sizes / np.bincount(strata, weights=sizes)[strata]


def effective_df(sizes: np.ndarray, strata: np.ndarray) -> float:
    """Degrees of freedom of a variance over clusters: per stratum the number of equal clusters that weigh as much, less one.

    Not below 1, as which two clusters of very different size count.
    """
    squares = np.bincount(strata, weights=leverages(sizes, strata) ** 2)
    return max(1.0, float((1 / squares - 1).sum()))


def variances(values: np.ndarray, residuals: np.ndarray, leverage: np.ndarray) -> tuple[Any, Any]:
    """Seed variance (of one seed's value) and item variance (of the mean) of `values` [..., n], `residuals` [..., n, m].

    Leading axes are independent studies. For one seed the first is NaN, and the second holds all that varies over items.
    """
    n = values.shape[-1]
    adjusted = residuals / (1 - leverage)
    of_items = (adjusted.mean(axis=-2) ** 2).sum(axis=-1)
    if n == 1:
        return np.full(values.shape[:-1], np.nan), of_items
    # What differs over items from seed to seed is in the seeds' own variance already.
    shared = adjusted.var(axis=-2, ddof=1).sum(axis=-1) / n
    return values.var(axis=-1, ddof=1), np.maximum(of_items - shared, 0.0)


def half_width(seeds: Any, seeds_df: float, items: Any, items_df: float, tail: float = (1 - CONFIDENCE) / 2) -> Any:
    """Half the width of an interval that leaves out `tail` on each side, from the two parts of the mean's variance.

    `seeds` is the seed variance over the number of seeds, 0 with `seeds_df` 0 for one seed. Arrays or numbers.
    """
    of_seeds = special.stdtrit(seeds_df, tail) ** 2 * seeds if seeds_df else 0.0
    return np.sqrt(of_seeds + special.stdtrit(items_df, tail) ** 2 * items)


def two_level_bootstrap(data: Replicates, *, seed: int, num_samples: int = 4000) -> Interval:
    """Percentile interval: seeds drawn outside, clusters of items inside, each with replacement, clusters within strata.

    All seeds of a sample see the same items, as in the study. With few seeds it covers too little (see the simulation), so
    verdicts do not rest on it. Raises UserError for one seed.
    """
    n = len(data.seeds)
    if n < 2:
        raise UserError("a bootstrap over 1 seed has no spread; run more seeds")
    random = np.random.default_rng(seed)
    chosen = random.multinomial(n, np.full(n, 1 / n), size=num_samples) / n
    extra = np.empty((num_samples, data.num_clusters))
    for stratum in np.unique(data.strata):
        inside = np.flatnonzero(data.strata == stratum)
        extra[:, inside] = random.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=num_samples) - 1
    means = chosen @ data.values + ((chosen @ data.residuals) * extra).sum(axis=1)
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Interval(float(low), float(high))
