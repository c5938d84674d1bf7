"""Anyone's file: read as it is meant, or refused with the row, the rule and the way out."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.corpus.columns import ColumnNames
from analysis.corpus.input import clean_batch, open_texts, packed, read_rows, unpacked
from analysis.corpus.scan import scan_texts
from pipelines.errors import UserError
from pipelines.tables import readers
from pipelines.tables.files import TableFile

ROWS = [
    ("A man eats.", "A man eats", "entailment"),
    ('He said "no", twice.', "He spoke.", "neutral"),
    ("Es regnet, ja", "Nö", "e"),
]
TABLE = pa.table([list(column) for column in zip(*ROWS, strict=True)], ["premise", "hypothesis", "label"])


def everything(pairs: TableFile) -> tuple[list[tuple[str, str, str]], Counter[str], list[int]]:
    rows, left_out, numbers = [], Counter[str](), []
    for raw in pairs.raw_batches():
        batch = clean_batch(unpacked(packed(raw)), pairs)
        columns = (*batch.texts.values(), batch.label)
        rows += list(zip(*(column.to_pylist() for column in columns), strict=True))
        left_out.update(batch.left_out)
        numbers += batch.rows.tolist()
    return rows, left_out, numbers


def refused(path: Path, names: ColumnNames | None = None) -> str:
    with pytest.raises(UserError) as error:
        everything(open_texts(path, names))
    return str(error.value)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(premise: object = "p", hypothesis: object = "h", label: object = "l") -> dict[str, object]:
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def save_to_disk(folder: Path, table: pa.Table, features: dict | None = None) -> Path:
    """The files that `datasets.Dataset.save_to_disk` writes, in two files."""
    folder.mkdir(parents=True)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table.slice(0, 2), table.slice(2)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def written(kind: str, folder: Path) -> Path:
    if kind == "parquet":
        pq.write_table(TABLE, folder / "pairs.parquet", row_group_size=2)
        return folder / "pairs.parquet"
    if kind == "folder":
        (folder / "shards").mkdir()
        for index in range(3):
            pq.write_table(TABLE.slice(index, 1), folder / "shards" / f"{index}.parquet")
        return folder / "shards"
    if kind == "dataset":
        return save_to_disk(folder / "dataset", TABLE)
    if kind == "jsonl":
        return write(folder / "pairs.jsonl", lines(*TABLE.to_pylist()).rstrip("\n"))
    if kind == "tsv":
        return write(folder / "pairs.tsv", "premise\thypothesis\tlabel\n" + "\n".join(map("\t".join, ROWS)) + "\n")
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in cells) for cells in ROWS]
    content = "\n".join(["premise,hypothesis,label", *quoted]) + "\n"
    return write(folder / "pairs.csv", (b"\xef\xbb\xbf" if kind == "csv with a mark" else b"") + content.encode())


@pytest.mark.parametrize("kind", ["parquet", "folder", "dataset", "jsonl", "csv", "csv with a mark", "tsv"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    pairs = open_texts(written(kind, tmp_path))
    assert everything(pairs) == (ROWS, {}, [1, 2, 3])
    found = read_rows(pairs, [3, 2])
    assert found == {number: dict(zip(("premise", "hypothesis", "label"), ROWS[number - 1], strict=True)) for number in (2, 3)}


def test_many_small_batches_lose_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_BATCH_ROWS", 8)
    table = pa.table([[f"p {i}" for i in range(100)], ["h"] * 100, ["l"] * 100], TABLE.column_names)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(readers, "BATCH_BYTES", 200)
    write(tmp_path / "a.jsonl", lines(*table.to_pylist()))
    for name in ("a.parquet", "a.jsonl"):
        rows, _, numbers = everything(open_texts(tmp_path / name))
        assert [premise for premise, _, _ in rows] == table["premise"].to_pylist()
        assert numbers == list(range(1, 101))


def test_single_rows_are_read_from_every_file_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.jsonl", lines(*(row(premise=f"{name}{number}") for number in range(3))))
    found = read_rows(open_texts(tmp_path), range(1, 10))
    assert [found[number]["premise"] for number in range(1, 10)] == [f"{name}{number}" for name in "abc" for number in range(3)]


def test_usual_names_are_found_and_flags_come_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"sentence1": "p", "sentence2": "h", "gold_label": "l", "annotator": "other"}))
    assert open_texts(path).columns == {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
    assert open_texts(path, ColumnNames({"label": "annotator"})).columns["label"] == "annotator"


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,hypothesis,label\na,b,c\n")
    message = refused(path)
    assert "no premise column (premise, sentence1" in message and "'text', 'hypothesis', 'label'" in message
    assert message.endswith("name it with --premise COLUMN")
    assert refused(write(tmp_path / "d.csv", "left,right,label\na,b,c\n")).endswith(
        "name those of a pair with --premise and --hypothesis, that of single texts with --text, or any others each with "
        "--field NAME=COLUMN"
    )
    of_task = ColumnNames({"review": "none", "label": "gold"}, fields=("review",))
    assert refused(path, of_task).endswith("name it with --field review=COLUMN")
    no_label = write(tmp_path / "e.csv", "review\na\n")
    assert refused(no_label, of_task).endswith("name it with --label COLUMN")
    assert "no label column ('gold')" in refused(
        write(tmp_path / "b.csv", "premise,hypothesis\na,b\n"), ColumnNames({"label": "gold"})
    )
    assert "2 columns are called 'label'" in refused(write(tmp_path / "c.csv", "premise,hypothesis,label,label\na,b,c,d\n"))
    assert "mapped twice" in refused(path, ColumnNames({"premise": "text", "hypothesis": "text"}))


def test_numbers_are_labels(tmp_path: Path) -> None:
    pq.write_table(TABLE.set_column(2, "label", pa.array([1.0, None, 0.0])), tmp_path / "a.parquet")
    rows, left_out, _ = everything(open_texts(tmp_path / "a.parquet"))
    assert ([label for *_, label in rows], left_out) == (["1", "0"], {"no label": 1})
    path = write(tmp_path / "a.jsonl", lines(row(label=0), row(label=2.0), row(label=True), row(label="x"), row(label=-1)))
    rows, left_out, _ = everything(open_texts(path))
    assert ([label for *_, label in rows], left_out) == (["0", "2", "true", "x"], {"no gold label": 1})


def test_a_datasets_label_numbers_have_their_names(tmp_path: Path) -> None:
    table = TABLE.set_column(2, "label", pa.array([0, 2, -1]))
    features = {"label": {"names": ["entailment", "neutral", "contradiction"], "_type": "ClassLabel"}}
    rows, left_out, _ = everything(open_texts(save_to_disk(tmp_path / "dataset", table, features)))
    assert ([label for *_, label in rows], left_out) == (["entailment", "contradiction"], {"no gold label": 1})


def test_incomplete_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    incomplete = [
        row(premise=None),
        row(hypothesis=" \t"),
        row(label=""),
        row(label="-"),
        {"premise": "p"},
        row(premise=float("nan")),
    ]
    content = lines(row(), *incomplete, row("q"))
    rows, left_out, numbers = everything(open_texts(write(tmp_path / "a.jsonl", content)))
    assert [premise for premise, *_ in rows] == ["p", "q"] and numbers == [1, 8]
    assert left_out == {"no premise": 2, "no hypothesis": 2, "no label": 1, "no gold label": 1}


def test_words_that_csv_readers_take_for_gaps_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "premise,hypothesis,label\nNA,null,nan\n,h,l\n")
    assert everything(open_texts(path))[:2] == ([("NA", "null", "nan")], {"no premise": 1})


def test_formulas_and_markup_are_text(tmp_path: Path) -> None:
    cells = ('=HYPERLINK("http://x","y")', "<script>alert(1)</script>", "+1")
    path = write(tmp_path / "a.jsonl", lines(row(*cells)))
    assert everything(open_texts(path))[0] == [cells]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_cell_of_ten_megabytes_is_read(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "wort " * 2_000_000
    short = [f"p {index}" for index in range(9)]
    table = pa.table([[*short, long, "p"], [*short, long, "h"], ["l"] * 11], TABLE.column_names)
    if suffix == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    elif suffix == "csv":
        monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 64)  # so that rows are read before the long one is met
        content = "".join(",".join(cells) + "\n" for cells in zip(*table.to_pydict().values(), strict=True))
        write(tmp_path / "a.csv", "premise,hypothesis,label\n" + content)
    else:
        write(tmp_path / "a.jsonl", lines(*table.to_pylist()))
    rows, _, _ = everything(open_texts(tmp_path / f"a.{suffix}"))
    assert [premise for premise, *_ in rows] == [*short, long, "p"]


def test_an_unclosed_quotation_mark_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 4096)
    path = write(tmp_path / "a.csv", 'premise,hypothesis,label\np,h,l\np,"h,l\n' + "p,h,l\n" * 5000)
    with pytest.raises(UserError, match="line 3 has a quotation mark that is not closed up to line 5,003; close it"):
        scan_texts(open_texts(path), processes=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(row()) + "{'premise': 1}\n", "line 2 is no JSON"),
        (lines(row(), row()) + '{"premise": "cut', "line 3 is no JSON"),
        (lines(row(), [1, 2]), "line 2 is a JSON list, not an object"),
        ("[\n" + lines(row()) + "]", "is a JSON array, and JSONL has one object a line; let its name end in .json"),
        (lines(row(), row(premise=3)), "line 2: 'premise' is '3' (int); the premise must be text"),
        (lines(row(), row(label=["a"])), "the label must be text"),
        (lines(row()).encode() + b'{"premise": "caf\xe9", "hypothesis": "h", "label": "l"}\n', "line 2 is not UTF-8"),
        (
            lines(row()) + '{"premise": "\\ud800", "hypothesis": "h", "label": "l"}\n',
            "line 2: the premise has half of a surrogate",
        ),
        (lines(row()) + "[" * 100_000, "line 2 is no JSON"),
        ("\n\n", "only blank lines"),
        ("", "is empty (0 bytes)"),
    ],
)
def test_a_bad_line_is_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(write(tmp_path / "a.jsonl", content))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1 << 20)
    assert "line 2 is over 1 MB" in refused(write(tmp_path / "a.jsonl", lines(row()) + '"' + "x" * (12 << 20)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"premise,hypothesis,label\na,b,c\ncaf\xe9,b,c\n", "line 3 is not UTF-8"),
        ("premise,hypothesis,label\na,b,c\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("", "is empty (0 bytes)"),
    ],
)
def test_a_bad_row_of_a_table_is_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(write(tmp_path / "a.csv", content))


RAGGED = (
    ("premise,hypothesis,label\na,b,c\n\na,b\n", "line 4 has 2 cells and the header 3"),
    ('premise,hypothesis,label\n"a\nb",b,c\na,b,c,d\n', "line 4 has 4 cells and the header 3"),
    (
        "premise,hypothesis,label\na,b,c,d\na,b,c\na,b\n,\n",
        "line 2 has 4 cells and the header 3 (lines 4, 5, too, have another number); quote cells",
    ),
    ("premise,hypothesis,label\n" + "a\n" * 12, "(lines 3, 4, 5, 6, 7, 8, 9, 10, …, too, have another number)"),
)


@pytest.mark.parametrize(("content", "message"), RAGGED)
def test_where_ragged_rows_are_an_error_it_names_them(content: str, message: str, tmp_path: Path) -> None:
    texts = open_texts(write(tmp_path / "a.csv", content))
    with pytest.raises(UserError) as error:
        list(texts.table.raw_batches())
    assert message in str(error.value)


def test_ragged_rows_are_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    rows = ["p,h,entailment", "p,h,entailment,x", "q,h,neutral", "q", "r,h,neutral"]
    rows += [*["s,h,neutral"] * 40_000, "t", "u,h,neutral"]
    path = write(tmp_path / "a.csv", "\n".join(["premise,hypothesis,label", *rows]))
    texts = open_texts(path)
    _, left_out, numbers = everything(texts)
    assert left_out == {} and numbers == [1, 3, *range(5, 40_006), 40_007]
    scan = scan_texts(texts, processes=1)
    assert scan.left_out == {"another number of cells": 3} and scan.row.tolist() == numbers
    found = read_rows(texts, [3, 40_007])
    assert [found[number]["premise"] for number in (3, 40_007)] == ["q", "u"]
    raw = replace(next(texts.raw_batches()), malformed=(2, 4))
    assert isinstance(sent := packed(raw), tuple) and unpacked(sent).numbers(3).tolist() == [1, 3, 5]


def test_a_file_of_ragged_rows_is_refused(tmp_path: Path) -> None:
    texts = open_texts(write(tmp_path / "a.csv", "premise,hypothesis,label\na,b\nc,d\n"))
    with pytest.raises(UserError, match="none of its 2 rows has as many cells as the header, 3: row 1 has 2"):
        scan_texts(texts, processes=1)


def test_text_in_parquet_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"caf\xe9", b"c"]).buffers())
    pq.write_table(TABLE.set_column(0, "premise", wrong), tmp_path / "a.parquet")
    assert "row 2: the premise is not UTF-8" in refused(tmp_path / "a.parquet")


def test_what_is_no_table_of_pairs_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.csv")
    assert "end in .xlsx are not read" in refused(write(tmp_path / "a.xlsx", "x"))
    assert "not readable as Parquet" in refused(write(tmp_path / "a.parquet", "no parquet"))
    (tmp_path / "empty").mkdir()
    assert "no files of a table" in refused(tmp_path / "empty")
    pq.write_table(TABLE.set_column(0, "premise", pa.array([1, 2, 3])), tmp_path / "b.parquet")
    assert "'premise' is of type int64; it must be text" in refused(tmp_path / "b.parquet")
    cut = (written("parquet", tmp_path)).read_bytes()
    assert "not readable as Parquet" in refused(write(tmp_path / "cut.parquet", cut[: len(cut) // 2]))


def test_a_dataset_with_splits_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert f"give one of them: {tmp_path}:train, {tmp_path}:test" in refused(tmp_path)
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for name in ("train", "test"):
        pq.write_table(TABLE, hub / f"{name}-00000-of-00001.parquet")
    assert "several splits (test, train)" in refused(tmp_path / "hub")


def test_a_datasets_missing_or_foreign_files_are_refused(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "dataset", TABLE)
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow is missing" in refused(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    assert "names no files of its own folder" in refused(folder)


def test_a_blank_parse_is_none_in_a_file_and_in_memory(tmp_path: Path) -> None:
    table = pa.table({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": ["x", "y"], "premise_parse": ["(S a)", " "]})
    pq.write_table(table, tmp_path / "parsed.parquet")
    for source in (tmp_path / "parsed.parquet", table):
        texts = open_texts(source)
        (parse,) = [clean_batch(raw, texts).parse for raw in texts.raw_batches()]
        assert parse is not None and parse.to_pylist() == ["(S a)", None]
