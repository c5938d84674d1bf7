"""Batches without padding: sequences laid end to end, what they begin with alike stored once.

NLI prompts are short, differ in length and begin with one template, so that most of a padded batch would be padding and
beginnings computed again. For training, a packed batch is a list of groups: a prefix, held once, then what follows it in each
sequence of the group (`pack`). Where order is free and nothing is backpropagated, a batch is a prefix tree of any depth
(`prefix_tree_batches`). Pure numpy; `attention.py` computes attention over both, equal to the padded forward pass to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

IGNORED = -100
"""A target that counts for nothing: PyTorch's cross-entropy passes over it."""

KEYS_PER_TOKEN = 4
"""Most keys that a batch of a prefix tree has for a token of its budget: where a layer copies them, it needs room for them."""


class Prefix(NamedTuple):
    """The first `length` tokens of a sequence, which a batch holds once for all sequences of equal prefix.

    `number` tells the prefixes of one adapter apart wherever they occur; `adapter` keeps those of two adapters apart, whose
    states differ even where their tokens do not.
    """

    length: int
    number: int = 0
    adapter: int = 0


@dataclass(frozen=True)
class Shape:
    """The size of every batch of a captured step: tokens in the stream, rows, and tokens that rows share in all.

    No row is longer than `width`, what it shares included.
    """

    num_tokens: int
    num_rows: int
    width: int
    num_shared: int = 0


@dataclass(frozen=True)
class PackedBatch:
    """`num_rows` rows in one stream of T tokens, which hold their own tokens and begin with some that an earlier row holds.

    The first rows are sequences and prefixes, a prefix before the sequences that share it; what a `Shape` adds to them is one
    row of filling and empty rows. Shapes: `input_ids`, `position_ids` int64 [T]; `lengths` int64 [num_rows], each row's own
    tokens; `shared` int64 [num_rows], how many tokens come before them: none in a prefix, as many as it has in a row that
    shares it, or, in a prefix tree, as many as a row has in common with the one before it; `contents` int64, what each of the
    first rows holds: number n of the sequences, or -1 - n for a prefix of number n; `last_index` int64 [num_rows], of the
    sequences in their order the stream index of the last token, then that of a token that is no sequence's last. `num_keys`
    counts a row's tokens with the shared ones, in all rows, or what a `Shape` leaves room for.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    lengths: np.ndarray
    shared: np.ndarray
    contents: np.ndarray
    last_index: np.ndarray
    num_keys: int
    width: int

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def num_sequences(self) -> int:
        return int((self.contents >= 0).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, which `width` leaves room for."""
        return int((self.shared + self.lengths)[: len(self.contents)].max())

    @property
    def is_tree(self) -> bool:
        """Whether rows go on from one another, and not only from prefixes."""
        return bool(self.shared.any() and (self.contents >= 0).all())


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


def pack(
    sequences: Sequence[Sequence[int]], *, prefixes: Sequence[Prefix] | None = None, shape: Shape | None = None
) -> PackedBatch:
    """Lay `sequences` of token ids end to end. Those of equal prefix (one a sequence) that lie side by side share it.

    With a `shape`, a row of filling that no sequence attends to brings the stream to its size. Raises ValueError for no
    sequence, one that is all prefix, and for sequences that do not fit into `shape`.
    """
    if not sequences:
        raise ValueError("pack needs at least one sequence")
    own: list[Sequence[int]] = []
    shared: list[int] = []
    contents: list[int] = []
    before = None
    for number, (sequence, prefix) in enumerate(zip(sequences, prefixes or [Prefix(0)] * len(sequences), strict=True)):
        if len(sequence) <= prefix.length:
            raise ValueError(f"prefix of {prefix.length} tokens leaves no token of a sequence of {len(sequence)} tokens")
        if prefix.length and prefix != before:
            own.append(sequence[: prefix.length])
            shared.append(0)
            contents.append(-1 - prefix.number)
        own.append(sequence[prefix.length :])
        shared.append(prefix.length)
        contents.append(number)
        before = prefix
    lengths = [len(tokens) for tokens in own]
    tokens = np.fromiter(itertools.chain.from_iterable(own), dtype=np.int64, count=sum(lengths))
    if shape is None:
        return _lay_out(tokens, np.array(lengths), np.array(shared), np.array(contents))
    longest = max(map(sum, zip(lengths, shared, strict=True)))
    filling = shape.num_tokens - len(tokens)
    num_empty = shape.num_rows - len(lengths) - 1
    if min(filling, num_empty, shape.num_shared - sum(shared)) < 0 or max(longest, filling) > shape.width:
        raise ValueError(
            f"{len(lengths):,} rows of {len(tokens)} own and {sum(shared)} shared tokens, the longest of {longest}, do not fit "
            f"{shape}"
        )
    return _lay_out(
        np.append(tokens, np.full(filling, tokens[-1])),
        np.array([*lengths, filling, *[0] * num_empty]),
        np.array([*shared, *[0] * (1 + num_empty)]),
        np.array(contents),
        num_keys=shape.num_tokens + shape.num_shared,
        width=shape.width,
    )


