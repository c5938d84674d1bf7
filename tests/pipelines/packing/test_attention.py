"""The packed forward pass against transformers' own of each sequence, which is the definition of what is meant."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
)

from pipelines.evaluate.evaluation import classify
from pipelines.models.architectures import ARCHITECTURES
from pipelines.models.classifier import Classifier, compute_last_layer_where_read
from pipelines.models.language_model import LanguageModel, _NextTokenLoss
from pipelines.packing import attention
from pipelines.packing.attention import PACKED, _with_shared, packed_attention, register_packed_attention
from pipelines.packing.batches import (
    Prefix,
    Shape,
    class_targets,
    common_prefix_length,
    next_token_targets,
    pack,
    prefix_tree_batches,
)
from pipelines.packing.stream import PackedInput, StreamIndex
from tests.pipelines.interpreted import needs_interpreter

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
    "mistral_window_unused": MistralConfig(num_key_value_heads=2, sliding_window=128, **SHAPE),
    # A window shorter than the texts, and than what they share.
    "mistral_window": MistralConfig(num_key_value_heads=2, sliding_window=4, **SHAPE),
    "qwen2_some_windows": Qwen2Config(
        num_key_value_heads=2, use_sliding_window=True, sliding_window=10, max_window_layers=1, **SHAPE
    ),
    "gemma_wide_heads": GemmaConfig(num_key_value_heads=1, head_dim=32, **SHAPE),
    "gemma2_capped": Gemma2Config(
        num_key_value_heads=2, head_dim=16, sliding_window=10, query_pre_attn_scalar=8, attn_logit_softcapping=0.02, **SHAPE
    ),
    "gemma3": Gemma3TextConfig(num_key_value_heads=2, head_dim=16, sliding_window=10, query_pre_attn_scalar=8, **SHAPE),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "gpt_neox_one_after_another": GPTNeoXConfig(use_parallel_residual=False, **SHAPE),
    "granite": GraniteConfig(num_key_value_heads=2, attention_multiplier=0.1, residual_multiplier=0.3, **SHAPE),
    "olmo": OlmoConfig(num_key_value_heads=2, clip_qkv=0.05, **SHAPE),
    "olmo2": Olmo2Config(num_key_value_heads=2, **SHAPE),
    "phi": PhiConfig(num_key_value_heads=2, **SHAPE),
    "phi3_window": Phi3Config(num_key_value_heads=2, sliding_window=10, pad_token_id=0, **SHAPE),
    "smollm3": SmolLM3Config(num_key_value_heads=2, pad_token_id=0, **SHAPE),
    "starcoder2_window": Starcoder2Config(num_key_value_heads=2, sliding_window=10, **SHAPE),
}
PREFIX = [3, 14, 15, 92, 65]
register_packed_attention()


# One after another, so that what each one's own model makes of the sequences is computed once.
@pytest.fixture(scope="module", params=CONFIGS, name="config")
def _config(request):
    return CONFIGS[request.param]


@pytest.fixture(name="sequences")
def _sequences():
    generator = torch.Generator().manual_seed(1)
    return [PREFIX + torch.randint(0, 120, (n,), generator=generator).tolist() for n in (4, 11, 1, 17, 8)]


def last_states(body, sequences):
    """The last token's state of each sequence, computed by itself."""
    return torch.stack([body(input_ids=torch.tensor([sequence])).last_hidden_state[0, -1] for sequence in sequences])


def twins(auto_class, config):
    """One model, twice: as transformers runs it and packed."""
    torch.manual_seed(0)
    reference = auto_class.from_config(copy.deepcopy(config), attn_implementation="eager").double().eval()
    packed = auto_class.from_config(copy.deepcopy(config), attn_implementation=PACKED).double().eval()
    packed.load_state_dict(reference.state_dict())
    return reference, packed


