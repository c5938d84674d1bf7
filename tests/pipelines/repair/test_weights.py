"""Planted heuristics, of known odds ratios, get the ones asked for: weighted, and in whole rows."""

from itertools import pairwise

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.repair.weights import apportion, odds_ratios, resample, sparing_weights, target_weights


def cells(*counts: tuple[int, tuple[int, ...], int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of (label, which heuristics hold, how many), in an order that mixes the cells."""
    label = np.concatenate([np.full(num, code) for code, _, num in counts])
    holds = np.concatenate([np.tile(np.array(pattern, bool), (num, 1)) for _, pattern, num in counts])
    order = np.random.default_rng(0).permutation(len(label))
    return label[order], holds[order]


# Of three labels; the second heuristic holds only where the first does. Odds ratios by hand, without halves:
# (360 * 1440) / (240 * 640) = 3.375 and (120 * 1640) / (40 * 880) = 5.590…
NESTED = cells(
    (0, (0, 0), 640), (0, (1, 0), 240), (0, (1, 1), 120),
    (1, (0, 0), 780), (1, (1, 0), 130), (1, (1, 1), 30),
    (2, (0, 0), 660), (2, (1, 0), 70), (2, (1, 1), 10),
)  # fmt: skip


def counted(label: np.ndarray, holds: np.ndarray, predicted: int, weights: np.ndarray) -> float:
    """The audit's odds ratio by hand: a half is added to each count."""
    a, b, c, d = (
        sum(weight for code, held, weight in zip(label, holds, weights, strict=True) if (code == predicted, held) == case)
        for case in ((True, True), (False, True), (True, False), (False, False))
    )
    return (a + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5))


def test_odds_ratios_are_counted_with_a_half_added_and_without() -> None:
    label, holds = NESTED
    assert odds_ratios(label, holds, 0, half=0) == pytest.approx([360 * 1440 / (240 * 640), 120 * 1640 / (40 * 880)])
    found = odds_ratios(label, holds, [0, 2])
    ones = np.ones(len(label))
    assert found == pytest.approx([counted(label, holds[:, 0], 0, ones), counted(label, holds[:, 1], 2, ones)])


@pytest.mark.parametrize(
    ("predicted", "targets"), [(0, (1.0, 1.0)), (0, (2.0, 6.0)), (0, (12.0, 3.0)), ((0, 2), (2.0, 1.0)), (0, (3.0, 3.0))]
)
def test_weights_give_each_of_two_nested_heuristics_its_target(
    predicted: int | tuple[int, int], targets: tuple[float, float]
) -> None:
    label, holds = NESTED
    weights = target_weights(label, holds, predicted, targets)
    for index, target in enumerate(targets):
        code = predicted if isinstance(predicted, int) else predicted[index]
        assert counted(label, holds[:, index], code, weights.values) == pytest.approx(target, rel=1e-4)
    assert weights.after == pytest.approx(targets, rel=1e-4) and not weights.unreached
    # Labels and heuristics have the rows that they had, and rows of a cell one weight.
    assert weights.values.mean() == pytest.approx(1)
    for code in range(3):
        assert weights.values[label == code].sum() == pytest.approx((label == code).sum())
    assert weights.shares_kept and weights.values @ holds == pytest.approx(holds.sum(0), rel=1e-4)
    assert len(np.unique(weights.cells)) == 9 and len({*zip(weights.cells, weights.values, strict=True)}) == 9
    assert weights.effective_size == pytest.approx(weights.values.sum() ** 2 / (weights.values**2).sum())
    assert weights.largest == weights.values.max() > 1


def test_what_has_its_target_is_left_alone() -> None:
    label, holds = NESTED
    weights = target_weights(label, holds, 0, odds_ratios(label, holds, 0))
    assert weights.values == pytest.approx(np.ones(len(label)), abs=1e-5)
    assert weights.effective_size == pytest.approx(len(label))
    assert resample(weights, 0).sum() >= len(label) - 1


def test_one_heuristics_weights_are_those_of_the_2x2_table() -> None:
    """With margins of 50 and 50, an odds ratio of 4 has 2/3 and 1/3 in each row: by hand, without halves."""
    label, holds = cells((0, (1,), 45), (0, (0,), 5), (1, (1,), 5), (1, (0,), 45))
    weights = target_weights(label, holds, 0, [4.0], half=0)
    assert set(np.round(weights.values, 4)) == {round(100 / 3 / 45, 4), round(50 / 3 / 5, 4)}
    assert weights.before == pytest.approx([81])


def test_shares_are_let_go_where_nested_heuristics_could_not_have_their_targets_else() -> None:
    label, holds = NESTED
    weights = target_weights(label, holds, 0, [0.05, 30.0])
    assert not weights.shares_kept and not weights.unreached
    assert weights.after == pytest.approx([0.05, 30.0], rel=1e-4)
    assert weights.values[label == 1].sum() == pytest.approx((label == 1).sum())


def test_targets_that_exclude_each_other_are_met_half_way() -> None:
    """Two heuristics that hold of the same rows cannot differ: the nearest to 2 and 8 is 4, twice."""
    label, holds = cells((0, (1, 1), 60), (0, (0, 0), 40), (1, (1, 1), 20), (1, (0, 0), 80))
    weights = target_weights(label, holds, 0, [2.0, 8.0])
    assert weights.after == pytest.approx([4, 4], rel=1e-3)
    assert {index: "beside the other heuristics' targets 4 is the nearest" for index in (0, 1)} == weights.unreached


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (((0, (0,), 9), (1, (0,), 9)), "it holds of no row"),
        (((0, (1,), 9), (1, (1,), 9)), "it holds of every row"),
        (((0, (1,), 9), (0, (0,), 9)), "every row has the label that it predicts"),
        (((1, (1,), 9), (1, (0,), 9)), "no row has the label that it predicts"),
        (((0, (0,), 9), (1, (1,), 9), (1, (0,), 9)), "no row where it holds has the label that it predicts"),
        (((0, (1,), 9), (0, (0,), 9), (1, (0,), 9)), "no row where it holds has another label than it predicts"),
        (((0, (1,), 9), (1, (1,), 9), (1, (0,), 9)), "no row where it does not hold has the label that it predicts"),
        (((0, (1,), 9), (0, (0,), 9), (1, (1,), 9)), "no row where it does not hold has another label than it predicts"),
    ],
)
def test_what_no_weights_can_change_is_named_and_changes_no_weight(counts: tuple, why: str) -> None:
    label, holds = cells(*counts)
    with np.errstate(all="raise"):
        weights = target_weights(label, holds, 0, [2.0])
    assert weights.unreached == {0: why} and np.all(weights.values == 1)
    assert resample(weights, 0).all() and sparing_weights(label, holds, 0, [2.0]).unreached == {0: why}


