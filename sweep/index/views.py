"""Saved views of MLflow's page of runs, which compare a study's kinds; links to them, in its machine-learning pages."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.index.address import sqlite_path
from sweep.index.client import Client
from sweep.index.database import experiments_with_tag
from sweep.index.measures import ADVERSARIAL, GENERAL, SHORT_NAMES

EXPERIMENTS = "#/experiments?workflowType=machine_learning"
"""Path of MLflow's list of experiments. Without the type of work it would show its pages for chat applications."""
CELL = "cell"
"""The parameter that says in one text where in the grid a run is, whatever its seed."""
KINDS_TAG = "mlflow.sharedViewState.kinds"
PLACES = ("starting_size", "size", "kind", "seed")
COLOURS = {
    "none": "#5c6068",
    "original": "#0072b2",
    "synthetic": "#d55e00",
    "biased_synthetic": "#009e73",
    "filtered_synthetic": "#cc79a7",
    "debiased_synthetic": "#e69f00",
}
"""Of a kind's runs, as in the report's figures: Okabe and Ito's."""
NAME_WIDTH, KIND_WIDTH, SHORT_WIDTH, LONG_WIDTH = 280, 130, 92, 215
"""Pixels: with all of them a table of 1,500 pixels shows the measures whole, an open side panel of MLflow's or none."""


def view_link(experiment_id: str, view: str) -> str:
    """Path of a saved view ("kinds" or "cells") on an MLflow server."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"


def comparisons(uri: str) -> dict[str, str]:
    """Study → path of its view of kinds, for all in an MLflow database. A SQLite file is read without MLflow's import."""
    if path := sqlite_path(uri):
        found = experiments_with_tag(path, KINDS_TAG)
    else:
        experiments = Client(uri).search_experiments()
        found = {experiment.name: experiment.experiment_id for experiment in experiments if KINDS_TAG in experiment.tags}
    return {name: view_link(experiment_id, "kinds") for name, experiment_id in found.items()}


def view_tags(parent_id: str, measures: Sequence[str], places: Sequence[str]) -> dict[str, str]:
    """Tags of an experiment that are its saved views, in the form of MLflow's own page.

    `measures` are what is compared, as MLflow names it, and `places` the parameters that place a run in the grid.
    """
    now = int(time.time() * 1000)
    return {
        f"mlflow.sharedViewState.{view}": json.dumps(
            {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
        )
        for view, (name, state) in _views(parent_id, measures, places).items()
    }


def _views(parent_id: str, measures: Sequence[str], places: Sequence[str]) -> Mapping[str, tuple[str, dict[str, Any]]]:
    metrics = [f"metrics.`{name}`" for name in measures]
    params = [f"params.`{name}`" for name in places]
    # What is compared stands beside the name of the run, which says where in the grid it is.
    columns = [*metrics, *params]
    widths = {name: SHORT_WIDTH if short in SHORT_NAMES else LONG_WIDTH for name, short in zip(metrics, measures, strict=True)}
    charted = [name for name in measures if "accuracy" in name.rpartition("/")[2].rpartition(".")[2] or name in SHORT_NAMES]
    bars = [{"type": "BAR", "metricKey": name, "uuid": name} for name in charted]
    scatter = {
        "type": "SCATTER",
        "uuid": f"{GENERAL} × {ADVERSARIAL}",
        "xaxis": {"key": GENERAL, "type": "METRIC"},
        "yaxis": {"key": ADVERSARIAL, "type": "METRIC"},
    }
    scatters = [scatter] if {GENERAL, ADVERSARIAL} <= set(measures) else []
    chart = {"deleted": False, "isGenerated": False, "metricSectionId": "compared", "runsCountToCompare": 100}
    cells = {
        "searchFilter": 'tags.compare = "yes" and tags.current = "yes"',
        "orderByKey": "tags.`order`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", *columns],
        "columnWidths": {"attributes.`Run Name`": NAME_WIDTH, "params.`kind`": KIND_WIDTH} | widths,
        "runsExpanded": {parent_id: True},
        "runsHiddenMode": "SHOW_ALL",
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "compareRunCharts": [chart | kind for kind in bars + scatters],
        "compareRunSections": [{"uuid": "compared", "name": "Compared", "display": True, "isReordered": False}],
        "isAccordionReordered": True,
        "groupBy": None,
    }
    kinds = cells | {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": CELL}]},
        # The mean of seeds would be shown as a seed.
        "selectedColumns": [name for name in columns if name != "params.`seed`"],
    }
    return {"kinds": ("Kinds, mean over seeds", kinds), "cells": ("Cells", cells)}
