"""The syntactic heuristics of HANS (McCoy, Pavlick and Linzen 2019), as predicates of a pair of sentences.

Lexical overlap and subsequence are decidable from tokens. The constituent heuristic needs a parse tree and
has no predicate here. Tokens are by the HANS authors' definition: split at whitespace, lower-cased, the
stand-alone tokens ``.``, ``?`` and ``!`` dropped; punctuation attached to a word stays part of it (``runs.``
is not ``runs``).
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

DROPPED_TOKENS = frozenset(".?!")


def tokens(sentence: str) -> list[str]:
    """The sentence's tokens, in order."""
    return [token for token in sentence.lower().split() if token not in DROPPED_TOKENS]


def has_lexical_overlap(premise: str, hypothesis: str) -> bool:
    """Whether each token of the hypothesis is a token of the premise; so true of one without tokens."""
    outer, inner = premise.lower(), hypothesis.lower().split()
    # A token of the premise is a piece of its text: most pairs fail here, before the premise has to be split.
    for token in inner:
        if token not in outer and token not in DROPPED_TOKENS:
            return False
    return DROPPED_TOKENS.issuperset(set(inner).difference(outer.split()))


def is_subsequence(premise: str, hypothesis: str) -> bool:
    """Whether the hypothesis' tokens occur in the premise contiguously and in order; so true of one without tokens."""
    return has_lexical_overlap(premise, hypothesis) and _between_spaces(hypothesis) in _between_spaces(premise)


def _between_spaces(sentence: str) -> str:
    """' a b ': no token has a space in it, so that a search for ' b ' finds whole tokens only."""
    return " ".join(["", *tokens(sentence), ""])


def lexical_overlap(premises: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    """:func:`has_lexical_overlap` of each pair: booleans of shape (num_pairs,). Raises ValueError if the lengths differ."""
    return np.fromiter(map(has_lexical_overlap, *_aligned(premises, hypotheses)), dtype=bool)


def subsequence(premises: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    """:func:`is_subsequence` of each pair: booleans of shape (num_pairs,). Raises ValueError if the lengths differ."""
    return np.fromiter(map(is_subsequence, *_aligned(premises, hypotheses)), dtype=bool)


def _aligned(premises: Iterable[str], hypotheses: Iterable[str]) -> tuple[list[str], list[str]]:
    first, second = (
        column.to_pylist() if isinstance(column, pa.Array | pa.ChunkedArray) else list(column)
        for column in (premises, hypotheses)
    )
    if len(first) != len(second):
        raise ValueError(f"{len(first)} premises and {len(second)} hypotheses; each pair needs one of each")
    return first, second
