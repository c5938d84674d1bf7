"""FP8 by hand: scales, casts, products in both directions, projections with and without adapters, kernels beside it all."""

import numpy as np
import pytest
import torch

from pipelines.adapters import fp8
from pipelines.adapters.adapters import add_adapters
from pipelines.adapters.fp8 import (
    E4M3,
    Fp8Linear,
    Fp8Rows,
    check_capability,
    fp8_projections,
    product,
    reference_to_fp8,
    to_fp8,
)
from pipelines.adapters.linears import adapted_linears
from pipelines.errors import UserError
from pipelines.packing.segments import Segments
from tests.pipelines.adapters.test_linears import assert_kernels_are_the_reference, operator_arguments
from tests.pipelines.interpreted import needs_interpreter


def values(rows: Fp8Rows) -> torch.Tensor:
    return rows.numbers.double() * rows.scales[:, None].double()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_scale_is_the_smallest_power_of_two_that_brings_a_row_to_448():
    # 448, the next float32, just above half of it, half of it, 1: 1 / 2^-8 is 256.
    largest = [448.0, 448.00003, 224.00002, 224.0, 1.0, -3.5, 1e-30, 0.0]
    rows = torch.tensor([[number, 0.0, number / 3] for number in largest])
    found = reference_to_fp8([rows]).scales.tolist()
    assert found == [1.0, 2.0, 1.0, 0.5, 2.0**-8, 2.0**-7, 2.0**-108, 2.0**-126]


def test_a_number_is_rounded_to_the_nearest_of_three_bits_with_ties_to_even():
    # At 256 to 448 they are 32 apart: 272 and 304 are ties. The least above zero is 2^-9, half of which is a tie with zero.
    found = reference_to_fp8([torch.tensor([[448.0, 272.0, 304.0, 305.0, -290.0, 2.0**-9, 2.0**-10, 1.5 * 2.0**-10]])])
    assert found.scales.tolist() == [1.0]
    assert found.numbers.float().tolist() == [[448.0, 256.0, 320.0, 320.0, -288.0, 2.0**-9, 0.0, 2.0**-9]]


def test_tensors_side_by_side_have_one_scale_a_row_and_are_multiplied_by_channel_before():
    wides, factors = [draw(5, 3), draw(5, 4, seed=1)], 2.0 ** torch.arange(7)
    found = to_fp8(wides, factors)
    expected = to_fp8([torch.cat(wides, dim=1) * factors])
    assert torch.equal(found.numbers.float(), expected.numbers.float())
    assert torch.equal(found.scales, expected.scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_weight_is_in_fp8_becomes_the_same_values_again_also_from_half_precision(dtype):
    weight = draw(50, 33) * 0.02
    # Of a row whose largest is rounded down to half of 448 the second scale is half the first.
    weight[0, 0] = 224.001 / 4096
    once = values(to_fp8([weight]))
    again = once.to(dtype)
    assert torch.equal(again.double(), once)
    assert torch.equal(values(to_fp8([again])), once)
    assert (once - weight).norm() / weight.norm() < 0.03
    assert (once - weight).abs().max() <= weight.abs().max() / 16


def test_a_row_that_is_no_number_stays_none():
    rows = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    assert reference_to_fp8([rows]).numbers.float().isnan().any(dim=1).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_product_is_that_of_the_values(dtype):
    rows, weight = to_fp8([draw(6, 40)]), to_fp8([draw(8, 40, seed=1)])
    found = product(rows, *weight, dtype)
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.double(), values(rows) @ values(weight).t(), **tolerance)
    without = product(rows, weight.numbers, None, torch.float64)
    torch.testing.assert_close(without, values(rows) @ weight.numbers.double().t())


def quantised(seed: int = 0, *, out: int = 16, wide: int = 32, bias: bool = False) -> tuple[torch.nn.Linear, Fp8Linear]:
    torch.manual_seed(seed)
    linear = torch.nn.Linear(wide, out, bias=bias).requires_grad_(False)
    return linear, Fp8Linear(linear)


def test_a_layer_multiplies_what_is_cast_and_so_does_its_gradient():
    linear, layer = quantised(bias=True)
    weight = values(to_fp8([linear.weight]))
    x = draw(2, 5, 32).requires_grad_()
    y = layer(x)
    expected = values(to_fp8([x.detach().view(10, 32)])) @ weight.t() + linear.bias.double()
    torch.testing.assert_close(y.double().view(10, 16), expected, rtol=1e-5, atol=1e-5)
    grad = draw(2, 5, 16, seed=3)
    y.backward(grad)
    # The gradient is cast after it has met the scales of the channels that it leaves.
    numbers, scales = to_fp8([linear.weight])
    expected = values(to_fp8([grad.view(10, 16) * scales])) @ numbers.double()
    torch.testing.assert_close(x.grad.double().view(10, 32), expected, rtol=1e-5, atol=1e-5)
    assert ((expected - grad.view(10, 16).double() @ weight).norm() / expected.norm()).item() < 0.05


