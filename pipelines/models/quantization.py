"""NF4 (Dettmers et al. 2023, QLoRA): what a frozen 4-bit base computes with, as ordinary weights.

QLoRA stores the linear layers in 4 bits and multiplies by the weights *dequantised*. Quantising and dequantising them once
therefore gives the same numbers, in the memory of the dequantised weights, and every reader of the base model (finetuning,
evaluation, merging) sees the same ones without knowing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

QUANTIZATIONS = ("none", "nf4", "nf4_double")
BLOCK_SIZE = 64
CONSTANTS_BLOCK_SIZE = 256
# QLoRA, appendix E: quantiles of a normal distribution scaled to [-1, 1], with an exact zero.
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def nf4_round_trip(weight: torch.Tensor, *, double_quantization: bool = False) -> torch.Tensor:
    """`weight` [any shape], quantised to NF4 and dequantised, float32: each value becomes a level times its block's scale.

    Blocks are 64 consecutive values in row-major order (the last may be shorter); a block's scale is its largest magnitude.
    `double_quantization` also quantises these scales (section 3): their mean taken off, in blocks of 256, to 8 bits.
    """
    import torch

    values = weight.detach().to(torch.float32).flatten()
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    scales = blocks.abs().amax(dim=1)
    # A block of zeros has no scale to divide by.
    levels = _nearest(blocks / scales.where(scales > 0, 1.0)[:, None], torch.tensor(NF4_LEVELS))
    if double_quantization:
        scales = _round_trip_scales(scales)
    return (levels * scales[:, None]).flatten()[: len(values)].view(weight.shape)


def _round_trip_scales(scales: torch.Tensor) -> torch.Tensor:
    import torch

    mean = scales.mean()
    centred = scales - mean
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % CONSTANTS_BLOCK_SIZE)).view(-1, CONSTANTS_BLOCK_SIZE)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    levels = _nearest(blocks / largest.where(largest > 0, 1.0), torch.tensor(dynamic_levels()))
    return (levels * largest).flatten()[: len(scales)] + mean


def dynamic_levels() -> list[float]:
    """The 256 levels of the dynamic 8-bit type (Dettmers 2016, 8-Bit Approximations, section 2.1), ascending.

    Seven decades below 1, each with twice as many levels as the next smaller one: the middles of 1, 2, 4 … 64 equal parts of
    [0.1, 1], of both signs; with them 0 and 1.
    """
    magnitudes = [
        10.0 ** (decade - 6) * (0.1 + 0.9 * (part + 0.5) / 2**decade) for decade in range(7) for part in range(2**decade)
    ]
    return sorted([0.0, 1.0, *magnitudes, *(-magnitude for magnitude in magnitudes)])


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The level nearest to each value; `levels` ascending."""
    import torch

    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(values, middles)]
