"""What the libraries themselves say of their reports to their makers, in processes that are started as ours are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.workers.telemetry import OFF

ROOT = Path(__file__).parents[3]
# Of each library the name of what reports, and whether it does; run in a process, and in one that this starts.
ASK = """
import json
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
from mlflow.telemetry.utils import fetch_ui_telemetry_config, is_telemetry_disabled
from ray._common.usage.usage_lib import usage_stats_enabled
from vllm import envs
reports = {
    "hub": not HF_HUB_DISABLE_TELEMETRY,
    "mlflow": not is_telemetry_disabled(),
    "mlflow's pages": not fetch_ui_telemetry_config()["disable_ui_telemetry"],
    "ray": usage_stats_enabled(),
    "vllm": not (envs.VLLM_NO_USAGE_STATS or envs.VLLM_DO_NOT_TRACK),
}
print(json.dumps(reports))
"""
START = """
import subprocess, sys
try:
    {start}
except SystemExit:
    pass
print(subprocess.run([sys.executable, "-c", sys.argv[-1]], check=True, capture_output=True, text=True).stdout)
"""
# MLflow reports nothing where it sees a test or a CI; here it has to be asked for that.
HIDDEN = {*OFF, "CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST"}


COMMAND = "from sweep.cli import main; main()"


def said_by_child(start: str, ask: str) -> dict[str, Any]:
    """What `ask` prints, as JSON, in a process that one started which ran `start`."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    run = subprocess.run(
        [sys.executable, "-c", START.format(start=start), "--version", ask],
        # A real address would be asked for MLflow's settings.
        env={**environment, "PYTHONPATH": str(ROOT), "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(run.stdout.splitlines()[-2]))


def test_what_the_command_line_starts_is_told() -> None:
    assert said_by_child(COMMAND, "import json, os; print(json.dumps(dict(os.environ)))").items() >= OFF.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        COMMAND,
        "from sweep.run.session import _set_environment as start; start(debug=False, is_local=True)",
        "from sweep.index.client import load_mlflow; load_mlflow()",
    ],
)
def test_no_library_reports_from_what_is_started(start: str) -> None:
    said = said_by_child(start, ASK)
    assert len(said) == 5
    assert [library for library, does in said.items() if does] == []


@pytest.mark.slow
def test_without_ours_libraries_would_report() -> None:
    said = said_by_child("pass", ASK)
    assert {library for library, does in said.items() if does} == {"hub", "mlflow", "ray", "vllm"}
