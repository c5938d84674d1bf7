"""The outcome of the search for a learning rate, as it is kept in the repository."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.stats.statistics import ends, wilson_interval
from analysis.study.frame import evaluation_frame
from pipelines.errors import UserError
from sweep.graph.records import Store, Study

STUDY = "rate_search"


@dataclass(frozen=True)
class Rate:
    """What one learning rate gave on the dev rows: accuracy of starting points and of cells, with 95% intervals over rows.

    `rate` is that of batches of 2, from which others grow with the root of the factor. Several seeds are averaged; their rows
    count once in an interval. None for cells that are not evaluated.
    """

    rate: float
    start: float
    start_low: float
    start_high: float
    cell: float | None = None
    cell_low: float | None = None
    cell_high: float | None = None


def outcome(store: Store | str, study_name: str = STUDY) -> dict[str, Any]:
    """The search's rates in order, the chosen one, and what they were measured on, as JSON.

    Raises UserError for a study that was evaluated on anything but dev rows, and where no rate has both models.
    """
    store = store if isinstance(store, Store) else Store(store)
    study = Study.load(store, study_name)
    frame = evaluation_frame(store, study, partial=True)
    if others := sorted(set(frame["set"]) - {"dev"}):
        raise UserError(f"{study_name} was evaluated on {', '.join(others)}: a rate is chosen by dev rows alone")
    whole = frame[frame["slice"] == "all"]
    rates = []
    for arm, rows in whole.groupby("arm", observed=True, sort=True):
        trained = rows[rows["starting_size"] > 0]
        starts, cells = trained[trained["kind"] == "none"], trained[trained["kind"] == "original"]
        if len(starts):
            rates.append(Rate(_rate_of(study, str(arm)), *_accuracy(starts), *(_accuracy(cells) if len(cells) else ())))
    if not rates:
        raise UserError(f"{study_name}: no learning rate has a starting point that is evaluated; run it again")
    rates.sort(key=lambda rate: rate.rate)
    evaluations = [step for step in study.steps if step.stage == "evaluation" and step.record is not None]
    return {
        "study": study_name,
        "chosen": chosen(rates).rate,
        "rates": [asdict(rate) for rate in rates],
        "num_dev_rows": int(whole["num_examples"].iloc[0]),
        "seeds": sorted({int(seed) for seed in whole["seed"]}),
        "starting_sizes": sorted({int(size) for size in whole["starting_size"]} - {0}),
        "training_sizes": sorted({int(size) for size in whole["size"]} - {0}),
        "evaluated_sets": sorted(set(frame["set"])),
        "missing": len(frame.attrs["missing"]),
        "created": max(step.record.created for step in evaluations if step.record is not None),
        "evaluations": sorted(step.fingerprint for step in evaluations),
    }


def chosen(rates: Sequence[Rate]) -> Rate:
    """The rate with the highest mean of both accuracies; of those that are alike the smallest.

    Where the cells of one are not there, starting points alone decide.
    """

    def accuracy(rate: Rate) -> float:
        return rate.start if any(one.cell is None for one in rates) else (rate.start + (rate.cell or 0.0)) / 2

    return max(rates, key=lambda rate: (accuracy(rate), -rate.rate))


def write_outcome(store: Store | str, path: Path, study_name: str = STUDY) -> str:
    """Write the outcome to `path`; a sentence about it."""
    found = outcome(store, study_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"{rate['rate']:g}: start {rate['start']:.1%}" + ("" if rate["cell"] is None else f", cell {rate['cell']:.1%}")
        for rate in found["rates"]
    ]
    return "; ".join([*lines, f"chosen {found['chosen']:g} on {found['num_dev_rows']:,} dev rows"])


def _rate_of(study: Study, arm: str) -> float:
    """An arm's rate in batches of 2, from the record of one of its finetunings."""
    for step in study.steps:
        is_model = step.stage in ("starting_point", "task_model") and arm in step.arms
        config = step.record.payload["config"] if is_model and step.record is not None else {}
        if recipe := config.get("finetune"):
            return float(f"{recipe['learning_rate'] / math.sqrt(recipe['batch_size'] / 2):.6g}")
    raise UserError(f"{study.experiment}: no record says the learning rate of the arm {arm}; run it again")


def _accuracy(rows: Any) -> tuple[float, float, float]:
    """The mean over seeds, with Wilson's interval for one seed's number of rows."""
    correct, total = rows["num_correct"].mean(), int(rows["num_examples"].iloc[0])
    return (correct / total, *ends(wilson_interval(round(correct), total)))
