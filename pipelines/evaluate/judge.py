"""A judgement: which label classifiers give each row of a pool, and each gold row, that none of them was trained on.

    judge(config, f"{pool}/pool", sources, base_model, [Judge(task_model, (f"{training_set}/examples.parquet",))], output)

The gold rows, of test sets of the prepared sources, are what the judges' own errors are known from
(`analysis.stats.label_noise`). With several judges each row is judged by one of those that may, drawn by a hash of its id, so
that two models finetuned on two halves can judge each other's half.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.evaluate.evaluation import (
    Bodies,
    DistinctPrompts,
    EvaluationConfig,
    batches_for,
    classify_more,
    encoded_examples,
    worker_device,
)
from pipelines.evaluate.scoring import where_held
from pipelines.models.process import peak_gpu_memory_gib
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import join
from pipelines.tasks.examples import read_examples, write_table
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.workers.one_task import in_one_task
from pipelines.workers.printed import note_worker
from pipelines.workers.watchdog import naming_stalls, watched

JUDGEMENTS_FILE, GOLD_FILE = "judgements.parquet", "gold.parquet"
NO_JUDGE = -1


@dataclass(frozen=True)
class JudgementConfig(EvaluationConfig):
    """How a pool is judged, as task models are evaluated: `sets` are the gold ones, `heuristics` what makes cells of rows.

    Without `sets` the pool is judged all the same, and nothing says how often the judge is wrong.
    """

    needs_sets: ClassVar[bool] = False


@dataclass(frozen=True)
class Judge:
    """The folder of a task model, or None for a base model that has a classification head of its own (`own_head`).

    `trained_on` are the examples of all sets that it was trained on, those of the models that it continues among them.
    """

    task_model: str | None
    trained_on: tuple[str, ...] = ()


def judge(
    config: JudgementConfig,
    examples: str,
    sources: str,
    base_model: str,
    judges: Sequence[Judge],
    output: str,
    *,
    resources: Resources | None = None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Judge each row of `examples` (a file or a folder), and of the gold sets in `sources`, in one Ray task.

    Writes `judgements.parquet` (id, label, cluster, judge, predicted, `p_<label>` for each label of the task, and for each
    heuristic of the config a boolean `holds/<name>`), a row for each example, and where there are gold sets `gold.parquet`, the
    same with `set`. `cluster` numbers the first texts, `judge` the judges. A row whose text, under another id, is one that
    every judge was trained on is not judged: what a judge says of it is null. Returns counts, the agreement with the given
    labels (shares), and the throughput, which counts what was computed, as `evaluate`'s does.

    Raises UserError for no judge, for rows whose ids every judge was trained on, and for gold rows without the task's labels.
    """
    if not judges:
        raise UserError("no judge is given, and rows do not judge themselves; give a task model, or a classifier's checkpoint")
    arguments = (config, examples, sources, base_model, tuple(judges), output, report)
    with naming_stalls(lambda: [output]):
        result: dict[str, Any] = in_one_task(_judge_worker, resources or Resources(), *arguments)
    return result


def assign_judges(table: pa.Table, trained_on: Sequence[pa.Table], name: str, task: Task = NLI) -> np.ndarray:
    """The number of the judge of each row [n], of those that were trained on neither its id nor its text.

    `trained_on` has each judge's training rows. `NO_JUDGE` is where every judge knows the text. Raises UserError, naming
    `name`, for rows whose ids every judge was trained on.
    """
    ids = table["id"].to_pylist()
    knows_id = _knows(ids, [rows["id"].to_pylist() for rows in trained_on])
    knows_text = _knows(_texts(table, task), [_texts(rows, task) for rows in trained_on])
    if len(known := np.flatnonzero(knows_id.all(axis=0))):
        raise UserError(
            f"{name}: every judge was trained on {len(known):,} of {len(ids):,} rows ({ids[known[0]]}, for one), and a model "
            "agrees with what it was trained on; leave these rows out, or add a judge that is trained without them"
        )
    may = ~(knows_id | knows_text)
    # The same judge whatever other rows there are: the place among those that may is a hash's.
    places = [int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:4]) for identifier in ids]
    choices = [np.flatnonzero(column) for column in may.T]
    return np.array(
        [choice[place % len(choice)] if len(choice) else NO_JUDGE for choice, place in zip(choices, places, strict=True)],
        dtype=np.int64,
    )


