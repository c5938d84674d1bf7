"""Single words that tell the label: the competency test of Gardner et al. 2021, with intervals that hold for all words at once.

In a task that asks for understanding no word by itself should say anything about the label: p(label | word) is the label's
share of all rows. Each word of a field that enough rows have is held against that, for each label.

A row with the word is no independent draw where texts repeat. The variance of p(label | word) is that of sums over rows with
the same text, of any of the fields that is no category (`clusters.categories`), under the label's independence of the word;
over what independent rows would have, it is the design effect. The interval is the exact binomial one (Clopper and Pearson
1934) of the effective number of rows (Korn and Graubard 1998), at a confidence that Bonferroni's correction gives: all
intervals of a field hold together in 95% of samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse, stats

from analysis.corpus.clusters import categories
from analysis.corpus.measures import Share, share_of
from analysis.corpus.words import in_order, word_hashes
from analysis.stats.statistics import CONFIDENCE, Interval
from pipelines.tasks.words import words_of

MIN_ROWS = 20
"""A word is tested that so many sampled rows have, of as many different texts."""
TELLING = 2.0
"""A word tells a label where the label's odds with it are so many times those of all rows, by the interval's low end."""
SHOWN_WORDS = 6
"""The strongest words that are kept, for each label."""


@dataclass(frozen=True)
class WordLabel:
    """A word and a label: sampled rows that have the word, and those of them that have the label."""

    label: str
    word: str
    with_label: Share
    """Its interval holds for all words and labels of the field at once."""
    base: float
    """The label's share of all sampled rows."""
    z: float
    """Of the difference of the two shares, clustered."""
    p: float
    """Bonferroni-corrected, of the same exact test as the interval."""
    design_effect: float


@dataclass(frozen=True)
class SingleWords:
    """What the words of one field, each by itself, tell of the label. `reason` says why there is nothing to say."""

    field: str
    reason: str = ""
    num_rows: int = 0
    num_tested: int = 0
    """Different words that enough rows have."""
    num_beyond: int = 0
    """Of these, words whose interval leaves out the label's share of all rows, for some label."""
    num_telling: int = 0
    """Of these, words that tell a label."""
    telling: Share | None = None
    """Rows that have a word that tells a label, whichever they have."""
    words: tuple[WordLabel, ...] = ()
    """For each label the words beyond that tell it most, by the interval's low end."""


@dataclass(frozen=True)
class _Tests:
    """Arrays of shape (num_words, num_labels)."""

    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    z: np.ndarray
    p: np.ndarray
    effect: np.ndarray


def single_words(sample: pa.Table, fields: Sequence[str]) -> list[SingleWords]:
    """The test for each field of a sample of rows: a column of labels, and those of the fields."""
    names = sorted(set(sample["label"].to_pylist()))
    if len(names) < 2:
        return [SingleWords(field, f"all rows have the label {names[0]!r}") for field in fields]
    codes = pd.Categorical(sample["label"].to_pylist(), categories=names).codes.astype(np.int64)
    hashed = [word_hashes(sample[field].combine_chunks()) for field in fields]
    texts = [np.unique(in_order(*words), return_inverse=True)[1] for words in hashed]
    clusters = list(itertools.compress(texts, np.logical_not(categories(fields, hashed))))
    return [
        _of_field(field, sample[field].combine_chunks(), *words, codes, names, clusters, own)
        for field, words, own in zip(fields, hashed, texts, strict=True)
    ]


