"""The values that the pages' templates draw, text that is already formatted, and how a page is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Column:
    """A column of a table in the report; `css` is "", "number" (right-aligned) or "wrap"."""

    name: str
    css: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text as the report shows them; `group_starts` are the rows above which a rule is drawn."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    group_starts: frozenset[int] = frozenset()


def text_columns(*names: str, css: str = "") -> list[Column]:
    return [Column(name, css) for name in names]


def number_columns(*names: str) -> list[Column]:
    return text_columns(*names, css="number")


def grouped(columns: Sequence[Column], groups: Sequence[Sequence[Sequence[str]]], caption: str = "") -> Table:
    """One table of all groups of rows, with a rule between two groups."""
    starts = list(accumulate(map(len, groups), initial=0))[:-1]
    return Table(columns, [row for group in groups for row in group], caption, frozenset(starts) - {0})


@dataclass(frozen=True)
class Fold:
    """Tables behind a click."""

    title: str
    tables: Sequence[Table]


@dataclass(frozen=True)
class Block:
    """A section of the report; `figure` is an SVG of `analysis.report.figures.inline_svg`, which is not escaped."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    folds: Sequence[Fold] = ()
    figure: str = ""
    figure_caption: str = ""


@dataclass(frozen=True)
class Verdict:
    """The numbers in words: a sentence for each test set, the differences they are read from, and caveats."""

    lead: Sequence[str]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def template(name: str) -> Any:
    """A page's template; what it draws is text, and escaped."""
    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