def test_the_operators_are_registered_as_pytorch_asks():
    _, layer = quantised()
    # Without the comparison of inputs before and after, which has no arithmetic of e4m3.
    names = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    x = draw(5, 32).requires_grad_()
    torch.library.opcheck(fp8.fp8_linear, (x, layer.weight, layer.scales), test_utils=names)
    torch.library.opcheck(adapted_linears, in_fp8(operator_arguments(torch.float32, outs=(10, 6))), test_utils=names)


def in_fp8(arguments):
    """Arguments of `adapted_linears` with its weights in FP8."""
    x, weights, *rest, _, _ = arguments
    rows = [to_fp8([weight.float()]) for weight in weights]
    numbers = [row.numbers for row in rows]
    return x, numbers, *rest, torch.cat([row.scales for row in rows]), fp8.transposed(numbers)


def test_adapters_add_to_what_is_computed_in_fp8():
    arguments = operator_arguments(torch.float32, outs=(10, 6, 6))
    x, weights, a, b, salts, *rest = in_fp8(arguments)
    *stream, scales, _ = rest
    outputs, z = adapted_linears(x, weights, a, b, salts, *rest)
    nothing = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    alone, own_z = adapted_linears(x, nothing, a, b, salts, *stream, None, None)
    assert torch.equal(z, own_z)
    grads = [draw(*y.shape, seed=place) for place, y in enumerate(outputs)]
    found = torch.autograd.grad(outputs, (x, *a, *b), grads)
    of_adapters = torch.autograd.grad(alone, (x, *a, *b), grads)
    rows = to_fp8([x.detach()])
    for weight, own_scales, y, added in zip(weights, scales.split([10, 6, 6]), outputs, alone, strict=True):
        torch.testing.assert_close(y, product(rows, weight, own_scales, torch.float32) + added, rtol=1e-5, atol=1e-5)
    # One product of all projections, whose gradients are cast side by side.
    expected = product(to_fp8(grads, scales), torch.cat(weights).t(), None, torch.float32) + of_adapters[0]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[1:], of_adapters[1:], strict=True):
        assert torch.equal(ours, theirs)


