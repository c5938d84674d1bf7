"""A SQLite database that lives in a bucket, over S3's own protocol on loopback."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.storage import join, read_with_version
from sweep.index import kept_database
from sweep.index.kept_database import KeptDatabase


@pytest.fixture
def machine(bucket, tmp_path):
    """The database as each of several machines sees it."""
    return lambda name: KeptDatabase(join(bucket, "mlflow.db"), tmp_path / name / "mlflow.db")


def add(database: KeptDatabase, value: str) -> None:
    with contextlib.closing(sqlite3.connect(database.local)) as connection, connection:
        connection.execute("create table if not exists runs (value text)")
        connection.execute("insert into runs values (?)", [value])


def values(database: KeptDatabase) -> list[str]:
    with contextlib.closing(sqlite3.connect(database.local)) as connection:
        return [value for (value,) in connection.execute("select value from runs order by value")]


def test_what_one_machine_wrote_the_next_one_goes_on_with(machine):
    first, second = machine("first"), machine("second")
    with first.open():
        add(first, "a")
    with second.open():
        assert values(second) == ["a"]
        add(second, "b")
    first.fetch()
    assert values(first) == ["a", "b"]
    assert not (first.replaced_others or second.replaced_others)


def test_what_was_not_brought_to_the_store_before_a_kill_is_kept(machine):
    database = machine("here")
    with database.open():
        add(database, "a")
    add(database, "b")
    database.fetch()
    assert values(database) == ["a", "b"]


def test_the_last_of_two_at_once_stays_and_says_so(machine):
    first, second, third = machine("first"), machine("second"), machine("third")
    with first.open(), second.open():
        add(first, "a")
        add(second, "b")
    # The second ended first.
    assert (first.replaced_others, second.replaced_others) == (True, False)
    third.fetch()
    assert values(third) == ["a"]


def test_two_drivers_of_one_machine_share_the_file(machine):
    first, second = machine("here"), machine("here")
    other = machine("there")
    with first.open():
        add(first, "a")
        first.keep()
        with other.open():
            add(other, "c")
        with second.open():
            # The store has a newer one, and the first is working on this.
            add(second, "b")
    assert values(first) == ["a", "b"]


def test_it_is_brought_to_the_store_while_it_is_written(machine, bucket, monkeypatch):
    monkeypatch.setattr(kept_database, "KEEP_EVERY_S", 0.05)
    database = machine("here")
    with database.open():
        add(database, "a")
        with contextlib.closing(sqlite3.connect(database.local)) as connection:
            # In the midst of a transaction the copy is of the state before.
            connection.execute("insert into runs values ('unfinished')")
            copies = {read_with_version(join(bucket, "mlflow.db"))}
            while None in copies:
                copies = {read_with_version(join(bucket, "mlflow.db"))}
    copy = machine("copy")
    copy.fetch()
    assert values(copy) == ["a"]


def test_a_store_that_is_away_does_not_end_the_work(machine, monkeypatch, caplog):
    database = machine("here")
    with database.open():
        add(database, "a")
        monkeypatch.setattr(kept_database, "write_if_absent", lambda *arguments: 1 / 0)
    assert "could not be brought to" in caplog.text
    assert Path(database.local).exists()


def test_a_cache_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*; set XDG_CACHE_HOME to a folder that can"):
        KeptDatabase("s3://bucket/mlflow.db", tmp_path / "file" / "mlflow.db").fetch()
