"""The operator of adapted projections: its gradients, what PyTorch asks of it, and its kernels beside the reference."""

import numpy as np
import pytest
import torch

from pipelines.adapters.linears import (
    Operands,
    _squares_of_each,
    adapted_linears,
    backward_by_kernels,
    forward_by_kernels,
    reference_backward,
    reference_forward,
)
from pipelines.packing.dropout import keep_mask, token_keys
from pipelines.packing.segments import Segments
from tests.pipelines.interpreted import needs_interpreter


def operator_arguments(dtype=torch.float64, device="cpu", *, starts=(0, 5, 5, 17), num_tokens=20, rank=4, wide=12, outs=(10,)):
    generator = torch.Generator().manual_seed(0)
    num = len(starts) - 1

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    keys = token_keys(1, 2, 3, np.arange(num_tokens))
    segments = Segments.from_arrays(starts, keys, device)
    weights = [draw(out, wide).detach() / wide**0.5 for out in outs]
    a, b = [draw(num, rank, wide) for _ in outs], [draw(num, out, rank) for out in outs]
    salts = [torch.tensor([99 + place], dtype=torch.int32, device=device) for place in range(len(outs))]
    return draw(num_tokens, wide), weights, a, b, salts, *segments.tensors(), 0.25, 0.5, None, None


def test_filling_computes_without_an_adapter():
    weight, a, b = torch.randn(5, 4), torch.randn(1, 2, 4), torch.randn(1, 5, 2)
    x = torch.randn(7, 4, requires_grad=True)
    segments = Segments.from_arrays([0, 3], np.zeros(7, dtype=np.int32), "cpu")
    salts = [torch.zeros(1, dtype=torch.int32)]
    (y,), _ = adapted_linears(x, [weight], [a], [b], salts, *segments.tensors(), 0.0, 1.0, None, None)
    torch.testing.assert_close(y[3:], x[3:] @ weight.t())
    assert not torch.allclose(y[:3], x[:3] @ weight.t())
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad[3:], torch.ones(4, 5) @ weight)


def test_the_operator_is_the_sum_of_its_projections():
    x, weights, a, b, salts, *rest = operator_arguments(torch.float32, outs=(10, 6, 6))
    grads = [torch.randn(len(x), len(weight), generator=torch.Generator().manual_seed(5)) for weight in weights]
    outputs, z = adapted_linears(x, weights, a, b, salts, *rest)
    torch.autograd.backward(outputs, grads)
    found, x.grad = x.grad, None
    for place, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        own = [one.detach().requires_grad_() for one in (a[place], b[place])]
        (y,), own_z = adapted_linears(x, [weight], own[:1], own[1:], salts[place : place + 1], *rest)
        assert torch.equal(y, outputs[place])
        assert torch.equal(own_z[0], z[place])
        y.backward(grad)
        assert torch.equal(own[0].grad, a[place].grad)
        assert torch.equal(own[1].grad, b[place].grad)
    torch.testing.assert_close(found, x.grad, rtol=1e-5, atol=1e-6)


