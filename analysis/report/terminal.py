"""Verdicts and power as text for a terminal (in points of accuracy), and as JSON for programs (shares)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from analysis.study.signal_detection import signal_table
from analysis.verdicts.answer import (
    ONE_SEED,
    Answer,
    agreement_words,
    control_sentences,
    one_seed,
    settling_words,
    units_words,
)
from analysis.verdicts.evidence import Evidence
from analysis.verdicts.judgement import Judgement, Outcome, Verdicts
from analysis.verdicts.power import MOST_SEEDS, Variance, power_table, variance_table
from analysis.verdicts.subcases import subcase_table
from analysis.wording import NOTHING, estimate_words, in_arm, in_words, p_words, range_words
from pipelines.errors import UserError
from pipelines.terminal import console as new_console

MIN_WIDTH = 160
"""Columns of text that the tables need; a narrower terminal breaks their lines."""
PRIMARY = "Primary claims, declared before the run; p by Holm"
EXPLORATORY = "Exploratory claims; p by Benjamini and Hochberg"
LEGEND = (
    "Estimates are means over a claim's settings (a starting point and a size{}), in points of accuracy; ratios have a ×, "
    "other measures their own unit. A verdict goes by the settings one by one, never by their mean. Settings: how many have "
    "the estimate's sign, and how many an interval on that side. Settled by: for a true difference as large as the claim's "
    "margin."
)
COLOURS = {Outcome.SUPPORTED: "green", Outcome.REFUTED: "red", Outcome.EQUIVALENT: "cyan", Outcome.CANNOT_TELL: "yellow"}


def print_verdicts(said: Answer, verdicts: Verdicts, arms: Sequence[str] = (), marks: Sequence[str] = ()) -> None:
    """Print the answer, the positive control, the study's `marks`, claims with what they rest on, primary ones first, notes."""
    console = _console()
    is_narrow = _is_narrow()
    if is_narrow:
        # Words are kept whole, and a claim is a paragraph.
        console = new_console(highlight=False)
    judgements = verdicts.judgements
    console.print(str(said), markup=False)
    for sentence in control_sentences(verdicts.controls):
        console.print(sentence, markup=False)
    if one_seed(judgements):
        console.print(ONE_SEED, markup=False)
    for mark in marks:
        console.print(f"marked: {mark}", markup=False)
    notes: list[str] = []
    for primary, heading in ((True, PRIMARY), (False, EXPLORATORY)):
        if chosen := [judgement for judgement in judgements if judgement.primary == primary]:
            console.print()
            console.print(heading, markup=False)
            if is_narrow:
                _print_paragraphs(console, chosen, notes)
            else:
                console.print(_verdict_table(chosen, notes))
    console.print()
    console.print(LEGEND.format(f", in one of the arms {in_words(arms)}" if arms else ""), markup=False)
    for index, note in enumerate(notes, start=1):
        console.print(f"  {index} {note}", markup=False)


def _cells(judgement: Judgement, notes: list[str]) -> dict[str, str]:
    """What a table says of a claim, by heading; what its notes say is added to `notes`, once, and referred to by number."""
    notes += [note for note in dict.fromkeys(judgement.notes) if note not in notes]
    cost = "" if judgement.settling_cost is None else f" (+{judgement.settling_cost:,.0f})"
    return {
        "estimate": estimate_words(judgement.estimate, judgement.unit),
        "95% interval": range_words(judgement.low, judgement.high, judgement.unit),
        "settings": agreement_words(judgement),
        "from": units_words(judgement),
        "adjusted p": p_words(judgement.p_adjusted),
        "settled by": f"{settling_words(judgement)}{cost}",
        "notes": ",".join(str(notes.index(note) + 1) for note in judgement.notes),
    }


def _print_paragraphs(console: Any, judgements: Sequence[Judgement], notes: list[str]) -> None:
    """What `_verdict_table` says, a claim a paragraph, for a terminal that the table does not fit."""
    from rich.padding import Padding
    from rich.text import Text

    for judgement in judgements:
        said = [f"{heading} {cell}" for heading, cell in _cells(judgement, notes).items() if cell not in ("", NOTHING)]
        verdict = (str(judgement.verdict), COLOURS[judgement.verdict])
        console.print(Text.assemble(f"{judgement.name}: ", verdict))
        console.print(Padding(Text("; ".join(said)), (0, 0, 0, 4)))


