"""Signal detection on a blindspot test set: does the model tell a heuristic's label from the rest, and which does it favour?

Accuracies on entailed and on non-entailed items move in opposite directions when a model only says 'entailment' more often.
Sensitivity d' and criterion c (Macmillan and Creelman 2005) part the two: with H the share of entailed items called
entailment, F that of the non-entailed ones, and z the normal quantile,

    d' = z(H) − z(F)        c = −(z(H) + z(F)) / 2

d' = 0 is chance; c < 0 favours entailment. H and F are log-linear corrected, (count + 0.5) / (num + 1) (Hautus 1995), so that a
share of 0 or 1 has a finite z. Where a heuristic holds, the label that it predicts stands in the place of entailment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.stats.intervals import Replicates
from analysis.stats.statistics import ends
from analysis.study.frame import CELL
from analysis.study.items import ItemSet, Responses
from analysis.wording import HOLDS
from pipelines.tasks.nli import NON_ENTAILMENT, Label


def signal_detection(
    responses: Responses, test_set: str, starting_size: int, kind: str, size: int, slice_name: str = "all"
) -> dict[str, Replicates]:
    """`sensitivity` and `criterion` of one cell, one value per seed; their residuals are the delta method's.

    Raises UserError for a slice without entailed or without non-entailed items, or a cell that no seed has.
    """
    cells = [(starting_size, kind, size)]
    if slice_name.startswith(HOLDS):
        label = responses.items[test_set].asked(slice_name)
        sides = [responses.accuracy(test_set, f"{slice_name}/{side}", cells) for side in (label, f"non-{label}")]
    else:
        labels = (str(Label.ENTAILMENT), NON_ENTAILMENT)
        sides = [responses.accuracy(test_set, slice_name, cells, label=label) for label in labels]
    hits, rejections = sides
    z_hit, z_rejection = _z(hits), _z(rejections)
    # z(F) is −z(1 − F), and 1 − F is the accuracy on what is not entailed.
    return {"sensitivity": z_hit + z_rejection, "criterion": (z_rejection - z_hit) * 0.5}


def signal_table(responses: Responses, test_set: str) -> pd.DataFrame:
    """Sensitivity and criterion with 95 % intervals per cell, over the whole set and per heuristic.

    "Per heuristic" is where items were made for it, and where it holds ("holds/<name>") if both sides have items. A set with
    three labels has the latter only. Columns: starting_size, kind, size, slice, num_seeds, num_items, and per measure its mean,
    `_low` and `_high`. The interval is over seeds and items; of one seed over items only; NaN where neither varies.
    """
    slices = _slices(responses.items[test_set])
    rows = []
    for cell in sorted({cell[:3] for cell in responses.predicted[test_set]}):
        for slice_name in slices:
            row: dict[str, Any] = {**dict(zip(CELL, cell, strict=True)), "slice": slice_name}
            for measure, by_seed in signal_detection(responses, test_set, *cell, slice_name).items():
                effect = by_seed.effect()
                row |= {"num_seeds": effect.num_seeds, "num_items": effect.num_items, measure: effect.mean}
                row[f"{measure}_low"], row[f"{measure}_high"] = ends(effect.interval())
            rows.append(row)
    return pd.DataFrame(rows)


def _both(is_label: np.ndarray) -> bool:
    return bool(is_label.any() and not is_label.all())


def _slices(items: ItemSet) -> list[str]:
    heuristics = sorted(set(items.heuristics) - {""})
    usual = ["all", *heuristics] if NON_ENTAILMENT in items.labels else []
    held = [
        name for name, label in items.predicts.items() if name in items.holds and _both(items.is_of(label)[items.holds[name]])
    ]
    return usual + [f"{HOLDS}{name}" for name in held] or ["all"]


def _z(accuracy: Replicates) -> Replicates:
    """The normal quantile of corrected shares; residuals times its derivative."""
    num = accuracy.num_items
    quantiles = stats.norm.ppf((accuracy.values * num + 0.5) / (num + 1))
    slope = num / (num + 1) / stats.norm.pdf(quantiles)
    return replace(accuracy, values=quantiles, residuals=accuracy.residuals * slope[:, np.newaxis])
