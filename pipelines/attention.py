"""Attention over a packed batch, registered with transformers as the implementation `packed`.

Every other part of a decoder works token by token, so only attention has to know where a sequence ends. What rows share is
computed once and each one's keys and values begin with it, which is exact: causal attention makes a prefix independent of
what follows. Two ways, the same numbers:

- on a GPU in half precision, PyTorch's variable-length FlashAttention, on the stream as it lies;
- elsewhere queries, keys and values are spread into a [row, width] grid for the length of one fused causal kernel; what the
  grid adds at the end of a row comes after that row's tokens, so the causal rule alone hides it. Rows of a prefix tree differ
  in where they begin, and are taken a few at a time.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from pipelines.adapters import Segments
from pipelines.packing import PackedBatch, key_places

PACKED = "packed"
ROWS_PER_GRID = 32
"""Rows of a prefix tree in one grid: as wide as its longest row, and those of a batch differ."""


@dataclass(frozen=True)
class StreamIndex:
    """Where rows begin, for the variable-length kernel. The prefix, if any, is a row of its own before the others.

    Shapes: `query_starts`, `key_starts` int32 [rows + 1]. A row's keys are the tokens that it shares and its own: `keys` int64
    [key_starts[-1]] picks them from the stream, where anything is shared. With a prefix of P tokens `own` int64 [T - P] and
    `prefixes` int64 [(num_rows + 1) * P] say where each copy went.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int
    prefix_length: int
    keys: torch.Tensor | None
    own: torch.Tensor | None
    prefixes: torch.Tensor | None


@dataclass(frozen=True)
class PackedInput:
    """A `PackedBatch` on a device, with the `segments` of its adapters if the model has any.

    Shapes: `input_ids`, `position_ids` [1, T]; `slots` [T - P]; `last_index` [num_rows].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    slots: torch.Tensor
    last_index: torch.Tensor
    prefix_length: int
    num_rows: int
    width: int
    stream: StreamIndex | None = None
    segments: Segments | None = None

    @classmethod
    def from_batch(cls, batch: PackedBatch, device: torch.device | str, segments: Segments | None = None) -> PackedInput:
        on_gpu = torch.device(device).type == "cuda"

        def move(array: Any) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor

        return cls(
            input_ids=move(batch.input_ids)[None],
            position_ids=move(batch.position_ids)[None],
            slots=move(batch.slots),
            last_index=move(batch.last_index),
            prefix_length=batch.prefix_length,
            num_rows=batch.num_rows,
            width=batch.width,
            stream=_stream_index(batch, move) if on_gpu or batch.is_tree else None,
            segments=segments,
        )

    def tensors(self) -> list[torch.Tensor]:
        """Everything on the device, in a fixed order; two inputs of one shape differ in nothing else."""
        own = [self.input_ids, self.position_ids, self.slots, self.last_index]
        own += self.segments.tensors() if self.segments else []
        if self.stream is None:
            return own
        kept = (getattr(self.stream, name) for name in ("query_starts", "key_starts", "keys", "own", "prefixes"))
        return own + [tensor for tensor in kept if tensor is not None]


def _stream_index(batch: PackedBatch, move: Any) -> StreamIndex:
    prefix, lengths, shared = batch.prefix_length, batch.lengths, batch.shared
    if prefix:
        lengths, shared = np.append(prefix, lengths), np.append(0, shared)
    query_starts = move(_starts(lengths))
    if not shared.any():
        return StreamIndex(query_starts, query_starts, batch.width, batch.width, 0, None, None, None)
    keys = key_places(lengths, shared)
    return StreamIndex(
        query_starts=query_starts,
        key_starts=move(_starts(shared + lengths)),
        longest_query=max(prefix, batch.width),
        longest_key=max(prefix + batch.width, int((shared + lengths).max())),
        prefix_length=prefix,
        keys=move(keys),
        own=move(np.flatnonzero(keys >= prefix)) if prefix else None,
        prefixes=move(np.flatnonzero(keys < prefix)) if prefix else None,
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(lengths)).astype(np.int32)


class _RepeatPrefix(torch.autograd.Function):
    """Give every row a copy of the prefix; backwards, sum the copies' gradients without atomic additions."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, index: StreamIndex) -> torch.Tensor:
        assert index.keys is not None
        ctx.index = index
        return states.index_select(0, index.keys)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        index = ctx.index
        copies = grad.index_select(0, index.prefixes).view(-1, index.prefix_length, *grad.shape[1:])
        return torch.cat([copies.sum(0), grad.index_select(0, index.own)]), None


