"""The paper's published numbers, and a study's set beside them, point by point.

Zhang and Pavlick, "Does Training on Synthetic Data Make Models Less Robust?"; `reference/README.md` says where each
number is from. The paper has one run a cell: its points have a reading tolerance, not an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis.stats.statistics import ends, ratio_interval, wilson_interval
from analysis.study.artifacts import LabelCount
from analysis.study.described import task_of
from analysis.study.frame import CELL, DTYPES, KEY, POINT
from analysis.study.tables import accuracy_table
from pipelines.data.sources import TRAIN_FILE
from pipelines.errors import UserError
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from pipelines.tasks.nli import NLI
from sweep.graph.records import Study

REFERENCE = Path(analysis.__file__).parent / "reference"
GENERAL_SET, BLINDSPOT_SET = "mnli_matched", "hans"
BLINDSPOT_SLICE = LEXICAL_OVERLAP.blindspot_slice
METRICS = {
    "mnli_matched": (GENERAL_SET, "all", 3, "argmax"),
    "hans": (BLINDSPOT_SET, "all", 2, "argmax"),
    "hans_lo_nonentailment": (BLINDSPOT_SET, BLINDSPOT_SLICE, 2, "argmax"),
}
"""The paper's three curves, each as (set, slice, num_labels, folding)."""

# Readings and tolerances have three decimals; a sum of them must not fail by the last bit of a float.
_ROUNDING = 1e-9


def table1() -> dict[str, dict[str, LabelCount]]:
    """The paper's Table 1: "synthetic" and "original" → label → counts."""
    counts: dict[str, dict[str, LabelCount]] = {}
    for row in pd.read_csv(REFERENCE / "table1.csv").itertuples():
        counts.setdefault(str(row.source), {})[str(row.label)] = LabelCount(int(row.count), int(row.lexical_overlap_count))
    return counts


def figure1() -> pd.DataFrame:
    """The paper's Figure 1 as a frame: `KEY` (its one run is seed 0), accuracy and tolerance, shares from 0 to 1."""
    read = pd.read_csv(REFERENCE / "figure1.csv")
    places = pd.DataFrame(read["metric"].map(METRICS).tolist(), columns=["set", "slice", "num_labels", "folding"])
    frame = read.rename(columns={"training_kind": "kind", "training_size": "size"}).join(places).assign(seed=0, arm="")
    typed = frame[[*KEY, "accuracy", "tolerance"]].astype({name: DTYPES[name] for name in (*KEY, "accuracy")})
    return typed.sort_values(list(KEY), ignore_index=True)


def is_on_multinli(study: Study) -> bool:
    """Whether the study's prepared data are made from MultiNLI's training file, as their record's config says."""
    configs = [step.record.payload.get("config", {}) for step in study.steps if step.stage == "sources" and step.record]
    return any(file["name"] == TRAIN_FILE for config in configs for file in config.get("files", ()))


def has_paper_cells(study: Study, frame: pd.DataFrame) -> bool:
    """Whether the study, built or not, has a finetuned cell of the paper, and evaluates on a set of the paper's figure.

    Starting points alone do not make it the paper's study: a random head is in every study.
    """
    if task_of(study) != NLI:
        return False
    paper = figure1()
    cells = {(point.starting_size, point.kind, point.size) for point in paper[paper["kind"] != "none"].itertuples()}
    planned = {tuple(step.coordinates.get(name) for name in CELL) for step in study.steps if step.stage == "evaluation"}
    return bool(cells & planned) and bool({GENERAL_SET, BLINDSPOT_SET} & set(frame["set"]))


