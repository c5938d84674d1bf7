"""vLLM's Triton backend with `decode_kernel` for decoding steps; `decode_attention` says why and when.

Imported by name in an engine's worker: it needs vLLM's CUDA build. Everything is vLLM's (the cache, what is written into it,
steps in which a sequence reads several tokens, CUDA graphs) but for the attention of steps in which each reads one. Methods
that are overridden are the same in vLLM 0.26 and 0.32, which were read.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend, TritonAttentionImpl

from pipelines.generate.decode_attention import register
from pipelines.generate.decode_kernel import decode
from pipelines.generate.engine import allocate_by_the_block


class DecodeBackend(TritonAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[DecodeImpl]:
        return DecodeImpl

    # vLLM's kernels take blocks of any size, too; its multiples of 16 are for caches of other types.

    @staticmethod
    def get_supported_kernel_block_sizes(*_: Any) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        return True

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, *_: Any, **__: Any
    ) -> tuple[int, ...]:
        """The cache's shape, for a vLLM that asks its backend for it (0.26)."""
        return num_blocks, num_kv_heads, block_size, 2 * head_size


class DecodeImpl(TritonAttentionImpl):
    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # No metadata: a run that finds out how much memory is needed. Scales: outputs are to be quantised.
        if attn_metadata is None or attn_metadata.max_query_len > 1 or output_scale is not None:
            rest = attn_metadata, output, output_scale, output_block_scale
            return super().forward(layer, query, key, value, kv_cache, *rest)
        num = attn_metadata.num_actual_tokens
        decode(output[:num], query[:num], kv_cache, attn_metadata.block_table, attn_metadata.seq_lens, self.scale)
        return output


class WorkerExtension:
    """Adds nothing to vLLM's worker. Being named as its extension makes the worker, in whichever process it is, import
    this module before it looks for the backend. The engine's scheduler is in that process, too.
    """


register()
allocate_by_the_block()
