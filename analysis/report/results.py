"""The report's sections on accuracies: the verdict in words, the differences, the numbers behind Figure 1."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.page import Column, Fold, Table, Verdict, grouped, number_columns, text_columns
from analysis.study.frame import CELL
from analysis.study.series import Series, select
from analysis.study.tables import difference_table
from analysis.wording import (
    KIND_NAMES,
    direction,
    interval_words,
    kind_name,
    percent,
    percent_range,
    points,
    starting_point_name,
    thousands,
    verdict_sentence,
)
from pipelines.errors import UserError


def verdict(frame: pd.DataFrame, series: Sequence[Series]) -> Verdict:
    """Synthetic minus original per starting point, in words and numbers, and the positive control."""
    try:
        overall = difference_table(frame, over_sizes=True)
    except UserError as error:
        return Verdict([f"Nothing can be said about synthetic minus original: {error}."])
    lead = []
    for test in series:
        chosen = select(overall, test)
        if chosen.empty:
            lead.append(f"{test.name}: no seed has both kinds at every size, so nothing can be said.")
        else:
            lead.append(verdict_sentence(chosen, test.name, "synthetic", "original"))
    main = _overall(overall, series, "Synthetic minus original, per starting point")
    notes = [
        "Differences are in percentage points of accuracy, averaged over the training sizes within a seed. "
        "Intervals are 95 % t intervals over seeds, paired by seed and cut at ±100 points; a seed moves the subset drawn, "
        "the order, the head and the dropout together. All seeds share one generator, one pool and the same "
        "test items: an interval says nothing about another generator or other items.",
        f"{len(main.rows)} differences are read. Where there is no true difference, about one 95 % interval "
        "in 20 still leaves out zero by chance; nothing is corrected for that.",
    ]
    if left_out := int(overall["left_out"].max()):
        notes.append(
            f"Up to {left_out} seed(s) per starting point are left out of these differences, because a kind "
            "or a size of theirs is missing."
        )
    tables = [main]
    try:
        control = difference_table(frame, treatment="biased_synthetic", over_sizes=True)
    except UserError as error:
        if (frame["kind"] == "biased_synthetic").any():
            notes.append(f"The positive control, biased synthetic minus original, cannot be read over all sizes: {error}.")
        return Verdict(lead, tables, notes)
    caption = "Positive control: biased synthetic minus original, per starting point"
    tables.append(_overall(control, series[-1:], caption))
    notes.append(
        "Where even the deliberately biased set does not lower the adversarial slice, the study could not "
        "have seen a blindspot grow."
    )
    return Verdict(lead, tables, notes)


def _overall(differences: pd.DataFrame, series: Sequence[Series], caption: str) -> Table:
    groups = [
        [
            [
                test.name,
                starting_point_name(int(row["starting_size"])),
                points(row["mean"]),
                interval_words(row),
                str(row["n"]),
                direction(row),
            ]
            for _, row in select(differences, test).iterrows()
        ]
        for test in series
    ]
    columns = [
        *text_columns("Test set", "Starting point"),
        Column("Difference, points", "number"),
        Column("95 % interval"),
        Column("n (seeds)", "number"),
        Column("Reading"),
    ]
    return grouped(columns, groups, caption)


def figure_caption(frame: pd.DataFrame) -> str:
    """The caption of Figure 1, with the n of its points."""
    counts = frame.groupby(list(CELL), observed=True)["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    spread = (
        "bars run from the smallest to the largest seed, thin lines are 95 % t intervals over seeds"
        if high > 1
        else "one seed, so no spread can be shown; thin lines are 95 % intervals over the test items of that one model"
    )
    return (
        f"Points are means over seeds ({n}); {spread}. x = 0 is the starting point itself. Kinds are drawn "
        "slightly apart at the same size. HANS-like sets have two labels, the general set three."
    )


def cell_differences(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`difference_table` per cell for "synthetic" and "biased_synthetic", where it can be had."""
    differences = {}
    for treatment in ("synthetic", "biased_synthetic"):
        with contextlib.suppress(UserError):
            differences[treatment] = difference_table(frame, treatment=treatment)
    return differences


def numbers(series: Sequence[Series], accuracies: pd.DataFrame, differences: Mapping[str, pd.DataFrame]) -> list[Fold]:
    """The accuracies behind Figure 1 (`accuracy_table`) and the `cell_differences`, one table per test set."""
    folds = [Fold("Accuracies behind the figure", [_accuracies(accuracies, test) for test in series])]
    for treatment, of_treatment in differences.items():
        title = f"{KIND_NAMES[treatment]} minus original, per cell"
        folds.append(Fold(title, [_differences(of_treatment, test) for test in series]))
    return folds


def _accuracies(accuracies: pd.DataFrame, test: Series) -> Table:
    groups = [
        [
            [
                starting_point_name(int(str(start))),
                kind_name(row["kind"]),
                thousands(row["size"]),
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
        *number_columns("Size", "Mean accuracy", "Min to max", "n (seeds)", "95 % interval"),
        Column("Interval from", "note"),
    ]
    return grouped(columns, groups, test.name)


def _differences(differences: pd.DataFrame, test: Series) -> Table:
    groups = [
        [
            [
                starting_point_name(int(str(start))),
                thousands(row["size"]),
                points(row["mean"]),
                f"{points(row['low'])} to {points(row['high'])}",
                str(row["n"]),
                interval_words(row),
                direction(row),
            ]
            for _, row in cells.iterrows()
        ]
        for start, cells in select(differences, test).groupby("starting_size")
    ]
    columns = [
        Column("Starting point"),
        *number_columns("Size", "Mean, points", "Min to max", "n (seeds)"),
        *text_columns("95 % interval", "Reading"),
    ]
    return grouped(columns, groups, test.name)
