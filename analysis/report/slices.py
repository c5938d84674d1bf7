"""The report's sections on the slices of test sets, and on both ways to fold a task's labels to two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.page import Block, Column, Fold, Table, grouped, number_columns, text_columns
from analysis.study.described import described_sets, task_of, titles_of
from analysis.study.frame import CELL
from analysis.study.items import Responses
from analysis.study.series import Series, select, set_series
from analysis.study.tables import accuracy_table, folding_table
from analysis.wording import (
    HOLDS,
    NOTHING,
    interval_words,
    kind_name,
    number_word,
    percent,
    percent_estimate,
    points,
    set_name,
    slice_name,
    starting_point_name,
)
from pipelines.tasks.heuristics import HANS_HEURISTICS
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import Study

MOST_ROWS_SHOWN = 20
SUBCASE = "subcase/"
FOLDING_NAMES = {"argmax": "argmax, then merged", "summed": "probabilities summed"}


@dataclass(frozen=True)
class _Slices:
    """The slices of one set: those shown, those behind a click, and its subcases; `by` says what they are by."""

    shown: Sequence[str]
    folded: Sequence[str] = ()
    subcases: Sequence[str] = ()
    by: str = "heuristic and label"
    clusters: str = "templates"


def sets_block(study: Study, frame: pd.DataFrame, series: Sequence[Series], responses: Responses | None = None) -> list[Block]:
    """Every evaluated test set: what it is, and each cell's accuracy on it; nothing where there are no more than two.

    Of a described set its adversarial half has a column, too. `series` are the general set's, the blindspot's and its slice's.
    """
    test_sets, titles = described_sets(study), titles_of(study)
    names = list(dict.fromkeys([*(test.set for test in series), *sorted(frame["set"].unique())]))
    if len(names) < 3 and not test_sets:
        return []
    rows, shown = [], []
    for name in names:
        of_set = set_series(frame, name, titles=titles)
        described = test_sets.get(name)
        shown.append(of_set)
        if described and described.adversarial and (frame["slice"] == described.adversarial).any():
            shown.append(set_series(frame, name, described.adversarial, titles))
        words = [described.tests, described.licence, described.source] if described else ["", "", ""]
        num = f"{int(select(frame, of_set)['num_examples'].iloc[0]):,}"
        rows.append([of_set.name, num, str(of_set.num_labels), *words])
    shown = [test for test in dict.fromkeys([*shown, series[-1]]) if not select(frame, test).empty]
    columns = [Column("Test set"), *number_columns("Items (n)", "Labels")]
    columns += text_columns("What it tests", "Licence", "Source", css="wrap")
    said = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    rows = [[row[place] or NOTHING for place in said] for row in rows]
    columns = [columns[place] for place in said]
    accuracies = accuracy_table(pd.concat([select(frame, test) for test in shown]), responses)
    places = accuracies["set"].str.cat(accuracies["slice"], "/")
    headings = {f"{test.set}/{test.slice}": test.name for test in shown}
    table = _wide(accuracies.assign(place=places), headings, "Accuracy of each cell on each test set", by="place")
    text = ["Claims are about the general and the blindspot set alone; the others are measured beside them."]
    tables = [Table(columns, rows, "Test sets")]
    if len(table.rows) <= MOST_ROWS_SHOWN:
        return [Block("sets", "Every test set", text, [*tables, table])]
    return [Block("sets", "Every test set", text, tables, [Fold(table.caption, [table])])]


def slices_blocks(
    study: Study, frame: pd.DataFrame, blindspot_set: str, blindspot_slice: str, responses: Responses | None = None
) -> list[Block]:
    """A section on the slices of the blindspot set, then one for each other set that was made to be looked at by slice.

    That is a described set with slices, or one whose items were made for a heuristic. The first has both foldings of the
    labels. Slices as `pipelines.evaluate.scoring.accuracy_rows` names them. With the study's `responses` intervals are over
    clusters of items, too (`accuracy_table`).
    """
    task, test_sets, titles = task_of(study), described_sets(study), titles_of(study)
    by_set = {str(name): list(names) for name, names in frame.groupby("set")["slice"].unique().items()}
    blocks = []
    for set_ in sorted(by_set, key=lambda name: (name != blindspot_set, name)):
        is_blindspot = set_ == blindspot_set
        slices = _slices(by_set[set_], test_sets.get(set_))
        if not slices.shown or not (is_blindspot or slices.subcases or set_ in test_sets):
            continue
        of_set = frame[frame["set"] == set_]
        merges = len(task.labels) > 2 and of_set.loc[of_set["slice"] != "all", "num_labels"].max() == 2
        tables, folds = _tables(of_set, set_name(set_, titles), slices, responses, merges=bool(merges))
        text = [test_sets[set_].tests] if set_ in test_sets and test_sets[set_].tests else []
        text.append(_cells_text(of_set, slices, responses if responses and set_ in responses.items else None))
        name = set_name(set_, titles)
        title = f"{name} by {slices.by}"
        differences = folding_table(frame[frame["slice"].isin(["all", blindspot_slice])]) if is_blindspot else pd.DataFrame()
        if not differences.empty:
            is_folded = of_set.loc[of_set["slice"] == "all", "num_labels"].max() < len(task.labels)
            text.insert(0, _folding_text(name if is_folded else "", task, test_sets.get(set_)))
            tables.append(_folding_overview(differences, titles))
            by_place = differences.groupby(["set", "slice"])
            foldings = [_foldings(rows, _where(str(of), str(part), titles)) for (of, part), rows in by_place]
            folds.append(Fold("Both foldings of the labels, per cell", foldings))
            subcase = ", subcase" if slices.subcases else ""
            title = f"{name} by {slices.by.removesuffix(' and label')}{subcase} and folding of the labels"
        blocks.append(Block("slices" if is_blindspot else f"slices-{set_}", title, text, tables, folds))
    return blocks


def _slices(names: Sequence[str], described: TestSet | None) -> _Slices:
    held = sorted((name for name in names if name.startswith(HOLDS) and name.count("/") > 1), key=_order)
    if described is not None and described.slices:
        of_columns = sorted(name for name in names if name.split("/")[0] in described.slices)
        halves = [half for half in (described.aligned, described.adversarial) if half is not None and half in names]
        shown = dict.fromkeys([*halves, *(name for name in of_columns if name.count("/") == 1)])
        others = [name for name in [*of_columns, *held] if name not in shown]
        return _Slices(list(shown), others, (), "slice", "clusters of items")
    by_heuristic = [name for name in names if "/" in name and not name.startswith((HOLDS, SUBCASE))]
    if by_heuristic:
        subcases = sorted(name for name in names if name.startswith(SUBCASE))
        return _Slices(sorted([*by_heuristic, *held], key=_order), (), subcases)
    return _Slices(held, (), (), "whether a heuristic that holds is right", "clusters of items")


def _tables(
    of_set: pd.DataFrame, name: str, slices: _Slices, responses: Responses | None, *, merges: bool
) -> tuple[list[Table], list[Fold]]:
    """The tables that are shown, and those behind a click; `merges` where the model's labels are folded to two."""
    accuracies = accuracy_table(of_set[of_set["slice"] != "all"], responses)

    def caption(what: str, folding: str) -> str:
        return f"{name} by {what}" + (f": {FOLDING_NAMES[folding]}" if merges else "")

    by_folding = {
        folding: _wide(chosen, _headings(slices.shown), caption(slices.by, folding))
        for folding, chosen in accuracies.groupby("folding")
    }
    # The paper's whole grid would push everything else off the page.
    shown = [table for folding, table in by_folding.items() if folding == "argmax" and len(table.rows) <= MOST_ROWS_SHOWN]
    folds = [Fold(table.caption, [table]) for table in by_folding.values() if table not in shown]
    argmax = accuracies[accuracies["folding"] == "argmax"]
    if slices.folded:
        table = _wide(argmax, _headings(slices.folded), caption("slice and label", "argmax"))
        folds.append(Fold(table.caption, [table]))
    if slices.subcases:
        tables = [_by_subcase(of_start, slices.subcases) for _, of_start in argmax.groupby("starting_size")]
        folds.append(Fold(caption("subcase", "argmax"), tables))
    return shown, folds