def _verdict_table(judgements: Sequence[Judgement], notes: list[str]) -> Any:
    """A row a claim; what its notes say is added to `notes`, once, and referred to by number."""
    from rich.text import Text

    headings = ("claim", "verdict", "estimate", "95% interval", "settings", "from", "adjusted p", "settled by", "notes")
    table = _table(headings, left=("claim", "verdict", "notes"))
    for judgement in judgements:
        verdict = Text(str(judgement.verdict), style=COLOURS[judgement.verdict])
        table.add_row(judgement.name, verdict, *_cells(judgement, notes).values())
    return table


def verdicts_json(
    study: str, said: Answer, verdicts: Verdicts, evidence: Evidence, marks: Sequence[str] = ()
) -> dict[str, Any]:
    """All numbers: claims, subcases of the blindspot set (synthetic − original), sensitivity and criterion by cell; of several
    arms, each row of these says which it is of. `marks` are the study's.

    What cannot be had is null or an empty list, and `notes` say why.
    """
    notes = [ONE_SEED] if one_seed(verdicts.judgements) else []
    tables: dict[str, list[dict[str, Any]]] = {"subcases": [], "signal_detection": []}
    for arm, of_arm in evidence.by_arm.items():
        for name, table in (
            ("subcases", partial(subcase_table, of_arm)),
            ("signal_detection", partial(signal_table, of_arm.responses, of_arm.blindspot_set)),
        ):
            try:
                tables[name] += [({"arm": arm} if arm else {}) | row for row in records(table())]
            except UserError as error:
                notes.append(f"no {in_arm(name.replace('_', ' '), arm)}: {error}")
    return {
        "study": study,
        "answer": str(said),
        "controls": [dataclasses.asdict(control) for control in verdicts.controls],
        "claims": [_without_nan(dataclasses.asdict(judgement)) for judgement in verdicts.judgements],
        **tables,
        "missing": list(evidence.responses.missing),
        "marks": list(marks),
        "notes": notes,
    }


def print_power(
    variances: Sequence[Variance], why_not: Sequence[str], cost_per_seed: float | None, mixes: pd.DataFrame | None = None
) -> None:
    """Print each metric's variances, the seeds that differences need, and what some numbers of seeds detect and cost."""
    console = _console()
    needed = variance_table(variances)
    effects = [name for name in needed.columns if name.startswith("seeds_for_")]
    shown = [f"seeds for {100 * float(name.removeprefix('seeds_for_')):g}" for name in effects]
    first = _table(("metric", "pilot seeds", "SD of a seed", "its 95% interval", "error of items", *shown), left=("metric",))
    for _, row in needed.iterrows():
        first.add_row(
            row["metric"],
            str(row["num_seeds"] or NOTHING),
            f"{100 * row['seed_sd']:.2f}",
            NOTHING if math.isnan(row["seed_sd_low"]) else f"{100 * row['seed_sd_low']:.2f} to {100 * row['seed_sd_high']:.2f}",
            f"{100 * row['item_error']:.2f}",
            *(f">{MOST_SEEDS:,}" if pd.isna(row[name]) else str(row[name]) for name in effects),
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
    if mixes is not None:
        console.print()
        console.print(_mixes(mixes))
    console.print(
        "Points of accuracy, paired by seed; 80% power at a two-sided 5%, not corrected for several claims.",
        markup=False,
    )
    for line in why_not:
        console.print(f"  without {line}", markup=False)


def _mixes(mixes: pd.DataFrame) -> Any:
    """The cheapest generators × seeds of each, and their cost, by metric and difference."""
    effects = list(dict.fromkeys(mixes["effect"]))
    what = "cheapest generators × seeds each (cost) that see"
    table = _table((what, *(f"{100 * effect:g} points" for effect in effects)), left=(what,))
    for metric, rows in mixes.groupby("metric", sort=False):
        cells = [
            NOTHING if pd.isna(row["cost"]) else f"{row['generators']} × {row['seeds']} ({row['cost']:,.2f})"
            for _, row in rows.iterrows()
        ]
        table.add_row(str(metric), *cells)
    return table


def power_json(
    variances: Sequence[Variance], why_not: Sequence[str], cost_per_seed: float | None, mixes: pd.DataFrame | None = None
) -> dict[str, Any]:
    """The same numbers; shares, not points."""
    return {
        **({} if mixes is None else {"mixes": records(mixes)}),
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
        # What is too wide breaks words into lines, and never cuts a number.
        is_text = heading in left
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    return table


def _console() -> Any:
    console = new_console(soft_wrap=True, highlight=False)
    return console if console.width >= MIN_WIDTH else new_console(soft_wrap=True, highlight=False, width=MIN_WIDTH)


def _is_narrow() -> bool:
    """Whether people read it on a terminal that is narrower than the tables; a file or a program gets these whole."""
    console = new_console()
    return console.width < MIN_WIDTH and (console.is_terminal or "COLUMNS" in os.environ)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
