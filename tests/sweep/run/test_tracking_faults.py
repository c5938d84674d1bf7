"""MLflow never stops a study, and has one run of each artifact: real databases, servers and trackers, broken on purpose."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock
from urllib.request import urlopen

import pytest

from sweep.graph.records import Record, Store, Study, StudyStep
from sweep.index.address import sqlite_uri
from sweep.index.client import Client
from sweep.run.study_run import reindex, track_records, usable_index
from sweep.run.tracking import Card, Tracker, default_tracking_uri

ROOT = Path(__file__).parents[3]
CELL = {"starting_size": 0, "kind": "none", "size": 0, "seed": 0}
STUDY = ("run", "demo", "-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "--no-report", "--max-cpus", "2")


def wait_until_it_listens(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", port: int) -> None:
    """Return once `process`, which must live until then, listens at `port`."""
    deadline = time.monotonic() + 240
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def uri(store: Store, empty_database: Path) -> str:
    """Of an empty database in the store."""
    shutil.copy(empty_database, Path(store.uri, "mlflow.db"))
    return default_tracking_uri(store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a study of three artifacts."""
    store = Store(tmp_path / "store")
    records = [
        Record(
            "task_model", f"cell{digit}", digit * 64, {"config": {}}, {}, CELL, {"a": 1.0}, created="2025-01-02T03:04:05+00:00"
        )
        for digit in "123"
    ]
    for record in records:
        store.write_record(record)
    Study("tiny", "", {}, tuple(StudyStep(r.stage, r.slug, r.fingerprint, CELL, {}) for r in records)).save(store)
    return store


def runs(uri: str, study: str = "tiny") -> Counter[str]:
    """How many runs MLflow shows of the study and of each artifact, by the first digit of its fingerprint."""
    client = Client(uri)
    found = client.search_runs([client.get_experiment_by_name(study).experiment_id])
    return Counter(run.data.tags.get("fingerprint", "study")[0] for run in found)


def statuses(uri: str) -> dict[str, str]:
    """The status of the run of the study and of each artifact, by the first digit of its fingerprint."""
    client = Client(uri)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return {run.data.tags.get("fingerprint", "study")[0]: run.info.status for run in found}


ONE_OF_EACH = {"s": 1, "1": 1, "2": 1, "3": 1}


def test_trackers_of_several_drivers_make_one_run_of_an_artifact(store: Store) -> None:
    uri = default_tracking_uri(store)
    command = [sys.executable, str(Path(__file__).with_name("tracker_of_driver.py")), uri, store.uri]
    drivers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        for _ in range(2)
    ]
    assert [driver.communicate(timeout=120)[0] for driver in drivers] == ["[]\n"] * 2
    assert runs(uri) == ONE_OF_EACH


def test_of_several_runs_the_complete_one_is_kept_or_the_oldest(store: Store, uri: str) -> None:
    tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    client, experiment = tracker.client, tracker.experiment_id
    second = client.create_run(experiment, tags={"study": "tiny"}, start_time=int(time.time() * 1000) + 10).info.run_id

    def make(digit: str, start: int, **tags: str) -> str:
        tags = {"fingerprint": digit * 64, "mlflow.parentRunId": second, **tags}
        return str(client.create_run(experiment, tags=tags, start_time=start).info.run_id)

    # As crashed drivers left them: a run that was begun, the complete one, another complete one.
    _, complete, _ = make("1", 1), make("1", 2, complete="yes"), make("1", 3, complete="yes")
    oldest, _ = make("2", 1), make("2", 2)
    assert runs(uri) == {"s": 2, "1": 3, "2": 2}
    assert reindex(store, ["tiny"], uri) == {"tiny": 3}
    assert runs(uri) == ONE_OF_EACH
    for run_id in (complete, oldest):
        run = client.get_run(run_id)
        assert run.info.lifecycle_stage == "active"
        assert run.data.tags["mlflow.parentRunId"] == tracker.parent_id
        assert run.data.metrics["totals/a"] == 1.0


