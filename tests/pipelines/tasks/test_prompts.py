import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import (
    EN_DASH,
    END_MARKERS,
    HYPHENS,
    Parsed,
    Rejected,
    classifier_prompts,
    generator_prompt,
    generator_text,
    generator_texts,
    parse_generated,
    plain_texts,
    reject_reasons,
)


def pair(premise, hypothesis):
    return {"premise": premise, "hypothesis": hypothesis}


def parsed(premise, hypothesis):
    return Parsed(pair(premise, hypothesis))


def test_classifier_prompt_is_the_papers():
    assert NLI.classified(pair("A dog runs.", "An animal moves.")) == (
        "Please indicate the relationship between the premise and the hypothesis with entailment, neutral or "
        "contradiction. Premise: A dog runs. Hypothesis: An animal moves. "
        "The relationship between premise and hypothesis is"
    )


def test_generator_text_is_the_papers():
    assert generator_text("entailment", pair("A dog runs.", "An animal moves.")) == (
        "This is an example where the relationship between the premise and the hypothesis is entailment. "
        "Premise: A dog runs. Hypothesis: An animal moves. \N{EN DASH} This is the end of the example."
    )


def test_the_scripts_marker_has_two_hyphens():
    assert generator_text("neutral", pair("P", "H"), HYPHENS).endswith(" Hypothesis: H -- This is the end of the example.")


def test_generator_prompt_ends_with_the_label():
    assert generator_prompt("contradiction") == (
        "This is an example where the relationship between the premise and the hypothesis is contradiction"
    )


def test_texts_of_a_table_are_those_of_its_rows_in_order():
    table = pa.table(
        {"label": ["neutral", "contradiction"], "hypothesis": ["A bird sings.", "It ran."], "premise": ["Rain.", "A cat ran."]}
    )
    assert classifier_prompts(table) == [
        "Please indicate the relationship between the premise and the hypothesis with entailment, neutral or "
        "contradiction. Premise: Rain. Hypothesis: A bird sings. The relationship between premise and hypothesis is",
        "Please indicate the relationship between the premise and the hypothesis with entailment, neutral or "
        "contradiction. Premise: A cat ran. Hypothesis: It ran. The relationship between premise and hypothesis is",
    ]
    assert generator_texts(table, HYPHENS) == [
        "This is an example where the relationship between the premise and the hypothesis is neutral. "
        "Premise: Rain. Hypothesis: A bird sings. -- This is the end of the example.",
        "This is an example where the relationship between the premise and the hypothesis is contradiction. "
        "Premise: A cat ran. Hypothesis: It ran. -- This is the end of the example.",
    ]
    assert plain_texts(table) == ["Rain. A bird sings. Rain. A bird sings.", "A cat ran. It ran. A cat ran. It ran."]


@pytest.mark.parametrize("label", ["", "non-entailment", "Entailment", "maybe"])
def test_generator_has_three_labels(label):
    with pytest.raises(UserError, match="entailment, neutral, contradiction"):
        generator_prompt(label)


def test_what_the_generator_writes_after_its_prompt_is_read_back():
    written = ". Premise: A dog runs. Hypothesis: An animal moves. \N{EN DASH} This is the end of the example."
    assert parse_generated(written) == parsed("A dog runs.", "An animal moves.")
    by_the_scripts = ". Premise: A dog runs. Hypothesis: An animal moves. -- This is the end of the example."
    assert parse_generated(by_the_scripts, marker=HYPHENS) == parsed("A dog runs.", "An animal moves.")


def test_reasons_are_written_into_rejects_by_these_names():
    assert list(reject_reasons()) == [
        "no_premise",
        "text_before_premise",
        "no_hypothesis",
        "repeated_field_marker",
        "no_end_marker",
        "empty_premise",
        "empty_hypothesis",
    ]


