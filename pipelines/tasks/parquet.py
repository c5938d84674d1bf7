"""Parquet from others, within bounded memory: a file of kilobytes can hold terabytes of rows, and say anything of itself.

for batch in parquet_batches("pairs.parquet", "pairs.parquet", ["premise"]):
    ...
table = parquet_table(file, "pool/entailment-00000.parquet")
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError

BATCH_ROWS = 32_768
BATCH_BYTES = 16 << 20
MAX_INFLATION = 1_000
"""A file may hold so many times its own bytes, uncompressed; labelled pairs hold ten to a hundred times."""
MIN_ALLOWED_BYTES = 1 << 30
"""What a file may hold however small it is."""
MAX_TABLE_BYTES = 32 << 30
"""More is not read into memory at once."""

Source = str | os.PathLike[str] | BinaryIO | Any


def parquet_batches(source: Source, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in batches of about BATCH_BYTES; `name` is the file's in errors, `columns` are those to read.

    Raises UserError for what is no Parquet or cut off, and for a file that says, or turns out, to hold more than a thousand
    times its own size (a gigabyte is always let through). A column's dictionary is looked at before its rows are written
    out: one long value can stand for millions of rows.
    """
    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:
            size = _num_bytes(source)
            allowed = max(MIN_ALLOWED_BYTES, MAX_INFLATION * size)
            _check_claims(file, name, columns, size, allowed)
            num_bytes = 0
            for index in range(file.metadata.num_row_groups):
                rows = _batch_rows(source, file, index, columns)
                for batch in file.iter_batches(rows, [index], columns=columns, use_threads=False):
                    num_bytes += batch.nbytes
                    if num_bytes > allowed:
                        raise _bomb(name, f"its rows have over {allowed:,} bytes", size)
                    yield batch
    except pa.ArrowException as error:
        raise unreadable(name, error) from error
    except OSError as error:
        # A store that does not answer is no fault of the file.
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        raise unreadable(name, error) from error


def parquet_table(source: Source, name: str, columns: list[str] | None = None) -> pa.Table:
    """The same as one table. Raises UserError, too, for more than fits into memory at once (MAX_TABLE_BYTES)."""
    batches, num_bytes = [], 0
    for batch in parquet_batches(source, name, columns):
        num_bytes += batch.nbytes
        if num_bytes > MAX_TABLE_BYTES:
            raise UserError(f"{name} has more than {MAX_TABLE_BYTES:,} bytes of rows; split it into smaller files")
        batches.append(batch)
    if batches:
        return pa.Table.from_batches(batches)
    schema = parquet_schema(source, name)
    return schema.empty_table() if columns is None else schema.empty_table().select(columns)


def parquet_schema(source: Source, name: str) -> pa.Schema:
    """The columns of a file. Raises UserError for what is no Parquet."""
    try:
        return pq.read_schema(source)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception, kind: str = "Parquet") -> UserError:
    """The error for a file that its library cannot read."""
    return UserError(f"{name} is not readable as {kind} ({' '.join(str(error).split())}); it may be cut off: write it again")


def _bomb(name: str, what: str, size: int) -> UserError:
    return UserError(
        f"{name} is refused: {what}, and the file has {size:,}; no file of labelled texts is like that: "
        "get it from where it was made, or write it again"
    )


def _num_bytes(source: Source) -> int:
    if isinstance(source, str | os.PathLike):
        return os.path.getsize(source)
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(position)
    return int(size)


def _check_claims(file: pq.ParquetFile, name: str, columns: list[str] | None, size: int, allowed: int) -> None:
    """What the footer says, before anything is decoded."""
    metadata = file.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    in_groups = sum(group.num_rows for group in groups)
    if metadata.num_rows != in_groups or any(group.num_rows < 0 for group in groups):
        raise UserError(
            f"{name} is refused: its footer says {metadata.num_rows:,} rows and its parts {in_groups:,}; write it again"
        )
    # A row takes a byte at the least once it is decoded.
    if metadata.num_rows > allowed:
        raise UserError(f"{name} is refused: it claims {metadata.num_rows:,} rows, more than its size allows; write it again")
    claimed = 0
    for group in groups:
        for index in range(group.num_columns):
            column = group.column(index)
            if columns is None or column.path_in_schema.partition(".")[0] in columns:
                claimed += max(0, column.total_uncompressed_size)
    if claimed > allowed:
        raise UserError(
            f"{name} is refused: it claims {claimed:,} bytes, more than {MAX_INFLATION:,} times its size; write it again"
        )


def _batch_rows(source: Source, file: pq.ParquetFile, index: int, columns: list[str] | None) -> int:
    group = file.metadata.row_group(index)
    average = group.total_byte_size / max(1, group.num_rows)
    texts = [
        field.name
        for field in file.schema_arrow
        if (columns is None or field.name in columns) and (pa.types.is_string(field.type) or pa.types.is_binary(field.type))
    ]
    longest = 0
    if group.num_rows > 1 and texts:
        with pq.ParquetFile(source, pre_buffer=False, read_dictionary=texts) as dictionaries:
            first = next(dictionaries.iter_batches(1, [index], columns=texts, use_threads=False), None)
        for column in first.columns if first is not None else ():
            if pa.types.is_dictionary(column.type) and len(column.dictionary):
                longest += int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    by_average = max(16, int(BATCH_BYTES / max(1.0, average)))
    return min(BATCH_ROWS, by_average, max(1, 4 * BATCH_BYTES // max(1, longest)))
