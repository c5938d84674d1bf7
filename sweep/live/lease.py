"""Leases: of all drivers on all machines one builds an artifact of a remote store, and none waits for a dead one.

    with lease(store.folder(step.id)) as held:
        ...build...
        held.check()

A lease is a small object in the artifact's folder, written on a condition (`pipelines.storage.replace_if_unchanged`). Its
holder renews it. Who finds one takes it over once it has stood unrenewed for its length, by the waiter's own clock: no two
machines' clocks are compared. A process of this machine that is gone is known at once. A holder that was stopped and finds
its lease taken over must write nothing more. On a local store a lock does all this, and falls with its process.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pipelines.storage import (
    can_compare,
    is_local,
    join,
    local_path,
    make_folder,
    read_with_age,
    read_with_version,
    replace_if_unchanged,
    write_if_absent,
)
from sweep.live.process import is_gone, name_of_process

LENGTH_S = 60.0
"""Seconds without renewal after which others may take a lease over; it is renewed six times as often."""
POLL_S = 1.0
"""Seconds between two looks of who waits."""
LOCK_FILE, LEASE_FILE = ".lock", ".lease"
logger = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """The holder of a lease did not renew it in time and another has taken it over, or its folder was removed."""


class Lease:
    """A lease that this process holds on a folder or URI. `check` raises LeaseLostError once it is another's."""

    def __init__(
        self, uri: str, version: str, holder: dict[str, object], length_s: float, when_lost: Callable[[], None]
    ) -> None:
        self._uri, self._version, self._holder, self._when_lost = uri, version, holder, when_lost
        self._length_s = length_s
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._is_lost = False
        self._renewals = 0

    def check(self) -> None:
        """Ask the store whether the lease is still this holder's, and renew it."""
        if not self._write():
            # The step is over: there is nothing to be stopped.
            self._ended.set()
            raise LeaseLostError(f"{self._uri} was taken over by another driver, since it was not renewed in time")

    def _write(self, **fields: object) -> bool:
        with self._writing:
            if self._is_lost:
                return False
            if self._ended.is_set() and not fields:
                return True  # A renewal that comes after the lease was given back.
            self._renewals += 1
            content = json.dumps(self._holder | {"renewals": self._renewals} | fields).encode()
            version = replace_if_unchanged(self._uri, content, self._version)
            if version is None and (own := self._renewal_unheard_of()) is not None:
                version = replace_if_unchanged(self._uri, content, own)
            if version is None:
                self._is_lost = True
                return False
            self._version = version
            return True

    def _renewal_unheard_of(self) -> str | None:
        """The lease's version if an earlier renewal wrote it whose answer was lost; None if it is another's, or gone."""
        try:
            there = read_with_version(self._uri)
            return there[1] if there is not None and json.loads(there[0])["holder"] == self._holder["holder"] else None
        except (ValueError, KeyError, TypeError):
            return None

    def keep(self) -> None:
        """Renew the lease until `release`; a store that does not answer is asked again."""
        while not self._ended.wait(self._length_s / 6):
            try:
                if not self._write():
                    self._when_lost()
                    return
            except Exception as error:
                logger.warning("cannot renew %s: %s", self._uri, error)

    def release(self) -> None:
        """Let the next one have it at once."""
        self._ended.set()
        # Else they wait for its length.
        with contextlib.suppress(Exception):
            self._write(free=True)


class Lock:
    """A lock on a local folder, by its open file. `check` raises LeaseLostError once the folder was removed or moved away."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file = path, file

    def check(self) -> None:
        """Look whether the locked file is still in its place: a process keeps a lock for as long as it lives."""
        if not self.is_in_place():
            raise LeaseLostError(f"{self._path.parent} was removed while it was being written")

    def is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return False


class NoLease:
    """Nothing, where a store can do no better."""

    def check(self) -> None:
        """There is nothing to lose."""


Held = Lease | Lock | NoLease


@contextlib.contextmanager
def lease(folder: str, *, when_lost: Callable[[], None] = lambda: None) -> Iterator[Held]:
    """Hold the lease of an artifact's folder or URI; waits until it is free or its holder is dead.

    `when_lost` is called from another thread if another takes it over meanwhile. Of stores other than local ones, S3 and GCS
    nothing is held: there two drivers may build the same.
    """
    with _lease(folder, when_lost, wait=True) as held:
        assert held is not None
        yield held


def lease_if_free(folder: str) -> contextlib.AbstractContextManager[Held | None]:
    """As `lease`, but gives None where one would have to wait."""
    return _lease(folder, lambda: None, wait=False)


def is_held(folder: str) -> bool:
    """Whether a driver that lives holds the lease of a folder or URI; nothing is written.

    A lease of another machine counts as held until it has stood unrenewed for its length, by its age in the store.
    """
    if is_local(folder):
        try:
            with local_path(join(folder, LOCK_FILE)).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except BlockingIOError:
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
    found = read_with_age(join(folder, LEASE_FILE))
    return found is not None and not _is_over(*found)


@contextlib.contextmanager
def _lease(folder: str, when_lost: Callable[[], None], *, wait: bool) -> Iterator[Held | None]:
    if is_local(folder):
        path = local_path(join(folder, LOCK_FILE))
        while True:
            make_folder(path.parent)
            with path.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield None
                    return
                lock = Lock(path, file)
                # Else it was removed while we waited, and another may hold the new one.
                if lock.is_in_place():
                    yield lock
                    return
    if not can_compare(folder):
        yield NoLease()
        return
    uri = join(folder, LEASE_FILE)
    process = name_of_process(os.getpid())
    holder = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "process": process, "length_s": LENGTH_S}
    version = _acquire(uri, holder, wait)
    if version is None:
        yield None
        return
    held = Lease(uri, version, holder, LENGTH_S, when_lost)
    thread = threading.Thread(target=held.keep, name=f"lease {uri}", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.release()


def _acquire(uri: str, holder: dict[str, object], wait: bool) -> str | None:
    """The version of the lease that was written for `holder`; None if that would take waiting, and one does not `wait`."""
    content = json.dumps(holder | {"renewals": 0}).encode()
    seen, since = "", time.monotonic()
    while True:
        if (there := read_with_version(uri)) is None:
            version = write_if_absent(uri, content)
        else:
            text, current = there
            if current != seen:
                seen, since = current, time.monotonic()
            version = replace_if_unchanged(uri, content, current) if _is_over(text, time.monotonic() - since) else None
        if version is not None or not wait:
            return version
        time.sleep(POLL_S)


def _is_over(text: bytes, unchanged_s: float) -> bool:
    """Whether a lease may be taken over that has stood as it is for `unchanged_s`."""
    try:
        values = json.loads(text)
        return bool(values.get("free")) or unchanged_s > float(values["length_s"]) or is_gone(str(values["process"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        # It is damaged: whoever holds it makes it whole at its next renewal.
        return unchanged_s > LENGTH_S
