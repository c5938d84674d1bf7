"""Paired differences of two studies, by setting, kind and seed, with the intervals that a study's own differences have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from analysis.study.described import task_of
from analysis.study.frame import evaluation_frame
from analysis.study.item_sets import ItemSet
from analysis.study.items import Responses, load_arms
from analysis.study.series import study_series
from analysis.wording import counted, in_words, measure_word, set_name, slice_name
from pipelines.errors import UserError
from sweep.graph.identity import flatten
from sweep.graph.records import Store, Study
from sweep.study.claims import NOT_FROM_POOL, Measure

Cell = tuple[int, str, int]
"""starting_size, kind, size."""
OF_SCORES = (Measure.MARGIN, Measure.AUC, Measure.PULL)
"""What is measured beside accuracy, on the slice where going by the heuristic is wrong."""


@dataclass(frozen=True)
class Row:
    """A measure of one cell on one slice: both levels over the seeds (or generators) that both have, and B minus A.

    Levels are shares of 1, of the margin log-odds. `low` and `high` are the 95% interval of the difference, NaN where there is
    none; `units` says what was paired.
    """

    arm: str
    set: str
    slice: str
    measure: Measure
    starting_size: int
    kind: str
    size: int
    num_pairs: int
    units: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    num_items: int


@dataclass(frozen=True)
class Comparison:
    """`rows` by place (set and slice), measure and cell; `not_comparable` says what has none and why; `differs` what else is
    other in the two, of which a difference may be; `only` counts the cells that one alone has.
    """

    names: tuple[str, str]
    rows: tuple[Row, ...]
    titles: Mapping[tuple[str, str], str]
    not_comparable: tuple[str, ...]
    differs: tuple[str, ...]
    only: tuple[int, int]
    notes: tuple[str, ...] = ()


def compare_studies(first: tuple[Store, str], second: tuple[Store, str]) -> Comparison:
    """B minus A, `second` being B, in each cell that both have: accuracy on the sets that both are read on, and margin, AUC and
    pull where going by the heuristic is wrong.

    What is not built is left out and said. Raises UserError where a study cannot be read, or has no evaluation yet.
    """
    stores = first[0], second[0]
    studies = Study.load(*first), Study.load(*second)
    names = studies[0].experiment, studies[1].experiment
    if names[0] == names[1]:
        names = f"{names[0]} (A)", f"{names[1]} (B)"
    tasks = task_of(studies[0]), task_of(studies[1])
    if tasks[0] != tasks[1]:
        why = f"their tasks: {names[0]} is on {tasks[0].name}, {names[1]} on {tasks[1].name}; nothing of them can be compared"
        return Comparison(names, (), {}, (why,), _differs(names, studies), (0, 0))
    frames = [evaluation_frame(store, study, partial=True) for store, study in zip(stores, studies, strict=True)]
    series = [study_series(study, frame) for study, frame in zip(studies, frames, strict=True)]
    places = [[(one.set, one.slice) for one in of_study] for of_study in series]
    common = [place for place in places[0] if place in places[1]]
    not_comparable = [
        f"{_title(place)}: only {names[side]} is read on it" for side in (0, 1) for place in places[side] if place not in common
    ]
    missing = [len(frame.attrs["missing"]) for frame in frames]
    notes = tuple(
        f"{name} lacks {counted(number, 'result')} not yet built" for name, number in zip(names, missing, strict=True) if number
    )
    sets = list(dict.fromkeys(name for name, _ in common))
    if not sets:
        return Comparison(names, (), {}, tuple(not_comparable), _differs(names, studies), (0, 0), notes)
    arms = [
        load_arms(store, study, sets, frame, partial=True) for store, study, frame in zip(stores, studies, frames, strict=True)
    ]
    for name in sets:
        if why := _other_items(studies, arms, name):
            not_comparable.append(f"{set_name(name)}: {why}")
            common = [place for place in common if place[0] != name]
    not_comparable += [
        f"arm {arm}: only {names[side]} has it" for side in (0, 1) for arm in arms[side] if arm not in arms[1 - side]
    ]
    asked = [(place, Measure.ACCURACY) for place in common]
    if all(of_study[-1] == places[0][-1] for of_study in places) and places[0][-1] in common:
        labels = [next(iter(of_study.values())).label for of_study in arms]
        if labels[0] == labels[1]:
            asked += [(places[0][-1], measure) for measure in OF_SCORES]
        else:
            not_comparable.append(f"{_words(OF_SCORES)}: scores are of {labels[0]} in A and of {labels[1]} in B")
    general = places[0][0] if places[0][0] == places[1][0] and places[0][0] in common else None
    both = {arm: (arms[0][arm], arms[1][arm]) for arm in arms[0] if arm in arms[1]}
    rows, unpaired = _rows(both, asked, general)
    cells = [(set(_cells(one)), set(_cells(other))) for one, other in both.values()]
    only = sum(len(one - other) for one, other in cells), sum(len(other - one) for one, other in cells)
    titles = {place: _title(place, arms[0]) for place in common}
    return Comparison(names, tuple(rows), titles, (*not_comparable, *unpaired), _differs(names, studies), only, notes)


def _rows(
    arms: Mapping[str, tuple[Responses, Responses]],
    asked: Sequence[tuple[tuple[str, str], Measure]],
    general: tuple[str, str] | None,
) -> tuple[list[Row], list[str]]:
    """Each measure that is `asked` at its place, in each cell that both have; and why there is none of the others."""
    rows: list[Row] = []
    unpaired: dict[str, None] = {}
    without: dict[str, dict[Measure, None]] = {}
    for arm, both in arms.items():
        cells, others = map(_cells, both)
        for (place, measure), cell in product(asked, [cell for cell in cells if cell in others]):
            try:
                row = _row(both, arm, place, measure, cell, general)
            except UserError as error:
                without.setdefault(str(error), {})[measure] = None
                continue
            if isinstance(row, Row):
                rows.append(row)
            else:
                unpaired[row] = None
    return rows, [*unpaired, *(f"{_words(list(measures))}: {why}" for why, measures in without.items())]


def _row(
    both: tuple[Responses, Responses],
    arm: str,
    place: tuple[str, str],
    measure: Measure,
    cell: Cell,
    general: tuple[str, str] | None,
) -> Row | str:
    """The paired difference of one cell, or why nothing is paired. `general` is the general set of both.

    Raises UserError where a measure cannot be had.
    """
    name, slice_ = place
    start, kind, size = cell
    if measure == Measure.PULL and general is None:
        raise UserError("it is against the items of a general set, and the two have none in common")
    data = [one.measured(measure, name, slice_, [cell], general[0] if general else None) for one in both]
    seeds = sorted(set(data[0].seeds) & set(data[1].seeds))
    if not seeds:
        return f"{kind}, start {start}, size {size}: the two have no seed in common"
    data = [one.of(seeds) for one in data]
    units = "seeds"
    several = [len(set(one.generator_of.values())) > 1 for one in both]
    if any(several) and kind not in NOT_FROM_POOL:
        if all(several) and any(both[0].generator_of[seed] != both[1].generator_of[seed] for seed in seeds):
            return f"{kind}: seeds are dealt to other generators in the two, so that nothing is paired"
        # The generator is the unit, in the study that has several.
        groups = both[0 if several[0] else 1].generator_of
        data, units = [one.grouped(groups) for one in data], "generators"
    difference = data[1].minus(data[0])
    effect = difference.effect()
    interval = effect.interval()
    # No difference of shares is larger.
    bound = math.inf if measure == Measure.MARGIN else 1.0
    low, high = (max(interval.low, -bound), min(interval.high, bound)) if interval else (math.nan, math.nan)
    levels = [float(one.values.mean()) for one in data]
    return Row(
        arm=arm,
        set=name,
        slice=slice_,
        measure=measure,
        starting_size=start,
        kind=kind,
        size=size,
        num_pairs=len(difference.seeds),
        units=units,
        a=levels[0],
        b=levels[1],
        difference=effect.mean,
        low=low,
        high=high,
        num_items=difference.num_items,
    )


def _words(measures: Sequence[Measure]) -> str:
    return in_words([measure_word(measure) for measure in measures])


def _cells(responses: Responses) -> list[Cell]:
    """The cells that have a result on every set, in the order of the study's grid."""
    of_sets = [{cell[:3] for cell in of_set} for of_set in responses.predicted.values()]
    everywhere = set.intersection(*of_sets) if of_sets else set()
    first = next(iter(responses.predicted.values()), {})
    return sorted(everywhere, key=lambda cell: (cell[0], list(dict.fromkeys(one[1] for one in first)).index(cell[1]), cell[2]))


