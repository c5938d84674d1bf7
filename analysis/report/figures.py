"""Figure 1: accuracy against training size, one panel per starting point (the paper's layout).

Colour and marker say the kind of training set, the line style says the test set. Every panel starts at x = 0
with the starting point itself. A point is the mean over seeds, its bar runs from the smallest to the largest
seed. Fewer than three seeds are dots, one each.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from analysis.study.frame import POINT, seed_means
from analysis.study.series import Series, select
from analysis.verdicts.evidence import MEASURE_NAMES
from analysis.verdicts.judgement import Judgement, headline_rows
from analysis.wording import KIND_NAMES, starting_point_name
from sweep.graph.records import TRAINED_KINDS
from sweep.graph.timeline import Timeline
from sweep.study.claims import Measure

# Okabe and Ito's blue, vermilion and bluish green: told apart with any colour vision, and by marker in grey.
KIND_STYLES = {
    "original": ("#0072b2", "o"),
    "synthetic": ("#d55e00", "s"),
    "biased_synthetic": ("#009e73", "^"),
}
DASHES: tuple[Any, ...] = ("solid", (0, (5.0, 1.8)), (0, (1.2, 1.6)), "dashdot")
"""Line styles of the series, in their order."""
CURVE_STAGES = {"generator": "Generator", "starting_point": "Starting points"}
# Okabe and Ito's, and greys for what takes no GPU.
STAGE_COLOURS = {
    "sources": "#9aa0a8",
    "base_model": "#5c6068",
    "starting_set": "#c3c8cf",
    "starting_point": "#0072b2",
    "generator": "#d55e00",
    "synthetic_pool": "#e69f00",
    "judgement": "#cc79a7",
    "training_set": "#c3c8cf",
    "task_model": "#009e73",
    "evaluation": "#56b4e9",
}
CURVE_POINTS = 200
"""Points drawn of a curve, about: more cannot be told apart."""
INK, MUTED, GRID, PAPER = "#1a1c20", "#5c6068", "#e3e5e9", "#fefefe"

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "grid.color": GRID,
    "legend.frameon": False,
    # Text stays text: it can be searched and read aloud, and the file holds no glyph twice.
    "svg.fonttype": "none",
    # The same numbers give the same bytes.
    "svg.hashsalt": "blindsweep",
}


TICK_WIDTH = 30
"""Characters of a line beside a row."""
BESIDE = 4.0
"""Points of room around a panel that is shown by itself."""
FEWEST_FOR_INTERVAL = 3
"""Seeds, or generators, from which an interval is drawn: that of two would fill the panel."""
DOT: dict[str, Any] = {"color": KIND_STYLES["synthetic"][0], "marker": "o", "markersize": 4, "linestyle": "none", "alpha": 0.8}


def figure1(frame: pd.DataFrame, series: Sequence[Series], intervals: pd.DataFrame | None = None) -> Figure:
    """Draw the frame of `analysis.study.frame.evaluation_frame` in the layout of the paper's Figure 1.

    With `intervals` (`analysis.study.tables.accuracy_table` of the same frame) a thin line shows each point's. Fewer than three
    seeds are drawn as dots, without a bar or a line; so are seeds of fewer than three generators, whose interval it is.

    Of several arms each has its own panels. Raises ValueError when a series has no rows at all. A cell that is missing (a
    partial frame) breaks its line: nothing is drawn across the gap.
    """
    by_point = frame.groupby(list(POINT), observed=True, sort=True)
    # Of the paper's readings no generator is known.
    generators = by_point["generator"].nunique().to_numpy() if "generator" in frame else np.ones(by_point.ngroups, int)
    means = seed_means(frame).assign(values=by_point["accuracy"].agg(list).to_numpy())
    # Generators are what an interval is over where there are several.
    means["units"] = np.where(generators > 1, generators, means["n"])
    if intervals is not None:
        means = means.merge(intervals[[*POINT, "interval_low", "interval_high"]], on=list(POINT), how="left")
    starts = {(str(arm), int(start)): rows for (arm, start), rows in means.groupby(["arm", "starting_size"], observed=True)}
    if not starts:
        raise ValueError("the frame has no rows, so there is nothing to draw; evaluate at least one task model")
    for test in series:
        if select(means, test).empty:
            raise ValueError(f"no rows of {test.set} / {test.slice} with {test.num_labels} labels; draw another slice")
    sizes = sorted({0, *means["size"]})
    positions, to_scale = _positions(sizes)
    labels = "training examples" + ("" if to_scale else " (spacing not to scale)"), "accuracy"
    with matplotlib.rc_context(RC):
        inches: dict[str, Any] = {"row_height": 2.75, "legend": 0.78, "title": 0.28, "margins": 0.35}
        figure, panels = _panels(len(starts), labels, **inches, sharey=True, hspace=0.36, wspace=0.09)
        for axes, ((arm, start), rows) in zip(panels, starts.items(), strict=True):
            _draw_panel(axes, rows, series, sizes, positions)
            axes.set_title(f"{arm}, start: {starting_point_name(start)}" if arm else f"Start: {starting_point_name(start)}")
        _draw_legends(figure, series)
    return figure


def forest_figure(judgements: Sequence[Judgement]) -> Figure:
    """The headline difference of each claim in each of its settings: a panel a claim, a row a setting; accuracies in points.

    Lines are 95% intervals over seeds (or generators) and items. Fewer than three of them are drawn as dots, one each, without
    an interval that would fill the panel. Ratios are left out. Raises ValueError when no claim has anything else.
    """
    panels = [(one, [row for row in headline_rows(one) if row["unit"] != "ratio"]) for one in judgements]
    panels = [(one, rows) for one, rows in panels if rows]
    if not panels:
        raise ValueError("no claim has a difference that is no ratio, so there is nothing to draw")
    columns = min(2, len(panels))
    lines = [sum(1 + _tick(row["setting"]).count("\n") for row in rows) for _, rows in panels]
    heights = [max(lines[at : at + columns]) for at in range(0, len(panels), columns)]
    with matplotlib.rc_context(RC):
        size = (max(7.8, 3.3 * columns + 1.4), sum(0.3 * height + 1.2 for height in heights))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (judgement, rows) in zip(grid.flat, panels, strict=False):
            _draw_forest(axes, judgement, rows)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
    return figure


def _tick(setting: str) -> str:
    """A setting beside its row: with its arm, which comes first, on lines of its own, so that the panel keeps its width."""
    arm, start, rest = setting.partition(", start ")
    return f"{textwrap.fill(arm, TICK_WIDTH)}\nstart {rest}" if start else setting


def _draw_forest(axes: Axes, judgement: Judgement, rows: Sequence[Mapping[str, Any]]) -> None:
    factor = 100 if rows[0]["unit"] == "share" else 1
    axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    for y, row in enumerate(rows):
        if len(row["values"]) < FEWEST_FOR_INTERVAL:
            axes.plot([factor * value for value in row["values"]], [y] * len(row["values"]), zorder=3, **DOT)
            continue
        axes.hlines(y, factor * row["low"], factor * row["high"], color=INK, linewidth=0.9, zorder=2)
        axes.plot(factor * row["estimate"], y, color=KIND_STYLES["synthetic"][0], marker="s", markersize=5, zorder=3)
    axes.set_yticks(range(len(rows)), [_tick(row["setting"] or judgement.name) for row in rows])
    axes.yaxis.set_inverted(True)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(f"{textwrap.fill(judgement.name.replace('_', ' '), 34)}\n{judgement.verdict}", fontsize=8.5)
    axes.set_xlabel("points" if factor == 100 else MEASURE_NAMES[Measure(judgement.measure)])
    axes.grid(axis="x", linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def training_curves(curves: pd.DataFrame) -> Figure:
    """Loss by share of the training done: a panel for the generator, the starting points and each kind of training set.

    `curves` is `analysis.study.artifacts.curve_frame`'s. Raises ValueError when it has no rows.
    """
    if curves.empty:
        raise ValueError("no finetuning has logged a step, so there is no curve to draw")
    panels = [(name, curves[curves["stage"] == stage]) for stage, name in CURVE_STAGES.items()]
    models = curves[curves["stage"] == "task_model"]
    panels += [(KIND_NAMES[kind], models[models["kind"] == kind]) for kind in KIND_STYLES]
    panels.append(("Doses, mixes and later generations", models[~models["kind"].isin(KIND_STYLES)]))
    panels = [(name, panel) for name, panel in panels if not panel.empty]
    with matplotlib.rc_context(RC):
        inches: dict[str, Any] = {"row_height": 2.3, "legend": 0.0, "title": 0.32, "margins": 0.5}
        figure, grid = _panels(len(panels), ("share of the steps", "loss"), **inches, hspace=0.42, wspace=0.16)
        for axes, (name, panel) in zip(grid, panels, strict=True):
            kinds = set(panel["kind"].dropna())
            colour = KIND_STYLES.get(kinds.pop() if len(kinds) == 1 else "", (INK, ""))[0]
            for _, curve in panel.groupby("slug"):
                curve = curve.iloc[:: max(1, len(curve) // CURVE_POINTS)]
                axes.plot(curve["step"] / curve["step"].max(), curve["loss"], color=colour, linewidth=0.8, alpha=0.7)
            axes.set_title(f"{name} ({panel['slug'].nunique()})")
            axes.grid(linewidth=0.6)
            axes.set_xlim(0, 1)
            axes.set_ylim(bottom=0)
    return figure


def timeline_figure(timeline: Timeline) -> Figure:
    """A run's lanes by time (`Timeline.rows`): their steps by the colour of their stage, pale until the first one begins.

    A thin line leads from where a step's inputs were ready to where it began. Of steps that are trained at once, each has its
    part of the row's height.
    """
    rows = timeline.rows
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.2, 0.9 + 0.2 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for row, lane in [(row, lane) for row, lanes in enumerate(rows) for lane in lanes]:
            axes.barh(row, lane.start_s, left=lane.opened, height=0.8, color=GRID)
            tracks: list[float] = []
            placed = []
            for span in lane.spans:
                # The first track that is free again.
                track = next((place for place, until in enumerate(tracks) if until <= span.began), len(tracks))
                tracks[track : track + 1] = [span.ended]
                placed.append((span, track))
            height = 0.8 / len(tracks)
            for span, track in placed:
                middle = row - 0.4 + height * (track + 0.5)
                axes.barh(
                    middle,
                    max(span.ended - span.began, timeline.seconds / 1000),
                    left=span.began,
                    height=height,
                    color=STAGE_COLOURS[span.stage],
                    edgecolor=PAPER,
                    linewidth=0.3,
                )
                axes.plot((span.ready, span.began), (middle, middle), color=MUTED, linewidth=0.4, zorder=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [", ".join(name.replace("_", " ") for name in row[0].stages) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, timeline.seconds)
        axes.set_xlabel("seconds since the run began")
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def to_pdf(figure: Figure) -> bytes:
    """The figure as PDF bytes, without a time or a version inside."""
    return _save(figure, "pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def to_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """The figure as PNG bytes, without a time or a version inside."""
    return _save(figure, "png", dpi=dpi, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """The figure as a self-contained SVG document."""
    return _save(figure, "svg", metadata={"Date": None, "Creator": None}).decode()


def inline_svg(svg: str, label: str, boxes: Sequence[Bbox] = ()) -> str:
    """A figure's SVG as part of a page, in the page's own colours (light or dark); `label` is read aloud for it.

    With several `boxes` (`panel_boxes`) these parts of it follow, one below the other, for a page that is narrower.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    variables = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--card"}
    variables |= {colour: f"--{kind.split('_')[0]}" for kind, (colour, _) in KIND_STYLES.items()}
    for colour, variable in variables.items():
        body = body.replace(colour, f"var({variable})")
    if len(boxes) < 2:
        return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    # A page has several figures, each of which is its file's first.
    name = f"figure-{hashlib.sha256(svg.encode()).hexdigest()[:12]}"
    body = body.replace('id="figure_1"', f'id="{name}"', 1)
    places = [f"{box.x0:.1f} {box.y0:.1f} {box.width:.1f} {box.height:.1f}" for box in boxes]
    parts = "".join(f'<svg viewBox="{place}" aria-hidden="true"><use href="#{name}"/></svg>' for place in places)
    whole = body.replace("<svg ", f'<svg class="whole" role="img" aria-label="{label}" ', 1)
    return f'{whole}<div class="panels">{parts}</div>'


