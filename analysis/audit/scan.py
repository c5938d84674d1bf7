"""One pass over a file of labelled pairs: numbers for each row, and a random sample of the texts.

    scan = scan_pairs(open_pairs("pool.parquet"), processes=2)

What is kept of a row is about a hundred bytes, whatever its length (:class:`Scan`). All that an audit says of a file is
computed from that (:mod:`analysis.audit.copies`, :mod:`analysis.audit.measures`).
"""

from __future__ import annotations

import functools
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.audit.input import PairBatch, clean_batch, packed, unpacked
from analysis.audit.words import GOLDEN, in_order, mixed, word_hashes, word_pairs
from pipelines.errors import UserError
from pipelines.tables.files import TableFile
from pipelines.tables.readers import RawBatch
from pipelines.tasks.heuristics import HANS_HEURISTICS, find_heuristic, is_parsed_constituent
from pipelines.tasks.heuristics import HEURISTICS as BUILT_IN
from pipelines.tasks.nli import Label

SAMPLE_ROWS = 60_000
SAMPLE_CHARACTERS = 1_000
"""A sampled text is cut after so many characters."""
MAX_LABELS = 20
MAX_PROCESSES = 2
SMALL_FILE_BYTES = 8 << 20
"""Below this, starting processes takes longer than the scan."""

NUM_COMPONENTS = 30
"""Components of a signature, in ten bands of three: see :mod:`analysis.audit.copies`."""


@dataclass(frozen=True)
class AuditedHeuristic:
    """A heuristic as the audit applies it.

    `holds` takes premises, hypotheses and, if `needs_parse`, bracketed parses of the premises, all lists of num_pairs texts,
    and returns booleans of shape (num_pairs,). `within` names a heuristic before it that it implies: it is asked only there.
    """

    name: str
    description: str
    holds: Callable[..., np.ndarray]
    within: str | None = None
    needs_parse: bool = False


def parsed_constituent(premises: Sequence[str], hypotheses: Sequence[str], parses: Sequence[str | None]) -> np.ndarray:
    """:func:`~pipelines.tasks.heuristics.is_parsed_constituent` of each pair: booleans of shape (num_pairs,).

    Raises :class:`UserError` for a parse that is missing or whose brackets do not match.
    """
    return np.array([is_parsed_constituent(parse or "", text) for text, parse in zip(hypotheses, parses, strict=True)], bool)


HEURISTICS = (
    *(
        AuditedHeuristic(name, BUILT_IN[name].description, BUILT_IN[name].holds, implied)
        for name, implied in zip(HANS_HEURISTICS, (None, *HANS_HEURISTICS[:-1]), strict=True)
    ),
    AuditedHeuristic(
        "parsed_constituent",
        "The hypothesis is a complete constituent of the premise's parse.",
        parsed_constituent,
        "subsequence",
        True,
    ),
)
"""HANS's heuristics (McCoy, Pavlick and Linzen 2019, table 1). Without a parse, a constituent is one by its place in the
sentence (docs/heuristics.md: how often that agrees with HANS's own parses)."""


@functools.cache
def audited(references: tuple[str, ...] = ()) -> tuple[AuditedHeuristic, ...]:
    """HEURISTICS, and those of the user's own that `references` name (:func:`pipelines.tasks.heuristics.find_heuristic`).

    Raises :class:`UserError` for a reference to none, to one that is there already, and to one that predicts another label than
    entailment, which is what an audit asks for.
    """
    heuristics = list(HEURISTICS)
    for reference in references:
        own = find_heuristic(reference)
        if own.predicts != Label.ENTAILMENT:
            raise UserError(f"heuristic {reference} predicts {own.predicts}; an audit asks what goes with entailment")
        if own.name in {heuristic.name for heuristic in heuristics}:
            raise UserError(f"heuristic {reference}: {own.name} is audited already; name each once")
        heuristics.append(AuditedHeuristic(own.name, own.description, own))
    return tuple(heuristics)