def test_an_impossible_heuristic_stands_in_no_others_way() -> None:
    label, holds = NESTED
    beside = np.column_stack([holds[:, 0], np.zeros(len(label), bool)])
    weights = target_weights(label, beside, 0, [1.0, 5.0])
    assert weights.unreached == {1: "it holds of no row"}
    assert weights.values == pytest.approx(target_weights(label, holds[:, :1], 0, [1.0]).values)


def test_labels_can_be_given_other_shares() -> None:
    label, holds = NESTED
    weights = target_weights(label, holds, 0, [2.0, 2.0], label_shares=[1, 1, 1], half=0)
    assert [weights.values[label == code].sum() for code in range(3)] == pytest.approx([len(label) / 3] * 3)
    assert odds_ratios(label, holds, 0, weights.values, half=0) == pytest.approx([2, 2], rel=1e-4)


def rounding(label: np.ndarray, holds: np.ndarray) -> float:
    """How far the logarithm of an odds ratio moves if each of its four counts, of two or four cells, is off by two rows."""
    return sum(2 / ((label == 0) == right)[holds == held].sum() for right in (True, False) for held in (True, False))


@pytest.mark.parametrize("make", [target_weights, sparing_weights])
@pytest.mark.parametrize("targets", [(1.0, 1.0), (2.0, 6.0), (12.0, 3.0)])
def test_a_resampled_set_has_the_targets_up_to_whole_rows(make, targets: tuple[float, float]) -> None:  # type: ignore[no-untyped-def]
    label, holds = NESTED
    keep = resample(make(label, holds, 0, targets, half=0), seed=3)
    found = odds_ratios(label[keep], holds[keep], 0, half=0)
    for index, target in enumerate(targets):
        assert abs(np.log(found[index] / target)) < rounding(label[keep], holds[keep, index])
    # Labels keep their shares, to a row.
    shares = np.bincount(label[keep]) - keep.sum() * np.bincount(label) / len(label)
    assert np.abs(shares).max() < 1
    assert 0.1 * len(label) < keep.sum() < len(label)


