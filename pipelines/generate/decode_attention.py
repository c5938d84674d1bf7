"""The choice of attention kernels that an engine decodes with.

A decoding step reads every cached key and value once and computes little with them, so the GPU's memory sets its pace. The
kernels that vLLM chooses work in tiles made for many query heads that share a KV head. Where every KV head has a query head
to itself, as in Llama 2, the tiles are almost empty, and FlashAttention reads at a fraction of the memory's rate.
`decode_kernel` reads faster than memory alone could give, as texts share their prompt's block, which stays in the GPU's cache;
`triton_decode` is the backend that vLLM loads by name.

The texts have the same distribution with either: sums are rounded in another order, as they are in another batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

CHOICES = ("auto", "vllm", "triton")

BACKEND = "pipelines.generate.triton_decode.DecodeBackend"
WORKER_EXTENSION = "pipelines.generate.triton_decode.WorkerExtension"

# Families whose every layer is plain causal attention, if no window is set.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Query heads to a KV head. The kernel takes any number, but reads a KV head once for each, from the GPU's cache, and the more
# there are the fuller are vLLM's tiles. With 3 the attention is not faster; but steps are alike (`token_by_token`), and a small
# model's are launched from one CUDA graph instead of kernel by kernel. From 4 on nothing is known to be won.
GROUP_SIZES = (1, 2, 3)
# Powers of 2, of which a warp reads one whole or several at once.
HEAD_SIZES = (64, 128, 256)
# Tokens of a block of the cache: fewer make lists of blocks long, and of more a text's last block leaves more empty.
BLOCK_SIZES = range(8, 33)
# Steps that a text may wait for its first token, on average, so that all steps are alike; one writes about sixty tokens.
MOST_STEPS_BEFORE = 2.0
# Ampere to Hopper. On Blackwell vLLM has other kernels.
COMPUTE_CAPABILITIES = (8, 9)

logger = logging.getLogger(__name__)


def attention_options(model: str, dtype: str, choice: str = "auto", prompt_lengths: Collection[int] = ()) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for the model in the folder `model`; none where vLLM is to choose by itself.

    `prompt_lengths` are those, in tokens, of the prompts that all requests have (see `token_by_token`), if they are known.

    `choice`: `vllm` leaves it to vLLM. `auto` takes our kernel where model and machine fit, and logs one line with the reason
    where they do not. `triton` raises UserError instead.
    """
    if choice == "vllm":
        return {}
    settings = json.loads((Path(model) / "config.json").read_text())
    level = logging.INFO
    reason = unsuited(settings, dtype)
    if reason is None:
        level = logging.WARNING
        reason = unavailable()
    if reason is not None:
        if choice == "triton":
            raise UserError(f"attention_backend={choice!r}: {reason}; use 'auto' or 'vllm'")
        logger.log(level, "Decoding with vLLM's own choice of attention: %s", reason)
        return {}
    return {
        "attention_config": {"backend": "CUSTOM"},
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
    """Numbers of one attention head, by a model's config.json."""
    return settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]


def unsuited(settings: Mapping[str, Any], dtype: str) -> str | None:
    """The reason why the model of this config.json cannot or should not decode with our kernel; None if it should."""
    family = settings.get("model_type")
    if family not in MODEL_TYPES:
        return f"model_type is {family!r}, not one of {', '.join(MODEL_TYPES)}"
    # Qwen's configs name a window and, apart from it, whether it is used.
    if settings.get("sliding_window") and settings.get("use_sliding_window", True):
        return f"the model attends to a sliding window of {settings['sliding_window']} tokens"
    num_heads = settings["num_attention_heads"]
    num_kv_heads = settings.get("num_key_value_heads") or num_heads
    if num_heads not in {size * num_kv_heads for size in GROUP_SIZES}:
        return f"{num_heads} query heads share {num_kv_heads} KV heads; ours is for 1 to 3 to each"
    if head_size(settings) not in HEAD_SIZES:
        return f"heads have {head_size(settings)} numbers, not {', '.join(map(str, HEAD_SIZES))}"
    if dtype not in ("bfloat16", "float16"):
        return f"the kernel is for bfloat16 and float16, not for {dtype}"
    return None


def unavailable() -> str | None:
    """The reason why this machine cannot run our kernel; None if it can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    from vllm import envs
    from vllm.platforms import current_platform

    if envs.VLLM_BATCH_INVARIANT:
        return "VLLM_BATCH_INVARIANT is set, which is for vLLM's own kernels"
    capability = current_platform.get_device_capability() if current_platform.is_cuda() else None
    if capability is None or capability.major not in COMPUTE_CAPABILITIES:
        version = capability and capability.as_version_str()
        return f"the GPU's compute capability is {version}, not one of 8.0 to 9.x"
    return None


def register() -> None:
    """Make `BACKEND` what vLLM means by CUSTOM in this process. May be called again."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
