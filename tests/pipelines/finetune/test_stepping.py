"""Flat parameters and captured steps compute what the model itself does."""

import copy

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from pipelines.finetune.stepping import FlatModel
from pipelines.models.classifier import Classifier
from pipelines.packing.attention import PACKED, register_packed_attention
from pipelines.packing.batches import Prefix, class_targets, pack, shape_for
from pipelines.packing.segments import Segments
from pipelines.packing.stream import PackedInput

CONFIG = LlamaConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=120
)


def classifier(dtype, device="cpu"):
    register_packed_attention()
    torch.manual_seed(0)
    body = AutoModel.from_config(copy.deepcopy(CONFIG), attn_implementation=PACKED)
    return Classifier(body, torch.nn.Linear(64, 3, bias=False)).to(device, dtype).train()


def batch(seed, device, *, shape=None, prefix=(5, 6)):
    generator = torch.Generator().manual_seed(seed)
    sequences = [[*prefix, *torch.randint(0, 120, (n,), generator=generator).tolist()] for n in (4, 11, 1, 17)]
    packed = pack(sequences, prefixes=[Prefix(len(prefix))] * 4, shape=shape)
    targets = torch.from_numpy(class_targets(packed, [0, 2, 1, seed % 3])).to(device)
    return PackedInput.from_batch(packed, device), targets


def test_flat_gradients_are_the_models_own_end_to_end():
    plain = classifier(torch.float64)
    flat = FlatModel(copy.deepcopy(plain), capture=False)
    packed, targets = batch(1, "cpu")
    loss = flat(packed, targets)
    (loss * 0.25).backward()
    expected = plain(packed, targets)
    (expected * 0.25).backward()
    assert loss.item() == pytest.approx(expected.item())
    matrices = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.ndim > 1])
    vectors = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.ndim == 1])
    assert flat.decays == [True, False]
    torch.testing.assert_close(flat.flats[0].grad, matrices)
    torch.testing.assert_close(flat.flats[1].grad, vectors)


def test_a_bound_model_follows_its_flat_parameters():
    model = classifier(torch.float64)
    flat = FlatModel(model, capture=False)
    # As DeepSpeed does: the flat parameters get storage of their own.
    for parameter in flat.flats:
        parameter.data = parameter.data.clone()
    flat.bind()
    before = flat(*batch(1, "cpu")).item()
    with torch.no_grad():
        flat.flats[0].mul_(0.5)
    assert model.head.weight.data_ptr() != 0
    assert flat(*batch(1, "cpu")).item() != pytest.approx(before, rel=1e-3)


def test_a_batch_with_other_tensors_has_all_of_them_in_their_places():
    sequences = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 7, 8]]
    packed = pack(sequences, prefixes=[Prefix(2)] * 3, shape=shape_for(9, num_rows=4, width=6, num_shared=6))
    segments = Segments.from_batch(packed, "cpu", counts=[3], seeds=[1], steps=[2], places=range(3))
    for given in (PackedInput.from_batch(packed, "cpu", segments), PackedInput.from_batch(packed, "cpu")):
        others = [tensor + 1 for tensor in given.tensors()]
        found = given.with_tensors(others)
        assert [tensor.data_ptr() for tensor in found.tensors()] == [tensor.data_ptr() for tensor in others]
        assert (found.width, found.is_tree, found.segments is None) == (given.width, given.is_tree, given.segments is None)
        assert torch.equal(found.stream.tiles, given.stream.tiles + 1)


@pytest.mark.gpu
def test_a_captured_step_equals_the_eager_one_for_every_batch_of_its_shape():
    model = classifier(torch.bfloat16, "cuda")
    eager, captured = FlatModel(model, capture=False), FlatModel(model, capture=True)
    for seed in range(4):
        packed, targets = batch(seed, "cuda", shape=shape_for(40, num_rows=5, width=19, num_shared=8))
        expected_loss, expected = eager.compute(packed, targets)
        # From the CPU, and as well from the GPU.
        if seed % 2:
            packed, targets = batch(seed, "cpu", shape=shape_for(40, num_rows=5, width=19, num_shared=8))
        loss, gradients = captured.compute(packed, targets)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=1e-3)
        for ours, theirs in zip(gradients, expected, strict=True):
            # Sums over rows meet in another order.
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
    assert expected[0].abs().max() > 1e-2
