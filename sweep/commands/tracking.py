"""MLflow's view of a store: `blindsweep ui` and `reindex`."""

import contextlib
import os
import sys
from typing import Annotated

import typer

from pipelines.errors import UserError
from pipelines.extras import check_installed
from sweep.commands.options import DEFAULT_STORE, OneOrAllStudies, StoreUri, TrackingUri, study_name
from sweep.commands.results import answer_of, describe_in_mlflow
from sweep.graph.records import Store, Study
from sweep.graph.reports import stored_report


def ui(
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow on the studies of a store, for this machine only."""
    check_installed("blindsweep ui", "mlflow")
    from sweep.index.address import check_address, mask, sqlite_path
    from sweep.index.database import Unusable
    from sweep.index.views import EXPERIMENTS, comparisons
    from sweep.run.study_run import mended_index, rebuild
    from sweep.run.tracking import default_tracking_uri, kept_database

    where = Store(store)
    uri = tracking_uri or default_tracking_uri(where)
    check_address(uri)
    if database := kept_database(where, uri):
        database.fetch()
    if uri.startswith(("http://", "https://")):
        print(f"MLflow already runs at {mask(uri, uri).rstrip('/')}/{EXPERIMENTS}")
        return
    path = sqlite_path(uri)
    if path is not None and not (path.exists() and path.stat().st_size):
        if tracking_uri is not None or not where.studies():
            raise UserError(f"no MLflow database {uri}; run a study first, or build it with `blindsweep reindex`")
        rebuild(where, path)
    try:
        uri = mended_index(where, uri, to_write=False)
    except Unusable as error:
        raise UserError(mask(f"MLflow's database {uri} cannot be shown: {error}", uri)) from error
    # Else there are ten large processes more, for evaluating chat applications.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    # Not as an option: whoever lists processes would read a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    print(f"MLflow at http://127.0.0.1:{port}/{EXPERIMENTS} (Ctrl-C ends it)")
    for name, link in comparisons(uri).items():
        print(f"  compare kinds of {name}: http://127.0.0.1:{port}/{link}")
    sys.stdout.flush()
    # MLflow's four take 300 MB each, and on a small machine they fail each other's health checks.
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options])


def reindex(
    study: OneOrAllStudies = None,
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Rebuild MLflow's runs from the records in the store; where an artifact has several, one is kept."""
    check_installed("blindsweep reindex", "mlflow")
    from sweep.index.address import check_address, mask
    from sweep.index.database import Unusable
    from sweep.run.study_run import mended_index
    from sweep.run.study_run import reindex as rebuild
    from sweep.run.tracking import default_tracking_uri, kept_database

    where = Store(store)
    uri = tracking_uri or default_tracking_uri(where)
    check_address(uri)
    database = kept_database(where, uri)
    with database.open() if database else contextlib.nullcontext():
        try:
            uri = mended_index(where, uri)
        except Unusable as error:
            raise UserError(mask(f"cannot write to MLflow at {uri}: {error}", uri)) from error
        counts = rebuild(where, [study_name(study)] if study else where.studies(), uri)
        for name in counts:
            # The answer of a study that has a report is in MLflow with it.
            report = stored_report(where, Study.listed(where, name))
            if not (report and report.said) and (said := answer_of(where, name)):
                describe_in_mlflow(uri, where, name, said, is_reported=False)
    for name, count in counts.items():
        print(f"{name}: {count:,} artifacts in {database.uri if database else mask(uri, uri)}")
