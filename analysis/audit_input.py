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

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import UserError

MAX_BATCH_ROWS = 32_768
BATCH_BYTES = 16 << 20
CSV_BLOCK_BYTES = 3 << 20
MAX_ROW_BYTES = 64 << 20
"""A longer CSV row or JSONL line is refused: it is an unclosed quote, or a file without lines."""

USUAL_NAMES = {
    "premise": ("premise", "sentence1", "text1", "sentence_A"),
    "hypothesis": ("hypothesis", "sentence2", "text2", "sentence_B"),
    "label": ("label", "gold_label", "labels", "entailment_judgment"),
    "parse": ("premise_parse", "sentence1_parse"),
}
"""What the columns are usually called, in the order in which they are looked for."""

NO_GOLD_LABEL = ("-", "-1")
"""SNLI's and MultiNLI's mark of a pair whose annotators did not agree, and Hugging Face's."""

TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
FORMATS = (
    "give a .parquet, .csv, .tsv or .jsonl file, a folder of .parquet files, or a dataset folder that Hugging Face's "
    "save_to_disk wrote"
)


@dataclass(frozen=True)
class ColumnNames:
    """The columns as the user maps them; None takes the usual names. `parse` holds bracketed parses of the premises."""

    premise: str | None = None
    hypothesis: str | None = None
    label: str | None = None
    parse: str | None = None


@dataclass(frozen=True)
class RawBatch:
    """Rows as they were read: a record batch, or lines of JSON. `first` is the number of the first row or line, from 1."""

    content: pa.RecordBatch | bytes
    first: int


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
        """What rows are numbered by: row, or line for JSONL."""
        return "line" if self.kind == "lines" else "row"

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def raw_batches(self) -> Iterator[RawBatch]:
        """The rows in order. Raises :class:`UserError` where they cannot be read."""
        names = list(self.columns.values())
        if self.kind == "lines":
            return _read_lines(self.files[0])
        if self.kind == "table":
            return _renumbered([_read_table(self.files[0], names)])
        read = _read_parquet if self.kind == "parquet" else _read_arrow
        return _renumbered(read(file, names) for file in self.files)


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
        columns = _map_columns(_first_line_names(files[0]), names, path)
    elif kind == "table":
        columns = _map_columns(_table_dialect(files[0])[2], names, path)
    else:
        schema = _schema(files[0], kind)
        columns = _map_columns(schema.names, names, path)
        for file in files:
            _check_types(_schema(file, kind), columns, file)
        labels = _class_names(schema, columns["label"])
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
    left, found = sorted(set(wanted), reverse=True), {}
    for raw in pairs.raw_batches() if left else ():
        rows: Any = raw.content.split(b"\n") if isinstance(raw.content, bytes) else raw.content
        end = raw.first + (len(rows) if isinstance(rows, list) else rows.num_rows)
        while left and left[-1] < end:
            number = left.pop()
            at = number - raw.first
            content = rows[at] if isinstance(raw.content, bytes) else rows.slice(at, 1)
            batch = clean_batch(RawBatch(content, number), pairs)
            found[number] = {name: getattr(batch, name)[0].as_py() for name in ("premise", "hypothesis", "label")}
        if not left:
            break
    return found


# Finding the files and their columns.


def _find_files(where: Path) -> tuple[list[Path], str]:
    if where.is_dir():
        return _find_in_folder(where)
    suffix = where.suffix.lower()
    if suffix == ".parquet":
        return [where], "parquet"
    if suffix == ".arrow":
        return [where], "arrow"
    if suffix in TABLE_SUFFIXES:
        return [where], "table"
    if suffix in LINES_SUFFIXES:
        return [where], "lines"
    raise UserError(f"{where}: files that end in {suffix or 'nothing'} are not read; {FORMATS}")


