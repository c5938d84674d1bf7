"""The values that the pages' templates draw, text that is already formatted, and how a page and its tables are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.storage import partial_file


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
class Card:
    """A verdict as the page shows it: its word, in the colour of `css`, what it is on, and the numbers beside it."""

    css: str
    level: str
    kind: str
    statement: str
    figure: str
    interval: str
    facts: str


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
    cards: Sequence[Card] = ()


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
    with partial_file(path) as partial:
        partial.write_bytes(content)
        partial.replace(path)


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """A frame as CSV without its index, of which no spreadsheet takes a text for a formula: a text that begins like one gets a
    quotation mark in front, as OWASP has it, and carriage returns become spaces. Numbers stay numbers.
    """
    plain = frame.copy()
    for place, column in enumerate(frame.columns):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            plain.isetitem(place, frame[column].astype(object).map(_no_formula))
    plain.columns = pd.Index([_no_formula(column) for column in frame.columns])
    return plain.to_csv(index=False).encode()


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    mark = "'" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else ""
    # pandas does not quote a carriage return, at which some spreadsheets begin a new row.
    return mark + value.replace("\r", " ")
