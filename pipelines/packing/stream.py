"""A packed batch on a device: its tokens, where its rows begin and what they share, and how attention's kernels take them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipelines.packing.batches import PackedBatch, key_places, numbered
from pipelines.packing.segments import Segments, to_device

TOKENS_PER_TILE = 64
"""Tokens of one row that a program of an attention kernel computes: most rows' own tokens fit into one."""

TOKENS_PER_PART = 256
"""Tokens of rows that share a prefix from which a program computes a part of its gradients: of fewer, more would be to add."""

TOKENS_PER_SUM = 16
"""Tokens of a prefix whose parts of gradients a program adds up."""


@dataclass(frozen=True)
class StreamIndex:
    """Where rows begin, and what they share.

    Shapes: `query_starts`, `key_starts` int32 [num_rows + 1]. A row's keys are the tokens that it shares and its own: `keys`
    int64 [K] picks them from the stream, where anything is shared. For the backward pass, `copies` int32 [K] and `copy_starts`
    int32 [T + 1]: the keys that are token t are `copies[copy_starts[t]:copy_starts[t + 1]]`. K is `PackedBatch.num_keys`; what
    lies past the last row's is no row's, and in no sum. For our kernels, `tiles` are `attention_tiles`, and `parts` and
    `sums` are `prefix_parts`.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    tiles: torch.Tensor
    keys: torch.Tensor | None = None
    copies: torch.Tensor | None = None
    copy_starts: torch.Tensor | None = None
    parts: torch.Tensor | None = None
    sums: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor]:
        """Everything, in a fixed order."""
        return [tensor for tensor in vars(self).values() if tensor is not None]


@dataclass(frozen=True)
class PackedInput:
    """A `PackedBatch` on a device, with the `segments` of its adapters if the model has any.

    Shapes: `input_ids`, `position_ids` [1, T]; `last_index` [num_rows].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    last_index: torch.Tensor
    width: int
    is_tree: bool
    stream: StreamIndex
    segments: Segments | None = None

    @classmethod
    def from_batch(cls, batch: PackedBatch, device: torch.device | str, segments: Segments | None = None) -> PackedInput:
        move = functools.partial(to_device, device=device)
        return cls(
            input_ids=move(batch.input_ids)[None],
            position_ids=move(batch.position_ids)[None],
            last_index=move(batch.last_index),
            width=batch.width,
            is_tree=batch.is_tree,
            stream=_stream_index(batch, move),
            segments=segments,
        )

    @property
    def num_rows(self) -> int:
        return len(self.last_index)

    def tensors(self) -> list[torch.Tensor]:
        """Everything on the device, in a fixed order; two inputs of one shape differ in nothing else."""
        own = [self.input_ids, self.position_ids, self.last_index, *self.stream.tensors()]
        return own + (self.segments.tensors() if self.segments else [])

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> PackedInput:
        """This with other tensors, in the order of `tensors`."""
        left = iter(tensors)
        input_ids, position_ids, last_index = next(left), next(left), next(left)
        of_stream = {name: next(left) for name, tensor in vars(self.stream).items() if tensor is not None}
        segments = self.segments.with_tensors(left) if self.segments else None
        return replace(
            self,
            input_ids=input_ids,
            position_ids=position_ids,
            last_index=last_index,
            stream=replace(self.stream, **of_stream),
            segments=segments,
        )


def _stream_index(batch: PackedBatch, move: Callable[[np.ndarray], torch.Tensor]) -> StreamIndex:
    query_starts = move(_starts(batch.lengths))
    tiles = move(attention_tiles(batch))
    if batch.num_keys == batch.num_tokens:
        return StreamIndex(query_starts, query_starts, tiles)
    places = key_places(batch)
    keys = np.zeros(batch.num_keys, dtype=np.int64)
    keys[: len(places)] = places
    key_starts = move(_starts(batch.shared + batch.lengths))
    if batch.is_tree:
        # Evaluated and never trained on, and the larger part of the work here.
        return StreamIndex(query_starts, key_starts, tiles, move(keys))
    copies = np.zeros(batch.num_keys, dtype=np.int32)
    copies[: len(places)] = np.argsort(places, kind="stable")
    copy_starts = _starts(np.bincount(places, minlength=batch.num_tokens))
    parts, sums = prefix_parts(batch)
    return StreamIndex(query_starts, key_starts, tiles, move(keys), move(copies), move(copy_starts), move(parts), move(sums))


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(lengths)).astype(np.int32)


