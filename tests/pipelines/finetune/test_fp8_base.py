"""A base quantised to FP8, on a CPU: what is finetuned, evaluated and merged on it computes as the base says."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.adapters.fp8 import Fp8Linear
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import Bodies, EvaluationConfig, evaluate
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config
from pipelines.finetune.driver import finetune
from pipelines.finetune.generator import GeneratorConfig, finetune_generator
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job
from pipelines.finetune.together import train_together
from pipelines.models.quantization import computes_in_fp8, fp8_round_trip
from pipelines.models.weights import load_classifier_body
from pipelines.resources import Resources, no_report

RECIPE = FinetuneConfig(
    learning_rate=3e-3, batch_size=4, dtype="float32", lora_rank=4, lora_dropout=0.2, log_every=5, share_prefix=False,
    zero_stage=1, tokens_per_microbatch=500,
)  # fmt: skip
HERE = Resources(in_process=True)
CPU = torch.device("cpu")
PROJECTIONS = 2 * 7


@pytest.fixture(scope="module")
def fp8_base(base_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    config = pretrained_model_config(f"{base_model}/model", dtype="float32", quantization="fp8")
    metrics = prepare_base_model(config, str(folder))
    # Queries and what follows attention, keys and values of half the width, and the three of the feed-forward network.
    assert metrics["num_quantized_parameters"] == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    return str(folder)


def num_in_fp8(model):
    return sum(isinstance(module, Fp8Linear) for module in model.modules())


def test_the_base_keeps_the_values_that_are_computed_with_and_says_so(fp8_base, base_model):
    ours, theirs = (load_file(Path(folder) / "model" / "model.safetensors") for folder in (fp8_base, base_model))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(ours[name], fp8_round_trip(theirs[name]))
    assert not torch.equal(ours[name], theirs[name])
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    assert computes_in_fp8(Path(fp8_base) / "model") and not computes_in_fp8(Path(base_model) / "model")
    body = load_classifier_body(Path(fp8_base) / "model", torch.float32, CPU)
    layer = body.layers[1].mlp.down_proj
    assert num_in_fp8(body) == PROJECTIONS
    assert torch.equal(layer.weight.float() * layer.scales[:, None], ours[name])
    assert num_in_fp8(load_classifier_body(Path(fp8_base) / "model", torch.float32, CPU, as_numbers=True)) == 0
    assert num_in_fp8(load_classifier_body(Path(base_model) / "model", torch.float32, CPU)) == 0


def job(base, sources, untrained, seed, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    return finetuning_job(TaskModelConfig(recipe, seed), f"{sources}/train.parquet", base, untrained)


def learnt(folder):
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors") | load_file(Path(folder) / "head.safetensors")


@pytest.fixture(scope="module")
def alone(ray_two_cpus, fp8_base, base_model, sources, untrained, tmp_path_factory):
    """Task models finetuned one at a time, on the base in FP8 and on that which it was made from."""
    folder = tmp_path_factory.mktemp("alone")
    for name, base in (("fp8", fp8_base), ("plain", base_model)):
        finetune(job(base, sources, untrained, 1), str(folder / name), resources=HERE, report=no_report)
    return folder


def test_members_on_it_end_where_they_end_alone_and_near_the_plain_bases(alone, fp8_base, sources, untrained, tmp_path):
    members = [Member(job(fp8_base, sources, untrained, seed), str(tmp_path / f"{seed}"), no_report) for seed in (1, 2)]
    for _, result in train_together(members, gpu_share=0):
        assert not isinstance(result, Exception), result
    # Sums in another order are cast to another number now and then, where that lies in the middle of two.
    own = learnt(alone / "fp8")
    of_together, of_plain = (
        max(((other[name] - tensor).norm() / tensor.norm()).item() for name, tensor in own.items())
        for other in (learnt(tmp_path / "1"), learnt(alone / "plain"))
    )
    assert of_together < 0.1 < of_plain < 0.5


def logits(evaluated):
    import pyarrow.parquet as pq

    table = pq.read_table(Path(evaluated) / "logits.parquet")
    return torch.tensor([table[f"logit_{label}"].to_pylist() for label in ("entailment", "neutral", "contradiction")])


def test_evaluation_computes_in_it_but_for_weights_that_an_adapter_was_merged_into(
    alone, fp8_base, base_model, sources, untrained, tmp_path
):
    config = EvaluationConfig(sets=("template_test",), dtype="float32")

    def evaluated(name, base, task_model, **changes):
        changed = dataclasses.replace(config, **changes)
        evaluate(changed, sources, base, task_model, str(tmp_path / name), resources=HERE)
        return logits(tmp_path / name)

    adapted = evaluated("adapted", fp8_base, str(alone / "fp8"))
    merged = evaluated("merged", fp8_base, str(alone / "fp8"), merge_adapter=True)
    assert 1e-4 < (adapted - merged).abs().max() < 0.3
    # With no adapter the layers are in FP8 by themselves.
    start, of_plain = evaluated("start", fp8_base, untrained), evaluated("plain", base_model, untrained)
    assert 1e-4 < (start - of_plain).abs().max() < 0.3
    bodies = Bodies(config, fp8_base, CPU)
    assert num_in_fp8(bodies.classifier(untrained).body) == PROJECTIONS
    # What is only evaluated keeps its weights in one order.
    bodies.classifier(str(alone / "fp8"))
    assert all(shared._transposed is None for shared in bodies._adapters.shared_inputs)


def test_a_generator_is_finetuned_on_it_and_merged_as_ordinary_weights(ray_two_cpus, fp8_base, sources, tmp_path):
    recipe = dataclasses.replace(RECIPE, train_embeddings=True, batch_size=16)
    finetune_generator(GeneratorConfig(recipe), f"{sources}/train.parquet", fp8_base, str(tmp_path), resources=HERE)
    assert not computes_in_fp8(tmp_path / "model")
    merged, base = (load_file(Path(folder) / "model" / "model.safetensors") for folder in (tmp_path, fp8_base))
    name = "model.layers.0.self_attn.q_proj.weight"
    # Of rank 4 what was learnt is, and no more.
    assert torch.linalg.matrix_rank((merged[name] - base[name]).double(), atol=1e-4).item() == 4
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_zero_3_is_refused(fp8_base, sources, untrained, tmp_path, ray_two_cpus):
    with pytest.raises(UserError, match="quantised to fp8, and ZeRO-3 partitions weights of one type only: use zero_stage 0"):
        finetune(job(fp8_base, sources, untrained, 1, zero_stage=3), str(tmp_path), resources=HERE, report=no_report)
