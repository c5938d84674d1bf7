"""The words of texts as 64-bit hashes: each by itself, with the word before it, and all in their order.

A *word* is one of Unicode's own segmentation (UAX #29) that has a letter or a digit, in normal form C, lower-cased: ``don't``
is one, ``well-known`` two, ``runs.`` has the word ``runs``, and combining marks are part of theirs. Where a language puts no
spaces between words (Chinese, Japanese, Thai), each character is a word. The heuristics have tokens of their own
(`pipelines.tasks.heuristics`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import regex

# Odd 64-bit constants without structure (the golden ratio, and Stafford's mix 13 of splitmix64).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_START = np.uint64(0x5851F42D4C957F2D)

_SEGMENTS = regex.compile(r"\b\w(?:\B.)*+", regex.WORD | regex.DOTALL)
"""What begins at one of Unicode's word boundaries with a letter, a digit or _, up to the next boundary."""


def words_of(text: str) -> list[str]:
    """The words of one text, which :func:`word_hashes` has the hashes of."""
    split = pc.utf8_split_whitespace(_normal(pa.array([text], pa.string())))
    return [word for token in split.values.to_pylist() for word in _segments(token)]


def _normal(texts: pa.StringArray) -> pa.StringArray:
    return pc.utf8_lower(pc.utf8_normalize(texts, "NFC"))


def _segments(token: str) -> list[str]:
    if token.isascii() and token.isalnum():
        return [token]
    return [word for word in _SEGMENTS.findall(token) if any(map(str.isalnum, word))]


def word_hashes(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The words of each text as 64-bit hashes, and where each text's begin: shapes (num_words,) and (num_texts + 1,)."""
    split = pc.utf8_split_whitespace(_normal(texts))
    offsets = split.offsets.to_numpy().astype(np.int64)
    encoded = split.values.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
    # A few ten thousand different tokens a batch, so that Python is quick enough.
    segments = [_segments(token) for token in encoded.dictionary.to_pylist()]
    names = [word for words in segments for word in words]
    hashes = pd.util.hash_array(np.array(names, object), categorize=False) if names else np.zeros(0, np.uint64)
    flat = encoded.indices.to_numpy()
    num_words = np.fromiter(map(len, segments), np.int64, len(segments))
    first = np.concatenate([[0], np.cumsum(num_words)])[:-1]
    counts = num_words[flat] if len(flat) else np.zeros(0, np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)])
    # The words of each token one after another: its first, and how far on from it.
    at = np.repeat(first[flat] - begins[:-1], counts) + np.arange(begins[-1]) if len(flat) else flat
    return hashes[at], begins[offsets - offsets[0]]


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one and without a pattern (splitmix64's last step)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def word_pairs(words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A hash of each word with the one before it in its text, the first with a mark of the start: shape (num_words,)."""
    before = np.concatenate([[_START], words[:-1]]) if len(words) else words
    starts = offsets[:-1][np.diff(offsets) > 0]
    before[starts] = _START
    return mixed(before * GOLDEN + words)


def in_order(words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A hash of each text's words in their order: a sum of hashes of word and position."""
    position = (np.arange(len(words)) - np.repeat(offsets[:-1], np.diff(offsets))).astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed(words + position * GOLDEN), dtype=np.uint64)])
    # Differences of sums that wrap around are right all the same.
    return mixed(sums[offsets[1:]] - sums[offsets[:-1]])


def are_words_within(
    inner: tuple[np.ndarray, np.ndarray], outer: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each text's words are all among another's, and whether they stand there one after another: bool [num_texts] each.

    Both arguments are as :func:`word_hashes` returns them, of as many texts. True of a text without a word.
    """
    num_texts = len(inner[1]) - 1
    keys = []
    for words, offsets in (inner, outer):
        text = np.repeat(np.arange(num_texts, dtype=np.uint64), np.diff(offsets))
        keys.append(pa.array(mixed(text * GOLDEN + words)))
    found = pc.is_in(keys[0], keys[1]).to_numpy(zero_copy_only=False)
    missing = np.concatenate([[0], np.cumsum(~found)])
    within = missing[inner[1][1:]] == missing[inner[1][:-1]]
    contiguous = within.copy()
    for row in np.flatnonzero(within):
        short, long = (words[offsets[row] : offsets[row + 1]].tobytes() for words, offsets in (inner, outer))
        contiguous[row] = _is_at_a_word(short, long)
    return within, contiguous


def _is_at_a_word(short: bytes, long: bytes) -> bool:
    at = long.find(short)
    while at % 8:
        if at < 0:
            return False
        at = long.find(short, at + 1)
    return at >= 0
