"""Attention over a packed batch, registered with transformers as the implementation `packed`.

Every other part of a decoder works token by token, so only attention has to know where a sequence ends. What rows share is
computed once and each one's keys and values begin with it, which is exact: causal attention makes a prefix independent of
what follows. Two ways, the same numbers:

- on a GPU in half precision, kernels of our own on the stream as it lies (`attention_kernels.py`), which are made for rows of
  about a hundred tokens; of longer rows and other sizes of a head PyTorch's variable-length FlashAttention, on a copy of the
  keys and values for each row that shares them;
- elsewhere queries, keys and values are spread into a [row, position] grid for the length of one fused causal kernel; what the
  grid adds at the end of a row comes after that row's tokens, so the causal rule alone hides it. The rows of a prefix tree are
  many and share most of what they have, and are taken a few at a time.

A layer's sliding window counts only where a row can be longer than it: our kernels leave such rows to the others. Scores that
are capped (Gemma 2) are computed in the grid, step by step: no fused kernel caps them.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from pipelines.packing.stream import PackedInput, StreamIndex

PACKED = "packed"
ROWS_PER_GRID = 32
"""Rows of a prefix tree in one grid: few, because it is as wide as its longest row, and those of a batch differ."""
HEAD_SIZES = (16, 32, 64, 128)
"""Sizes of a head that our kernels compute: powers of two, and what a program's registers hold."""
WIDEST_FOR_KERNELS = 1_024
"""Tokens of a row, shared ones included, up to which our kernels are taken: FlashAttention's tiles are made for longer ones."""


@dataclass(frozen=True)
class _Rule:
    """What a layer asks of its attention: the factor of its scores, dropout, how far back it looks, the cap of its scores."""

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    """Tokens that one token attends to, itself included; None where no row is longer."""
    softcap: float | None = None


class _Copies(torch.autograd.Function):
    """Give every row a copy of what it shares; backwards, sum the copies' gradients without atomic additions."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, index: StreamIndex) -> torch.Tensor:
        assert index.keys is not None
        ctx.index = index
        return states.index_select(0, index.keys)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        copies, starts = ctx.index.copies, ctx.index.copy_starts
        values = grad.reshape(len(grad), -1)
        if grad.is_cuda:
            from pipelines.packing.attention_kernels import sum_copies

            sums = sum_copies(values, copies, starts)
        else:
            # Without what is in no sum, which some of its kernels count to the last one.
            sums = embedding_bag(copies[: starts[-1]], values, starts, mode="sum", include_last_offset=True)
        return sums.view(-1, *grad.shape[1:]), None


def _with_shared(states: torch.Tensor, index: StreamIndex) -> torch.Tensor:
    """The keys' states [K, ...] of the stream's [T, ...]."""
    if index.keys is None:
        return states
    copied: torch.Tensor = _Copies.apply(states, index)
    return copied


@functools.cache
def _stream_kernel() -> tuple[Any, bool]:
    """PyTorch's variable-length attention, and whether it groups heads itself (from 2.12 on)."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _stream_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedInput, rule: _Rule
) -> torch.Tensor:
    """The stream's attention. `query` [T, H, D], `key` and `value` [K, H_kv, D]; returns [T, H, D]."""
    kernel, groups_heads = _stream_kernel()
    options: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and groups_heads:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return kernel(
        query,
        key,
        value,
        packed.stream.query_starts,
        packed.stream.key_starts,
        packed.width,
        packed.width,
        scale=rule.scaling,
        window_size=(rule.window - 1 if rule.window else -1, 0),
        **options,
    )


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, rule: _Rule
) -> torch.Tensor:
    """A grid's attention. `query` [rows, H, Q, D], `key`, `value` [rows, H, K, D]; causal without a `mask` (True: seen)."""
    if rule.softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=rule.dropout, scale=rule.scaling
        )
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if rule.scaling is None else rule.scaling)
    scores = rule.softcap * torch.tanh(scores / rule.softcap)
    seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril() if mask is None else mask
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(
        -1, dtype=torch.promote_types(scores.dtype, torch.float32)
    )
    return torch.nn.functional.dropout(weights.to(value.dtype), rule.dropout) @ value


def _for_each_head(states: torch.Tensor, groups: int) -> torch.Tensor:
    """Keys or values [rows, H_kv, K, D] repeated for the `groups` heads that share each."""
    return states.repeat_interleave(groups, dim=1) if groups > 1 else states


