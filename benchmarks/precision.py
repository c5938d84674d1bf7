"""What a base's precision changes in task models finetuned on it, beside what seeds change:

    python -m benchmarks.precision --model models/SmolLM2-135M.gguf --sources data --repeats 10 --output result.json

From one checkpoint bases are made in several precisions, and on each of them the same task models are finetuned by
`paper_fast`'s recipe, one a seed, all at once: a seed draws its examples, their order, the head, the adapter and the dropout.
Everything is paired by seed with bfloat16.

  logits        mean absolute difference from bfloat16's, over all labels: of the untrained base with a seed's head, on some of
                the items, and of the finetuned task models, on all
  loss          absolute difference of the training loss, over the last LAST_WINDOWS logged windows
  accuracy      on the general set
  AUC           of the blindspot: P(an item that the heuristic gets right scores above one that it gets wrong)

FP8 is to differ from bfloat16 by less than the paper's own NF4 does: their ratio (geometric mean over seeds) has an interval.
And it is to be equivalent to bfloat16 in accuracy and AUC, within the margins: two one-sided tests over seeds and items, as a
study's verdicts have them, and else the seeds that would settle it. `bfloat16_again` is bfloat16 in passes of half as many
tokens, whose sums round otherwise: what a difference of the last bits grows to in a finetuning.

--sources is a sources artifact or the folder of the raw data. Precisions may be computed by several processes, on several
GPUs, each with a folder --work of its own; --join FOLDER ... then puts them together:

    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.precision ... --precisions bfloat16 fp8 --work a &
    CUDA_VISIBLE_DEVICES=1 python -m benchmarks.precision ... --precisions nf4_double --work b; wait
    python -m benchmarks.precision --join a b --output result.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.stats.hypotheses import equivalence
from analysis.stats.intervals import Replicates
from analysis.stats.statistics import Estimate, mean_estimate
from analysis.study.item_sets import ItemSet
from analysis.study.items import Cell, Responses
from analysis.verdicts.power import ALPHA, Variance, settling
from benchmarks.common import CutOff, Figure, Pace, finish, make_parser, parse, phase, sources_at
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate_group
from pipelines.evaluate.scoring import scores
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config
from pipelines.finetune.checkpoints import read_metrics
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model
from pipelines.models.architectures import saved_architecture
from pipelines.resources import Report, Resources, no_report
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.nli import NLI
from sweep.study.claims import Measure
from sweep.study.paper import PAPER_TASK_MODEL

REFERENCE, AGAIN = "bfloat16", "bfloat16_again"
QUANTIZATIONS = {REFERENCE: "none", AGAIN: "none", "nf4": "nf4", "nf4_double": "nf4_double", "fp8": "fp8"}
LAST_WINDOWS = 5
DONE, UNQUANTIZED = "done.json", "unquantised"
LOGITS = [f"logit_{label}" for label in NLI.labels]
SLICE = "lexical_overlap/non-entailment"


@dataclass(frozen=True)
class Finetuned:
    """What one precision's task models came to, by seed; their logits are beside it, in `evaluated` and `untrained`."""

    precision: str
    general: str
    blindspot: str
    losses: dict[int, float]
    """The training loss over the last windows."""
    slices: dict[int, dict[str, float]]
    """Accuracies on the blindspot set by slice."""
    seconds: dict[str, float]
    examples_per_s: dict[str, float]
    settings: dict[str, Any]
    """Of the run."""


