import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.sources import nli_sources_config, prepare_nli_sources
from pipelines.errors import UserError
from pipelines.identity import identity
from pipelines.tasks.heuristics import (
    HEURISTICS,
    Heuristic,
    constituents,
    find_heuristic,
    has_lexical_overlap,
    is_likely_constituent,
    is_parsed_constituent,
    is_subsequence,
    lexical_overlap,
    subsequence,
    tokens,
    word_heuristic,
)
from pipelines.tasks.nli import NLI, Label
from pipelines.tasks.task import Field, Task

SHARED = (Path(__file__).parents[3] / ".." / "shared" / "data").resolve()


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


@pytest.mark.parametrize(
    ("premise", "hypothesis", "likely"),
    [
        ("If the doctor slept , the lawyer left .", "The doctor slept .", True),
        ("If the doctor slept , the lawyer left .", "The lawyer left .", True),
        ("The judge said that the doctor slept .", "The doctor slept .", True),
        ("Clearly the doctor slept .", "The doctor slept .", True),
        ("Of course the doctor slept .", "The doctor slept .", True),
        ("The doctor slept , and the lawyer left .", "The lawyer left .", True),
        ("And the lawyer left .", "The lawyer left .", True),
        ("When asked, the lawyer left.", "The lawyer left.", True),
        ("The lawyer left .", "The lawyer left .", True),
        ("The doctor and the lawyer left .", "The lawyer left .", False),  # a conjunction between nouns
        ("The doctor slept and the lawyer left .", "The lawyer left .", False),  # missed: the words alone do not say
        ("The doctor near the lawyer left .", "The lawyer left .", False),
        ("Although the doctor hid the lawyer left .", "The doctor hid the lawyer .", False),
        ("The doctor knew the lawyer that left .", "The doctor knew the lawyer .", False),
        ("The happily married doctor left .", "Married doctor left .", False),  # an adverb that opens nothing
        ("The doctor left , that doctor left early .", "Doctor left", False),
        ("The tall man left , he said that man left .", "man left", True),  # the second place is a clause
        ("The doctor slept .", "The slept .", False),
        ("The doctor slept .", ".", True),
    ],
)
def test_likely_constituents_of_hand_picked_pairs(premise, hypothesis, likely):
    assert is_likely_constituent(premise, hypothesis) is likely


PARSE = (
    "(ROOT (S (SBAR (IN If) (S (NP (DT the) (NN doctor)) (VP (VBD slept)))) (, ,) (NP (NNS lawyers)) (VP (VBD left)) (. .)))"
)


def test_parsed_constituents_are_whole_subtrees():
    found = {" ".join(words) for words in constituents(PARSE)}
    assert found == {
        *("If", "the", "doctor", "slept", ",", "lawyers", "left", "."),
        *("the doctor", "the doctor slept", "If the doctor slept", "If the doctor slept , lawyers left ."),
    }
    for hypothesis in ("The doctor slept .", "the doctor", "If the doctor slept , lawyers left ."):
        assert is_parsed_constituent(PARSE, hypothesis)
    for hypothesis in ("Lawyers left .", "doctor slept", "slept , lawyers", "If doctor slept"):
        assert not is_parsed_constituent(PARSE, hypothesis)


@pytest.mark.parametrize("parse", ["", "(S (NN a)", "(S (NN a)))", ")", "no brackets"])
def test_a_parse_whose_brackets_do_not_match_is_refused(parse):
    with pytest.raises(UserError, match="brackets"):
        constituents(parse)


def has_negation(premises, hypotheses):
    return np.array([not {"no", "not", "never"}.isdisjoint(tokens(text)) for text in hypotheses], dtype=bool)


NEGATION = Heuristic("negation", has_negation, predicts=Label.CONTRADICTION)


def test_the_three_of_hans_come_with_it():
    assert list(HEURISTICS) == ["lexical_overlap", "subsequence", "constituent"]
    pairs = [("a b c", "c a"), ("a b c", "b c"), ("a , b c", "b c"), ("a", "d")]
    held = {name: one(*map(list, zip(*pairs, strict=True))).tolist() for name, one in HEURISTICS.items()}
    assert held == {
        "lexical_overlap": [True, True, True, False],
        "subsequence": [False, True, True, False],
        "constituent": [False, False, True, False],
    }
    assert {one.predicts for one in HEURISTICS.values()} == {Label.ENTAILMENT}
    assert HEURISTICS["constituent"].probe_slice == "constituent/non-entailment"


