"""What a terminal shows, and what becomes of it where nobody reads.

A console that leaves out every style where NO_COLOR is set, articles that fit what follows, and streams that are never closed.
"""

import codecs
import json
import os
import re
import sys
from typing import Any


def console(**settings: Any) -> Any:
    """A rich console with `settings`. With NO_COLOR (no-color.org) it writes no style at all, neither dim nor bold."""
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", **settings)


def with_article(name: str) -> str:
    """'original set' -> 'an original set', 'm5.large' -> 'an m5.large': by the sound that it begins with.

    What has no vowel, or a single letter before a digit, is spelled out: 'rtx4090', 'h200', 'mpt'.
    """
    letters = (re.match("[a-z]*", name.lower()) or [""])[0]
    is_spelled = len(letters) == 1 or not set(letters) & set("aeiouy")
    if letters:
        vowels = "aefhilmnorsx" if is_spelled else "aeiou"
        begins = letters[0] in vowels and not letters.startswith(("uni", "use", "usu", "one", "eu"))
    else:
        begins = name.startswith("8") or re.match(r"1[18](\D|$)", name) is not None
    return f"{'an' if begins else 'a'} {name}"


def open_streams() -> None:
    """Give a process that was started without input or outputs (`>&-`) ones that lead nowhere.

    Else the next file that it opens is what its children write to.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest one that is free
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


LOOKALIKES = {
    "\u2212": "-",
    "\u2013": "-",
    "\u2014": "-",
    "\u2026": "...",
    "\u00d7": "x",
    "\u00b7": "-",
    "\u00b1": "+-",
    "\u2192": "->",
}
LOOKALIKES |= dict.fromkeys("\u2018\u2019\u201c\u201d", "'")
"""What is printed for a character that an output's encoding lacks; a quotation mark would end a text of JSON."""


def write_every_character() -> None:
    """Have stdout take what its encoding lacks, as with LC_ALL=C or ISO-8859-1: a minus as a hyphen, a letter as ``\\u00e9``.

    That is JSON still. A file's name that is no text in the encoding is written as it is.
    """
    codecs.register_error(write_every_character.__name__, _spelled)
    if getattr(sys.stdout, "errors", "") in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors=write_every_character.__name__)  # type: ignore[union-attr]


def _spelled(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelled = bytearray()
    for character in error.object[error.start : error.end]:
        if "\udc80" <= character <= "\udcff":
            spelled.append(ord(character) - 0xDC00)
        else:
            spelled += LOOKALIKES.get(character, json.dumps(character)[1:-1]).encode()
    return bytes(spelled), error.end


def outlive_readers() -> None:
    """Have this process go on where what it prints can be written no more: who read it has ended, or the log's disk is full."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Lasting):
            setattr(sys, name, _Lasting(stream))


def lead_nowhere(stream: Any) -> None:
    """Have what is written to a stream, and what is still buffered when Python ends, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Lasting:
    """A stream that leads nowhere once it cannot be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._lead_nowhere()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lead_nowhere()

    def _lead_nowhere(self) -> None:
        lead_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
