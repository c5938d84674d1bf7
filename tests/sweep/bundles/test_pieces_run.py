"""Two pieces of one study, each built for real on a store of its own, make the study that one run would have made."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.resources import Resources
from sweep.bundles.bundle import write_bundle
from sweep.bundles.merge import merge_bundles
from sweep.graph.pieces import parse_only
from sweep.graph.records import Store, Study
from sweep.run.session import RayOptions
from sweep.run.study_run import run_study
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
    for seed in (0, 1):
        store, num_built = run(f"piece{seed}", f"seed={seed}")
        study = Study.load(store, "tiny")
        assert study.num_built == num_built < len(study.steps)
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