def test_resampling_by_sparing_weights_loses_fewer_rows() -> None:
    label, holds = NESTED
    plain, sparing = (make(label, holds, 0, (1.0, 1.0)) for make in (target_weights, sparing_weights))
    assert sparing.largest < plain.largest and resample(sparing, 0).sum() > resample(plain, 0).sum()
    assert sparing.after == pytest.approx([1, 1], rel=1e-4) and not sparing.unreached


def test_resampling_keeps_all_of_what_is_scarce() -> None:
    """300 * 600 / (100 * 200) = 9 is brought to 3 by the rows of the two frequent cells, with labels as 5 to 7."""
    label, holds = cells((0, (1,), 300), (1, (1,), 100), (0, (0,), 200), (1, (0,), 600))
    weights = sparing_weights(label, holds, 0, [3.0], half=0)
    keep = resample(weights, 0)
    # Rows of the two scarce cells stay, to 3%.
    kept = {(code, held): ((label == code) & (holds[:, 0] == held) & keep).sum() for code in (0, 1) for held in (True, False)}
    assert kept[1, True] >= 97 and kept[0, False] >= 194
    share = kept[0, True] / 300, kept[1, False] / 600
    assert 9 * share[0] * share[1] == pytest.approx(3, rel=0.05)
    assert (kept[0, True] + kept[0, False]) / keep.sum() == pytest.approx(500 / 1200, abs=1e-3)


def test_resampling_goes_by_its_seed_and_nothing_else() -> None:
    label, holds = NESTED
    weights = target_weights(label, holds, 0, (1.0, 1.0))
    first, again, other = (resample(weights, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(np.bincount(weights.cells[first]), np.bincount(weights.cells[other]))
    # Written out: no library's version must move them.
    label, holds = np.arange(24) % 2, (np.arange(24) % 3 == 0)[:, None]
    holds[[1, 5, 7, 11], 0] = True
    kept = resample(target_weights(label, holds, 1, [1.0]), 7)
    assert np.flatnonzero(kept).tolist() == [0, 1, 3, 5, 6, 8, 10, 12, 13, 14, 15, 17, 18, 19, 22, 23]


def test_whole_numbers_by_share_never_fall_as_the_total_grows() -> None:
    shares = np.array([0.4, 0.0, 0.3, 0.3])
    numbers = [apportion(shares, total) for total in range(60)]
    assert [row.sum() for row in numbers] == list(range(60))
    assert all((later >= earlier).all() for earlier, later in pairwise(numbers))
    assert numbers[10].tolist() == [4, 0, 3, 3]


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_that_is_no_odds_ratio_is_refused(target: float) -> None:
    label, holds = NESTED
    with pytest.raises(UserError, match="is no target: give a number above 0"):
        target_weights(label, holds, 0, [1.0, target])


def test_arrays_that_do_not_fit_are_a_programming_error() -> None:
    label, holds = NESTED
    with pytest.raises(ValueError, match=r"\(1,\) targets for 2 heuristics"):
        target_weights(label, holds, 0, [1.0])
    with pytest.raises(ValueError, match="give \\[n\\] and"):
        target_weights(label[1:], holds, 0, [1.0, 1.0])
    with pytest.raises(ValueError, match="no rows"):
        target_weights(label[:0], holds[:0], 0, [1.0, 1.0])
    with pytest.raises(ValueError, match="give each that has rows one"):
        target_weights(label, holds, 0, [1.0, 1.0], label_shares=[0.5, 0.5, 0.0])
