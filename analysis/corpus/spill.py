"""Arrays that outgrow memory: columns of one entry a row, and rows in parts by a key.

They lie in unnamed files in the folder for temporary files (TMPDIR), which the system removes with the last use of them, also
when the process is killed.
"""

from __future__ import annotations

import errno
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from pipelines.errors import UserError
from pipelines.splitmix import mixed

MEMORY_BYTES = 64 << 20
"""Columns of a scan that are kept in memory; more lie in files."""
PART_ROWS = 1 << 21
"""Rows whose keys are in memory at once."""
MAX_PARTS = 200
"""Each has two open files, of which a process may have a thousand; beyond, at 400 million rows, parts are larger."""
CHUNK_ROWS = 1 << 18


def _temporary_file() -> BinaryIO:
    return tempfile.TemporaryFile(prefix="blindsweep-")  # type: ignore[return-value]


def _write(file: BinaryIO, array: np.ndarray) -> None:
    try:
        file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        file.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{tempfile.gettempdir()} is full ({error.strerror}): a large file's numbers are kept there during the audit, "
                "about 150 bytes a row; free some of it, or name another folder: TMPDIR=/some/folder blindsweep audit …"
            ) from error
        raise


class Columns:
    """Columns that grow by batches of rows; what is beyond MEMORY_BYTES goes into files."""

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._num_bytes = 0
        self._parts: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._last: dict[str, np.ndarray] = {}
        self.num_rows = 0

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append a batch: arrays of shape (num_rows, …), of the same types and further dimensions in each."""
        for name, array in columns.items():
            self._parts.setdefault(name, []).append(array)
            self._last[name] = array[:0]
            self._num_bytes += array.nbytes
        self.num_rows += len(next(iter(columns.values())))
        if self._num_bytes > self._memory_bytes:
            self._spill()

    def _spill(self) -> None:
        for name, parts in self._parts.items():
            if name not in self._files:
                self._files[name] = _temporary_file()
            for part in parts:
                _write(self._files[name], part)
            parts.clear()
        self._num_bytes = 0
        # From now on batch by batch.
        self._memory_bytes = 0

    def finished(self) -> dict[str, np.ndarray]:
        """Each column as one array, read-only where it lies in a file. Nothing can be added afterwards."""
        if not self._files:
            columns = {}
            for name in list(self._parts):
                # The parts go one by one: else all would be in memory twice.
                columns[name] = np.concatenate(self._parts.pop(name))
            return columns
        return {name: self._mapped(name, file) for name, file in self._files.items()}

    def _mapped(self, name: str, file: BinaryIO) -> np.ndarray:
        like = self._last[name]
        if 0 in like.shape[1:]:
            # A column of no width, as of single texts' heuristics, has an empty file, which cannot be mapped.
            return np.zeros((self.num_rows, *like.shape[1:]), like.dtype)
        with file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(content, like.dtype).reshape(self.num_rows, *like.shape[1:])


def forget(*arrays: np.ndarray) -> None:
    """Let go of the memory of arrays that lie in files; they are read from there again when they are next used."""
    for array in arrays:
        if (content := _content_of(array)) is not None:
            content.madvise(mmap.MADV_DONTNEED)


def _content_of(array: np.ndarray) -> mmap.mmap | None:
    """The content of the file that an array lies in; None of one in memory."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def taken(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`array[rows]`; of an array that lies in a file, no more than a chunk is in memory at a time, whatever the rows' order."""
    if _content_of(array) is None:
        return array[rows]
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for where in chunks(len(array)):
        start, end = np.searchsorted(ordered, (where.start, where.stop))
        if start < end:
            found[order[start:end]] = array[ordered[start:end]]
            forget(array)
    return found


def chunks(num_rows: int, size: int | None = None) -> Iterator[slice]:
    """Slices of at most `size` rows that cover all."""
    step = size or CHUNK_ROWS
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


Keyed = tuple[np.ndarray, np.ndarray]
"""Keys, uint64, and the rows that they are of, int64; both of shape (num_rows,)."""


def by_key(num_rows: int, keyed: Callable[[slice], Keyed], num_parts: int | None = None) -> Iterator[Keyed]:
    """Keys and rows in parts, in which rows ascend; equal keys are in one part.

    `keyed` gives the keys of a slice of the `num_rows` rows, and their rows: all of them or some. There are as many parts as
    it takes for PART_ROWS in each, or `num_parts`.
    """
    num_parts = num_parts or parts_of(num_rows)
    if num_parts == 1:
        pieces = [keyed(rows) for rows in chunks(num_rows)]
        yield (
            np.concatenate([keys for keys, _ in pieces] or [np.zeros(0, np.uint64)]),
            np.concatenate([rows for _, rows in pieces] or [np.zeros(0, np.int64)]),
        )
        return
    files = [(_temporary_file(), _temporary_file()) for _ in range(num_parts)]
    try:
        for where in chunks(num_rows):
            keys, rows = keyed(where)
            part = part_of(keys, num_parts)
            order = np.argsort(part, kind="stable")
            ends = np.cumsum(np.bincount(part, minlength=num_parts))
            for number, (start, end) in enumerate(zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)):
                for file, array in zip(files[number], (keys, rows.astype(np.int64)), strict=True):
                    _write(file, array[order[start:end]])
        for keys_file, rows_file in files:
            keys_file.seek(0)
            rows_file.seek(0)
            yield np.fromfile(keys_file, np.uint64), np.fromfile(rows_file, np.int64)
            keys_file.close()
            rows_file.close()
    finally:
        for pair in files:
            for file in pair:
                file.close()


def parts_of(num_rows: int) -> int:
    """How many parts it takes for PART_ROWS in each, up to MAX_PARTS."""
    return min(max(1, -(-num_rows // PART_ROWS)), MAX_PARTS)


def part_of(keys: np.ndarray, num_parts: int) -> np.ndarray:
    """The part of each key, uint8 or uint16 of shape (num_keys,)."""
    # Small integers are sorted by their digits, in linear time.
    return (mixed(keys) % np.uint64(num_parts)).astype(np.uint16)
