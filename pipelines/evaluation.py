"""Evaluation of a task model: general and blindspot test sets, per-item logits kept so that every later statistic is free.

HANS and the template probe have two labels: a predicted neutral or contradiction counts as non-entailment (paper, section
2.2.3). Three-label sets are reported as they are and folded to two. Folding comes after the argmax, as in the paper, or before
it, on the summed probabilities; HANS's authors (McCoy, Pavlick and Linzen 2019) use the first and name the second.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError, portable
from pipelines.examples import LABELS, NON_ENTAILMENT, Label, fold, read_examples
from pipelines.finetuning import (
    check_lengths,
    compile_layers,
    load_tokenizer,
    model_limit,
    quiet_libraries,
    weights_of,
    working_folder,
)
from pipelines.heuristics import Heuristic
from pipelines.identity import added, runtime
from pipelines.packing import PackedBatch, prefix_tree_batches
from pipelines.prompts import classifier_prompts
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import fetch, join

if TYPE_CHECKING:
    import torch

FOLDINGS = ("argmax", "summed")
"""How three class scores become two labels: see `entails`."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Which test sets of the prepared sources are evaluated, in which precision.

    `merge_adapter` folds a LoRA adapter into the weights first: faster, and different in the last bits. `rehearse_examples`
    above 0 makes it a rehearsal: only so many examples of each set, the longest. Each of `heuristics` adds slices to each set:
    the examples of which it holds (`accuracy_rows`). On a GPU, a group of at least `compile_from_examples` examples in all
    compiles the decoder's layers first (0: never), which takes a while to repay.
    """

    sets: tuple[str, ...]
    dtype: str = "bfloat16"
    merge_adapter: bool = False
    rehearse_examples: int = 0
    heuristics: tuple[Heuristic, ...] = added(())
    tokens_per_batch: int = runtime(32_768)
    compile_from_examples: int = runtime(200_000)

    def __post_init__(self) -> None:
        if not self.sets:
            raise UserError("sets=() names no test set; name at least one, e.g. ('mnli_matched', 'hans')")
        names = [heuristic.name for heuristic in self.heuristics]
        if len(set(names)) != len(names):
            raise UserError(f"heuristics are named {', '.join(names)}; each must have a name of its own")


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

    Writes `logits.parquet` (set, id, label, logit_entailment, logit_neutral, logit_contradiction, heuristic, subcase, and for
    each heuristic of the config a boolean `holds/<name>`, null where it is not asked) and `metrics.json` (`rows`: those of
    `accuracy_rows`). Returns the main accuracies, flat, as fractions, with the throughput in
    examples a second.
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
    """As `evaluate`, several task models one after another in one Ray task, which tokenizes and reads frozen weights once.

    Returns each one's metrics, or what it failed with.
    """
    import ray

    members = list(zip(task_models, outputs, reports, strict=True))
    if resources.in_process:
        return _evaluate_worker(config, sources, base_model, members, resources.gpus_per_worker > 0)
    task = ray.remote(_evaluate_worker).options(
        num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=0
    )
    return ray.get(task.remote(config, sources, base_model, members, resources.gpus_per_worker > 0))


def entails(logits: np.ndarray, folding: str) -> np.ndarray:
    """Which of n items are predicted to be entailment, booleans [n], from class logits [n, 3] folded to two labels.

    "argmax": entailment has the largest logit, and only then neutral and contradiction merge (paper, section 2.2.3). "summed":
    p(entailment) > p(neutral) + p(contradiction), p being the softmax. Every entailment by "summed" is one by "argmax". A tie
    between logits goes to the first label, one between p and 1 - p to non-entailment. Raises ValueError for another folding.
    """
    if folding == "argmax":
        return np.argmax(logits, axis=1) == Label.ENTAILMENT.index
    if folding == "summed":
        # p(entailment) > 1/2, without an exponential that could overflow: its logit is above the others' log-sum-exp.
        others = np.delete(np.asarray(logits, dtype=np.float64), Label.ENTAILMENT.index, axis=1)
        return np.asarray(logits)[:, Label.ENTAILMENT.index] > np.logaddexp.reduce(others, axis=1)
    raise ValueError(f"folding={folding!r} is none of {', '.join(FOLDINGS)}")


def is_right(predicted: np.ndarray, labels: np.ndarray, asked: Label | None = None) -> np.ndarray:
    """Which of n items are right, booleans [n], from predicted classes int [n] (argmax of the logits) and labels str [n].

    With `asked`, both are first folded to two: that label and any other. Labels that are folded themselves need it.
    """
    if asked is None:
        return np.array([str(label) for label in LABELS])[predicted] == labels
    return (predicted == asked.index) == (labels == str(asked))


def where_held(table: pa.Table, heuristics: Sequence[Heuristic]) -> list[tuple[Heuristic, np.ndarray]]:
    """Where each of `heuristics` holds in an examples table [n], booleans [n]: the same for every task model.

    Without those that predict another label than entailment in a set whose labels do not tell that one.
    """
    is_folded = NON_ENTAILMENT in pc.unique(table["label"]).to_pylist()
    return [
        (one, one(table["premise"], table["hypothesis"]))
        for one in heuristics
        if not is_folded or one.predicts == Label.ENTAILMENT
    ]


def accuracy_rows(
    name: str, table: pa.Table, logits: np.ndarray, held: Sequence[tuple[Heuristic, np.ndarray]] = ()
) -> list[dict[str, Any]]:
    """Accuracy of `logits` float [n, 3] on an examples table [n], over all and by slice.

    A row has set, slice, num_labels, folding, accuracy (0..1), num_correct and num_examples. Slices: "all"; with columns
    heuristic and subcase also "<heuristic>", "<heuristic>/<label>" and "subcase/<subcase>"; for each heuristic of `held`, from
    `where_held`, "holds/<name>", where it holds, and that by whether the label is the predicted one: "holds/<name>/<label>" and
    "holds/<name>/non-<label>". There, only this is asked of the model, too. A slice exists only if an example is in it. Two
    labels are scored by each of FOLDINGS; three, where nothing is folded, and what a heuristic holds of are under "argmax".
    Raises ValueError if there is no example.
    """
    if table.num_rows == 0 or len(logits) != table.num_rows:
        raise ValueError(f"{name}: {len(logits)} logits for {table.num_rows} examples; one for each of at least one is needed")
    labels = np.array(table.column("label").to_pylist())
    rows: list[dict[str, Any]] = []

    def add(slice_name: str, num_labels: int, folding: str, correct: np.ndarray) -> None:
        rows.append(
            {
                "set": name,
                "slice": slice_name,
                "num_labels": num_labels,
                "folding": folding,
                "accuracy": float(correct.mean()),
                "num_correct": int(correct.sum()),
                "num_examples": len(correct),
            }
        )

    predicted = np.argmax(logits, axis=1)
    if NON_ENTAILMENT not in labels:
        add("all", 3, "argmax", is_right(predicted, labels))
    slices: dict[str, np.ndarray] = {}
    if "heuristic" in table.column_names:
        made_for = np.array(table.column("heuristic").to_pylist())
        subcases = np.array(table.column("subcase").to_pylist())
        for probe in np.unique(made_for):
            chosen = made_for == probe
            slices[str(probe)] = chosen
            slices |= {f"{probe}/{label}": chosen & (labels == label) for label in np.unique(labels[chosen])}
        slices |= {f"subcase/{subcase}": subcases == subcase for subcase in np.unique(subcases)}
    is_entailment = _folded(fold, labels) == Label.ENTAILMENT
    for folding in FOLDINGS:
        two_way = entails(logits, folding) == is_entailment
        add("all", 2, folding, two_way)
        for slice_name, chosen in slices.items():
            add(slice_name, 2, folding, two_way[chosen])
    for one, holds in held:
        of_pair = _folded(one.fold, labels)
        correct = is_right(predicted, labels, one.predicts)
        slices = {f"holds/{one.name}": holds}
        slices |= {f"holds/{one.name}/{label}": holds & (of_pair == label) for label in np.unique(of_pair)}
        for slice_name, chosen in slices.items():
            if chosen.any():
                add(slice_name, 2, "argmax", correct[chosen])
    return rows


def _folded(fold_one: Callable[[str], str], labels: np.ndarray) -> np.ndarray:
    distinct, which = np.unique(labels, return_inverse=True)
    return np.array([fold_one(str(label)) for label in distinct])[which]


def flat_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rows' accuracies by name: `hans/accuracy`, `hans/lexical_overlap/non-entailment/accuracy`, `…/accuracy_2way`.

    The second folding has one name a set: `hans/accuracy_summed`, `mnli_matched/accuracy_2way_summed`. Its slices, and all
    subcases, stay in `metrics.json`: ninety more columns would hide the ones that are compared.
    """
    flat = {}
    three_way = {row["set"] for row in rows if row["num_labels"] == 3}
    for row in rows:
        summed = row["folding"] == "summed"
        if row["slice"].startswith("subcase/") or (summed and row["slice"] != "all"):
            continue
        where = row["set"] if row["slice"] == "all" else f"{row['set']}/{row['slice']}"
        of_three = "_2way" if row["num_labels"] == 2 and row["set"] in three_way else ""
        flat[f"{where}/accuracy{of_three}{'_summed' if summed else ''}"] = row["accuracy"]
    return flat


