"""What is known of each generator's pool: yield, lexical overlap, copies, and how many of its labels a judge finds wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.audit.audit import AuditSettings, audit
from analysis.audit.found import CopyCounts
from analysis.report.label_noise import SEED
from analysis.stats.label_noise import wrong_label_rates
from analysis.study.artifacts import judged_pool, label_yield_frame, pool_overlap_counts
from analysis.study.described import task_of
from pipelines.errors import UserError
from pipelines.storage import join
from pipelines.tasks.examples import read_examples
from sweep.graph.integrity import whole_folder
from sweep.graph.records import Store, Study, StudyStep

COLUMNS = (
    *("generator", "label", "generated", "parsed", "num_rows", "num_lexical_overlap", "copies", "near_copies"),
    *("training_copies", "training_near_copies", "wrong", "wrong_low", "wrong_high"),
)


def pools_frame(store: Store, study: Study) -> pd.DataFrame:
    """One row per (generator, label), and one with the label "all" that has what is known of whole pools alone.

    `generated` texts, `parsed` ones, `num_rows` with `num_lexical_overlap`; `copies` and `near_copies` of earlier rows of the
    pool, `training_copies` and `training_near_copies` of rows that generators were trained on, and `wrong`, the share of wrong
    labels by a judge with its 95% interval, of each label and of all. NaN for what is not known: there is no judge, or no data
    beside the pool.
    """
    yields = label_yield_frame(store, study)
    overlaps = pool_overlap_counts(store, study)
    rows: list[dict[str, Any]] = []
    pools = [step for step in study.steps if step.stage == "synthetic_pool" and step.record is not None]
    for pool in pools:
        generator = int(pool.coordinates.get("generator", 0))
        of_pool = yields[yields["pool"] == pool.fingerprint]
        wrong = _wrong(store, study, pool)
        for label, generated, parsed in zip(of_pool["label"], of_pool["generated"], of_pool["parsed"], strict=True):
            of_label = overlaps.get(generator, {}).get(label)
            count = (of_label.num_rows, of_label.num_lexical_overlap) if of_label else (np.nan, np.nan)
            row = {"generator": generator, "label": label, "generated": generated, "parsed": parsed}
            rows.append(row | dict(zip(("num_rows", "num_lexical_overlap"), count, strict=True)) | wrong.get(label, {}))
        sums = {name: sum(row[name] for row in rows if row["generator"] == generator) for name in COLUMNS[2:6]}
        rows.append({"generator": generator, "label": "all"} | sums | _copies(store, study, pool) | wrong.get("all", {}))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _copies(store: Store, study: Study, pool: StudyStep) -> dict[str, float]:
    """How many rows of a pool are copies."""
    task = task_of(study)
    assert pool.record is not None
    texts = read_examples(join(whole_folder(store, pool.record), "pool"), task).select(list(task.columns))
    data = next((step for step in study.steps if step.stage == "sources" and step.record is not None), None)
    training = None
    if data is not None and data.record is not None and "train.parquet" in data.record.files:
        training = read_examples(join(whole_folder(store, data.record), "train.parquet"), task).select(list(task.columns))
    found = audit(texts, AuditSettings(task=task, generator_training=training, processes=1))
    of_training = found.copies[0] if found.copies else None
    return {
        **dict(zip(("copies", "near_copies"), _numbers(found.duplicates), strict=True)),
        **dict(zip(("training_copies", "training_near_copies"), _numbers(of_training), strict=True)),
    }


def _numbers(counts: CopyCounts | None) -> tuple[float, float]:
    return (np.nan, np.nan) if counts is None else (counts.repeated.count, counts.kinds["near"].count)


def _wrong(store: Store, study: Study, pool: StudyStep) -> dict[str, dict[str, float]]:
    """The share of a pool's labels that are wrong, of each label and of "all"; nothing if no judge tells them apart."""
    for step in study.steps:
        if step.stage == "judgement" and step.record is not None and step.inputs.get("pool") == pool.fingerprint:
            judged = judged_pool(store, step, task_of(study))
            try:
                rates = wrong_label_rates(judged.pool, judged.gold, judged.labels, 2, seed=SEED)
            except UserError:
                return {}
            return {
                "all" if one.label is None else judged.labels[one.label]: {
                    "wrong": one.rate,
                    "wrong_low": one.interval.low,
                    "wrong_high": one.interval.high,
                }
                for one in rates
                if one.cell is None
            }
    return {}
