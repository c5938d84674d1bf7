"""One pass over a table of labelled texts: numbers for each row, and a random sample of the texts.

    scan = scan_texts(open_texts("pool.parquet"), processes=2)

What is kept of a row is about a hundred bytes, whatever its length (:class:`Scan`), in memory or, of a large file, on disk
(:mod:`analysis.corpus.spill`). All that an audit says of a file is computed from that (:mod:`analysis.corpus.copies`,
:mod:`analysis.corpus.measures`).
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.corpus.audited import BY_TOKENS, BY_WORDS, AuditedHeuristic, audited
from analysis.corpus.clusters import Clusters, categories, clusters_of
from analysis.corpus.columns import PAIR
from analysis.corpus.input import Packed, TableInMemory, TextBatch, TextFile, clean_batch, packed, unpacked
from analysis.corpus.labels import label_key
from analysis.corpus.spill import Columns, chunks
from analysis.corpus.words import (
    Hashed,
    are_words_within,
    in_order,
    text_hashes,
    token_hashes,
    word_hashes,
    word_pairs,
)
from pipelines.errors import UserError
from pipelines.splitmix import GOLDEN, mixed
from pipelines.tables.files import TableFile
from pipelines.tables.labels import check_known
from pipelines.tables.readers import MalformedRow, RawBatch, check_malformed
from pipelines.tasks.heuristics import DROPPED_TOKENS

SAMPLE_ROWS = 60_000
SAMPLE_CHARACTERS = 1_000
"""A sampled text is cut after so many characters."""
SURE_LABELS, MAX_LABELS = 20, 200
"""More than the second are no labels; more than the first are none where they are half as many as the rows."""
MAX_PROCESSES = 2
SMALL_FILE_BYTES = 8 << 20
"""Below this, starting processes takes longer than the scan."""

NUM_COMPONENTS = 30
"""Components of a signature, in ten bands of three: see :mod:`analysis.corpus.copies`."""

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
PIECE_ROWS = 8_192
"""Rows that are measured at once: their words' hashes fit into a processor's cache."""
TEXTS_AT_ONCE = 1_024
MAX_COLUMN_WORDS = 256


Report: TypeAlias = Callable[[str, int, int | None], None]
"""Told how far the work is: what is being done, how much of it is, and of how much, None where that is not known."""


def silent(doing: str, done: int, of: int | None) -> None:
    """A report that nobody hears."""


@dataclass(frozen=True)
class Scan:
    """A file in numbers: arrays of one entry a complete row, in the file's order. They are to be read: some lie on disk."""

    source: TextFile
    labels: tuple[str, ...]
    """The labels in their most frequent spelling, the most frequent first."""
    spellings: Mapping[str, Mapping[str, int]]
    """For each label, how often it is spelled how (`Entailment.`)."""
    left_out: Mapping[str, int]
    """Rows that are in no array, by reason."""
    unknown_labels: Mapping[str, int]
    """Those of them that have a label which is none of the task's, by label."""
    row: np.ndarray
    """int64: the row's or line's number in the file."""
    label: np.ndarray
    """int16: an index into `labels`."""
    exact: np.ndarray
    """uint64: a hash of the texts, character by character."""
    words: np.ndarray
    """uint64: a hash of the words of all fields, in order."""
    parts: np.ndarray
    """uint64 of shape (num_rows, num_fields): a hash of each field's words, in order."""
    signature: np.ndarray
    """uint16 of shape (num_rows, NUM_COMPONENTS): equal in a component with a probability that is the rows' similarity."""
    holds: np.ndarray
    """bool of shape (num_rows, number of heuristics)."""
    has_parse: np.ndarray
    """bool: the row has a parse; a heuristic that needs one is about these rows only."""
    lengths: np.ndarray
    """int32 of shape (num_rows, num_fields): words of each field."""
    sample: pa.Table
    """At most SAMPLE_ROWS rows drawn at random, in random order: priority, row, label, and the fields."""
    references: tuple[str, ...] = ()
    """The user's own heuristics, asked after the built-in ones (:func:`analysis.corpus.audited.audited`)."""

    @cached_property
    def premises(self) -> Clusters:
        """The rows whose first fields have the same words; of a first field of categories, those of the first that has none."""
        of_sample = (word_hashes(self.sample[field].combine_chunks()) for field in self.fields)
        # Where all are categories, the first False is missing, and the first field is as good as any.
        first = [*categories(self.fields, of_sample), False].index(False) % len(self.fields)
        return clusters_of(self.parts[:, first])

    @property
    def num_rows(self) -> int:
        return len(self.row)

    @property
    def path(self) -> str:
        return self.source.path

    @property
    def fields(self) -> tuple[str, ...]:
        return self.source.fields

    @property
    def heuristics(self) -> tuple[AuditedHeuristic, ...]:
        """The heuristics that `holds` is about, in its order."""
        return audited(self.fields, self.references)

    def labelled(self, names: Sequence[str]) -> np.ndarray:
        """The rows that have one of these labels, bool [num_rows]."""
        return np.isin(self.label, [code for code, name in enumerate(self.labels) if name in names])

    def asked(self, heuristic: AuditedHeuristic) -> np.ndarray:
        """The rows that a heuristic could be asked about: bool [num_rows]."""
        return self.has_parse if heuristic.needs_parse else np.ones(self.num_rows, bool)

    def part(self, field: str) -> np.ndarray:
        """The hashes of one field's words: uint64 [num_rows]."""
        return self.parts[:, self.fields.index(field)]


