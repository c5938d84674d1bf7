"""Batches of a CSV file as arrow's reader streams them; none of its threads has anything of Python's left afterwards."""

import sys
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv

COPIED_BYTES = 1 << 16
LONGEST_WAIT_S = 10.0
"""Arrow's threads let go within milliseconds; without an end, a reference that somebody keeps would be a run that hangs."""


class _Lent:
    """A function that arrow's threads call: as a handler of rows, or as a file, which it reads."""

    closed = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.read = function

    def __call__(self, row: pyarrow.csv.InvalidRow) -> Any:
        return self.read(row)

    def close(self) -> None:
        """Arrow closes its files; this one is closed by who has opened it."""


def csv_batches(
    source: Path | BinaryIO,
    read: pyarrow.csv.ReadOptions,
    parse: Mapping[str, Any],
    convert: pyarrow.csv.ConvertOptions,
    put_aside: Callable[[pyarrow.csv.InvalidRow], str] | None = None,
) -> Generator[pa.RecordBatch, None, None]:
    """The batches of `source`, whose compression arrow knows; `put_aside` is called for rows that do not fit the header.

    Once they have come, an error is raised, or the iterator is closed or dropped, arrow's threads hold neither `put_aside` nor
    an open file of Python's. They finish after the last batch, and need Python's lock to let go of what is Python's. Where the
    interpreter shuts down in between, it ends the thread that asks for the lock, and C++ aborts the process for that, whose
    work was done. Closing arrow's own reader does not wait for its threads.

    Raises what reading `source` raises, and what :func:`pyarrow.csv.open_csv` and its reader do.
    """
    errors: list[Exception] = []

    def read_on(num_bytes: int) -> bytes:
        assert not isinstance(source, Path)
        try:
            return source.read(num_bytes)
        except Exception as error:
            # Raised below: arrow's threads would hold it, too.
            errors.append(error)
            return b""

    file: Any = source if isinstance(source, Path) else _Lent(read_on)
    handler: Any = None if put_aside is None else _Lent(put_aside)
    lent = [weakref.ref(given) for given in (file, handler) if isinstance(given, _Lent)]
    reader: Any = None
    try:
        if not isinstance(file, Path):
            # Arrow gets copies of the bytes; without, each of its blocks would be an object of Python's.
            file = pa.BufferedInputStream(pa.PythonFile(file, mode="r"), COPIED_BYTES)
        options = pyarrow.csv.ParseOptions(**parse, invalid_row_handler=handler)
        reader = pyarrow.csv.open_csv(file, read, options, convert)
        for batch in reader:
            if errors:
                break
            yield batch
    except Exception:
        if not errors:
            raise
    finally:
        file = handler = options = reader = None
        _wait_until_returned(lent)
    if errors:
        raise errors[0]


def _wait_until_returned(lent: Sequence[weakref.ref[_Lent]]) -> None:
    # Asked again and again: a finalizer would run in arrow's thread, which could need the lock once more for it.
    end = time.monotonic() + LONGEST_WAIT_S
    while any(given() is not None for given in lent) and time.monotonic() < end and not sys.is_finalizing():
        time.sleep(0.001)
