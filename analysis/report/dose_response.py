"""Accuracy against the bias of the training set: what a dose of the heuristic does, as numbers, slopes and a figure.

A dose is P(the predicted label | the heuristic holds) in the training set. The doses of a seed share all rows but those that
make the dose, so that a slope is taken within a seed first and then over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.page import Block, Column, Table
from analysis.report.figures import DASHES, RC
from analysis.stats.statistics import mean_estimate
from analysis.study.series import Series, select
from analysis.study.tables import accuracy_table, by_unit, estimate_columns, unit_of
from analysis.wording import interval_words, percent, points, starting_point_name, thousands
from pipelines.errors import UserError

BY = ["starting_size", "size", "set", "slice", "num_labels", "folding"]
INK_OF_SIZES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def has_doses(frame: pd.DataFrame) -> bool:
    """Whether a frame of `evaluation_frame` has two or more doses of bias, so that there is a slope."""
    return int(frame["bias"].nunique()) > 1


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Change of accuracy (0..1) from bias 0 to bias 1, by least squares over the doses, per (starting_size, size, set, slice,
    num_labels, folding): mean and t interval over seeds, n seeds, and `num_doses`; over generators where there are several.

    A seed that lacks a dose is left out. Raises UserError if the frame has fewer than two doses, or no seed has them all.
    """
    if not has_doses(frame):
        raise UserError("the frame has fewer than two doses of bias, so there is no slope; give the experiment more biases")
    doses = frame[frame["bias"].notna()]
    rows = []
    for key, cell in doses.groupby(BY, observed=True, sort=True):
        table = cell.pivot(index="seed", columns="bias", values="accuracy").dropna()
        if table.empty or table.shape[1] < 2:
            continue
        per_seed = np.polyfit(table.columns.to_numpy(dtype=float), table.to_numpy().T, 1)[0]
        values = by_unit(dict(zip(table.index, per_seed.tolist(), strict=True)), frame)
        slope = estimate_columns(mean_estimate(values, unit_of(frame)))
        rows.append({**dict(zip(BY, key, strict=True)), **slope, "num_doses": table.shape[1]})
    if not rows:
        raise UserError("no seed has every dose of bias, so there is no slope; run the study again to build what is missing")
    return pd.DataFrame(rows)


def dose_block(frame: pd.DataFrame, series: Sequence[Series]) -> list[Block]:
    """The report's section on doses, or none where there are fewer than two."""
    if not has_doses(frame):
        return []
    accuracies = accuracy_table(frame[frame["bias"].notna()])
    try:
        of_doses = slopes(frame)
    except UserError as error:
        return [Block("doses", "Dose and response", [f"There is no slope to read: {error}."])]
    bias = frame.dropna(subset="bias").drop_duplicates("kind").set_index("kind")["bias"]
    tables = []
    for test in series:
        rows = [
            [
                starting_point_name(int(row["starting_size"])),
                thousands(int(row["size"])),
                ", ".join(
                    f"{bias[cell['kind']]:g}: {percent(cell['mean'])}"
                    for _, cell in select(accuracies, test).sort_values("kind").iterrows()
                    if (cell["starting_size"], cell["size"]) == (row["starting_size"], row["size"])
                ),
                points(row["mean"]),
                interval_words(row),
                str(row["n"]),
            ]
            for _, row in select(of_doses, test).iterrows()
        ]
        columns = [
            Column("Starting point"),
            Column("Size", "number"),
            Column("Mean accuracy by dose", "wrap"),
            Column("Slope, points from bias 0 to 1", "number"),
            Column("95 % interval"),
            Column(f"n ({unit_of(frame)})", "number"),
        ]
        tables.append(Table(columns, rows, test.name))
    text = [
        "The dose is the share, among a training set's pairs of which the heuristic holds, of those with the label that it "
        "predicts; how many such pairs there are is the same at each dose. The slope is of a straight line through the doses "
        f"within a seed; intervals are 95 % t intervals over {unit_of(frame)}."
    ]
    return [Block("doses", "Dose and response", text, tables)]


def dose_figure(frame: pd.DataFrame, series: Sequence[Series]) -> Figure:
    """Mean accuracy over seeds against bias: a panel a starting point, a colour a size, a dash a test set; bars span the seeds.

    Raises UserError where the frame has fewer than two doses.
    """
    if not has_doses(frame):
        raise UserError("the frame has fewer than two doses of bias, so there is no curve; give the experiment more biases")
    doses = frame[frame["bias"].notna()]
    starts, sizes = sorted(doses["starting_size"].unique()), sorted(doses["size"].unique())
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(max(5.2, 3.35 * len(starts) + 0.5), 4.2), layout="constrained")
        panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
        for axes, start in zip(panels, starts, strict=True):
            for test, dashes in zip(series, DASHES, strict=False):
                for size, colour in zip(sizes, INK_OF_SIZES, strict=False):
                    cell = select(doses[(doses["starting_size"] == start) & (doses["size"] == size)], test)
                    by_dose = cell.groupby("bias")["accuracy"].agg(["mean", "min", "max"])
                    line: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": "o", "markersize": 4}
                    label = f"{test.name}, {thousands(int(size))} examples"
                    axes.plot(by_dose.index, by_dose["mean"], label=label, **line)
                    axes.vlines(by_dose.index, by_dose["min"], by_dose["max"], color=colour, linewidth=1.1, alpha=0.75)
            axes.set_title(f"Start: {starting_point_name(int(start))}")
            axes.set_xlabel("bias of the training set")
            axes.set_ylim(0, 1)
            axes.grid(axis="y", linewidth=0.8)
        panels[0].set_ylabel("accuracy")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=min(2, len(starts)), fontsize=8)
    return figure