def _find_in_folder(where: Path) -> tuple[list[Path], str]:
    if (where / "dataset_dict.json").is_file():
        splits = [str(where / name) for name in _json_file(where / "dataset_dict.json").get("splits", ())]
        raise UserError(f"{where} has several splits; give one of them: {', '.join(splits)}")
    if (where / "state.json").is_file():
        names = [str(one.get("filename")) for one in _json_file(where / "state.json").get("_data_files") or ()]
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
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); write the dataset again with save_to_disk") from error
    return found if isinstance(found, dict) else {}


def _map_columns(found: Sequence[str], names: ColumnNames, path: str | Path) -> dict[str, str]:
    columns = {}
    for name, usual in USUAL_NAMES.items():
        wanted = getattr(names, name)
        column = next((one for one in ((wanted,) if wanted in found else usual) if one in found), None)
        if column is None and name == "parse" and wanted is None:
            continue
        if column is None:
            looked_for = f"{wanted!r}" if wanted else ", ".join(usual)
            listed = ", ".join(map(repr, found[:30])) + (" …" if len(found) > 30 else "")
            raise UserError(f"{path}: no {name} column ({looked_for}); it has {listed or 'none'}: give one of them as --{name}")
        if list(found).count(column) > 1:
            raise UserError(f"{path}: {list(found).count(column)} columns are called {column!r}; give each its own name")
        columns[name] = column
    if len(set(columns.values())) < len(columns):
        raise UserError(f"{path}: one column is mapped twice ({columns}); premise, hypothesis and label are three columns")
    return columns


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null))


def _check_types(schema: pa.Schema, columns: Mapping[str, str], file: Path) -> None:
    for name, column in columns.items():
        if column not in schema.names:
            raise UserError(f"{file}: no column {column!r}, and the first file of the folder has it; write them alike")
        kind = schema.field(column).type
        numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        if not _is_text(kind) and not (name == "label" and any(test(kind) for test in numbers)):
            raise UserError(f"{file}: the {name} column {column!r} is of type {kind}; it must be text")


