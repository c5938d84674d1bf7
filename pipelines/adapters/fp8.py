"""Frozen projections in FP8: what they compute, in plain PyTorch, and a linear layer that computes it.

    fp8_projections(model, LLAMA_PROJECTIONS)     in place; then adapters, if any

A weight W [out, in] becomes numbers of e4m3 (1 sign, 4 bits of exponent, 3 of mantissa) with a scale a row, so for each output
channel. What meets it is cast likewise with a scale a token: the input x, and the gradient g of the output, of which each
channel was multiplied by the weight's scale before.

    y = s_x s_W (x₈ W₈ᵀ)        gradient of x = s_g (g₈ W₈)        g₈ = cast(g s_W)

Sums are in float32. So both directions multiply by one matrix of numbers, and the gradient is that of the weight which the
forward pass computes with; it passes through the cast of x as if there were none.

A scale is the smallest power of two that brings its row to at most 448, the largest number of e4m3. Multiplying by one rounds
nothing: the values that a weight has in FP8 are exact in bfloat16 and become the same numbers again, so that a base model keeps
them as ordinary weights; and kernels and this reference cast to the same bits. Of e4m3's range it takes less than one bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from pipelines.errors import UserError

E4M3 = torch.float8_e4m3fn
LEAST_CAPABILITY = (8, 9)
"""NVIDIA's first GPUs with matrix units for FP8 are Ada's."""
MULTIPLE = 16
"""What both sizes of a weight must be multiples of for a GPU's product in FP8."""

_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127
_LARGEST_EXPONENT, _LARGEST_MANTISSA = 8, 0x600000
"""448 is 1.75 times two to the eighth; the mantissa of 1.75 as a float32 has it."""


class Fp8Rows(NamedTuple):
    """Rows of e4m3 numbers [T, C] and their scales, float32 [T]: their product is the values."""

    numbers: torch.Tensor
    scales: torch.Tensor


def to_fp8(wides: Sequence[torch.Tensor], factors: torch.Tensor | None = None) -> Fp8Rows:
    """The tensors `wides` [T, C_i], side by side, times `factors` float32 [ΣC_i] by channel, cast with a scale a row."""
    if wides[0].is_cuda:
        from pipelines.adapters.fp8_kernels import cast_rows

        return Fp8Rows(*cast_rows(wides, factors))
    return reference_to_fp8(wides, factors)


def reference_to_fp8(wides: Sequence[torch.Tensor], factors: torch.Tensor | None = None) -> Fp8Rows:
    """`to_fp8` in plain PyTorch, on any device."""
    # Put side by side only at the end, so that a compiler needs no room for wider numbers.
    values = [wide.float() for wide in wides]
    if factors is not None:
        widths = [wide.shape[1] for wide in wides]
        values = [wide * own.float() for wide, own in zip(values, factors.split(widths), strict=True)]
    largest = functools.reduce(torch.maximum, [wide.abs().amax(dim=1) for wide in values])
    scales = scales_of(largest)
    # By their inverses, which are powers of two as well: a product takes less than a quotient.
    inverses = ((2 * _EXPONENT_BIAS << _MANTISSA_BITS) - scales.view(torch.int32)).view(torch.float32)[:, None]
    numbers = [(wide * inverses).to(E4M3) for wide in values]
    return Fp8Rows(numbers[0] if len(numbers) == 1 else torch.cat(numbers, dim=1), scales)


