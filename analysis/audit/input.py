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

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.audit.columns import ColumnNames, check_types, class_names, map_columns
from analysis.audit.readers import (
    FORMATS,
    LINES_SUFFIXES,
    TABLE_SUFFIXES,
    RawBatch,
    first_line_names,
    json_row,
    read_arrow,
    read_lines,
    read_parquet,
    read_table,
    renumbered,
    schema_of,
    table_dialect,
)
from pipelines.errors import UserError

KINDS = (
    {".parquet": "parquet", ".arrow": "arrow"} | dict.fromkeys(TABLE_SUFFIXES, "table") | dict.fromkeys(LINES_SUFFIXES, "lines")
)
NO_GOLD_LABEL = ("-", "-1")
"""SNLI's and MultiNLI's mark of a pair whose annotators did not agree, and Hugging Face's."""


@dataclass(frozen=True)
class PairBatch:
    """Complete pairs: columns of equal length, their row or line numbers, and how many rows were left out, by reason."""

    rows: np.ndarray
    premise: pa.StringArray
    hypothesis: pa.StringArray
    label: pa.StringArray
    parse: pa.StringArray | None
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class PairFile:
    """An opened file or folder: its parts, which column is which, and how its label numbers are called."""

    path: str
    files: tuple[Path, ...]
    kind: str
    """parquet, arrow, table (CSV) or lines (JSONL)."""
    columns: Mapping[str, str]
    """premise, hypothesis, label and, where there is one, parse -> the column's name in the file."""
    label_names: Mapping[str, str] = field(default_factory=dict)
    """A Hugging Face dataset's names of its label numbers, such as '0' -> 'entailment'."""

    @property
    def unit(self) -> str:
        """The word for a row's number: row, or line for JSONL."""
        return "line" if self.kind == "lines" else "row"

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def raw_batches(self) -> Iterator[RawBatch]:
        """The rows in order. Raises :class:`UserError` where they cannot be read."""
        names = list(self.columns.values())
        if self.kind == "lines":
            return read_lines(self.files[0])
        if self.kind == "table":
            return renumbered([read_table(self.files[0], names)])
        read = read_parquet if self.kind == "parquet" else read_arrow
        return renumbered(read(file, names) for file in self.files)


def open_pairs(path: str | Path, names: ColumnNames | None = None) -> PairFile:
    """Find out the format and the columns of a file or folder of labelled pairs.

    A column is the one that `names` has if the file has it, else the first of the usual names that it has.

    Raises :class:`UserError` for what does not exist, is empty, is of another format, has several splits, lacks a column,
    or has a column of a type that is no text (for labels: no text and no number).
    """
    where, names = Path(path).expanduser(), names or ColumnNames()
    if not where.exists():
        raise UserError(f"{path} does not exist; {FORMATS}")
    files, kind = _find_files(where)
    if empty := [file for file in files if not file.stat().st_size]:
        raise UserError(f"{empty[0]} is empty (0 bytes); {FORMATS}")
    labels: dict[str, str] = {}
    if kind == "lines":
        columns = map_columns(first_line_names(files[0]), names, path)
    elif kind == "table":
        columns = map_columns(table_dialect(files[0])[1], names, path)
    else:
        schema = schema_of(files[0], kind)
        columns = map_columns(schema.names, names, path)
        for file in files:
            check_types(schema_of(file, kind), columns, file)
        labels = class_names(schema, columns["label"])
    return PairFile(str(path), tuple(files), kind, columns, labels)


def clean_batch(raw: RawBatch, pairs: PairFile) -> PairBatch:
    """A raw batch's complete pairs as text.

    Numbers become labels by their names, or by their digits (1.0 is '1'). Raises :class:`UserError`, naming the row or line,
    for text that is not UTF-8, a line that is no JSON object, or a field of another type.
    """
    if isinstance(raw.content, bytes):
        columns, rows = _columns_of_lines(raw.content, raw.first, pairs)
    else:
        rows = np.arange(raw.first, raw.first + raw.content.num_rows)
        columns = {name: _text_column(raw.content[column], name, rows, pairs) for name, column in pairs.columns.items()}
    if pairs.label_names:
        unique = columns["label"].dictionary_encode()
        named = [pairs.label_names.get(label, label) for label in unique.dictionary.to_pylist()]
        columns["label"] = pc.take(pa.array(named, pa.string()), unique.indices)
    keep = np.ones(len(rows), bool)
    left_out: dict[str, int] = {}
    for name in ("premise", "hypothesis", "label"):
        length = pc.binary_length(pc.utf8_trim_whitespace(columns[name]))
        missing = pc.fill_null(pc.equal(length, 0), True).to_numpy(zero_copy_only=False)
        reasons = {f"no {name}": missing}
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


