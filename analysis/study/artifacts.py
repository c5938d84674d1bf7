"""The contents of a study's artifacts: make-up of training sets, yield of the pool, durations and throughput."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.stats.label_noise import JudgedRows
from analysis.study.described import task_of
from pipelines.errors import UserError
from pipelines.evaluate.judge import GOLD_FILE, JUDGEMENTS_FILE
from pipelines.finetune.checkpoints import METRICS_FILE
from pipelines.storage import join
from pipelines.tasks.examples import read_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP, lexical_overlap
from pipelines.tasks.nli import NLI, Label
from pipelines.tasks.parquet import parquet_table
from pipelines.tasks.task import Task
from sweep.graph.integrity import whole_folder
from sweep.graph.records import COORDINATES, STAGES, Store, Study, StudyStep, throughputs


@dataclass(frozen=True)
class LabelCount:
    """The number of a label's examples, and of those of them that have lexical overlap."""

    num_rows: int
    num_lexical_overlap: int

    @property
    def share(self) -> float:
        return self.num_lexical_overlap / self.num_rows

    @property
    def with_and_without(self) -> tuple[int, int]:
        return self.num_lexical_overlap, self.num_rows - self.num_lexical_overlap


def has_lexical_overlap(task: Task) -> bool:
    """Whether lexical overlap, and with it the paper's Table 1, is about a task: of premises and hypotheses, and entailment."""
    return set(NLI.field_names) <= set(task.field_names) and LEXICAL_OVERLAP.predicts in task.labels


def count_lexical_overlap(examples: pa.Table) -> dict[str, LabelCount]:
    """Rows and lexical overlaps per label of a table of premises and hypotheses, in the order of the labels."""
    overlap = lexical_overlap(examples["premise"], examples["hypothesis"])
    by_label = pd.Series(overlap).groupby(examples["label"].to_pandas())
    counts = {str(label): LabelCount(of_label.size, int(of_label.sum())) for label, of_label in by_label}
    return {label: counts[label] for label in sorted(counts, key=label_order)}


def entailment_and_rest(counts: Mapping[str, LabelCount]) -> tuple[LabelCount, LabelCount]:
    """The count of entailment, and that of all other labels together."""
    rest = [count for label, count in counts.items() if label != Label.ENTAILMENT]
    return (
        counts.get(Label.ENTAILMENT, LabelCount(0, 0)),
        LabelCount(sum(count.num_rows for count in rest), sum(count.num_lexical_overlap for count in rest)),
    )


def lexical_overlap_counts(store: Store, study: Study) -> dict[str, dict[str, LabelCount]]:
    """The counts of Table 1: "original" (the sources' training set) and "synthetic" (generators' first pools), where built.

    Nothing for a task that lexical overlap is not about.
    """
    counts: dict[str, dict[str, LabelCount]] = {}
    task = task_of(study)
    if not has_lexical_overlap(task):
        return counts
    for dataset, stage, path in (("original", "sources", "train.parquet"), ("synthetic", "synthetic_pool", "pool")):
        if built := _first(_built(study, (stage,))):
            # A study's data with and without challenge sets have one training set.
            chosen = built[:1] if stage == "sources" else built
            counts[dataset] = sum_counts([_overlap_of(store, step, path, task) for step in chosen])
    return counts


def pool_overlap_counts(store: Store, study: Study) -> dict[int, dict[str, LabelCount]]:
    """Rows and lexical overlaps per label of each pool that is built, by the number of its generator."""
    task = task_of(study)
    pools = _first(_built(study, ("synthetic_pool",))) if has_lexical_overlap(task) else []
    return {int(pool.coordinates.get("generator", 0)): _overlap_of(store, pool, "pool", task) for pool in pools}


def sum_counts(counts: Sequence[Mapping[str, LabelCount]]) -> dict[str, LabelCount]:
    """The counts of several tables together, per label."""
    labels = sorted({label for of_one in counts for label in of_one}, key=label_order)
    of_label = {label: [of_one[label] for of_one in counts if label in of_one] for label in labels}
    return {
        label: LabelCount(sum(count.num_rows for count in every), sum(count.num_lexical_overlap for count in every))
        for label, every in of_label.items()
    }


def _overlap_of(store: Store, step: Any, path: str, task: Task) -> dict[str, LabelCount]:
    return count_lexical_overlap(read_examples(join(whole_folder(store, step.record), path), task))


