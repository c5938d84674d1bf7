"""Pairs that repeat another: exactly, but for case and punctuation, or nearly; within a file and from one file in another.

How alike two pairs are is the Jaccard index of their premises' word pairs times that of their hypotheses' (a word pair is
a word with the one before it, or the start; :func:`analysis.corpus.words.word_pairs`). A *near* copy is alike to about 0.6 or
more: one word of twelve exchanged in one of the two sentences, or one of twenty in both; a premise that several hypotheses
share makes none.

MinHash signatures of 30 components of 16 bits, in 10 bands of 3 (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, section 3.4): pairs that agree in a band are compared in all components, and are near if 18 agree.
By calculation 99.7% of pairs alike to 0.8 are recognised, 91% at 0.7, 57% at 0.6, 18% at 0.5 and 0.05% at 0.3; a test
measures the recall on altered sentences. Only neighbours in a band are compared, so that of a thousand pairs that are all alike
each meets another after a few comparisons.

Exact and word-for-word copies go by 64-bit hashes: in 1.8 million rows one false copy in ten million files.

Rows with the same hash or band meet in one part of all rows (:func:`analysis.corpus.spill.by_key`), so that memory is bounded;
the parts are independent, and the result is the same for any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.corpus.columns import ColumnNames
from analysis.corpus.input import TextFile, open_texts
from analysis.corpus.scan import NUM_COMPONENTS, Report, Scan, scan_texts, silent
from analysis.corpus.spill import CHUNK_ROWS, Keyed, by_key, chunks, forget, part_of, parts_of, taken
from pipelines.splitmix import GOLDEN, mixed

BAND = 3
NUM_BANDS = NUM_COMPONENTS // BAND
MIN_AGREEING = 18
"""Components, of NUM_COMPONENTS, in which near copies agree."""
NEIGHBOURS = 3
"""Rows of the same band that a row is compared with."""
NO_ROW = -1
EXACT, SAME_WORDS, NEAR = range(3)
THREADS = 2
SMALL_ROWS = 100_000
"""Fewer rows take longer with threads than without."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Rows, ascending and each once, and for each the row that it repeats: int64 [num_pairs] each."""


@dataclass(frozen=True)
class Copies:
    """The rows of a file that repeat a row, in one kind at most, the closest. Within one file a copy is the later of the two.

    `rows` are indices that ascend, `originals` the rows that they repeat, int64 of shape (num_copies,), and `kinds` EXACT,
    SAME_WORDS or NEAR. The properties have an entry for each row of the file; they are made when they are asked for.
    """

    num_rows: int
    rows: np.ndarray
    originals: np.ndarray
    kinds: np.ndarray
    other_label_rows: np.ndarray | None
    near_other_label_rows: np.ndarray | None

    def _of_kind(self, *kinds: int) -> np.ndarray:
        found = np.full(self.num_rows, NO_ROW, np.int64)
        wanted = np.isin(self.kinds, kinds)
        found[self.rows[wanted]] = self.originals[wanted]
        return found

    @property
    def exact(self) -> np.ndarray:
        """For each row the row that it repeats exactly, or NO_ROW: int64 [num_rows]."""
        return self._of_kind(EXACT)

    @property
    def same_words(self) -> np.ndarray:
        """The same where they are equal but for case, punctuation and spacing."""
        return self._of_kind(SAME_WORDS)

    @property
    def near(self) -> np.ndarray:
        """The same of near copies."""
        return self._of_kind(NEAR)

    @property
    def any(self) -> np.ndarray:
        """The row that each row repeats in any way, or NO_ROW."""
        return self._of_kind(EXACT, SAME_WORDS, NEAR)

    @property
    def other_label(self) -> np.ndarray | None:
        """The rows with the words of others, of which none has its label: bool [num_rows]; None where labels mean nothing."""
        return self._marked(self.other_label_rows)

    @property
    def near_other_label(self) -> np.ndarray | None:
        """The rows that are near to one with another label: the same."""
        return self._marked(self.near_other_label_rows)

    def _marked(self, rows: np.ndarray | None) -> np.ndarray | None:
        if rows is None:
            return None
        marks = np.zeros(self.num_rows, bool)
        marks[rows] = True
        return marks


