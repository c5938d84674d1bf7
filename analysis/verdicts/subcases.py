"""Differences by subcase of the blindspot set: exploratory, beside the claims."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.stats.hypotheses import benjamini_hochberg
from analysis.verdicts.evidence import Evidence
from analysis.verdicts.questions import Part


def subcase_table(evidence: Evidence) -> pd.DataFrame:
    """Synthetic minus original per subcase of the blindspot set, averaged over all starting points and sizes.

    Columns: subcase, mean, low, high, num_seeds, num_items, num_templates, p (two-sided), q (Benjamini and Hochberg). Of one
    template, the interval speaks of further items of it; of several, of further templates. These are two questions, and q runs
    over the subcases of each apart. With one seed p is NaN.
    """
    items = evidence.responses.items[evidence.blindspot_set]
    rows = []
    for subcase in sorted(set(items.subcases) - {""}):
        data = evidence.blindspot("synthetic", "original", evidence.starting_sizes, slice_name=f"subcase/{subcase}")
        part = Part.of(subcase, data, 0)
        effect = part.effect
        p = math.nan if effect.num_seeds == 1 else 2 * min(effect.p_above(), effect.p_below())
        num_templates = len(np.unique(items.clusters[items.subcases == subcase]))
        rows.append([subcase, *part.in_unit(), effect.num_seeds, effect.num_items, num_templates, p])
    table = pd.DataFrame(rows, columns=["subcase", "mean", "low", "high", "num_seeds", "num_items", "num_templates", "p"])
    return table.assign(q=benjamini_hochberg(table["p"].tolist(), (table["num_templates"] == 1).tolist()))
