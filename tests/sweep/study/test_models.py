"""Task models on a checkpoint of their own, and models that do not fit what is asked of them."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.finetune.base_model import PretrainedModelConfig, ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import WARMUP_STABLE_DECAY, FinetuneConfig
from pipelines.identity import UNKNOWN, FileHash
from sweep.study import experiments
from sweep.study.experiment import CPU_HEAD_SIZES, Experiment
from sweep.study.experiments import mini
from sweep.study.generators import PromptedGenerator
from sweep.study.grid import build_grid
from sweep.study.inputs import missing_inputs, with_inputs

FULL = FinetuneConfig(method="full")


def checkpoint(model_type: str, **fields: object) -> PretrainedModelConfig:
    files = (FileHash("model.safetensors", model_type.ljust(64, "0")),)
    return PretrainedModelConfig(files, path=f"models/{model_type}", model_type=model_type, **fields)


def test_whatever_is_the_task_models_stands_on_their_own_base(experiment: Experiment) -> None:
    bert = checkpoint("bert")
    study = dataclasses.replace(experiment, task_model_base=bert, task_model=FULL, judge=40)
    steps = build_grid(study)
    bases = {step.slug: step for step in steps if step.stage == "base_model"}
    assert {slug: step.config for slug, step in bases.items()} == {"base": experiment.base_model, "task-base": bert}
    assert Counter((step.stage, step.inputs["base_model"].slug) for step in steps if "base_model" in step.inputs) == {
        ("generator", "base"): 1,
        # Two starting points, the judge and what it begins as; two starting points × three kinds × two sizes.
        ("starting_point", "task-base"): 4,
        ("task_model", "task-base"): 12,
        ("evaluation", "task-base"): 14,
        ("judgement", "task-base"): 1,
    }


def test_generators_pools_and_training_sets_are_those_of_a_study_with_one_base(experiment: Experiment) -> None:
    before = {step.fingerprint for step in build_grid(experiment)}
    steps = build_grid(dataclasses.replace(experiment, task_model_base=checkpoint("qwen2")))
    rebuilt = Counter(step.stage for step in steps if step.fingerprint not in before)
    assert rebuilt == {"base_model": 1, "starting_point": 2, "task_model": 12, "evaluation": 14}


def test_one_checkpoint_for_both_is_one_step(experiment: Experiment) -> None:
    own = dataclasses.replace(experiment, base_model=checkpoint("qwen2"))
    both = dataclasses.replace(own, task_model_base=own.base_model)
    assert [step.fingerprint for step in build_grid(both)] == [step.fingerprint for step in build_grid(own)]


def test_a_shape_that_no_engine_on_the_cpu_writes_with_is_refused_before_a_generator_is_trained(experiment: Experiment) -> None:
    small = ScratchModelConfig(hidden_size=32, num_heads=2, num_kv_heads=2)
    with pytest.raises(UserError, match=r"heads of 16, and engines on the CPU write with heads of 32, .* hidden_size of 64"):
        dataclasses.replace(experiment, base_model=small)
    dataclasses.replace(experiment, base_model=small, kinds=("original",))
    vllm = pytest.importorskip("vllm.v1.attention.backends.cpu_attn")
    assert tuple(vllm.CPUAttentionBackend.get_supported_head_sizes()) == CPU_HEAD_SIZES


@pytest.mark.parametrize(("shape", "words"), [((32, 3, 3), "a multiple of 6"), ((64, 4, 3), "num_kv_heads divides")])
def test_heads_that_do_not_divide_are_refused(shape: tuple[int, int, int], words: str) -> None:
    hidden_size, num_heads, num_kv_heads = shape
    with pytest.raises(UserError, match=words):
        ScratchModelConfig(hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"base_model": checkpoint("roberta")},
            "base_model is an encoder, which writes no text for a pool: give it as task_mo",
        ),
        (
            {"task_model_base": checkpoint("bert")},
            r"task_model has lora_targets=.* give lora_targets=\('query', 'key', 'value'",
        ),
        ({"task_model_base": checkpoint("bert"), "task_model": FULL, "cell": FinetuneConfig()}, "cell has lora_targets="),
        (
            {"task_model_base": checkpoint("deberta-v2")},
            "task_model has method='lora' and is a deberta-v2, .*: use method='full'",
        ),
        ({"base_model": checkpoint("gpt_neox")}, r"task_model has .* give lora_targets=\('query_key_value', 'dense', "),
        ({"base_model": checkpoint("gpt_neox"), "task_model": FULL}, "generator has lora_targets="),
        ({"task_model_base": checkpoint("bert"), "task_model": FULL, "head": "lm"}, "head='lm' with an encoder .*'zero'"),
        (
            {"task_model_base": checkpoint("bert"), "task_model": FULL, "arms": ("random", "lm")},
            "arm 'lm': head='lm' with an encoder",
        ),
        ({"generator": PromptedGenerator(checkpoint("bert"))}, "prompted generator is the bert at models/bert, an encoder"),
        ({"judge": checkpoint("bert")}, "judge is the bert at models/bert, an encoder, of which no head is read"),
        (
            {
                "task_model_base": checkpoint("bert"),
                "task_model": FinetuneConfig(
                    lora_targets=("query",), schedule=WARMUP_STABLE_DECAY, cooldown_ratio=0.2, warmup_ratio=0.1
                ),
                "trajectories": "shared",
            },
            "trajectories='shared' with an encoder .*'separate'",
        ),
        (
            {"task_model_base": checkpoint("llama", quantization="nf4"), "task_model": FULL},
            "quantization='nf4' and task_model has method='full'",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_way_out(experiment: Experiment, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(experiment, **changes)


def test_without_a_pool_an_encoder_is_the_only_model(experiment: Experiment) -> None:
    study = dataclasses.replace(experiment, base_model=checkpoint("bert"), task_model=FULL, kinds=("original",), claims=())
    assert {step.inputs["base_model"].config.model_type for step in build_grid(study) if "base_model" in step.inputs} == {
        "bert"
    }


def test_a_quantised_generator_leaves_the_task_models_free(experiment: Experiment) -> None:
    quantised = checkpoint("llama", quantization="nf4")
    dataclasses.replace(experiment, base_model=quantised, task_model_base=checkpoint("bert"), task_model=FULL)


def test_weights_that_are_not_here_are_named_and_described_when_they_come(experiment: Experiment, tmp_path: Path) -> None:
    absent = PretrainedModelConfig((FileHash("*.safetensors", UNKNOWN),), path=str(tmp_path / "bert"))
    study = dataclasses.replace(experiment, task_model_base=absent, task_model=FULL)
    assert missing_inputs(study) == (f"weights: not found at {tmp_path / 'bert'}",)
    write_checkpoint(tmp_path / "bert", "bert")
    described = with_inputs(study).task_model_base
    assert described is not None and described.model_type == "bert" and len(described.files) == 3


def write_checkpoint(folder: Path, model_type: str) -> None:
    folder.mkdir()
    for name, content in (("config.json", {"model_type": model_type}), ("tokenizer.json", {}), ("model.safetensors", {})):
        (folder / name).write_text(json.dumps(content))


def test_the_built_in_recipes_put_adapters_where_the_model_has_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = experiments.NLISourcesConfig(tuple(FileHash(name, UNKNOWN) for name in experiments.FILES))
    monkeypatch.setattr(experiments, "nli_sources_config", lambda data, challenges=(): sources)
    for name in ("gpt_neox", "llama", "bert"):
        write_checkpoint(tmp_path / name, name)
    neox = mini(model=str(tmp_path / "gpt_neox"), recipe="paper")
    assert isinstance(neox.generator, GeneratorConfig)
    assert neox.task_model.lora_targets == neox.generator.finetune.lora_targets
    assert neox.task_model.lora_targets == ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    study = mini(model=str(tmp_path / "llama"), recipe="paper", task_base=str(tmp_path / "bert"))
    assert study.task_model.lora_targets == ("query", "key", "value", "dense")
    assert study.generator == mini(model=str(tmp_path / "llama"), recipe="paper").generator
    full = mini(model=str(tmp_path / "llama"), task_base=str(tmp_path / "bert"))
    assert (full.task_model.learning_rate, full.task_model.method) == (5e-5, "full")
