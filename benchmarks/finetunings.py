"""Many small finetunings as a study runs them, beside what one would write with the libraries: a Ray Tune trial a GPU.

    python -m benchmarks.finetunings --num 8 --note "two cores, shared with other work"
    python -m benchmarks.finetunings --model SMOLLM2.gguf --data DATA --device cuda --num 8 --num-peer 1 --peer-part 0.1

  ours  a study of one kind of training set: `demo`'s corpus and a tiny Llama, or with --model `mini` on MultiNLI and HANS. A
        task model for each of NUM seeds, finetuned on SIZE examples and evaluated, in lanes; graph, store, Tune and MLflow are
        real
  tune  NUM_PEER trials, one a GPU or CPU, each a process of its own that loads the base with transformers, finetunes it (LoRA
        with peft, transformers' Trainer), evaluates it in padded batches sorted by length, and logs to MLflow
  tune_without_masters  as `tune`, with an optimizer that steps bfloat16 weights: less work, and another recipe than ours

All finetune the same base on the same rows in the same order, from the same head, with one recipe, and are evaluated on the
same items: a seed's models differ in the adapter's first draw and in dropout. The details have each one's mean loss and its
accuracies, for the first NUM_PEER seeds, to compare.

Data, base model, training sets and heads are prepared before, for both. Each starts a Ray of its own; all of ours is counted,
Ray's start included, and of the peer what comes after that start. Seconds are of the wall, divided by the task models. The
CPU's are of all processes with Ray's start, each one's last half second aside, and say more where a machine is shared.

With --peer-part the peer evaluates every so-manieth of the items, and what that took is reckoned for all of them; accuracies
are of these items, ours as well.
"""

import argparse
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import (
    Figure,
    alternately,
    answer,
    finish,
    in_own_process,
    make_parser,
    parse,
    phase,
    values_of,
    visible_gpus,
)
from benchmarks.peer import ordered_rows, peer_classifier, peer_precision, peer_trainer
from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.checkpoints import METRICS_FILE, read_metrics
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.imports import without_modules
from pipelines.resources import Resources
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import classifier_prompts
from sweep.graph.records import Store
from sweep.plan.plan import Plan, make_plan
from sweep.run.session import RayOptions
from sweep.run.study_run import run_study
from sweep.run.tracking import default_tracking_uri
from sweep.study.experiments import MAX_GROUP
from sweep.study.grid import build_grid
from sweep.study.inputs import with_inputs
from sweep.study.loading import Loaded, load_experiment

WITHOUT_MASTERS = "tune_without_masters"
VARIANTS = ("ours", "tune", WITHOUT_MASTERS)
PREPARED = ("sources", "base_model", "training_set", "starting_point")
LOOK_EVERY_S = 1.0
EVALUATION_BATCH = 128


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--num", type=int, default=8, help="task models of ours")
    parser.add_argument("--num-peer", type=int, default=2, help="task models of the peer")
    parser.add_argument("--size", type=int, default=900, help="examples that each is finetuned on")
    parser.add_argument("--concurrent", type=int, default=2, help="CPUs, where no GPU is used")
    parser.add_argument("--peer-part", type=float, default=1.0, help="of the items that the peer evaluates")
    parser.add_argument("--model", type=Path, help="a checkpoint's folder or a .gguf file; default: a tiny Llama")
    parser.add_argument("--data", type=Path, help="folder of MultiNLI and HANS, with --model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--parameters", nargs="*", default=[], metavar="NAME=VALUE", help="further ones of the study")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", "tune"])
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if not 0 < arguments.peer_part <= 1:
        parser.error(f"--peer-part {arguments.peer_part}: give a part of the items, above 0 and at most 1")
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data: a model of one's own is finetuned on MultiNLI and HANS; give both or neither")
    if arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            run = run_ours if arguments.only == "ours" else run_tune
            result, cpu_s = with_cpu_seconds(partial(run, arguments, Path(folder)))
            answer({**result, "task_model_cpu_s": cpu_s / result["num"]})
        return
    if arguments.prepared:
        prepare(arguments)
        return

    names = ("num", "num_peer", "size", "concurrent", "peer_part", "device")
    flags = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    flags += [f"--{name}={getattr(arguments, name).absolute()}" for name in ("model", "data") if getattr(arguments, name)]
    flags += ["--parameters", *arguments.parameters]
    with tempfile.TemporaryDirectory() as folder:
        own = [*flags, f"--prepared={folder}"]
        phase("data and base model, for both")
        if in_own_process("benchmarks.finetunings", own) is None:
            raise UserError("data and base model could not be prepared, see above")
        variants = {
            name: partial(in_own_process, "benchmarks.finetunings", [*own, "--only", name]) for name in arguments.variants
        }
        results = alternately(variants, arguments.repeats)
    measured = {"task model": "task_model_s"}
    if arguments.peer_part == 1:
        measured["task model, CPU"] = "task_model_cpu_s"
    figures = [
        Figure(name, "s", values_of(results, value), peer="tune", lower_is_better=True) for name, value in measured.items()
    ]
    # Where they lie is no part of the command.
    arguments.prepared = None
    finish(parser, arguments, figures, details={"runs": results})


