"""What is read of a table, and what is put aside."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.tables.columns import Wanted
from pipelines.tables.files import TableFile, open_table
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