# What follows runs in a Ray worker.


def _evaluate_worker(
    config: EvaluationConfig,
    sources: str,
    base_model: str,
    members: Sequence[tuple[str, str, Report]],
    use_gpu: bool,
) -> list[dict[str, Any] | Exception]:
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    quiet_libraries()
    device = torch.device("cuda" if use_gpu else "cpu")
    sets = [_read_set(config, sources, base_model, name) for name in config.sets]
    num_examples = len(members) * sum(one.table.num_rows for one in sets)
    bodies = Bodies(config, base_model, device, compiled=use_gpu and 0 < config.compile_from_examples <= num_examples)
    results: list[dict[str, Any] | Exception] = []
    for task_model, output, report in members:
        try:
            results.append(_evaluate_one(config, sets, bodies, task_model, output, report))
        except Exception as error:
            results.append(portable(error))
        gc.collect()
    return results


@dataclass(frozen=True)
class _EncodedSet:
    """A test set, where heuristics hold in it, and its prompts, packed: the rows of each batch and the batch."""

    name: str
    table: pa.Table
    held: list[tuple[Heuristic, np.ndarray]]
    batches: list[tuple[np.ndarray, PackedBatch]]


def _read_set(config: EvaluationConfig, sources: str, base_model: str, name: str) -> _EncodedSet:
    table = read_examples(join(sources, f"{name}.parquet"))
    sequences = load_tokenizer(base_model)(classifier_prompts(table))["input_ids"]
    check_lengths(sequences, table.column("id").to_pylist(), limit=model_limit(base_model))
    if config.rehearse_examples:
        longest = np.argsort([-len(sequence) for sequence in sequences], kind="stable")[: config.rehearse_examples]
        table, sequences = table.take(pa.array(longest)), [sequences[i] for i in longest]
    batches = prefix_tree_batches(sequences, config.tokens_per_batch)
    return _EncodedSet(name, table, where_held(table, config.heuristics), batches)


