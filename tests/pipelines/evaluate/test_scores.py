"""Scores and placements, against probabilities and pairs counted one by one."""

import math

import numpy as np
import pyarrow as pa
import pytest

from pipelines.evaluate.scoring import Evaluated, is_predicted, placements, score_metrics, scores
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import Label


def test_a_score_is_the_log_odds_of_its_label_against_the_others_together() -> None:
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], dtype=np.float32))
    assert scores(logits, 0) == pytest.approx(np.log([0.6 / 0.4, 0.1 / 0.9]), abs=1e-6)
    assert scores(logits, 2) == pytest.approx(np.log([0.1 / 0.9, 0.8 / 0.2]), abs=1e-6)
    assert (scores(logits, 0) > 0).tolist() == is_predicted(logits, 0, "summed").tolist() == [True, False]


def test_scores_do_not_saturate_where_probabilities_do() -> None:
    logits = np.array([[1000, 0, 0], [900, 0, 0], [-1000, 0, -2000]], dtype=np.float32)
    assert scores(logits, 0) == pytest.approx([1000 - np.log(2), 900 - np.log(2), -1000])
    logits[:, 0] += 5
    assert scores(logits, 0) == pytest.approx([1005 - np.log(2), 905 - np.log(2), -995])


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


def of_scores(*values: float, label: Label = Label.ENTAILMENT) -> np.ndarray:
    """Logits whose scores are these: the other labels' share a probability."""
    logits = np.full((len(values), 3), -np.log(2))
    logits[:, label.index] = values
    return logits


def general_and_probe(shift: float = 0.0) -> list[Evaluated]:
    general = pa.table({"label": ["entailment", "neutral", "contradiction", "neutral"]})
    probe = pa.table(
        {
            "label": ["entailment", "entailment", "non-entailment", "non-entailment", "non-entailment"],
            "heuristic": ["a", "a", "a", "a", "b"],
        }
    )
    return [
        Evaluated("probe", probe, of_scores(*(np.array([3.0, 1.0, 2.0, -4.0, 5.0]) + shift))),
        Evaluated("general", general, of_scores(*(np.array([9.0, -5.0, -4.0, 2.5]) + shift))),
    ]


def test_margin_auc_and_pull_of_items_made_for_a_heuristic_by_hand() -> None:
    # 3 is above 2 and -4, 1 above -4. Against -5, -4 and 2.5: 2 is above two, -4 above one and ties with one; 5 above all.
    # No item of b has entailment.
    expected = {
        "probe/a/margin": -1.0,
        "probe/a/auc": 0.75,
        "probe/a/pull": 3.5 / 6,
        "probe/b/margin": 5.0,
        "probe/b/pull": 1.0,
    }
    assert score_metrics(general_and_probe()) == pytest.approx(expected)
    shifted = expected | {"probe/a/margin": 19.0, "probe/b/margin": 25.0}
    assert score_metrics(general_and_probe(20.0)) == pytest.approx(shifted)
    assert score_metrics(general_and_probe()[:1]) == pytest.approx(
        {name: value for name, value in expected.items() if not name.endswith("pull")}
    )


def test_where_a_heuristic_holds_its_own_label_counts_and_the_pull_is_from_other_items() -> None:
    heuristic = Heuristic("mine", lambda p, h: np.ones(len(p), dtype=bool), predicts=Label.CONTRADICTION)
    table = pa.table({"label": ["contradiction", "neutral", "entailment", "entailment", "contradiction"]})
    holds = np.array([True, True, True, False, False])
    logits = of_scores(1.0, 2.0, -1.0, 0.0, 7.0, label=Label.CONTRADICTION)
    # Wrong for 2 and -1; right for 1. Of their label, and not they themselves: 0.
    assert score_metrics([Evaluated("general", table, logits, [(heuristic, holds)])]) == pytest.approx(
        {"general/holds/mine/margin": 0.5, "general/holds/mine/auc": 0.5, "general/holds/mine/pull": 0.5}
    )


def test_broken_logits_have_no_rank_and_are_not_left_out() -> None:
    probe, general = general_and_probe()
    probe.logits[2, 1] = np.nan
    found = score_metrics([probe, general])
    assert all(math.isnan(found[f"probe/a/{measure}"]) for measure in ("margin", "auc", "pull"))
    assert found["probe/b/margin"] == 5.0
