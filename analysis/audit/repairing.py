"""A data set repaired by what an audit found in it: which rows stay, with which labels and weights, and what it cost.

    found = audit("pool.parquet", AuditSettings(reference="train.jsonl", tests={"dev": "dev.jsonl"}))
    repaired = repair_of(found, Repair(seed=0))
    write_repaired(found.evidence, repaired, "pool-repaired.parquet")

Leaks and copies are rows with the words of another, and those near to one with their own label. Near rows with another label
stay: they are contrast pairs. Of rows with the same words and different labels none is kept, since nothing says which is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.audit.evidence import Evidence
from analysis.audit.found import Audit
from analysis.audit.rows import check_parquet_path
from analysis.corpus.copies import NO_ROW, Copies, is_among
from analysis.corpus.input import TextFile
from analysis.corpus.labels import meaning_of
from analysis.corpus.measures import PLANTS, predicted_labels
from analysis.wording import percent, shown
from pipelines.errors import UserError
from pipelines.repair.rows import Cost, Repair, Repaired
from pipelines.storage import partial_file
from pipelines.tables.readers import RawBatch

ROW, WEIGHT, ORIGINAL_LABEL = "original_row", "weight", "original_label"
"""Columns of a repaired set: the row's number in the file that was repaired, its weight, and the label that it had."""


def repair_of(audit: Audit, how: Repair) -> Repaired:
    """The rows of an audited file, repaired; doubtful labels are those that its label noise names.

    Each heuristic that the data plants gets the reference's odds ratio; others, of which it is not known that they differ from
    the reference, are left as they are. Raises :class:`UserError` if nothing is left.
    """
    evidence, scan, noise = audit.evidence, audit.evidence.scan, audit.label_noise
    repaired = Repaired.of(scan.label)
    for name, copies in evidence.leaks.items():
        if how.leaks == "drop":
            repaired = repaired.drop(_same_words(copies), f"leaks into the test set {name}")
        if how.near_leaks == "drop":
            repaired = repaired.drop(_near(copies), f"nearly leaks into the test set {name}")
    for source, copies in evidence.copies if how.originals == "drop" else ():
        role = "the generator's training data" if source is evidence.generator_training else "the reference"
        rows = np.union1d(_same_words(copies), _near(copies))
        repaired = repaired.drop(rows, f"copies of {role}")
    if how.noisy != "keep" and noise is not None and noise.noise is not None:
        rows = np.searchsorted(scan.row, noise.rows)
        if how.noisy == "drop":
            repaired = repaired.drop(rows, "doubtful labels")
        else:
            own = {meaning_of(label, evidence.named): code for code, label in reversed(list(enumerate(scan.labels)))}
            suggested = [noise.classes[code] for code in noise.noise.suspects.suggested]
            known = np.array([label in own for label in suggested], bool)
            repaired = repaired.relabel(rows[known], np.array([own[label] for label in suggested if label in own], np.int64))
    within = evidence.within
    if how.copies == "drop":
        if within.other_label_rows is not None and len(within.other_label_rows):
            disputed = is_among(scan.words, np.unique(scan.words[within.other_label_rows]))
            repaired = repaired.drop(np.flatnonzero(disputed), "the same words with different labels")
        repaired = repaired.drop(_same_words(within), "copies of other rows")
    if how.near_copies == "drop":
        repaired = repaired.drop(_near(within), "near copies of other rows")
    targets = _targets(audit)
    if how.heuristics != "keep" and targets:
        holds = scan.holds[:, list(targets)]
        repaired = repaired.reweigh(
            holds,
            [_predicted(audit, index) for index in targets],
            [ratio for ratio in targets.values()],
            how=how.heuristics,
            seed=how.seed,
            reason="heuristics brought to the reference's odds ratios",
        )
    if not repaired.keep.any():
        raise UserError(
            f"{scan.path}: no row is left after the repair ({'; '.join(map(_taken, repaired.costs))}); keep some of these"
        )
    return repaired


def _same_words(copies: Copies) -> np.ndarray:
    """The rows with the words of another: int64 [num]."""
    return np.flatnonzero((copies.exact != NO_ROW) | (copies.same_words != NO_ROW))


def _near(copies: Copies) -> np.ndarray:
    """The rows that nearly repeat another with their label: int64 [num]."""
    found = copies.near != NO_ROW
    return np.flatnonzero(found if copies.near_other_label is None else found & ~copies.near_other_label)


def _targets(audit: Audit) -> dict[int, float]:
    """The reference's odds ratio of each heuristic, by its place, that the data plants and that all rows were asked."""
    return {
        index: finding.reference.value
        for index, finding in enumerate(audit.heuristics)
        if finding.verdict == PLANTS and finding.reference is not None and not finding.num_unasked
    }


def _predicted(audit: Audit, index: int) -> int:
    scan, named = audit.evidence.scan, audit.evidence.named
    return scan.labels.index(predicted_labels(scan.heuristics[index], scan.labels, named)[0])


