"""Triton kernels of `adapters.py`: what LoRA adds to a frozen matrix product, in half precision on a GPU.

All of it is bound by memory traffic, so each kernel reads its one big operand once, and dropout masks are computed in registers
instead of being stored. What is added to a product is written first and becomes the product's accumulator (cuBLAS, beta = 1):
the big output is then rounded once, and read by the product's epilogue rather than by a kernel of its own.

Sums run in float32 and in a fixed order, without atomic additions. Where a kernel would have too few programs to fill a GPU,
its sum is cut into parts that a second kernel adds; how many depends on shapes only, never on the device or a measurement.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pipelines.adapters import MULTIPLIERS, TOKENS_PER_TILE, drop_below

# Two for each multiprocessor of an H100 or H200, so that one waits for memory while the other computes.
PROGRAMS = 256
MAX_PARTS = 8
SUMMED_PER_PROGRAM = 1_024
# By whether the rank is above 64: channels of one iteration (shrink), of one program (expand, gradients), pipeline stages.
SHRINK = {False: {"BLOCK": 128, "num_stages": 3, "num_warps": 4}, True: {"BLOCK": 64, "num_stages": 4, "num_warps": 4}}
EXPAND = {False: {"BLOCK": 128, "num_stages": 2, "num_warps": 4}, True: {"BLOCK": 128, "num_stages": 2, "num_warps": 8}}
GRADIENT = {False: {"BLOCK": 64, "num_stages": 4, "num_warps": 4}, True: {"BLOCK": 64, "num_stages": 4, "num_warps": 4}}

_FIRST = tl.constexpr(MULTIPLIERS[0])
_SECOND = tl.constexpr(MULTIPLIERS[1] + 2**32)


@triton.jit
def _stir(words):
    """`adapters._stir` on uint32 words, whose shifts need no masking."""
    words *= _FIRST
    words ^= words >> 15
    return words * _SECOND


@triton.jit
def _row_words(keys, rows, valid, salt):
    return _stir((tl.load(keys + rows, mask=valid, other=0) + tl.load(salt)).to(tl.uint32, bitcast=True))


@triton.jit
def _keep(row_words, channels, threshold):
    """`adapters.keep_mask` of the words of rows and the numbers of channels, [rows, channels]."""
    factors = _stir(row_words) | 1
    channels = channels.to(tl.uint32, bitcast=True)
    columns = (_stir(channels) << 16) ^ channels
    words = (row_words[:, None] ^ columns[None, :]) * factors[:, None]
    return words.to(tl.int32, bitcast=True) >= threshold


@triton.jit(do_not_specialize=["threshold"])
def _shrink_kernel(
    wide,  # [T, channels]
    weight,  # [N, rank, channels] by its strides
    narrow,  # out: [parts, T, rank]
    tiles,
    keys,
    salt,
    threshold,
    scale,
    num_tokens,
    channels,
    channels_per_part,
    rank,
    adapter_stride,
    rank_stride,
    channel_stride,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """narrow = scale · dropout(wide) @ weight[adapter]ᵀ, for one tile of tokens and one part of the channels."""
    tile, part = tl.program_id(0), tl.program_id(1)
    # In 64 bits: adapters of a large model may lie more than 2^31 elements apart.
    adapter = tl.load(tiles + tile * 3).to(tl.int64)
    rows = tl.load(tiles + tile * 3 + 1) + tl.arange(0, TILE)
    valid = rows < tl.load(tiles + tile * 3 + 2)
    places = rows.to(tl.int64)
    ranks = tl.arange(0, RANK)
    if DROP:
        row_words = _row_words(keys, rows, valid, salt)
    begin = part * channels_per_part
    # Tokens without an adapter get the sum of nothing.
    end = tl.where(adapter >= 0, tl.minimum(begin + channels_per_part, channels), begin)
    total = tl.zeros([TILE, RANK], dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < end
        values = tl.load(wide + places[:, None] * channels + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        factors = tl.load(
            weight + adapter * adapter_stride + columns[:, None] * channel_stride + ranks[None, :] * rank_stride,
            mask=inside[:, None] & (ranks < rank)[None, :],
            other=0.0,
        )
        if DROP:
            values = tl.where(_keep(row_words, columns, threshold), values, 0.0)
        total = tl.dot(values, factors, total)
    tl.store(
        narrow + part * num_tokens * rank + rows[:, None] * rank + ranks[None, :],
        (total * scale).to(narrow.dtype.element_ty),
        mask=valid[:, None] & (ranks < rank)[None, :],
    )


@triton.jit(do_not_specialize=["threshold"])
def _expand_kernel(
    narrow,  # [T, rank]
    weight,  # [N, rank, channels] by its strides
    wide,  # out: [T, channels]
    tiles,
    keys,
    salt,
    threshold,
    scale,
    channels,
    rank,
    adapter_stride,
    rank_stride,
    channel_stride,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """wide = scale · dropout(narrow @ weight[adapter]), zero without an adapter, for one tile of tokens, block of channels."""
    tile = tl.program_id(0)
    # In 64 bits: adapters of a large model may lie more than 2^31 elements apart.
    adapter = tl.load(tiles + tile * 3).to(tl.int64)
    rows = tl.load(tiles + tile * 3 + 1) + tl.arange(0, TILE)
    valid = rows < tl.load(tiles + tile * 3 + 2)
    ranks = tl.arange(0, RANK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    adapted = adapter >= 0
    states = tl.load(
        narrow + rows[:, None] * rank + ranks[None, :],
        mask=valid[:, None] & (ranks < rank)[None, :] & adapted,
        other=0.0,
    )
    factors = tl.load(
        weight + adapter * adapter_stride + ranks[:, None] * rank_stride + columns[None, :] * channel_stride,
        mask=(ranks < rank)[:, None] & inside[None, :] & adapted,
        other=0.0,
    )
    values = tl.dot(states, factors) * scale
    if DROP:
        values = tl.where(_keep(_row_words(keys, rows, valid, salt), columns, threshold), values, 0.0)
    tl.store(
        wide + rows.to(tl.int64)[:, None] * channels + columns[None, :],
        values.to(wide.dtype.element_ty),
        mask=valid[:, None] & inside[None, :],
    )


@triton.jit(do_not_specialize=["threshold"])
def _gradient_kernel(
    narrow,  # [T, rank]
    wide,  # [T, channels]
    gradient,  # out: [parts, N, rank, channels] by its strides
    starts,
    keys,
    salt,
    threshold,
    scale,
    channels,
    rank,
    part_stride,
    adapter_stride,
    rank_stride,
    channel_stride,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """gradient = scale · narrowᵀ @ dropout(wide) over one part of one adapter's tokens, for one block of channels."""
    adapter, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    ranks = tl.arange(0, RANK)
    first, end = tl.load(starts + adapter), tl.load(starts + adapter + 1)
    per_part = tl.cdiv(tl.cdiv(end - first, tl.num_programs(2)), TILE) * TILE
    begin = first + part * per_part
    end = tl.minimum(begin + per_part, end)
    total = tl.zeros([RANK, BLOCK], dtype=tl.float32)
    for start in range(begin, end, TILE):
        rows = start + tl.arange(0, TILE)
        valid = rows < end
        states = tl.load(
            narrow + rows[None, :] * rank + ranks[:, None], mask=(ranks < rank)[:, None] & valid[None, :], other=0.0
        )
        values = tl.load(
            wide + rows.to(tl.int64)[:, None] * channels + columns[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        if DROP:
            values = tl.where(_keep(_row_words(keys, rows, valid, salt), columns, threshold), values, 0.0)
        total = tl.dot(states, values, total)
    tl.store(
        gradient
        + part * part_stride
        + adapter * adapter_stride
        + ranks[:, None] * rank_stride
        + columns[None, :] * channel_stride,
        (total * scale).to(gradient.dtype.element_ty),
        mask=(ranks < rank)[:, None] & inside[None, :],
    )


@triton.jit
def _sum_kernel(parts, out, size, num_parts, BLOCK: tl.constexpr):
    """out [size] = the sum of parts [num_parts, size], the first part first."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for part in range(num_parts):
        total += tl.load(parts + part * size + places, mask=inside, other=0.0)
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)


def _summed(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`parts` [num_parts, ...] summed over the first dimension in `dtype`."""
    if len(parts) == 1:
        return parts[0]
    out = parts.new_empty(parts.shape[1:], dtype=dtype)
    grid = (triton.cdiv(out.numel(), SUMMED_PER_PROGRAM),)
    _sum_kernel[grid](parts, out, out.numel(), len(parts), BLOCK=SUMMED_PER_PROGRAM)
    return out


def _num_parts(num_programs: int) -> int:
    return max(1, min(MAX_PARTS, round(PROGRAMS / num_programs)))


def _parts(num_parts: int, *shape: int, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(num_parts, *shape, dtype=torch.float32 if num_parts > 1 else like.dtype)


def _padded(rank: int) -> int:
    """The rank that a kernel computes with: tensor cores take no less than 16, Triton powers of two."""
    return max(16, triton.next_power_of_2(rank))


def shrink(
    wide: torch.Tensor,
    weight: torch.Tensor,
    tiles: torch.Tensor,
    keys: torch.Tensor,
    salt: torch.Tensor,
    *,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """scale · dropout(wide) weight_nᵀ [T, rank], zero for tokens without an adapter. `wide` [T, C], `weight` [N, rank, C].

    `dropout` only drops; making up for it is the caller's, by `scale`. So in `expand` and `gradient`.
    """
    num_tokens, channels = wide.shape
    rank = weight.shape[1]
    settings: dict[str, Any] = SHRINK[rank > 64]
    num_parts = _num_parts(len(tiles))
    channels_per_part = triton.cdiv(triton.cdiv(channels, num_parts), settings["BLOCK"]) * settings["BLOCK"]
    narrow = _parts(num_parts, num_tokens, rank, like=wide)
    _shrink_kernel[len(tiles), num_parts](
        wide,
        weight,
        narrow,
        tiles,
        keys,
        salt,
        drop_below(dropout),
        scale,
        num_tokens,
        channels,
        channels_per_part,
        rank,
        *weight.stride(),
        TILE=TOKENS_PER_TILE,
        RANK=_padded(rank),
        DROP=dropout > 0,
        **settings,
    )
    return _summed(narrow, wide.dtype)


def expand(
    narrow: torch.Tensor,
    weight: torch.Tensor,
    tiles: torch.Tensor,
    keys: torch.Tensor,
    salt: torch.Tensor,
    *,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """scale · dropout(narrow weight_n) [T, C], zero without an adapter. `narrow` [T, rank], `weight` [N, rank, C]."""
    rank, channels = weight.shape[1:]
    settings: dict[str, Any] = EXPAND[rank > 64]
    wide = narrow.new_empty(len(narrow), channels)
    _expand_kernel[len(tiles), triton.cdiv(channels, settings["BLOCK"])](
        narrow,
        weight,
        wide,
        tiles,
        keys,
        salt,
        drop_below(dropout),
        scale,
        channels,
        rank,
        *weight.stride(),
        TILE=TOKENS_PER_TILE,
        RANK=_padded(rank),
        DROP=dropout > 0,
        **settings,
    )
    return wide


def gradient(
    narrow: torch.Tensor,
    wide: torch.Tensor,
    starts: torch.Tensor,
    keys: torch.Tensor,
    salt: torch.Tensor,
    *,
    dropout: float,
    scale: float,
    transposed: bool = False,
) -> torch.Tensor:
    """scale · narrowᵀ dropout(wide) of each adapter's tokens, [N, rank, C], or [N, C, rank] if `transposed`."""
    rank, channels = narrow.shape[1], wide.shape[1]
    settings: dict[str, Any] = GRADIENT[rank > 64]
    num_adapters, blocks = len(starts) - 1, triton.cdiv(channels, settings["BLOCK"])
    num_parts = _num_parts(num_adapters * blocks)
    shape = (channels, rank) if transposed else (rank, channels)
    parts = _parts(num_parts, num_adapters, *shape, like=wide)
    by_rank = parts.transpose(2, 3) if transposed else parts
    _gradient_kernel[blocks, num_adapters, num_parts](
        narrow,
        wide,
        parts,
        starts,
        keys,
        salt,
        drop_below(dropout),
        scale,
        channels,
        rank,
        *by_rank.stride(),
        TILE=TOKENS_PER_TILE,
        RANK=_padded(rank),
        DROP=dropout > 0,
        **settings,
    )
    return _summed(parts, wide.dtype)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    salt: torch.Tensor,
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `adapters.reference_forward`, of contiguous tensors."""
    z = shrink(x, a, tiles, keys, salt, dropout=dropout, scale=1 / (1 - dropout))
    y = expand(z, b.transpose(1, 2), tiles, keys, salt, dropout=0.0, scale=scale)
    return y.addmm_(x, weight.t()), z


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    salt: torch.Tensor,
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `adapters.reference_backward`, of contiguous tensors."""
    kept = 1 / (1 - dropout)
    grad_z = shrink(grad, b.transpose(1, 2), tiles, keys, salt, dropout=0.0, scale=scale)
    grad_b = gradient(z, grad, starts, keys, salt, dropout=0.0, scale=scale, transposed=True)
    grad_a = gradient(grad_z, x, starts, keys, salt, dropout=dropout, scale=kept)
    if not needs_grad_x:
        return x.new_empty(0), grad_a, grad_b
    grad_x = expand(grad_z, a, tiles, keys, salt, dropout=dropout, scale=kept)
    return grad_x.addmm_(grad, weight), grad_a, grad_b