def panel_boxes(figure: Figure) -> list[Bbox]:
    """Where the figure's legends, all together, and its panels lie in its SVG: points from the left and from the top."""
    figure.draw_without_rendering()
    shown = [box for axes in figure.axes if axes.axison and (box := axes.get_tightbbox())]
    legends = [box for legend in figure.legends if (box := legend.get_tightbbox())]
    height, scale = figure.get_figheight() * 72, 72 / figure.dpi
    return [
        Bbox.from_extents(
            box.x0 * scale - BESIDE, height - box.y1 * scale - BESIDE, box.x1 * scale + BESIDE, height - box.y0 * scale + BESIDE
        )
        for box in [*([Bbox.union(legends)] if legends else []), *shown]
    ]


def _save(figure: Figure, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format=file_format, **options)
    return buffer.getvalue()


def _panels(
    num: int,
    labels: tuple[str, str],
    *,
    row_height: float,
    legend: float,
    title: float,
    margins: float,
    sharey: bool = False,
    **spaces: float,
) -> tuple[Figure, list[Axes]]:
    """A figure and its first `num` panels, three a row, with `labels` below and left of them; heights are in inches."""
    columns = min(3, num)
    rows = math.ceil(num / columns)
    width, height = max(7.8, 3.35 * columns + 0.5), row_height * rows + legend + margins
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    for axes in grid.flat[num - columns : num]:
        axes.set_xlabel(labels[0])
    for axes in grid[:, 0]:
        axes.set_ylabel(labels[1])
    for axes in grid.flat[num:]:
        axes.set_axis_off()
    figure.subplots_adjust(
        left=0.72 / width, right=1 - 0.18 / width, top=1 - (legend + title) / height, bottom=0.52 / height, **spaces
    )
    return figure, list(grid.flat[:num])


