"""Evaluation of a task model: general and blindspot test sets, per-item logits kept so that every later statistic is free."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError, portable
from pipelines.evaluate.scoring import Evaluated, accuracy_rows, flat_metrics, score_metrics, slice_column, where_held
from pipelines.field_types import check_types
from pipelines.identity import added, runtime
from pipelines.imports import lasting_imports, without_modules
from pipelines.models.architectures import architecture_in, saved_architecture
from pipelines.models.process import peak_gpu_memory_gib, quiet_libraries, without_gpus
from pipelines.models.tokenizer import encode_for_classifier
from pipelines.packing.batches import PackedBatch, padded_batches, prefix_tree_batches
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import fetch, join, working_folder
from pipelines.tasks.examples import read_examples
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet
from pipelines.workers.lane import Intake, Lane
from pipelines.workers.one_task import in_one_task
from pipelines.workers.printed import note_worker
from pipelines.workers.watchdog import beat, watched

if TYPE_CHECKING:
    import torch

WORKER = "the worker of an evaluation"


@dataclass(frozen=True)
class EvaluationConfig:
    """The test sets of the prepared sources that are evaluated, and the precision.

    `merge_adapter` folds a LoRA adapter into the weights first: faster, and different in the last bits. `rehearse_examples`
    above 0 makes it a rehearsal: only so many examples of each set, the longest. Each of `heuristics` adds slices to each set:
    the examples of which it holds (`accuracy_rows`). `task` and `test_sets`, those of `sets` that the sources describe, are the
    study's, which sets them. On a GPU, a lane that computes at least `compile_from_examples` examples in all, repeated
    ones once, compiles the decoder's layers first (0: never), which takes a while to repay.
    """

    sets: tuple[str, ...]
    dtype: str = "bfloat16"
    merge_adapter: bool = False
    rehearse_examples: int = 0
    heuristics: tuple[Heuristic, ...] = added(())
    task: Task = added(NLI)
    test_sets: tuple[TestSet, ...] = added(())
    tokens_per_batch: int = runtime(32_768)
    compile_from_examples: int = runtime(200_000)
    needs_sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_types(self)
        if self.needs_sets and not self.sets:
            raise UserError("sets=() names no test set; name at least one, e.g. ('mnli_matched', 'hans')")
        if len(set(self.sets)) != len(self.sets):
            raise UserError(f"sets={self.sets} names a test set twice; name each once")
        names = [heuristic.name for heuristic in self.heuristics]
        if len(set(names)) != len(names):
            raise UserError(f"heuristics are named {', '.join(names)}; each must have a name of its own")

    def described(self, name: str) -> TestSet | None:
        """The description of one of `sets`, if it has one."""
        return next((test_set for test_set in self.test_sets if test_set.name == name), None)


def evaluate(
    config: EvaluationConfig,
    sources: str,
    base_model: str,
    task_model: str,
    output: str,
    *,
    resources: Resources | None = None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Evaluate `task_model` on the sets in `sources`, in one Ray task with `resources` of one worker.

    Writes `logits.parquet` (set, id, label, `logit_<label>` for each label of the task, heuristic, subcase, for each
    heuristic of the config a boolean `holds/<name>`, null where it is not asked, and for each slice column of a described set
    `slice/<column>`) and `metrics.json` (`rows`: those of
    `accuracy_rows`). Returns the main accuracies, flat, as fractions, and `score_metrics`, with counts and the throughput.
    A prompt that stands in several rows, of one set or several, is computed once: `num_examples` counts rows, `num_computed`
    what was computed, and `examples_per_s` is of the latter.
    """
    (result,) = evaluate_group(
        config, sources, base_model, [task_model], [output], resources=resources or Resources(), reports=[report]
    )
    if isinstance(result, Exception):
        raise result
    return result


def evaluate_group(
    config: EvaluationConfig,
    sources: str,
    base_model: str,
    task_models: Sequence[str],
    outputs: Sequence[str],
    *,
    resources: Resources,
    reports: Sequence[Report],
) -> list[dict[str, Any] | Exception]:
    """Evaluate several task models in one lane. Returns each one's metrics, or what it failed with."""
    lane = evaluation_lane(config, sources, base_model, resources, expected=len(outputs))
    return lane.run_all([Evaluee(*values) for values in zip(task_models, outputs, reports, strict=True)])


