"""Planted wrong labels are found again: the rates and their intervals, by label and by heuristic cell."""

import dataclasses

import numpy as np
import pytest

from analysis.stats.label_noise import (
    JudgedRows,
    WrongLabels,
    WrongLabelsAtMost,
    _patterns,
    true_shares,
    wrong_label_bounds,
    wrong_label_rates,
)
from pipelines.errors import UserError

NAMES = ("entailment", "neutral", "contradiction")
NUM_POOL, NUM_GOLD = 20_000, 5_000
# A task model of MultiNLI, and where a heuristic holds one with a blindspot; the second of each is how it judges hard premises.
JUDGE = np.array(
    [
        [
            [[0.92, 0.06, 0.02], [0.07, 0.86, 0.07], [0.02, 0.07, 0.91]],
            [[0.60, 0.30, 0.10], [0.22, 0.56, 0.22], [0.10, 0.28, 0.62]],
        ],
        [
            [[0.97, 0.02, 0.01], [0.30, 0.64, 0.06], [0.15, 0.05, 0.80]],
            [[0.85, 0.11, 0.04], [0.50, 0.38, 0.12], [0.35, 0.15, 0.50]],
        ],
    ]
)
HOLDS = {"pool": (0.12, 0.05, 0.04), "gold": (0.06, 0.03, 0.03)}
"""How often the heuristic holds of true entailments, neutrals and contradictions."""
PLANTED = [("everywhere", 0.0), ("everywhere", 0.02), ("everywhere", 0.1), ("heuristic", 0.02), ("heuristic", 0.1)]


def judged_rows(labels: np.ndarray, truth: np.ndarray, cells: np.ndarray, clusters: np.ndarray, random) -> JudgedRows:
    """Rows that the judge of `JUDGE` has judged; a fourth of the clusters are hard."""
    is_hard = (random.random(clusters.max() + 1) < 0.25).astype(int)[clusters]
    said = (random.random(len(truth))[:, None] > JUDGE[cells, is_hard, truth].cumsum(axis=1)).sum(axis=1)
    return JudgedRows(labels, np.minimum(said, 2), cells, clusters)


def gold(random, num: int = NUM_GOLD) -> JudgedRows:
    """A premise has an entailment, a neutral and a contradiction."""
    truth, clusters = np.arange(num) % 3, np.arange(num) // 3
    cells = (random.random(num) < np.array(HOLDS["gold"])[truth]).astype(int)
    return judged_rows(truth, truth, cells, clusters, random)


def planted_pool(where: str, rate: float, random, num: int = NUM_POOL) -> tuple[JudgedRows, dict[tuple, float]]:
    """A pool with `rate` of its labels wrong, everywhere or of the entailments that the heuristic holds of; the true rates."""
    labels = np.arange(num) % 3
    cells = (random.random(num) < np.array(HOLDS["pool"])[labels]).astype(int)
    may_be_wrong = np.flatnonzero((labels == 0) & (cells == 1)) if where == "heuristic" else np.arange(num)
    wrong = random.permutation(may_be_wrong)[: round(rate * len(may_be_wrong))]
    truth = labels.copy()
    truth[wrong] = (labels[wrong] + random.integers(1, 3, len(wrong))) % 3
    is_wrong = truth != labels
    rates = {(label, None): is_wrong[labels == label].mean() for label in range(3)} | {(None, None): is_wrong.mean()}
    rates |= {(label, cell): is_wrong[(labels == label) & (cells == cell)].mean() for label in range(3) for cell in range(2)}
    return judged_rows(labels, truth, cells, np.arange(num), random), rates


def coverage(where: str, rate: float, num_plantings: int) -> tuple[dict[tuple, int], dict[tuple, float]]:
    """How often the interval of each (label, cell) holds the planted rate, and the mean error of the estimates."""
    within: dict[tuple, int] = {}
    errors: dict[tuple, float] = {}
    for planting in range(num_plantings):
        random = np.random.default_rng([planting, int(1_000 * rate), len(where)])
        pool, planted = planted_pool(where, rate, random)
        for found in wrong_label_rates(pool, gold(random), NAMES, 2, seed=planting, num_draws=400):
            key = (found.label, found.cell)
            is_within = found.interval.low <= planted[key] <= found.interval.high
            within[key] = within.get(key, 0) + is_within
            errors[key] = errors.get(key, 0.0) + (found.rate - planted[key]) / num_plantings
    return within, errors


