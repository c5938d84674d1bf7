"""Kernels of `fp8.py` on a GPU: the cast of rows, ours in Triton, and the product, PyTorch's.

The cast reads a row twice, for its largest magnitude and for its numbers. The second time it comes from a cache, and a program
that keeps nothing of it leaves room for many others on its multiprocessor.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

E4M3 = torch.float8_e4m3fn
# Channels at a time.
BLOCK = 2_048
NUM_WARPS = 8


@triton.jit
def _cast_kernel(
    wides,  # m of [T, width]
    factors,  # float32 [sum of widths], or anything
    numbers,  # out: e4m3 [T, sum of widths]
    scales,  # out: float32 [T]
    widths,
    total_width,
    BLOCK: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
):
    """One row of `fp8.to_fp8`."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    offset = 0
    for place in tl.static_range(len(wides)):
        width = widths[place]
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(wides[place] + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
            if HAS_FACTORS:
                values *= tl.load(factors + offset + columns, mask=columns < width, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(values))
        offset += width
    bits = tl.max(largest, axis=0).to(tl.int32, bitcast=True)
    # As `fp8.scales_of`.
    exponent = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
    exponent = tl.maximum(exponent, 1)
    tl.store(scales + row, (exponent << 23).to(tl.float32, bitcast=True))
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    offset = 0
    for place in tl.static_range(len(wides)):
        width = widths[place]
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(wides[place] + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
            if HAS_FACTORS:
                values *= tl.load(factors + offset + columns, mask=columns < width, other=0.0).to(tl.float32)
            cast = (values * inverse).to(numbers.dtype.element_ty)
            tl.store(numbers + row * total_width + offset + columns, cast, mask=columns < width)
        offset += width


def cast_rows(wides: Sequence[torch.Tensor], factors: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`fp8.to_fp8` of contiguous tensors."""
    num_rows, widths = len(wides[0]), tuple(wide.shape[1] for wide in wides)
    numbers = wides[0].new_empty(num_rows, sum(widths), dtype=E4M3)
    scales = wides[0].new_empty(num_rows, dtype=torch.float32)
    if num_rows:
        _cast_kernel[num_rows,](
            tuple(wides), scales if factors is None else factors, numbers, scales, widths, sum(widths),
            BLOCK=BLOCK, HAS_FACTORS=factors is not None, num_warps=NUM_WARPS,
        )  # fmt: skip
    return numbers, scales


def scaled_product(
    numbers: torch.Tensor, row_scales: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None
) -> torch.Tensor:
    """`fp8.product` in bfloat16, of sizes that are multiples of 16."""
    if scales is None:
        scales = _ones(len(weight), weight.device)
    return torch._scaled_mm(
        numbers,
        weight.t(),
        scale_a=row_scales[:, None],
        scale_b=scales[None],
        out_dtype=torch.bfloat16,
        # Partial sums of fewer bits: 0.0021 of a product's norm instead of 0.0017, where the casts cost 0.038; a tenth faster.
        use_fast_accum=True,
    )


@functools.cache
def _ones(num: int, device: torch.device) -> torch.Tensor:
    return torch.ones(num, device=device)
