"""Differences by subcase of the blindspot set, or by slice of one that is described: exploratory, beside the claims."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.stats.hypotheses import benjamini_hochberg
from analysis.verdicts.evidence import Evidence
from analysis.verdicts.questions import Part


def subcase_table(evidence: Evidence) -> pd.DataFrame:
    """Synthetic minus original per subcase of the blindspot set, averaged over all starting points and sizes.

    A described set's subcases are its slices, named as they are. Columns: subcase, mean, low, high, num_seeds, num_items,
    num_clusters (templates, as a rule), p (two-sided), q (Benjamini and Hochberg). Of one cluster, the interval speaks of
    further items of it; of several, of further clusters. These are two questions, and q runs over the subcases of each apart.
    With one seed p is NaN. Empty for a set without subcases.
    """
    items = evidence.responses.items[evidence.blindspot_set]
    rows = []
    subcases = {subcase: f"subcase/{subcase}" for subcase in sorted(set(items.subcases) - {""})}
    if items.described is not None:
        subcases = {name: name for name in items.slices}
    for subcase, name in subcases.items():
        data = evidence.change((evidence.blindspot_set, name), "synthetic", "original", evidence.starting_sizes)
        part = Part.of(subcase, data, 0)
        effect = part.effect
        p = math.nan if effect.num_seeds == 1 else 2 * min(effect.p_above(), effect.p_below())
        num_clusters = len(np.unique(items.clusters[items.chosen(name)]))
        rows.append([subcase, *part.in_unit(), effect.num_seeds, effect.num_items, num_clusters, p])
    table = pd.DataFrame(rows, columns=["subcase", "mean", "low", "high", "num_seeds", "num_items", "num_clusters", "p"])
    return table.assign(q=benjamini_hochberg(table["p"].tolist(), (table["num_clusters"] == 1).tolist()))
