"""CSV as arrow streams it: nothing of Python's stays with arrow's threads, however the reading ends."""

import io
import lzma
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from pipelines.tables import arrow_csv
from pipelines.tables.arrow_csv import csv_batches

ROOT = Path(__file__).parents[3]
BLOCK = 2 * arrow_csv.COPIED_BYTES
FITTING = b"x,y\n"
NUM_BLOCKS = 100
"""More than arrow reads ahead."""
MANY = FITTING * (BLOCK // len(FITTING)) * NUM_BLOCKS


class SlowFile(io.BytesIO):
    """Each read takes so long that arrow's thread is in one whenever the consumer stops."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        super().__init__(content)
        self.error = error
        self.given: list[weakref.ref[memoryview]] = []

    def read(self, size: int | None = -1, /) -> Any:
        time.sleep(0.02)
        if self.error and self.tell() > 2 * BLOCK:
            raise self.error
        content = memoryview(super().read(size))
        self.given.append(weakref.ref(content))
        return content


def opened(source: Path | io.BytesIO, put_aside: Callable[[pyarrow.csv.InvalidRow], str] | None = None) -> Any:
    convert = pyarrow.csv.ConvertOptions(column_types={"a": pa.string(), "b": pa.string()})
    return csv_batches(source, pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK), {}, convert, put_aside)


def skipped(row: pyarrow.csv.InvalidRow) -> str:
    return "skip"


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each reading that has ended, whether arrow had let go of all that it was lent."""
    seen: list[bool] = []
    wait = arrow_csv._wait_until_returned

    def wait_and_look(lent: Any) -> None:
        wait(lent)
        seen.append(all(given() is None for given in lent))

    monkeypatch.setattr(arrow_csv, "_wait_until_returned", wait_and_look)
    return seen


def test_a_handler_is_let_go_when_the_rows_have_come(tmp_path: Path, returned: list[bool]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + FITTING)
    # In some of a hundred readings arrow's thread is behind.
    for _ in range(100):
        assert [batch.num_rows for batch in opened(path, skipped)] == [1]
    assert returned == [True] * 100


def test_file_and_handler_are_let_go_when_a_consumer_stops_half_way(returned: list[bool]) -> None:
    with SlowFile(b"a,b\n" + MANY) as file:
        batches = opened(file, skipped)
        next(batches)
        while len(file.given) < 8:
            time.sleep(0.01)
        # What has been read ahead is arrow's own copy, all but what is being copied.
        assert sum(content() is not None for content in file.given) <= 1
        batches.close()
        assert returned == [True]
        num_reads = len(file.given)
        assert num_reads < NUM_BLOCKS and not any(content() for content in file.given)
        # Nobody reads on.
        time.sleep(0.1)
        assert len(file.given) == num_reads


def test_file_and_handler_are_let_go_when_a_consumer_fails(returned: list[bool]) -> None:
    def consume() -> None:
        for _ in opened(file, skipped):
            raise ValueError("not this row")

    with SlowFile(b"a,b\n" + MANY) as file:
        with pytest.raises(ValueError, match="not this row"):
            consume()
        assert returned == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Empty CSV"),
        (b"a,b\n" + FITTING * BLOCK + b"1,2,3\n", r"Expected 2 columns, got 3: 1,2,3"),
        (b"a,b\n\xff\xfe,1\n", "UTF8"),
    ],
)
def test_a_file_is_let_go_when_it_is_no_csv(returned: list[bool], content: bytes, message: str) -> None:
    with SlowFile(content) as file:
        with pytest.raises(pa.ArrowInvalid, match=message):
            list(opened(file))
        assert returned == [True]


@pytest.mark.parametrize(
    "error", [EOFError("cut off"), lzma.LZMAError("corrupt"), OSError(5, "a broken disk"), KeyError("any")]
)
@pytest.mark.parametrize(("row", "put_aside"), [(b"text,label\n", skipped), (b"a text,label\n", None)])
def test_what_a_file_raises_is_raised_and_no_row_that_is_cut_off_is_read(
    returned: list[bool], error: Exception, row: bytes, put_aside: Any
) -> None:
    # Of the row at which it fails there is "text,l", or "a", for which arrow has an error of its own.
    with SlowFile(b"a,b\n" + row * (BLOCK // 2), error) as file:
        seen = set()
        with pytest.raises(type(error)) as raised:
            for batch in opened(file, put_aside):
                seen |= set(batch["b"].to_pylist())
        # Rows before it need not have come: arrow reads ahead.
        assert raised.value is error and seen <= {"label"}
    assert returned == [True]


PROGRAM = """
import sys
from pipelines.tables.arrow_csv import csv_batches
from tests.pipelines.tables.test_arrow_csv import MANY, SlowFile, opened, skipped

def consume(ends):
    for batch in opened(SlowFile(b"a,b\\n" + MANY), skipped):
        if ends == "stops":
            break
        raise ValueError("uncaught")

print("done", flush=True)
consume(sys.argv[1])
"""


@pytest.mark.parametrize(("ends", "code"), [("stops", 0), ("fails", 1)])
def test_a_process_ends_as_it_should_right_after_a_consumer_has_stopped(ends: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, ends], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (code, "done\n"), done.stderr
