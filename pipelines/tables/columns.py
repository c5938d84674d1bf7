"""A file's columns: which is the one that is looked for, and whether its type can be."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

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
    """A column that is looked for: the one that was `given` for it, or else the first of its usual names, in any case.

    Of several that were given, as for files with other names, it is the first that is there. With `is_strict`, no other column
    stands in for the given one. One that `is_optional` may be missing. `is_text` refuses a column of numbers, and `is_own` one
    that is found for another as well.
    """

    name: str
    given: str | tuple[str, ...] | None = None
    is_strict: bool = False
    is_optional: bool = False
    is_text: bool = True
    is_own: bool = True

    @property
    def usual(self) -> tuple[str, ...]:
        return USUAL_NAMES.get(self.name, (self.name,))

    @property
    def all_given(self) -> tuple[str, ...]:
        return (self.given,) if isinstance(self.given, str) else self.given or ()

    def find(self, present: Sequence[str]) -> str | None:
        given = self.all_given
        names = given if given and (self.is_strict or set(given) & set(present)) else self.usual
        if found := next((name for name in names if name in present), None):
            return found
        if self.is_optional or names != self.usual:
            # A table without a column that need not be there stays one without it.
            return None
        for usual in names:
            alike = [name for name in present if name.casefold() == usual.casefold()]
            if len(alike) == 1:
                return alike[0]
        return None


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
            looked_for = ", ".join(map(repr, column.all_given) if column.given else column.usual)
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


class Opened(Protocol):
    """What is asked of an opened table here."""

    @property
    def path(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, str]: ...
    @property
    def present(self) -> Sequence[str]: ...


def check_given(names: Mapping[str, str | tuple[str, ...] | None], tables: Sequence[Opened]) -> None:
    """Raise :class:`UserError` for a column that was given by name and that none of the tables has.

    `names` maps what was looked for to the given columns; None was not given. Of several tables one may have it alone: the
    others are read by the usual names.
    """
    pairs = [(name, given) for name, columns in names.items() for given in Wanted(name, columns).all_given]
    for name, given in pairs:
        if any(given in table.present for table in tables):
            continue
        close = difflib.get_close_matches(given, [column for table in tables for column in table.present], n=1, cutoff=0.7)
        has = "; ".join(f"{table.path} has {listed(list(table.present))}" for table in tables)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"--{name} {given}: no file has that column{meant}; {has}: name one of them, or leave --{name} out")


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
    """Raise :class:`UserError` for a column of the file that holds no text, nor, of `numbers`, a number."""
    for name, column in columns.items():
        if column not in schema.names:
            continue
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


def label_names_by_file(schemas: Sequence[pa.Schema], column: str, files: Sequence[Path]) -> tuple[dict[str, str], ...]:
    """The names of each file's label numbers. A file that names none has those of the others, if these agree.

    Raises :class:`UserError` where they do not agree.
    """
    names = [class_names(schema, column) for schema in schemas]
    distinct = [mapping for place, mapping in enumerate(names) if mapping and mapping not in names[:place]]
    for place, schema in enumerate(schemas):
        if distinct and not names[place] and column in schema.names and _is_number(schema.field(column).type):
            if len(distinct) > 1:
                orders = " and ".join(", ".join(mapping.values()) for mapping in distinct[:2])
                raise UserError(
                    f"{files[place]}: nothing says what its label numbers stand for, and other files of the folder differ in "
                    f"it ({orders}); write the labels' names"
                )
            names[place] = distinct[0]
    return tuple(names)


def named_labels(batch: pa.RecordBatch, column: str, names: Mapping[str, str]) -> pa.RecordBatch:
    """The batch with the names of its label numbers in their place; a number without a name stays as its digits."""
    numbers = batch[column]
    if not _is_number(numbers.type):
        return batch.set_column(batch.schema.get_field_index(column), column, numbers.cast(pa.string()))
    if pa.types.is_floating(numbers.type):
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    digits = numbers.cast(pa.int64()).cast(pa.string()).dictionary_encode()
    named = pa.array([names.get(number, number) for number in digits.dictionary.to_pylist()], pa.string())
    return batch.set_column(batch.schema.get_field_index(column), column, pc.take(named, digits.indices))
