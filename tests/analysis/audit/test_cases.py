"""Small inputs on which an audit was once wrong, each with its right value."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.audit.audit import Audit, AuditSettings, audit
from analysis.audit.page import summary_lines
from analysis.corpus.columns import ColumnNames
from pipelines.errors import UserError
from sweep import cli

CASES = (Path(__file__).parents[3] / ".." / "shared" / "cases" / "audit").resolve()
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}")


def of(name: str, **settings: object) -> Audit:
    if isinstance(reference := settings.pop("reference", None), str):
        settings["reference"] = CASES / reference
    return audit(CASES / name, AuditSettings(**settings))  # type: ignore[arg-type]


def test_fields_with_words_in_common_make_no_near_copies() -> None:
    # Each side is alike to 0.6, so the pair to 0.36: by calculation one row in a few hundred is taken for near.
    assert of("swapped_036.jsonl").duplicates.kinds["near"].count <= 10


@pytest.mark.parametrize("name", ["blank_parse.tsv", "one_blank_parse.jsonl"])
def test_a_row_without_a_parse_is_left_out_of_the_parsed_heuristic_only(name: str) -> None:
    found = of(name)
    parsed = {one.name: one for one in found.heuristics}["parsed_constituent"]
    assert found.file.num_rows == 2
    assert parsed.num_unasked == (2 if name == "blank_parse.tsv" else 1)
    assert (parsed.all_rows is None) == (name == "blank_parse.tsv")


def test_cells_that_a_writer_quoted_lose_their_quotes() -> None:
    overlap = of("pandas_quoted.tsv").heuristics[0]
    assert overlap.by_label is not None
    assert (overlap.by_label["entailment"].count, overlap.by_label["entailment"].n) == (1, 1)


@pytest.mark.parametrize("reference", ["ref_upper.jsonl", "ref_two.jsonl"])
def test_the_same_labels_in_other_words_are_the_same(reference: str) -> None:
    (copies,) = of("pool_names.jsonl", reference=reference).copies
    assert copies.kinds["exact"].count == 4
    assert copies.other_label is not None and copies.other_label.count == 0


def test_numbers_and_names_are_not_compared_until_they_are_named() -> None:
    settings = {"generator_training": CASES / "ref_numbers.jsonl"}
    found = of("pool_names.jsonl", **settings)
    (copies,) = found.copies
    assert copies.other_label is None and "say what they mean with --label-name" in copies.not_compared
    (line,) = [line for line in summary_lines(found) if line.startswith("  warning: ")]
    assert copies.not_compared in line and line.endswith("counts as a copy of it, whatever their labels")
    names = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    (copies,) = of("pool_names.jsonl", label_names=names, **settings).copies
    assert copies.other_label is not None and copies.other_label.count == 0


def test_a_label_with_a_full_stop_is_the_label() -> None:
    dirty, clean = of("lab_dirty.jsonl", reference="lab_clean.jsonl"), of("lab_clean.jsonl")
    assert dirty.file.spellings == {"entailment": {"Entailment.": 250, "entailment": 250}}
    first, second = dirty.heuristics[0].odds_ratio, clean.heuristics[0].odds_ratio
    assert first is not None and second is not None and first.value == second.value > 1_000


def test_combining_marks_are_part_of_their_words() -> None:
    assert of("hindi.jsonl").duplicates.kinds["same_words"].count == 0


def test_near_copies_are_found_where_there_are_no_spaces() -> None:
    assert of("cjk_near.jsonl").duplicates.kinds["near"].count == 50


def test_minus_one_among_numbers_is_warned_of_and_can_be_kept() -> None:
    (warning,) = of("minus.jsonl", entailment=("1",)).warnings
    assert "1 of 4 rows (25%) are labelled '-1', which is taken for 'no label'" in warning and "--keep-label=-1" in warning
    kept = of("minus.jsonl", entailment=("1",), columns=ColumnNames(kept_labels=("-1",)))
    assert kept.file.num_rows == 4 and not kept.warnings


def test_an_option_that_names_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no file has that column, did you mean 'annotator_label'"):
        of("typo.jsonl", columns=ColumnNames({"label": "anotator_label"}))
    done = CliRunner().invoke(
        cli.app, ["audit", str(CASES / "pool_names.jsonl"), "--entailment", "entailment", "--entailment", "entialment"]
    )
    assert done.exit_code == 1 and "no file has the label 'entialment'" in done.stderr
