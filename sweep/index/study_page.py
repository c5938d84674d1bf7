"""What MLflow shows of a study as a whole: its note, its answer, its report, and the numbers of its verdicts."""

import csv
import re
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sweep.index.client import Client

NOTE_TAG = "mlflow.note.content"
REPORT_FOLDER = "report"
"""Where a study's run has its report, among its artifacts."""
SHOWN = (".html", ".png", ".csv")
"""Of a report's files those that MLflow's pages show; the others hold the same."""
VERDICTS_FILE = "verdicts.csv"


def describe_study(uri: str, study: str, said: str, command: str = "", report: Path | None = None) -> None:
    """Put a study's answer before the notes of its own run and of its experiment in MLflow; `command` is shown as code.

    Of a `report`, the folder that `analysis.report` writes, the run gets the pages and figures as artifacts, a claim's verdict
    as a tag and its estimate with its interval as metrics. To be called after a tracker has opened the study, which writes the
    notes anew. Raises what MLflow raises.
    """
    client = Client(uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return
    runs = list(client.search_runs([experiment.experiment_id], "tags.stage = 'study'"))
    if said:
        stop = ":" if command else "."
        first = "\n\n".join([f"**{as_markdown(said)}{stop}**", *([f"    {command}"] if command else [])])
        note = f"{first}\n\n{experiment.tags.get(NOTE_TAG, '')}"
        client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, note)
        for run in runs:
            client.set_tag(run.info.run_id, NOTE_TAG, note)
    if report is not None:
        for run in runs:
            _attach(client, run.info.run_id, report)


def _attach(client: Client, run_id: str, report: Path) -> None:
    from mlflow.entities import Metric, RunTag

    verdicts = _verdicts(report / VERDICTS_FILE)
    now = int(time.time() * 1000)
    numbers = {
        f"{_key(claim['name'])}/{bound}": claim[bound]
        for claim in verdicts
        for bound in ("estimate", "low", "high")
        if _is_finite(claim[bound])
    }
    decided = sum(claim["verdict"] != "cannot tell" for claim in verdicts)
    totals = {"claims": len(verdicts), "claims_decided": decided} if verdicts else {}
    metrics = [Metric(name, float(value), now, 0) for name, value in (totals | numbers).items()]
    tags = [RunTag(f"verdict.{_key(claim['name'])}", claim["verdict"]) for claim in verdicts]
    client.log_batch(run_id, metrics=metrics, tags=tags)
    for file in sorted(report.iterdir()):
        if file.suffix in SHOWN:
            client.log_artifact(run_id, str(file), REPORT_FOLDER)


def _key(name: str) -> str:
    """A claim's name with what MLflow takes in the name of a tag or metric: that of one setting has an equals sign."""
    return re.sub(r"[^\w\-. :/]", "-", name, flags=re.ASCII)


def _verdicts(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _is_finite(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", text))


def as_markdown(text: str) -> str:
    """A text that Markdown shows as it stands, in one line: no tags and no links of its own in MLflow's notes."""
    return re.sub(r"([\\`*_\[\]~|])", r"\\\1", escape(" ".join(text.split()), quote=False))
