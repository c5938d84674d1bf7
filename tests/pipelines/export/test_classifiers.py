"""Exported task models, loaded by transformers and by peft, give the logits that are computed here."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipelines.adapters.adapters import target_layers
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import Bodies, EvaluationConfig, batches_for, classify
from pipelines.export.classifiers import HubBase, export_classifier
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job, save_task_model
from pipelines.models.architectures import ARCHITECTURES
from pipelines.models.tokenizer import encode_for_classifier, load_tokenizer
from pipelines.tasks.nli import NLI
from tests.pipelines.conftest import labelled_pairs
from tests.pipelines.models.test_encoder import CONFIGS, tokenizer_for

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 12},
    "gpt_neox": {},
    "granite": {"num_key_value_heads": 1},
}
ENCODERS = ("bert", "roberta", "deberta", "deberta-v2")
PAIRS = labelled_pairs(12, seed=4)
Bases: TypeAlias = Callable[[str], str]


@pytest.fixture(scope="module")
def bases(base_model: str, tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The artifact of a random checkpoint of an architecture: with the tests' tokenizer, or an encoder's own."""

    @cache
    def base(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        is_encoder = kind in ENCODERS
        tokenizer = tokenizer_for(kind) if is_encoder else load_tokenizer(base_model)
        if is_encoder:
            config = CONFIGS[kind]
            config.vocab_size, config.pad_token_id, config.initializer_range = len(tokenizer), tokenizer.pad_token_id, 0.15
        else:
            special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
            own = {**SIZES, **special, **DECODERS[kind], "initializer_range": 0.15}
            config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), max_position_embeddings=512, **own)
        torch.manual_seed(0)
        (AutoModel if is_encoder else AutoModelForCausalLM).from_config(config).save_pretrained(folder / "published")
        tokenizer.save_pretrained(folder / "published")
        prepare_base_model(pretrained_model_config(str(folder / "published"), dtype="float32"), str(folder / "base"))
        return str(folder / "base")

    return base


def trained(kind: str, base: str, method: str, folder: Path) -> str:
    """A task model's folder as a finetuning saves it, its numbers drawn instead of trained."""
    recipe = FinetuneConfig(
        **{"method": method, "dtype": "float32", "lora_rank": 4, "lora_dropout": 0},
        **({"lora_targets": ARCHITECTURES[kind].projections} if method == "lora" else {}),
    )
    job = finetuning_job(TaskModelConfig(recipe, seed=0), "", base, str(folder / "none"))
    job = dataclasses.replace(job, starting_point=None)
    generator = torch.Generator().manual_seed(1)
    body = AutoModel.from_pretrained(
        Path(base, "model"), **({"add_pooling_layer": False} if ARCHITECTURES[kind].has_pooler else {})
    )

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return 0.1 * torch.randn(like.shape, generator=generator)

    tensors = {"head.weight": drawn(torch.empty(3, SIZES["hidden_size"]))}
    if method == "lora":
        for name, layer in target_layers(body, recipe.lora_targets).items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = drawn(layer.weight[:4])
            tensors[f"base_model.model.{name}.lora_B.weight"] = drawn(layer.weight[:, :4])
    else:
        tensors |= {f"body.{name}": weight + drawn(weight) for name, weight in body.named_parameters()}
    folder.mkdir()
    save_task_model(folder, tensors, job)
    return str(folder)


def own_logits(task_model: str, base: str) -> torch.Tensor:
    """What is computed here, as an evaluation does."""
    classifier = Bodies(EvaluationConfig(("any",), dtype="float32"), base, torch.device("cpu")).classifier(task_model)
    sequences = encode_for_classifier(base, PAIRS)
    return torch.from_numpy(classify(classifier, batches_for(base, sequences, 4_096), torch.device("cpu")))


