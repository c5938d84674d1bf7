"""LoRA as plain tensors against peft, against a hand-written model with the same masks, and many adapters against one each."""

import copy
import itertools
import weakref

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from pipelines.adapted_linears import (
    Operands,
    adapted_linears,
    backward_by_kernels,
    forward_by_kernels,
    reference_backward,
    reference_forward,
)
from pipelines.adapter_files import adapter_tensors, load_adapter
from pipelines.adapters import SharedInput, add_adapters
from pipelines.attention import PACKED, register_packed_attention
from pipelines.classifier import Classifier, compute_last_layer_where_read
from pipelines.dropout import keep_mask, token_keys
from pipelines.errors import UserError
from pipelines.packing import Prefix, Shape, class_targets, pack
from pipelines.recipe import LLAMA_PROJECTIONS
from pipelines.segments import Segments
from pipelines.stream import PackedInput
from pipelines.weights import compile_layers
from tests.pipelines.interpreted import needs_interpreter

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 120,
}
PREFIX = [3, 14, 15]
# Normalisation and the loss are computed in float32 whatever the model's type.
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
register_packed_attention()


def random_sequences(num, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (num,), generator=generator).tolist()
    return [PREFIX + torch.randint(0, 120, (n,), generator=generator).tolist() for n in lengths]


def base_classifier(dtype=torch.float64, config_class=LlamaConfig, attention=PACKED):
    torch.manual_seed(0)
    body = AutoModel.from_config(config_class(**SHAPE), attn_implementation=attention)
    if config_class is Qwen2Config:
        for name, parameter in body.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return Classifier(body, torch.nn.Linear(64, 3, bias=False)).to(dtype).train()


def adapted(seeds, *, dropout=0.0, dtype=torch.float64, targets=LLAMA_PROJECTIONS, **options):
    """A classifier whose adapters' B is not zero any more, so that A has a gradient too."""
    model = base_classifier(dtype, **options)
    adapters = add_adapters(model.body, targets, rank=8, alpha=16, dropout=dropout, seeds=seeds)
    for number, layer in enumerate(adapters.layers.values()):
        for adapter, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            layer.b.data[adapter] = torch.randn(layer.b.shape[1:], generator=generator) * 0.05
    return model, adapters


def loss_of(model, adapters, sequences, labels, *, counts, seeds, steps=None, places=None, prefix=0, shape=None):
    """Summed loss after its backward pass."""
    batch = pack(sequences, prefixes=[Prefix(prefix)] * len(sequences), shape=shape)
    segments = Segments.from_batch(
        batch,
        "cpu",
        counts=counts,
        seeds=seeds,
        steps=steps or [7] * len(counts),
        places=places if places is not None else [place for count in counts for place in range(count)],
    )
    with adapters.over(segments):
        loss = model(PackedInput.from_batch(batch, "cpu"), torch.from_numpy(class_targets(batch, labels)))
        loss.backward()
    return loss.item()


def gradients(adapters):
    return {(name, letter): getattr(layer, letter).grad for name, layer in adapters.layers.items() for letter in "ab"}


# Dropout is a function.


# Worked out once from the definitions with Python's own integers: splitmix64 for each of the four values; then the hash.
GOLDEN_KEYS = [-1501787943, -1313240806, -1417959539]
GOLDEN_MASK = ["101100101111101110111111", "111110011101111111111010", "011101100001111111010111"]


def test_token_keys_and_masks_are_these():
    keys = token_keys(5, 100_000, np.array([-1, 0, 1]), np.array([0, 0, 9]))
    assert keys.dtype == np.int32
    assert keys.tolist() == GOLDEN_KEYS
    mask = keep_mask(torch.from_numpy(keys), torch.tensor([1_000_000_007], dtype=torch.int32), 24, 0.25)
    assert ["".join(map(str, row)) for row in mask.int().tolist()] == GOLDEN_MASK


