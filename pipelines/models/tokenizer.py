"""The tokenizer of a base model, how long a text of its tokens may be, and a small tokenizer made from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.models.architectures import saved_architecture
from pipelines.storage import fetch, join
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import END_MARKERS, classifier_prompts, generator_text
from pipelines.tasks.task import Task


def load_tokenizer(base_model: str) -> Any:
    """The tokenizer in the `model/` folder of a base-model artifact, run without any remote code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(join(fetch(base_model), "model"), use_fast=True, trust_remote_code=False)


def model_limit(base_model: str) -> int:
    """Longest sequence, in tokens, that the base model's positions allow."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(join(fetch(base_model), "model"), trust_remote_code=False)
    limit: int = config.max_position_embeddings
    if config.model_type == "roberta":
        # Its positions begin behind the padding's.
        limit -= config.pad_token_id + 1
    return limit


def encode_for_classifier(
    base_model: str, table: pa.Table, task: Task = NLI, *, max_length: int | None = None
) -> list[list[int]]:
    """Token ids of what a task model reads of each of `table`'s examples, under `encode`'s limits.

    A decoder reads the task's prompt. An encoder reads its tokenizer's own form of a text or a pair, `[CLS] a [SEP] b [SEP]`,
    as it does everywhere else; raises UserError for a task of more fields, and for a text that holds a separator itself.
    """
    ids = table["id"].to_pylist()
    if not saved_architecture(base_model).is_encoder:
        return encode(base_model, classifier_prompts(table, task), ids, max_length=max_length)
    check_encoder_reads(task)
    tokenizer = load_tokenizer(base_model)
    encoded = tokenizer(*(table[name].to_pylist() for name in task.field_names))
    sequences: list[list[int]] = encoded["input_ids"]
    for identifier, sequence in zip(ids, sequences, strict=True):
        # A text's own would pass for the end of the first one, and `encoder.py` reads from it which text a token is of.
        if sequence.count(tokenizer.sep_token_id) != tokenizer.num_special_tokens_to_add(len(task.field_names) > 1) - 1:
            raise UserError(
                f"example {identifier!r} holds the text {tokenizer.sep_token!r}, which is the model's separator; take it out "
                "of the data"
            )
    _check_lengths(sequences, ids, base_model, max_length)
    return sequences


def check_encoder_reads(task: Task) -> None:
    """Raise UserError for a task whose examples no encoder reads."""
    if len(task.field_names) > 2:
        raise UserError(
            f"task {task.name} has the fields {', '.join(task.field_names)}, and an encoder reads one text or a pair: give a "
            "decoder as the task models' base, or join fields"
        )


def encode(base_model: str, texts: list[str], ids: list[str], *, max_length: int | None = None) -> list[list[int]]:
    """Token ids of each text. Raises UserError if one has more than `max_length` tokens, or than the model allows.

    Cut, it would lose the token that the class is read from.
    """
    sequences: list[list[int]] = load_tokenizer(base_model)(texts)["input_ids"]
    _check_lengths(sequences, ids, base_model, max_length)
    return sequences


def _check_lengths(sequences: Sequence[Sequence[int]], ids: Sequence[str], base_model: str, max_length: int | None) -> None:
    most = model_limit(base_model)
    limit = min(max_length or most, most)
    too_long = [position for position, sequence in enumerate(sequences) if len(sequence) > limit]
    if too_long:
        worst = max(too_long, key=lambda position: len(sequences[position]))
        raise UserError(
            f"{len(too_long):,} of {len(sequences):,} examples are longer than {limit} tokens (the longest, {ids[worst]!r}, "
            f"has {len(sequences[worst])}); raise max_length if the model allows it, or drop them from the data"
        )


def train_tokenizer(examples: pa.Table, *, vocabulary_size: int, max_length: int, task: Task = NLI) -> Any:
    """A byte-level BPE of at most `vocabulary_size` pieces, learnt from `examples` and the templates' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for name in task.field_names for text in examples.column(name).to_pylist()]
    first = examples.slice(0, 1).to_pylist()[0]
    for label in task.labels:
        for marker in END_MARKERS:
            # Often enough that the template's words become whole pieces.
            texts += [generator_text(label, first, marker, task)] * 50
    texts += [task.classified(first)] * 100
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=max_length)