def training_set_frame(study: Study) -> pd.DataFrame:
    """One row per (built starting or training set, label): coordinates, num_rows, num_held.

    `num_held` counts the rows of which `counted_heuristic` holds, NA where a set's record does not say. Read from the sets'
    records. A training set that all starting points share has no starting_size: NA.
    """
    columns = ["stage", *COORDINATES, "label", "num_rows", "num_held", "fingerprint"]
    heuristic = counted_heuristic(study)
    rows = []
    for step in _built(study, ("starting_set", "training_set")):
        # What a judge was trained on is in no cell; a joint set is made of two others.
        if not step.coordinates or step.record.payload["config"].get("kind") == "joint":
            continue
        metrics = step.record.metrics
        rows += [
            {
                "stage": step.stage,
                **{name: step.coordinates.get(name) for name in COORDINATES},
                "label": label,
                "num_rows": metrics[f"{label}/num_examples"],
                "num_held": metrics.get(f"{label}/{heuristic}"),
                "fingerprint": step.fingerprint,
            }
            for label in task_of(study).labels
        ]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = ["starting_size", "size", "seed", "num_rows", "num_held"]
    return frame.astype({name: "Int64" for name in numbers})


def counted_heuristic(study: Study) -> str:
    """The heuristic that training sets are counted by: lexical overlap in NLI, else the study's own."""
    if task_of(study) == NLI:
        return LEXICAL_OVERLAP.name
    return str(study.parameters.get("heuristic", LEXICAL_OVERLAP.name))


def own_pools(study: Study) -> list[str]:
    """The files that stand for what a generator writes, of a study with pools of its own that are built."""
    return [str(step.record.metrics["file"]) for step in _built(study, ("synthetic_pool",)) if "file" in step.record.metrics]


def yield_frame(store: Store, study: Study) -> pd.DataFrame:
    """Outcomes of the generator's texts, one row per (pool, outcome), with `count` and `share` of all.

    `outcome` is "parsed" or a reject reason. Read from the `yield.json` of each synthetic pool that is built.
    Raises UserError when the counts do not add up to the texts that were generated.
    """
    rows = []
    for step, counts in _yields(store, study):
        total = sum(counts["generated"].values())
        outcomes = {"parsed": sum(counts["parsed"].values()), **counts["rejected"]}
        if total == 0 or sum(outcomes.values()) != total:
            raise UserError(
                f"the outcomes in yield.json of {step.slug}-{step.fingerprint[:12]} add up to "
                f"{sum(outcomes.values()):,} of {total:,} texts; remove the pool and run again"
            )
        rows += [
            {"pool": step.fingerprint, "outcome": outcome, "count": count, "share": count / total}
            for outcome, count in outcomes.items()
        ]
    return pd.DataFrame(rows, columns=["pool", "outcome", "count", "share"])


def label_yield_frame(store: Store, study: Study) -> pd.DataFrame:
    """Numbers of texts generated and parsed, one row per (pool, label); `generator` is the number of the pool's."""
    rows = [
        {
            "pool": step.fingerprint,
            "generator": int(step.coordinates.get("generator", 0)),
            "label": label,
            "generated": generated,
            "parsed": counts["parsed"][label],
        }
        for step, counts in _yields(store, study)
        for label, generated in counts["generated"].items()
    ]
    return pd.DataFrame(rows, columns=["pool", "generator", "label", "generated", "parsed"])


def reject_samples(store: Store, study: Study) -> pd.DataFrame:
    """Up to three rejected texts of each reason, by id: reason, label, text, as they were written."""
    tables = []
    for step in _built(study, ("synthetic_pool",)):
        for path in sorted(step.record.files):
            if path.startswith("rejects/") and path.endswith(".parquet"):
                content = io.BytesIO(store.read_bytes(step.record, path))
                where = join(store.folder(step.id), path)
                tables.append(parquet_table(content, where, ["id", "reason", "label", "text"]))
    if not tables:
        return pd.DataFrame(columns=["reason", "label", "text"])
    rejects = pa.concat_tables(tables).to_pandas().sort_values("id", kind="stable")
    return rejects.groupby("reason").head(3).sort_values("reason", kind="stable")[["reason", "label", "text"]]


