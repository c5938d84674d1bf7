"""The packed forward pass against transformers' own padded one, which is the definition of what is meant."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from pipelines.attention import PACKED, PackedInput, register_packed_attention
from pipelines.evaluation import classify
from pipelines.models import Classifier, LanguageModel
from pipelines.packing import Shape, class_targets, common_prefix_length, next_token_targets, pack, prefix_tree_batches

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 120,
}
CONFIGS = {
    "llama_full_heads": LlamaConfig(num_key_value_heads=4, **SHAPE),
    "llama_grouped_heads": LlamaConfig(num_key_value_heads=2, **SHAPE),
    "llama_one_kv_head_tied": LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **SHAPE),
    "qwen2_biases_tied": Qwen2Config(num_key_value_heads=2, tie_word_embeddings=True, **SHAPE),
    "qwen3_normed_heads": Qwen3Config(num_key_value_heads=2, head_dim=16, **SHAPE),
    "mistral_window_unused": MistralConfig(num_key_value_heads=2, sliding_window=64, **SHAPE),
}
PREFIX = [3, 14, 15, 92, 65]
register_packed_attention()


@pytest.fixture(params=CONFIGS, name="config")
def _config(request):
    return CONFIGS[request.param]


@pytest.fixture(name="sequences")
def _sequences():
    generator = torch.Generator().manual_seed(1)
    return [PREFIX + torch.randint(0, 120, (n,), generator=generator).tolist() for n in (4, 11, 1, 17, 8)]


def padded(sequences):
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def twins(auto_class, config):
    """One model, twice: as transformers runs it and packed."""
    torch.manual_seed(0)
    reference = auto_class.from_config(copy.deepcopy(config), attn_implementation="eager").double().eval()
    packed = auto_class.from_config(copy.deepcopy(config), attn_implementation=PACKED).double().eval()
    packed.load_state_dict(reference.state_dict())
    return reference, packed


@pytest.mark.parametrize(("share_prefix", "filled"), [(False, False), (True, False), (True, True)])
def test_classifier_equals_the_padded_model_in_logits_and_gradients(config, sequences, share_prefix, filled):
    reference, body = twins(AutoModel, config)
    head = torch.nn.Linear(64, 3, bias=False).double()
    ids, mask = padded(sequences)
    targets = torch.tensor([0, 1, 2, 1, 0])
    states = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = head(states[torch.arange(5), mask.sum(1) - 1]).float()
    torch.nn.functional.cross_entropy(expected, targets, reduction="sum").backward()
    expected_head_grad = head.weight.grad.clone()
    head.weight.grad = None

    prefix = common_prefix_length(sequences) if share_prefix else 0
    assert prefix == (len(PREFIX) if share_prefix else 0)
    classifier = Classifier(body, head)
    packed = pack(sequences, prefix_length=prefix, shape=Shape(64, 7, 24) if filled else None)
    batch = PackedInput.from_batch(packed, "cpu")
    torch.testing.assert_close(classifier.logits(batch)[:5], expected, rtol=1e-5, atol=1e-6)
    classifier(batch, torch.from_numpy(class_targets(packed, targets.tolist()))).backward()
    torch.testing.assert_close(head.weight.grad, expected_head_grad, rtol=1e-5, atol=1e-6)
    for (name, theirs), ours in zip(reference.named_parameters(), body.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(name="families")
def _families():
    """Sequences that branch at many depths, in no order: 40 with up to four tokens in common, duplicates, one in another."""
    generator = torch.Generator().manual_seed(2)

    def draw(length, below):
        return torch.randint(0, below, (length,), generator=generator).tolist()

    stems = [PREFIX + draw(n, 120) for n in (1, 6, 13)]
    family = [stems[n % 3] + draw(4, 2) + draw(n % 7, 120) + [9] for n in range(40)]
    family += [family[3], stems[1], family[17], [7]]
    return [family[i] for i in torch.randperm(len(family), generator=generator)]


@pytest.mark.parametrize("token_budget", [10_000, 60])
def test_a_prefix_tree_gives_the_padded_models_logits_in_the_order_of_its_input(config, families, token_budget):
    reference, body = (model.float() for model in twins(AutoModel, config))
    head = torch.nn.Linear(64, 3, bias=False)
    ids, mask = padded(families)
    states = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = head(states[torch.arange(len(families)), mask.sum(1) - 1])
    batches = prefix_tree_batches(families, token_budget)
    assert (len(batches) == 1) == (token_budget == 10_000)
    assert sum(batch.num_tokens for _, batch in batches) < sum(map(len, families)) * 0.8
    logits = classify(Classifier(body, head), batches, torch.device("cpu"))
    torch.testing.assert_close(torch.from_numpy(logits), expected.detach(), rtol=1e-4, atol=2e-6)


def test_a_tree_that_branches_elsewhere_would_be_seen(config, families):
    """The comparison above can fail: a row that shares one token less with the row before it has other logits."""
    _, body = twins(AutoModel, config)
    classifier = Classifier(body, torch.nn.Linear(64, 3, bias=False).double())
    ((_, batch),) = prefix_tree_batches(families, 10_000)
    row = int(np.argmax(batch.shared))
    shared = batch.shared.copy()
    shared[row] -= 1
    good, wrong = (
        classifier.logits(PackedInput.from_batch(one, "cpu"))[row] for one in (batch, dataclasses.replace(batch, shared=shared))
    )
    assert (good - wrong).abs().max() > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length attention needs a GPU")
def test_a_prefix_tree_on_a_gpu_is_the_one_on_the_cpu(config, families):
    body = twins(AutoModel, config)[1].bfloat16()
    classifier = Classifier(body, torch.nn.Linear(64, 3, bias=False).bfloat16())
    batches = prefix_tree_batches(families, 10_000)
    expected = classify(classifier.double(), batches, torch.device("cpu"))
    logits = classify(classifier.bfloat16().cuda(), batches, torch.device("cuda"))
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_a_wrong_boundary_would_be_seen(config, sequences):
    """The comparison above can fail: one sequence's tokens in another's row change the logits."""
    _, body = twins(AutoModel, config)
    good = PackedInput.from_batch(pack(sequences), "cpu")
    merged = PackedInput.from_batch(pack([sequences[0] + sequences[1], *sequences[2:]]), "cpu")
    kwargs = {"use_cache": False}
    ours = body(input_ids=good.input_ids, position_ids=good.position_ids, packed=good, **kwargs)
    wrong = body(input_ids=good.input_ids, position_ids=good.position_ids, packed=merged, **kwargs)
    difference = (ours.last_hidden_state - wrong.last_hidden_state)[0, good.last_index[1]].abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("filled", [False, True])
def test_language_model_loss_equals_the_padded_models(config, sequences, filled):
    reference, decoder = twins(AutoModelForCausalLM, config)
    ids, mask = padded(sequences)
    labels = ids.masked_fill(mask == 0, -100)
    num_predicted = sum(len(sequence) - 1 for sequence in sequences)
    expected = reference(input_ids=ids, attention_mask=mask, labels=labels).loss * num_predicted
    expected.backward()
    packed = pack(sequences, shape=Shape(80, 7, 24) if filled else None)
    loss = LanguageModel(decoder)(PackedInput.from_batch(packed, "cpu"), torch.from_numpy(next_token_targets(packed)))
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-5)
    loss.backward()
    for (name, theirs), ours in zip(reference.named_parameters(), decoder.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_forward_pass_reads_nothing_back_from_the_device(config, sequences):
    """On the meta device, which has no values to read: what would wait for a GPU raises there."""
    _, body = twins(AutoModel, config)
    classifier = Classifier(body, torch.nn.Linear(64, 3, bias=False)).double().to("meta")
    batch = PackedInput.from_batch(pack(sequences, prefix_length=len(PREFIX)), "cpu")
    moved = {name: getattr(batch, name).to("meta") for name in ("input_ids", "position_ids", "slots", "last_index")}
    assert classifier.logits(dataclasses.replace(batch, **moved)).shape == (5, 3)


def test_a_sequence_past_the_sliding_window_is_refused():
    config = MistralConfig(num_key_value_heads=2, sliding_window=8, **SHAPE)
    body = AutoModel.from_config(config, attn_implementation=PACKED)
    ((_, tree),) = prefix_tree_batches([list(range(8)), list(range(9))], 100)
    for batch in (PackedInput.from_batch(pack([list(range(9))]), "cpu"), PackedInput.from_batch(tree, "cpu")):
        with pytest.raises(ValueError, match="9 tokens exceeds the model's sliding window of 8"):
            body(input_ids=batch.input_ids, position_ids=batch.position_ids, packed=batch, use_cache=False)
