"""What a study leaves in MLflow: its own run, models, data sets, and what links them. A real database, and a real server."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweep.graph.records import Record, Store, Study, StudyStep
from sweep.graph.reports import REPORT_OF, report_of
from sweep.index.address import sqlite_uri
from sweep.index.client import Client
from sweep.index.views import comparisons
from sweep.run.study_run import reindex
from tests.sweep.run.test_tracking_faults import server  # noqa: F401

CELL = {"starting_size": 0, "kind": "synthetic", "size": 900, "seed": 1}
CLAIMS = [{"name": "bias_is_seen", "statement": "a long one " * 200}]
PARAMETERS = {
    "seeds": [0, 1], "pool_size": 3600, "general_set": "mnli_matched", "blindspot_set": "hans",
    "blindspot_slice": "lexical_overlap/non-entailment", "claims": CLAIMS, "command": {"experiment": "my_study.py"},
}  # fmt: skip
METRICS = {
    "mnli_matched/accuracy": 0.812345678, "hans/accuracy": 0.6, "hans/lexical_overlap/non-entailment/accuracy": 0.1,
    "hans/lexical_overlap/margin": 1.5, "num_examples": 10,
}  # fmt: skip
GIT = {"commit": "c" * 40, "dirty": False}
VERDICTS = """name,statement,verdict,estimate,low,high
bias_is_seen,"One, with a comma.",supported,-0.25,-0.5,-0.125
synthetic_reinforces,Another.,cannot tell,0.01,,
bias_is_seen/start=600,Of a setting.,refuted,0.02,0.01,0.03
"""
SQLITE, SERVER = "sqlite", pytest.param("server", marks=pytest.mark.slow)


def artifact(stage: str, slug: str, digit: str, **fields: Any) -> Record:
    created = "2026-01-02T03:04:05+00:00"
    return Record(stage, slug, digit * 64, {"config": fields.pop("config", {})}, git=GIT, created=created, **fields)


def records() -> list[Record]:
    sources = artifact("sources", "data", "1", num_rows={"train.parquet": 100})
    base = artifact("base_model", "base", "2", inputs={"sources": sources.id})
    generator = artifact("generator", "generator", "3", inputs={"sources": sources.id, "base_model": base.id})
    training_set = artifact("training_set", "synthetic-900-seed1", "4", num_rows={"examples.parquet": 900})
    inputs = {"training_set": training_set.id, "base_model": base.id}
    config = {"finetune": {"epochs": 5.0}}
    model = artifact("task_model", "start0-synthetic-900-seed1", "5", inputs=inputs, coordinates=CELL, config=config)
    evaluation = artifact(
        "evaluation", "start0-synthetic-900-seed1", "6", coordinates=CELL, metrics=METRICS,
        inputs={"sources": sources.id, "task_model": model.id}, config={"sets": ["mnli_matched", "hans"]},
    )  # fmt: skip
    return [sources, base, generator, training_set, model, evaluation]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished study with its report."""
    store = Store(tmp_path / "store")
    for record in records():
        store.write_record(record)
    save(store, PARAMETERS)
    return store


def save(store: Store, parameters: dict[str, Any]) -> None:
    steps = [StudyStep(r.stage, r.slug, r.fingerprint, r.coordinates, {}) for r in records()]
    study = Study("tiny", "A tiny study", parameters, tuple(steps))
    study.save(store)
    report = Path(store.uri, "reports", "tiny")
    report.mkdir(parents=True, exist_ok=True)
    answer = {"answer": {"said": "With two seeds one claim is decided", "command": "blindsweep run tiny"}}
    (report / REPORT_OF).write_text(json.dumps(report_of(study) | answer))
    (report / "report.html").write_text("<p>the report</p>")
    (report / "figure1.png").write_bytes(b"png")
    (report / "frame.parquet").write_bytes(b"not shown")
    (report / "verdicts.csv").write_text(VERDICTS)


@pytest.fixture(params=[SQLITE, SERVER])
def uri(request: pytest.FixtureRequest, store: Store, empty_database: Path) -> str:
    """Of MLflow's database in the store, or of a server."""
    if request.param == "server":
        return str(request.getfixturevalue("server")[0])
    shutil.copy(empty_database, Path(store.uri, "mlflow.db"))
    return sqlite_uri(Path(store.uri, "mlflow.db"))


Find = Callable[[str], Any]


@pytest.fixture
def find(store: Store, uri: str) -> tuple[Client, Find]:
    """A client, and what finds the run of a stage, after everything was indexed twice."""
    for _ in range(2):
        assert reindex(store, ["tiny"], uri) == {"tiny": 6}
    client = Client(uri)
    experiment = client.get_experiment_by_name("tiny")

    def find(stage: str) -> Any:
        (run,) = client.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'")
        return run

    return client, find


