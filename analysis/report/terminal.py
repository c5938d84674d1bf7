"""Verdicts and power as text for a terminal (in points of accuracy), and as JSON for programs (shares)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.study.claims import Evidence
from analysis.study.power import MOST_SEEDS, Variance, power_table, variance_table
from analysis.study.signal_detection import signal_table
from analysis.study.verdicts import Judgement, Outcome, subcase_table
from analysis.wording import NOTHING, estimate_words, p_words, range_words
from pipelines.errors import UserError

ONE_SEED = "One seed: nothing is said about training, and every interval is over test items only."
MIN_WIDTH = 160
"""Columns of text that the tables need; a narrower terminal breaks their lines."""
COLOURS = {Outcome.SUPPORTED: "green", Outcome.REFUTED: "red", Outcome.EQUIVALENT: "cyan", Outcome.CANNOT_TELL: "yellow"}


def print_verdicts(study: str, judgements: Sequence[Judgement]) -> None:
    """Print each claim with its verdict, estimate, interval, n, adjusted p and what would settle it; then the notes."""
    from rich.text import Text

    console = _console()
    console.print(f"{study}: {_count_verdicts(judgements)}", markup=False)
    if one_seed(judgements):
        console.print(ONE_SEED, markup=False)
    notes: list[str] = []
    headings = ("claim", "verdict", "estimate", "95 % interval", "seeds", "items", "adjusted p", "settled by", "notes")
    table = _table(headings, left=("claim", "verdict", "notes"))
    for judgement in judgements:
        marks = []
        for note in judgement.notes:
            if note not in notes:
                notes.append(note)
            marks.append(str(notes.index(note) + 1))
        cost = "" if judgement.settling_cost is None else f" (+{judgement.settling_cost:,.0f})"
        table.add_row(
            judgement.name,
            Text(str(judgement.verdict), style=COLOURS[judgement.verdict]),
            estimate_words(judgement.estimate, judgement.unit),
            range_words(judgement.low, judgement.high, judgement.unit),
            str(judgement.num_seeds or NOTHING),
            f"{judgement.num_items:,}" if judgement.num_items else NOTHING,
            p_words(judgement.p_adjusted),
            NOTHING if judgement.settling_seeds is None else f"{judgement.settling_seeds} seeds{cost}",
            ",".join(marks),
        )
    console.print(table)
    console.print(
        "Differences are of accuracies, in points; ratios have a ×. Intervals are for one claim, p is adjusted for all (Holm).",
        markup=False,
    )
    for index, note in enumerate(notes, start=1):
        console.print(f"  {index} {note}", markup=False)


def one_seed(judgements: Sequence[Judgement]) -> bool:
    """Whether what is said of training rests on one seed only."""
    of_training = [judgement for judgement in judgements if judgement.unit == "share" and judgement.num_seeds]
    return bool(of_training) and all(judgement.num_seeds == 1 for judgement in of_training)


def verdicts_json(study: str, judgements: Sequence[Judgement], evidence: Evidence) -> dict[str, Any]:
    """All numbers: claims, subcases of the blindspot set (synthetic − original), sensitivity and criterion by cell.

    What cannot be had is null or an empty list, and `notes` say why.
    """
    notes = [ONE_SEED] if one_seed(judgements) else []
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, table in (
        ("subcases", lambda: subcase_table(evidence)),
        ("signal_detection", lambda: signal_table(evidence.responses, evidence.blindspot_set)),
    ):
        try:
            tables[name] = records(table())
        except UserError as error:
            tables[name] = []
            notes.append(f"no {name.replace('_', ' ')}: {error}")
    return {
        "study": study,
        "claims": [_without_nan(dataclasses.asdict(judgement)) for judgement in judgements],
        **tables,
        "missing": list(evidence.responses.missing),
        "notes": notes,
    }


def print_power(variances: Sequence[Variance], why_not: Sequence[str], cost_per_seed: float | None) -> None:
    """Print each metric's variances, the seeds that differences need, and what some numbers of seeds detect and cost."""
    console = _console()
    needed = variance_table(variances)
    effects = [name for name in needed.columns if name.startswith("seeds_for_")]
    shown = [f"seeds for {100 * float(name.removeprefix('seeds_for_')):g}" for name in effects]
    first = _table(("metric", "pilot seeds", "SD of a seed", "its 95 % interval", "error of items", *shown), left=("metric",))
    for _, row in needed.iterrows():
        first.add_row(
            row["metric"],
            str(row["num_seeds"] or NOTHING),
            f"{100 * row['seed_sd']:.2f}",
            NOTHING if math.isnan(row["seed_sd_low"]) else f"{100 * row['seed_sd_low']:.2f} to {100 * row['seed_sd_high']:.2f}",
            f"{100 * row['item_error']:.2f}",
            *(f">{MOST_SEEDS}" if pd.isna(row[name]) else str(row[name]) for name in effects),
        )
    console.print(first)
    table = power_table(variances, cost_per_seed=cost_per_seed)
    numbers = list(dict.fromkeys(table["seeds"]))
    what = "detectable difference with"
    second = _table((what, *(f"{number} seeds" for number in numbers)), left=(what,))
    for metric, rows in table.groupby("metric", sort=False):
        second.add_row(str(metric), *(f"{100 * value:.2f}" for value in rows["detectable"]))
    if cost_per_seed is not None:
        second.add_row("cost", *(f"{number * cost_per_seed:,.2f}" for number in numbers), style="bold")
    console.print()
    console.print(second)
    console.print(
        "Points of accuracy, paired by seed; 80 % power at a two-sided 5 %, not corrected for several claims.",
        markup=False,
    )
    for line in why_not:
        console.print(f"  without {line}", markup=False)


def power_json(variances: Sequence[Variance], why_not: Sequence[str], cost_per_seed: float | None) -> dict[str, Any]:
    """The same numbers; shares, not points."""
    return {
        "variances": records(variance_table(variances)),
        "power": records(power_table(variances, cost_per_seed=cost_per_seed)),
        "notes": list(why_not),
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON values: numbers of Python's own, null for NaN and NA."""
    return [
        {
            str(name): None if pd.isna(value) else value.item() if hasattr(value, "item") else value
            for name, value in row.items()
        }
        for row in table.to_dict("records")
    ]


def _table(headings: Sequence[str], left: Sequence[str]) -> Any:
    """A table without rows; the columns that are not `left` are right-aligned."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    return table


def _console() -> Any:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    return console if console.width >= MIN_WIDTH else Console(soft_wrap=True, highlight=False, width=MIN_WIDTH)


def _count_verdicts(judgements: Sequence[Judgement]) -> str:
    counts = {outcome: sum(judgement.verdict == outcome for judgement in judgements) for outcome in Outcome}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
