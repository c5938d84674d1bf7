"""What a checkpoint must be for a study is said when it is described: architecture, adapters, a GGUF file's tokenizer."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pipelines.errors import UserError
from pipelines.finetune.base_model import (
    PretrainedModelConfig,
    prepare_base_model,
    pretrained_model_config,
    random_model_config,
    save_language_model,
)
from pipelines.finetune.job import FinetuneJob
from pipelines.finetune.recipe import LLAMA_PROJECTIONS, FinetuneConfig
from pipelines.identity import identity
from pipelines.models.architectures import ARCHITECTURES, GGUF_NAMES, check_targets
from pipelines.models.tokenizer import encode
from tests.pipelines.models.test_weights import write_gguf

PLAIN = {"model_type": "llama"}


def described(folder: Path, settings: object, describe=pretrained_model_config):
    """A checkpoint of which only config.json is looked at, as a plan describes it."""
    for name, content in (("config.json", settings), ("tokenizer.json", {}), ("model.safetensors", {})):
        (folder / name).write_text(json.dumps(content))
    return describe(str(folder))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"model_type": "mamba"},
            r"model_type='mamba', none of those that are known .*: take a model of one of them \(llama, .*, deberta-v2\)",
        ),
        ({"model_type": "bloom"}, "model_type='bloom', none"),
        ({"model_type": "mixtral"}, "model_type='mixtral', none"),
        ({"model_type": "gemma3", "text_config": {}}, "of a model that reads images as well, take the one that reads text"),
        ({**PLAIN, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "kind 'dynamic', which change with the longest text"),
        ({"model_type": "phi3", "rope_parameters": {"rope_type": "longrope"}}, "kind 'longrope'"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}},
            },
            "kind 'dynamic'",
        ),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "a token sees those after it"),
        ({"model_type": "bert", "is_decoder": True}, "a bert is an encoder here"),
    ],
)
@pytest.mark.parametrize("describe", [pretrained_model_config, random_model_config])
def test_what_would_compute_something_else_is_refused_by_name(tmp_path, settings, words, describe):
    with pytest.raises(UserError, match=rf"config\.json .*{words}"):
        described(tmp_path, settings, describe)


@pytest.mark.parametrize(
    "settings",
    [
        *({"model_type": name} for name in ARCHITECTURES),
        {**PLAIN, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {**PLAIN, "rope_scaling": None},
        {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "linear"}, "sliding_attention": {}}},
    ],
)
def test_what_is_known_is_named_and_no_part_of_the_identity(tmp_path, settings):
    config = described(tmp_path, settings)
    assert config.model_type == settings["model_type"]
    assert identity(config) == identity(dataclasses.replace(config, model_type=""))


def test_what_cannot_be_read_is_left_to_its_preparation(tmp_path):
    for settings in ([], {}, {"model_type": 3}):
        assert described(tmp_path, settings).model_type == ""


def test_adapters_are_for_layers_that_the_architecture_has():
    check_targets("task_model", LLAMA_PROJECTIONS, "qwen3")
    check_targets("task_model", ("self_attn.q_proj", "lm_head"), "gemma2")
    check_targets("task_model", ("anything",), "")
    with pytest.raises(
        UserError, match=r"task_model has lora_targets=\('q_proj', .* and a gpt_neox has no layers named q_proj"
    ):
        check_targets("task_model", LLAMA_PROJECTIONS, "gpt_neox")
    with pytest.raises(UserError, match=r"give lora_targets=\('query', 'key', 'value', 'dense'\)"):
        check_targets("cell", ("q_proj",), "bert")
    with pytest.raises(UserError, match=r"is a deberta-v2, whose projections .*: use method='full'"):
        check_targets("cell", ("query_proj",), "deberta-v2")


@pytest.mark.parametrize(("says", "adds"), [(True, True), (False, False), (None, True)])
def test_the_tokenizer_of_a_gguf_file_begins_texts_as_the_file_says(tmp_path, says, adds):
    """In llama.cpp one of SentencePiece does so where the file is silent."""
    write_gguf(tmp_path / "model.gguf", adds_bos=says)
    config = pretrained_model_config(str(tmp_path / "model.gguf"), dtype="float32")
    assert (config.adds_bos, config.model_type) == (adds, "llama")
    base = str(tmp_path / "base")
    prepare_base_model(config, base)
    # What T, the generator's training and its prompts are encoded with, now and after the generator has been saved.
    assert (encode(base, ["aa"], ["x"])[0][0] == 1) == adds
    save_language_model(
        tmp_path, {}, FinetuneJob("language_modeling", FinetuneConfig(dtype="float32"), 0, "", base, save_language_model)
    )
    assert (AutoTokenizer.from_pretrained(tmp_path / "model")("aa")["input_ids"][0] == 1) == adds


def test_only_files_whose_tokenizer_changes_have_another_identity():
    config = PretrainedModelConfig((), path="a.gguf")
    assert "adds_bos" not in identity(config)
    assert identity(dataclasses.replace(config, adds_bos=True)) == {**identity(config), "adds_bos": True}


def test_an_output_matrix_beside_the_embeddings_is_kept_and_its_distance_recorded(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    metrics = prepare_base_model(pretrained_model_config(str(tmp_path / "model.gguf"), dtype="float32"), str(tmp_path / "two"))
    tensors = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert metrics["output_matrix_difference"] == 0
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "two" / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    write_gguf(tmp_path / "model.gguf", "output.weight")
    metrics = prepare_base_model(pretrained_model_config(str(tmp_path / "model.gguf"), dtype="float32"), str(tmp_path / "one"))
    assert "output_matrix_difference" not in metrics
    assert "lm_head.weight" not in load_file(tmp_path / "one" / "model" / "model.safetensors")


def test_a_gguf_file_of_another_architecture_is_refused_before_it_is_hashed(tmp_path, monkeypatch):
    write_gguf(tmp_path / "model.gguf", name="mamba")
    monkeypatch.setattr("pipelines.finetune.base_model.remembered_sha256", lambda path: pytest.fail("it was read whole"))
    with pytest.raises(UserError, match=rf"has the architecture 'mamba', and of GGUF files those of {', '.join(GGUF_NAMES)}"):
        pretrained_model_config(str(tmp_path / "model.gguf"))
