"""The values of a table's columns as text, and which rows they are of."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.tables.files import TableFile
from pipelines.tables.readers import RawBatch, json_row


def text_columns(raw: RawBatch, table: TableFile) -> tuple[dict[str, pa.StringArray], np.ndarray]:
    """The texts of a raw batch by what was looked for, null where there is none, and the numbers of its rows or lines.

    In a column that is optional a blank cell is null, too. Numbers become their digits (1.0 is '1'), a dataset's label numbers
    their names. Raises :class:`UserError`, naming the row or line, for text that is not UTF-8, a line that is no JSON object,
    or a field of another type.
    """
    if isinstance(raw.content, bytes):
        columns, rows = _columns_of_lines(raw, table)
    else:
        rows = raw.numbers(raw.content.num_rows)
        columns = {name: _text_column(raw.content[column], name, rows, table) for name, column in table.columns.items()}
    if table.label_names:
        unique = columns["label"].dictionary_encode()
        named = [table.label_names.get(label, label) for label in unique.dictionary.to_pylist()]
        columns["label"] = pc.take(pa.array(named, pa.string()), unique.indices)
    for name in table.optional & columns.keys():
        columns[name] = pc.if_else(pa.array(is_blank(columns[name])), None, columns[name])
    return columns, rows


def is_blank(column: pa.StringArray) -> np.ndarray:
    """Which texts are missing or nothing but space: booleans of shape (num_rows,)."""
    length = pc.binary_length(pc.utf8_trim_whitespace(column))
    return pc.fill_null(pc.equal(length, 0), True).to_numpy(zero_copy_only=False)


def _text_column(column: pa.Array, name: str, rows: np.ndarray, table: TableFile) -> pa.StringArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    elif pa.types.is_floating(kind):
        # pandas makes these of whole numbers with a gap: 1.0 is 1, NaN is missing.
        where = f"{table.path}: the {name}"
        column = pa.array([_other_text(value, name, table, where) for value in column.to_pylist()], pa.string())
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
                    f"{table.path}: row {row}: the {name} is not UTF-8 ({wrong}); write it again as UTF-8"
                ) from error
        raise UserError(f"{table.path}: rows {rows[0]} to {rows[-1]}: the {name} column cannot be read ({error})") from error


def _number_text(value: float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if value == int(value) else str(value)


def _other_text(value: Any, name: str, table: TableFile, where: str) -> str | None:
    """A number as text, and None for a gap: null, or the NaN that pandas writes for one."""
    is_gap = value is None or (isinstance(value, float) and math.isnan(value))
    if not is_gap and not (name in table.numbers and isinstance(value, int | float) and math.isfinite(value)):
        raise UserError(f"{where} is {str(value)[:40]!r} ({type(value).__name__}); the {name} must be text")
    return None if is_gap else _number_text(value)


def _columns_of_lines(raw_batch: RawBatch, table: TableFile) -> tuple[dict[str, pa.StringArray], np.ndarray]:
    assert isinstance(raw_batch.content, bytes)
    # A line is known by its file and its number there.
    path, before = (raw_batch.file, raw_batch.before) if len(table.files) > 1 and raw_batch.file else (table.path, 0)
    values: dict[str, list[str | None]] = {name: [] for name in table.columns}
    lines = []
    for line, raw in enumerate(io.BytesIO(raw_batch.content), start=raw_batch.first):
        if not raw.strip():
            continue
        row = json_row(raw, line - before, path)
        lines.append(line)
        for name, column in table.columns.items():
            value = row.get(column)
            if type(value) is not str:
                value = _other_text(value, name, table, f"{path}: {table.unit} {line - before}: {column!r}")
            values[name].append(value)
    try:
        return {name: pa.array(column, pa.string()) for name, column in values.items()}, np.array(lines, np.int64)
    except UnicodeEncodeError as error:
        for line, *texts in zip(lines, *values.values(), strict=True):
            for name, text in zip(values, texts, strict=True):
                if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
                    raise UserError(
                        f"{path}: {table.unit} {line - before}: the {name} has half of a surrogate pair (\\ud800 to \\udfff), "
                        f"which is no character; mend the {table.unit}"
                    ) from error
        raise
