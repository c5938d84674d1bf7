"""A whole run of a study: the steps that it takes around Ray."""

import dataclasses
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from pipelines.errors import DamagedError, UserError
from sweep import cli
from sweep.graph.integrity import STALE
from sweep.graph.queue import Capacity
from sweep.graph.records import RECORD_FILE, Record, Store, Study
from sweep.graph.step import Step
from sweep.plan.plan import Plan, make_plan
from sweep.run import study_run
from sweep.run.ends import Stop
from sweep.run.session import RayOptions
from sweep.run.study_run import FOR_REPORT, _set_damaged_aside, run_study
from sweep.run.trial import Outcome
from sweep.run.tune import Run
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded
from tests.sweep.conftest import record_of


def test_a_run_reads_each_record_once(
    experiment: Experiment,
    record_all: Callable[[Iterable[Step], Store], None],
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, experiment = Store(tmp_path), dataclasses.replace(experiment, starting_sizes=(0,), training_sizes=(30,))
    shutil.copy(empty_database, tmp_path / "mlflow.db")
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


def test_stale_artifacts_that_are_kept_are_marked_in_records_and_mlflow(
    experiment: Experiment, tmp_path: Path, empty_database: Path
) -> None:
    from mlflow import MlflowClient

    store, uri = Store(tmp_path / "store"), f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    experiment = dataclasses.replace(experiment, training_sizes=(30,))
    steps, built = build_grid(experiment), dict[str, Record]()
    for step in steps:
        contents = {name: built[source.fingerprint].content for name, source in step.inputs.items()}
        built[step.fingerprint] = record_of(step, input_contents=contents)
        store.write_record(built[step.fingerprint])

    def run() -> Counter[str | None]:
        result = run_study(Loaded(experiment, {}), store, uri, RayOptions(), keep_dependents=True)
        assert (result.num_cached, result.num_built, result.tracking_errors) == (len(steps), 0, ())
        client = MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name(experiment.name).experiment_id])
        return Counter(run.data.tags.get("marks") for run in runs if run.data.tags["stage"] != "study")

    assert run() == {None: len(steps)}
    pool = next(step for step in steps if step.stage == "synthetic_pool")
    path = Path(store.folder(pool.id)) / "pool" / "a"
    path.parent.mkdir()
    path.write_text("other texts")
    store.write_record(record_of(pool, files=store.files(store.folder(pool.id))))
    # Two kinds of synthetic set; of each two task models and their evaluations.
    assert run() == {STALE: 2 + 4 + 4, None: len(steps) - 10}
    assert Study.load(store, experiment.name).marks == {STALE: 10}
    marked = [step for step in steps if (record := store.read_record(step.id)) and STALE in record.marks]
    assert {step.stage for step in marked} == {"training_set", "task_model", "evaluation"}


@pytest.mark.parametrize("stage", ["evaluation", "training_set"])
def test_a_run_begins_with_a_look_at_what_is_there(experiment: Experiment, tmp_path: Path, stage: str) -> None:
    """What nothing is built from is compared in full, as nobody does later; of inputs, the sizes."""
    store, steps = Store(tmp_path / "store"), build_grid(experiment)
    for step in steps:
        store.write_bytes(os.path.join(store.folder(step.id), "value"), b"abc")
        store.write_record(record_of(step, files=store.files(store.folder(step.id))))
    assert all(member.is_cached for member in make_plan(steps, store, last=FOR_REPORT))
    damaged = [step for step in steps if step.stage == stage][:2]
    for step, content in zip(damaged, (b"abd", b""), strict=True):
        Path(store.folder(step.id), "value").write_bytes(content)
    looked = make_plan(steps, store, last=FOR_REPORT)
    notes = list(_set_damaged_aside(looked, store))
    found = damaged if stage == "evaluation" else damaged[1:]
    assert [member.step for member in looked if not member.is_cached] == found
    assert len(notes) == len(found) and all(f"set aside as {store.uri}/set-aside/{stage}/" in note for note in notes)
    assert [store.read_record(step.id) for step in found] == [None] * len(found)


