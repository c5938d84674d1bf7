"""Small inputs that were read wrongly, each with the right value. They stand for kinds, which the other files here try."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.tables.columns import Wanted, check_given
from pipelines.tables.files import open_table
from pipelines.tables.values import text_columns

CASES = (Path(__file__).parents[3] / ".." / "shared" / "cases" / "audit").resolve()
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases/audit")
PAIRS = [
    Wanted("premise"),
    Wanted("hypothesis"),
    Wanted("label", is_text=False),
    Wanted("parse", is_optional=True),
]


def rows(name: str) -> list[dict[str, str | None]]:
    table = open_table(f"{CASES}/{name}", PAIRS)
    read = [text_columns(raw, table)[0] for raw in table.raw_batches()]
    return [dict(zip(columns, cells, strict=True)) for columns in read for cells in zip(*columns.values(), strict=True)]


def plain(name: str) -> list[list[str | None]]:
    return [[None if cell is None else cell.as_py() for cell in row.values()] for row in rows(name)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "parses"), [("blank_parse.tsv", [False, False]), ("one_blank_parse.jsonl", [True, False])])
def test_a_parse_that_is_missing_is_null(name: str, parses: list[bool]) -> None:
    assert [row[3] is not None for row in plain(name)] == parses


def test_a_table_is_read_as_its_csv_writer_meant_it() -> None:
    assert plain("pandas_quoted.tsv")[0] == ['He said "no" twice', 'he said "no" twice', "entailment"]


@pytest.mark.parametrize(
    ("name", "num_rows"), [("hub_hash", 4), ("hub_split_names:train", 4), ("hub_split_names:test+train", 8), ("array.json", 2)]
)
def test_all_rows_are_read(name: str, num_rows: int) -> None:
    assert len(plain(name)) == num_rows


def test_an_arrow_file_is_read() -> None:
    assert [row[2] for row in plain("f.arrow")] and not any(None in row for row in plain("f.arrow"))


def test_splits_side_by_side_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"several splits \(test, train, validation\); give one of them, as in .*names:train"):
        rows("hub_split_names")


def test_minus_one_is_read_as_it_stands() -> None:
    assert [row[2] for row in plain("minus.jsonl")] == ["1", "-1", "0", "1"]


def test_a_flag_that_names_no_column_is_refused() -> None:
    with pytest.raises(UserError, match="--label anotator_label: no file has that column, did you mean 'annotator_label'"):
        check_given({"label": "anotator_label"}, [open_table(CASES / "typo.jsonl", PAIRS)])
