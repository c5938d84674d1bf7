"""NF4 by hand, and a base model whose projections alone are quantised."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines.errors import UserError
from pipelines.finetune.base_model import PretrainedModelConfig, prepare_base_model, pretrained_model_config
from pipelines.models.quantization import dynamic_levels, nf4_round_trip
from pipelines.tasks.nli import LABELS


def block(*values: float) -> list[float]:
    """64 values that begin with those given."""
    return [*values, *[0.0] * (64 - len(values))]


def test_each_value_becomes_the_nearest_level_times_its_blocks_scale():
    # Scale 2. Of -2: level -1. 0.07 / 2 = 0.035 lies below the middle (0.0398) of 0 and 0.0796: 0; 0.09 / 2 above it.
    # 1.7 / 2 = 0.85 lies below the middle (0.8615) of 0.7230 and 1; 1.73 / 2 above it.
    found = nf4_round_trip(torch.tensor(block(-2.0, 0.07, 0.09, 1.7, 1.73, -0.6)))
    expected = [-2.0, 0.0, 2 * 0.07958029955625534, 2 * 0.7229568362236023, 2.0, 2 * -0.28444138169288635, 0.0]
    assert found[:7].tolist() == pytest.approx(expected, abs=1e-6)


def test_blocks_are_64_in_a_row_whatever_the_shape():
    weight = torch.tensor([block(1.0, 0.1)[:32], [0.0] * 32, block(100.0)[:32], [0.0] * 32, [0.1, -0.1] * 16])
    found = nf4_round_trip(weight)
    assert found.shape == weight.shape
    assert found[0, :2].tolist() == pytest.approx([1.0, 0.07958029955625534])
    # The last block is half as long, and its scale its own.
    assert torch.equal(found[4], weight[4])
    assert not nf4_round_trip(torch.zeros(70)).any()


def test_double_quantization_rounds_the_scales_around_their_mean():
    # Scales 1 and 3: mean 2, off which they are -1 and 1. The level nearest to -1 is -(0.1 + 0.9 * 63.5 / 64) = -0.99296875.
    weight = torch.tensor([block(1.0, -1.0), block(3.0, -3.0)])
    found = nf4_round_trip(weight, double_quantization=True)
    assert found[:, 0].tolist() == pytest.approx([2 - 0.99296875, 3.0])
    assert found[:, 1].tolist() == pytest.approx([-(2 - 0.99296875), -3.0])


def test_dynamic_levels_are_seven_decades_of_both_signs_with_0_and_1():
    levels = dynamic_levels()
    assert len(levels) == 2 * (1 + 2 + 4 + 8 + 16 + 32 + 64) + 2
    assert levels == sorted(levels) and 0.0 in levels and levels[-1] == 1.0
    assert min(level for level in levels if level > 0) == pytest.approx(0.55e-6)
    assert [level for level in levels if 0 < level < 1e-5][1:] == pytest.approx([3.25e-6, 7.75e-6])


PROJECTIONS = {
    *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    dtype="float16",
)  # fmt: skip


def save_blobs(model, blobs: Path) -> None:
    model.half().save_pretrained(blobs / "saved")
    (blobs / "saved" / "model.safetensors").rename(blobs / "a")
    (blobs / "saved" / "config.json").rename(blobs / "b")


def save_tokenizer(blobs: Path) -> None:
    """Knows the words of the labels, and how a text ends."""
    words = ["<unk>", "</s>", *(label.value for label in LABELS)]
    tokens = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>").save_pretrained(blobs / "saved")
    (blobs / "saved" / "tokenizer.json").rename(blobs / "c")
    (blobs / "saved" / "tokenizer_config.json").rename(blobs / "d")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as it lies in the Hugging Face cache: each file is a relative link to a blob."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    torch.manual_seed(0)
    save_blobs(LlamaForCausalLM(LLAMA), blobs)
    save_tokenizer(blobs)
    names = {"a": "model.safetensors", "b": "config.json", "c": "tokenizer.json", "d": "tokenizer_config.json"}
    for blob, name in names.items():
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    return snapshot


@pytest.mark.parametrize("quantization", ["nf4", "nf4_double"])
def test_only_the_decoders_projections_are_quantised_and_the_users_files_stay(
    checkpoint: Path, tmp_path: Path, quantization: str
):
    config = pretrained_model_config(str(checkpoint), quantization=quantization)
    before = load_file(checkpoint / "model.safetensors")
    metrics = prepare_base_model(config, str(tmp_path / "base"))
    # Seven projections, embeddings and head; three norms.
    assert metrics == {"num_parameters": 9 * 64 * 64 + 3 * 64, "num_quantized_parameters": 7 * 64 * 64}
    after = load_file(tmp_path / "base" / "model" / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name].float(), before[name].float())}
    assert changed == PROJECTIONS
    for name in changed:
        expected = nf4_round_trip(before[name], double_quantization=quantization == "nf4_double")
        assert torch.equal(after[name], expected.to(torch.bfloat16))
    assert load_file(checkpoint / "model.safetensors").keys() == before.keys()
    assert torch.equal(load_file(checkpoint / "model.safetensors")[name], before[name])
    # Again, as after a crash: from the user's files, not from the quantised ones.
    prepare_base_model(config, str(tmp_path / "base"))
    assert torch.equal(load_file(tmp_path / "base" / "model" / "model.safetensors")[name], after[name])


def test_a_checkpoint_of_links_is_copied_as_files(checkpoint: Path, tmp_path: Path):
    prepare_base_model(pretrained_model_config(str(checkpoint)), str(tmp_path / "base"))
    copied = tmp_path / "base" / "model" / "model.safetensors"
    assert not copied.is_symlink()
    assert os.path.samefile(copied, checkpoint / "model.safetensors")


def test_another_architectures_own_projections_are_quantised(checkpoint: Path, tmp_path: Path):
    shape = GPTNeoXConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    save_blobs(GPTNeoXForCausalLM(shape), checkpoint.parents[1] / "blobs")
    metrics = prepare_base_model(pretrained_model_config(str(checkpoint), quantization="nf4"), str(tmp_path / "base"))
    # Queries, keys and values, what follows them, and the two layers of the feed-forward network.
    assert metrics["num_quantized_parameters"] == 8 * 24 + 8 * 8 + 2 * 8 * 16


def test_a_model_without_such_projections_and_an_unknown_quantization_are_refused():
    with pytest.raises(
        UserError, match="quantization='nf4': there is a deberta, none of whose projections can have an adapter"
    ):
        PretrainedModelConfig((), quantization="nf4", path="there", model_type="deberta")
    with pytest.raises(UserError, match="quantization='int8' is not one of 'none', 'nf4', 'nf4_double', 'fp8'"):
        dataclasses.replace(PretrainedModelConfig(()), quantization="int8")
