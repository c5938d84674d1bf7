"""Which attention kernels an engine decodes with.

A decoding step reads every cached key and value once and computes little with them, so the GPU's memory sets its pace. The
kernels that vLLM chooses work in tiles made for many query heads that share a KV head. Where every KV head has a query head
to itself, as in Llama 2, the tiles are almost empty: at Llama-2-7B's shape, 1 024 sequences and one H200, FlashAttention-3
takes 27.4 ms a step (1.07 TB/s) and FlashInfer with tensor cores 24.3 ms. FlashInfer's kernel without tensor cores takes
7.9 ms (3.75 TB/s), but vLLM never asks for it. `flashinfer_decode` does, as a backend that vLLM loads by name.

The texts have the same distribution with either: sums are rounded in another order, as they are in another batch.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

CHOICES = ("auto", "vllm", "flashinfer")

BACKEND = "pipelines.flashinfer_decode.DecodeBackend"
WORKER_EXTENSION = "pipelines.flashinfer_decode.WorkerExtension"

# FlashInfer would take `fa3` on Hopper, whose kernel for prompts takes longest to compile and needs headers that not every
# CUDA toolkit has. The prompts here are a label's template: a few tokens beyond what the prefix cache holds.
PREFILL = "fa2"

# Families whose every layer is plain causal attention, if no window is set.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Query heads to a KV head. 1 is what was measured. The kernel exists for 1, 2, 3, 4 and 8, but its arithmetic grows with
# the group and the tiles fill up; from 3 on nothing is known to be won.
GROUP_SIZES = (1, 2)
# What FlashInfer's kernels are compiled for and vLLM's backend lets through; 512 would need another shape of block.
HEAD_SIZES = (64, 128, 256)
# Tokens of a block of the cache: fewer make the lists of blocks long, more are left empty at a text's end.
BLOCK_SIZES = range(8, 33)
# Steps that a text may wait for its first token, on average, so that all steps are alike; one writes about sixty tokens.
MOST_STEPS_BEFORE = 2.0
# Ampere to Hopper. On Blackwell vLLM has other kernels.
COMPUTE_CAPABILITIES = (8, 9)

logger = logging.getLogger(__name__)


def attention_options(model: str, dtype: str, choice: str = "auto", prompt_lengths: Collection[int] = ()) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for the model in the folder `model`; none where vLLM is to choose by itself.

    `prompt_lengths` are those, in tokens, of the prompts that all requests have (see `token_by_token`), if they are known.

    `choice`: `vllm` leaves it to vLLM. `auto` takes FlashInfer without tensor cores where model and machine fit, and
    logs one line with the reason where they do not. `flashinfer` raises UserError instead. Where it is taken, its kernels
    are compiled here the first time, which takes one core under three minutes and many cores as much less.
    """
    if choice == "vllm":
        return {}
    settings = json.loads((Path(model) / "config.json").read_text())
    level = logging.INFO
    reason = unsuited(settings, dtype)
    if reason is None:
        level = logging.WARNING
        reason = unavailable(head_size(settings), dtype)
    if reason is not None:
        if choice == "flashinfer":
            raise UserError(f"attention_backend={choice!r}: {reason}; use 'auto' or 'vllm'")
        logger.log(level, "Decoding with vLLM's own choice of attention: %s", reason)
        return {}
    return {
        # Without it FlashInfer's backend would look on the network for kernels of another kind, and prefer them.
        "attention_config": {"backend": "CUSTOM", "use_trtllm_attention": False},
        "worker_extension_cls": WORKER_EXTENSION,
        **(token_by_token(prompt_lengths) if prompt_lengths else {}),
    }


