"""Many small finetunings as a study runs them, beside what one would write with the libraries: a Ray Tune trial a GPU.

    python -m benchmarks.finetunings --num 8 --note "two cores, shared with other work"
    python -m benchmarks.finetunings --model SMOLLM2.gguf --data DATA --device cuda --num 8 --num-peer 1 --peer-part 0.1

  ours  a study of one kind of training set, from its heads on: `demo`'s corpus and a tiny Llama, or with --model `mini` on
        MultiNLI and HANS. A task model for each of NUM seeds, finetuned on SIZE examples and evaluated, in lanes; graph, store,
        Tune and MLflow are real. The heads' own evaluations are counted with them
  tune  NUM_PEER trials, one a GPU or CPU, each a process of its own that loads the base with transformers, finetunes it (LoRA
        with peft) on as many examples drawn by its seed with the same recipe, evaluates it on the same sets in padded batches
        sorted by length, and logs to MLflow

Data and base model are prepared before, for both. Each starts a Ray of its own; all of ours is counted, Ray's start included,
and of the peer what comes after that start. Seconds are of the wall, divided by the task models. With --peer-part the peer
trains on and evaluates that part of the examples, and what those took is reckoned for all of them; processes, loading and
logging are not.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
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
from benchmarks.peer import peer_classifier
from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.resources import Resources
from sweep.graph.records import Store
from sweep.plan.plan import Plan, make_plan
from sweep.run.session import RayOptions
from sweep.run.study_run import run_study
from sweep.run.tracking import default_tracking_uri
from sweep.study.experiments import MAX_GROUP
from sweep.study.grid import build_grid
from sweep.study.inputs import with_inputs
from sweep.study.loading import Loaded, load_experiment

VARIANTS = ("ours", "tune")
PREPARED = ("sources", "base_model")
LOOK_EVERY_S = 1.0
EVALUATION_BATCH = 128


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--num", type=int, default=8, help="task models of ours")
    parser.add_argument("--num-peer", type=int, default=2, help="task models of the peer")
    parser.add_argument("--size", type=int, default=900, help="examples that each is finetuned on")
    parser.add_argument("--concurrent", type=int, default=2, help="CPUs, where no GPU is used")
    parser.add_argument("--peer-part", type=float, default=1.0, help="of the examples that the peer trains on and evaluates")
    parser.add_argument("--model", type=Path, help="a checkpoint's folder or a .gguf file; default: a tiny Llama")
    parser.add_argument("--data", type=Path, help="folder of MultiNLI and HANS, with --model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--parameters", nargs="*", default=[], metavar="NAME=VALUE", help="further ones of the study")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if not 0 < arguments.peer_part <= 1:
        parser.error(f"--peer-part {arguments.peer_part}: give a part of the examples, above 0 and at most 1")
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data: a model of one's own is finetuned on MultiNLI and HANS; give both or neither")
    if arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            run = run_ours if arguments.only == "ours" else run_tune
            answer(run(arguments, Path(folder)))
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
    figure = Figure("task model", "s", values_of(results, "task_model_s"), peer="tune", lower_is_better=True)
    # Where they lie is no part of the command.
    arguments.prepared = None
    finish(parser, arguments, [figure], details={"runs": results})


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


def prepare(arguments: argparse.Namespace) -> None:
    """Build the data and the base model of the study."""
    store, loaded = Store(arguments.prepared / "store"), study(arguments)
    loaded = replace(loaded, experiment=with_inputs(loaded.experiment))
    steps = [step for step in build_grid(loaded.experiment) if step.stage in PREPARED]
    plan = Plan(loaded.experiment, make_plan(steps, store, reasons=False), None)
    result = run_study(loaded, store, default_tracking_uri(store), options(arguments), plan)
    assert result.num_built == len(steps), result
    answer({"num_built": result.num_built})


def run_ours(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    loaded = study(arguments)
    store = Store(folder / "store")
    for stage in PREPARED:
        shutil.copytree(arguments.prepared / "store" / stage, folder / "store" / stage)
    steps = build_grid(loaded.experiment)
    cells = {step.fingerprint for step in steps if step.stage == "task_model"}
    wanted = [
        step for step in steps if step.stage == "evaluation" and cells & {source.fingerprint for source in step.inputs.values()}
    ]
    assert len(wanted) == arguments.num, f"{len(wanted)} task models are evaluated, and not {arguments.num}"
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
    result = run_study(loaded, store, default_tracking_uri(store), options(arguments))
    total_s = time.perf_counter() - started
    ended.set()
    watch.join()
    assert not result.failures and not result.tracking_errors, (result.failures, result.tracking_errors)
    accuracies = accuracies_of([dict(record.metrics) for step in wanted if (record := store.read_record(step.id))])
    return {"num": arguments.num, "total_s": total_s, "task_model_s": total_s / arguments.num, **accuracies}


def accuracies_of(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The mean accuracy on each set: a check that both have done the same."""
    names = [name for name in metrics[0] if name.endswith("/accuracy") and name.count("/") == 1]
    return {name: mean(each[name] for each in metrics) for name in names}