def duplicates(scan: Scan, report: Report = silent) -> Copies:
    """The rows of a file that repeat an earlier one of it."""
    parts = by_key(scan.num_rows, _column(scan.words))
    found = [same_words_in_part(keys, rows, scan.exact[rows], scan.label[rows]) for keys, rows in _repeated(parts)]
    copies = joined_copies(scan.num_rows, found, (scan.label, scan.label))
    forget(scan.words, scan.exact)
    is_copy = np.zeros(scan.num_rows, bool)
    is_copy[copies.rows] = True
    near = _near(scan, ~is_copy, None, partial(report, f"looking for copies within {Path(scan.path).name}"))
    return with_near(copies, near, (scan.label, scan.label))


def copies_of(scan: Scan, source: Scan, labels: tuple[np.ndarray, np.ndarray] | None, report: Report = silent) -> Copies:
    """The rows of a file that repeat a row of another, such as a generator's training data.

    `labels` are both files' labels in common terms, integers of shape (num_rows,) and (num_source_rows,); None where they
    cannot be compared.
    """
    own, others = labels or (None, None)
    found = []
    for (keys, rows), (source_keys, source_rows) in _both(scan, source, _column(scan.words), _column(source.words)):
        found.append(
            words_from_part(
                (keys, rows, scan.exact[rows], None if own is None else own[rows]),
                (source_keys, source_rows, source.exact[source_rows], None if others is None else others[source_rows]),
            )
        )
    copies = joined_copies(scan.num_rows, found, labels)
    is_copy = np.zeros(scan.num_rows, bool)
    is_copy[copies.rows] = True
    forget(scan.words, scan.exact, source.words, source.exact)
    near = _near(scan, ~is_copy, source, partial(report, f"looking for copies of {Path(source.path).name}"))
    return with_near(copies, near, labels)


def with_near(copies: Copies, near: Pairs, labels: tuple[np.ndarray, np.ndarray] | None) -> Copies:
    """The same copies, and near ones among the other rows."""
    rows = np.concatenate([copies.rows, near[0]])
    order = np.argsort(rows, kind="stable")
    return Copies(
        copies.num_rows,
        rows[order],
        np.concatenate([copies.originals, near[1]])[order],
        np.concatenate([copies.kinds, np.full(len(near[0]), NEAR, np.uint8)])[order],
        copies.other_label_rows,
        None if labels is None else near[0][labels[0][near[0]] != labels[1][near[1]]],
    )


Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Rows, originals and kinds of copies, and the rows that have the words of others but none's label."""


def joined_copies(num_rows: int, found: Iterable[Found], labels: tuple[np.ndarray, np.ndarray] | None) -> Copies:
    """The copies that were found in the parts of a file's rows."""
    rows, originals, kinds, other_label = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows)
    marks = (None, None) if labels is None else (np.sort(other_label), np.zeros(0, np.int64))
    return Copies(num_rows, rows[order], originals[order], kinds[order], *marks)


def _column(hashes: np.ndarray) -> Callable[[slice], Keyed]:
    return lambda where: (hashes[where], np.arange(where.start, where.stop))


def _repeated(parts: Iterable[Keyed]) -> Iterator[Keyed]:
    return (repeated(*part) for part in parts)


def repeated(keys: np.ndarray, rows: np.ndarray) -> Keyed:
    """The rows whose key others have, too, by key and then by row."""
    ordered = np.sort(keys)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    again = _is_in(keys, several)
    keys, rows = keys[again], rows[again]
    order = np.lexsort((rows, keys))
    return keys[order], rows[order]


def _is_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    if not len(others) or not len(keys):
        return np.zeros(len(keys), bool)
    return np.asarray(pc.is_in(pa.array(keys), pa.array(others)).to_numpy(zero_copy_only=False))


def _first_of(hashes: np.ndarray) -> np.ndarray:
    """For each entry the first one with the same hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])


def same_words_in_part(keys: np.ndarray, rows: np.ndarray, exact: np.ndarray, label: np.ndarray) -> Found:
    """The copies among rows whose words others have, too (:func:`repeated`), with a hash of their texts and their labels."""
    at = np.arange(len(rows))
    first_words, first_exact, first_label = _first_of(keys), _first_of(exact), _first_of(_with_label(keys, label))
    is_copy = first_words < at
    # Rows that are equal have the same words, so that an exact copy is a copy.
    original = np.where(first_exact < at, first_exact, first_words)
    kinds = np.where(first_exact < at, EXACT, SAME_WORDS).astype(np.uint8)
    other_label = is_copy & (first_label == at)
    return rows[is_copy], rows[original[is_copy]], kinds[is_copy], rows[other_label]


Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Hashes of the words, rows, hashes of the texts, and labels in common terms: each [num_rows]."""


