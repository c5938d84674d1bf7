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

from pipelines.storage import files_below, filesystem, join, read_text, read_with_version
from sweep.graph.records import RECORD_FILE, Store, Study
from sweep.run.tracking import Tracker

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
    """What was built, without when and where: the hash of every file of every artifact, and its metrics but the speeds."""
    found = {}
    for path, text in records(store).items():
        values = json.loads(text)
        metrics = {name: value for name, value in values["metrics"].items() if not name.endswith(("_s", "_per_s"))}
        found[path] = (values["files"], values["num_rows"], metrics)
    return found


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_that_was_killed_and_one_of_two_drivers_are_as_undisturbed_ones(
    bucket: str, s3_client: Any, tmp_path: Path
) -> None:
    s3_client.put_bucket_versioning(Bucket=bucket.removeprefix("s3://"), VersioningConfiguration={"Status": "Enabled"})
    command = ("run", str(TINY), "--max-cpus", "2")
    here = Store(tmp_path / "local")
    run(cli(*command, "--store", here.uri), tmp_path / "undisturbed")
    expected = results(here)
    assert len(expected) >= 10

    # Killed in the middle, and resumed.
    killed = Store(join(bucket, "killed"))
    driver = start(cli(*command, "--store", killed.uri), tmp_path / "first")
    deadline = time.monotonic() + 300
    while len(before := records(killed)) < 4:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert len(before) < len(expected)
    # On another machine, for all that it finds there.
    output = run(cli(*command, "--store", killed.uri), tmp_path / "second")
    assert results(killed) == expected
    assert {path: text for path, text in records(killed).items() if path in before} == before
    assert f"report: {killed.uri}/reports/tiny/report.html" in output
    assert "<html" in (read_text(join(killed.uri, "reports", "tiny", "report.html")) or "")
    fingerprints = {step.fingerprint for step in Study.load(killed, "tiny").steps}
    assert runs_of_fingerprints(bring_database(killed.uri, tmp_path)) == Counter(fingerprints)
    # Nothing lies beside the driver.
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"cache"}

    # Two at once, on machines of their own.
    both = Store(join(bucket, "both"))
    drivers = [start(cli(*command, "--store", both.uri), tmp_path / name) for name in ("left", "right")]
    outputs = [driver.communicate(timeout=900)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    assert results(both) == expected
    versions = {key: count for key, count in count_versions(s3_client, bucket).items() if key.startswith("both/")}
    assert {key: count for key, count in versions.items() if count > 1} == {}
    assert len([key for key in versions if key.endswith(RECORD_FILE)]) == len(expected)
    # The database that was brought last stays, and has every artifact once, by the records.
    run(cli("reindex", "--store", both.uri), tmp_path / "third")
    assert runs_of_fingerprints(bring_database(both.uri, tmp_path)) == Counter(fingerprints)


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
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", join(bucket, "studies"), "tiny", "A tiny study", {})
    tracker.client.log_text(tracker.parent_id, "text", "note.txt")
    files, root = filesystem(join(bucket, "studies", "mlflow-artifacts"))
    assert [path.rsplit("/", 1)[-1] for path in files.find(root)] == ["note.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_run_that_cannot_write_ends_before_ray_starts(s3_server: str, tmp_path: Path) -> None:
    driver = start(cli("run", "demo", "--store", "s3://no-such-bucket/studies"), tmp_path / "driver")
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1
    (line,) = output.splitlines()
    assert re.match(r"Error: s3://no-such-bucket/\S*: there is no bucket no-such-bucket", line), output
    assert not (tmp_path / "driver" / "cache" / "blindsweep").exists()
