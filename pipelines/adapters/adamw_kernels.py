"""Triton kernels of `adamw.py`: a few launches for hundreds of gradients that lie apart, each number read and written once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from pipelines.adapters.adamw_settings import BETAS, DECAY, EPSILON, FACTOR, FIRST_BIAS, RATE, SECOND_BIAS
from pipelines.adapters.kernels import following, pick

UPDATED = 1_024
"""Numbers that one program updates; with more of them a GPU takes longer."""
SUMMED = 4_096
BLOCKS_SUMMED = 8
"""Blocks of one program: adding up over threads takes longer than reading one."""
PIECES = 16
"""Gradients of one launch. More of them, and choosing between their pointers takes time; fewer, and a GPU is often half idle,
at the ends of launches."""

_RATE, _DECAY, _FACTOR = tl.constexpr(RATE), tl.constexpr(DECAY), tl.constexpr(FACTOR)
_FIRST_BIAS, _SECOND_BIAS = tl.constexpr(FIRST_BIAS), tl.constexpr(SECOND_BIAS)


@triton.jit
def _begin(IS_FIRST: tl.constexpr):
    """Wait for what was before the first of several launches; the others have nothing in common and run beside each other."""
    if IS_FIRST:
        tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _squares_kernel(
    gradients,
    settings,
    sums,
    size,
    first,
    sums_per_row,
    NUM_SETTINGS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    IS_FIRST: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    """sums [row, first + ...] = the sum of squares of a few blocks of one gradient [rows, size], for one row.

    Of a row that is to stay it is zero.
    """
    if FOLLOWS:
        _begin(IS_FIRST)
    part, which, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    gradient = pick(gradients, which) + row * size
    end = tl.where(tl.load(settings + row * NUM_SETTINGS + _FACTOR) >= 0, size, 0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for block in range(part * BLOCKS, (part + 1) * BLOCKS):
        places = block * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(gradient + places, mask=places < end, other=0.0).to(tl.float32)
        total += values * values
    tl.store(sums + row * sums_per_row + first + which * tl.num_programs(0) + part, tl.sum(total))
    if FOLLOWS:
        tl.extra.cuda.gdc_wait()


@triton.jit
def _update_kernel(
    weights,  # [rows, P] by `stride`, as the next three
    rest,  # or None
    first,
    second,
    gradients,  # of [rows, size]
    settings,
    size,
    starts,  # of their part of P
    stride,
    beta1,
    beta2,
    epsilon,
    NUM_SETTINGS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_FIRST: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    """`adamw.update` of one block of one gradient, for one row."""
    if FOLLOWS:
        _begin(IS_FIRST)
    which, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    own = settings + row * NUM_SETTINGS
    factor = tl.load(own + _FACTOR)
    # Nothing for a row that is to stay, nor for one whose factor is no number.
    if factor >= 0:
        places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = places < size
        at = row * stride + pick(starts, which) + places
        rate, decay = tl.load(own + _RATE), tl.load(own + _DECAY)
        first_bias, second_bias = tl.load(own + _FIRST_BIAS), tl.load(own + _SECOND_BIAS)
        gradient = tl.load(pick(gradients, which) + row * size + places, mask=inside, other=0.0).to(tl.float32) * factor
        moment = tl.load(first + at, mask=inside, other=0.0)
        moment += (1 - beta1) * (gradient - moment)
        square = tl.load(second + at, mask=inside, other=0.0) * beta2 + (1 - beta2) * gradient * gradient
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        master = weight
        if rest is not None:
            lacking = tl.load(rest + at, mask=inside, other=0).to(tl.int32)
            master = (weight.to(tl.int32, bitcast=True) + lacking).to(tl.float32, bitcast=True)
        master *= 1 - decay
        master -= rate / first_bias * moment / (tl.sqrt(square) / second_bias + epsilon)
        rounded = master.to(weights.dtype.element_ty)
        tl.store(first + at, moment, mask=inside)
        tl.store(second + at, square, mask=inside)
        tl.store(weights + at, rounded, mask=inside)
        if rest is not None:
            lacking = master.to(tl.int32, bitcast=True) - rounded.to(tl.float32).to(tl.int32, bitcast=True)
            tl.store(rest + at, tl.minimum(lacking, 32_767).to(tl.int16), mask=inside)
    if FOLLOWS:
        tl.extra.cuda.gdc_wait()


Launch = tuple[tuple[torch.Tensor, ...], tuple[int, ...], int]
"""Gradients, where their parts of P start, and the size that all of them have: no program is for what a shorter one lacks."""


def _launches(gradients: Sequence[torch.Tensor]) -> Iterator[Launch]:
    of_size: dict[int, list[tuple[torch.Tensor, int]]] = defaultdict(list)
    end = 0
    for gradient in gradients:
        of_size[gradient.shape[1]].append((gradient, end))
        end += gradient.shape[1]
    for size, all_of_size in of_size.items():
        for first in range(0, len(all_of_size), PIECES):
            pieces, starts = zip(*all_of_size[first : first + PIECES], strict=True)
            yield pieces, starts, size


def sums_of_squares(gradients: Sequence[torch.Tensor], settings: torch.Tensor) -> torch.Tensor:
    """Sums of squares of each row of all `gradients` [N, P_i], contiguous: fp32 [N], zero for rows that `settings` let stay."""
    launches = [(pieces, size, triton.cdiv(size, SUMMED * BLOCKS_SUMMED)) for pieces, _, size in _launches(gradients)]
    ends = list(itertools.accumulate(parts * len(pieces) for pieces, _, parts in launches))
    sums = gradients[0].new_empty(len(gradients[0]), ends[-1], dtype=torch.float32)
    options = following(sums.device)
    for (pieces, size, parts), first in zip(launches, [0, *ends[:-1]], strict=True):
        _squares_kernel[parts, len(pieces), len(pieces[0])](
            pieces, settings, sums, size, first, ends[-1],
            NUM_SETTINGS=settings.shape[1], BLOCK=SUMMED, BLOCKS=BLOCKS_SUMMED, IS_FIRST=first == 0, num_warps=8, **options,
        )  # fmt: skip
    return sums.sum(1)


def update(
    weights: torch.Tensor,
    rest: torch.Tensor | None,
    first: torch.Tensor,
    second: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    settings: torch.Tensor,
) -> None:
    """`adamw.update` on a GPU, of contiguous `gradients` and `settings`."""
    options = following(weights.device)
    for number, (pieces, starts, size) in enumerate(_launches(gradients)):
        _update_kernel[triton.cdiv(size, UPDATED), len(pieces), len(pieces[0])](
            weights, rest, first, second, pieces, settings, size, starts, weights.stride(0), *BETAS, EPSILON,
            NUM_SETTINGS=settings.shape[1], BLOCK=UPDATED, IS_FIRST=number == 0, num_warps=4, **options,
        )  # fmt: skip
