"""What labels mean: spellings of one label, and which labels of two files are the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_AROUND = " \t\r\n.,;:!?\"'`*_()[]{}<>“”‘’。、"
"""What language models put around a label: space, full stops, quotation marks, emphasis."""
MEANINGS = {
    "entailment": ("entailment", "entails", "entailed", "entail"),
    "neutral": ("neutral",),
    "contradiction": ("contradiction", "contradicts", "contradicted", "contradict", "contradictory"),
    "non-entailment": ("non-entailment", "not_entailment", "not-entailment", "non_entailment", "not entailment"),
}
"""Labels of natural language inference, and how data sets and people write them."""
_MEANING = {spelling: meaning for meaning, spellings in MEANINGS.items() for spelling in spellings}


def label_key(label: str) -> str:
    """A label without what does not tell it from another: case, space, full stops and quotation marks around it."""
    return " ".join(unicodedata.normalize("NFC", label).casefold().strip(_AROUND).split()) or label


def meaning_of(label: str, named: Mapping[str, str] | None = None) -> str:
    """What a label means: the name that the user gave it, NLI's own name for it, or its key."""
    key = label_key(label)
    given = {label_key(raw): label_key(name) for raw, name in (named or {}).items()}
    key = given.get(key, key)
    return _MEANING.get(key, key)


@dataclass(frozen=True)
class Comparison:
    """The labels of two files in common terms: for each label of either what it stands for, or why they cannot be compared."""

    first: Mapping[str, str]
    second: Mapping[str, str]
    reason: str = ""


def compare(first: Sequence[str], second: Sequence[str], named: Mapping[str, str] | None = None) -> Comparison:
    """Find the labels of two files that mean the same.

    Three labels of NLI against its two are folded to entailment and non-entailment. Two files without a label in common, such
    as numbers in one and names in the other, cannot be compared.
    """
    meanings = [{label: meaning_of(label, named) for label in labels} for labels in (first, second)]
    if any("non-entailment" in one.values() for one in meanings):
        meanings = [{label: _folded(meaning) for label, meaning in one.items()} for one in meanings]
    if set(meanings[0].values()) & set(meanings[1].values()):
        return Comparison(meanings[0], meanings[1])
    listed = [", ".join(repr(label[:40]) for label in labels) for labels in (first, second)]
    return Comparison({}, {}, f"the labels are {listed[0]} here and {listed[1]} there; say what they mean with --label-name")


def _folded(meaning: str) -> str:
    return "non-entailment" if meaning in ("neutral", "contradiction") else meaning
