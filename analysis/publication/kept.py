"""A study's results as the repository keeps them: a few Parquet files that its verdicts, tables and figures are made from.

    keep(Store("together"), "study_qwen", Path("docs/studies/data/study_qwen"), plan=Path("docs/studies/qwen-plan.md"))
    published = load(Path("docs/studies/data/study_qwen"))
    judge_evidence(published.evidence)

| file | what |
|---|---|
| `study.json.gz` | the manifest, as the store has it |
| `kept.json` | what else is needed: claims' places, hashes of plan and files, lexical overlaps, how scores are rounded |
| `records.parquet` | the artifacts' records: configs, metrics, durations, versions |
| `cells.parquet` | right items by cell, set and slice (`evaluation_frame`) |
| `measures.parquet` | margin, AUC and pull of each cell where going by the heuristic is wrong, from scores as they were |
| `pools.parquet` | what is known of each generator's pool (`pools_frame`) |
| `items.parquet` | the test items without their texts: label, slices, clusters |
| `answers.parquet` | each task model's predicted class for each item, and its score, rounded, where a measure reads it |

Beside the folder, `<study>_pilot.json` is what a pilot said of the number of seeds.

With `onto=True` further seeds are added to such files, from a store of their own.

Verdicts are the project's own, from these files as from the store. What rounding changes is measured when they are written.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.publication.joined import further, joined
from analysis.publication.pilot import SUFFIX
from analysis.publication.pools import pools_frame
from analysis.publication.published import Published, sealed_text
from analysis.report.generality import sets_needed
from analysis.study.artifacts import LabelCount
from analysis.study.described import described_sets, task_of
from analysis.study.frame import IncompleteSweepError, Missing, evaluation_frame
from analysis.study.item_sets import ItemSet
from analysis.study.items import Cell, Responses
from analysis.verdicts.evidence import Evidence, load_evidence
from analysis.verdicts.judgement import Judgement
from analysis.verdicts.verdicts import judge_evidence
from analysis.wording import HOLDS, SLICE
from pipelines.errors import UserError
from pipelines.identity import sha256_of
from sweep.graph.records import Record, Store, Study, read_plan
from sweep.graph.sealed import unseal
from sweep.study.claims import Measure, as_json, from_json

STEPS = (4, 16, 64)
"""Scores, in log-odds, are kept as multiples of 1 / steps, of the first of these that changes no verdict and little else."""
LITTLE = 0.02
"""By how much rounding may change an estimate, or an end of its interval, before finer scores are kept."""
LARGEST = np.iinfo(np.int16).max
KEPT = "kept.json"
MOST_BYTES = 5_000_000
"""Of all studies that are kept, together."""
MEASURES = (Measure.MARGIN, Measure.AUC, Measure.PULL)
PLACE = re.compile(r"(?<![\w/:.])/(?:[\w.@+-]+/)+")
"""An absolute path but for its last part; no URL."""
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, zlib.error, pa.ArrowException)
"""What reading files that are gone, damaged or of other states of a study ends in."""
PARQUET: dict[str, Any] = {"compression": "zstd", "compression_level": 19}


def keep(
    store: Store,
    study_name: str,
    folder: Path,
    *,
    plan: Path | None = None,
    estimate: Mapping[str, Any] | None = None,
    partial: bool = False,
    onto: bool = False,
) -> str:
    """Write what is published of a study to `folder`, anew; a sentence on its size and on what rounding changes.

    `estimate` is what it was estimated to cost (`blindsweep plan --json`), where its store has none: pieces' bundles do not.
    With `partial` what is missing of it is named, and a seed that lacks a cell is left out of what needs it. That a study was
    published before with other seeds stays with it: who built the later ones may have seen that.
    With `onto` what `folder` has already stays, and what the store has of further seeds is added: the store of the first seeds
    may be gone. Missing is then what neither has.

    Raises IncompleteSweepError for a study that is not whole, and UserError for one with several arms, for scores whose
    rounding would change a verdict, for more than MOST_BYTES of all studies beside each other, for seeds in `folder` that would
    go, and for a store whose results are no further seeds of what `folder` has (`further`, `joined`).
    """
    study = _without_its_places(Study.load(store, study_name))
    if study.arms:
        raise UserError(f"{study_name} has the arms {', '.join(study.arms)}, and a study of one is published; name one of them")
    if onto:
        published = _onto(folder, store, study, plan, estimate, partial=partial)
    else:
        published = _of_store(store, study, plan, estimate, partial=partial)
    seeds = list(published.seeds_there)
    _restore(folder)
    earlier = _earlier(folder, seeds, store.uri)
    fresh = folder.with_name(f".{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        values = {**_write(fresh, published), "seeds": seeds, "earlier": earlier}
        values |= _write_rounded(fresh, published, values)
        num_bytes = sum(path.stat().st_size for path in fresh.iterdir())
        others = [path for path in folder.parent.rglob("*") if path.is_file() and folder not in path.parents]
        in_all = num_bytes + sum(path.stat().st_size for path in others if fresh not in path.parents)
        if in_all > MOST_BYTES:
            raise UserError(
                f"{folder.parent} would have {in_all:,} bytes, more than {MOST_BYTES:,}: keep fewer sets or studies"
            )
        # Never without a whole one: the store of the first seeds may be gone.
        if folder.exists():
            folder.rename(_before(folder))
        fresh.rename(folder)
        shutil.rmtree(_before(folder), ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    steps, changed = values["steps"], values["largest_change"]
    rounding = f"rounding scores to 1/{steps:g} changes no verdict, and no estimate or interval by more than {changed:.2g}"
    return f"{folder}: {num_bytes:,} bytes; {rounding}"


def is_kept(folder: Path) -> bool:
    """Whether `folder` has a study, or had one that a `keep` which goes on, or was cut off, has moved aside."""
    return _place(folder).exists()


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-before")


def _place(folder: Path) -> Path:
    """Where the files of `folder` lie: in it, or aside."""
    return folder if folder.exists() else _before(folder)


def _restore(folder: Path) -> None:
    """Bring back what a `keep` that was cut off had moved aside, and remove what one had not removed any more."""
    if folder.exists():
        shutil.rmtree(_before(folder), ignore_errors=True)
    elif _before(folder).exists():
        _before(folder).rename(folder)


def load(folder: Path) -> Published:
    """A study that `keep` has written.

    Raises UserError for a folder that has none, not all of one, or a file with another sha256 than `kept.json` has of it.
    """
    if not is_kept(folder):
        raise UserError(f"{folder} holds no published study; write one with `python -m analysis.publication keep`")
    pilot = folder.with_name(f"{folder.name}{SUFFIX}.json")
    with _whole(folder):
        return replace(_load(_place(folder)), pilot=_unsealed(pilot) if pilot.is_file() else None)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """What reading files of `folder` ends in is one error with the way out."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(
            f"{folder} holds no whole published study ({error}); restore its files as they were (git), or keep the study there "
            "anew from its store, once the folder is removed"
        ) from error


