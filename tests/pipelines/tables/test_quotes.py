"""Quotation marks that are left open are refused with their line; what CSV writers write never is."""

import csv
import gzip
import io
import random
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.tables import quotes
from pipelines.tables.columns import Wanted
from pipelines.tables.files import open_table
from pipelines.tables.quotes import open_quote
from pipelines.tables.readers import MalformedRow
from pipelines.tables.values import text_columns

BEHIND_TEXT = (
    "line {} has a quotation mark that is not closed before one in line {} that has text behind it; close it, or, if one is"
)
TO_THE_END = "line {} has a quotation mark that is not closed up to line {}; close it, or, if it is text, write it twice"
MOST_BYTES = 1 << 20


def texts(path: Path) -> tuple[list[str | None], list[MalformedRow]]:
    """The texts of a table, and what is put aside."""
    table, malformed = open_table(path, [Wanted("text"), Wanted("label", is_text=False)]), list[MalformedRow]()
    found = [text for raw in table.raw_batches(malformed) for text in text_columns(raw, table)[0]["text"].to_pylist()]
    return found, malformed


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # Two cells each, so that rows that run into each other have the right number.
        ('a,1\n"b,2\n"c",3\nd,4\n', BEHIND_TEXT.format(3, 4)),
        ('a,1\n"b,2\nc,3\n"d",4\n', BEHIND_TEXT.format(3, 5)),
        ('a,"1\nb,"2"\nc,3\n', BEHIND_TEXT.format(2, 3)),
        ('"a ""b"",1\n"c",2\n', BEHIND_TEXT.format(2, 3)),
        ('"a,1\n5" wide,2\n', BEHIND_TEXT.format(2, 3)),
        ('"a\nb",1\n"c,2\n"d",3\n', BEHIND_TEXT.format(4, 5)),
        ('a,"1\nb,2\n', TO_THE_END.format(2, 3)),
        ('a,1\nb,"2\n', TO_THE_END.format(3, 3)),
        ('a,1\nb,"2', TO_THE_END.format(3, 3)),
        ('a,1\nb,"""2"\n"c"",3\n', TO_THE_END.format(4, 4)),
        # Another number of cells.
        ('"a,1\nb,2\n', TO_THE_END.format(2, 3)),
        ('a,1\n"b,2\n"c",3,3\n', BEHIND_TEXT.format(3, 4)),
    ],
)
@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_mark_that_is_left_open_is_refused_with_its_line(
    tmp_path: Path, rows: str, said: str, mark: str, line_end: str
) -> None:
    content = f"text,label\n{rows}".replace(",", mark).replace("\n", line_end).encode()
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + content)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    for name in ("a.csv", "a.csv.gz"):
        with pytest.raises(UserError, match=f"{name}: {said}"):
            texts(tmp_path / name)
    table = open_table(tmp_path / "a.csv", [Wanted("text"), Wanted("label", is_text=False)])
    with pytest.raises(UserError, match=f"a.csv: {said}"):
        list(table.raw_batches())


def test_marks_that_run_into_no_other_row_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'text,label\n5" wide,1\n"he said "hi" to me",2\nb, "3\n"c\nd",4\n"""e"" f\n\n""g""",5\n"",6\nx" y,"1\n2"\n"h","7"'
    )
    found, malformed = texts(tmp_path / "a.csv")
    assert found == ['5" wide', 'he said hi" to me"', "b", "c\nd", '"e" f\n\n"g"', "", 'x" y', "h"] and not malformed


def test_a_row_with_line_breaks_and_an_odd_number_of_marks_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n5" wide,"1\n2",3\na,1\n')
    assert texts(tmp_path / "a.csv") == (["a"], [MalformedRow(1, 3, 2, '5" wide,"1\n2",3')])


def test_an_open_mark_that_another_cells_end_closes_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"a,1\nb",2\nc,3\n')
    assert texts(tmp_path / "a.csv")[0] == ["a,1\nb", "c"]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 5, 4096])
def test_what_csv_writers_write_is_never_refused(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(quotes, "CHUNK_BYTES", chunk_bytes)
    draws = random.Random(chunk_bytes)
    pieces = ['"', '"', ",", ";", "\n", "\r", "\r\n", "a", " ", "é"]
    num_open = 0
    for _ in range(2_000):
        out, mark = io.StringIO(), draws.choice(",;")
        quoting = draws.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC))
        writer = csv.writer(out, delimiter=mark, quoting=quoting, lineterminator=draws.choice(("\n", "\r\n", "\r")))
        for _ in range(draws.randint(1, 4)):
            writer.writerow(["".join(draws.choices(pieces, k=draws.randint(0, 6))) for _ in range(draws.randint(1, 3))])
        content = out.getvalue().encode()
        assert open_quote(io.BytesIO(content), mark, MOST_BYTES) == "", content
        num_open += bool(open_quote(io.BytesIO(b'"' + content + b'"a"'), mark, MOST_BYTES))
    assert num_open > 500


def test_a_mark_that_nothing_closes_is_not_looked_for_in_a_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "CHUNK_BYTES", 100)
    binary = io.BytesIO(b'a,b\n"c,d\n' + b"e,f\n" * 10_000)
    assert open_quote(binary, ",", 1_000).startswith("line 2 has a quotation mark that is not closed up to line ")
    assert binary.tell() < 2_000