@dataclass(frozen=True)
class Evaluee:
    """A task model's folder, the output of its evaluation (folder or URI) and where its throughput goes."""

    task_model: str
    output: str
    report: Report


def evaluation_lane(config: EvaluationConfig, sources: str, base_model: str, resources: Resources, *, expected: int) -> Lane:
    """A lane that evaluates: its jobs are `Evaluee`s, which end with their metrics.

    They are evaluated one after another in one Ray task, which tokenizes and reads frozen weights once. About so many jobs are
    `expected` in all.
    """

    def serve(desk: Any) -> None:
        in_one_task(_evaluate_worker, resources, desk, config, sources, base_model, expected)

    return Lane(serve, lambda evaluee: str(evaluee.output), in_process=resources.in_process)


# What follows runs in a Ray worker.


def _evaluate_worker(desk: Any, config: EvaluationConfig, sources: str, base_model: str, expected: int, use_gpu: bool) -> None:
    """Evaluate what is at the desk until no more comes."""
    intake = Intake(desk)
    if not intake.wait():
        return
    with watched(WORKER, next(iter(intake.waiting.values())).output):
        device = worker_device(use_gpu)
        sets = _read_sets(config, sources, base_model)
    num_computed = expected * sum(test_set.num_computed for test_set in sets)
    bodies = Bodies(config, base_model, device, compiled=use_gpu and 0 < config.compile_from_examples <= num_computed)
    while intake.wait():
        number, evaluee = intake.begin()
        note_worker(WORKER, [evaluee.output])
        with watched(WORKER, evaluee.output):
            try:
                result: dict[str, Any] | Exception = _evaluate_task_model(
                    config, sets, bodies, evaluee.task_model, evaluee.output, evaluee.report
                )
            except Exception as error:
                result = portable(error)
            gc.collect()
        intake.end(number, result)


def worker_device(use_gpu: bool) -> torch.device:
    """The device of a worker, which is told before anything imports DeepSpeed if it is to have no GPU."""
    if not use_gpu:
        without_gpus()
    # Transformers' assisted decoding would import it, a tenth of a start, for nobody.
    with lasting_imports(), without_modules("sklearn"):
        import torch

        import pipelines.models.weights  # noqa: F401
    quiet_libraries()
    return torch.device("cuda" if use_gpu else "cpu")


@dataclass(frozen=True)
class _EncodedSet:
    """A test set, where heuristics hold in it, the number of each row's prompt, and the prompts that no set before it has.

    Those are packed: their places among themselves in each batch, and the batch.
    """

    name: str
    table: pa.Table
    held: list[tuple[Heuristic, np.ndarray]]
    prompts: np.ndarray
    batches: list[tuple[np.ndarray, PackedBatch]]

    @property
    def num_computed(self) -> int:
        return sum(len(places) for places, _ in self.batches)


def _read_sets(config: EvaluationConfig, sources: str, base_model: str) -> list[_EncodedSet]:
    distinct, sets = DistinctPrompts(), []
    for name in config.sets:
        examples = read_examples(join(sources, f"{name}.parquet"), config.task)
        table, sequences = encoded_examples(config, examples, base_model)
        prompts, new = distinct.add(sequences)
        batches = batches_for(base_model, new, config.tokens_per_batch)
        sets.append(_EncodedSet(name, table, where_held(table, config.heuristics, config.task), prompts, batches))
    return sets


class DistinctPrompts:
    """Numbers prompts by their token ids from 0 on, equal ones alike, so that each is computed once."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, sequences: Sequence[list[int]]) -> tuple[np.ndarray, list[list[int]]]:
        """The number of each of `sequences`, int64 [n], and those that were not there before, in the order of their numbers."""
        numbers, new = np.empty(len(sequences), dtype=np.int64), []
        for place, sequence in enumerate(sequences):
            num_known = len(self)
            numbers[place] = self._numbers.setdefault(array("i", sequence).tobytes(), num_known)
            if len(self) > num_known:
                new.append(sequence)
        return numbers, new


def encoded_examples(config: EvaluationConfig, table: pa.Table, base_model: str) -> tuple[pa.Table, list[list[int]]]:
    """An examples table and the tokens of each row's prompt; in a rehearsal the longest only."""
    sequences = encode_for_classifier(base_model, table, config.task)
    if config.rehearse_examples:
        longest = np.argsort([-len(sequence) for sequence in sequences], kind="stable")[: config.rehearse_examples]
        table, sequences = table.take(pa.array(longest)), [sequences[i] for i in longest]
    return table, sequences


