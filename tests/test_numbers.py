"""Numbers are written one way wherever people read them: '3,000' and '85.7%', by Python's own formats `:,` and `:%`.

There is no function for it: `f"{count:,}"` is one. What machines read (JSON, CSV, `--json`) has plain numbers.
"""

import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPACE = "[ \u00a0\u2009\u202f]"
OTHER_WAYS = {
    "thousands apart by a space": rf"(?<![\d.,\w:/-])\d{{1,3}}(?:{SPACE}\d{{3}})+(?![\d:]| \d)",
    "a space before the per cent": rf"[\d}}\]]{SPACE}%(?! ?\d|\w|\}})",
    "a space of its own between digits": r"\\N\{(?:NARROW )?NO-BREAK SPACE\}|\\u(?:00a0|2009|202f)",
    "commas replaced": r":,[^}]*\}[\"']\.replace\(",
}
ROWS = r"rows|texts|examples|items|characters|bytes|artifacts|files"
"""What there can be a thousand of."""
PLAIN = rf"\{{[^{{}}:!]*(?:num_(?:{ROWS})|\b(?:{ROWS})|len\([^{{}}]*\)|total)\}} (?:\w+ )?(?:{ROWS})\b"


@cache
def prose(path: Path) -> str:
    """A page; of a file of code its texts and comments, one a paragraph."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n\n".join(token.string for token in tokens if token.type in (tokenize.STRING, tokenize.COMMENT))


def found_in(path: Path, pattern: str) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {found[0]!r}" for found in re.finditer(pattern, prose(path))]


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.name != "CHANGELOG.md")


SOURCES = files(*(f"{top}/**/*.py" for top in ("analysis", "sweep", "pipelines", "benchmarks", "scripts", "docs")))
PAGES = files(
    *("README.md", "CONTRIBUTING.md", "docs/**/*.md", "docs/notebooks/*.ipynb"),
    *("analysis/templates/*", "benchmarks/results/*.md", "sweep/**/*.toml"),
)


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_no_text_writes_numbers_another_way(way: str) -> None:
    assert len(SOURCES) > 200 and len(PAGES) > 25
    assert [found for path in (*SOURCES, *PAGES) for found in found_in(path, OTHER_WAYS[way])] == []


def test_counts_in_messages_have_their_commas() -> None:
    assert [found for path in SOURCES for found in found_in(path, PLAIN)] == []


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("of 391 722 rows", OTHER_WAYS["thousands apart by a space"]),
        ("1\u202f000", OTHER_WAYS["thousands apart by a space"]),
        ("95 % interval", OTHER_WAYS["a space before the per cent"]),
        ('f"{100 * share:.1f} %"', OTHER_WAYS["a space before the per cent"]),
        ('f"{number:,}".replace(",", " ")', OTHER_WAYS["commas replaced"]),
        ("{table.num_rows} rows are too few", PLAIN),
        ("{len(texts)} training examples", PLAIN),
    ],
)
def test_another_way_would_be_seen(text: str, pattern: str) -> None:
    assert re.search(pattern, text)
