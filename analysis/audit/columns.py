"""A file's columns: which are premise, hypothesis, label and parse, and whether their types can be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.errors import UserError

USUAL_NAMES = {
    "premise": ("premise", "sentence1", "text1", "sentence_A"),
    "hypothesis": ("hypothesis", "sentence2", "text2", "sentence_B"),
    "label": ("label", "gold_label", "labels", "entailment_judgment"),
    "parse": ("premise_parse", "sentence1_parse"),
}
"""The columns' usual names, in the order in which they are looked for."""


@dataclass(frozen=True)
class ColumnNames:
    """The columns as the user maps them; None takes the usual names. `parse` holds bracketed parses of the premises."""

    premise: str | None = None
    hypothesis: str | None = None
    label: str | None = None
    parse: str | None = None


def map_columns(present: Sequence[str], names: ColumnNames, path: str | Path) -> dict[str, str]:
    """Which of the file's columns is premise, hypothesis, label and, where there is one, parse.

    Raises :class:`UserError` for a column that is missing, ambiguous or mapped twice.
    """
    columns = {}
    for name, usual in USUAL_NAMES.items():
        wanted = getattr(names, name)
        column = next((column for column in ((wanted,) if wanted in present else usual) if column in present), None)
        if column is None and name == "parse" and wanted is None:
            continue
        if column is None:
            looked_for = f"{wanted!r}" if wanted else ", ".join(usual)
            listed = ", ".join(map(repr, present[:30])) + (" …" if len(present) > 30 else "")
            raise UserError(f"{path}: no {name} column ({looked_for}); it has {listed or 'none'}: give one of them as --{name}")
        if (count := list(present).count(column)) > 1:
            raise UserError(f"{path}: {count} columns are called {column!r}; give each its own name")
        columns[name] = column
    if len(set(columns.values())) < len(columns):
        raise UserError(f"{path}: one column is mapped twice ({columns}); premise, hypothesis and label are three columns")
    return columns


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null))


def check_types(schema: pa.Schema, columns: Mapping[str, str], file: Path) -> None:
    """Raise :class:`UserError` for a column that the file lacks or that holds no text (for labels: no text and no number)."""
    for name, column in columns.items():
        if column not in schema.names:
            raise UserError(f"{file}: no column {column!r}, and the first file of the folder has it; write them alike")
        kind = schema.field(column).type
        numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        if not _is_text(kind) and not (name == "label" and any(test(kind) for test in numbers)):
            raise UserError(f"{file}: the {name} column {column!r} is of type {kind}; it must be text")


def class_names(schema: pa.Schema, column: str) -> dict[str, str]:
    """The names of a `ClassLabel` feature, which Hugging Face keeps in the schema's metadata."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return {str(number): str(name) for number, name in enumerate(feature["names"])}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
