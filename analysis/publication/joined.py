"""What is kept of a study and what a store has of its further seeds, as one: the store of the first seeds may be gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.publication.published import Published
from analysis.study.artifacts import LabelCount, sum_counts
from analysis.study.frame import KEY, Missing, describe_missing
from analysis.study.item_sets import ItemSet
from analysis.study.items import Responses, generator_of_seeds
from pipelines.errors import UserError
from sweep.graph.identity import SHORT
from sweep.graph.records import COORDINATES, Record, Study, StudyStep

JUDGED_BY = {
    "plan": "another plan",
    "claims": "other claims",
    "general_set": "another general set",
    "blindspot_set": "another blindspot set",
    "blindspot_slice": "another slice of the blindspot set",
    "heuristic": "another heuristic",
}
"""Parameters that all seeds of a study are judged by, with how one that differs is called."""
OF_ITEMS = ("labels", "heuristics", "subcases", "clusters", "strata", "clustered_by", "holds", "predicts", "columns")
"""What is kept of the items of a test set; neither texts nor ids are."""
MEASURED = ["set", "slice", "num_labels", "folding", "num_examples"]


def further(kept: Published, study: Study, folder: str, store: str) -> Study:
    """The study of a store without the records of results and pools that are `kept`; why a step is missing is from both.

    Raises UserError, naming `folder` and `store`, for another study, plan or claims, for other steps than those of further
    seeds, for an artifact of which both have a build and not the same, and where the store has no further result.
    """
    name = kept.study.experiment
    if study.experiment != name:
        raise UserError(f"{folder} has the study {name}, and {store} was asked for {study.experiment}: name the same")
    for parameter, another in JUDGED_BY.items():
        one, other = study.parameters.get(parameter), kept.study.parameters.get(parameter)
        if one != other:
            said = f": {one} and {other}" if isinstance(one, str) and isinstance(other, str) else ""
            raise UserError(
                f"{store} has {name} under {another} than {folder}{said}; all seeds of a study are judged by one: "
                "keep it in another folder"
            )
    if not study.extends(kept.study):
        raise UserError(f"{_other_steps(kept.study, study, folder, store)}: run {name} there with the same parameters first")
    built = _built(kept.study)
    _check_builds(built, _built(study), folder, store)
    pools = {fingerprint for fingerprint, record in built.items() if record.stage == "synthetic_pool"}
    taken = pools | set(kept.frame["fingerprint"])
    steps = tuple(replace(step, record=None, damage="") if step.fingerprint in taken else step for step in study.steps)
    if not any(step.stage == "evaluation" and step.record is not None for step in steps):
        raise UserError(f"{store} has no result of {name} that {folder} lacks, so that nothing is to be added")
    built |= _built(study)
    failures = {failure["fingerprint"]: failure for failure in (*kept.study.failures, *study.failures)}
    return replace(study, steps=steps, failures=tuple(failure for mark, failure in failures.items() if mark not in built))


def joined(kept: Published, added: Published, folder: str, store: str) -> Published:
    """What is `kept` as it is, with what is `added` from a store, whose study is what `further` gave.

    Raises UserError, naming `folder` and `store`, where the two were evaluated on other test items.
    """
    _check_items(kept, added, folder, store)
    records = _built(kept.study)
    study = replace(
        added.study,
        steps=tuple(
            replace(step, record=records[step.fingerprint], damage="") if step.fingerprint in records else step
            for step in added.study.steps
        ),
    )
    frame = _frame(kept.frame, added.frame)
    ours, theirs = kept.evidence.responses, added.evidence.responses
    responses = replace(
        theirs,
        predicted={name: ours.predicted[name] | theirs.predicted[name] for name in theirs.items},
        scores={name: ours.scores.get(name, {}) | theirs.scores.get(name, {}) for name in theirs.items},
        missing=(
            *map(describe_missing, frame.attrs["missing"]),
            *_other_missing(ours, kept.frame),
            *_other_missing(theirs, added.frame),
        ),
        notes=tuple(dict.fromkeys((*ours.notes, *theirs.notes))),
        generator_of=generator_of_seeds(study),
    )
    measures = pd.concat([kept.measures, added.measures])
    return replace(
        added,
        study=study,
        frame=frame,
        evidence=replace(added.evidence, responses=responses, counts=_counts(kept.evidence.counts, added.evidence.counts)),
        measures=measures.sort_values(list(COORDINATES), ignore_index=True),
        pools=_pools(kept.pools, added.pools),
        plan=added.plan or kept.plan,
        largest_change=kept.largest_change,
        steps=kept.steps,
    )


def _built(study: Study) -> dict[str, Record]:
    return {step.fingerprint: step.record for step in study.steps if step.record is not None}


def _other_steps(kept: Study, study: Study, folder: str, store: str) -> str:
    """In what the study of the store has other steps than those of further seeds."""
    (of_folder, of_store) = ({step.fingerprint for step in steps} for steps in (kept.steps, study.steps))
    if absent := [step for step in kept.steps if step.fingerprint not in of_store]:
        return f"{folder} has steps that the study in {store} has no place for ({_numbered(absent)})"
    seeds = {step.coordinates.get("seed") for step in kept.steps} - {None}
    others = [step for step in study.steps if step.fingerprint not in of_folder and step.coordinates.get("seed") in seeds]
    return f"the study in {store} has other steps of the seeds that {folder} has ({_numbered(others)})"


def _numbered(steps: list[StudyStep]) -> str:
    return f"{len(steps):,}, {steps[0].id.name}-{steps[0].fingerprint[:SHORT]} for one" if steps else "one of them twice"


def _check_builds(kept: Mapping[str, Record], there: Mapping[str, Record], folder: str, store: str) -> None:
    """Raise UserError unless what both have is alike, and each artifact was built from the builds that there are."""
    for fingerprint, one in there.items():
        other = kept.get(fingerprint, one)
        if one.content != other.content:
            raise UserError(
                f"{one.id.name}-{fingerprint[:SHORT]} has other content in {store} ({one.build}) than in {folder} "
                f"({other.build}): what several seeds need is built once; keep that store's study in another folder"
            )
    where = {fingerprint: folder for fingerprint in kept} | {fingerprint: store for fingerprint in there.keys() - kept.keys()}
    together = {**there, **kept}
    for fingerprint, record in together.items():
        for name, source in record.inputs.items():
            of_input, content = together.get(source.fingerprint), record.input_contents.get(name)
            if of_input is not None and content is not None and of_input.content != content:
                raise UserError(
                    f"{record.id.name} in {where[fingerprint]} was built from another {source.name} than that in "
                    f"{where[source.fingerprint]} ({of_input.build}); keep that store's study in another folder"
                )


def _check_items(kept: Published, added: Published, folder: str, store: str) -> None:
    ours, theirs = kept.evidence.responses.items, added.evidence.responses.items
    others = [name for name in ours.keys() | theirs.keys() if not _are_alike(ours.get(name), theirs.get(name))]
    measured = [set(side.frame[MEASURED].itertuples(index=False, name=None)) for side in (kept, added)]
    others += [row[0] for row in measured[0] ^ measured[1]]
    if others:
        raise UserError(
            f"{min(others)} has other items, slices or clusters in {store} than in {folder}; accuracies on different test "
            "items cannot be compared: evaluate on the same sources"
        )


def _are_alike(one: ItemSet | None, other: ItemSet | None) -> bool:
    if one is None or other is None:
        return False
    return all(_equal(getattr(one, name), getattr(other, name)) for name in OF_ITEMS)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))


def _frame(kept: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """The rows of both, sorted as `evaluation_frame` has them; missing is what neither has."""
    frame = pd.concat([kept.astype({name: added[name].dtype for name in ("kind", "arm")}), added])
    frame = frame.sort_values(list(KEY), ignore_index=True)
    there = set(kept[list(COORDINATES)].itertuples(index=False, name=None))
    # Of a cell that is kept, what is kept says what it lacks.
    frame.attrs["missing"] = Missing(
        result
        for missing, is_kept in ((kept.attrs["missing"], True), (added.attrs["missing"], False))
        for result in missing
        if (tuple(result[name] for name in COORDINATES) in there) == is_kept
    )
    return frame


def _other_missing(responses: Responses, frame: pd.DataFrame) -> list[str]:
    """What is missing besides cells of the frame: answers."""
    of_frame = set(map(describe_missing, frame.attrs["missing"]))
    return [text for text in responses.missing if text not in of_frame]


def _counts(
    kept: Mapping[str, Mapping[str, LabelCount]], added: Mapping[str, Mapping[str, LabelCount]]
) -> dict[str, dict[str, LabelCount]]:
    """Lexical overlaps of the original data, which is the same, and of the pools of both together, each counted once."""
    counts = {data: dict(count) for data, count in {**added, **kept}.items()}
    pools = [side["synthetic"] for side in (kept, added) if "synthetic" in side]
    return counts | ({"synthetic": sum_counts(pools)} if pools else {})


def _pools(kept: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    # Columns of no rows have no type of their own.
    if kept.empty or added.empty:
        return added if kept.empty else kept
    return pd.concat([kept, added]).sort_values("generator", kind="stable", ignore_index=True)