def _knows(keys: Sequence[Hashable], by_judge: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Which judge knows which row: booleans [judges, n]."""
    return np.array([[key in known for key in keys] for known in map(set, by_judge)], dtype=bool)


def _texts(table: pa.Table, task: Task) -> list[tuple[str, ...]]:
    return list(zip(*(table[name].to_pylist() for name in task.field_names), strict=True))


# What follows runs in a Ray worker.


def _judge_worker(
    config: JudgementConfig,
    examples: str,
    sources: str,
    base_model: str,
    judges: Sequence[Judge],
    output: str,
    report: Report,
    use_gpu: bool,
) -> dict[str, Any]:
    note_worker("the worker of a judgement", [output])
    with watched("the worker of a judgement", output):
        return _judge(config, examples, sources, base_model, judges, output, report, use_gpu)


def _judge(
    config: JudgementConfig,
    examples: str,
    sources: str,
    base_model: str,
    judges: Sequence[Judge],
    output: str,
    report: Report,
    use_gpu: bool,
) -> dict[str, Any]:
    task = config.task
    keys = ["id", *task.field_names]
    nothing = pa.table({name: pa.array([], pa.string()) for name in keys})
    trained_on = [
        pa.concat_tables([nothing, *(read_examples(path, task).select(keys) for path in judge.trained_on)]) for judge in judges
    ]
    distinct = [DistinctPrompts() for _ in judges]
    rows = {"": _encoded(config, examples, "the pool", base_model, trained_on, distinct)}
    for name in config.sets:
        path = join(sources, f"{name}.parquet")
        rows[name] = _encoded(config, path, f"gold set {name}", base_model, trained_on, distinct)
    for name in config.sets:
        if strange := sorted({*rows[name].table["label"].to_pylist()} - {*task.labels}):
            raise UserError(f"gold set {name} has rows labelled {', '.join(strange)}; gold rows have {', '.join(task.labels)}")
    num_to_compute = sum(map(len, distinct))
    del distinct
    device = worker_device(use_gpu)
    bodies = Bodies(config, base_model, device, compiled=use_gpu and 0 < config.compile_from_examples <= num_to_compute)
    judge_s, num_judged, num_computed = 0.0, 0, 0
    for number, judge in enumerate(judges):
        classifier = bodies.classifier(judge.task_model)
        computed = np.empty((0, len(task.labels)), dtype=np.float32)
        for one in rows.values():
            begun = time.perf_counter()
            batches = batches_for(base_model, one.new[number], config.tokens_per_batch)
            computed = classify_more(computed, classifier, batches, device)
            chosen = np.flatnonzero(one.judges == number)
            one.logits[chosen] = computed[one.prompts[chosen]]
            judge_s += time.perf_counter() - begun
            num_judged += len(chosen)
            num_computed += len(one.new[number])
            # There is nothing to compute where every judge knows every row.
            fraction_done = num_computed / max(num_to_compute, 1)
            report({"examples_per_s": num_computed / judge_s, "fraction_done": fraction_done}, number + 1)
    tables = {name: _judged_table(config, one) for name, one in rows.items()}
    gold = [tables[name].add_column(0, "set", pa.repeat(name, tables[name].num_rows)) for name in config.sets]
    write_table(tables[""], join(output, JUDGEMENTS_FILE))
    if gold:
        write_table(pa.concat_tables(gold), join(output, GOLD_FILE))
    return {
        "num_examples": num_judged,
        "num_computed": num_computed,
        "num_not_judged": sum(one.table.num_rows for one in rows.values()) - num_judged,
        **{
            f"{name or 'pool'}/{metric}": value
            for name, table in tables.items()
            for metric, value in _agreement(table, task).items()
        },
        "examples_per_s": num_computed / judge_s,
        "peak_gpu_memory_gib": peak_gpu_memory_gib() if use_gpu else None,
    }


@dataclass(frozen=True)
class _Rows:
    """Rows to be judged: the judge of each, the number of its prompt among that judge's, and room for the logits.

    `new` has for each judge the tokens of its prompts that are in no rows before these.
    """

    table: pa.Table
    judges: np.ndarray
    prompts: np.ndarray
    new: list[list[list[int]]]
    logits: np.ndarray


def _encoded(
    config: JudgementConfig,
    path: str,
    name: str,
    base_model: str,
    trained_on: Sequence[pa.Table],
    distinct: Sequence[DistinctPrompts],
) -> _Rows:
    table = read_examples(path, config.task)
    assigned = assign_judges(table, trained_on, name, config.task)
    table, sequences = encoded_examples(config, table.append_column("judge", pa.array(assigned)), base_model)
    judges = table["judge"].to_numpy()
    prompts, new = np.full(table.num_rows, -1), []
    for number, of_judge in enumerate(distinct):
        chosen = np.flatnonzero(judges == number)
        prompts[chosen], unseen = of_judge.add([sequences[row] for row in chosen])
        new.append(unseen)
    logits = np.full((table.num_rows, len(config.task.labels)), np.nan, dtype=np.float32)
    return _Rows(table, judges, prompts, new, logits)


def _judged_table(config: JudgementConfig, rows: _Rows) -> pa.Table:
    """The rows of `judgements.parquet` (`judge`)."""
    lacks = rows.judges == NO_JUDGE
    shifted = np.exp(rows.logits - rows.logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    predicted = np.array(config.task.labels)[np.argmax(np.nan_to_num(rows.logits), axis=1)]
    first_texts = rows.table[config.task.field_names[0]].combine_chunks().dictionary_encode()
    columns: Mapping[str, Any] = {
        "id": rows.table["id"],
        "label": rows.table["label"],
        "cluster": first_texts.indices.cast(pa.int32()),
        "judge": pa.array(rows.judges.astype(np.int32), mask=lacks),
        "predicted": pa.array(predicted, pa.string(), mask=lacks),
        **{f"p_{label}": pa.array(shares[:, index], mask=lacks) for index, label in enumerate(config.task.labels)},
        **{
            f"holds/{heuristic.name}": pa.array(held)
            for heuristic, held in where_held(rows.table, config.heuristics, config.task)
        },
    }
    return pa.table(columns)


def _agreement(table: pa.Table, task: Task) -> dict[str, Any]:
    """Judged rows, and the share of them where the judge gives the label that they have, for each label and in all."""
    judged = table.filter(pc.is_valid(table["predicted"]))
    agrees = pc.equal(judged["predicted"], judged["label"]).to_numpy()
    labels = np.array(judged["label"].to_pylist(), dtype=object)
    of_labels = {f"agreement/{label}": agrees[labels == label] for label in task.labels} | {"agreement": agrees}
    return {"num_judged": judged.num_rows} | {name: float(part.mean()) for name, part in of_labels.items() if len(part)}
