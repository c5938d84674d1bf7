"""`blindsweep doctor`: what would fail, before it does."""

import dataclasses
import json as js
import os
from typing import Annotated

import typer

from sweep.commands.completion import experiments
from sweep.commands.options import DEFAULT_STORE, Json, Parameters, StoreUri, TrackingUri, tell


def doctor(
    study: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="An experiment, built in or file.py[:function].", autocompletion=experiments),
    ] = None,
    parameters: Parameters = None,
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
    network: Annotated[
        bool, typer.Option("--network", help="Ask the addresses that the study would use, too: store, MLflow, hub, endpoint.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at this machine, its packages and a study's inputs for what would fail, before it does.

    A line for each thing looked at: ok, warning or fault, and the way out. It ends with 1 if there is a fault. No token is ever
    shown. Without --network no address is asked, but for the names of a study's own tables in a bucket.

        blindsweep doctor
        blindsweep doctor mini -p model=org/name --store s3://bucket/studies --network
    """
    from pipelines.storage import is_local
    from sweep.doctor.findings import Finding, lines
    from sweep.doctor.machine import look_at_machine, token
    from sweep.graph.records import Store

    Store(store)
    findings = list(look_at_machine(store))
    if not is_local(store) and store.startswith("s3"):
        where = token("AWS_ACCESS_KEY_ID", os.environ) or token(
            "AWS_PROFILE", os.environ, "~/.aws/credentials", "~/.aws/config"
        )
        if where:
            findings.append(Finding("store's keys", "ok", f"present ({where})"))
        else:
            way_out = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, unless the machine has a role"
            findings.append(Finding("store's keys", "warning", "not present", way_out))
    loaded = None
    if study is not None:
        from sweep.doctor.needs import look_at_study
        from sweep.study.loading import load_experiment

        loaded = load_experiment(study, parameters or []).experiment
        findings += look_at_study(loaded)
    if network:
        from sweep.doctor.addresses import look_at_network

        findings += look_at_network(loaded, store, tracking_uri)
    if json:
        tell(js.dumps([dataclasses.asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        tell("\n".join(lines(findings)))
    if any(finding.verdict == "fault" for finding in findings):
        raise typer.Exit(1)
