"""The plan names the field that caused a rebuild."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.finetuning import FinetuneConfig
from sweep import stages
from sweep.experiment import Experiment
from sweep.grid import build_grid
from sweep.plan import make_plan
from sweep.records import Store


def reasons(experiment: Experiment, store: Store) -> dict[str, str]:
    planned = make_plan(build_grid(experiment), store)
    return {one.step.name: one.reason for one in planned if not one.is_cached}


def test_in_an_empty_store_everything_is_new(experiment: Experiment, tmp_path: Path) -> None:
    found = reasons(experiment, Store(tmp_path / "store"))
    assert set(found.values()) == {"new"}
    assert not (tmp_path / "store").exists()


def test_a_built_study_needs_nothing(experiment: Experiment, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path)
    record_all(build_grid(experiment), store)
    assert reasons(experiment, store) == {}


def test_the_changed_field_is_named_through_the_graph(experiment: Experiment, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path)
    record_all(build_grid(experiment), store)
    finetune = FinetuneConfig(learning_rate=0.001)
    generator = dataclasses.replace(experiment.generator, finetune=finetune)
    found = reasons(dataclasses.replace(experiment, generator=generator), store)
    change = "finetune.learning_rate 2e-05 → 0.001"
    assert found["generator/generator"] == change
    for name, source in (
        ("synthetic_pool/pool", "generator"),
        ("training_set/synthetic-30-seed0", "source"),
        ("task_model/start0-synthetic-30-seed0", "training_set"),
        ("evaluation/start0-synthetic-30-seed0", "task_model"),
    ):
        assert found[name] == f"input {source} changed because generator.{change}"
    assert not any("original" in name for name in found)


def test_a_stage_version_is_named(
    experiment: Experiment, tmp_path: Path, record_all: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    record_all(build_grid(experiment), store)
    monkeypatch.setitem(stages.REGISTRY, "evaluation", dataclasses.replace(stages.REGISTRY["evaluation"], version=7))
    assert set(reasons(experiment, store).values()) == {"stage version 1 → 7"}


def test_the_nearest_artifact_is_compared(experiment: Experiment, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path)
    far = FinetuneConfig(epochs=3, learning_rate=0.5, batch_size=7)
    for cell in (far, FinetuneConfig(epochs=2), FinetuneConfig(epochs=9, learning_rate=0.5)):
        record_all(build_grid(dataclasses.replace(experiment, cell=cell)), store)
    found = reasons(dataclasses.replace(experiment, cell=FinetuneConfig(epochs=4)), store)
    assert found["task_model/start0-original-30-seed0"] == "finetune.epochs 2.0 → 4.0"


def test_a_half_built_folder_is_not_an_artifact(experiment: Experiment, tmp_path: Path) -> None:
    store = Store(tmp_path)
    step = build_grid(experiment)[0]
    Path(store.folder(step.stage, step.slug, step.fingerprint)).mkdir(parents=True)
    assert reasons(experiment, store)[step.name] == "begun and not finished"
