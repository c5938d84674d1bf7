"""Table 1, the accuracy table, and the study's estimand: synthetic minus original, paired by seed.

Accuracies and shares are 0..1 here; the report writes them in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats.intervals import Replicates
from analysis.stats.shares import share_interval
from analysis.stats.statistics import (
    Estimate,
    RatioEstimate,
    ends,
    mean_estimate,
    odds_ratio,
    paired_difference,
    ratio_interval,
    wilson_interval,
)
from analysis.study.artifacts import LabelCount, entailment_and_rest, label_order
from analysis.study.frame import KEY, POINT
from analysis.study.items import ItemSet, Responses
from pipelines.errors import UserError
from pipelines.evaluate.scoring import FOLDINGS

CLUSTERS = ("template", "premise", "subcase", "item")
"""Columns by which items hang together that are nouns; the name of another is one of its column."""
ESTIMATE_COLUMNS = ("mean", "n", "low", "high", "interval_low", "interval_high", "method")


def lexical_overlap_table(original: Mapping[str, LabelCount], synthetic: Mapping[str, LabelCount]) -> pd.DataFrame:
    """The paper's Table 1: synthetic then original, one row per label.

    Columns: dataset, label, count, num_lexical_overlap, share (of the label's rows) with its Wilson interval
    (share_low, share_high), and, for synthetic rows, ratio (the paper's 'S:O': synthetic share over original
    share) with its interval. The ratio is NaN where the original share is 0, its interval where either count
    is 0.

    Raises UserError when the two have different labels or a label has no rows.
    """
    if original.keys() != synthetic.keys():
        raise UserError(f"labels differ: original {sorted(original)}, synthetic {sorted(synthetic)}; compare the same labels")
    rows = []
    for dataset, counts in (("synthetic", synthetic), ("original", original)):
        for label in sorted(counts, key=label_order):
            count, base = counts[label], original[label]
            if count.num_rows == 0 or base.num_rows == 0:
                raise UserError(f"no {label} examples in the {dataset} data; an empty slice has no share")
            share_low, share_high = ends(wilson_interval(count.num_lexical_overlap, count.num_rows))
            ratio = ratio_low = ratio_high = math.nan
            if dataset == "synthetic" and base.num_lexical_overlap:
                ratio = count.share / base.share
                ratio_low, ratio_high = ends(
                    ratio_interval(count.num_lexical_overlap, count.num_rows, base.num_lexical_overlap, base.num_rows)
                )
            rows.append(
                {
                    "dataset": dataset,
                    "label": label,
                    "count": count.num_rows,
                    "num_lexical_overlap": count.num_lexical_overlap,
                    "share": count.share,
                    "share_low": share_low,
                    "share_high": share_high,
                    "ratio": ratio,
                    "ratio_low": ratio_low,
                    "ratio_high": ratio_high,
                }
            )
    return pd.DataFrame(rows)


def entailment_odds_ratio(counts: Mapping[str, LabelCount]) -> RatioEstimate:
    """Odds ratio of lexical overlap and entailment: the odds of overlap in entailment over those in all other labels.

    Raises UserError when there is no entailment, or nothing else.
    """
    groups = entailment_and_rest(counts)
    if not all(group.num_rows for group in groups):
        raise UserError(f"labels {sorted(counts)}: an odds ratio needs examples of entailment and of something else")
    return odds_ratio(*(group.with_and_without for group in groups))


def accuracy_table(frame: pd.DataFrame, responses: Responses | None = None) -> pd.DataFrame:
    """Mean, n, range and interval over seeds per `KEY` without the seed; `method` says what the interval is over.

    With the study's `responses`, those of the frame's arm, it is over further seeds (generators, where the cell has several)
    and further clusters of items, as templates or premises, and holds near 0 and 1 (`stats.shares`). For what they do not have,
    as the other folding, it is Student's t over seeds, cut to 0..1, and with one seed Wilson's over test items as if they were
    independent. Raises UserError for an empty frame.
    """
    by = list(POINT)
    rows = []
    for key, cell in _groups(frame, by):
        point = dict(zip(by, key, strict=True))
        if len(cell) == 1:
            correct, total = int(cell["num_correct"].iloc[0]), int(cell["num_examples"].iloc[0])
            accuracy = float(cell["accuracy"].iloc[0])
            around = wilson_interval(correct, total)
            method = f"Wilson over {total:,} test items (n=1 seed)"
            estimate = Estimate(accuracy, 1, accuracy, accuracy, around, method)
        else:
            estimate = _cut(mean_estimate(cell["accuracy"].tolist()), 0.0, 1.0)
        if responses is not None and (data := _answers(responses, point, cell)) is not None:
            method = _method(responses.items[point["set"]], point["slice"], data, cell)
            estimate = replace(estimate, interval=share_interval(data), method=method)
        rows.append({**point, **estimate_columns(estimate)})
    table = pd.DataFrame(rows, columns=[*by, *ESTIMATE_COLUMNS])
    return table.astype({"kind": frame["kind"].dtype, "arm": frame["arm"].dtype})


def _answers(responses: Responses, point: Mapping[str, Any], cell: pd.DataFrame) -> Replicates | None:
    """The accuracy of a cell's seeds, or generators, from its answers; None if these do not have what the frame has."""
    if point["set"] not in responses.predicted or point["folding"] != "argmax":
        return None
    try:
        where = int(point["starting_size"]), str(point["kind"]), int(point["size"])
        data = responses.accuracy(point["set"], point["slice"], [where])
    except UserError:
        return None
    # Labels are folded as the slice asks, and a frame can have them unfolded, too.
    of_seeds = dict(zip(data.seeds, data.values, strict=True))
    same = all(
        seed in of_seeds and math.isclose(of_seeds[seed], accuracy, abs_tol=1e-9)
        for seed, accuracy in zip(cell["seed"], cell["accuracy"], strict=True)
    )
    if not same:
        return None
    data = data.of(sorted(int(seed) for seed in cell["seed"]))
    return data.grouped(responses.generator_of) if _has_generators(cell) else data


def _method(items: ItemSet, slice_name: str, data: Replicates, cell: pd.DataFrame) -> str:
    unit = "generator" if _has_generators(cell) else "seed"
    units = f"{len(data.seeds)} {unit}{'s' if len(data.seeds) > 1 else ''}"
    if share_interval(data) is None:
        return f"no interval (the {units} agree exactly)"
    # Items are their own clusters where a slice has one cluster only.
    num_clusters = len(np.unique(items.clusters[items.chosen(slice_name)]))
    if num_clusters == 1:
        clusters = f"{data.num_items:,} items of one {items.clustered_by}"
    else:
        nouns = "items" if data.num_clusters == data.num_items else f"values of {items.clustered_by}"
        clusters = f"{data.num_clusters:,} {f'{items.clustered_by}s' if items.clustered_by in CLUSTERS else nouns}"
    return f"Wilson over {units} and {clusters}" if len(data.seeds) > 1 else f"Wilson over {clusters} (1 {unit})"


def _has_generators(cell: pd.DataFrame) -> bool:
    return bool(cell["generator"].notna().all()) and cell["generator"].nunique() > 1


def unit_of(frame: pd.DataFrame) -> str:
    """What synthetic data is replicated by: "generators" where several have made what is evaluated, else "seeds"."""
    return "generators" if frame["generator"].nunique() > 1 else "seeds"


def by_unit(values: Mapping[int, float], frame: pd.DataFrame) -> list[float]:
    """One value per seed as one per unit of `frame` (`unit_of`): with several generators the mean over each one's seeds.

    Seeds of one generator share its pool, so that they are no draws of their own.
    """
    if unit_of(frame) == "seeds":
        return [values[seed] for seed in sorted(values)]
    generators = frame.drop_duplicates("seed").set_index("seed")["generator"]
    return [float(mean) for mean in pd.Series(values).groupby(generators).mean()]


def folding_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Two labels scored by summed probabilities minus by argmax, paired by seed, per `KEY` without what a cell's seeds and
    foldings differ in.

    Columns `argmax` and `summed` are the means over the same seeds; the difference's are as `difference_table` has them,
    without left_out: a seed has both foldings or neither. Empty when nothing was scored by both.
    """
    by = [name for name in KEY if name not in ("seed", "folding", "num_labels")]
    rows = []
    for key, cell in frame[frame["num_labels"] == 2].groupby(by, observed=True, sort=True):
        sides = cell.pivot(index="seed", columns="folding", values="accuracy")
        if not set(FOLDINGS) <= set(sides.columns):
            continue
        estimate = _cut(paired_difference(sides["summed"].to_dict(), sides["argmax"].to_dict()), -1.0, 1.0)
        means = {folding: float(sides[folding].mean()) for folding in FOLDINGS}
        rows.append({**dict(zip(by, key, strict=True)), **means, **estimate_columns(estimate)})
    return pd.DataFrame(rows, columns=[*by, *FOLDINGS, *ESTIMATE_COLUMNS]).astype({"kind": frame["kind"].dtype})


def _cut(estimate: Estimate, least: float, most: float) -> Estimate:
    # Two seeds give t intervals far beyond what an accuracy or a difference can be; cutting them loses no coverage.
    around = estimate.interval
    if around is None:
        return estimate
    return replace(estimate, interval=replace(around, low=max(least, around.low), high=min(most, around.high)))


def _groups(frame: pd.DataFrame, by: list[str]) -> Any:
    if frame.empty:
        raise UserError("the frame has no rows; evaluate at least one task model before making a table")
    return frame.groupby(by, observed=True, sort=True)


def estimate_columns(estimate: Estimate) -> dict[str, Any]:
    """An estimate as a row's ESTIMATE_COLUMNS; no interval is NaN."""
    values = (estimate.mean, estimate.n, estimate.low, estimate.high, *ends(estimate.interval), estimate.method)
    return dict(zip(ESTIMATE_COLUMNS, values, strict=True))
