"""Counts by cluster: those that a plain count finds, whatever the size of the clusters and in however many parts."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from analysis.corpus import spill
from analysis.corpus.clusters import NO_CELL, categories, clusters_of
from analysis.corpus.measures import odds_ratio
from analysis.corpus.words import word_hashes


@pytest.mark.parametrize("part_rows", [1 << 21, 20_000])
def test_cells_are_counted_by_cluster(part_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "PART_ROWS", part_rows)
    random = np.random.default_rng(0)
    # One cluster has more rows than 16 bits can count, and half of them in one cell.
    hashes = np.concatenate([np.full(140_000, 7), random.integers(10, 5_000, 20_000)]).astype(np.uint64)
    cell = np.where(random.random(len(hashes)) < 0.5, 2, random.integers(0, NO_CELL + 1, len(hashes))).astype(np.int8)
    expected: dict[int, list[int]] = {}
    for key, kind in zip(hashes.tolist(), cell.tolist(), strict=True):
        counts = expected.setdefault(key, [0, 0, 0, 0])
        if kind != NO_CELL:
            counts[kind] += 1
    kinds, times = clusters_of(hashes).cells(cell)
    found: Counter[tuple[int, ...]] = Counter()
    for kind, num in zip(kinds.tolist(), times.tolist(), strict=True):
        found[tuple(kind)] += num
    # The large cluster's rows are counted apart, and leave one without any.
    found[0, 0, 0, 0] -= 1
    assert +found == Counter(map(tuple, expected.values()))


def test_an_odds_ratio_of_the_rows_that_were_asked_is_that_of_these_rows_alone() -> None:
    random = np.random.default_rng(1)
    holds, entailment, asked = (random.random(3_000) < share for share in (0.3, 0.4, 0.8))
    premise = random.integers(0, 900, 3_000).astype(np.uint64)
    alone = odds_ratio(holds[asked], entailment[asked], premise[asked])
    among = odds_ratio(holds, entailment, clusters_of(premise), asked)
    assert (among.value, among.n) == (alone.value, alone.n)
    assert among.design_effect == pytest.approx(alone.design_effect, rel=1e-12)


def test_a_category_is_few_short_texts_of_a_task_that_is_no_pair() -> None:
    """Of 2,400 rows: 100 names, 101 names, passages, and texts that do not repeat."""
    columns = [
        [f"name {row % 100}" for row in range(2_400)],
        [f"name {row % 101}" for row in range(2_400)],
        [f"passage {row % 100} of more words than a name has" for row in range(2_400)],
        [f"text {row}" for row in range(2_400)],
    ]
    words = [word_hashes(pa.array(column)) for column in columns]
    assert categories(("a", "b", "c", "d"), words) == [True, False, False, False]
    assert categories(("a", "b"), [word_hashes(pa.array(column[:1_999])) for column in columns[::3]]) == [False, False]
    assert categories(("hypothesis", "premise"), words[:2]) == [False, False] and categories(("text",), words[:1]) == [False]
