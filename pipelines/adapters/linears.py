"""The operator that computes adapted projections of one input, and its gradient.

On a GPU in half precision the kernels of `kernels.py` do the work, elsewhere plain PyTorch. Both drop the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from pipelines.adapters.fp8 import Fp8Rows, product, to_fp8, to_fp8_where_compiled
from pipelines.packing.dropout import keep, keep_bits
from pipelines.packing.segments import Segments

Outputs = tuple[list[torch.Tensor], torch.Tensor]
"""The y of each projection and z of all, as `adapted_linears` has them."""
Gradients = tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]
"""Gradients of x, of each a and of each b."""


class Operands(NamedTuple):
    """All but the input that m adapted projections of it are computed from.

    Shapes: of each projection `weights` [out, in] (frozen), `a` [N, rank, in], `b` [N, out, rank], of which `out` may differ,
    and `salts` int32 [1]; `starts`, `keys` and `tiles` are those of `segments`.

    Of projections in FP8 (`fp8.py`) `weights` are e4m3, `scales` float32 [Σout] and, where a gradient of the input is asked
    for, `transposed` e4m3 [in, Σout]: all projections' side by side. Both are None where weights are ordinary numbers.
    `numbers` and `row_scales` are the cast of the input, or backward of the gradients, if it was made before. `repeats` says
    that this is computed so often that kernels of its own are worth their compilation.

    `squares` float32 [N, S], if given, has as its gradient the sum of squares of each adapter's gradients of a and b, in parts
    that are to be added up: whoever clips them does not read them once more. S is `num_squares`, and a pass must compute with
    an adapter once: squares of two sums are not the whole sum's.
    """

    weights: Sequence[torch.Tensor]
    a: Sequence[torch.Tensor]
    b: Sequence[torch.Tensor]
    salts: Sequence[torch.Tensor]
    starts: torch.Tensor
    keys: torch.Tensor
    tiles: torch.Tensor
    dropout: float
    scale: float
    scales: torch.Tensor | None
    transposed: torch.Tensor | None
    numbers: torch.Tensor | None = None
    row_scales: torch.Tensor | None = None
    repeats: bool = False
    squares: torch.Tensor | None = None

    def cast(self, wides: Sequence[torch.Tensor], factors: torch.Tensor | None) -> Fp8Rows:
        """`to_fp8`, if it is still to be done."""
        if self.numbers is None or self.row_scales is None:
            return to_fp8(wides, factors)
        return Fp8Rows(self.numbers, self.row_scales)

    @property
    def segments(self) -> Segments:
        return Segments(self.starts, self.keys, self.tiles)


def _frozen(x: torch.Tensor, operands: Operands) -> list[torch.Tensor]:
    """x Wᵀ of each projection."""
    weights, scales = operands.weights, operands.scales
    if scales is None:
        return [x @ weight.t() for weight in weights]
    rows = operands.cast([x], None)
    of_each = scales.split([len(weight) for weight in weights])
    return [product(rows, weight, own, x.dtype) for weight, own in zip(weights, of_each, strict=True)]


def _frozen_gradient(grads: Sequence[torch.Tensor], operands: Operands) -> torch.Tensor:
    """The gradient of x through projections in FP8: one product of all."""
    assert operands.transposed is not None, "these projections were made for forward passes alone"
    return product(operands.cast(grads, operands.scales), operands.transposed, None, grads[0].dtype)


def _pieces(starts: torch.Tensor) -> Iterator[tuple[int, slice]]:
    for adapter, (first, end) in enumerate(itertools.pairwise(starts.tolist())):
        yield adapter, slice(first, end)


def reference_forward(x: torch.Tensor, operands: Operands) -> Outputs:
    """`adapted_linears` in plain PyTorch, any dtype and device."""
    _, a, b, salts, starts, keys, _, dropout, scale, *_ = operands
    outputs = _frozen(x, operands)
    z = x.new_zeros(len(a), len(x), a[0].shape[1])
    dropped = scaled = x / (1 - dropout) if dropout else x
    for place, y in enumerate(outputs):
        if dropout:
            dropped = keep(scaled, keep_bits(keys, salts[place], x.shape[1], dropout))
        for n, piece in _pieces(starts):
            own = torch.mm(dropped[piece], a[place][n].t(), out=z[place, piece])
            y[piece].add_((own @ b[place][n].t()).mul_(scale))
    return outputs, z


def reference_backward(
    grads: Sequence[torch.Tensor], x: torch.Tensor, z: torch.Tensor, operands: Operands, needs_grad_x: bool
) -> Gradients:
    """`adapted_linears_backward` in plain PyTorch, any dtype and device."""
    weights, a, b, salts, starts, keys, _, dropout, scale, scales, *_ = operands
    grad_x = torch.zeros_like(x) if needs_grad_x else x.new_empty(0)
    if needs_grad_x and scales is not None:
        grad_x = _frozen_gradient(grads, operands)
    grads_a, grads_b = [torch.empty_like(factor) for factor in a], [torch.empty_like(factor) for factor in b]
    dropped = scaled = x / (1 - dropout) if dropout else x
    for place, grad in enumerate(grads):
        if needs_grad_x and scales is None:
            grad_x += grad @ weights[place]
        if dropout:
            bits = keep_bits(keys, salts[place], x.shape[1], dropout)
            dropped = keep(scaled, bits)
        for n, piece in _pieces(starts):
            grad_z = (grad[piece] @ b[place][n]).mul_(scale)
            torch.mm(grad_z.t(), dropped[piece], out=grads_a[place][n])
            torch.mm(grad[piece].t(), z[place, piece], out=grads_b[place][n])
            if needs_grad_x:
                through = grad_z @ a[place][n]
                grad_x[piece].add_(keep(through.div_(1 - dropout), bits[piece]) if dropout else through)
        grads_b[place].mul_(scale)
    return grad_x, grads_a, grads_b


def forward_by_kernels(x: torch.Tensor, operands: Operands) -> Outputs:
    """`adapted_linears` of contiguous tensors."""
    from pipelines.adapters.kernels import add_product, expand, shrink

    weights, a, b, salts, _, _, _, dropout, scale, scales, *_ = operands
    segments = operands.segments
    z = shrink([x] * len(a), a, segments, salts, dropout=dropout, scale=1 / (1 - dropout))
    # A product in FP8 takes no accumulator to begin with: there the adapters add to it.
    before = None if scales is None else _frozen(x, operands)
    by_rank = [factor.transpose(1, 2) for factor in b]
    outputs = expand(z, by_rank, segments, salts, dropout=0.0, scale=scale, before=before)
    if scales is None:
        for y, weight in zip(outputs, weights, strict=True):
            add_product(y, x, weight.t())
    return outputs, z


def backward_by_kernels(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    operands: Operands,
    needs_grad_x: bool,
    squares: torch.Tensor | None = None,
) -> Gradients:
    """`adapted_linears_backward` of contiguous tensors, which fills `squares` of `num_squares`."""
    from pipelines.adapters.kernels import add_product, expand, gradients, shrink

    weights, a, b, salts, _, _, _, dropout, scale, scales, *_ = operands
    segments = operands.segments
    kept = 1 / (1 - dropout)
    grad_z = shrink(grads, [factor.transpose(1, 2) for factor in b], segments, salts, dropout=0.0, scale=scale)
    of_b, of_a = (None, None) if squares is None else squares.split(_squares_of_each(a, b), dim=1)
    grads_b = gradients(z, grads, segments, salts, dropout=0.0, scale=scale, transposed=True, squares=of_b)
    grads_a = gradients(grad_z, [x] * len(a), segments, salts, dropout=dropout, scale=kept, squares=of_a)
    if not needs_grad_x:
        return x.new_empty(0), grads_a, grads_b
    before = None if scales is None else [_frozen_gradient(grads, operands)]
    grad_x = expand(grad_z, a, segments, salts, dropout=dropout, scale=kept, summed=True, before=before)[0]
    if scales is None:
        for grad, weight in zip(grads, weights, strict=True):
            add_product(grad_x, grad, weight)
    return grad_x, grads_a, grads_b


def num_squares(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> int:
    """Columns of `Operands.squares` for such projections; 0 where kernels have no such sums at hand."""
    if not _has_kernels(a[0]):
        return 1
    of_each = _squares_of_each(a, b)
    return sum(of_each) if all(of_each) else 0


def _squares_of_each(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> list[int]:
    """In how many parts the kernels sum squares of gradients of b, and of a."""
    from pipelines.adapters.kernels import num_parts_of_squares

    num_adapters, rank, in_features = a[0].shape
    of_b, of_a = [factor.shape[1] for factor in b], [in_features] * len(a)
    return [num_parts_of_squares(num_adapters, widths, rank) for widths in (of_b, of_a)]


def _has_kernels(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


def _ways(x: torch.Tensor, operands: Operands) -> tuple[Callable[..., Outputs], Callable[..., Gradients]]:
    """What computes these projections of `x`, forward and backward."""
    if not _has_kernels(x):
        return reference_forward, reference_backward
    if operands.repeats:
        from pipelines.adapters import few_tokens
        from pipelines.adapters.kernels import is_hopper

        # Those for few tokens take more shared memory than earlier GPUs have, and more than a minute to compile.
        if is_hopper(x.device) and few_tokens.takes(x, operands):
            return few_tokens.forward, few_tokens.backward
    return forward_by_kernels, backward_by_kernels


# Custom operators, which torch.compile takes as they are: it neither looks inside nor breaks its graph there. Their schemas
# take no values of our own, so that `Operands` are unpacked where they are called and packed again inside.
_OPERANDS = (
    "Tensor[] weights, Tensor[] a, Tensor[] b, Tensor[] salts, Tensor starts, Tensor keys, Tensor tiles, "
    "float dropout, float scale, Tensor? scales, Tensor? transposed, Tensor? numbers=None, Tensor? row_scales=None, "
    "bool repeats=False, Tensor? squares=None"
)


@torch.library.custom_op(
    "blindsweep::adapted_linears", mutates_args=(), schema=f"(Tensor x, {_OPERANDS}) -> (Tensor[], Tensor)"
)
def adapted_linears(x: torch.Tensor, *unpacked: Any) -> Outputs:
    """m projections of one input: their y = x Wᵀ + scale · B_n z and, of all, z = A_n dropout(x) [m, T, rank].

    `x` [T, in] and unpacked `Operands`; each y is [T, out]. z is for the backward pass and has no gradient.
    Raises ValueError if `keys` are not as many as tokens.
    """
    operands = Operands(*unpacked)
    num_adapters = len(operands.a[0])
    if len(operands.keys) != len(x) or len(operands.starts) != num_adapters + 1:
        raise ValueError(
            f"segments of {len(operands.keys)} tokens and {len(operands.starts) - 1} adapters "
            f"for a stream of {len(x)} tokens and {num_adapters} adapters"
        )
    forward, _ = _ways(x, operands)
    return forward(x.contiguous(), operands)


@torch.library.custom_op(
    "blindsweep::adapted_linears_backward",
    mutates_args=(),
    schema=f"(Tensor[] grads, Tensor x, Tensor z, bool needs_grad_x, {_OPERANDS}) -> (Tensor, Tensor[], Tensor[], Tensor)",
)
def adapted_linears_backward(
    grads: Sequence[torch.Tensor], x: torch.Tensor, z: torch.Tensor, needs_grad_x: bool, *unpacked: Any
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Gradients of x (empty unless `needs_grad_x`), a, b and `squares` of `adapted_linears`, from `grads` [T, out] of its y."""
    operands = Operands(*unpacked)
    _, backward = _ways(x, operands)
    arguments = [grad.contiguous() for grad in grads], x.contiguous(), z, operands, needs_grad_x
    if operands.squares is None:
        return *backward(*arguments), x.new_empty(0)
    if backward is backward_by_kernels:
        squares = torch.empty_like(operands.squares)
        return *backward_by_kernels(*arguments, squares), squares
    squares = torch.zeros_like(operands.squares)
    grad_x, grads_a, grads_b = backward(*arguments)
    for gradient in (*grads_a, *grads_b):
        squares[:, 0] += gradient.float().square().sum((1, 2))
    return grad_x, grads_a, grads_b, squares