def centred(mask, dropout):
    """A mask's elements with mean 0 and variance 1, if it keeps 1 - dropout of them."""
    return (mask.double() - (1 - dropout)) / (dropout * (1 - dropout)) ** 0.5


def assert_independent(first, second, limit=5.0):
    """That the mean product of two centred masks is zero within `limit` standard errors."""
    assert abs((first * second).sum().item()) / first.numel() ** 0.5 < limit


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5])
def test_masks_are_uniform_and_neighbours_are_independent(dropout):
    salts = torch.arange(3, dtype=torch.int32).split(1)
    keys = {
        name: torch.from_numpy(token_keys(seed, step, place, np.arange(1024)))
        for name, (seed, step, place) in {"self": (0, 0, 0), "seed": (1, 0, 0), "step": (0, 1, 0), "place": (0, 0, 1)}.items()
    }
    masks = {name: centred(keep_mask(value, salts[0], 1024, dropout), dropout) for name, value in keys.items()}
    own = masks["self"]
    assert_independent(own, torch.ones_like(own))
    for other in ("seed", "step", "place"):
        assert_independent(own, masks[other])
    for salt in salts[1:]:
        assert_independent(own, centred(keep_mask(keys["self"], salt, 1024, dropout), dropout))
    for shift in (1, 2, 16, 512):
        assert_independent(own[shift:], own[:-shift])
        assert_independent(own[:, shift:], own[:, :-shift])
    for pairs in (own @ own.t(), own.t() @ own):
        # Half a million pairs of rows (columns): their correlations are spread as those of independent ones are.
        off_diagonal = pairs[~torch.eye(1024, dtype=torch.bool)] / 1024**0.5
        assert off_diagonal.std().item() == pytest.approx(1, abs=0.01)
        assert off_diagonal.abs().max().item() < 8
    rows, columns = own.mean(1) * 1024**0.5, own.mean(0) * 1024**0.5
    assert rows.std().item() == pytest.approx(1, abs=0.15) == columns.std().item()


def test_a_keys_every_bit_moves_half_of_what_decides():
    keys = torch.from_numpy(token_keys(3, 1, 4, np.arange(256)))
    salt = torch.zeros(1, dtype=torch.int32)
    mask = keep_mask(keys, salt, 256, 0.5)
    for bit in range(32):
        flipped = keys ^ (1 << bit if bit < 31 else -(2**31))
        assert (keep_mask(flipped, salt, 256, 0.5) != mask).double().mean().item() == pytest.approx(0.5, abs=0.01), bit


def test_an_examples_masks_do_not_depend_on_its_batch():
    sequences = random_sequences(5)
    options = {"counts": [1], "seeds": [3], "steps": [8]}
    together = Segments.from_batch(
        pack(sequences, prefixes=[Prefix(3)] * len(sequences)), "cpu", counts=[5], seeds=[3], steps=[8], places=[4, 0, 2, 1, 3]
    )
    alone = Segments.from_batch(pack(sequences[2:3], prefixes=[Prefix(3)]), "cpu", places=[2], **options)
    begin = len(sequences[0]) + len(sequences[1]) - 3
    torch.testing.assert_close(together.keys[begin:][: len(sequences[2]) - 3], alone.keys[3:], rtol=0, atol=0)
    torch.testing.assert_close(together.keys[:3], alone.keys[:3], rtol=0, atol=0)
    assert len(together.keys.unique()) == len(together.keys)


# Segments.