SETTINGS = ("num", "repeats", "learning_rate", "rank", "tokens", "num_evaluation", "num_untrained", "device")


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--model", help="a folder of transformers or a .gguf file")
    parser.add_argument("--sources", type=Path, help="a sources artifact, or the folder of MultiNLI and HANS")
    parser.add_argument("--precisions", nargs="+", choices=QUANTIZATIONS, default=[REFERENCE, "nf4_double", "fp8"])
    parser.add_argument("--num", type=int, default=10_000, help="training examples of each seed")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=PAPER_TASK_MODEL.lora_rank)
    parser.add_argument("--tokens", type=int, default=16_384, help="of one pass, over all seeds")
    parser.add_argument("--general", default="mnli_matched")
    parser.add_argument("--blindspot", default="hans")
    parser.add_argument("--num-evaluation", type=int, default=30_000, help="items of each set, evenly from it, at most")
    parser.add_argument("--num-untrained", type=int, default=1_500, help="of these, for the untrained base")
    parser.add_argument("--accuracy-margin", type=float, default=0.01)
    parser.add_argument("--auc-margin", type=float, default=0.02)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--work", type=Path, help="folder for what is made; default: one that is removed at the end")
    parser.add_argument("--join", type=Path, nargs="+", help="folders --work of other runs, to report on together")
    arguments = parse(parser)
    if arguments.join is None and (arguments.model is None or arguments.sources is None):
        parser.error("give --model and --sources, or --join")
    with tempfile.TemporaryDirectory() as scratch:
        folders = arguments.join or [(arguments.work or Path(scratch)).absolute()]
        if arguments.join is None:
            try:
                compute(arguments, folders[0])
            except CutOff as cut:
                # What is whole is reported on.
                print(cut, flush=True)
        found = [path.parent for folder in folders for path in sorted(folder.glob(f"*/{DONE}"))]
        results = {path.name: path for path in found}
        if REFERENCE not in results:
            print(f"without {REFERENCE} there is nothing to compare with: join it with --join")
            return
        figures, details = report(results, arguments.accuracy_margin, arguments.auc_margin)
    arguments.join = None if arguments.join is None else [folder.name for folder in arguments.join]
    arguments.model = None if arguments.model is None else Path(arguments.model)
    print_summary(details)
    finish(parser, arguments, figures, details=details)


# --- finetuning and evaluating ---


def compute(arguments: argparse.Namespace, work: Path) -> None:
    """Finetune and evaluate all precisions, one after another, in folders of `work` by their names."""
    import ray

    # For its metrics and settings; no worker of its is started.
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    sources = prepared_sources(arguments, work)
    started = time.perf_counter()
    # A .gguf file is dequantised once, for all.
    prepare_base_model(pretrained_model_config(arguments.model), str(work / UNQUANTIZED))
    print(f"the unquantised base after {time.perf_counter() - started:.0f} s", flush=True)
    for seed in range(arguments.repeats):
        config = TrainingSetConfig("original", arguments.num, seed)
        draw_training_set(config, f"{sources}/train.parquet", str(work / f"set-{seed}"))
    for precision in arguments.precisions:
        phase(f"{precision}: finetuning {arguments.repeats} task models and evaluating them")
        done = of_precision(arguments, precision, work, sources)
        (work / precision / DONE).write_text(json.dumps(asdict(done)))
        print(
            f"{precision}: losses {rounded(done.losses)}, {rounded(done.examples_per_s)}, {rounded(done.seconds)}", flush=True
        )
    ray.shutdown()


def prepared_sources(arguments: argparse.Namespace, work: Path) -> Path:
    """A folder with the training examples and the items that are evaluated; in `few` those for the untrained base."""
    given, folder = sources_at(arguments.sources, work), work / "sources"
    write_examples(read_examples(given / "train.parquet"), folder / "train.parquet")
    for name in (arguments.general, arguments.blindspot):
        table = read_examples(given / f"{name}.parquet")
        for place, num in ((folder, arguments.num_evaluation), (folder / "few", arguments.num_untrained)):
            evenly = np.linspace(0, table.num_rows - 1, min(num, table.num_rows)).astype(int)
            write_examples(table.take(pa.array(evenly)), place / f"{name}.parquet")
    return folder


