"""What is read of a table, and what is put aside."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.tables.columns import Wanted
from pipelines.tables.files import TableFile, is_there, open_table
from pipelines.tables.readers import MalformedRow
from pipelines.tables.values import text_columns

TEXT = [Wanted("text"), Wanted("label", is_text=False)]


def texts(table: TableFile, malformed: list[MalformedRow] | None = None) -> list[str | None]:
    return [text for raw in table.raw_batches(malformed) for text in text_columns(raw, table)[0]["text"].to_pylist()]


def test_rows_of_another_width_are_put_aside_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,1\n\nb\n"c\nd",2\ne,f,3\ng,4\n')
    table, malformed = open_table(path, TEXT), list[MalformedRow]()
    assert texts(table, malformed) == ["a", "c\nd", "g"]
    assert malformed == [MalformedRow(2, 1, 2, "b"), MalformedRow(4, 3, 2, "e,f,3")]
    with pytest.raises(UserError, match="line 4 has 1 cells and the header 2"):
        texts(table)


def test_a_row_that_is_read_twice_is_put_aside_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.tables import readers

    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 64)  # the long cell makes it start again in larger blocks
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a,1\nb\n" * 50 + "c" * 1_000 + ",1\nd\n")
    malformed = list[MalformedRow]()
    assert texts(open_table(path, TEXT), malformed) == ["a"] * 50 + ["c" * 1_000]
    assert [row.row for row in malformed] == [*range(2, 101, 2), 102]


def test_a_given_column_is_taken_strictly_or_where_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sentence,label,kind\na,1,x\n")
    assert open_table(path, [Wanted("text", "phrase"), Wanted("kind")]).columns == {"text": "sentence", "kind": "kind"}
    with pytest.raises(UserError, match=r"no text column .'phrase'.; it has 'sentence', 'label', 'kind'"):
        open_table(path, [Wanted("text", "phrase", is_strict=True)])


def test_two_wanted_columns_are_one_only_where_neither_needs_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,1\n")
    with pytest.raises(UserError, match="mapped twice"):
        open_table(path, [Wanted("text"), Wanted("sentence")])
    assert open_table(path, [Wanted("text"), Wanted("cluster", "text", is_own=False)]).columns["cluster"] == "text"


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_tab_separated_cells_as_csv_writers_quote_them(tmp_path: Path, quoting: int) -> None:
    wanted = ['He said "no", twice.', "two\nlines", "a\ttab", "plain", '"Yes."', "'"]
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting)  # type: ignore[arg-type]
        writer.writerows([["text", "label"], *([text, 1] for text in wanted)])
    assert texts(open_table(tmp_path / "a.tsv", TEXT)) == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        ['He said "no", twice.'],
        ['"Yes."', "No."],
        ['"Yes', "and no more"],
        ['"Yes," he said.', 'He said ""no"" twice', "x"],
        ['5" pipes', 'and "no" others', "x"],
        ['"', "plain"],
        ['"'] + ["plain"] * 2_000 + ['"'],
    ],
)
def test_quotation_marks_that_are_text_stay(tmp_path: Path, wanted: list[str]) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t1\n" for text in wanted))
    assert texts(open_table(tmp_path / "a.tsv", TEXT)) == wanted


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.txt", "\t")])
def test_cells_are_between_the_marks_that_the_header_has(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(f"text{mark}label\na b{mark}1\n")
    assert texts(open_table(tmp_path / name, TEXT)) == ["a b"]


def test_marks_within_cells_are_text_beside_cells_that_a_writer_enclosed(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"He said ""no"" twice"\t1\nhe said "no" twice\t0\n5" pipes\t0\n')
    assert texts(open_table(tmp_path / "a.tsv", TEXT)) == ['He said "no" twice', 'he said "no" twice', '5" pipes']


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_compressed_text_is_read_as_it_is_uncompressed(tmp_path: Path, name: str) -> None:
    mark = "\t" if name == "a.tsv" else ","
    content = (
        '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
        if name == "a.jsonl"
        else f"text{mark}label\na{mark}1\nb{mark}0\n"
    )
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    table = open_table(tmp_path / f"{name}.gz", TEXT)
    assert texts(table) == ["a", "b"] and table.columns == {"text": "text", "label": "label"}
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode())[:-9])
    with pytest.raises(UserError, match=r"gz is cut off|not readable|cannot be decompressed"):
        texts(open_table(tmp_path / f"{name}.gz", TEXT))


def test_shards_named_with_a_hash_are_one_split(tmp_path: Path) -> None:
    for shard in range(2):
        pq.write_table(pa.table({"text": [f"t{shard}"], "label": [1]}), tmp_path / f"train-0000{shard}-of-00002-0a1b2c.parquet")
    assert texts(open_table(tmp_path, TEXT)) == ["t0", "t1"]


def test_a_pattern_is_the_files_that_fit_it(tmp_path: Path) -> None:
    for name, text in (("train-00000-of-00002", "a"), ("train-00001-of-00002", "b"), ("test-00000-of-00001", "c")):
        pq.write_table(pa.table({"text": [text], "label": [1]}), tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"several splits \(test, train\)"):
        open_table(tmp_path, TEXT)
    assert texts(open_table(tmp_path / "train-*.parquet", TEXT)) == ["a", "b"]
    assert is_there(tmp_path / "train-*.parquet") and not is_there(tmp_path / "dev-*.parquet")
    with pytest.raises(UserError, match=r"is a pattern of 0 files; give one of .parquet files"):
        open_table(tmp_path / "dev-*.parquet", TEXT)


def test_a_json_array_is_read_by_its_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a\nb", "label": 1}, {"text": "ü", "label": None}], indent=1))
    table = open_table(path, TEXT)
    assert texts(table) == ["a\nb", "ü"] and table.unit == "row"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n')
    assert texts(open_table(path, TEXT)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a", "label": 1}, 3]', "row 2 is a JSON int, not an object"),
        ('[{"text": "a", "label": 1}', "is no JSON"),
        ("[]", "is an empty array"),
        ('[{"text": "a", "label": 1}, {"text": 4, "label": 1}]', "row 2: 'text' is '4' .int.; the text must be text"),
    ],
)
def test_a_json_array_that_cannot_be_read_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        texts(open_table(tmp_path / "a.json", TEXT))
