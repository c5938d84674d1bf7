"""The report's sections that set a study beside the paper: Table 1 with its odds ratios, and Figure 1 point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.page import Block, Column, Fold, Table, grouped, number_columns, text_columns
from analysis.stats.statistics import RatioEstimate
from analysis.study.artifacts import LabelCount, entailment_and_rest
from analysis.study.paper import BLINDSPOT_SET, BLINDSPOT_SLICE, GENERAL_SET
from analysis.study.series import Series, paper_series, select
from analysis.study.tables import entailment_odds_ratio
from analysis.wording import NOTHING, kind_name, percent, percent_range, points, starting_point_name

PAPER = "Zhang and Pavlick"
TABLE1_NOTE = (
    f"Beside the paper's ({PAPER}): our share of each label is scaled to the paper's number of examples. Intervals are "
    "Wilson's for the scaled number and Katz's for the ratio of shares, as if both were independent draws; where one is part "
    "of the other, as with MultiNLI's own training rows, the second is wider than it need be."
)
ODDS_NOTE = (
    "Odds ratio: the odds of lexical overlap in entailment over those in the other labels together; 1 is no correlation. "
    "Intervals are Woolf's, on the logarithm; one half is added to each of the four counts where one is 0 (Haldane, Anscombe)."
)


def table1_beside_table(beside: pd.DataFrame) -> Table:
    """`analysis.study.paper.table1_beside` as the report shows it."""
    groups = [
        [
            [
                *overlap_cells(row),
                f"{row['paper_count']:,}",
                f"{row['paper_num_lexical_overlap']:,}",
                percent(row["paper_share"], 3),
                _whole_estimate(row["scaled"], row["scaled_low"], row["scaled_high"]),
                _signed(round(row["difference"])),
                NOTHING if pd.isna(row["ratio"]) else f"{row['ratio']:.3f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]",
                _against_one(row["ratio_low"], row["ratio_high"]),
            ]
            for _, row in of_dataset.iterrows()
        ]
        for _, of_dataset in beside.groupby("dataset", sort=False)
    ]
    columns = [
        *text_columns("Data", "Label"),
        *number_columns("Ours: count (n)", "# LO", "% LO", "Paper's: count (n)", "Paper's # LO", "Paper's % LO"),
        *number_columns("Our # LO at the paper's count [95%]", "Minus the paper's", "Our % over the paper's [95%]"),
        Column("Reading"),
    ]
    return grouped(columns, groups, "Lexical overlap beside the paper's Table 1")


def overlap_cells(row: pd.Series) -> list[str]:
    """Data, label, count, lexical overlaps and their share: how a row of either form of Table 1 begins."""
    whose = [str(row["dataset"]).capitalize(), row["label"]]
    return [*whose, f"{row['count']:,}", f"{row['num_lexical_overlap']:,}", percent(row["share"], 3)]


def odds_table(groups: Sequence[tuple[str, Mapping[str, Mapping[str, LabelCount]]]]) -> Table:
    """Odds ratios of lexical overlap and entailment in "original" and "synthetic" data, and the second over the first.

    A group is whose data they are, and the counts of either data set or both.
    """
    shown = []
    for whose, of_data in groups:
        rows, ratios = [], {}
        for dataset in (name for name in ("original", "synthetic") if name in of_data):
            ratios[dataset] = entailment_odds_ratio(of_data[dataset])
            overlaps = (_of(count) for count in entailment_and_rest(of_data[dataset]))
            rows.append([whose, dataset, *overlaps, *_ratio(ratios[dataset])])
        if len(ratios) == 2:
            rows.append([whose, "synthetic over original", "", "", *_ratio(ratios["synthetic"].over(ratios["original"]))])
        shown.append(rows)
    columns = [
        *text_columns("Whose", "Data"),
        *number_columns("Entailment: # LO of n", "The rest: # LO of n", "Odds ratio", "95% interval"),
    ]
    return grouped(columns, shown, "Odds ratio of lexical overlap and entailment")


def figure1_block(beside: pd.DataFrame | None, figure: str = "") -> Block:
    """`paper.figure1_beside` as the report shows it, with the paper's figure (SVG); None: nothing is in common."""
    title = "Beside the paper's Figure 1"
    if beside is None:
        why = (
            "Left out: no finetuned cell of this study has the starting size, kind and training size of a point in the paper's "
            f"Figure 1 ({PAPER}: Llama-2-7B on MultiNLI matched and HANS)."
        )
        return Block("paper_figure1", title, [why])
    text = [
        f"The paper's numbers ({PAPER}) are read off its published figure, each with a tolerance: 0.3 points where the marker "
        "is visible and 1.2 where another one hides it. It has one run a cell, so how far its own numbers would move with "
        "another seed is not known. 'Within tolerance' says that our mean is no further from the reading than the reading can "
        "be off; 'in our interval' that our 95% interval over seeds reaches the reading, give or take that tolerance "
        f"({NOTHING} where there is no interval over seeds).",
    ]
    series = [(test, select(beside, test)) for test in paper_series(GENERAL_SET, BLINDSPOT_SET, BLINDSPOT_SLICE)]
    folds = [Fold("Every point of ours and of the paper's", [_points(rows, test) for test, rows in series])]
    caption = f"The paper's Figure 1 ({PAPER}), drawn again from the readings; one run a cell"
    return Block("paper_figure1", title, text, [_overview(series)], folds, figure, caption)


