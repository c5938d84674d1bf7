"""The adapter and the dropout key of each token of a packed stream."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from pipelines.packing.batches import PackedBatch
from pipelines.packing.dropout import token_keys

TOKENS_PER_TILE = 64
"""Tokens, of one adapter, that one program of a kernel handles. Were they twice as many, what one of many adapters has in a
pass would often leave a second tile of a few, which reads all of the adapter again."""


def to_device(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """`array` on `device`, where it may arrive later: what a GPU computes with it waits, and the caller does not."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor


@dataclass(frozen=True)
class Segments:
    """The adapter and the dropout key of each of a stream's T tokens, all on one device.

    Shapes: `starts` int32 [N + 1], adapter n's tokens being starts[n] up to starts[n + 1]; `keys` int32 [T]; `tiles` int32
    [(T + (N + 1) * 63) // 64, 3], rows of (adapter, first token, end) that cover all T tokens once, adapter -1 for those
    after starts[N] and for rows to spare. Shapes depend on T and N only, so a captured graph can be replayed with new contents.

    `last` has those of the tokens at `PackedBatch.last_index`, as a stream of their own.
    """

    starts: torch.Tensor
    keys: torch.Tensor
    tiles: torch.Tensor
    last: Segments | None = None

    @classmethod
    def from_arrays(cls, starts: ArrayLike, keys: np.ndarray, device: torch.device | str) -> Segments:
        """From `starts` [N + 1], ascending from 0 to at most T, and `keys` int32 [T] (zeros if nothing is dropped)."""
        bounds = np.asarray(starts, dtype=np.int64)
        if bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] > len(keys):
            raise ValueError(f"starts={bounds.tolist()} must ascend from 0 to at most the stream's {len(keys)} tokens")
        bounds = np.append(bounds, len(keys))
        owners = [*range(len(bounds) - 2), -1]
        rows = [
            (owner, first, min(first + TOKENS_PER_TILE, end))
            for owner, (begin, end) in zip(owners, itertools.pairwise(bounds.tolist()), strict=True)
            for first in range(begin, end, TOKENS_PER_TILE)
        ]
        tiles = np.full(((len(keys) + len(owners) * (TOKENS_PER_TILE - 1)) // TOKENS_PER_TILE, 3), (-1, 0, 0), dtype=np.int32)
        tiles[: len(rows)] = np.array(rows, dtype=np.int32).reshape(-1, 3)
        move = functools.partial(to_device, device=device)
        return cls(move(bounds[:-1].astype(np.int32)), move(np.ascontiguousarray(keys, dtype=np.int32)), move(tiles))

    @classmethod
    def from_batch(
        cls,
        batch: PackedBatch,
        device: torch.device | str,
        *,
        counts: Sequence[int],
        seeds: Sequence[int],
        steps: Sequence[int],
        places: Sequence[int],
    ) -> Segments:
        """Segments of a packed batch whose sequences are, in order, `counts[0]` of adapter 0, `counts[1]` of 1 and so on.

        `seeds` and `steps` are one an adapter, `places` one a sequence: its place in its adapter's whole optimizer batch. A
        prefix is the adapter's whose sequences share it.
        Raises ValueError if the counts do not add up, or if sequences of several adapters share a prefix: its states differ.
        """
        if sum(counts) != batch.num_sequences or len(places) != batch.num_sequences:
            raise ValueError(f"counts={list(counts)} and {len(places)} places for a batch of {batch.num_sequences} sequences")
        contents = batch.contents
        lengths, shared = batch.lengths[: len(contents)], batch.shared[: len(contents)]
        # A prefix lies before the first sequence that shares it.
        sequences = np.where(contents < 0, np.roll(contents, -1), contents)
        adapters = np.repeat(np.arange(len(counts)), counts)[sequences]
        if (shared[1:].astype(bool) & (adapters[1:] != adapters[:-1])).any():
            raise ValueError("a prefix that two adapters share is computed by neither: give each one's sequences their own")
        starts = np.searchsorted(np.repeat(adapters, lengths), np.arange(len(counts) + 1))
        keys = np.zeros(batch.num_tokens, dtype=np.int32)
        row_places = np.where(contents < 0, contents, np.take(places, sequences))
        of_rows = (np.take(seeds, adapters), np.take(steps, adapters), row_places)
        seed, step, place = (np.repeat(values, lengths) for values in of_rows)
        keys[: starts[-1]] = token_keys(seed, step, place, batch.position_ids[: starts[-1]])
        last = cls.from_arrays(np.append(0, np.cumsum(counts)), keys[batch.last_index], device)
        return replace(cls.from_arrays(starts, keys, device), last=last)

    @classmethod
    def of_one(cls, batch: PackedBatch, device: torch.device | str) -> Segments:
        """One adapter for all of a packed batch, which drops nothing, so that no token needs a key."""
        last = cls.from_arrays([0, batch.num_sequences], np.zeros(batch.num_rows, dtype=np.int32), device)
        whole = cls.from_arrays([0, batch.num_tokens], np.zeros(batch.num_tokens, dtype=np.int32), device)
        return replace(whole, last=last)

    def tensors(self) -> list[torch.Tensor]:
        """Everything on the device, in a fixed order; two of one shape differ in nothing else."""
        return [self.starts, self.keys, self.tiles, *(self.last.tensors() if self.last else [])]

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> Segments:
        """This with other tensors, in the order of `tensors`."""
        own = Segments(next(tensors), next(tensors), next(tensors))
        return replace(own, last=self.last.with_tensors(tensors)) if self.last else own
