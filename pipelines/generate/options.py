"""vLLM's settings, from a generation's config and a worker's resources."""

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.generate.config import FP8, GenerationConfig
from pipelines.generate.decode_attention import attention_options, head_size
from pipelines.resources import Resources
from pipelines.workers.telemetry import OFF

COMPILED_FROM_BYTES = 2 * 2**30
"""Weights from which vLLM compiles a model: what it fuses does not repay half a minute for the pool of a small one."""
LEAST_FOR_FP8 = (8, 9)
"""The compute capability from which on NVIDIA's GPUs have matrix units for it."""


def max_num_seqs(config: GenerationConfig, *, on_gpu: bool) -> int:
    return config.max_num_seqs or (1_024 if on_gpu else 256)


def shards_in_flight(config: GenerationConfig, *, on_gpu: bool) -> int:
    """Two engine batches' worth of rows, so that the next shard's rows wait when one shard's last rows run out."""
    wanted = math.ceil(2 * max_num_seqs(config, on_gpu=on_gpu) / config.shard_size)
    return config.shards_in_flight or max(2, wanted)


def engine_environment(config: GenerationConfig, resources: Resources) -> dict[str, str]:
    """Environment variables that an engine's process must start with."""
    values = {
        # In the actor's own process the engine starts in a third of the time on two cores and cannot outlive
        # the actor.
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(config.engine_process)),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        **OFF,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if not resources.gpus_per_worker:
        values |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
            # By default each engine pins its threads to the first cores, where they meet the next engine's.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, int(resources.cpus_per_worker))),
            # Threads that spin while they wait for one that lost its core make generation many times slower on
            # a busy machine. On an idle one they gain nothing.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return values


def reads_in_place(options: Mapping[str, Any], *, on_gpu: bool) -> bool:
    """Whether an engine with these options can be given other weights when it is up.

    Not where vLLM keeps weights in another form than it reads them in, and makes that once: quantised ones, and on a CPU an
    output matrix that is the embeddings'.
    """
    from transformers import AutoConfig

    # Where a config.json says nothing, it goes by the architecture.
    is_tied = AutoConfig.from_pretrained(options["model"], trust_remote_code=False).tie_word_embeddings
    return "quantization" not in options and (on_gpu or not is_tied)


def kv_cache_bytes(model: str, *, num_seqs: int, context: int, number_bytes: int, gpu_bytes: float) -> int:
    """Bytes for the cache of `num_seqs` sequences of `context` tokens, or those that `gpu_bytes` leave beside the weights.

    Raises UserError if that is less than a sixteenth of what is needed.
    """
    settings = json.loads((Path(model) / "config.json").read_text())
    num_kv_heads = settings.get("num_key_value_heads") or settings["num_attention_heads"]
    keys_and_values = 2
    token_bytes = settings["num_hidden_layers"] * num_kv_heads * head_size(settings) * keys_and_values * number_bytes
    needed = num_seqs * context * token_bytes
    weights = _weights_bytes(model)
    # The engine's own workspace: logits, activations, CUDA's context and graphs.
    left = int(gpu_bytes - weights - 2 * 2**30)
    if left < needed / 16:
        raise UserError(
            f"an engine's share of the GPU is {gpu_bytes / 2**30:.1f} GiB and its weights take {weights / 2**30:.1f}, which "
            "leaves too little to work with; give the synthetic pool fewer workers with a larger gpus_per_worker"
        )
    return min(needed, left)


def _weights_bytes(model: str) -> int:
    return sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))


def quantization_options(config: GenerationConfig, *, on_gpu: bool) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for the precision of the products.

    Of FP8 the weights of a layer have one scale, made as they are loaded, and each token's activations their own; embeddings,
    output layer and the cache of keys and values stay as they are. Raises UserError where there are no matrix units for it.
    """
    if config.quantization != FP8:
        return {}
    capability = None
    if on_gpu:
        from vllm.platforms import current_platform

        capability = current_platform.get_device_capability()
    found = tuple(capability) if capability is not None else (0, 0)
    if found < LEAST_FOR_FP8:
        here = f"the GPU here has compute capability {found[0]}.{found[1]}" if any(found) else "there is none here"
        raise UserError(
            "the generator writes in fp8, which needs matrix units of an NVIDIA GPU of compute capability 8.9 or above (Ada, "
            f"Hopper or later), and {here}: take such a GPU, or -p generation_precision=bfloat16"
        )
    # Not "fp8", which vLLM 0.32 takes for checkpoints that are in it only.
    return {"quantization": "fp8_per_tensor"}


def engine_options(
    config: GenerationConfig, model: str, resources: Resources, prompt_lengths: Collection[int], gpu_bytes: int = 0
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`, to be used on the machine where this is called. Valid for vLLM 0.26 to 0.32.
    `prompt_lengths`: in tokens, of each prompt; `gpu_bytes`: the memory of the whole GPU, if shared.
    """
    on_gpu = resources.gpus_per_worker > 0
    longest = max(prompt_lengths) + config.max_new_tokens
    options: dict[str, Any] = {
        "model": model,
        "dtype": config.dtype,
        "seed": 0,
        "max_num_seqs": max_num_seqs(config, on_gpu=on_gpu),
        "enforce_eager": config.enforce_eager if config.enforce_eager is not None else not on_gpu,
        "use_tqdm_on_load": False,
        "trust_remote_code": False,
        **quantization_options(config, on_gpu=on_gpu),
    }
    # An engine refuses to start if one sequence of the model's whole context does not fit its cache; ours are
    # short.
    context = json.loads((Path(model) / "config.json").read_text()).get("max_position_embeddings")
    if context is not None:
        longest = options["max_model_len"] = min(context, longest)
    if not on_gpu:
        # A seeded request whose prompt is split over two steps makes the CPU engine fail: "CPU Generator does
        # not use offset" (vLLM 0.26 to 0.32).
        return options | {"enable_chunked_prefill": False}
    options |= attention_options(model, config.dtype, config.attention_backend, prompt_lengths)
    share = config.gpu_memory_utilization * resources.gpus_per_worker
    options["gpu_memory_utilization"] = share
    num_seqs = options["max_num_seqs"]
    if gpu_bytes and resources.gpus_per_worker < 1:
        # vLLM would size its cache by watching the GPU's free memory, which others are taking and giving back.
        options["kv_cache_memory_bytes"] = kv_cache_bytes(
            model,
            num_seqs=num_seqs,
            context=longest,
            number_bytes=4 if config.dtype == "float32" else 2,
            gpu_bytes=share * gpu_bytes,
        )
    if not options["enforce_eager"]:
        # vLLM captures graphs of up to 512 sequences only, and launches kernel by kernel above that. Its own list would
        # have eighty sizes up to 1,024; filling a batch up to the next 64 costs less than capturing them.
        sizes = [size for size in (1, 2, 4, 8, 16, 32) if size < num_seqs]
        options["compilation_config"] = {"cudagraph_capture_sizes": [*sizes, *range(64, num_seqs, 64), num_seqs]}
        if "attention_config" in options and _weights_bytes(model) < COMPILED_FROM_BYTES:
            # With our kernel all steps are alike, and run from CUDA graphs of decoding alone.
            options["compilation_config"] |= {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return options
