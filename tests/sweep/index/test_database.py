"""Whether MLflow's database or server can be used: real files broken on purpose, real sockets that do not answer."""

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweep.index import database
from sweep.index.address import sqlite_uri
from sweep.index.client import Client, within
from sweep.index.database import Damaged, NewerSchema, OlderSchema, Unusable, exclusive, look, replace, upgraded_copy


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow made."""
    path = tmp_path_factory.mktemp("sound") / "mlflow.db"
    Client(sqlite_uri(path)).create_experiment("mine")
    return path


@pytest.fixture
def file(sound: Path, tmp_path: Path) -> Path:
    return shutil.copy(sound, tmp_path / "mlflow.db")


def statement(sql: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(sql)

    return run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(5000, len(content), 4096):
        content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10_000])


BROKEN: dict[str, tuple[Callable[[Path], object], type[Unusable], str]] = {
    "no database": (
        lambda path: path.write_text("not a database, but text that is longer than a header" * 9),
        Damaged,
        "damaged",
    ),
    "flipped": (flip, Damaged, "damaged"),
    "truncated": (truncate, Damaged, "damaged"),
    "a table is lost": (statement("DROP TABLE latest_metrics"), Damaged, "no table 'latest_metrics'"),
    "not completed": (statement("DELETE FROM alembic_version"), Damaged, "never completed"),
    "newer": (statement("UPDATE alembic_version SET version_num = 'ffffffffffff'"), NewerSchema, "newer MLflow"),
    "older": (statement("UPDATE alembic_version SET version_num = '0584bdc529eb'"), OlderSchema, "older MLflow"),
    "a folder": (lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()), Unusable, "not a file"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_look_says_what_is_wrong_with_a_file(how: str, file: Path) -> None:
    look(sqlite_uri(file))
    breaking, kind, reason = BROKEN[how]
    breaking(file)
    with pytest.raises(Unusable, match=reason) as caught:
        look(sqlite_uri(file))
    assert type(caught.value) is kind


def test_a_file_of_something_else_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    statement("CREATE TABLE songs (title)")(tmp_path / "music.db")
    with pytest.raises(Unusable, match="something else, with a table 'songs'") as caught:
        look(sqlite_uri(tmp_path / "music.db"))
    assert not isinstance(caught.value, Damaged)


def test_a_look_at_what_is_not_there_yet_finds_nothing_wrong_and_makes_nothing(tmp_path: Path) -> None:
    look(sqlite_uri(tmp_path / "mlflow.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_locked_file_is_unusable_and_not_damaged(lock: str, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute(f"BEGIN {lock}")
        with pytest.raises(Unusable, match="another process holds its lock") as caught:
            look(sqlite_uri(file))
        assert not isinstance(caught.value, Damaged)
        if lock == "IMMEDIATE":
            look(sqlite_uri(file), to_write=False)
    look(sqlite_uri(file))


def test_a_file_that_is_read_only_is_unusable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    # Whoever is root may write to any file.
    monkeypatch.setattr(sqlite3, "connect", lambda name, **options: real(name.replace("mode=rw", "mode=ro"), **options))
    with pytest.raises(Unusable, match="readonly"):
        look(sqlite_uri(file))


def test_an_older_database_is_upgraded_with_its_contents(file: Path) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    # One migration back.
    command.downgrade(_get_alembic_config(sqlite_uri(file)), "-1")
    with pytest.raises(OlderSchema):
        look(sqlite_uri(file))
    aside = replace(file, "older", lambda copy: upgraded_copy(file, copy))
    look(sqlite_uri(file))
    assert aside.name == "mlflow.db.older-1"
    assert Client(sqlite_uri(file)).get_experiment_by_name("mine") is not None


def test_what_is_replaced_lies_beside_with_its_companions(file: Path) -> None:
    for number in (1, 2):
        file.write_text("damaged")
        Path(f"{file}-wal").write_text("wal")
        assert replace(file, "damaged", lambda new: new.write_text("sound")).name == f"mlflow.db.damaged-{number}"
    assert file.read_text() == "sound"
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "mlflow.db",
        *(f"mlflow.db.damaged-{number}{companion}" for number in (1, 2) for companion in ("", "-wal")),
    ]

    def fail(new: Path) -> None:
        new.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace(file, "damaged", fail)
    assert file.read_text() == "sound"
    assert len(list(file.parent.iterdir())) == 5


def test_a_lock_is_given_back_by_a_process_that_dies(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    holding = f"""
import time
from pathlib import Path
from sweep.index.database import exclusive
with exclusive(Path({str(path)!r}), 1):
    print("held", flush=True)
    time.sleep(100)
"""
    holder = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match=r"holds .*mlflow\.db\.lock"), exclusive(path, 0.1):
            pass
    finally:
        holder.kill()
        holder.wait()
    with exclusive(path, 5):
        pass


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_does_not_answer_or_is_not_there_is_unusable(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOOK_S", 1)
    with pytest.raises(Unusable, match="no answer within 1 s"):
        look(f"http://127.0.0.1:{silent}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(Unusable, match=r"connection refused|no answer within 1 s"):
        look(f"http://127.0.0.1:{free}")


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(Unusable, match="the package asyncmy, its driver, is not installed"):
        look("mysql+asyncmy://127.0.0.1:1/name")


def test_a_client_rests_after_a_call_that_was_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweep.index import client as module

    class Stuck:
        calls = 0

        def get_run(self, run_id: str) -> str:
            self.calls += 1
            time.sleep(0.5 if run_id == "slow" else 0)
            return run_id

    stuck = Stuck()
    monkeypatch.setattr(module, "mlflow_client", lambda uri: stuck)
    monkeypatch.setattr(module, "CALL_S", 0.1)
    monkeypatch.setattr(module, "SLOW_S", 0.05)
    client = Client("http://nowhere")
    assert client.get_run("quick") == "quick"
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        client.get_run("slow")
    with pytest.raises(TimeoutError, match="a moment ago"):
        client.get_run("quick")
    assert stuck.calls == 2, "the last one was not made"
    client.wake()
    assert client.get_run("quick") == "quick"


def test_what_does_not_return_keeps_no_process_alive() -> None:
    program = """
import time
from sweep.index.client import within
try:
    within(0.1, time.sleep, 100)
except TimeoutError:
    print("late")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("late\n", 0)
    with pytest.raises(ZeroDivisionError):
        within(1, lambda: 1 / 0)
