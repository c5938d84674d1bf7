"""What a table's labels stand for: which are a task's, and which rows have none. Studies and audits read them by this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError

NO_GOLD_LABEL = ("-", "-1")
"""SNLI's and MultiNLI's mark of a pair whose annotators did not agree, and Hugging Face's of a row without a label."""
MOST_WITHOUT_LABEL = 0.05
"""Of the rows, so many may have such a mark before it is said that it may be a label: corpora have up to two per cent."""
MOST_UNMARKED = 0.01
"""Of a set's rows, so many may have labels that are not the task's before that is a mark on what is made of it."""


@dataclass(frozen=True)
class ReadLabels:
    """A column of labels, read: what each stands for, null where there is none, and the rows that have none of a task's.

    `no_gold` and `unknown` are booleans of shape (num_rows,), false where the cell is null.
    """

    named: pa.StringArray
    no_gold: np.ndarray
    """The rows with a mark for no label, which nothing maps."""
    unknown: np.ndarray
    """The rows whose label is none of those that are allowed."""


def read_labels(column: pa.StringArray, labels: Mapping[str, str], allowed: Sequence[str] | None = None) -> ReadLabels:
    """Read a column of labels: space around one does not count, and everything else does, capitals among it.

    `labels` maps values to labels; a value that it lacks stands for itself. Those of `allowed` are known, or all.
    """
    encoded = pc.utf8_trim_whitespace(column).dictionary_encode()
    values = [str(value) for value in encoded.dictionary.to_pylist()]
    named = [labels.get(value, value) for value in values]
    return ReadLabels(
        pc.take(pa.array(named, pa.string()), encoded.indices),
        _of_values(encoded, [value in NO_GOLD_LABEL and value not in labels for value in values]),
        _of_values(encoded, [allowed is not None and label not in allowed for label in named]),
    )


def check_known(
    path: str, unknown: Counter[str], num_labelled: int, known: Sequence[str], way_out: Callable[[str], str]
) -> None:
    """Raise :class:`UserError` where more than half of the rows that have a label have an `unknown` one.

    Then it is not the rows that do not fit. `way_out` says how to name what such a value stands for.
    """
    if 2 * unknown.total() <= num_labelled:
        return
    listed = ", ".join(f"{value!r} ({count:,})" for value, count in unknown.most_common(8))
    raise UserError(
        f"{path}: {unknown.total():,} of {num_labelled:,} rows have labels that are none of {', '.join(known)}: "
        f"{listed}{' …' if len(unknown) > 8 else ''}; name the label that each stands for: "
        f"{way_out(unknown.most_common(1)[0][0])}"
    )


def label_warning(num_by_mark: Mapping[str, int], num_rows: int, way_out: str) -> str:
    """For people: that marks of rows without a label are so frequent that they may be labels; empty where they are not.

    `num_by_mark` counts the rows that were left out, of `num_rows` in all; `way_out`, with `{mark}` in it, says how to keep
    them.
    """
    frequent = {mark: count for mark, count in num_by_mark.items() if count > MOST_WITHOUT_LABEL * num_rows}
    counts = " and ".join(
        f"{count:,} of {num_rows:,} rows ({count / num_rows:.0%}) are labelled {mark!r}" for mark, count in frequent.items()
    )
    if not frequent:
        return ""
    way_out = way_out.format(mark=next(iter(frequent)))
    return f"{counts}, which is taken for 'no label', and are left out; if it is a label, {way_out}"


def unknown_warning(values: Counter[str], num_kept: int, name: str) -> str:
    """For people: that many rows of `name` were left out for labels that are not the task's; empty where few were."""
    if values.total() <= MOST_UNMARKED * (num_kept + values.total()):
        return ""
    listed = ", ".join(f"{value!r} ({count:,})" for value, count in values.most_common(4))
    return f"{values.total():,} rows of {name} are left out for labels that are not the task's: {listed}"


def _of_values(encoded: pa.DictionaryArray, holds: list[bool]) -> np.ndarray:
    """Which cells have a value of the dictionary of which it holds; not those that are null."""
    return pc.fill_null(pc.take(pa.array(holds, pa.bool_()), encoded.indices), False).to_numpy(zero_copy_only=False)
