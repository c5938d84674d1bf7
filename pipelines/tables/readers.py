"""Rows of Parquet, Arrow, CSV and JSONL files, batch by batch, with the numbers that an error names them by."""

from __future__ import annotations

import bz2
import contextlib
import csv
import functools
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipelines.errors import UserError
from pipelines.tables.arrow_csv import csv_batches
from pipelines.tables.quotes import open_quote
from pipelines.tables.splits import COMPRESSED, format_of
from pipelines.tasks.parquet import parquet_batches, parquet_schema, unreadable

MAX_BATCH_ROWS = 32_768
BATCH_BYTES = 16 << 20
CSV_BLOCK_BYTES = 3 << 20
MAX_ROW_BYTES = 64 << 20
"""A longer CSV row or JSONL line is refused: it is an unclosed quote, or a file without lines."""

MAX_ARRAY_BYTES = 1 << 30
FIRST_ROWS, FIRST_BYTES = 1_000, 1 << 20
"""So much of JSON is looked at for the names of its fields."""
TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
MAGIC = {
    b"\x1f\x8b": ("compressed by gzip", ".gz"),
    b"\xfd7zXZ\x00": ("compressed by xz", ".xz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", ".zst"),
    b"PAR1": ("Parquet", ".parquet"),
}
"""What files of other formats begin with, and the ending of their names."""
ARCHIVE = b"PK\x03\x04"
"""What a zip begins with, and a spreadsheet, which is one."""
FORMATS = (
    "give a .parquet, .arrow, .csv, .tsv or .jsonl file (text also as .gz, .bz2, .xz or .zst), a folder of such files, or a "
    "dataset folder that Hugging Face's save_to_disk wrote"
)


def suffix_of(file: Path) -> str:
    """What a file's name says of its format, such as ``.csv``, also of ``pairs.csv.gz``."""
    return "." + format_of(file.name).split(".")[1] if format_of(file.name) else ""


class _Stream(io.RawIOBase):
    """A stream of arrow's as one of Python's."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self.stream.readinto(buffer))


def _decompressed(file: Path) -> Any:
    match file.suffix.lower():
        case ".gz":
            return gzip.open(file, "rb")
        case ".bz2":
            return bz2.open(file, "rb")
        case ".xz":
            return lzma.open(file, "rb")
        case ".zst":
            # Python's own library has no zstd before 3.14.
            return io.BufferedReader(_Stream(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")))
    with file.open("rb") as begins:
        _check_text(file, begins.read(8))
    return file.open("rb")


def _check_text(file: Path, begins: bytes) -> None:
    """Raise :class:`UserError` for a file that is called text and is something else."""
    for magic, (what, ending) in MAGIC.items():
        if begins.startswith(magic):
            raise UserError(f"{file} is {what}, and its name does not say so; let it end in {ending}")
    if begins.startswith(ARCHIVE):
        raise UserError(f"{file} is a zip file, as spreadsheets are; unpack it, or save the sheet as CSV in UTF-8")


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed. Raises :class:`UserError` where they cannot be."""
    try:
        with _decompressed(file) as binary:
            yield binary
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _cut_off(file, error) from error
    except OSError as error:
        # bz2 and arrow have no error of their own for content that is not theirs.
        if error.errno is not None or file.suffix.lower() not in COMPRESSED:
            raise
        raise _cut_off(file, error) from error


