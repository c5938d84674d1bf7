"""Examples of a task from a table: which rows fit, and why the others do not.

A text is taken without the space around it. A row is left out, with its number, its texts and the reason, in this order:
``wrong_number_of_cells`` (CSV), ``blank_<field>``, ``no_label``, ``no_gold_label`` (``-`` or ``-1``, unless it is mapped) and
``unknown_label``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.tables.files import TableFile
from pipelines.tables.labels import NO_GOLD_LABEL, check_known, label_warning, read_labels
from pipelines.tables.readers import MalformedRow, check_malformed
from pipelines.tables.values import is_blank, text_columns

MAP_IT = "map it: labels={{'{mark}': '…'}}"


@dataclass(frozen=True)
class TableRows:
    """The rows of a table that fit, and those that do not.

    `examples` has what was looked for and found, as strings: the fields and the label, which is one of those that were asked
    for, and any others, null where they are blank. `numbers` are the rows' or lines'. `dropped` has ``row``, ``reason``,
    ``label`` as it is in the file, and the fields. `values` counts the label values in the file.
    """

    table: TableFile
    examples: pa.Table
    numbers: np.ndarray
    dropped: list[dict[str, Any]]
    values: Counter[str]

    @property
    def num_rows(self) -> int:
        return self.examples.num_rows + len(self.dropped)

    @property
    def unknown_labels(self) -> Counter[str]:
        """The labels, as the file has them, for which rows were left out as they are not the task's."""
        return Counter(str(row["label"]) for row in self.dropped if row["reason"] == "unknown_label")

    def label_warning(self, way_out: str) -> str:
        """For people: that many rows were left out for a mark that may be a label, and the way out, with `{mark}` in it."""
        marks = Counter(str(row["label"]) for row in self.dropped if row["reason"] == "no_gold_label")
        return label_warning(marks, self.num_rows, way_out)


def read_rows(
    table: TableFile, fields: Sequence[str], labels: Mapping[str, str], allowed: Sequence[str] | None = None
) -> TableRows:
    """Read a table that was opened with the `fields` and ``label``.

    `labels` maps values of the file to labels; a value that it lacks stands for itself. Those of `allowed` fit, or all. Raises
    :class:`UserError` for what cannot be read, where no row has a label, and where more than half of those that have one have
    an unknown one: then it is the mapping that does not fit, and not the rows.
    """
    malformed: list[MalformedRow] = []
    values: Counter[str] = Counter()
    parts, numbers, dropped = [], [], []
    for raw in table.raw_batches(malformed):
        columns, rows = text_columns(raw, table)
        columns = {name: pc.utf8_trim_whitespace(column) for name, column in columns.items()}
        reason = np.full(len(rows), "", object)
        read = read_labels(columns["label"], labels, allowed)
        out = np.zeros(len(rows), bool)
        for name, does_not_fit in (
            *((f"blank_{name}", is_blank(columns[name])) for name in fields),
            ("no_label", is_blank(columns["label"])),
            ("no_gold_label", read.no_gold),
            ("unknown_label", read.unknown),
        ):
            reason[does_not_fit & ~out] = name
            out |= does_not_fit
        values.update(value for value in columns["label"].to_pylist() if value)
        dropped += _dropped(columns, rows, reason, np.flatnonzero(out), fields)
        kept = pa.array(~out)
        blank = {name: is_blank(column) for name, column in columns.items()}
        cells = {
            name: pc.if_else(pa.array(blank[name]), None, read.named if name == "label" else column).filter(kept)
            for name, column in columns.items()
        }
        parts.append(pa.table(cells))
        numbers.append(rows[~out])
    check_malformed(table.path, malformed, has_rows=bool(parts))
    if not parts:
        raise UserError(f"{table.path} has no rows; give a file of labelled examples")
    given = Counter({value: count for value, count in values.items() if value in labels or value not in NO_GOLD_LABEL})
    column = table.columns["label"]
    if not given:
        raise UserError(f"{table.path}: no row has a label in the column {column!r}; name the column that holds it")
    if allowed:
        unknown = Counter({value: count for value, count in given.items() if labels.get(value, value) not in allowed})
        way_out = f"{allowed[0]!r}, …}}, or another label column than {column!r}"
        check_known(table.path, unknown, given.total(), allowed, lambda value: f"labels={{{value!r}: {way_out}")
    dropped += [
        dict.fromkeys((*fields, "label")) | {"row": row.row, "reason": "wrong_number_of_cells", "raw": row.text}
        for row in malformed
    ]
    return TableRows(
        table, pa.concat_tables(parts), np.concatenate(numbers), sorted(dropped, key=lambda row: row["row"]), values
    )


def _dropped(
    columns: Mapping[str, pa.Array], rows: np.ndarray, reason: np.ndarray, out: np.ndarray, fields: Sequence[str]
) -> list[dict[str, Any]]:
    names = (*fields, "label")
    cells = {name: columns[name].take(pa.array(out)).to_pylist() for name in names}
    return [
        {"row": int(rows[row]), "reason": str(reason[row]), "raw": None, **{name: cells[name][place] for name in names}}
        for place, row in enumerate(out)
    ]
