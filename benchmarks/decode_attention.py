"""Generation at Llama-2-7B's shape with vLLM's own choice of attention and ours (`generate/decode_attention.py`):

    python -m benchmarks.decode_attention --tokenizer FOLDER
    python -m benchmarks.decode_attention --tokenizer FOLDER --variants ours --capture-sizes 64 256 512 1024 1152

FOLDER holds a tokenizer of up to 32,000 tokens; the weights are random, so lengths are given and not generated. Variants,
each in a process of its own that also holds the engine, as in the stage:
  vllm   attention_backend="vllm"
  ours   attention_backend="triton", which fails where it cannot be had

Loads, one after the other in the same engine, after one batch to warm it up:
  even   every text has TOKENS tokens: a batch begins and ends as one and decodes in between, which shows the kernel
  mixed  from half of that to one and a half, so that some texts begin and end in every step, as in generation

In the details, 'step_ms' is the median time of an engine's step, 'tokens_per_step' the average number of tokens that one gave.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path
from statistics import mean, median
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
)
from pipelines.generate.config import GenerationConfig
from pipelines.generate.options import engine_environment, engine_options
from pipelines.generate.writer import encode_prompts
from pipelines.resources import Resources
from pipelines.tasks.nli import LABELS
from sweep.plan.model_shape import ModelShape

VARIANTS = {"vllm": "vllm", "ours": "triton"}
LOADS = ("even", "mixed")


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with the tokenizer's files")
    parser.add_argument("--num", type=int, default=8_192, help="texts of each load")
    parser.add_argument("--tokens", type=int, default=58, help="new tokens of a text, on average")
    parser.add_argument("--max-num-seqs", type=int, default=1_024)
    parser.add_argument("--capture-sizes", type=int, nargs="+", help="batch sizes of CUDA graphs; default: the stage's")
    parser.add_argument("--kv-cache-layout", choices=("NHD", "HND"), help="default: vLLM's")
    parser.add_argument("--layers", type=int, default=32, help="fewer for a trial")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.only:
        answer(run(args.only, args))
        return

    def run_alone(variant: str) -> dict[str, Any] | None:
        return in_own_process("benchmarks.decode_attention", [*sys.argv[1:], "--only", variant])

    results: dict[str, list[Any]] = alternately({name: partial(run_alone, name) for name in args.variants}, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        save_shape(str(args.tokenizer), folder, args.layers)
        shape = ModelShape.of_settings(json.loads((Path(folder) / "config.json").read_text()))
        prompt = mean(map(len, encode_prompts(folder).values()))
    work = decoding_work(shape, prompt=prompt, new_tokens=args.tokens, batch_size=args.max_num_seqs)
    figures = []
    for load in args.loads:
        loads = {name: [run["loads"][load] for run in runs if load in run.get("loads", ())] for name, runs in results.items()}
        figures.append(Figure(f"{load} lengths", "tokens/s", values_of(loads, "tokens_per_s"), peer="vllm", work=work))
    finish(parser, args, figures, limits=limits_here() if args.device == "cuda" else None, details=results)


def run(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    longest = args.tokens * 3 // 2
    config = GenerationConfig(
        max_new_tokens=longest,
        max_num_seqs=args.max_num_seqs,
        attention_backend=VARIANTS[variant],
    )
    resources = Resources(gpus_per_worker=1 if args.device == "cuda" else 0)
    os.environ.update(engine_environment(config, resources))
    if args.kv_cache_layout:
        os.environ["VLLM_KV_CACHE_LAYOUT"] = args.kv_cache_layout
    with tempfile.TemporaryDirectory() as folder:
        save_shape(str(args.tokenizer), folder, args.layers)
        prompts = encode_prompts(folder)
        phase(f"{variant}: the engine's start")
        started = time.perf_counter()
        options = engine_options(config, folder, resources, [len(prompt) for prompt in prompts.values()])
        if args.capture_sizes:
            options["compilation_config"] = {"cudagraph_capture_sizes": args.capture_sizes}
        from vllm import LLM

        llm = LLM(**options, load_format="dummy")
    start_s = time.perf_counter() - started

    spread = range(args.tokens - args.tokens // 2, longest + 1)
    lengths = {"even": [args.tokens] * args.num, "mixed": [spread[row % len(spread)] for row in range(args.num)]}
    keep({"start_s": start_s, **llm.collective_rpc(attention_in_use)[0]})
    order = [prompts[label] for label in LABELS]
    phase(f"{variant}: a batch to warm it up")
    serve(llm.llm_engine, order, [args.tokens] * args.max_num_seqs, args)
    loads: dict[str, dict[str, float]] = {}
    for load in args.loads:
        phase(f"{variant}: {args.num:,} texts, {load} lengths")
        loads[load] = serve(llm.llm_engine, order, lengths[load], args)
        keep({"loads": loads, "tokens_per_s": loads[load]["tokens_per_s"]})
    return {"loads": loads}


def save_shape(tokenizer: str, folder: str, layers: int) -> None:
    """Llama-2-7B's config, which is transformers' default Llama but for the context, and the tokenizer."""
    from transformers import LlamaConfig

    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    shape = LlamaConfig(num_hidden_layers=layers, max_position_embeddings=4_096, architectures=["LlamaForCausalLM"])
    shape.save_pretrained(folder)


def serve(engine: Any, prompts: list[list[int]], lengths: list[int], args: argparse.Namespace) -> dict[str, float]:
    """Rates over texts of these lengths, the next prompt for each; as many are queued as the stage keeps queued."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    waiting = deque(enumerate(lengths))
    num_pending, num_tokens, step_s = 0, 0, []
    began = time.perf_counter()
    while waiting or num_pending:
        while waiting and num_pending < 2 * args.max_num_seqs:
            row, length = waiting.popleft()
            # The stop string is the stage's: looking for it costs time, though no text ends at it before its length.
            params = SamplingParams(
                max_tokens=length,
                min_tokens=length,
                ignore_eos=True,
                stop=[GenerationConfig.end_marker],
                seed=row,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(row), {"prompt_token_ids": prompts[row % len(prompts)]}, params)
            num_pending += 1
        before = time.perf_counter()
        finished = [output.outputs[0] for output in engine.step() if output.finished]
        step_s.append(time.perf_counter() - before)
        num_pending -= len(finished)
        num_tokens += sum(len(text.token_ids) for text in finished)
    seconds = time.perf_counter() - began
    assert num_tokens == sum(lengths), f"{num_tokens} tokens instead of {sum(lengths)}"
    return {
        "seconds": seconds,
        "tokens_per_s": num_tokens / seconds,
        "examples_per_s": num_tokens / args.tokens / seconds,
        "step_ms": 1_000 * median(step_s),
        "mean_step_ms": 1_000 * sum(step_s) / len(step_s),
        "num_steps": len(step_s),
        "tokens_per_step": num_tokens / len(step_s),
    }


def attention_in_use(worker: Any) -> dict[str, Any]:
    """Read from the engine's worker: what it was told is not what counts."""
    runner = worker.model_runner
    group = runner.attn_groups[0][0]
    cache = runner.vllm_config.cache_config
    return {
        "attention": f"{group.backend.__module__}.{group.backend.__qualname__}",
        "cuda_graphs": str(runner.vllm_config.compilation_config.cudagraph_mode),
        "model_runner": type(runner).__module__,
        "cached_tokens": cache.num_gpu_blocks * cache.block_size,
        "kv_cache_layout": os.environ.get("VLLM_KV_CACHE_LAYOUT", "vLLM's default"),
    }


if __name__ == "__main__":
    main()