def batches_for(base_model: str, sequences: Sequence[list[int]], num_tokens: int) -> list[tuple[np.ndarray, PackedBatch]]:
    """Batches of `num_tokens` tokens in the form that task models over `base_model` read."""
    return (padded_batches if saved_architecture(base_model).is_encoder else prefix_tree_batches)(sequences, num_tokens)


def _evaluate_task_model(
    config: EvaluationConfig, sets: Sequence[_EncodedSet], bodies: Bodies, task_model: str, output: str, report: Report
) -> dict[str, Any]:
    import torch

    started = time.perf_counter()
    use_gpu = bodies.device.type == "cuda"
    if use_gpu:
        torch.cuda.reset_peak_memory_stats()
    rows: list[dict[str, Any]] = []
    tables, evaluated = [], []
    num_to_compute, evaluate_s = sum(test_set.num_computed for test_set in sets), 0.0
    computed = np.empty((0, len(config.task.labels)), dtype=np.float32)
    classifier = bodies.classifier(task_model)
    load_s = time.perf_counter() - started
    for step, test_set in enumerate(sets):
        begun = time.perf_counter()
        computed = classify_more(computed, classifier, test_set.batches, bodies.device)
        evaluate_s += time.perf_counter() - begun
        logits = computed[test_set.prompts]
        described = config.described(test_set.name)
        rows += accuracy_rows(test_set.name, test_set.table, logits, test_set.held, config.task, described)
        evaluated.append(Evaluated(test_set.name, test_set.table, logits, test_set.held, described))
        tables.append(logits_table(config, test_set.name, test_set.table, logits, test_set.held))
        report({"examples_per_s": len(computed) / evaluate_s, "fraction_done": len(computed) / num_to_compute}, step + 1)
    with working_folder(output) as folder:
        pq.write_table(pa.concat_tables(tables), folder / "logits.parquet", compression="zstd")
        (folder / "metrics.json").write_text(json.dumps({"rows": rows}, indent=1))
    return {
        **flat_metrics(rows),
        **score_metrics(evaluated, config.task),
        "num_examples": sum(test_set.table.num_rows for test_set in sets),
        "num_computed": len(computed),
        "examples_per_s": len(computed) / evaluate_s,
        "load_s": load_s,
        "evaluate_s": evaluate_s,
        "peak_gpu_memory_gib": peak_gpu_memory_gib() if use_gpu else None,
    }


class Bodies:
    """The decoders that task models stand on, each read once as long as the same one is asked for."""

    def __init__(self, config: EvaluationConfig, base_model: str, device: torch.device, *, compiled: bool = False) -> None:
        self.config, self.base_model, self.device, self.compiled = config, base_model, device, compiled
        self._kept: Any = None
        self._body: Any = None
        self._adapters: Any = None

    def classifier(self, task_model: str | None) -> Any:
        """The task model of an artifact, in evaluation mode on the device, over packed batches or an encoder's grids; of None
        the base model with the classification head that it came with (`own_head`)."""
        import torch

        from pipelines.adapters.files import load_adapter
        from pipelines.models.classifier import load_head, own_head
        from pipelines.models.encoder import classifier
        from pipelines.models.weights import merge_saved_adapter, weights_of

        dtype = getattr(torch, self.config.dtype)
        if task_model is None:
            weights = weights_of(None, self.base_model)
            self._read(weights, {})
            return classifier(self._body, own_head(weights, self.config.task, dtype=dtype, device=self.device)).eval()
        folder = Path(fetch(task_model))
        adapter = folder / "adapter"
        settings = json.loads((adapter / "adapter_config.json").read_text()) if adapter.exists() else {}
        self._read(weights_of(task_model, self.base_model), settings)
        if settings and self.config.merge_adapter:
            merge_saved_adapter(self._body, adapter)
        elif settings:
            load_adapter(self._adapters, 0, adapter)
        head = load_head(folder, dtype=dtype, device=self.device)
        return classifier(self._body, head, self._adapters).eval()

    def _read(self, weights: Path, settings: Mapping[str, Any]) -> None:
        """Have the body of `weights`, with room for an adapter of peft's `settings` unless it is to be merged."""
        import torch

        from pipelines.adapters.adapters import add_adapters
        from pipelines.models.classifier import compute_last_layer_where_read
        from pipelines.models.weights import compile_layers, load_classifier_body

        shape = {name: settings.get(name) for name in ("r", "lora_alpha", "target_modules")}
        # What is merged cannot be taken out again to the last bit.
        if self._kept == (weights, shape) and not self.config.merge_adapter:
            return
        self._kept = self._body = self._adapters = None
        merged = bool(settings) and self.config.merge_adapter
        self._body = load_classifier_body(weights, getattr(torch, self.config.dtype), self.device, as_numbers=merged)
        if settings and not merged:
            self._adapters = add_adapters(
                self._body,
                settings["target_modules"],
                rank=settings["r"],
                alpha=settings["lora_alpha"],
                dropout=0.0,
                seeds=[None],
                trained=False,
            )
        compute_last_layer_where_read(self._body)
        if self.compiled and not architecture_in(weights).is_encoder:
            compile_layers(self._body)
        self._kept = (weights, shape)


