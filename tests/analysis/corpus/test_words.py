"""Words by Unicode's segmentation and their hashes: the same by numpy, which has all of ASCII, and text by text."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest

from analysis.corpus.words import hash_slices, text_hashes, token_hashes, word_hashes
from pipelines.tasks.words import has_word, words_of

ALPHABET = "aeB1_'.:,;- \x1c\n?\t"
DROPPED = (".", "?", "!")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """All texts of up to four characters that boundaries depend on, and longer ones at random."""
    source = random.Random(0)
    short = ["".join(text) for length in range(5) for text in itertools.product(ALPHABET, repeat=length)]
    return short + ["".join(source.choices(ALPHABET, k=source.randint(5, 40))) for _ in range(2_000)]


def hashes_of(pieces: list[list[str]]) -> list[list[int]]:
    """The hash of each piece, each as a text of its own."""
    flat = [piece for of_text in pieces for piece in of_text]
    hashes = iter(text_hashes(pa.array(flat, pa.string())).tolist())
    return [[next(hashes) for _ in of_text] for of_text in pieces]


def split(hashed: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    words, offsets = hashed
    return [words[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def test_ascii_is_segmented_as_text_by_text(texts: list[str]) -> None:
    expected = hashes_of([words_of(text) for text in texts])
    assert split(word_hashes(pa.array(texts))) == expected
    # Among texts that are not ASCII, in their order.
    mixed = [text + " é" * (number % 2) for number, text in enumerate(texts[-3_000:])]
    assert split(word_hashes(pa.array(mixed))) == hashes_of([words_of(text) for text in mixed])


def test_a_text_has_the_words_that_the_audit_counts(texts: list[str]) -> None:
    texts = [*texts[-3_000:], "D\u00e9j\u00e0 vu", "De\u0301ja\u0300", "AB\u00e9 ab", "\u1f48\u03a3\u03a3"]
    hashed = split(word_hashes(pa.array(texts)))
    for word in ("ab", "a.b", "1", "b_1", "a'e", "d\u00e9j\u00e0"):
        (of_word,) = hashes_of([[word]])
        expected = [of_word[0] in words for words in hashed]
        assert [has_word(text, word) for text in texts] == expected and any(expected)


def test_tokens_are_those_of_the_heuristics(texts: list[str]) -> None:
    texts = [*texts[-3_000:], "İstanbul ΣΑΣ .", "a\u00a0b ?", "A\x1cb", ". ? ! .. ?!", "Ä . ä"]
    expected = hashes_of([[token for token in text.lower().split() if token not in DROPPED] for text in texts])
    assert split(token_hashes(pa.array(texts), DROPPED)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He said 'apple' and ’orange’.", ["he", "said", "apple", "and", "orange"]),
        ("'Tis l'amour d'un o'clock, don't", ["tis", "l'amour", "d'un", "o'clock", "don't"]),
        ("3.14 1,000 a,b a.b 5:30 x:y __ _a", ["3.14", "1,000", "a", "b", "a.b", "5", "30", "x:y", "_a"]),
        ("well-known A\u0301B 東京", ["well", "known", "\u00e1b", "東", "京"]),
    ],
)
def test_words_by_hand(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert split(word_hashes(pa.array([text])))[0] == hashes_of([words])[0]


def test_a_hash_is_of_the_bytes_and_of_nothing_around_them() -> None:
    content = b"xx" + b"abcdefgh" * 3 + b"yabcdefgh" + bytes(9)
    starts, lengths = np.array([2, 10, 27, 2, 2, 10, 2, 36, 36, 37]), np.array([8, 8, 8, 16, 24, 16, 9, 1, 2, 2])
    hashes = hash_slices(content, starts, lengths)
    named = dict(zip(["a", "a", "a", "aa", "aaa", "aa", "ab", "0", "00", "00"], hashes, strict=False))
    for name, value in zip(["a", "a", "a", "aa", "aaa", "aa", "ab", "0", "00", "00"], hashes, strict=True):
        assert named[name] == value
    assert len(set(named.values())) == 6 == len(named)