def test_its_identity_is_its_name_version_and_label_not_its_code():
    assert identity(NEGATION) == {"name": "negation", "predicts": "contradiction", "version": 1}
    assert identity(replace(NEGATION, holds=lambda p, h: None, description="Other words.")) == identity(NEGATION)
    assert identity(replace(NEGATION, version=2)) != identity(NEGATION)


@pytest.mark.parametrize("one", HEURISTICS.values(), ids=HEURISTICS)
def test_a_built_in_heuristic_is_itself_after_a_journey(one):
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "<lambda>"}, "name='<lambda>'"),
        ({"name": ""}, "name=''"),
        ({"name": "subsequence"}, "'subsequence' is a built-in one's"),
        ({"holds": None}, "holds=None"),
        ({"version": 0}, "version=0"),
    ],
)
def test_a_heuristic_without_an_identity_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        replace(NEGATION, **fields)


@pytest.mark.parametrize("answer", [None, [True], np.array([1]), np.array([True, False]), np.array(True)])
def test_an_answer_that_is_not_one_boolean_an_example_is_refused(answer):
    with pytest.raises(UserError, match=r"negation returned .* for 1 examples"):
        replace(NEGATION, holds=lambda premises, hypotheses: answer)(["a"], ["b"])


def test_a_heuristic_is_found_by_name_in_a_file_or_in_a_module(tmp_path, monkeypatch):
    file = tmp_path / "mine_heuristic.py"
    file.write_text(
        "import numpy as np\nfrom pipelines.tasks.heuristics import Heuristic\n"
        "LONG = Heuristic('long', lambda premises, hypotheses: np.array([len(h) > 2 for h in hypotheses]))\n"
    )
    assert find_heuristic("subsequence") is HEURISTICS["subsequence"]
    assert find_heuristic(f"{file}:LONG")(pa.chunked_array([["a", "a"]]), ["bb", "bbb"]).tolist() == [False, True]
    monkeypatch.syspath_prepend(tmp_path)
    assert find_heuristic("mine_heuristic:LONG").name == "long"
    with pytest.raises(UserError, match=r"no Heuristic SHORT; it has LONG"):
        find_heuristic(f"{file}:SHORT")
    with pytest.raises(UserError, match=r"no heuristic 'lexical'; built in: lexical_overlap, subsequence, constituent"):
        find_heuristic("lexical")
    for reference, said in ((f"{tmp_path}/none.py:LONG", "is no file here"), ("no_such_module:LONG", "cannot be loaded")):
        with pytest.raises(UserError, match=said):
            find_heuristic(reference)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not SHARED.is_dir():
        pytest.skip(f"real MultiNLI and HANS are not at {SHARED}")
    output = tmp_path_factory.mktemp("sources")
    prepare_nli_sources(nli_sources_config(str(SHARED)), str(output), folder=str(SHARED))
    return output


def test_hans_satisfies_the_heuristics_it_is_named_for(real):
    from pipelines.tasks.examples import read_examples

    hans = read_examples(real / "hans.parquet")
    overlap = lexical_overlap(hans["premise"], hans["hypothesis"])
    contiguous = subsequence(hans["premise"], hans["hypothesis"])
    names = hans["heuristic"].to_pylist()
    assert overlap.all()
    assert [name != "lexical_overlap" for name in names] == contiguous.tolist()


def test_the_fast_predicates_are_the_plain_definitions_on_real_pairs(real):
    from pipelines.tasks.examples import read_examples

    for name in ("train", "hans"):
        table = read_examples(real / f"{name}.parquet")
        pairs = list(zip(table["premise"].to_pylist(), table["hypothesis"].to_pylist(), strict=True))
        overlap = [overlap_as_defined(*pair) for pair in pairs]
        assert lexical_overlap(table["premise"], table["hypothesis"]).tolist() == overlap
        contiguous = [subsequence_as_defined(*pair) for pair in pairs]
        assert subsequence(table["premise"], table["hypothesis"]).tolist() == contiguous
        assert 0 < sum(contiguous) < sum(overlap)


def test_overlap_is_rare_in_multinli_and_leans_to_entailment(real):
    """The paper's Table 1: 2139 of 130,541 entailments (1.6%), 69 neutral (0.05%), 172 others (0.13%)."""
    from pipelines.tasks.examples import read_examples

    train = read_examples(real / "train.parquet")
    overlap = lexical_overlap(train["premise"], train["hypothesis"])
    share = {}
    for label in ("entailment", "neutral", "contradiction"):
        rows = [name == label for name in train["label"].to_pylist()]
        share[label] = overlap[rows].mean()
    # A fifth of the rows, some without their final full stop, so the published shares hold roughly only.
    assert 0.012 < share["entailment"] < 0.025
    assert share["neutral"] < 0.002 and share["contradiction"] < 0.003


