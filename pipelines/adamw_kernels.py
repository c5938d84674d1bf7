"""Triton kernels of `adamw.py`: a few launches for hundreds of gradients that lie apart, each number read and written once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from pipelines.adamw import BETAS, DECAY, EPSILON, FACTOR, FIRST_BIAS, RATE, SECOND_BIAS
from pipelines.adapter_kernels import pick

BLOCK = 4_096
PIECES = 16
"""Gradients of one launch. More of them, and choosing between their pointers takes time; fewer, and a GPU is often half idle,
at the ends of launches."""

_RATE, _DECAY, _FACTOR = tl.constexpr(RATE), tl.constexpr(DECAY), tl.constexpr(FACTOR)
_FIRST_BIAS, _SECOND_BIAS = tl.constexpr(FIRST_BIAS), tl.constexpr(SECOND_BIAS)


@triton.jit
def _squares_kernel(gradients, sums, sizes, first, sums_per_row, BLOCK: tl.constexpr):
    """sums [row, first + ...] = the sum of squares of one block of one gradient [rows, size], for one row; 0 past its end."""
    block, which, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = pick(sizes, which)
    places = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(pick(gradients, which) + row * size + places, mask=places < size, other=0.0).to(tl.float32)
    tl.store(sums + row * sums_per_row + first + which * tl.num_programs(0) + block, tl.sum(values * values))


@triton.jit
def _update_kernel(
    weights,  # [rows, P] by `stride`, as the next three
    masters,
    first,
    second,
    gradients,  # of [rows, size]
    settings,
    sizes,
    starts,  # of their part of P
    stride,
    beta1,
    beta2,
    epsilon,
    NUM_SETTINGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`adamw.update` of one block of one gradient, for one row."""
    which, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = pick(sizes, which)
    own = settings + row * NUM_SETTINGS
    factor = tl.load(own + _FACTOR)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # Nothing for a row that is to stay, nor for one whose factor is no number.
    inside = places < tl.where(factor >= 0, size, 0)
    at = row * stride + pick(starts, which) + places
    rate, decay = tl.load(own + _RATE), tl.load(own + _DECAY)
    first_bias, second_bias = tl.load(own + _FIRST_BIAS), tl.load(own + _SECOND_BIAS)
    gradient = tl.load(pick(gradients, which) + row * size + places, mask=inside, other=0.0).to(tl.float32) * factor
    moment = tl.load(first + at, mask=inside, other=0.0)
    moment += (1 - beta1) * (gradient - moment)
    square = tl.load(second + at, mask=inside, other=0.0) * beta2 + (1 - beta2) * gradient * gradient
    master = tl.load(masters + at, mask=inside, other=0.0) * (1 - decay)
    master -= rate / first_bias * moment / (tl.sqrt(square) / second_bias + epsilon)
    tl.store(first + at, moment, mask=inside)
    tl.store(second + at, square, mask=inside)
    tl.store(masters + at, master, mask=inside)
    tl.store(weights + at, master.to(weights.dtype.element_ty), mask=inside)


Launch = tuple[tuple[torch.Tensor, ...], tuple[int, ...], tuple[int, int, int]]
"""Gradients, their sizes and the grid."""


def _launches(gradients: Sequence[torch.Tensor]) -> Iterator[Launch]:
    for start in range(0, len(gradients), PIECES):
        pieces = tuple(gradients[start : start + PIECES])
        sizes = tuple(piece.shape[1] for piece in pieces)
        yield pieces, sizes, (triton.cdiv(max(sizes), BLOCK), len(pieces), len(pieces[0]))


def sums_of_squares(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each row of all `gradients` [N, P_i], contiguous: fp32 [N]."""
    launches = list(_launches(gradients))
    ends = list(itertools.accumulate(blocks * num for _, _, (blocks, num, _) in launches))
    sums = gradients[0].new_empty(len(gradients[0]), ends[-1], dtype=torch.float32)
    for (pieces, sizes, grid), first in zip(launches, [0, *ends[:-1]], strict=True):
        _squares_kernel[grid](pieces, sums, sizes, first, ends[-1], BLOCK=BLOCK, num_warps=8)
    return sums.sum(1)


def update(
    weights: torch.Tensor,
    masters: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    settings: torch.Tensor,
) -> None:
    """As `adamw.update`, of contiguous `gradients` and `settings`."""
    end = 0
    for pieces, sizes, grid in _launches(gradients):
        starts = tuple(itertools.accumulate(sizes[:-1], initial=end))
        end = starts[-1] + sizes[-1]
        _update_kernel[grid](
            weights, masters, first, second, pieces, settings, sizes, starts, weights.stride(0), *BETAS, EPSILON,
            NUM_SETTINGS=settings.shape[1], BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
