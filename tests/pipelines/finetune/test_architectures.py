"""Decoders of other architectures, from finetuning with adapters, alone and many at once, to evaluation."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from pipelines.adapters.files import merge_adapter
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model
from pipelines.models.architectures import ARCHITECTURES
from pipelines.models.classifier import load_head
from pipelines.models.tokenizer import encode_for_classifier, load_tokenizer
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples

HERE = Resources(in_process=True)
# vLLM has kernels for heads of 32 numbers and more on a CPU.
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
OWN = {
    # Windows are shorter than a prompt.
    "mistral": {"sliding_window": 12, "num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 12, "attn_logit_softcapping": 0.1},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 12},
    "gpt_neox": {},
    "phi3": {"num_key_value_heads": 1},
}


@pytest.fixture(scope="module", params=OWN, name="kind")
def _kind(request):
    return request.param


@pytest.fixture(scope="module", name="base")
def _base(kind, base_model, tmp_path_factory):
    """The artifact of a random checkpoint of this architecture, with the tokenizer of the tests' base model."""
    folder = tmp_path_factory.mktemp(kind)
    tokenizer = load_tokenizer(base_model)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), max_position_embeddings=512, **SIZES, **special, **OWN[kind])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "published")
    tokenizer.save_pretrained(folder / "published")
    prepare_base_model(pretrained_model_config(str(folder / "published"), dtype="float32"), str(folder / "base"))
    return str(folder / "base")


def recipe(kind, **changes):
    targets = ARCHITECTURES[kind].projections
    settings = FinetuneConfig(
        dtype="float32", batch_size=8, learning_rate=1e-3, lora_rank=4, lora_targets=targets, lora_dropout=0, zero_stage=0
    )
    return dataclasses.replace(settings, **changes)


def own_logits(folder, base, adapter_of, config, examples):
    """Of each example by itself, by transformers' own model with the adapter in its weights."""
    body = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if (adapter_of / "adapter").exists():
        adapter = load_file(adapter_of / "adapter" / "adapter_model.safetensors")
        assert len(adapter) == 2 * 2 * len(config.lora_targets)
        merge_adapter(body, adapter, scale=config.lora_alpha / config.lora_rank)
    head = load_head(adapter_of, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        return torch.stack(
            [
                head(body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
                for ids in encode_for_classifier(base, examples)
            ]
        )


def found_logits(sources, base, model, output):
    evaluate(EvaluationConfig(("template_test",), dtype="float32"), sources, base, str(model), str(output), resources=HERE)
    table = pq.read_table(output / "logits.parquet")
    return torch.tensor([table[f"logit_{label}"].to_pylist() for label in ("entailment", "neutral", "contradiction")]).T


@pytest.mark.slow
def test_task_models_are_trained_at_once_as_alone_and_evaluated_as_transformers_would(
    ray_two_cpus, kind, sources, base, tmp_path
):
    initial_task_model(UntrainedConfig(seed=3), base, str(tmp_path / "start"))
    examples = f"{sources}/train.parquet"
    test = read_examples(f"{sources}/template_test.parquet")

    def train(config, seeds, name):
        jobs = [finetuning_job(TaskModelConfig(config, seed), examples, base, str(tmp_path / "start")) for seed in seeds]
        outputs = [tmp_path / name / str(seed) for seed in seeds]
        for result in finetune_group(jobs, list(map(str, outputs)), resources=HERE, reports=[no_report] * len(jobs)):
            if isinstance(result, Exception):
                raise result
            assert ("mean_trained_together" in result) == (len(seeds) > 1)
        return outputs

    config = recipe(kind)
    together, (alone,) = train(config, (1, 2), "together"), train(config, (1,), "alone")
    found = found_logits(sources, base, together[0], tmp_path / "evaluated")
    expected = own_logits(Path(base, "model"), base, together[0], config, test)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own_logits(Path(base, "model"), base, alone, config, test), expected, rtol=1e-2, atol=1e-3)
    (full,) = train(recipe(kind, method="full"), (1,), "full")
    found = found_logits(sources, base, full, tmp_path / "evaluated-full")
    torch.testing.assert_close(found, own_logits(full / "model", base, full, config, test), rtol=1e-3, atol=1e-4)