@pytest.mark.parametrize(("where", "rate"), PLANTED[1::3])
def test_planted_rates_are_within_the_intervals(where: str, rate: float) -> None:
    # At 95%, 17 of 20 are reached in 98% of such tests.
    within, _ = coverage(where, rate, 20)
    assert min(within.values()) >= 17, within


@pytest.mark.slow
@pytest.mark.parametrize(("where", "rate"), PLANTED)
def test_planted_rates_are_within_at_least_90_of_100_intervals(where: str, rate: float) -> None:
    within, errors = coverage(where, rate, 100)
    assert min(within.values()) >= 90, within
    # In all, over cells, nothing is cut off that would be missed on average.
    assert abs(errors[None, None]) < 0.006, errors


def found(rates: list[WrongLabels], label: int | None, cell: int | None) -> WrongLabels:
    (one,) = [rate for rate in rates if (rate.label, rate.cell) == (label, cell)]
    return one


def test_ten_percent_among_the_heuristics_entailments_are_told_from_none_elsewhere() -> None:
    random = np.random.default_rng(1)
    pool, planted = planted_pool("heuristic", 0.1, random)
    rates = wrong_label_rates(pool, gold(random, 30_000), NAMES, 2, seed=0)
    held, others = found(rates, 0, 1), found(rates, 2, 0)
    assert 0.04 < held.interval.low < planted[0, 1] == pytest.approx(0.1, abs=1e-3) and held.is_identified
    assert others.interval.low == 0 and others.interval.high < 0.03
    # The judge disagrees with far more labels than are wrong.
    assert others.share_disagreed > 0.1 > others.rate + 0.08
    assert held.num_rows == ((pool.labels == 0) & (pool.cells == 1)).sum() and 900 < held.num_gold < 1_500


def test_intervals_hold_the_error_of_the_gold_rows_and_of_clusters() -> None:
    random = np.random.default_rng(2)
    pool, _ = planted_pool("everywhere", 0.1, random)
    few, many = gold(random, 1_500), gold(random, 60_000)
    # Each row nine times over says no more than once.
    copies = JudgedRows(*(np.repeat(getattr(few, name), 9) for name in ("labels", "judged", "cells", "clusters")))
    widths = []
    for rows in (few, many, copies, dataclasses.replace(copies, clusters=np.arange(9 * 1_500))):
        interval = found(wrong_label_rates(pool, rows, NAMES, 2, seed=0), None, None).interval
        widths.append(interval.high - interval.low)
    assert widths[0] > 2 * widths[1]
    assert widths[2] == pytest.approx(widths[0], rel=0.2)
    assert widths[0] > 2 * widths[3]


def counted(counts: list[list[int]], cell: int = 0) -> JudgedRows:
    """Rows by label and judged label, each a cluster of its own."""
    labels, judged = np.nonzero(np.array(counts))
    repeats = np.array(counts)[labels, judged]
    labels, judged = np.repeat(labels, repeats), np.repeat(judged, repeats)
    return JudgedRows(labels, judged, np.full(len(labels), cell), np.arange(len(labels)))


def test_of_two_labels_it_is_the_correction_of_rogan_and_gladen() -> None:
    # Sensitivity .8, specificity .9; of rows labelled 1 it says 1 of 66%: (.66 + .9 - 1) / (.8 + .9 - 1) = .8 are right.
    confusion = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert true_shares(confusion, np.array([0.34, 0.66])) == pytest.approx([0.2, 0.8], abs=1e-5)
    rows = wrong_label_rates(
        counted([[9_000, 1_000], [3_400, 6_600]]), counted([[9_000, 1_000], [2_000, 8_000]]), ("no", "yes"), 1, seed=0
    )
    assert found(rows, 1, 0).rate == pytest.approx(0.2, abs=1e-3)
    assert found(rows, 0, 0).rate == pytest.approx(0, abs=2e-3)
    assert found(rows, None, None).rate == pytest.approx(0.1, abs=1e-3)


