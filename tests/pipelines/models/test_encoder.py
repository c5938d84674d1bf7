"""An encoder as T gives the numbers that transformers' own model gives of each pair, and is trained, saved and evaluated."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from pipelines.adapters.files import merge_adapter
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import (
    TaskModelConfig,
    UntrainedConfig,
    finetune_task_model,
    finetuning_job,
    initial_task_model,
)
from pipelines.models.architectures import ARCHITECTURES
from pipelines.models.classifier import load_head
from pipelines.models.encoder import classifier
from pipelines.models.tokenizer import encode_for_classifier, load_tokenizer, model_limit
from pipelines.models.weights import load_body
from pipelines.packing.batches import class_targets, padded, padded_batches
from pipelines.packing.stream import PackedInput
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Field, Task
from tests.pipelines.conftest import labelled_pairs

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "max_relative_positions": 24,
}
CONFIGS = {
    "bert": BertConfig(max_position_embeddings=64, **SHAPE),
    # Positions 0 and 1 are the padding's and what comes before it.
    "roberta": RobertaConfig(max_position_embeddings=66, type_vocab_size=1, **SHAPE),
    "deberta": DebertaConfig(max_position_embeddings=64, **RELATIVE, **SHAPE),
    # As version 3 of it: one matrix for contents and relative positions, which lie in buckets.
    "deberta-v2": DebertaV2Config(
        max_position_embeddings=64, share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm", **RELATIVE, **SHAPE
    ),
}
FULL = FinetuneConfig(
    method="full", dtype="float32", batch_size=8, learning_rate=1e-3, epochs=3, warmup_ratio=0, zero_stage=0, log_every=3
)
HERE = Resources(in_process=True)


# Trained in earnest: one of absolute positions, and one of relative ones.
TRAINED = pytest.mark.parametrize(
    "kind",
    [name if name in ("roberta", "deberta-v2") else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS],
    indirect=True,
    scope="module",
)


def tokenizer_for(kind):
    """Words and letters, and the special tokens of BERT, or of RoBERTa, which puts two separators between texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    start, end, pad, unknown = ("<s>", "</s>", "<pad>", "<unk>") if kind == "roberta" else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    words = sorted({word for row in labelled_pairs(60).to_pylist() for word in f"{row['premise']} {row['hypothesis']}".split()})
    vocabulary = {
        word: number for number, word in enumerate(dict.fromkeys([start, pad, end, unknown, *words, "a", "b", *NLI.labels]))
    }
    tokenizer = Tokenizer(models.WordLevel({**vocabulary}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}" if kind == "roberta" else f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, 0), (end, 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=start, sep_token=end, pad_token=pad, unk_token=unknown)


@pytest.fixture(scope="module", params=CONFIGS, name="kind")
def _kind(request):
    return request.param


@pytest.fixture(scope="module", name="encoder")
def _encoder(kind, tmp_path_factory):
    """The base-model artifact of a checkpoint as they are published: with a head for masked words, and without a pooler."""
    folder = tmp_path_factory.mktemp(kind)
    tokenizer = tokenizer_for(kind)
    torch.manual_seed(0)
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), "vocab_size": len(tokenizer), "pad_token_id": 1})
    model = AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "published")
    tokenizer.save_pretrained(folder / "published")
    described = pretrained_model_config(str(folder / "published"), dtype="float32")
    assert described.model_type == kind
    prepare_base_model(described, str(folder / "base"))
    return str(folder / "base")


@pytest.fixture(scope="module", name="start")
def _start(encoder, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("start"))
    assert initial_task_model(UntrainedConfig(seed=3), encoder, folder)["reads_first_token"]
    return folder


def own_states(body, base_model, table):
    """The first token's state of each pair, computed by itself from what the tokenizer gives of it."""
    tokenizer = load_tokenizer(base_model)
    options = {"return_token_type_ids": getattr(body.config, "type_vocab_size", 0) > 1, "return_tensors": "pt"}
    rows = [tokenizer(row["premise"], row["hypothesis"], **options) for row in table.to_pylist()]
    return torch.stack([body(**row).last_hidden_state[0, 0] for row in rows])


def test_logits_and_gradients_are_those_of_each_pair_by_itself(encoder, start):
    table = labelled_pairs(12)
    own, ours = (load_body(Path(encoder, "model")).double().eval() for _ in range(2))
    head = load_head(Path(start), dtype=torch.float64, device="cpu")
    labels = [number % 3 for number in range(12)]
    expected = head(own_states(own, encoder, table)).float()
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels), reduction="sum").backward()
    sequences = encode_for_classifier(encoder, table)
    assert len(set(map(len, sequences))) > 1
    packed = padded(sequences)
    batch = PackedInput.from_batch(packed, "cpu")
    model = classifier(ours, head)
    torch.testing.assert_close(model.logits(batch), expected, rtol=1e-5, atol=1e-6)
    model(batch, torch.from_numpy(class_targets(packed, labels))).backward()
    for (name, theirs), mine in zip(own.named_parameters(), ours.parameters(), strict=True):
        assert (theirs.grad is None) == (mine.grad is None), name
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")
    # The comparison can fail: without the mask, or with the second text taken for the first's, the logits are others.
    shorter = int(np.argmin([len(sequence) for sequence in sequences]))
    wrong = model.logits(dataclasses.replace(batch, last_index=batch.last_index * 0 + batch.width - 1))
    assert (wrong - expected)[shorter].abs().max() > 1e-3