def with_cpu_seconds(run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """What `run` gives, and the CPU seconds that this process and all that it has started have spent on it."""
    import psutil

    here, ended = psutil.Process(), threading.Event()
    spent: dict[int, float] = {}

    def look() -> None:
        while not ended.wait(LOOK_EVERY_S / 2):
            for process in here.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    spent[process.pid] = sum(process.cpu_times()[:2])

    before = sum(here.cpu_times()[:2])
    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    result = run()
    ended.set()
    watch.join()
    return result, sum(spent.values()) + sum(here.cpu_times()[:2]) - before


def study(arguments: argparse.Namespace) -> Loaded:
    """The study whose task models are finetuned: no kind but the original, and heads for starting points."""
    own = [
        "kinds=original",
        "starting_sizes=0",
        f"training_sizes={arguments.size}",
        f"seeds={','.join(map(str, range(arguments.num)))}",
    ]
    if arguments.model:
        own += [f"model={arguments.model}", f"data={arguments.data}", f"device={arguments.device}", "recipe=paper"]
        return load_experiment("mini", [*own, *arguments.parameters])
    loaded = load_experiment("demo", [*own, *arguments.parameters])
    lora = replace(loaded.experiment.task_model, method="lora", batch_size=2, epochs=1, share_prefix=False)
    assert isinstance(loaded.experiment.base_model, ScratchModelConfig)
    experiment = replace(
        loaded.experiment,
        base_model=replace(loaded.experiment.base_model, pretraining=None),
        task_model=lora,
        cell=None,
        resources=dict.fromkeys(("starting_point", "task_model", "evaluation"), Resources(max_group=MAX_GROUP)),
    )
    return replace(loaded, experiment=experiment)


def options(arguments: argparse.Namespace) -> RayOptions:
    return RayOptions(max_cpus=arguments.concurrent if arguments.device == "cpu" else None)


def planned(loaded: Loaded, store: Store) -> Plan:
    """The study's steps but for the evaluations of its heads, which the peer does not have."""
    steps = [step for step in build_grid(loaded.experiment) if step.stage != "evaluation" or step.coordinates["kind"] != "none"]
    return Plan(loaded.experiment, make_plan(steps, store, reasons=False), None)


def prepare(arguments: argparse.Namespace) -> None:
    """Build what the study's task models are made from."""
    store, loaded = Store(arguments.prepared / "store"), study(arguments)
    loaded = replace(loaded, experiment=with_inputs(loaded.experiment))
    plan = planned(loaded, store)
    plan = replace(plan, steps=[member for member in plan.steps if member.step.stage in PREPARED])
    result = run_study(loaded, store, default_tracking_uri(store), options(arguments), plan)
    assert result.num_built == len(plan.steps), result
    answer({"num_built": result.num_built})


def run_ours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    loaded = study(arguments)
    loaded = replace(loaded, experiment=with_inputs(loaded.experiment))
    store = Store(folder / "store")
    for stage in PREPARED:
        shutil.copytree(arguments.prepared / "store" / stage, folder / "store" / stage)
    plan = planned(loaded, store)
    wanted = [member.step for member in plan.steps if member.step.stage == "evaluation"]
    assert len(wanted) == arguments.num, f"{len(wanted)} task models are evaluated, and not {arguments.num}"
    assert sum(member.is_cached for member in plan.steps) == len(plan.steps) - 2 * arguments.num, plan.steps
    started = time.perf_counter()

    def look() -> None:
        """Keep what is there so far, should the rest be cut off."""
        num_built = 0
        while not ended.wait(LOOK_EVERY_S):
            if (num := sum(store.read_record(step.id) is not None for step in wanted)) > num_built:
                num_built = num
                seconds = time.perf_counter() - started
                answer({"num": num, "total_s": seconds, "task_model_s": seconds / num})

    ended = threading.Event()
    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    phase(f"ours: {arguments.num} task models")
    result = run_study(loaded, store, default_tracking_uri(store), options(arguments), plan)
    total_s = time.perf_counter() - started
    ended.set()
    watch.join()
    assert not result.failures and not result.tracking_errors, (result.failures, result.tracking_errors)
    metrics = []
    for step in wanted[: arguments.num_peer]:
        evaluation, task_model = (Path(store.folder(one.id)) for one in (step, step.inputs["task_model"]))
        # Of the peer's items, of which it may have every so-manieth.
        accuracies = accuracies_of(evaluation / "logits.parquet", every=round(1 / arguments.peer_part))
        metrics.append({"train_loss": mean_loss(task_model / METRICS_FILE), **accuracies})
    return {"num": arguments.num, "total_s": total_s, "task_model_s": total_s / arguments.num, **by_seed(metrics)}


def mean_loss(metrics: Path) -> float:
    """The mean of a finetuning's steps' losses, which are logged as means of so many steps each."""
    logged = list(read_metrics(metrics))
    steps = [entry["step"] for entry in logged]
    return sum(entry["loss"] * (end - start) for entry, start, end in zip(logged, [0, *steps], steps, strict=False)) / steps[-1]


def accuracies_of(logits: Path, *, every: int) -> dict[str, float]:
    """A task model's accuracy on each set, from what its evaluation has written of every so-manieth item."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(logits)
    scores = table.select([f"logit_{label}" for label in LABELS]).to_pandas().to_numpy()
    accuracies = {}
    for name in pc.unique(table["set"]).to_pylist():
        places = [place for place, of in enumerate(table["set"].to_pylist()) if of == name][::every]
        num_right = num_right_of(scores[places].argmax(-1).tolist(), table["label"].take(places).to_pylist())
        accuracies[f"{name}/accuracy"] = num_right / len(places)
    return accuracies


def num_right_of(predicted: Sequence[int], labels: Sequence[str]) -> int:
    """How many labels are those of the predicted places; HANS and its like have two."""
    names = [str(LABELS[place]) for place in predicted]
    return sum(
        name == label or (label == "non-entailment" and name != "entailment") for name, label in zip(names, labels, strict=True)
    )


def by_seed(metrics: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Loss and accuracies of each seed's model, in their order: a check that both have done the same."""
    return {name: [each[name] for each in metrics] for name in metrics[0] if name == "train_loss" or name.endswith("/accuracy")}


def run_tune(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A trial a task model, as Ray's documentation has it; only Tune's table of trials is left out."""
    import mlflow
    import ray
    from ray import tune

    on_gpu = arguments.device == "cuda"
    concurrent = len(visible_gpus()) if on_gpu else arguments.concurrent
    loaded = study(arguments)
    loaded = replace(loaded, experiment=with_inputs(loaded.experiment))
    store = Store(arguments.prepared / "store")
    steps = [member.step for member in planned(loaded, store).steps]
    tracking_uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("finetunings")
    setting = {
        "recipe": loaded.experiment.cell or loaded.experiment.task_model,
        "sets": loaded.experiment.evaluation.sets,
        "every": round(1 / arguments.peer_part),
        "device": arguments.device,
        "tracking_uri": tracking_uri,
        "folder": str(folder),
        "masters": arguments.only != WITHOUT_MASTERS,
        "inputs": {
            step.coordinates["seed"]: {name: store.folder(source.id) for name, source in step.inputs.items()}
            for step in steps
            if step.stage == "task_model"
        },
        "sources": next(store.folder(step.inputs["sources"].id) for step in steps if step.stage == "evaluation"),
    }
    ray.init(
        # "local", or a cluster that is up here would be joined.
        "local",
        include_dashboard=False,
        logging_level="ERROR",
        **({} if on_gpu else {"num_cpus": concurrent}),
    )
    phase(f"{arguments.only}: {arguments.num_peer} task models, {concurrent} at a time")
    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(partial(finetune_alone, setting), {"GPU": 1} if on_gpu else {"CPU": 1}),
        param_space={"seed": tune.grid_search(list(range(arguments.num_peer)))},
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    total_s = time.perf_counter() - started
    ray.shutdown()
    assert not results.errors, results.errors
    metrics = sorted((dict(result.metrics or {}) for result in results), key=lambda each: each["seed"])
    # Of whole sets, as many at a time.
    work_s = sum(each["evaluate_s"] for each in metrics)
    whole_s = total_s + work_s * (setting["every"] - 1) / min(concurrent, arguments.num_peer)
    return {
        "num": arguments.num_peer,
        "total_s": total_s,
        "task_model_s": whole_s / arguments.num_peer,
        "train_s": mean(each["train_s"] for each in metrics),
        "evaluate_s": mean(each["evaluate_s"] for each in metrics),
        **by_seed(metrics),
    }


def finetune_alone(setting: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """One trial of the peer: its metrics."""
    # Trainer would import it because it is installed, and makes no use of it.
    with without_modules("deepspeed"):
        return _finetune_alone(setting, config)


def _finetune_alone(setting: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    import mlflow
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, set_seed

    from pipelines.models.classifier import HEAD_FILE

    recipe: FinetuneConfig = setting["recipe"]
    seed, device = config["seed"], torch.device(setting["device"])
    inputs = {name: Path(folder) for name, folder in setting["inputs"][seed].items()}
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(inputs["base_model"] / "model")
    model = peer_classifier(
        inputs["base_model"] / "model",
        tokenizer,
        recipe,
        getattr(torch, recipe.dtype),
        device,
        head=load_file(inputs["starting_point"] / HEAD_FILE)["weight"],
        masters=setting["masters"],
    )
    phase(f"peer, seed {seed}: training")
    rows = ordered_rows(tokenizer, pq.read_table(inputs["training_set"] / "examples.parquet"), recipe, seed=seed)
    began = time.perf_counter()
    trainer = peer_trainer(model, tokenizer, rows, recipe, f"{setting['folder']}/peer-{seed}", seed=seed)
    metrics = {"seed": seed, "train_loss": trainer.train().training_loss, "train_s": time.perf_counter() - began}
    trainer.save_model(f"{setting['folder']}/peer-{seed}/model")

    phase(f"peer, seed {seed}: evaluating")
    began = time.perf_counter()
    model.eval()
    for name in setting["sets"]:
        table = pq.read_table(Path(setting["sources"]) / f"{name}.parquet")
        table = table.take(list(range(0, table.num_rows, setting["every"])))
        # The longest first, so that little is padded.
        texts = sorted(
            zip(tokenizer(classifier_prompts(table))["input_ids"], table["label"].to_pylist(), strict=True),
            key=lambda text: -len(text[0]),
        )
        num_right = 0
        with torch.inference_mode(), peer_precision(model, device):
            for start in range(0, len(texts), EVALUATION_BATCH):
                ids, labels = zip(*texts[start : start + EVALUATION_BATCH], strict=True)
                batch = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(device)
                num_right += num_right_of(model(**batch).logits.argmax(-1).tolist(), labels)
        metrics[f"{name}/accuracy"] = num_right / len(texts)
    metrics["evaluate_s"] = time.perf_counter() - began
    mlflow.set_tracking_uri(setting["tracking_uri"])
    mlflow.set_experiment("finetunings")
    with mlflow.start_run(run_name=f"seed{seed}"):
        mlflow.log_params({"seed": seed, "size": len(rows), "method": recipe.method, "batch_size": recipe.batch_size})
        mlflow.log_metrics(metrics)
    return metrics


if __name__ == "__main__":
    main()
