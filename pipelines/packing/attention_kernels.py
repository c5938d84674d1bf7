"""Triton kernels of `attention.py`, on a GPU.

Attention over short rows. Queries, keys and values are read where they lie, also those that rows share. A program computes one
head of one tile, of one row's own tokens. Forward it passes over the keys that they see, with FlashAttention's running maximum
and sum. Backward it reads most rows once: the tile's queries meet the keys that come earlier (for the queries' gradients), then
their own (for those of both), and its keys the queries that come later. What rows share gets gradients from all of them: a
second kernel computes those in parts, of several rows at a time, and a third adds the parts.

And for other attention kernels, which are given copies of what rows share: those copies' gradients, added up.

Sums run in float32 and in a fixed order, without atomic additions; the parts are rounded in between. How
many programs there are depends on shapes only, and not on where rows begin.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from pipelines.packing import few_attention
from pipelines.packing.stream import TOKENS_PER_SUM, TOKENS_PER_TILE, StreamIndex

COPIES, BLOCK = 8, 1024
"""Copies and channels that a program adds up at a time: 16 bytes a thread and copy in half precision."""
FORWARD = {"KEYS": 32, "num_warps": 4, "num_stages": 2}
# By whether heads share keys, whose gradients then stay in registers while each head's queries have theirs.
BACKWARD = {
    False: {"KEYS": 32, "num_warps": 4, "num_stages": 1},
    True: {"KEYS": 32, "num_warps": 8, "num_stages": 1},
}
PARTS = {"QUERIES": 64, "KEYS": 32, "num_warps": 4, "num_stages": 2}
SUMS = {"PARTS": 4, "num_warps": 4}


@triton.jit
def _load(states, places, token_stride, there, CHANNELS: tl.constexpr):
    """[places, CHANNELS] of one head, zeros where nothing is there."""
    # In 64 bits: a long batch of a wide model has more than 2^31 values.
    pointers = states + places.to(tl.int64)[:, None] * token_stride + tl.arange(0, CHANNELS)[None, :]
    return tl.load(pointers, mask=there[:, None], other=0.0)


@triton.jit
def _store(states, places, token_stride, there, values, CHANNELS: tl.constexpr):
    pointers = states + places.to(tl.int64)[:, None] * token_stride + tl.arange(0, CHANNELS)[None, :]
    tl.store(pointers, values.to(states.dtype.element_ty), mask=there[:, None])


@triton.jit
def _five(table, row):
    """The numbers of one row of `attention_tiles`, or of `prefix_parts`."""
    row = table + 5 * row
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit(do_not_specialize=["num_tokens"])
def _forward_kernel(
    query,
    key,
    value,
    out,  # [T, heads, CHANNELS]
    lse,  # out: [heads, T], to the base 2
    tiles,
    key_places,  # of a prefix tree
    scale,  # with the factor from base e to base 2
    num_tokens,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    GROUP: tl.constexpr,  # heads that share keys and values
    CHANNELS: tl.constexpr,
    IS_TREE: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
):
    head, tile = tl.program_id(0), tl.program_id(1)
    first, start, end, shared, beginning = _five(tiles, tile)
    if first >= end:
        return
    tokens = first + tl.arange(0, TILE)
    q = _load(query + head * query_head, tokens, query_token, tokens < end, CHANNELS)
    key += (head // GROUP) * key_head
    value += (head // GROUP) * value_head
    positions = tokens - start + shared
    num_keys = min(first + TILE, end) - start + shared
    highest = tl.full([TILE], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE], dtype=tl.float32)
    mean = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
    for first_key in range(0, num_keys, KEYS):
        numbers = first_key + tl.arange(0, KEYS)
        there = numbers < num_keys
        if IS_TREE:
            places = tl.load(key_places + beginning + numbers, mask=there, other=0)
        else:
            places = tl.where(numbers < shared, beginning, start - shared) + numbers
        k = _load(key, places, key_token, there, CHANNELS)
        scores = tl.dot(q, tl.trans(k)) * scale
        scores = tl.where(numbers[None, :] <= positions[:, None], scores, float("-inf"))
        # Every token sees the first key, so this is finite.
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_highest[:, None])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, axis=1)
        v = _load(value, places, value_token, there, CHANNELS)
        mean = tl.dot(weights.to(v.dtype), v, mean * decay[:, None])
        highest = new_highest
    width = tl.num_programs(0) * CHANNELS
    _store(out + head * CHANNELS, tokens, width, tokens < end, mean / total[:, None], CHANNELS)
    tl.store(lse + head.to(tl.int64) * num_tokens + tokens, highest + tl.log2(total), mask=tokens < end)


@triton.jit
def _weights(q, k, v, do, lse, mean, seen, scale):
    """Weights of keys, and their scores' gradients before they are scaled, both [queries, keys] in the keys' type."""
    scores = tl.dot(q, tl.trans(k)) * scale
    # Selected and not multiplied: the power may be infinite where nothing is seen.
    weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    gradients = weights * (tl.dot(do, tl.trans(v)) - mean[:, None])
    return weights.to(k.dtype), gradients.to(k.dtype)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward_kernel(
    query,
    key,
    value,
    out,
    grad,
    lse,
    mean,  # out: [heads, T], the sum of what is attended to times its gradient
    query_grad,  # out: [heads, T, CHANNELS]
    key_grad,  # out: [key heads, T, CHANNELS]
    value_grad,
    tiles,
    scale,
    log2_scale,
    num_tokens,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    grad_token,
    grad_head,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
):
    """All of the queries' gradients, and of the keys' and values' what comes from their own row."""
    number, tile = tl.program_id(0), tl.program_id(1)
    first, start, end, shared, beginning = _five(tiles, tile)
    if first >= end:
        return
    key += number * key_head
    value += number * value_head
    width = tl.num_programs(0) * GROUP * CHANNELS
    tokens = first + tl.arange(0, TILE)
    there = tokens < end
    num_before = first - start + shared
    dk = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
    dv = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
    for member in range(GROUP):
        head = number * GROUP + member
        numbers_of_head = head.to(tl.int64) * num_tokens
        q = _load(query + head * query_head, tokens, query_token, there, CHANNELS)
        do = _load(grad + head * grad_head, tokens, grad_token, there, CHANNELS)
        o = _load(out + head * CHANNELS, tokens, width, there, CHANNELS)
        own_mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
        tl.store(mean + numbers_of_head + tokens, own_mean, mask=there)
        own_lse = tl.load(lse + numbers_of_head + tokens, mask=there, other=0.0)
        dq = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
        for first_key in range(0, num_before, KEYS):
            numbers = first_key + tl.arange(0, KEYS)
            before = numbers < num_before
            places = tl.where(numbers < shared, beginning, start - shared) + numbers
            k = _load(key, places, key_token, before, CHANNELS)
            v = _load(value, places, value_token, before, CHANNELS)
            _, gradients = _weights(q, k, v, do, own_lse, own_mean, before[None, :], log2_scale)
            dq = tl.dot(gradients, k, dq)
        k = _load(key, tokens, key_token, there, CHANNELS)
        v = _load(value, tokens, value_token, there, CHANNELS)
        seen = (tokens[None, :] <= tokens[:, None]) & there[None, :]
        weights, gradients = _weights(q, k, v, do, own_lse, own_mean, seen, log2_scale)
        dq = tl.dot(gradients, k, dq)
        _store(query_grad + numbers_of_head * CHANNELS, tokens, CHANNELS, there, dq * scale, CHANNELS)
        dk = tl.dot(tl.trans(gradients), q, dk)
        dv = tl.dot(tl.trans(weights), do, dv)
        for first_later in range(first + TILE, end, TILE):
            later = first_later + tl.arange(0, TILE)
            q = _load(query + head * query_head, later, query_token, later < end, CHANNELS)
            do = _load(grad + head * grad_head, later, grad_token, later < end, CHANNELS)
            o = _load(out + head * CHANNELS, later, width, later < end, CHANNELS)
            later_mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
            later_lse = tl.load(lse + numbers_of_head + later, mask=later < end, other=0.0)
            weights, gradients = _weights(q, k, v, do, later_lse, later_mean, there[None, :], log2_scale)
            dk = tl.dot(tl.trans(gradients), q, dk)
            dv = tl.dot(tl.trans(weights), do, dv)
    before_head = number.to(tl.int64) * num_tokens * CHANNELS
    _store(key_grad + before_head, tokens, CHANNELS, there, dk * scale, CHANNELS)
    _store(value_grad + before_head, tokens, CHANNELS, there, dv, CHANNELS)


