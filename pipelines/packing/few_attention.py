"""Attention's backward pass over few tokens, in one launch: see `attention_kernels.py`.

There is so little to compute that launches and their first loads take the time. So each program looks up whom a token sees, and
what rows share gets its gradient like any other token, from all queries of the stream that see it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

MOST_TOKENS = 128
"""Of more, the kernels that look up less are quicker."""
MOST_TILES = 64
SETTINGS = {"TILE": 64, "num_warps": 8, "num_stages": 1}


@triton.jit
def _rows_of(tokens, tiles, num_tiles, TILES: tl.constexpr):
    """Of each token where its row begins, and where what the row shares begins and ends."""
    numbers = tl.arange(0, TILES)
    there = numbers < num_tiles
    start = tl.load(tiles + 5 * numbers + 1, mask=there, other=0)
    end = tl.load(tiles + 5 * numbers + 2, mask=there, other=0)
    shared = tl.load(tiles + 5 * numbers + 3, mask=there, other=0)
    beginning = tl.load(tiles + 5 * numbers + 4, mask=there, other=0)
    own = (tokens[:, None] >= start[None, :]) & (tokens[:, None] < end[None, :])
    # A row's tiles all have the same.
    first = tl.max(tl.where(own, start[None, :], 0), axis=1)
    shared_first = tl.max(tl.where(own, beginning[None, :], 0), axis=1)
    shared_end = tl.max(tl.where(own, (beginning + shared)[None, :], 0), axis=1)
    return first, shared_first, shared_end


@triton.jit
def _seen(queries, keys, first, shared_first, shared_end):
    in_row = (keys[None, :] >= first[:, None]) & (keys[None, :] <= queries[:, None])
    in_shared = (keys[None, :] >= shared_first[:, None]) & (keys[None, :] < shared_end[:, None])
    return in_row | in_shared


@triton.jit
def _states(states, tokens, token_stride, there, CHANNELS: tl.constexpr):
    return tl.load(states + tokens[:, None] * token_stride + tl.arange(0, CHANNELS)[None, :], mask=there[:, None], other=0.0)


@triton.jit
def _weights(q, k, v, do, lse, mean, seen, log2_scale):
    """Weights of keys, and their scores' gradients before they are scaled, both [queries, keys] in the keys' type."""
    scores = tl.dot(q, tl.trans(k)) * log2_scale
    # Selected and not multiplied: the power may be infinite where nothing is seen.
    weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    gradients = weights * (tl.dot(do, tl.trans(v)) - mean[:, None])
    return weights.to(k.dtype), gradients.to(k.dtype)


@triton.jit(do_not_specialize=["num_tokens", "num_tiles"])
def _backward_kernel(
    query,
    key,
    value,
    out,  # [T, heads, CHANNELS]
    grad,
    lse,  # [heads, T], to the base 2
    query_grad,  # out: [heads, T, CHANNELS]
    key_grad,  # out: [key heads, T, CHANNELS]
    value_grad,
    tiles,
    scale,
    log2_scale,
    num_tokens,
    num_tiles,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    grad_token,
    grad_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gradients of one head's queries, or of the keys and values that a group of heads shares, for one tile of tokens."""
    number, tokens = tl.program_id(0), tl.program_id(1) * TILE + tl.arange(0, TILE)
    there = tokens < num_tokens
    width = HEADS * CHANNELS
    channels = tl.arange(0, CHANNELS)
    if number < HEADS:
        head = number
        own_key, own_value = key + (head // GROUP) * key_head, value + (head // GROUP) * value_head
        q = _states(query + head * query_head, tokens, query_token, there, CHANNELS)
        do = _states(grad + head * grad_head, tokens, grad_token, there, CHANNELS)
        o = _states(out + head * CHANNELS, tokens, width, there, CHANNELS)
        mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
        own_lse = tl.load(lse + head * num_tokens + tokens, mask=there, other=0.0)
        first, shared_first, shared_end = _rows_of(tokens, tiles, num_tiles, TILES)
        dq = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
        for block in range(0, tl.program_id(1) + 1):
            keys = block * TILE + tl.arange(0, TILE)
            k = _states(own_key, keys, key_token, keys < num_tokens, CHANNELS)
            v = _states(own_value, keys, value_token, keys < num_tokens, CHANNELS)
            seen = _seen(tokens, keys, first, shared_first, shared_end) & there[:, None]
            _, gradients = _weights(q, k, v, do, own_lse, mean, seen, log2_scale)
            dq = tl.dot(gradients, k, dq)
        at = query_grad + head * num_tokens * CHANNELS + tokens[:, None] * CHANNELS + channels[None, :]
        tl.store(at, (dq * scale).to(query_grad.dtype.element_ty), mask=there[:, None])
    else:
        number -= HEADS
        k = _states(key + number * key_head, tokens, key_token, there, CHANNELS)
        v = _states(value + number * value_head, tokens, value_token, there, CHANNELS)
        dk = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
        dv = tl.zeros([TILE, CHANNELS], dtype=tl.float32)
        for block in range(tl.program_id(1), tl.cdiv(num_tokens, TILE)):
            queries = block * TILE + tl.arange(0, TILE)
            asking = queries < num_tokens
            first, shared_first, shared_end = _rows_of(queries, tiles, num_tiles, TILES)
            seen = _seen(queries, tokens, first, shared_first, shared_end) & asking[:, None]
            for member in range(GROUP):
                head = number * GROUP + member
                q = _states(query + head * query_head, queries, query_token, asking, CHANNELS)
                do = _states(grad + head * grad_head, queries, grad_token, asking, CHANNELS)
                o = _states(out + head * CHANNELS, queries, width, asking, CHANNELS)
                mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
                own_lse = tl.load(lse + head * num_tokens + queries, mask=asking, other=0.0)
                weights, gradients = _weights(q, k, v, do, own_lse, mean, seen, log2_scale)
                dk = tl.dot(tl.trans(gradients), q, dk)
                dv = tl.dot(tl.trans(weights), do, dv)
        places = number * num_tokens * CHANNELS + tokens[:, None] * CHANNELS + channels[None, :]
        tl.store(key_grad + places, (dk * scale).to(key_grad.dtype.element_ty), mask=there[:, None])
        tl.store(value_grad + places, dv.to(value_grad.dtype.element_ty), mask=there[:, None])


def takes(num_tokens: int, tiles: torch.Tensor) -> bool:
    """Whether the kernel is made for streams of so many tokens in so many `tiles`."""
    return num_tokens <= MOST_TOKENS and len(tiles) <= MOST_TILES


def backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    tiles: torch.Tensor,
    scaling: float,
    log2_scaling: float,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Write `gradients` of `query` [heads, T, D], `key` and `value` [key heads, T, D]; the others as in `attention_kernels`."""
    num_tokens, heads, channels = query.shape
    key_heads = key.shape[1]
    strides: list[Any] = [stride for states in (query, key, value, grad) for stride in states.stride()[:2]]
    _backward_kernel[heads + key_heads, triton.cdiv(num_tokens, SETTINGS["TILE"])](
        query, key, value, out, grad, lse, *gradients, tiles, scaling, log2_scaling, num_tokens, len(tiles), *strides,
        HEADS=heads, GROUP=heads // key_heads, CHANNELS=channels, TILES=triton.next_power_of_2(len(tiles)), **SETTINGS,
    )  # fmt: skip