def _overview(series: list[tuple[Series, pd.DataFrame]]) -> Table:
    rows = []
    for test, of_series in series:
        has = {who: of_series[of_series["counterpart"] == who] for who in ("both", "ours", "paper")}
        both = has["both"]
        over_seeds = both["in_interval"].dropna()
        rows.append(
            [
                test.name,
                str(len(both)),
                points(both["difference"].mean()) if len(both) else NOTHING,
                f"{points(both['difference'].min())} to {points(both['difference'].max())}" if len(both) else NOTHING,
                f"{int(both['within_tolerance'].sum())} of {len(both)}",
                f"{int(over_seeds.sum())} of {len(over_seeds)}" if len(over_seeds) else NOTHING,
                str(len(has["ours"])),
                str(len(has["paper"])),
            ]
        )
    columns = [
        Column("Test set"),
        *number_columns("Points in common (n)", "Ours minus the paper's, mean, points", "Least to most", "Within tolerance"),
        *number_columns("In our interval", "Only ours", "Only the paper's"),
    ]
    return Table(columns, rows, "Points of Figure 1, ours and the paper's")


def _points(rows: pd.DataFrame, test: Series) -> Table:
    groups = [
        [_point(row) for _, row in of_start.sort_values(["kind", "size"]).iterrows()]
        for _, of_start in rows.groupby("starting_size")
    ]
    columns = [
        *text_columns("Starting point", "Training set"),
        *number_columns("Size", "Ours", "95% interval", "n (seeds)", "Paper's", "Tolerance, points", "Difference, points"),
        *text_columns("Within tolerance", "In our interval"),
    ]
    return grouped(columns, groups, test.name)


def _point(row: pd.Series) -> list[str]:
    no_counterpart = {"both": "", "ours": "not in the paper", "paper": "not here, or not evaluated"}[row["counterpart"]]
    has_ours, has_paper = row["counterpart"] != "paper", row["counterpart"] != "ours"
    return [
        starting_point_name(int(row["starting_size"])),
        kind_name(row["kind"]),
        f"{row['size']:,}",
        percent(row["ours"]) if has_ours else NOTHING,
        # With one seed there is one, but of test items: the section compares seeds.
        percent_range(row["interval_low"], row["interval_high"]) if has_ours and row["n"] > 1 else NOTHING,
        str(row["n"]) if has_ours else NOTHING,
        percent(row["paper"]) if has_paper else NOTHING,
        f"±{100 * row['tolerance']:.1f}" if has_paper else NOTHING,
        no_counterpart or points(row["difference"]),
        _yes_no(row["within_tolerance"]),
        _yes_no(row["in_interval"]),
    ]


def _yes_no(value: Any) -> str:
    return NOTHING if pd.isna(value) else "yes" if value else "no"


def _of(count: LabelCount) -> str:
    return f"{count.num_lexical_overlap:,} of {count.num_rows:,}"


def _ratio(estimate: RatioEstimate) -> list[str]:
    around = estimate.interval()
    return [f"{estimate.ratio:.2f}", f"{around.low:.2f} to {around.high:.2f}"]


def _against_one(low: float, high: float) -> str:
    if pd.isna(low):
        return NOTHING
    return "lower" if high < 1 else "higher" if low > 1 else "undecided"


def _whole_estimate(value: float, low: float, high: float) -> str:
    return f"{round(value):,} [{round(low):,}, {round(high):,}]"


def _signed(number: int) -> str:
    return f"{'+' if number > 0 else '−' if number < 0 else ''}{abs(number):,}"
