"""The AUC's replicates: by hand, against DeLong's formula, and how often an interval holds the truth."""

import math

import numpy as np
import pytest
from scipy.special import ndtr

from analysis.stats.intervals import Replicates
from analysis.stats.ranking import auc_replicates
from pipelines.evaluate.scoring import placements


def replicates_of(positives: np.ndarray, negatives: np.ndarray, clusters: np.ndarray, strata: np.ndarray) -> Replicates:
    """Of scores [n, P] and [n, N]."""
    placed = [placements(*scores) for scores in zip(positives, negatives, strict=True)]
    of_positives, of_negatives = (np.stack([pair[side] for pair in placed]) for side in (0, 1))
    return auc_replicates(range(len(positives)), of_positives, of_negatives, clusters, strata)


def test_auc_and_its_variance_by_hand() -> None:
    # Placements .5, 1, .75 (variance .0625) and .5, 1 (variance .125). DeLong's variance, .0625 / 3 + .125 / 2, with the
    # jackknife's 3 - 1 and 2 - 1: .03125 + .125.
    found = replicates_of(np.array([[1.0, 3.0, 2.0]]), np.array([[2.0, 0.0]]), np.arange(5), np.array([0, 0, 0, 1, 1]))
    assert found.values.tolist() == [0.75]
    assert found.residuals == pytest.approx(np.array([[-0.25 / 3, 0.25 / 3, 0.0, -0.125, 0.125]]))
    assert found.effect().item_variance == pytest.approx(0.15625)
    assert found.num_items == 5


@pytest.mark.parametrize("apart", [True, False])
def test_the_variance_of_many_items_is_delongs(apart: bool) -> None:
    random = np.random.default_rng(1)
    positives, negatives = random.normal(1, 1, size=(1, 400)), random.normal(0, 2, size=(1, 300))
    strata = np.repeat([0, 1 if apart else 0], [400, 300])
    of_positives, of_negatives = placements(positives[0], negatives[0])
    delong = of_positives.var(ddof=1) / 400 + of_negatives.var(ddof=1) / 300
    assert replicates_of(positives, negatives, np.arange(700), strata).effect().item_variance == pytest.approx(delong, rel=0.01)


def test_a_cluster_of_both_sides_adds_what_its_items_add_together() -> None:
    # Each cluster has a positive and a negative that lie the same way: what one adds the other takes away.
    positives, negatives = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.0]]) - 0.5
    together = replicates_of(positives, negatives, np.array([0, 1, 2, 0, 1, 2]), np.zeros(6, dtype=int))
    apart = replicates_of(positives, negatives, np.arange(6), np.zeros(6, dtype=int))
    assert together.values == apart.values == pytest.approx(6 / 9)
    assert apart.residuals == pytest.approx(np.array([[-1, 0, 1, 1, 0, -1]]) / 9)
    assert together.residuals == pytest.approx(np.zeros((1, 3)))


def test_few_positives_count_as_few_among_many_negatives() -> None:
    random = np.random.default_rng(2)
    found = replicates_of(random.normal(size=(2, 8)), random.normal(size=(2, 800)), np.arange(808), np.zeros(808, dtype=int))
    # Half of the weight is on 8 items: 1 / (8 × (1/16)² + 800 × (1/1600)²) - 1.
    assert found.effect().item_df == pytest.approx(1 / (1 / 32 + 1 / 3200) - 1)


def test_intervals_of_a_difference_hold_the_truth_as_often_as_they_say() -> None:
    """400 studies of 5 seeds, 20 templates of 5 items a side. Scores are normal: an AUC is Φ(distance / √variance)."""
    random = np.random.default_rng(3)
    num_seeds, num_templates, each = 5, 20, 5
    clusters = np.repeat(np.arange(2 * num_templates), each)
    strata = np.repeat([0, 1], num_templates * each)
    seed_sd, shared_sd, effect_sd, noise_sd = 0.2, 0.8, 0.4, 1.0
    variance = 2 * (shared_sd**2 + effect_sd**2 + noise_sd**2) + seed_sd**2
    truth = ndtr(1.0 / math.sqrt(variance)) - ndtr(0.4 / math.sqrt(variance))
    covered = covered_by_seeds = 0
    for _ in range(400):
        shared = random.normal(size=2 * num_templates) * shared_sd
        sides = []
        for distance in (1.0, 0.4):
            of_template = np.repeat(shared + random.normal(size=2 * num_templates) * effect_sd, each)
            scores = of_template + random.normal(size=(num_seeds, len(clusters))) * noise_sd
            positives, negatives = np.split(scores, 2, axis=1)
            positives = positives + distance + random.normal(size=(num_seeds, 1)) * seed_sd
            sides.append(replicates_of(positives, negatives, clusters, strata))
        effect = sides[0].minus(sides[1]).effect()
        interval = effect.interval()
        assert interval is not None
        covered += interval.low <= truth <= interval.high
        half = 2.776 * math.sqrt(effect.seed_variance / num_seeds)
        covered_by_seeds += abs(effect.mean - truth) <= half
    assert 0.93 <= covered / 400 <= 0.99
    assert covered_by_seeds / 400 < 0.9