def figure1_beside(frame: pd.DataFrame) -> pd.DataFrame:
    """A study's accuracies on the paper's curves beside the paper's, one row per point of either, sorted by `POINT`.

    Columns: `POINT`; ours (the mean over seeds, 0..1), n, interval_low, interval_high, method, as `accuracy_table` has them;
    paper, tolerance; difference (ours minus the paper's); within_tolerance (the difference is no more than the reading can
    be off); in_interval (our interval over seeds reaches the reading with its tolerance; NA without such an interval, as
    for one seed); counterpart: "both", "ours" or "paper", which says who has the point. Nothing is dropped.
    """
    curves = pd.MultiIndex.from_tuples(METRICS.values())
    chosen = frame[pd.MultiIndex.from_frame(frame[["set", "slice", "num_labels", "folding"]]).isin(curves)]
    if chosen.empty:
        raise UserError(f"the frame has none of the paper's test sets ({', '.join(METRICS)}); evaluate on them to compare")
    # Whichever arm it is of, the paper has one.
    ours = (
        accuracy_table(chosen.assign(arm=pd.Series("", chosen.index, dtype=DTYPES["arm"])))
        .rename(columns={"mean": "ours"})
        .drop(columns=["low", "high"])
    )
    paper = figure1().rename(columns={"accuracy": "paper"}).drop(columns="seed")
    both = ours.merge(paper, on=list(POINT), how="outer", indicator="counterpart", validate="one_to_one")
    names = {"both": "both", "left_only": "ours", "right_only": "paper"}
    both["counterpart"] = both["counterpart"].map(names).astype("string")
    both["kind"] = both["kind"].astype(DTYPES["kind"])
    both["n"] = both["n"].astype("Int64")
    both["difference"] = both["ours"] - both["paper"]
    matched = both["counterpart"] == "both"
    slack = both["tolerance"] + _ROUNDING
    both["within_tolerance"] = (both["difference"].abs() <= slack).astype("boolean").where(matched)
    reached = (both["interval_low"] - slack <= both["paper"]) & (both["paper"] <= both["interval_high"] + slack)
    # With one seed the interval is over test items: it says nothing about another run.
    over_seeds = matched & (both["n"] > 1).fillna(False) & both["interval_low"].notna()
    both["in_interval"] = reached.astype("boolean").where(over_seeds)
    return both.sort_values(list(POINT), ignore_index=True)


def table1_beside(counts: Mapping[str, Mapping[str, LabelCount]]) -> pd.DataFrame:
    """Lexical overlap of "original" and "synthetic" data (either may be absent) beside the paper's Table 1, one row per label.

    Columns: dataset, label; count, num_lexical_overlap, share; paper_count, paper_num_lexical_overlap, paper_share; scaled
    (our share times the paper's count) with its Wilson interval (scaled_low, scaled_high); difference (scaled minus the
    paper's number); ratio (our share over the paper's) with Katz's interval (ratio_low, ratio_high), NaN where our number
    is 0. The ratio's interval takes the two for independent; where one data set is part of the other it is too wide.

    Raises UserError for data or labels that the paper's table does not have, and for a label without rows.
    """
    paper = table1()
    rows: list[dict[str, Any]] = []
    for dataset, of_dataset in counts.items():
        if of_dataset.keys() != paper.get(dataset, {}).keys():
            raise UserError(
                f"{dataset!r} with labels {', '.join(of_dataset)}: the paper's Table 1 has "
                f"{' and '.join(paper)} data with {', '.join(paper['original'])}"
            )
        for label, theirs in paper[dataset].items():
            ours = of_dataset[label]
            if ours.num_rows == 0:
                raise UserError(f"no {label} examples in the {dataset} data; an empty slice has no share")
            around = wilson_interval(ours.num_lexical_overlap, ours.num_rows)
            ratio = ratio_interval(ours.num_lexical_overlap, ours.num_rows, theirs.num_lexical_overlap, theirs.num_rows)
            ratio_low, ratio_high = ends(ratio)
            rows.append(
                {
                    "dataset": dataset,
                    "label": label,
                    "count": ours.num_rows,
                    "num_lexical_overlap": ours.num_lexical_overlap,
                    "share": ours.share,
                    "paper_count": theirs.num_rows,
                    "paper_num_lexical_overlap": theirs.num_lexical_overlap,
                    "paper_share": theirs.share,
                    "scaled": ours.share * theirs.num_rows,
                    "scaled_low": around.low * theirs.num_rows,
                    "scaled_high": around.high * theirs.num_rows,
                    "difference": ours.share * theirs.num_rows - theirs.num_lexical_overlap,
                    "ratio": ours.share / theirs.share if ratio else math.nan,
                    "ratio_low": ratio_low,
                    "ratio_high": ratio_high,
                }
            )
    return pd.DataFrame(rows)