def of_precision(arguments: argparse.Namespace, precision: str, work: Path, sources: Path) -> Finetuned:
    """Finetune a task model a seed on a base of `precision`, at once, and evaluate them."""
    folder, seeds = work / precision, range(arguments.repeats)
    base, on_gpu = str(work / UNQUANTIZED), arguments.device == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    here = Resources(gpus_per_worker=1 if on_gpu else 0, in_process=True)
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = time.perf_counter() - started, time.perf_counter()
        print(f"{precision}, {name}: {seconds[name]:.0f} s", flush=True)

    if QUANTIZATIONS[precision] != "none":
        config = pretrained_model_config(f"{base}/model", quantization=QUANTIZATIONS[precision])
        base = str(folder / "base")
        prepare_base_model(config, base)
    lap("base")
    starts, outputs = ([str(folder / f"{name}-{seed}") for seed in seeds] for name in ("start", "task-model"))
    for seed, start in zip(seeds, starts, strict=True):
        initial_task_model(UntrainedConfig(seed), base, start)
    # `paper_fast`'s, but for the rate.
    recipe = replace(
        PAPER_TASK_MODEL,
        batch_size=32,
        learning_rate=arguments.learning_rate,
        share_prefix=True,
        lora_rank=arguments.rank,
        lora_targets=saved_architecture(base).projections,
        dtype=dtype,
        tokens_per_microbatch=arguments.tokens // (2 if precision == AGAIN else 1),
        compile_from_steps=0,
        checkpoint_every=0,
        log_every=10,
    )
    jobs = [
        finetuning_job(TaskModelConfig(recipe, seed), str(work / f"set-{seed}" / "examples.parquet"), base, start)
        for seed, start in zip(seeds, starts, strict=True)
    ]
    reports: list[Report] = [progress(precision), *[no_report] * (len(jobs) - 1)]
    finetunings = finetune_group(jobs, outputs, resources=here, reports=reports)
    trained = [checked(result) for result in finetunings]
    lap("training")
    evaluation = EvaluationConfig((arguments.general, arguments.blindspot), dtype=dtype, compile_from_examples=0)
    evaluated: list[dict[str, Any]] = []
    for name, place, models in (("untrained", sources / "few", starts), ("evaluated", sources, outputs)):
        results = evaluate_group(
            evaluation,
            str(place),
            base,
            models,
            [str(folder / name / str(seed)) for seed in seeds],
            resources=here,
            reports=[no_report] * len(models),
        )
        evaluated = [checked(result) for result in results]
        lap(name)
    losses = {seed: final_loss(Path(output), recipe) for seed, output in zip(seeds, outputs, strict=True)}
    return Finetuned(
        precision,
        arguments.general,
        arguments.blindspot,
        losses,
        {seed: slices(folder / "evaluated" / str(seed), arguments.blindspot) for seed in seeds},
        seconds,
        {
            "training": sum(metrics["examples_per_s"] for metrics in trained),
            "evaluation": statistics.median(metrics["examples_per_s"] for metrics in evaluated),
        },
        {"model": Path(arguments.model).name, **{name: getattr(arguments, name) for name in SETTINGS}},
    )


def progress(precision: str) -> Report:
    """A report of the first task model's steps that says now and then how far they all are."""
    pace = Pace()

    def report(metrics: Mapping[str, float], step: int) -> None:
        rate = metrics["examples_per_s"]
        pace.say(f"{precision}: finetuning, step {step:,}, {rate:,.0f} examples/s each", metrics["fraction_done"])

    return report


def checked(result: dict[str, Any] | Exception) -> dict[str, Any]:
    if isinstance(result, Exception):
        raise result
    return result


def final_loss(task_model: Path, config: FinetuneConfig) -> float:
    """The mean training loss over the last logged windows that are whole, or over the only one."""
    log = list(read_metrics(task_model / "metrics.jsonl"))
    whole = [entry for entry in log if entry["step"] % config.log_every == 0] or log
    return statistics.fmean(entry["loss"] for entry in whole[-LAST_WINDOWS:])


def slices(evaluated: Path, name: str) -> dict[str, float]:
    """Accuracy by slice of a set, folded after the argmax."""
    rows = json.loads((evaluated / "metrics.json").read_text())["rows"]
    return {row["slice"]: round(row["accuracy"], 4) for row in rows if row["set"] == name and row["folding"] == "argmax"}


# --- statistics ---


