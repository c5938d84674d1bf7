"""The simulated study has the paper's levels, BERT's noise and HANS's templates."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.simulation.figure1 import (
    HANS_SUBCASES,
    Levels,
    count_verdicts,
    figure1_levels,
    figure1_study,
    judge_by_accuracy_and_scores,
)
from analysis.simulation.scenarios import HANS_TEMPLATES

HANS_FILE = Path(__file__).parents[4] / "shared" / "data" / "hans" / "heuristics_evaluation_set.txt"
SLICE = "lexical_overlap/non-entailment"


def test_levels_are_the_papers() -> None:
    levels = figure1_levels()
    assert len(levels) == 6 * (1 + 3 * 3)
    assert levels[0, "original", 18020] == Levels(0.851, 0.68, 0.859)
    # Six parts of equal size: (6 × 0.68 − 0.859) / 5.
    assert levels[0, "original", 18020].elsewhere == pytest.approx(0.6442)


def test_templates_are_those_of_hans() -> None:
    adversarial = [size for sizes in HANS_SUBCASES["lexical_overlap", "non-entailment"].values() for size in sizes]
    assert sorted(adversarial) == sorted(HANS_TEMPLATES)
    assert all(sum(sizes) == 1000 for of_part in HANS_SUBCASES.values() for sizes in of_part.values())


@pytest.mark.skipif(not HANS_FILE.is_file(), reason="no HANS beside the repository")
def test_subcases_are_those_of_the_real_file() -> None:
    rows = pd.read_csv(HANS_FILE, sep="\t", quoting=3)
    sizes = rows.groupby(["heuristic", "gold_label", "subcase", "template"]).size().groupby(level=[0, 1, 2])
    found = {key: tuple(sorted(of_subcase)) for key, of_subcase in sizes}
    assert found == {(*part, name): sizes for part, of_part in HANS_SUBCASES.items() for name, sizes in of_part.items()}


def test_a_study_of_a_level_has_it_with_the_noise_of_seeds() -> None:
    cells = {(start, "synthetic", 1): Levels(0.85, 0.6, 0.277) for start in range(30)}
    responses = figure1_study(cells, 4, seed=2)
    assert len(responses.predicted["hans"]) == 120
    general = np.stack([responses.accuracy("mnli_matched", "all", [cell]).values for cell in cells])
    adversarial = np.stack([responses.accuracy("hans", SLICE, [cell]).values for cell in cells])
    # All cells see the same items, which deviate together: 0.3 points on MultiNLI, 7 on the slice.
    assert general.mean() == pytest.approx(0.85, abs=0.01)
    assert general.std(axis=1, ddof=1).mean() < 0.006
    assert adversarial.mean() == pytest.approx(0.277, abs=0.15)
    assert 0.06 < adversarial.std(axis=1, ddof=1).mean() < 0.16


def test_a_level_of_one_is_kept_and_a_seed_repeats() -> None:
    cells = {(0, "none", 0): Levels(0.328, 0.5, 1.0)}
    responses = figure1_study(cells, 3, seed=1)
    assert responses.accuracy("hans", SLICE, cells).values.tolist() == [1.0, 1.0, 1.0]
    again = figure1_study(cells, 3, seed=1).predicted["hans"][0, "none", 0, 2]
    assert (again == responses.predicted["hans"][0, "none", 0, 2]).all()
    assert responses.items["hans"].clustered_by == "template"
    assert len(np.unique(responses.items["hans"].strata)) == 6


def test_the_papers_claims_are_judged_on_it() -> None:
    # Of one seed nothing is said of training, whatever the levels.
    verdicts = judge_by_accuracy_and_scores(figure1_study(figure1_levels(), 1, seed=3))
    assert set(verdicts.values()) == {"cannot tell"}
    assert "bias_is_seen" in verdicts
    # What Figure 1 says nothing of is left out.
    assert not any("overlap" in claim for claim in verdicts)


def test_verdicts_are_counted_over_studies() -> None:
    seen = []

    def judge(responses: object) -> dict[str, str]:
        seen.append(responses)
        return {"claim": "supported" if len(seen) > 1 else "cannot tell"}

    counts = count_verdicts(judge, 1, 3, seed=0)
    assert counts == {"claim": Counter({"supported": 2, "cannot tell": 1})}
