"""The outcome of the search for a learning rate: what is chosen, and what it must not have been measured on."""

import json
from pathlib import Path

import pytest

from analysis.publication.rates import Rate, chosen, outcome, write_outcome
from pipelines.errors import UserError
from sweep.study.real_study import RATE
from tests.analysis.fake_store import Correct, FakeStudy

RECORD = Path(__file__).parents[3] / "docs/studies/data/rate_search.json"
RIGHT = {0.5: (100, 110), 1.0: (120, 140), 2.0: (150, 100)}
"""Factor → rows of 200 that its starting point and its cell have right."""


def _right(num: int) -> Correct:
    return lambda *_: num


def search(root: Path, *, extra_set: str = "", unbuilt: float = 0) -> str:
    study = FakeStudy(root, "rate_search")
    for factor, (start, cell) in RIGHT.items():
        arms = (f"rate{factor:g}",)
        sets = [("dev", "all", 3), *([(extra_set, "all", 3)] if extra_set else [])]
        # As a starting point has it: four times the rate in batches of 32.
        recipe = {"finetune": {"learning_rate": factor * 4e-4, "batch_size": 32}}
        at = {"starting_size": 50, "kind": "original", "size": 30, "seed": 0, "arms": arms}
        study.add("task_model", f"model{factor}", coordinates=at, config=recipe)
        for kind, size, right in (("none", 0, start), ("original", 30, cell)):
            built, slug = factor != unbuilt, f"{kind}-{factor}"
            study.add_evaluation(50, kind, size, 0, _right(right), sets=sets, slug=slug, built=built, arms=arms)
            study.steps.pop(-2)
    return study.write()


def test_the_rate_with_the_best_mean_of_both_models_is_chosen(tmp_path: Path) -> None:
    said = write_outcome(search(tmp_path), tmp_path / "out/rates.json")
    found = json.loads((tmp_path / "out/rates.json").read_text())
    assert found["chosen"] == 1e-4 and found["num_dev_rows"] == 200 and found["evaluated_sets"] == ["dev"]
    assert [(rate["rate"], rate["start"], rate["cell"]) for rate in found["rates"]] == [
        (5e-5, 0.5, 0.55),
        (1e-4, 0.6, 0.7),
        (2e-4, 0.75, 0.5),
    ]
    assert found["rates"][0]["start_low"] < 0.5 < found["rates"][0]["start_high"]
    assert said.endswith("chosen 0.0001 on 200 dev rows") and "5e-05: start 50.0%, cell 55.0%" in said


def test_of_rates_that_are_alike_the_smallest_is_chosen() -> None:
    rates = [Rate(rate, 0.5, 0.4, 0.6, 0.7, 0.6, 0.8) for rate in (4e-4, 1e-4, 2e-4)]
    assert chosen(rates).rate == 1e-4


def test_without_all_cells_starting_points_decide() -> None:
    rates = [Rate(1e-4, 0.7, 0.6, 0.8, 0.5, 0.4, 0.6), Rate(2e-4, 0.6, 0.5, 0.7, 0.9, 0.8, 1.0)]
    assert chosen(rates).rate == 2e-4
    assert chosen([*rates, Rate(4e-4, 0.5, 0.4, 0.6)]).rate == 1e-4


def test_what_was_not_built_in_time_is_left_out_and_counted(tmp_path: Path) -> None:
    found = outcome(search(tmp_path, unbuilt=1.0))
    assert [rate["rate"] for rate in found["rates"]] == [5e-5, 2e-4] and found["missing"] == 2


def test_a_search_that_saw_another_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rate_search was evaluated on mnli_matched: a rate is chosen by dev rows alone"):
        outcome(search(tmp_path, extra_set="mnli_matched"))


@pytest.mark.skipif(not RECORD.exists(), reason="the search has not been run")
def test_the_studys_rate_is_the_one_that_was_found() -> None:
    found = json.loads(RECORD.read_text())
    assert found["chosen"] == RATE and found["evaluated_sets"] == ["dev"]