def _evaluate_one(
    config: EvaluationConfig, sets: Sequence[_EncodedSet], bodies: Bodies, task_model: str, output: str, report: Report
) -> dict[str, Any]:
    import torch

    started = time.perf_counter()
    use_gpu = bodies.device.type == "cuda"
    if use_gpu:
        torch.cuda.reset_peak_memory_stats()
    rows: list[dict[str, Any]] = []
    tables = []
    num_done, evaluate_s = 0, 0.0
    with bodies.classifier(task_model) as classifier:
        load_s = time.perf_counter() - started
        for step, one in enumerate(sets):
            begun = time.perf_counter()
            logits = classify(classifier, one.batches, bodies.device)
            evaluate_s += time.perf_counter() - begun
            num_done += one.table.num_rows
            rows += accuracy_rows(one.name, one.table, logits, one.held)
            tables.append(logits_table(one.name, one.table, logits, config.heuristics, one.held))
            report({"examples_per_s": num_done / evaluate_s, "fraction_done": (step + 1) / len(sets)}, step + 1)
    with working_folder(output) as folder:
        pq.write_table(pa.concat_tables(tables), folder / "logits.parquet", compression="zstd")
        (folder / "metrics.json").write_text(json.dumps({"rows": rows}, indent=1))
    return {
        **flat_metrics(rows),
        "num_examples": num_done,
        "examples_per_s": num_done / evaluate_s,
        "load_s": load_s,
        "evaluate_s": evaluate_s,
        "peak_gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if use_gpu else None,
    }


