"""A table as it lies on disk, on the hub or in a bucket: a file, a folder of files of one format, or a dataset's folder.

    table = open_table("pairs.csv", [Wanted("premise"), Wanted("hypothesis"), Wanted("label", is_text=False)])
    for raw in table.raw_batches():
        columns, rows = text_columns(raw, table)    # pipelines.tables.values

A path may end in a split: `my_folder:train` (:mod:`pipelines.tables.splits`). What is elsewhere is fetched first
(:mod:`pipelines.tables.remote`).

Opening looks at names and types only. A batch is at most 32,768 rows, fewer where rows are large, so that the texts of a file
are never in memory at once. Rows are counted from 1, without a header, and over all files of a folder; in JSONL lines are.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.tables.columns import Wanted, check_types, find_columns, label_names_by_file, named_labels
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
    read_past_malformed,
    read_tables,
    renumbered,
    renumbered_lines,
    schema_of,
    suffix_of,
    table_dialect,
)
from pipelines.tables.remote import is_remote, local_copy
from pipelines.tables.splits import files_like, files_of, is_table, split_path

KINDS = (
    {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
    | dict.fromkeys(TABLE_SUFFIXES, "table")
    | dict.fromkeys(LINES_SUFFIXES, "lines")
)
MOST_LEVELS = 4
"""So deep below a folder tables are looked for."""


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
    """A Hugging Face dataset's names of its label numbers, such as '0' -> 'entailment', where all its files have the same."""
    numbers: frozenset[str] = frozenset({"label"})
    """Of `columns`, those whose numbers are text."""
    optional: frozenset[str] = frozenset()
    """Of `columns`, those that a table need not have: their blank cells are null."""
    present: tuple[str, ...] = ()
    """The names of all columns in the file."""
    own_label_names: tuple[Mapping[str, str], ...] = ()
    """The names of label numbers by file, where files differ in them; they are in place of the numbers when a file is read."""

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

        CSV rows with another number of cells than the header are put into `malformed` where it is given, and left out; else
        they are an error.
        """
        names = list(dict.fromkeys(self.columns.values()))
        if self.kind == "lines":
            return renumbered_lines((file, read_lines(file)) for file in self.files)
        if self.kind == "array":
            return renumbered_lines((file, read_array(file)) for file in self.files)
        if self.kind == "table":
            if malformed is not None:
                return read_past_malformed(self.files, names, malformed)
            return renumbered([read_tables(self.files, names, None)])
        return renumbered(self._batches(index, names) for index in range(len(self.files)))

    def _batches(self, index: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        there = schema_of(self.files[index], self.kind).names if self.optional and len(self.files) > 1 else names
        batches = (read_parquet if self.kind == "parquet" else read_arrow)(
            self.files[index], [name for name in names if name in there]
        )
        for batch in batches:
            for name in names:
                if name not in there:
                    batch = batch.append_column(name, pa.nulls(batch.num_rows, pa.string()))
            if self.own_label_names:
                batch = named_labels(batch, self.columns["label"], self.own_label_names[index])
            yield batch


def open_table(path: str | Path, wanted: Sequence[Wanted], way_out: str = "name one of them") -> TableFile:
    """Find out the format of a file or folder, and its columns as :func:`pipelines.tables.columns.find_columns` does.

    Raises :class:`UserError` for what does not exist, is empty, is of another format, has several splits, lacks a shard or a
    column, or has a column of a type that is no text (where numbers may be: no text and no number).
    """
    files, kind = find_files(path)
    schemas = [schema_of(file, kind) for file in files] if kind in ("parquet", "arrow") else []
    by_file = [list(schema.names) for schema in schemas] or [column_names([file], kind) for file in files]
    # Duplicates of the first file stay, which are an error.
    present = [*by_file[0], *dict.fromkeys(name for names in by_file[1:] for name in names if name not in by_file[0])]
    columns = find_columns(present, wanted, path, way_out)
    numbers = frozenset(column.name for column in wanted if not column.is_text)
    optional = frozenset(column.name for column in wanted if column.is_optional and column.name in columns)
    for file, names in zip(files, by_file, strict=True):
        for name, column in columns.items():
            if column not in names and name not in optional:
                raise UserError(f"{file}: no column {column!r}, which other files of the folder have; write them alike")
    labels: dict[str, str] = {}
    own_labels: tuple[Mapping[str, str], ...] = ()
    for file, schema in zip(files, schemas, strict=bool(schemas)):
        check_types(schema, columns, numbers, file)
    if schemas and "label" in columns:
        names_by_file = label_names_by_file(schemas, columns["label"], files)
        is_one = all(names == names_by_file[0] for names in names_by_file)
        labels, own_labels = (dict(names_by_file[0]), ()) if is_one else ({}, names_by_file)
    return TableFile(str(path), files, kind, columns, labels, numbers, optional, tuple(present), own_labels)


def column_names(files: Sequence[Path], kind: str) -> list[str]:
    """The names of the columns of the first file; of JSON, of its first objects."""
    if kind == "lines":
        return first_line_names(files[0])
    if kind == "array":
        return array_names(files[0])
    if kind == "table":
        return table_dialect(files[0]).header
    return list(schema_of(files[0], kind).names)


def is_there(path: str | Path) -> bool:
    """Whether there is such a file or folder, or a file that fits the pattern, whatever its split."""
    where, _ = _located(path)
    return any(where.parent.glob(where.name)) if _is_pattern(where) else where.exists()


def _located(path: str | Path) -> tuple[Path, str]:
    """Where it is, and its split; a path that is there as it stands has none, whatever colons it has."""
    where = Path(path).expanduser()
    if where.exists():
        return where, ""
    inner, split = split_path(str(where))
    return Path(inner), split


def _is_pattern(where: Path) -> bool:
    return "*" in where.name and not where.exists()


def find_files(path: str | Path) -> tuple[tuple[Path, ...], str]:
    """The files that a table consists of, in order, and their kind. Raises :class:`UserError` as :func:`open_table` does."""
    if is_remote(str(path)):
        here = local_copy(str(path))
        assert here is not None
        return find_files(here)
    where, split = _located(path)
    if _is_pattern(where):
        there = [file.name for file in where.parent.iterdir()] if where.parent.is_dir() else []
        files = [where.parent / name for name in files_like(there, where.name, str(where.parent), split)]
    elif not where.exists():
        there = [file.name for file in where.parent.iterdir()] if where.parent.is_dir() else []
        close = difflib.get_close_matches(where.name, there, n=1, cutoff=0.7)
        raise UserError(f"{path} does not exist; {f'did you mean {where.parent / close[0]}?' if close else FORMATS}")
    elif where.is_dir():
        files = _find_in_folder(where, split)
    elif split:
        raise UserError(f"{where} is a file, which has no splits; leave :{split} out")
    else:
        files = [where]
    suffix = suffix_of(files[0])
    if suffix not in KINDS:
        raise UserError(f"{where}: files that end in {suffix or 'nothing'} are not read; {FORMATS}")
    if empty := [file for file in files if not file.stat().st_size]:
        raise UserError(f"{empty[0]} is empty (0 bytes); {FORMATS}")
    return tuple(files), "array" if suffix == ".json" and is_array(files[0]) else KINDS[suffix]


def _find_in_folder(where: Path, split: str) -> list[Path]:
    if (where / "dataset_dict.json").is_file():
        splits = [str(name) for name in _json_file(where / "dataset_dict.json").get("splits", ())]
        if not split:
            raise UserError(f"{where} has several splits; give one of them: {', '.join(f'{where}:{name}' for name in splits)}")
        if split not in splits:
            raise UserError(f"{where} has no split {split!r}; it has {', '.join(splits)}: give one of them")
        return _find_in_folder(where / split, "")
    if (where / "state.json").is_file():
        if split:
            raise UserError(f"{where} is one split of a data set; leave :{split} out")
        names = [str(file.get("filename")) for file in _json_file(where / "state.json").get("_data_files") or ()]
        files = [where / name for name in names]
        if not files or any(Path(name).name != name for name in names):
            raise UserError(f"{where}/state.json names no files of its own folder; write the dataset again with save_to_disk")
        if missing := [file for file in files if not file.is_file()]:
            raise UserError(f"{missing[0]} is missing, and state.json names it; copy the whole folder")
        return files
    return [where / name for name in files_of(_names_below(where), str(where), split)]


def _names_below(folder: Path) -> list[str]:
    """The paths of files below a folder, those of the first level that has tables."""
    names: list[str] = []
    for below, folders, files in os.walk(folder):
        inner = Path(below).relative_to(folder)
        names += [str(inner / name) for name in files]
        is_deep = len(inner.parts) >= MOST_LEVELS - 1
        folders[:] = (
            [] if is_deep or any(map(is_table, files)) else sorted(name for name in folders if not name.startswith("."))
        )
    return names


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); write the dataset again with save_to_disk") from error
    return value if isinstance(value, dict) else {}
