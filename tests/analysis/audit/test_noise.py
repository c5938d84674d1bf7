"""Label noise as an audit tells it: verdicts that a judge can stand for, by label and cell, and what to look at first."""

import dataclasses

import numpy as np
import pytest

from analysis.audit.noise import CANNOT_TELL, FEW, MANY, JudgedLabels, label_noise, suspects
from pipelines.errors import UserError

NAMES = ("negative", "positive")


def judged(num: int, accuracy: float, wrong: float = 0.0, seed: int = 0, *, num_labels: int = 2) -> JudgedLabels:
    """Rows with a share `wrong` of wrong labels, judged by a judge that is right of a share `accuracy`; one heuristic."""
    random = np.random.default_rng(seed)
    truth = np.arange(num) % num_labels
    labels, said = truth.copy(), truth.copy()
    flipped, mistaken = random.random(num) < wrong, random.random(num) >= accuracy
    labels[flipped] = (truth[flipped] + random.integers(1, num_labels, flipped.sum())) % num_labels
    said[mistaken] = (truth[mistaken] + random.integers(1, num_labels, mistaken.sum())) % num_labels
    probabilities = np.full((num, num_labels), 0.2 / (num_labels - 1))
    probabilities[np.arange(num), said] = 0.8
    return JudgedLabels(labels, probabilities, np.arange(num), random.random((num, 1)) < 0.5)


def test_a_good_judge_tells_few_from_many() -> None:
    trusted = judged(20_000, 0.99, seed=1)
    few, many = (label_noise(judged(20_000, 0.99, wrong), NAMES, ("overlap",), trusted) for wrong in (0.01, 0.2))
    assert few.in_all.verdict == FEW and few.in_all.interval.low <= 0.01 <= few.in_all.interval.high
    assert many.in_all.verdict == MANY and many.in_all.interval.low <= 0.2 <= many.in_all.interval.high
    assert many.accuracy == pytest.approx(0.99, abs=0.005) and many.in_all.true_labels == pytest.approx((0.5, 0.5), abs=0.02)
    places = [(rate.label, rate.heuristic, rate.holds) for rate in many.rates]
    assert places == [(name, None, None) for name in NAMES] + [
        (name, "overlap", holds) for name in NAMES for holds in (False, True)
    ]
    assert {rate.verdict for rate in many.rates} == {MANY}
    # Without a heuristic there are no cells.
    assert [rate.heuristic for rate in label_noise(judged(2_000, 0.99), NAMES, (), trusted).rates] == [None, None]


def test_a_wrong_label_where_the_heuristic_holds_is_told_there() -> None:
    rows = judged(20_000, 0.99)
    held = rows.holds[:, 0] & (np.arange(20_000) % 5 == 0)
    rows = dataclasses.replace(rows, labels=np.where(held, 1 - rows.labels, rows.labels))
    found = label_noise(rows, NAMES, ("overlap",), judged(20_000, 0.99, seed=1))
    by_cell = {rate.holds: rate for rate in found.rates if rate.label == "positive" and rate.heuristic}
    assert by_cell[True].verdict == MANY and by_cell[True].rate == pytest.approx(0.2, abs=0.02)
    assert by_cell[False].verdict == FEW


def test_a_judge_that_may_err_more_here_than_of_trusted_rows_cannot_tell() -> None:
    # By itself the interval is far below 5%; wrong 1.5 times as rarely here, the judge would have found 5% of 15%.
    found = label_noise(judged(20_000, 0.85), NAMES, (), judged(20_000, 0.85, seed=1)).in_all
    assert found.interval.high < 0.05 and found.verdict == CANNOT_TELL
    assert "wrong 1.5 times as often here" in found.reason
    # Here it errs more than of trusted rows, and no label is wrong: the interval is, the verdict is not.
    shifted = label_noise(judged(20_000, 0.8), NAMES, (), judged(20_000, 0.86, seed=1)).in_all
    assert shifted.interval.low > 0.05 and shifted.verdict == CANNOT_TELL


def test_a_weak_judge_cannot_tell() -> None:
    trusted = judged(20_000, 0.6, seed=1)
    for wrong in (0.0, 0.2):
        found = label_noise(judged(20_000, 0.6, wrong), NAMES, (), trusted)
        assert {rate.verdict for rate in (found.in_all, *found.rates)} == {CANNOT_TELL}
        assert "right of 60" in found.in_all.reason and found.in_all.reason.endswith("it takes 80%")
    guessing = label_noise(judged(2_000, 0.5), NAMES, (), judged(2_000, 0.5, seed=1)).in_all
    assert guessing.verdict == CANNOT_TELL and "does not tell the labels apart" in guessing.reason
    assert (guessing.interval.low, guessing.interval.high, guessing.rate) == (0, 1, None)
    assert guessing.num_rows == 2_000


def test_without_trusted_rows_there_is_no_rate_and_few_only_where_nearly_all_is_agreed_with() -> None:
    good = label_noise(judged(20_000, 0.99, 0.01), NAMES).in_all
    assert good.verdict == FEW and good.rate is None and good.true_labels is None and good.interval.low == 0
    assert 0.01 < good.interval.high < 0.05
    many = label_noise(judged(20_000, 0.99, 0.2), NAMES).in_all
    assert many.verdict == CANNOT_TELL and many.interval.high > 0.2 and "or none" in many.reason
    # Labels that are wrong by a rule are learnt, and agreed with.
    own = label_noise(judged(20_000, 0.99, 0.01), NAMES, knows_labels=True).in_all
    assert own.verdict == CANNOT_TELL and "by a rule" in own.reason and own.interval == good.interval
    guessing = label_noise(judged(2_000, 0.5), NAMES).in_all
    assert guessing.verdict == CANNOT_TELL and guessing.interval.high == 1


def test_suspects_are_where_the_judge_is_confident_of_another_label() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 0, 0, 1])
    # Label 1 is given .9 on average of the rows that have it, label 0 .46: row 2's .8 and row 4's .55 are no confidence.
    rows = JudgedLabels(labels, probabilities, np.arange(6), np.zeros((6, 0), bool))
    found = suspects(rows)
    assert found.rows.tolist() == [3] and (found.given[0], found.suggested[0]) == (0, 1)
    assert found.probability.tolist() == [0.95] and found.given_probability.tolist() == [0.05]
    rows = judged(4_000, 0.95, 0.1)
    truth = np.arange(4_000) % 2
    first = label_noise(rows, NAMES, most_suspects=300).suspects
    assert len(first.rows) == 300 and (rows.labels[first.rows] == first.given).all() and (first.given != first.suggested).all()
    assert (truth[first.rows] == first.suggested).mean() > 0.6


def test_no_rows_are_an_error() -> None:
    with pytest.raises(UserError, match="there are no judged rows"):
        label_noise(judged(0, 0.9), NAMES)
