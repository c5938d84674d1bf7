"""The heuristics that an audit asks about: HANS's for pairs, also by words and by parses, and those of the user's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.corpus.columns import PAIR
from pipelines.errors import UserError
from pipelines.tasks.heuristics import HANS_HEURISTICS, constituents, find_heuristic
from pipelines.tasks.heuristics import HEURISTICS as BUILT_IN
from pipelines.tasks.nli import Label


@dataclass(frozen=True)
class AuditedHeuristic:
    """A heuristic as the audit applies it.

    `holds` takes the texts of each field and, if `needs_parse`, bracketed parses of the first, all lists of num_rows texts, and
    returns booleans of shape (num_rows,). `within` names a heuristic before it that it implies: it is asked only there. Without
    `holds`, hashes of tokens or of words tell.
    """

    name: str
    description: str
    holds: Callable[..., np.ndarray] | None = None
    within: str | None = None
    needs_parse: bool = False
    predicts: str = Label.ENTAILMENT.value
    """The label that it goes with."""
    fields: tuple[str, ...] = ()
    """The fields whose texts `holds` takes; without any, all."""


CONSTITUENT = BUILT_IN[HANS_HEURISTICS[2]]
_BRACKETS = re.compile(r"-[lr][rcs]b-", re.IGNORECASE)


def _letters(text: str) -> str:
    """The letters and digits of a text, lower-cased: a treebank's ``did n't .`` has those of ``didn't``."""
    return "".join(filter(str.isalnum, text.lower()))


def parsed_constituent(premises: Sequence[str], hypotheses: Sequence[str], parses: Sequence[str | None]) -> np.ndarray:
    """Whether each hypothesis has the letters of a complete constituent of the premise's parse: bool [num_rows].

    By letters, since a parse has tokens of its own: ``did n't`` and ``runs .`` for ``didn't`` and ``runs.``. Raises
    :class:`UserError` for a parse that is missing or whose brackets do not match.
    """
    return np.array([_is_constituent(parse or "", text) for text, parse in zip(hypotheses, parses, strict=True)], bool)


def _is_constituent(parse: str, hypothesis: str) -> bool:
    wanted = _letters(hypothesis)
    return any(_letters(_BRACKETS.sub("", " ".join(words))) == wanted for words in constituents(parse))


OF_PAIRS = (
    *(AuditedHeuristic(name, BUILT_IN[name].description) for name in HANS_HEURISTICS[:2]),
    AuditedHeuristic(CONSTITUENT.name, CONSTITUENT.description, CONSTITUENT.holds, within=HANS_HEURISTICS[1]),
    AuditedHeuristic(
        "lexical_overlap_by_words",
        "Each word of the hypothesis is one of the premise, whatever punctuation is attached to either.",
    ),
    AuditedHeuristic(
        "subsequence_by_words", "The hypothesis' words stand in the premise one after another, whatever punctuation does."
    ),
    AuditedHeuristic(
        "parsed_constituent",
        "The hypothesis is a complete constituent of the premise's parse.",
        parsed_constituent,
        "subsequence_by_words",
        needs_parse=True,
    ),
)
BY_TOKENS = HANS_HEURISTICS[:2]
BY_WORDS = ("lexical_overlap_by_words", "subsequence_by_words")
"""The heuristics that the hashes of tokens and of words tell of: whether all are there, and whether one after another."""


@functools.cache
def audited(fields: tuple[str, ...], references: tuple[str, ...] = ()) -> tuple[AuditedHeuristic, ...]:
    """The heuristics about examples with these fields: HANS's for pairs, and those of the user's own that `references` name.

    Raises :class:`UserError` for a reference to none, to one that is there already, and to one about another field.
    """
    heuristics = list(OF_PAIRS if fields == PAIR else ())
    for reference in references:
        own = find_heuristic(reference)
        if own.name in {heuristic.name for heuristic in heuristics}:
            raise UserError(f"heuristic {reference}: {own.name} is audited already; name each once")
        about = own.fields_of(fields)
        heuristics.append(AuditedHeuristic(own.name, own.description, own, predicts=str(own.predicts), fields=about))
    return tuple(heuristics)
