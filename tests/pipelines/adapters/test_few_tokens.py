"""Kernels for few tokens compute what the reference does."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, LlamaConfig

from pipelines import adapters
from pipelines.adapters import linears
from pipelines.adapters.adapters import add_adapters
from pipelines.adapters.fp8 import fp8_projections, to_fp8, transposed
from pipelines.adapters.linears import Operands, reference_backward, reference_forward
from pipelines.models.architectures import LLAMA_PROJECTIONS
from pipelines.models.classifier import Classifier
from pipelines.packing.attention import PACKED, register_packed_attention
from pipelines.packing.batches import Shape, class_targets, pack
from pipelines.packing.dropout import token_keys
from pipelines.packing.segments import Segments
from pipelines.packing.stream import PackedInput
from tests.pipelines.interpreted import needs_interpreter

register_packed_attention()

# Tokens with an adapter and all; the widths of outputs; that of the input. Sums of one part and of several.
CASES = {
    "one": (50, 50, (192,), 128),
    "filled": (20, 33, (128, 64, 64), 64),
    "parts": (30, 37, (128, 128), 384),
    "long": (70, 130, (64,), 640),
    "nothing": (0, 20, (64, 128), 128),
}


def operands_of(case, dtype, device="cpu", *, in_fp8=False, rank=16, dropout=0.25):
    end, num_tokens, outs, wide = case
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    segments = Segments.from_arrays([0, end], token_keys(1, 2, 3, np.arange(num_tokens)), device)
    weights = [draw(out, wide) / wide**0.5 for out in outs]
    a, b = [draw(1, rank, wide) / wide**0.5 for _ in outs], [draw(1, out, rank) for out in outs]
    salts = [torch.tensor([99 + place], dtype=torch.int32, device=device) for place in range(len(outs))]
    scales = beside = None
    if in_fp8:
        rows = [to_fp8([weight.float()]) for weight in weights]
        weights, scales = [row.numbers for row in rows], torch.cat([row.scales for row in rows])
        beside = transposed(weights)
    x, grads = draw(num_tokens, wide), [draw(num_tokens, out) for out in outs]
    tensors = segments.starts, segments.keys, segments.tiles
    return x, grads, Operands(weights, a, b, salts, *tensors, dropout, 0.5, scales, beside)


def exactly(operands):
    def exact(value):
        if isinstance(value, list):
            return [exact(member) for member in value]
        is_wide = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16, torch.float32)
        return value.double() if is_wide else value

    return Operands(*map(exact, operands))


def assert_are_the_reference(case, dtype, tolerance, **options):
    from pipelines.adapters import few_tokens

    x, grads, operands = operands_of(case, dtype, **options)
    assert few_tokens.takes(x, operands)
    outputs, z = few_tokens.forward(x, operands)
    of_backward = few_tokens.backward(grads, x, z, operands, True)
    exact = exactly(operands)
    exact_outputs, exact_z = reference_forward(x.double(), exact)
    expected = reference_backward([grad.double() for grad in grads], x.double(), exact_z, exact, True)
    ours = [*outputs, z, of_backward[0], *of_backward[1], *of_backward[2]]
    theirs = [*exact_outputs, exact_z, expected[0], *expected[1], *expected[2]]
    for result, wanted in zip(ours, theirs, strict=True):
        assert result.shape == wanted.shape and result.dtype == x.dtype
        assert (result - wanted).norm().item() <= tolerance * wanted.norm().item()
    assert not z[:, case[0] :].any()
    none, *again = few_tokens.backward(grads, x, z, operands, False)
    assert none.numel() == 0
    for several, before in zip(again, of_backward[1:], strict=True):
        assert all(torch.equal(*pair) for pair in zip(several, before, strict=True))


@needs_interpreter
@pytest.mark.parametrize("by_tiles", [False, True])
@pytest.mark.parametrize(("programs", "dtype", "tolerance"), [(16, torch.float32, 1e-6), (1, torch.float16, 1e-3)])
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_are_the_reference(name, programs, dtype, tolerance, by_tiles, monkeypatch):
    """With sums of products in parts, and with whole ones; with weights read by pointers, and tile by tile,
    where even one part is added apart."""
    from pipelines.adapters import few_tokens

    settings = {"PROGRAMS": programs, "BM": 64, "BN": 64, "BK": 32, "BY_TILES": by_tiles, "MAY_BE_WHOLE": not by_tiles}
    for is_forward in (False, True):
        monkeypatch.setitem(few_tokens.PRODUCT, (False, is_forward), settings)
    monkeypatch.setattr(few_tokens, "SHRINK_PROGRAMS", 24)
    assert_are_the_reference(CASES[name], dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("in_fp8", [False, True])
@pytest.mark.parametrize("case", [*CASES.values(), (107, 128, (4096, 4096, 4096), 4096), (180, 256, (1024,), 11008)])
def test_kernels_are_the_reference(case, in_fp8):
    if in_fp8 and any(size % 128 for size in (*case[2], case[3])):
        pytest.skip("sizes of FP8 are multiples of 128")
    # In FP8 both cast alike, and what is rounded before the cast differs in a few numbers' last bit.
    assert_are_the_reference(case, torch.bfloat16, 1e-2, device="cuda", in_fp8=in_fp8)


@needs_interpreter
def test_what_they_are_not_made_for_is_left_to_others():
    from pipelines.adapters import few_tokens

    def taken(case, **options):
        x, _, operands = operands_of(case, torch.float32, **options)
        return few_tokens.takes(x, operands)

    assert taken((3, 5, (64,), 64)) and taken((3, 256, (128,), 128), in_fp8=True)
    assert not taken((3, 257, (64,), 64))
    assert not taken((3, 5, (80,), 64)) and not taken((3, 5, (64,), 80))
    assert not taken((3, 5, (64,), 64), in_fp8=True)
    assert not taken((3, 5, (64,), 64), rank=65)
    x, _, operands = operands_of((3, 5, (64,), 64), torch.float32)
    several = Segments.from_arrays([0, 2, 3], np.zeros(5, dtype=np.int32), "cpu")
    assert not few_tokens.takes(x, operands._replace(starts=several.starts))


def trained_gradients(device, dtype, *, in_fp8, num_layers, width=512, lengths=(50, 61)):
    """Loss and gradients of all adapters of a small Llama over a batch of few tokens, float64 on the CPU."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": num_layers, "num_attention_heads": 4}
    body = AutoModel.from_config(LlamaConfig(**sizes, vocab_size=120), attn_implementation=PACKED).to(device, dtype)
    if in_fp8:
        fp8_projections(body, LLAMA_PROJECTIONS)
    adapters = add_adapters(body, LLAMA_PROJECTIONS, rank=16, alpha=16, dropout=0.1, seeds=[5])
    adapters.repeats = True
    generator = torch.Generator().manual_seed(1)
    for layer in adapters.layers.values():
        layer.b.data.copy_(torch.randn(layer.b.shape, generator=generator) * 0.05)
    head = torch.nn.Linear(width, 3, bias=False)
    torch.nn.init.normal_(head.weight, std=0.05, generator=generator)
    model = Classifier(body, head.to(device, dtype), adapters).train()
    sequences = [torch.randint(0, 120, (length,), generator=generator).tolist() for length in lengths]
    batch = pack(sequences, shape=Shape(-(-sum(lengths) // 64) * 64, len(lengths) + 2, 128))
    segments = Segments.from_batch(batch, device, counts=[2], seeds=[5], steps=[7], places=[0, 1])
    with adapters.over(segments):
        loss = model(PackedInput.from_batch(batch, device), torch.from_numpy(class_targets(batch, [0, 2])).to(device))
        loss.backward()
    parameters = (parameter for layer in adapters.layers.values() for parameter in (layer.a, layer.b))
    return loss.item(), torch.cat([parameter.grad.flatten().double().cpu() for parameter in parameters])


def test_a_few_passes_are_not_worth_their_compilation(monkeypatch):
    x, _, operands = operands_of(CASES["one"], torch.bfloat16)
    on_a_gpu = SimpleNamespace(is_cuda=True, dtype=x.dtype, device=x.device, shape=x.shape)
    assert linears._ways(on_a_gpu, operands) == (linears.forward_by_kernels, linears.backward_by_kernels)
    asked = SimpleNamespace(takes=lambda *_: True, forward="few", backward="tokens")
    monkeypatch.setattr(adapters, "few_tokens", asked, raising=False)
    monkeypatch.setitem(sys.modules, "pipelines.adapters.kernels", SimpleNamespace(is_hopper=lambda _: True))
    assert linears._ways(on_a_gpu, operands._replace(repeats=True)) == ("few", "tokens")


@needs_interpreter
def test_a_whole_interpreted_model_is_as_near_to_the_exact_one_as_plain_pytorch(monkeypatch):
    from pipelines.adapters import few_tokens, linears

    small = {"in_fp8": False, "num_layers": 1, "width": 64, "lengths": (7, 9)}
    _, exact = trained_gradients("cpu", torch.float32, **small)
    errors = {}
    for name in ("reference", "few"):
        if name == "few":
            monkeypatch.setattr(linears, "_ways", lambda *_: (few_tokens.forward, few_tokens.backward))
        _, gradients = trained_gradients("cpu", torch.float16, **small)
        errors[name] = ((gradients - exact).norm() / exact.norm()).item()
    assert errors["few"] < 1.5 * errors["reference"] < 0.05, errors


@pytest.mark.gpu
@pytest.mark.parametrize("num_layers", [4, 32])
@pytest.mark.parametrize("in_fp8", [False, True])
def test_a_whole_model_is_as_near_to_the_exact_one_as_with_the_kernels_of_many(in_fp8, num_layers, monkeypatch):
    """Rounding alone is all of these errors, and differs by the order of sums; it grows by depth."""
    from pipelines.adapters import few_tokens

    exact_loss, exact = trained_gradients("cpu", torch.float32, in_fp8=in_fp8, num_layers=num_layers)
    errors = {}
    for name, most in (("few", few_tokens.MOST_TOKENS), ("many", 0)):
        monkeypatch.setattr(few_tokens, "MOST_TOKENS", most)
        loss, gradients = trained_gradients("cuda", torch.bfloat16, in_fp8=in_fp8, num_layers=num_layers)
        if num_layers == 4:
            assert loss == pytest.approx(exact_loss, rel=0.1)
        errors[name] = ((gradients - exact).norm() / exact.norm()).item()
    assert errors["few"] < 1.5 * errors["many"], errors
    if num_layers == 4:
        assert errors["many"] < 0.3, errors
