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

from pipelines.adapters.adapters import SharedInput, add_adapters
from pipelines.adapters.files import adapter_tensors, load_adapter
from pipelines.adapters.fp8 import fp8_projections
from pipelines.errors import UserError
from pipelines.finetune.recipe import LLAMA_PROJECTIONS
from pipelines.models.classifier import Classifier, compute_last_layer_where_read
from pipelines.models.weights import compile_layers
from pipelines.packing.attention import PACKED, register_packed_attention
from pipelines.packing.batches import Prefix, Shape, class_targets, pack
from pipelines.packing.dropout import keep_mask, token_keys
from pipelines.packing.segments import Segments
from pipelines.packing.stream import PackedInput
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


def adapted(seeds, *, dropout=0.0, dtype=torch.float64, targets=LLAMA_PROJECTIONS, in_fp8=False, **options):
    """A classifier whose adapters' B is not zero any more, so that A has a gradient too."""
    model = base_classifier(dtype, **options)
    if in_fp8:
        fp8_projections(model.body, LLAMA_PROJECTIONS)
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


def assert_compiles_to_the_same(compile_it, dtype=torch.float64, tolerance=1e-6, **options):
    """Once for all layers, lengths and segments, with the loss and gradients of the eager model."""
    sequences, labels = random_sequences(6), [0, 1, 2, 0, 1, 2]
    plain, adapters = adapted([5], dropout=0.3, dtype=dtype, **options)
    compiled, same = adapted([5], dropout=0.3, dtype=dtype, **options)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_it(compiled.body)
    squares = adapters.sum_squares(), same.sum_squares()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            now = slice(step, step + 4)
            loss = loss_of(plain, adapters, sequences[now], labels[now], counts=[4], seeds=[5], steps=[step])
            ours = loss_of(compiled, same, sequences[now], labels[now], counts=[4], seeds=[5], steps=[step])
            assert ours == pytest.approx(loss, rel=tolerance)
    for ours, theirs in zip(gradients(same).values(), gradients(adapters).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * tolerance, atol=tolerance)
    for theirs, ours in zip(*squares, strict=True):
        assert theirs.grad.max() > 0
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=max(1e-4, 100 * tolerance), atol=tolerance)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("in_fp8", [False, True])
def test_compiled_projections_are_one_graph(in_fp8):
    def compile_it(body):
        for layer in body.layers:
            layer.mlp.compile(dynamic=True, fullgraph=True, backend="aot_eager")

    assert_compiles_to_the_same(compile_it, in_fp8=in_fp8)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.needs_compiler
@pytest.mark.slow
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
    monkeypatch.setattr("pipelines.packing.attention._has_kernels", lambda *_: True)

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
