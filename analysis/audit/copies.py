"""Pairs that repeat another: exactly, but for case and punctuation, or nearly; within a file and from one file in another.

How alike two pairs are is the Jaccard index of their premises' word pairs times that of their hypotheses' (a word pair is
a word with the one before it, or the start; :func:`analysis.audit.words.word_pairs`). A *near* copy is alike to about 0.6 or
more: one word of twelve exchanged in one of the two sentences, or one of twenty in both; a premise that several hypotheses
share makes none.

MinHash signatures of 30 components of 16 bits, in 10 bands of 3 (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, section 3.4): pairs that agree in a band are compared in all components, and are near if 18 agree.
By calculation 99.7 % of pairs alike to 0.8 are recognised, 91 % at 0.7, 57 % at 0.6, 18 % at 0.5 and 0.05 % at 0.3; a test
measures the recall on altered sentences. Only neighbours in a band are compared, so that of a thousand pairs that are all alike
each meets another after a few comparisons.

Exact and word-for-word copies go by 64-bit hashes: in 1.8 million rows one false copy in ten million files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.audit.scan import NUM_COMPONENTS, Scan

BAND = 3
MIN_AGREEING = 18
"""Components, of NUM_COMPONENTS, in which near copies agree."""
NEIGHBOURS = 3
"""Rows of the same band that a row is compared with."""
NO_ROW = -1


@dataclass(frozen=True)
class Copies:
    """For each row of a file the row that it repeats, an index, or NO_ROW; in one kind at most, the closest.

    int64 of shape (num_rows,). Within one file a copy is the later of the two.
    """

    exact: np.ndarray
    same_words: np.ndarray
    """Equal but for case, punctuation and spacing."""
    near: np.ndarray

    @property
    def any(self) -> np.ndarray:
        """The row that each row repeats in any way, or NO_ROW."""
        return np.maximum(np.maximum(self.exact, self.same_words), self.near)


def duplicates(scan: Scan) -> Copies:
    """The rows of a file that repeat an earlier one of it."""
    rows = np.arange(scan.num_rows)
    exact, same_words = _first_of(scan.exact), _first_of(scan.words)
    exact = np.where(exact < rows, exact, NO_ROW)
    same_words = np.where((same_words < rows) & (exact == NO_ROW), same_words, NO_ROW)
    distinct = np.flatnonzero((exact == NO_ROW) & (same_words == NO_ROW))
    return Copies(exact, same_words, _near(scan.signature, distinct))


def copies_of(scan: Scan, source: Scan) -> Copies:
    """The rows of a file that repeat a row of another, such as a generator's training data."""
    exact = _found_in(scan.exact, source.exact)
    same_words = np.where(exact == NO_ROW, _found_in(scan.words, source.words), NO_ROW)
    rows = np.flatnonzero((exact == NO_ROW) & (same_words == NO_ROW))
    return Copies(exact, same_words, _near(scan.signature, rows, source.signature))


def _first_of(hashes: np.ndarray) -> np.ndarray:
    """For each row the first row with the same hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first[inverse]


def _found_in(hashes: np.ndarray, source: np.ndarray) -> np.ndarray:
    """For each hash the first row of `source` that has it, or NO_ROW."""
    unique, first = np.unique(source, return_index=True)
    position = np.minimum(np.searchsorted(unique, hashes), len(unique) - 1)
    return np.where(unique[position] == hashes, first[position], NO_ROW)


def _near(signature: np.ndarray, rows: np.ndarray, source: np.ndarray | None = None) -> np.ndarray:
    """For each row a near one: of `source`, or without it an earlier one of `rows`. Rows not in `rows` have NO_ROW."""
    near = np.full(len(signature), NO_ROW, np.int64)
    for band in range(0, NUM_COMPONENTS, BAND):
        rows = rows[near[rows] == NO_ROW] if source is not None else rows
        keys = _band_keys(signature, band)[rows]
        if source is None:
            order = np.argsort(keys)
            keys, ordered = keys[order], rows[order]
            for step in range(1, NEIGHBOURS + 1):
                same = np.flatnonzero(keys[step:] == keys[:-step])
                a, b = ordered[same], ordered[same + step]
                later, earlier = np.maximum(a, b), np.minimum(a, b)
                new = near[later] == NO_ROW
                _keep_near(near, later[new], earlier[new], signature, signature)
            continue
        source_keys = _band_keys(source, band)
        order = np.argsort(source_keys)
        source_keys = source_keys[order]
        position = np.searchsorted(source_keys, keys)
        for step in range(NEIGHBOURS):
            at = np.minimum(position + step, len(source_keys) - 1)
            same = (source_keys[at] == keys) & (near[rows] == NO_ROW)
            _keep_near(near, rows[same], order[at[same]], signature, source)
    return near


def _band_keys(signature: np.ndarray, band: int) -> np.ndarray:
    parts = signature[:, band : band + BAND].astype(np.uint64)
    return (parts[:, 0] << np.uint64(32)) | (parts[:, 1] << np.uint64(16)) | parts[:, 2]


def _keep_near(near: np.ndarray, rows: np.ndarray, others: np.ndarray, signature: np.ndarray, source: np.ndarray) -> None:
    for start in range(0, len(rows), 1 << 18):
        a, b = rows[start : start + (1 << 18)], others[start : start + (1 << 18)]
        agree = (signature[a] == source[b]).sum(axis=1) >= MIN_AGREEING
        near[a[agree]] = b[agree]