def test_a_judge_that_agrees_more_than_it_can_leaves_shares_where_they_can_be() -> None:
    # The inverse gives (.95 + .9 - 1) / .7 = 1.21.
    assert true_shares(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0.05, 0.95])) == pytest.approx([0, 1], abs=1e-4)


def test_a_judge_at_chance_is_refused_with_a_way_out() -> None:
    random = np.random.default_rng(3)
    pool, _ = planted_pool("everywhere", 0.02, random)
    truth = np.arange(NUM_GOLD) % 3
    guesses = JudgedRows(truth, random.integers(0, 3, NUM_GOLD), np.zeros(NUM_GOLD, int), np.arange(NUM_GOLD))
    with pytest.raises(UserError, match=r"5,000 gold rows the judge does not tell the labels apart .* train it on more"):
        wrong_label_rates(pool, guesses, NAMES, 2, seed=0)
    # It knows entailments, and takes neutrals and contradictions for each other.
    two_alike = np.where(truth == 0, 0, random.integers(1, 3, NUM_GOLD))
    with pytest.raises(UserError, match="does not tell the labels apart"):
        wrong_label_rates(pool, JudgedRows(truth, two_alike, guesses.cells, guesses.clusters), NAMES, 2, seed=0)


def test_gold_rows_of_each_label_and_a_pool_with_rows_are_asked_for() -> None:
    pool = counted([[8, 1, 1], [1, 8, 1], [1, 1, 8]])
    with pytest.raises(UserError, match="no gold row is labelled contradiction"):
        wrong_label_rates(pool, counted([[8, 1, 1], [1, 8, 1], [0, 0, 0]]), NAMES, 1, seed=0)
    with pytest.raises(UserError, match="the pool has no judged rows"):
        wrong_label_rates(counted([[0] * 3] * 3), pool, NAMES, 1, seed=0)


def test_a_cell_with_too_few_gold_rows_may_be_all_right_or_all_wrong() -> None:
    good = counted([[800, 100, 100], [100, 800, 100], [100, 100, 800]])
    few = counted([[1, 1, 0], [1, 0, 1], [0, 1, 1]], cell=1)
    rows = {name: np.concatenate([getattr(good, name), getattr(few, name)]) for name in ("labels", "judged", "cells")}
    both = JudgedRows(**rows, clusters=np.arange(3_006))
    rates = wrong_label_rates(both, both, NAMES, 2, seed=0)
    unknown = found(rates, 0, 1)
    assert not unknown.is_identified and (unknown.interval.low, unknown.interval.high) == (0, 1)
    assert found(rates, 0, 0).is_identified
    none = wrong_label_rates(both, good, NAMES, 2, seed=0)
    assert found(none, 0, 1).num_gold == 0 and not found(none, 0, 1).is_identified
    # Six of 3,006 rows may be wrong, and the others' interval comes on top.
    assert found(rates, None, None).interval.high < found(rates, 0, 0).interval.high + 0.01


def test_the_true_labels_are_those_that_were_planted_and_agree_with_the_rate() -> None:
    random = np.random.default_rng(5)
    labels = np.repeat(np.arange(3), 8_000)
    truth = labels.copy()
    # A fifth of what is labelled entailment is neutral, and a tenth contradiction.
    truth[:1_600], truth[1_600:2_400] = 1, 2
    cells = (random.random(len(labels)) < 0.2).astype(int)
    pool = judged_rows(labels, truth, cells, np.arange(len(labels)), random)
    rates = wrong_label_rates(pool, gold(random, 60_000), NAMES, 2, seed=0)
    assert found(rates, 0, None).true_labels == pytest.approx((0.7, 0.2, 0.1), abs=0.05)
    assert found(rates, None, None).true_labels == pytest.approx((0.7 / 3, 0.4, 1.1 / 3), abs=0.03)
    for rate in rates:
        assert sum(rate.true_labels) == pytest.approx(1) and min(rate.true_labels) >= 0
        assert rate.label is None or 1 - rate.true_labels[rate.label] == pytest.approx(rate.rate, abs=1e-9)


