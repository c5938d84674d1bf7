"""MLflow's view of a store: `blindsweep ui` and `reindex`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UserError
from sweep.commands.options import DEFAULT_STORE, OneOrAllStudies, StoreUri, TrackingUri, study_name
from sweep.graph.records import Store


def ui(
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow on the studies of a store, for this machine only."""
    from sweep.run.tracking import comparisons, default_tracking_uri

    uri = tracking_uri or default_tracking_uri(Store(store))
    if uri.startswith(("http://", "https://")):
        print(f"MLflow already runs at {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no MLflow database {uri}; run a study first, or build it with `blindsweep reindex`")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Else there are ten large processes more, for evaluating chat applications.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)")
    for name, link in comparisons(uri).items():
        print(f"  compare kinds of {name}: http://127.0.0.1:{port}/{link}")
    sys.stdout.flush()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *address]
    os.execv(sys.executable, command)


def reindex(
    study: OneOrAllStudies = None,
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Rebuild MLflow's runs from the records in the store."""
    from sweep.run.study_run import reindex as rebuild
    from sweep.run.tracking import default_tracking_uri

    where = Store(store)
    uri = tracking_uri or default_tracking_uri(where)
    for name, count in rebuild(where, [study_name(study)] if study else where.studies(), uri).items():
        print(f"{name}: {count} artifacts in {uri}")
