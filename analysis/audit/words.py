"""The words of texts as 64-bit hashes: each by itself, with the word before it, and all in their order.

A *word* is a token between white space, lower-cased, its characters that are neither letters nor digits removed. The
heuristics have tokens of their own (`pipelines.tasks.heuristics`): ``runs.`` has the word ``runs``, and is not their token.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

# Odd 64-bit constants without structure (the golden ratio, and Stafford's mix 13 of splitmix64).
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_START = np.uint64(0x5851F42D4C957F2D)


def words_of(text: str) -> list[str]:
    """The words of one text, which :func:`word_hashes` has the hashes of."""
    lower = pc.utf8_lower(pa.scalar(text, pa.string()))
    return [word for word in map(_word, pc.utf8_split_whitespace(lower).as_py()) if word]


def _word(token: str) -> str:
    return token if token.isalnum() else "".join(filter(str.isalnum, token))


def word_hashes(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The words of each text as 64-bit hashes, and where each text's begin: shapes (num_words,) and (num_texts + 1,)."""
    split = pc.utf8_split_whitespace(pc.utf8_lower(texts))
    offsets = split.offsets.to_numpy().astype(np.int64)
    encoded = split.values.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
    # A few ten thousand different tokens a batch, so that Python is quick enough.
    names = [_word(token) for token in encoded.dictionary.to_pylist()]
    hashes = pd.util.hash_array(np.array(names, object), categorize=False) if names else np.zeros(0, np.uint64)
    is_word = np.array([bool(name) for name in names], bool)
    flat = encoded.indices.to_numpy()
    kept = is_word[flat] if len(flat) else np.zeros(0, bool)
    counts = np.concatenate([[0], np.cumsum(kept)])
    return hashes[flat[kept]], counts[offsets - offsets[0]]


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