@pytest.mark.parametrize(("share_prefix", "filled"), [(False, False), (True, False), (True, True)])
def test_classifier_equals_transformers_own_in_logits_and_gradients(config, sequences, share_prefix, filled):
    reference, body = twins(AutoModel, config)
    head = torch.nn.Linear(64, 3, bias=False).double()
    targets = torch.tensor([0, 1, 2, 1, 0])
    expected = head(last_states(reference, sequences)).float()
    torch.nn.functional.cross_entropy(expected, targets, reduction="sum").backward()
    expected_head_grad = head.weight.grad.clone()
    head.weight.grad = None

    compute_last_layer_where_read(body)
    prefix = common_prefix_length(sequences) if share_prefix else 0
    assert prefix == (len(PREFIX) if share_prefix else 0)
    classifier = Classifier(body, head)
    packed = pack(sequences, prefixes=[Prefix(prefix)] * len(sequences), shape=Shape(64, 8, 24, 30) if filled else None)
    batch = PackedInput.from_batch(packed, "cpu")
    torch.testing.assert_close(classifier.logits(batch)[:5], expected, rtol=1e-5, atol=1e-6)
    classifier(batch, torch.from_numpy(class_targets(packed, targets.tolist()))).backward()
    torch.testing.assert_close(head.weight.grad, expected_head_grad, rtol=1e-5, atol=1e-6)
    for (name, theirs), ours in zip(reference.named_parameters(), body.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module", name="families")
def _families():
    """Sequences that branch at many depths, in no order: 40 with up to four tokens in common, duplicates, one in another."""
    generator = torch.Generator().manual_seed(2)

    def draw(length, below):
        return torch.randint(0, below, (length,), generator=generator).tolist()

    stems = [PREFIX + draw(n, 120) for n in (1, 6, 13)]
    family = [stems[n % 3] + draw(4, 2) + draw(n % 7, 120) + [9] for n in range(40)]
    family += [family[3], stems[1], family[17], [7]]
    return [family[i] for i in torch.randperm(len(family), generator=generator)]


@pytest.fixture(scope="module")
def states_of_families(config, families):
    """Transformers' own, of the model that `twins` makes."""
    with torch.no_grad():
        return last_states(twins(AutoModel, config)[0].float(), families)


@pytest.mark.parametrize("token_budget", [10_000, 60])
def test_a_prefix_tree_gives_transformers_own_logits_in_the_order_of_its_input(
    config, families, states_of_families, token_budget
):
    body = twins(AutoModel, config)[1].float()
    head = torch.nn.Linear(64, 3, bias=False)
    expected = head(states_of_families)
    batches = prefix_tree_batches(families, token_budget)
    assert (len(batches) == 1) == (token_budget == 10_000)
    assert sum(batch.num_tokens for _, batch in batches) < sum(map(len, families)) * 0.8
    compute_last_layer_where_read(body)
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
@pytest.mark.parametrize("flash", [False, True])
def test_a_prefix_tree_on_a_gpu_is_the_one_on_the_cpu(config, families, flash, monkeypatch):
    if flash:
        monkeypatch.setattr(attention, "WIDEST_FOR_KERNELS", 0)
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
    # At any token: one that is further into the sequence than a window never sees across the boundary.
    assert (ours.last_hidden_state - wrong.last_hidden_state).abs().max() > 1e-3


@pytest.fixture(scope="module", name="labelled")
def _labelled():
    """Sequences side by side by what they begin with, their prefixes, of which one is nobody else's and one is empty."""
    generator = torch.Generator().manual_seed(3)

    def draw(length):
        return torch.randint(0, 120, (length,), generator=generator).tolist()

    sequences, prefixes = [], []
    for prefix, lengths in (
        (Prefix(7, 0), (4, 11, 1)),
        (Prefix(5, 1), (9,)),
        (Prefix(0), (3, 6)),
        (Prefix(1, 2), (1, 8, 2, 5)),
    ):
        beginning = draw(prefix.length)
        sequences += [beginning + draw(length) for length in lengths]
        prefixes += [prefix] * len(lengths)
    # Two that go on alike, so that one state predicts one token twice.
    sequences[1][7] = sequences[0][7]
    return sequences, prefixes


@pytest.fixture(scope="module")
def loss_of_labelled(config, labelled):
    """Transformers' own, and the model that `twins` makes, with its gradients."""
    reference, _ = twins(AutoModelForCausalLM, config)
    rows = [torch.tensor([sequence]) for sequence in labelled[0]]
    loss = torch.stack([reference(input_ids=row, labels=row).loss * (row.shape[1] - 1) for row in rows]).sum()
    loss.backward()
    return loss.detach(), reference


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("share_prefix", [False, True])
def test_language_model_loss_equals_transformers_own(config, labelled, loss_of_labelled, share_prefix, filled):
    _, decoder = twins(AutoModelForCausalLM, config)
    expected, reference = loss_of_labelled
    sequences, prefixes = labelled
    packed = pack(sequences, prefixes=prefixes if share_prefix else None, shape=Shape(100, 16, 40, 40) if filled else None)
    assert filled or packed.num_tokens == sum(map(len, sequences)) - (2 * 7 + 3 * 1) * share_prefix
    loss = LanguageModel(decoder)(PackedInput.from_batch(packed, "cpu"), torch.from_numpy(next_token_targets(packed)))
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-5)
    loss.backward()
    for (name, theirs), ours in zip(reference.named_parameters(), decoder.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_loss_is_pytorchs_for_any_scale_and_type():
    """One of 5 states predicts two tokens, one the same token twice, and one nothing."""
    generator = torch.Generator().manual_seed(0)
    before, counts = torch.tensor([0, 0, 2, 2, 4]), torch.tensor([3, 1, 1, 2, 0])
    tokens = torch.tensor([7, 2, 5, 5, 1])
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        logits = (torch.randn(5, 9, generator=generator) * 8).to(dtype).requires_grad_()
        theirs = torch.nn.functional.cross_entropy(logits.float()[before], tokens, reduction="none") @ counts.float()
        ours = _NextTokenLoss.apply(logits, tokens, before, counts)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        (expected,) = torch.autograd.grad(theirs * 0.3, logits)
        (found,) = torch.autograd.grad(ours * 0.3, logits)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_forward_pass_reads_nothing_back_from_the_device(config, labelled):
    """On the meta device, which has no values to read: what would wait for a GPU raises there."""
    _, body = twins(AutoModel, config)
    classifier = Classifier(body, torch.nn.Linear(64, 3, bias=False)).double().to("meta")
    sequences, prefixes = labelled
    packed = pack(sequences, prefixes=prefixes, shape=Shape(100, 16, 40, 40))
    batch = PackedInput.from_batch(packed, "cpu")
    moved = {name: getattr(batch, name).to("meta") for name in ("input_ids", "position_ids", "last_index")}
    index = {name: tensor.to("meta") for name, tensor in vars(batch.stream).items()}
    assert classifier.logits(dataclasses.replace(batch, **moved, stream=StreamIndex(**index))).shape == (16, 3)


def test_inputs_of_one_shape_differ_in_values_only(labelled):
    """A captured graph needs it: the tensors of one group and of many, of few rows and of all, measure the same."""
    sequences, prefixes = labelled
    shape = Shape(100, 16, 100, 50)
    taken = [range(10), range(3), [3], [0, 3, 6], range(6, 10), [2]]
    inputs = []
    for numbers in taken:
        packed = pack([sequences[i] for i in numbers], prefixes=[prefixes[i] for i in numbers], shape=shape)
        inputs.append((PackedInput.from_batch(packed, "cpu"), next_token_targets(packed)))
    first, targets = inputs[0]
    for other, of_other in inputs[1:]:
        assert (other.width, other.is_tree, of_other.shape) == (first.width, first.is_tree, targets.shape)
        assert [(t.shape, t.dtype) for t in other.tensors()] == [(t.shape, t.dtype) for t in first.tensors()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filled", [False, True])
def test_each_token_is_summed_over_its_copies_and_no_other_key(labelled, filled, dtype):
    sequences, prefixes = labelled
    packed = pack(sequences, prefixes=prefixes, shape=Shape(100, 16, 100, 50) if filled else None)
    index = PackedInput.from_batch(packed, "cpu").stream
    states = torch.randn(packed.num_tokens, 3, dtype=dtype, requires_grad=True)
    values = torch.randn(packed.num_keys, 3, dtype=dtype)
    expected = torch.zeros(packed.num_tokens, 3, dtype=dtype)
    for key in range(int(index.key_starts[-1])):
        expected[index.keys[key]] += values[key]
    # What lies past the last row's keys is never written by a kernel.
    values[int(index.key_starts[-1]) :] = torch.nan
    (found,) = torch.autograd.grad(_with_shared(states, index), states, values)
    torch.testing.assert_close(found, expected)


def assert_kernel_sums(dtype, device, channels, tolerance):
    from pipelines.packing.attention_kernels import sum_copies

    generator = torch.Generator().manual_seed(0)
    # Up to 33 copies of a token, and none of the last one.
    copied = torch.cat([torch.arange(29), torch.arange(9).repeat_interleave(32), torch.tensor([3, 3, 3, 17])])
    copies = torch.argsort(copied, stable=True).int()
    starts = torch.searchsorted(copied[copies.long()], torch.arange(31)).int()
    values = torch.randn(len(copied), channels, generator=generator).to(dtype)
    expected = torch.zeros(30, channels, dtype=torch.float64).index_add_(0, copied, values.double())
    found = sum_copies(values.to(device), copies.to(device), starts.to(device))
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@needs_interpreter
@pytest.mark.parametrize("channels", [64, 1_024, 1_100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_the_interpreted_kernel_sums_copies(dtype, tolerance, channels):
    assert_kernel_sums(dtype, "cpu", channels, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [64, 4_096, 1_100])
def test_the_kernel_sums_copies(channels):
    assert_kernel_sums(torch.bfloat16, "cuda", channels, 1e-2)


def drawn_rows(groups):
    """Sequences of groups (length of the prefix, lengths of what follows it), with their prefixes."""
    generator = torch.Generator().manual_seed(4)

    def draw(length):
        return torch.randint(0, 120, (length,), generator=generator).tolist()

    sequences, prefixes = [], []
    for number, (length, lengths) in enumerate(groups):
        beginning = draw(length)
        sequences += [beginning + draw(one) for one in lengths]
        prefixes += [Prefix(length, number)] * len(lengths)
    return sequences, prefixes


# (length of the prefix, lengths of what follows it), and a shape. Tiles have 64 tokens, parts 256 and sums 16.
ATTENDED = {
    "alone": ([(0, (1, 40, 64, 65))], None),
    "a_prefix": ([(24, (53, 10, 1, 64, 31, 8, 77, 20, 50, 3, 90, 110, 40, 70))], None),
    "a_long_prefix_and_rows": ([(70, (150, 3, 129, 20, 60))], None),
    "groups": ([(7, (4, 11, 1)), (5, (9,)), (0, (3, 6)), (16, (1, 8)), (33, (70, 5))], None),
    "filled": ([(24, (53, 30, 12)), (17, (20, 66)), (0, (5,))], Shape(320, 14, 128, 140)),
    "room_for_shared": ([(0, (9, 12))], Shape(64, 6, 64, 30)),
}


def assert_attention_is_the_grids(packed, heads, key_heads, channels, dtype, device, tolerance):
    from pipelines.packing.attention_kernels import attend

    generator = torch.Generator().manual_seed(0)

    def draw(heads):
        # As a projection's output lies, and of a scale at which weights differ.
        states = torch.randn(1, packed.num_tokens, heads * channels, generator=generator) * 2
        return states.to(dtype).view(1, packed.num_tokens, heads, channels).transpose(1, 2)

    states = [draw(heads), draw(key_heads), draw(key_heads)]
    exact = [one.double().requires_grad_() for one in states]
    expected, _ = packed_attention(
        torch.nn.Module(), *exact, None, scaling=0.3 * channels**-0.5, packed=PackedInput.from_batch(packed, "cpu")
    )
    index = PackedInput.from_batch(packed, device).stream
    ours = [one.to(device).requires_grad_() for one in states]
    found = attend(*(one.transpose(1, 2)[0] for one in ours), index, 0.3 * channels**-0.5)[None]
    assert found.dtype == dtype
    results = [(found, expected)]
    if not packed.is_tree:
        grad = torch.randn(expected.shape, generator=generator).to(dtype)
        results += zip(
            torch.autograd.grad(found, ours, grad.to(device)), torch.autograd.grad(expected, exact, grad.double()), strict=True
        )
    for result, theirs in results:
        assert result.shape == theirs.shape
        # Token by token: a wrong one is not lost among the others. Where little is due, in the order of what is usual.
        usual = theirs.norm().item() / theirs.numel() ** 0.5
        torch.testing.assert_close(result.cpu().double(), theirs, rtol=tolerance, atol=tolerance * usual)


@needs_interpreter
@pytest.mark.parametrize("case", ["alone", "groups"])
def test_the_operator_is_registered_as_pytorch_asks(case):
    from pipelines.packing.attention_kernels import attend_stream

    sequences, prefixes = drawn_rows(ATTENDED[case][0])
    index = PackedInput.from_batch(pack(sequences, prefixes=prefixes), "cpu").stream
    states = [torch.randn(int(index.query_starts[-1]), 2, 16, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(attend_stream, (*states, index.tiles, index.keys, index.parts, index.sums, 0.25))


@pytest.fixture(params=[0, 512])
def in_one_launch(request, monkeypatch):
    """Up to how many tokens the backward pass is one launch: by either way it is the same."""
    monkeypatch.setattr("pipelines.packing.few_attention.MOST_TOKENS", request.param)


@needs_interpreter
@pytest.mark.usefixtures("in_one_launch")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-2)])
@pytest.mark.parametrize(("heads", "key_heads", "channels"), [(2, 2, 32), (4, 2, 16), (3, 1, 16)])
@pytest.mark.parametrize("case", ATTENDED)
def test_interpreted_attention_is_the_grids(case, heads, key_heads, channels, dtype, tolerance):
    groups, shape = ATTENDED[case]
    sequences, prefixes = drawn_rows(groups)
    packed = pack(sequences, prefixes=prefixes, shape=shape)
    assert_attention_is_the_grids(packed, heads, key_heads, channels, dtype, "cpu", tolerance)


@needs_interpreter
@pytest.mark.parametrize("key_heads", [1, 2])
def test_interpreted_attention_over_a_tree_is_the_grids(families, key_heads):
    long = [[*sequence, *range(70 + place)] for place, sequence in enumerate(families[:4])]
    ((_, tree),) = prefix_tree_batches([*families, *long], 10_000)
    assert tree.is_tree
    assert_attention_is_the_grids(tree, 2, key_heads, 16, torch.float32, "cpu", 1e-4)


@pytest.mark.gpu
@pytest.mark.usefixtures("in_one_launch")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-2), (torch.float16, 2e-2)])
@pytest.mark.parametrize(("heads", "key_heads", "channels"), [(2, 2, 128), (4, 2, 64), (8, 1, 128), (3, 1, 16)])
@pytest.mark.parametrize("case", [*ATTENDED, "tree"])
def test_attention_is_the_grids(case, heads, key_heads, channels, dtype, tolerance, families):
    if case == "tree":
        ((_, packed),) = prefix_tree_batches(families, 10_000)
    else:
        groups, shape = ATTENDED[case]
        sequences, prefixes = drawn_rows(groups)
        packed = pack(sequences, prefixes=prefixes, shape=shape)
    assert_attention_is_the_grids(packed, heads, key_heads, channels, dtype, "cuda", tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_groups_on_a_gpu_learn_what_they_do_on_the_cpu(config, labelled, filled, flash, monkeypatch):
    if flash:
        monkeypatch.setattr(attention, "WIDEST_FOR_KERNELS", 0)
    sequences, prefixes = labelled
    packed = pack(sequences, prefixes=prefixes, shape=Shape(128, 16, 128, 128) if filled else None)
    targets = torch.from_numpy(next_token_targets(packed))
    model = LanguageModel(twins(AutoModelForCausalLM, config)[1].bfloat16())
    on_cpu, on_gpu = copy.deepcopy(model), copy.deepcopy(model).cuda()
    losses = [
        each(PackedInput.from_batch(packed, device), targets.to(device))
        for each, device in ((model.double(), "cpu"), (on_cpu, "cpu"), (on_gpu, "cuda"))
    ]
    for loss in losses:
        loss.backward()
    assert losses[2].item() == pytest.approx(losses[0].item(), rel=1e-2)
    for (name, exact), *rounded in zip(model.named_parameters(), on_cpu.parameters(), on_gpu.parameters(), strict=True):
        cpus, gpus = (((p.grad.cpu().double() - exact.grad).norm() / exact.grad.norm()).item() for p in rounded)
        # Where values are clipped, rounding decides which: there the CPU's gradients are as far off.
        assert gpus < max(0.05, 1.5 * cpus), name


@pytest.mark.parametrize("ignored", ["sliding_window", "softcap"])
def test_a_window_or_a_cap_that_is_ignored_would_be_seen(ignored, sequences, monkeypatch):
    """The comparisons above can fail: a model with both has other logits without either."""
    _, body = twins(AutoModel, CONFIGS["gemma2_capped"])
    classifier = Classifier(body, torch.nn.Linear(64, 3, bias=False).double())
    batch = PackedInput.from_batch(pack(sequences), "cpu")
    right = classifier.logits(batch)
    monkeypatch.setitem(
        AttentionInterface._global_mapping, PACKED, lambda *args, **kwargs: packed_attention(*args, **{**kwargs, ignored: None})
    )
    assert (classifier.logits(batch) - right).abs().max() > 1e-3


def test_every_decoder_that_is_taken_is_compared():
    assert {config.model_type for config in CONFIGS.values()} == {
        known.model_type for known in ARCHITECTURES.values() if not known.is_encoder
    }
