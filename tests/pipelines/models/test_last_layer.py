"""A classifier's last decoder layer computes no more than is read, and the same model."""

import contextlib
import copy
import dataclasses

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModel, LlamaConfig

from pipelines.adapters.adapters import add_adapters
from pipelines.evaluate.evaluation import Bodies, EvaluationConfig, classify
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import LLAMA_PROJECTIONS, FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job
from pipelines.finetune.together import train_together
from pipelines.models.classifier import Classifier, compute_last_layer_where_read
from pipelines.packing.attention import PACKED, register_packed_attention
from pipelines.packing.batches import Prefix, class_targets, pack, prefix_tree_batches
from pipelines.packing.segments import Segments
from pipelines.packing.stream import PackedInput
from pipelines.resources import Resources, no_report

INTERMEDIATE = 96
RECIPE = FinetuneConfig(batch_size=8, dtype="float32", lora_rank=4, lora_dropout=0.2, zero_stage=0)
register_packed_attention()


def twins(method):
    """A model that computes everything and one that does not, with the adapters of each."""
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8, intermediate_size=INTERMEDIATE, vocab_size=120
    )
    found = []
    for pruned in (False, True):
        torch.manual_seed(0)
        body = AutoModel.from_config(copy.deepcopy(config), attn_implementation=PACKED)
        adapters = None
        if method == "lora":
            adapters = add_adapters(body, LLAMA_PROJECTIONS, rank=8, alpha=16, dropout=0.2, seeds=[1, 2])
            for layer in adapters.layers.values():
                torch.nn.init.normal_(layer.b.data, std=0.05)
        if pruned:
            compute_last_layer_where_read(body)
        found.append(Classifier(body, torch.nn.Linear(64, 3, bias=False), adapters).double().train())
    return found


def loss_of(model, step):
    """The loss of a batch without filling, whose spare places in `last_index` must not pass for the last sequence's."""
    generator = torch.Generator().manual_seed(step)
    sequences = [[3, 1, 4, *torch.randint(0, 120, (4 + step + n,), generator=generator).tolist()] for n in range(5)]
    batch = pack(sequences, prefixes=[Prefix(3, 0, adapter=n // 3) for n in range(5)])
    assert len(batch.last_index) > len(sequences)
    segments = Segments.from_batch(batch, "cpu", counts=[3, 2], seeds=[1, 2], steps=[step] * 2, places=[0, 1, 2, 0, 1])
    targets = torch.from_numpy(class_targets(batch, [0, 1, 2, 0, 1]))
    with model.adapters.over(segments) if model.adapters else contextlib.nullcontext():
        loss = model(PackedInput.from_batch(batch, "cpu", segments), targets)
        loss.backward()
    return loss


# Dynamo's graphs are run as they are; what PyTorch makes of them takes it seconds.
@pytest.mark.parametrize(
    ("method", "compiled", "checkpointed"),
    [
        ("lora", "", True),
        ("lora", "eager", False),
        ("full", "", False),
        pytest.param("lora", "aot_eager", False, marks=pytest.mark.slow),
        pytest.param("full", "aot_eager", True, marks=pytest.mark.slow),
    ],
)
def test_loss_and_every_gradient_are_those_of_the_whole_model(method, compiled, checkpointed):
    plain, pruned = twins(method)
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in pruned.named_parameters()] == names
    torch._dynamo.reset()
    for model in (plain, pruned):
        if checkpointed:
            model.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.body.enable_input_require_grads()
    # A copy computes with weights of its own.
    pruned = copy.deepcopy(pruned)
    if compiled:
        for layer in pruned.body.layers:
            layer.compile(dynamic=True, backend=compiled)
    for step in range(2):
        torch.testing.assert_close(loss_of(pruned, step), loss_of(plain, step))
    for name, ours, theirs in zip(names, pruned.parameters(), plain.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None) == (not theirs.requires_grad), name
        if theirs.requires_grad:
            assert theirs.grad.norm() > 1e-4, name
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_captured_step_gets_the_last_tokens_segments():
    batch = pack([[1, 2, 3], [4, 5]])
    segments = Segments.from_batch(batch, "cpu", counts=[2], seeds=[1], steps=[0], places=[0, 1])
    assert segments.last.keys.tolist() == segments.keys[[2, 4]].tolist()
    found = PackedInput.from_batch(batch, "cpu", segments).tensors()
    assert all(any(one is tensor for one in found) for tensor in segments.last.tensors())


@pytest.fixture(name="rows")
def _rows():
    """How many rows each call of an MLP's last projection is given, in order."""
    found = []

    def count(module, arguments):
        if getattr(module, "weight", None) is not None and module.weight.shape == (64, INTERMEDIATE):
            found.append(arguments[0].shape[:-1].numel())

    handle = register_module_forward_pre_hook(count)
    yield found
    handle.remove()


def assert_last_layer_is_spared(rows, num_examples, *, num_spare):
    """The last of two layers works on `num_examples` only; `num_spare` of a pass's rows are of no example."""
    first, last = rows[::2], rows[1::2]
    assert len(first) == len(last) > 1
    assert all(of_all > 2 * of_last for of_all, of_last in zip(first, last, strict=True))
    assert num_examples <= sum(last) <= num_examples + num_spare * len(last)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_finetuning_computes_the_last_layer_for_an_examples_last_token(
    ray_two_cpus, sources, base_model, untrained, tmp_path, rows, method
):
    config = TaskModelConfig(dataclasses.replace(RECIPE, method=method), 1)
    job = finetuning_job(config, f"{sources}/train.parquet", base_model, untrained)
    finetune(job, str(tmp_path), resources=Resources(in_process=True), report=no_report)
    assert_last_layer_is_spared(rows, 96, num_spare=1)


def test_finetuning_together_does(ray_two_cpus, sources, base_model, untrained, tmp_path, rows):
    jobs = [finetuning_job(TaskModelConfig(RECIPE, s), f"{sources}/train.parquet", base_model, untrained) for s in (1, 2)]
    members = [Member(job, str(tmp_path / str(place)), no_report) for place, job in enumerate(jobs)]
    assert len(dict(train_together(members, gpu_share=0))) == 2
    # A prefix each, and the filling.
    assert_last_layer_is_spared(rows, 2 * 96, num_spare=3)


def test_evaluation_does(base_model, untrained, rows):
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 400, (int(n),), generator=generator).tolist() for n in range(5, 30)]
    batches = prefix_tree_batches(sequences, 200)
    bodies = Bodies(EvaluationConfig(sets=("train",), dtype="float32"), base_model, torch.device("cpu"))
    # The second time the body is one that has been changed already.
    for times in (1, 2):
        classify(bodies.classifier(untrained), batches, torch.device("cpu"))
        assert_last_layer_is_spared(rows, times * len(sequences), num_spare=0)


def test_a_decoder_of_other_parts_is_left_alone():
    body = torch.nn.Module()
    body.h = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    compute_last_layer_where_read(body)
    body.layers = body.h
    compute_last_layer_where_read(body)
    assert [type(module) for module in body.modules()] == [torch.nn.Module, torch.nn.ModuleList, torch.nn.Linear]