def _lay_out(
    tokens: np.ndarray,
    lengths: np.ndarray,
    shared: np.ndarray,
    contents: np.ndarray,
    *,
    num_keys: int | None = None,
    width: int | None = None,
) -> PackedBatch:
    ends = np.cumsum(lengths)
    last_index = ends[: len(contents)][contents >= 0] - 1
    unread = np.ones(len(tokens), dtype=bool)
    unread[last_index] = False
    return PackedBatch(
        input_ids=tokens,
        position_ids=numbered(lengths) + np.repeat(shared, lengths),
        lengths=lengths,
        shared=shared,
        contents=contents,
        last_index=np.append(last_index, np.full(len(lengths) - len(last_index), np.argmax(unread))),
        num_keys=int((shared + lengths).sum()) if num_keys is None else num_keys,
        width=int((shared + lengths).max()) if width is None else width,
    )


def padded(sequences: Sequence[Sequence[int]]) -> PackedBatch:
    """Sequences as the rows of a grid, each filled up behind its end: what an encoder reads. `last_index` has their ends.

    It is filled with its own last token, which is in any vocabulary. Raises ValueError for no sequence.
    """
    if not sequences:
        raise ValueError("padded needs at least one sequence")
    lengths = np.array([len(sequence) for sequence in sequences])
    width = int(lengths.max())
    batch = pack([[*sequence, *[sequence[-1]] * (width - len(sequence))] for sequence in sequences])
    return replace(batch, last_index=np.arange(len(sequences)) * width + lengths - 1)


def padded_batches(sequences: Sequence[list[int]], token_budget: int) -> list[tuple[np.ndarray, PackedBatch]]:
    """Cut `sequences` into batches of similar length, within `token_budget` tokens as they are `padded`.

    Returns for each batch the indices of its sequences and the batch. A sequence longer than the budget has one of its own.
    """
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    cuts: list[list[int]] = []
    for place in order:
        if not cuts or (len(cuts[-1]) + 1) * len(sequences[place]) > token_budget:
            cuts.append([])
        cuts[-1].append(place)
    return [(np.array(places), padded([sequences[place] for place in places])) for places in cuts]


