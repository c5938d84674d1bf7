"""Beginnings that texts share, computed once a batch, against padded models that compute it for each of them.

The reference is transformers' own model, padded, with LoRA written by hand; only the dropout masks are ours, worked out for
each sequence and position by itself.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from pipelines.adapters.adapters import add_adapters
from pipelines.finetune.recipe import LLAMA_PROJECTIONS
from pipelines.models.classifier import Classifier, compute_last_layer_where_read
from pipelines.models.language_model import LanguageModel
from pipelines.packing.attention import PACKED, register_packed_attention
from pipelines.packing.batches import Prefix, Shape, class_targets, next_token_targets, pack
from pipelines.packing.dropout import keep_mask, token_keys
from pipelines.packing.segments import Segments
from pipelines.packing.stream import PackedInput

CONFIG = LlamaConfig(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=120
)
RANK, SCALE = 8, 2.0
# Normalisation and the loss are computed in float32 whatever the model's type.
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
register_packed_attention()


def draw(length, seed):
    return torch.randint(0, 120, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def adapted(auto_class, seeds, dropout):
    """A packed model with adapters that change it, and transformers' model of the same weights without any."""
    torch.manual_seed(0)
    plain = auto_class.from_config(copy.deepcopy(CONFIG), attn_implementation="eager").double()
    ours = auto_class.from_config(copy.deepcopy(CONFIG), attn_implementation=PACKED).double()
    ours.load_state_dict(plain.state_dict())
    adapters = add_adapters(ours, LLAMA_PROJECTIONS, rank=RANK, alpha=SCALE * RANK, dropout=dropout, seeds=seeds)
    for number, layer in enumerate(adapters.layers.values()):
        for adapter, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            layer.b.data[adapter] = torch.randn(layer.b.shape[1:], generator=generator) * 0.05
    return ours.train(), adapters, plain.requires_grad_(False).train()


class HandWritten(torch.nn.Module):
    """LoRA on padded sequences: `mask` [sequences, width, in]."""

    def __init__(self, layer, adapter, keys):
        super().__init__()
        self.weight, self.keep = layer.weight, 1 - layer.shared_input.dropout
        mask = keep_mask(torch.from_numpy(keys.reshape(-1)), layer.salt, self.weight.shape[1], layer.shared_input.dropout)
        self.mask = mask.view(*keys.shape, -1).double()
        self.a = torch.nn.Parameter(layer.a.detach()[adapter].clone())
        self.b = torch.nn.Parameter(layer.b.detach()[adapter].clone())

    def forward(self, x):
        return x @ self.weight.t() + SCALE * (x * self.mask / self.keep) @ self.a.t() @ self.b.t()


def padded(plain, adapters, adapter, sequences, prefixes, seed, step):
    """A copy of `plain` with an adapter by hand, the token ids and the mask; the modules by name."""
    width = max(map(len, sequences))
    ids, mask = torch.zeros(len(sequences), width, dtype=torch.long), torch.zeros(len(sequences), width, dtype=torch.long)
    keys = np.zeros((len(sequences), width), dtype=np.int32)
    for place, (sequence, prefix) in enumerate(zip(sequences, prefixes, strict=True)):
        ids[place, : len(sequence)] = torch.tensor(sequence)
        mask[place, : len(sequence)] = 1
        places = np.full(width, place)
        places[: prefix.length] = -1 - prefix.number
        keys[place] = token_keys(seed, step, places, np.arange(width))
    reference = copy.deepcopy(plain)
    by_hand = {}
    for name, layer in adapters.layers.items():
        parent, _, attribute = name.rpartition(".")
        by_hand[name] = HandWritten(layer, adapter, keys)
        setattr(reference.get_submodule(parent), attribute, by_hand[name])
    return reference, ids, mask, by_hand


@pytest.fixture(name="texts")
def _texts():
    """As a generator's: three labels' beginnings, in no order; of one of them a single text."""
    beginnings = {0: draw(9, 10), 1: draw(9, 10)[:6] + draw(2, 11), 2: draw(9, 10)[:6] + draw(5, 12)}
    numbers = [2, 0, 0, 2, 1, 0, 2, 0]
    sequences = [beginnings[number] + draw(length, length) for number, length in zip(numbers, range(1, 9), strict=True)]
    return sequences, [Prefix(len(beginnings[number]), number) for number in numbers]


@pytest.mark.parametrize(
    ("parts", "checkpointed"),
    [([range(8)], False), ([range(8)], True), ([[0, 1, 4], [5], [7, 6, 3, 2]], False)],
    ids=["whole", "checkpointed", "microbatches"],
)
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_generators_labels_share_their_beginnings(texts, dropout, filled, parts, checkpointed):
    """Adapters, embeddings and LM head. However a step is cut, the masks are those of the whole."""
    sequences, prefixes = texts
    decoder, adapters, plain = adapted(AutoModelForCausalLM, [5], dropout)
    for one in (decoder, plain):
        for module in (one.get_input_embeddings(), one.get_output_embeddings()):
            module.weight.requires_grad = True
    if checkpointed:
        decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    reference, ids, mask, by_hand = padded(plain, adapters, 0, sequences, prefixes, seed=5, step=7)
    labels = ids.masked_fill(mask == 0, -100)
    expected = reference(input_ids=ids, attention_mask=mask, labels=labels).loss * sum(len(one) - 1 for one in sequences)
    expected.backward()

    loss = 0.0
    for part in parts:
        taken = sorted(part, key=lambda place: prefixes[place])
        shape = Shape(96, 14, 96, 96) if filled else None
        packed = pack([sequences[i] for i in taken], prefixes=[prefixes[i] for i in taken], shape=shape)
        segments = Segments.from_batch(packed, "cpu", counts=[len(taken)], seeds=[5], steps=[7], places=taken)
        with adapters.over(segments):
            own = LanguageModel(decoder)(
                PackedInput.from_batch(packed, "cpu", segments), torch.from_numpy(next_token_targets(packed))
            )
            own.backward()
        loss += own.item()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, layer in adapters.layers.items():
        torch.testing.assert_close(layer.a.grad[0], by_hand[name].a.grad, **ROUNDING)
        torch.testing.assert_close(layer.b.grad[0], by_hand[name].b.grad, **ROUNDING)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        theirs, ours = (getattr(one, name)().weight.grad for one in (reference, decoder))
        assert theirs.norm() > 1e-2
        torch.testing.assert_close(ours, theirs, **ROUNDING)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("counts", [(5,), (3, 2, 4), (1, 0, 3)])
