"""Rows that share a premise, or any other hash: how many of each cluster are of which kind, for variances by cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.corpus.columns import PAIR
from analysis.corpus.spill import Keyed, by_key, forget
from analysis.corpus.words import Hashed, in_order

NUM_CELLS = 4
NO_CELL = 4
"""Of rows that are not counted."""
MAX_CATEGORIES = 100
CATEGORY_ROWS = 20
CATEGORY_WORDS = 5
_BITS = 16
_ONE_OF = np.array([1 << (_BITS * cell) for cell in range(NUM_CELLS)] + [0], np.uint64)
"""What a row adds to the four counts of its cluster, which lie side by side in 64 bits."""


@dataclass(frozen=True)
class Clusters:
    """Parts of rows, int32 or int64, in the order of their clusters, and where in them each cluster begins."""

    num_rows: int
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]

    def cells(self, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The counts of cells that clusters have, int64 [num_kinds, NUM_CELLS], and how many clusters have these: [num_kinds].

        `cell` has 0 to NUM_CELLS - 1, or NO_CELL, for each row: an integer array of shape (num_rows,).
        """
        packed, times, large = [], [], []
        for rows, starts in self.parts:
            values = _ONE_OF[cell[rows]]
            sizes = np.diff(starts, append=len(rows))
            for at in np.flatnonzero(sizes >= 1 << _BITS):
                of_cluster = rows[starts[at] : starts[at] + sizes[at]]
                large.append(np.bincount(cell[of_cluster], minlength=NUM_CELLS)[:NUM_CELLS])
                values[starts[at] : starts[at] + sizes[at]] = 0
            kinds, counts = np.unique(np.add.reduceat(values, starts), return_counts=True)
            packed.append(kinds)
            times.append(counts)
        kinds, inverse = np.unique(np.concatenate(packed), return_inverse=True)
        summed = np.bincount(inverse, np.concatenate(times)).astype(np.int64)
        masks = (kinds[:, None] >> np.arange(0, _BITS * NUM_CELLS, _BITS, dtype=np.uint64)) & np.uint64((1 << _BITS) - 1)
        unpacked = np.concatenate(
            [masks.astype(np.int64), np.array(sorted(map(tuple, large)), np.int64).reshape(-1, NUM_CELLS)]
        )
        return unpacked, np.concatenate([summed, np.ones(len(large), np.int64)])


def clusters_of(hashes: np.ndarray) -> Clusters:
    """The rows with the same hash, uint64 of shape (num_rows,) with at least one row, as clusters."""
    kind = np.int32 if len(hashes) < 1 << 31 else np.int64
    parts = []

    def keyed(where: slice) -> Keyed:
        keys = hashes[where].copy()
        forget(hashes)
        return keys, np.arange(where.start, where.stop)

    for keys, rows in by_key(len(hashes), keyed):
        order = np.argsort(keys)
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        if len(keys):
            parts.append((rows[order].astype(kind), starts.astype(kind)))
    return Clusters(len(hashes), tuple(parts))


def categories(fields: Sequence[str], words: Iterable[Hashed]) -> list[bool]:
    """Which fields' texts, by their words' hashes, are few, common and short, as products or topics are: [num_fields].

    There are at most MAX_CATEGORIES, each in CATEGORY_ROWS rows on average, and a row's has at most CATEGORY_WORDS words on
    average. Rows that share one are no copies of each other, and a model meets it again; rows that share a passage are of one
    writing. A single text is none, nor is a side of a pair, whose label is about both.
    """
    if len(fields) == 1 or set(fields) == set(PAIR):
        return [False] * len(fields)
    return [_is_category(*of_field) for of_field in words]


def _is_category(words: np.ndarray, offsets: np.ndarray) -> bool:
    num_rows = len(offsets) - 1
    is_short = len(words) <= CATEGORY_WORDS * num_rows
    return is_short and len(np.unique(in_order(words, offsets))) <= min(MAX_CATEGORIES, num_rows / CATEGORY_ROWS)
