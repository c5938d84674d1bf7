"""Labelled texts from a user's own file or table, batch by batch.

    texts = open_texts("pairs.csv", ColumnNames({"label": "gold"}))
    for raw in texts.raw_batches():
        batch = clean_batch(raw, texts)

Opening looks at names and types only. `raw_batches` is cheap and runs in one process; `clean_batch`, which is not, can run
in others. A batch is at most 32,768 rows, fewer where rows are large, so that the texts of a file are never in memory at
once. A row without a text or a label is left out and counted by reason; what cannot be read is an error that names the row
(counted from 1, without a header) or, in JSONL, the line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.corpus.columns import FLAGS, PAIR, ColumnNames
from pipelines.errors import UserError
from pipelines.tables.columns import Wanted, check_types, class_names, find_columns
from pipelines.tables.files import TableFile, column_names, find_files, open_table
from pipelines.tables.labels import read_labels
from pipelines.tables.readers import MalformedRow, RawBatch
from pipelines.tables.values import is_blank, text_columns

BATCH_ROWS = 32_768
UNKNOWN_LABEL = "another label than the task's"
"""The reason of rows that are left out for a label that is none of those allowed."""

Source: TypeAlias = str | Path | pa.Table | pd.DataFrame
"""What can be audited: an address of a table, or a table in memory."""


@dataclass(frozen=True)
class TextFile:
    """An opened table of labelled texts: which columns are its fields, and which labels it may have.

    `labels` says what labels stand for, those that stand for themselves though they are usual marks for none (``-1``) among
    them. Where some are `allowed`, rows with another are left out (:func:`pipelines.tables.labels.read_labels`).
    """

    table: TableFile
    fields: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    allowed: tuple[str, ...] | None = None

    @property
    def path(self) -> str:
        return self.table.path

    @property
    def columns(self) -> Mapping[str, str]:
        return self.table.columns

    def raw_batches(self, malformed: list[MalformedRow] | None = None) -> Iterator[RawBatch]:
        """The rows in order; those of a CSV file that do not fit its header are left out, and put into `malformed`.

        Raises :class:`UserError` where they cannot be read.
        """
        return self.table.raw_batches([] if malformed is None else malformed)

    @property
    def is_pair(self) -> bool:
        """Whether an example is a premise and a hypothesis, which HANS's heuristics are about."""
        return self.fields == PAIR

    def marks_may_be_labels(self, labels: Sequence[str]) -> bool:
        """Whether -1, the mark of a row without a label, may be a label of its own: the others are numbers."""
        return "-1" not in self.labels and not self.table.label_names and all(map(str.isdigit, labels))


@dataclass(frozen=True)
class TableInMemory(TableFile):
    """A table that a program has at hand; its rows are counted from 1."""

    content: pa.Table = field(default_factory=lambda: pa.table({}))

    @property
    def num_bytes(self) -> int:
        return int(self.content.nbytes)

    def raw_batches(self, malformed: list[MalformedRow] | None = None) -> Iterator[RawBatch]:
        first = 1
        for batch in self.content.select(list(dict.fromkeys(self.columns.values()))).to_batches(BATCH_ROWS):
            yield RawBatch(batch, first)
            first += batch.num_rows


@dataclass(frozen=True)
class TextBatch:
    """Complete examples: columns of equal length, their row or line numbers, and how many rows were left out, by reason."""

    rows: np.ndarray
    texts: Mapping[str, pa.StringArray]
    """By field, in their order."""
    label: pa.StringArray
    parse: pa.StringArray | None
    """Null where a row has none; None where the file has no such column."""
    left_out: Mapping[str, int]
    unknown_labels: Mapping[str, int] = field(default_factory=dict)
    """How many rows were left out for which label that is none of those allowed."""


def open_texts(source: Source, names: ColumnNames | None = None, fields: tuple[str, ...] = ()) -> TextFile:
    """Find out the format and the columns of a file, a folder or a table of labelled texts.

    With `fields`, these are an example's texts, as they are in the file that this one is compared with.

    Raises :class:`UserError` for what is no source, does not exist, is empty, is of another format, has several splits, lacks a
    column, or has a column of a type that is no text (for labels: no text and no number).
    """
    names = names or ColumnNames()
    if isinstance(source, str | Path):
        files, kind = find_files(source)
        present = column_names(files, kind)
        fields = fields or names.fields_of(present)
        wanted = names.wanted(fields)
        return TextFile(open_table(source, wanted, way_out(wanted, present)), fields, names.kept)
    if not isinstance(source, pa.Table | pd.DataFrame):
        raise UserError(
            f"a {type(source).__name__} cannot be audited: give a path or an address, a pyarrow table or a pandas frame, "
            "such as pd.DataFrame(rows)"
        )
    table = source if isinstance(source, pa.Table) else pa.Table.from_pandas(source, preserve_index=False)
    fields = fields or names.fields_of(table.column_names)
    wanted = names.wanted(fields)
    columns = find_columns(table.column_names, wanted, "the table", "map one with ColumnNames({{'{name}': …}})")
    numbers = frozenset(column.name for column in wanted if not column.is_text)
    optional = frozenset(column.name for column in wanted if column.is_optional and column.name in columns)
    check_types(table.schema, columns, numbers, Path("the table"))
    labels = class_names(table.schema, columns["label"])
    return TextFile(
        TableInMemory("the table", (), "memory", columns, labels, numbers, optional, tuple(table.column_names), content=table),
        fields,
        names.kept,
    )


