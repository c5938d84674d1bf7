"""Pairs that repeat another: exactly, but for case and punctuation, or nearly; within a file and from one file in another.

How alike two pairs are is the Jaccard index of their premises' word pairs times that of their hypotheses' (a word pair is
a word with the one before it, or the start; :func:`analysis.corpus.words.word_pairs`). A *near* copy is alike to about 0.6 or
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

from analysis.corpus.scan import NUM_COMPONENTS, Scan
from analysis.corpus.words import GOLDEN, mixed

BAND = 3
MIN_AGREEING = 18
"""Components, of NUM_COMPONENTS, in which near copies agree."""
NEIGHBOURS = 3
"""Rows of the same band that a row is compared with."""
NO_ROW = -1


@dataclass(frozen=True)
class Copies:
    """For each row of a file the row that it repeats, an index, or NO_ROW; in one kind at most, the closest.

    int64 of shape (num_rows,). Within one file a copy is the later of the two. `other_label`, bool of that shape, marks the
    rows with the words of others, of which none has its label; `near_other_label` those that are near to one with another
    label. Both are None where the labels cannot be compared.
    """

    exact: np.ndarray
    same_words: np.ndarray
    """Equal but for case, punctuation and spacing."""
    near: np.ndarray
    other_label: np.ndarray | None
    near_other_label: np.ndarray | None

    @property
    def any(self) -> np.ndarray:
        """The row that each row repeats in any way, or NO_ROW."""
        return np.maximum(np.maximum(self.exact, self.same_words), self.near)


def duplicates(scan: Scan) -> Copies:
    """The rows of a file that repeat an earlier one of it."""
    rows = np.arange(scan.num_rows)
    exact, same_words = _first_of(scan.exact), _first_of(scan.words)
    is_copy = same_words < rows
    exact = np.where(exact < rows, exact, NO_ROW)
    same_words = np.where(is_copy & (exact == NO_ROW), same_words, NO_ROW)
    near = _near(scan.signature, np.flatnonzero(~is_copy))
    has_same_label = _first_of(_with_label(scan.words, scan.label)) < rows
    return Copies(exact, same_words, near, is_copy & ~has_same_label, _differs(near, scan.label, scan.label))


def copies_of(scan: Scan, source: Scan, labels: tuple[np.ndarray, np.ndarray] | None) -> Copies:
    """The rows of a file that repeat a row of another, such as a generator's training data.

    `labels` are both files' labels in common terms, integers of shape (num_rows,) and (num_source_rows,); None where they
    cannot be compared.
    """
    exact, same_words = _found_in(scan.exact, source.exact), _found_in(scan.words, source.words)
    is_copy = (same_words != NO_ROW) | (exact != NO_ROW)
    same_words = np.where(exact == NO_ROW, same_words, NO_ROW)
    near = _near(scan.signature, np.flatnonzero(~is_copy), source.signature)
    if labels is None:
        return Copies(exact, same_words, near, None, None)
    own, others = (_with_label(one.words, label) for one, label in zip((scan, source), labels, strict=True))
    return Copies(exact, same_words, near, is_copy & ~np.isin(own, others), _differs(near, *labels))


def _with_label(words: np.ndarray, label: np.ndarray) -> np.ndarray:
    return mixed(words * GOLDEN + label.astype(np.uint64))


def _differs(rows: np.ndarray, label: np.ndarray, of: np.ndarray) -> np.ndarray:
    return (rows != NO_ROW) & (label != of[rows])


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
    """For each of `rows` the first near row: of `source`, or without it an earlier one of `rows`. All others have NO_ROW.

    In each band a row is compared with the NEIGHBOURS rows before it that agree with it there, or the first ones of `source`.
    """
    near = np.full(len(signature), len(signature) if source is None else len(source), np.int64)
    none = near[0] if len(near) else 0
    for band in range(0, NUM_COMPONENTS, BAND):
        keys = _band_keys(signature, band)[rows]
        if source is None:
            order = np.argsort(keys, kind="stable")
            keys, ordered = keys[order], rows[order]
            for step in range(1, NEIGHBOURS + 1):
                same = np.flatnonzero(keys[step:] == keys[:-step])
                _keep_near(near, ordered[same + step], ordered[same], signature, signature)
            continue
        source_keys = _band_keys(source, band)
        order = np.argsort(source_keys, kind="stable")
        source_keys = source_keys[order]
        position = np.searchsorted(source_keys, keys)
        for step in range(NEIGHBOURS):
            at = np.minimum(position + step, len(source_keys) - 1)
            same = (source_keys[at] == keys) & (position + step < len(source_keys))
            _keep_near(near, rows[same], order[at[same]], signature, source)
    return np.where(near == none, NO_ROW, near)


def _band_keys(signature: np.ndarray, band: int) -> np.ndarray:
    parts = signature[:, band : band + BAND].astype(np.uint64)
    return (parts[:, 0] << np.uint64(32)) | (parts[:, 1] << np.uint64(16)) | parts[:, 2]


def _keep_near(near: np.ndarray, rows: np.ndarray, others: np.ndarray, signature: np.ndarray, source: np.ndarray) -> None:
    """Put into `near`, for each of `rows`, which differ, the other row where they agree and it comes before what is there."""
    for start in range(0, len(rows), 1 << 18):
        a, b = rows[start : start + (1 << 18)], others[start : start + (1 << 18)]
        closer = b < near[a]
        a, b = a[closer], b[closer]
        agree = (signature[a] == source[b]).sum(axis=1) >= MIN_AGREEING
        near[a[agree]] = b[agree]


def similarity(scan: Scan, rows: np.ndarray, source: Scan, others: np.ndarray) -> np.ndarray:
    """How alike rows are, between 0 and 1, from their signatures: float [num_rows], with an error of up to 0.09 (one sigma)."""
    return np.asarray((scan.signature[rows] == source.signature[others]).mean(axis=1))
