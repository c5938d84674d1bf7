"""Triton kernels of `linears.py`: what LoRA adds to a frozen matrix product, in half precision on a GPU.

All of it is bound by traffic, of memory and more so of the L2 cache, which gives the multiprocessors little more than memory
does. So a program reads a piece of its big operand once, and one of its small operand for as much of the big one as registers
allow. Dropout masks are computed in registers instead of being stored. What is added to a product is written first and becomes
the product's accumulator (cuBLAS, beta = 1): the big output is then rounded once, and read by the product's epilogue rather
than by a kernel of its own.

Projections that read one input are a dimension of each kernel's grid, next to each other, so that the first of them has brought
the input into the L2 cache for the others. (One program for all of them would read it once, and take no less time.)
Their tensors stay where they are: a kernel gets a tuple of pointers, one a projection, and each program picks its own. Widths
differ where heads share keys and values; the narrower ones' last programs end at once.

Sums run in float32 and in a fixed order, without atomic additions. Where a kernel would have too few programs to fill a GPU,
its sum is cut into parts that a second kernel adds; how many depends on shapes only, never on the device or a measurement.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from pipelines.packing.dropout import MULTIPLIERS, drop_below
from pipelines.packing.segments import TOKENS_PER_TILE, Segments

HOPPER = (9, 0)
FOLLOWS = True
"""Whether kernels that can do so begin while the one before ends."""
MAX_PARTS = 8
# Below that a part saves less time than adding it takes.
MIN_ITERATIONS = 4
SUMMED_PER_PROGRAM = 1_024
# By whether the rank is above 64. PROGRAMS: about how many to have, by cutting sums or tokens into parts: one or more for each
# multiprocessor of an H100 or H200, as registers and shared memory allow. BLOCK: channels of one iteration (shrink), of one
# program (expand, gradients). TILE: tokens of one iteration. What takes the time is traffic from the L2 cache: of the big
# operand and of the small one, which each BLOCK (in shrink, each tile of tokens) reads anew; so they are large.
Settings = dict[str, int]
SHRINK: dict[bool, Settings] = {
    False: {"PROGRAMS": 512, "BLOCK": 64, "num_stages": 3, "num_warps": 4},
    True: {"PROGRAMS": 256, "BLOCK": 64, "num_stages": 4, "num_warps": 4},
}
EXPAND: dict[bool, Settings] = {
    False: {"PROGRAMS": 512, "TILE": 64, "BLOCK": 128, "num_stages": 3, "num_warps": 4},
    True: {"PROGRAMS": 256, "TILE": 64, "BLOCK": 128, "num_stages": 2, "num_warps": 8},
}
GRADIENT: dict[bool, Settings] = {
    False: {"PROGRAMS": 256, "TILE": 32, "BLOCK": 128, "num_stages": 4, "num_warps": 4},
    True: {"PROGRAMS": 256, "TILE": 64, "BLOCK": 64, "num_stages": 4, "num_warps": 4},
}
# What is added to waits for memory: more programs have more of it under way.
EXPAND_ADDED: dict[bool, Settings] = {is_wide: {**settings, "PROGRAMS": 1_024} for is_wide, settings in EXPAND.items()}
# Of several projections at once, which takes accumulators and factors for each.
EXPAND_SUM: dict[bool, Settings] = {
    False: {"PROGRAMS": 512, "TILE": 64, "BLOCK": 64, "num_stages": 1, "num_warps": 4},
    True: {"PROGRAMS": 128, "TILE": 64, "BLOCK": 64, "num_stages": 2, "num_warps": 8},
}
# Rows and columns of the largest tile that cuBLAS has for a product on Hopper, and multiprocessors of an H100 or H200.
PRODUCT_TILE = (256, 128)
PROCESSORS = 132
# A product of as many rounds is computed in two parts if its tiles fill less than this part of them, the last one included.
FEWEST_ROUNDS, FILLED = 4, 0.95

_FIRST = tl.constexpr(MULTIPLIERS[0])
_SECOND = tl.constexpr(MULTIPLIERS[1] + 2**32)


@triton.jit
def _stir(words):
    """`dropout.stir` on uint32 words, whose shifts need no masking."""
    words *= _FIRST
    words ^= words >> 15
    return words * _SECOND


@triton.jit
def _row_words(keys, rows, valid, salt):
    return _stir((tl.load(keys + rows, mask=valid, other=0) + tl.load(salt)).to(tl.uint32, bitcast=True))


@triton.jit
def _column_words(channels):
    channels = channels.to(tl.uint32, bitcast=True)
    return (_stir(channels) << 16) ^ channels


@triton.jit
def _keep(row_words, column_words, threshold):
    """`dropout.keep_mask` of the words of rows and columns, [rows, channels]."""
    factors = _stir(row_words) | 1
    words = (row_words[:, None] ^ column_words[None, :]) * factors[:, None]
    return words.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def follow(WAITS: tl.constexpr, LEADS: tl.constexpr):
    """If it WAITS, until the kernel before has ended, beside which it may have begun; if it LEADS, let the next one begin.

    All programs of a kernel that is launched with `following` wait sooner or later, so that its end means the end of all before
    it. What is computed earlier is of numbers that were there when the kernel before let this one begin.
    """
    if WAITS:
        tl.extra.cuda.gdc_wait()
    if LEADS:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def pick(values, which):
    """values[which], of a tuple with an index that is known at run time only."""
    picked = values[0]
    for place in tl.static_range(1, len(values)):
        picked = tl.where(which == place, values[place], picked)
    return picked


@triton.jit(do_not_specialize=["threshold", "num_tokens"])
def _shrink_kernel(
    wides,  # m of [T, channels]
    weights,  # m of [N, rank, channels] by their strides
    narrow,  # out: [parts, m, T, rank] by the stride of parts
    tiles,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    widths,
    rank,
    part_stride,
    adapter_strides,
    rank_stride,
    channel_stride,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """narrow = scale · dropout(wide) @ weight[adapter]ᵀ for one projection, one tile, one part of the channels.

    Computed transposed: what dropout has left has to go back to shared memory only as the right operand of a product.
    """
    which, tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wide, weight, channels = pick(wides, which), pick(weights, which), pick(widths, which)
    # In 64 bits: adapters of a large model may lie more than 2^31 elements apart.
    adapter = tl.load(tiles + tile * 3).to(tl.int64)
    rows = tl.load(tiles + tile * 3 + 1) + tl.arange(0, TILE)
    valid = rows < tl.load(tiles + tile * 3 + 2)
    places = rows.to(tl.int64)
    ranks = tl.arange(0, RANK)
    weight += adapter * pick(adapter_strides, which)
    channels_per_part = tl.cdiv(tl.cdiv(channels, tl.num_programs(2)), BLOCK) * BLOCK
    begin = part * channels_per_part
    # Tokens without an adapter get the sum of nothing.
    end = tl.where(adapter >= 0, tl.minimum(begin + channels_per_part, channels), begin)
    if DROP:
        row_words = _row_words(keys, rows, valid, pick(salts, which))
    total = tl.zeros([RANK, TILE], dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < end
        values = tl.load(wide + places[:, None] * channels + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        factors = tl.load(
            weight + ranks[:, None] * rank_stride + columns[None, :] * channel_stride,
            mask=(ranks < rank)[:, None] & inside[None, :],
            other=0.0,
        )
        if DROP:
            values = tl.where(_keep(row_words, _column_words(columns), threshold), values, 0.0)
        total = tl.dot(factors, tl.trans(values), total)
    tl.store(
        narrow + part * part_stride + (which * num_tokens + rows)[:, None] * rank + ranks[None, :],
        (tl.trans(total) * scale).to(narrow.dtype.element_ty),
        mask=valid[:, None] & (ranks < rank)[None, :],
    )


@triton.jit(do_not_specialize=["threshold", "num_tokens"])
def _expand_kernel(
    narrow,  # [m, T, rank]
    weights,  # m of [N, rank, channels] by their strides
    wides,  # out: m / TERMS of [T, channels]; read before if ADDS
    starts,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    widths,
    rank,
    adapter_strides,
    rank_stride,
    channel_stride,
    TERMS: tl.constexpr,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
    ADDS: tl.constexpr,
):
    """wide = scale · Σ dropout(narrow @ weight[adapter]) over one part of one adapter's tokens, for one block of channels.

    The sum has TERMS projections: all of them, for the one output there is then, or one. Tokens without an adapter come after
    the last one's, as if they were one more adapter's, and get zeros. Blocks and outputs are one dimension of the grid. With
    ADDS it is added to what is there, and there is no program for those tokens.
    """
    output, block = tl.program_id(0) % len(wides), tl.program_id(0) // len(wides)
    # In 64 bits: adapters of a large model may lie more than 2^31 elements apart.
    adapter, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    wide, channels = pick(wides, output), pick(widths, output)
    if block * BLOCK >= channels:
        return
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    ranks = tl.arange(0, RANK)
    adapted = adapter < (tl.num_programs(1) if ADDS else tl.num_programs(1) - 1)
    first = tl.load(starts + adapter)
    end = tl.load(starts + adapter + 1, mask=adapted, other=num_tokens)
    per_part = tl.cdiv(tl.cdiv(end - first, tl.num_programs(2)), TILE) * TILE
    begin = first + part * per_part
    end = tl.minimum(begin + per_part, end)
    # Read once: they are as many as the states of a tile of tokens, or more.
    factors = tl.tuple(())
    for term in tl.static_range(TERMS):
        factors += (
            tl.load(
                pick(weights, output + term)
                + adapter * pick(adapter_strides, output + term)
                + ranks[:, None] * rank_stride
                + columns[None, :] * channel_stride,
                mask=(ranks < rank)[:, None] & inside[None, :] & adapted,
                other=0.0,
            ),
        )
    if DROP:
        column_words = _column_words(columns)
    for start in range(begin, end, TILE):
        rows = start + tl.arange(0, TILE)
        valid = rows < end
        total = tl.zeros([TILE, BLOCK], dtype=tl.float32)
        for term in tl.static_range(TERMS):
            which = output + term
            states = tl.load(
                narrow + (which * num_tokens + rows)[:, None] * rank + ranks[None, :],
                mask=valid[:, None] & (ranks < rank)[None, :] & adapted,
                other=0.0,
            )
            if DROP:
                words = _row_words(keys, rows, valid, pick(salts, which))
            values = tl.dot(states, factors[term])
            if DROP:
                values = tl.where(_keep(words, column_words, threshold), values, 0.0)
            total += values
        places = wide + rows.to(tl.int64)[:, None] * channels + columns[None, :]
        inside_both = valid[:, None] & inside[None, :]
        total *= scale
        if ADDS:
            total += tl.load(places, mask=inside_both, other=0.0)
        tl.store(places, total.to(wide.dtype.element_ty), mask=inside_both)


@triton.jit(do_not_specialize=["threshold", "num_tokens"])
def _gradient_kernel(
    narrow,  # [m, T, rank]
    wides,  # m of [T, channels]
    gradients,  # out: m of [parts, N, rank, channels] by their strides
    squares,  # out: [N, m · blocks] by the stride of N, or None
    starts,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    widths,
    rank,
    part_stride,
    adapter_strides,
    rank_stride,
    channel_stride,
    squares_stride,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
):
    """gradient = scale · narrowᵀ @ dropout(wide) over one part of one adapter's tokens, for one projection's block of channels.

    Blocks and projections are one dimension of the grid, because adapters and parts are the others.
    """
    which, block = tl.program_id(0) % len(wides), tl.program_id(0) // len(wides)
    adapter, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    wide, gradient, channels = pick(wides, which), pick(gradients, which), pick(widths, which)
    if squares is not None:
        squares += adapter * squares_stride + tl.program_id(0)
    if block * BLOCK >= channels:
        if squares is not None:
            tl.store(squares, 0.0)
        return
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    ranks = tl.arange(0, RANK)
    first, end = tl.load(starts + adapter), tl.load(starts + adapter + 1)
    per_part = tl.cdiv(tl.cdiv(end - first, tl.num_programs(2)), TILE) * TILE
    begin = first + part * per_part
    end = tl.minimum(begin + per_part, end)
    if DROP:
        salt, column_words = pick(salts, which), _column_words(columns)
    total = tl.zeros([RANK, BLOCK], dtype=tl.float32)
    for start in range(begin, end, TILE):
        rows = start + tl.arange(0, TILE)
        valid = rows < end
        values = tl.load(
            wide + rows.to(tl.int64)[:, None] * channels + columns[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        states = tl.load(
            narrow + (which * num_tokens + rows)[None, :] * rank + ranks[:, None],
            mask=(ranks < rank)[:, None] & valid[None, :],
            other=0.0,
        )
        if DROP:
            values = tl.where(_keep(_row_words(keys, rows, valid, salt), column_words, threshold), values, 0.0)
        total = tl.dot(states, values, total)
    total *= scale
    if squares is not None:
        # What is filled up is zero.
        tl.store(squares, tl.sum(total * total))
    tl.store(
        gradient
        + part * part_stride
        + adapter * pick(adapter_strides, which)
        + ranks[:, None] * rank_stride
        + columns[None, :] * channel_stride,
        total.to(gradient.dtype.element_ty),
        mask=(ranks < rank)[:, None] & inside[None, :],
    )


@triton.jit
def _sum_kernel(parts, outs, sizes, part_stride, num_parts, BLOCK: tl.constexpr):
    """out [size] = the sum of its parts, the first part first, for one of `outs`."""
    which = tl.program_id(1)
    first, out, size = pick(parts, which), pick(outs, which), pick(sizes, which)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for part in range(num_parts):
        total += tl.load(first + part * part_stride + places, mask=inside, other=0.0)
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether it is an NVIDIA GPU of Hopper or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


def following(device: torch.device) -> dict[str, bool]:
    """Options of a kernel that may begin while the one before ends (programmatic dependent launch), where a device has that."""
    return {"FOLLOWS": True, "launch_pdl": True} if FOLLOWS and is_hopper(device) else {"FOLLOWS": False}


def _num_parts(programs: int, num_programs: int, num_iterations: int) -> int:
    """Number of parts to cut the sums of `num_programs` programs into, each of `num_iterations`, to have about `programs`."""
    return max(1, min(MAX_PARTS, num_iterations // MIN_ITERATIONS, round(programs / num_programs)))


def _options(settings: Settings) -> dict[str, Any]:
    """`settings` that a kernel is launched with."""
    return {name: value for name, value in settings.items() if name != "PROGRAMS"}


def _parts(num_parts: int, shapes: Sequence[tuple[int, ...]], like: torch.Tensor) -> list[torch.Tensor]:
    """Tensors [num_parts, *shape] to be written and `_summed`, as far from part to part in one as in another."""
    if num_parts == 1:
        return [like.new_empty(1, *shape) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    # Rounded up, so that each is aligned as vector loads ask.
    room = [-(-size // 16) * 16 for size in sizes]
    pieces = like.new_empty(num_parts, sum(room), dtype=torch.float32).split(room, dim=1)
    return [piece[:, :size].unflatten(1, shape) for piece, size, shape in zip(pieces, sizes, shapes, strict=True)]


def _summed(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Each of `parts` [num_parts, ...] summed over its first dimension in `dtype`."""
    if len(parts[0]) == 1:
        return [part[0] for part in parts]
    outs = tuple(part.new_empty(part.shape[1:], dtype=dtype) for part in parts)
    sizes = tuple(out.numel() for out in outs)
    _sum_kernel[triton.cdiv(max(sizes), SUMMED_PER_PROGRAM), len(outs)](
        tuple(parts), outs, sizes, parts[0].stride(0), len(parts[0]), BLOCK=SUMMED_PER_PROGRAM
    )
    return list(outs)