def loaded_logits(model: Any, folder: Path, kind: str) -> torch.Tensor:
    """What a user of transformers computes, all prompts in one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if ARCHITECTURES[kind].is_encoder:
        encoded = tokenizer(PAIRS["premise"].to_pylist(), PAIRS["hypothesis"].to_pylist(), padding=True, return_tensors="pt")
    else:
        prompts = [NLI.classifier_prompt.format_map(row) for row in PAIRS.to_pylist()]
        encoded = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**encoded).logits


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    # A thousand times the tolerance: the model tells the prompts apart, or anything would do.
    assert expected.std(0).min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_neox", *ENCODERS])
def test_full_weights_are_loaded_by_transformers_with_the_logits_computed_here(bases: Bases, kind: str, tmp_path: Path) -> None:
    task_model = trained(kind, bases(kind), "full", tmp_path / "trained")
    exported = export_classifier(task_model, bases(kind), tmp_path / "taken", task=NLI)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "taken")
    assert type(model).__name__ == exported.architecture and exported.architecture.endswith("ForSequenceClassification")
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert model.config.pad_token_id == exported.pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "taken").pad_token_id
    assert_same(loaded_logits(model, tmp_path / "taken", kind), own_logits(task_model, bases(kind)))


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "bert", "roberta"])
def test_adapters_are_loaded_by_peft_with_the_logits_computed_here(bases: Bases, kind: str, tmp_path: Path) -> None:
    task_model = trained(kind, bases(kind), "lora", tmp_path / "trained")
    expected = own_logits(task_model, bases(kind))
    export_classifier(task_model, bases(kind), tmp_path / "taken", task=NLI)
    by_itself = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "taken")
    assert_same(loaded_logits(by_itself, tmp_path / "taken", kind), expected)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "taken" / "base")
    over_base = PeftModel.from_pretrained(base, tmp_path / "taken")
    assert_same(loaded_logits(over_base, tmp_path / "taken", kind), expected)
    export_classifier(task_model, bases(kind), tmp_path / "merged", task=NLI, merge=True)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert_same(loaded_logits(merged, tmp_path / "merged", kind), expected)


def test_an_adapter_over_a_starting_point_of_all_weights_has_those_beside_it(bases: Bases, tmp_path: Path) -> None:
    start = trained("llama", bases("llama"), "full", tmp_path / "start")
    task_model = trained("llama", bases("llama"), "lora", tmp_path / "trained")
    shutil.copytree(Path(start, "model"), Path(task_model, "model"))
    hub_base = HubBase("org/base", "0" * 40)
    exported = export_classifier(task_model, bases("llama"), tmp_path / "taken", task=NLI, hub_base=hub_base)
    assert exported.base == "base"
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "taken")
    assert_same(loaded_logits(model, tmp_path / "taken", "llama"), own_logits(task_model, bases("llama")))


def test_an_adapter_names_its_base_on_the_hub_and_brings_no_weights_of_it(bases: Bases, tmp_path: Path) -> None:
    task_model = trained("llama", bases("llama"), "lora", tmp_path / "trained")
    hub_base = HubBase("org/base", "0" * 40)
    exported = export_classifier(task_model, bases("llama"), tmp_path / "taken", task=NLI, hub_base=hub_base)
    settings = json.loads((tmp_path / "taken" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", "0" * 40)
    assert exported.base == "org/base" and not (tmp_path / "taken" / "base").exists()
    # The hub's base, which knows nothing of the task, is told the number of labels and the pad token.
    settings["base_model_name_or_path"], settings["revision"] = str(Path(bases("llama"), "model")), None
    (tmp_path / "taken" / "adapter_config.json").write_text(json.dumps(settings))
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "taken", num_labels=3, pad_token_id=exported.pad_token_id
    )
    assert_same(loaded_logits(model, tmp_path / "taken", "llama"), own_logits(task_model, bases("llama")))


def test_an_architecture_without_a_class_is_refused_and_its_body_exported(bases: Bases, tmp_path: Path) -> None:
    task_model = trained("granite", bases("granite"), "lora", tmp_path / "trained")
    with pytest.raises(UserError, match=r"no …ForSequenceClassification for a granite.*--body writes what AutoModel loads"):
        export_classifier(task_model, bases("granite"), tmp_path / "taken", task=NLI)
    assert not (tmp_path / "taken").exists() and not list(tmp_path.glob(".taken*"))
    export_classifier(task_model, bases("granite"), tmp_path / "taken", task=NLI, body=True)
    body, head = AutoModel.from_pretrained(tmp_path / "taken").eval(), load_file(tmp_path / "taken" / "head.safetensors")
    with torch.inference_mode():
        found = torch.stack(
            [
                body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] @ head["weight"].T
                for ids in encode_for_classifier(bases("granite"), PAIRS)
            ]
        )
    assert_same(found, own_logits(task_model, bases("granite")))


def test_a_prompt_that_ends_with_the_tokenizers_own_end_is_not_padded_with_it(bases: Bases, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    base = tmp_path / "base"
    shutil.copytree(bases("llama"), base)
    tokenizer = load_tokenizer(str(base))
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    tokenizer.save_pretrained(base / "model")
    task_model = trained("llama", str(base), "full", tmp_path / "trained")
    exported = export_classifier(task_model, str(base), tmp_path / "taken", task=NLI)
    assert exported.pad_token == "<s>"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "taken")
    assert_same(loaded_logits(model, tmp_path / "taken", "llama"), own_logits(task_model, str(base)))


def test_nothing_that_is_there_is_replaced(bases: Bases, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(UserError, match="is there and not empty; name a folder that is not there"):
        export_classifier("none", bases("llama"), tmp_path, task=NLI)