class Bodies:
    """The decoders that task models stand on, each read once as long as the same one is asked for."""

    def __init__(self, config: EvaluationConfig, base_model: str, device: torch.device, *, compiled: bool = False) -> None:
        self.config, self.base_model, self.device, self.compiled = config, base_model, device, compiled
        self._kept: Any = None
        self._body: Any = None
        self._adapters: Any = None

    @contextlib.contextmanager
    def classifier(self, task_model: str) -> Iterator[Any]:
        """The task model of an artifact, in evaluation mode on the device, with packed attention."""
        import torch

        from pipelines.models import Classifier, load_head

        folder = Path(fetch(task_model))
        dtype = getattr(torch, self.config.dtype)
        adapter = folder / "adapter"
        body = self._read(
            weights_of(folder, self.base_model),
            adapter if adapter.exists() else None,
        )
        yield Classifier(body, load_head(folder, dtype=dtype, device=self.device), self._adapters).eval()

    def _read(self, weights: Path, adapter: Path | None) -> Any:
        import torch
        from transformers import AutoModel

        from pipelines.adapter_files import load_adapter
        from pipelines.adapters import add_adapters
        from pipelines.attention import PACKED, register_packed_attention
        from pipelines.models import compute_last_layer_where_read
        from pipelines.weights import load_weights, merge_saved_adapter

        settings = json.loads((adapter / "adapter_config.json").read_text()) if adapter else {}
        shape = {name: settings.get(name) for name in ("r", "lora_alpha", "target_modules")}
        # What is merged cannot be taken out again to the last bit.
        if self._kept != (weights, shape) or self.config.merge_adapter:
            self._kept = self._body = self._adapters = None
            register_packed_attention()
            dtype = getattr(torch, self.config.dtype)
            self._body = load_weights(AutoModel, weights, dtype=dtype, attn_implementation=PACKED).to(self.device)
            if adapter and not self.config.merge_adapter:
                self._adapters = add_adapters(
                    self._body,
                    settings["target_modules"],
                    rank=settings["r"],
                    alpha=settings["lora_alpha"],
                    dropout=0.0,
                    seeds=[None],
                )
            compute_last_layer_where_read(self._body)
            if self.compiled:
                compile_layers(self._body)
            self._kept = (weights, shape)
        if adapter and self.config.merge_adapter:
            merge_saved_adapter(self._body, adapter)
        elif adapter:
            load_adapter(self._adapters, 0, adapter)
        return self._body


def classify(classifier: Any, batches: Sequence[tuple[np.ndarray, PackedBatch]], device: torch.device) -> np.ndarray:
    """Class logits float32 [n, 3] of the n sequences of `prefix_tree_batches`, in the order in which it was given them."""
    import torch

    from pipelines.attention import PackedInput
    from pipelines.segments import Segments

    found = []
    with torch.inference_mode():
        for _, batch in batches:
            adapters = classifier.adapters
            with adapters.over(Segments.of_one(batch, device)) if adapters else contextlib.nullcontext():
                found.append(classifier.logits(PackedInput.from_batch(batch, device)))
    order = np.concatenate([rows for rows, _ in batches])
    logits = np.empty((len(order), len(LABELS)), dtype=np.float32)
    # Read once, at the end: a copy to the host waits for the device, and batches would no longer be prepared ahead of it.
    logits[order] = torch.cat(found).cpu().numpy()
    return logits


def logits_table(
    name: str,
    table: pa.Table,
    logits: np.ndarray,
    heuristics: Sequence[Heuristic] = (),
    held: Sequence[tuple[Heuristic, np.ndarray]] = (),
) -> pa.Table:
    """The rows of `logits.parquet` (`evaluate`) of a test set named `name`; `held` is `where_held` of `heuristics`."""
    num = table.num_rows
    holds = {heuristic.name: where for heuristic, where in held}
    columns: Mapping[str, Any] = {
        "set": pa.array([name] * num).dictionary_encode().cast(pa.string()),
        "id": table.column("id"),
        "label": table.column("label"),
        **{f"logit_{label}": pa.array(logits[:, label.index]) for label in Label},
        **{
            column: table.column(column).cast(pa.string()) if column in table.column_names else pa.nulls(num, pa.string())
            for column in ("heuristic", "subcase")
        },
        # A predicate need not be there any more when the results are read.
        **{
            f"holds/{heuristic.name}": pa.array(holds.get(heuristic.name, [None] * num), pa.bool_()) for heuristic in heuristics
        },
    }
    return pa.table(dict(columns))