def token_by_token(prompt_lengths: Collection[int]) -> dict[str, int]:
    """Keyword arguments of `vllm.LLM` with which prompts are read one token a step; none if that would cost too many steps.

    vLLM caches whole blocks of a prompt that it has read before, and reads the rest, the last token at least, anew. A step in
    which one sequence reads several tokens is launched kernel by kernel instead of from a CUDA graph, and where sequences come
    and go all the time that is every step. Here a block ends where the prompts of `prompt_lengths` tokens end but for their
    last token, or shortly before, and what is left is read as if it were being written. All texts of a prompt then read one
    copy of its block, which stays in the GPU's own cache.
    """

    def num_left(size: int) -> int:
        return sum((length - 1) % size for length in prompt_lengths)

    block_size = min(reversed(BLOCK_SIZES), key=num_left)
    if num_left(block_size) > MOST_STEPS_BEFORE * len(prompt_lengths):
        return {}
    return {"block_size": block_size, "long_prefill_token_threshold": 1}


def head_size(settings: Mapping[str, Any]) -> int:
    """Of a model's config.json."""
    return settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]


def unsuited(settings: Mapping[str, Any], dtype: str) -> str | None:
    """Why the model of this config.json cannot or should not decode without tensor cores; None if it should."""
    family = settings.get("model_type")
    if family not in MODEL_TYPES:
        return f"model_type is {family!r}, not one of {', '.join(MODEL_TYPES)}"
    # Qwen's configs name a window and, apart from it, whether it is used.
    if settings.get("sliding_window") and settings.get("use_sliding_window", True):
        return f"the model attends to a sliding window of {settings['sliding_window']} tokens"
    num_heads = settings["num_attention_heads"]
    num_kv_heads = settings.get("num_key_value_heads") or num_heads
    if num_heads not in {size * num_kv_heads for size in GROUP_SIZES}:
        return f"{num_heads} query heads share {num_kv_heads} KV heads; tensor cores are left out for 1 or 2 to each"
    if head_size(settings) not in HEAD_SIZES:
        return f"heads have {head_size(settings)} numbers, not {', '.join(map(str, HEAD_SIZES))}"
    if dtype not in ("bfloat16", "float16"):
        return f"the kernels compute in bfloat16 and float16, not in {dtype}"
    return None


def unavailable(head_size: int, dtype: str) -> str | None:
    """Why FlashInfer's kernels cannot be had on this machine; None if they are compiled and load."""
    if find_spec("flashinfer") is None:
        return "flashinfer-python is not installed"
    from vllm import envs
    from vllm.platforms import current_platform

    if envs.VLLM_BATCH_INVARIANT:
        return "VLLM_BATCH_INVARIANT is set, which these kernels do not support"
    capability = current_platform.get_device_capability() if current_platform.is_cuda() else None
    if capability is None or capability.major not in COMPUTE_CAPABILITIES:
        found = capability and capability.as_version_str()
        return f"the GPU's compute capability is {found}, not one of 8.0 to 9.x"
    # Or FlashInfer would ask CUDA, which must not be initialised before an engine's process is forked.
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", capability.as_version_str())
    try:
        compile_kernels(head_size, dtype)
    # Whatever stops FlashInfer (no nvcc, a header missing, a full disk) must not stop an engine that runs without it.
    except Exception as error:
        # Of a compiler's pages, the line that says it.
        lines = re.findall(".*(?:error:|cannot find).*", str(error)) or [str(error)]
        return f"FlashInfer's kernels cannot be had: {type(error).__name__}: {lines[0][:300]}"
    return None


def compile_kernels(head_size: int, dtype: str) -> None:
    """Compile and load what `flashinfer_decode` runs, side by side; at once if FlashInfer's cache has them."""
    import torch
    from flashinfer.jit import JitSpec, gen_batch_decode_module, gen_batch_prefill_module

    # That FlashInfer and vLLM fit each other shows here, not in an engine.
    import pipelines.flashinfer_decode  # noqa: F401

    number = getattr(torch, dtype)
    # Query, key-value, output and index types; head sizes of keys and values; no positions, window or soft cap.
    kernel = (number, number, number, torch.int32, head_size, head_size, 0, False, False)
    fp16_reduction = False
    specs = [gen_batch_decode_module(*kernel), gen_batch_prefill_module(PREFILL, *kernel, fp16_reduction)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(JitSpec.build_and_load, specs))


def register() -> None:
    """Make `BACKEND` what vLLM means by CUSTOM in this process. May be called again."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