def write_repaired(evidence: Evidence, repaired: Repaired, path: str | os.PathLike[str]) -> None:
    """Write the rows that are kept, in their order, with all columns of the file, as Parquet; it appears whole or not at all.

    `original_row` is added, and `weight` or `original_label` where weights or labels are new. Of JSON, columns that are no text
    are written as JSON.
    """
    check_parquet_path("--repair", path, "the repaired set is")
    with partial_file(Path(path)) as partial:
        writer: pq.ParquetWriter | None = None
        for batch in _kept_batches(evidence, repaired):
            writer = writer or pq.ParquetWriter(partial, batch.schema)
            writer.write_table(batch.cast(writer.schema))
        assert writer is not None, "a repaired set has rows"
        writer.close()
        partial.replace(path)


def _kept_batches(evidence: Evidence, repaired: Repaired) -> Iterator[pa.Table]:
    scan = evidence.scan
    source = _with_all_columns(scan.source)
    is_weighted = bool((repaired.weights[repaired.keep] != 1).any())
    is_relabelled = repaired.num_relabelled > 0
    for raw in source.raw_batches():
        table, rows = _whole(raw, source)
        places = np.minimum(np.searchsorted(scan.row, rows), scan.num_rows - 1)
        kept = (scan.row[places] == rows) & repaired.keep[places]
        table, places, rows = table.filter(pa.array(kept)), places[kept], rows[kept]
        if not table.num_rows:
            continue
        if is_relabelled:
            table = _relabelled(table, evidence, repaired, places)
        added: dict[str, Any] = {ROW: pa.array(rows, pa.int64())}
        if is_weighted:
            added[WEIGHT] = pa.array(repaired.weights[places])
        for name, column in added.items():
            if name not in table.column_names:
                table = table.append_column(name, column)
        yield table


def _with_all_columns(source: TextFile) -> TextFile:
    table = source.table
    columns = {**table.columns, **{f"column {name}": name for name in table.present if name not in table.columns.values()}}
    return replace(source, table=replace(table, columns=columns))


def _whole(raw: RawBatch, source: TextFile) -> tuple[pa.Table, np.ndarray]:
    """A raw batch with all its columns, and its rows' numbers."""
    names = [name for name in source.table.present if name in source.table.columns.values()]
    if not isinstance(raw.content, bytes):
        table = pa.Table.from_batches([raw.content]).select(names)
        return table, raw.numbers(table.num_rows)
    rows, numbers = [], []
    for number, line in enumerate(raw.content.split(b"\n"), start=raw.first):
        if line.strip():
            rows.append(json.loads(line.decode("utf-8-sig")))
            numbers.append(number)
    columns = [pa.array([_as_text(row.get(name)) for row in rows], pa.string()) for name in names]
    return pa.table(columns, names), np.array(numbers, np.int64)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _relabelled(table: pa.Table, evidence: Evidence, repaired: Repaired, places: np.ndarray) -> pa.Table:
    scan = evidence.scan
    name = scan.source.columns["label"]
    at = table.column_names.index(name)
    changed = repaired.labels[places] != repaired.original[places]
    old = table.column(name)
    numbers = {label: number for number, label in scan.source.table.label_names.items()}
    new = [numbers.get(scan.labels[code], scan.labels[code]) for code in repaired.labels[places]]
    kind = old.type.value_type if pa.types.is_dictionary(old.type) else old.type
    values = pc.if_else(pa.array(changed), pa.array(new, pa.string()).cast(kind), old.cast(kind))
    table = table.set_column(at, pa.field(name, kind, metadata=table.schema.field(at).metadata), values)
    return table if ORIGINAL_LABEL in table.column_names else table.append_column(ORIGINAL_LABEL, old.cast(kind))


def cost_lines(audit: Audit, repaired: Repaired) -> list[str]:
    """What a repair took, and what it reached, in lines for people."""
    total = len(repaired.keep)
    lines = [f"repaired: {repaired.num_kept:,} of {total:,} rows are left ({percent(repaired.num_kept / total)})"]
    lines += [f"  {_taken(cost)}{_by_label(audit, cost)}" for cost in repaired.costs if cost.num_rows]
    if repaired.num_relabelled:
        lines.append(f"  relabelled: {repaired.num_relabelled:,}")
    targets = _targets(audit)
    if repaired.reweighted is not None:
        if (repaired.weights[repaired.keep] != 1).any():
            lines.append(f"  the weighted rows say as much as {round(repaired.effective_size):,} of equal weight")
        holds = audit.evidence.scan.holds[:, list(targets)]
        reached = repaired.odds_ratios(holds, [_predicted(audit, index) for index in targets])
        for place, (index, wanted) in enumerate(targets.items()):
            finding = audit.heuristics[index]
            assert finding.odds_ratio is not None
            why = repaired.reweighted.unreached.get(place)
            name = finding.name.replace("_", " ")
            lines.append(
                f"  {name}: odds ratio {finding.odds_ratio.value:.3g} is {reached[place]:.3g} now, and "
                f"the reference's {wanted:.3g}" + (f" ({why})" if why else "")
            )
    return lines


def _taken(cost: Cost) -> str:
    return f"{cost.reason}: {cost.num_rows:,} dropped"


def _by_label(audit: Audit, cost: Cost) -> str:
    labels: Mapping[int, str] = dict(enumerate(audit.evidence.scan.labels))
    return f" ({', '.join(f'{num:,} {shown(labels[code], 30)}' for code, num in cost.by_label.items())})"