def _folding_text(name: str, task: Task, described: TestSet | None) -> str:
    """How the labels of a set are folded to two; `name` is empty where the set itself has all labels."""
    onto = (described.folded_onto if described else None) or task.folded_onto or task.labels[0]
    if name:
        start = f"{name} has two labels, the task model {number_word(len(task.labels))}."
    else:
        start = f"Sets are also scored by two labels, {onto} and the rest."
    if task == NLI and onto == NLI.folded_onto:
        how = (
            "As in the paper, and as HANS's authors score it (McCoy, Pavlick and Linzen 2019), the class with the largest "
            "score is taken and neutral and contradiction merge to non-entailment."
        )
    else:
        how = f"The class with the largest score is taken, and all but {onto} merge to non-{onto}."
    return (
        f"{start} {how} The other way is to sum first: {onto} is predicted when its probability is above one half, which "
        "happens less often."
    )


def _cells_text(of_set: pd.DataFrame, slices: _Slices, responses: Responses | None) -> str:
    if responses is None:
        return "Cells hold the mean accuracy in per cent and its 95% interval, over seeds; where n is 1, over test items."
    text = (
        f"Cells hold the mean accuracy in per cent and its 95% interval, over seeds and {slices.clusters}; where n is 1, over "
        f"{slices.clusters}."
    )
    if slices.subcases:
        text += " A subcase of one template speaks of further items of that template only."
    if "summed" in set(of_set["folding"]):
        text += " Where probabilities are summed, intervals are over seeds alone."
    return text


