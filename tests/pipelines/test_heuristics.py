from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.heuristics import has_lexical_overlap, is_subsequence, lexical_overlap, subsequence, tokens
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


def overlap_as_defined(premise, hypothesis):
    return set(tokens(hypothesis)) <= set(tokens(premise))


def subsequence_as_defined(premise, hypothesis):
    outer, inner = tokens(premise), tokens(hypothesis)
    return any(outer[start : start + len(inner)] == inner for start in range(len(outer) - len(inner) + 1))


# Few words, so that pairs often overlap; words that are pieces of others, odd whitespace, letters whose lower case is longer
# or depends on the neighbours.
WORDS = st.sampled_from(
    ["a", "ab", "A", "b", "a.", ".", "?", "!", ",", "İ", "ΑΣ", "ας", "ß", "SS", "é", "e\u0301", "x\x00y", "️"]
)
SPACES = st.sampled_from([" ", "  ", "\t", "\n", "\u00a0", "\u2003", "\x1f", "\u200b", ""])
SENTENCES = st.lists(st.tuples(WORDS, SPACES), max_size=7).map(lambda pieces: "".join(word + space for word, space in pieces))


@settings(max_examples=1_000, deadline=None)
@given(SENTENCES, SENTENCES)
def test_the_fast_predicates_are_the_plain_definitions(premise, hypothesis):
    assert has_lexical_overlap(premise, hypothesis) == overlap_as_defined(premise, hypothesis)
    assert is_subsequence(premise, hypothesis) == subsequence_as_defined(premise, hypothesis)


@settings(max_examples=500, deadline=None)
@given(SENTENCES, st.integers(0, 7), st.integers(0, 7))
def test_a_part_of_a_sentence_is_a_subsequence(sentence, start, stop):
    assert is_subsequence(sentence, " ".join(sentence.split()[start:stop]))


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


def test_the_fast_predicates_are_the_plain_definitions_on_real_pairs(real):
    from pipelines.examples import read_examples

    for name in ("train", "hans"):
        table = read_examples(real / f"{name}.parquet")
        pairs = list(zip(table["premise"].to_pylist(), table["hypothesis"].to_pylist(), strict=True))
        overlap = [overlap_as_defined(*pair) for pair in pairs]
        assert lexical_overlap(table["premise"], table["hypothesis"]).tolist() == overlap
        contiguous = [subsequence_as_defined(*pair) for pair in pairs]
        assert subsequence(table["premise"], table["hypothesis"]).tolist() == contiguous
        assert 0 < sum(contiguous) < sum(overlap)


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
