"""The report's section on wrong labels in the synthetic pool: rates by label and heuristic cell, where the pool was judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.page import Block, Column, Table, grouped, number_columns
from analysis.stats.label_noise import WrongLabels, wrong_label_rates
from analysis.study.artifacts import JudgedPool, judged_pool
from analysis.study.described import task_of
from analysis.wording import number_word, percent, percent_range
from pipelines.errors import UserError
from sweep.graph.records import Store, Study

SEED = 0
"""Of the bootstrap: the same rows give the same page."""
TITLE = "Wrong labels in the synthetic pool"
DISPUTED = 0.05
"""A pool's labels are disputed where the judge gives another to so much more of its rows than of gold rows."""


def disputed_labels(study: Study) -> list[str]:
    """That judges give other labels to more of the pools' rows than of rows whose labels are known; nothing where they do not.

    From records alone, and without the correction of `analysis/stats/label_noise.py`.
    """
    disputed = []
    for metrics in (step.record.metrics for step in study.steps if step.stage == "judgement" and step.record):
        agreed = {name.removesuffix("/agreement"): share for name, share in metrics.items() if name.endswith("/agreement")}
        of_pool = agreed.pop("pool", None)
        if of_pool is not None and agreed:
            of_gold = float(np.average([*agreed.values()], weights=[metrics[f"{name}/num_judged"] for name in agreed]))
            if of_gold - of_pool > DISPUTED:
                disputed.append((1 - of_pool, 1 - of_gold))
    if not disputed:
        return []
    of_pools, known = zip(*disputed, strict=True)
    rows = f"{percent(of_pools[0], 0)} of the rows of one synthetic pool"
    if len(disputed) > 1:
        rows = f"{percent_range(min(of_pools), max(of_pools), 0)} of the rows of {number_word(len(disputed))} synthetic pools"
    return [
        f"the judge gives another label to {rows}, and to {percent(max(known), 0)} of rows whose labels are known: a "
        "difference between kinds of training set may be of wrong labels"
    ]


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