def _order(name: str) -> tuple[int, str, bool]:
    """Heuristics in the order of the HANS paper, others after them by name; the label that they predict first."""
    heuristic, _, label = name.rpartition("/")
    known = heuristic in HANS_HEURISTICS
    return HANS_HEURISTICS.index(heuristic) if known else len(HANS_HEURISTICS), heuristic, label.startswith("non-")


def _headings(slices: Sequence[str]) -> dict[str, str]:
    # A heuristic holds of items that were made for another one, too.
    return {name: f"{slice_name(name)} (where it holds)" if name.startswith(HOLDS) else slice_name(name) for name in slices}


def _where(set_: str, name: str, titles: Mapping[str, str]) -> str:
    title = set_name(set_, titles)
    return title if name == "all" else f"{title}, {slice_name(name)}"


def _wide(accuracies: pd.DataFrame, headings: Mapping[str, str], caption: str, by: str = "slice") -> Table:
    """A row a cell, a column for each of `headings`, which are by values of the column `by`."""
    groups = []
    for _, of_start in accuracies[accuracies[by].isin(list(headings))].groupby("starting_size"):
        rows = []
        for _, of_cell in of_start.groupby(list(CELL), observed=True):
            estimates = {row[by]: _estimate(row) for _, row in of_cell.iterrows()}
            first = of_cell.iloc[0]
            rows.append([*_cell_words(first), str(first["n"]), *(estimates.get(value, NOTHING) for value in headings)])
        groups.append(rows)
    return grouped([*_CELL_COLUMNS, *number_columns("n (seeds)", *headings.values())], groups, caption)


def _by_subcase(of_start: pd.DataFrame, subcases: Sequence[str]) -> Table:
    """A row a subcase, a column a cell of one starting point."""
    cells = [(key, of_cell.set_index("slice")) for key, of_cell in of_start.groupby(list(CELL), observed=True)]
    rows = []
    for subcase in subcases:
        estimates = [_estimate(of_cell.loc[subcase]) if subcase in of_cell.index else NOTHING for _, of_cell in cells]
        rows.append([subcase.removeprefix(SUBCASE).replace("_", " "), *estimates])
    columns = [Column("Subcase")]
    for (_, kind, size), of_cell in cells:
        of_what = kind_name(kind) + (f", {size:,}" if size else "")
        columns.append(Column(f"{of_what} (n = {of_cell['n'].iloc[0]})", "number"))
    return Table(columns, rows, f"Start: {starting_point_name(int(of_start['starting_size'].iloc[0]))}")


def _folding_overview(differences: pd.DataFrame, titles: Mapping[str, str]) -> Table:
    rows = []
    for (set_, name), of_slice in differences.groupby(["set", "slice"]):
        mean = of_slice["mean"]
        spread = f"{points(mean.min())} to {points(mean.max())}"
        rows.append([_where(set_, name, titles), str(len(of_slice)), points(mean.mean()), spread])
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
    columns = [*_CELL_COLUMNS, *numbers, Column("95% interval"), Column("n (seeds)", "number")]
    return grouped(columns, groups, caption)


_CELL_COLUMNS = (Column("Starting point"), Column("Training set"), Column("Size", "number"))


def _cell_words(row: pd.Series) -> list[str]:
    return [starting_point_name(int(row["starting_size"])), kind_name(row["kind"]), f"{row['size']:,}"]


def _estimate(row: pd.Series) -> str:
    return percent_estimate(row["mean"], row["interval_low"], row["interval_high"])