@dataclass(frozen=True)
class Scan:
    """A file in numbers: arrays of one entry a complete pair, in the file's order."""

    pairs: TableFile
    labels: tuple[str, ...]
    """The labels' names, the most frequent first."""
    left_out: dict[str, int]
    """Rows that are in no array, by reason."""
    row: np.ndarray
    """int64: the row's or line's number in the file."""
    label: np.ndarray
    """int16: an index into `labels`."""
    exact: np.ndarray
    """uint64: a hash of premise and hypothesis, character by character."""
    words: np.ndarray
    """uint64: a hash of the words of both, in order."""
    premise: np.ndarray
    """uint64: a hash of the premise's words, in order."""
    hypothesis: np.ndarray
    """uint64: the same of the hypothesis."""
    signature: np.ndarray
    """uint16 of shape (num_rows, NUM_COMPONENTS): equal in a component with a probability that is the pairs' similarity."""
    holds: np.ndarray
    """bool of shape (num_rows, number of heuristics); a heuristic that needs a parse and has none holds nowhere."""
    lengths: np.ndarray
    """int32 of shape (num_rows, 2): words of premise and hypothesis."""
    sample: pa.Table
    """At most SAMPLE_ROWS rows drawn at random, in random order: priority, row, label, premise, hypothesis."""
    references: tuple[str, ...] = ()
    """The user's own heuristics, asked after the built-in ones (:func:`audited`)."""

    @property
    def num_rows(self) -> int:
        return len(self.row)

    def labelled(self, names: Sequence[str]) -> np.ndarray:
        """The rows that have one of these labels, bool [num_rows]."""
        return np.isin(self.label, [code for code, name in enumerate(self.labels) if name in names])

    @property
    def heuristics(self) -> tuple[str, ...]:
        """The names of the heuristics that could be asked."""
        has_parses = "parse" in self.pairs.columns
        return tuple(each.name for each in audited(self.references) if has_parses or not each.needs_parse)


def scan_pairs(
    pairs: TableFile,
    *,
    seed: int = 0,
    processes: int = MAX_PROCESSES,
    sample_rows: int = SAMPLE_ROWS,
    references: tuple[str, ...] = (),
) -> Scan:
    """Read a file once and measure each pair; the same result for any number of processes.

    `seed` draws the sample. With `processes` above 1, and a file that is worth it, as many processes measure while this one
    reads. Raises :class:`UserError` where the file cannot be read, has no complete pair, or has so many labels that the
    label column must be another.
    """
    left_out: Counter[str] = Counter()
    codes: dict[str, int] = {}
    parts: list[dict[str, Any]] = []
    sample = _Sample(sample_rows)
    for measured in _measure_all(pairs, seed, processes, sample, references):
        left_out.update(measured.pop("left_out"))
        names = measured.pop("label_names")
        for name in names:
            codes.setdefault(name, len(codes))
        if len(codes) > MAX_LABELS:
            shown = ", ".join(repr(name[:30]) for name in list(codes)[:5])
            raise UserError(
                f"{pairs.path}: the label column {pairs.columns['label']!r} has over {MAX_LABELS} different labels "
                f"({shown}, …); name the column of the labels with --label"
            )
        measured["label"] = np.array([codes[name] for name in names], np.int16)[measured["label"]]
        sample.add(measured.pop("sample"))
        parts.append(measured)
    num_rows = sum(len(part["row"]) for part in parts)
    if not num_rows:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items()) or "it has no rows"
        raise UserError(f"{pairs.path} has no complete pair ({why}); each needs a premise, a hypothesis and a label")
    # The parts lose each column: else all would be in memory twice.
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    counts = np.bincount(columns["label"], minlength=len(codes))
    order = np.argsort(-counts, kind="stable")
    names = list(codes)
    columns["label"] = np.argsort(order).astype(np.int16)[columns["label"]]
    return Scan(
        pairs,
        tuple(names[index] for index in order),
        dict(left_out.most_common()),
        sample=sample.drawn(),
        references=references,
        **columns,
    )