def test_a_predicate_is_not_asked_of_no_examples():
    # numpy makes an array of floats of nothing, whatever the predicate makes of something.
    is_long = Heuristic("is_long", lambda texts: np.array([len(text) > 3 for text in texts]), predicts="bad")
    assert is_long(["a", "four"]).tolist() == [False, True]
    assert is_long([]).dtype == bool and is_long(pa.array([], pa.string())).shape == (0,)
    with pytest.raises(UserError, match="lexical_overlap: its predicate ended in ValueError: 0 premises and 1 hypotheses"):
        HEURISTICS["lexical_overlap"]([], ["a"])


def _none(premises, hypotheses):
    return np.zeros(len(premises), dtype=bool)


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        (lambda premises, hypotheses: [True for _ in premises], r"mine returned list .* np\.array"),
        (lambda premises, hypotheses: None, "mine returned NoneType"),
        (lambda premises, hypotheses: np.ones(1, dtype=bool), r"mine returned bool of \(1,\) shape for 2 examples"),
        (
            lambda premises, hypotheses: premises["a"],
            r"mine: its predicate ended in TypeError: .* \(test_heuristics\.py:\d+\), asked about 2 examples; mend it",
        ),
    ],
)
def test_a_predicate_is_tried_before_anything_is_built(holds, message):
    Heuristic("mine", _none).check(NLI)
    with pytest.raises(UserError, match=message):
        Heuristic("mine", holds).check(NLI)


def test_the_heuristic_of_a_word_is_about_its_field_alone():
    negated = word_heuristic("hypothesis", "Not", predicts=Label.CONTRADICTION)
    rows = [("not a", "b"), ("a", "It's NOT."), ("a", "nothing, knots, can't"), ("a", "a not-so-new one")]
    examples = pa.table({name: [row[at] for row in rows] for at, name in enumerate(NLI.field_names)})
    assert negated.of(examples, NLI).tolist() == [False, True, False, True]
    assert identity(negated) == {"name": "hypothesis_says_not", "predicts": "contradiction", "version": 1}
    assert negated.held_slice == negated.blindspot_slice == "holds/hypothesis_says_not/non-contradiction"
    assert negated.description == "The hypothesis has the word 'not'."
    negated.check(NLI)
    assert pickle.loads(pickle.dumps(negated)) == negated == find_heuristic("hypothesis:not=contradiction")


def test_words_have_names_of_their_own():
    words = ["don't", "don_t", "dont", "不", "don_27_t", "don_5f_t", "é", "3.5"]
    names = [find_heuristic(f"text:{word}=a b").name for word in words]
    assert len(set(names)) == len(words) and names[0] == "text_says_don_27_t"
    assert find_heuristic("text:don't=a b").predicts == "a b"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hypothesis:well-known=neutral", "word='well-known' is no single word: .* has the words well, known; give one word"),
        ("hypothesis:not.=neutral", r"word='not\.' .* has the word not; give one word"),
        ("hypothesis:不是=neutral", "has the words 不, 是"),
        ("hypothesis:!=neutral", "word='!' .* it has none; give one word"),
        ("hypothesis", "no heuristic 'hypothesis'; .* that of a word is FIELD:WORD=LABEL"),
        ("no_such_field:not", "cannot be loaded .* that of a word is FIELD:WORD=LABEL"),
    ],
)
def test_what_is_no_word_is_refused(reference, message):
    with pytest.raises(UserError, match=message):
        find_heuristic(reference)


def test_a_word_of_another_tasks_field_or_label_is_refused():
    reviews = Task("reviews", ("bad", "good"), (Field("review", "Review:"),), "{review} is", "It is {label}")
    word_heuristic("review", "not", "bad").check(reviews)
    with pytest.raises(UserError, match="text_says_not is about the field 'text', and examples have review; name one of these"):
        word_heuristic("text", "not", "bad").check(reviews)
    with pytest.raises(UserError, match="review_says_not predicts 'neutral', and the labels of the task reviews are bad, good"):
        word_heuristic("review", "not", "neutral").check(reviews)


def test_a_predicate_of_ones_own_may_be_about_one_field():
    short = Heuristic("short", lambda texts: np.array([len(text) < 3 for text in texts]), fields=("premise",))
    assert short.of(pa.table({"premise": ["a", "abc"], "hypothesis": ["abc", "a"]}), NLI).tolist() == [True, False]
    short.check(NLI)
    with pytest.raises(UserError, match=r"takes \(premises, hypotheses\), and it is about the fields premise; give it a param"):
        Heuristic("mine", _none, fields=("premise",)).check(NLI)