def test_a_tracker_goes_on_with_the_run_that_another_one_kept(store: Store, uri: str) -> None:
    tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    record = Study.load(store, "tiny").steps[0].record
    assert record is not None
    tracker.start(Card.of_record(record))
    # What happens on another machine, where the lock does not count.
    older = tracker.client.create_run(tracker.experiment_id, tags={"fingerprint": record.fingerprint}, start_time=1)
    Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    tracker.log(record.fingerprint, {"loss": 0.5}, 1, 1)
    tracker.finish(record)
    assert tracker.close("FINISHED") == []
    assert runs(uri) == {"s": 1, "1": 1}
    assert tracker.client.get_run(older.info.run_id).data.metrics["totals/a"] == 1.0


@pytest.mark.parametrize(
    "damage", ["text", pytest.param("truncated", marks=pytest.mark.slow), pytest.param("table", marks=pytest.mark.slow)]
)
def test_a_damaged_database_is_moved_aside_and_rebuilt(
    damage: str, store: Store, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(store.uri, "mlflow.db")
    match damage:
        case "text":
            path.write_text("no database")
        case "truncated":
            path.write_bytes(path.read_bytes()[:8192])
        case "table":
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("DROP TABLE runs")
    damaged = path.read_bytes()
    capfd.readouterr()
    assert usable_index(store, uri) == uri
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f"{path}: it is damaged" in said[0]
    assert "moved aside to mlflow.db.damaged-1 and rebuilt from the records of 1 study" in said[0]
    assert Path(store.uri, "mlflow.db.damaged-1").read_bytes() == damaged
    assert runs(uri) == ONE_OF_EACH
    assert not list(Path(store.uri).glob(".mlflow.db*"))


def test_a_file_of_the_users_is_never_moved(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not to be lost")
    assert usable_index(store, sqlite_uri(notes)) is None
    said = capfd.readouterr().err
    assert said.startswith("Warning: going on without MLflow at sqlite:///") and said.count("\n") == 1
    assert "`blindsweep reindex` fills it in later" in said
    assert notes.read_text() == "not to be lost" and len(list(tmp_path.iterdir())) == 2


def test_a_password_is_not_shown(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert usable_index(store, f"http://user:s3cret@127.0.0.1:{port}") is None
    said = capfd.readouterr()
    assert f"http://user:***@127.0.0.1:{port}: " in said.err
    assert "s3cret" not in said.err + said.out
    tracker = Tracker(f"http://user:s3cret@127.0.0.1:{port}", store.uri, Study("tiny", "", {}, ()))
    assert tracker.errors and "s3cret" not in "".join(tracker.errors)


def test_a_database_that_is_lost_on_the_way_is_an_error_for_each_thing_that_it_lacks(store: Store, uri: str) -> None:
    tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    record = Study.load(store, "tiny").steps[0].record
    assert record is not None
    Path(store.uri, "mlflow.db").unlink()
    tracker.start(Card.of_record(record))
    tracker.finish(record)
    assert [error.partition(":")[0] for error in tracker.close("FINISHED")] == ["start task_model/cell1", "close"]


def test_what_mlflow_did_not_take_is_told_again_at_the_close(store: Store, uri: str) -> None:
    one, two, three = (step.record for step in Study.load(store, "tiny").steps)
    assert one and two and three
    two = replace(two, marks=("rehearsal",))
    tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    tracker.start(Card.of_record(one))
    tracker.start(Card.of_record(three))
    there, away = Path(store.uri, "mlflow.db"), Path(store.uri, "away.db")
    there.rename(away)
    tracker.log(one.fingerprint, {"loss": 0.5}, 1, 1)
    tracker.start(Card.of_record(two))
    tracker.finish(one)
    tracker.finish(two)
    tracker.fail(three.fingerprint, "it broke")
    assert len(tracker.errors) == 3
    away.rename(there)
    assert tracker.close("FAILED") == []
    assert statuses(uri) == {"s": "FAILED", "1": "FINISHED", "2": "FINISHED", "3": "FAILED"}
    assert tracker.client.get_run(tracker.parent_id).data.tags["marks"] == "rehearsal"


def test_a_study_that_could_not_be_opened_is_opened_at_the_close(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Study.load(store, "tiny").steps[0].record
    assert record is not None
    with monkeypatch.context() as broken:
        broken.setattr(Client, "get_experiment_by_name", Mock(side_effect=ConnectionError("it is down")), raising=False)
        tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
        tracker.finish(record)
    assert len(tracker.errors) == 2
    assert tracker.close("FINISHED") == []
    assert statuses(uri) == {"s": "FINISHED", "1": "FINISHED"}


def test_a_server_that_is_away_is_not_asked_for_each_artifact_at_the_close(store: Store, uri: str) -> None:
    tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    record = Study.load(store, "tiny").steps[0].record
    assert record is not None
    Path(store.uri, "mlflow.db").unlink()
    for digit in "abcdef":
        tracker.finish(replace(record, fingerprint=digit * 64))
    asked = Mock(side_effect=ConnectionError("it is down"))
    tracker.client.search_runs = asked  # type: ignore[method-assign]
    assert len(tracker.close("FINISHED")) == 7
    assert asked.call_count == Tracker.MOST_IN_VAIN


def test_what_a_killed_run_left_running_of_earlier_settings_is_ended_and_no_longer_current(store: Store, uri: str) -> None:
    one, two, _ = Study.load(store, "tiny").steps
    assert one.record and two.record
    killed = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    for record in (one.record, two.record):
        killed.start(Card.of_record(record))
    tracker = Tracker(uri, store.uri, Study("tiny", "", {}, ()))
    tracker.declare([two.fingerprint])
    assert statuses(uri) == {"s": "RUNNING", "1": "KILLED", "2": "RUNNING"}
    tags = [run.data.tags for run in tracker.runs.values()]
    assert {tag["fingerprint"][0]: tag["current"] for tag in tags} == {"1": "no", "2": "yes"}


def test_what_is_not_built_yet_of_a_study_stays_current(store: Store, uri: str) -> None:
    study = Study.load(store, "tiny")
    one, two, _ = study.steps
    assert one.record and two.record
    tracker = Tracker(uri, store.uri, study)
    tracker.start(Card.of_record(two.record))
    assert track_records(study, [one.record], store, uri) == []
    assert tracker.client.get_run(tracker.runs[two.fingerprint].info.run_id).data.tags["current"] == "yes"
    assert statuses(uri)["2"] == "RUNNING"


@pytest.fixture
def server(tmp_path: Path) -> Iterator["tuple[str, subprocess.Popen[bytes]]"]:
    """A real MLflow server on loopback, in a session of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", sqlite_uri(tmp_path / "server.db"), "--default-artifact-root", str(tmp_path / "files")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *arguments],
        env=environment, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_it_listens(process, port)
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_study(store: Path, *options: str, seconds: float = 1.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fake_command.py")), *STUDY, "--store", str(store), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SECONDS": str(seconds)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_outlives_its_server(
    number: signal.Signals, server: "tuple[str, subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    uri, process = server
    run = run_study(tmp_path / "store", "--tracking-uri", uri)
    assert run.stdout is not None
    lines, built = [], 0.0
    for line in run.stdout:
        lines.append(line)
        if "done" in line:
            break
    os.killpg(process.pid, number)
    for line in run.stdout:
        lines.append(line)
        if "[15/15]" in line:
            built = time.monotonic()
    assert run.wait(timeout=120) == 0, "".join(lines)
    late = time.monotonic() - built
    print(f"ended {late:.1f} s after its last artifact")
    # 8 s for a call that is not answered, and what Ray takes to end on a busy machine; it has been minutes.
    assert late < 60
    assert any("15 artifacts, 0 were there, 15 built" in line for line in lines), "".join(lines)
    assert sum("MLflow has not everything" in line for line in lines) == 1, "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["locked", "silent", "damaged", "folder"])
def test_a_run_is_whole_whatever_the_state_of_mlflow(how: str, tmp_path: Path) -> None:
    store = tmp_path / ("100%?#ü" if how == "damaged" else "store")
    store.mkdir()
    database = store / "mlflow.db"
    options = []
    holder = server = None
    match how:
        case "locked":
            subprocess.run(
                [sys.executable, "-c", f"from sweep.index.client import Client; Client({sqlite_uri(database)!r})"],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120, capture_output=True,
            )  # fmt: skip
            holder = sqlite3.connect(database, isolation_level=None)
            holder.execute("BEGIN EXCLUSIVE")
        case "silent":
            server = socket.create_server(("127.0.0.1", 0))
            options = ["--tracking-uri", f"http://user:s3cret@127.0.0.1:{server.getsockname()[1]}"]
        case "damaged":
            database.write_text("no database")
        case "folder":
            (database / "x").mkdir(parents=True)
    run = run_study(store, *options, seconds=0.1)
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    assert "15 artifacts, 0 were there, 15 built" in output
    assert "s3cret" not in output
    warnings = [line for line in output.splitlines() if "MLflow" in line or "mlflow.db" in line]
    if how == "damaged":
        assert len(warnings) == 1 and "moved aside to mlflow.db.damaged-1" in warnings[0], output
        assert sorted(path.name for path in tmp_path.iterdir()) == [store.name], "nothing beside the store"
        with closing(sqlite3.connect(database)) as connection:
            assert list(connection.execute("SELECT status, count(*) FROM runs GROUP BY status")) == [("FINISHED", 16)]
    else:
        reason = {"locked": "another process holds its lock", "silent": "no answer within 5 s", "folder": "it is not a file"}[
            how
        ]
        assert len(warnings) == 1 and "going on without MLflow" in warnings[0] and reason in warnings[0], output
    for held in (holder, server):
        if held is not None:
            held.close()


@pytest.mark.slow
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_ui_shows_a_store_whose_database_is_missing_or_damaged(state: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    store = Store(tmp_path / "100%?#ü & 'more'")
    record = Record("task_model", "cell", "1" * 64, {"config": {}}, {}, CELL, {"a": 1.0}, created="2025-01-02T03:04:05+00:00")
    store.write_record(record)
    Study("tiny", "", {}, (StudyStep("task_model", "cell", record.fingerprint, CELL, {}),)).save(store)
    if state == "damaged":
        Path(store.uri, "mlflow.db").write_text("no database")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ui = subprocess.Popen(
        [sys.executable, "-m", "sweep.cli", "ui", "--store", store.uri, "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_until_it_listens(ui, port)
        experiment = MlflowClient(f"http://127.0.0.1:{port}").get_experiment_by_name("tiny")
        assert len(MlflowClient(f"http://127.0.0.1:{port}").search_runs([experiment.experiment_id])) == 2
        # Its pages are told to report nothing, and one worker serves them.
        with urlopen(f"http://127.0.0.1:{port}/ajax-api/3.0/mlflow/ui-telemetry") as answer:
            assert json.load(answer)["disable_ui_telemetry"] is True
        children = Path(f"/proc/{ui.pid}/task/{ui.pid}/children").read_text().split()
        assert len(children) == 1 and not Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text()
    finally:
        os.killpg(ui.pid, signal.SIGKILL)
        output, _ = ui.communicate()
    assert ("moved aside to mlflow.db.damaged-1" in output) == (state == "damaged")
    assert [path.name for path in tmp_path.iterdir()] == [Path(store.uri).name], "nothing beside the store"


def test_a_store_that_was_moved_is_indexed_again_by_itself(store: Store, uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert reindex(store, ["tiny"], uri) == {"tiny": 3}
    elsewhere = Path(store.uri).with_name("else where, 100%")
    shutil.copytree(store.uri, elsewhere)
    link = elsewhere.with_name("link")
    link.symlink_to(store.uri)
    capfd.readouterr()
    # Where it was, and by a link to it, it is as it was.
    for same in (store, Store(link)):
        assert usable_index(same, default_tracking_uri(same)) and capfd.readouterr().err == ""
    moved = Store(elsewhere)
    there = default_tracking_uri(moved)
    assert usable_index(moved, there) == there
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"it is of a store at file://{store.uri}; it is moved aside to mlflow.db.moved-1" in said
    client = Client(there)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment.artifact_location == (elsewhere / "mlflow-artifacts").as_uri()
    assert runs(there) == ONE_OF_EACH
    folders = {model.tags["uri"] for model in client.search_logged_models([experiment.experiment_id])}
    assert len(folders) == 3 and all(Path(folder, "record.json").exists() for folder in folders)
    assert all(folder.startswith(str(elsewhere)) for folder in folders)
    # No experiment without runs beside it.
    assert [found.name for found in client.search_experiments()] == ["tiny"]
    assert usable_index(moved, there) == there and capfd.readouterr().err == ""