def _other_items(studies: Sequence[Study], arms: Sequence[Mapping[str, Responses]], name: str) -> str:
    """Why a test set of the two is not the same; "" if it is."""
    files = [_sources_files(study).get(f"{name}.parquet", {}).get("sha256") for study in studies]
    first, second = (next(iter(of_study.values())).items[name] for of_study in arms)
    if len(first.ids) != len(second.ids):
        return f"they are other test sets, of {len(first.ids):,} and {len(second.ids):,} items"
    if not (np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels)):
        return "they are other test sets: their items or labels differ"
    if None not in files and files[0] != files[1]:
        return "they are other test sets: their texts differ, under the same names of items"
    return "" if _alike(first, second) else "their items are clustered otherwise, since the sources of one are missing"


def _alike(first: ItemSet, second: ItemSet) -> bool:
    return np.array_equal(first.clusters, second.clusters) and np.array_equal(first.strata, second.strata)


def _sources_files(study: Study) -> Mapping[str, Mapping[str, Any]]:
    evaluations = [step for step in study.steps if step.stage == "evaluation"]
    wanted = {step.inputs.get("sources") for step in evaluations}
    return next((step.record.files for step in study.steps if step.fingerprint in wanted and step.record), {})


def _differs(names: tuple[str, str], studies: tuple[Study, Study]) -> tuple[str, ...]:
    """What a difference between the two may be of, beside chance."""
    found = []
    bases = [{step.inputs.get("base_model") for step in study.steps if step.stage == "evaluation"} for study in studies]
    if bases[0] != bases[1]:
        found.append("their base models: every difference is of these, too")
    training = [_sources_files(study).get("train.parquet", {}).get("sha256") for study in studies]
    if training[0] != training[1]:
        found.append("their original training data: a seed draws other examples in each")
    if settings := _other_settings(studies):
        found.append(f"their settings {in_words(settings)}")
    # On how many artifacts a mark is, seeds decide.
    marks = [[*study.marks, *study.pool_copies] for study in studies]
    for name, own, others in zip(names, marks, reversed(marks), strict=True):
        found += [f"a mark that {name} alone has: {mark}" for mark in own if mark not in others]
    # The command's parameters are the study's own, or show in the settings.
    quiet = {"claims", "command", "pool_copies", "heuristic_description", "departures", "unsettled", "test_sets"}
    other = [
        name
        for name in dict.fromkeys([*studies[0].parameters, *studies[1].parameters])
        if name not in quiet and studies[0].parameters.get(name) != studies[1].parameters.get(name)
    ]
    if other:
        found.append(f"their parameters {in_words(other)}")
    return tuple(found)