def _positions(sizes: Sequence[int]) -> tuple[dict[int, float], bool]:
    """Each size's place on the x axis (0..1): to scale, unless two tick labels would collide."""
    largest = max(sizes) or 1
    gaps = [(right - left) / largest for left, right in itertools.pairwise(sizes)]
    if not gaps or min(gaps) >= 0.14:
        return {size: size / largest for size in sizes}, True
    return {size: index / (len(sizes) - 1) for index, size in enumerate(sizes)}, False


def _draw_panel(
    axes: Axes, panel: pd.DataFrame, series: Sequence[Series], sizes: Sequence[int], positions: dict[int, float]
) -> None:
    edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.6, "clip_on": False}
    for test, dashes in zip(series, DASHES, strict=False):
        rows = select(panel, test)
        start = rows[rows["kind"] == "none"]
        for shift, kind in enumerate(TRAINED_KINDS):
            trained = rows[rows["kind"] == kind]
            if trained.empty:
                continue
            colour, marker = KIND_STYLES[kind]
            points = pd.concat([start, trained]).set_index("size")
            # A size with no value stays in as a gap, so that a line never bridges a missing cell.
            points = points.reindex([size for size in sizes if size == 0 or size in set(panel["size"])])
            # Kinds stand a little apart: bars on top of each other hide which is which.
            offset = [0.0 if size == 0 else (shift - 1) * 0.016 for size in points.index]
            x = [positions[size] + moved for size, moved in zip(points.index, offset, strict=True)]
            y = points["accuracy"].to_numpy(dtype=float)
            line: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.5}
            label = f"{KIND_NAMES[kind]} | {test.name}"
            axes.plot(x, y, marker=marker, markersize=5.2, label=label, zorder=3, **line, **edge)
            _draw_bars(axes, x[1:], points.iloc[1:], colour)
        if not start.empty:
            y = start["accuracy"].to_numpy(dtype=float)
            dot: dict[str, Any] = {"color": INK, "linestyle": "none", "marker": "D", "markersize": 4.6}
            axes.plot([positions[0]], y, label=f"Starting point | {test.name}", zorder=4, **dot, **edge)
            _draw_bars(axes, [positions[0]], start, INK)
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.05, 1.06)
    axes.set_xticks([positions[size] for size in sizes], [f"{size:,}" for size in sizes])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_bars(axes: Axes, x: Sequence[float], points: pd.DataFrame, colour: str) -> None:
    """Range over seeds and, thinner, the interval; of few seeds a dot each."""
    few = (points["units"] < FEWEST_FOR_INTERVAL).to_numpy()
    for at, values in zip(np.asarray(x)[few], points["values"][few], strict=True):
        # A gap has no seeds.
        if isinstance(values, list):
            axes.plot([at] * len(values), values, **{**DOT, "color": colour, "label": "_seeds"})
    x, points = np.asarray(x)[~few], points[~few]
    axes.vlines(x, points["low"], points["high"], color=colour, linewidth=1.6, alpha=0.75, zorder=2)
    if "interval_low" in points:
        ends = (points["interval_low"], points["interval_high"])
        axes.vlines(x, *ends, color=colour, linewidth=0.7, alpha=0.5, zorder=2)


def _draw_legends(figure: Figure, series: Sequence[Series]) -> None:
    marked: dict[str, Any] = {"markersize": 6, "linewidth": 1.8, "markeredgecolor": PAPER}
    kinds = [
        Line2D([], [], color=colour, marker=marker, label=KIND_NAMES[kind], **marked)
        for kind, (colour, marker) in KIND_STYLES.items()
    ]
    kinds.append(Line2D([], [], color=INK, marker="D", markersize=5.5, linestyle="none", label="Starting point"))
    tests = [
        Line2D([], [], color=INK, linestyle=dashes, linewidth=1.6, label=test.name)
        for test, dashes in zip(series, DASHES, strict=False)
    ]
    left = 0.5 / figure.get_figwidth()
    height = figure.get_figheight()
    common: dict[str, Any] = {"loc": "upper left", "fontsize": 9}
    common |= {"columnspacing": 1.6, "borderaxespad": 0.0, "handletextpad": 0.6}
    figure.legend(handles=kinds, ncols=len(kinds), bbox_to_anchor=(left, 1 - 0.12 / height), handlelength=2.2, **common)
    figure.legend(handles=tests, ncols=len(tests), bbox_to_anchor=(left, 1 - 0.42 / height), handlelength=2.9, **common)
