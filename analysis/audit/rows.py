"""Every finding of an audit by row, as a Parquet file: which row, what of it, and which row it goes with.

    row, kind, source, source_row, alike, label, source_label, note

`row` and `source_row` are the rows' (or, in JSONL, the lines') numbers in their files, counted from 1. `source` is the path of
the other file, empty for the audited one. A row has as many lines as there are findings about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.audit.evidence import Evidence, RowFindings
from analysis.corpus.copies import NO_ROW, Copies, similarity
from analysis.corpus.measures import GOES_WITH, PLANTS, HeuristicFinding
from analysis.corpus.scan import Scan
from pipelines.errors import UserError
from pipelines.storage import partial_file

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("alike", pa.float64()),
        ("label", pa.string()),
        ("source_label", pa.string()),
        ("note", pa.string()),
    ]
)
BATCH_ROWS = 1 << 16
CONTRADICTION, CONTRAST_PAIR, HEURISTIC = "contradiction", "contrast_pair", "heuristic"
"""Kinds beside those of copies (`exact_duplicate`, `near_leak`, …)."""


def write_rows(path: str | os.PathLike[str], evidence: Evidence, heuristics: Sequence[HeuristicFinding]) -> int:
    """Write every finding by row, batch by batch, and return their number. The file appears whole or not at all.

    Raises :class:`UserError` for a path that is no Parquet file's.
    """
    check_parquet_path("--rows", path, "findings by row are")
    num_rows = 0
    with partial_file(Path(path)) as partial:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for batch in row_batches(evidence, heuristics):
                writer.write_batch(batch)
                num_rows += batch.num_rows
        partial.replace(path)
    return num_rows


def check_parquet_path(option: str, path: str | os.PathLike[str], what: str) -> None:
    """Raise :class:`UserError` for an option's path that is no Parquet file's, or a folder's; `what` is written there."""
    if Path(path).suffix != ".parquet" or Path(path).is_dir():
        raise UserError(f"{option} {path}: {what} written to a Parquet file; give a name that ends in .parquet")


def row_batches(evidence: Evidence, heuristics: Sequence[HeuristicFinding]) -> Iterator[pa.RecordBatch]:
    """The findings by row in batches of at most BATCH_ROWS, kind by kind; at least one, so that its columns are known."""
    yield pa.RecordBatch.from_pylist([], SCHEMA)
    for found in row_findings(evidence, heuristics):
        for start in range(0, len(found.rows), BATCH_ROWS):
            yield _batch(evidence.scan, found, slice(start, start + BATCH_ROWS))


def row_findings(evidence: Evidence, heuristics: Sequence[HeuristicFinding]) -> Iterator[RowFindings]:
    """The findings by row, a value for each kind and file."""
    scan = evidence.scan
    yield from _copies(scan, scan, evidence.within, "duplicate", "")
    for source, copies in evidence.copies:
        yield from _copies(scan, source, copies, "copy", "")
    for name, leaks in evidence.leaks.items():
        yield from _copies(scan, evidence.tests[name], leaks, "leak", name)
    for index, heuristic in enumerate(heuristics):
        if heuristic.verdict in (PLANTS, GOES_WITH) or heuristic.is_more_often:
            yield RowFindings(HEURISTIC, np.flatnonzero(scan.holds[:, index]), notes=heuristic.name)
    yield from evidence.by_row


def _copies(scan: Scan, source: Scan, copies: Copies, what: str, note: str) -> Iterator[RowFindings]:
    for kind in ("exact", "same_words", "near"):
        originals = getattr(copies, kind)
        rows = np.flatnonzero(originals != NO_ROW)
        alike = None if kind == "near" else np.ones(len(rows))
        yield RowFindings(f"{kind}_{what}", rows, source, originals[rows], alike, note)
    for kind, marks, originals in (
        (CONTRADICTION, copies.other_label, copies.any),
        (CONTRAST_PAIR, copies.near_other_label, copies.near),
    ):
        if marks is not None:
            rows = np.flatnonzero(marks)
            alike = None if kind == CONTRAST_PAIR else np.ones(len(rows))
            yield RowFindings(kind, rows, source, originals[rows], alike, note)


def _batch(scan: Scan, found: RowFindings, part: slice) -> pa.RecordBatch:
    rows = found.rows[part]
    empty = pa.nulls(len(rows))
    source_row: pa.Array = empty.cast(pa.int64())
    source_label: pa.Array = empty.cast(pa.string())
    alike: pa.Array = empty.cast(pa.float64()) if found.alike is None else pa.array(found.alike[part], pa.float64())
    source = "" if found.source is None or found.source is scan else found.source.path
    if found.source is not None and found.originals is not None:
        originals = found.originals[part]
        source_row = pa.array(found.source.row[originals], pa.int64())
        source_label = _labels(found.source, originals)
        if found.alike is None:
            alike = pa.array(similarity(scan, rows, found.source, originals), pa.float64())
    notes = [found.notes] * len(rows) if isinstance(found.notes, str) else list(found.notes[part])
    columns = [
        pa.array(scan.row[rows], pa.int64()),
        pa.array([found.kind] * len(rows), pa.string()),
        pa.array([source] * len(rows), pa.string()),
        *(source_row, alike, _labels(scan, rows), source_label),
        pa.array(notes, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _labels(scan: Scan, rows: np.ndarray) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(scan.label[rows]), pa.array(scan.labels, pa.string())).cast(pa.string())
