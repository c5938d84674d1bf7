"""The operator that computes adapted projections of one input, and its gradient.

On a GPU in half precision the kernels of `adapter_kernels.py` do the work, elsewhere plain PyTorch. Both drop the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipelines.dropout import keep_mask


def _pieces(starts: torch.Tensor) -> Iterator[tuple[int, slice]]:
    for adapter, (first, end) in enumerate(itertools.pairwise(starts.tolist())):
        yield adapter, slice(first, end)


def _dropped(x: torch.Tensor, keys: torch.Tensor, salt: torch.Tensor, dropout: float) -> torch.Tensor:
    if not dropout:
        return x
    return torch.where(keep_mask(keys, salt, x.shape[1], dropout), x, 0) / (1 - dropout)


def reference_forward(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What `adapted_linears` returns, in plain PyTorch, any dtype and device."""
    outputs = [x @ weight.t() for weight in weights]
    z = x.new_zeros(len(a), len(x), a[0].shape[1])
    for place, y in enumerate(outputs):
        dropped = _dropped(x, keys, salts[place], dropout)
        for n, piece in _pieces(starts):
            z[place, piece] = dropped[piece] @ a[place][n].t()
            y[piece] += scale * (z[place, piece] @ b[place][n].t())
    return outputs, z


def reference_backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """What `adapted_linears_backward` returns, in plain PyTorch, any dtype and device."""
    grad_x = torch.zeros_like(x) if needs_grad_x else x.new_empty(0)
    grads_a, grads_b = [torch.zeros_like(one) for one in a], [torch.zeros_like(one) for one in b]
    for place, grad in enumerate(grads):
        if needs_grad_x:
            grad_x += grad @ weights[place]
        dropped = _dropped(x, keys, salts[place], dropout)
        for n, piece in _pieces(starts):
            grad_z = scale * (grad[piece] @ b[place][n])
            grads_a[place][n] = grad_z.t() @ dropped[piece]
            grads_b[place][n] = scale * (grad[piece].t() @ z[place, piece])
            if needs_grad_x:
                grad_x[piece] += _dropped(grad_z @ a[place][n], keys[piece], salts[place], dropout)
    return grad_x, grads_a, grads_b


def _has_kernels(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


# Custom operators, which torch.compile takes as they are: it neither looks inside nor breaks its graph there.


@torch.library.custom_op("blindsweep::adapted_linears", mutates_args=())
def adapted_linears(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """m projections of one input: their y = x Wᵀ + scale · B_n z and, of all, z = A_n dropout(x) [m, T, rank].

    Shapes: `x` [T, in]; of each projection `weights` [out, in] (frozen), `a` [N, rank, in], `b` [N, out, rank], `salts` int32
    [1], y [T, out], and `out` may differ; `starts`, `keys` and `tiles` as in `Segments`. z is for the backward pass and has no
    gradient. Raises ValueError if `keys` are not as many as tokens.
    """
    if len(keys) != len(x) or len(starts) != len(a[0]) + 1:
        raise ValueError(
            f"segments of {len(keys)} tokens and {len(starts) - 1} adapters "
            f"for a stream of {len(x)} tokens and {len(a[0])} adapters"
        )
    if _has_kernels(x):
        from pipelines.adapter_kernels import forward
    else:
        forward = reference_forward
    return forward(x.contiguous(), weights, a, b, salts, starts, keys, tiles, dropout, scale)


@torch.library.custom_op("blindsweep::adapted_linears_backward", mutates_args=())
def adapted_linears_backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of x (empty unless `needs_grad_x`), a and b of `adapted_linears`, from `grads` [T, out] of its y."""
    if _has_kernels(x):
        from pipelines.adapter_kernels import backward
    else:
        backward = reference_backward
    grads = [grad.contiguous() for grad in grads]
    return backward(grads, x.contiguous(), z, weights, a, b, salts, starts, keys, tiles, dropout, scale, needs_grad_x)


@adapted_linears.register_fake
def _(
    x: torch.Tensor, weights: Sequence[torch.Tensor], a: Sequence[torch.Tensor], *_: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    outputs = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    return outputs, x.new_empty(len(a), x.shape[0], a[0].shape[1])


@adapted_linears_backward.register_fake
def _(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    *rest: Any,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    grads_a, grads_b = ([one.new_empty(one.shape) for one in of] for of in (a, b))
    return x.new_empty(x.shape if rest[-1] else 0), grads_a, grads_b


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[torch.Tensor], torch.Tensor]) -> None:
    x, weights, a, b, salts, *segments, ctx.dropout, ctx.scale = inputs
    ctx.num_projections = len(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], *segments, *weights, *a, *b, *salts)


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None], _: Any) -> tuple[Any, ...]:
    num = ctx.num_projections
    none = [None] * num
    if all(grad is None for grad in grads):
        return None, none, none, none, none, *(None,) * 5
    x, z, starts, keys, tiles, *lists = ctx.saved_tensors
    weights, a, b, salts = (lists[first : first + num] for first in range(0, 4 * num, num))
    known = [
        x.new_zeros(x.shape[0], weight.shape[0]) if grad is None else grad for grad, weight in zip(grads, weights, strict=True)
    ]
    needs_grad_x = ctx.needs_input_grad[0]
    grad_x, grads_a, grads_b = adapted_linears_backward(
        known, x, z, weights, a, b, salts, starts, keys, tiles, ctx.dropout, ctx.scale, needs_grad_x
    )
    return grad_x if needs_grad_x else None, none, grads_a, grads_b, none, *(None,) * 5


adapted_linears.register_autograd(_backward, setup_context=_save_for_backward)