def prefix_tree_batches(sequences: Sequence[list[int]], token_budget: int) -> list[tuple[np.ndarray, PackedBatch]]:
    """Cut `sequences` of token ids into batches in which no common beginning is computed twice.

    Returns for each batch the indices of its sequences, int64 [num_rows], and the batch, a prefix tree: sequences in
    lexicographic order, each one's own tokens beginning where it departs from the one before it. So there are as many rows as
    sequences, however deep the tree. A last token is always a sequence's own, duplicates' too. A batch stays within
    `token_budget` tokens and `KEYS_PER_TOKEN` times as many keys, unless one sequence is longer: nothing is dropped.

    Beside the template's beginning it shares premises and, where those differ late as HANS's do, their beginnings. That costs
    attention no more rows or keys than sharing the template's beginning alone.
    Raises ValueError for an empty sequence.
    """
    if not all(sequences):
        raise ValueError("a sequence of no tokens has no last one to read a class from")
    if not sequences:
        return []
    order = np.array(sorted(range(len(sequences)), key=sequences.__getitem__))
    lengths = np.array([len(sequences[i]) for i in order])
    tokens = np.fromiter(itertools.chain.from_iterable(sequences[i] for i in order), dtype=np.int64, count=lengths.sum())
    ends = np.cumsum(lengths)
    starts = ends - lengths
    column = numbered(lengths)
    # Each token is compared with the one that lies as far back as the sequence before its own is long.
    length_before = np.repeat(np.append(0, lengths[:-1]), lengths)
    departs = (column >= length_before) | (tokens != tokens[np.arange(len(tokens)) - length_before])
    departs[ends - 1] = True
    shared = np.minimum.reduceat(np.where(departs, column, len(tokens)), starts)

    cuts: list[int] = []
    num_tokens = num_keys = 0
    for row, (length, num_shared) in enumerate(zip(lengths.tolist(), shared.tolist(), strict=True)):
        num_tokens += length - num_shared
        num_keys += length
        if not cuts or num_tokens > token_budget or num_keys > KEYS_PER_TOKEN * token_budget:
            cuts.append(row)
            num_tokens = num_keys = length
    batches = []
    for first, end in itertools.pairwise([*cuts, len(sequences)]):
        part = slice(starts[first], ends[end - 1])
        # A batch's first sequence has nothing before it.
        common = np.append(0, shared[first + 1 : end])
        own = column[part] >= np.repeat(common, lengths[first:end])
        own_lengths = lengths[first:end] - common
        batches.append((order[first:end], _lay_out(tokens[part][own], own_lengths, common, np.arange(end - first))))
    return batches


def key_places(batch: PackedBatch) -> np.ndarray:
    """Where each row's tokens lie in the stream, the shared ones too, row after row: int64 [sum(shared + lengths)]."""
    lengths, shared = batch.lengths, batch.shared
    ends = shared + lengths
    column = np.arange(ends.max())
    places = np.zeros((len(lengths), len(column)), dtype=np.int64)
    places[(shared[:, None] <= column) & (column < ends[:, None])] = np.arange(lengths.sum())
    # What a row shares lies with the last row before it that has a token of its own at that position.
    np.maximum.accumulate(places, axis=0, out=places)
    return places[column < ends[:, None]]


def numbered(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... up to each of `counts`, one after another: int64 [sum(counts)]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def shape_for(num_tokens: int, *, num_rows: int, width: int, num_shared: int = 0) -> Shape:
    """The shape that batches of about `num_tokens` are packed to, so that few shapes are met.

    Filling costs little where a batch is so small that its step waits for launches or for the weights; from 512 tokens on it is
    at most a fifth, and a twentieth on average. `num_rows` counts sequences and prefixes, `width` is the longest sequence's
    length; room for the filling is added to both. What rows share is copied only: where a pass holds much, it is rounded more.
    """
    step = next((step for limit, step in ((512, 64), (2_048, 128)) if num_tokens <= limit), 0)
    shared_step = step
    if not step:
        # No wider than what attention has kernels for: the filling is one row.
        step = min(1 << (num_tokens - 1).bit_length() - 4, 1_024)
        shared_step = 4 * step
    return Shape(-(-num_tokens // step) * step, num_rows + 1, max(width, step), -(-num_shared // shared_step) * shared_step)


def class_targets(batch: PackedBatch, labels: Sequence[int]) -> np.ndarray:
    """int64 [num_rows]: each sequence's label, `IGNORED` for what is left of the rows."""
    return np.concatenate([labels, np.full(batch.num_rows - batch.num_sequences, IGNORED)]).astype(np.int64)


def next_token_targets(batch: PackedBatch) -> np.ndarray:
    """int64 [2, T]: the place of the token before each one, which is to predict it, and in how many sequences it does.

    So a prefix's last token predicts a token of each sequence that shares it, and all within a prefix counts as often as
    sequences share it. First tokens and the filling, which nothing predicts, count 0 times.
    """
    key_starts = np.cumsum(batch.shared + batch.lengths) - batch.shared - batch.lengths
    keys = key_places(batch)
    is_sequence = np.append(batch.contents >= 0, np.zeros(batch.num_rows - len(batch.contents), dtype=bool))
    counts = np.bincount(keys[np.repeat(is_sequence, batch.shared + batch.lengths)], minlength=batch.num_tokens)
    counts[batch.position_ids == 0] = 0
    before = keys[np.repeat(key_starts, batch.lengths) + np.maximum(batch.position_ids - 1, 0)]
    return np.stack([before, counts])