def scan_texts(
    source: TextFile,
    *,
    seed: int = 0,
    processes: int = MAX_PROCESSES,
    sample_rows: int = SAMPLE_ROWS,
    references: tuple[str, ...] = (),
    report: Report = silent,
) -> Scan:
    """Read a table once and measure each row; the same result for any number of processes.

    `seed` draws the sample. With `processes` above 1, and a table that is worth it, as many processes measure while this one
    reads. Raises :class:`UserError` where the table cannot be read, has no complete row, or has so many labels that the
    label column must be another.
    """
    sample = Sample(sample_rows)
    malformed: list[MalformedRow] = []
    with contextlib.closing(_measure_all(source, seed, processes, sample, references, malformed)) as measured:
        return collected(source, measured, sample, references, report, malformed)


def _no_labels(source: TextFile, labels: Iterable[str], number: str) -> UserError:
    some = ", ".join(repr(name[:30]) for name in list(labels)[:5])
    return UserError(
        f"{source.path}: the label column {source.columns['label']!r} has {number} different labels ({some}, …); name the "
        "column of the labels with --label"
    )


def collected(
    source: TextFile,
    batches: Iterable[dict[str, Any]],
    sample: Sample,
    references: tuple[str, ...] = (),
    report: Report = silent,
    malformed: Sequence[MalformedRow] = (),
) -> Scan:
    """The scan of a file's measured batches (:func:`measure`), which come in its order; raises as :func:`scan_texts`.

    `malformed` has the rows that reading has left out once all batches have come.
    """
    left_out: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = {}
    codes: dict[str, int] = {}
    rows = Columns()
    num_read, num_expected = 0, expected_rows(source.table)
    for measured in batches:
        num_read += len(measured["row"]) + sum(measured["left_out"].values())
        report(f"reading {Path(source.path).name}", num_read, num_expected)
        left_out.update(measured.pop("left_out"))
        unknown.update(measured.pop("unknown_labels"))
        names, counts = measured.pop("label_names"), np.bincount(measured["label"])
        for name, count in zip(names, counts, strict=False):
            # Space around it is no spelling: nobody would see it.
            spellings.setdefault(label_key(name), Counter())[name.strip()] += int(count)
            codes.setdefault(label_key(name), len(codes))
        if len(codes) > MAX_LABELS:
            raise _no_labels(source, codes, f"over {MAX_LABELS:,}")
        measured["label"] = np.array([codes[label_key(name)] for name in names], np.int16)[measured["label"]]
        if "sample" in measured:
            sample.add(measured.pop("sample"))
        rows.add(measured)
    check_malformed(source.path, malformed, has_rows=num_read > 0)
    if len(codes) > max(SURE_LABELS, rows.num_rows / 2):
        raise _no_labels(source, codes, f"{len(codes):,}")
    if source.allowed:
        way_out = f"--label-name LABEL={source.allowed[0]}, or another column than {source.columns['label']!r}: --label COLUMN"
        check_known(source.path, unknown, rows.num_rows + unknown.total(), source.allowed, lambda _: way_out)
    if malformed:
        left_out["another number of cells"] = len(malformed)
    if not rows.num_rows:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items()) or "it has no rows"
        raise UserError(f"{source.path} has no complete row ({why}); each needs a {', a '.join((*source.fields, 'label'))}")
    columns = rows.finished()
    counts = np.bincount(columns["label"], minlength=len(codes))
    order = np.argsort(-counts, kind="stable")
    columns["label"] = np.argsort(order).astype(np.int16)[columns["label"]]
    keys = list(codes)
    name_of = {key: max(spelled, key=lambda name: (spelled[name], name)) for key, spelled in spellings.items()}
    return Scan(
        source,
        tuple(name_of[keys[index]] for index in order),
        {name_of[keys[index]]: dict(spellings[keys[index]].most_common()) for index in order},
        dict(left_out.most_common()),
        dict(unknown.most_common()),
        sample=_with_names(sample.drawn(), name_of),
        references=references,
        **columns,
    )