def _grid_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedInput, rule: _Rule
) -> torch.Tensor:
    """The stream's attention on any device in a grid with a token at its row and position. Shapes as in `_stream_attention`."""
    rows, width, index = packed.num_rows, packed.width, packed.stream
    groups = query.shape[1] // key.shape[1]

    def slots_of(starts: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(len(columns), device=starts.device, dtype=starts.dtype)
        return torch.searchsorted(starts[1:], numbers, right=True) * width + columns

    def to_grid(states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        # One place more, for what is no row's.
        grid = states.new_zeros(rows * width + 1, *states.shape[1:]).index_copy(0, slots, states)
        return grid[:-1].view(rows, width, *states.shape[1:]).transpose(1, 2)

    slots = key_slots = slots_of(index.query_starts, packed.position_ids[0])
    if index.keys is not None:
        key_slots = slots_of(index.key_starts, packed.position_ids[0, index.keys]).clamp(max=rows * width)
    grid_key, grid_value = (_for_each_head(to_grid(states, key_slots), groups) for states in (key, value))
    mask = None
    if rule.window:
        mask = torch.ones(width, width, dtype=torch.bool, device=query.device).tril().triu(1 - rule.window)
    grid = _attend(to_grid(query, slots), grid_key, grid_value, mask, rule)
    return grid.transpose(1, 2).reshape(rows * width, *query.shape[1:]).index_select(0, slots)


def _tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedInput, rule: _Rule
) -> torch.Tensor:
    """A prefix tree's attention on any device, `ROWS_PER_GRID` rows at a time. `query`, `key`, `value` [T, ...]."""
    index = packed.stream
    assert index.keys is not None
    groups = query.shape[1] // key.shape[1]
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
        back = (key_lengths - lengths + column)[:, None, :, None] - key_column
        grid = _attend(
            query[queries].transpose(1, 2),
            _for_each_head(key[keys].transpose(1, 2), groups),
            _for_each_head(value[keys].transpose(1, 2), groups),
            (back >= 0) & (back < rule.window) if rule.window else back >= 0,
            rule,
        )
        pieces.append(grid.transpose(1, 2)[column < lengths])
    return torch.cat(pieces)


def _in_half_on_a_gpu(query: torch.Tensor, rule: _Rule) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not rule.dropout and rule.softcap is None


def _has_kernels(query: torch.Tensor, packed: PackedInput, rule: _Rule) -> bool:
    """Whether ours are made for this."""
    is_short = packed.width <= WIDEST_FOR_KERNELS and rule.window is None
    return is_short and _in_half_on_a_gpu(query, rule) and query.shape[2] in HEAD_SIZES


@torch.compiler.disable
def _attend_to_copies(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedInput, rule: _Rule
) -> torch.Tensor:
    """The stream's attention by other kernels, most of which are given copies of what rows share."""
    has_kernel = _in_half_on_a_gpu(query, rule)
    if packed.is_tree and not has_kernel:
        return _tree_attention(query, key, value, packed, rule)
    key, value = _with_shared(key, packed.stream), _with_shared(value, packed.stream)
    if has_kernel:
        return _stream_attention(query, key, value, packed, rule)
    return _grid_attention(query, key, value, packed, rule)


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
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Block-diagonal causal attention. `query` [1, H, T, D], `key` and `value` [1, H_kv, T, D]; returns [1, T, H, D]."""
    if packed is None:
        raise ValueError("attention implementation 'packed' needs packed=PackedInput in the model's call")
    # By what a row has room for, and not by the longest one: a captured graph is replayed with other rows.
    window = sliding_window if sliding_window is not None and packed.width > sliding_window else None
    rule = _Rule(scaling, dropout, window, softcap)
    # Squeezed, because the gradient of a tensor that is picked out is copied into zeros.
    query, key, value = (states.transpose(1, 2).squeeze(0) for states in (query, key, value))
    if _has_kernels(query, packed, rule):
        from pipelines.packing.attention_kernels import attend

        return attend(query, key, value, packed.stream, scaling)[None], None
    return _attend_to_copies(query, key, value, packed, rule)[None], None


def register_packed_attention() -> None:
    """Make `attn_implementation="packed"` known to transformers. Idempotent.

    Its mask interface is told nothing: an implementation without an entry there gets no mask, which is what the packed layout
    needs. An entry would make each forward pass look for sequences in the positions, and wait for the device to see them.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
