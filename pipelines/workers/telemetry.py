"""Nothing about a run is reported to the makers of its libraries, whichever process would do it."""

import os

OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Where a cluster's head would report that it reports nothing.
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What turns the libraries' reports off. They read it when they are imported, and processes hand it on to those they start."""


def turn_off() -> None:
    """Have no library of this process, and of those that it starts, report to its makers, unless the user asks for it."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