class _Sample:
    """The rows with the lowest priorities so far, which are a random sample of all so far."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.limit = 2**64 - 1
        """A row whose priority is not below has no chance."""
        self._parts: list[pa.Table] = []

    def add(self, drawn: pa.Table) -> None:
        self._parts.append(drawn)
        # Not each time: it copies.
        if sum(part.num_rows for part in self._parts) > 2 * self.num_rows:
            self._parts = [self.drawn()]
            self.limit = pc.max(self._parts[0]["priority"]).as_py()

    def drawn(self) -> pa.Table:
        return pa.concat_tables(self._parts).sort_by("priority").slice(0, self.num_rows).combine_chunks()


def _measure_all(
    pairs: TableFile, seed: int, processes: int, sample: _Sample, references: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    batches = pairs.raw_batches()
    if processes < 2 or pairs.num_bytes < SMALL_FILE_BYTES:
        for raw in batches:
            yield measure(clean_batch(raw, pairs), seed, sample.limit, references)
        return
    # Spawned, since arrow has threads and these do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, MAX_PROCESSES), context) as pool:
        waiting: deque[Future[dict[str, Any]]] = deque()
        try:
            for raw in batches:
                waiting.append(pool.submit(_measure_packed, packed(raw), pairs, seed, sample.limit, references))
                # Enough for no process to wait, and few enough that unread results do not pile up.
                if len(waiting) > 2 * MAX_PROCESSES:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _measure_packed(
    sent: RawBatch | tuple[bytes, int], pairs: TableFile, seed: int, limit: int, references: tuple[str, ...]
) -> dict[str, Any]:
    pa.set_cpu_count(1)
    return measure(clean_batch(unpacked(sent), pairs), seed, limit, references)


def measure(batch: PairBatch, seed: int, limit: int, references: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arrays of :class:`Scan` for one batch, with `label_names` for the codes in `label`, and `left_out`.

    The rows drawn by `seed` whose priority, of 64 bits, is below `limit` come along as `sample`.
    """
    premises, hypotheses = batch.premise.to_pylist(), batch.hypothesis.to_pylist()
    parses = None if batch.parse is None else batch.parse.to_pylist()
    labels = batch.label.dictionary_encode()
    exact = [pd.util.hash_array(np.array(texts, object), categorize=False) for texts in (premises, hypotheses)]
    sides = [word_hashes(texts) for texts in (batch.premise, batch.hypothesis)]
    # A text without a word, such as '?', is itself only.
    ordered = [np.where(np.diff(at) > 0, in_order(words, at), whole) for (words, at), whole in zip(sides, exact, strict=True)]
    minima = [_minima(words, at, whole) for (words, at), whole in zip(sides, exact, strict=True)]
    priority = mixed(batch.rows.astype(np.uint64) * GOLDEN + np.uint64(seed))
    return {
        "label_names": labels.dictionary.to_pylist(),
        "left_out": batch.left_out,
        "row": batch.rows,
        "label": labels.indices.to_numpy().astype(np.int16),
        "exact": mixed(exact[0] * GOLDEN + exact[1]),
        "words": mixed(ordered[0] * GOLDEN + ordered[1]),
        "premise": ordered[0],
        "hypothesis": ordered[1],
        "signature": _signature(*minima),
        "holds": apply_heuristics(premises, hypotheses, parses, references),
        "lengths": np.stack([np.diff(at) for _, at in sides], axis=1).astype(np.int32),
        "sample": _sample_table(batch, priority, limit),
    }


def apply_heuristics(
    premises: Sequence[str],
    hypotheses: Sequence[str],
    parses: Sequence[str | None] | None = None,
    references: tuple[str, ...] = (),
) -> np.ndarray:
    """The pairs of which each heuristic holds: booleans of shape (num_pairs, number of heuristics); none for want of parses."""
    heuristics = audited(references)
    holds = np.zeros((len(premises), len(heuristics)), bool)
    names = [heuristic.name for heuristic in heuristics]
    for index, heuristic in enumerate(heuristics):
        if heuristic.needs_parse and parses is None:
            continue
        columns: list[Any] = [premises, hypotheses, parses] if heuristic.needs_parse else [premises, hypotheses]
        if heuristic.within:
            where = np.flatnonzero(holds[:, names.index(heuristic.within)])
            holds[where, index] = heuristic.holds(*([column[row] for row in where] for column in columns))
        else:
            holds[:, index] = heuristic.holds(*columns)
    return holds


def _minima(words: np.ndarray, offsets: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The MinHash of each text's word pairs, uint32 of shape (NUM_COMPONENTS, num_texts); one without words is one shingle."""
    shingles = (word_pairs(words, offsets) >> np.uint64(32)).astype(np.uint32)
    random = np.random.default_rng(2019).integers(0, 2**32, (NUM_COMPONENTS, 2), np.uint32)
    has_words = np.diff(offsets) > 0
    minima = np.empty((NUM_COMPONENTS, len(whole)), np.uint32)
    for component, (mask, factor) in enumerate(random):
        factor |= np.uint32(1)
        minima[component, ~has_words] = (whole[~has_words].astype(np.uint32) ^ mask) * factor
        if has_words.any():
            minima[component, has_words] = np.minimum.reduceat((shingles ^ mask) * factor, offsets[:-1][has_words])
    return minima


def _signature(premise: np.ndarray, hypothesis: np.ndarray) -> np.ndarray:
    both = mixed(premise.astype(np.uint64) * GOLDEN + hypothesis.astype(np.uint64))
    return np.ascontiguousarray((both >> np.uint64(48)).astype(np.uint16).T)


def _sample_table(batch: PairBatch, priority: np.ndarray, limit: int) -> pa.Table:
    drawn = priority < np.uint64(limit)
    texts = [pc.utf8_slice_codeunits(side.filter(drawn), 0, SAMPLE_CHARACTERS) for side in (batch.premise, batch.hypothesis)]
    names = ["priority", "row", "label", "premise", "hypothesis"]
    return pa.table([priority[drawn], batch.rows[drawn], batch.label.filter(drawn), *texts], names)
