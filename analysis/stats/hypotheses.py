"""Tests beside the intervals: sign flips for few seeds, equivalence, and many tests at once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from analysis.stats.intervals import RESOLUTION, Effect

MOST_EXACT = 12
"""With so many seeds at most, all 2^n sign patterns are tried."""


def sign_flip(differences: Sequence[float], *, seed: int = 0, num_samples: int = 20_000) -> float:
    """Two-sided p value of paired differences, one a seed, whose signs would be arbitrary if there were no difference.

    Exact for up to 12 seeds, else from `num_samples` random patterns. It assumes no distribution, and cannot be less than
    2 / 2^n: three seeds never give less than 0.25. Raises ValueError for no difference.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0:
        raise ValueError("no differences: a test of nothing does not exist; leave the cell out")
    if n <= MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(num_samples, n))
    as_far = np.abs(signs @ values) >= abs(values.sum()) - RESOLUTION
    # The observed pattern is one of all; among random ones it has to be counted in.
    return float(as_far.mean()) if n <= MOST_EXACT else float((1 + as_far.sum()) / (1 + num_samples))


def equivalence(effect: Effect, margin: float) -> float:
    """P value of two one-sided tests (Schuirmann 1987): small where the true mean lies within ±`margin`.

    NaN where the effect has no interval. Raises ValueError for a margin that is not above 0.
    """
    if margin <= 0:
        raise ValueError(f"margin={margin}: equivalence needs a margin above 0, in the effect's own unit")
    return max(effect.p_above(-margin), effect.p_below(margin))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for the family (Holm 1979), in their order. A NaN was not tested: it stays, and counts for none."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def partial_conjunction(p_values: Sequence[float], at_least: int) -> float:
    """P value against fewer than `at_least` of several statements being true, under any dependence (Benjamini and Heller 2008).

    (m - at_least + 1) times the `at_least`-th smallest of m p values: the largest for 'all' (intersection-union), m times the
    smallest for 'one of them'. A NaN could not be tested: it counts as 1, so that it supports nothing and hides nothing that
    another shows. NaN where none could be tested. Raises ValueError for an `at_least` that is not 1 to m.
    """
    m = len(p_values)
    if not 1 <= at_least <= m:
        raise ValueError(f"at_least={at_least} of {m} p values: choose from 1 to their number")
    if all(math.isnan(p) for p in p_values):
        return math.nan
    smallest = sorted(1.0 if math.isnan(p) else p for p in p_values)
    return min(1.0, (m - at_least + 1) * smallest[at_least - 1])


def benjamini_hochberg(p_values: Sequence[float], families: Sequence[Hashable] | None = None) -> list[float]:
    """P values adjusted for the share of false discoveries (Benjamini and Hochberg 1995); NaN stays, and counts for none.

    With `families`, one for each p value, the adjustment runs within each: what asks another kind of question is corrected
    apart.
    """
    values = np.array(p_values, dtype=float)
    kinds = [None] * len(values) if families is None else list(families)
    for kind in set(kinds):
        tested = ~np.isnan(values) & np.array([one == kind for one in kinds])
        if tested.any():
            values[tested] = stats.false_discovery_control(values[tested])
    return [float(value) for value in values]
