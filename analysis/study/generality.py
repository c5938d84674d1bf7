"""Is an effect general, or one test set's alone? What a kind of training data changes on each set, where going by the
heuristic that the set tests is wrong and where it is right, and on the general sets.

A described set names its halves. One whose items were made for heuristics, such as HANS, has two for each: the items that have
the label that the heuristic predicts, and the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.stats.hypotheses import benjamini_hochberg
from analysis.stats.intervals import Effect, mean_of
from analysis.study.described import described_sets, titles_of
from analysis.study.items import Responses
from analysis.wording import HOLDS, set_name
from pipelines.errors import UserError
from pipelines.tasks.heuristics import HANS_HEURISTICS
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import Study

CHANGES = (("synthetic", "original"), ("biased_synthetic", "synthetic"))
"""The effect, and what the bias that was put in on purpose adds to it."""
GENERAL, ADVERSARIAL, ALIGNED = "general", "adversarial", "aligned"
SUBCASE = "subcase"


@dataclass(frozen=True)
class Place:
    """A test set, or a half of it; both halves of one heuristic have one title."""

    title: str
    set: str
    slice: str
    half: str


@dataclass(frozen=True)
class Change:
    """Accuracy with one kind of training set minus another at a place, paired by seed.

    `effect` is of the mean over the settings (starting_size, size) that have both; `by_setting` has each one's mean. For one
    seed the effect's interval is over items alone. `num_clusters` counts what the items are drawn in.
    """

    place: Place
    treatment: str
    control: str
    effect: Effect
    num_clusters: int
    by_setting: dict[tuple[int, int], float]
    units: tuple[float, ...]
    """The mean over settings of each seed, or of each generator where several made the data."""


def places(study: Study, frame: pd.DataFrame) -> tuple[Place, ...]:
    """All evaluated sets: those that test no heuristic, then the halves of the others, the study's blindspot set first.

    `frame` is the study's `evaluation_frame`.
    """
    described, titles = described_sets(study), titles_of(study)
    blindspot_set = str(study.parameters.get("blindspot_set", ""))
    general, halves = [], []
    for name, rows in frame.groupby("set", sort=False):
        title, slices = set_name(str(name), titles), set(rows["slice"])
        pairs = _halves(title, str(name), slices, described)
        halves += pairs
        if not pairs:
            general.append(Place(title, str(name), "all", GENERAL))
    return (*general, *sorted(halves, key=lambda place: place.set != blindspot_set))


def _halves(title: str, name: str, slices: set[str], described: Mapping[str, TestSet]) -> list[Place]:
    if name in described:
        test_set = described[name]
        found = [(title, test_set.adversarial or "", ADVERSARIAL), (title, test_set.aligned or "", ALIGNED)]
    else:
        found = []
        for wrong in sorted(slices, key=_in_order):
            heuristic, _, label = wrong.partition("/")
            if label.startswith("non-") and heuristic != SUBCASE and not wrong.startswith(HOLDS):
                of_heuristic = f"{title} ({heuristic.replace('_', ' ')})"
                found.append((of_heuristic, wrong, ADVERSARIAL))
                found.append((of_heuristic, f"{heuristic}/{label.removeprefix('non-')}", ALIGNED))
    return [Place(of, name, slice_, half) for of, slice_, half in found if slice_ in slices]


def _in_order(slice_name: str) -> tuple[int, str]:
    """Heuristics in the order of the HANS paper, others after them by name."""
    heuristic = slice_name.partition("/")[0]
    return HANS_HEURISTICS.index(heuristic) if heuristic in HANS_HEURISTICS else len(HANS_HEURISTICS), slice_name


def sets_with_halves(chosen: Sequence[Place]) -> tuple[str, ...]:
    """The sets that have a half where a heuristic is wrong."""
    return tuple(dict.fromkeys(place.set for place in chosen if place.half == ADVERSARIAL))


def changes(
    responses: Responses, chosen: Sequence[Place], starting_sizes: Sequence[int], sizes: Sequence[int]
) -> tuple[Change, ...]:
    """Each of `CHANGES` at each place, in their order. One that no seed has in any setting is left out."""
    found = []
    for treatment, control in CHANGES:
        for place in chosen:
            data = {}
            for setting in ((start, size) for start in starting_sizes for size in sizes):
                try:
                    data[setting] = responses.change(place.set, place.slice, treatment, control, [setting[0]], [setting[1]])
                except UserError:
                    continue
            if not data:
                continue
            try:
                mean = mean_of(list(data.values()))
            except UserError:
                # No seed is in every setting, so that there is no mean over them.
                continue
            by_setting = {setting: float(one.values.mean()) for setting, one in data.items()}
            units = tuple(float(value) for value in mean.values)
            found.append(Change(place, treatment, control, mean.effect(), mean.num_clusters, by_setting, units))
    return tuple(found)


def moved(found: Sequence[Change], level: float) -> tuple[list[Change], list[Change]]:
    """The effects on adversarial halves that are below 0, and those above it, at a `level` that holds for the share of false
    ones among them (Benjamini and Hochberg, two-sided). None of one seed: its interval says nothing of another.
    """
    tested = [
        change for change in found if change.place.half == ADVERSARIAL and (change.treatment, change.control) == CHANGES[0]
    ]
    tested = [change for change in tested if len(change.units) > 1]
    p_values = [2 * min(change.effect.p_below(), change.effect.p_above()) for change in tested]
    adjusted = benjamini_hochberg(np.minimum(p_values, 1.0).tolist()) if tested else []
    clear = [change for change, p in zip(tested, adjusted, strict=True) if p < level]
    return [change for change in clear if change.effect.mean < 0], [change for change in clear if change.effect.mean > 0]