@pytest.mark.parametrize(
    ("starts", "num_tokens"), [([0, 130], 130), ([0, 0], 70), ([0, 64, 64, 200], 256), ([0, 1, 2, 3], 3), ([0, 5], 300)]
)
def test_tiles_cover_each_token_once_and_never_two_adapters(starts, num_tokens):
    segments = Segments.from_arrays(starts, np.zeros(num_tokens, dtype=np.int32), "cpu")
    assert segments.tiles.shape == ((num_tokens + len(starts) * 63) // 64, 3)
    owners = np.full(num_tokens, -2)
    for adapter, first, end in segments.tiles.tolist():
        assert end - first <= 64
        assert (owners[first:end] == -2).all()
        owners[first:end] = adapter
    expected = np.full(num_tokens, -1)
    for adapter, (first, end) in enumerate(itertools.pairwise(starts)):
        expected[first:end] = adapter
    assert owners.tolist() == expected.tolist()


def test_segments_that_cannot_be_are_refused():
    keys = np.zeros(10, dtype=np.int32)
    for starts in ([1, 5], [0, 6, 4], [0, 11]):
        with pytest.raises(ValueError, match="must ascend from 0 to at most the stream's 10 tokens"):
            Segments.from_arrays(starts, keys, "cpu")
    batch = pack(random_sequences(4), prefixes=[Prefix(3)] * 4)
    with pytest.raises(ValueError, match="a prefix that two adapters share"):
        Segments.from_batch(batch, "cpu", counts=[2, 2], seeds=[1, 2], steps=[0, 0], places=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="for a batch of 4 sequences"):
        Segments.from_batch(batch, "cpu", counts=[3], seeds=[1], steps=[0], places=[0, 1, 2])


def test_a_stream_that_is_not_the_segments_is_refused():
    model, adapters = adapted([1])
    batch = PackedInput.from_batch(pack([[1, 2, 3]]), "cpu")
    with pytest.raises(ValueError, match=r"with adapters\.over"):
        model(batch, torch.tensor([0]))
    with (
        adapters.over(Segments.from_arrays([0, 2], np.zeros(2, dtype=np.int32), "cpu")),
        pytest.raises(ValueError, match="segments of 2 tokens and 1 adapters for a stream of 3 tokens"),
    ):
        model(batch, torch.tensor([0]))
    assert adapters.segments is None


# One adapter.


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config])
def test_loss_and_gradients_are_pefts(prefix, config_class):
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    model, adapters = adapted([1], dtype=torch.float32, config_class=config_class)
    peer = base_classifier(torch.float32, config_class=config_class)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=list(LLAMA_PROJECTIONS))
    peer.body = get_peft_model(peer.body, lora)
    named = dict(peer.body.named_parameters())
    for name, tensor in adapter_tensors(adapters, 0).items():
        named[name.replace(".weight", ".default.weight")].data.copy_(tensor)
    batch = pack(sequences, prefixes=[Prefix(prefix)] * len(sequences))
    expected = peer(PackedInput.from_batch(batch, "cpu"), torch.from_numpy(class_targets(batch, labels)))
    expected.backward()
    loss = loss_of(model, adapters, sequences, labels, counts=[6], seeds=[1], prefix=prefix)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for (name, letter), gradient in gradients(adapters).items():
        peers = named[f"base_model.model.{name}.lora_{letter.upper()}.default.weight"].grad
        assert peers.norm() > 1e-4
        assert ((gradient[0] - peers).norm() / peers.norm()).item() < 1e-3
    torch.testing.assert_close(model.head.weight.grad, peer.head.weight.grad, rtol=1e-4, atol=1e-5)
    trained = {name for name, parameter in model.body.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{letter}" for name in adapters.layers for letter in "ab"}


class HandWritten(torch.nn.Module):
    """A projection with LoRA and dropout as one writes it down, for tokens that are all of one adapter."""

    def __init__(self, layer, mask):
        super().__init__()
        self.weight, self.mask, self.keep = layer.weight, mask, 1 - layer.shared_input.dropout
        self.a = torch.nn.Parameter(layer.a.detach()[0].clone())
        self.b = torch.nn.Parameter(layer.b.detach()[0].clone())

    def forward(self, x):
        return x @ self.weight.t() + 2.0 * (x * self.mask / self.keep) @ self.a.t() @ self.b.t()


def test_dropout_is_a_hand_written_models_with_the_same_masks():
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    model, adapters = adapted([5], dropout=0.3)
    batch = pack(sequences, prefixes=[Prefix(3)] * len(sequences))
    keys = Segments.from_batch(batch, "cpu", counts=[6], seeds=[5], steps=[7], places=range(6)).keys
    peer = copy.deepcopy(model)
    twins = {}
    masks = set()
    for name, layer in adapters.layers.items():
        mask = keep_mask(keys, layer.salt, layer.weight.shape[1], 0.3)
        masks.add(tuple(mask[:, :64].flatten().tolist()))
        parent, _, attribute = name.rpartition(".")
        twins[name] = HandWritten(layer, mask.double())
        setattr(peer.body.get_submodule(parent), attribute, twins[name])
    assert len(masks) == len(adapters.layers) == 21
    expected = peer(PackedInput.from_batch(batch, "cpu"), torch.from_numpy(class_targets(batch, labels)))
    expected.backward()
    loss = loss_of(model, adapters, sequences, labels, counts=[6], seeds=[5], prefix=3)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for (name, letter), gradient in gradients(adapters).items():
        torch.testing.assert_close(gradient[0], getattr(twins[name], letter).grad, **ROUNDING)
    without = loss_of(model.eval(), adapters, sequences, labels, counts=[6], seeds=[5], prefix=3)
    assert without != pytest.approx(loss, rel=1e-4)


def test_a_step_is_the_sum_of_its_micro_batches():
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    whole, adapters = adapted([5], dropout=0.3)
    loss = loss_of(whole, adapters, sequences, labels, counts=[6], seeds=[5], prefix=3)
    split, pieces = adapted([5], dropout=0.3)
    sums = 0.0
    for indices in ([4, 1, 3], [0], [2, 5]):
        taken, of_taken = [sequences[i] for i in indices], [labels[i] for i in indices]
        sums += loss_of(split, pieces, taken, of_taken, counts=[len(indices)], seeds=[5], places=indices, prefix=3)
    assert sums == pytest.approx(loss, rel=1e-6)
    for ours, theirs in zip(gradients(pieces).values(), gradients(adapters).values(), strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_gradient_checkpointing_changes_nothing():
    sequences, labels = random_sequences(4), [0, 1, 2, 0]
    plain, adapters = adapted([5], dropout=0.3)
    loss = loss_of(plain, adapters, sequences, labels, counts=[4], seeds=[5])
    checkpointed, same = adapted([5], dropout=0.3)
    checkpointed.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed.body.enable_input_require_grads()
    assert loss_of(checkpointed, same, sequences, labels, counts=[4], seeds=[5]) == pytest.approx(loss, rel=1e-6)
    for ours, theirs in zip(gradients(same).values(), gradients(adapters).values(), strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_bfloat16_is_the_same_within_its_rounding():
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    exact, adapters = adapted([5], dropout=0.1)
    half, rounded = adapted([5], dropout=0.1, dtype=torch.bfloat16)
    loss = loss_of(exact, adapters, sequences, labels, counts=[6], seeds=[5])
    assert loss_of(half, rounded, sequences, labels, counts=[6], seeds=[5]) == pytest.approx(loss, rel=2e-2)
    for ours, theirs in zip(gradients(rounded).values(), gradients(adapters).values(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.1


# Many at once.


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("counts", [(2, 2, 2), (3, 0, 1)])
@pytest.mark.parametrize("filled", [False, True])
def test_adapters_at_once_are_as_many_models(dropout, counts, filled):
    seeds, steps = [5, 6, 7], [7, 7, 9]
    sequences = random_sequences(sum(counts))
    labels = [i % 3 for i in range(len(sequences))]
    model, adapters = adapted(seeds, dropout=dropout)
    shape = Shape(256, len(sequences) + 2, 256) if filled else None
    loss = loss_of(model, adapters, sequences, labels, counts=counts, seeds=seeds, steps=steps, shape=shape)
    expected = 0.0
    first = 0
    for adapter, (count, seed, step) in enumerate(zip(counts, seeds, steps, strict=True)):
        single, own = adapted([seed], dropout=dropout)
        taken = slice(first, first + count)
        first += count
        if count:
            expected += loss_of(single, own, sequences[taken], labels[taken], counts=[count], seeds=[seed], steps=[step])
        for (name, letter), gradient in gradients(adapters).items():
            wanted = gradients(own)[name, letter]
            if wanted is None:
                assert not gradient[adapter].any()
            else:
                torch.testing.assert_close(gradient[adapter], wanted[0], **ROUNDING)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_filling_computes_without_an_adapter():
    weight, a, b = torch.randn(5, 4), torch.randn(1, 2, 4), torch.randn(1, 5, 2)
    x = torch.randn(7, 4, requires_grad=True)
    segments = Segments.from_arrays([0, 3], np.zeros(7, dtype=np.int32), "cpu")
    (y,), _ = adapted_linears(x, [weight], [a], [b], [torch.zeros(1, dtype=torch.int32)], *segments.tensors(), 0.0, 1.0)
    torch.testing.assert_close(y[3:], x[3:] @ weight.t())
    assert not torch.allclose(y[:3], x[:3] @ weight.t())
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad[3:], torch.ones(4, 5) @ weight)


# Projections that read one input.


def apart(adapters):
    """Each projection computed alone from now on."""
    adapters.shared_inputs = [
        SharedInput([layer], adapters, scale=one.scale, dropout=one.dropout)
        for one in adapters.shared_inputs
        for layer in one.layers
    ]


class CountedOperators(TorchDispatchMode):
    """By the operator's name, how many projections each of its calls computes."""

    def __enter__(self):
        self.calls = {"adapted_linears": [], "adapted_linears_backward": []}
        return super().__enter__()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().removeprefix("blindsweep::")
        if name in self.calls:
            self.calls[name].append(len(args[1 if name == "adapted_linears" else 0]))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("targets", "expected"), [(LLAMA_PROJECTIONS, [3, 1, 2, 1]), (("q_proj", "v_proj", "up_proj"), [2, 1])]
)
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config])
def test_projections_of_one_input_are_computed_at_once_as_each_alone(targets, expected, config_class):
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    of = {"counts": [2, 3, 1], "seeds": [5, 6, 7], "shape": Shape(256, 8, 256)}
    losses, models = [], []
    for separate in (False, True):
        model, adapters = adapted(of["seeds"], dropout=0.3, targets=targets, config_class=config_class, dtype=torch.float32)
        if separate:
            apart(adapters)
        # So that the first layer's input has a gradient.
        model.body.enable_input_require_grads()
        with CountedOperators() as counted:
            losses.append(loss_of(model, adapters, sequences, labels, **of))
        models.append(adapters)
        ones = [1] * sum(expected)
        assert counted.calls["adapted_linears"] == (ones if separate else expected) * 3
        assert counted.calls["adapted_linears_backward"] == (ones if separate else expected[::-1]) * 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for ours, theirs in zip(gradients(models[0]).values(), gradients(models[1]).values(), strict=True):
        assert ours.norm() > 1e-4
        torch.testing.assert_close(ours, theirs, **ROUNDING)


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


def test_projections_called_in_any_way_are_each_what_they_are_alone():
    model, adapters = adapted([5], dropout=0.3)
    attention = model.body.layers[0].self_attn
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    first, second = torch.randn(2, 4, 64, dtype=torch.float64)
    calls = [(q, first), (k, first), (v, first), (v, second), (q, second), (q, second), (k, first), (k, second), (v, second)]
    keys = token_keys(5, 0, 0, np.arange(4))
    over = [Segments.from_arrays([0, 4], keys, "cpu"), Segments.from_arrays([0, 2], keys, "cpu")]

    def compute():
        found = []
        for segments in over:
            with adapters.over(segments):
                found += [layer(x) for layer, x in calls]
                # What is left of this round is of other segments than those of the next.
                found.append(q(first))
        with adapters.over(over[0]):
            found.append(q.eval()(first))
            found += [k(first), v.train(False)(first)]
        model.train()
        return found

    with torch.inference_mode():
        together = compute()
        apart(adapters)
        for ours, theirs in zip(together, compute(), strict=True):
            assert torch.equal(ours, theirs)


def test_nothing_is_kept_of_a_pass():
    model, adapters = adapted([5])
    attention = model.body.layers[0].self_attn
    segments = Segments.from_arrays([0, 4], np.zeros(4, dtype=np.int32), "cpu")
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    with adapters.over(segments):
        x = torch.randn(4, 64, dtype=torch.float64)
        kept = weakref.ref(x)
        for projection in projections:
            projection(x)
        del x
        assert kept() is None
        x = torch.randn(4, 64, dtype=torch.float64)
        kept = weakref.ref(x)
        projections[0](x)
        del x
    assert kept() is None


def test_projections_of_partitioned_weights_stay_alone():
    model = base_classifier().body
    for parameter in model.parameters():
        parameter.ds_id = 0
    adapters = add_adapters(model, LLAMA_PROJECTIONS, rank=8, alpha=16, dropout=0.0, seeds=[1])
    assert [len(one.layers) for one in adapters.shared_inputs] == [1] * 21


# Compiled.


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
    return draw(num_tokens, wide), weights, a, b, salts, *segments.tensors(), 0.25, 0.5


@pytest.mark.parametrize("outs", [(10,), (10, 6, 6)])
def test_the_operator_is_registered_as_pytorch_asks(outs):
    torch.library.opcheck(adapted_linears, operator_arguments(outs=outs))


def test_the_operators_gradients_are_its_derivatives():
    x, weights, a, b, *rest = operator_arguments(starts=(0, 2, 2, 5), num_tokens=6, rank=2, wide=5, outs=(3, 2))

    def outputs(x, *trained):
        return tuple(adapted_linears(x, weights, list(trained[:2]), list(trained[2:]), *rest)[0])

    assert torch.autograd.gradcheck(outputs, (x, *a, *b))


def assert_compiles_to_the_same(compile_it, dtype=torch.float64, tolerance=1e-6):
    """Once for all layers, lengths and segments, with the loss and gradients of the eager model."""
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    plain, adapters = adapted([5], dropout=0.3, dtype=dtype)
    compiled, same = adapted([5], dropout=0.3, dtype=dtype)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_it(compiled.body)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            now = slice(step, step + 4)
            loss = loss_of(plain, adapters, sequences[now], labels[now], counts=[4], seeds=[5], steps=[step])
            ours = loss_of(compiled, same, sequences[now], labels[now], counts=[4], seeds=[5], steps=[step])
            assert ours == pytest.approx(loss, rel=tolerance)
    for ours, theirs in zip(gradients(same).values(), gradients(adapters).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * tolerance, atol=tolerance)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_compiled_projections_are_one_graph():
    def compile_it(body):
        for layer in body.layers:
            layer.mlp.compile(dynamic=True, fullgraph=True, backend="aot_eager")

    assert_compiles_to_the_same(compile_it)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.needs_compiler
def test_compiled_decoder_layers_break_their_graph_at_attention_to_copies_only():
    def compile_it(body):
        # The first layer's input has no gradient otherwise, which makes it a case of its own.
        body.enable_input_require_grads()
        compile_layers(body)

    assert_compiles_to_the_same(compile_it)
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert breaks
    assert all("_attend_to_copies" in reason for reason in breaks), breaks


@needs_interpreter
def test_compiled_decoder_layers_are_one_graph_where_our_kernels_attend(monkeypatch):
    monkeypatch.setattr("pipelines.attention._has_kernels", lambda *_: True)

    def compile_it(body):
        body.enable_input_require_grads()
        for layer in body.layers:
            layer.compile(dynamic=True, fullgraph=True, backend="aot_eager")

    assert_compiles_to_the_same(compile_it, torch.float32, 1e-5)


# In and out.


def test_fresh_adapters_are_drawn_as_pefts_by_their_own_seeds():
    model = base_classifier(torch.float32).body
    before = model(torch.arange(5)[None], packed=PackedInput.from_batch(pack([[0, 1, 2, 3, 4]]), "cpu")).last_hidden_state
    adapters = add_adapters(model, ["q_proj", "mlp.down_proj"], rank=8, alpha=16, dropout=0.1, seeds=[4, 9])
    assert list(adapters.layers) == [f"layers.{i}.{name}" for i in range(3) for name in ("self_attn.q_proj", "mlp.down_proj")]
    with adapters.over(Segments.from_arrays([0, 2, 5], token_keys(0, 0, 0, np.arange(5)), "cpu")):
        after = model(torch.arange(5)[None], packed=PackedInput.from_batch(pack([[0, 1, 2, 3, 4]]), "cpu")).last_hidden_state
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    alone = add_adapters(
        base_classifier(torch.float32).body, ["q_proj", "mlp.down_proj"], rank=8, alpha=16, dropout=0.1, seeds=[9]
    )
    for name, layer in adapters.layers.items():
        assert not layer.b.any()
        torch.testing.assert_close(layer.a[1], alone.layers[name].a[0], rtol=0, atol=0)
        # Uniform within ±1 / √in.
        bound = layer.weight.shape[1] ** -0.5
        assert 0.97 * bound < layer.a.abs().max().item() <= bound
        assert layer.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not torch.equal(layer.a[0], layer.a[1])


def test_peft_loads_what_is_written_and_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation=PACKED).eval()
    peer = copy.deepcopy(model)
    peer.set_attn_implementation("eager")
    adapters = add_adapters(model, ["q_proj", "up_proj"], rank=8, alpha=16, dropout=0.0, seeds=[1, 2])
    for layer in adapters.layers.values():
        torch.nn.init.normal_(layer.b.data, std=0.1)
    written = adapter_tensors(adapters, 1)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in written
    assert len(written) == 3 * 2 * 2
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, tmp_path / "adapter_model.safetensors")
    LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "up_proj"], inference_mode=True).save_pretrained(tmp_path)
    ids = torch.tensor([[5, 17, 3, 99, 2, 41]])
    loaded = PeftModel.from_pretrained(peer, tmp_path)
    expected = loaded(ids).logits
    segments = Segments.from_arrays([0, 0, 6], np.zeros(6, dtype=np.int32), "cpu")
    with adapters.over(segments):
        logits = model(ids, packed=PackedInput.from_batch(pack(ids.tolist()), "cpu")).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

    loaded.save_pretrained(tmp_path / "by_peft")
    load_adapter(adapters, 0, tmp_path / "by_peft")
    for layer in adapters.layers.values():
        torch.testing.assert_close(layer.a[0], layer.a[1], rtol=0, atol=0)
        torch.testing.assert_close(layer.b[0], layer.b[1], rtol=0, atol=0)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    def of(rank, targets):
        return add_adapters(base_classifier().body, targets, rank=rank, alpha=16, dropout=0.0, seeds=[1])

    save_file(
        {k: v.contiguous() for k, v in adapter_tensors(of(8, ["q_proj"]), 0).items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"differ in 12 tensors, base_model.model.layers.0.self_attn.k_proj.lora_A.weight"):
        load_adapter(of(8, ["k_proj"]), 0, tmp_path)
    with pytest.raises(UserError, match=r"of shape \[8, 64\], this model of \[4, 64\]: use its own rank"):
        load_adapter(of(4, ["q_proj"]), 0, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"targets": ["q_proj", "query", "proj"]},
            r"lora_targets=\['query', 'proj'\] name no linear layer of this model; it has down_proj, gate_proj, k_proj,",
        ),
        ({"targets": ["embed_tokens"]}, "name no linear layer"),
        ({"rank": 0}, "lora_rank=0 must be above 0"),
        ({"dropout": 1.0}, "lora_dropout=1.0 at least 0 and below 1"),
    ],
)
def test_values_that_no_adapter_can_have_are_refused(changed, message):
    options = {"targets": ["q_proj"], "rank": 8, "alpha": 16, "dropout": 0.1, "seeds": [1], **changed}
    with pytest.raises(UserError, match=message):
        add_adapters(base_classifier().body, **options)


