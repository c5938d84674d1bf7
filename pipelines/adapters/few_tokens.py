"""Adapted projections of few tokens with one adapter, as a task model meets them that trains alone in batches of two.

A product of a hundred tokens takes the time of reading its weights, and all else of a layer the time of its launches. So all
multiprocessors read weights (cuBLAS gives such a product a tile each of a few), what adapters add is added by the kernel that
has a product's sums at hand, and all gradients of an input's adapters are one launch:

- `shrink_kernel`: z, in parts of the channels; the last program of a tile to end adds them;
- `product_kernel`: x Wᵀ, or the gradient's product with W, of ordinary numbers or in FP8. Where its tiles are too few for a
  GPU its sums are cut into parts, in float32, which `finish_kernel` adds;
- `gradients_kernel`: gradients of a and b of all projections.

Kernels of one operator that need nothing of each other run beside each other (`kernels.following`).

Sums run in a fixed order: how they are cut depends on shapes only, and programs that end in another order add in the same.
`operands` are `linears.Operands`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from pipelines.adapters.few_tokens_kernels import finish_kernel, gradients_kernel, product_kernel, shrink_kernel
from pipelines.adapters.fp8 import Fp8Rows
from pipelines.adapters.kernels import following
from pipelines.packing.dropout import drop_below

MOST_TOKENS = 256
"""Of more, products are bound by matrix units, and cuBLAS's are better."""
WIDEST_RANK = 64
MOST_PROJECTIONS = 3
DEPTH = 64
"""What the channels of every sum must be a multiple of; in FP8 twice as many."""
MOST_PARTS = 8
# Settings by whether numbers are of FP8, and whether it is the forward pass. PROGRAMS: most that sums are cut for, one or two a
# multiprocessor of an H100 or H200; never by the device, so that results do not depend on it. BM: most tokens of a program; BN,
# BK: columns of a tile, channels of an iteration. BY_TILES: read by the unit that fetches tiles of tensors (TMA).
Settings = dict[str, int]
_TILES: Settings = {
    "PROGRAMS": 132,
    "BM": 128,
    "BN": 128,
    "num_stages": 4,
    "num_warps": 8,
    "BY_TILES": True,
    "MAY_BE_WHOLE": True,
}
_NARROW: Settings = {**_TILES, "BY_TILES": False, "num_warps": 4}
PRODUCT: dict[tuple[bool, bool], Settings] = {
    (False, False): {**_TILES, "BK": 64},
    (False, True): {**_TILES, "BK": 64},
    (True, False): {**_NARROW, "PROGRAMS": 264, "BN": 64, "BK": 128},
    (True, True): {**_NARROW, "BM": 64, "BK": 128},
}
SHRINK = {"TILE": 16, "BLOCK": 128, "num_stages": 3, "num_warps": 4}
SHRINK_PROGRAMS = 160
FINISH = {"TILE": 64, "BLOCK": 64, "num_warps": 4}
GRADIENT = {"TILE": 64, "BLOCK": 128, "num_stages": 2, "num_warps": 4}


def takes(x: torch.Tensor, operands: Any) -> bool:
    """Whether these kernels are made for projections of `x` [T, in]."""
    depth = DEPTH if operands.scales is None else 2 * DEPTH
    sizes = [x.shape[1], *(len(weight) for weight in operands.weights)]
    return bool(
        0 < len(x) <= MOST_TOKENS
        and len(operands.starts) == 2
        and operands.a[0].shape[1] <= WIDEST_RANK
        and len(operands.a) <= MOST_PROJECTIONS
        and not any(size % depth for size in sizes)
    )


