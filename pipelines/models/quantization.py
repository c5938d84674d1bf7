"""What a frozen quantised base computes with, as ordinary weights: NF4 (Dettmers et al. 2023, QLoRA) and FP8.

QLoRA stores the linear layers in 4 bits and multiplies by the weights *dequantised*. Quantising and dequantising them once
therefore gives the same numbers, in the memory of the dequantised weights, and every reader of the base model (finetuning,
evaluation, merging) sees the same ones without knowing of it.

The weights of FP8 are kept so, too: as values that become the same e4m3 numbers again. What computes with the base has to know
of it all the same, because activations and gradients are cast as well (`adapters/fp8.py`): a file beside the weights says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FP8 = "fp8"
QUANTIZATIONS = ("none", "nf4", "nf4_double", FP8)
LEAST_FOR_FP8 = 8.9
"""The compute capability from which on NVIDIA's GPUs have matrix units for it: Ada, Hopper, and later ones."""
QUANTIZATION_FILE = "quantization.json"
"""Beside the weights of a base that computes in FP8; not in its config.json, where transformers would act on it."""
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


def fp8_round_trip(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] in FP8 with a scale for each output channel, and back: float32, exact in bfloat16 as well."""
    from pipelines.adapters.fp8 import reference_to_fp8

    numbers, scales = reference_to_fp8([weight.detach()])
    return numbers.float() * scales[:, None]


def say_fp8(folder: Path) -> None:
    """Have whoever computes with the weights in `folder` do so in FP8."""
    (folder / QUANTIZATION_FILE).write_text(json.dumps({"quantization": FP8}))


def computes_in_fp8(folder: Path) -> bool:
    """Whether the projections of the weights in `folder` are computed in FP8."""
    file = folder / QUANTIZATION_FILE
    return file.exists() and bool(json.loads(file.read_text())["quantization"] == FP8)


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
