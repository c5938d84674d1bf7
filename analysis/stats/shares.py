"""Intervals of an accuracy over seeds and items that hold at the floor and the ceiling, too.

An accuracy's variance shrinks with p(1 - p), so Wilson's interval (1927) is taken, with the variances of `stats/intervals.py`
in place of the binomial one: a true accuracy x is in it if the mean lies within the half-width that √(x(1 - x)) gives. Near 0
and 1 the clusters of items that were seen say little of those that were not: most are all wrong, and the few that are not make
up the mean. So no cluster counts for more than 1/INTRA_CLUSTER_CORRELATION items, and where all answers agree that alone is the
interval. `docs/coverage.md` says what it covers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.stats.intervals import RESOLUTION, Effect, Replicates, half_width
from analysis.stats.statistics import Interval

INTRA_CLUSTER_CORRELATION = 0.1
"""The least correlation of answers to items of one cluster; between HANS's subcases it is 0.04 to 0.26 in 100 BERT runs."""

Mean = tuple[Any, Any, float, Any, float]
"""A mean, the two parts of its variance and their degrees of freedom: seeds, seeds_df, items, items_df. Arrays or numbers."""


def share_interval(data: Replicates) -> Interval | None:
    """95% interval (0..1) of an accuracy, for further seeds and further clusters of items; of one seed for further items.

    Where every cluster is one item of a single template (`ItemSet.structure`), it speaks of that template's items only. None
    where several seeds agree exactly on an accuracy other than 0 and 1, so that their variance is not known.
    """
    effect = data.effect()
    if not (effect.has_interval or effect.num_seeds == 1 or _is_at_an_end(effect.mean)):
        return None
    low, high = share_ends(effect.mean, *_parts(effect), num_effective(data.sizes, data.strata))
    return Interval(float(low), float(high))


def num_effective(sizes: np.ndarray, strata: np.ndarray) -> float:
    """The independent items that clusters of `sizes` (int [m]) count for at most.

    Of several strata, as a whole HANS-like set has, all items: each has its own accuracy, and what they average to is not near
    an end.
    """
    if len(np.unique(strata)) > 1:
        return float(sizes.sum())
    clusters = sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum()
    return float(min(clusters / INTRA_CLUSTER_CORRELATION, sizes.sum()))


def share_ends(mean: Any, seeds: Any, seeds_df: float, items: Any, items_df: float, effective: float) -> tuple[Any, Any]:
    """Low and high end of accuracies, from a `Mean` and `num_effective`."""
    binomial = np.maximum(mean * (1 - mean), RESOLUTION)
    relative = half_width(seeds / binomial, seeds_df, np.maximum(items / binomial, 1 / effective), items_df) ** 2
    middle = (mean + relative / 2) / (1 + relative)
    half = np.sqrt(np.maximum(relative * binomial + relative**2 / 4, 0.0)) / (1 + relative)
    return np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)


def _parts(effect: Effect) -> tuple[float, float, float, float]:
    """The two parts of an effect's variance and their degrees of freedom, as `half_width` takes them."""
    of_seeds = 0.0 if effect.num_seeds == 1 else effect.seed_variance / effect.num_seeds
    return of_seeds, effect.num_seeds - 1, effect.item_variance, effect.item_df


def _is_at_an_end(mean: float) -> bool:
    return mean in (0.0, 1.0)