def expected_rows(table: TableFile) -> int | None:
    """About how many rows a table has, without reading it; None where that is not known, as of compressed text."""
    if isinstance(table, TableInMemory):
        return int(table.content.num_rows)
    if not table.files:
        return None
    try:
        if table.kind == "parquet":
            return sum(pq.read_metadata(file).num_rows for file in table.files)
        if table.kind in ("table", "lines") and table.files[0].suffix.lower() in TEXT_SUFFIXES:
            with table.files[0].open("rb") as file:
                head = file.read(1 << 20)
            return round(table.num_bytes * head.count(b"\n") / max(1, len(head)))
    except (OSError, pa.ArrowException):
        pass  # whoever reads it will say
    return None


def _with_names(sample: pa.Table, name_of: Mapping[str, str]) -> pa.Table:
    spelled = sample["label"].combine_chunks().dictionary_encode()
    names = pa.array([name_of[label_key(label)] for label in spelled.dictionary.to_pylist()], pa.string())
    return sample.set_column(sample.column_names.index("label"), "label", pc.take(names, spelled.indices))


class Sample:
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
    source: TextFile,
    seed: int,
    processes: int,
    sample: Sample,
    references: tuple[str, ...],
    malformed: list[MalformedRow],
) -> Generator[dict[str, Any], None, None]:
    if processes < 2 or source.table.num_bytes < SMALL_FILE_BYTES:
        for raw in source.raw_batches(malformed):
            yield measure(clean_batch(raw, source), seed, sample.limit, references)
        return
    # A table in memory stays here: what measures needs its columns' names only.
    sent = replace(source, table=_without_content(source.table))
    # Spawned, since arrow has threads and these do not survive a fork.
    context = multiprocessing.get_context("spawn")
    # What is imported first keeps `analysis` ours in the new processes, too, beside a user's folder of that name.
    with ProcessPoolExecutor(min(processes, MAX_PROCESSES), context, importlib.import_module, ("sweep",)) as pool:
        waiting: deque[Future[dict[str, Any]]] = deque()
        try:
            for raw in source.raw_batches(malformed):
                waiting.append(pool.submit(_measure_packed, packed(raw), sent, seed, sample.limit, references))
                # Enough for no process to wait, and few enough that unread results do not pile up.
                if len(waiting) > 2 * MAX_PROCESSES:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _without_content(table: TableFile) -> TableFile:
    return replace(table, content=pa.table({})) if isinstance(table, TableInMemory) else table


def _measure_packed(
    sent: RawBatch | Packed, source: TextFile, seed: int, limit: int, references: tuple[str, ...]
) -> dict[str, Any]:
    pa.set_cpu_count(1)
    return measure(clean_batch(unpacked(sent), source), seed, limit, references)


