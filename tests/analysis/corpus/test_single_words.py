"""Single words that tell the label: intervals by hand, what was planted is found, and nothing else is."""

import random

import pyarrow as pa
import pytest
from scipy import stats

from analysis.corpus.single_words import MIN_ROWS, single_words


def table(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.Table.from_pylist([{"text": text, "label": label} for text, label in rows])


def noise(count: int, source: random.Random, labels: str = "ab") -> list[tuple[str, str]]:
    return [(" ".join(source.choices([f"w{i}" for i in range(200)], k=8)), source.choice(labels)) for _ in range(count)]


def test_a_planted_word_is_found_with_the_exact_interval_for_all_words_at_once() -> None:
    # Each text is there once, so that rows are independent; the word is in 60 of them, of which 50 have the label.
    rows = [(f"n{i} good", "a" if i < 50 else "b") for i in range(60)] + [(f"m{i} other", "abbbb"[i % 5]) for i in range(140)]
    (found,) = single_words(table(rows), ["text"])
    assert (found.num_rows, found.num_tested, found.num_beyond, found.num_telling) == (200, 2, 2, 1)
    word = found.words[0]
    assert (word.label, word.word, word.with_label.count, word.with_label.n, word.base) == ("a", "good", 50, 60, 0.39)
    # Two words, and two labels of which one says what the other does: two tests.
    exact = stats.binomtest(50, 60).proportion_ci(1 - 0.05 / 2, method="exact")
    assert (word.with_label.interval.low, word.with_label.interval.high) == pytest.approx((exact.low, exact.high))
    assert word.design_effect == pytest.approx(1)
    assert word.z == pytest.approx((50 / 60 - 0.39) / (0.39 * 0.61 * (1 / 60 - 1 / 200)) ** 0.5)
    tail = stats.binom.sf(49, 60, 0.39)
    assert word.p == pytest.approx(2 * 2 * tail)
    assert found.telling is not None and (found.telling.count, found.telling.n) == (60, 200)


@pytest.mark.parametrize("labels", ["ab", "abc", "aaab"])
def test_where_labels_are_drawn_by_chance_no_word_tells_them(labels: str) -> None:
    """The intervals of a sample hold all at once in 95% of samples: of 40, two do not; with 8 the chance is 0.0007."""
    source = random.Random(len(labels))
    found = [single_words(table(noise(800, source, labels)), ["text"])[0] for _ in range(40)]
    assert min(one.num_tested for one in found) > 150
    assert sum(one.num_beyond > 0 for one in found) < 8


def test_texts_that_repeat_are_no_more_evidence_than_one() -> None:
    """Forty texts of each word, thirty times each, with the label of the text: chance looks like proof if rows count alone."""
    source = random.Random(5)
    rows = []
    for word in [f"v{i}" for i in range(30)]:
        for index in range(40):
            rows += [(f"{word} {word}x{index}", source.choice("ab"))] * 30
    (found,) = single_words(table(rows), ["text"])
    assert found.num_tested == 30 and found.num_beyond == 0


def test_a_word_of_one_repeated_text_is_not_tested() -> None:
    source = random.Random(6)
    (found,) = single_words(table([*noise(500, source), *[("strange thing", "a")] * 100]), ["text"])
    assert not {word.word for word in found.words} & {"strange", "thing"}


def test_rows_that_share_the_other_field_are_dependent() -> None:
    source = random.Random(7)
    rows = []
    for index in range(60):
        label = source.choice("ab")
        word = "seen" if index % 2 else "other"
        rows += [{"premise": f"p{index}", "hypothesis": f"{word} h{index} {n}", "label": label} for n in range(20)]
    premise, hypothesis = single_words(pa.Table.from_pylist(rows), ["premise", "hypothesis"])
    assert premise.reason == f"no word is in {MIN_ROWS} of the 1,200 rows, of as many texts"
    assert hypothesis.num_tested > 0 and hypothesis.num_beyond == 0


def test_one_label_has_nothing_to_tell() -> None:
    (found,) = single_words(table([("a b", "x")] * 30), ["text"])
    assert found.reason == "all rows have the label 'x'" and found.telling is None
