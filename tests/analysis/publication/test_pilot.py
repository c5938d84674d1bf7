"""The number of seeds from a pilot: the plan's rule, what it is taken from, and what is kept of it."""

from pathlib import Path

import pytest

from analysis.publication.__main__ import main
from analysis.publication.pilot import DIFFERENCE, EFFECT, FEWEST, MOST, number_of_seeds, outcome, sentence
from analysis.verdicts.evidence import load_evidence
from analysis.verdicts.power import POWER, pilot
from sweep.graph.records import Store
from sweep.graph.sealed import unseal
from tests.analysis.item_study import ItemStudy, clear

PLAN = Path(__file__).parents[3] / "docs/studies/qwen-plan.md"


def pilot_store(root: Path, *, num_seeds: int = 2, jitter: float = 64) -> Store:
    study = ItemStudy(root, clear, jitter=jitter)
    study.grid(starting_sizes=(0,), num_seeds=num_seeds)
    return Store(study.write())


@pytest.mark.parametrize(("needed", "number"), [(2, 6), (6, 6), (7, 7), (12, 12), (13, 12), (None, 12)])
def test_the_number_is_what_the_pilot_asks_for_within_the_plans_bounds(needed: int | None, number: int) -> None:
    assert number_of_seeds(needed) == number


def test_the_rule_is_the_plans() -> None:
    text = " ".join(PLAN.read_text().split())
    assert (
        f"the smallest of at least {FEWEST} with which `blindsweep power study_qwen_pilot` sees {100 * EFFECT:g} points" in text
    )
    assert f"(its row '{DIFFERENCE}') with {POWER:.0%}; and at most {MOST}" in text


def test_what_is_kept_is_powers_own_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = pilot_store(tmp_path / "store")
    found = outcome(store, "tiny")
    (variance,) = [one for one in pilot(load_evidence(store, "tiny"))[0] if one.metric.startswith(DIFFERENCE)]
    assert found["seed_sd"] ** 2 == pytest.approx(variance.seed_variance) and found["seeds"] == [0, 1]
    assert found["needed"] == variance.seeds_for(0.05) and found["chosen"] == number_of_seeds(found["needed"])
    said = sentence(found)
    assert "The pilot's seeds 0 and 1 give" in said and said.endswith(f"the study gets {found['chosen']}.")
    (tmp_path / "store/studies/tiny.json").rename(tmp_path / "store/studies/tiny_pilot.json")
    for name in ("tiny", "tiny_pilot"):
        assert main(["seeds", name, "--store", str(tmp_path / "store"), "--data", str(tmp_path / "data")]) == 0
        assert said == capsys.readouterr().out.strip()
    kept = unseal((tmp_path / "data/tiny_pilot.json").read_bytes())
    assert {**kept, "study": "tiny"} == found


def test_a_pilot_of_one_seed_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = pilot_store(tmp_path / "store", num_seeds=1)
    (tmp_path / "store/studies/tiny.json").rename(tmp_path / "store/studies/tiny_pilot.json")
    assert main(["seeds", "tiny", "--store", str(store.uri), "--data", str(tmp_path / "data")]) == 1
    assert "a pilot needs two" in capsys.readouterr().err and not (tmp_path / "data").exists()
