"""Which columns of a file are premise, hypothesis, label and parse, as the user maps them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.tables.columns import Wanted


@dataclass(frozen=True)
class ColumnNames:
    """The columns as the user maps them; None takes the usual names. `parse` holds bracketed parses of the premises."""

    premise: str | None = None
    hypothesis: str | None = None
    label: str | None = None
    parse: str | None = None

    def wanted(self) -> list[Wanted]:
        """The columns to look for. One that the file does not have under the given name is looked for under the usual ones."""
        return [
            Wanted("premise", self.premise),
            Wanted("hypothesis", self.hypothesis),
            Wanted("label", self.label, is_text=False),
            Wanted("parse", self.parse, is_optional=self.parse is None),
        ]
