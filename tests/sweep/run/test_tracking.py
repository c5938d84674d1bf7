"""MLflow's saved views show the slice on which the study's own blindspot is read; what is written of a step, and when."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sweep.graph.records import Record, Store, Study, StudyStep
from sweep.index.measures import Compared
from sweep.index.views import COLOURS
from sweep.run.study_run import reindex
from sweep.run.tracking import Card, Tracker, _cell

# As an evaluation names them: what is asked of a set with three labels is folded to two.
ACCURACIES = {
    "mnli_matched/accuracy": 0.8,
    "mnli_matched/accuracy_2way": 0.9,
    "mnli_matched/holds/my_own/non-entailment/accuracy_2way": 0.7,
    "hans/accuracy": 0.6,
    "hans/lexical_overlap/non-entailment/accuracy": 0.1,
    "hans/subsequence/non-entailment/accuracy": 0.2,
    "hans/holds/my_own/non-entailment/accuracy": 0.3,
}
MEASURES = {"hans/lexical_overlap/margin": 1.5, "hans/lexical_overlap/auc": 0.6, "hans/lexical_overlap/pull": 0.7}
OF_SUBSEQUENCE = {"hans/subsequence/margin": 2.5, "hans/holds/lexical_overlap/auc": 0.5}
OF_DESCRIBED = {"med/accuracy": 0.5, "med/half/down/accuracy": 0.4, "med/half/up/accuracy": 0.6, "med/half/down/margin": 0.3}


def view_of(
    tmp_path: Path,
    empty_database: Path,
    parameters: dict[str, str],
    more: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    view: str = "cells",
    **coordinates: Any,
) -> dict[str, Any]:
    """The saved view, of cells by default, that `reindex` makes of a study with one evaluation."""
    from mlflow import MlflowClient

    store = Store(tmp_path / "store")
    model, evaluation = "a" * 64, "b" * 64
    cell = {"starting_size": 0, "kind": "none", "size": 0, "seed": 0, **coordinates}
    inputs = {"task_model": {"stage": "task_model", "slug": "cell", "fingerprint": model}}
    record = Record(
        "evaluation", "cell", evaluation, {"config": config or {}}, inputs=inputs, coordinates=cell,
        metrics=ACCURACIES | (more or {}),
        created="2025-01-02T03:04:05+00:00",
    )  # fmt: skip
    store.write_record(record)
    Study("tiny", "", parameters, (StudyStep("evaluation", "cell", evaluation, cell, {"task_model": model}),)).save(store)
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    assert reindex(store, ["tiny"], uri) == {"tiny": 1}
    tags = MlflowClient(uri).get_experiment_by_name("tiny").tags
    return dict(json.loads(json.loads(tags[f"mlflow.sharedViewState.{view}"])["state"]))


@pytest.mark.parametrize(
    ("parameters", "blindspot", "general"),
    [
        # A manifest that names neither.
        ({}, "hans/lexical_overlap/non-entailment/accuracy", "mnli_matched/accuracy"),
        (
            {"blindspot_set": "hans", "blindspot_slice": "subsequence/non-entailment"},
            "hans/subsequence/non-entailment/accuracy",
            "mnli_matched/accuracy",
        ),
        (
            {"blindspot_set": "hans", "blindspot_slice": "holds/my_own/non-entailment"},
            "hans/holds/my_own/non-entailment/accuracy",
            "mnli_matched/accuracy",
        ),
        (
            {"blindspot_set": "mnli_matched", "blindspot_slice": "holds/my_own/non-entailment"},
            "mnli_matched/holds/my_own/non-entailment/accuracy_2way",
            "hans/accuracy",
        ),
        (
            {
                "general_set": "mnli_matched",
                "blindspot_set": "mnli_matched",
                "blindspot_slice": "holds/my_own/non-entailment",
            },
            "mnli_matched/holds/my_own/non-entailment/accuracy_2way",
            "mnli_matched/accuracy",
        ),
    ],
)
def test_the_view_shows_the_slice_of_the_study(
    tmp_path: Path, empty_database: Path, parameters: dict[str, str], blindspot: str, general: str
) -> None:
    view = view_of(tmp_path, empty_database, parameters)
    metrics = [name.removeprefix("metrics.").strip("`") for name in view["selectedColumns"] if name.startswith("metrics.")]
    compared = Compared(parameters.get("general_set", ""), parameters.get("blindspot_set", ""), slice_of(parameters))
    short = compared.short_names(ACCURACIES)
    assert (short["adversarial"], short["general"]) == (blindspot, general)
    # A blindspot that is a slice of the general set has no set of its own.
    of_set = f"{blindspot.partition('/')[0]}/accuracy"
    assert short.get("blindspot") == (None if of_set == general else of_set)
    others = {"mnli_matched/accuracy", "hans/accuracy"} - set(short.values())
    assert metrics == [*short, *others]
    (scatter,) = (chart for chart in view["compareRunCharts"] if chart["type"] == "SCATTER")
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("general", "adversarial")


def slice_of(parameters: dict[str, str]) -> str:
    return Study("tiny", "", parameters, ()).blindspot_slice


def test_the_view_has_what_else_is_measured_where_the_blindspot_is_and_on_described_halves(
    tmp_path: Path, empty_database: Path
) -> None:
    described = {"test_sets": [{"name": "med", "adversarial": "half/down"}, {"name": "plain", "adversarial": None}]}
    parameters = {"blindspot_set": "hans", "blindspot_slice": "lexical_overlap/non-entailment"}
    view = view_of(tmp_path, empty_database, parameters, MEASURES | OF_SUBSEQUENCE | OF_DESCRIBED, described)
    metrics = [name.removeprefix("metrics.").strip("`") for name in view["selectedColumns"] if name.startswith("metrics.")]
    # What is compared by short names, which show whole; then the others.
    assert metrics[:6] == ["general", "blindspot", "adversarial", "margin", "auc", "pull"]
    assert metrics[6:] == ["med/accuracy", "med/half.down.accuracy", "med/half.down.margin"]
    widths = view["columnWidths"]
    assert sum(widths[f"metrics.`{name}`"] for name in metrics[:4]) < 400
    # A chart of each, but for what is measured of a half beside its accuracy.
    bars = [chart["metricKey"] for chart in view["compareRunCharts"] if chart["type"] == "BAR"]
    assert bars == [name for name in metrics if name != "med/half.down.margin"]


def test_kinds_of_several_arms_have_no_common_mean() -> None:
    cell = {"starting_size": 500, "kind": "original", "size": 900, "seed": 0}
    cells = [_cell(cell), _cell({**cell, "arms": ("two_steps", "joint")}), _cell({**cell, "kind": "none", "size": 0})]
    assert cells == ["original 900, start 500", "two_steps: joint: original 900, start 500", "start 500"]


def test_a_studys_own_metrics_are_on_its_run(tmp_path: Path, empty_database: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    tracker = Tracker(uri, str(tmp_path), Study("tiny", "", {}, ()))
    tracker.annotate({"spent_dollars": 1.0})
    tracker.annotate({"spent_dollars": 2.0})
    assert tracker.close("FINISHED") == []
    assert tracker.client.get_run(tracker.parent_id).data.metrics == {"spent_dollars": 2.0}


CELL = {"starting_size": 0, "kind": "synthetic", "size": 60, "seed": 0}
CREATED = "2025-01-02T03:04:05+00:00"


@pytest.fixture
def tracker(tmp_path: Path, empty_database: Path) -> Iterator[Tracker]:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    tracker = Tracker(uri, str(tmp_path / "store"), Study("tiny", "", {}, ()))
    tracker.WRITE_EVERY_S = math.inf
    yield tracker
    assert tracker.close("FINISHED") == []


@pytest.fixture
def record() -> Record:
    return Record("task_model", "cell", "a" * 64, {"config": {"rate": 0.1}}, {}, CELL, {"accuracy": 0.5}, created=CREATED)


def run_of(tracker: Tracker, record: Record) -> Any:
    return tracker.client.get_run(tracker.runs[record.fingerprint].info.run_id)


def test_a_step_that_ends_soon_is_one_batch(tracker: Tracker, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    log_batch = tracker.client.log_batch
    monkeypatch.setattr(
        tracker.client, "log_batch", lambda *_, **given: (batches.append(given), log_batch(*_, **given)), raising=False
    )
    tracker.start(Card.of_record(record))
    assert run_of(tracker, record).data.tags["mlflow.runColor"] == COLOURS["synthetic"]
    tracker.log(record.fingerprint, {"loss": 0.5}, 1, 1)
    tracker.finish(record)
    (batch,) = batches
    assert {metric.key for metric in batch["metrics"]} == {"curve/loss", "totals/accuracy"}
    data = run_of(tracker, record).data
    assert data.params["config.rate"] == "0.1" and data.metrics["curve/loss"] == 0.5 and data.tags["complete"] == CREATED


def test_what_is_pending_of_a_running_step_is_written_when_the_driver_asks_how_far_steps_are(
    tracker: Tracker, record: Record
) -> None:
    tracker.start(Card.of_record(record))
    tracker.log(record.fingerprint, {"loss": 0.5}, 1, 1)
    assert run_of(tracker, record).data.params == {}
    tracker.WRITE_EVERY_S = 0.0
    assert tracker.snapshot() == {record.fingerprint: {"loss": 0.5}}
    data = run_of(tracker, record).data
    assert data.params["config.rate"] == "0.1" and data.metrics == {"curve/loss": 0.5}


def test_parameters_that_were_lost_on_the_way_are_there_when_the_step_is_complete(
    tracker: Tracker, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.WRITE_EVERY_S = 0.0
    tracker.start(Card.of_record(record))
    with monkeypatch.context() as broken:
        broken.setattr(tracker.client, "log_batch", Mock(side_effect=ConnectionError("it is down")), raising=False)
        tracker.log(record.fingerprint, {"loss": 0.5}, 1, 1)
    assert len(tracker.errors) == 1 and "it is down" in tracker.errors.pop()
    tracker.finish(record)
    data = run_of(tracker, record).data
    assert data.params["config.rate"] == "0.1" and data.metrics["totals/accuracy"] == 0.5
    assert data.tags["mlflow.runColor"] == COLOURS["synthetic"]
