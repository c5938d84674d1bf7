"""Scores and placements, against probabilities and pairs counted one by one."""

import numpy as np
import pytest

from pipelines.evaluate.scoring import entails, placements, scores
from pipelines.tasks.examples import Label


def test_a_score_is_the_log_odds_of_its_label_against_the_others_together() -> None:
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], dtype=np.float32))
    assert scores(logits) == pytest.approx(np.log([0.6 / 0.4, 0.1 / 0.9]), abs=1e-6)
    assert scores(logits, Label.CONTRADICTION) == pytest.approx(np.log([0.1 / 0.9, 0.8 / 0.2]), abs=1e-6)
    assert (scores(logits) > 0).tolist() == entails(logits, "summed").tolist() == [True, False]


def test_scores_do_not_saturate_where_probabilities_do() -> None:
    logits = np.array([[1000, 0, 0], [900, 0, 0], [-1000, 0, -2000]], dtype=np.float32)
    assert scores(logits) == pytest.approx([1000 - np.log(2), 900 - np.log(2), -1000])
    logits[:, 0] += 5
    assert scores(logits) == pytest.approx([1005 - np.log(2), 905 - np.log(2), -995])


def test_placements_by_hand() -> None:
    # 1 is above 0; 3 above both; 2 above 0 and ties with 2. Above 2 is 3, and 2 ties; above 0 are all.
    of_positives, of_negatives = placements(np.array([1.0, 3.0, 2.0]), np.array([2.0, 0.0]))
    assert of_positives.tolist() == [0.5, 1.0, 0.75]
    assert of_negatives.tolist() == [0.5, 1.0]


def test_placements_are_those_of_every_pair() -> None:
    random = np.random.default_rng(0)
    # Few distinct values, so that there are ties.
    positives, negatives = random.integers(0, 9, size=41).astype(float), random.integers(-2, 7, size=29).astype(float)
    above = positives[:, np.newaxis] - negatives
    wins = (above > 0) + 0.5 * (above == 0)
    of_positives, of_negatives = placements(positives, negatives)
    assert of_positives == pytest.approx(wins.mean(axis=1))
    assert of_negatives == pytest.approx(wins.mean(axis=0))


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="2 positives and 0 negatives"):
        placements(np.ones(2), np.ones(0))
    with pytest.raises(ValueError, match="NaN"):
        placements(np.ones(2), np.array([np.nan]))
