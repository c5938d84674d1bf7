"""A checkpoint that lacks a tensor is refused by whoever reads it; one whose output layer is its embeddings lacks none."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config, save_language_model
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.generator import GeneratorConfig, finetune_generator
from pipelines.finetune.job import FinetuneJob
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetune_task_model, finetuning_job, save_task_model
from pipelines.models.classifier import load_head
from pipelines.models.model_files import check_complete
from pipelines.models.weights import load_weights
from pipelines.resources import Resources, no_report

LACKED = "layers.1.mlp.down_proj.weight"
REFUSED = rf"lacks 1 tensors that Llama\w+ needs \((model\.)?{LACKED}\), .*: copy or download it again"
LORA = FinetuneConfig(dtype="float32", lora_rank=4, batch_size=32)
FULL = dataclasses.replace(LORA, method="full")
HERE = Resources(in_process=True)


def without(folder: Path, name: str) -> None:
    """Take a tensor out of the checkpoint in `folder`."""
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop(name) is not None
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def lacking(base_model, tmp_path_factory):
    """The base model without a projection of its last layer."""
    folder = tmp_path_factory.mktemp("lacking") / "base"
    shutil.copytree(base_model, folder)
    without(folder / "model", f"model.{LACKED}")
    return str(folder)


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("stage", ["generator", "task_model"])
def test_finetuning_refuses_it(sources, lacking, untrained, tmp_path, stage, zero_stage):
    recipe, examples = dataclasses.replace(FULL, zero_stage=zero_stage), f"{sources}/train.parquet"
    with pytest.raises(UserError, match=REFUSED):
        if stage == "generator":
            finetune_generator(GeneratorConfig(recipe), examples, lacking, str(tmp_path), resources=HERE)
        else:
            finetune_task_model(TaskModelConfig(recipe, 0), examples, lacking, untrained, str(tmp_path), resources=HERE)


def test_finetuning_together_refuses_it(sources, lacking, untrained, tmp_path):
    jobs = [finetuning_job(TaskModelConfig(LORA, seed), f"{sources}/train.parquet", lacking, untrained) for seed in (0, 1)]
    with pytest.raises(UserError, match=REFUSED):
        raise finetune_group(jobs, [str(tmp_path / "0"), str(tmp_path / "1")], resources=HERE, reports=[no_report] * 2)[0]


def test_evaluation_refuses_it(sources, lacking, untrained, tmp_path):
    config = EvaluationConfig(("template_test",), dtype="float32")
    with pytest.raises(UserError, match=REFUSED):
        evaluate(config, sources, lacking, untrained, str(tmp_path), resources=HERE)


def test_saving_refuses_it(lacking, tmp_path):
    job = FinetuneJob("language_modeling", FULL, 0, "", lacking, save_language_model)
    with pytest.raises(UserError, match=REFUSED):
        save_language_model(tmp_path, {}, job)
    with pytest.raises(UserError, match=REFUSED):
        save_task_model(tmp_path, {"head.weight": torch.zeros(3, 64)}, job)


def test_preparing_refuses_it_and_takes_what_is_whole(base_model, lacking, tmp_path):
    with pytest.raises(UserError, match=REFUSED):
        prepare_base_model(pretrained_model_config(f"{lacking}/model"), str(tmp_path / "lacking"))
    metrics = prepare_base_model(pretrained_model_config(f"{base_model}/model"), str(tmp_path / "whole"))
    whole = AutoModelForCausalLM.from_pretrained(f"{base_model}/model")
    assert metrics["num_parameters"] == whole.num_parameters()


@pytest.mark.parametrize("lacked", [None, "blk.0.ffn_down.weight"])
def test_converting_a_gguf_file_refuses_it(tmp_path, lacked):
    write_gguf(tmp_path / "model.gguf", lacked)
    config = pretrained_model_config(str(tmp_path / "model.gguf"), dtype="float32")
    if lacked is None:
        assert prepare_base_model(config, str(tmp_path / "base"))["num_parameters"] > 0
        return
    with pytest.raises(UserError, match=r"lacks 1 tensors that LlamaForCausalLM needs \(model\.layers\.0\.mlp\.down_proj"):
        prepare_base_model(config, str(tmp_path / "base"))


def test_a_gguf_file_is_parsed_once_and_gives_what_transformers_reads_by_itself(tmp_path, monkeypatch):
    import gguf

    write_gguf(tmp_path / "model.gguf", adds_bos=True)
    config = pretrained_model_config(str(tmp_path / "model.gguf"), dtype="float32")
    parsed = []
    fields = gguf.GGUFReader._build_fields
    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", lambda reader, *a: parsed.append(1) or fields(reader, *a))
    reader = gguf.GGUFReader
    prepare_base_model(config, str(tmp_path / "ours"))
    assert len(parsed) == 1 and gguf.GGUFReader is reader
    monkeypatch.setattr("pipelines.models.model_files.parsed_once", contextlib.nullcontext)
    prepare_base_model(config, str(tmp_path / "theirs"))
    assert len(parsed) > 2
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "model").iterdir()} for name in ("ours", "theirs")
    )
    assert ours == theirs and "model.safetensors" in ours


def write_gguf(path: Path, lacked: str | None = None, *, name: str = "llama", adds_bos: bool | None = None) -> None:
    """A Llama of one layer and a tokenizer of a few pieces, without the tensor `lacked`."""
    import gguf
    import numpy as np

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1])
    for name, token in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{name}_token_id")(token)
    shapes = {
        "token_embd.weight": (len(pieces), 16), "output.weight": (len(pieces), 16), "output_norm.weight": (16,),
        "blk.0.attn_norm.weight": (16,), "blk.0.ffn_norm.weight": (16,),
        **{f"blk.0.attn_{name}.weight": (16, 16) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (32, 16), "blk.0.ffn_up.weight": (32, 16), "blk.0.ffn_down.weight": (16, 32),
    }  # fmt: skip
    for name, shape in shapes.items():
        if name != lacked:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_tied_or_not_asked_for_is_not_missing(tmp_path, tied):
    shape = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "whole")
    assert ("lm_head.weight" in load_file(tmp_path / "whole" / "model.safetensors")) != tied
    body = load_weights(AutoModel, tmp_path / "whole")
    model = load_weights(AutoModelForCausalLM, tmp_path / "whole")
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight) == tied
    body.save_pretrained(tmp_path / "body")
    if tied:
        load_weights(AutoModelForCausalLM, tmp_path / "body")
        without(tmp_path / "whole", "model.embed_tokens.weight")
    else:
        with pytest.raises(UserError, match=r"lacks 1 tensors that LlamaForCausalLM needs \(lm_head\.weight\)"):
            load_weights(AutoModelForCausalLM, tmp_path / "body")
        without(tmp_path / "whole", "lm_head.weight")
    with pytest.raises(UserError, match="LlamaForCausalLM needs"):
        load_weights(AutoModelForCausalLM, tmp_path / "whole")


@pytest.mark.parametrize("options", [{}, {"device_map": "meta"}])
def test_a_tensor_in_another_shape_is_missing(base_model, tmp_path, options):
    shutil.copytree(f"{base_model}/model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    name = f"model.{LACKED}"
    save_file({**tensors, name: tensors[name].T.contiguous()}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=REFUSED):
        load_weights(AutoModelForCausalLM, tmp_path / "model", **options)


def test_a_head_without_its_weight_is_refused(tmp_path):
    save_file({"bias": torch.zeros(3)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=r"has no tensor 'weight'"):
        load_head(tmp_path, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_that_lacks_a_tensor_is_refused(sources, base_model, untrained, tmp_path, merge):
    examples = f"{sources}/train.parquet"
    finetune_task_model(TaskModelConfig(LORA, 0), examples, base_model, untrained, str(tmp_path / "task"), resources=HERE)
    adapter = tmp_path / "task" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(adapter)
    for name in [name for name in tensors if "layers.1.mlp.down_proj" in name]:
        del tensors[name]
    save_file(tensors, adapter)
    config = EvaluationConfig(("template_test",), dtype="float32", merge_adapter=merge)
    with pytest.raises(UserError, match=r"differ in 2 tensors, .*layers\.1\.mlp\.down_proj"):
        evaluate(config, sources, base_model, str(tmp_path / "task"), str(tmp_path / "evaluation"), resources=HERE)


def test_a_tied_checkpoint_that_has_its_output_layer_alone_lacks_the_embeddings(tmp_path):
    shape = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path / "whole"
    LlamaForCausalLM(shape).save_pretrained(folder)
    check_complete(folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensors that LlamaModel needs \(embed_tokens\.weight\)"):
        check_complete(folder, folder)
