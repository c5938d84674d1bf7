"""AdamW over several models at once, each row of a matrix one model's parameters with settings of its own.

The formula is PyTorch's `torch.optim.AdamW` (Loshchilov and Hutter 2019), in fp32 on master weights, which are then rounded to
the dtype that is computed with. On a GPU kernels of our own read and write every number once; elsewhere plain PyTorch.

A master weight is stored as the bfloat16 weight that it is rounded to and what that lacks, `rest`: its bits less the weight's,
16 of them. So nothing is stored twice. (A master halfway between two weights can lack 2^15, one more than 16 bits hold, and is
then stored as the next float32 below it in magnitude.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.adapters.adamw_settings import BETAS, DECAY, EPSILON, FACTOR, FIRST_BIAS, RATE, SECOND_BIAS


def split_masters(masters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bfloat16 weights and their int16 rests, of fp32 `masters` of any shape."""
    weights = masters.bfloat16()
    lacking = masters.view(torch.int32) - weights.float().view(torch.int32)
    return weights, lacking.clamp(max=2**15 - 1).to(torch.int16)


def join_masters(weights: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The fp32 masters of bfloat16 `weights` and their `rest`."""
    return (weights.float().view(torch.int32) + rest).view(torch.float32)


def clip(
    settings: torch.Tensor, gradients: Sequence[torch.Tensor], max_norm: float, *, squares: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """`settings` with factors that also bring row n of all `gradients` [N, P_i] to a norm of at most `max_norm`.

    `squares` [N, S_i] are sums of squares, in parts, of further gradients, which need not be read for that. A GPU does not
    read the gradients of rows that are to stay.
    """
    if gradients[0].is_cuda:
        from pipelines.adapters.adamw_kernels import sums_of_squares

        sums = sums_of_squares(gradients, settings)
        norms = (sums + torch.cat([*squares], dim=1).sum(1) if squares else sums).sqrt()
    else:
        of_each = [torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float32) for gradient in gradients]
        of_each += [parts.sum(1).sqrt() for parts in squares]
        norms = torch.linalg.vector_norm(torch.stack(of_each), dim=0)
    clipped = settings.clone()
    # As DeepSpeed computes it.
    clipped[:, FACTOR] /= ((norms + 1e-6) / max_norm).clamp(min=1)
    return clipped


def update(
    weights: torch.Tensor,
    rest: torch.Tensor | None,
    first: torch.Tensor,
    second: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    settings: torch.Tensor,
) -> None:
    """Update in place, all [N, P]: `weights` and their `rest` (bfloat16, int16; or fp32, None), the fp32 moments.

    `gradients` [N, P_i], contiguous, lie apart, as the backward pass gives them: laying them end to end would read and write
    each once more. `settings` fp32 [N, NUM_SETTINGS] is on the same device; further columns are
    not read.
    """
    if weights.is_cuda:
        from pipelines.adapters import adamw_kernels

        adamw_kernels.update(weights, rest, first, second, gradients, settings)
        return
    for row, values in enumerate(settings.tolist()):
        if values[FACTOR] < 0:
            continue
        gradient = torch.cat([part[row] for part in gradients]).float() * values[FACTOR]
        first[row].lerp_(gradient, 1 - BETAS[0])
        second[row].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        master = weights[row] if rest is None else join_masters(weights[row], rest[row])
        master.mul_(1 - values[DECAY])
        master.addcdiv_(
            first[row], second[row].sqrt().div_(values[SECOND_BIAS]).add_(EPSILON), value=-values[RATE] / values[FIRST_BIAS]
        )
        if rest is not None:
            weights[row], rest[row] = split_masters(master)
