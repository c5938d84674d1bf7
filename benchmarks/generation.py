"""Generation beside its peers, on the same prompts, seeds and sampling settings:

    python benchmarks/generation.py --model FOLDER --num 8192 --gpus 1
    python benchmarks/generation.py --model FOLDER --load-format dummy --max-new-tokens 42 --variants raw stage

Variants, each in a process of its own:
  raw             vllm.LLM.generate over all prompts at once, the engine's core in its own process (vLLM's default)
  raw-in-process  the same with the engine in the calling process
  stage           pipelines.generation: Ray Data actor pool, engine in the actor; includes parsing and committing
  stage-shared    the same with ENGINES engines on the one GPU, each a part of it
  stage-process   as stage with the engine's core in a process of its own (engine_process=True)
  ray-data-llm    ray.data.llm.build_processor on the same rows; texts only, nothing parsed or written

Every variant generates NUM texts twice; 'warm' is the rate of the second half, 'all' that of both. The engines' start is apart:
each engine's clock begins when it is ready. Compare by 'all', with NUM large: where work streams, what is half done when the
first half is complete flatters 'warm'. One JSON object with the figures is printed last.

Figures are in docs/mini.md: on a CPU ray.data.llm reached 0.80 of raw's rate and the stage 0.95, its engine started in 73 s
against 19; on an H100 its engine was still starting when the stage's had been at work for half a minute. Further reasons why
the stage is an actor pool of its own: shards that are committed once need the rows of one shard together and a say in which
shards are still wanted; and a row that fails must stop the run and not be passed on.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.compute import Resources  # noqa: E402
from pipelines.examples import LABELS  # noqa: E402
from pipelines.generation import (  # noqa: E402
    GenerationConfig,
    encode_prompts,
    engine_environment,
    engine_options,
    max_num_seqs,
    run_engines,
)
from pipelines.shards import Shard, derive_seed, plan_shards  # noqa: E402

VARIANTS = ("raw", "raw-in-process", "stage", "stage-shared", "stage-process", "ray-data-llm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with config.json, weights and tokenizer")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    parser.add_argument("--num", type=int, default=8_192, help="texts of one half; rounded up to whole shards")
    parser.add_argument("--gpus", type=float, default=1, help="of the one engine; 0 for the CPU")
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--engines", type=int, default=4, help="engines on the GPU in the variant stage-shared")
    parser.add_argument("--max-num-seqs", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--shard-size", type=int, default=1_024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print("RESULT " + json.dumps(run(args.only, args)), flush=True)
        return

    with tempfile.TemporaryDirectory() as folder:
        if args.load_format == "dummy":
            save_random(args.model, folder, args.dtype)
            args.model = folder
        results = {variant: measure(variant, args) for variant in args.variants}
    peer = next((found["all_per_s"] for v in ("raw", "raw-in-process") if (found := results.get(v))), None)
    print(f"\n{'variant':16}{'start s':>9}{'all /s':>10}{'warm /s':>10}{'tokens/s':>11}{'all, of raw':>14}")
    for variant in args.variants:
        result = results[variant]
        if result is None:
            print(f"{variant:16}  failed, see above")
            continue
        ratio = f"{result['all_per_s'] / peer:.2f}" if peer else "-"
        print(
            f"{variant:16}{result['start_s']:9.1f}{result['all_per_s']:10.1f}{result['warm_per_s']:10.1f}"
            f"{result['tokens_per_s']:11.0f}{ratio:>14}"
        )
    print(json.dumps({"arguments": vars(args), "machine": machine(), "results": results}))


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    from importlib.metadata import version

    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"gpu": gpu, "cpus": os.cpu_count(), **{name: version(name) for name in ("torch", "ray")}}


def measure(variant: str, args: argparse.Namespace) -> dict[str, float] | None:
    """Run one variant in a fresh process, so that each finds the whole GPU and imports everything anew."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in vars(args).items()
             if name not in ("variants", "only", "load_format")]  # fmt: skip
    command = [sys.executable, __file__, *flags, "--only", variant]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    lines = []
    print(f"== {variant}", flush=True)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    found = [line for line in lines if line.startswith("RESULT ")]
    return json.loads(found[-1].removeprefix("RESULT ")) if found else None


def run(variant: str, args: argparse.Namespace) -> dict[str, float]:
    config = GenerationConfig(
        num_per_label=2**31,
        shard_size=args.shard_size,
        max_new_tokens=args.max_new_tokens,
        max_num_seqs=args.max_num_seqs,
        dtype=args.dtype,
        # Random weights parse to nothing, which must not end the measurement.
        min_yield=1e-6,
        engine_process=variant in ("raw", "stage-process"),
        attention_backend="auto" if variant.startswith("stage") else "vllm",
    )
    num_engines = args.engines if variant == "stage-shared" else 1
    resources = Resources(num_engines, args.cpus, math.floor(args.gpus / num_engines * 10_000) / 10_000)
    num_shards = 2 * -(-args.num // args.shard_size)
    per_label = dict.fromkeys(LABELS, num_shards * args.shard_size)
    planned = plan_shards(per_label, shard_size=args.shard_size, min_yield=1, seed=0)[:num_shards]
    if variant.startswith("raw"):
        return run_raw(config, resources, planned, args.model)
    if variant.startswith("stage"):
        return run_stage(config, resources, planned, args.model)
    return run_ray_data_llm(config, resources, planned, args.model)


def sampling(config: GenerationConfig, seed: int) -> dict[str, Any]:
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_new_tokens,
        "stop": [config.end_marker],
        "include_stop_str_in_output": True,
        "seed": seed,
    }


