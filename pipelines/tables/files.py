"""A table as it lies on disk: Parquet, CSV, JSONL, a folder of Parquet files, or a dataset's folder of Hugging Face's.

    table = open_table("pairs.csv", [Wanted("premise"), Wanted("hypothesis"), Wanted("label", is_text=False)])
    for raw in table.raw_batches():
        columns, rows = text_columns(raw, table)    # pipelines.tables.values

Opening looks at names and types only. A batch is at most 32 768 rows, fewer where rows are large, so that the texts of a file
are never in memory at once. Rows are counted from 1, without a header, and over all files of a folder; in JSONL lines are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.tables.columns import Wanted, check_types, class_names, find_columns
from pipelines.tables.readers import (
    FORMATS,
    LINES_SUFFIXES,
    TABLE_SUFFIXES,
    MalformedRow,
    RawBatch,
    array_names,
    first_line_names,
    is_array,
    read_array,
    read_arrow,
    read_lines,
    read_parquet,
    read_table,
    renumbered,
    schema_of,
    suffix_of,
    table_dialect,
)

KINDS = (
    {".parquet": "parquet", ".arrow": "arrow"} | dict.fromkeys(TABLE_SUFFIXES, "table") | dict.fromkeys(LINES_SUFFIXES, "lines")
)

_SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-[0-9a-f]+)?\.parquet")
"""train-00000-of-00002.parquet, at times with a hash before the suffix."""


@dataclass(frozen=True)
class TableFile:
    """An opened file or folder: its parts, which column is which, and how its label numbers are called."""

    path: str
    files: tuple[Path, ...]
    kind: str
    """parquet, arrow, table (CSV), lines (JSONL) or array (of JSON)."""
    columns: Mapping[str, str]
    """What was looked for, where it was found -> the column's name in the file."""
    label_names: Mapping[str, str] = field(default_factory=dict)
    """A Hugging Face dataset's names of its label numbers, such as '0' -> 'entailment'."""
    numbers: frozenset[str] = frozenset({"label"})
    """Of `columns`, those whose numbers are text."""

    @property
    def unit(self) -> str:
        """The word for a row's number: row, or line for JSONL."""
        return "line" if self.kind == "lines" else "row"

    @property
    def mapping(self) -> str:
        """For people: which column is which."""
        return ", ".join(f"{name} is {column!r}" for name, column in self.columns.items())

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def raw_batches(self, malformed: list[MalformedRow] | None = None) -> Iterator[RawBatch]:
        """The rows in order. Raises :class:`UserError` where they cannot be read.

        CSV rows with another number of cells than the header are put into `malformed` where it is given, and are not counted
        by the batches' numbers; else they are an error.
        """
        names = list(dict.fromkeys(self.columns.values()))
        if self.kind == "lines":
            return read_lines(self.files[0])
        if self.kind == "array":
            return read_array(self.files[0])
        if self.kind == "table":
            return renumbered([read_table(self.files[0], names, malformed)])
        read = read_parquet if self.kind == "parquet" else read_arrow
        return renumbered(read(file, names) for file in self.files)


def open_table(path: str | Path, wanted: Sequence[Wanted], way_out: str = "give one of them as --{name}") -> TableFile:
    """Find out the format of a file or folder, and its columns as :func:`pipelines.tables.columns.find_columns` does.

    Raises :class:`UserError` for what does not exist, is empty, is of another format, has several splits, lacks a column,
    or has a column of a type that is no text (where numbers may be: no text and no number).
    """
    files, kind = find_files(path)
    columns = find_columns(column_names(files, kind), wanted, path, way_out)
    numbers = frozenset(column.name for column in wanted if not column.is_text)
    labels: dict[str, str] = {}
    if kind in ("parquet", "arrow"):
        for file in files:
            check_types(schema_of(file, kind), columns, numbers, file)
        if "label" in columns:
            labels = class_names(schema_of(files[0], kind), columns["label"])
    return TableFile(str(path), files, kind, columns, labels, numbers)


def column_names(files: Sequence[Path], kind: str) -> list[str]:
    """The names of the columns; of JSONL, of its first object."""
    if kind == "lines":
        return first_line_names(files[0])
    if kind == "array":
        return array_names(files[0])
    if kind == "table":
        return table_dialect(files[0]).header
    return list(schema_of(files[0], kind).names)


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder, or a file that fits the pattern."""
    where = Path(path).expanduser()
    return any(where.parent.glob(where.name)) if _is_pattern(where) else where.exists()


def _is_pattern(where: Path) -> bool:
    return "*" in where.name and not where.exists()


def find_files(path: str | Path) -> tuple[tuple[Path, ...], str]:
    """The files that a table consists of, in order, and their kind. Raises :class:`UserError` as :func:`open_table` does."""
    where = Path(path).expanduser()
    if _is_pattern(where):
        files = sorted(where.parent.glob(where.name))
        if not files or any(file.suffix.lower() != ".parquet" for file in files):
            raise UserError(f"{path} is a pattern of {len(files)} files; give one of .parquet files")
        return tuple(files), "parquet"
    if not where.exists():
        raise UserError(f"{path} does not exist; {FORMATS}")
    files, kind = _find_files(where)
    if empty := [file for file in files if not file.stat().st_size]:
        raise UserError(f"{empty[0]} is empty (0 bytes); {FORMATS}")
    return tuple(files), kind


def _find_files(where: Path) -> tuple[list[Path], str]:
    if where.is_dir():
        return _find_in_folder(where)
    suffix = suffix_of(where)
    if suffix not in KINDS:
        raise UserError(f"{where}: files that end in {suffix or 'nothing'} are not read; {FORMATS}")
    return [where], "array" if suffix == ".json" and is_array(where) else KINDS[suffix]


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
    # A dataset of the Hugging Face hub has its splits side by side.
    splits = sorted({shard[1] for file in files if (shard := _SHARD.fullmatch(file.name))})
    if len(splits) > 1:
        raise UserError(f"{folder} has several splits ({', '.join(splits)}); give one file, or a folder with one split's files")
    return files, "parquet"


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); write the dataset again with save_to_disk") from error
    return value if isinstance(value, dict) else {}
