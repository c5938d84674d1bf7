"""Rows of a matrix are updated as PyTorch's AdamW would update each, by settings of their own."""

import pytest
import torch

from pipelines.adapters import adamw
from pipelines.adapters.adamw_settings import FACTOR, NUM_SETTINGS, STAYS, settings_row
from tests.pipelines.interpreted import needs_interpreter

ROWS = ((1e-2, 0.1, 0.5), (3e-3, 0.0, 1e9), None, (1e-1, 0.01, 0.05))
"""Learning rate, weight decay and clipping of each row; the third is left alone."""


def state(dtype, device, num=33_920, of=None):
    """With weights, and gradients, that `of` has, too."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(len(ROWS), num, generator=generator).to(of or dtype).to(device, dtype)

    weights = draw()
    rest = None if dtype == torch.float32 else torch.zeros_like(weights, dtype=torch.int16)
    moments = [torch.zeros(len(ROWS), num, device=device) for _ in range(2)]
    gradients = [draw() for _ in range(4)]
    return weights, rest, *moments, gradients


def pieces(gradient):
    """The parts of `gradient`, laid apart: of more launches than one, of more blocks and of more programs than one."""
    return [piece.contiguous() for piece in gradient.split([20, 16] * 20 + [1, 7, *[16] * 4, 33_128], dim=1)]


def steps(dtype, device, update=adamw.update, of=None):
    weights, rest, first, second, gradients = state(dtype, device, of=of)
    for step, gradient in enumerate(gradients[:2], start=1):
        rows = [settings_row(step, rate=row[0], weight_decay=row[1]) if row else STAYS for row in ROWS]
        settings = torch.tensor(rows, device=device)
        limits = [row[2] if row else 1.0 for row in ROWS]
        clipped = [adamw.clip(settings[[n]], pieces(gradient[[n]]), limit) for n, limit in enumerate(limits)]
        further = torch.ones(len(ROWS), 1, device=device)
        update(weights, rest, first, second, pieces(gradient), torch.cat([torch.cat(clipped), further], dim=1))
    return weights, weights if rest is None else adamw.join_masters(weights, rest)


def test_gradients_whose_squares_are_known_are_clipped_with_the_others():
    gradient = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))
    settings = torch.tensor([settings_row(1, rate=0.1, weight_decay=0.0)] * 3)
    squares = [part.square().split(4, dim=1) for part in gradient.split([7, 13, 10], dim=1)[:2]]
    parts = [torch.stack([piece.sum(1) for piece in pieces], dim=1) for pieces in squares]
    expected = adamw.clip(settings, gradient.split([7, 13, 10], dim=1), 0.5)
    assert (expected < settings).any(dim=1).all()
    torch.testing.assert_close(adamw.clip(settings, [gradient[:, 20:]], 0.5, squares=parts), expected)


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
    # As those are that are stored whole.
    expected, _ = steps(torch.float32, "cpu", of=torch.bfloat16)
    torch.testing.assert_close(masters, expected, rtol=2e-7, atol=0)
    assert not torch.equal(masters, masters.bfloat16().float())


def test_weights_and_rest_are_the_master():
    bits = torch.arange(-(2**31), 2**31, 7_919, dtype=torch.int64).to(torch.int32)
    halves = torch.tensor([0x3F808000, 0x3F818000, -0x407F8000, 0x7F7FFFFF, 0x7F800000, -0x800000, 1, 0], dtype=torch.int32)
    for masters in (bits.view(torch.float32), halves.view(torch.float32)):
        weights, rest = adamw.split_masters(masters)
        torch.testing.assert_close(weights, masters.bfloat16(), rtol=0, atol=0, equal_nan=True)
        joined = adamw.join_masters(weights, rest)
        torch.testing.assert_close(joined, masters, rtol=2**-23, atol=0, equal_nan=True)
        again = adamw.split_masters(joined)
        torch.testing.assert_close(again[0], weights, rtol=0, atol=0, equal_nan=True)
        numbers = ~masters.isnan()
        assert torch.equal(again[1][numbers], rest[numbers])
        # Halfway, rounded down: the one kind that is not exact.
        inexact = numbers & (joined != masters)
        assert torch.equal(inexact, numbers & (masters.view(torch.int32) - weights.float().view(torch.int32) == 2**15))
    assert inexact.tolist() == [True, False, True, *[False] * 5]


@needs_interpreter
def test_the_interpreted_kernels_are_the_reference():
    from pipelines.adapters import adamw_kernels

    for ours, expected in zip(steps(torch.float32, "cpu", adamw_kernels.update), steps(torch.float32, "cpu"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    gradient = state(torch.float16, "cpu")[-1][0]
    expected = gradient.float().square().sum(1)
    # Further columns are somebody else's.
    settings = torch.ones(len(ROWS), NUM_SETTINGS + 1)
    # What stays is not read, so that it may be anything.
    settings[2, FACTOR], gradient[2], expected[2] = -1, torch.nan, 0
    found = adamw_kernels.sums_of_squares(pieces(gradient), settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_the_reference(dtype):
    (weights, masters), (expected, expected_masters) = steps(dtype, "cuda"), steps(dtype, "cpu")
    torch.testing.assert_close(masters.cpu(), expected_masters, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights.cpu(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(weights, masters.to(dtype))


@pytest.mark.gpu
def test_a_row_that_is_no_number_leaves_the_others_alone():
    weights, rest, first, second, gradients = state(torch.bfloat16, "cuda")
    before = weights.clone()
    gradients[0][1] = torch.nan
    settings = torch.tensor([settings_row(1, rate=0.1, weight_decay=0.0)] * len(ROWS), device="cuda")
    settings = adamw.clip(settings, pieces(gradients[0]), 1.0)
    adamw.update(weights, rest, first, second, pieces(gradients[0]), settings)
    assert weights.isfinite().all() and torch.equal(weights[1], before[1]) and not torch.equal(weights[0], before[0])
