"""What every test needs: no network look-ups, and GPU tests skipped where there is no GPU."""

import os
import shutil

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if shutil.which("nvidia-smi") is None:
        skip = pytest.mark.skip(reason="no NVIDIA GPU here")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
