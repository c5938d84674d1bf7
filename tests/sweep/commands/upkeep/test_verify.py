"""`blindsweep verify` finds each damaged file, in a local store and on S3's protocol, and sets artifacts aside if asked."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipelines.storage import filesystem, join, write_text
from sweep import cli
from sweep.graph.records import Store, Study, StudyStep
from sweep.run.study_run import manifest
from sweep.study.grid import build_grid
from sweep.study.loading import load_experiment
from tests.sweep.conftest import record_of

ROOT = Path(__file__).parents[4]
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def blindsweep(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two studies: sources, a model and a set; of these the sources and another set. Two files each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store(tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket"))
    steps = build_grid(load_experiment("demo").experiment)[:4]
    for step in steps:
        for name in ("a", "pool/b"):
            write_text(join(store.folder(step.id), name), step.slug * 10)
        store.write_record(record_of(step, files=store.files(store.folder(step.id))))
    for name, of_study in (("one", steps[:3]), ("two", [steps[0], steps[3]])):
        Study(name, "A title", {}, tuple(StudyStep(s.stage, s.slug, s.fingerprint, {}, {}) for s in of_study)).save(store)
    return store


def steps_of(store: Store, name: str) -> list[StudyStep]:
    return list(Study.load(store, name).steps)


def test_what_is_whole_is_said_to_be(store: Store) -> None:
    done = blindsweep("verify", "--store", store.uri)
    assert done.exit_code == 0 and done.stdout.startswith("4 artifacts, 8 files, ")
    assert "all as their records say" in done.stdout
    values = json.loads(blindsweep("verify", "one", "--store", store.uri, "--json").stdout)
    assert (values["artifacts"], values["files"], values["not_built"], values["damaged"]) == (3, 6, 0, [])


def aside(store: Store) -> list[dict[str, Any]]:
    file_system, root = filesystem(join(store.uri, "set-aside"))
    return list(file_system.find(root, detail=True).values())


def break_two(store: Store) -> tuple[StudyStep, StudyStep]:
    """A file of study one with other content of the old size, and one of study two that is gone."""
    first, second = steps_of(store, "one")[1], steps_of(store, "two")[1]
    write_text(join(store.folder(first.id), "a"), first.slug[::-1] * 10)
    file_system, path = filesystem(join(store.folder(second.id), "pool/b"))
    file_system.rm_file(path)
    return first, second


def test_each_damaged_file_is_a_line_and_the_exit_code_says_so(store: Store) -> None:
    first, second = break_two(store)
    done = blindsweep("verify", "--store", store.uri)
    lines = done.stdout.splitlines()
    assert done.exit_code == 1 and len(lines) == 3
    assert any(line.startswith(f"{first.id.name}-{first.fingerprint[:12]}/a has other content (sha256 ") for line in lines)
    assert f"{second.id.name}-{second.fingerprint[:12]}/pool/b is missing" in lines
    assert lines[-1].endswith("2 artifacts are damaged; --set-aside has the next run build it again")
    # Of a study, what it consists of.
    assert "pool/b" not in blindsweep("verify", "one", "--store", store.uri).stdout
    # It only reads, unless it is asked to.
    assert [step.record is None for step in steps_of(store, "one")] == [False] * 3


def test_damaged_artifacts_are_set_aside_if_asked(store: Store) -> None:
    first, second = break_two(store)
    done = blindsweep("verify", "--store", store.uri, "--set-aside", "--json")
    assert done.exit_code == 1
    damaged = {entry["fingerprint"]: entry for entry in json.loads(done.stdout)["damaged"]}
    assert damaged.keys() == {first.fingerprint, second.fingerprint}
    assert damaged[second.fingerprint]["files"] == [{"file": "pool/b", "found": "is missing"}]
    where = damaged[second.fingerprint]["set_aside"]
    file_system, root = filesystem(where)
    assert sorted(path.removeprefix(f"{root}/") for path in file_system.find(root)) == ["a", "record.json", "why.txt"]
    missing = [step.fingerprint for name in ("one", "two") for step in steps_of(store, name) if step.record is None]
    assert missing == [first.fingerprint, second.fingerprint]
    again = blindsweep("verify", "--store", store.uri)
    assert again.exit_code == 0 and "2 artifacts, 4 files" in again.stdout
    assert f"{join(store.uri, 'set-aside')} holds 2 artifacts, " in again.stdout
    values = json.loads(blindsweep("verify", "--store", store.uri, "--json").stdout)["in_set_aside"]
    assert values["artifacts"] == 2 and values["bytes"] == sum(info["size"] for info in aside(store))


def test_a_record_that_cannot_be_read_is_one_damaged_file(store: Store) -> None:
    step = steps_of(store, "one")[0]
    write_text(join(store.folder(step.id), "record.json"), "{")
    done = blindsweep("verify", "--store", store.uri)
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{step.id.name}-{step.fingerprint[:12]}/record.json is not a readable record (")


@pytest.fixture
def read_only(record_all: Callable[..., None]) -> Iterator[Path]:
    """A store with all of the demo, which another user may read and not write."""
    with tempfile.TemporaryDirectory(prefix="read-only-") as folder:
        store = Store(folder)
        loaded = load_experiment("demo")
        steps = build_grid(loaded.experiment)
        for step in steps:
            write_text(join(store.folder(step.id), "a"), step.slug)
            store.write_record(record_of(step, files=store.files(store.folder(step.id))))
        manifest(loaded, steps).save(store)
        places = [Path(folder), *Path(folder).rglob("*")]
        for path in places:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield Path(folder)
        for path in places:
            path.chmod(0o755)


def as_reader(*arguments: str) -> Any:
    """The command in a process whom permissions bind, which they do not bind root."""
    libc = ctypes.CDLL(None)

    def renounce() -> None:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    with tempfile.TemporaryDirectory(prefix="reader-") as home:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": f"{home}/cache", "COLUMNS": "200"}
        command = [sys.executable, "-m", "sweep.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=home, timeout=120, preexec_fn=renounce
        )


def test_who_may_only_read_a_store_reads_it(read_only: Path) -> None:
    num = len(build_grid(load_experiment("demo").experiment))
    for arguments, shown in (
        (("status", "demo"), f"demo: {num} of {num} artifacts built"),
        (("plan", "demo"), "everything is built"),
        (("verify", "demo"), f"{num} artifacts, {num} files, "),
    ):
        done = as_reader(*arguments, "--store", str(read_only))
        assert (done.returncode, done.stderr) == (0, "") and shown in done.stdout, (arguments, done)


def test_who_may_not_read_a_file_is_told_so_and_moves_nothing(read_only: Path) -> None:
    file = next(read_only.glob("sources/*/a"))
    file.chmod(0)
    done = as_reader("verify", "demo", "--store", str(read_only), "--set-aside")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stdout.startswith(f"sources/{file.parent.name} cannot be read (Permission denied: {file})\n"), done
    assert "69 artifacts, 69 files" in done.stdout and "; 1 more cannot be read by this user" in done.stdout
    assert file.exists()


def test_a_run_of_what_is_all_built_says_in_a_line_what_cannot_be_written(read_only: Path) -> None:
    done = as_reader("run", "demo", "--store", str(read_only))
    assert "Traceback" not in done.stderr
    num = len(build_grid(load_experiment("demo").experiment))
    assert f"demo: {num} artifacts, {num} were there, 0 built" in done.stdout, done
    assert f"Warning: going on without MLflow at sqlite:///{read_only}/mlflow.db: its folder may only be read" in done.stderr