@dataclass(frozen=True)
class JudgedPool:
    """A judged pool's rows and the gold rows, in two cells: 1 where the heuristic holds, 0 where it does not.

    `heuristic` is its name, `predicts` the label that it predicts, `labels` are the task's.
    """

    pool: JudgedRows
    gold: JudgedRows
    heuristic: str
    predicts: str
    labels: tuple[str, ...] = NLI.labels


def judged_pool(store: Store, step: StudyStep, task: Task = NLI) -> JudgedPool:
    """The rows of a built judgement. Those without a judge are left out; the record counts them."""
    classes = {label: index for index, label in enumerate(task.labels)}
    record = step.record
    assert record is not None
    (heuristic,) = record.payload["config"]["heuristics"]

    def rows(name: str, clusters: list[str]) -> JudgedRows:
        content = io.BytesIO(store.read_bytes(record, name))
        frame = parquet_table(content, join(store.folder(step.id), name)).to_pandas().dropna(subset=["predicted"])
        labels, judged = (frame[column].map(classes).to_numpy(dtype=int) for column in ("label", "predicted"))
        held = frame[f"holds/{heuristic['name']}"].to_numpy(dtype=int)
        return JudgedRows(labels, judged, held, frame.groupby(clusters).ngroup().to_numpy())

    pool, gold = rows(JUDGEMENTS_FILE, ["cluster"]), rows(GOLD_FILE, ["set", "cluster"])
    return JudgedPool(pool, gold, heuristic["name"], str(heuristic["predicts"]), task.labels)


def curve_frame(store: Store, study: Study) -> pd.DataFrame:
    """The logged steps of every built finetuning: stage, slug, its coordinates, step, loss, learning_rate."""
    columns = ["stage", "slug", *COORDINATES, "step", "loss", "learning_rate"]
    rows = []
    for step in _built(study, ("generator", "starting_point", "task_model")):
        if METRICS_FILE not in step.record.files:
            continue
        place = [step.stage, step.slug, *(step.coordinates.get(name) for name in COORDINATES)]
        for line in store.read_bytes(step.record, METRICS_FILE).splitlines():
            entry = json.loads(line)
            rows.append([*place, entry["step"], entry["loss"], entry["learning_rate"]])
    return pd.DataFrame(rows, columns=columns)


def spent_frame(study: Study, gpus: Mapping[str, float]) -> pd.DataFrame:
    """One row per stage, in order: num_built, num_steps, hours of its artifacts, and gpu_hours, with `gpus` a step of it."""
    rows = []
    for stage in STAGES:
        steps = [step for step in study.steps if step.stage == stage]
        if steps:
            hours = sum(step.record.durations["total_s"] for step in steps if step.record) / 3600
            num_built = sum(step.record is not None for step in steps)
            rows.append([stage, num_built, len(steps), hours, hours * gpus.get(stage, 0)])
    return pd.DataFrame(rows, columns=["stage", "num_built", "num_steps", "hours", "gpu_hours"])


def stage_frame(study: Study) -> pd.DataFrame:
    """One row per built artifact: stage, slug, fingerprint, `total_s`, and its throughput metrics.

    `total_s` is the seconds it took to build, whenever that was; throughput metrics are as `sweep.graph.records.throughputs`
    has them.
    """
    rows = []
    for step in _built(study, None):
        record = step.record
        row = {"stage": step.stage, "slug": step.slug, "fingerprint": step.fingerprint}
        row["total_s"] = record.durations.get("total_s")
        row |= throughputs(record.metrics)
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["stage", "slug", "fingerprint", "total_s"])


def label_order(label: str) -> tuple[int, str]:
    """Sorts NLI's labels in the order of the classification head, others after them by name."""
    return (NLI.labels.index(label) if label in NLI.labels else len(NLI.labels), label)


def _first(steps: list[Any]) -> list[Any]:
    """Those that are not of a later generation."""
    return [step for step in steps if "generation" not in step.coordinates]


def _built(study: Study, stages: Iterable[str] | None) -> list[Any]:
    return [step for step in study.steps if step.record is not None and (stages is None or step.stage in stages)]


def _yields(store: Store, study: Study) -> Iterator[tuple[StudyStep, Mapping[str, Any]]]:
    for step in _built(study, ("synthetic_pool",)):
        yield step, json.loads(store.read_bytes(step.record, "yield.json"))
