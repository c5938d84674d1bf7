"""Labelled pairs from a user's own file, batch by batch: Parquet, CSV, JSONL, or a Hugging Face dataset folder.

    pairs = open_pairs("pairs.csv", ColumnNames(label="gold"))
    for raw in pairs.raw_batches():
        batch = clean_batch(raw, pairs)

Opening looks at names and types only. `raw_batches` is cheap and runs in one process; `clean_batch`, which is not, can run
in others. A batch is at most 32 768 rows, fewer where rows are large, so that the texts of a file are never in memory at
once. A row without a premise, hypothesis or label is left out and counted by reason; what cannot be read is an error that
names the row (counted from 1, without a header) or, in JSONL, the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.audit.columns import ColumnNames
from pipelines.tables.files import TableFile, open_table
from pipelines.tables.readers import RawBatch
from pipelines.tables.values import NO_GOLD_LABEL, is_blank, text_columns


@dataclass(frozen=True)
class PairBatch:
    """Complete pairs: columns of equal length, their row or line numbers, and how many rows were left out, by reason."""

    rows: np.ndarray
    premise: pa.StringArray
    hypothesis: pa.StringArray
    label: pa.StringArray
    parse: pa.StringArray | None
    left_out: Mapping[str, int]


def open_pairs(path: str | Path, names: ColumnNames | None = None) -> TableFile:
    """Find out the format and the columns of a file or folder of labelled pairs.

    A column is the one that `names` has if the file has it, else the first of the usual names that it has.

    Raises :class:`UserError` for what does not exist, is empty, is of another format, has several splits, lacks a column,
    or has a column of a type that is no text (for labels: no text and no number).
    """
    return open_table(path, (names or ColumnNames()).wanted())


def clean_batch(raw: RawBatch, pairs: TableFile) -> PairBatch:
    """A raw batch's complete pairs as text.

    Numbers become labels by their names, or by their digits (1.0 is '1'). Raises :class:`UserError`, naming the row or line,
    for text that is not UTF-8, a line that is no JSON object, or a field of another type.
    """
    columns, rows = text_columns(raw, pairs)
    keep = np.ones(len(rows), bool)
    left_out: dict[str, int] = {}
    for name in ("premise", "hypothesis", "label"):
        reasons = {f"no {name}": is_blank(columns[name])}
        if name == "label":
            marks = pc.is_in(columns[name], pa.array(NO_GOLD_LABEL)).to_numpy(zero_copy_only=False)
            reasons["no gold label"] = marks
        for reason, out in reasons.items():
            if num_out := int((out & keep).sum()):
                left_out[reason] = num_out
            keep &= ~out
    if not keep.all():
        columns = {name: column.filter(pa.array(keep)) for name, column in columns.items()}
        rows = rows[keep]
    return PairBatch(rows, columns["premise"], columns["hypothesis"], columns["label"], columns.get("parse"), left_out)


def packed(raw: RawBatch) -> RawBatch | tuple[bytes, int]:
    """The batch in a form that is cheap to send to another process; :func:`unpacked` undoes it.

    Pickling a slice of a record batch would send all that it is a slice of.
    """
    if isinstance(raw.content, bytes):
        return raw
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, raw.content.schema) as stream:
        stream.write_batch(raw.content)
    return sink.getvalue().to_pybytes(), raw.first


def unpacked(sent: RawBatch | tuple[bytes, int]) -> RawBatch:
    """The batch that :func:`packed` was given."""
    if isinstance(sent, RawBatch):
        return sent
    content, first = sent
    return RawBatch(next(iter(pa.ipc.open_stream(content))), first)


def read_rows(pairs: TableFile, wanted: Iterable[int]) -> dict[int, dict[str, str]]:
    """Single rows by their numbers: premise, hypothesis and label. Reads up to the last of them."""
    left, texts = sorted(set(wanted), reverse=True), {}
    for raw in pairs.raw_batches() if left else ():
        rows: Any = raw.content.split(b"\n") if isinstance(raw.content, bytes) else raw.content
        end = raw.first + (len(rows) if isinstance(rows, list) else rows.num_rows)
        while left and left[-1] < end:
            number = left.pop()
            at = number - raw.first
            content = rows[at] if isinstance(raw.content, bytes) else rows.slice(at, 1)
            batch = clean_batch(RawBatch(content, number), pairs)
            texts[number] = {name: getattr(batch, name)[0].as_py() for name in ("premise", "hypothesis", "label")}
        if not left:
            break
    return texts


# Finding the files.
