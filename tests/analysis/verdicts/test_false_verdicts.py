"""How often primary claims are decided where nothing is true, and where it is: over further seeds, or generators as units."""

import numpy as np
import pytest

from analysis.stats.intervals import Effect
from analysis.verdicts.judgement import Outcome
from analysis.verdicts.questions import Part, Question, Setting
from analysis.verdicts.verdicts import judge_questions

NUM_STUDIES = 250
NUM_CLAIMS, NUM_SETTINGS = 5, 4


def decided(num_units: int, difference: float, seed: int) -> tuple[float, float]:
    """The share of studies with a primary claim that is decided, and the mean share of the claims that are supported.

    Differences of a unit deviate by 10 points, half of the variance being shared by all claims and settings of the unit, which
    the rules must hold under.
    """
    random = np.random.default_rng(seed)
    any_decided = supported = 0
    for _ in range(NUM_STUDIES):
        shared = random.standard_normal(num_units)
        own = random.standard_normal((NUM_CLAIMS, NUM_SETTINGS, num_units))
        values = difference + 0.1 * (shared + own) / np.sqrt(2)
        asked = []
        for claim, of_claim in enumerate(values):
            parts = [
                Part("d", Effect(float(one.mean()), num_units, 5000, float(one.var(ddof=1)), 0.0), -1, by_seed=tuple(one))
                for one in of_claim
            ]
            settings = tuple(Setting(str(place), (part,)) for place, part in enumerate(parts))
            rule = "every" if claim == 0 else "most"
            asked.append(Question(f"c{claim}", "", settings, parts[0], rule=rule, margin=1e-9))
        verdicts = [judgement.verdict for judgement in judge_questions(asked).judgements]
        any_decided += any(verdict != Outcome.CANNOT_TELL for verdict in verdicts)
        supported += sum(verdict == Outcome.SUPPORTED for verdict in verdicts) / NUM_CLAIMS
    return any_decided / NUM_STUDIES, supported / NUM_STUDIES


@pytest.mark.parametrize("num_units", [3, *(pytest.param(num, marks=pytest.mark.slow) for num in (5, 10))])
def test_where_nothing_is_true_a_study_decides_something_in_one_of_twenty_at_most(num_units: int) -> None:
    found, _ = decided(num_units, 0.0, seed=num_units)
    # Two Monte Carlo standard errors above 5%.
    assert found <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / NUM_STUDIES)


def test_where_it_is_true_ten_units_see_it() -> None:
    _, supported = decided(10, -0.2, seed=1)
    assert supported > 0.9