def test_each_members_prompts_share_their_beginning(counts, dropout, filled):
    """One task model, and three at once: two of equal beginnings, which each computes for itself, and one that shares none."""
    seeds, steps = [5, 6, 7][: len(counts)], [7, 7, 9][: len(counts)]
    beginning = draw(6, 3)
    lengths = (6, 6, 0)
    sequences, prefixes, places = [], [], []
    for adapter, count in enumerate(counts):
        sequences += [beginning + draw(place + 1 + adapter, place + 20 * adapter) for place in range(count)]
        prefixes += [Prefix(lengths[adapter], 0, adapter)] * count
        places += range(count)
    labels = [i % 3 for i in range(len(sequences))]
    body, adapters, plain = adapted(AutoModel, seeds, dropout)
    compute_last_layer_where_read(body)
    head = torch.nn.Linear(64, 3, bias=False).double()
    packed = pack(sequences, prefixes=prefixes, shape=Shape(128, 14, 128, 128) if filled else None)
    segments = Segments.from_batch(packed, "cpu", counts=counts, seeds=seeds, steps=steps, places=places)
    with adapters.over(segments):
        loss = Classifier(body, head, adapters)(
            PackedInput.from_batch(packed, "cpu", segments), torch.from_numpy(class_targets(packed, labels))
        )
        loss.backward()
    head_grad, head.weight.grad = head.weight.grad, None

    expected, first = 0.0, 0
    for adapter, count in enumerate(counts):
        if not count:
            assert not any(layer.a.grad[adapter].any() or layer.b.grad[adapter].any() for layer in adapters.layers.values())
            continue
        own = slice(first, first + count)
        first += count
        reference, ids, mask, by_hand = padded(
            plain, adapters, adapter, sequences[own], prefixes[own], seeds[adapter], steps[adapter]
        )
        states = reference(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = head(states[torch.arange(count), mask.sum(1) - 1]).float()
        theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[own]), reduction="sum")
        theirs.backward()
        expected += theirs.item()
        for name, layer in adapters.layers.items():
            torch.testing.assert_close(layer.a.grad[adapter], by_hand[name].a.grad, **ROUNDING)
            torch.testing.assert_close(layer.b.grad[adapter], by_hand[name].b.grad, **ROUNDING)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(head_grad, head.weight.grad, **ROUNDING)


def test_a_prefixs_masks_hang_on_its_number_and_not_on_its_company(texts):
    sequences, prefixes = texts
    options = {"seeds": [3], "steps": [8]}
    order = sorted(range(8), key=lambda place: prefixes[place])
    whole = pack([sequences[i] for i in order], prefixes=[prefixes[i] for i in order])
    keys = Segments.from_batch(whole, "cpu", counts=[8], places=order, **options).keys
    assert len(keys.unique()) == whole.num_tokens
    starts = np.append(0, np.cumsum(whole.lengths))
    for place in range(8):
        alone = Segments.from_batch(
            pack([sequences[place]], prefixes=[prefixes[place]]), "cpu", counts=[1], places=[place], **options
        ).keys
        of_prefix, own = (
            int(starts[whole.contents.tolist().index(one)]) for one in (-1 - prefixes[place].number, order.index(place))
        )
        length = prefixes[place].length
        assert torch.equal(alone[:length], keys[of_prefix : of_prefix + length])
        assert torch.equal(alone[length:], keys[own : own + len(sequences[place]) - length])


@pytest.mark.gpu
def test_a_captured_generator_is_the_eager_one_whatever_shares_what(texts):
    """One graph for batches of one shape, whose groups differ."""
    from pipelines.finetune.stepping import FlatModel

    sequences, prefixes = texts
    decoder, adapters, _ = adapted(AutoModelForCausalLM, [5], 0.3)
    model = LanguageModel(decoder.bfloat16().cuda())
    eager, captured = FlatModel(model, capture=False), FlatModel(model, capture=True)
    for step, part in enumerate([range(8), [0, 1, 4], [7, 6, 3, 2], [5]]):
        taken = sorted(part, key=lambda place: prefixes[place])
        packed = pack([sequences[i] for i in taken], prefixes=[prefixes[i] for i in taken], shape=Shape(128, 14, 128, 128))
        segments = Segments.from_batch(packed, "cuda", counts=[len(taken)], seeds=[5], steps=[step], places=taken)
        targets = torch.from_numpy(next_token_targets(packed)).cuda()
        with adapters.over(segments):
            expected_loss, expected = eager.compute(PackedInput.from_batch(packed, "cuda", segments), targets)
            loss, gradients = captured.compute(PackedInput.from_batch(packed, "cuda", segments), targets)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=1e-3)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
    assert len(captured._step._captured) == 1
