"""Tidy frames of a study's evaluations, from its records. Strict: what the manifest promises and the store lacks is an error.

Which cells should exist is read from the study's manifest, their values from each evaluation's
`metrics.json`, and where they belong from its coordinates; nothing is recovered from a name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.wording import in_words
from pipelines.errors import DamagedError, UserError
from sweep.graph.records import COORDINATES, DIALS, KINDS, Store, Study

CELL = tuple(name for name in COORDINATES if name != "seed")
POINT = ("arm", *CELL, "set", "slice", "num_labels", "folding")
"""What one point of a figure is of; its seeds differ."""
PLACE = ("arm", *COORDINATES)
KEY = (*PLACE, "set", "slice", "num_labels", "folding")
DTYPES = {
    "starting_size": "int64",
    "kind": pd.CategoricalDtype(KINDS, ordered=True),
    "size": "int64",
    "seed": "int64",
    "set": "string",
    "slice": "string",
    "num_labels": "int64",
    "folding": "string",
    "accuracy": "float64",
    "num_correct": "int64",
    "num_examples": "int64",
    "fingerprint": "string",
    "bias": "float64",
    "generator": "Int64",
    "arm": pd.CategoricalDtype([""], ordered=True),
}
_ROW_FIELDS = ("set", "slice", "num_labels", "folding", "accuracy", "num_correct", "num_examples")


class IncompleteSweepError(UserError):
    """The study lacks results that its manifest promises; `missing` lists them, one mapping each."""

    def __init__(self, study_name: str, missing: list[dict[str, Any]]) -> None:
        lines = "\n".join(f"  {line}" for line in _described_together(missing))
        super().__init__(
            f"study {study_name!r} lacks {len(missing)} result(s):\n{lines}\n"
            "run the study again to build what is missing, or ask for a partial report (--partial)"
        )
        self.missing = missing


class DuplicateRowsError(UserError):
    """Two results claim the same cell; which one holds cannot be told."""


class Missing(list[dict[str, Any]]):
    """The results that a frame lacks. Not to be changed: what pandas takes from a frame has its list, and not a copy of it."""

    def __deepcopy__(self, memo: object) -> Missing:
        return self


def evaluation_frame(store: Store, study: Study, *, partial: bool = False) -> pd.DataFrame:
    """One row per `KEY` (arm, starting_size, kind, size, seed, set, slice, num_labels, folding), sorted by it, as `DTYPES`.

    `accuracy` is num_correct / num_examples, a share (0..1); `fingerprint` is the evaluation's. `kind` is
    "none" and `size` 0 for a starting point evaluated as it is; mixes and later generations are kinds of their own, and so is
    a dose of bias, with `bias` its dose: NaN for all others. `generator` is the number of the seed's in a study with several,
    whatever the kind, and NA else. `arm` is "" in a study of one; an evaluation that several arms share has rows in each, all
    with its fingerprint. `folding` is "argmax", or "summed" where two labels are scored by summed probabilities
    (`pipelines.evaluate.scoring.is_predicted`).

    Raises IncompleteSweepError naming every missing cell; with `partial=True` these are in
    `frame.attrs["missing"]` instead (`Missing`: of each its coordinates, what is missing, why). Raises
    DuplicateRowsError for two results of one cell, and UserError for a metrics file that does not hold
    together.
    """
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    cells: dict[tuple[Any, ...], str] = {}
    slices: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    biases: dict[str, float] = {}
    others: dict[str, tuple[int, float]] = {}
    for step in study.steps:
        if step.stage != "evaluation":
            continue
        cell = _cell(step.coordinates, step.slug)
        of_arms = [(arm, *cell) for arm in step.arms or ("",)]
        for place in of_arms:
            if place in cells:
                raise DuplicateRowsError(
                    f"evaluations {cells[place]} and {step.slug}-{step.fingerprint[:12]} are both of "
                    f"{_named(place)}; one cell has one evaluation: run the study again to write its manifest anew"
                )
            cells[place] = f"{step.slug}-{step.fingerprint[:12]}"
        for rank, dial in enumerate(DIALS):
            if dial in step.coordinates:
                others[cell[1]] = rank, float(step.coordinates[dial])
        if "bias" in step.coordinates:
            biases[cell[1]] = float(step.coordinates["bias"])
        if step.record is None:
            why = step.damage or _why_missing(study, step.fingerprint)
            missing.append(_missing(cell, step.arms, "evaluation", why))
            continue
        try:
            of_cell = _evaluation_rows(store, step)
        except DamagedError as error:
            if not partial:
                raise
            missing.append(_missing(cell, step.arms, "metrics.json", str(error)))
            continue
        for place in of_arms:
            slices[place] = {(row["set"], row["slice"], row["num_labels"], row["folding"]) for row in of_cell}
            where = {
                **dict(zip(PLACE, place, strict=True)),
                "bias": biases.get(cell[1]),
                "generator": step.coordinates.get("generator"),
            }
            rows += [{**where, **row} for row in of_cell]
    if not cells:
        raise UserError(f"study {study.experiment!r} has no evaluation among its steps, so there is nothing to report")
    # Every task model of a study is measured on the same slices; one that lacks some cannot be compared.
    expected = set().union(*slices.values())
    for place, found_slices in slices.items():
        for set_, slice_, num_labels, folding in sorted(expected - found_slices):
            what = f"{set_} / {slice_} ({num_labels} labels, {folding})"
            missing.append(_missing(place[1:], place[:1] if place[0] else (), what, "not in the evaluation's metrics"))
    arms = [*study.arms] or [""]
    kinds = [*KINDS, *sorted(others, key=lambda kind: others[kind])]
    missing.sort(
        key=lambda result: (
            *([arms.index(arm) for arm in result["arms"]], result["starting_size"], kinds.index(result["kind"])),
            *(result["size"], result["seed"]),
        )
    )
    if missing and not partial:
        raise IncompleteSweepError(study.experiment, missing)
    ordered = {name: pd.CategoricalDtype(values, ordered=True) for name, values in (("kind", kinds), ("arm", arms))}
    frame = pd.DataFrame(rows, columns=list(DTYPES)).astype(DTYPES | ordered)
    frame = frame.sort_values(list(KEY), ignore_index=True)
    _check_same_test_items(frame)
    frame.attrs["missing"] = Missing(missing)
    return frame


def why_unread(frame: pd.DataFrame) -> str:
    """Why the first evaluation that is built is not in a partial frame, as for a file that has gone; "" if all such are."""
    return next((str(result["why"]) for result in frame.attrs.get("missing", ()) if result["what"] != "evaluation"), "")


def seed_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over seeds per `KEY` without the seed, its range and n."""
    grouped = frame.groupby(list(POINT), observed=True, sort=True)["accuracy"]
    return grouped.agg(accuracy="mean", low="min", high="max", n="count").reset_index()


