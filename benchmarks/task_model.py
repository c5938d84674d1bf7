"""Training and evaluating a task model beside transformers + peft with padded batches, on the same examples:

    python benchmarks/task_model.py --base STORE/base_model/... --sources STORE/sources/... --method full
    python benchmarks/task_model.py --base ... --sources ... --method lora --num 2048 --device cpu

The peer is what one would write with the libraries alone: AutoModelForSequenceClassification with PyTorch's own attention,
batches padded to their longest example, AdamW; for evaluation, padded batches sorted by length. Ours is the stage itself,
through Ray Train and DeepSpeed, at the same batch size, precision and learning rate. With --together N, N task models on
NUM examples each are trained at once by one worker, and their rates added; the peer trains one. Reports examples a second of
both, warm, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.compute import Resources, no_report
from pipelines.evaluation import EvaluationConfig, evaluate
from pipelines.examples import LABELS, read_examples, write_examples
from pipelines.finetuning import FinetuneConfig, finetune_group, load_tokenizer, read_metrics
from pipelines.prompts import classifier_prompt
from pipelines.task_model import (
    TaskModelConfig,
    UntrainedConfig,
    finetuning_job,
    initial_task_model,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a base-model artifact (a folder with model/)")
    parser.add_argument("--sources", required=True, help="a sources artifact (a folder with train.parquet)")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--num", type=int, default=8_192, help="training examples")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--together", type=int, default=1, help="task models that ours trains at once (LoRA)")
    parser.add_argument("--tokens", type=int, default=16_384, help="of one pass of ours")
    parser.add_argument("--skip", nargs="*", choices=("ours", "peer"), default=())
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers of ours first")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--evaluation-set", default="mnli_matched")
    parser.add_argument("--num-evaluation", type=int, default=9_815)
    parser.add_argument("--peer-evaluation-batch", type=int, default=128)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"arguments": vars(arguments)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_examples(
            read_examples(f"{arguments.sources}/train.parquet").slice(0, arguments.num),
            folder / "train.parquet",
        )
        write_examples(
            read_examples(f"{arguments.sources}/{arguments.evaluation_set}.parquet").slice(0, arguments.num_evaluation),
            folder / "test.parquet",
        )
        for name, measure in (("ours", ours), ("peer", peer)):
            if name not in arguments.skip:
                result[name] = measure(arguments, folder)
    for name in ("train_examples_per_s", "evaluate_examples_per_s") if not arguments.skip else ():
        result[f"ratio_{name}"] = result["ours"][name] / result["peer"][name]
    print(json.dumps(result, indent=1))


def ours(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    import ray

    gpu = arguments.device == "cuda"
    dtype = "bfloat16" if gpu else "float32"
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_gpus=1 if gpu else 0)
    resources = Resources(gpus_per_worker=1 if gpu else 0)
    initial_task_model(UntrainedConfig(0), arguments.base, str(folder / "start"))
    config = FinetuneConfig(
        method=arguments.method,
        batch_size=arguments.batch_size,
        dtype=dtype,
        learning_rate=2e-5,
        log_every=16,
        share_prefix=arguments.together == 1,
        tokens_per_microbatch=arguments.tokens,
        checkpoint_every=0,
        compile_from_steps=1 if arguments.compile else 0,
    )
    outputs = [str(folder / f"trained{seed}") for seed in range(arguments.together)]
    jobs = [
        finetuning_job(TaskModelConfig(config, seed), str(folder / "train.parquet"), arguments.base, str(folder / "start"))
        for seed in range(arguments.together)
    ]
    results = finetune_group(jobs, outputs, resources=resources, reports=[no_report] * len(jobs))
    if failed := next((one for one in results if isinstance(one, Exception)), None):
        raise failed
    rates = []
    for output in outputs:
        # The first logged windows hold the kernels' first use, the last ones go on with fewer.
        log = list(read_metrics(Path(output) / "metrics.jsonl"))
        rates.append(statistics.median(entry["examples_per_s"] for entry in log[min(3, len(log) - 1) :]))
    # As many as fit are trained at a time.
    at_a_time = results[0].get("mean_trained_together", 1)  # type: ignore[union-attr]
    metrics = evaluate(
        EvaluationConfig(("test",), dtype=dtype),
        str(folder),
        arguments.base,
        outputs[0],
        str(folder / "evaluation"),
        resources=resources,
    )
    ray.shutdown()
    return {
        "train_examples_per_s": statistics.median(rates) * at_a_time,
        "trained_at_a_time": at_a_time,
        "train_peak_gpu_memory_gib": max(one["peak_gpu_memory_gib"] or 0 for one in results),  # type: ignore[index]
        "evaluate_examples_per_s": metrics["examples_per_s"],
        "evaluate_peak_gpu_memory_gib": metrics["peak_gpu_memory_gib"],
    }


def peer(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = load_tokenizer(arguments.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        Path(arguments.base) / "model", num_labels=3, dtype=dtype
    ).to(device)
    model.config.pad_token_id = tokenizer.pad_token_id
    if arguments.method == "lora":
        from peft import LoraConfig, get_peft_model

        recipe = FinetuneConfig()
        model = get_peft_model(
            model,
            LoraConfig(
                r=recipe.lora_rank,
                lora_alpha=recipe.lora_alpha,
                lora_dropout=recipe.lora_dropout,
                target_modules=list(recipe.lora_targets),
                modules_to_save=["score"],
            ),
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.001, fused=device.type == "cuda")

    def texts_of(name: str) -> tuple[list[str], list[int]]:
        table = read_examples(folder / name)
        pairs = zip(table["premise"].to_pylist(), table["hypothesis"].to_pylist(), strict=True)
        return [classifier_prompt(p, h) for p, h in pairs], [LABELS.index(x) for x in table["label"].to_pylist()]

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    texts, labels = texts_of("train.parquet")
    sequences = tokenizer(texts)["input_ids"]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    model.train()
    size = arguments.batch_size
    warm, started = 32, 0.0
    steps = len(order) // size
    for step in range(steps):
        if step == min(warm, steps // 2):
            warm, started = step, wait()
        chosen = order[step * size : (step + 1) * size]
        batch = tokenizer.pad({"input_ids": [sequences[i] for i in chosen]}, return_tensors="pt").to(device)
        loss = model(**batch, labels=torch.tensor([labels[i] for i in chosen], device=device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.3)
        optimizer.step()
        optimizer.zero_grad()
    train_rate = (steps - warm) * size / (wait() - started)

    model.eval()
    texts, _ = texts_of("test.parquet")
    begun = wait()
    sequences = sorted(tokenizer(texts)["input_ids"], key=len)
    with torch.inference_mode():
        for start in range(0, len(sequences), arguments.peer_evaluation_batch):
            rows = sequences[start : start + arguments.peer_evaluation_batch]
            batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(device)
            model(**batch).logits.float().cpu()
    return {"train_examples_per_s": train_rate, "evaluate_examples_per_s": len(sequences) / (wait() - begun)}


if __name__ == "__main__":
    main()
