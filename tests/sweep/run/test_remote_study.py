"""Whole studies with their store in a bucket, over S3's own protocol on loopback: killed and resumed, two drivers at once."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.finetune.checkpoints import METRICS_FILE
from pipelines.storage import files_below, filesystem, join, read_text, read_with_version
from sweep.graph.records import RECORD_FILE, Store, Study
from sweep.run.session import _join
from sweep.run.tracking import Tracker, default_tracking_uri, kept_database

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
TINY = HERE / "tiny_study.py"
DEMO = ("-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "--max-cpus", "2")


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where a run's Ray keeps its sessions: short, since the paths of sockets are."""
    folder = tempfile.mkdtemp(prefix="r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(command: tuple[str, ...], folder: Path, **environment: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "BLINDSWEEP_CACHE": str(folder / "cache" / "fetched"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(command: tuple[str, ...], folder: Path) -> str:
    driver = start(command, folder)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
    return output


def cli(*arguments: str) -> tuple[str, ...]:
    return "-c", "from sweep.cli import main; main()", *arguments


def records(store: Store) -> dict[str, str]:
    """Path in the store → text of each record."""
    files, root = filesystem(store.uri)
    return {
        path: read_text(join(store.uri, path)) or "" for path in files_below(files, root) if path.endswith(f"/{RECORD_FILE}")
    }


def results(store: Store) -> dict[str, Any]:
    """What was built, without when and how fast: the hash of every file of every artifact, its metrics, its logged steps."""
    found = {}
    for path, text in records(store).items():
        values = json.loads(text)
        steps = read_text(join(store.uri, path.replace(RECORD_FILE, METRICS_FILE))) or ""
        curves = [without_times(json.loads(line)) for line in steps.splitlines()]
        files = {name: file for name, file in values["files"].items() if name != METRICS_FILE}
        found[path] = (files, values["num_rows"], without_times(values["metrics"]), curves)
    return found


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.endswith("_s") and name != "resumed_at_step"}


def runs_of_fingerprints(database: Path) -> Counter[str]:
    """How many of MLflow's runs there are of each artifact; all of them have ended well."""
    with sqlite3.connect(database) as connection:
        statuses = {status for (status,) in connection.execute("select status from runs where lifecycle_stage = 'active'")}
        assert statuses == {"FINISHED"}
        rows = connection.execute(
            "select value from tags join runs using (run_uuid) where key = 'fingerprint' and lifecycle_stage = 'active'"
        )
        return Counter(value for (value,) in rows)


def bring_database(store: str, folder: Path) -> Path:
    found = read_with_version(join(store, "mlflow.db"))
    assert found is not None
    path = folder / "fetched.db"
    path.write_bytes(found[0])
    return path


def count_versions(s3_client: Any, bucket: str) -> Counter[str]:
    """How often each object was written that is a part of an artifact."""
    pages = s3_client.get_paginator("list_object_versions").paginate(Bucket=bucket.removeprefix("s3://"))
    keys = [version["Key"] for page in pages for version in page.get("Versions", ())]
    stages = {stage.rsplit("/", 2)[0] for stage in keys if stage.endswith(f"/{RECORD_FILE}")}
    return Counter(key for key in keys if key.rsplit("/", 1)[0].startswith(tuple(stages)) and "/." not in key)


