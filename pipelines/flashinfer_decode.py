"""vLLM's FlashInfer backend, decoding without tensor cores; `decode_attention` says why and when.

Imported by name in an engine's worker: it needs FlashInfer and vLLM's CUDA build. Everything is vLLM's
(the cache, prefill, mixed batches, CUDA graphs with one planned wrapper for each batch size) but for how its wrappers are
set. vLLM has no setting for that, so methods and attributes of its own are overridden; they are the same in 0.26 and 0.32,
which were read, with FlashInfer 0.6.14.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.flashinfer import FlashInferBackend, FlashInferMetadataBuilder

from pipelines.decode_attention import PREFILL, register
from pipelines.engine import allocate_by_the_block


class DecodeBackend(FlashInferBackend):
    @staticmethod
    def get_builder_cls() -> type[DecodeMetadataBuilder]:
        return DecodeMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(*_: Any) -> list[int | MultipleOf]:
        # FlashInfer's own kernels take pages of any size; vLLM's list is that of others that it has in their place.
        return [MultipleOf(1)]


class DecodeMetadataBuilder(FlashInferMetadataBuilder):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The kernel splits as it sees fit and refuses to be told how, even by vLLM's -1 for no wish.
        self.decode_fixed_split_size = None
        self._planned = torch.cuda.Event()

    def _get_decode_wrapper(self, batch_size: int, use_cudagraph: bool = False) -> Any:
        wrapper = super()._get_decode_wrapper(batch_size, use_cudagraph)
        # vLLM makes it with tensor cores always. It is read when the wrapper plans and when it runs.
        wrapper._use_tensor_cores = False
        return wrapper

    def _get_prefill_wrapper(self, *args: Any, **kwargs: Any) -> Any:
        wrapper = super()._get_prefill_wrapper(*args, **kwargs)
        wrapper._backend = PREFILL
        return wrapper

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        # vLLM 0.26 would fetch the lengths from the GPU, and so wait until the step under way is over. They are known
        # here, and exact where nothing is speculated (0.32 takes them from here, too).
        common_attn_metadata._seq_lens_cpu = common_attn_metadata.seq_lens_cpu_upper_bound
        # Plans are copied to the GPU from pinned buffers, which without that wait could be filled anew too early.
        self._planned.synchronize()
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        self._planned.record()
        return metadata


class WorkerExtension:
    """Adds nothing to vLLM's worker. Being named as its extension makes the worker, in whichever process it is, import
    this module before it looks for the backend. The engine's scheduler is in that process, too.
    """


register()
allocate_by_the_block()