@adapted_linears.register_fake
def _(x: torch.Tensor, weights: Sequence[torch.Tensor], a: Sequence[torch.Tensor], *_: Any) -> Outputs:
    outputs = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    return outputs, x.new_empty(len(a), x.shape[0], a[0].shape[1])


@adapted_linears_backward.register_fake
def _(grads: Any, x: torch.Tensor, z: Any, needs_grad_x: bool, *unpacked: Any) -> Any:
    operands = Operands(*unpacked)
    grads_a, grads_b = ([factor.new_empty(factor.shape) for factor in factors] for factors in (operands.a, operands.b))
    squares = x.new_empty(0) if operands.squares is None else torch.empty_like(operands.squares)
    return x.new_empty(x.shape if needs_grad_x else 0), grads_a, grads_b, squares


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[torch.Tensor], torch.Tensor]) -> None:
    x, weights, a, b, salts, *segments, ctx.dropout, ctx.scale, scales, transposed, _, _, ctx.repeats, squares = inputs
    ctx.num_projections = len(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], *segments, scales, transposed, squares, *weights, *a, *b, *salts)


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None], _: Any) -> tuple[Any, ...]:
    num = ctx.num_projections
    none = [None] * num
    # Arguments at the end that were left out have no place.
    rest: list[Any] = [None] * (len(ctx.needs_input_grad) - 5)
    if all(grad is None for grad in grads):
        return None, none, none, none, none, *rest
    x, z, starts, keys, tiles, scales, transposed, squares, *lists = ctx.saved_tensors
    weights, a, b, salts = (lists[first : first + num] for first in range(0, 4 * num, num))
    each_grad = [
        x.new_zeros(x.shape[0], weight.shape[0]) if grad is None else grad for grad, weight in zip(grads, weights, strict=True)
    ]
    needs_grad_x = ctx.needs_input_grad[0]
    cast = to_fp8_where_compiled(each_grad, scales) if needs_grad_x and scales is not None else (None, None)
    stream = starts, keys, tiles, ctx.dropout, ctx.scale
    grad_x, grads_a, grads_b, of_squares = adapted_linears_backward(
        each_grad, x, z, needs_grad_x, weights, a, b, salts, *stream, scales, transposed, *cast, ctx.repeats, squares
    )
    if squares is not None:
        rest[-1] = of_squares
    return grad_x if needs_grad_x else None, none, grads_a, grads_b, none, *rest


adapted_linears.register_autograd(_backward, setup_context=_save_for_backward)