def to_fp8_where_compiled(
    wides: Sequence[torch.Tensor], factors: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """`to_fp8` in operations that torch.compile computes in the kernel which makes `wides`; None, None if it is not at work.

    An operator of ours, into which it does not look, would read them again.
    """
    # Gradients are traced apart from what dynamo sees, as tensors of another type, which have no numbers.
    if torch.compiler.is_compiling() or type(wides[0]) is not torch.Tensor:
        return reference_to_fp8([wide.detach() for wide in wides], factors)
    return None, None


def scales_of(largest: torch.Tensor) -> torch.Tensor:
    """The scales of rows with the `largest` magnitudes, float32 [T]; at least the smallest normal power of two, as of zeros."""
    bits = largest.view(torch.int32)
    is_above = (bits & ((1 << _MANTISSA_BITS) - 1)) > _LARGEST_MANTISSA
    exponents = (bits >> _MANTISSA_BITS) - _LARGEST_EXPONENT + is_above.int()
    return (exponents.clamp(min=1) << _MANTISSA_BITS).view(torch.float32)


def product(rows: Fp8Rows, weight: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The values of `rows` [T, C] times those of `weight` e4m3 [N, C] with `scales` float32 [N] (None: ones), [T, N]."""
    if rows.numbers.is_cuda and dtype == torch.bfloat16 and not (weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE):
        from pipelines.adapters.fp8_kernels import scaled_product

        return scaled_product(*rows, weight, scales)
    exact = torch.promote_types(dtype, torch.float32)
    y = (rows.numbers.to(exact) @ weight.t().to(exact)) * rows.scales[:, None]
    return (y if scales is None else y * scales).to(dtype)


def transposed(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights e4m3 [out_i, in] side by side as [in, Σout], rows end to end: the only order that a gradient's product takes."""
    # As bytes, which every operation knows.
    return torch.cat([weight.detach().view(torch.uint8) for weight in weights]).t().contiguous().view(E4M3)


# --- a linear layer without adapters ---


@torch.library.custom_op("blindsweep::fp8_linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor scales) -> Tensor")
def fp8_linear(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """y [T, out] of `x` [T, in], `weight` e4m3 [out, in] and its `scales` float32 [out]."""
    return product(to_fp8([x.contiguous()]), weight, scales, x.dtype)


@torch.library.custom_op(
    "blindsweep::fp8_linear_backward", mutates_args=(), schema="(Tensor grad, Tensor weight, Tensor scales) -> Tensor"
)
def fp8_linear_backward(grad: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Gradient of x [T, in] from `grad` [T, out] of the y of `fp8_linear`."""
    return product(to_fp8([grad.contiguous()], scales), transposed([weight]), None, grad.dtype)


@fp8_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, _: Any) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@fp8_linear_backward.register_fake
def _(grad: torch.Tensor, weight: torch.Tensor, _: Any) -> torch.Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return fp8_linear_backward(grad, *ctx.saved_tensors), None, None


fp8_linear.register_autograd(_backward, setup_context=_save_for_backward)


class Fp8Linear(torch.nn.Linear):
    """Stands in for a frozen `linear`: `weight` e4m3 [out, in], `scales` float32 [out], and its bias, if it has one.

    It is not to be cast to another type, and computes in that of its input; `dtype` is that of the weight before.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        # Not Linear's own, which makes a weight.
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        numbers, scales = to_fp8([linear.weight.detach()])
        self.weight = torch.nn.Parameter(numbers, requires_grad=False)
        self.scales: torch.Tensor
        self.register_buffer("scales", scales)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in]; returns [..., out]."""
        y: torch.Tensor = fp8_linear(x.reshape(-1, x.shape[-1]), self.weight, self.scales)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias


def fp8_projections(model: torch.nn.Module, projections: Sequence[str]) -> int:
    """Freeze the linear layers of `model` whose names end with one of `projections`, in FP8; returns how many weights.

    `model` is on the device that computes. Raises UserError for a GPU without matrix units for FP8.
    """
    check_capability(next(model.parameters()).device)
    count = 0
    # No list of the modules themselves: each gives up its wider weight before the next one's is made.
    for name in [name for name, _ in model.named_modules() if name.rpartition(".")[2] in projections]:
        linear = model.get_submodule(name)
        if isinstance(linear, torch.nn.Linear):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Fp8Linear(linear))
            count += linear.weight.numel()
    return count


def check_capability(device: torch.device) -> None:
    """Raise UserError unless `device` is the CPU or a GPU with matrix units for FP8."""
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise UserError(
            f"the base model is quantised to fp8 and this GPU, {torch.cuda.get_device_name(device)}, has compute capability "
            f"{capability[0]}.{capability[1]}, which has no matrix units for it: take a GPU of 8.9 or above (Ada, Hopper or "
            "later), or -p base_precision=bfloat16"
        )
