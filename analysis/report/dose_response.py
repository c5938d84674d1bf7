"""Accuracy against what a study turns up in the training set: numbers, slopes and a figure for each of its dials.

A dose of bias is P(the predicted label | the heuristic holds) in the training set; a mixture has a share of synthetic examples;
a generation is the number of the pool that they are from. What differs along a dial shares a seed's other rows, so that a slope
is taken within a seed first and then over seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from analysis.wording import interval_words, percent, points, starting_point_name
from pipelines.data.kinds import Mix, find_kind
from pipelines.errors import UserError

BY = ["arm", "starting_size", "size", "set", "slice", "num_labels", "folding"]
INK_OF_SIZES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


@dataclass(frozen=True)
class Dial:
    """What is turned up: `doses` says of a frame's rows how far (NaN: not along it). The rest is words for a page.

    `name` is the section's and the figure's, `per` what a slope is from and to, `way_out` what an experiment lacks without two.
    """

    name: str
    title: str
    what: str
    per: str
    about: str
    way_out: str
    doses: Callable[[pd.DataFrame], pd.Series]


def _shares(frame: pd.DataFrame) -> pd.Series:
    """The share that is synthetic, of mixes of original and synthetic data at a fixed total and of both alone."""
    shares = {"original": 0.0, "synthetic": 1.0}
    mixes = {kind: find_kind(kind) for kind in frame["kind"].astype(str).unique()}
    mixed = {
        kind: mix.synthetic_share
        for kind, mix in mixes.items()
        if isinstance(mix, Mix) and mix.parts.keys() == {"original", "synthetic"}
    }
    return _of_kinds(frame, {**shares, **mixed} if mixed else {})


def _generations(frame: pd.DataFrame) -> pd.Series:
    """The generation of the pool, of plain synthetic sets."""
    matches = {kind: re.fullmatch(r"synthetic_generation(\d+)", kind) for kind in frame["kind"].astype(str).unique()}
    later = {kind: float(match[1]) for kind, match in matches.items() if match}
    return _of_kinds(frame, {"synthetic": 1.0, **later} if later else {})


def _of_kinds(frame: pd.DataFrame, doses: dict[str, float]) -> pd.Series:
    return frame["kind"].astype(str).map(doses).astype("float64")


BIAS = Dial(
    "doses",
    "Dose and response",
    "bias of the training set",
    "from bias 0 to 1",
    "The dose is the share, among a training set's pairs of which the heuristic holds, of those with the label that it "
    "predicts; how many such pairs there are is the same at each dose.",
    "doses of bias, so there is no {}; give the experiment more biases",
    lambda frame: frame["bias"],
)
MIXTURES = Dial(
    "mixtures",
    "Mixtures",
    "share of the training set that is synthetic",
    "from all original to all synthetic",
    "The dose is the share of the training set that is synthetic; the rest is original, and the size is the same.",
    "mixes of original and synthetic data, so there is no {}; give the experiment kinds like mixed_50",
    _shares,
)
GENERATIONS = Dial(
    "generations",
    "Generations",
    "generation of the generator",
    "a generation",
    "The dose is the generation of the generator whose pool the synthetic sets are drawn from: the first is finetuned on "
    "original data, each other one on the pools before it.",
    "generations, so there is no {}; give the experiment generations=2 or more",
    _generations,
)
DIALS = (BIAS, MIXTURES, GENERATIONS)


def has_doses(frame: pd.DataFrame, dial: Dial = BIAS) -> bool:
    """Whether a frame of `evaluation_frame` has two or more doses, so that there is a slope."""
    return int(dial.doses(frame).nunique()) > 1


def _dosed(frame: pd.DataFrame, dial: Dial, what: str) -> pd.DataFrame:
    """The rows along a dial, with the column `dose`."""
    if not has_doses(frame, dial):
        raise UserError(f"the frame has fewer than two {dial.way_out.format(what)}")
    return frame.assign(dose=dial.doses(frame)).dropna(subset="dose")


def slopes(frame: pd.DataFrame, dial: Dial = BIAS) -> pd.DataFrame:
    """Change of accuracy (0..1) for a dose of 1 more, by least squares over the doses, per `BY`: mean and t interval over
    seeds, n seeds, and `num_doses`; over generators where there are several.

    A seed that lacks a dose is left out. Raises UserError if the frame has fewer than two doses, or no seed has them all.
    """
    doses = _dosed(frame, dial, "slope")
    rows = []
    for key, cell in doses.groupby(BY, observed=True, sort=True):
        table = cell.pivot(index="seed", columns="dose", values="accuracy").dropna()
        if table.empty or table.shape[1] < 2:
            continue
        per_seed = np.polyfit(table.columns.to_numpy(dtype=float), table.to_numpy().T, 1)[0]
        values = by_unit(dict(zip(table.index, per_seed.tolist(), strict=True)), frame)
        slope = estimate_columns(mean_estimate(values, unit_of(frame)))
        rows.append({**dict(zip(BY, key, strict=True)), **slope, "num_doses": table.shape[1]})
    if not rows:
        raise UserError(f"no seed has every {dial.what}, so there is no slope; run the study again to build what is missing")
    return pd.DataFrame(rows)


def dose_block(frame: pd.DataFrame, series: Sequence[Series], dial: Dial = BIAS) -> list[Block]:
    """The report's section on a dial, or none where there are fewer than two doses."""
    if not has_doses(frame, dial):
        return []
    doses = _dosed(frame, dial, "slope")
    accuracies = accuracy_table(doses.drop(columns="dose"))
    try:
        of_doses = slopes(frame, dial)
    except UserError as error:
        return [Block(dial.name, dial.title, [f"There is no slope to read: {error}."])]
    dose_of = doses.drop_duplicates("kind").set_index("kind")["dose"]
    accuracies = accuracies.assign(dose=accuracies["kind"].map(dose_of).astype("float64"))
    tables = []
    for test in series:
        rows = [
            [
                starting_point_name(int(row["starting_size"])),
                f"{int(row['size']):,}",
                ", ".join(
                    f"{cell['dose']:g}: {percent(cell['mean'])}"
                    for _, cell in select(accuracies, test).sort_values("dose").iterrows()
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
            Column(f"Slope, points {dial.per}", "number"),
            Column("95% interval"),
            Column(f"n ({unit_of(frame)})", "number"),
        ]
        tables.append(Table(columns, rows, test.name))
    text = [
        f"{dial.about} The slope is of a straight line through the doses within a seed; intervals are 95% t intervals over "
        f"{unit_of(frame)}."
    ]
    return [Block(dial.name, dial.title, text, tables)]


def dose_figure(frame: pd.DataFrame, series: Sequence[Series], dial: Dial = BIAS) -> Figure:
    """Mean accuracy over seeds against dose: a panel a starting point, a colour a size, a dash a test set; bars span the seeds.

    Raises UserError where the frame has fewer than two doses.
    """
    doses = _dosed(frame, dial, "curve")
    starts, sizes = sorted(doses["starting_size"].unique()), sorted(doses["size"].unique())
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(max(5.2, 3.35 * len(starts) + 0.5), 4.2), layout="constrained")
        panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
        for axes, start in zip(panels, starts, strict=True):
            for test, dashes in zip(series, DASHES, strict=False):
                for size, colour in zip(sizes, INK_OF_SIZES, strict=False):
                    cell = select(doses[(doses["starting_size"] == start) & (doses["size"] == size)], test)
                    by_dose = cell.groupby("dose")["accuracy"].agg(["mean", "min", "max"])
                    line: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": "o", "markersize": 4}
                    label = f"{test.name}, {int(size):,} examples"
                    axes.plot(by_dose.index, by_dose["mean"], label=label, **line)
                    axes.vlines(by_dose.index, by_dose["min"], by_dose["max"], color=colour, linewidth=1.1, alpha=0.75)
            axes.set_title(f"Start: {starting_point_name(int(start))}")
            axes.set_xlabel(dial.what)
            if dial is GENERATIONS:
                axes.set_xticks(sorted(doses["dose"].unique()))
            axes.set_ylim(0, 1)
            axes.grid(axis="y", linewidth=0.8)
        panels[0].set_ylabel("accuracy")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=min(2, len(starts)), fontsize=8)
    return figure
