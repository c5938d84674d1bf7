"""A file's columns: which is the one that is looked for, and whether its type can be."""

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
    "text": ("text", "sentence", "sentence1", "content"),
    "sentence": ("sentence", "text", "sentence1", "content"),
    "label": ("label", "gold_label", "labels", "entailment_judgment"),
    "parse": ("premise_parse", "sentence1_parse"),
}
"""The usual names of some columns, in the order in which they are looked for."""


@dataclass(frozen=True)
class Wanted:
    """A column that is looked for: the one that was `given` for it, or else the first of its usual names.

    With `is_strict`, no other column stands in for the given one. One that `is_optional` may be missing. `is_text` refuses a
    column of numbers, and `is_own` one that is found for another as well.
    """

    name: str
    given: str | None = None
    is_strict: bool = False
    is_optional: bool = False
    is_text: bool = True
    is_own: bool = True

    @property
    def usual(self) -> tuple[str, ...]:
        return USUAL_NAMES.get(self.name, (self.name,))

    def find(self, present: Sequence[str]) -> str | None:
        names = (self.given,) if self.given is not None and (self.is_strict or self.given in present) else self.usual
        return next((name for name in names if name in present), None)


def find_columns(present: Sequence[str], wanted: Sequence[Wanted], path: str | Path, way_out: str) -> dict[str, str]:
    """Which of the columns that are `present` is which of those that are wanted, without optional ones that are missing.

    `way_out` ends the error for one that is missing; `{name}` in it is the wanted column's. Raises :class:`UserError` for a
    column that is missing, ambiguous or found for two that need their own.
    """
    columns: dict[str, str] = {}
    for column in wanted:
        found = column.find(present)
        if found is None and column.is_optional:
            continue
        if found is None:
            looked_for = f"{column.given!r}" if column.given else ", ".join(column.usual)
            raise UserError(
                f"{path}: no {column.name} column ({looked_for}); it has {listed(present)}: {way_out.format(name=column.name)}"
            )
        if (count := list(present).count(found)) > 1:
            raise UserError(f"{path}: {count} columns are called {found!r}; give each its own name")
        columns[column.name] = found
    own = {column.name: columns[column.name] for column in wanted if column.is_own and column.name in columns}
    if len(set(own.values())) < len(own):
        raise UserError(f"{path}: one column is mapped twice ({own}); {', '.join(own)} are {len(own)} columns")
    return columns


def listed(names: Sequence[str]) -> str:
    """The names, quoted, the first thirty of them."""
    return (", ".join(map(repr, names[:30])) + (" …" if len(names) > 30 else "")) or "none"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null))


def _is_number(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean))


def check_types(schema: pa.Schema, columns: Mapping[str, str], numbers: frozenset[str], file: Path) -> None:
    """Raise :class:`UserError` for a column that the file lacks or that holds no text, nor, of `numbers`, a number."""
    for name, column in columns.items():
        if column not in schema.names:
            raise UserError(f"{file}: no column {column!r}, and the first file of the folder has it; write them alike")
        kind = schema.field(column).type
        if not _is_text(kind) and not (name in numbers and _is_number(kind)):
            raise UserError(f"{file}: the {name} column {column!r} is of type {kind}; it must be text")


def class_names(schema: pa.Schema, column: str) -> dict[str, str]:
    """The names of a `ClassLabel` feature, which Hugging Face keeps in the schema's metadata."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return {str(number): str(name) for number, name in enumerate(feature["names"])}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