def report(folders: Mapping[str, Path], accuracy_margin: float, auc_margin: float) -> tuple[list[Figure], dict[str, Any]]:
    """Figures and statistics of the precisions in `folders`, of which bfloat16 is one, over the seeds that all have."""
    done = {name: finetuned(folder) for name, folder in folders.items()}
    seeds = sorted(set.intersection(*(set(one.losses) for one in done.values())))
    responses, logits = read_responses(folders, done, seeds, "evaluated")
    _, of_untrained = read_responses(folders, done, seeds, "untrained")
    general, blindspot = done[REFERENCE].general, done[REFERENCE].blindspot
    others = [name for name in QUANTIZATIONS if name in done and name != REFERENCE]
    differences = {
        "logits, untrained": by_seed(of_untrained, others, seeds),
        "logits, finetuned": by_seed(logits, others, seeds),
        "loss": {name: [abs(done[name].losses[seed] - done[REFERENCE].losses[seed]) for seed in seeds] for name in others},
    }
    measures = {
        "accuracy": (accuracy_margin, general, "all", Measure.ACCURACY),
        "AUC": (auc_margin, blindspot, SLICE, Measure.AUC),
    }
    figures = [
        Figure(name, "from bfloat16", values, peer=nf4_of(values), lower_is_better=True)
        for name, values in differences.items()
        if values
    ]
    details: dict[str, Any] = {
        "seeds": seeds,
        "items": {name: len(items.ids) for name, items in responses.items.items()},
        "differences": {
            name: {other: estimate(mean_estimate(values)) for other, values in of.items()} for name, of in differences.items()
        },
        "ratios": ratios(differences),
        "equivalence": {},
        "blindspot_slices_by_seed": {str(seed): done[REFERENCE].slices[seed] for seed in seeds},
        "runs": {
            name: {"seconds": one.seconds, "examples_per_s": one.examples_per_s, "settings": one.settings}
            for name, one in done.items()
        },
    }
    for name, (margin, test_set, slice_name, measure) in measures.items():
        of = {
            precision: responses.measured(measure, test_set, slice_name, [(0, precision, 1)])
            for precision in (REFERENCE, *others)
        }
        figures.append(Figure(name, "share", {precision: one.values.tolist() for precision, one in of.items()}))
        details["equivalence"][name] = {
            "margin": margin,
            **{precision: equivalent(of[precision].minus(of[REFERENCE]), name, margin) for precision in others},
        }
    return figures, details


def finetuned(folder: Path) -> Finetuned:
    """What `compute` has left in a precision's folder."""
    kept = json.loads((folder / DONE).read_text())
    for name in ("losses", "slices"):
        kept[name] = {int(seed): value for seed, value in kept[name].items()}
    return Finetuned(**kept)


def read_responses(
    folders: Mapping[str, Path], done: Mapping[str, Finetuned], seeds: Sequence[int], which: str
) -> tuple[Responses, dict[str, list[np.ndarray]]]:
    """The responses of all task models, whose kind is their precision, and each precision's logits by seed [items, labels]."""
    sets = (done[REFERENCE].general, done[REFERENCE].blindspot)
    examples = folders[REFERENCE].parent / "sources" / ("few" if which == "untrained" else ".")
    items = {name: item_set(name, read_examples(examples / f"{name}.parquet")) for name in sets}
    predicted: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in sets}
    scored: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in sets}
    logits: dict[str, list[np.ndarray]] = {}
    for precision, folder in folders.items():
        logits[precision] = []
        for seed in seeds:
            table = pq.read_table(folder / which / str(seed) / "logits.parquet")
            for name in sets:
                rows = table.filter(pc.equal(table["set"], name))
                if rows["id"].to_pylist() != items[name].ids.tolist():
                    raise UserError(f"{folder} has other items of {name} than {REFERENCE}: compute both with the same --num-…")
                of_set = np.stack([rows[column].to_numpy() for column in LOGITS], axis=1)
                predicted[name][0, precision, 1, seed] = of_set.argmax(axis=1)
                scored[name][0, precision, 1, seed] = scores(of_set, NLI.index(NLI.folded_onto or ""))
            logits[precision].append(np.stack([table[column].to_numpy() for column in LOGITS], axis=1))
    return Responses(items, predicted, scores=scored), logits


