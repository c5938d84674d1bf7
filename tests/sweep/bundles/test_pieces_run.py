"""Two pieces of one study, each built for real on a store of its own, make the study that one run would have made."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from analysis.report.report import write_report
from pipelines.resources import Resources
from sweep.bundles.bundle import write_bundle
from sweep.bundles.merge import merge_bundles
from sweep.graph.pieces import parse_only
from sweep.graph.records import Store, Study
from sweep.run.session import RayOptions
from sweep.run.study_run import run_study
from sweep.study.experiment import Experiment
from sweep.study.loading import Loaded
from tests.sweep.run.tiny_study import tiny


@pytest.mark.slow
def test_pieces_make_the_study_of_one_run(tmp_path: Path) -> None:
    experiment = tiny(seeds=(0, 1))
    experiment = replace(experiment, resources={**experiment.resources, "evaluation": Resources(in_process=True)})

    def run(folder: str, only: str | None = None) -> tuple[Store, int]:
        store = Store(tmp_path / folder)
        piece = parse_only(only) if only else None
        result = run_study(
            Loaded(experiment, {}), store, f"sqlite:///{tmp_path}/{folder}.db", RayOptions(max_cpus=2), only=piece
        )
        assert not result.failures
        return store, result.num_built

    parts = []
    for seed, only, num_there in ((0, "shared,seed=0", 0), (1, "seed=1", 1)):
        if seed:
            # It is trained here, and what is finetuned from it needs its weights.
            copytree(tmp_path / "piece0" / "base_model", tmp_path / "piece1" / "base_model")
        store, num_built = run(f"piece{seed}", only)
        study = Study.load(store, "tiny")
        assert study.num_built == num_built + num_there < len(study.steps)
        parts += write_bundle(store, "tiny", tmp_path / f"{seed}.zip", part_size=2**20).parts
    together, whole = Store(tmp_path / "together"), run("whole")[0]
    merge_bundles(together, parts)

    def measured(store: Store) -> dict[str, object]:
        return {
            step.slug: step.record.metrics
            for step in Study.load(store, "tiny").steps
            if step.record and step.stage == "evaluation"
        }

    def content(store: Store) -> dict[str, str]:
        return {step.fingerprint: step.record.content for step in Study.load(store, "tiny").steps if step.record}

    assert content(together) == content(whole)
    assert measured(together).keys() == measured(whole).keys()
    # Nothing is left to do, and nothing is done for lost weights.
    again = run("together")
    assert again[1] == 0


@pytest.mark.slow
def test_pools_of_other_pieces_are_judged_where_the_judge_is(tmp_path: Path) -> None:
    study = tiny(seeds=(0, 1))
    base = replace(study.base_model, hidden_size=64, num_layers=2, intermediate_size=128)
    experiment = replace(study, base_model=base, kinds=("synthetic",), generators=2)
    judged = replace(experiment, judge=60)

    def run(of: Experiment, folder: str, only: str | None = None) -> int:
        piece = parse_only(only) if only else None
        options = RayOptions(max_cpus=2)
        result = run_study(Loaded(of, {}), Store(tmp_path / folder), f"sqlite:///{tmp_path}/{folder}.db", options, only=piece)
        assert not result.failures
        return result.num_built

    run(judged, "first", "shared,seed=0")
    copytree(tmp_path / "first" / "base_model", tmp_path / "second" / "base_model")
    run(experiment, "second", "seed=1")
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    merge_bundles(first, write_bundle(second, "tiny", tmp_path / "second.zip", part_size=2**20, only="seed=1").parts)
    # Of all there is one thing is left to do: the judgement of the second piece's pool.
    assert run(judged, "first") == 1
    study = Study.load(first, "tiny")
    assert study.num_built == len(study.steps)
    assert sorted(step.slug for step in study.steps if step.stage == "judgement") == ["judge-pool", "judge-pool1"]
    report = write_report(first, "tiny", tmp_path / "report")
    assert "Wrong labels in the synthetic pool" in report.path.read_text()
