"""Signal detection on a blindspot test set: does the model tell a heuristic's label from the rest, and which does it favour?

Accuracies on items of a label and on the others move in opposite directions when a model only gives that label more often, as
'entailment' on HANS. Sensitivity d' and criterion c (Macmillan and Creelman 2005) part the two: with H the share of the label's
items that are given it, F that of the others, and z the normal quantile,

    d' = z(H) − z(F)        c = −(z(H) + z(F)) / 2

d' = 0 is chance; c < 0 favours the label. H and F are log-linear corrected, (count + 0.5) / (num + 1) (Hautus 1995), so that a
share of 0 or 1 has a finite z. The label is the one that the set tells from all others; of a set that has all of the task's,
the one that the heuristic predicts where it holds, or that the study's does.
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
from pipelines.errors import UserError


def signal_detection(
    responses: Responses, test_set: str, starting_size: int, kind: str, size: int, slice_name: str = "all"
) -> dict[str, Replicates]:
    """`sensitivity` and `criterion` of one cell, one value per seed; their residuals are the delta method's.

    Raises UserError for a slice without items of the label or without others, or a cell that no seed has.
    """
    items = responses.items[test_set]
    is_of_one = items.described is not None or len(items.task.labels) == 2
    label = items.asked(slice_name) or (responses.label if is_of_one else None)
    if label is None:
        raise UserError(f"{test_set} does not set one label against all others, and the heuristic it tests names none")
    sides = (label, f"non-{label}")
    hits, rejections = (responses.accuracy(test_set, slice_name, [(starting_size, kind, size)], side=side) for side in sides)
    z_hit, z_rejection = _z(hits), _z(rejections)
    # z(F) is −z(1 − F), and 1 − F is the accuracy on what is not of the label.
    return {"sensitivity": z_hit + z_rejection, "criterion": (z_rejection - z_hit) * 0.5}


def signal_table(responses: Responses, test_set: str) -> pd.DataFrame:
    """Sensitivity and criterion with 95% intervals per cell, over the whole set and per heuristic.

    "Per heuristic" is where items were made for it, and where it holds ("holds/<name>") if both sides have items. A described
    set has its slices of which both sides have items; another set with all labels has where heuristics hold only. Columns:
    starting_size, kind, size, slice, num_seeds, num_items, and per measure its mean, `_low` and `_high`. The interval is over
    seeds and items; of one seed over items only; NaN where neither varies.
    """
    slices = _slices(responses.items[test_set], responses.label)
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


def _slices(items: ItemSet, predicted: str | None) -> list[str]:
    if items.described is not None:
        label = items.folded_onto or predicted
        usual = [name for name in ("all", *items.slices) if label and _both(items.is_of(label)[items.chosen(name)])]
    else:
        usual = ["all", *sorted(set(items.heuristics) - {""})] if items.folded_onto else []
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
