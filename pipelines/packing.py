"""Batches without padding: sequences laid end to end, their common prefix stored once.

NLI prompts are short (77 tokens on average with Llama 2's tokenizer, 24 of them the template's beginning), so padding to the
longest wastes 40 % of the work and the shared beginning another third. A packed batch holds the common prefix once, then every
sequence's own tokens. Pure numpy; `attention.py` computes attention over it, equal to the padded forward pass to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedBatch:
    """`num_rows` sequences in one stream of P prefix tokens followed by each sequence's own tokens.

    Shapes: `input_ids`, `position_ids` int64 [T]; `slots` int64 [T - P], the place of each own token in a row-major
    [num_rows, width] grid; `last_index` int64 [num_rows], the stream index of each sequence's last token.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    slots: np.ndarray
    last_index: np.ndarray
    prefix_length: int
    num_rows: int
    width: int

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """Length of the longest prefix that all sequences share; at least one token is left to each sequence's own part."""
    if not sequences:
        raise ValueError("common_prefix_length needs at least one sequence")
    # The least and the greatest sequence bound all the others, so their common prefix is everyone's.
    low, high = min(sequences), max(sequences)
    limit = min(len(sequence) for sequence in sequences) - 1
    length = 0
    while length < limit and low[length] == high[length]:
        length += 1
    return max(length, 0)


def pack(sequences: Sequence[Sequence[int]], *, prefix_length: int = 0) -> PackedBatch:
    """Lay `sequences` end to end: token ids, each longer than `prefix_length` and all equal in their first `prefix_length`."""
    if not sequences:
        raise ValueError("pack needs at least one sequence")
    own_lengths = np.array([len(sequence) - prefix_length for sequence in sequences], dtype=np.int64)
    if own_lengths.min() < 1:
        raise ValueError(f"prefix_length={prefix_length} leaves no token of a sequence of {min(map(len, sequences))} tokens")
    width = int(own_lengths.max())
    column = np.concatenate([np.arange(length) for length in own_lengths])
    row = np.repeat(np.arange(len(sequences)), own_lengths)
    prefix = np.asarray(sequences[0][:prefix_length], dtype=np.int64)
    own = [np.asarray(sequence[prefix_length:], dtype=np.int64) for sequence in sequences]
    return PackedBatch(
        input_ids=np.concatenate([prefix, *own]),
        position_ids=np.concatenate([np.arange(prefix_length), column + prefix_length]),
        slots=row * width + column,
        last_index=prefix_length + np.cumsum(own_lengths) - 1,
        prefix_length=prefix_length,
        num_rows=len(sequences),
        width=width,
    )


def split_by_tokens(lengths: Sequence[int], token_budget: int, *, prefix_length: int = 0) -> list[list[int]]:
    """Cut positions 0..n-1, in the order given, into runs whose packed size stays within `token_budget` tokens.

    A sequence longer than the budget gets a run of its own: nothing is dropped.
    """
    runs: list[list[int]] = []
    used = 0
    for position, length in enumerate(lengths):
        own = length - prefix_length
        if not runs or used + own > token_budget:
            runs.append([])
            used = prefix_length
        runs[-1].append(position)
        used += own
    return runs


def training_order(num_examples: int, epochs: float, *, seed: int) -> np.ndarray:
    """Example indices in training order, int64 [round(num_examples * epochs)]: one fresh permutation an epoch."""
    total = round(num_examples * epochs)
    if num_examples < 1 or total < 1:
        raise ValueError(f"{num_examples} examples for {epochs} epochs give nothing to train on")
    generator = np.random.default_rng(seed)
    permutations = [generator.permutation(num_examples) for _ in range(-(-total // num_examples))]
    return np.concatenate(permutations)[:total]


def microbatches(
    batch: Sequence[int],
    lengths: Sequence[int],
    *,
    num_workers: int,
    token_budget: int,
    prefix_length: int = 0,
) -> list[list[list[int]]]:
    """Deal one optimizer step's examples to the workers, and each worker's share into packed microbatches.

    Returns, for each worker, its microbatches as lists of example indices. Every worker gets the same number of microbatches,
    because ZeRO's collectives must meet; a worker with less to do gets empty ones at the end. Examples are dealt from the
    longest to the shortest, forwards and back, so that the workers' token counts stay close.
    """
    by_length = sorted(batch, key=lambda index: (-lengths[index], index))
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    for turn in range(0, len(by_length), num_workers):
        dealt = by_length[turn : turn + num_workers]
        workers = range(num_workers) if (turn // num_workers) % 2 == 0 else range(num_workers - 1, -1, -1)
        for worker, index in zip(workers, dealt, strict=False):
            shares[worker].append(index)
    cut = [
        [
            [share[position] for position in run]
            for run in split_by_tokens([lengths[i] for i in share], token_budget, prefix_length=prefix_length)
        ]
        for share in shares
    ]
    most = max(len(runs) for runs in cut)
    return [runs + [[] for _ in range(most - len(runs))] for runs in cut]