COMMAND = ("run", str(TINY), "--max-cpus", "2")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a run into a local store that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = Store(folder / "local")
    run(cli(*COMMAND, "--store", store.uri), folder / "driver")
    found = results(store)
    assert len(found) == 7
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_that_was_killed_is_resumed_to_the_same_results(bucket: str, expected: dict[str, Any], tmp_path: Path) -> None:
    driver = start(cli(*COMMAND, "--store", bucket), tmp_path / "first")
    deadline = time.monotonic() + 600
    files, root = filesystem(bucket)
    # In the midst of a finetuning.
    while not any(re.search(r"/\.checkpoints/step\d+\.json$", path) for path in files.find(root)):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    store = Store(bucket)
    assert 0 < len(before := records(store)) < len(expected)
    # On another machine, for all that it finds there.
    output = run(cli(*COMMAND, "--store", bucket), tmp_path / "second")
    assert results(store) == expected
    assert {path: text for path, text in records(store).items() if path in before} == before
    assert f"report: {bucket}/reports/tiny/report.html" in output
    assert "<html" in (read_text(join(bucket, "reports", "tiny", "report.html")) or "")
    fingerprints = {step.fingerprint for step in Study.load(store, "tiny").steps}
    assert runs_of_fingerprints(bring_database(bucket, tmp_path)) == Counter(fingerprints)
    # Nothing lies beside the driver.
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"cache"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_drivers_at_once_build_everything_once(
    bucket: str, s3_client: Any, expected: dict[str, Any], tmp_path: Path
) -> None:
    s3_client.put_bucket_versioning(Bucket=bucket.removeprefix("s3://"), VersioningConfiguration={"Status": "Enabled"})
    # On machines of their own, for all that they find there.
    drivers = [start(cli(*COMMAND, "--store", bucket), tmp_path / name) for name in ("left", "right")]
    outputs = [driver.communicate(timeout=900)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    # Each says what it has built itself, and what it has of the other.
    counts = [re.findall(r"(\d+) built(?:, (\d+) by another run meanwhile)?", output)[0] for output in outputs]
    assert sum(int(own) for own, _ in counts) == len(expected)
    assert [int(own) + int(others or 0) for own, others in counts] == [len(expected)] * 2
    store = Store(bucket)
    assert results(store) == expected
    versions = count_versions(s3_client, bucket)
    # A base model is written before its pretraining, and after.
    assert {key: count for key, count in versions.items() if count > 1 and not key.startswith("base_model/")} == {}
    assert [versions[path] for path in expected] == [1] * len(expected)
    # The database that was brought last stays, and has every artifact once, by the records.
    run(cli("reindex", "--store", bucket), tmp_path / "third")
    fingerprints = {step.fingerprint for step in Study.load(store, "tiny").steps}
    assert runs_of_fingerprints(bring_database(bucket, tmp_path)) == Counter(fingerprints)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_runs_on_google_s_protocol(gcs_bucket: str, tmp_path: Path) -> None:
    command = ("run", str(TINY), "--max-cpus", "2", "--store", gcs_bucket)
    assert f"report: {gcs_bucket}/reports/tiny/report.html" in run(cli(*command), tmp_path / "first")
    # All of it is found again, from another machine.
    assert "0 built" in run(cli(*command), tmp_path / "second")
    fingerprints = {step.fingerprint for step in Study.load(Store(gcs_bucket), "tiny").steps}
    assert runs_of_fingerprints(bring_database(gcs_bucket, tmp_path)) == Counter(fingerprints)


@pytest.mark.slow
def test_no_key_is_written_anywhere(bucket: str, tmp_path: Path, ray_folder: str) -> None:
    secret = "secret-of-this-test-4711"
    driver = start(
        (str(HERE / "fake_command.py"), "run", "demo", *DEMO, "--store", bucket, "--no-report"),
        tmp_path / "driver",
        SECONDS="0.5",
        RAY_TMPDIR=ray_folder,
        AWS_SECRET_ACCESS_KEY=secret,
        AWS_SESSION_TOKEN=secret,
    )
    texts: dict[str, bytes] = {}
    while driver.poll() is None:
        # Before Ray's files are gone.
        texts |= contents(Path(ray_folder))
        time.sleep(1)
    output, _ = driver.communicate()
    assert driver.returncode == 0, output
    texts |= contents(Path(ray_folder)) | contents(tmp_path)
    files, root = filesystem(bucket)
    texts |= {path: files.cat_file(path) for path in files.find(root)}
    # That the places where it was are looked at: Tune's runtime environment, records, MLflow's database.
    assert any(b"PL_DISABLE_FORK" in text for text in texts.values())
    assert any(path.endswith(RECORD_FILE) for path in texts) and any(path.endswith("mlflow.db") for path in texts)
    assert [path for path, text in {**texts, "output": output.encode()}.items() if secret.encode() in text] == []


def test_a_cluster_s_workers_are_handed_the_address_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    joined: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: joined.update(options))
    # Another test's Ray may be up on this machine, which `auto` would find and which lets nobody in.
    monkeypatch.setattr("sweep.run.session._check_address", lambda address: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"secret-of-this-test {name}")
    _join("auto", {})
    assert joined["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert "secret-of-this-test" not in str(joined)


@pytest.mark.slow
def test_a_run_that_is_stopped_brings_its_database(bucket: str, tmp_path: Path) -> None:
    driver = start(
        (str(HERE / "fake_command.py"), "run", "demo", *DEMO, "--store", bucket, "--no-report"),
        tmp_path / "driver",
        SECONDS="60",
    )
    deadline = time.monotonic() + 120
    while Counter(statuses(tmp_path / "driver"))["RUNNING"] < 2:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGTERM, output
    path = bring_database(bucket, tmp_path)
    with sqlite3.connect(path) as connection:
        assert {status for (status,) in connection.execute("select status from runs")} <= {"KILLED", "FINISHED"}


def statuses(folder: Path) -> list[str]:
    """Of MLflow's runs in the local file of the database."""
    for path in folder.glob("cache/blindsweep/mlflow/*/mlflow.db"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
                return [status for (status,) in connection.execute("select status from runs")]
        except sqlite3.OperationalError:
            pass  # Its tables are being made.
    return []


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                found[str(path)] = path.read_bytes()
        except OSError:
            continue
    return found


def test_mlflow_s_artifacts_are_kept_with_the_store(bucket: str, tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", join(bucket, "studies"), Study("tiny", "A tiny study", {}, ()))
    tracker.client.log_text(tracker.parent_id, "text", "note.txt")
    files, root = filesystem(join(bucket, "studies", "mlflow-artifacts"))
    assert [path.rsplit("/", 1)[-1] for path in files.find(root)] == ["note.txt"]
    assert "mlflow-artifacts" not in {path.name for path in tmp_path.iterdir()}


def test_a_database_that_is_kept_can_be_tracked_in(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(bucket)
    uri = default_tracking_uri(store)
    database = kept_database(store, uri)
    assert database is not None and kept_database(store, f"sqlite:///{tmp_path}/mlflow.db") is None
    with database.open():
        assert Tracker(uri, bucket, Study("tiny", "A tiny study", {}, ())).close("FINISHED") == []
    with sqlite3.connect(bring_database(bucket, tmp_path)) as connection:
        assert connection.execute("select status from runs").fetchall() == [("FINISHED",)]


def test_a_run_that_cannot_write_ends_before_ray_starts(s3_server: str, tmp_path: Path) -> None:
    driver = start(cli("run", "demo", "--store", "s3://no-such-bucket/studies"), tmp_path / "driver")
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1
    (line,) = output.splitlines()
    assert re.match(r"Error: s3://no-such-bucket/\S*: there is no bucket no-such-bucket", line), output
    assert not (tmp_path / "driver" / "cache" / "blindsweep").exists()
