"""Labels are compared by what they mean, not by how they are spelled."""

import pytest

from analysis.corpus.labels import compare, label_key, meaning_of

THREE = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("label", ["Entailment.", " ENTAILMENT", "**entailment**", '"entailment"', "entails", "Entailed!"])
def test_a_label_as_a_model_writes_it_is_the_label(label: str) -> None:
    assert meaning_of(label) == "entailment"


@pytest.mark.parametrize(
    ("one", "other"), [("-1", "1"), ("C++", "C"), ("not_entailment", "entailment"), ("2", "2.5"), ("+", "-")]
)
def test_labels_that_differ_stay_apart(one: str, other: str) -> None:
    assert meaning_of(one) != meaning_of(other)


def test_a_label_of_punctuation_is_itself() -> None:
    assert label_key("!") == "!" and label_key("?") == "?"


def test_names_and_numbers_cannot_be_compared_until_they_are_named() -> None:
    assert "'0', '1', '2' there; say what they mean with --label-name" in compare(THREE, ("0", "1", "2")).reason
    named = dict(zip("012", THREE, strict=True))
    assert compare(THREE, ("0", "1", "2"), named).second == named


def test_three_labels_against_two_are_folded() -> None:
    found = compare(THREE, ("entailment", "not_entailment"))
    assert found.first == {"entailment": "entailment", "neutral": "non-entailment", "contradiction": "non-entailment"}
    assert found.second == {"entailment": "entailment", "not_entailment": "non-entailment"}


def test_three_labels_in_other_spellings_are_not_folded() -> None:
    found = compare(THREE, ("ENTAILMENT", "Neutral.", "contradictory"))
    assert found.second == {"ENTAILMENT": "entailment", "Neutral.": "neutral", "contradictory": "contradiction"}


def test_labels_of_any_task_are_compared_by_name() -> None:
    assert compare(("joy", "anger"), ("Anger", "fear")).second == {"Anger": "anger", "fear": "fear"}
    assert compare(("joy", "anger"), ("yes", "no")).reason