class Attention(torch.nn.Module):
    """Projections of one input, of which the last stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.head = (torch.nn.Linear(32, out, bias=False) for out in (32, 16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.q_proj(x), self.k_proj(x)], dim=1)[:, :32])


def over(num_tokens: int) -> Segments:
    return Segments.from_arrays([0, num_tokens], np.zeros(num_tokens, dtype=np.int32), "cpu")


def test_a_models_projections_are_replaced_and_adapted():
    torch.manual_seed(0)
    model = Attention()
    assert fp8_projections(model, ("q_proj", "k_proj")) == 32 * 48
    assert [type(module) for module in model.children()] == [Fp8Linear, Fp8Linear, torch.nn.Linear]
    x = draw(7, 32)
    before = model(x)
    adapters = add_adapters(model, ["q_proj", "k_proj"], rank=2, alpha=4, dropout=0.0, seeds=[1])
    layer = model.q_proj
    assert layer.weight.dtype == E4M3
    assert layer.a.dtype == layer.b.dtype == torch.float32
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "q_proj.a", "q_proj.b", "k_proj.a", "k_proj.b",
    ]  # fmt: skip
    with adapters.over(over(7)):
        torch.testing.assert_close(model(x), before)
        # As in training and evaluation at once: what drops and what does not are computed apart.
        model.k_proj.eval()
        torch.testing.assert_close(model(x), before)
        x.requires_grad_()
        model(x).sum().backward()
    mixed = x.grad
    model.k_proj.train()
    x.grad = None
    with adapters.over(over(7)):
        model(x).sum().backward()
    # Gradients that are cast apart have scales of their own.
    assert ((mixed - x.grad).norm() / x.grad.norm()).item() < 0.05


def test_a_tokens_outputs_and_gradients_do_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    model = Attention()
    fp8_projections(model, ("q_proj", "k_proj"))
    adapters = add_adapters(model, ["q_proj", "k_proj"], rank=2, alpha=4, dropout=0.0, seeds=[1])
    x = draw(7, 32)
    x[3] *= 1_000

    def outcome(tokens):
        part = x[tokens].clone().requires_grad_()
        with adapters.over(over(len(part))):
            y = model(part)
            y.square().sum().backward()
        return y.detach(), part.grad

    for whole, alone in zip(outcome(slice(0, 7)), outcome(slice(2, 3)), strict=True):
        torch.testing.assert_close(whole[2:3], alone)


def test_what_is_compiled_casts_outside_of_the_operator_to_the_same(monkeypatch):
    """Where torch.compile sees the cast, and can compute it in the kernel before: inputs and gradients."""
    outcomes = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        model = Attention()
        fp8_projections(model, ("q_proj", "k_proj"))
        adapters = add_adapters(model, ["q_proj", "k_proj"], rank=2, alpha=4, dropout=0.0, seeds=[1])
        if backend:
            torch._dynamo.reset()
            model.compile(dynamic=True, fullgraph=True, backend=backend)
            monkeypatch.setattr("pipelines.adapters.linears.to_fp8", None)
        for num_tokens in (7, 9):
            x = draw(num_tokens, 32, seed=num_tokens).requires_grad_()
            with adapters.over(over(num_tokens)):
                y = model(x)
                y.square().sum().backward()
        outcomes.append((y.detach(), x.grad, model.q_proj.b.grad))
    for eager, compiled in zip(*outcomes, strict=True):
        assert torch.equal(eager, compiled)


def test_projections_for_forward_passes_alone_keep_their_weights_once():
    model = Attention()
    fp8_projections(model, ("q_proj",))
    adapters = add_adapters(model, ["q_proj"], rank=2, alpha=4, dropout=0.0, seeds=[None], trained=False)
    with adapters.over(over(3)), torch.no_grad():
        model(draw(3, 32))
    assert adapters.shared_inputs[0]._transposed is None


def test_a_gpu_without_fp8_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    with pytest.raises(
        UserError, match=r"this GPU, NVIDIA A100-SXM4-80GB, has compute capability 8\.0, .*-p base_precision=bfloat16"
    ):
        check_capability(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    check_capability(torch.device("cuda"))
    check_capability(torch.device("cpu"))


# Kernels. Triton's interpreter rounds ties and the smallest numbers otherwise, which random float32 are none of or which are
# left out, and loses the carry to the next power of two.


CASTS = {
    "one": ([(5, 48)], False),
    "three_with_factors": ([(6, 64), (6, 24), (6, 24)], True),
    "wide": ([(3, 2_100), (3, 2_100)], True),
    "odd": ([(4, 77)], False),
}


def assert_cast_by_kernel_is_the_reference(shapes, has_factors, dtype, device):
    from pipelines.adapters.fp8_kernels import cast_rows

    wides = [draw(*shape, seed=place).to(device, dtype) * 0.01 for place, shape in enumerate(shapes)]
    wides[0][1] = 0.0
    wides[0][2] *= 1_000
    factors = None
    if has_factors:
        exponents = torch.randint(-14, -9, (sum(width for _, width in shapes),), generator=torch.Generator().manual_seed(9))
        factors = (2.0**exponents).to(device)
    numbers, scales = cast_rows(wides, factors)
    expected = reference_to_fp8(wides, factors)
    assert torch.equal(scales, expected.scales)
    found, expected = numbers.float(), expected.numbers.float()
    if device == "cpu":
        is_rounded_well = (expected.frexp().mantissa.abs() != 0.5) & (expected.abs() >= 2.0**-6)
        found, expected = found.where(is_rounded_well, 0.0), expected.where(is_rounded_well, 0.0)
    assert torch.equal(found, expected)


@needs_interpreter
@pytest.mark.parametrize("case", CASTS)
def test_an_interpreted_cast_is_the_reference(case):
    assert_cast_by_kernel_is_the_reference(*CASTS[case], torch.float32, "cpu")


@needs_interpreter
@pytest.mark.parametrize("outs", [(144,), (80, 80, 48)])
def test_interpreted_kernels_add_to_what_is_computed_in_fp8(outs):
    case = {"starts": (0, 70, 70, 290), "num_tokens": 300, "rank": 16, "wide": 96}
    assert_kernels_are_the_reference(in_fp8(operator_arguments(torch.float32, outs=outs, **case)), 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", [*CASTS.values(), ([(999, 4_096)] * 3, True), ([(999, 11_008)] * 2, True), ([(999, 11_008)], False)]
)
def test_a_cast_by_the_kernel_is_the_reference(case):
    assert_cast_by_kernel_is_the_reference(*case, torch.bfloat16, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("outs", [(4_096, 4_096, 4_096), (11_008, 11_008), (144,), (10, 6)])
def test_kernels_are_the_reference_in_fp8(outs):
    case = {"starts": (0, 400, 900), "num_tokens": 1_000, "rank": 64, "wide": 4_096 if outs[0] > 144 else 96}
    assert_kernels_are_the_reference(in_fp8(operator_arguments(torch.bfloat16, "cuda", outs=outs, **case)), 1e-2)
