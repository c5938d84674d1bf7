"""AdamW over several models at once, each row of a matrix one model's parameters with settings of its own.

The formula is PyTorch's `torch.optim.AdamW` (Loshchilov and Hutter 2019), in fp32 on master weights, which are then rounded to
the dtype that is computed with. On a GPU one kernel reads and writes every number once; elsewhere plain PyTorch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch

BETAS = (0.9, 0.999)
EPSILON = 1e-8
RATE, DECAY, FACTOR, FIRST_BIAS, SECOND_BIAS = range(5)
"""Columns of `settings`: learning rate; learning rate times weight decay; what gradients are multiplied with (clipping),
negative for a row that is to stay as it is; 1 - β1^t; the square root of 1 - β2^t."""
NUM_SETTINGS = 5
_BLOCK = 4_096


def settings_row(step: int, *, rate: float, weight_decay: float) -> list[float]:
    """A row's settings for its update number `step`, from 1; the factor is 1."""
    return [rate, rate * weight_decay, 1.0, 1 - BETAS[0] ** step, (1 - BETAS[1] ** step) ** 0.5]


def clip_factors(gradients: Sequence[torch.Tensor], max_norm: float) -> torch.Tensor:
    """What brings row n of all `gradients` [N, P_i] to a norm of at most `max_norm`, fp32 [N]; 1 where it is smaller."""
    of_each = [torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float32) for gradient in gradients]
    norms = torch.linalg.vector_norm(torch.stack(of_each), dim=0)
    # As DeepSpeed computes it.
    return 1 / ((norms + 1e-6) / max_norm).clamp(min=1)


def update(
    weights: torch.Tensor,
    masters: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    settings: torch.Tensor,
) -> None:
    """Update in place, all [N, P]: `masters` and the moments `first` and `second` fp32, `weights` from them in their own dtype.

    `gradients` [N, P_i] lie apart, as the backward pass gives them: laying them end to end would read and write them once more
    each. `settings` fp32 [N, NUM_SETTINGS] is on the same device. `weights` may be `masters`.
    """
    if weights.is_cuda:
        ends = itertools.accumulate(gradient.shape[1] for gradient in gradients)
        for gradient, end in zip(gradients, ends, strict=True):
            num_rows, num = gradient.shape
            rows = [matrix[:, end - num : end] for matrix in (weights, masters, first, second)]
            _kernel()[(-(-num // _BLOCK), num_rows)](
                *rows, gradient, settings, num, weights.stride(0), gradient.stride(0), *BETAS, EPSILON,
                NUM_SETTINGS=NUM_SETTINGS, BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
        return
    for row, values in enumerate(settings.tolist()):
        if values[FACTOR] < 0:
            continue
        gradient = torch.cat([one[row] for one in gradients]).float() * values[FACTOR]
        first[row].lerp_(gradient, 1 - BETAS[0])
        second[row].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        masters[row].mul_(1 - values[DECAY])
        masters[row].addcdiv_(
            first[row], second[row].sqrt().div_(values[SECOND_BIAS]).add_(EPSILON), value=-values[RATE] / values[FIRST_BIAS]
        )
        if weights.data_ptr() != masters.data_ptr():
            weights[row].copy_(masters[row])


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def adamw_kernel(  # type: ignore[no-untyped-def]
        weights, masters, first, second, gradients, settings, num, stride, gradient_stride, beta1, beta2, epsilon,
        NUM_SETTINGS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(1).to(tl.int64)
        own = settings + row * NUM_SETTINGS
        factor = tl.load(own + 2)
        if factor >= 0:
            places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            inside = places < num
            at = row * stride + places
            rate, decay = tl.load(own), tl.load(own + 1)
            first_bias, second_bias = tl.load(own + 3), tl.load(own + 4)
            gradient = tl.load(gradients + row * gradient_stride + places, mask=inside, other=0.0).to(tl.float32) * factor
            moment = tl.load(first + at, mask=inside, other=0.0)
            moment += (1 - beta1) * (gradient - moment)
            square = tl.load(second + at, mask=inside, other=0.0) * beta2 + (1 - beta2) * gradient * gradient
            master = tl.load(masters + at, mask=inside, other=0.0) * (1 - decay)
            master -= rate / first_bias * moment / (tl.sqrt(square) / second_bias + epsilon)
            tl.store(first + at, moment, mask=inside)
            tl.store(second + at, square, mask=inside)
            tl.store(masters + at, master, mask=inside)
            tl.store(weights + at, master.to(weights.dtype.element_ty), mask=inside)

    return adamw_kernel