def forward(x: torch.Tensor, operands: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """`linears.adapted_linears` of contiguous tensors that these kernels take."""
    weights, a, b, _, _, _, _, dropout, scale, scales, *_ = operands
    z = x.new_empty(len(a), len(x), a[0].shape[1])
    outputs = [x.new_empty(len(x), len(weight)) for weight in weights]
    of_fp8 = None if scales is None else operands.cast([x], None)
    product = _Product([x], weights, outputs, z, b, operands, of_fp8, scales, dropout=0.0, scale=scale)
    to_z = {"dropout": dropout, "scale": 1 / (1 - dropout)}
    # What one of these kernels computes beside another may not lie in memory that the other one still uses.
    if product.is_whole:
        _in_use = shrink([x] * len(a), a, z, operands, **to_z, waits=True)
        product.multiply()
    else:
        product.multiply()
        _in_use = shrink([x] * len(a), a, z, operands, **to_z, waits=False)
        product.finish(waits=True)
    return outputs, z


def backward(
    grads: Sequence[torch.Tensor], x: torch.Tensor, z: torch.Tensor, operands: Any, needs_grad_x: bool
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """`linears.adapted_linears_backward` of contiguous tensors that these kernels take."""
    weights, a, b, _, _, _, _, dropout, scale, scales, transposed, *_ = operands
    grad_z, kept = torch.empty_like(z), 1 / (1 - dropout)
    scale_of = {"scale_a": kept, "scale_b": scale}
    if not needs_grad_x:
        _in_use = shrink(grads, b, grad_z, operands, dropout=0.0, scale=scale, waits=True)
        return x.new_empty(0), *gradients(grads, x, z, grad_z, operands, **scale_of, leads=False)
    grad_x, of_fp8 = torch.empty_like(x), None
    if scales is not None:
        assert transposed is not None, "these projections were made for forward passes alone"
        weights, of_fp8 = [transposed], operands.cast(grads, scales)
    product = _Product(grads, weights, [grad_x], grad_z, a, operands, of_fp8, None, dropout=dropout, scale=kept)
    if not product.is_whole:
        product.multiply()
    _in_use = shrink(grads, b, grad_z, operands, dropout=0.0, scale=scale, waits=product.is_whole)
    grads_a, grads_b = gradients(grads, x, z, grad_z, operands, **scale_of, leads=True)
    if product.is_whole:
        product.multiply()
    else:
        product.finish(waits=False)
    return grad_x, grads_a, grads_b


def shrink(
    wides: Sequence[torch.Tensor],
    factors: Sequence[torch.Tensor],
    narrow: torch.Tensor,
    operands: Any,
    *,
    dropout: float,
    scale: float,
    waits: bool,
) -> torch.Tensor:
    """Write into `narrow` [m, T, rank] scale · dropout(wide) factorᵀ, zero for tokens without an adapter.

    Of each `wides` [T, C], `factors` [1, rank, C] or [1, C, rank]: those of `operands`. Unless it `waits` it computes beside
    the kernel before. Returns memory that it uses.
    """
    num, num_tokens, rank = narrow.shape
    widths = tuple(wide.shape[1] for wide in wides)
    num_tiles = triton.cdiv(num_tokens, SHRINK["TILE"])
    num_parts = min(round(SHRINK_PROGRAMS / (num_tiles * num)), max(widths) // (2 * SHRINK["BLOCK"]), 2 * MOST_PARTS)
    num_parts = 2 ** int(math.log2(max(1, num_parts)))
    parts = narrow.new_empty(num_parts, *narrow.shape, dtype=torch.float32) if num_parts > 1 else narrow
    shrink_kernel[num_tiles, num, num_parts](
        tuple(wides), tuple(factors), narrow, parts, _counters(narrow.device), operands.starts, operands.keys,
        tuple(operands.salts), drop_below(dropout), scale, num_tokens, widths, rank,
        RANK=_padded(rank), PARTS=num_parts, DROP=dropout > 0, RANK_FIRST=factors is operands.a,
        WAITS=waits, LEADS=True, **following(narrow.device), **SHRINK,
    )  # fmt: skip
    return parts


class _Product:
    """What writes into `outs` Σ rows @ weight and what adapters add, scale · dropout(narrow @ factor).

    Either one of `rows` [T, C] meets `weights` [out, C], each with an output of its own, or each its own weight [C_i, out] and
    there is one output; so do `factors` those of `operands`. Instead of `rows`, `of_fp8` meets `weights` e4m3 [out, C], with
    `scales` by channel of all outputs, if any.

    `multiply` computes it, and where that `is_whole` needs `narrow`; else `finish` does.
    """

    def __init__(
        self,
        rows: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        outs: Sequence[torch.Tensor],
        narrow: torch.Tensor,
        factors: Sequence[torch.Tensor],
        operands: Any,
        of_fp8: Fp8Rows | None,
        scales: torch.Tensor | None,
        *,
        dropout: float,
        scale: float,
    ) -> None:
        _, num_tokens, rank = narrow.shape
        is_forward = factors is operands.b
        self._depth_last = is_forward or of_fp8 is not None
        self._rows, self._weights, self._outs = rows if of_fp8 is None else [of_fp8.numbers], weights, outs
        self._settings = dict(PRODUCT[of_fp8 is not None, is_forward])
        programs = self._settings.pop("PROGRAMS")
        if num_tokens <= 64:
            self._settings["BM"] = 64
        self._num_tokens, self._widths = num_tokens, tuple(out.shape[1] for out in outs)
        self._depths = tuple(row.shape[1] for row in self._rows)
        num_blocks = sum(triton.cdiv(width, self._settings["BN"]) for width in self._widths)
        self._num_tiles = triton.cdiv(num_tokens, self._settings["BM"]) * num_blocks
        num_parts = max(1, min(MOST_PARTS, programs // self._num_tiles, sum(self._depths) // (4 * self._settings["BK"])))
        self.is_whole = bool(self._settings.pop("MAY_BE_WHOLE")) and num_parts == 1
        self._parts = [] if self.is_whole else [narrow.new_empty(num_parts, num_tokens, sum(self._widths), dtype=torch.float32)]
        row_scales = operands.starts if of_fp8 is None else of_fp8.scales
        self._added = (
            row_scales, row_scales if scales is None else scales, narrow, tuple(factors), operands.keys, tuple(operands.salts),
            drop_below(dropout), scale, num_tokens, sum(self._widths), rank,
        )  # fmt: skip
        self._options = {
            "ADDED": 1 if is_forward else len(factors),
            "HAS_ROW_SCALES": of_fp8 is not None,
            "HAS_SCALES": scales is not None,
            "RANK": _padded(rank),
            "DROP": dropout > 0,
            "RANK_FIRST": not is_forward,
            **following(narrow.device),
        }

    def multiply(self) -> None:
        """Compute it, or its parts. Whole sums wait for the kernel before when they get what adapters add."""
        settings, width = self._settings, self._weights[0].shape[1]
        tensors: list[Any] = [*_three(self._rows), *_three(self._weights)]
        if settings["BY_TILES"]:
            of_rows, of_weight = [settings["BM"], settings["BK"]], [settings["BN"], settings["BK"]]
            tiles = [of_rows] * MOST_PROJECTIONS + [of_weight if self._depth_last else of_weight[::-1]] * MOST_PROJECTIONS
            tensors = [
                None if tensor is None else TensorDescriptor.from_tensor(tensor, tile)
                for tensor, tile in zip(tensors, tiles, strict=True)
            ]
        product_kernel[self._num_tiles, len(self._parts[0]) if self._parts else 1](
            *tensors, tuple(self._parts or self._outs), *self._added, self._depths, self._widths,
            *((width, 1) if self._depth_last else (1, width)),
            TERMS=len(self._rows), WEIGHTS=len(self._weights), WHOLE=self.is_whole, DEPTH_LAST=self._depth_last,
            EVEN=not any(width % settings["BN"] for width in self._widths),
            WAITS=not self.is_whole, LEADS=not self.is_whole, **self._options, **settings,
        )  # fmt: skip

    def finish(self, *, waits: bool) -> None:
        """Add the parts, and what adapters add. Unless it `waits` it computes beside the kernel before, which has waited."""
        (parts,) = self._parts
        num_blocks = sum(triton.cdiv(width, FINISH["BLOCK"]) for width in self._widths)
        finish_kernel[num_blocks, triton.cdiv(self._num_tokens, FINISH["TILE"])](
            parts, tuple(self._outs), *self._added, self._widths,
            PARTS=len(parts), WAITS=waits, LEADS=False, **self._options, **FINISH,
        )  # fmt: skip


def gradients(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    grad_z: torch.Tensor,
    operands: Any,
    *,
    scale_a: float,
    scale_b: float,
    leads: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of each a, scale_a · grad_zᵀ dropout(x), and of each b, scale_b · gradᵀ z.

    If it `leads`, another of these kernels comes next.
    """
    a, b, dropout = operands.a, operands.b, operands.dropout
    grads_a, grads_b = ([factor.new_empty(factor.shape) for factor in factors] for factors in (a, b))
    widths = tuple(grad.shape[1] for grad in grads)
    rank, channels = a[0].shape[1:]
    gradients_kernel[triton.cdiv(max(channels, *widths), GRADIENT["BLOCK"]), 2 * len(a)](
        x, tuple(grads), z, grad_z, tuple(grads_a), tuple(grads_b), operands.starts, operands.keys, tuple(operands.salts),
        drop_below(dropout), scale_a, scale_b, len(x), channels, widths, rank,
        RANK=_padded(rank), DROP=dropout > 0, WAITS=True, LEADS=leads, **following(x.device), **GRADIENT,
    )  # fmt: skip
    return grads_a, grads_b


def _three(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    return [*tensors, *[None] * (MOST_PROJECTIONS - len(tensors))]


def _padded(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    """A counter for each tile of each projection. Kernels of one stream follow each other, and each leaves zeros."""
    return torch.zeros(MOST_TOKENS, dtype=torch.int32, device=device)