# The kernels.

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


def assert_kernels_drop_what_the_reference_drops(dtype, device):
    """By products with ones and with the identity, which leave each projection's mask."""
    from pipelines.adapter_kernels import expand, gradients, shrink

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
def test_products_in_two_parts_are_the_product():
    from pipelines.adapter_kernels import add_product, whole_rounds

    # 10.4 rounds and 5.2; few, 0.97 and 1.5; those whose last is full enough, 7.8, 13.6 and five.
    split = ((4_096, 11_008), (2_048, 11_008))
    whole = ((1_000, 4_096), (1_536, 4_096), (3_072, 11_008), (4_096, 14_336), (8_192, 2_640))
    assert [whole_rounds(*shape) for shape in split + whole] == [8_448, 8_448, 0, 0, 0, 0, 0]
    left, right, before = (torch.randn(*shape) for shape in ((4_096, 3), (3, 11_008), (4_096, 11_008)))
    out = before.clone()
    add_product(out, left, right)
    torch.testing.assert_close(out, before + left @ right)


@needs_interpreter
def test_interpreted_kernels_drop_what_the_reference_drops():
    assert_kernels_drop_what_the_reference_drops(torch.float32, "cpu")


@pytest.mark.gpu
def test_kernels_drop_what_the_reference_drops():
    assert_kernels_drop_what_the_reference_drops(torch.bfloat16, "cuda")


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


