"""What is read of a table, and what is put aside."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
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


def compressed(content: bytes, ending: str) -> bytes:
    if ending == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[ending](content)


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_compressed_text_is_read_as_it_is_uncompressed(tmp_path: Path, name: str, ending: str) -> None:
    # Text that does not shrink, so that half of the file is half of its rows.
    rows = [{"text": f'{random.Random(row).random()} "ä"', "label": row % 3} for row in range(4_000)]
    match name:
        case "a.jsonl":
            content = "".join(json.dumps(row) + "\n" for row in rows)
        case "a.json":
            content = json.dumps(rows)
        case _:
            file = io.StringIO()
            writer = csv.DictWriter(file, ["text", "label"], delimiter="\t" if name == "a.tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
            content = file.getvalue()
    path = tmp_path / f"{name}.{ending}"
    path.write_bytes(compressed(content.encode(), ending))
    table = open_table(path, TEXT)
    assert texts(table) == [row["text"] for row in rows] and table.columns == {"text": "text", "label": "label"}
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:-5], b"no such thing", b"\0" * 100):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=rf"a.*{ending}.* (cannot be decompressed|not readable|is no JSON)"):
            texts(open_table(path, TEXT))


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_compressed_parts_that_were_joined_are_one_file(tmp_path: Path, name: str, ending: str) -> None:
    head = "text\n" if name == "a.csv" else ""
    parts = [f"{head}a\n", "b\n"] if name == "a.csv" else ['{"text": "a"}\n', '{"text": "b"}\n']
    (tmp_path / f"{name}.{ending}").write_bytes(b"".join(compressed(part.encode(), ending) for part in parts))
    assert texts(open_table(tmp_path / f"{name}.{ending}", [Wanted("text")])) == ["a", "b"]


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
    with pytest.raises(UserError, match=r"is a pattern of 0 files; give one of files of a table"):
        open_table(tmp_path / "dev-*.parquet", TEXT)


def test_a_path_that_is_not_there_is_told_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("text,label\na,1\n")
    with pytest.raises(UserError, match=rf"pol\.csv does not exist; did you mean {tmp_path}/pool\.csv\?"):
        open_table(tmp_path / "pol.csv", TEXT)
    for path in ("other.parquet", "nowhere/pool.csv"):
        with pytest.raises(UserError, match=rf"{path} does not exist; give a \.parquet, "):
            open_table(tmp_path / path, TEXT)


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


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b"text,label\na,1\n", mtime=0),
            "is compressed by gzip, and its name does not say so; let it end in .gz",
        ),
        (lzma.compress(b"text,label\na,1\n"), "is compressed by xz, .* let it end in .xz"),
        (pa.compress(b"text,label\na,1\n", "zstd", asbytes=True), "is compressed by zstd, .* let it end in .zst"),
        (b"PAR1 and more", "is Parquet, .* let it end in .parquet"),
        (b"PK\x03\x04 and more", "is a zip file, as spreadsheets are; unpack it, or save the sheet as CSV in UTF-8"),
    ],
)
def test_a_file_whose_name_hides_its_format_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_table(tmp_path / name, TEXT)


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow_is_read_as_a_stream_and_as_a_file(tmp_path: Path, name: str, is_stream: bool) -> None:
    table = pa.table({"text": [f"t{row}" for row in range(5)], "label": [1] * 5})
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(str(tmp_path / name), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert texts(open_table(tmp_path / name, TEXT)) == [f"t{row}" for row in range(5)]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    with pytest.raises(UserError, match="not readable as Arrow"):
        texts(open_table(tmp_path / name, TEXT))


def with_names(names: list[str] | None, labels: pa.Array) -> pa.Table:
    table = pa.table({"text": [f"{label}" for label in labels], "label": labels})
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def labels(table: TableFile) -> list[str | None]:
    return [label for raw in table.raw_batches() for label in text_columns(raw, table)[0]["label"].to_pylist()]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("shards", "wanted"),
    [
        ([(["yes", "no"], pa.array([0, 1, -1])), (["no", "yes"], pa.array([0, 1]))], ["yes", "no", "-1", "no", "yes"]),
        ([(["yes", "no"], pa.array([0, 1])), (["ja", "nein"], pa.array([1, None]))], ["yes", "no", "nein", None]),
        ([(["yes", "no"], pa.array([1])), (None, pa.array([0]))], ["no", "yes"]),
        ([(None, pa.array([0])), (["yes", "no"], pa.array([1]))], ["yes", "no"]),
        ([(["1", "0"], pa.array([0])), (["0", "1"], pa.array([0.0, float("nan")]))], ["1", "0", None]),
        (
            [(["yes", "no"], pa.array([0])), (["no", "yes"], pa.array([0])), (None, pa.array(["no", "0"]))],
            ["yes", "no", "no", "0"],
        ),
        ([(["yes", "no"], pa.array([0, 1])), (["yes", "no"], pa.array([1]))], ["yes", "no", "no"]),
    ],
)
def test_label_numbers_stand_for_their_own_files_names(tmp_path: Path, kind: str, shards: list, wanted: list) -> None:
    for index, (names, numbers) in enumerate(shards):
        table, path = with_names(names, numbers), tmp_path / f"part-{index}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
    assert labels(open_table(tmp_path, TEXT)) == wanted


def test_label_numbers_that_may_stand_for_either_are_refused(tmp_path: Path) -> None:
    for index, names in enumerate([["yes", "no"], ["no", "yes"], None]):
        pq.write_table(with_names(names, pa.array([0])), tmp_path / f"{index}.parquet")
    with pytest.raises(UserError, match=r"2.parquet: nothing says what its label numbers stand for.*\(yes, no and no, yes\)"):
        open_table(tmp_path, TEXT)


PARSED = [Wanted("text"), Wanted("parse", is_optional=True)]


def parses(path: Path) -> list[str | None]:
    table = open_table(path, PARSED)
    return [parse for raw in table.raw_batches() for parse in text_columns(raw, table)[0]["parse"].to_pylist()]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("column", [["(S a)", None, "(S c)"], [None, "(S b)", None], [None, " ", None]])
def test_an_optional_column_may_be_blank_in_part_or_throughout(tmp_path: Path, name: str, column: list[str | None]) -> None:
    table, path = pa.table({"text": ["a", "b", "c"], "premise_parse": pa.array(column, pa.string())}), tmp_path / name
    rows = [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path)
        case ".arrow":
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, table.column_names, delimiter="\t" if name == "a.tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    if column[1] == " " and name in ("a.jsonl", "a.json"):
        assert open_table(path, PARSED).columns["parse"] == "premise_parse"
    assert parses(path) == [None if value == " " else value for value in column]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_of_a_folder_may_lack_an_optional_column_and_no_other(tmp_path: Path, suffix: str) -> None:
    for index, row in enumerate([{"text": "a"}, {"text": "b", "premise_parse": "(S b)"}, {"premise_parse": "(S c)"}]):
        path = tmp_path / f"{index}.{suffix}"
        match suffix:
            case "csv":
                path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
            case "jsonl":
                path.write_text(json.dumps(row) + "\n")
            case _:
                pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(UserError, match=rf"2.{suffix}: no column 'text', which other files of the folder have"):
        open_table(tmp_path, PARSED)
    (tmp_path / f"2.{suffix}").unlink()
    assert parses(tmp_path) == [None, "(S b)"]


def test_a_field_that_the_first_row_leaves_out_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": "1"}\n')
    assert labels(open_table(tmp_path / "a.jsonl", TEXT)) == [None, "1"]


def test_rows_and_faults_are_numbered_over_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\nb\nc,1\n")
    (tmp_path / "b.csv").write_text("label,text\n1,d\n1\n1,f\n")
    table, malformed = open_table(tmp_path, TEXT), list[MalformedRow]()
    assert texts(table, malformed) == ["a", "c", "d", "f"]
    assert [row.row for row in malformed] == [2, 5]
    (tmp_path / "lines").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "lines" / f"{name}.jsonl").write_text(f'{{"text": "{name}0"}}\n\n{{"text": "{name}1"}}')
    table = open_table(tmp_path / "lines", [Wanted("text")])
    numbers = [number for raw in table.raw_batches() for number in text_columns(raw, table)[1].tolist()]
    assert texts(table) == ["a0", "a1", "b0", "b1", "c0", "c1"] and numbers == [1, 3, 4, 6, 7, 9]
    (tmp_path / "lines" / "b.jsonl").write_text('{"text": "b0"}\n' * 1_000 + "cut\n")
    with pytest.raises(UserError, match=r"lines/b.jsonl: line 1001 is no JSON"):
        texts(open_table(tmp_path / "lines", [Wanted("text")]))


def test_a_split_of_a_folder_is_named_behind_a_colon(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{split},1\n")
    assert texts(open_table(f"{tmp_path}:test", TEXT)) == ["test"]
    assert texts(open_table(f"{tmp_path}/:test+train", TEXT)) == ["test", "train"]
    assert is_there(f"{tmp_path}:test") and not is_there(f"{tmp_path}/none:test")
    with pytest.raises(UserError, match=r"several splits \(test, train\); give one of them, as in .*:train$"):
        open_table(tmp_path, TEXT)
    with pytest.raises(UserError, match=r"test.csv is a file, which has no splits; leave :test out"):
        open_table(f"{tmp_path}/test.csv:test", TEXT)


def test_what_describes_a_table_in_a_folder_below_is_none(tmp_path: Path) -> None:
    for name in ("record.json", "yield.json"):
        (tmp_path / name).write_text('{"text": "no table", "label": 1}')
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "yes-00000.csv").write_text("text,label\na,1\n")
    assert texts(open_table(tmp_path, TEXT)) == ["a"]
    (tmp_path / "rejects").mkdir()
    (tmp_path / "rejects" / "yes-00000.csv").write_text("text,label\nb,1\n")
    with pytest.raises(UserError, match=r"several folders with tables; give one of them: .*/pool, .*/rejects$"):
        open_table(tmp_path, TEXT)


def test_a_colon_in_a_name_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a:train").mkdir()
    (tmp_path / "a:train" / "x:y.csv").write_text("text,label\na,1\n")
    assert texts(open_table(tmp_path / "a:train", TEXT)) == texts(open_table(tmp_path / "a:train" / "x:y.csv", TEXT)) == ["a"]


def test_a_split_of_a_saved_data_set_is_named_alike(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        table = pa.table({"text": [split], "label": [1]})
        (tmp_path / split).mkdir()
        with pa.ipc.new_stream(str(tmp_path / split / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (tmp_path / split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    assert texts(open_table(f"{tmp_path}:test", TEXT)) == texts(open_table(tmp_path / "test", TEXT)) == ["test"]
    for path, message in [
        (tmp_path, "several splits"),
        (f"{tmp_path}:dev", "has no split 'dev'"),
        (f"{tmp_path}/test:a", "leave :a out"),
    ]:
        with pytest.raises(UserError, match=message):
            open_table(path, TEXT)