def item_set(name: str, examples: pa.Table) -> ItemSet:
    """The items of a set, clustered by template within each heuristic and label, or by premise."""
    columns = {
        column: np.array(examples[column].to_pylist() if column in examples.column_names else [""] * examples.num_rows)
        for column in ("id", "label", "premise", "heuristic", "subcase", "template")
    }

    def codes(*names: str) -> np.ndarray:
        return pd.MultiIndex.from_arrays([columns[one] for one in names]).factorize()[0]

    is_probe = bool(columns["heuristic"][0])
    clusters = codes("heuristic", "label", "subcase", "template") if is_probe else codes("premise")
    strata = codes("heuristic", "label") if is_probe else np.zeros(len(clusters), dtype=np.int64)
    return ItemSet(
        name, columns["id"], columns["label"], columns["heuristic"], columns["subcase"], clusters, strata,
        "template" if is_probe else "premise",
    )  # fmt: skip


def by_seed(logits: Mapping[str, Sequence[np.ndarray]], others: Sequence[str], seeds: Sequence[int]) -> dict[str, list[float]]:
    """Each precision's mean absolute difference of logits from bfloat16's, a value a seed."""
    return {
        name: [float(np.abs(logits[name][place] - logits[REFERENCE][place]).mean()) for place in range(len(seeds))]
        for name in others
    }


def nf4_of(values: Mapping[str, Any]) -> str | None:
    return next((name for name in ("nf4_double", "nf4") if name in values), None)


def ratios(differences: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Each precision's differences over NF4's, paired by seed: geometric mean with its interval, t over seeds of the logarithm.

    None where a difference is 0, which has no logarithm.
    """
    found: dict[str, Any] = {}
    for name, of in differences.items():
        peer = nf4_of(of)
        for other in of if peer else ():
            if other == peer:
                continue
            pairs = list(zip(of[other], of[peer or ""], strict=True))
            found.setdefault(name, {})[f"{other}/{peer}"] = (
                estimate(mean_estimate([math.log(one / two) for one, two in pairs]), math.exp)
                if all(min(pair) > 0 for pair in pairs)
                else None
            )
    return found


def estimate(found: Estimate, scale: Any = float) -> dict[str, Any]:
    interval = found.interval and [scale(found.interval.low), scale(found.interval.high)]
    return {"mean": scale(found.mean), "n": found.n, "interval": interval, "method": found.method}


def equivalent(difference: Replicates, name: str, margin: float) -> dict[str, Any]:
    """A difference's mean and interval, the p value of its equivalence, and the seeds that would settle it where it is not."""
    effect = difference.effect()
    interval, p = effect.interval(), equivalence(effect, margin)
    settles = None
    if effect.has_interval and effect.num_seeds > 1 and not p <= ALPHA:
        found = settling([Variance.of(name, effect)], margin, ALPHA, is_equivalence=True)
        settles = list(found.seeds) if found.seeds else found.why_not
    return {
        "mean": effect.mean,
        "interval": interval and [interval.low, interval.high],
        "seed_sd": math.sqrt(effect.seed_variance) if effect.num_seeds > 1 else None,
        "item_standard_error": math.sqrt(effect.item_variance),
        "p": None if math.isnan(p) else p,
        "is_equivalent": bool(p <= ALPHA),
        "seeds_that_settle": settles,
        "by_seed": difference.values.tolist(),
    }


def rounded(values: Mapping[Any, float]) -> dict[Any, float]:
    return {name: round(value, 4) for name, value in values.items()}


def print_summary(details: Mapping[str, Any]) -> None:
    """What was found, for people."""
    for name, of in details["differences"].items():
        print(f"{name}: " + ", ".join(f"{other} {one['mean']:.4g} {shown(one['interval'])}" for other, one in of.items()))
        for which, one in details["ratios"].get(name, {}).items():
            print(f"  {which} " + ("has a difference of 0" if one is None else f"{one['mean']:.3f} {shown(one['interval'])}"))
    for name, of in details["equivalence"].items():
        for other, one in of.items():
            if other == "margin":
                continue
            says = "equivalent" if one["is_equivalent"] else f"not settled; seeds that settle it: {one['seeds_that_settle']}"
            print(f"{name}, {other} − {REFERENCE}: {one['mean']:+.4f} {shown(one['interval'])}, ±{of['margin']}: {says}")


def shown(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"


if __name__ == "__main__":
    main()
