"""The intervals' promise, on small simulated studies with fixed seeds; the whole table is docs/coverage.md."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.simulation.differences import coverage
from analysis.simulation.scenarios import HANS_TEMPLATES, MNLI_PREMISES, hans
from analysis.stats.intervals import Replicates
from analysis.verdicts.judgement import Judgement, Outcome
from analysis.verdicts.questions import Part, Question, Setting
from analysis.verdicts.verdicts import judge_questions

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_clusters_have_the_sizes_of_the_real_sets() -> None:
    assert (HANS_TEMPLATES.sum(), len(HANS_TEMPLATES)) == (5000, 25)
    assert (MNLI_PREMISES.sum(), len(MNLI_PREMISES)) == (9815, 3334)


@pytest.mark.skipif(not DATA.is_dir(), reason="no MultiNLI and HANS beside the repository")
def test_clusters_are_those_of_the_real_files() -> None:
    hans_rows = pd.read_csv(DATA / "hans" / "heuristics_evaluation_set.txt", sep="\t", quoting=3)
    chosen = hans_rows[(hans_rows["heuristic"] == "lexical_overlap") & (hans_rows["gold_label"] == "non-entailment")]
    assert sorted(chosen.groupby(["subcase", "template"]).size()) == sorted(HANS_TEMPLATES)
    mnli_file = next(DATA.glob("multinli*/multinli_1.0_dev_matched.jsonl"))
    mnli_rows = pd.read_json(mnli_file, lines=True)
    labelled = mnli_rows[mnli_rows["gold_label"] != "-"]
    assert sorted(labelled.groupby("sentence1").size()) == sorted(MNLI_PREMISES)


def test_the_simulated_accuracy_is_the_one_asked_for() -> None:
    control, treatment = hans("", -0.10).draw(20, 400, np.random.default_rng(3))
    assert control.sum(axis=-1).mean() / 5000 == pytest.approx(0.277, abs=0.01)
    assert treatment.sum(axis=-1).mean() / 5000 == pytest.approx(0.177, abs=0.01)
    # 12.4 points over the seeds that see the same items.
    assert (control.sum(axis=-1) / 5000).std(axis=1, ddof=1).mean() == pytest.approx(0.124, abs=0.01)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_coverage_and_type_one_error_on_hans(num_seeds: int) -> None:
    found = coverage(hans(""), num_seeds, seed=11, num=1000)
    # The Monte Carlo standard error is 0.7 points.
    assert 0.93 <= found.covered <= 0.985
    assert found.rejected <= 0.06
    # Were the interval twice as wide, or half, it would be seen here and above.
    assert found.bootstrap < found.covered


def test_seeds_alone_do_not_cover_where_templates_matter() -> None:
    found = coverage(hans("", effect_sd=0.6), 20, seed=11, num=500)
    assert found.over_seeds_only < 0.85
    assert found.covered > 0.93


def ten_points(num_seeds: int) -> Judgement:
    """100 runs of each kind, 10 points apart, of which the first are judged."""
    control, treatment = (side[0] for side in hans("", -0.10).draw(100, 1, np.random.default_rng(2)))
    values = (treatment - control).sum(axis=-1) / 5000
    residuals = (treatment - control - values[:, np.newaxis] * HANS_TEMPLATES) / 5000
    data = Replicates(tuple(range(100)), values, residuals, HANS_TEMPLATES, np.zeros(25, dtype=int), 5000).of(range(num_seeds))
    part = Part.of("difference", data, -1)
    (found,) = judge_questions([Question("less", "It is less.", (Setting("", (part,)),), part)]).judgements
    return found


def test_ten_points_cannot_be_told_with_5_of_100_runs_and_are_supported_with_30() -> None:
    few, many = ten_points(5), ten_points(30)
    assert few.verdict == Outcome.CANNOT_TELL
    assert few.low < -0.10 < few.high
    assert many.verdict == Outcome.SUPPORTED
    assert many.high < 0
    assert many.num_units == 30
