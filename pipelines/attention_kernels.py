"""A Triton kernel of `attention.py`: the gradients of what rows share, added up over its copies, on a GPU.

Bound by memory traffic: each copy is read once and each sum is written once. Sums run in float32 and in a fixed order, without
atomic additions. How many programs there are depends on shapes only, and not on which token has how many copies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COPIES, BLOCK = 8, 1024
"""Copies and channels that a program adds up at a time: 16 bytes a thread and copy in half precision."""


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
