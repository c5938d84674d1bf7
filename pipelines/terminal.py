"""What a terminal shows: a console that leaves out every style where NO_COLOR is set, and articles that fit what follows."""

import os
import re
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