def attention_tiles(batch: PackedBatch) -> np.ndarray:
    """Rows' own tokens, `TOKENS_PER_TILE` at a time, for attention's kernels: int32 [T // TOKENS_PER_TILE + num_rows, 5].

    Of each tile the stream index of its first token; those of its row's first token and of the end; how many tokens the row
    shares; and where they begin: in the stream, as a prefix lies there in one piece, or in `key_places` of a prefix tree. How
    many tiles there are depends on the batch's shape only, and the last are empty.
    """
    lengths, shared = batch.lengths, batch.shared
    ends = np.cumsum(lengths)
    starts = ends - lengths
    beginnings = starts + np.cumsum(shared) - shared if batch.is_tree else starts[_prefix_rows(shared)]
    per_row = -(-lengths // TOKENS_PER_TILE)
    rows = np.repeat(np.arange(len(lengths)), per_row)
    firsts = starts[rows] + TOKENS_PER_TILE * numbered(per_row)
    tiles = np.zeros((lengths.sum() // TOKENS_PER_TILE + len(lengths), 5), dtype=np.int32)
    tiles[: len(rows)] = np.stack((firsts, starts[rows], ends[rows], shared[rows], beginnings[rows]), axis=1)
    return tiles


def prefix_parts(batch: PackedBatch) -> tuple[np.ndarray, np.ndarray]:
    """The parts, one of some rows that share a prefix, in which shared tokens' gradients are computed, and their sums.

    Returns the parts, int32 [T // TOKENS_PER_PART + num_rows // 2, 5]: the stream index of the prefix's first token and of its
    end, of the first token of the part's rows and of their end, and how many tokens the parts before it have in all, those of
    their prefixes. And the sums, `TOKENS_PER_SUM` tokens of a prefix at a time, int32 [num_shared // TOKENS_PER_SUM +
    num_rows // 2, 5]: the stream index of the first token, the end of the prefix, its number of tokens and of parts, and how
    many tokens come before the first one in parts. `num_shared` is the batch's room for shared tokens, `num_keys` less T. How
    many parts and sums there are depends on the batch's shape only, and the last are empty. Not of a prefix tree.
    """
    lengths, shared, num_shared = batch.lengths, batch.shared, batch.num_keys - batch.num_tokens
    ends = np.cumsum(lengths)
    starts = ends - lengths
    prefix_rows = _prefix_rows(shared)
    sharing = np.flatnonzero(shared)
    prefixes = prefix_rows[sharing]
    # A row belongs to the part in which it begins, so that no row is in two and parts have no more tokens than rows share.
    windows = (starts[sharing] - ends[prefixes]) // TOKENS_PER_PART
    begins = (np.diff(prefixes, prepend=-1) != 0) | (np.diff(windows, prepend=-1) != 0)
    of_parts = prefixes[begins]
    before = np.cumsum(lengths[of_parts]) - lengths[of_parts]
    part_ends = ends[sharing[np.append(begins[1:], True)[: len(sharing)]]]
    parts = np.zeros((lengths.sum() // TOKENS_PER_PART + len(lengths) // 2, 5), dtype=np.int32)
    columns = (starts[of_parts], ends[of_parts], starts[sharing[begins]], part_ends, before)
    parts[: len(of_parts)] = np.stack(columns, axis=1)

    shared_prefixes, first_parts, num_parts = np.unique(of_parts, return_index=True, return_counts=True)
    per_prefix = -(-lengths[shared_prefixes] // TOKENS_PER_SUM)
    which = np.repeat(np.arange(len(shared_prefixes)), per_prefix)
    offsets = TOKENS_PER_SUM * numbered(per_prefix)
    rows = shared_prefixes[which]
    sums = np.zeros((num_shared // TOKENS_PER_SUM + len(lengths) // 2, 5), dtype=np.int32)
    columns = (starts[rows] + offsets, ends[rows], lengths[rows], num_parts[which], before[first_parts[which]] + offsets)
    sums[: len(which)] = np.stack(columns, axis=1)
    return parts, sums


def _prefix_rows(shared: np.ndarray) -> np.ndarray:
    """The number of the last row, up to each row, that shares nothing: of a row that does, its prefix's."""
    return np.maximum.accumulate(np.where(shared == 0, np.arange(len(shared)), 0))
