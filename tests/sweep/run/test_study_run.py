"""A whole run of a study: the steps that it takes around Ray."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from sweep.graph.records import RECORD_FILE, Store, Study
from sweep.graph.step import Step
from sweep.plan.plan import Plan, make_plan
from sweep.run.session import RayOptions
from sweep.run.study_run import run_study
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded


def test_a_run_reads_each_record_once(
    experiment: Experiment,
    record_all: Callable[[Iterable[Step], Store], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(tmp_path)
    steps = build_grid(experiment)
    record_all(steps, store)
    reads: Counter[str] = Counter()
    read = Store._read

    def counted(self: Store, path: str) -> bytes | None:
        reads[path] += path.endswith(f"/{RECORD_FILE}")
        return read(self, path)

    monkeypatch.setattr(Store, "_read", counted)
    # As `run` does: the plan is looked at before anything starts.
    plan = Plan(experiment, make_plan(steps, store, reasons=False), None)
    result = run_study(Loaded(experiment, {}), store, f"sqlite:///{tmp_path}/mlflow.db", RayOptions(), plan)
    assert (result.num_cached, result.num_built, result.tracking_errors) == (len(steps), 0, ())
    assert {path: count for path, count in reads.items() if count} == {
        os.path.join(store.folder(step.id), RECORD_FILE): 1 for step in steps
    }
    assert Study.load(store, experiment.name).num_built == len(steps)
