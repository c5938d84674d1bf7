"""Whether MLflow's database or server can be used, found out in seconds, and a new file in the place of a damaged one."""

import contextlib
import fcntl
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from glob import escape
from importlib.util import find_spec
from pathlib import Path

from sweep.index.address import sqlite_path, sqlite_uri
from sweep.index.client import load_mlflow, mlflow_client, within

LOOK_S = 5.0
"""Seconds that a look takes at most; MLflow's import, which takes two, comes before."""

LOCK_S = 2.0
"""Seconds to wait for another process that writes to a SQLite file; a write takes a hundredth."""

CHECK_S = 2.0
"""Seconds after which the check of a large SQLite file is left at what it has seen."""

COMPANIONS = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database."""


class Unusable(Exception):
    """MLflow's database or server cannot be used; the message says why."""


class Damaged(Unusable):
    """A SQLite file that was a database once, or should be one, and that MLflow cannot work with."""


class NewerSchema(Damaged):
    """A SQLite database of a newer MLflow."""


class OlderSchema(Unusable):
    """A SQLite database that MLflow can upgrade."""


class Moved(Unusable):
    """A SQLite database of a store that was somewhere else when it was written, as are all the paths in it."""


def look(uri: str, *, to_write: bool = True) -> None:
    """Raise Unusable, or a kind of it, if MLflow's database or server cannot be used now. Takes `LOOK_S` at most."""
    path = sqlite_path(uri)
    try:
        if path is not None:
            within(LOOK_S, _look_at_file, path, to_write)
        elif uri.startswith(("http", "databricks")):
            client = mlflow_client(uri)
            within(LOOK_S, client.search_experiments, max_results=1)
        else:
            within(LOOK_S, _look_at_database, uri)
    except Unusable:
        raise
    except ModuleNotFoundError as error:
        raise Unusable(f"the package {error.name}, its driver, is not installed") from error
    except Exception as error:
        raise Unusable(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if refused := re.search(
        r"Connection refused|timed out|Name or service not known|Failed to resolve|no answer within [\d.]+ s", text
    ):
        return refused[0].lower()
    return text[:200] or type(error).__name__


def _look_at_database(uri: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))


def _look_at_file(path: Path, to_write: bool) -> None:
    if not path.exists() or path.stat().st_size == 0:
        if to_write:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                # MLflow would try for two minutes.
                raise Unusable("its folder may only be read")
        return
    if not path.is_file():
        raise Unusable("it is not a file")
    # As MLflow opens it, but never made anew.
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'rw' if to_write else 'ro'}", uri=True, timeout=LOCK_S)
    with contextlib.closing(database):
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if to_write:
                database.execute("BEGIN IMMEDIATE")
                # Nothing is written, but a file that is read-only says so.
                database.execute("CREATE TABLE blindsweep_look (x)")
                database.execute("ROLLBACK")
            deadline = time.monotonic() + CHECK_S
            database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            with contextlib.suppress(sqlite3.OperationalError):
                if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise Damaged(f"it is damaged ({' '.join(found.split())[:100]})")
            database.set_progress_handler(None, 0)
            versions = list(database.execute("SELECT version_num FROM alembic_version")) if "alembic_version" in tables else []
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Unusable("another process holds its lock") from error
            raise Unusable(str(error)) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise Damaged(f"it is damaged ({' '.join(str(error).split())[:100]})") from error
    _check_schema(tables, versions[0][0] if versions else None)


def _check_schema(tables: set[str], version: str | None) -> None:
    parents = _schemas()
    if version is None:
        if tables - {"alembic_version"} and "experiments" not in tables:
            raise Unusable(f"it is a database of something else, with a table {min(tables)!r}")
        if tables:
            raise Damaged("it was never completed")
    elif version not in parents:
        raise NewerSchema("it is of a newer MLflow")
    elif version in parents.values():
        raise OlderSchema("it is of an older MLflow")
    elif missing := {"experiments", "runs", "metrics", "params", "tags", "latest_metrics"} - tables:
        raise Damaged(f"it is damaged (no table {min(missing)!r})")


def artifact_locations(path: Path) -> dict[str, str]:
    """Experiment → where its artifacts are, as a SQLite database has it that `look` has found sound; none of an empty file."""
    return dict(_rows(path, "SELECT name, artifact_location FROM experiments"))


def experiments_with_tag(path: Path, tag: str) -> dict[str, str]:
    """Experiment → its id, of those of a SQLite database that have a tag and are not deleted; the newest first."""
    found = _rows(
        path,
        "SELECT name, experiment_id FROM experiments JOIN experiment_tags USING (experiment_id) "
        "WHERE key = ? AND lifecycle_stage = 'active' ORDER BY last_update_time DESC",
        tag,
    )
    return {name: str(number) for name, number in found}


def _rows(path: Path, query: str, *values: str) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_S)) as database:
        try:
            return list(database.execute(query, values))
        except sqlite3.OperationalError:
            # Of a file that is still empty.
            return []


def _schemas() -> dict[str, str]:
    """Version → the one before, of the schemas that the installed MLflow knows. Read as text: its import takes seconds."""
    package = find_spec("mlflow")
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0], "store", "db_migrations", "versions")
    schemas = {}
    for file in folder.glob("[0-9a-z]*.py"):
        values = dict(re.findall(r"""^(revision|down_revision)\b[^=]*= ["']?(\w+)""", file.read_text(), flags=re.MULTILINE))
        schemas[values["revision"]] = values["down_revision"]
    return schemas


def is_sqlite(path: Path) -> bool:
    """Whether a file begins like a SQLite database, sound or not."""
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


@contextlib.contextmanager
def exclusive(path: Path, patience_s: float) -> Iterator[None]:
    """Keep other processes of this machine from making, mending or adding a run to a SQLite file.

    Raises TimeoutError if another keeps it longer, and OSError where no lock can be.
    """
    deadline = time.monotonic() + patience_s
    with path.with_name(f"{path.name}.lock").open("a") as file:
        while True:
            try:
                # Given back by the system if its holder dies.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {file.name}") from None
                time.sleep(0.02)
        yield


def replace(path: Path, why: str, make: Callable[[Path], None]) -> Path:
    """Have `make` write a database, then put it in the place of the one at `path`; returns where that lies now.

    What `make` raises leaves the one at `path` as it is. Other processes are kept away by `exclusive`.
    """
    _remove(path.parent.glob(f".{escape(path.name)}.*.partial*"))
    # A name of its own each time: MLflow keeps connections by it.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        make(partial)
        number = 1
        while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
            number += 1
        # The file itself last, so that nothing of it is taken for the new one's.
        for companion in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + companion).rename(aside.with_name(aside.name + companion))
        if path.exists():
            path.rename(aside)
        partial.rename(path)
    finally:
        _remove(path.parent.glob(f"{escape(partial.name)}*"))
    return aside


def _remove(files: Iterable[Path]) -> None:
    for file in list(files):
        file.unlink(missing_ok=True)


def upgraded_copy(path: Path, copy: Path) -> None:
    """Write a copy of a database with the schema of the installed MLflow. Raises what MLflow raises."""
    with contextlib.closing(sqlite3.connect(path)) as old, contextlib.closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    load_mlflow()
    from mlflow.db import upgrade

    upgrade.callback(sqlite_uri(copy))
