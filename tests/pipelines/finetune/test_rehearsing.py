"""Stages in a rehearsal: random weights, stand-ins, the longest examples."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.finetune.base_model import prepare_base_model, random_model_config
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetune_task_model
from pipelines.generate.config import GenerationConfig
from pipelines.generate.shards import Shard
from pipelines.generate.writer import stand_in, tables
from pipelines.models.tokenizer import load_tokenizer
from pipelines.resources import Resources
from pipelines.tasks.examples import read_examples
from pipelines.tasks.heuristics import has_lexical_overlap
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import classifier_prompts, generator_text


@pytest.mark.parametrize("text", ["The old doctor saw a dog , twice", "\x00 4 §", ""])
def test_stand_ins_fit_every_kind_of_training_set(text: str) -> None:
    for label in LABELS:
        premise, hypothesis = stand_in(label, text).values()
        assert premise and hypothesis
        assert has_lexical_overlap(premise, hypothesis) == (label == "entailment")


def test_a_pool_of_stand_ins_is_marked_and_keeps_the_rejects() -> None:
    shard = Shard(LABELS[0], 0, 1, 2)
    whole = generator_text(LABELS[0], {"premise": "A dog ran .", "hypothesis": "It moved ."}).partition("entailment")[2]
    pool, rejects = tables(shard, ["noise and more", whole], GenerationConfig(stand_ins=True))
    assert pool["id"].to_pylist() == ["stand-in-entailment-00000-00000", "stand-in-entailment-00000-00001"]
    assert pool["premise"].to_pylist()[0] == "noise and more"
    assert rejects["text"].to_pylist() == ["noise and more"]


def test_random_weights_have_the_shape_and_the_tokenizer_that_are_given(tmp_path: Path, base_model: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "tokenizer"
    shutil.copytree(Path(base_model) / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = random_model_config(str(folder))
    num = prepare_base_model(dataclasses.replace(config, dtype="float32"), str(tmp_path / "base"))["num_parameters"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base" / "model")
    assert num == model.num_parameters()
    assert model.model.layers[1].mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (model.model.norm.weight == 1).all()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "base" / "model" / name).read_bytes() == (folder / name).read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no tokenizer"):
        random_model_config(str(tmp_path / "empty"))


def test_random_weights_without_a_config_have_llama_2_7bs_shape(
    tmp_path: Path, base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.finetune import base_model as stage

    # The same numbers, on a model of one layer: 32000 x 4096 twice, and a layer of 202,383,360, and the last norm.
    monkeypatch.setattr(stage, "LLAMA_2_7B", {**stage.LLAMA_2_7B, "num_hidden_layers": 1, "vocab_size": 400})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(base_model) / "model" / name, tmp_path)
    metrics = prepare_base_model(random_model_config(str(tmp_path)), str(tmp_path / "base"))
    assert metrics["num_parameters"] == 2 * 400 * 4096 + 4 * 4096**2 + 3 * 4096 * 11008 + 3 * 4096
    assert json.loads((tmp_path / "base" / "model" / "config.json").read_text())["num_key_value_heads"] == 32


def prompt_lengths(base_model: str, examples: str) -> dict[str, int]:
    tokenizer, table = load_tokenizer(base_model), read_examples(examples)
    return dict(zip(table["id"].to_pylist(), map(len, tokenizer(classifier_prompts(table))["input_ids"]), strict=True))


def test_finetuning_and_evaluation_take_the_longest_examples(ray_two_cpus, sources, base_model, untrained, tmp_path):
    here = Resources(in_process=True)
    recipe = FinetuneConfig(dtype="float32", batch_size=4, lora_rank=4, rehearse_steps=3, group_by_length=True, zero_stage=0)
    metrics = finetune_task_model(
        TaskModelConfig(recipe, seed=0), f"{sources}/train.parquet", base_model, untrained, str(tmp_path / "task_model"),
        resources=here,
    )  # fmt: skip
    lengths = sorted(prompt_lengths(base_model, f"{sources}/train.parquet").values(), reverse=True)
    assert lengths[0] > lengths[12]
    assert (metrics["num_steps"], metrics["num_tokens"]) == (3, sum(lengths[:12]))

    config = EvaluationConfig(sets=("template_test",), dtype="float32", rehearse_examples=7)
    found = evaluate(config, sources, base_model, str(tmp_path / "task_model"), str(tmp_path / "evaluation"), resources=here)
    assert found["num_examples"] == 7
    evaluated = read_examples_ids(tmp_path / "evaluation" / "logits.parquet")
    by_length = prompt_lengths(base_model, f"{sources}/template_test.parquet")
    assert sorted(by_length[name] for name in evaluated) == sorted(by_length.values())[-7:]


def read_examples_ids(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(path)["id"].to_pylist()