def by_arm(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each arm and its rows, in the arms' order; of a study of one, "" and all rows."""
    return [(str(arm), rows.reset_index(drop=True)) for arm, rows in frame.groupby("arm", observed=True, sort=True)]


def describe_missing(result: Mapping[str, Any]) -> str:
    """One missing result in words."""
    cell = _named((in_words(result.get("arms", ())), *(result[name] for name in COORDINATES)))
    return f"{cell}: {result['what']} ({result['why']})"


def _described_together(missing: Sequence[Mapping[str, Any]]) -> list[str]:
    """The missing results in words, one line for those that are alike but for their seeds."""
    seeds: dict[tuple[Any, ...], list[int]] = {}
    results: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for result in missing:
        alike = tuple(str(value) for name, value in result.items() if name != "seed")
        seeds.setdefault(alike, []).append(result["seed"])
        results[alike] = result
    return [describe_missing({**result, "seed": ", ".join(map(str, seeds[alike]))}) for alike, result in results.items()]


def _missing(cell: tuple[Any, ...], arms: tuple[str, ...], what: str, why: str) -> dict[str, Any]:
    return {**dict(zip(COORDINATES, cell, strict=True)), "arms": arms, "what": what, "why": why}


def _cell(coordinates: Mapping[str, Any], slug: str) -> tuple[int, str, int, int]:
    absent = [name for name in COORDINATES if coordinates.get(name) is None]
    if absent:
        raise UserError(f"evaluation {slug} has no coordinate {', '.join(absent)}; run the study again")
    kind = coordinates["kind"]
    if kind not in KINDS and not any(dial in coordinates for dial in DIALS):
        raise UserError(f"evaluation {slug} is of kind {kind!r}; known kinds are {', '.join(KINDS)}")
    return int(coordinates["starting_size"]), kind, int(coordinates["size"]), int(coordinates["seed"])


def _named(place: tuple[Any, ...]) -> str:
    """A cell in words, with its arm where the study has several."""
    return ", ".join(f"{name}={value}" for name, value in zip(PLACE, place, strict=True) if value != "")


def _evaluation_rows(store: Store, step: Any) -> list[dict[str, Any]]:
    name = f"evaluation {step.slug}-{step.fingerprint[:12]}"
    content = store.read_bytes(step.record, "metrics.json")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in json.loads(content)["rows"]:
        absent = [field for field in _ROW_FIELDS if field not in row]
        if absent:
            raise UserError(f"{name}: row {row} has no {', '.join(absent)}; delete the artifact and run again")
        key = (row["set"], row["slice"], row["num_labels"], row["folding"])
        if key in rows:
            raise DuplicateRowsError(f"{name}: two rows for {key}; delete the artifact and run again")
        if row["num_examples"] <= 0:
            raise UserError(f"{name}: {key} has {row['num_examples']} examples; an empty slice has no accuracy")
        if not math.isclose(row["accuracy"], row["num_correct"] / row["num_examples"], abs_tol=1e-9):
            raise UserError(
                f"{name}: accuracy {row['accuracy']} of {key} is not "
                f"{row['num_correct']}/{row['num_examples']}; delete the artifact and run again"
            )
        rows[key] = {field: row[field] for field in _ROW_FIELDS} | {"fingerprint": step.fingerprint}
    return list(rows.values())


def _check_same_test_items(frame: pd.DataFrame) -> None:
    counts = frame.groupby(["set", "slice", "num_labels"])["num_examples"].unique()
    for key, sizes in counts.items():
        if len(sizes) > 1:
            raise UserError(
                f"{key} has {sorted(sizes.tolist())} examples in different evaluations; accuracies on "
                "different test items cannot be compared: evaluate all task models on the same sources"
            )


def _why_missing(study: Study, fingerprint: str) -> str:
    """The failure of the step or of the nearest one it was to be built from, or that it is not built."""
    # A blocked step only repeats that something before it failed.
    failures = {failure["fingerprint"]: failure for failure in study.failures if not failure["error"].startswith("blocked by")}
    inputs = {step.fingerprint: list(step.inputs.values()) for step in study.steps}
    queue, seen = [fingerprint], set()
    while queue:
        current = queue.pop(0)
        if current in failures:
            error = (str(failures[current]["error"]).strip().splitlines() or ["no message"])[0]
            return f"{failures[current]['slug']} failed: {error}"
        for source in inputs.get(current, []):
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return "not built"