def read_rows(pairs: PairFile, wanted: Iterable[int]) -> dict[int, dict[str, str]]:
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


def _find_files(where: Path) -> tuple[list[Path], str]:
    if where.is_dir():
        return _find_in_folder(where)
    suffix = where.suffix.lower()
    if suffix not in KINDS:
        raise UserError(f"{where}: files that end in {suffix or 'nothing'} are not read; {FORMATS}")
    return [where], KINDS[suffix]


def _find_in_folder(where: Path) -> tuple[list[Path], str]:
    if (where / "dataset_dict.json").is_file():
        splits = [str(where / name) for name in _json_file(where / "dataset_dict.json").get("splits", ())]
        raise UserError(f"{where} has several splits; give one of them: {', '.join(splits)}")
    if (where / "state.json").is_file():
        names = [str(file.get("filename")) for file in _json_file(where / "state.json").get("_data_files") or ()]
        files = [where / name for name in names]
        if not files or any(Path(name).name != name for name in names):
            raise UserError(f"{where}/state.json names no files of its own folder; write the dataset again with save_to_disk")
        if missing := [file for file in files if not file.is_file()]:
            raise UserError(f"{missing[0]} is missing, and state.json names it; copy the whole folder")
        return files, "arrow"
    folder = where if any(where.glob("*.parquet")) else where / "data"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise UserError(f"{where} has no .parquet files and is no dataset folder; {FORMATS}")
    # A dataset of the Hugging Face hub has its splits side by side: train-00000-of-00002.parquet.
    splits = sorted({file.name.rsplit("-", 3)[0] for file in files if "-of-" in file.name})
    if len(splits) > 1:
        raise UserError(f"{folder} has several splits ({', '.join(splits)}); give one file, or a folder with one split's files")
    return files, "parquet"


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); write the dataset again with save_to_disk") from error
    return value if isinstance(value, dict) else {}


# Their values as text.


def _text_column(column: pa.Array, name: str, rows: np.ndarray, pairs: PairFile) -> pa.StringArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    elif pa.types.is_floating(kind):
        # pandas makes these of whole numbers with a gap: 1.0 is 1, NaN is missing.
        column = pa.array([_other_text(value, name, f"{pairs.path}: the {name}") for value in column.to_pylist()], pa.string())
    try:
        # Parquet's readers trust its writer that text is UTF-8.
        column.validate(full=True)
        return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        for row, value in zip(rows, column.cast(pa.binary()), strict=True):
            try:
                (value.as_py() or b"").decode()
            except UnicodeDecodeError as wrong:
                raise UserError(
                    f"{pairs.path}: row {row}: the {name} is not UTF-8 ({wrong}); write it again as UTF-8"
                ) from error
        raise UserError(f"{pairs.path}: rows {rows[0]} to {rows[-1]}: the {name} column cannot be read ({error})") from error


def _number_text(value: float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if value == int(value) else str(value)


def _other_text(value: Any, name: str, where: str) -> str | None:
    """A label's number as text, and None for a gap: null, or the NaN that pandas writes for one."""
    is_gap = value is None or (isinstance(value, float) and math.isnan(value))
    if not is_gap and not (name == "label" and isinstance(value, int | float) and math.isfinite(value)):
        raise UserError(f"{where} is {str(value)[:40]!r} ({type(value).__name__}); the {name} must be text")
    return None if is_gap else _number_text(value)


def _columns_of_lines(content: bytes, first: int, pairs: PairFile) -> tuple[dict[str, pa.StringArray], np.ndarray]:
    values: dict[str, list[str | None]] = {name: [] for name in pairs.columns}
    lines = []
    for line, raw in enumerate(io.BytesIO(content), start=first):
        if not raw.strip():
            continue
        row = json_row(raw, line, pairs.path)
        lines.append(line)
        for name, column in pairs.columns.items():
            value = row.get(column)
            if type(value) is not str:
                value = _other_text(value, name, f"{pairs.path}: line {line}: {column!r}")
            values[name].append(value)
    try:
        return {name: pa.array(column, pa.string()) for name, column in values.items()}, np.array(lines, np.int64)
    except UnicodeEncodeError as error:
        for line, *texts in zip(lines, *values.values(), strict=True):
            for name, text in zip(values, texts, strict=True):
                if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
                    raise UserError(
                        f"{pairs.path}: line {line}: the {name} has half of a surrogate pair (\\ud800 to \\udfff), which is no "
                        "character; mend the line"
                    ) from error
        raise
