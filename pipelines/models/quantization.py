"""NF4 (Dettmers et al. 2023, QLoRA): what a frozen 4-bit base computes with, as ordinary weights.

QLoRA stores the linear layers in 4 bits and multiplies by the weights *dequantised*. Quantising and dequantising them once
therefore gives the same numbers, in the memory of the dequantised weights, and every reader of the base model (finetuning,
evaluation, merging) sees the same ones without knowing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    values = weight.detach().float().flatten()
    levels, scales = _by_blocks(values, BLOCK_SIZE, NF4_LEVELS)
    if double_quantization:
        mean = scales.mean()
        levels_of_scales, largest = _by_blocks(scales - mean, CONSTANTS_BLOCK_SIZE, dynamic_levels())
        scales = (levels_of_scales * largest[:, None]).flatten()[: len(scales)] + mean
    return (levels * scales[:, None]).flatten()[: len(values)].view(weight.shape)


def _by_blocks(values: torch.Tensor, block_size: int, levels: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest of ascending `levels` to `values` [n], [blocks, block_size], and largest magnitudes [blocks]."""
    import torch

    blocks = torch.nn.functional.pad(values, (0, -len(values) % block_size)).view(-1, block_size)
    scales = blocks.abs().amax(dim=1)
    ascending = torch.tensor(levels)
    middles = (ascending[1:] + ascending[:-1]) / 2
    # A block of zeros has no scale to divide by.
    return ascending[torch.bucketize(blocks / scales.where(scales > 0, 1.0)[:, None], middles)], scales


def dynamic_levels() -> list[float]:
    """The 256 levels of the dynamic 8-bit type (Dettmers 2016, 8-Bit Approximations, section 2.1), ascending.

    Seven decades below 1, each with twice as many levels as the next smaller one: the middles of 1, 2, 4 … 64 equal parts of
    [0.1, 1], of both signs; with them 0 and 1.
    """
    magnitudes = [
        10.0 ** (decade - 6) * (0.1 + 0.9 * (part + 0.5) / 2**decade) for decade in range(7) for part in range(2**decade)
    ]
    return sorted([0.0, 1.0, *magnitudes, *(-magnitude for magnitude in magnitudes)])