def _cut_off(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be decompressed ({error}); it may be cut off: get it again")


@dataclass(frozen=True)
class RawBatch:
    """Rows as they were read: a record batch, or lines of JSON. `first` is the number of the first row or line, from 1."""

    content: pa.RecordBatch | bytes
    first: int
    file: str = ""
    """The file that lines are from, where a table has several; `before` lines are in those before it."""
    before: int = 0
    malformed: tuple[int, ...] = ()
    """Numbers of the table's rows that are left out, up to this batch's end and maybe beyond; `first` does not count them."""

    def numbers(self, num_rows: int) -> np.ndarray:
        """The numbers of the batch's rows in the table, int64 [num_rows], those that are left out being counted."""
        rows = np.arange(self.first, self.first + num_rows)
        before = np.array([number - 1 - place for place, number in enumerate(self.malformed)], np.int64)
        return rows + np.searchsorted(before, rows, side="left")


@dataclass(frozen=True)
class MalformedRow:
    """A row of CSV with another number of cells than the header: its number, from 1 without the header, and its text."""

    row: int
    num_cells: int
    num_columns: int
    text: str


def check_malformed(path: str, malformed: Sequence[MalformedRow], *, has_rows: bool) -> None:
    """Raise :class:`UserError` where rows that do not fit the header come of a fault of the whole file."""
    if malformed and not has_rows:
        first = malformed[0]
        raise UserError(
            f"{path}: none of its {len(malformed):,} rows has as many cells as the header, {first.num_columns}: row "
            f"{first.row} has {first.num_cells}; enclose cells that contain what is between cells in quotation marks"
        )


# Parquet and Arrow.


def schema_of(file: Path, kind: str) -> pa.Schema:
    """The columns of a parquet or arrow file."""
    try:
        if kind == "parquet":
            return parquet_schema(file, str(file))
        with pa.memory_map(str(file)) as source:
            return _arrow_reader(source).schema
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(str(file), error, kind.capitalize()) from error


def renumbered_lines(files: Iterable[tuple[Path, Iterable[RawBatch]]]) -> Iterator[RawBatch]:
    """The lines of all files, numbered on from file to file."""
    before = 0
    for file, batches in files:
        num_lines = 0
        for raw in batches:
            assert isinstance(raw.content, bytes)
            num_lines = raw.first - 1 + raw.content.count(b"\n") + (not raw.content.endswith(b"\n"))
            yield RawBatch(raw.content, before + raw.first, str(file), before)
        before += num_lines


def read_tables(files: Iterable[Path], columns: list[str], malformed: list[MalformedRow] | None) -> Iterator[pa.RecordBatch]:
    """Rows of CSV or TSV files as :func:`read_table` reads them; malformed ones are numbered on from file to file.

    Raises :class:`UserError` behind the last row of a file in which a quotation mark is left open.
    """
    before = 0
    for file in files:
        num_malformed = len(malformed or ())
        for batch in read_table(file, columns, malformed, before):
            before += batch.num_rows
            yield batch
        before += len(malformed or ()) - num_malformed
        if said := _left_open(file, table_dialect(file).delimiter):
            raise UserError(f"{file}: {said}")


def read_past_malformed(files: Iterable[Path], columns: list[str], malformed: list[MalformedRow]) -> Iterator[RawBatch]:
    """The rows of :func:`read_tables` in batches that know which rows of the files are left out."""
    for raw in renumbered([read_tables(files, columns, malformed)]):
        yield replace(raw, malformed=tuple(row.row for row in malformed)) if malformed else raw


def renumbered(parts: Iterable[Iterable[pa.RecordBatch]]) -> Iterator[RawBatch]:
    """The rows of all parts, numbered from 1, in batches of at most MAX_BATCH_ROWS."""
    first = 1
    for batch in _gathered(batch for part in parts for batch in part):
        for start in range(0, batch.num_rows, MAX_BATCH_ROWS):
            piece = batch.slice(start, MAX_BATCH_ROWS)
            yield RawBatch(piece, first)
            first += piece.num_rows


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows without tiny batches: a pool is hundreds of small shards, and each batch costs its overhead."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if waiting and batch.schema.types != waiting[0].schema.types:
            yield from waiting
            waiting = []
        waiting.append(batch)
        if sum(part.num_rows for part in waiting) >= MAX_BATCH_ROWS // 4 or sum(part.nbytes for part in waiting) >= BATCH_BYTES:
            yield pa.concat_batches(waiting) if len(waiting) > 1 else batch
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def read_parquet(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of about BATCH_BYTES; `parquet_batches` says what is refused."""
    return parquet_batches(file, str(file), columns)


def read_arrow(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches as they were written, as a stream (by `datasets`) or as a file (Feather)."""
    try:
        with pa.memory_map(str(file)) as source:
            reader = _arrow_reader(source)
            is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
            for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
                yield batch.select(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(str(file), error, "Arrow") from error


def _arrow_reader(source: pa.NativeFile) -> Any:
    magic = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)


# CSV.


class Dialect(NamedTuple):
    """How a CSV file is written: what is between cells, whether quotation marks enclose them, and its header."""

    delimiter: str
    has_quotes: bool
    header: list[str]


def table_dialect(file: Path) -> Dialect:
    """The dialect of a file. Raises :class:`UserError` for a first line that is not UTF-8."""
    delimiter = TABLE_SUFFIXES[suffix_of(file)]
    with opened(file) as binary:
        raw = binary.readline(MAX_ROW_BYTES)
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: line 1 is not UTF-8 ({error}); save it as UTF-8") from error
    # Lines may end in carriage returns alone.
    line = line.rstrip("\r\n").partition("\r")[0]
    if delimiter == "," and "," not in line:
        delimiter = next((mark for mark in (";", "\t") if mark in line), ",")
    has_quotes = delimiter != "\t" or _is_quoted(file.absolute(), file.stat().st_mtime_ns, encloses_all=line.startswith('"'))
    return Dialect(delimiter, has_quotes, next(_cells([line], delimiter, has_quotes), []))


_QUOTED = r'"(?:[^"]|"")*"'
_CELL = rf'(?:{_QUOTED}|(?:[^\t\r\n"][^\t\r\n]*)?)'
_RECORD = re.compile(rf"{_CELL}(?:\t{_CELL})*")
_OPEN_RECORD = re.compile(rf'(?:{_CELL}\t)*"(?:[^"]|"")*')
_QUOTED_CELLS = re.compile(rf"(?:^|(?<=\t)){_QUOTED}(?=\t|$)")
MOST_LINES = 8
"""Lines that an error names."""
MAX_QUOTED_LINES = 1_000
"""A cell with more lines is no cell, but an unpaired quotation mark that is text."""


@functools.lru_cache(maxsize=64)
def _is_quoted(file: Path, changed_ns: int, *, encloses_all: bool) -> bool:
    """Whether the cells of a tab-separated file that begin with a quotation mark are enclosed by a csv writer.

    NLI corpora in tab-separated files have quotation marks that are text (MultiNLI, HANS), also around a whole cell. A writer
    encloses a cell that has a quotation mark, a tab or a line break in it; or every cell, the header's, too. All such cells of
    the file have to be like that, and there is one. Marks within other cells are text in any case.
    """
    is_found = False
    for record in _records_with_quotes(file):
        if not _RECORD.fullmatch(record):
            return False
        quoted = _QUOTED_CELLS.findall(record)
        if not encloses_all and any(not re.search('""|[\t\r\n]', cell[1:-1]) for cell in quoted):
            return False
        is_found = is_found or bool(quoted)
    return is_found


def _records_with_quotes(file: Path) -> Iterator[str]:
    """The lines that have quotation marks, those of a cell with line breaks together; the last one may be unpaired."""
    record, num_lines = "", 0
    with opened(file) as binary:
        for line in io.TextIOWrapper(binary, encoding="utf-8-sig", errors="replace", newline="\n"):
            if not record and '"' not in line:
                continue
            record, num_lines = record + line, num_lines + 1
            if num_lines > MAX_QUOTED_LINES or not _OPEN_RECORD.fullmatch(record):
                yield record.rstrip("\r\n")
                record, num_lines = "", 0
    if record:
        yield record


def _left_open(file: Path, delimiter: str) -> str:
    """What :func:`open_quote` says of a file. Between tabs, marks that enclose cells were looked at for the dialect."""
    return "" if delimiter == "\t" else _open_quote(file.absolute(), file.stat().st_mtime_ns, delimiter)


@functools.lru_cache(maxsize=64)
def _open_quote(file: Path, changed_ns: int, delimiter: str) -> str:
    with opened(file) as binary:
        return open_quote(binary, delimiter, MAX_ROW_BYTES)


def _cells(lines: Iterable[str], delimiter: str, has_quotes: bool) -> Any:
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE)


def read_table(
    file: Path, columns: list[str], malformed: list[MalformedRow] | None = None, before: int = 0
) -> Iterator[pa.RecordBatch]:
    """Rows of a CSV or TSV file, all cells as text. Those that do not fit the header go into `malformed`, or are an error.

    They are there before a row behind them is yielded. `before` rows of other files are counted by their numbers.
    """
    delimiter, quote, _ = table_dialect(file)

    def put_aside(row: pyarrow.csv.InvalidRow) -> str:
        assert malformed is not None
        number = before + row.number - 1
        if not malformed or malformed[-1].row < number:
            malformed.append(MalformedRow(number, row.actual_columns, row.expected_columns, row.text))
        return "skip"

    parse = {
        "delimiter": delimiter,
        "quote_char": '"' if quote else False,
        "double_quote": quote,
        "newlines_in_values": quote,
    }
    # An empty cell is blank text, and 'NA' and 'null' are words.
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns,
        include_missing_columns=True,
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=False,
    )
    num_read = 0
    for block_size in (CSV_BLOCK_BYTES, MAX_ROW_BYTES // 2):
        read = pyarrow.csv.ReadOptions(use_threads=False, block_size=block_size)
        try:
            # Arrow itself knows the other compressions.
            as_it_is = contextlib.nullcontext(file)
            with (
                opened(file) if file.suffix.lower() == ".xz" else as_it_is as source,
                contextlib.closing(
                    csv_batches(source, read, parse, convert, None if malformed is None else put_aside)
                ) as batches,
            ):
                start = 0
                for batch in batches:
                    new = batch.slice(max(0, num_read - start))
                    start += batch.num_rows
                    num_read = max(num_read, start)
                    yield new
            return
        except OSError as error:
            raise unreadable(str(file), error, "CSV") from error
        except pa.ArrowInvalid as error:
            # A row that is larger than the block: once more in larger ones, which take ten times the memory.
            if "straddling" not in str(error) or block_size > CSV_BLOCK_BYTES:
                raise UserError(f"{file}: {_explain_table(file, delimiter, quote) or error}") from error


def _explain_table(file: Path, delimiter: str, has_quotes: bool) -> str:
    """The fault of a CSV file, with its line: a second, slow reading, after the fast one has failed."""
    with opened(file) as binary:
        for number, raw in enumerate(binary, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 ({error}); save the file as UTF-8"
    if said := _left_open(file, delimiter):
        return said
    csv.field_size_limit(1 << 30)
    with opened(file) as binary:
        reader = _cells(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), delimiter, has_quotes)
        header: list[str] = []
        begins = 1
        ragged: list[tuple[int, int]] = []
        for row in reader:
            header = header or row
            if len(row) != len(header) and row:
                ragged.append((begins, len(row)))
            if not ragged and sum(map(len, row)) > MAX_ROW_BYTES // 4:
                return f"the row at line {begins} is over {MAX_ROW_BYTES >> 22} MB; close its quotation mark or shorten it"
            begins = reader.line_num + 1
    if not ragged:
        return ""
    (first, num_cells), *others = ragged
    more = f" ({_lines(others)}, too, {'have' if len(others) > 1 else 'has'} another number)" if others else ""
    return (
        f"line {first} has {num_cells} cells and the header {len(header)}{more}; quote cells that contain {delimiter!r} or a "
        f"line break, or mend the row{'s' if others else ''}"
    )


def _lines(rows: list[tuple[int, int]]) -> str:
    listed = ", ".join(str(line) for line, _ in rows[:MOST_LINES])
    return f"line{'s' if len(rows) > 1 else ''} {listed}{', …' if len(rows) > MOST_LINES else ''}"


# JSONL.


def first_line_names(file: Path) -> list[str]:
    """The fields of the first objects of a JSONL file: a field that is null may be left out of some.

    Raises :class:`UserError` for a file that is a JSON array, and for what is no JSONL.
    """
    if is_array(file):
        raise UserError(f"{file} is a JSON array, and JSONL has one object a line; let its name end in .json")
    names: dict[str, None] = {}
    num_bytes = 0
    for raw in read_lines(file, chunk_bytes=1):
        assert isinstance(raw.content, bytes)
        if raw.content.strip():
            names.update(dict.fromkeys(json_row(raw.content, raw.first, str(file))))
        num_bytes += len(raw.content)
        if names and (raw.first >= FIRST_ROWS or num_bytes >= FIRST_BYTES):
            break
    if not names:
        raise UserError(f"{file} has only blank lines; {FORMATS}")
    return list(names)


def read_lines(file: Path, chunk_bytes: int = BATCH_BYTES // 2) -> Iterator[RawBatch]:
    """Whole lines of a JSONL file, about `chunk_bytes` of them at once; with 1, line by line."""
    first = 1
    with opened(file) as binary:
        while chunk := binary.read(chunk_bytes) if chunk_bytes > 1 else binary.readline(MAX_ROW_BYTES):
            if not chunk.endswith(b"\n"):
                chunk += binary.readline(MAX_ROW_BYTES)
            num_lines = chunk.count(b"\n")
            if not chunk.endswith(b"\n") and binary.peek(1):  # type: ignore[attr-defined]
                raise UserError(
                    f"{file}: line {first + num_lines} is over {MAX_ROW_BYTES >> 20} MB; JSONL has one JSON object a line"
                )
            yield RawBatch(chunk, first)
            first += num_lines


def json_row(raw: bytes, line: int, path: str) -> dict[str, Any]:
    """The object on a line of JSONL."""
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: line {line} is not UTF-8 ({error}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: line {line} is no JSON ({error}); JSONL has one JSON object a line: mend or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {line} is a JSON {type(row).__name__}, not an object; JSONL has one JSON object a line")
    return row


# A JSON array.


def is_array(file: Path) -> bool:
    """Whether a JSON file holds one array, and not an object a line."""
    with opened(file) as binary:
        return binary.read(4_096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def read_array(file: Path) -> Iterator[RawBatch]:
    """The objects of a JSON array as lines of JSON. Raises :class:`UserError` for what is none, and for over a gigabyte."""
    with opened(file) as binary:
        content = binary.read(MAX_ARRAY_BYTES + 1)
    if len(content) > MAX_ARRAY_BYTES:
        raise UserError(f"{file}: a JSON array of over {MAX_ARRAY_BYTES >> 30} GB; write it as JSONL, an object a line")
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON ({error}); it may be cut off: mend it, or write an object a line") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}: row {number} is a JSON {type(row).__name__}, not an object; an array has an object a row")
    for start in range(0, len(rows), MAX_BATCH_ROWS):
        part = rows[start : start + MAX_BATCH_ROWS]
        yield RawBatch("\n".join(map(json.dumps, part)).encode(), start + 1)


def array_names(file: Path) -> list[str]:
    """The fields of the first objects of a JSON array."""
    for raw in read_array(file):
        assert isinstance(raw.content, bytes)
        rows = map(json.loads, raw.content.split(b"\n", FIRST_ROWS)[:FIRST_ROWS])
        return list(dict.fromkeys(name for row in rows for name in row))
    raise UserError(f"{file} is an empty array; {FORMATS}")