def test_a_study_is_in_mlflow_with_all_that_it_left(store: Store, uri: str, find: tuple[Client, Find], tmp_path: Path) -> None:
    client, run_of = find
    study, model_run, evaluation = (run_of(stage) for stage in ("study", "task_model", "evaluation"))
    experiment = client.get_experiment(study.info.experiment_id)

    # The study's own run: settings as parameters, what is long as an artifact, verdicts, their numbers, the report.
    assert study.data.params["seeds"] == "[0, 1]" and study.data.params["pool_size"] == "3600"
    assert max(map(len, [*study.data.params.values()])) < 100 and "claims" not in study.data.params
    assert not [name for name in study.data.tags if name.startswith("parameter.")]
    assert study.data.tags["verdict.bias_is_seen"] == "supported"
    assert study.data.tags["verdict.synthetic_reinforces"] == "cannot tell"
    # MLflow takes no equals sign.
    assert study.data.tags["verdict.bias_is_seen/start-600"] == "refuted"
    numbers = {"claims": 3, "claims_decided": 2, "bias_is_seen/estimate": -0.25, "bias_is_seen/low": -0.5}
    numbers |= {"bias_is_seen/high": -0.125, "synthetic_reinforces/estimate": 0.01}
    numbers |= {
        "bias_is_seen/start-600/estimate": 0.02,
        "bias_is_seen/start-600/low": 0.01,
        "bias_is_seen/start-600/high": 0.03,
    }
    assert study.data.metrics == numbers
    kept = {file.path for file in client.list_artifacts(study.info.run_id, "report")}
    assert kept == {"report/report.html", "report/figure1.png", "report/verdicts.csv"}
    settings = client.download_artifacts(study.info.run_id, "study.json", str(tmp_path))
    assert json.loads(Path(settings).read_text())["claims"] == CLAIMS
    assert experiment.tags["mlflow.note.content"] == study.data.tags["mlflow.note.content"]
    assert experiment.tags["mlflow.note.content"].startswith("**With two seeds one claim is decided:**")

    # Who built it, with what.
    for run in (study, model_run, evaluation):
        assert run.data.tags["mlflow.user"] and run.data.tags["mlflow.source.type"] == "LOCAL"
        assert run.data.tags["mlflow.source.name"] == "blindsweep run my_study.py"
        assert run.data.tags["mlflow.source.git.commit"] == "c" * 40

    # Short names beside the task model's parameters, in the view's first columns.
    assert {name: model_run.data.metrics[name] for name in ("general", "blindspot", "adversarial", "margin")} == {
        "general": 0.8123, "blindspot": 0.6, "adversarial": 0.1, "margin": 1.5,
    }  # fmt: skip
    assert model_run.data.metrics["mnli_matched/accuracy"] == 0.812345678
    assert model_run.data.params["cell"] == "synthetic 900, start 0"
    assert model_run.data.params["config.finetune.epochs"] == "5.0"
    assert model_run.data.tags["mlflow.runColor"] == "#d55e00"

    # Models lie where they were built.
    models = {model.name: model for model in client.search_logged_models([experiment.experiment_id])}
    assert set(models) == {"base", "generator", "start0-synthetic-900-seed1"}
    model = models["start0-synthetic-900-seed1"]
    record = records()[4]
    assert model.tags["uri"] == store.folder(record.id) and model.tags["fingerprint"] == record.fingerprint
    assert (model.status.value, model.model_type, model.source_run_id) == ("READY", "task_model", model_run.info.run_id)
    assert [output.model_id for output in model_run.outputs.model_outputs] == [model.model_id]
    assert [one.model_id for one in client.get_run(evaluation.info.run_id).inputs.model_inputs] == [model.model_id]

    # Its metrics name the set that they are of.
    of_set = {metric.key: (metric.dataset_name, metric.dataset_digest, metric.run_id) for metric in model.metrics}
    where = ("hans", "1" * 12, evaluation.info.run_id)
    assert of_set["hans/lexical_overlap.margin"] == where and of_set["hans/accuracy"] == where
    assert of_set["mnli_matched/accuracy"][0] == "mnli_matched" and "totals/num_examples" not in of_set

    # What a run read: data sets with where they are; models are not data.
    datasets = [one.dataset for one in evaluation.inputs.dataset_inputs]
    read = {dataset.name: (dataset.digest, json.loads(dataset.source)["uri"]) for dataset in datasets}
    sources = store.folder(records()[0].id)
    assert read == {name: ("1" * 12, f"{sources}/{name}.parquet") for name in ("mnli_matched", "hans")}
    (training_set,) = model_run.inputs.dataset_inputs
    assert training_set.dataset.name == "training_set/synthetic-900-seed1"
    assert json.loads(training_set.dataset.profile) == {"num_rows": 900}
    assert [(tag.key, tag.value) for tag in training_set.tags] == [("mlflow.data.context", "training_set")]

    assert comparisons(uri)["tiny"].startswith(f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning")


def test_other_parameters_have_a_run_of_their_own(store: Store, uri: str, find: tuple[Client, Find]) -> None:
    client, run_of = find
    before = run_of("study").info.run_id
    save(store, PARAMETERS | {"pool_size": 7200})
    reindex(store, ["tiny"], uri)
    study = run_of("study")
    assert study.info.run_id != before and study.data.params["pool_size"] == "7200"
    assert client.get_run(before).info.lifecycle_stage == "deleted"
    assert run_of("evaluation").data.tags["mlflow.parentRunId"] == study.info.run_id


def test_what_an_earlier_version_logged_is_completed(store: Store, uri: str, find: tuple[Client, Find]) -> None:
    client, run_of = find
    study, model = run_of("study"), run_of("task_model")
    # As it was: settings were tags, with claims cut off, and a task model's run said nothing of a model.
    client.set_tag(study.info.run_id, "parameter.claims", "[" * 8000)
    client.delete_tag(model.info.run_id, "form")
    client.delete_tag(model.info.run_id, "model_id")
    is_own = uri.startswith("sqlite")
    if is_own:
        client.restore_experiment("0")
    reindex(store, ["tiny"], uri)
    # A server's experiments are its owner's.
    assert [found.name for found in client.search_experiments()] == (["tiny"] if is_own else ["tiny", "Default"])
    assert "parameter.claims" not in run_of("study").data.tags
    # The model that is its output is not logged again.
    assert run_of("task_model").data.tags["model_id"] == model.data.tags["model_id"]
    assert len(client.search_logged_models([study.info.experiment_id])) == 3
