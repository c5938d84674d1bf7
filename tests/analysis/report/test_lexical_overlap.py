import json
from pathlib import Path

import pytest

from analysis.page import Column, Table
from analysis.report.lexical_overlap import main, markdown, overlap_by_field, tables
from analysis.study.artifacts import LabelCount
from pipelines.data.sources import FILES, HANS_COLUMNS, HANS_FILE
from pipelines.errors import UserError

DATA = (Path(__file__).parents[3] / ".." / "shared" / "data").resolve()
SMALL = {"dev_rows_per_label": 1, "hans_rows": 1}

# (label, premise, hypothesis, genre); the first of each label goes to the dev set.
ROWS = [
    ("entailment", "A dev row .", "A dev row", "fiction"),
    ("neutral", "A dev row .", "Another", "fiction"),
    ("contradiction", "A dev row .", "None", "fiction"),
    ("entailment", "A man sleeps .", "A man .", "fiction"),
    ("entailment", "A man sleeps .", "A person", "travel"),
    ("neutral", "Birds fly", "Fish fly", "travel"),
    ("contradiction", "Birds fly south", "south", "travel"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fields = ("gold_label", "sentence1", "sentence2", "genre")
    rows = [dict(zip(fields, row, strict=True)) | {"pairID": f"p{index}"} for index, row in enumerate(ROWS)]
    for name in FILES[:3]:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = ["entailment", "", "", "", "", "A b .", "A b .", "ex0", "lexical_overlap", "le_some", "temp1"]
    (tmp_path / HANS_FILE).write_text("\t".join(HANS_COLUMNS) + "\n" + "\t".join(row) + "\n")
    return tmp_path


def test_the_training_rows_are_counted_whole_and_by_a_field(folder: Path) -> None:
    assert overlap_by_field(str(folder), "genre", **SMALL) == {
        "all rows": {
            "entailment": LabelCount(2, 1),
            "neutral": LabelCount(1, 0),
            "contradiction": LabelCount(1, 1),
        },
        "genre: fiction": {"entailment": LabelCount(1, 1)},
        "genre: travel": {
            "entailment": LabelCount(1, 0),
            "neutral": LabelCount(1, 0),
            "contradiction": LabelCount(1, 1),
        },
    }


def test_a_field_that_no_row_has_and_a_pair_without_an_id_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"jsonl:1: no field 'colour'; name one that every row has, of gold_label, .*genre"):
        overlap_by_field(str(folder), "colour", **SMALL)
    path = folder / FILES[0]
    path.write_text(path.read_text().replace('"p4"', '"p3"'))
    with pytest.raises(UserError, match="jsonl:5: pairID 'p3' is blank or another row's, too"):
        overlap_by_field(str(folder), "genre", **SMALL)


def test_a_table_as_markdown() -> None:
    table = Table([Column("Label"), Column("n", "number")], [["neutral", "3"]])
    assert markdown(table) == "| Label | n |\n| --- | --: |\n| neutral | 3 |"


def test_a_group_is_scaled_to_the_papers_rows_and_one_without_overlap_has_no_ratio() -> None:
    half = {"entailment": LabelCount(100, 50), "neutral": LabelCount(100, 0), "contradiction": LabelCount(100, 50)}
    text = tables({"all rows": half})
    # Half of 130,541 (a tie, rounded to even) and of 130,608; the paper has 2,139 and 172.
    assert "| Original | entailment | 100 | 50 | 50.000% | 130,541 | 2,139 | 1.639% | 65,270 [" in text
    assert "| +63,132 |" in text and "| +65,132 |" in text
    assert text.count("| higher |") == 2
    assert "| 0.000% | 130,573 | 69 | 0.053% | 0 [0, 4,830] | −69 | – | – |" in text
    # (50 × 150) / (50 × 50).
    assert "| all rows | original | 50 of 100 | 50 of 200 | 3.00 |" in text
    assert "| Paper's | original | 2,139 of 130,541 | 241 of 261,181 | 18.04 | 15.79 to 20.61 |" in text


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: data folder")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs a part of MultiNLI's training rows")
def test_published_rows_agree_with_the_papers_share() -> None:
    counts = overlap_by_field(str(DATA), "text_form")
    assert counts["text_form: raw"] == {
        "entailment": LabelCount(15_653, 274),
        "neutral": LabelCount(23_140, 20),
        "contradiction": LabelCount(15_741, 18),
    }
