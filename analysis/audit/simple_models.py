"""Simple models that judge labels where no other judge is at hand: logistic regressions on words, each of rows it has not seen.

    judged = cross_validated(sample, ("premise", "hypothesis"), seed=0)

What such a model says of a label is :mod:`analysis.audit.noise`'s to weigh. It is weak: on MultiNLI it is right of six rows in
ten. Pure but for the words; the same rows and seed give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse, special
from threadpoolctl import threadpool_limits

from analysis.corpus.clusters import categories
from analysis.corpus.measures import fit_logistic
from analysis.corpus.words import in_order, text_hashes, word_hashes, word_pairs
from pipelines.splitmix import GOLDEN, mixed

MOST_ROWS = 60_000
FEWEST_ROWS = 500
"""A model of fewer rows is not fitted."""
NUM_FOLDS = 5
NUM_HASHES = 1 << 22
FEWEST_WITH_FEATURE = (3, 5)
"""Rows, of one text each or of several; a feature that fewer have is left out."""
ROW_LENGTH = 5.0
"""The Euclidean length of a row's features: what suits SST-2's phrases and MultiNLI's pairs, by their log-likelihood."""
NUM_BINS = 10
"""Of the share of a text's words that the other has."""


@dataclass(frozen=True)
class SimpleJudgement:
    """What models say of rows that they were not trained on: `probabilities` float32 [n, k] of `labels`, k names.

    `rows` int64 [n] are places in the table, ascending, without those that no model could judge: too few others have none of
    their texts. `clusters` int64 [n] tell the texts of its first field apart. With `reason`, which says why, there is no row.
    """

    labels: tuple[str, ...]
    rows: np.ndarray
    probabilities: np.ndarray
    clusters: np.ndarray
    reason: str = ""


def cross_validated(
    table: pa.Table, fields: Sequence[str], labels: Sequence[str] | None = None, *, seed: int, most_rows: int = MOST_ROWS
) -> SimpleJudgement:
    """Judge a table's rows, or `most_rows` drawn from them, each by a model of the file's own rows.

    Columns: `label`, and the `fields`, strings. `labels` are the classes in order, by default the table's, sorted. Rows are
    dealt into five folds. A fold's model is trained on rows of the others: on those of whose texts none is, word for word, one
    of the fold's, categories aside (`clusters.categories`).
    """
    return _judged(table, None, fields, labels or sorted(set(table["label"].to_pylist())), seed, most_rows)[0]


