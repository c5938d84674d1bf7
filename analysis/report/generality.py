"""The report's section that sets the study's effect on its blindspot beside that on sets which test other heuristics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.page import Block, Column, Fold, Table, grouped, number_columns, text_columns
from analysis.report.figures import FEWEST_FOR_INTERVAL, INK, KIND_STYLES, MUTED, PAPER, RC
from analysis.study.generality import ADVERSARIAL, ALIGNED, CHANGES, GENERAL, Change, changes, moved, places, sets_with_halves
from analysis.verdicts.evidence import Evidence
from analysis.verdicts.judgement import ONE_GENERATOR
from analysis.verdicts.power import ALPHA
from analysis.wording import (
    NOTHING,
    in_words,
    number_word,
    points,
    points_range,
    starting_point_name,
)
from sweep.graph.records import Study

HALF_NAMES = {GENERAL: "all items", ADVERSARIAL: "heuristic wrong", ALIGNED: "heuristic right"}
STYLES: dict[str, dict[str, Any]] = {
    GENERAL: {"color": INK, "marker": "D"},
    ADVERSARIAL: {"color": KIND_STYLES["synthetic"][0], "marker": "s"},
    ALIGNED: {"color": KIND_STYLES["original"][0], "marker": "o"},
}
CHANGE_NAMES = dict(zip(CHANGES, ("synthetic − original", "biased − synthetic"), strict=True))
ONE_SEED = (
    "One seed: the intervals are over test items alone. They say how far further items would move each difference, and nothing "
    "of another training run, so that whether the effect is general cannot be said."
)
HOW_TO_READ = (
    "Differences of accuracy in points, paired by seed, as means over the study's settings (a starting point and a training "
    "size); each setting is a faint mark. A heuristic that training data teaches lowers accuracy where going by it is wrong "
    "and not where it is right; where both fall, the model has lost something else. This is no claim of the study's: it is "
    "exploratory, and 'clear' is at 5% of false discoveries over all sets (Benjamini and Hochberg)."
)
CONTROL = "Biased sets go by the study's own heuristic, so that biased − synthetic says how far that one reaches into each set."


def sets_needed(study: Study, frame: pd.DataFrame) -> tuple[str, ...]:
    """The evaluated sets that this section needs the answers to; none where fewer than two test a heuristic."""
    chosen = places(study, frame)
    return tuple(dict.fromkeys(place.set for place in chosen)) if len(sets_with_halves(chosen)) > 1 else ()


def generality_block(
    study: Study, frame: pd.DataFrame, evidence: Evidence | None
) -> tuple[list[Block], Figure | None, pd.DataFrame]:
    """The section without its figure, the figure, and its numbers; nothing where fewer than two sets test a heuristic."""
    chosen = places(study, frame) if evidence is not None and sets_needed(study, frame) else ()
    if evidence is None or not chosen:
        return [], None, pd.DataFrame()
    found = changes(evidence.responses, chosen, evidence.starting_sizes, evidence.sizes)
    if not found:
        return [], None, pd.DataFrame()
    title = evidence.title(evidence.blindspot_set)
    text = [_answer(found, evidence, title), HOW_TO_READ]
    if any((change.treatment, change.control) == CHANGES[1] for change in found):
        text.append(CONTROL)
    units = "generators" if evidence.num_generators > 1 else "seeds"
    caption = (
        f"What synthetic data changes, and what bias adds, on each test set. Lines are 95% intervals over {units} and "
        "clusters of items; of one, over items alone (thin). Two are drawn as they are."
    )
    block = Block(
        "generality",
        f"Is the effect general, or {title}'s alone?",
        text,
        [_table(found, units)],
        [Fold("In each setting", [_settings(found)])],
        "",
        caption,
    )
    return [block], _figure(found), _frame(found)


def _answer(found: Sequence[Change], evidence: Evidence, blindspot: str) -> str:
    effects = [change for change in found if (change.treatment, change.control) == CHANGES[0]]
    tested = [change for change in effects if change.place.half == ADVERSARIAL]
    if not tested:
        return (
            "No seed has synthetic and original training data in every setting, so that there is no effect to set side by side."
        )
    if max(len(change.units) for change in tested) < 2:
        return ONE_SEED
    below, above = moved(found, ALPHA)
    here = [change for change in below if change.place.set == evidence.blindspot_set]
    elsewhere = [change for change in below if change.place.set != evidence.blindspot_set]
    others = [change for change in tested if change.place.set != evidence.blindspot_set]
    text = (
        f"Where going by a set's heuristic is wrong, accuracy with synthetic instead of original data is clearly lower on "
        f"{_named(below)} and clearly higher on {_named(above)}, of {number_word(len(tested))}. "
    )
    if here and elsewhere:
        text += f"The effect is not {blindspot}'s alone."
    elif here:
        reach = min((_low(change) for change in others), default=float("nan"))
        text += (
            f"It is seen on {blindspot} and on no other set; that it is {blindspot}'s alone is not shown by that: the others' "
            f"intervals reach to {points(reach)} points."
        )
    elif elsewhere:
        text += f"It is seen on other sets and not on {blindspot}."
    else:
        text += "There is no clear effect to be general or not."
    shared = [change for change in below if _aligned_falls(change, effects)]
    if shared:
        text += f" On {_named(shared)} accuracy falls where the heuristic is right as well, which no heuristic explains."
    return text if evidence.num_generators > 1 else f"{text} {ONE_GENERATOR}"


def _named(chosen: Sequence[Change]) -> str:
    return in_words([change.place.title for change in chosen]) if chosen else "none"


def _low(change: Change) -> float:
    interval = change.effect.interval()
    return interval.low if interval else change.effect.mean


def _aligned_falls(change: Change, effects: Sequence[Change]) -> bool:
    """Whether the interval of the other half of a place lies below 0."""
    for other in effects:
        if (other.place.title, other.place.half) == (change.place.title, ALIGNED):
            interval = other.effect.interval()
            return interval is not None and interval.high < 0
    return False


def _table(found: Sequence[Change], units: str) -> Table:
    by_place = {
        place: {(change.treatment, change.control): change for change in found if change.place == place}
        for place in dict.fromkeys(change.place for change in found)
    }
    shown = [pair for pair in CHANGES if any(pair in of_place for of_place in by_place.values())]
    groups: dict[str, list[list[str]]] = {}
    for place, of_place in by_place.items():
        first = next(iter(of_place.values()))
        row = [place.title, HALF_NAMES[place.half], f"{first.effect.num_items:,}", f"{first.num_clusters:,}"]
        for pair in shown:
            row += _numbers(of_place.get(pair))
        groups.setdefault(GENERAL if place.half == GENERAL else place.title, []).append(row)
    numbers = [name for pair in shown for name in (CHANGE_NAMES[pair], "95% interval", "Settings below 0", f"n ({units})")]
    columns = [*text_columns("Test set", "Items"), *number_columns("Items (n)", "Clusters", *numbers)]
    return grouped(columns, list(groups.values()))


def _numbers(change: Change | None) -> list[str]:
    if change is None:
        return [NOTHING] * 4
    interval = change.effect.interval()
    below = sum(value < 0 for value in change.by_setting.values())
    return [
        points(change.effect.mean),
        points_range(interval.low, interval.high) if interval else NOTHING,
        f"{below} of {len(change.by_setting)}",
        str(len(change.units)),
    ]


def _settings(found: Sequence[Change]) -> Table:
    settings = sorted({setting for change in found for setting in change.by_setting})
    rows = [
        [
            change.place.title,
            HALF_NAMES[change.place.half],
            CHANGE_NAMES[change.treatment, change.control],
            *(points(change.by_setting[setting]) if setting in change.by_setting else NOTHING for setting in settings),
        ]
        for change in found
    ]
    names = [f"{starting_point_name(start)}, size {size:,}" for start, size in settings]
    return Table([Column("Test set"), *text_columns("Items", "Difference"), *number_columns(*names)], rows)


def _frame(found: Sequence[Change]) -> pd.DataFrame:
    """The numbers for other programs: a row a place and a change; shares from −1 to 1."""
    rows = []
    for change in found:
        interval = change.effect.interval()
        rows.append(
            {
                "set": change.place.set,
                "slice": change.place.slice,
                "half": change.place.half,
                "treatment": change.treatment,
                "control": change.control,
                "difference": change.effect.mean,
                "interval_low": interval.low if interval else float("nan"),
                "interval_high": interval.high if interval else float("nan"),
                "n": len(change.units),
                "num_items": change.effect.num_items,
                "num_clusters": change.num_clusters,
                "num_settings": len(change.by_setting),
                "num_settings_below_0": sum(value < 0 for value in change.by_setting.values()),
            }
        )
    return pd.DataFrame(rows)


def _figure(found: Sequence[Change]) -> Figure:
    """A row a set or heuristic, a panel a change, and a mark for each half of the row."""
    titles = list(dict.fromkeys(change.place.title for change in found))
    pairs = [pair for pair in CHANGES if any((change.treatment, change.control) == pair for change in found)]
    with matplotlib.rc_context(RC):
        height = 0.36 * len(titles) + 1.35
        figure = Figure(figsize=(max(7.8, 3.6 * len(pairs) + 2.2), height), layout="constrained")
        grid = figure.subplots(1, len(pairs), sharey=True, squeeze=False)
        for axes, pair in zip(grid.flat, pairs, strict=True):
            axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
            for change in found:
                if (change.treatment, change.control) == pair:
                    _draw(axes, titles.index(change.place.title), change)
            axes.set_title(CHANGE_NAMES[pair])
            axes.set_xlabel("points of accuracy")
            axes.grid(axis="x", linewidth=0.6)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        grid[0, 0].set_yticks(range(len(titles)), titles)
        grid[0, 0].set_ylim(len(titles) - 0.4, -0.6)
        halves = [half for half in STYLES if any(change.place.half == half for change in found)]
        handles = [Line2D([], [], linestyle="none", markersize=5.5, label=HALF_NAMES[half], **STYLES[half]) for half in halves]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=9)
    return figure


def _draw(axes: Axes, row: int, change: Change) -> None:
    style = STYLES[change.place.half]
    y = row + {GENERAL: 0.0, ADVERSARIAL: -0.15, ALIGNED: 0.15}[change.place.half]
    settings = [100 * value for value in change.by_setting.values()]
    faint: dict[str, Any] = {"linestyle": "none", "markersize": 3, "alpha": 0.35, "markeredgewidth": 0, "zorder": 2}
    if len(settings) > 1:
        axes.plot(settings, [y] * len(settings), **faint, **style)
    if 0 < len(change.units) < FEWEST_FOR_INTERVAL:
        axes.plot([100 * value for value in change.units], [y] * len(change.units), linestyle="none", markersize=4.5, **style)
        return
    interval = change.effect.interval()
    if interval is not None:
        width = 0.7 if len(change.units) == 1 else 1.4
        axes.hlines(y, 100 * interval.low, 100 * interval.high, color=style["color"], linewidth=width, zorder=3)
    edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.6}
    axes.plot(100 * change.effect.mean, y, linestyle="none", markersize=5.5, zorder=4, **style, **edge)