def run_raw(config: GenerationConfig, resources: Resources, shards: list[Shard], model: str) -> dict[str, float]:
    os.environ.update(engine_environment(config, resources))
    started = time.perf_counter()
    from vllm import LLM, SamplingParams

    prompts = encode_prompts(model)
    options = engine_options(config, model, resources, max(map(len, prompts.values())))
    # What the stage adds to vLLM's defaults for speed is the stage's, not the peer's.
    options.pop("compilation_config", None)
    engine = LLM(**options)
    start_s = time.perf_counter() - started

    halves, num_tokens = [], 0
    for half in (shards[: len(shards) // 2], shards[len(shards) // 2 :]):
        began = time.perf_counter()
        rows = [(shard, row) for shard in half for row in range(shard.count)]
        outputs = engine.generate(
            [{"prompt_token_ids": prompts[shard.label]} for shard, _ in rows],
            [SamplingParams(**sampling(config, shard.row_seed(row))) for shard, row in rows],
            use_tqdm=False,
        )
        num_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        halves.append((len(rows), time.perf_counter() - began))
    (first, first_s), (second, second_s) = halves
    return {
        "start_s": start_s,
        "all_per_s": (first + second) / (first_s + second_s),
        "warm_per_s": second / second_s,
        "tokens_per_s": num_tokens / (first_s + second_s),
    }


def streaming_rates(finished: list[tuple[float, int, int]], start_s: float) -> dict[str, float]:
    """From (seconds since the engine was ready, rows, tokens) of each finished piece of work."""
    finished.sort()
    total = sum(rows for _, rows, _ in finished)
    done, half_s = 0, 0.0
    for seconds, rows, _ in finished:
        done, half_s = done + rows, seconds
        if done >= total / 2:
            break
    end_s = finished[-1][0]
    return {
        "start_s": start_s,
        "all_per_s": total / end_s,
        "warm_per_s": (total - done) / (end_s - half_s),
        "tokens_per_s": sum(tokens for _, _, tokens in finished) / end_s,
    }


def init_ray(resources: Resources) -> None:
    import ray

    gpus = {"num_gpus": 1} if resources.gpus_per_worker else {}
    ray.init(
        num_cpus=max(4, os.cpu_count() or 1),
        include_dashboard=False,
        logging_level="WARNING",
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
        **gpus,
    )


def run_stage(config: GenerationConfig, resources: Resources, shards: list[Shard], model: str) -> dict[str, float]:
    init_ray(resources)
    with tempfile.TemporaryDirectory() as output:
        rows = list(run_engines(config, model, output, shards, resources, request="benchmark"))
    finished = [(row["since_ready_s"], row["num_parsed"] + row["num_rejected"], row["num_tokens"]) for row in rows]
    return streaming_rates(finished, max(row["engine_start_s"] for row in rows))


def run_ray_data_llm(config: GenerationConfig, resources: Resources, shards: list[Shard], model: str) -> dict[str, float]:
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    init_ray(resources)
    prompts = encode_prompts(model)
    options = engine_options(config, model, resources, max(map(len, prompts.values())))
    num_seqs = max_num_seqs(config, on_gpu=resources.gpus_per_worker > 0)
    batch_size = 256
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=options.pop("model"),
            engine_kwargs=options,
            batch_size=batch_size,
            max_concurrent_batches=max(8, 2 * num_seqs // batch_size),
            concurrency=1,
            placement_group_config={"bundle_per_worker": {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}},
            runtime_env={"env_vars": engine_environment(config, resources)},
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
        ),
        preprocess=lambda row: {
            "prompt": "",
            "tokenized_prompt": row["prompt_ids"],
            "sampling_params": sampling(config, row["seed"]),
        },
        postprocess=lambda row: {
            "num_tokens": row["num_generated_tokens"],
            "finished": time.time(),
            "taken_s": row["time_taken_llm"],
        },
    )
    rows = [{"prompt_ids": prompts[shard.label], "seed": shard.row_seed(row)} for shard in shards for row in range(shard.count)]
    began = time.time()
    dataset = processor(ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch_size)))
    results = dataset.take_all()
    assert len(results) == len(rows), f"{len(results)} of {len(rows)} rows came back"
    # When its engine was ready is not told. A batch comes out with its last row, so that row's own time leads back to when
    # the batch went in; the first batch goes in as soon as the engine is ready.
    ready = min(row["finished"] - row["taken_s"] for row in results)
    finished = [(row["finished"] - ready, 1, row["num_tokens"]) for row in results]
    return streaming_rates(finished, ready - began)


def save_random(model: str, folder: str, dtype: str) -> None:
    """A model of the same shape and tokenizer with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(derive_seed("benchmark") % 2**31)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


if __name__ == "__main__":
    main()
