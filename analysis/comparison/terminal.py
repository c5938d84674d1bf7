"""Two studies side by side as text of 80 columns, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterator
from typing import Any

from analysis.comparison.studies import Comparison, Row
from analysis.wording import NOTHING, counted, in_arm, kind_name, measure_word, shown
from sweep.study.claims import Measure

WIDTH = 80
LEGEND = (
    "Accuracy in %; B − A in points, paired by seed, with its 95% interval over seeds (or generators) and test items. "
    "Each interval is by itself: of twenty about one misses. With one seed it is of the items alone."
)
MEASURES = (
    "Margin is the mean log-odds of the heuristic's label where going by it is wrong; AUC the chance that an item where it is "
    "right scores above one where it is wrong; pull the chance that an adversarial item scores above a general item of its "
    "label."
)


def lines(comparison: Comparison) -> Iterator[str]:
    """What is compared, what is not, a table a test set, none wider than WIDTH."""
    a, b = map(shown, comparison.names)
    yield from _wrapped(f"A is {a}, B is {b}.")
    for what in comparison.not_comparable:
        yield from _wrapped(f"Not comparable: {shown(what)}.")
    for what in comparison.differs:
        yield from _wrapped(f"They differ in {shown(what)}.")
    for note in comparison.notes:
        yield from _wrapped(f"{shown(note)}.")
    for name, number in zip((a, b), comparison.only, strict=True):
        if number:
            yield from _wrapped(f"Only in {name}: {counted(number, 'cell')}.")
    for (arm, place, measure), rows in _grouped(comparison).items():
        yield ""
        of = "" if measure == Measure.ACCURACY else f": {measure_word(measure)}"
        yield from _wrapped(in_arm(f"{shown(comparison.titles[place])}{of}", arm))
        kind = None
        yield f"  {'start':>9}  {'size':>9}  {'pairs':>5}  {'A':>6}  {'B':>6}  {'B − A':>6}  95% interval"
        for row in rows:
            if row.kind != kind:
                kind = row.kind
                yield from _wrapped(f"{kind_name(kind)}{', by generator' if row.units == 'generators' else ''}")
            yield _cells(row)
    if comparison.rows:
        yield ""
        yield from _wrapped(LEGEND)
        if any(row.measure != Measure.ACCURACY for row in comparison.rows):
            yield from _wrapped(MEASURES)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All the numbers, those of accuracies being shares; null where there is no interval."""
    rows = [dataclasses.asdict(row) for row in comparison.rows]
    return {
        "a": comparison.names[0],
        "b": comparison.names[1],
        "not_comparable": list(comparison.not_comparable),
        "differs": list(comparison.differs),
        "notes": list(comparison.notes),
        "only_in_a": comparison.only[0],
        "only_in_b": comparison.only[1],
        "rows": [
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
            for row in rows
        ],
    }


def _grouped(comparison: Comparison) -> dict[tuple[str, tuple[str, str], Measure], list[Row]]:
    """Rows by arm, place and measure, those of a kind together, in the order in which kinds first come."""
    kinds = list(dict.fromkeys(row.kind for row in comparison.rows))
    groups: dict[tuple[str, tuple[str, str], Measure], list[Row]] = {}
    for row in comparison.rows:
        groups.setdefault((row.arm, (row.set, row.slice), row.measure), []).append(row)
    return {key: sorted(rows, key=lambda row: kinds.index(row.kind)) for key, rows in groups.items()}


def _cells(row: Row) -> str:
    scale, digits = (100, 1) if row.measure == Measure.ACCURACY else (1, 2)
    a, b, difference, low, high = (scale * value for value in (row.a, row.b, row.difference, row.low, row.high))
    interval = NOTHING if math.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    return (
        f"  {row.starting_size:>9,}  {row.size:>9,}  {row.num_pairs:>5}  {a:>6.{digits}f}  {b:>6.{digits}f}  "
        f"{difference:>+6.{digits}f}  {interval}"
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