@triton.jit(do_not_specialize=["num_tokens"])
def _parts_kernel(
    query,
    key,
    value,
    grad,
    lse,
    mean,
    key_parts,  # out: [tokens of parts, key heads, CHANNELS]
    value_parts,
    parts,
    scale,
    log2_scale,
    num_tokens,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    grad_token,
    grad_head,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A prefix's gradients that come from some of the rows that share it, all of whose tokens see all of the prefix."""
    number, part = tl.program_id(0), tl.program_id(1)
    first_key, end_key, first, end, before = _five(parts, part)
    key += number * key_head
    value += number * value_head
    key_width = tl.num_programs(0) * CHANNELS
    for offset in range(0, end_key - first_key, KEYS):
        places = first_key + offset + tl.arange(0, KEYS)
        there = places < end_key
        k = _load(key, places, key_token, there, CHANNELS)
        v = _load(value, places, value_token, there, CHANNELS)
        dk = tl.zeros([KEYS, CHANNELS], dtype=tl.float32)
        dv = tl.zeros([KEYS, CHANNELS], dtype=tl.float32)
        for member in range(GROUP):
            head = number * GROUP + member
            for first_query in range(first, end, QUERIES):
                tokens = first_query + tl.arange(0, QUERIES)
                q = _load(query + head * query_head, tokens, query_token, tokens < end, CHANNELS)
                do = _load(grad + head * grad_head, tokens, grad_token, tokens < end, CHANNELS)
                numbers = head.to(tl.int64) * num_tokens + tokens
                own_lse = tl.load(lse + numbers, mask=tokens < end, other=0.0)
                own_mean = tl.load(mean + numbers, mask=tokens < end, other=0.0)
                weights, gradients = _weights(q, k, v, do, own_lse, own_mean, there[None, :], log2_scale)
                dk = tl.dot(tl.trans(gradients), q, dk)
                dv = tl.dot(tl.trans(weights), do, dv)
        written = before + offset + tl.arange(0, KEYS)
        _store(key_parts + number * CHANNELS, written, key_width, there, dk * scale, CHANNELS)
        _store(value_parts + number * CHANNELS, written, key_width, there, dv, CHANNELS)


@triton.jit(do_not_specialize=["num_tokens"])
def _add_parts_kernel(
    key_grad,  # added to: [key heads, T, CHANNELS]
    value_grad,
    key_parts,  # [tokens of parts, key heads, CHANNELS]
    value_parts,
    sums,
    num_tokens,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """grad += a prefix's parts, for one block of its tokens and one head."""
    number, block = tl.program_id(0), tl.program_id(1)
    first, end, length, num_parts, before = _five(sums, block)
    if num_parts == 0:
        return
    key_width = tl.num_programs(0) * CHANNELS
    grad, parts = key_grad, key_parts
    if tl.program_id(2) == 1:
        grad, parts = value_grad, value_parts
    grad += number.to(tl.int64) * num_tokens * CHANNELS
    parts += number * CHANNELS
    offsets = tl.arange(0, TOKENS)
    there = first + offsets < end
    total = _load(grad, first + offsets, CHANNELS, there, CHANNELS).to(tl.float32)
    for first_part in range(0, num_parts, PARTS):
        for one in tl.static_range(PARTS):
            part = first_part + one
            places = before + part * length + offsets
            total += _load(parts, places, key_width, there & (part < num_parts), CHANNELS).to(tl.float32)
    _store(grad, first + offsets, CHANNELS, there, total, CHANNELS)


# Custom operators, so that a compiled decoder layer is one graph.


@torch.library.custom_op("blindsweep::attend_stream", mutates_args=())
def attend_stream(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tiles: torch.Tensor,
    keys: torch.Tensor | None,
    parts: torch.Tensor | None,
    sums: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [T, H, D] and, for the backward pass, its normalizers' logarithms to the base 2 [H, T].

    `query` [T, H, D], `key` and `value` [T, H_kv, D], D a power of two from 16 to 128; the others as in `StreamIndex`, `keys`
    without `parts` being a prefix tree's, of which there is no backward pass.
    """
    query, key, value = (_with_channels_together(states) for states in (query, key, value))
    num_tokens, heads, channels = query.shape
    out = query.new_empty(num_tokens, heads, channels)
    lse = query.new_empty(heads, num_tokens, dtype=torch.float32)
    is_tree = keys is not None and parts is None
    _forward_kernel[(heads, len(tiles))](
        query, key, value, out, lse, tiles, keys if is_tree else tiles, scaling * math.log2(math.e),
        num_tokens, *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        GROUP=heads // key.shape[1], CHANNELS=channels, IS_TREE=is_tree, TILE=TOKENS_PER_TILE, **FORWARD,
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("blindsweep::attend_stream_backward", mutates_args=())
def attend_stream_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    tiles: torch.Tensor,
    keys: torch.Tensor | None,
    parts: torch.Tensor | None,
    sums: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `query`, `key` and `value` of `attend_stream`, from `grad` [T, H, D] of the attention."""
    grad, query, key, value = (_with_channels_together(states) for states in (grad, query, key, value))
    num_tokens, heads, channels = query.shape
    key_heads = key.shape[1]
    # Head by head, as a compiled layer asks for them, which would copy them otherwise.
    query_grad, mean = query.new_empty(heads, num_tokens, channels), torch.empty_like(lse)
    # Apart: what an operator returns must not share memory.
    key_grad, value_grad = (query.new_empty(key_heads, num_tokens, channels) for _ in range(2))
    grid = (key_heads, len(tiles))
    strides = [stride for states in (query, key, value, grad) for stride in states.stride()[:2]]
    scales = (scaling, scaling * math.log2(math.e))
    sizes = {"GROUP": heads // key_heads, "CHANNELS": channels}
    if few_attention.takes(num_tokens, tiles):
        few_attention.backward(query, key, value, out, grad, lse, tiles, *scales, (query_grad, key_grad, value_grad))
        return query_grad.transpose(0, 1), key_grad.transpose(0, 1), value_grad.transpose(0, 1)
    _backward_kernel[grid](
        query, key, value, out, grad, lse, mean, query_grad, key_grad, value_grad, tiles,
        *scales, num_tokens, *strides, **sizes, TILE=TOKENS_PER_TILE, **BACKWARD[heads > key_heads],
    )  # fmt: skip
    if keys is not None:
        assert parts is not None and sums is not None, "a prefix tree has no backward pass"
        key_parts, value_parts = query.new_empty(2, len(keys) - num_tokens, key_heads, channels)
        _parts_kernel[(key_heads, len(parts))](
            query, key, value, grad, lse, mean, key_parts, value_parts, parts,
            *scales, num_tokens, *strides, **sizes, **PARTS,
        )  # fmt: skip
        _add_parts_kernel[(key_heads, len(sums), 2)](
            key_grad, value_grad, key_parts, value_parts, sums, num_tokens,
            CHANNELS=channels, TOKENS=TOKENS_PER_SUM, **SUMS,
        )  # fmt: skip
    return query_grad.transpose(0, 1), key_grad.transpose(0, 1), value_grad.transpose(0, 1)


@attend_stream.register_fake
def _(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens, heads, channels = query.shape
    return query.new_empty(num_tokens, heads, channels), query.new_empty(heads, num_tokens, dtype=torch.float32)


@attend_stream_backward.register_fake
def _(grad: torch.Tensor, *states: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query_grad, key_grad, value_grad = (
        state.new_empty(state.shape[1], state.shape[0], state.shape[2]).transpose(0, 1) for state in states[:3]
    )
    return query_grad, key_grad, value_grad


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *states, tiles, keys, parts, sums, ctx.scaling = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*states, *output, tiles, keys, parts, sums)


def _backward(ctx: Any, grad: torch.Tensor | None, _: Any) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    return *attend_stream_backward(grad, *ctx.saved_tensors, ctx.scaling), *(None,) * 5


attend_stream.register_autograd(_backward, setup_context=_save_for_backward)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, index: StreamIndex, scaling: float | None
) -> torch.Tensor:
    """`attend_stream` over the rows of `index`."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return attend_stream(query, key, value, index.tiles, index.keys, index.parts, index.sums, scaling)[0]


def _with_channels_together(states: torch.Tensor) -> torch.Tensor:
    return states if states.stride(-1) == 1 else states.contiguous()


@triton.jit
def _sum_copies_kernel(
    values,  # [K, channels]
    sums,  # out: [T, channels]
    copies,
    starts,
    channels,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sums = the sum of one token's copies, for one block of channels."""
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    end = tl.load(starts + token + 1)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(tl.load(starts + token), end, COPIES):
        numbers = first + tl.arange(0, COPIES)
        # In 64 bits: a long batch of a wide model has more than 2^31 values.
        places = tl.load(copies + numbers, mask=numbers < end, other=0).to(tl.int64)
        found = tl.load(
            values + places[:, None] * channels + columns[None, :],
            mask=(numbers < end)[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(found.to(tl.float32), axis=0)
    tl.store(sums + token.to(tl.int64) * channels + columns, total.to(sums.dtype.element_ty), mask=inside)


def sum_copies(values: torch.Tensor, copies: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The sums [T, channels] of rows of `values` [K, channels]: row t's are `copies[starts[t]:starts[t + 1]]`, both int32."""
    values = values.contiguous()
    num_tokens, channels = len(starts) - 1, values.shape[1]
    sums = values.new_empty(num_tokens, channels)
    grid = (num_tokens, triton.cdiv(channels, BLOCK))
    _sum_copies_kernel[grid](values, sums, copies, starts, channels, COPIES=COPIES, BLOCK=BLOCK)
    return sums
