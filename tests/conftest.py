"""What every test needs: no network look-ups, and tests skipped where there is no GPU or no compiler for them."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

# Set before anything is imported, and inherited by Ray's workers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# A process a finetuning less; no machine of a test is taken away with notice.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# How often Ray Train's controller looks at its workers, a finetuning's end included: every 2 s otherwise.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


LONGEST_FIRST = ("test_generation.py", "test_finetuning.py", "test_scheduler.py", "test_rehearsal.py", "test_two_nodes.py")
"""Files of a minute or more. Begun last, one of them would go on alone while the other of two processes has nothing to do."""


def missing_for_compiling() -> str | None:
    """What this machine lacks of what torch.compile's default backend builds C++ with, or None."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"no C++ compiler here ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no C headers of Python here"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    reasons = {"gpu": None if shutil.which("nvidia-smi") else "no NVIDIA GPU here", "needs_compiler": missing_for_compiling()}
    for marker, reason in reasons.items():
        if reason:
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))
