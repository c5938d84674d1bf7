"""A labelled set without what an audit found: every row is kept, or lost for the first reason that took it."""

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.repair.rows import CHOICES, Repair, Repaired
from pipelines.repair.weights import odds_ratios

NOISY = np.arange(100, 400)
LEAKS = np.arange(0, 200)
COPIES = np.arange(1_050, 1_450)


def planted(num_rows: int = 6_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three labels, and two nested heuristics that go with label 0."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, num_rows)
    overlap = random.random(num_rows) < np.where(label == 0, 0.6, 0.15)
    return label, np.column_stack([overlap, overlap & (random.random(num_rows) < np.where(label == 0, 0.5, 0.3))])


def without_findings(label: np.ndarray) -> Repaired:
    """Without leaks, noisy labels and copies; 100 of the noisy rows are leaks."""
    return Repaired.of(label).drop(LEAKS, "leaks").drop(NOISY, "noisy labels").drop(COPIES, "copies")


def test_each_row_is_kept_or_counted_under_the_first_reason_that_took_it() -> None:
    label, holds = planted()
    repaired = without_findings(label).reweigh(holds, 0, [1.5, 1.2], how="resample", seed=4)
    assert [cost.reason for cost in repaired.costs] == ["leaks", "noisy labels", "copies", "resampled"]
    assert [cost.num_rows for cost in repaired.costs[:3]] == [200, 200, 400]
    assert repaired.num_kept + sum(cost.num_rows for cost in repaired.costs) == len(label)
    by_label = sum((np.bincount(list(cost.by_label), list(cost.by_label.values()), 3) for cost in repaired.costs), np.zeros(3))
    assert by_label.tolist() == (np.bincount(label) - np.bincount(label[repaired.keep])).tolist()
    assert repaired.costs[-1].num_rows > 0
    # What an audit of the result says.
    assert repaired.odds_ratios(holds, 0) == pytest.approx([1.5, 1.2], rel=0.02)
    assert repaired.odds_ratios(holds, 0) == pytest.approx(odds_ratios(label[repaired.keep], holds[repaired.keep], 0))
    assert repaired.num_relabelled == 0 and set(repaired.weights) == {0.0, 1.0}


def test_weights_cost_no_row_and_say_what_they_are_worth() -> None:
    label, holds = planted()
    repaired = without_findings(label).reweigh(holds, 0, [1.5, 1.2], how="weight", seed=0)
    assert [cost.reason for cost in repaired.costs] == ["leaks", "noisy labels", "copies"]
    assert repaired.odds_ratios(holds, 0) == pytest.approx([1.5, 1.2], rel=1e-4)
    assert repaired.weights[repaired.keep].mean() == pytest.approx(1) and not repaired.weights[~repaired.keep].any()
    assert repaired.reweighted is not None
    assert repaired.effective_size == pytest.approx(repaired.reweighted.effective_size)
    assert 0.3 * repaired.num_kept < repaired.effective_size < repaired.num_kept


def test_noisy_rows_get_the_suggested_label_and_heuristics_go_by_it() -> None:
    label, holds = planted()
    repaired = Repaired.of(label).drop(LEAKS, "leaks").relabel(NOISY, (label[NOISY] + 1) % 3)
    kept = repaired.keep
    assert [cost.num_rows for cost in repaired.costs] == [200] and repaired.num_relabelled == 200
    assert np.array_equal(repaired.labels[200:400], (label[200:400] + 1) % 3)
    assert np.array_equal(repaired.labels[400:], label[400:]) and np.array_equal(repaired.labels[:200], label[:200])
    assert repaired.odds_ratios(holds, 0) == pytest.approx(odds_ratios(repaired.labels[kept], holds[kept], 0))
    balanced = repaired.reweigh(holds, 0, [1.0, 1.0], how="resample", seed=0)
    assert balanced.odds_ratios(holds, 0) == pytest.approx([1.0, 1.0], rel=0.02)
    assert 0 < balanced.num_relabelled < 200


def test_resampling_goes_by_its_seed() -> None:
    label, holds = planted()
    first, again, other = (
        Repaired.of(label).reweigh(holds[:, :1], 0, [1.0], how="resample", seed=seed).keep for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other) and first.sum() == other.sum()


def test_the_choices_are_those_of_a_repair_in_the_order_in_which_it_does_them() -> None:
    assert list(CHOICES) == ["leaks", "near_leaks", "originals", "noisy", "copies", "near_copies", "heuristics"]
    assert Repair(**{name: choices[-1] for name, choices in CHOICES.items()}) == Repair(*["keep"] * 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: Repair(noisy="mend"), "repair of noisy='mend' is none of drop, relabel, keep; give one of these"),
        (lambda: Repair(leaks="relabel"), "repair of leaks='relabel' is none of drop, keep"),
        (
            lambda: Repaired.of(np.zeros(3, int)).drop([3], "leaks"),
            "row 3 is none of the set's 3; rows are numbered from 0",
        ),
        (lambda: Repaired.of(np.zeros(3, int)).relabel([-1], [0]), "row -1 is none of the set's 3"),
        (lambda: Repaired.of(np.zeros(3, int)).relabel([0], []), "0 suggested labels for 1 noisy rows"),
        (
            lambda: Repaired.of(np.zeros(2, int)).drop([0, 1], "").reweigh(np.zeros((2, 1)), 0, [1.0], how="weight", seed=0),
            "no rows are left that could be weighted",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(run, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=words):
        run()
