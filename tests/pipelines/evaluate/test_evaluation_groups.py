"""Several task models evaluated in one worker: each as it would be alone."""

import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from pipelines.evaluate.evaluation import Bodies, EvaluationConfig, classify, evaluate, evaluate_group
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetune_task_model
from pipelines.models import weights
from pipelines.models.tokenizer import load_tokenizer
from pipelines.packing.batches import prefix_tree_batches
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import Label
from pipelines.tasks.prompts import classifier_prompts

RECIPE = FinetuneConfig(learning_rate=1e-2, batch_size=16, lora_rank=4, dtype="float32", zero_stage=0)


HERE = Resources(in_process=True)


@pytest.fixture(scope="module")
def trained(ray_two_cpus, sources, base_model, untrained, tmp_path_factory):
    """Two with adapters, one trained in full, and one that lacks its head."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seed, changes in (("lora1", 1, {}), ("full", 2, {"method": "full"}), ("lora2", 3, {})):
        finetune_task_model(
            TaskModelConfig(dataclasses.replace(RECIPE, **changes), seed), f"{sources}/train.parquet", base_model, untrained,
            str(folder / name), resources=HERE,
        )  # fmt: skip
    (folder / "headless").mkdir()
    shutil.copytree(folder / "lora1" / "adapter", folder / "headless" / "adapter")
    return folder


# In a worker, and in the driving process.
@pytest.mark.parametrize(("merge_adapter", "resources"), [(False, Resources()), (True, HERE)])
def test_members_of_a_group_get_the_logits_that_they_get_alone(
    trained, sources, base_model, untrained, tmp_path, merge_adapter, resources
):
    config = EvaluationConfig(sets=("train",), dtype="float32", merge_adapter=merge_adapter)
    names = ["lora1", "untrained", "full", "headless", "lora2", "untrained"]
    models = [untrained if name == "untrained" else str(trained / name) for name in names]
    outputs = [str(tmp_path / "group" / str(place)) for place in range(len(names))]
    results = evaluate_group(
        config, sources, base_model, models, outputs, resources=resources, reports=[no_report] * len(names)
    )
    assert isinstance(results[3], Exception) and "head.safetensors" in str(results[3])
    seen = []
    for place, name in enumerate(names):
        if name == "headless":
            continue
        alone = evaluate(config, sources, base_model, models[place], str(tmp_path / "alone" / str(place)), resources=HERE)
        assert results[place]["train/accuracy"] == alone["train/accuracy"]
        table = pq.read_table(tmp_path / "group" / str(place) / "logits.parquet")
        assert table.equals(pq.read_table(tmp_path / "alone" / str(place) / "logits.parquet"))
        seen.append(tuple(table["logit_entailment"].to_pylist()))
    assert len(set(seen)) == 4, "different models, and one of them twice"


@pytest.mark.slow
def test_compiled_layers_give_the_same_logits_for_one_model_after_another(
    sources, base_model, untrained, tmp_path, monkeypatch
):
    finetune_task_model(
        TaskModelConfig(RECIPE, 1), f"{sources}/train.parquet", base_model, untrained, str(tmp_path / "lora"),
        resources=Resources(in_process=True),
    )  # fmt: skip
    table = read_examples(f"{sources}/train.parquet")
    texts = classifier_prompts(table)
    batches = prefix_tree_batches(load_tokenizer(base_model)(texts)["input_ids"], 1_000)
    assert len({batch.num_tokens for _, batch in batches}) > 1
    compiled = []

    def compile_layers(model):
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(dynamic=True, backend="aot_eager")
                compiled.append(layer)

    monkeypatch.setattr(weights, "compile_layers", compile_layers)
    config = EvaluationConfig(sets=("train",), dtype="float32")
    device = torch.device("cpu")
    logits = {}
    for is_compiled in (False, True):
        bodies = Bodies(config, base_model, device, compiled=is_compiled)
        for name in (str(tmp_path / "lora"), untrained):
            logits[is_compiled, name] = classify(bodies.classifier(name), batches, device)
    assert compiled
    for name in (str(tmp_path / "lora"), untrained):
        np.testing.assert_allclose(logits[True, name], logits[False, name], rtol=1e-4, atol=1e-5)


def test_margin_auc_and_pull_are_metrics_beside_accuracies(sources, base_model, untrained, tmp_path):
    short = Heuristic("short", lambda p, h: np.array([len(text) % 2 == 0 for text in h]), predicts=Label.NEUTRAL)
    config = EvaluationConfig(sets=("train", "template_test"), dtype="float32", heuristics=(short,))
    output = tmp_path / "evaluation"
    metrics = evaluate(config, sources, base_model, untrained, str(output), resources=Resources(in_process=True))
    table = pq.read_table(output / "logits.parquet").to_pandas()
    others = np.logaddexp(table["logit_entailment"], table["logit_contradiction"].astype(float))
    first, second = (table.assign(score=table["logit_neutral"] - others)[table["set"] == name] for name in config.sets)

    def share_above(above, below):
        difference = above["score"].to_numpy()[:, np.newaxis] - below["score"].to_numpy()
        return ((difference > 0) + 0.5 * (difference == 0)).mean()

    held = second[second["holds/short"].astype(bool)]
    wrong, right = held[held["label"] != "neutral"], held[held["label"] == "neutral"]
    assert metrics["template_test/holds/short/margin"] == pytest.approx(wrong["score"].mean())
    assert metrics["template_test/holds/short/auc"] == pytest.approx(share_above(right, wrong))
    alike = first[first["label"] != "neutral"]
    assert metrics["template_test/holds/short/pull"] == pytest.approx(share_above(wrong, alike))
