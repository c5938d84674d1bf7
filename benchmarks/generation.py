"""Generation beside its peers, on the same prompts, seeds and sampling settings:

    python -m benchmarks.generation --model FOLDER --num 8192
    python -m benchmarks.generation --model base7/model --max-new-tokens 42 --variants raw stage
    python -m benchmarks.generation --model FOLDER --num 64 --shard-size 32 --dtype float32 --device cpu

Variants, each in a process of its own:
  raw             vllm.LLM.generate over all prompts at once, all settings vLLM's own (on a CPU those it can start with), the
                  engine's core in its own process
  raw-tuned       the same with the stage's settings: batch, context, CUDA graphs, attention
  raw-in-process  raw-tuned with the engine in the calling process
  engine          pipelines.generate.engine alone, in the calling process: nothing parsed or committed
  stage           pipelines.generate.writer: Ray Data actor pool, engine in the actor; includes parsing and committing
  stage-shared    the same with ENGINES engines on the one GPU, each a part of it
  stage-gpus      the same with one engine on each of the machine's GPUs
  stage-process   as stage with the engine's core in a process of its own (engine_process=True)
  ray-data-llm    ray.data.llm.build_processor on the same rows; texts only, nothing parsed or written

Every variant generates NUM texts twice; 'warm' is the rate of the second half, 'all' that of both. The engines' start is apart:
each engine's clock begins when it is ready. Compare by 'all', with NUM large: where work streams, what is half done when the
first half is complete flatters 'warm'. A variant that is cut off after its first half has 'all' of what it had written. With
--profile, the details have steps of `raw-in-process` and `engine` from the middle of the first half: their parts on a CPU core
and the device's kernels; the rates are then those of profiled runs.

FOLDER may have random weights (`benchmarks.base`). A limit has to hold more than the texts: of Llama-2-7B's shape an engine
starts in 60 to 100 s on an H200, in each variant anew.

The stage is an actor pool of its own for three reasons. Wherever both were measured it was ready sooner than ray.data.llm, and
on a CPU it wrote faster (figures in benchmarks/results/mini.md). Shards that are committed once need the rows of one shard
together and a say in which shards are still wanted. A row that fails must stop the run and not be passed on.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Figure,
    alternately,
    answer,
    decoding_work,
    finish,
    in_own_process,
    keep,
    limits_here,
    make_parser,
    parse,
    phase,
    values_of,
    visible_gpus,
)
from benchmarks.profiling import EngineProfile
from pipelines.generate.config import GenerationConfig
from pipelines.generate.engine import Engine
from pipelines.generate.options import engine_environment, engine_options, max_num_seqs, shards_in_flight
from pipelines.generate.shards import Shard, plan_shards
from pipelines.generate.writer import encode_prompts, run_engines
from pipelines.resources import Resources
from pipelines.storage import absolute
from pipelines.tasks.nli import LABELS
from sweep.plan.model_shape import ModelShape

PROFILED = ("raw-in-process", "engine")
VARIANTS = ("raw", "raw-tuned", *PROFILED, "stage", "stage-shared", "stage-gpus", "stage-process", "ray-data-llm")
PASSED_ON = ("num", "device", "cpus", "engines", "max_num_seqs", "max_new_tokens", "shard_size", "dtype", "quantization")


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json, weights and tokenizer")
    parser.add_argument("--num", type=int, default=8_192, help="texts of one half; rounded up to whole shards")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--engines", type=int, default=4, help="engines on the GPU in the variant stage-shared")
    parser.add_argument("--max-num-seqs", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--shard-size", type=int, default=1_024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=("none", "fp8"), default="none", help="of the products, of all variants")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--target", type=float, help="texts/s that `stage` should reach")
    parser.add_argument("--profile", action="store_true", help=f"of steps of {' and '.join(PROFILED)}")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.profile and not set(PROFILED) & {*arguments.variants, arguments.only}:
        parser.error(f"--profile: what is profiled are the variants {' and '.join(PROFILED)}; name one in --variants")
    if arguments.only:
        answer(run(arguments.only, arguments))
        return

    model = arguments.model.absolute()
    own = {"model": model, **{name: getattr(arguments, name) for name in PASSED_ON}}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
    profile_flag = ["--profile"] if arguments.profile else []

    def run_alone(variant: str) -> dict[str, Any] | None:
        own_flags = [*flags, *(profile_flag if variant in PROFILED else [])]
        return in_own_process("benchmarks.generation", [*own_flags, "--only", variant])

    results = alternately({name: partial(run_alone, name) for name in arguments.variants}, arguments.repeats)
    shape = ModelShape.of_settings(json.loads((model / "config.json").read_text()))
    prompts = [len(prompt) for prompt in encode_prompts(str(model)).values()]
    tokens = [run["tokens_per_s"] / run["all_per_s"] for runs in results.values() for run in runs if "all_per_s" in run]
    on_gpu = arguments.device == "cuda"
    batch_size = max_num_seqs(GenerationConfig(max_num_seqs=arguments.max_num_seqs), on_gpu=on_gpu)
    work = decoding_work(
        shape, prompt=statistics.mean(prompts), new_tokens=statistics.mean(tokens or [1]), batch_size=batch_size
    )
    finish(
        parser,
        arguments,
        [
            Figure("texts", "texts/s", values_of(results, "all_per_s"), peer="raw", target=arguments.target),
            Figure("texts of the second half", "texts/s", values_of(results, "warm_per_s"), peer="raw"),
            Figure("tokens", "tokens/s", values_of(results, "tokens_per_s"), peer="raw", work=work),
            Figure("engine's start", "s", values_of(results, "start_s"), peer="raw", lower_is_better=True),
        ],
        # The work is counted in 16 bits.
        limits=limits_here() if on_gpu and arguments.quantization == "none" else None,
        details={
            "failed": [name for name, runs in results.items() if len(runs) < arguments.repeats],
            **{name: run["profile"] for name in PROFILED for run in results.get(name, []) if "profile" in run},
        },
    )


def run(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    config = GenerationConfig(
        num_per_label=2**31,
        shard_size=args.shard_size,
        max_new_tokens=args.max_new_tokens,
        max_num_seqs=args.max_num_seqs,
        dtype=args.dtype,
        quantization=args.quantization,
        # Random weights parse to nothing, which must not end the measurement.
        min_yield=1e-6,
        engine_process=variant in ("raw", "raw-tuned", "stage-process"),
        attention_backend="vllm" if variant == "ray-data-llm" else "auto",
    )
    gpus = 1 if args.device == "cuda" else 0
    num_engines = {"stage-shared": args.engines, "stage-gpus": max(1, len(visible_gpus()))}.get(variant, 1)
    per_engine = math.floor(gpus / num_engines * 10_000) / 10_000 if variant == "stage-shared" else gpus
    resources = Resources(num_engines, args.cpus, per_engine)
    num_shards = 2 * -(-args.num // args.shard_size)
    per_label = dict.fromkeys(LABELS, num_shards * args.shard_size)
    planned = plan_shards(per_label, shard_size=args.shard_size, min_yield=1, seed=0)[:num_shards]
    if variant.startswith("raw"):
        return run_raw(config, resources, planned, str(args.model), with_defaults=variant == "raw", profiled=args.profile)
    if variant == "engine":
        return run_engine(config, resources, planned, str(args.model), profiled=args.profile)
    if variant.startswith("stage"):
        return run_stage(config, resources, planned, str(args.model))
    return run_ray_data_llm(config, resources, planned, str(args.model))


def sampling(config: GenerationConfig, seed: int) -> dict[str, Any]:
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_new_tokens,
        "stop": [config.stop],
        "include_stop_str_in_output": True,
        "seed": seed,
    }


def run_raw(
    config: GenerationConfig,
    resources: Resources,
    shards: list[Shard],
    model: str,
    *,
    with_defaults: bool,
    profiled: bool,
) -> dict[str, Any]:
    os.environ.update(engine_environment(config, resources))
    phase("the engine's start")
    started = time.perf_counter()
    from vllm import LLM, SamplingParams

    prompts = encode_prompts(model)
    options = engine_options(config, model, resources, [len(prompt) for prompt in prompts.values()])
    if with_defaults and resources.gpus_per_worker:
        # A CPU's engine does not start with a model's whole context, nor with seeds and its own scheduling.
        defaults = ("model", "dtype", "seed", "use_tqdm_on_load", "quantization")
        options = {name: value for name, value in options.items() if name in defaults}
    engine = LLM(**options)
    # As the stage does, so that the beginnings are in the cache.
    engine.generate([{"prompt_token_ids": prompt} for prompt in prompts.values()], SamplingParams(max_tokens=1), use_tqdm=False)
    start_s = time.perf_counter() - started
    keep({"start_s": start_s})
    profile = EngineProfile(engine, first=first_profiled(config)) if profiled else None

    halves: list[tuple[int, float]] = []
    num_tokens = 0
    for half in (shards[: len(shards) // 2], shards[len(shards) // 2 :]):
        rows = [(shard, row) for shard in half for row in range(shard.count)]
        phase(f"{len(rows):,} texts, the {'second' if halves else 'first'} half")
        began = time.perf_counter()
        outputs = engine.generate(
            [{"prompt_token_ids": prompts[shard.label]} for shard, _ in rows],
            [SamplingParams(**sampling(config, shard.row_seed(row))) for shard, row in rows],
            use_tqdm=False,
        )
        num_tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        halves.append((len(rows), time.perf_counter() - began))
        whole_s = sum(seconds for _, seconds in halves)
        keep({"all_per_s": sum(num for num, _ in halves) / whole_s, "tokens_per_s": num_tokens / whole_s})
    (first, first_s), (second, second_s) = halves
    return {
        "start_s": start_s,
        "all_per_s": (first + second) / (first_s + second_s),
        "warm_per_s": second / second_s,
        "tokens_per_s": num_tokens / (first_s + second_s),
        **({"profile": profile.result} if profile else {}),
    }


def first_profiled(config: GenerationConfig) -> int:
    """The step from which steps are profiled: the batch has been filled, and some of its texts have been followed by others."""
    return 3 * config.max_new_tokens // 2


def run_engine(
    config: GenerationConfig, resources: Resources, shards: list[Shard], model: str, *, profiled: bool
) -> dict[str, Any]:
    from vllm import SamplingParams

    os.environ.update(engine_environment(config, resources))
    phase("the engine's start")
    started = time.perf_counter()
    prompts = encode_prompts(model)
    lengths = [len(prompt) for prompt in prompts.values()]
    on_gpu = resources.gpus_per_worker > 0
    engine = Engine(
        engine_options(config, model, resources, lengths),
        stop=config.stop,
        prompts=list(prompts.values()),
        max_queued=2 * max_num_seqs(config, on_gpu=on_gpu),
    )
    start_s = time.perf_counter() - started
    keep({"start_s": start_s})
    phase(f"{sum(shard.count for shard in shards):,} texts")
    profile = EngineProfile(engine.llm, first=first_profiled(config)) if profiled else None
    began = time.perf_counter()

    def write(shard: Shard) -> tuple[float, int, int]:
        own = {name: value for name, value in sampling(config, 0).items() if "stop" not in name}
        seeds = [shard.row_seed(row) for row in range(shard.count)]
        _, num_tokens = engine.complete(prompts[shard.label], SamplingParams(**own), seeds)
        return time.perf_counter() - began, shard.count, num_tokens

    with ThreadPoolExecutor(shards_in_flight(config, on_gpu=on_gpu)) as threads:
        rates = streaming_rates(list(kept(threads.map(write, shards), shards)), start_s)
    return {**rates, **({"profile": profile.result} if profile else {})}


def kept(finished: Iterable[tuple[float, int, int]], shards: Sequence[Shard]) -> Iterator[tuple[float, int, int]]:
    """`finished` as it comes. From its first half on, the rates so far are kept, should the rest be cut off."""
    num_rows = num_tokens = 0
    end_s = 0.0
    for number, (seconds, rows, tokens) in enumerate(finished, 1):
        num_rows, num_tokens, end_s = num_rows + rows, num_tokens + tokens, max(end_s, seconds)
        if number >= len(shards) / 2:
            answer({"all_per_s": num_rows / end_s, "tokens_per_s": num_tokens / end_s})
        if number in (len(shards) // 4, len(shards) // 2, 3 * len(shards) // 4):
            phase(f"{num_rows:,} texts are written, {num_rows / end_s:,.0f} texts/s", end_s * (len(shards) / number - 1))
        yield seconds, rows, tokens


def streaming_rates(finished: list[tuple[float, int, int]], start_s: float) -> dict[str, float]:
    """Rates from (seconds since the engine was ready, rows, tokens) of each finished piece of work."""
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

    gpus = {"num_gpus": max(1, math.ceil(resources.total_gpus))} if resources.gpus_per_worker else {}
    ray.init(
        num_cpus=max(4, os.cpu_count() or 1),
        include_dashboard=False,
        logging_level="WARNING",
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
        **gpus,
    )


def run_stage(config: GenerationConfig, resources: Resources, shards: list[Shard], model: str) -> dict[str, float]:
    init_ray(resources)
    starts: list[float] = []

    def pieces(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, int, int]]:
        for row in rows:
            if not starts:
                keep({"start_s": row["engine_start_s"]})
            starts.append(row["engine_start_s"])
            yield row["since_ready_s"], row["num_parsed"] + row["num_rejected"], row["num_tokens"]

    phase(f"the engine's start, then {sum(shard.count for shard in shards):,} texts")
    with tempfile.TemporaryDirectory() as output:
        rows = run_engines(config, absolute(model), output, shards, resources, request="benchmark")
        finished = list(kept(pieces(rows), shards))
    return streaming_rates(finished, max(starts))


def run_ray_data_llm(config: GenerationConfig, resources: Resources, shards: list[Shard], model: str) -> dict[str, float]:
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    init_ray(resources)
    prompts = encode_prompts(model)
    options = engine_options(config, model, resources, [len(prompt) for prompt in prompts.values()])
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
    phase(f"the engine's start, then {len(rows):,} texts")
    began = time.time()
    dataset = processor(ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch_size)))
    results = dataset.take_all()
    assert len(results) == len(rows), f"{len(results)} of {len(rows):,} rows came back"
    # When its engine was ready is not told. A batch comes out with its last row, so that row's own time leads back to when
    # the batch went in; the first batch goes in as soon as the engine is ready.
    ready = min(row["finished"] - row["taken_s"] for row in results)
    finished = [(row["finished"] - ready, 1, row["num_tokens"]) for row in results]
    return streaming_rates(finished, ready - began)


if __name__ == "__main__":
    main()
