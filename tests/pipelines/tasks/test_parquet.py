"""Hostile Parquet: refused by the file's name, within little memory, and what labelled pairs look like is let through."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples
from pipelines.tasks.parquet import parquet_batches, parquet_table

ROOT = Path(__file__).parents[3]
MEGABYTE = 1 << 20

# Reads each file in both ways, with 2 GB of address space beyond what the libraries took. Less is let through than usual, so
# that the files need not be large.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from analysis.corpus.input import open_texts
from pipelines.errors import UserError
from pipelines.tasks import parquet
from pipelines.tasks.examples import read_examples

parquet.MIN_ALLOWED_BYTES = 64 << 20
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
for path in sys.argv[1:]:
    for read in (read_examples, lambda path: list(open_texts(path).raw_batches()) and None):
        try:
            answer = f"read: {read(path) and 1}"
        except UserError as error:
            answer = str(error)
        except BaseException as error:
            answer = f"raw: {error!r}"
        print(json.dumps([Path(path).name, answer]), flush=True)
"""


def pairs(**columns: pa.Array | list[object]) -> pa.Table:
    num = len(next(iter(columns.values()))) if columns else 3
    usual: dict[str, list[str]] = {"id": [str(i) for i in range(num)]} if num < 1000 else {"id": ["a"] * num}
    return pa.table({**usual, "premise": ["A man"] * num, "hypothesis": ["A man"] * num, "label": ["neutral"] * num, **columns})


def written(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{"compression": "zstd", "store_schema": False, **options})
    return buffer.getvalue()


def repeated(text: str, num: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), num), pa.array([text]))


GOOD = written(pairs())
CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "one_long_text_in_many_rows": (lambda: written(pairs(premise=repeated("a" * MEGABYTE, 100_000))), "its rows have over"),
    "long_texts_after_short_ones": (
        lambda: written(
            pairs(
                premise=pa.DictionaryArray.from_arrays(
                    pa.concat_arrays(
                        [pa.repeat(pa.scalar(0, pa.int32()), 40_000), pa.repeat(pa.scalar(1, pa.int32()), 40_000)]
                    ),
                    pa.array(["a", "b" * MEGABYTE]),
                )
            )
        ),
        "its rows have over",
    ),
    "many_columns_of_long_texts": (
        lambda: written(pairs(**{name: repeated("a" * MEGABYTE, 10_000) for name in ("premise", "hypothesis", "label")})),
        "its rows have over",
    ),
    "a_page_that_inflates": (
        lambda: written(pairs(premise=pa.array(["a" * (40 * MEGABYTE), "b" * (40 * MEGABYTE)])), use_dictionary=False),
        "more than 1,000 times its size",
    ),
    "more_rows_than_fit": (lambda: with_rows(10**12), r"footer says 1,000,000,000,000 rows and its parts 3"),
    "wrong_magic": (lambda: b"PAR2" + GOOD[4:-4] + b"PAR2", "is not readable as Parquet"),
    "an_encrypted_footer": (lambda: GOOD[:-4] + b"PARE", "is not readable as Parquet"),
    "a_footer_longer_than_the_file": (
        lambda: GOOD[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1",
        "is not readable as Parquet",
    ),
    "a_footer_of_all_ones": (lambda: GOOD[:-8] + b"\xff\xff\xff\xff" + b"PAR1", "is not readable as Parquet"),
    "no_footer": (lambda: GOOD[:-8] + (0).to_bytes(4, "little") + b"PAR1", "is not readable as Parquet"),
    "the_magic_alone": (lambda: b"PAR1PAR1", "is not readable as Parquet"),
    "cut_off": (lambda: GOOD[: len(GOOD) // 2], "is not readable as Parquet"),
    "garbled_pages": (lambda: GOOD[:8] + bytes(120) + GOOD[128:], "is not readable as Parquet"),
    "a_zip": (lambda: b"PK\x03\x04" + bytes(100), "is not readable as Parquet"),
    "a_pickle": (lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.", "is not readable as Parquet"),
    "numbers_for_texts": (lambda: written(pairs(premise=[1, 2, 3])), "premise"),
    "lists_for_texts": (lambda: written(pairs(premise=[["a"], ["b"], ["c"]])), "premise"),
    "nested_texts": (lambda: written(pairs(premise=[{"a": {"b": "c"}}] * 3)), "premise"),
}


def with_rows(num: int) -> bytes:
    """The good file, whose footer claims `num` rows: a varint after the schema, found by what pyarrow makes of it."""
    length = int.from_bytes(GOOD[-8:-4], "little")
    footer = GOOD[-8 - length : -8]
    zigzag, claimed = num << 1, b""
    while zigzag > 127:
        claimed += bytes([zigzag & 127 | 128])
        zigzag >>= 7
    claimed += bytes([zigzag])
    for at in range(len(footer) - 1):
        # Field 3 (one after the schema's), an i64: 3 rows.
        if footer[at : at + 2] == b"\x16\x06":
            changed = footer[: at + 1] + claimed + footer[at + 2 :]
            content = GOOD[: -8 - length] + changed + len(changed).to_bytes(4, "little") + b"PAR1"
            try:
                if pq.read_metadata(io.BytesIO(content)).num_rows == num:
                    return content
            except (OSError, pa.ArrowException):
                continue
    raise AssertionError("no number of rows in the footer")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in CASES.items():
        (folder / f"{name}.parquet").write_bytes(make())
    (folder / "good.parquet").write_bytes(GOOD)
    paths = sorted(map(str, folder.glob("*.parquet")))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    answers: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, answer = json.loads(line)
        answers.setdefault(name, []).append(answer)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
    return answers


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_by_its_name(answers: dict[str, list[str]], name: str) -> None:
    """As a training set and by the audit."""
    _, words = CASES[name]
    assert len(answers[f"{name}.parquet"]) == 2
    for answer in answers[f"{name}.parquet"]:
        assert not answer.startswith(("raw", "read")) and "\n" not in answer
        assert f"{name}.parquet" in answer and words in answer


def test_a_good_file_is_read(answers: dict[str, list[str]], tmp_path: Path) -> None:
    assert answers["good.parquet"] == ["read: 1", "read: None"]
    (tmp_path / "good.parquet").write_bytes(GOOD)
    assert read_examples(tmp_path / "good.parquet").equals(pq.read_table(tmp_path / "good.parquet"))


@pytest.mark.parametrize("columns", [None, ["label", "id"]])
def test_rows_come_as_pyarrow_reads_them(columns: list[str] | None) -> None:
    table = pairs(id=[str(i) for i in range(900)], premise=[f"{i} " * (i % 50) for i in range(900)])
    content = written(table, row_group_size=100)
    found = parquet_table(io.BytesIO(content), "a.parquet", columns)
    assert found.select(columns or table.column_names).combine_chunks().equals(table.select(columns or table.column_names))
    assert parquet_table(io.BytesIO(written(table.slice(0, 0))), "a.parquet", columns).num_rows == 0


def test_batches_are_small_where_a_dictionary_s_value_is_long() -> None:
    content = written(pairs(premise=repeated("a" * MEGABYTE, 200)))
    assert max(batch.num_rows for batch in parquet_batches(io.BytesIO(content), "a.parquet")) <= 64


def test_a_store_that_does_not_answer_is_not_called_a_bad_file() -> None:
    class Gone(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        list(parquet_batches(Gone(GOOD), "a.parquet"))
    with pytest.raises(UserError, match=r"a\.parquet is not readable"):
        list(parquet_batches(io.BytesIO(b"PAR1"), "a.parquet"))
