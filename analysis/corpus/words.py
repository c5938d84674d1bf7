"""The words of texts as 64-bit hashes: each by itself, with the word before it, and all in their order.

What a word is, `pipelines.tasks.words` says. HANS's heuristics have tokens of their own (`pipelines.tasks.heuristics`).

Texts in ASCII, which most of English is, are segmented by numpy, all of a batch at once; the others by `regex`, text by text.
Both hash a word's UTF-8 bytes, so that a word is the same in any text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.splitmix import GOLDEN, mixed
from pipelines.tasks.words import words_of

_START = np.uint64(0x5851F42D4C957F2D)

Hashed = tuple[np.ndarray, np.ndarray]
"""Hashes of many texts' words, uint64 [num_words], and where each text's begin, int64 [num_texts + 1]."""

_LETTER, _DIGIT, _LOW_LINE, _SPACE, _BETWEEN_LETTERS, _BETWEEN_DIGITS = (np.uint8(1 << bit) for bit in range(6))
_WORD = _LETTER | _DIGIT | _LOW_LINE


def _kinds() -> bytes:
    kinds = np.zeros(256, np.uint8)
    marks = {_DIGIT: "0123456789", _LOW_LINE: "_", _BETWEEN_LETTERS: ".:'", _BETWEEN_DIGITS: ".,;'"}
    marks |= {_LETTER: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", _SPACE: " \t\n\v\f\r\x1c\x1d\x1e\x1f"}
    for kind, characters in marks.items():
        kinds[list(characters.encode())] |= kind
    return kinds.tobytes()


_KINDS = _kinds()
"""What each byte of ASCII is: for words by UAX #29, and for `str.split`."""


def word_hashes(texts: pa.StringArray) -> Hashed:
    """The words of each text as 64-bit hashes, and where each text's begin: shapes (num_words,) and (num_texts + 1,)."""
    return _by_alphabet(texts, _ascii_words, _other_words)


def token_hashes(texts: pa.StringArray, dropped: Collection[str] = ()) -> Hashed:
    """The same of the lower-cased pieces between spaces, as `str.lower` and `str.split` have them.

    Without those that are one of the `dropped` characters of ASCII.
    """

    def of_ascii(texts: pa.StringArray) -> Hashed:
        return _ascii_tokens(texts, dropped)

    def of_others(texts: pa.StringArray) -> Hashed:
        return _hashed([[token for token in text.lower().split() if token not in dropped] for text in texts.to_pylist()])

    return _by_alphabet(texts, of_ascii, of_others)


def _by_alphabet(
    texts: pa.StringArray, of_ascii: Callable[[pa.StringArray], Hashed], of_others: Callable[[pa.StringArray], Hashed]
) -> Hashed:
    is_ascii = pc.string_is_ascii(texts).to_numpy(zero_copy_only=False)
    if is_ascii.all():
        return of_ascii(texts)
    if not is_ascii.any():
        return of_others(texts)
    first, others = of_ascii(texts.filter(pa.array(is_ascii))), of_others(texts.filter(pa.array(~is_ascii)))
    counts, starts = np.empty(len(texts), np.int64), np.empty(len(texts), np.int64)
    counts[is_ascii], counts[~is_ascii] = np.diff(first[1]), np.diff(others[1])
    starts[is_ascii], starts[~is_ascii] = first[1][:-1], others[1][:-1] + len(first[0])
    offsets = _begins(counts)
    return np.concatenate([first[0], others[0]])[_ranges(starts, counts)], offsets