def measure(batch: TextBatch, seed: int, limit: int, references: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arrays of :class:`Scan` for one batch, with `label_names` for the codes in `label`, `left_out` and
    `unknown_labels`.

    The rows drawn by `seed` whose priority, of 64 bits, is below `limit` come along as `sample`.
    """
    labels = batch.label.dictionary_encode()
    priority = mixed(batch.rows.astype(np.uint64) * GOLDEN + np.uint64(seed))
    pieces = [_measure_texts(batch, where, references) for where in chunks(len(batch.rows), PIECE_ROWS)]
    # An empty batch has one empty piece, for the types.
    pieces = pieces or [_measure_texts(batch, slice(0, 0), references)]
    return {
        "label_names": labels.dictionary.to_pylist(),
        "left_out": batch.left_out,
        "unknown_labels": batch.unknown_labels,
        "row": batch.rows,
        "label": labels.indices.to_numpy().astype(np.int16),
        **{name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]},
        "sample": _sample_table(batch, priority, limit),
    }


def _measure_texts(batch: TextBatch, where: slice, references: tuple[str, ...]) -> dict[str, np.ndarray]:
    size = where.stop - where.start
    texts = {name: column.slice(where.start, size) for name, column in batch.texts.items()}
    exact = [text_hashes(column) for column in texts.values()]
    words = [word_hashes(column) for column in texts.values()]
    # A text without a word, such as '?', is itself only.
    ordered = [np.where(np.diff(at) > 0, in_order(of, at), whole) for (of, at), whole in zip(words, exact, strict=True)]
    minima = [_minima(of, at, whole, field) for field, ((of, at), whole) in enumerate(zip(words, exact, strict=True))]
    parses = None if batch.parse is None else batch.parse.slice(where.start, size)
    return {
        "exact": _together(exact),
        "words": _together(ordered),
        "parts": np.stack(ordered, axis=1),
        "signature": np.ascontiguousarray((_together(minima) >> np.uint64(48)).astype(np.uint16).T),
        "holds": apply_heuristics(texts, words, parses, references),
        "has_parse": np.zeros(size, bool) if parses is None else parses.is_valid().to_numpy(zero_copy_only=False),
        "lengths": np.stack([np.diff(at) for _, at in words], axis=1).astype(np.int32),
    }


def _together(hashes: Sequence[np.ndarray]) -> np.ndarray:
    """One hash of one of each field, uint64 of the same shape."""
    both = hashes[0].astype(np.uint64)
    for one in hashes[1:]:
        both *= GOLDEN
        both += one
    return mixed(both)


def apply_heuristics(
    texts: Mapping[str, pa.StringArray],
    words: Sequence[Hashed],
    parses: pa.StringArray | None = None,
    references: tuple[str, ...] = (),
) -> np.ndarray:
    """The rows of which each heuristic holds: booleans of shape (num_rows, number of heuristics); none for want of a parse.

    `texts` are by field, and `words` the hashes of each field's words.
    """
    columns = list(texts.values())
    num_rows = len(columns[0])
    heuristics = audited(tuple(texts), references)
    holds = np.zeros((num_rows, len(heuristics)), bool)
    names = [heuristic.name for heuristic in heuristics]
    if tuple(texts) == PAIR:
        tokens = [token_hashes(column, DROPPED_TOKENS) for column in columns]
        for found, each in zip((BY_TOKENS, BY_WORDS), (tokens, words), strict=True):
            for name, flags in zip(found, are_words_within(each[1], each[0]), strict=True):
                holds[:, names.index(name)] = flags
    has_parse = np.zeros(num_rows, bool) if parses is None else parses.is_valid().to_numpy(zero_copy_only=False)
    for index, heuristic in enumerate(heuristics):
        if heuristic.holds is None:
            continue
        asked = has_parse if heuristic.needs_parse else np.ones(num_rows, bool)
        if heuristic.within:
            asked = asked & holds[:, names.index(heuristic.within)]
        if heuristic.needs_parse and not asked.any():
            continue
        given = [texts[name] for name in heuristic.fields or texts]
        given += [parses] if heuristic.needs_parse else []
        holds[asked, index] = heuristic.holds(*(column.filter(pa.array(asked)).to_pylist() for column in given))
    return holds


def _minima(words: np.ndarray, offsets: np.ndarray, whole: np.ndarray, field: int) -> np.ndarray:
    """The MinHash of each text's word pairs, uint32 of shape (NUM_COMPONENTS, num_texts); one without words is one shingle.

    Each field has hash functions of its own: with the same for all, fields that share words would agree in the same components.
    """
    shingles = (word_pairs(words, offsets) >> np.uint64(32)).astype(np.uint32)
    random = np.random.default_rng([2019, field]).integers(0, 2**32, (NUM_COMPONENTS, 2), np.uint32)
    mask, factor = random[:, :1], random[:, 1:] | np.uint32(1)
    lengths = np.diff(offsets)
    minima = np.empty((NUM_COMPONENTS, len(whole)), np.uint32)
    wordless = np.flatnonzero(lengths == 0)
    minima[:, wordless] = (whole[wordless].astype(np.uint32) ^ mask) * factor
    # Texts of about the same length, the longest first, word by word: each operation is on one word of each of many texts.
    order = np.argsort(-lengths, kind="stable")[: len(lengths) - len(wordless)]
    longest = int((lengths > MAX_COLUMN_WORDS).sum())
    for at in order[:longest]:
        of_text = shingles[offsets[at] : offsets[at + 1]]
        for component in range(NUM_COMPONENTS):
            minima[component, at] = ((of_text ^ mask[component]) * factor[component]).min()
    for start in range(longest, len(order), TEXTS_AT_ONCE):
        rows = order[start : start + TEXTS_AT_ONCE]
        # How many of these texts have so many words.
        num_left = len(rows) - np.searchsorted(lengths[rows][::-1], np.arange(lengths[rows[0]]), side="right")
        lowest = (shingles[offsets[rows]] ^ mask) * factor
        for position in range(1, len(num_left)):
            num = num_left[position]
            hashes = shingles[offsets[rows[:num]] + position] ^ mask
            hashes *= factor
            np.minimum(lowest[:, :num], hashes, out=lowest[:, :num])
        minima[:, rows] = lowest
    return minima


def _sample_table(batch: TextBatch, priority: np.ndarray, limit: int) -> pa.Table:
    drawn = priority < np.uint64(limit)
    texts = [pc.utf8_slice_codeunits(column.filter(drawn), 0, SAMPLE_CHARACTERS) for column in batch.texts.values()]
    names = ["priority", "row", "label", *batch.texts]
    return pa.table([priority[drawn], batch.rows[drawn], batch.label.filter(drawn), *texts], names)