def _padded(rank: int) -> int:
    """The rank that a kernel computes with: tensor cores take no less than 16, Triton powers of two."""
    return max(16, triton.next_power_of_2(rank))


def _strides(weights: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], int, int]:
    """Strides of [N, rank, channels] each: the adapters' of each, which depends on its width, and the two that all have."""
    inner = {weight.stride()[1:] for weight in weights}
    assert len(inner) == 1, inner
    rank_stride, channel_stride = inner.pop()
    return tuple(weight.stride(0) for weight in weights), rank_stride, channel_stride


def shrink(
    wides: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    segments: Segments,
    salts: Sequence[torch.Tensor],
    *,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """scale · dropout(wide) weight_nᵀ [m, T, rank], zero for tokens without an adapter, of m projections.

    Of each `wides` [T, C], `weights` [N, rank, C]; C may differ. `dropout` only drops; making up for it is the caller's, by
    `scale`. So in `expand` and `gradients`.
    """
    num_tokens, rank = len(segments.keys), weights[0].shape[1]
    settings = SHRINK[rank > 64]
    widths = tuple(wide.shape[1] for wide in wides)
    num_parts = _num_parts(settings["PROGRAMS"], len(wides) * len(segments.tiles), max(widths) // settings["BLOCK"])
    parts = _parts(num_parts, [(len(wides), num_tokens, rank)], like=wides[0])
    _shrink_kernel[len(wides), len(segments.tiles), num_parts](
        tuple(wides), tuple(weights), parts[0], segments.tiles, segments.keys, tuple(salts), drop_below(dropout), scale,
        num_tokens, widths, rank, parts[0].stride(0), *_strides(weights),
        TILE=TOKENS_PER_TILE, RANK=_padded(rank), DROP=dropout > 0, **_options(settings),
    )  # fmt: skip
    return _summed(parts, wides[0].dtype)[0]


def expand(
    narrow: torch.Tensor,
    weights: Sequence[torch.Tensor],
    segments: Segments,
    salts: Sequence[torch.Tensor],
    *,
    dropout: float,
    scale: float,
    summed: bool = False,
    before: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """scale · dropout(narrow weight_n) [T, C], zero without an adapter, of m projections, or the one sum of all if `summed`.

    `narrow` [m, T, rank]; of each `weights` [N, rank, C], of which C may differ unless it is `summed`. It is added to `before`,
    in place, if that is given.
    """
    rank = narrow.shape[2]
    widths = tuple(weight.shape[2] for weight in weights[: 1 if summed else None])
    of_one = EXPAND if before is None else EXPAND_ADDED
    settings = (EXPAND_SUM if len(weights) > len(widths) else of_one)[rank > 64]
    wides = tuple(before or (narrow.new_empty(len(segments.keys), width) for width in widths))
    num_adapters = len(segments.starts) - 1
    blocks = [triton.cdiv(width, settings["BLOCK"]) for width in widths]
    num_tiles = triton.cdiv(len(segments.keys), num_adapters * settings["TILE"])
    # Nothing is summed over tokens, so that parts cost no more than reading the factors again.
    num_parts = max(1, min(num_tiles // 2, round(settings["PROGRAMS"] / (num_adapters * sum(blocks)))))
    # One more than adapters, for the tokens without one.
    num_owners = num_adapters + (before is None)
    _expand_kernel[len(wides) * max(blocks), num_owners, num_parts](
        narrow, tuple(weights), wides, segments.starts, segments.keys, tuple(salts), drop_below(dropout), scale,
        len(segments.keys), widths, rank, *_strides(weights),
        TERMS=len(weights) // len(wides), RANK=_padded(rank), DROP=dropout > 0, ADDS=before is not None, **_options(settings),
    )  # fmt: skip
    return list(wides)


def gradients(
    narrow: torch.Tensor,
    wides: Sequence[torch.Tensor],
    segments: Segments,
    salts: Sequence[torch.Tensor],
    *,
    dropout: float,
    scale: float,
    transposed: bool = False,
    squares: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """scale · narrowᵀ dropout(wide) of each adapter's tokens, [N, rank, C], or [N, C, rank] if `transposed`, of m projections.

    `narrow` [m, T, rank]; of each `wides` [T, C], of which C may differ. `squares` [N, `num_parts_of_squares`], if given, gets
    the sums of squares of each adapter's, before they are rounded: all of it is written, zero for one without tokens.
    """
    _, num_tokens, rank = narrow.shape
    num_adapters = len(segments.starts) - 1
    settings = GRADIENT[rank > 64]
    widths = tuple(wide.shape[1] for wide in wides)
    blocks = [triton.cdiv(width, settings["BLOCK"]) for width in widths]
    num_iterations = num_tokens // (num_adapters * settings["TILE"])
    num_parts = _num_parts(settings["PROGRAMS"], num_adapters * sum(blocks), num_iterations)
    assert squares is None or num_parts == 1, "squares of a sum's parts are not the sum's"
    shapes = [(num_adapters, width, rank) if transposed else (num_adapters, rank, width) for width in widths]
    parts = _parts(num_parts, shapes, like=wides[0])
    by_rank = [part.transpose(2, 3) if transposed else part for part in parts]
    _gradient_kernel[len(wides) * max(blocks), num_adapters, num_parts](
        narrow, tuple(wides), tuple(by_rank), squares, segments.starts, segments.keys, tuple(salts), drop_below(dropout), scale,
        num_tokens, widths, rank, parts[0].stride(0), *_strides([part[0] for part in by_rank]),
        0 if squares is None else squares.stride(0),
        RANK=_padded(rank), DROP=dropout > 0, **_options(settings),
    )  # fmt: skip
    return _summed(parts, wides[0].dtype)


def num_parts_of_squares(num_adapters: int, widths: Sequence[int], rank: int) -> int:
    """In how many parts `gradients` of projections so wide gives sums of squares; 0 where it may cut sums over tokens."""
    settings = GRADIENT[rank > 64]
    blocks = [triton.cdiv(width, settings["BLOCK"]) for width in widths]
    most = _num_parts(settings["PROGRAMS"], num_adapters * sum(blocks), MAX_PARTS * MIN_ITERATIONS)
    return len(widths) * max(blocks) if most == 1 else 0


def add_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """out [T, C] += left [T, K] @ right [K, C], in two parts where `whole_rounds` says so."""
    end = whole_rounds(*out.shape)
    for part in (slice(0, end), slice(end, None)) if end else (slice(None),):
        out[:, part].addmm_(left, right[:, part])


def whole_rounds(num_rows: int, num_columns: int) -> int:
    """Columns of a product that are better computed apart from the rest, whose tiles fill a GPU in whole rounds; 0 if none are.

    A round is a large tile of cuBLAS's for each multiprocessor. Where the last of a few rounds would leave many of them idle,
    cuBLAS takes smaller tiles for all, which are slower than whole rounds of large ones and a second product. Where the last
    round is fuller or rounds are fewer, that wins little or loses.
    """
    height, width = (triton.cdiv(size, tile) for size, tile in zip((num_rows, num_columns), PRODUCT_TILE, strict=True))
    num_rounds = height * width / PROCESSORS
    if num_rounds < FEWEST_ROUNDS or num_rounds >= FILLED * math.ceil(num_rounds):
        return 0
    step = PROCESSORS // math.gcd(height, PROCESSORS) * PRODUCT_TILE[1]
    return num_columns // step * step
