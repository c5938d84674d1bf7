"""A mark stays with all that is built from what has it: in records, `status`, MLflow. No Ray: a trial is a plain function."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.data.training_set import TrainingSetConfig
from sweep import cli
from sweep.graph.records import Record, Store, Study, StudyStep
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.run.study_run import reindex
from sweep.run.trial import Order, carry_out

PARTIAL = "partial MultiNLI: 10 of 392,702 labelled rows (5 for training)"


def step_of(stage: str, slug: str, **inputs: Step) -> Step:
    return Step(stage, slug, TrainingSetConfig("starting", size=3, seed=0), inputs)


def order_of(store: Store, step: Step, metrics: Mapping[str, Any]) -> Order:
    def run(job: Job) -> Mapping[str, Any]:
        (Path(job.output) / "value.txt").write_text("1")
        return metrics

    return Order(step, Stage(1, run), store.uri)


def build(store: Store, step: Step, metrics: Mapping[str, Any]) -> Record:
    outcome = carry_out(order_of(store, step, metrics))
    assert outcome.record is not None, outcome.error
    # What is returned is what is kept.
    assert store.read_record(step.id) == outcome.record
    return outcome.record


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Partial sources and a whole base model; a model of both that adds a mark; its evaluation."""
    store = Store(tmp_path)
    sources, base = step_of("sources", "data"), step_of("base_model", "base")
    model = step_of("task_model", "cell", sources=sources, base_model=base)
    evaluation = step_of("evaluation", "cell", sources=sources, task_model=model)
    return [
        build(store, sources, {"train/num_examples": 5, "marks": [PARTIAL]}),
        build(store, base, {}),
        build(store, model, {"loss": 1.0, "marks": ["rehearsal"]}),
        build(store, evaluation, {"hans/accuracy": 0.5}),
    ]


def save_study(store: Store, records: list[Record]) -> None:
    steps = [StudyStep(one.stage, one.slug, one.fingerprint, {}, {}) for one in records]
    Study("mine", "A title", {}, (*steps, StudyStep("evaluation", "other", "f" * 64, {}, {}))).save(store)


def test_marks_are_the_stage_s_own_and_those_of_all_inputs(records: list[Record]) -> None:
    assert [one.marks for one in records] == [(PARTIAL,), (), (PARTIAL, "rehearsal"), (PARTIAL, "rehearsal")]
    assert all("marks" not in one.metrics for one in records)
    assert records[0].metrics == {"train/num_examples": 5}


def test_a_step_whose_input_has_no_record_does_not_run(records: list[Record], tmp_path: Path) -> None:
    missing = step_of("sources", "other")
    outcome = carry_out(order_of(Store(tmp_path), step_of("task_model", "next", sources=missing), {}))
    assert outcome.record is None and not outcome.is_final and outcome.unusable == (missing.fingerprint,)
    assert "task_model/next is built from" in outcome.error and "sources/other-" in outcome.error


def test_one_mark_as_a_text_is_a_mistake_of_ours(tmp_path: Path) -> None:
    outcome = carry_out(order_of(Store(tmp_path), step_of("sources", "data"), {"marks": "rehearsal"}))
    assert outcome.record is None and "not a list of texts" in outcome.error


def test_status_says_what_is_marked(records: list[Record], tmp_path: Path) -> None:
    store = Store(tmp_path)
    save_study(store, records)
    assert Study.load(store, "mine").marks == {PARTIAL: 3, "rehearsal": 2}
    shown = CliRunner().invoke(cli.app, ["status", "mine", "--store", str(tmp_path)]).stdout
    assert f"  marked: {PARTIAL} (on 3 of 4 artifacts)\n  marked: rehearsal (on 2 of 4 artifacts)\n" in shown
    save_study(store, [records[1]])
    assert "marked" not in CliRunner().invoke(cli.app, ["status", "mine", "--store", str(tmp_path)]).stdout


def test_mlflow_s_runs_carry_them(records: list[Record], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    store, uri = Store(tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    save_study(store, records)
    client = MlflowClient(uri)

    def marks() -> dict[str, str | None]:
        reindex(store, ["mine"], uri)
        runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        return {run.data.tags["stage"]: run.data.tags.get("marks") for run in runs}

    assert marks() == {
        "study": f"{PARTIAL}; rehearsal",
        "sources": PARTIAL,
        "base_model": None,
        "task_model": f"{PARTIAL}; rehearsal",
        "evaluation": f"{PARTIAL}; rehearsal",
    }
    # The study is the real thing once nothing in it is marked.
    save_study(store, [records[1]])
    assert marks()["study"] is None