def _begins(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, …, of each of the ranges, one after another."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def _bytes_of(texts: pa.StringArray) -> tuple[bytes, np.ndarray]:
    """The texts' UTF-8 one after another, and where each begins: int64 [num_texts + 1]."""
    if not len(texts):
        return b"", np.zeros(1, np.int64)
    _, offsets, data = texts.buffers()
    begins = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    content = b"" if data is None else data.slice(begins[0], begins[-1] - begins[0]).to_pybytes()
    return content, begins - begins[0]


def _ascii_words(texts: pa.StringArray) -> Hashed:
    content, begins = _bytes_of(texts)
    content = content.lower()
    kinds = np.frombuffer(content.translate(_KINDS), np.uint8)
    in_word = (kinds & _WORD) != 0
    # Whether there is no boundary before each byte: one of a word after another of the same text …
    joined = np.zeros(len(kinds) + 1, bool)
    np.logical_and(in_word[1:], in_word[:-1], out=joined[1:-1])
    joined[begins] = False
    # … or a mark between two letters or two digits.
    marks = np.flatnonzero((kinds & (_BETWEEN_LETTERS | _BETWEEN_DIGITS)) != 0)
    marks = marks[(marks > 0) & (marks < len(kinds) - 1)]
    before, mark, after = kinds[marks - 1], kinds[marks], kinds[marks + 1]
    between = ((mark & _BETWEEN_LETTERS) != 0) & ((before & after & _LETTER) != 0)
    between |= ((mark & _BETWEEN_DIGITS) != 0) & ((before & after & _DIGIT) != 0)
    marks = marks[between]
    if len(marks):
        is_start = np.zeros(len(kinds) + 1, bool)
        is_start[begins] = True
        marks = marks[~(is_start[marks] | is_start[marks + 1])]
        joined[marks] = joined[marks + 1] = True
    starts = np.flatnonzero(in_word & ~joined[:-1])
    ends = np.flatnonzero(in_word & ~joined[1:]) + 1
    # Low lines alone are no word.
    is_line = np.flatnonzero((kinds[starts] == _LOW_LINE) & (kinds[ends - 1] == _LOW_LINE))
    if len(is_line):
        bare = np.array([not content[starts[at] : ends[at]].strip(b"_") for at in is_line], bool)
        starts, ends = np.delete(starts, is_line[bare]), np.delete(ends, is_line[bare])
    return hash_slices(content, starts, ends - starts), np.searchsorted(starts, begins)


def _ascii_tokens(texts: pa.StringArray, dropped: Collection[str]) -> Hashed:
    content, begins = _bytes_of(texts)
    content = content.lower()
    is_token = (np.frombuffer(content.translate(_KINDS), np.uint8) & _SPACE) == 0
    joined = np.zeros(len(is_token) + 1, bool)
    np.logical_and(is_token[1:], is_token[:-1], out=joined[1:-1])
    joined[begins] = False
    starts = np.flatnonzero(is_token & ~joined[:-1])
    ends = np.flatnonzero(is_token & ~joined[1:]) + 1
    kept = np.ones(len(starts), bool)
    for mark in dropped:
        kept &= (ends - starts > 1) | (np.frombuffer(content, np.uint8)[starts] != ord(mark))
    starts, ends = starts[kept], ends[kept]
    return hash_slices(content, starts, ends - starts), np.searchsorted(starts, begins)


def _other_words(texts: pa.StringArray) -> Hashed:
    return _hashed([words_of(text) for text in texts.to_pylist()])


def _hashed(words: Sequence[Sequence[str]]) -> Hashed:
    encoded = [word.encode() for of_text in words for word in of_text]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    hashes = hash_slices(b"".join(encoded), _begins(lengths)[:-1], lengths)
    return hashes, _begins(np.fromiter(map(len, words), np.int64, len(words)))


def text_hashes(texts: pa.StringArray) -> np.ndarray:
    """A hash of each text, character by character: uint64 [num_texts]."""
    content, begins = _bytes_of(texts)
    return hash_slices(content, begins[:-1], np.diff(begins))


_LOW_BYTES = np.array([(1 << (8 * num)) - 1 for num in range(9)], np.uint64)


def hash_slices(content: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A hash of each slice of some bytes: uint64 of the shape of `starts` and `lengths`.

    A sum, over a slice's pieces of eight bytes, of hashes of the piece and its position.
    """
    padded = np.frombuffer(content + bytes(8), np.uint8)
    # Eight bytes from each position on.
    eights = np.ndarray((len(content) + 1,), "<u8", padded, strides=(1,))
    short = eights[starts] & _LOW_BYTES[np.minimum(lengths, 8)]
    sums = mixed(short)
    long = np.flatnonzero(lengths > 8)
    if len(long):
        num_pieces = (lengths[long] - 1) >> 3  # after the first
        piece = _ranges(np.ones(len(long), np.int64), num_pieces)
        at = np.repeat(starts[long], num_pieces) + 8 * piece
        left = np.minimum(np.repeat(lengths[long], num_pieces) - 8 * piece, 8)
        hashes = mixed((eights[at] & _LOW_BYTES[left]) + piece.astype(np.uint64) * GOLDEN)
        sums[long] += np.add.reduceat(hashes, _begins(num_pieces)[:-1])
    return mixed(sums + lengths.astype(np.uint64) * GOLDEN)


def word_pairs(words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A hash of each word with the one before it in its text, the first with a mark of the start: shape (num_words,)."""
    before = np.concatenate([[_START], words[:-1]]) if len(words) else words
    starts = offsets[:-1][np.diff(offsets) > 0]
    before[starts] = _START
    return mixed(before * GOLDEN + words)


def in_order(words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A hash of each text's words in their order: a sum of hashes of word and position."""
    position = _ranges(np.zeros(len(offsets) - 1, np.int64), np.diff(offsets)).astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed(words + position * GOLDEN), dtype=np.uint64)])
    # Differences of sums that wrap around are right all the same.
    return mixed(sums[offsets[1:]] - sums[offsets[:-1]])


