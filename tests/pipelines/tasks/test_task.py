import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.tasks.examples import check_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import (
    EN_DASH,
    Parsed,
    Rejected,
    classifier_prompts,
    generator_prompt,
    generator_texts,
    parse_generated,
    plain_texts,
    reject_reasons,
)
from pipelines.tasks.task import Field, Task

STARS = Task(
    name="stars",
    labels=("1 star", "2 stars", "3 stars", "4 stars"),
    fields=(Field("title", "Title:"), Field("review", "Review:"), Field("reply", "Reply:")),
    classifier_prompt="{title} | {review} | {reply} gets",
    generator_prompt="A review of {label}",
)
SENTIMENT = Task(
    "sentiment",
    ("negative", "positive"),
    (Field("sentence", "Sentence:"),),
    "Sentence: {sentence} It is",
    "A sentence is {label}",
)


def changed(**fields):
    values = {name: getattr(SENTIMENT, name) for name in SENTIMENT.__dataclass_fields__}
    return Task(**{**values, **fields})


def test_texts_of_a_task_with_one_field():
    table = pa.table({"sentence": ["So {good}.", "Bad."], "label": ["positive", "negative"]})
    assert classifier_prompts(table, SENTIMENT) == ["Sentence: So {good}. It is", "Sentence: Bad. It is"]
    assert generator_texts(table, task=SENTIMENT) == [
        "A sentence is positive. Sentence: So {good}. – This is the end of the example.",
        "A sentence is negative. Sentence: Bad. – This is the end of the example.",
    ]
    assert plain_texts(table, SENTIMENT) == ["So {good}. So {good}.", "Bad. Bad."]


def test_what_a_generator_of_three_fields_writes_is_read_back():
    fields = {"title": "Nice", "review": "I slept.", "reply": "Thanks!"}
    (text,) = generator_texts(pa.table({**{name: [value] for name, value in fields.items()}, "label": ["3 stars"]}), task=STARS)
    assert text == f"A review of 3 stars. Title: Nice Review: I slept. Reply: Thanks!{EN_DASH}"
    assert parse_generated(text.removeprefix(generator_prompt("3 stars", STARS)), task=STARS) == Parsed(fields)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f". Review: r Reply: a{EN_DASH}", "no_title"),
        (f" and so. Title: t Review: r Reply: a{EN_DASH}", "text_before_title"),
        (f". Title: t Reply: a{EN_DASH}", "no_review"),
        (f". Title: t Review: r{EN_DASH}", "no_reply"),
        (f". Title: t Review: r Reply: a Title: u{EN_DASH}", "repeated_field_marker"),
        (f". Title: t Review: r Review: s Reply: a{EN_DASH}", "repeated_field_marker"),
        (". Title: t Review: r Reply: a", "no_end_marker"),
        (f". Title: Review: r Reply: a{EN_DASH}", "empty_title"),
        (f". Title: t Review:  Reply: a{EN_DASH}", "empty_review"),
        (f". Title: t Review: r Reply:{EN_DASH}", "empty_reply"),
    ],
)
def test_reject_reasons_follow_from_the_fields(text, reason):
    assert parse_generated(text, task=STARS) == Rejected(reason, text)
    assert reason in reject_reasons(STARS)


def test_every_reject_reason_is_reached_by_the_cases_above():
    cases = test_reject_reasons_follow_from_the_fields.pytestmark[0].args[1]
    assert [*dict.fromkeys(reason for _, reason in cases)] == list(reject_reasons(STARS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Sentiment!"}, "Sentiment!"),
        ({"labels": ("positive",)}, "at least two"),
        ({"labels": ("a/b", "c")}, "a/b"),
        ({"labels": ("good", "Good")}, "twice"),
        ({"labels": ("non-good", "good")}, "non-"),
        ({"folded_onto": "positive"}, "two labels need no folding"),
        ({"labels": ("a", "b", "c"), "folded_onto": "d"}, "folded_onto='d'"),
        ({"labels": ["negative", "positive"]}, r"labels=.*: give a tuple, .* such as \('negative', 'positive'\)"),
        ({"fields": ()}, "at least one text"),
        ({"fields": [Field("sentence", "A:")]}, r"give a tuple, of which each is Field\(…\)"),
        ({"fields": Field("sentence", "A:")}, r"give a tuple, of which each is Field\(…\)"),
        ({"fields": ("sentence",)}, r"give a tuple, of which each is Field\(…\)"),
        ({"classifier_prompt": None}, r"classifier_prompt=None\): give a text"),
        ({"fields": (Field("sentence", "A:"), Field("other", "A:"))}, "one mark"),
        ({"fields": (Field("sentence", "A:"), Field("other", "Big A:"))}, "cannot tell them apart"),
        ({"classifier_prompt": "Which?"}, "nothing in braces"),
        ({"classifier_prompt": "{text}"}, "text in braces"),
        ({"classifier_prompt": "{sentence} "}, "ends in space"),
        ({"classifier_prompt": "{sentence:>10}"}, "a name alone"),
        ({"classifier_prompt": "{sentence} {"}, "written|brace"),
        ({"generator_prompt": "Write one"}, "names .label. once"),
        ({"generator_prompt": "It is {label} here"}, "ends with"),
    ],
)
def test_a_task_that_cannot_be_learnt_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        changed(**fields)


@pytest.mark.parametrize("name", ["label", "id", "Text", "a b"])
def test_a_field_is_a_column_of_its_own(name):
    with pytest.raises(UserError, match=f"'{name}'"):
        Field(name, "X:")


def test_labels_fold_to_one_and_the_rest():
    assert [STARS.fold(label, "4 stars") for label in STARS.labels] == ["non-4 stars"] * 3 + ["4 stars"]
    assert STARS.fold("non-4 stars", "4 stars") == "non-4 stars"
    with pytest.raises(UserError, match="may or may not be of 1 star"):
        STARS.fold("non-4 stars", "1 star")
    with pytest.raises(UserError, match="'5 stars' is none of 1 star"):
        STARS.fold("5 stars", "1 star")


def test_a_table_has_its_tasks_columns_and_labels():
    table = pa.table({"id": ["a"], "sentence": ["x"], "label": ["positive"]})
    assert check_examples(table, "some", SENTIMENT).num_rows == 1
    with pytest.raises(UserError, match="no column premise, hypothesis"):
        check_examples(table, "some")
    with pytest.raises(UserError, match="'entailment'; labels are negative, positive"):
        check_examples(table.set_column(2, "label", pa.array(["entailment"])), "some", SENTIMENT)


def test_a_heuristic_fits_its_task():
    LEXICAL_OVERLAP.check(NLI)
    with pytest.raises(UserError, match="predicts 'entailment', and the labels of the task sentiment"):
        LEXICAL_OVERLAP.check(SENTIMENT)
    entailing = changed(labels=("entailment", "other"))
    with pytest.raises(UserError, match=r"takes \(premises.*, hypotheses.*the fields sentence"):
        LEXICAL_OVERLAP.check(entailing)


def test_the_commonest_name_of_a_single_text_is_free():
    task = changed(fields=(Field("text", "Text:"),), classifier_prompt="{text} It is")
    assert parse_generated(f". Text: So it is.{EN_DASH}", task=task) == Parsed({"text": "So it is."})
