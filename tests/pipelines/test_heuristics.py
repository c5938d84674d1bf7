from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.heuristics import has_lexical_overlap, is_subsequence, lexical_overlap, subsequence
from pipelines.sources import nli_sources_config, prepare_nli_sources

SHARED = (Path(__file__).parents[2] / ".." / "shared" / "data").resolve()


@pytest.mark.parametrize(
    ("premise", "hypothesis", "overlap", "contiguous"),
    [
        ("The doctor saw the lawyer .", "The lawyer saw the doctor .", True, False),
        ("The doctor near the lawyer slept .", "the lawyer slept", True, True),
        ("The lawyer slept", "The Lawyer slept !", True, True),
        ("The lawyer slept.", "The lawyer slept .", False, False),  # attached punctuation is part of the word
        ("The lawyer slept ?", "The lawyer . slept", True, True),
        ("The lawyer slept .", "The doctor slept .", False, False),
        ("If the doctor slept , the lawyer left .", "the doctor slept , the lawyer", True, True),
        (
            "the lawyer slept",
            "the the lawyer",
            True,
            False,
        ),  # tokens are a set for overlap, a list for subsequence
        ("the lawyer slept", "the slept", True, False),
        ("slept", "the lawyer slept", False, False),
        ("the lawyer", ".", True, True),
        ("the  lawyer\tslept", "lawyer slept", True, True),
    ],
)
def test_predicates_on_hand_picked_pairs(premise, hypothesis, overlap, contiguous):
    assert has_lexical_overlap(premise, hypothesis) is overlap
    assert is_subsequence(premise, hypothesis) is contiguous


def test_columns_are_the_predicates_row_by_row():
    premises = pa.chunked_array([["a b c"], ["a b c", "a b c"]])
    hypotheses = ["b c", "c a", "d"]
    assert lexical_overlap(premises, hypotheses).tolist() == [True, True, False]
    assert subsequence(premises, hypotheses).tolist() == [True, False, False]
    assert lexical_overlap([], []).shape == (0,)


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 premises and 1 hypotheses"):
        lexical_overlap(["a", "b"], ["a"])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not SHARED.is_dir():
        pytest.skip(f"real MultiNLI and HANS are not at {SHARED}")
    output = tmp_path_factory.mktemp("sources")
    prepare_nli_sources(nli_sources_config(str(SHARED)), str(output), folder=str(SHARED))
    return output


def test_hans_satisfies_the_heuristics_it_is_named_for(real):
    from pipelines.examples import read_examples

    hans = read_examples(real / "hans.parquet")
    overlap = lexical_overlap(hans["premise"], hans["hypothesis"])
    contiguous = subsequence(hans["premise"], hans["hypothesis"])
    names = hans["heuristic"].to_pylist()
    assert overlap.all()
    assert [name != "lexical_overlap" for name in names] == contiguous.tolist()


def test_overlap_is_rare_in_multinli_and_leans_to_entailment(real):
    """The paper's Table 1: 2139 of 130 541 entailments (1.6 %), 69 neutral (0.05 %), 172 others (0.13 %)."""
    from pipelines.examples import read_examples

    train = read_examples(real / "train.parquet")
    overlap = lexical_overlap(train["premise"], train["hypothesis"])
    share = {}
    for label in ("entailment", "neutral", "contradiction"):
        rows = [name == label for name in train["label"].to_pylist()]
        share[label] = overlap[rows].mean()
    # A fifth of the rows, some without their final full stop, so the published shares hold roughly only.
    assert 0.012 < share["entailment"] < 0.025
    assert share["neutral"] < 0.002 and share["contradiction"] < 0.003
