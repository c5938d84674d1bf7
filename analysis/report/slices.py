"""The report's section on the slices of a HANS-like test set, and on both ways to fold three labels to two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from analysis.page import Block, Column, Fold, Table, grouped, number_columns
from analysis.study.frame import CELL
from analysis.study.items import Responses
from analysis.study.tables import accuracy_table, folding_table
from analysis.wording import (
    HOLDS,
    NOTHING,
    interval_words,
    kind_name,
    percent,
    percent_estimate,
    points,
    set_name,
    slice_name,
    starting_point_name,
    thousands,
)
from pipelines.tasks.heuristics import HANS_HEURISTICS
from pipelines.tasks.nli import NON_ENTAILMENT, Label

MOST_ROWS_SHOWN = 20
SUBCASE = "subcase/"
FOLDING_NAMES = {"argmax": "argmax, then merged", "summed": "probabilities summed"}


def slices_block(
    frame: pd.DataFrame, blindspot_set: str, blindspot_slice: str, responses: Responses | None = None
) -> list[Block]:
    """Accuracies by heuristic and label, by subcase, and by folding; nothing where no item was made for a heuristic.

    Slices as `pipelines.evaluate.scoring.accuracy_rows` names them. With the study's `responses` intervals are over templates,
    too (`accuracy_table`).
    """
    of_set = frame[(frame["set"] == blindspot_set) & (frame["num_labels"] == 2)]
    labels = (f"/{Label.ENTAILMENT}", f"/{NON_ENTAILMENT}")
    heuristics = sorted({name for name in of_set["slice"] if name.endswith(labels)}, key=_order)
    if all(name.startswith(HOLDS) for name in heuristics):
        return []
    name = set_name(blindspot_set)
    text = [
        f"{name} has two labels, the task model three. As in the paper, and as HANS's authors score it (McCoy, Pavlick and "
        "Linzen 2019), the class with the largest score is taken and neutral and contradiction merge to non-entailment. The "
        "other way is to sum first: entailment is predicted when its probability is above one half, which happens less often.",
        "Cells hold the mean accuracy in per cent and its 95 % interval, over seeds; where n is 1, over test items."
        if responses is None
        else "Cells hold the mean accuracy in per cent and its 95 % interval, over seeds and templates; where n is 1, over "
        "templates. A subcase of one template speaks of further items of that template only. Where probabilities are summed, "
        "intervals are over seeds alone.",
    ]
    accuracies = accuracy_table(of_set, responses)
    by_heuristic = {
        folding: _wide(chosen, heuristics, _heuristic_name, f"{name} by heuristic and label: {FOLDING_NAMES[folding]}")
        for folding, chosen in accuracies.groupby("folding")
    }
    # The paper's whole grid would push everything else off the page.
    shown = [table for folding, table in by_heuristic.items() if folding == "argmax" and len(table.rows) <= MOST_ROWS_SHOWN]
    folds = [Fold(table.caption, [table]) for table in by_heuristic.values() if table not in shown]
    subcases = sorted(name for name in of_set["slice"].unique() if name.startswith(SUBCASE))
    if subcases:
        argmax = accuracies[accuracies["folding"] == "argmax"]
        tables = [_by_subcase(of_start, subcases) for _, of_start in argmax.groupby("starting_size")]
        folds.append(Fold(f"{name} by subcase: {FOLDING_NAMES['argmax']}", tables))
    tables = list(shown)
    differences = folding_table(frame[frame["slice"].isin(["all", blindspot_slice])])
    if not differences.empty:
        tables.append(_folding_overview(differences))
        title = "Both foldings of the labels, per cell"
        folds.append(Fold(title, [_foldings(rows, _where(*key)) for key, rows in differences.groupby(["set", "slice"])]))
    return [Block("slices", f"{name} by heuristic, subcase and folding of the labels", text, tables, folds)]


def _order(name: str) -> tuple[int, str, bool]:
    """Heuristics in the order of the HANS paper, others after them by name; entailment first."""
    heuristic, _, label = name.rpartition("/")
    known = heuristic in HANS_HEURISTICS
    return HANS_HEURISTICS.index(heuristic) if known else len(HANS_HEURISTICS), heuristic, label != Label.ENTAILMENT


def _heuristic_name(name: str) -> str:
    # A heuristic holds of items that were made for another one, too.
    return f"{slice_name(name)} (where it holds)" if name.startswith(HOLDS) else slice_name(name)


def _where(set_: str, name: str) -> str:
    return set_name(set_) if name == "all" else f"{set_name(set_)}, {slice_name(name)}"


def _wide(accuracies: pd.DataFrame, slices: Sequence[str], name: Callable[[str], str], caption: str) -> Table:
    """A row a cell, a column a slice."""
    groups = []
    for _, of_start in accuracies[accuracies["slice"].isin(slices)].groupby("starting_size"):
        rows = []
        for _, of_cell in of_start.groupby(list(CELL), observed=True):
            estimates = {row["slice"]: _estimate(row) for _, row in of_cell.iterrows()}
            first = of_cell.iloc[0]
            rows.append([*_cell_words(first), str(first["n"]), *(estimates.get(slice_, NOTHING) for slice_ in slices)])
        groups.append(rows)
    return grouped([*_CELL_COLUMNS, *number_columns("n (seeds)", *map(name, slices))], groups, caption)


def _by_subcase(of_start: pd.DataFrame, subcases: Sequence[str]) -> Table:
    """A row a subcase, a column a cell of one starting point."""
    cells = [(key, of_cell.set_index("slice")) for key, of_cell in of_start.groupby(list(CELL), observed=True)]
    rows = []
    for subcase in subcases:
        estimates = [_estimate(of_cell.loc[subcase]) if subcase in of_cell.index else NOTHING for _, of_cell in cells]
        rows.append([subcase.removeprefix(SUBCASE).replace("_", " "), *estimates])
    columns = [Column("Subcase")]
    for (_, kind, size), of_cell in cells:
        of_what = kind_name(kind) + (f", {thousands(size)}" if size else "")
        columns.append(Column(f"{of_what} (n = {of_cell['n'].iloc[0]})", "number"))
    return Table(columns, rows, f"Start: {starting_point_name(int(of_start['starting_size'].iloc[0]))}")


def _folding_overview(differences: pd.DataFrame) -> Table:
    rows = []
    for (set_, name), of_slice in differences.groupby(["set", "slice"]):
        mean = of_slice["mean"]
        spread = f"{points(mean.min())} to {points(mean.max())}"
        rows.append([_where(set_, name), str(len(of_slice)), points(mean.mean()), spread])
    columns = [Column("Test set, two labels"), *number_columns("Cells (n)", "Mean, points", "Least to most")]
    return Table(columns, rows, "Accuracy with probabilities summed minus with argmax, over cells")


def _foldings(rows: pd.DataFrame, caption: str) -> Table:
    groups = [
        [
            [
                *_cell_words(row),
                percent(row["argmax"]),
                percent(row["summed"]),
                points(row["mean"]),
                interval_words(row),
                str(row["n"]),
            ]
            for _, row in of_start.iterrows()
        ]
        for _, of_start in rows.groupby("starting_size")
    ]
    numbers = number_columns("Argmax", "Summed", "Difference, points")
    columns = [*_CELL_COLUMNS, *numbers, Column("95 % interval"), Column("n (seeds)", "number")]
    return grouped(columns, groups, caption)


_CELL_COLUMNS = (Column("Starting point"), Column("Training set"), Column("Size", "number"))


def _cell_words(row: pd.Series) -> list[str]:
    return [starting_point_name(int(row["starting_size"])), kind_name(row["kind"]), thousands(row["size"])]


def _estimate(row: pd.Series) -> str:
    return percent_estimate(row["mean"], row["interval_low"], row["interval_high"])
