"""Challenge sets in the studies on MultiNLI: what they add to the grid and the plan, and what is said of a missing one."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.data.sources import FILES, HANS_COLUMNS, NLISourcesConfig
from pipelines.errors import UserError
from sweep.graph.step import Step
from sweep.study.experiment import Experiment
from sweep.study.experiments import paper, paper_fast
from sweep.study.grid import build_grid
from sweep.study.inputs import missing_inputs, with_inputs
from sweep.study.loading import load_experiment

ALL = ("hans", "mnli_hard", "med", "scone", "neg_nli")
STUDY = {"starting_sizes": (0,), "training_sizes": (18_020,)}


def steps_by_fingerprint(study: Experiment) -> dict[str, Step]:
    return {step.fingerprint: step for step in build_grid(study)}


def write_data(folder: Path, num_rows: int = 21_000) -> None:
    folder.mkdir()
    row = json.dumps({"gold_label": "neutral", "sentence1": "a", "sentence2": "b"})
    for name in FILES[:3]:
        (folder / name).write_text(f"{row}\n" * num_rows)
    cells = ["entailment", *["x"] * 7, "lexical_overlap", "x", "x"]
    (folder / FILES[3]).write_text("\n".join(["\t".join(HANS_COLUMNS), *["\t".join(cells)] * 30_000]) + "\n")


@pytest.mark.parametrize("study", [paper, paper_fast])
def test_challenge_sets_are_evaluated_and_change_nothing_else(study: Callable[..., Experiment]) -> None:
    without, with_all = (steps_by_fingerprint(study(**STUDY, challenges=names)) for names in ((), ALL))
    added = [step for fingerprint, step in with_all.items() if fingerprint not in without]
    assert Counter(step.stage for step in added) == {"sources": 1, "evaluation": 4}
    sources = next(step for step in added if step.stage == "sources")
    assert {step.inputs["sources"].fingerprint for step in added if step.stage == "evaluation"} == {sources.fingerprint}
    assert study(challenges=ALL).evaluation.sets == ("mnli_matched", "mnli_mismatched", *ALL)
    assert len({step.name for step in with_all.values()}) == len(with_all)


def test_a_judge_is_measured_by_the_general_set_even_if_only_evaluations_have_it() -> None:
    study = paper(**STUDY, challenges=("mnli_hard",))
    inputs = {}
    for general_set in ("mnli_matched", "mnli_hard"):
        steps = build_grid(replace(study, judge=1_000, general_set=general_set))
        sources = {step.fingerprint: step.slug for step in steps if step.stage == "sources"}
        (judgement,) = (step for step in steps if step.stage == "judgement")
        inputs[general_set] = sources[judgement.inputs["sources"].fingerprint]
    assert inputs == {"mnli_matched": "data", "mnli_hard": "data-with-test-sets"}


def test_hans_is_there_without_being_asked_for() -> None:
    assert paper(challenges=("hans",)) == paper()


def test_a_plan_counts_the_examples_of_the_sets() -> None:
    counts = paper(challenges=ALL).sources.counts("nowhere")
    assert {name: counts[f"{name}/num_examples"] for name in ALL} == {
        "hans": 30_000,
        "mnli_hard": 19_647,
        "med": 5_382,
        "scone": 7_212,
        "neg_nli": 1_500,
    }


def test_a_missing_set_is_named_by_the_plan_and_stops_a_run(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    data = str(tmp_path / "data")
    study = paper(data, **STUDY, challenges=("med", "scone"))
    (line, _) = missing_inputs(study)
    assert line.startswith(f"data: {data} has no challenge/med/MED.tsv, challenge/scone/train/no_negation.csv, ")
    assert line.endswith(" and 9 files more")
    with pytest.raises(UserError, match=r"has no challenge/med/MED.tsv; get it with `blindsweep data fetch --challenges med"):
        with_inputs(study)


def test_a_run_describes_a_set_that_appeared_since_the_plan(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "tokenizer.json").write_text("{}")
    study = paper(str(tmp_path / "data"), str(tmp_path), **STUDY, challenges=("neg_nli",), weights="random")
    (tmp_path / "data/challenge/neg_nli").mkdir(parents=True)
    lines = ["index\tText\tHypothesis\tgold_label", *(f"{i}\tA.\tB.\tneutral" for i in range(3))]
    (tmp_path / "data/challenge/neg_nli/MNLI.txt").write_text("\n".join(lines) + "\n")
    described = with_inputs(replace(study, rehearsal=True)).sources
    assert isinstance(described, NLISourcesConfig)
    (challenge,) = described.challenges
    assert challenge.name == "neg_nli" and challenge.files[0].is_known


def test_an_unknown_set_is_refused_with_those_that_there_are() -> None:
    assert load_experiment("paper", ["challenges=med,hans"]).experiment.evaluation.sets[-1] == "med"
    with pytest.raises(
        UserError, match=r"challenges=snli_hard: there is no such .*; valid: hans, mnli_hard, med, scone, neg_nli"
    ):
        load_experiment("paper", ["challenges=snli_hard"])