@pytest.mark.gpu
def test_masks_are_the_same_bits_on_a_gpu():
    keys, salt = torch.from_numpy(token_keys(1, 2, 3, np.arange(500))), torch.tensor([-77], dtype=torch.int32)
    expected = keep_mask(keys, salt, 300, 0.1)
    assert torch.equal(keep_mask(keys.cuda(), salt.cuda(), 300, 0.1).cpu(), expected)


@pytest.mark.gpu
def test_a_captured_step_follows_its_segments():
    model, adapters = adapted([5, 6], dropout=0.3, dtype=torch.bfloat16)
    compute_last_layer_where_read(model.body)
    model.cuda()
    sequences = random_sequences(8)
    shape = Shape(256, 6, 256)

    def inputs(first, steps):
        batch = pack(sequences[first : first + 4], shape=shape)
        segments = Segments.from_batch(batch, "cuda", counts=[1, 3], seeds=[5, 6], steps=steps, places=[0, 0, 1, 2])
        return PackedInput.from_batch(batch, "cuda"), torch.from_numpy(class_targets(batch, [0, 1, 2, 0])).cuda(), segments

    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(packed, targets, segments):
        with adapters.over(segments):
            loss = model(packed, targets)
            return loss, *torch.autograd.grad(loss, parameters)

    static = inputs(0, [0, 0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*static)
    for first, steps in ((4, [1, 1]), (2, [2, 9])):
        packed, targets, segments = inputs(first, steps)
        for target, source in zip(
            (*static[0].tensors(), static[1], *static[2].tensors()),
            (*packed.tensors(), targets, *segments.tensors()),
            strict=True,
        ):
            target.copy_(source)
        graph.replay()
        for ours, theirs in zip(results, step(packed, targets, segments), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