def _of_field(
    field: str,
    texts: pa.StringArray,
    words: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    names: Sequence[str],
    clusters: Sequence[np.ndarray],
    own: np.ndarray,
) -> SingleWords:
    num_rows = len(codes)
    _, first, word = np.unique(words, return_index=True, return_inverse=True)
    text = np.repeat(np.arange(num_rows), np.diff(offsets))
    has = sparse.csr_matrix((np.ones(len(words)), (text, word)), (num_rows, len(first)))
    has.data[:] = 1.0  # a word twice in a text is there, no more
    num_texts = _sums(own, has)
    num_texts.data[:] = 1.0
    enough = (np.minimum(_total(has), _total(num_texts)) >= MIN_ROWS) & (_total(has) < num_rows)
    if not enough.any():
        return SingleWords(field, f"no word is in {MIN_ROWS} of the {num_rows:,} rows, of as many texts", num_rows)
    has, first = has[:, enough].tocsr(), first[enough]
    tests = _test(has, codes, len(names), clusters)
    base = np.bincount(codes, minlength=len(names)) / num_rows
    beyond = (tests.low > base) | (tests.high < base)
    strength = _odds(tests.low) / _odds(base)
    telling = strength >= TELLING
    told = np.asarray(has[:, telling.any(axis=1)].sum(axis=1)).ravel() > 0
    shown = []
    totals = _total(has)
    confidence = 1 - (1 - CONFIDENCE) / _num_tests(tests.low.shape)
    for code, name in enumerate(names):
        above = np.flatnonzero(tests.low[:, code] > base[code])
        for index in above[np.argsort(-strength[above, code], kind="stable")][:SHOWN_WORDS]:
            at = int(text[first[index]])
            spelling = words_of(texts[at].as_py())[first[index] - offsets[at]]
            around = Interval(float(tests.low[index, code]), float(tests.high[index, code]), confidence)
            count = Share(int(tests.counts[index, code]), int(totals[index]), around)
            values = (float(each[index, code]) for each in (tests.z, tests.p, tests.effect))
            shown.append(WordLabel(name, spelling, count, float(base[code]), *values))
    return SingleWords(
        field,
        "",
        num_rows,
        len(first),
        int(beyond.any(axis=1).sum()),
        int(telling.any(axis=1).sum()),
        share_of(told.sum(), num_rows),
        tuple(shown),
    )


def _test(has: Any, codes: np.ndarray, num_labels: int, clusters: Sequence[np.ndarray]) -> _Tests:
    """Each word against each label; `has` is bool of shape (num_rows, num_words), sparse."""
    num_rows = has.shape[0]
    totals = _total(has)
    base = np.bincount(codes, minlength=num_labels) / num_rows
    shape = (has.shape[1], num_labels)
    counts, effect = np.empty(shape), np.ones(shape)
    share = totals / num_rows
    for code in range(num_labels):
        with_label = codes == code
        counts[:, code] = has.T @ with_label
        residual = with_label - base[code]
        # Sums over each cluster of (has the word - its share) x residual, squared: the score's variance under independence.
        independent = _variance(has, share, residual, np.arange(num_rows))
        for cluster in clusters:
            if cluster.max() + 1 < num_rows:
                effect[:, code] = np.maximum(effect[:, code], _variance(has, share, residual, cluster) / independent)
    observed = counts / totals[:, None]
    variance = base * (1 - base) * (1 / totals - 1 / num_rows)[:, None] * effect
    size = totals[:, None] / effect
    found = observed * size
    tail = (1 - CONFIDENCE) / 2 / _num_tests(shape)
    with np.errstate(invalid="ignore"):
        low = np.where(found > 0, stats.beta.ppf(tail, found, size - found + 1), 0.0)
        high = np.where(found < size, stats.beta.isf(tail, found + 1, size - found), 1.0)
        above = np.where(found > 0, stats.beta.cdf(base, found, size - found + 1), 1.0)
        below = np.where(found < size, stats.beta.sf(base, found + 1, size - found), 1.0)
    p = np.minimum(1.0, 2 * _num_tests(shape) * np.minimum(above, below))
    return _Tests(counts, low, high, (observed - base) / np.sqrt(variance), p, effect)


def _num_tests(shape: tuple[int, ...]) -> int:
    # Of two labels one says what the other does.
    return shape[0] * (shape[1] if shape[1] > 2 else 1)


def _variance(has: Any, share: np.ndarray, residual: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Sum over clusters of the square of the sum over its rows of (has - share) x residual: [num_words]."""
    of_word = _sums(cluster, has.multiply(residual[:, None]))
    of_all = np.bincount(cluster, residual)
    squares = _total(of_word.multiply(of_word))
    return np.maximum(squares - 2 * share * (of_word.T @ of_all) + share**2 * (of_all**2).sum(), np.finfo(float).tiny)


def _sums(cluster: np.ndarray, values: Any) -> Any:
    """The sums of a sparse matrix' rows over clusters: sparse, of shape (num_clusters, num_columns)."""
    ones = np.ones(len(cluster))
    return (sparse.csr_matrix((ones, (cluster, np.arange(len(cluster)))), (cluster.max() + 1, len(cluster))) @ values).tocsr()


def _total(values: Any) -> np.ndarray:
    return np.asarray(values.sum(axis=0)).ravel()


def _odds(share: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return share / (1 - share)
