"""What MLflow is told of the data and models that a run takes and leaves: names, digests and where they lie in the store.

Nothing is copied: a logged model names its folder in the store, as does a data set.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sweep.index.client import Client

MODEL_STAGES = ("base_model", "generator", "starting_point", "task_model")
"""Stages whose artifacts are models."""
URI = "uri"
"""Tag of a logged model: its folder in the store."""


def dataset_input(name: str, digest: str, uri: str, context: str, *, is_local: bool, num_rows: int | None) -> Any:
    """A data set that a run reads as `context`, for `log_inputs`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = None if num_rows is None else json.dumps({"num_rows": num_rows})
    dataset = Dataset(name, digest, "local" if is_local else "uri", json.dumps({URI: uri}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def log_model(
    client: Client,
    experiment_id: str,
    run_id: str,
    *,
    name: str,
    stage: str,
    tags: Mapping[str, str],
    params: Mapping[str, str],
) -> str:
    """Log a model whose files stay where they are, as the output of a run; returns its id.

    `name` is made one that MLflow takes. Its tags say where the files are.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    model = client.create_logged_model(
        experiment_id,
        name=re.sub(r"[/:.%\"']", "_", name),
        source_run_id=run_id,
        # As `mlflow.create_external_model` has it.
        tags={"mlflow.model.isExternal": "true", **tags},
        params=dict(params),
        model_type=stage,
    )
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def log_inputs(client: Client, run_id: str, datasets: Iterable[Any], model_ids: Iterable[str]) -> None:
    """Say what data sets (of `dataset_input`) and logged models a run reads."""
    from mlflow.entities import LoggedModelInput

    models = [LoggedModelInput(model_id) for model_id in model_ids]
    datasets = list(datasets)
    if datasets or models:
        client.log_inputs(run_id, datasets, models or None)