def read_kept(folder: Path) -> dict[str, Any]:
    """The values of a folder's `kept.json`. Raises ValueError where they, or a file beside it, are not as they were written.

    What was kept before there were digests has none, and is taken as it is.
    """
    kept = _unsealed(folder / KEPT)
    for name, sha256 in kept.pop("files", {}).items():
        if (found := sha256_of(folder / name)) != sha256:
            raise ValueError(f"{name} has the sha256 {found}, and {KEPT} has {sha256} of it")
    return kept


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        return unseal(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def write_kept(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `values` to `folder`'s `kept.json`, with the sha256 of each file that stands beside it."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != KEPT}
    (folder / KEPT).write_text(sealed_text({**values, "files": files}))


def _load(folder: Path) -> Published:
    kept = read_kept(folder)
    study = Study.from_json(gzip.decompress((folder / "study.json.gz").read_bytes()), str(folder / "study.json.gz"))
    records = pq.read_table(folder / "records.parquet").to_pylist()
    read = {row["fingerprint"]: Record.from_json(row["record"].encode(), row["fingerprint"]) for row in records}
    study = replace(study, steps=tuple(replace(step, record=read.get(step.fingerprint)) for step in study.steps))
    frame = pd.read_parquet(folder / "cells.parquet")
    frame.insert(frame.columns.get_loc("num_correct"), "accuracy", frame["num_correct"] / frame["num_examples"])
    frame.attrs["missing"] = Missing(kept["missing_cells"])
    items = _items(folder, study, kept)
    places = (kept["general_set"], kept["blindspot_set"], kept["blindspot_slice"])
    predicted, scores = _answers(folder, items, _scored(items, places, kept["label"]), kept["steps"])
    responses = Responses(
        items,
        predicted,
        missing=tuple(kept["missing"]),
        notes=tuple(kept["notes"]),
        scores=scores,
        label=kept["label"],
        generator_of={int(seed): number for seed, number in kept["generator_of"].items()},
    )
    evidence = Evidence(
        responses,
        *places,
        tuple(kept["starting_sizes"]),
        tuple(kept["sizes"]),
        from_json(kept["claims"]),
        {data: {label: LabelCount(**count) for label, count in of.items()} for data, of in kept["counts"].items()},
    )
    return Published(
        study,
        frame,
        evidence,
        pd.read_parquet(folder / "measures.parquet"),
        pd.read_parquet(folder / "pools.parquet"),
        kept["plan"],
        kept["estimate"],
        kept.get("largest_change", math.nan),
        kept["steps"],
        tuple(map(tuple, kept.get("earlier", ()))),
    )


def _of_store(
    store: Store,
    study: Study,
    plan: Path | None,
    estimate: Mapping[str, Any] | None,
    *,
    partial: bool,
    kept: Published | None = None,
) -> Published:
    """What a store has of a study; of one that is `kept` in part, answers to the same test sets."""
    declared = _declared(study, plan)
    frame = evaluation_frame(store, study, partial=partial or kept is not None)
    also = sets_needed(study, frame) if kept is None else tuple(kept.evidence.responses.items)
    evidence = load_evidence(store, study, partial=partial, frame=frame, also=also)
    estimate = estimate or read_plan(store, study.experiment)
    return Published(study, frame, evidence, _measures(evidence), pools_frame(store, study), declared, estimate, 0.0, math.inf)


def _onto(
    folder: Path, store: Store, study: Study, plan: Path | None, estimate: Mapping[str, Any] | None, *, partial: bool
) -> Published:
    """What is kept in `folder` with what a store has of further seeds."""
    if not is_kept(folder):
        raise UserError(f"{folder} holds no published study that {store.uri} could be added to; keep it without --onto")
    kept, sides = load(folder), (str(folder), store.uri)
    study = further(kept, study, *sides)
    added = _of_store(store, study, plan, estimate or kept.estimate, partial=partial, kept=kept)
    published = joined(kept, added, *sides)
    if (missing := published.frame.attrs["missing"]) and not partial:
        raise IncompleteSweepError(study.experiment, missing)
    return published


def _earlier(folder: Path, seeds: Sequence[int], store: str) -> list[list[int]]:
    """The seeds of each state of the study that was in `folder` before and had others than `seeds`.

    Raises UserError where `folder` has seeds that would go, since `store` has no result of them.
    """
    if not (folder / KEPT).is_file():
        return []
    with _whole(folder):
        before = read_kept(folder)
        earlier = [*before["earlier"], before["seeds"]]
    if lost := [seed for seed in before["seeds"] if seed not in seeds]:
        raise UserError(
            f"{folder} has results of the seeds {', '.join(map(str, lost))}, and {store} has none of these: add to them with "
            "--onto, or remove the folder if they are to go"
        )
    return [state for state in earlier if state != list(seeds)]


def _declared(study: Study, plan: Path | None) -> dict[str, str]:
    """The plan's path, and its hash as the study's pieces carry it. Raises UserError where these are of another plan."""
    carried = study.parameters.get("plan")
    if plan is None or not carried:
        return {}
    if carried != (found := sha256_of(plan)):
        raise UserError(
            f"{study.experiment} was built under a plan with sha256 {str(carried)[:12]}…, and {plan} has {found[:12]}…: "
            "restore the file as it was, and say on the page what departed from it"
        )
    return {"path": plan.name, "sha256": found}


def _without_places(value: Any) -> Any:
    """`value` with texts that name a file by its place on some machine naming it alone."""
    if isinstance(value, str):
        return PLACE.sub("…/", value)
    if isinstance(value, Mapping):
        return {key: _without_places(of_key) for key, of_key in value.items()}
    return [_without_places(one) for one in value] if isinstance(value, list | tuple) else value


def _without_its_places(study: Study) -> Study:
    return replace(study, **_without_places({"parameters": study.parameters, "failures": study.failures}))


def _write(folder: Path, published: Published) -> dict[str, Any]:
    """Write all but the answers; what `kept.json` has of the study."""
    study, evidence = published.study, published.evidence
    responses = evidence.responses
    (folder / "study.json.gz").write_bytes(gzip.compress(study.to_json().encode(), mtime=0))
    kept = {
        **{name: getattr(evidence, name) for name in ("general_set", "blindspot_set", "blindspot_slice")},
        "starting_sizes": evidence.starting_sizes,
        "sizes": evidence.sizes,
        "claims": as_json(evidence.claims),
        "counts": {data: {label: asdict(count) for label, count in of.items()} for data, of in evidence.counts.items()},
        "label": responses.label,
        "generator_of": responses.generator_of,
        "notes": responses.notes,
        "missing": responses.missing,
        "missing_cells": published.frame.attrs["missing"],
        "sets": {
            name: {"clustered_by": items.clustered_by, "predicts": dict(items.predicts)}
            for name, items in responses.items.items()
        },
        "plan": published.plan,
        "estimate": published.estimate,
    }
    records = [(step.fingerprint, step.record.to_json()) for step in study.steps if step.record is not None]
    table = pa.table({"fingerprint": [mark for mark, _ in records], "record": [text for _, text in records]})
    pq.write_table(table, folder / "records.parquet", **PARQUET)
    published.frame.drop(columns="accuracy").to_parquet(folder / "cells.parquet", index=False, **PARQUET)
    published.measures.to_parquet(folder / "measures.parquet", index=False, **PARQUET)
    published.pools.to_parquet(folder / "pools.parquet", index=False, **PARQUET)
    pq.write_table(pa.concat_tables(_item_tables(responses), promote_options="default"), folder / "items.parquet", **PARQUET)
    return dict(_without_places(kept))


def _write_rounded(folder: Path, published: Published, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write the answers, with scores as coarse as they may be; what `kept.json` has of that, beside its other `values`.

    Scores that were rounded before stay as they are: what that changed is added to what is changed now.
    """
    judgements = judge_evidence(published.evidence).judgements
    finer = tuple(steps for steps in STEPS if steps > published.steps and steps % published.steps == 0)
    choices = STEPS if math.isinf(published.steps) else (published.steps, *finer)
    for steps in choices:
        rows = list(_answer_rows(published.evidence, steps))
        answers = pa.Table.from_pylist(rows)
        # Each value is a whole column of numbers: a dictionary of them would only be a copy.
        pq.write_table(answers, folder / "answers.parquet", use_dictionary=["set", "kind"], row_group_size=len(rows), **PARQUET)
        rounded: dict[str, Any] = {"steps": steps}
        write_kept(folder, {**values, **rounded})
        try:
            change = _change(judgements, load(folder).evidence, steps)
            rounded["largest_change"] = published.largest_change + change
        except UserError:
            if steps == choices[-1]:
                raise
            continue
        if rounded["largest_change"] <= LITTLE:
            break
    write_kept(folder, {**values, **rounded})
    return rounded


def _measures(evidence: Evidence) -> pd.DataFrame:
    """Margin, AUC and pull of each cell, mean and item standard error, on the blindspot's adversarial slice."""
    rows = []
    responses = evidence.responses
    for start, kind, size, seed in sorted(responses.predicted[evidence.blindspot_set]):
        row: dict[str, Any] = {"starting_size": start, "kind": kind, "size": size, "seed": seed}
        for measure in MEASURES:
            try:
                found = responses.measured(
                    measure, evidence.blindspot_set, evidence.blindspot_slice, [(start, kind, size)], evidence.general_set
                )
                row[str(measure)] = float(dict(zip(found.seeds, found.values, strict=True))[seed])
            except UserError:
                row[str(measure)] = math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _item_tables(responses: Responses) -> Iterator[pa.Table]:
    for name, items in responses.items.items():
        num = len(items.ids)
        yield pa.table(
            {
                "set": pa.repeat(name, num),
                **{column: getattr(items, f"{column}s") for column in ("label", "heuristic", "subcase")},
                "cluster": items.clusters.astype(np.int32),
                "stratum": items.strata.astype(np.int32),
                **{f"{HOLDS}{heuristic}": where.astype(bool) for heuristic, where in items.holds.items()},
                **{f"{SLICE}{column}": values for column, values in items.columns.items()},
            }
        )


def _items(folder: Path, study: Study, kept: Mapping[str, Any]) -> dict[str, ItemSet]:
    table = pd.read_parquet(folder / "items.parquet")
    task, described = task_of(study), described_sets(study)
    found = {}
    for name, of_set in kept["sets"].items():
        rows = table[table["set"] == name]
        there = [column for column in rows.columns if rows[column].notna().all()]
        texts = {column: rows[column].to_numpy(dtype=str) for column in ("label", "heuristic", "subcase")}
        found[name] = ItemSet(
            name,
            np.arange(len(rows)).astype(str),
            texts["label"],
            texts["heuristic"],
            texts["subcase"],
            rows["cluster"].to_numpy(dtype=np.int64),
            rows["stratum"].to_numpy(dtype=np.int64),
            of_set["clustered_by"],
            {column.removeprefix(HOLDS): rows[column].to_numpy(dtype=bool) for column in there if column.startswith(HOLDS)},
            of_set["predicts"],
            task,
            described.get(name),
            {column.removeprefix(SLICE): rows[column].to_numpy(dtype=str) for column in there if column.startswith(SLICE)},
        )
    return found


def _answer_rows(evidence: Evidence, steps: float) -> Iterator[dict[str, Any]]:
    """A row for each set and cell, of a seed's cells one after another; scores less those of the row of the set before."""
    responses = evidence.responses
    places = (evidence.general_set, evidence.blindspot_set, evidence.blindspot_slice)
    scored = _scored(responses.items, places, responses.label)
    for name, of_set in responses.predicted.items():
        before = np.int16(0)
        for cell in sorted(of_set, key=lambda cell: (cell[-1], cell)):
            row = {"set": name, **dict(zip(("starting_size", "kind", "size", "seed"), cell, strict=True))}
            row["classes"] = of_set[cell].astype(np.int8).tobytes()
            row["scores"] = b""
            if name in scored and cell in responses.scores.get(name, {}):
                rounded = np.rint(responses.scores[name][cell][scored[name]].astype(float) * steps)
                numbers = np.clip(rounded, -LARGEST, LARGEST).astype(np.int16)
                # Cells of a seed are alike. The difference may run over, and back where it is added.
                row["scores"] = _planes(numbers - before)
                before = numbers
            yield row


def _scored(items: Mapping[str, ItemSet], places: tuple[str, str, str], label: str | None) -> dict[str, np.ndarray]:
    """The items of each set that margin, AUC or pull may read, bool [num_items]; none of sets that are not here."""
    general_set, blindspot_set, blindspot_slice = places
    everything = {name: np.ones(len(items[name].ids), dtype=bool) for name in (general_set, blindspot_set)}
    blindspot, general = items[blindspot_set], items[general_set]
    # Both halves of the heuristic's own items, and the general items that a pull sets its adversarial half against.
    head = blindspot_slice.rpartition("/")[0]
    if label is None or not head or blindspot.described is not None or general_set == blindspot_set:
        return everything
    try:
        own, is_label = blindspot.chosen(head), blindspot.is_of(label)[blindspot.chosen(blindspot_slice)]
        return {blindspot_set: own, general_set: general.is_of(label) == is_label[0]} if len(set(is_label)) == 1 else everything
    except UserError:
        return everything


def _planes(numbers: np.ndarray) -> bytes:
    """16-bit numbers, counted as 0, −1, 1, −2 and so on, as all low bytes and then all high ones, which compress best."""
    unsigned = (numbers << 1) ^ (numbers >> 15)
    return unsigned.astype("<i2").view(np.uint8).reshape(-1, 2).T.tobytes()


def _numbers(planes: bytes) -> np.ndarray:
    unsigned = np.ascontiguousarray(np.frombuffer(planes, dtype=np.uint8).reshape(2, -1).T).view("<u2").ravel()
    return ((unsigned >> 1) ^ -(unsigned & 1)).astype(np.int16)


def _answers(
    folder: Path, items: Mapping[str, ItemSet], scored: Mapping[str, np.ndarray], steps: float
) -> tuple[dict[str, dict[Cell, np.ndarray]], dict[str, dict[Cell, np.ndarray]]]:
    predicted: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in items}
    scores: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in items}
    before: dict[str, np.ndarray] = {}
    for row in pq.read_table(folder / "answers.parquet").to_pylist():
        name, cell = row["set"], (row["starting_size"], row["kind"], row["size"], row["seed"])
        predicted[name][cell] = np.frombuffer(row["classes"], dtype=np.int8)
        if row["scores"]:
            of_items = np.full(len(items[name].ids), np.nan, dtype=np.float32)
            before[name] = _numbers(row["scores"]) + before.get(name, np.int16(0))
            of_items[scored[name]] = before[name] / steps
            scores[name][cell] = of_items
    return predicted, scores


def _change(from_store: Sequence[Judgement], from_files: Evidence, steps: float) -> float:
    """The largest difference of a claim's estimate, or an end of its interval. Raises UserError where a verdict is another."""
    largest = 0.0
    for one, other in zip(from_store, judge_evidence(from_files).judgements, strict=True):
        if (one.name, one.verdict) != (other.name, other.verdict):
            raise UserError(
                f"with scores rounded to 1/{steps:g}, {one.name} is {other.verdict} and not {one.verdict}; keep finer scores"
            )
        for ours, theirs in ((one.estimate, other.estimate), (one.low, other.low), (one.high, other.high)):
            if not math.isnan(ours):
                largest = max(largest, abs(ours - theirs))
    return largest