def classify(classifier: Any, batches: Sequence[tuple[np.ndarray, PackedBatch]], device: torch.device) -> np.ndarray:
    """Class logits float32 [n, num_labels] of n sequences, in the order in which `prefix_tree_batches` was given them."""
    import torch

    from pipelines.packing.segments import Segments
    from pipelines.packing.stream import PackedInput

    outputs = []
    with torch.inference_mode():
        for _, batch in batches:
            adapters = classifier.adapters
            with adapters.over(Segments.of_one(batch, device)) if adapters else contextlib.nullcontext():
                outputs.append(classifier.logits(PackedInput.from_batch(batch, device)))
            beat()
    order = np.concatenate([rows for rows, _ in batches])
    # Read once, at the end: a copy to the host waits for the device, and batches would no longer be prepared ahead of it.
    in_batches = torch.cat(outputs).cpu().numpy()
    logits = np.empty_like(in_batches, dtype=np.float32)
    logits[order] = in_batches
    return logits


def classify_more(
    computed: np.ndarray, classifier: Any, batches: Sequence[tuple[np.ndarray, PackedBatch]], device: torch.device
) -> np.ndarray:
    """Logits in the order of `DistinctPrompts`: `computed`, then those of `batches` of new prompts, if there are any."""
    return np.concatenate([computed, classify(classifier, batches, device)]) if batches else computed


def logits_table(
    config: EvaluationConfig,
    name: str,
    table: pa.Table,
    logits: np.ndarray,
    held: Sequence[tuple[Heuristic, np.ndarray]] = (),
) -> pa.Table:
    """The rows of `logits.parquet` (`evaluate`) of a test set named `name`; `held` is `where_held` of the heuristics."""
    num = table.num_rows
    described = config.described(name)
    of_set = set(described.slices) if described else {"heuristic", "subcase"}

    def texts(column: str) -> pa.Array:
        is_here = column in of_set and column in table.column_names
        return table.column(column).cast(pa.string()) if is_here else pa.nulls(num, pa.string())

    holds = {heuristic.name: where for heuristic, where in held}
    all_slices = dict.fromkeys(column for test_set in config.test_sets for column in test_set.slices)
    columns: dict[str, Any] = {
        "set": pa.repeat(name, num),
        "id": table.column("id"),
        "label": table.column("label"),
        **{f"logit_{label}": pa.array(logits[:, index]) for index, label in enumerate(config.task.labels)},
        **{column: pa.nulls(num, pa.string()) if described else texts(column) for column in ("heuristic", "subcase")},
        # A predicate need not be there any more when the results are read.
        **{
            f"holds/{heuristic.name}": pa.array(holds.get(heuristic.name, [None] * num), pa.bool_())
            for heuristic in config.heuristics
        },
        **{slice_column(column): texts(column) for column in all_slices},
    }
    return pa.table(columns)
