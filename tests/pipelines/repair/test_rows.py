"""A labelled set without what an audit found: every row is kept, or lost for the first reason that took it."""

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.repair.rows import CHOICES, Findings, Repair, Repaired, repair
from pipelines.repair.weights import odds_ratios


def planted(num_rows: int = 6_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Findings]:
    """Three labels, two nested heuristics that go with label 0, and findings that overlap."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, num_rows)
    overlap = random.random(num_rows) < np.where(label == 0, 0.6, 0.15)
    holds = np.column_stack([overlap, overlap & (random.random(num_rows) < np.where(label == 0, 0.5, 0.3))])
    noisy = np.arange(100, 400)
    copies = [(row, row - 1_000) for row in range(1_050, 1_450)] + [(row, row - 2_000) for row in range(2_000, 2_100)]
    return label, holds, Findings(np.arange(0, 200), noisy, (label[noisy] + 1) % 3, copies)


def test_each_row_is_kept_or_counted_under_the_first_reason_that_took_it() -> None:
    label, holds, findings = planted()
    repaired = repair(label, findings, Repair(seed=4), holds, 0, [1.5, 1.2])
    assert [cost.reason for cost in repaired.costs] == ["leaks", "noisy labels", "copies", "resampled"]
    # 100 of the noisy rows are leaks. The copies' first rows are lost for other reasons but for 50: 400 to 449.
    assert [cost.num_rows for cost in repaired.costs[:3]] == [200, 200, 50]
    assert repaired.num_kept + sum(cost.num_rows for cost in repaired.costs) == len(label)
    by_label = sum((np.bincount(list(cost.by_label), list(cost.by_label.values()), 3) for cost in repaired.costs), np.zeros(3))
    assert by_label.tolist() == (np.bincount(label) - np.bincount(label[repaired.keep])).tolist()
    resampled = repaired.costs[-1]
    assert sum(resampled.by_cell.values()) == resampled.num_rows > 0
    assert {cell[1] for cell in resampled.by_cell} <= {(False, False), (True, False), (True, True)}
    # What an audit of the result says.
    assert repaired.odds_ratios(holds, 0) == pytest.approx([1.5, 1.2], rel=0.02)
    assert repaired.odds_ratios(holds, 0) == pytest.approx(odds_ratios(label[repaired.keep], holds[repaired.keep], 0))
    assert repaired.num_relabelled == 0 and set(repaired.weights) == {0.0, 1.0}


def test_weights_cost_no_row_and_say_what_they_are_worth() -> None:
    label, holds, findings = planted()
    repaired = repair(label, findings, Repair(heuristics="weight"), holds, 0, [1.5, 1.2])
    assert [cost.reason for cost in repaired.costs] == ["leaks", "noisy labels", "copies"]
    assert repaired.odds_ratios(holds, 0) == pytest.approx([1.5, 1.2], rel=1e-4)
    assert repaired.weights[repaired.keep].mean() == pytest.approx(1) and not repaired.weights[~repaired.keep].any()
    assert repaired.reweighted is not None
    assert repaired.effective_size == pytest.approx(repaired.reweighted.effective_size)
    assert 0.3 * repaired.num_kept < repaired.effective_size < repaired.num_kept


def test_noisy_rows_get_the_suggested_label_and_heuristics_go_by_it() -> None:
    label, holds, findings = planted()
    repaired = repair(label, findings, Repair(noisy="relabel", heuristics="keep"), holds, 0, [1.0, 1.0])
    kept = repaired.keep
    # Leaks are gone; copies keep the first, which is there again: 250 rows of 200 to 449, and 100 rows later.
    assert [cost.num_rows for cost in repaired.costs] == [200, 250] and repaired.num_relabelled == 200
    assert np.array_equal(repaired.labels[200:400], (label[200:400] + 1) % 3)
    assert np.array_equal(repaired.labels[400:], label[400:]) and np.array_equal(repaired.labels[:200], label[:200])
    assert repaired.odds_ratios(holds, 0) == pytest.approx(odds_ratios(repaired.labels[kept], holds[kept], 0))
    balanced = repair(label, findings, Repair(noisy="relabel"), holds, 0, [1.0, 1.0])
    assert balanced.odds_ratios(holds, 0) == pytest.approx([1.0, 1.0], rel=0.02)
    assert 0 < balanced.num_relabelled < 200


def test_the_first_of_copies_stays_whatever_the_order_of_the_findings() -> None:
    pairs = [(5, 1), (3, 1), (2, 3), (4, 4)]
    kept = [Repaired.of(np.zeros(6, int)).drop_copies(list(order)).keep.tolist() for order in (pairs, pairs[::-1])]
    # 2 is a copy of 3 only, which is the later one; so 3 is lost to both 1 and 2.
    assert kept == [[True, True, True, False, True, False]] * 2
    # A row whose only copy is lost stays.
    chain = Repaired.of(np.zeros(4, int)).drop_copies([(1, 0), (2, 1), (3, 2)])
    assert chain.keep.tolist() == [True, False, True, False]
    leaked = Repaired.of(np.zeros(3, int)).drop([0], "leaks").drop_copies([(1, 0), (2, 0)])
    assert leaked.keep.tolist() == [False, True, True]


def test_a_repair_goes_by_its_seed() -> None:
    label, holds, findings = planted()
    first, again, other = (repair(label, findings, Repair(seed=seed), holds, 0, [1.0, 1.0]).keep for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and first.sum() == other.sum()


def test_nothing_is_done_that_is_not_asked_for() -> None:
    label, holds, findings = planted()
    untouched = repair(label, findings, Repair(*["keep"] * 4), holds, 0, [1.0, 1.0])
    assert untouched.keep.all() and not untouched.costs and untouched.effective_size == pytest.approx(len(label))
    assert repair(label, Findings(), Repair()).keep.all()
    assert list(CHOICES) == ["leaks", "noisy", "copies", "heuristics"]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: Repair(noisy="mend"), "repair of noisy='mend' is none of drop, relabel, keep; give one of these"),
        (lambda: Repair(leaks="relabel"), "repair of leaks='relabel' is none of drop, keep"),
        (
            lambda: repair(np.zeros(3, int), Findings(leaks=[3]), Repair()),
            "row 3 is none of the set's 3; rows are numbered from 0",
        ),
        (lambda: repair(np.zeros(3, int), Findings(copies=[(1, -1)]), Repair()), "row -1 is none of the set's 3"),
        (lambda: repair(np.zeros(3, int), Findings(noisy=[0]), Repair(noisy="relabel")), "0 suggested labels for 1 noisy rows"),
        (
            lambda: repair(np.zeros(2, int), Findings(leaks=[0, 1]), Repair(), np.zeros((2, 1), bool), 0, [1.0]),
            "no rows are left that could be weighted",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(run, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=words):
        run()