def judged_by_trusted(
    table: pa.Table,
    trusted: pa.Table,
    fields: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
) -> tuple[SimpleJudgement, SimpleJudgement]:
    """Judge both a table's rows and trusted ones by models of trusted rows alone, as :func:`cross_validated` does.

    At most half of `MOST_ROWS` are drawn from each. A fold has rows of both, so that the models err as often of trusted rows as
    they would of the table's if those were trusted rows, too.
    """
    return _judged(table, trusted, fields, labels, seed, MOST_ROWS // 2)


def _judged(
    table: pa.Table, trusted: pa.Table | None, fields: Sequence[str], labels: Sequence[str], seed: int, most_rows: int
) -> tuple[SimpleJudgement, SimpleJudgement]:
    random = np.random.default_rng(seed)
    parts = [part for part in (table, trusted) if part is not None]
    drawn = [np.sort(random.permutation(part.num_rows)[:most_rows]) for part in parts]
    columns = ["label", *fields]
    both = pa.concat_tables(
        [
            part.select(columns).take(pa.array(rows)).cast(pa.schema([(name, pa.string()) for name in columns]))
            for part, rows in zip(parts, drawn, strict=True)
        ]
    )
    place = {label: code for code, label in enumerate(labels)}
    codes = np.array([place[label] for label in both["label"].to_pylist()], np.int64)
    columns_of_texts = [both[name].combine_chunks() for name in fields]
    words = [word_hashes(column) for column in columns_of_texts]
    texts = np.stack([_told_apart(column, *of) for column, of in zip(columns_of_texts, words, strict=True)], axis=1)
    # A model meets a category again; where all fields are that, rows are told apart by each.
    are_categories = np.array(categories(fields, words))
    texts = texts[:, ~are_categories | are_categories.all()]
    may_train = np.ones(len(codes), bool)
    if trusted is not None:
        may_train[: len(drawn[0])] = False
    _, clusters = np.unique(texts[:, 0], return_inverse=True)

    def refused(reason: str) -> SimpleJudgement:
        nothing = np.zeros(0, np.int64)
        return SimpleJudgement(tuple(labels), nothing, np.zeros((0, len(labels)), np.float32), nothing, reason)

    def both_refused(reason: str) -> tuple[SimpleJudgement, SimpleJudgement]:
        return refused(reason), refused(reason)

    if len(labels) < 2 or len(set(codes[may_train])) < 2:
        return both_refused("all rows have one label")
    if may_train.sum() < FEWEST_ROWS:
        return both_refused(f"{may_train.sum():,} rows are too few to learn from; it takes {FEWEST_ROWS:,}")
    probabilities = _out_of_fold(features_of(words), codes, len(labels), _folds(texts, may_train, seed), texts, may_train)
    judged = np.isfinite(probabilities[:, 0])
    if not judged.any():
        return both_refused("the rows share their texts with each other, so that no model can judge rows that it has not seen")
    starts = np.cumsum([0, *map(len, drawn)])
    results = []
    for rows, start, end in zip(drawn, starts[:-1], starts[1:], strict=True):
        here = judged[start:end]
        chosen = slice(start, end)
        results.append(
            SimpleJudgement(
                tuple(labels),
                rows[here].astype(np.int64),
                probabilities[chosen][here],
                clusters[chosen][here].astype(np.int64),
            )
        )
    return results[0], results[-1]


def _told_apart(texts: pa.StringArray, words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A hash of each text's words in order: uint64 [n]. A text without a word, such as '?', is itself only."""
    return np.where(np.diff(offsets) > 0, in_order(words, offsets), text_hashes(texts))


def _folds(texts: np.ndarray, may_train: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each row [n], by a hash of one field: of that which leaves most rows to train on, in the first fold."""
    salt = mixed(np.array([seed + 1], np.uint64))
    by_field = [(mixed(texts[:, field] ^ salt) % np.uint64(NUM_FOLDS)).astype(np.int64) for field in range(texts.shape[1])]
    num_left = [int((may_train & ~_shares_text(texts, folds == 0)).sum()) for folds in by_field]
    return by_field[int(np.argmax(num_left))]


def _shares_text(texts: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The rows any of whose texts is one of the held-out rows', in whichever field: bool [n]."""
    of_held_out = np.unique(texts[held_out])
    found = np.zeros(len(texts), bool)
    for field in range(texts.shape[1]):
        found |= _is_in(texts[:, field], of_held_out)
    return found


def _is_in(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    # Many times as quick as numpy's.
    return np.asarray(pd.Index(values).isin(others))


def _out_of_fold(
    features: Any, codes: np.ndarray, num_labels: int, folds: np.ndarray, texts: np.ndarray, may_train: np.ndarray
) -> np.ndarray:
    """Probabilities float32 [n, num_labels], NaN of a fold with too few rows to train on."""
    probabilities = np.full((len(codes), num_labels), np.nan, np.float32)
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        training = may_train & ~_shares_text(texts, held_out)
        if not held_out.any() or training.sum() < FEWEST_ROWS * (NUM_FOLDS - 1) // NUM_FOLDS:
            continue
        # Sums of a few ten thousand numbers: many threads wait for each other, and differ in the last bits from few.
        with threadpool_limits(1, user_api="blas"):
            weights = fit_logistic(features[training], codes[training], num_labels)
        probabilities[held_out] = special.softmax(np.asarray(features[held_out] @ weights), axis=1)
    return probabilities


def features_of(words: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    """Features of rows, each there or not, a row of length `ROW_LENGTH`: sparse, of shape (n, number of features).

    `words` has each field's :func:`~analysis.corpus.words.word_hashes`. Of each field the words and word pairs. Of two fields
    besides: how many of each one's words the other has; each word with whether the other has it; and that with how many of the
    second's words the first has.
    """
    num_rows = len(words[0][1]) - 1
    all_rows = np.arange(num_rows)
    row_of = [np.repeat(all_rows, np.diff(offsets)) for _, offsets in words]
    rows, hashes = [all_rows], [np.full(num_rows, NUM_HASHES)]

    def add(of_rows: np.ndarray, values: np.ndarray) -> None:
        # Each kind has hashes of its own.
        salt = mixed(np.array([len(rows)], np.uint64))
        rows.append(of_rows)
        hashes.append((mixed(values + salt) % np.uint64(NUM_HASHES)).astype(np.int64))

    for of_rows, (of_field, offsets) in zip(row_of, words, strict=True):
        add(of_rows, of_field)
        add(of_rows, word_pairs(of_field, offsets))
    if len(words) == 2:
        placed = [
            mixed(of_rows.astype(np.uint64) * GOLDEN + of_field) for of_rows, (of_field, _) in zip(row_of, words, strict=True)
        ]
        shared = [_is_in(placed[field], placed[1 - field]) for field in range(2)]
        bins = []
        for of_rows, is_shared in zip(row_of, shared, strict=True):
            lengths = np.maximum(np.bincount(of_rows, minlength=num_rows), 1)
            bins.append((NUM_BINS * np.bincount(of_rows, is_shared, num_rows) / lengths).astype(np.uint64))
            add(all_rows, bins[-1])
        add(all_rows, bins[0] * np.uint64(NUM_BINS + 1) + bins[1])
        for of_rows, (of_field, _), is_shared in zip(row_of, words, shared, strict=True):
            marked = mixed(of_field + is_shared)
            add(of_rows, marked)
            add(of_rows, marked + bins[1][of_rows])
    return _scaled(np.concatenate(rows), np.concatenate(hashes), num_rows, FEWEST_WITH_FEATURE[len(words) > 1])


def _scaled(rows: np.ndarray, hashes: np.ndarray, num_rows: int, fewest: int) -> Any:
    """A row's features, without those that too few rows have, as a sparse matrix; one that is NUM_HASHES stays."""
    # A word twice in a text is there, no more: entries of one place are made one.
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, hashes)), (num_rows, NUM_HASHES + 1))
    is_kept = np.bincount(matrix.indices, minlength=NUM_HASHES + 1) >= fewest
    is_kept[NUM_HASHES] = True
    places = np.cumsum(is_kept) - 1
    entries = is_kept[matrix.indices]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(entries)])[matrix.indptr]
    num_features = np.diff(starts)
    values = np.repeat(ROW_LENGTH / np.sqrt(num_features), num_features)
    return sparse.csr_matrix((values, places[matrix.indices[entries]], starts), (num_rows, int(is_kept.sum())))
