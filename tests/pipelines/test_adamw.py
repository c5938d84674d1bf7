"""Rows of a matrix are updated as PyTorch's AdamW would update each, by settings of their own."""

import pytest
import torch

from pipelines import adamw
from tests.pipelines.interpreted import needs_interpreter

ROWS = ((1e-2, 0.1, 0.5), (3e-3, 0.0, 1e9), None, (1e-1, 0.01, 0.05))
"""Learning rate, weight decay and clipping of each row; the third is left alone."""


def state(dtype, device, num=5_000):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(ROWS), num, generator=generator).to(device, dtype)
    masters = weights if dtype == torch.float32 else weights.float()
    moments = [torch.zeros(len(ROWS), num, device=device) for _ in range(2)]
    gradients = [torch.randn(len(ROWS), num, generator=generator).to(device, dtype) for _ in range(4)]
    return weights, masters, *moments, gradients


def pieces(gradient):
    """What lies end to end in `gradient`, apart: of more than one launch, a launch of more than one block."""
    return [piece.contiguous() for piece in gradient.split([20] * 40 + [1, 7, *[16] * 4, 4_128], dim=1)]


def steps(dtype, device, update=adamw.update):
    weights, masters, first, second, gradients = state(dtype, device)
    for step, gradient in enumerate(gradients[:2], start=1):
        rows = [
            adamw.settings_row(step, rate=row[0], weight_decay=row[1]) if row else [0.0, 0.0, -1.0, 1.0, 1.0] for row in ROWS
        ]
        settings = torch.tensor(rows, device=device)
        limits = torch.tensor([row[2] if row else 1.0 for row in ROWS], device=device)
        norms = [adamw.clip_factors(pieces(gradient[[n]]), limits[n].item()) for n in range(len(ROWS))]
        settings[:, adamw.FACTOR] *= torch.cat(norms)
        update(weights, masters, first, second, pieces(gradient), settings)
    return weights, masters


def test_each_row_is_an_optimizer_of_its_own():
    before, _, _, _, gradients = state(torch.float32, "cpu")
    weights, _ = steps(torch.float32, "cpu")
    for n, row in enumerate(ROWS):
        if row is None:
            assert torch.equal(weights[n], before[n])
            continue
        expected = torch.nn.Parameter(before[n].clone())
        optimizer = torch.optim.AdamW([expected], lr=row[0], weight_decay=row[1])
        for gradient in gradients[:2]:
            expected.grad = gradient[n].clone()
            torch.nn.utils.clip_grad_norm_([expected], row[2])
            optimizer.step()
        torch.testing.assert_close(weights[n], expected.detach(), rtol=1e-5, atol=1e-6)
        assert (weights[n] - before[n]).abs().max() > 1e-3


def test_weights_are_the_rounded_masters():
    weights, masters = steps(torch.bfloat16, "cpu")
    assert masters.dtype == torch.float32 and torch.equal(weights, masters.bfloat16())


@needs_interpreter
def test_the_interpreted_kernels_are_the_reference():
    from pipelines import adamw_kernels

    for ours, expected in zip(steps(torch.float32, "cpu", adamw_kernels.update), steps(torch.float32, "cpu"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    gradient = state(torch.float16, "cpu")[-1][0]
    found = adamw_kernels.sums_of_squares(pieces(gradient))
    torch.testing.assert_close(found, gradient.float().square().sum(1), rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_the_reference(dtype):
    for ours, expected in zip(steps(dtype, "cuda"), steps(dtype, "cpu"), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_row_that_is_no_number_leaves_the_others_alone():
    weights, masters, first, second, gradients = state(torch.bfloat16, "cuda")
    before = weights.clone()
    gradients[0][1] = torch.nan
    settings = torch.tensor([adamw.settings_row(1, rate=0.1, weight_decay=0.0)] * len(ROWS), device="cuda")
    settings[:, adamw.FACTOR] *= adamw.clip_factors(pieces(gradients[0]), 1.0)
    adamw.update(weights, masters, first, second, pieces(gradients[0]), settings)
    assert weights.isfinite().all() and torch.equal(weights[1], before[1]) and not torch.equal(weights[0], before[0])
