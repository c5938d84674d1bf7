"""The words of a text, by Unicode's own segmentation: what an audit and the heuristic of a single word mean by a word.

A *word* is one of Unicode's own segmentation (UAX #29) that has a letter or a digit, in normal form C, lower-cased: ``don't``
is one, ``well-known`` two, ``runs.`` has the word ``runs``, and combining marks are part of theirs. Where a language puts no
spaces between words (Chinese, Japanese, Thai), each character is a word.
"""

import unicodedata

import regex

_SEGMENTS = regex.compile(r"(?:\b|(?<=['’]))\w(?:\B.)*+", regex.WORD | regex.DOTALL)
"""What begins at one of Unicode's word boundaries with a letter, a digit or _, up to the next boundary.

`regex` sees no boundary between an apostrophe and a vowel, where a quotation may begin.
"""


def words_of(text: str) -> list[str]:
    """The words of one text, in order."""
    return _words_of(normalized(text))


def has_word(text: str, word: str) -> bool:
    """Whether `word`, as :func:`words_of` spells it, is one of the text's words."""
    normal = normalized(text)
    # A word is a piece of its text: most texts fail here, before they have to be split.
    return word in normal and word in _words_of(normal)


def normalized(text: str) -> str:
    """The text in normal form C, lower-cased."""
    # pyarrow's utf8_normalize leaves an accent beside its letter, also in form C.
    return unicodedata.normalize("NFC", text).lower()


def _words_of(normal: str) -> list[str]:
    return [word for word in _SEGMENTS.findall(normal) if word.isalnum() or any(map(str.isalnum, word))]