@functools.cache
def _stream_kernel() -> tuple[Any, bool]:
    """PyTorch's variable-length attention, and whether it groups heads itself (from 2.12 on)."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _stream_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, index: StreamIndex, scaling: float | None
) -> torch.Tensor:
    """The stream's attention. `query` [T, H, D], `key` and `value` [T, H_kv, D]; returns [T, H, D]."""
    kernel, groups_heads = _stream_kernel()
    options: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and groups_heads:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if index.prefix_length:
        key, value = _RepeatPrefix.apply(key, index), _RepeatPrefix.apply(value, index)
    elif index.keys is not None:
        key, value = key.index_select(0, index.keys), value.index_select(0, index.keys)
    return kernel(
        query,
        key,
        value,
        index.query_starts,
        index.key_starts,
        index.longest_query,
        index.longest_key,
        scale=scaling,
        window_size=(-1, 0),
        **options,
    )


def _tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, index: StreamIndex, scaling: float | None, dropout: float
) -> torch.Tensor:
    """A prefix tree's attention on any device, `ROWS_PER_GRID` rows at a time. Shapes as in `_stream_attention`."""
    assert index.keys is not None
    pieces = []
    for first in range(0, len(index.query_starts) - 1, ROWS_PER_GRID):
        rows = slice(first, first + ROWS_PER_GRID + 1)
        query_starts, key_starts = index.query_starts[rows, None], index.key_starts[rows, None]
        lengths, key_lengths = query_starts.diff(dim=0), key_starts.diff(dim=0)
        column = torch.arange(int(lengths.max()), device=query.device)
        key_column = torch.arange(int(key_lengths.max()), device=query.device)
        # Past a row's end any token will do: none of the row's own looks there.
        queries = (query_starts[:-1] + column).clamp(max=len(query) - 1)
        keys = index.keys[(key_starts[:-1] + key_column).clamp(max=len(index.keys) - 1)]
        position = key_lengths - lengths + column
        grid = scaled_dot_product_attention(
            query[queries].transpose(1, 2),
            key[keys].transpose(1, 2),
            value[keys].transpose(1, 2),
            attn_mask=key_column <= position[:, None, :, None],
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] > key.shape[1],
        )
        pieces.append(grid.transpose(1, 2)[column < lengths])
    return torch.cat(pieces)


@torch.compiler.disable
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedInput | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Block-diagonal causal attention. `query` [1, H, T, D], `key` and `value` [1, H_kv, T, D]; returns [1, T, H, D]."""
    if packed is None:
        raise ValueError("attention implementation 'packed' needs packed=PackedInput in the model's call")
    prefix, rows, width = packed.prefix_length, packed.num_rows, packed.width
    longest = packed.stream.longest_key if packed.stream else prefix + width
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(
            f"a sequence of {longest} tokens exceeds the model's sliding window of {sliding_window}; "
            "packed attention is exact up to the window only: shorten the examples"
        )
    has_kernel = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout
    if packed.stream is not None and (has_kernel or (packed.stream.keys is not None and not prefix)):
        query, key, value = (states.transpose(1, 2)[0] for states in (query, key, value))
        if has_kernel:
            return _stream_attention(query, key, value, packed.stream, scaling)[None], None
        return _tree_attention(query, key, value, packed.stream, scaling, dropout)[None], None
    num_heads, head_dim = query.shape[1], query.shape[3]
    groups = num_heads // key.shape[1]

    def to_grid(states: torch.Tensor) -> torch.Tensor:
        own = states.transpose(1, 2)[0, prefix:]
        grid = own.new_zeros(rows * width, *own.shape[1:]).index_copy(0, packed.slots, own)
        return grid.view(rows, width, *own.shape[1:]).transpose(1, 2)

    def per_query_head(states: torch.Tensor) -> torch.Tensor:
        return states.repeat_interleave(groups, dim=1) if groups > 1 else states

    grid_key, grid_value = to_grid(key), to_grid(value)
    pieces = []
    mask: Any = None
    if prefix:
        prefix_key, prefix_value = key[:, :, :prefix], value[:, :, :prefix]
        before = scaled_dot_product_attention(
            query[:, :, :prefix],
            per_query_head(prefix_key),
            per_query_head(prefix_value),
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
        )
        pieces.append(before.transpose(1, 2)[0])
        grid_key = torch.cat([prefix_key.expand(rows, -1, -1, -1), grid_key], dim=2)
        grid_value = torch.cat([prefix_value.expand(rows, -1, -1, -1), grid_value], dim=2)
        if query.is_cuda:
            mask = causal_lower_right(width, prefix + width)
        else:
            mask = torch.ones(width, prefix + width, dtype=torch.bool, device=query.device).tril(prefix)
    grid = scaled_dot_product_attention(
        to_grid(query),
        per_query_head(grid_key),
        per_query_head(grid_value),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
    )
    pieces.append(grid.transpose(1, 2).reshape(rows * width, num_heads, head_dim).index_select(0, packed.slots))
    return torch.cat(pieces)[None] if len(pieces) > 1 else pieces[0][None], None


def register_packed_attention() -> None:
    """Make `attn_implementation="packed"` known to transformers. Idempotent.

    Its mask interface is told nothing: an implementation without an entry there gets no mask, which is what the packed layout
    needs. An entry would make each forward pass look for sequences in the positions, and wait for the device to see them.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