def logits_of(sources, encoder, model, output):
    evaluate(EvaluationConfig(("template_test",), dtype="float32"), sources, encoder, model, str(output), resources=HERE)
    table = pq.read_table(output / "logits.parquet")
    return torch.tensor([table[f"logit_{label}"].to_pylist() for label in ("entailment", "neutral", "contradiction")]).T


@TRAINED
def test_a_trained_one_is_saved_continued_and_evaluated(ray_two_cpus, kind, sources, encoder, start, tmp_path):
    examples = f"{sources}/train.parquet"
    metrics = finetune_task_model(TaskModelConfig(FULL, 1), examples, encoder, start, str(tmp_path / "T"), resources=HERE)
    assert metrics["num_steps"] == 36
    losses = [json.loads(line)["loss"] for line in (tmp_path / "T" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] < 3
    again = dataclasses.replace(FULL, epochs=0.5, learning_rate=1e-4)
    continued = str(tmp_path / "T2")
    finetune_task_model(TaskModelConfig(again, 2), examples, encoder, str(tmp_path / "T"), continued, resources=HERE)
    for model in (tmp_path / "T", tmp_path / "T2"):
        body = load_body(model / "model").eval()
        head = load_head(model, dtype=torch.float32, device="cpu")
        expected = head(own_states(body, encoder, read_examples(f"{sources}/template_test.parquet"))).detach()
        found = logits_of(sources, encoder, str(model), tmp_path / f"{model.name}-evaluated")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@TRAINED
def test_adapters_are_trained_alone_where_they_fit(ray_two_cpus, kind, sources, encoder, start, tmp_path):
    if not ARCHITECTURES[kind].projections:
        pytest.skip("of its projections none can have an adapter")
    config = dataclasses.replace(FULL, method="lora", lora_rank=4, lora_targets=ARCHITECTURES[kind].projections, epochs=1)
    jobs = [finetuning_job(TaskModelConfig(config, s), f"{sources}/train.parquet", encoder, start) for s in (1, 2)]
    outputs = [tmp_path / "1", tmp_path / "2"]
    results = finetune_group(jobs, list(map(str, outputs)), resources=HERE, reports=[no_report] * 2)
    assert all("mean_trained_together" not in result for result in results)
    tensors = load_file(outputs[0] / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 6
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    body = load_body(Path(encoder, "model")).eval()
    merge_adapter(body, tensors, scale=config.lora_alpha / config.lora_rank)
    head = load_head(outputs[0], dtype=torch.float32, device="cpu")
    expected = head(own_states(body, encoder, read_examples(f"{sources}/template_test.parquet"))).detach()
    torch.testing.assert_close(logits_of(sources, encoder, str(outputs[0]), tmp_path / "E"), expected, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_read_is_refused(encoder, tmp_path):
    table = labelled_pairs(2)
    separator = load_tokenizer(encoder).sep_token
    for premise, words in ((f"a {separator} b", r"holds the text .*separator"), ("the " * 60, r"longer than 64 tokens")):
        rows = [{**table.to_pylist()[0], "premise": premise}]
        with pytest.raises(UserError, match=words):
            encode_for_classifier(encoder, type(table).from_pylist(rows))
    assert model_limit(encoder) == 64


def test_a_task_of_three_fields_is_refused(encoder):
    fields = (Field("a", "A:"), Field("b", "B:"), Field("c", "C:"))
    task = Task("three", ("x", "y"), fields, classifier_prompt="{a} {b} {c}", generator_prompt="{label}")
    with pytest.raises(UserError, match="has the fields a, b, c, and an encoder reads one text or a pair"):
        encode_for_classifier(encoder, labelled_pairs(1), task)


def test_a_batch_stays_within_its_tokens_and_holds_every_sequence_once():
    sequences = [[7] * length for length in (3, 9, 1, 4, 30, 2, 9)]
    batches = padded_batches(sequences, 20)
    assert sorted(place for places, _ in batches for place in places) == list(range(7))
    for places, batch in batches:
        assert batch.num_tokens == len(places) * batch.width
        assert batch.num_tokens <= 20 or len(places) == 1
        assert (batch.last_index % batch.width + 1).tolist() == [len(sequences[place]) for place in places]
    with pytest.raises(ValueError, match="at least one"):
        padded([])