def test_a_judge_that_errs_more_in_the_pool_is_within_the_wider_interval_only() -> None:
    # Of gold rows it is wrong of a tenth, of the pool's of 14%: none of the labels is.
    pool = counted([[8_600, 1_400], [1_400, 8_600]])
    in_all = found(wrong_label_rates(pool, counted([[9_000, 1_000], [1_000, 9_000]]), ("no", "yes"), 1, seed=0), None, None)
    assert in_all.interval.low > 0.03 and in_all.rate == pytest.approx(0.05, abs=0.002)
    wide = in_all.if_errors_differ
    assert wide.low == 0
    # If it were wrong of a fifteenth only, (.14 - 1/15) / (1 - 2/15) of the labels were wrong.
    assert wide.high == pytest.approx((0.14 - 1 / 15) / (1 - 2 / 15), abs=0.01)


def at_most(bounds: list[WrongLabelsAtMost], label: int | None, cell: int | None) -> WrongLabelsAtMost:
    (one,) = [bound for bound in bounds if (bound.label, bound.cell) == (label, cell)]
    return one


def test_without_gold_rows_a_judge_that_never_errs_bounds_the_rate_by_what_it_disagrees_with() -> None:
    # Of true entailments 20% are labelled neutral, of true neutrals none.
    bounds = wrong_label_bounds(counted([[8_000, 0], [2_000, 10_000]]), 2, 1, seed=0)
    assert at_most(bounds, None, None).bound == pytest.approx(0.1, abs=0.001)
    assert at_most(bounds, 1, 0).bound == pytest.approx(2_000 / 12_000, abs=0.001)
    assert at_most(bounds, 0, None).bound == pytest.approx(0, abs=0.001)
    assert at_most(bounds, None, None).bound < at_most(bounds, None, None).high < 0.11


@pytest.mark.parametrize(("where", "rate"), PLANTED)
def test_without_gold_rows_what_was_planted_is_within_the_bounds(where: str, rate: float) -> None:
    for planting in range(3):
        pool, planted = planted_pool(where, rate, np.random.default_rng([planting, 7]))
        for bound in wrong_label_bounds(pool, 3, 2, seed=0, num_draws=200):
            assert bound.high >= planted[bound.label, bound.cell]
            assert bound.num_rows > 0 and bound.bound <= 1


def test_without_gold_rows_a_judge_at_chance_bounds_nothing() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(3_000) % 3
    guesses = JudgedRows(labels, random.integers(0, 3, 3_000), np.zeros(3_000, int), np.arange(3_000))
    bounds = wrong_label_bounds(guesses, 3, 1, seed=0)
    assert not any(bound.is_identified for bound in bounds) and {bound.high for bound in bounds} == {1.0}
    with pytest.raises(UserError, match="the pool has no judged rows"):
        wrong_label_bounds(counted([[0] * 3] * 3), 3, 1, seed=0)


def test_clusters_with_equal_counts_are_found_whatever_order_their_rows_have() -> None:
    random = np.random.default_rng(0)
    clusters, places = random.integers(0, 400, 1_000), random.integers(0, 5, 1_000)
    _, cluster = np.unique(clusters, return_inverse=True)
    counts = np.zeros((cluster.max() + 1, 5), int)
    np.add.at(counts, (cluster, places), 1)
    expected, multiplicity = np.unique(counts, axis=0, return_counts=True)
    patterns, found_multiplicity = _patterns(clusters, places, 5)
    assert patterns.tolist() == expected.tolist() and found_multiplicity.tolist() == multiplicity.tolist()
    assert multiplicity.max() > 5
