"""The report's sections on accuracies: the verdict in words, the differences, the numbers behind Figure 1."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.page import Column, Fold, Table, grouped, number_columns, text_columns
from analysis.report.figures import FEWEST_FOR_INTERVAL
from analysis.study.frame import CELL, by_arm
from analysis.study.series import Series, select
from analysis.wording import (
    in_arm,
    kind_name,
    number_word,
    percent,
    percent_range,
    starting_point_name,
)


def figure_caption(frame: pd.DataFrame, series: Sequence[Series]) -> str:
    """The caption of Figure 1, with the n of its points."""
    counts = frame.groupby(["arm", *CELL], observed=True)["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    of_many = "bars run from the smallest to the largest seed, thin lines are 95% intervals, over what the figure's numbers say"
    of_few = f"fewer than {number_word(FEWEST_FOR_INTERVAL)} seeds, or generators, are drawn as dots, one a seed"
    spread = "; ".join([*([of_many] if high >= FEWEST_FOR_INTERVAL else []), *([of_few] if low < FEWEST_FOR_INTERVAL else [])])
    return (
        f"Points are means over seeds ({n}); {spread}. x = 0 is the starting point itself. Kinds are drawn "
        f"slightly apart at the same size.{_labels_words(series)}"
    )


def _labels_words(series: Sequence[Series]) -> str:
    """By how many labels the sets are scored, where that differs."""
    general, *others = series
    other = next((test for test in others if test.num_labels != general.num_labels), None)
    if other is None:
        return ""
    by = (f"{test.name} is scored by {number_word(test.num_labels)} labels" for test in (other, general))
    return f" {', '.join(by)}."


def numbers(series: Sequence[Series], accuracies: pd.DataFrame) -> list[Fold]:
    """The accuracies behind Figure 1 (`accuracy_table`), one table per test set, for each arm."""
    return [
        Fold(in_arm("Accuracies behind the figure", arm), [_accuracies(of_arm, test) for test in series])
        for arm, of_arm in by_arm(accuracies)
    ]


def _accuracies(accuracies: pd.DataFrame, test: Series) -> Table:
    groups = [
        [
            [
                starting_point_name(int(str(start))),
                kind_name(row["kind"]),
                f"{row['size']:,}",
                percent(row["mean"]),
                percent_range(row["low"], row["high"]),
                str(row["n"]),
                percent_range(row["interval_low"], row["interval_high"]),
                row["method"],
            ]
            for _, row in cells.sort_values(["kind", "size"]).iterrows()
        ]
        for start, cells in select(accuracies, test).groupby("starting_size")
    ]
    columns = [
        *text_columns("Starting point", "Training set"),
        *number_columns("Size", "Mean accuracy", "Min to max", "n (seeds)", "95% interval"),
        Column("Interval from", "note"),
    ]
    return grouped(columns, groups, test.name)
