"""Which columns of a file are its texts, label and parse, as the user maps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.tables.columns import Wanted

PAIR, SINGLE = ("premise", "hypothesis"), ("text",)
"""The fields of a pair, and that of a single text, where the user names none."""
OTHERS = ("label", "parse")
"""The columns of a file that are no texts to audit."""
FLAGS = (*PAIR, *SINGLE, *OTHERS)
"""The columns that an option of the command line is named for; others are given with --field."""


@dataclass(frozen=True)
class ColumnNames:
    """The columns as the user maps them, by field, and under `label` and `parse`; others take their usual names.

    A field may be given several columns, of which each file is read by the first that it has.

    `fields` are the texts of an example, such as those of a task; without them, a file with a premise and a hypothesis is one
    of pairs, and any other one of single texts. `parse` holds bracketed parses of the first text. Rows whose label is among
    `kept_labels` are kept, even where that is a usual mark for none (``-1``).
    """

    given: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    kept_labels: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, str]:
        """What each of `kept_labels` stands for: itself."""
        return {label: label for label in self.kept_labels}

    def fields_of(self, present: Sequence[str]) -> tuple[str, ...]:
        """The texts of an example of a file with these columns."""
        if self.fields:
            return self.fields
        named = tuple(name for name in self.given if name not in OTHERS)
        if set(named) & set(PAIR):
            return PAIR
        if named:
            return named
        is_pair = bool(set(PAIR) & set(present)) or all(Wanted(name).find(present) for name in PAIR)
        return PAIR if is_pair or not Wanted("text").find(present) else SINGLE

    def wanted(self, fields: Sequence[str]) -> list[Wanted]:
        """The columns to look for. One that the file does not have under the given name is looked for under the usual ones."""
        return [
            *(Wanted(name, self.given.get(name)) for name in fields),
            Wanted("label", self.given.get("label"), is_text=False),
            Wanted("parse", self.given.get("parse"), is_optional=True),
        ]