def _class_names(schema: pa.Schema, column: str) -> dict[str, str]:
    """The names of a `ClassLabel` feature, which Hugging Face keeps in the schema's metadata."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return {str(number): str(name) for number, name in enumerate(feature["names"])}
    except (KeyError, TypeError, ValueError):
        return {}


# Parquet and Arrow.


def _schema(file: Path, kind: str) -> pa.Schema:
    try:
        if kind == "parquet":
            return pq.read_schema(file)
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_stream(source).schema
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, kind, error) from error


def _unreadable(file: Path, kind: str, error: Exception) -> UserError:
    return UserError(f"{file} is not readable as {kind.capitalize()} ({error}); it may be cut off: write it again")


def _renumbered(parts: Iterable[Iterable[pa.RecordBatch]]) -> Iterator[RawBatch]:
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
        if sum(one.num_rows for one in waiting) >= MAX_BATCH_ROWS // 4 or sum(one.nbytes for one in waiting) >= BATCH_BYTES:
            yield pa.concat_batches(waiting) if len(waiting) > 1 else batch
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _read_parquet(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
            largest = max((one.total_byte_size / max(1, one.num_rows) for one in groups), default=1.0)
            rows = int(min(MAX_BATCH_ROWS, max(16, BATCH_BYTES / max(1.0, largest))))
            yield from parquet.iter_batches(rows, columns=columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, "parquet", error) from error


def _read_arrow(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pa.memory_map(str(file)) as source:
            for batch in pa.ipc.open_stream(source):
                yield batch.select(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, "arrow", error) from error


def _text_column(column: pa.Array, name: str, rows: np.ndarray, pairs: PairFile) -> pa.StringArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    elif pa.types.is_floating(kind):
        # What pandas makes of whole numbers with a gap: 1.0 is 1, NaN is missing.
        column = pa.array([_other_text(one, name, f"{pairs.path}: the {name}") for one in column.to_pylist()], pa.string())
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


# CSV.


def _table_dialect(file: Path) -> tuple[str, bool, list[str]]:
    """Delimiter, whether quotes mean anything, and the header."""
    delimiter = TABLE_SUFFIXES[file.suffix.lower()]
    with file.open("rb") as binary:
        raw = binary.readline(MAX_ROW_BYTES)
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: line 1 is not UTF-8 ({error}); save it as UTF-8") from error
    if delimiter == "," and "," not in line:
        delimiter = next((one for one in (";", "\t") if one in line), ",")
    # NLI corpora in tab-separated files have quotation marks that are text (MultiNLI, HANS).
    quote = delimiter != "\t"
    return (
        delimiter,
        quote,
        next(
            csv.reader([line.rstrip("\r\n")], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE), []
        ),
    )


def _read_table(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    delimiter, quote, _ = _table_dialect(file)
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if quote else False, double_quote=quote, newlines_in_values=quote
    )
    # An empty cell is blank text, and 'NA' and 'null' are words.
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    num_read = 0
    for block_size in (CSV_BLOCK_BYTES, MAX_ROW_BYTES // 2):
        read = pyarrow.csv.ReadOptions(use_threads=False, block_size=block_size)
        try:
            with pyarrow.csv.open_csv(file, read, parse, convert) as reader:
                start = 0
                for batch in reader:
                    new = batch.slice(max(0, num_read - start))
                    start += batch.num_rows
                    num_read = max(num_read, start)
                    yield new
            return
        except pa.ArrowInvalid as error:
            # A row that is larger than the block: once more in larger ones, which take ten times the memory.
            if "straddling" not in str(error) or block_size > CSV_BLOCK_BYTES:
                raise UserError(f"{file}: {_explain_table(file, delimiter, quote) or error}") from error


def _explain_table(file: Path, delimiter: str, quote: bool) -> str:
    """What is wrong with a CSV file, with its line: a second, slow reading, after the fast one has failed."""
    with file.open("rb") as binary:
        for number, raw in enumerate(binary, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 ({error}); save the file as UTF-8"
    csv.field_size_limit(1 << 30)
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE)
        header: list[str] = []
        begins = 1
        for row in reader:
            header = header or row
            if len(row) != len(header) and row:
                return (
                    f"line {begins} has {len(row)} cells and the header {len(header)}; quote cells that contain "
                    f"{delimiter!r} or a line break, or mend the row"
                )
            if sum(map(len, row)) > MAX_ROW_BYTES // 4:
                return f"the row at line {begins} is over {MAX_ROW_BYTES >> 22} MB; close its quotation mark or shorten it"
            begins = reader.line_num + 1
    return ""


# JSONL.


def _first_line_names(file: Path) -> list[str]:
    for raw in _read_lines(file, chunk_bytes=1):
        assert isinstance(raw.content, bytes)
        if raw.content.strip():
            return list(_json_row(raw.content, raw.first, str(file)))
    raise UserError(f"{file} has only blank lines; {FORMATS}")


def _read_lines(file: Path, chunk_bytes: int = BATCH_BYTES // 2) -> Iterator[RawBatch]:
    first = 1
    with file.open("rb") as binary:
        while chunk := binary.read(chunk_bytes) if chunk_bytes > 1 else binary.readline(MAX_ROW_BYTES):
            if not chunk.endswith(b"\n"):
                chunk += binary.readline(MAX_ROW_BYTES)
            num_lines = chunk.count(b"\n")
            if not chunk.endswith(b"\n") and binary.peek(1):
                raise UserError(
                    f"{file}: line {first + num_lines} is over {MAX_ROW_BYTES >> 20} MB; JSONL has one JSON object a line"
                )
            yield RawBatch(chunk, first)
            first += num_lines


def _json_row(raw: bytes, line: int, path: str) -> dict[str, Any]:
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
        row = _json_row(raw, line, pairs.path)
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
