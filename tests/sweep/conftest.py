"""An experiment that costs nothing to describe, for tests of the grid, the plan and the store."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.data.sources import FILES, NLISourcesConfig
from pipelines.data.template_corpus import TemplateCorpusConfig
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.finetune.base_model import PretrainedModelConfig, ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.generate.config import GenerationConfig
from pipelines.identity import FileHash
from pipelines.resources import Resources
from sweep import cli
from sweep.graph.records import Record, Store
from sweep.graph.step import Step
from sweep.index.address import sqlite_uri
from sweep.index.client import Client
from sweep.study.experiment import Experiment


@pytest.fixture
def blindsweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command line in the test's own folder, on the store `store` there: what it prints, if it succeeds."""
    # Ray's workers must find the code of this checkout, from another folder.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, [*arguments, "--store", "store"])
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.fixture
def experiment() -> Experiment:
    """Two starting points × three kinds × two sizes × one seed."""
    return Experiment(
        name="small",
        title="A small study",
        sources=TemplateCorpusConfig(),
        base_model=ScratchModelConfig(),
        generator=GeneratorConfig(finetune=FinetuneConfig()),
        generation=GenerationConfig(num_per_label=100),
        task_model=FinetuneConfig(),
        evaluation=EvaluationConfig(sets=("template_test", "template_probe")),
        starting_sizes=(0, 500),
        training_sizes=(30, 60),
        seeds=(0,),
        general_set="template_test",
        blindspot_set="template_probe",
    )


@pytest.fixture
def paper(experiment: Experiment) -> Experiment:
    """The axes of the paper's study."""
    return dataclasses.replace(
        experiment,
        starting_sizes=(0, 5_000, 10_000, 20_000, 100_000, 391_722),
        training_sizes=(73_080, 36_040, 18_020),
    )


@pytest.fixture
def llama(paper: Experiment) -> Experiment:
    """The paper's study with its model, data and batch sizes, a GPU for each step that can use one."""
    stages = ("generator", "synthetic_pool", "starting_point", "task_model", "evaluation")
    return dataclasses.replace(
        paper,
        sources=NLISourcesConfig(tuple(FileHash(name, "0" * 64) for name in FILES)),
        base_model=PretrainedModelConfig((FileHash("model.safetensors", "0" * 64),), path="nowhere"),
        generator=GeneratorConfig(finetune=FinetuneConfig(batch_size=6, train_embeddings=True)),
        generation=GenerationConfig(num_per_label=(631_992, 562_822, 624_999)),
        evaluation=EvaluationConfig(sets=("mnli_matched", "mnli_mismatched", "hans")),
        general_set="mnli_matched",
        blindspot_set="hans",
        resources={stage: Resources(gpus_per_worker=1) for stage in stages},
    )


@pytest.fixture
def record_all() -> Callable[[Iterable[Step], Store], None]:
    """Write a complete record for each step, as if it had been built."""

    def write(steps: Iterable[Step], store: Store) -> None:
        for step in steps:
            store.write_record(record_of(step))

    return write


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has just made, which takes it seconds; to be copied."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Client(sqlite_uri(path))
    return path


def record_of(step: Step, **fields: Any) -> Record:
    values: dict[str, Any] = {
        "inputs": {name: source.id for name, source in step.inputs.items()},
        "coordinates": step.coordinates,
        "durations": {"total_s": 1.0},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(step.stage, step.slug, step.fingerprint, step.payload, **(values | fields))
