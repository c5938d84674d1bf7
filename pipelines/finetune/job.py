"""One finetuning: what it learns from which examples, and the texts, batches and shared prefixes that follow from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.finetune.recipe import FinetuneConfig
from pipelines.models.architectures import saved_architecture
from pipelines.models.tokenizer import encode, encode_for_classifier
from pipelines.packing.batches import Prefix, common_prefix_length
from pipelines.packing.dealing import training_order
from pipelines.resources import Report
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import generator_texts, plain_texts
from pipelines.tasks.task import Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FinetuneJob:
    """One finetuning: what is learnt from which examples, from which weights, and how the result is saved.

    `objective` is "classification" (a class for each label of the task, read from the last token; `starting_point` gives head
    and adapter or weights) or "language_modeling" (`text` names what is written for each example: "generator" or "plain").
    `save(folder, tensors, job)` runs on the first worker only, with every trained tensor on the CPU.
    """

    objective: str
    config: FinetuneConfig
    seed: int
    examples: str | tuple[str, ...]
    """A file of examples or a folder of them, or several, one after another."""
    base_model: str
    save: Callable[[Path, dict[str, torch.Tensor], FinetuneJob], None]
    starting_point: str | None = None
    text: str = "generator"
    task: Task = NLI
    end_marker: str = ""
    max_examples: int | None = None
    nested_sizes: tuple[int, ...] = ()
    """Ascending: so many of the first examples are smaller sets, which are seen first, each before what the next adds."""
    trunk: str | None = None
    """The output of the trunk that a branch leaves. A job without one keeps what branches of its nested sets need."""

    @property
    def is_on_trajectory(self) -> bool:
        """Whether it is a branch, or a trunk that has any."""
        return bool(self.nested_sizes or self.trunk)

    @property
    def reads_whole_texts(self) -> bool:
        """Whether its model is an encoder, whose batches are padded grids and which is trained alone."""
        return self.objective == "classification" and saved_architecture(self.base_model).is_encoder


@dataclass(frozen=True)
class Member:
    """One job of a group, its output (absolute, or a URI) and where its step metrics go."""

    job: FinetuneJob
    output: str
    report: Report


@dataclass(frozen=True)
class Examples:
    """A job's examples, an entry each: token ids, label index, number of tokens, what of it others begin with.

    `batches` has the examples of each optimizer step.
    """

    sequences: list[list[int]]
    labels: list[int]
    lengths: list[int]
    prefixes: list[Prefix]
    batches: list[list[int]]

    @classmethod
    def read(cls, job: FinetuneJob) -> Examples:
        """Raises UserError for an example that is too long."""
        sequences, labels = encode_examples(job)
        lengths = [len(sequence) for sequence in sequences]
        return cls(sequences, labels, lengths, shared_prefixes(job, sequences, labels), planned_batches(job, lengths))

    def num_tokens(self, batches: Iterable[Sequence[int]]) -> int:
        return sum(self.lengths[i] for batch in batches for i in batch)


def planned_batches(job: FinetuneJob, lengths: Sequence[int]) -> list[list[int]]:
    """The example indices of each optimizer step, for examples of `lengths` in tokens.

    What each nested set adds to the one before is ordered and dealt into batches by itself. So those of a smaller set are the
    first ones of a larger one.
    """
    config = job.config
    batches: list[list[int]] = []
    for first, end in pairwise((0, *job.nested_sizes, len(lengths))):
        own = lengths[first:end]
        order = training_order(
            len(own),
            config.epochs,
            seed=job.seed,
            lengths=own if config.group_by_length else None,
            batch_size=config.batch_size,
        )
        if config.rehearse_steps:
            order = np.argsort(-np.array(own), kind="stable")[: config.rehearse_steps * config.batch_size]
        order = order + first
        batches += [order[start : start + config.batch_size].tolist() for start in range(0, len(order), config.batch_size)]
    return batches


def encode_examples(job: FinetuneJob) -> tuple[list[list[int]], list[int]]:
    """Token ids and label index of each example of `job`, in the file's order. Raises UserError for one that is too long."""
    places = (job.examples,) if isinstance(job.examples, str) else job.examples
    tables = [read_examples(place, job.task) for place in places]
    table = tables[0] if len(tables) == 1 else pa.concat_tables([one.select(list(job.task.columns)) for one in tables])
    if job.max_examples is not None:
        table = table.slice(0, job.max_examples)
    labels = [job.task.index(name) for name in table["label"].to_pylist()]
    if job.objective == "classification":
        return encode_for_classifier(job.base_model, table, job.task, max_length=job.config.max_length), labels
    is_generator = job.text == "generator"
    texts = generator_texts(table, job.end_marker, job.task) if is_generator else plain_texts(table, job.task)
    return encode(job.base_model, texts, table["id"].to_pylist(), max_length=job.config.max_length), labels


def shared_prefixes(job: FinetuneJob, sequences: list[list[int]], labels: Sequence[int]) -> list[Prefix]:
    """The part of each example that others of its batches share: the longest beginning that all of its number have in common.

    A generator's texts say their label first, so that theirs is the label's index. Plain texts begin each with its own, and an
    encoder computes no beginning without what follows.
    """
    is_plain = (job.objective, job.text) == ("language_modeling", "plain")
    if not job.config.share_prefix or is_plain or job.reads_whole_texts:
        return [Prefix(0)] * len(sequences)
    numbers = [0] * len(sequences) if job.objective == "classification" else labels
    alike: dict[int, list[list[int]]] = {number: [] for number in numbers}
    for number, sequence in zip(numbers, sequences, strict=True):
        alike[number].append(sequence)
    prefixes = {number: Prefix(common_prefix_length(group), number) for number, group in alike.items()}
    return [prefixes[number] for number in numbers]