def are_words_within(inner: Hashed, outer: Hashed) -> tuple[np.ndarray, np.ndarray]:
    """Whether each text's words are all among another's, and whether they stand there one after another: bool [num_texts] each.

    Both arguments are as :func:`word_hashes` returns them, of as many texts. True of a text without a word.
    """
    within = np.ones(len(inner[1]) - 1, bool)
    # Most texts fail here: one of 64 bits for each word.
    wanted, there = _bits(inner), _bits(outer)
    rows = np.flatnonzero((wanted & ~there) == 0)
    within[(wanted & ~there) != 0] = False
    keys = []
    for words, offsets in (inner, outer):
        counts = offsets[rows + 1] - offsets[rows]
        text = np.repeat(rows.astype(np.uint64), counts)
        keys.append(mixed(text * GOLDEN + words[_ranges(offsets[rows], counts)]))
    missing = np.concatenate([[0], np.cumsum(~pc.is_in(pa.array(keys[0]), pa.array(keys[1])).to_numpy(zero_copy_only=False))])
    ends = np.cumsum(inner[1][rows + 1] - inner[1][rows])
    within[rows] = missing[ends] == missing[ends - (inner[1][rows + 1] - inner[1][rows])]
    contiguous = within.copy()
    for row in np.flatnonzero(within):
        short, long = (words[offsets[row] : offsets[row + 1]].tobytes() for words, offsets in (inner, outer))
        contiguous[row] = _is_at_a_word(short, long)
    return within, contiguous


def _bits(hashed: Hashed) -> np.ndarray:
    """For each text the bits of its words, uint64 [num_texts]: one of 64 a word."""
    words, offsets = hashed
    bits = np.zeros(len(offsets) - 1, np.uint64)
    has_words = np.diff(offsets) > 0
    if has_words.any():
        each = np.uint64(1) << (words >> np.uint64(58))
        bits[has_words] = np.bitwise_or.reduceat(each, offsets[:-1][has_words])
    return bits


def _is_at_a_word(short: bytes, long: bytes) -> bool:
    at = long.find(short)
    while at % 8:
        if at < 0:
            return False
        at = long.find(short, at + 1)
    return at >= 0