def _other_settings(studies: tuple[Study, Study]) -> list[str]:
    """What is configured otherwise in steps that both have, by their stage and coordinates: `synthetic_pool.table.file.sha256`.

    Not what is said by itself: base models, sources and test sets.
    """
    found: dict[str, None] = {}
    configs = [_configs(study) for study in studies]
    for key in configs[0]:
        if key in configs[1]:
            values = [{(name, str(value)) for config in of_study[key] for name, value in config} for of_study in configs]
            found.update(dict.fromkeys(f"{key[0]}.{name}" for name, _ in sorted(values[0] ^ values[1])))
    return list(found)


def _configs(study: Study) -> dict[tuple[str, str], list[list[tuple[str, Any]]]]:
    found: dict[tuple[str, str], list[list[tuple[str, Any]]]] = {}
    for step in study.steps:
        if step.record and step.stage not in ("base_model", "sources"):
            config = {name: value for name, value in step.record.payload["config"].items() if name not in ("task", "test_sets")}
            found.setdefault((step.stage, str(sorted(step.coordinates.items()))), []).append(list(flatten(config)))
    return found


def _title(place: tuple[str, str], arms: Mapping[str, Responses] | None = None) -> str:
    name, slice_ = place
    items = next(iter(arms.values())).items.get(name) if arms else None
    title = items.title if items else set_name(name)
    return title if slice_ == "all" else f"{title}, {slice_name(slice_)}"


def checked(comparison: Comparison) -> Comparison:
    """The same. Raises UserError where the two are on one task and test set and yet have no cell in common."""
    if not comparison.rows and not comparison.not_comparable:
        raise UserError(
            f"{comparison.names[0]} and {comparison.names[1]} have no cell in common (starting point, kind, size): "
            f"{comparison.only[0]} and {comparison.only[1]} of their own; run the cells that are to be compared in both"
        )
    return comparison