def test_an_output_without_a_gradient_has_a_gradient_of_zero():
    x, weights, a, b, salts, *rest = operator_arguments(outs=(10, 6))
    outputs, _ = adapted_linears(x, weights, a, b, salts, *rest)
    found = torch.autograd.grad(outputs[1].sum(), (x, a[0], a[1], b[1]))
    (y,), _ = adapted_linears(x, weights[1:], a[1:], b[1:], salts[1:], *rest)
    expected = torch.autograd.grad(y.sum(), (x, a[1], b[1]))
    assert not found[1].any()
    for ours, theirs in zip((found[0], *found[2:]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("outs", [(10,), (10, 6, 6)])
def test_the_operator_is_registered_as_pytorch_asks(outs):
    torch.library.opcheck(adapted_linears, operator_arguments(outs=outs))
    squares = torch.zeros(3, 1, requires_grad=True)
    torch.library.opcheck(adapted_linears, (*operator_arguments(outs=outs, starts=(0, 3, 3, 5)), None, None, False, squares))


def test_sums_of_squares_of_gradients_are_a_gradient():
    x, weights, a, b, *rest = operator_arguments(outs=(10, 6), starts=(0, 3, 3, 5))
    squares = torch.zeros(3, 2, requires_grad=True)
    outputs, _ = adapted_linears(x, weights, a, b, *rest, None, None, False, squares)
    *gradients, found = torch.autograd.grad(sum(y.square().sum() for y in outputs), (*a, *b, squares))
    expected = sum(gradient.float().square().sum((1, 2)) for gradient in gradients)
    assert (expected > 0).tolist() == [True, False, True]
    torch.testing.assert_close(found.sum(1), expected)


def test_the_operators_gradients_are_its_derivatives():
    x, weights, a, b, *rest = operator_arguments(starts=(0, 2, 2, 5), num_tokens=6, rank=2, wide=5, outs=(3, 2))

    def outputs(x, *trained):
        return tuple(adapted_linears(x, weights, list(trained[:2]), list(trained[2:]), *rest)[0])

    assert torch.autograd.gradcheck(outputs, (x, *a, *b))


CASES = {
    "one": {"starts": (0, 200), "num_tokens": 200, "rank": 64, "wide": 160, "outs": (144,)},
    "one_filled": {"starts": (0, 150), "num_tokens": 200, "rank": 8, "wide": 96, "outs": (80, 80)},
    "many": {"starts": (0, 70, 70, 290), "num_tokens": 300, "rank": 16, "wide": 400, "outs": (272,)},
    "nothing": {"starts": (0, 0), "num_tokens": 70, "rank": 24, "wide": 200, "outs": (130, 70, 70)},
    "wide_rank_odd_sizes": {"starts": (0, 33, 130), "num_tokens": 131, "rank": 100, "wide": 77, "outs": (91, 13)},
    "one_grouped_heads": {"starts": (0, 190), "num_tokens": 200, "rank": 64, "wide": 272, "outs": (300, 100, 100)},
    "many_grouped_heads": {"starts": (0, 90, 90, 270), "num_tokens": 300, "rank": 4, "wide": 150, "outs": (272, 17, 33)},
    "few_blocks": {"starts": (0, 40, 75, 99), "num_tokens": 100, "rank": 100, "wide": 64, "outs": (64, 64, 64)},
    # Sums in parts: of channels, of which the narrow ones fill the first only, and of tokens.
    "parts_of_channels": {"starts": (0, 50, 70), "num_tokens": 70, "rank": 4, "wide": 1100, "outs": (1030, 200, 130)},
    "parts_of_channels_wide_rank": {"starts": (0, 70), "num_tokens": 70, "rank": 100, "wide": 530, "outs": (514, 90)},
    "parts_of_tokens": {"starts": (0, 700), "num_tokens": 800, "rank": 24, "wide": 72, "outs": (80, 72, 13)},
}


def assert_kernels_are_the_reference(arguments, tolerance):
    def each(value, change):
        if isinstance(value, list | tuple):
            return [each(member, change) for member in value]
        return change(value) if isinstance(value, torch.Tensor) else value

    def exactly(value):
        return value.double() if value.is_floating_point() else value

    def flat(outputs, *more):
        return [*outputs, *(one for value in more for one in (value if isinstance(value, list) else [value]))]

    x, *rest = each(arguments, torch.Tensor.detach)
    outputs, z = forward_by_kernels(x, Operands(*rest))
    exact_x, *exact = each([x, *rest], exactly)
    exact_outputs, exact_z = reference_forward(exact_x, Operands(*exact))
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    ours = flat(outputs, z, *backward_by_kernels(grads, x, z, Operands(*rest), True))
    exact_gradients = reference_backward(each(grads, exactly), exact_x, exact_z, Operands(*exact), True)
    theirs = flat(exact_outputs, exact_z, *exact_gradients)
    for result, expected in zip(ours, theirs, strict=True):
        assert result.shape == expected.shape
        assert result.dtype == x.dtype
        assert (result - expected).norm().item() <= tolerance * expected.norm().item()
    without, *again = backward_by_kernels(grads, x, z, Operands(*rest), False)
    assert without.numel() == 0
    for result, one in zip(flat(*again), ours[-2 * len(grads) :], strict=True):
        assert torch.equal(result, one)


@needs_interpreter
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_are_the_reference(case, dtype, tolerance):
    assert_kernels_are_the_reference(operator_arguments(dtype, **CASES[case]), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", [*CASES.values(), {"starts": (0, 4000), "num_tokens": 4096, "rank": 64, "wide": 4096, "outs": (11008, 11008)}]
)
def test_kernels_are_the_reference(case):
    assert_kernels_are_the_reference(operator_arguments(torch.bfloat16, "cuda", **case), 1e-2)


def assert_squares_come_beside_the_same_gradients(arguments, tolerance):
    """In a buffer with another pass's sums: an adapter without tokens in this one has none of them."""
    x, *rest = arguments
    operands = Operands(*rest)
    outputs, z = forward_by_kernels(x, operands)
    grads = [torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y) for y in outputs]
    num = num_squares_of_kernels(operands)
    assert num > 0
    squares = torch.full((len(operands.a[0]), num + 2), 1e6, device=x.device)
    with torch.no_grad():
        plain = backward_by_kernels(grads, x, z, operands, True)
        found = backward_by_kernels(grads, x, z, operands, True, squares[:, 1:-1])
    assert (squares[:, [0, -1]] == 1e6).all()
    assert torch.equal(found[0], plain[0])
    expected = 0.0
    for ours, theirs in zip([*found[1], *found[2]], [*plain[1], *plain[2]], strict=True):
        assert torch.equal(ours, theirs)
        expected = expected + ours.double().square().sum((1, 2))
    torch.testing.assert_close(squares[:, 1:-1].sum(1).double(), expected, rtol=tolerance, atol=0)
    assert ((expected == 0) == (operands.starts.diff() == 0)).all()


def num_squares_of_kernels(operands):
    of_each = _squares_of_each(operands.a, operands.b)
    return sum(of_each) if all(of_each) else 0


@pytest.fixture
def whole_sums(monkeypatch):
    """Gradients of few adapters are sums in one part, as those of many are."""
    from pipelines.adapters import kernels

    for is_wide, settings in kernels.GRADIENT.items():
        monkeypatch.setitem(kernels.GRADIENT, is_wide, {**settings, "PROGRAMS": 1})


@needs_interpreter
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
@pytest.mark.parametrize("case", CASES)
def test_squares_of_interpreted_kernels_come_beside_the_same_gradients(case, dtype, tolerance, whole_sums):
    assert_squares_come_beside_the_same_gradients(operator_arguments(dtype, **CASES[case]), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_squares_of_kernels_come_beside_the_same_gradients(case, whole_sums):
    assert_squares_come_beside_the_same_gradients(operator_arguments(torch.bfloat16, "cuda", **CASES[case]), 1e-3)


@needs_interpreter
def test_squares_are_summed_where_no_sum_is_cut():
    from pipelines.adapters.kernels import gradients, num_parts_of_squares

    expected = {(36, (4_096, 1_024, 1_024), 64): 96, (36, (576,), 64): 5, (34, (576,), 64): 0, (4, (11_008, 11_008), 128): 344}
    assert {key: num_parts_of_squares(*key) for key in expected} == expected
    _, *rest = operator_arguments(torch.float32, **CASES["parts_of_tokens"])
    operands = Operands(*rest)
    assert num_squares_of_kernels(operands) == 0
    wides, squares = [torch.ones(800, out) for out in (80, 72, 13)], torch.ones(1, 3)
    with pytest.raises(AssertionError, match="squares of a sum's parts"):
        gradients(torch.ones(3, 800, 24), wides, operands.segments, operands.salts, dropout=0.0, scale=1.0, squares=squares)


def assert_kernels_drop_what_the_reference_drops(dtype, device):
    """By products with ones and with the identity, which leave each projection's mask."""
    from pipelines.adapters.kernels import expand, gradients, shrink

    size = 80
    keys = token_keys(1, 2, 3, np.arange(size))
    segments = Segments.from_arrays([0, size], keys, device)
    salts = [torch.tensor([salt], dtype=torch.int32, device=device) for salt in (5, -77, 2**31 - 1)]
    masks = [keep_mask(segments.keys, salt, size, 0.3).to(dtype) for salt in salts]
    assert not torch.equal(masks[0], masks[1])
    ones, identity = torch.ones(size, size, device=device, dtype=dtype), torch.eye(size, device=device, dtype=dtype)
    dropping = {"segments": segments, "salts": salts, "dropout": 0.3, "scale": 1.0}
    shrunk = shrink([ones] * 3, [identity[None]] * 3, **dropping)
    expanded = expand(identity.repeat(3, 1, 1), [ones[None]] * 3, **dropping)
    summed = expand(identity.repeat(3, 1, 1), [ones[None]] * 3, summed=True, **dropping)
    by_rank = gradients(identity.repeat(3, 1, 1), [ones] * 3, **dropping)
    for place, mask in enumerate(masks):
        assert torch.equal(shrunk[place], mask)
        assert torch.equal(expanded[place], mask)
        assert torch.equal(by_rank[place][0], mask)
    assert torch.equal(summed[0], sum(masks))


@needs_interpreter
def test_interpreted_kernels_drop_what_the_reference_drops():
    assert_kernels_drop_what_the_reference_drops(torch.float32, "cpu")


@pytest.mark.gpu
def test_kernels_drop_what_the_reference_drops():
    assert_kernels_drop_what_the_reference_drops(torch.bfloat16, "cuda")


@needs_interpreter
def test_products_in_two_parts_are_the_product():
    from pipelines.adapters.kernels import add_product, whole_rounds

    # 10.4 rounds and 5.2; few, 0.97 and 1.5; those whose last is full enough, 7.8, 13.6 and five.
    split = ((4_096, 11_008), (2_048, 11_008))
    whole = ((1_000, 4_096), (1_536, 4_096), (3_072, 11_008), (4_096, 14_336), (8_192, 2_640))
    assert [whole_rounds(*shape) for shape in split + whole] == [8_448, 8_448, 0, 0, 0, 0, 0]
    left, right, before = (torch.randn(*shape) for shape in ((4_096, 3), (3, 11_008), (4_096, 11_008)))
    out = before.clone()
    add_product(out, left, right)
    torch.testing.assert_close(out, before + left @ right)


@pytest.mark.gpu
def test_projections_of_one_input_are_on_a_gpu_what_each_is_alone():
    case = {"starts": (0, 500, 500, 900), "num_tokens": 1000, "rank": 64, "wide": 576, "outs": (576, 192, 192)}
    x, weights, a, b, salts, *rest = operator_arguments(torch.bfloat16, "cuda", **case)
    outputs, _ = adapted_linears(x, weights, a, b, salts, *rest)
    grads = [torch.randn_like(y) for y in outputs]
    found = torch.autograd.grad(outputs, (x, *a, *b), grads)
    sum_of_x = 0.0
    for place, grad in enumerate(grads):
        one = slice(place, place + 1)
        (y,), _ = adapted_linears(x, weights[one], a[one], b[one], salts[one], *rest)
        grad_x, *own = torch.autograd.grad(y, (x, a[place], b[place]), grad)
        sum_of_x = sum_of_x + grad_x.float()
        for ours, theirs in zip((outputs[place], found[1 + place], found[4 + place]), (y, *own), strict=True):
            assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-2
    assert ((found[0] - sum_of_x).norm() / sum_of_x.norm()).item() < 1e-2
