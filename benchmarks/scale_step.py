"""What a step takes of store and MLflow, without Ray: `carry_out` and the tracker in one process, one step after another."""

import json
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scale_driver import CALLS, CountedTracker, own_store, small_study
from benchmarks.scale_lanes import REPORTS, reported, write
from benchmarks.scale_requests import counted_s3
from pipelines.finetune.checkpoints import METRICS_FILE
from sweep.graph import stages
from sweep.graph.records import Store
from sweep.run.study_run import manifest
from sweep.run.tracking import Card, default_tracking_uri
from sweep.run.trial import Order, carry_out
from sweep.study.grid import build_grid

FILE_EVENTS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.link", "os.rmdir")
"""What Python's audit hooks tell of the work on files; looks at a path (`stat`) are not among it."""
FIGURES = {
    "store_cpu_ms": ("store's CPU a step", "ms"),
    "requests": ("store's requests a step", "requests"),
    "mlflow_cpu_ms": ("MLflow's CPU a step", "ms"),
    "mlflow_calls": ("MLflow's calls a step", "calls"),
}
"""Measured: title and unit."""


def measure_step(num_steps: int, store_kind: str, folder: str) -> dict[str, Any]:
    """Means over the first so many steps of a study; of a local store `requests` are operations on files."""
    for name, stage in stages.REGISTRY.items():
        stages.REGISTRY[name] = replace(stage, run=write, open=None, prepare=None)
    os.environ |= {CALLS: str(Path(folder) / "calls.json"), "XDG_CACHE_HOME": str(Path(folder) / "cache")}
    loaded = small_study(1)
    steps = build_grid(loaded.experiment)[:num_steps]
    events: Counter[str] = Counter()
    is_counting = False

    def hook(event: str, arguments: Any) -> None:
        if is_counting and event in FILE_EVENTS and str(arguments[0]).startswith(folder):
            events[f"{event.removeprefix('os.')} {_what(str(arguments[0]))}"] += 1

    sys.addaudithook(hook)
    with counted_s3() if store_kind == "s3" else own_store(folder) as (uri, requests):
        store = Store(uri)
        # Imports, the client and the hash of the code are no step's.
        carry_out(Order(steps[0], stages.REGISTRY[steps[0].stage], store.uri))
        before, is_counting = requests(), True
        began = time.process_time()
        records = [carry_out(Order(step, stages.REGISTRY[step.stage], store.uri)).record for step in steps[1:]]
        store_s, is_counting = time.process_time() - began, False
        counts = requests() - before if store_kind == "s3" else events
        study = manifest(loaded, steps)
        tracker = CountedTracker(default_tracking_uri(store), store.uri, replace(study, steps=()))
        tracker.declare([step.fingerprint for step in steps])
        began = time.process_time()
        for step, record in zip(steps[1:], records, strict=True):
            assert record is not None, step.name
            tracker.start(Card.of(step))
            for number in range(REPORTS):
                tracker.log(step.fingerprint, reported(number), number + 1, int(time.time() * 1_000))
            tracker.finish(record)
        mlflow_s = time.process_time() - began
        errors = tracker.close("FINISHED")
    assert not errors, errors[0]
    calls = json.loads(Path(os.environ[CALLS]).read_text())["calls"]
    of = len(records)
    return {
        "num_steps": of,
        "store_cpu_ms": 1_000 * store_s / of,
        "requests": sum(counts.values()) / of,
        "requests_by_kind": {kind: number / of for kind, number in sorted(counts.items())},
        "mlflow_cpu_ms": 1_000 * mlflow_s / of,
        "mlflow_calls": sum(calls.values()) / of,
        "mlflow_by_call": {name: number / of for name, number in sorted(calls.items())},
    }


def _what(path: str) -> str:
    name = Path(path).name
    return name if name in ("record.json", ".lease", ".lock", ".inputs.json", "value.txt", METRICS_FILE) else "other"
