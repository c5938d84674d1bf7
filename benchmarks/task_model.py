"""Training and evaluating a task model beside transformers + peft with padded batches, on the same examples:

    python -m benchmarks.task_model --base STORE/base_model/... --sources data --method full
    python -m benchmarks.task_model --base base7 --sources data --batch-size 2 --together 24 --num 512
    python -m benchmarks.task_model --base ... --sources ... --num 512 --device cpu

  peer  what one would write with the libraries alone: AutoModelForSequenceClassification with PyTorch's own attention (and
        peft's LoRA in the weights' own type, which is faster than its float32), transformers' Trainer with batches grouped by
        length and padded to their longest, fused AdamW; evaluation in padded batches sorted by length
  ours  the stage itself, through Ray Train and DeepSpeed, at the same batch size, precision and learning rate
  ours-gpus  that in a process for each of the machine's GPUs at the same time; their rates are added

--base is a base model's artifact, which `benchmarks.base` writes with random weights; of one in FP8 frozen products count as
half. With --together N, ours trains N task models on NUM examples each at once in one worker, and their rates are added; the
peer trains one. Without --evaluation-sets nothing is evaluated. Rates are warm: without the first steps, and of an evaluation
that is not the first. Ours is that of the median window of 16 steps: a window in which a shape of batch is met for the first
time takes seconds longer, which a study's thousands of steps do not notice and a benchmark's hundreds do. With --profile, the
details say which kernels the last steps of ours and a further evaluation spent their time in; those are in no rate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    FORWARD,
    FROZEN,
    TRAINED,
    Figure,
    Pace,
    Part,
    Work,
    alternately,
    answer,
    finish,
    in_own_process,
    keep,
    limits_here,
    make_parser,
    model_flops,
    num_layer_weights,
    parse,
    phase,
    sources_at,
    useful_tokens,
    values_of,
    visible_gpus,
)
from benchmarks.peer import peer_classifier
from benchmarks.profiling import Profile
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate_group
from pipelines.finetune.checkpoints import read_metrics
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model
from pipelines.models.quantization import computes_in_fp8
from pipelines.models.tokenizer import load_tokenizer
from pipelines.packing.batches import common_prefix_length
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import classifier_prompts
from sweep.plan.model_shape import ModelShape

VARIANTS = ("ours", "peer", "ours-gpus")
LOG_EVERY = 16
WARM = 3
"""Windows that warm up."""
PROFILE, EVALUATION_PROFILE = "profile", "evaluation_profile"
COUNTED = "projections, attention and LoRA of tokens that are not padding{}; norms, embeddings, head and optimizer are left out"

IN_FP8 = ", products in FP8 as half of what they are, because matrix units compute them at twice the rate"


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--base", type=Path, required=True, help="a base-model artifact (a folder with model/)")
    parser.add_argument("--sources", type=Path, required=True, help="a sources artifact, or the folder of MultiNLI and HANS")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--num", type=int, default=8_192, help="training examples")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--together", type=int, default=1, help="task models that ours trains at once (LoRA)")
    parser.add_argument("--tokens", type=int, default=16_384, help="of one pass of ours")
    parser.add_argument("--share-prefix", action=argparse.BooleanOptionalAction, help="default: if one is trained at a time")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", "peer"])
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers of ours first")
    parser.add_argument("--profile", action="store_true", help="of the last steps of ours")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--evaluation-sets", nargs="*", default=["mnli_matched", "hans"])
    parser.add_argument("--num-evaluation", type=int, default=30_000, help="of each set's examples, at most")
    parser.add_argument("--peer-evaluation-batch", type=int, default=128)
    parser.add_argument("--peer-part", type=float, default=1.0, help="of the examples that the peer trains on and evaluates")
    parser.add_argument("--training-target", type=float, help="examples/s that ours should reach")
    parser.add_argument("--evaluation-target", type=float)
    arguments = parse(parser)
    if arguments.profile and arguments.num < (least := 5 * LOG_EVERY * arguments.batch_size):
        parser.error(
            f"--num {arguments.num}: three windows to warm up, one to measure and one to profile take {least} examples"
        )
    if not 0 < arguments.peer_part <= 1:
        parser.error(f"--peer-part {arguments.peer_part}: give a part of the examples, above 0 and at most 1")
    if arguments.share_prefix is None:
        arguments.share_prefix = arguments.together == 1
    # Workers have another current directory.
    arguments.base = arguments.base.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = sources_at(arguments.sources, folder)
        numbers = {"train": arguments.num, **dict.fromkeys(arguments.evaluation_sets, arguments.num_evaluation)}
        for name, num in numbers.items():
            write_examples(read_examples(sources / f"{name}.parquet").slice(0, num), folder / f"{name}.parquet")
        if arguments.only:
            answer(ours(arguments, folder))
            return
        measures = {"ours": ours, "peer": peer, "ours-gpus": ours_on_all_gpus}
        results = alternately(
            {name: partial(measures[name], arguments, folder) for name in arguments.variants}, arguments.repeats
        )
        training, evaluation = work_of(arguments, folder)
        profiles = {
            name: json.loads((folder / name).read_text()) for name in (PROFILE, EVALUATION_PROFILE) if (folder / name).exists()
        }
    finish(
        parser,
        arguments,
        [
            Figure(name, "examples/s", values, peer="peer", work=work, target=target)
            for name, work, target, values in (
                ("training", training, arguments.training_target, values_of(results, "train_examples_per_s")),
                ("evaluation", evaluation, arguments.evaluation_target, values_of(results, "evaluate_examples_per_s")),
            )
            if values
        ],
        limits=limits_here() if arguments.device == "cuda" else None,
        details={**results, **profiles},
    )


def work_of(arguments: argparse.Namespace, folder: Path) -> tuple[Work, Work | None]:
    """Least work of an example trained and of one evaluated; the prompts' common beginning counts as often as it must."""
    shape = ModelShape.of_settings(json.loads((arguments.base / "model" / "config.json").read_text()))
    is_lora = arguments.method == "lora"
    recipe = FinetuneConfig()
    lora: dict[str, Any] = {"lora_rank": recipe.lora_rank, "lora_targets": recipe.lora_targets} if is_lora else {}
    tokenizer = load_tokenizer(str(arguments.base))
    in_fp8 = computes_in_fp8(arguments.base / "model")

    def part(names: Sequence[str], per_weight: int, prefix: int, batch_size: int | None) -> Part:
        lengths = [len(sequence) for name in names for sequence in tokenizer(texts_of(folder, name)[0])["input_ids"]]
        batch_size = batch_size or len(lengths)
        tokens, pairs = useful_tokens(lengths, prefix=prefix, num_batches=-(-len(lengths) // batch_size))
        flops: float = model_flops(shape, tokens, pairs, per_weight=per_weight, **lora)
        if in_fp8:
            flops -= per_weight * num_layer_weights(shape) * tokens / 2
        return Part("model", flops / len(lengths))

    prefix = common_prefix_length(tokenizer(texts_of(folder, "train")[0])["input_ids"])
    shared = prefix if arguments.share_prefix else 0
    trained = part(["train"], FROZEN if is_lora else TRAINED, shared, arguments.batch_size)
    evaluated = part(arguments.evaluation_sets, FORWARD, prefix, None) if arguments.evaluation_sets else None
    once = (IN_FP8 if in_fp8 else "") + ", the prompts' common beginning once a {}"
    return (
        Work((trained,), COUNTED.format(once.format("batch") if shared else IN_FP8 if in_fp8 else "")),
        Work((evaluated,), COUNTED.format(once.format("run"))) if evaluated else None,
    )


def texts_of(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Prompts and labels of an examples file."""
    table = read_examples(folder / f"{name}.parquet")
    return classifier_prompts(table), table["label"].to_pylist()


def ours(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    import ray

    gpu = arguments.device == "cuda"
    dtype = "bfloat16" if gpu else "float32"
    # For its metrics and settings; no worker of its is started.
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    resources = Resources(gpus_per_worker=1 if gpu else 0, in_process=True)
    # What has ended in a folder is not run again, and a repeat is to be.
    fresh = Path(tempfile.mkdtemp(dir=folder))
    initial_task_model(UntrainedConfig(0), str(arguments.base), str(fresh / "start"))
    config = FinetuneConfig(
        method=arguments.method,
        batch_size=arguments.batch_size,
        dtype=dtype,
        learning_rate=2e-5,
        log_every=LOG_EVERY,
        share_prefix=arguments.share_prefix,
        tokens_per_microbatch=arguments.tokens,
        checkpoint_every=0,
        compile_from_steps=1 if arguments.compile else 0,
    )
    outputs = [str(fresh / f"trained{seed}") for seed in range(arguments.together)]
    jobs = [
        finetuning_job(TaskModelConfig(config, seed), str(folder / "train.parquet"), str(arguments.base), str(fresh / "start"))
        for seed in range(arguments.together)
    ]
    windows = Windows()
    reports: list[Any] = [partial(windows.report, number) for number in range(len(jobs))]
    num_windows = arguments.num // arguments.batch_size // LOG_EVERY
    profiled = (num_windows - 1) * LOG_EVERY
    if arguments.profile:
        end = num_windows * LOG_EVERY
        reports[0] = profiling(Profile(folder / PROFILE, arguments.device), profiled, end, windows)
    phase(f"ours: setting up, then training {arguments.together} on {arguments.num:,} examples each")
    results = finetune_group(jobs, outputs, resources=resources, reports=reports)
    if failed := next((result for result in results if isinstance(result, Exception)), None):
        raise failed
    rates = []
    for output in outputs:
        log = list(read_metrics(Path(output) / "metrics.jsonl"))
        logged = [entry for entry in warm_windows(log) if not arguments.profile or entry["step"] <= profiled]
        rates.append(statistics.median(entry["examples_per_s"] for entry in logged))
    # As many as fit are trained at a time.
    at_a_time = results[0].get("mean_trained_together", 1)  # type: ignore[union-attr]
    measured = {"train_examples_per_s": statistics.median(rates) * at_a_time, "trained_at_a_time": at_a_time}
    measured["setup_s"] = results[0]["setup_s"]  # type: ignore[index]
    keep(measured)
    # Of the last task model.
    print("windows", [round(entry["examples_per_s"] * at_a_time) for entry in log], flush=True)
    # The first evaluation of a task compiles kernels and reads the frozen weights; the second is what a study's others are.
    evaluations = []
    num_evaluations = 3 if arguments.profile else 2
    reports = [no_report] * num_evaluations
    if arguments.profile:
        profile, num_sets = Profile(folder / EVALUATION_PROFILE, arguments.device), len(arguments.evaluation_sets)
        # From the end of the second to that of the third, the time to load its adapter included.
        reports[1:] = [
            lambda _, step: profile.start() if step == num_sets else None,
            lambda _, step: profile.stop(1) if step == num_sets else None,
        ]
    if arguments.evaluation_sets:
        phase("ours: evaluating")
        evaluations = evaluate_group(
            EvaluationConfig(
                tuple(arguments.evaluation_sets), dtype=dtype, compile_from_examples=1 if arguments.compile else 0
            ),
            str(folder),
            str(arguments.base),
            [outputs[0]] * num_evaluations,
            [str(fresh / f"evaluation{number}") for number in range(num_evaluations)],
            resources=resources,
            reports=reports,
        )
    if failed := next((result for result in evaluations if isinstance(result, Exception)), None):
        raise failed
    ray.shutdown()
    # The peer's Trainer would take it for torchrun's.
    os.environ.pop("LOCAL_RANK", None)
    if evaluations:
        measured["evaluate_examples_per_s"] = evaluations[1]["examples_per_s"]  # type: ignore[index]
    for name, metrics in (("train", results), ("evaluate", evaluations)):
        if gpu and metrics:
            peak = max(result["peak_gpu_memory_gib"] for result in metrics)  # type: ignore[index]
            measured[f"{name}_peak_gpu_memory_gib"] = peak
    return measured


def ours_on_all_gpus(arguments: argparse.Namespace, folder: Path) -> dict[str, float] | None:
    """`ours` on every GPU at once, each in a process of its own; rates added, None if one failed."""

    def run(gpu: str) -> dict[str, Any] | None:
        own = {"CUDA_VISIBLE_DEVICES": gpu}
        return in_own_process("benchmarks.task_model", [*sys.argv[1:], "--only", "ours"], own)

    gpus = visible_gpus()
    with ThreadPoolExecutor(len(gpus)) as threads:
        results = [result for result in threads.map(run, gpus) if result is not None]
    if len(results) < len(gpus):
        return None
    names = [name for name in results[0] if name.endswith("examples_per_s")]
    return {"num_gpus": len(gpus), **{name: sum(result[name] for result in results) for name in names}}


class Windows:
    """What task models report while they are trained: the rate so far is kept and said, should the rest be cut off."""

    def __init__(self) -> None:
        self.rates: dict[int, list[float]] = defaultdict(list)
        self.ended: set[int] = set()
        self.pace = Pace()

    def report(self, number: int, metrics: Mapping[str, float], step: int) -> None:
        """Take in what task model `number` reports."""
        self.rates[number].append(metrics["examples_per_s"])
        done = metrics["fraction_done"]
        if done == 1:
            self.ended.add(number)
        under_way = [statistics.median(rates[WARM:]) for rates in self.rates.values() if len(rates) > WARM]
        if not under_way or self.ended:
            return
        rate = statistics.median(under_way) * len(under_way)
        answer({"train_examples_per_s": rate, "trained_at_a_time": len(under_way)})
        self.pace.say(f"ours: training, {rate:,.0f} examples/s, step {step:,}", done)


def profiling(profile: Profile, first: int, end: int, windows: Windows) -> Any:
    """A report of the first task model's step metrics that profiles from step `first` to step `end`."""

    def report(metrics: Mapping[str, float], step: int) -> None:
        windows.report(0, metrics, step)
        if step == first:
            profile.start()
        elif step == end:
            profile.stop(end - first)

    return report


def warm_windows(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """Logged windows of a training without the first three, which hold the kernels' first use, and a last one that is short."""
    whole = [entry for entry in log if entry["step"] % LOG_EVERY == 0] or log
    return whole[min(WARM, len(whole) - 1) :]


def peer(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    import torch
    from transformers import (
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = load_tokenizer(str(arguments.base))
    recipe = FinetuneConfig(method=arguments.method)
    model = peer_classifier(arguments.base / "model", tokenizer, recipe, dtype, device)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    texts, labels = texts_of(folder, "train")
    part = int(len(texts) * arguments.peer_part)
    texts, labels = texts[:part], labels[:part]
    size = arguments.batch_size
    steps = len(texts) // size
    # Grouping by length sorts so many batches at a time, the longest first: whole cycles are measured, whatever is left out.
    cycle = max(1, min(50, len(texts) // (4 * size)))
    warm = steps % cycle + (cycle if steps % cycle < 16 else 0)
    warm = min(warm, steps // 2)
    times = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step in (warm, steps):
                times[state.global_step] = wait()

    settings = TrainingArguments(
        output_dir=str(folder / "peer"),
        max_steps=steps,
        per_device_train_batch_size=size,
        train_sampling_strategy="group_by_length",
        dataloader_drop_last=True,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = [
        {"input_ids": ids, "labels": LABELS.index(label)}
        for ids, label in zip(tokenizer(texts)["input_ids"], labels, strict=True)
    ]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    phase(f"peer: training on {steps * size:,} examples")
    Trainer(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Clock()],
    ).train()

    rates = {
        "train_examples_per_s": (steps - warm) * size / (times[steps] - times[warm]),
        "num_warm_steps": steps - warm,
        **({"peak_gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}),
    }
    keep(rates)
    if not arguments.evaluation_sets:
        return rates
    phase("peer: evaluating")
    model.eval()
    # Ours has tokenized before its clock starts, too.
    texts = [text for name in arguments.evaluation_sets for text in texts_of(folder, name)[0]]
    sequences = sorted(tokenizer(texts)["input_ids"], key=len)
    sequences = sequences[:: round(1 / arguments.peer_part)]

    def evaluate(chosen: list[list[int]]) -> float:
        begun = wait()
        with torch.inference_mode():
            for start in range(0, len(chosen), arguments.peer_evaluation_batch):
                rows_of_batch = chosen[start : start + arguments.peer_evaluation_batch]
                batch = tokenizer.pad({"input_ids": rows_of_batch}, return_tensors="pt").to(device)
                model(**batch).logits.float().cpu()
        return len(chosen) / (wait() - begun)

    evaluate(sequences[-4 * arguments.peer_evaluation_batch :])
    return {**rates, "evaluate_examples_per_s": evaluate(sequences)}


if __name__ == "__main__":
    main()
