"""The head that a classifier starts with, and one that stays as it is for a while."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model
from pipelines.finetune.together import train_together
from pipelines.models import classifier
from pipelines.models.tokenizer import load_tokenizer
from pipelines.resources import Resources, no_report
from pipelines.tasks.nli import NLI

RECIPE = FinetuneConfig(
    learning_rate=3e-3, batch_size=4, dtype="float32", lora_rank=4, lora_dropout=0.0, weight_decay=0.1, schedule="constant",
    warmup_ratio=0.0, zero_stage=0, tokens_per_microbatch=400,
)  # fmt: skip
HERE = Resources(in_process=True)


def head(folder):
    return load_file(Path(folder) / "head.safetensors")["weight"]


def start(base_model, folder, kind, seed=0):
    initial_task_model(UntrainedConfig(seed, head=kind), base_model, str(folder))
    return str(folder)


def test_a_head_of_zeros_and_one_that_is_drawn(base_model, tmp_path):
    assert not head(start(base_model, tmp_path / "zero", "zero")).any()
    drawn = [head(start(base_model, tmp_path / str(seed), "random", seed)) for seed in (0, 1)]
    assert drawn[0].shape == (3, 64) and not torch.equal(*drawn)
    with pytest.raises(UserError, match="head='ones' is not one of 'random', 'zero', 'lm'"):
        UntrainedConfig(0, head="ones")


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_the_language_model_says_what_it_would_say_next(sources, tmp_path, tied):
    base = str(tmp_path / "base")
    # So few pieces that labels take several tokens.
    shape = ScratchModelConfig(
        hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=48, vocabulary_size=270
    )
    prepare_base_model(shape, base, sources=sources)
    model = AutoModelForCausalLM.from_pretrained(f"{base}/model")
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(f"{base}/model")
    tokenizer = load_tokenizer(base)
    found = head(start(base, tmp_path / "lm", "lm"))
    matrix = model.lm_head.weight.detach()
    for row, label in zip(found, NLI.labels, strict=True):
        tokens = tokenizer(f" {label}", add_special_tokens=False)["input_ids"]
        assert len(tokens) > 1 and tokenizer.decode(tokens) == f" {label}"
        assert torch.allclose(row, matrix[tokens].mean(0), atol=1e-6)


def test_labels_that_the_tokenizer_does_not_tell_apart_are_refused(base_model, tmp_path, monkeypatch):
    def unknown(texts):
        return {"input_ids": [[1, 2, 3], *([1, 2, 3, 7] for _ in texts[1:])]}

    unknown.eos_token_id = 0
    monkeypatch.setattr(classifier, "load_tokenizer", lambda base: unknown)
    with pytest.raises(
        UserError, match=r"head='lm': the tokenizer writes the labels entailment, neutral, contradiction as .*7"
    ):
        start(base_model, tmp_path / "lm", "lm")


def learnt(folder):
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors") | {"head": head(folder)}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_head_that_is_frozen_to_the_end_is_the_one_that_it_was(
    ray_two_cpus, sources, base_model, untrained, tmp_path, method
):
    rates = {"lora": 3e-3, "full": 1e-3}
    for share in (0.0, 1.0):
        recipe = dataclasses.replace(RECIPE, method=method, learning_rate=rates[method], head_frozen_share=share)
        job = finetuning_job(TaskModelConfig(recipe, 1), f"{sources}/train.parquet", base_model, untrained)
        metrics = finetune(job, str(tmp_path / str(share)), resources=HERE, report=no_report)
        assert metrics["num_steps"] == 24
    assert torch.equal(head(tmp_path / "1.0"), head(untrained))
    assert not torch.equal(head(tmp_path / "0.0"), head(untrained))
    if method == "lora":
        assert any(tensor.any() for name, tensor in learnt(tmp_path / "1.0").items() if "lora_B" in name)


def test_many_heads_thaw_where_each_does_alone(ray_two_cpus, sources, base_model, untrained, tmp_path):
    shares = (0.0, 0.3, 1.0)
    jobs = [
        finetuning_job(
            TaskModelConfig(dataclasses.replace(RECIPE, head_frozen_share=share), 1),
            f"{sources}/train.parquet", base_model, untrained,
        )
        for share in shares
    ]  # fmt: skip
    members = [Member(job, str(tmp_path / "many" / str(share)), no_report) for job, share in zip(jobs, shares, strict=True)]
    results = dict(train_together(members, gpu_share=0))
    assert all(isinstance(metrics, dict) for metrics in results.values()), results
    for job, share in zip(jobs, shares, strict=True):
        finetune(job, str(tmp_path / "alone" / str(share)), resources=HERE, report=no_report)
        alone, many = learnt(tmp_path / "alone" / str(share)), learnt(tmp_path / "many" / str(share))
        for name, tensor in alone.items():
            assert torch.allclose(tensor, many[name], atol=2e-5), (share, name, (tensor - many[name]).abs().max())
    moved = [(head(tmp_path / "many" / str(share)) - head(untrained)).abs().max().item() for share in shares]
    assert moved[2] == 0 < moved[1]


@pytest.mark.gpu
def test_heads_thaw_in_captured_steps_too(ray_two_cpus, sources, base_model, untrained, tmp_path):
    recipe = dataclasses.replace(RECIPE, dtype="bfloat16", compile_from_steps=0)
    shares = (0.0, 0.5, 1.0)
    members = [
        Member(
            finetuning_job(
                TaskModelConfig(dataclasses.replace(recipe, head_frozen_share=share), 1),
                f"{sources}/train.parquet", base_model, untrained,
            ),
            str(tmp_path / str(share)),
            no_report,
        )
        for share in shares
    ]  # fmt: skip
    results = dict(train_together(members, gpu_share=0.5))
    assert all(isinstance(metrics, dict) for metrics in results.values()), results
    moved = [(head(tmp_path / str(share)) - head(untrained).bfloat16().float()).abs().max().item() for share in shares]
    assert moved[2] == 0 < moved[1]


def test_a_share_of_the_steps_is_a_share():
    with pytest.raises(UserError, match=r"head_frozen_share=1\.5: it is a share"):
        dataclasses.replace(RECIPE, head_frozen_share=1.5)