def test_what_failed_is_said_where_the_disk_has_no_room_to_note_it(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(run: Run, *of: object, **how: object) -> list[str]:
        run.progress.failed[run.steps[0].fingerprint] = Outcome(None, "the disk is full")
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        return []

    monkeypatch.setattr(study_run, "ray_session", lambda options, steps: nullcontext(Capacity(1, 0)))
    monkeypatch.setattr(study_run, "usable_index", lambda store, uri: None)
    monkeypatch.setattr(study_run, "_run_on_ray", fill_disk)
    result = run_study(Loaded(experiment, {}), Store(tmp_path), "sqlite:///none", RayOptions())
    assert [failure["error"] for failure in result.failures] == ["the disk is full"]
    (note,) = result.notes
    manifest = tmp_path / "studies" / f"{experiment.name}.json"
    assert note == (
        f"{tmp_path} has no note of this run's end: the disk is full at {manifest}; free some space and run the same command "
        "again to go on"
    )


def build_files(steps: Iterable[Step], store: Store) -> None:
    for step in steps:
        store.write_bytes(os.path.join(store.folder(step.id), "value"), b"abc")
        store.write_record(record_of(step, files=store.files(store.folder(step.id))))


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_what_a_run_sets_aside_is_said_before_anything_starts_and_however_it_ends(
    experiment: Experiment,
    where: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Store(tmp_path / "store" if where == "local" else request.getfixturevalue("bucket"))
    steps = build_grid(experiment)
    build_files(steps, store)
    damaged = [step for step in steps if step.stage in ("training_set", "evaluation")][:10]
    for step in damaged:
        store.write_bytes(os.path.join(store.folder(step.id), "value"), b"")
    num_planned = sum(not member.is_cached for member in make_plan(steps, store))
    started: list[str] = []

    def no_ray(options: RayOptions, missing: list[Step]) -> None:
        started.append(capsys.readouterr().err)
        assert len(missing) == num_planned == 10
        raise UserError("no GPU is left")

    monkeypatch.setattr("sweep.run.ends.ctypes.CDLL", Mock())
    monkeypatch.setattr(study_run, "ray_session", no_ray)
    monkeypatch.setattr(study_run, "usable_index", lambda store, uri: None)
    with pytest.raises(UserError, match="no GPU"), Stop() as stop:
        run_study(Loaded(experiment, {}), store, "sqlite:///none", RayOptions(), None, stop)
    (line,) = [line for line in started[0].splitlines() if "are damaged" in line]
    first = f"{damaged[0].name}-{damaged[0].fingerprint[:12]}/value has 0 bytes, 3 in its record, for one"
    assert first in line and f": set aside and built again; 10 of {len(steps)} are to be built in all" in line
    ended = capsys.readouterr().err.splitlines()
    assert len(ended) == 10 and all(line.startswith("Warning: ") and "; set aside as " in line for line in ended)
    assert [store.read_record(step.id) for step in damaged] == [None] * 10


def test_a_run_does_not_build_anew_what_lacks_files_for_a_common_reason(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = Store(tmp_path / "store"), build_grid(experiment)
    build_files(steps, store)
    damaged = [step for step in steps if step.stage in ("training_set", "evaluation")][:11]
    for step in damaged:
        Path(store.folder(step.id), "value").unlink()
    monkeypatch.setattr(study_run, "ray_session", Mock(side_effect=AssertionError("it started")))
    before = sorted(path for path in Path(store.uri).rglob("*"))
    with pytest.raises(DamagedError, match=r"11 of the .* are damaged"):
        run_study(Loaded(experiment, {}), store, "sqlite:///none", RayOptions())
    assert sorted(path for path in Path(store.uri).rglob("*")) == before
    # The way out that it names.
    said = CliRunner().invoke(cli.app, ["verify", "--store", store.uri, "--sizes", "--set-aside"])
    assert "11 artifacts are damaged" in said.output
    begun: list[int] = []

    def count(options: RayOptions, missing: list[Step]) -> None:
        begun.append(len(missing))
        raise UserError("enough")

    monkeypatch.setattr(study_run, "ray_session", count)
    with pytest.raises(UserError, match="enough"):
        run_study(Loaded(experiment, {}), store, "sqlite:///none", RayOptions())
    assert begun == [11]
