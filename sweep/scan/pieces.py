"""A table in pieces that any machine of a cluster can read: Parquet by row groups, a file of text as a whole.

    texts = open_pieces("s3://bucket/pool:train", ColumnNames())

Addresses are those of :mod:`pipelines.tables.remote`, or paths that all machines have. Rows have the numbers that they have on
one machine. Nothing but what is read is fetched, and nothing of Parquet is kept.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.corpus.columns import ColumnNames
from analysis.corpus.input import TextFile, way_out
from pipelines.errors import UserError
from pipelines.storage import exists, filesystem, is_local, join, names_below
from pipelines.tables.columns import named_labels
from pipelines.tables.files import KINDS, TableFile, column_names, find_files, open_table
from pipelines.tables.hub import is_on_hub
from pipelines.tables.readers import MAX_BATCH_ROWS, MalformedRow, RawBatch, suffix_of
from pipelines.tables.splits import files_like, files_of, split_path
from pipelines.tasks.parquet import parquet_schema, unreadable

GROUPS_AT_ONCE = 500_000
"""Rows of row groups that are one piece, about."""


@dataclass(frozen=True)
class Piece:
    """Rows of a table's file number `file`: some row groups of it, or all of it where there are none.

    `first` is the number of the first row.
    """

    address: str
    file: int = 0
    groups: tuple[int, ...] = ()
    first: int = 1


@dataclass(frozen=True)
class TableInPieces(TableFile):
    """A table whose files may lie on other machines."""

    pieces: tuple[Piece, ...] = ()
    total_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.total_bytes

    def raw_batches(self, malformed: list[MalformedRow] | None = None) -> Iterator[RawBatch]:
        for piece in self.pieces:
            yield from self.read(piece)

    def read(self, piece: Piece) -> Iterator[RawBatch]:
        """The rows of one piece, in order. Raises :class:`UserError` where they cannot be read."""
        if self.kind != "parquet":
            with _local(piece.address) as path:
                own = {field.name: getattr(self, field.name) for field in fields(TableFile)}
                yield from TableFile(**own | {"files": (path,)}).raw_batches()
            return
        first, names = piece.first, list(dict.fromkeys(self.columns.values()))
        with _opened(piece.address) as binary:
            file = pq.ParquetFile(binary, pre_buffer=False)
            there = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(MAX_BATCH_ROWS, list(piece.groups), there, use_threads=False):
                for name in names:
                    if name not in there:
                        batch = batch.append_column(name, pa.nulls(batch.num_rows, pa.string()))
                if self.own_label_names:
                    batch = named_labels(batch, self.columns["label"], self.own_label_names[piece.file])
                yield RawBatch(batch, first)
                first += batch.num_rows


def open_pieces(source: Any, names: ColumnNames | None = None, of_example: tuple[str, ...] = ()) -> TextFile:
    """Find out the format, the columns and the pieces of a table at an address.

    Raises :class:`UserError` as `analysis.corpus.input.open_texts` does, and for a table in memory, which other machines lack.
    """
    if not isinstance(source, str | Path):
        raise UserError("a table in memory is on this machine only; write it where the cluster's machines can read it")
    names, address = names or ColumnNames(), str(source)
    files = _files_of(address)
    kinds = {KINDS.get(suffix_of(Path(file)), "") for file in files}
    if kinds - {"parquet", "table", "lines"} or len(kinds) > 1 or (len(files) > 1 and kinds != {"parquet"}):
        listed = ", ".join(file.rpartition("/")[2] for file in files[:3])
        raise UserError(f"{address} ({listed}): a cluster reads Parquet, or one file of CSV or JSONL; write it as one of these")
    if kinds == {"parquet"}:
        table, texts = _opened_by_schemas(files, names, of_example, address)
        pieces = [piece for number, file in enumerate(files) for piece in _pieces_of(number, file)]
        first, numbered = 1, []
        for piece, num_rows in pieces:
            numbered.append(Piece(piece.address, piece.file, piece.groups, first))
            first += num_rows
    else:
        with _local(files[0]) as path:
            table, texts = _opened_here(path, names, of_example)
        numbered = [Piece(files[0])]
    own = {field.name: getattr(table, field.name) for field in fields(TableFile)} | {"path": address, "files": ()}
    total_bytes = sum(filesystem(file)[0].size(filesystem(file)[1]) or 0 for file in files)
    return TextFile(TableInPieces(**own, pieces=tuple(numbered), total_bytes=total_bytes), texts, names.kept)


def _opened_here(path: Path, names: ColumnNames, of_example: tuple[str, ...]) -> tuple[TableFile, tuple[str, ...]]:
    files, kind = find_files(path)
    present = column_names(files, kind)
    texts = of_example or names.fields_of(present)
    wanted = names.wanted(texts)
    return open_table(path, wanted, way_out(wanted, present)), texts


def _opened_by_schemas(
    files: list[str], names: ColumnNames, of_example: tuple[str, ...], address: str
) -> tuple[TableFile, tuple[str, ...]]:
    """The table as it is opened on one machine, by files without rows in the place of its own."""
    with tempfile.TemporaryDirectory(prefix="blindsweep-") as folder:
        empty = [Path(folder) / f"{number:06}.parquet" for number in range(len(files))]
        for file, path in zip(files, empty, strict=True):
            with _opened(file) as binary:
                pq.write_table(parquet_schema(binary, file).empty_table(), path)
        try:
            return _opened_here(Path(folder) if len(files) > 1 else empty[0], names, of_example)
        except UserError as error:
            text = str(error)
            for file, path in zip(files, empty, strict=True):
                text = text.replace(str(path), file)
            raise UserError(text.replace(folder, address)) from error


def _pieces_of(number: int, file: str) -> Iterator[tuple[Piece, int]]:
    """The pieces of a Parquet file, not yet numbered, and how many rows each has."""
    with _opened(file) as binary:
        metadata = pq.read_metadata(binary)
    groups: list[int] = []
    num_rows = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        num_rows += metadata.row_group(group).num_rows
        if num_rows >= GROUPS_AT_ONCE or group == metadata.num_row_groups - 1:
            yield Piece(file, number, tuple(groups)), num_rows
            num_rows, groups = 0, []


def _files_of(address: str) -> list[str]:
    """The addresses of a table's files, in order; as :func:`pipelines.tables.remote.local_copy` chooses them."""
    if is_local(address):
        files, _ = find_files(address)
        return [str(file.resolve()) for file in files]
    inner, split = split_path(address)
    if split and not is_on_hub(address) and exists(address):
        # Names of objects may have any colon.
        inner, split = address, ""
    folder, _, last = inner.rpartition("/")
    if "*" in last:
        names = names_below(folder) or []
        return [join(folder, name) for name in files_like([name for name in names if "/" not in name], last, folder, split)]
    below = names_below(inner)
    if below is None:
        return [inner]
    return [join(inner, name) for name in files_of(below, inner, split)]


@contextlib.contextmanager
def _opened(address: str) -> Iterator[Any]:
    system, path = filesystem(address)
    try:
        with system.open(path, "rb") as binary:
            yield binary
    except FileNotFoundError as error:
        raise UserError(f"{address} is not there; a path has to be one that each of the cluster's machines has") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        raise unreadable(address, error) from error


@contextlib.contextmanager
def _local(address: str) -> Iterator[Path]:
    """A path of a file on this machine, a copy for as long as it is read if it is not here."""
    if is_local(address):
        path, *_ = find_files(address)[0]
        yield path
        return
    system, remote = filesystem(address)
    with tempfile.TemporaryDirectory(prefix="blindsweep-") as folder:
        path = Path(folder) / remote.rpartition("/")[2]
        system.get_file(remote, str(path))
        yield path