@pytest.mark.parametrize(
    ("text", "premise", "hypothesis"),
    [
        (". Premise: A dog runs. Hypothesis: An animal moves.", "A dog runs.", "An animal moves."),
        (".  Premise:  A – b  Hypothesis:\tC.", "A – b", "C."),
        (" Premise: no full stop first Hypothesis: C.", "no full stop first", "C."),
        (". Premise: two\nlines Hypothesis: C.", "two\nlines", "C."),
    ],
)
def test_parsed_fields(text, premise, hypothesis):
    assert parse_generated(text + EN_DASH) == parsed(premise, hypothesis)


def test_what_follows_the_first_end_marker_is_ignored():
    text = f". Premise: P Hypothesis: H{EN_DASH} This is an example. Premise: Q Hypothesis: I{EN_DASH}"
    assert parse_generated(text) == parsed("P", "H")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_premise"),
        (f". Hypothesis: H{EN_DASH}", "no_premise"),
        (f"{EN_DASH}. Premise: P Hypothesis: H{EN_DASH}", "no_premise"),
        (f" and neutral. Premise: P Hypothesis: H{EN_DASH}", "text_before_premise"),
        (f". Hypothesis: H Premise: P{EN_DASH}", "text_before_premise"),
        (". Premise: P and on and on", "no_hypothesis"),
        (f". Premise: P{EN_DASH} Hypothesis: H{EN_DASH}", "no_hypothesis"),
        (f". Premise: P Hypothesis: H Hypothesis: I{EN_DASH}", "repeated_field_marker"),
        (f". Premise: P Premise: Q Hypothesis: H{EN_DASH}", "repeated_field_marker"),
        (f". Premise: P Hypothesis: H Premise: Q{EN_DASH}", "repeated_field_marker"),
        (". Premise: P Hypothesis: H", "no_end_marker"),
        (". Premise: P Hypothesis: H – This is the end of the", "no_end_marker"),
        (f". Premise: P Hypothesis: H{HYPHENS}", "no_end_marker"),
        (f". Premise: Hypothesis: H{EN_DASH}", "empty_premise"),
        (f". Premise:  \n Hypothesis: H{EN_DASH}", "empty_premise"),
        (f". Premise: P Hypothesis:{EN_DASH}", "empty_hypothesis"),
    ],
)
def test_rejects_keep_the_text_and_say_why(text, reason):
    assert parse_generated(text) == Rejected(reason, text)


def test_every_reason_is_reached_by_the_cases_above():
    cases = test_rejects_keep_the_text_and_say_why.pytestmark[0].args[1]
    assert {reason for _, reason in cases} == set(reject_reasons())


def test_marker_is_one_of_the_two():
    with pytest.raises(UserError, match="The end"):
        parse_generated(". Premise: P Hypothesis: H The end", marker="The end")


PARTS = [
    "Premise",
    "Hypothesis",
    ":",
    " ",
    ".",
    " – ",
    "--",
    "This is the end of the example",
    "dog",
    "\n",
    "é",
    "“",
]
FIELDS = (st.text() | st.lists(st.sampled_from(PARTS)).map("".join)).map(str.strip)


@given(
    FIELDS.filter(lambda field: field and "Premise:" not in field and "Hypothesis:" not in field),
    FIELDS.filter(lambda field: field and "Premise:" not in field and "Hypothesis:" not in field),
    st.sampled_from(["entailment", "neutral", "contradiction"]),
    st.sampled_from(END_MARKERS),
)
def test_what_is_trained_on_parses_to_its_fields(premise, hypothesis, label, marker):
    if marker in f"{premise} " or marker in hypothesis:
        return
    written = generator_text(label, pair(premise, hypothesis), marker).removeprefix(generator_prompt(label))
    assert parse_generated(written, marker=marker) == parsed(premise, hypothesis)


@given(st.lists(st.sampled_from([*PARTS, "Premise:", "Hypothesis:", EN_DASH])).map("".join))
def test_nothing_parses_to_an_empty_or_marked_field(text):
    match parse_generated(text):
        case Parsed(fields):
            for field in fields.values():
                assert field and field == field.strip()
                assert not any(mark in field for mark in ("Premise:", "Hypothesis:", EN_DASH))
        case Rejected(_, kept):
            assert kept == text
