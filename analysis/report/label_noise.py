"""The report's section on wrong labels in the synthetic pool: rates by label and heuristic cell, where the pool was judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.page import Block, Column, Table, grouped, number_columns
from analysis.stats.label_noise import WrongLabels, wrong_label_rates
from analysis.study.artifacts import JudgedPool, judged_pool
from analysis.study.described import task_of
from analysis.wording import percent, percent_range
from pipelines.errors import UserError
from sweep.graph.records import Store, Study

SEED = 0
"""Of the bootstrap: the same rows give the same page."""
TITLE = "Wrong labels in the synthetic pool"


def label_noise_blocks(store: Store, study: Study) -> list[Block]:
    """A section for each judged pool; where its judge cannot tell the labels apart, one that says so."""
    return [
        _block(judged_pool(store, step, task_of(study)), step.slug if number else "")
        for number, step in enumerate(step for step in study.steps if step.stage == "judgement" and step.record)
    ]


def _block(judged: JudgedPool, slug: str) -> Block:
    anchor, title = f"label-noise{f'-{slug}' if slug else ''}", f"{TITLE}{f': {slug}' if slug else ''}"
    try:
        rates = wrong_label_rates(judged.pool, judged.gold, judged.labels, 2, seed=SEED)
    except UserError as error:
        return Block(anchor, title, [f"The rate of wrong labels is unknown: {error}."])
    return Block(anchor, title, _sentences(rates, judged), [_table(rates, judged)])


def _sentences(rates: Sequence[WrongLabels], judged: JudgedPool) -> list[str]:
    gold, in_all = judged.gold, rates[-1]
    held = next((rate for rate in rates if (rate.label, rate.cell) == (judged.labels.index(judged.predicts), 1)), None)
    heuristic = judged.heuristic.replace("_", " ")
    of_held = f", and of those that say {judged.predicts} with {heuristic} {_rate(held)}" if held else ""
    accuracy = percent(float(np.mean(gold.labels == gold.judged)))
    return [
        f"Of the pool's labels {_rate(in_all)} are wrong{of_held}: where these are many, a difference between kinds of "
        "training set may be label noise.",
        f"The judge, a model that was trained on none of these rows, is right of {accuracy} of {len(gold.labels):,} "
        "original rows whose labels are known; its errors there are taken out, and taken to be as frequent on the generator's "
        "text, while the intervals hold the sampling error of both.",
    ]


def _rate(rate: WrongLabels) -> str:
    return f"{percent(rate.rate)} (95% interval {percent_range(rate.interval.low, rate.interval.high)})"


def _table(rates: Sequence[WrongLabels], judged: JudgedPool) -> Table:
    heuristic = judged.heuristic.replace("_", " ")

    def row(rate: WrongLabels) -> list[str]:
        return [
            "all" if rate.label is None else judged.labels[rate.label],
            "all" if rate.cell is None else f"{'with' if rate.cell else 'without'} {heuristic}",
            f"{rate.num_rows:,}",
            percent(rate.share_disagreed),
            percent(rate.rate) if rate.is_identified else "too few gold rows",
            percent_range(rate.interval.low, rate.interval.high),
            f"{rate.num_gold:,}",
        ]

    columns = [Column("Label in the pool"), Column("Examples")]
    columns += number_columns("Rows (n)", "Judge disagrees", "Wrong labels", "95% interval", "Gold rows")
    by_cell = [row(rate) for rate in rates if rate.cell is not None]
    by_label = [row(rate) for rate in rates if rate.cell is None]
    return grouped(columns, [by_cell, by_label])