def run_tune(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """A trial a task model, as Ray's documentation has it; only Tune's table of trials is left out."""
    import mlflow
    import ray
    from ray import tune

    on_gpu = arguments.device == "cuda"
    concurrent = len(visible_gpus()) if on_gpu else arguments.concurrent
    experiment = study(arguments).experiment
    tracking_uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("finetunings")
    (sources,), (base,) = (list((arguments.prepared / "store" / stage).glob("*/")) for stage in PREPARED)
    setting = {
        "recipe": experiment.cell or experiment.task_model,
        "sets": experiment.evaluation.sets,
        "size": arguments.size,
        "part": arguments.peer_part,
        "device": arguments.device,
        "tracking_uri": tracking_uri,
        "base": str(base / "model"),
        "sources": str(sources),
        "folder": str(folder),
    }
    ray.init(
        include_dashboard=False, log_to_driver=False, logging_level="ERROR", **({} if on_gpu else {"num_cpus": concurrent})
    )
    phase(f"tune: {arguments.num_peer} task models, {concurrent} at a time")
    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(partial(finetune_alone, setting), {"GPU": 1} if on_gpu else {"CPU": 1}),
        param_space={"seed": tune.grid_search(list(range(arguments.num_peer)))},
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    total_s = time.perf_counter() - started
    ray.shutdown()
    assert not results.errors, results.errors
    metrics = [dict(result.metrics or {}) for result in results]
    # Of whole sets, as many at a time.
    work_s = sum(each["train_s"] + each["evaluate_s"] for each in metrics)
    whole_s = total_s + work_s * (1 / arguments.peer_part - 1) / min(concurrent, arguments.num_peer)
    return {
        "num": arguments.num_peer,
        "total_s": total_s,
        "task_model_s": whole_s / arguments.num_peer,
        "train_s": mean(each["train_s"] for each in metrics),
        "evaluate_s": mean(each["evaluate_s"] for each in metrics),
        **accuracies_of(metrics),
    }


def finetune_alone(setting: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """One trial of the peer: its metrics."""
    import mlflow
    import pyarrow.parquet as pq
    import torch
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from pipelines.tasks.nli import LABELS
    from pipelines.tasks.prompts import classifier_prompts

    recipe: FinetuneConfig = setting["recipe"]
    seed, device = config["seed"], torch.device(setting["device"])
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(setting["base"])
    model = peer_classifier(setting["base"], tokenizer, recipe, getattr(torch, recipe.dtype), device)

    def rows_of(name: str) -> Any:
        return pq.read_table(Path(setting["sources"]) / f"{name}.parquet")

    train = rows_of("train")
    order = torch.randperm(train.num_rows).tolist()[: round(setting["size"] * setting["part"])]
    train = train.take(order)
    rows = [
        {"input_ids": ids, "labels": LABELS.index(label)}
        for ids, label in zip(tokenizer(classifier_prompts(train))["input_ids"], train["label"].to_pylist(), strict=True)
    ]
    settings = TrainingArguments(
        output_dir=f"{setting['folder']}/peer-{seed}",
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a part
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
    )
    began = time.perf_counter()
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    metrics = {"train_s": time.perf_counter() - began}
    trainer.save_model(f"{setting['folder']}/peer-{seed}/model")

    began = time.perf_counter()
    model.eval()
    for name in setting["sets"]:
        table = rows_of(name)
        table = table.take(list(range(0, table.num_rows, round(1 / setting["part"]))))
        # The longest first, so that little is padded.
        texts = sorted(
            zip(tokenizer(classifier_prompts(table))["input_ids"], table["label"].to_pylist(), strict=True),
            key=lambda text: -len(text[0]),
        )
        num_right = 0
        with torch.inference_mode():
            for start in range(0, len(texts), EVALUATION_BATCH):
                ids, labels = zip(*texts[start : start + EVALUATION_BATCH], strict=True)
                batch = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(device)
                for place, label in zip(model(**batch).logits.argmax(-1).tolist(), labels, strict=True):
                    predicted = str(LABELS[place])
                    # HANS and its like have two labels.
                    num_right += predicted == label or (label == "non-entailment" and predicted != "entailment")
        metrics[f"{name}/accuracy"] = num_right / len(texts)
    metrics["evaluate_s"] = time.perf_counter() - began
    mlflow.set_tracking_uri(setting["tracking_uri"])
    mlflow.set_experiment("finetunings")
    with mlflow.start_run(run_name=f"seed{seed}"):
        mlflow.log_params({"seed": seed, "size": setting["size"], "method": recipe.method, "batch_size": recipe.batch_size})
        mlflow.log_metrics(metrics)
    return metrics


if __name__ == "__main__":
    main()