def words_from_part(part: Part, source: Part) -> Found:
    """The rows of a part that repeat rows of the source's same part."""
    keys, rows, exact, label = part
    first_exact, first_words = _found_in(exact, source[2]), _found_in(keys, source[0])
    is_copy = first_words != NO_ROW
    original = np.where(first_exact != NO_ROW, first_exact, first_words)
    kinds = np.where(first_exact != NO_ROW, EXACT, SAME_WORDS).astype(np.uint8)
    other_label = np.zeros(len(rows), bool)
    if label is not None and source[3] is not None:
        other_label = is_copy & ~_is_in(_with_label(keys, label), _with_label(source[0], source[3]))
    return rows[is_copy], source[1][original[is_copy]], kinds[is_copy], rows[other_label]


def _with_label(words: np.ndarray, label: np.ndarray) -> np.ndarray:
    return mixed(words * GOLDEN + label.astype(np.uint64))


def _found_in(hashes: np.ndarray, source: np.ndarray) -> np.ndarray:
    """For each hash the first entry of `source` that has it, or NO_ROW."""
    found = np.full(len(hashes), NO_ROW, np.int64)
    hits = np.flatnonzero(_is_in(hashes, source))
    if len(hits):
        unique, first = np.unique(source, return_index=True)
        found[hits] = first[np.searchsorted(unique, hashes[hits])]
    return found


def _both(
    scan: Scan, source: Scan, own: Callable[[slice], Keyed], others: Callable[[slice], Keyed]
) -> Iterator[tuple[Keyed, Keyed]]:
    """The parts of a file's rows, each with the part of the source's rows that has the same keys."""
    if parts_of(source.num_rows) == 1:
        # One part of the source fits all rows, so that these need not be sorted into any.
        all_others = next(by_key(source.num_rows, others))
        for where in chunks(scan.num_rows, 4 * CHUNK_ROWS):
            yield own(where), all_others
        return
    num_parts = parts_of(max(scan.num_rows, source.num_rows))
    yield from zip(by_key(scan.num_rows, own, num_parts), by_key(source.num_rows, others, num_parts), strict=True)


