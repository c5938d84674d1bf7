"""MLflow's saved views show the slice on which the study's own blindspot is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sweep.graph.records import Record, Store, Study, StudyStep
from sweep.run.study_run import reindex
from sweep.run.tracking import Tracker

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
        ({}, "hans/lexical_overlap.non-entailment.accuracy", "mnli_matched/accuracy"),
        (
            {"blindspot_set": "hans", "blindspot_slice": "subsequence/non-entailment"},
            "hans/subsequence.non-entailment.accuracy",
            "mnli_matched/accuracy",
        ),
        (
            {"blindspot_set": "hans", "blindspot_slice": "holds/my_own/non-entailment"},
            "hans/holds.my_own.non-entailment.accuracy",
            "mnli_matched/accuracy",
        ),
        (
            {"blindspot_set": "mnli_matched", "blindspot_slice": "holds/my_own/non-entailment"},
            "mnli_matched/holds.my_own.non-entailment.accuracy_2way",
            "hans/accuracy",
        ),
    ],
)
def test_the_view_shows_the_slice_of_the_study(
    tmp_path: Path, empty_database: Path, parameters: dict[str, str], blindspot: str, general: str
) -> None:
    view = view_of(tmp_path, empty_database, parameters)
    metrics = [name for name in view["selectedColumns"] if name.startswith("metrics.")]
    assert sorted(metrics) == sorted(f"metrics.`{name}`" for name in ("mnli_matched/accuracy", blindspot, "hans/accuracy"))
    (scatter,) = (chart for chart in view["compareRunCharts"] if chart["type"] == "SCATTER")
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == (general, blindspot)


def test_the_view_has_what_else_is_measured_where_the_blindspot_is_and_on_described_halves(
    tmp_path: Path, empty_database: Path
) -> None:
    described = {"test_sets": [{"name": "med", "adversarial": "half/down"}, {"name": "plain", "adversarial": None}]}
    parameters = {"blindspot_set": "hans", "blindspot_slice": "lexical_overlap/non-entailment"}
    view = view_of(tmp_path, empty_database, parameters, MEASURES | OF_SUBSEQUENCE | OF_DESCRIBED, described)
    metrics = [name.removeprefix("metrics.").strip("`") for name in view["selectedColumns"] if name.startswith("metrics.")]
    # The general set, the blindspot, what else is measured of it; then the others.
    assert metrics[:2] == ["mnli_matched/accuracy", "hans/lexical_overlap.non-entailment.accuracy"]
    assert set(metrics[2:4]) == {"hans/lexical_overlap.margin", "hans/lexical_overlap.auc"}
    assert set(metrics[4:]) == {"hans/accuracy", "med/accuracy", "med/half.down.accuracy", "med/half.down.margin"}
    # Bars of accuracies alone: the others have other units.
    bars = {chart["metricKey"] for chart in view["compareRunCharts"] if chart["type"] == "BAR"}
    assert bars == {name for name in metrics if name.endswith("accuracy")}


def test_kinds_of_several_arms_have_no_common_mean(tmp_path: Path, empty_database: Path) -> None:
    keys = [{"mode": "param", "groupByData": name} for name in ("starting_size", "size", "kind")]
    assert view_of(tmp_path / "one", empty_database, {}, view="kinds")["groupBy"]["groupByKeys"] == keys
    view = view_of(tmp_path / "several", empty_database, {}, view="kinds", arms=("two_steps", "joint"))
    assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "arms"}, *keys]
    assert view["selectedColumns"][:2] == ["params.`arms`", "params.`starting_size`"]


def test_a_studys_own_metrics_are_on_its_run(tmp_path: Path, empty_database: Path) -> None:
    tracker = Tracker(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}", str(tmp_path), "tiny", "", {})
    tracker.annotate({"spent_dollars": 1.0})
    tracker.annotate({"spent_dollars": 2.0})
    assert tracker.close("FINISHED") == []
    assert tracker.client.get_run(tracker.parent_id).data.metrics == {"spent_dollars": 2.0}