def way_out(wanted: Sequence[Wanted], present: Sequence[str]) -> str:
    """Which options name the columns that are not found."""
    missing = [column.name for column in wanted if not column.is_optional and column.find(present) is None]
    if set(PAIR) <= set(missing):
        return (
            "name those of a pair with --premise and --hypothesis, that of single texts with --text, or any others each with "
            "--field NAME=COLUMN"
        )
    name = missing[0] if missing else "label"
    return f"name it with --{name} COLUMN" if name in FLAGS else f"name it with --field {name}=COLUMN"


def clean_batch(raw: RawBatch, texts: TextFile) -> TextBatch:
    """A raw batch's complete examples as text.

    Numbers become labels by their names, or by their digits (1.0 is '1'). Raises :class:`UserError`, naming the row or line,
    for text that is not UTF-8, a line that is no JSON object, or a field of another type.
    """
    columns, rows = text_columns(raw, texts.table)
    keep = np.ones(len(rows), bool)
    left_out: dict[str, int] = {}
    unknown_labels: Counter[str] = Counter()
    read = read_labels(columns["label"], texts.labels, texts.allowed)
    reasons = {f"no {name}": is_blank(columns[name]) for name in (*texts.fields, "label")}
    for reason, out in (reasons | {"no gold label": read.no_gold, UNKNOWN_LABEL: read.unknown}).items():
        if num_out := int((out & keep).sum()):
            left_out[reason] = num_out
        if reason == UNKNOWN_LABEL:
            unknown_labels.update(label.strip() for label in columns["label"].filter(pa.array(out & keep)).to_pylist())
        keep &= ~out
    if not keep.all():
        columns = {name: column.filter(pa.array(keep)) for name, column in columns.items()}
        rows = rows[keep]
    by_field = {name: columns[name] for name in texts.fields}
    return TextBatch(rows, by_field, columns["label"], columns.get("parse"), left_out, unknown_labels)


Packed = tuple[bytes, int, tuple[int, ...]]
"""A record batch in Arrow's form, and the batch's `first` and `malformed`."""


def packed(raw: RawBatch) -> RawBatch | Packed:
    """The batch in a form that is cheap to send to another process; :func:`unpacked` undoes it.

    Pickling a slice of a record batch would send all that it is a slice of.
    """
    if isinstance(raw.content, bytes):
        return raw
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, raw.content.schema) as stream:
        stream.write_batch(raw.content)
    return sink.getvalue().to_pybytes(), raw.first, raw.malformed


def unpacked(sent: RawBatch | Packed) -> RawBatch:
    """The batch that :func:`packed` was given."""
    if isinstance(sent, RawBatch):
        return sent
    content, first, malformed = sent
    return RawBatch(next(iter(pa.ipc.open_stream(content))), first, malformed=malformed)


def read_rows(texts: TextFile, wanted: Iterable[int]) -> dict[int, dict[str, str]]:
    """Single rows by their numbers: their texts by field, and their label. Reads up to the last of them."""
    left, found = sorted(set(wanted), reverse=True), {}
    for raw in texts.raw_batches() if left else ():
        rows: Any = raw.content.removesuffix(b"\n").split(b"\n") if isinstance(raw.content, bytes) else raw.content
        numbers = raw.numbers(len(rows) if isinstance(rows, list) else rows.num_rows)
        while left and len(numbers) and left[-1] <= numbers[-1]:
            number = left.pop()
            at = int(np.searchsorted(numbers, number))
            content = rows[at] if isinstance(raw.content, bytes) else rows.slice(at, 1)
            batch = clean_batch(RawBatch(content, number), texts)
            found[number] = {name: batch.texts[name][0].as_py() for name in texts.fields} | {"label": batch.label[0].as_py()}
        if not left:
            break
    return found