def is_among(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each hash is one of `others`: bool [num_hashes]. Reads arrays that lie in files part by part."""
    found = np.zeros(len(hashes), bool)
    num_parts = parts_of(len(others))
    for part in range(num_parts):
        # Each part of the others in one pass over all.
        chosen = np.concatenate([_of_part(others[where], part, num_parts) for where in chunks(len(others))])
        for where in chunks(len(hashes), 4 * CHUNK_ROWS):
            found[where] |= _is_in(hashes[where], chosen)
            forget(hashes)
    forget(hashes, others)
    return found


def _of_part(hashes: np.ndarray, part: int, num_parts: int) -> np.ndarray:
    return hashes if num_parts == 1 else hashes[part_of(hashes, num_parts) == part]


# Near copies.


def _near(scan: Scan, chosen: np.ndarray, source: Scan | None, report: Callable[[int, int], None]) -> Pairs:
    """For each of the chosen rows the first near row: of `source`, or without it an earlier one of those chosen.

    In each band a row is compared with the NEIGHBOURS rows before it that agree with it there, or the first ones of `source`.
    """
    pairs = first_of_each(())
    with ThreadPoolExecutor(THREADS if scan.num_rows >= SMALL_ROWS else 1) as pool:
        for band, found in enumerate(pool.map(partial(_near_in_band, scan, chosen, source), range(NUM_BANDS))):
            pairs = first_of_each((pairs, found))
            report(band + 1, NUM_BANDS)
    return pairs


def _near_in_band(scan: Scan, chosen: np.ndarray, source: Scan | None, band: int) -> Pairs:
    def keyed(where: slice) -> Keyed:
        rows = np.flatnonzero(chosen[where]) + where.start
        keys = band_keys(scan.signature[where], band)[rows - where.start]
        # Signatures are half of a scan, and each band reads all of them.
        forget(scan.signature)
        return keys, rows

    def keyed_source(where: slice) -> Keyed:
        keys = band_keys(source.signature[where], band)  # type: ignore[union-attr]
        forget(source.signature)  # type: ignore[union-attr]
        return keys, np.arange(where.start, where.stop)

    found = []
    if source is None:
        for keys, rows in _repeated(by_key(scan.num_rows, keyed)):
            found.append(agreeing(neighbours(keys, rows), scan.signature, scan.signature))
    else:
        for (keys, rows), (source_keys, source_rows) in _both(scan, source, keyed, keyed_source):
            pairs = neighbours_of(keys, rows, source_keys, source_rows)
            found.append(agreeing(pairs, scan.signature, source.signature))
        forget(source.signature)
    forget(scan.signature)
    return first_of_each(found)


def neighbours(keys: np.ndarray, rows: np.ndarray) -> Iterator[Pairs]:
    """Each row with those before it that have its key. The arguments are in order (:func:`repeated`)."""
    for step in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        yield rows[same + step], rows[same]


def neighbours_of(keys: np.ndarray, rows: np.ndarray, source_keys: np.ndarray, source_rows: np.ndarray) -> Iterator[Pairs]:
    """Each row with the first rows of the source that have its key."""
    hits = np.flatnonzero(_is_in(keys, source_keys))
    if not len(hits):
        return
    order = np.argsort(source_keys, kind="stable")
    source_keys, source_rows, keys, rows = source_keys[order], source_rows[order], keys[hits], rows[hits]
    position = np.searchsorted(source_keys, keys)
    for step in range(NEIGHBOURS):
        at = np.minimum(position + step, len(source_keys) - 1)
        same = (source_keys[at] == keys) & (position + step < len(source_keys))
        yield rows[same], source_rows[at[same]]


def agreeing(candidates: Iterable[Pairs], signature: np.ndarray, source: np.ndarray) -> Pairs:
    """For each row the first of the rows that it is compared with and agrees with."""
    found = []
    for rows, others in candidates:
        for where in chunks(len(rows)):
            agree = (taken(signature, rows[where]) == taken(source, others[where])).sum(axis=1) >= MIN_AGREEING
            found.append((rows[where][agree], others[where][agree]))
    return first_of_each(found)


def first_of_each(found: Iterable[Pairs]) -> Pairs:
    """Of several rows that each row is found to repeat, the first."""
    rows, others = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for more in found:
        if not len(more[0]):
            continue
        rows, others = np.concatenate([rows, more[0]]), np.concatenate([others, more[1]])
        order = np.lexsort((others, rows))
        rows, others = rows[order], others[order]
        is_first = np.concatenate([[True], rows[1:] != rows[:-1]])
        rows, others = rows[is_first], others[is_first]
    return rows, others


def band_keys(signature: np.ndarray, band: int) -> np.ndarray:
    """The components of a band as one number, uint64 [num_rows]; `signature` has shape (num_rows, NUM_COMPONENTS)."""
    parts = signature[:, BAND * band : BAND * (band + 1)].astype(np.uint64)
    return (parts[:, 0] << np.uint64(32)) | (parts[:, 1] << np.uint64(16)) | parts[:, 2]


def similarity(scan: Scan, rows: np.ndarray, source: Scan, others: np.ndarray) -> np.ndarray:
    """How alike rows are, between 0 and 1, from their signatures: float [num_rows], with an error of up to 0.09 (one sigma)."""
    return np.asarray((taken(scan.signature, rows) == taken(source.signature, others)).mean(axis=1))


class OneMachine:
    """The steps of an audit that read texts or compare rows, on this machine. On a cluster: `sweep.scan.on_ray.OnRay`."""

    open = staticmethod(open_texts)
    scan = staticmethod(scan_texts)
    duplicates = staticmethod(duplicates)
    copies_of = staticmethod(copies_of)


class Engine(Protocol):
    """What has the steps that :class:`OneMachine` has, with the same results."""

    def open(self, source: Any, names: ColumnNames | None = None, fields: tuple[str, ...] = ()) -> TextFile: ...

    def scan(self, source: TextFile, *, seed: int, processes: int, references: tuple[str, ...], report: Report) -> Scan: ...

    def duplicates(self, scan: Scan, report: Report = silent) -> Copies: ...

    def copies_of(
        self, scan: Scan, source: Scan, labels: tuple[np.ndarray, np.ndarray] | None, report: Report = silent
    ) -> Copies: ...
