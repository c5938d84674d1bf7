"""The tokenizer of a base model, how long a text of its tokens may be, and a small tokenizer made from scratch."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.storage import fetch, join
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import END_MARKERS, generator_text
from pipelines.tasks.task import Task


def load_tokenizer(base_model: str) -> Any:
    """The tokenizer in the `model/` folder of a base-model artifact, run without any remote code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(join(fetch(base_model), "model"), use_fast=True, trust_remote_code=False)


def model_limit(base_model: str) -> int:
    """Longest sequence, in tokens, that the base model's positions allow and that its layers attend to all of."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(join(fetch(base_model), "model"), trust_remote_code=False)
    limit: int = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if window and "sliding_attention" in getattr(config, "layer_types", ["sliding_attention"]):
        limit = min(limit, window)
    return limit


def encode(base_model: str, texts: list[str], ids: list[str], *, max_length: int | None = None) -> list[list[int]]:
    """Token ids of each text. Raises UserError if one has more than `max_length` tokens, or than the model allows.

    Cut, it would lose the token that the class is read from.
    """
    sequences: list[list[int]] = load_tokenizer(base_model)(texts)["input_ids"]
    limit = max_length or model_limit(base_model)
    too_long = [position for position, sequence in enumerate(sequences) if len(sequence) > limit]
    if too_long:
        worst = max(too_long, key=lambda position: len(sequences[position]))
        raise UserError(
            f"{len(too_long)} of {len(sequences)} examples are longer than {limit} tokens (the longest, {ids[worst]!r}, has "
            f"{len(sequences[worst])}); raise max_length if the model allows it, or drop them from the data"
        )
    return sequences


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
