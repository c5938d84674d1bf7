"""A SQLite database whose home is an object store: worked on in a local file, and brought back whole."""

import contextlib
import fcntl
import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from pipelines.storage import (
    can_compare,
    fetch,
    filesystem,
    make_cache,
    read_with_version,
    replace_if_unchanged,
    write_bytes,
    write_if_absent,
)
from sweep.index.database import COMPANIONS

KEEP_EVERY_S = 300.0
"""Seconds between two copies to the store while the database is open."""
logger = logging.getLogger(__name__)


class KeptDatabase:
    """The database at `uri`, worked on in the file `local`. Beside it is noted which copy of the store's this one goes on from.

    Of two machines that write at once the last copy stays; `replaced_others` says that it took another's place.
    """

    def __init__(self, uri: str, local: Path) -> None:
        self.uri, self.local = uri, local
        self.replaced_others = False
        self._note = local.with_name(f"{local.name}.version")
        self._writing = threading.Lock()

    def fetch(self) -> None:
        """Bring the store's copy here, unless this one goes on from it or a process here is working on it."""
        with self._held():
            pass

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Fetch it, bring a copy to the store now and then, and once more at the end. Raises what the first look raises."""
        ended = threading.Event()
        with self._held():
            thread = threading.Thread(target=self._keep_until, args=(ended,), name="keep database", daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                self._keep_or_say()

    def keep(self) -> None:
        """Bring a copy to the store that is consistent whatever is being written."""
        with self._writing:
            if not self.local.exists():
                return
            content = self._copy()
            if not can_compare(self.uri):
                write_bytes(self.uri, content)
                return
            known = self._note.read_text() if self._note.exists() else None
            version = replace_if_unchanged(self.uri, content, known) if known else write_if_absent(self.uri, content)
            while version is None:
                self.replaced_others = True
                there = read_with_version(self.uri)
                version = replace_if_unchanged(self.uri, content, there[1]) if there else write_if_absent(self.uri, content)
            self._note.write_text(version)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        make_cache(self.local.parent, "XDG_CACHE_HOME")
        # Of its own: MLflow's index takes `.lock` for moments, and this one is held for a whole run.
        with self.local.with_name(f"{self.local.name}.users").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._bring()
            except BlockingIOError:
                pass  # Another driver's, of this machine: both write the same file, as beside a local store.
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def _bring(self) -> None:
        if can_compare(self.uri):
            if (there := read_with_version(self.uri)) is None or (self._note.exists() and self._note.read_text() == there[1]):
                return
            content, version = there
        else:
            file_system, path = filesystem(self.uri)
            if self.local.exists() or not file_system.exists(path):
                return
            content, version = Path(fetch(self.uri)).read_bytes(), ""
        for old in (self.local, *(self.local.with_name(self.local.name + end) for end in COMPANIONS)):
            old.unlink(missing_ok=True)
        write_bytes(self.local, content)
        self._note.write_text(version)

    def _copy(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="blindsweep-") as folder:
            path = os.path.join(folder, "copy.db")
            with (
                contextlib.closing(sqlite3.connect(f"file:{self.local}?mode=ro", uri=True)) as source,
                contextlib.closing(sqlite3.connect(path)) as copy,
            ):
                source.backup(copy)
            return Path(path).read_bytes()

    def _keep_until(self, ended: threading.Event) -> None:
        while not ended.wait(KEEP_EVERY_S):
            self._keep_or_say()

    def _keep_or_say(self) -> None:
        try:
            self.keep()
        except Exception as error:
            logger.warning("%s could not be brought to %s: %s", self.local, self.uri, error)
