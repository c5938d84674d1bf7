"""File hashes that are remembered, so that describing or checking 13 GB of weights takes no minute each time.

The cache is `blindsweep/hashes.jsonl` in `$XDG_CACHE_HOME`, by default `~/.cache`: a line a file, the last one counts. One that
cannot be read or written costs time and nothing else.
"""

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.identity import sha256_of
from pipelines.storage import write_text

SETTLED_S = 0.1
"""A file that was changed less long ago may change again without another time: clocks of file systems tick so."""
MOST_LINES = 10_000
"""The cache is written anew when it has more lines than this, and more than half of them are out of date."""


def remembered_sha256(path: str | os.PathLike[str], *, anew: bool = False) -> str:
    """The sha256 of a local file's content, in hex; from the user's cache while size, times of change and inode stay the same.

    The time of change of the inode is among them, which no program can set back. `anew` reads the file in any case, and
    remembers what it finds.
    """
    file = Path(path).resolve()
    stat = file.stat()
    if not anew and (known := _Cache.of(_cache_file()).get(file, _stamp(stat))):
        return known
    now = time.time()
    sha256 = sha256_of(file)
    # What changes while it is read has no hash to be remembered by.
    if now - max(stat.st_mtime, stat.st_ctime) > SETTLED_S and _stamp(file.stat()) == _stamp(stat):
        _Cache.of(_cache_file()).add(file, _stamp(stat), sha256)
    return sha256


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _cache_file() -> Path:
    return user_cache() / "hashes.jsonl"


def user_cache() -> Path:
    """The folder `blindsweep` in the user's cache: `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blindsweep"


_caches: dict[Path, "_Cache"] = {}
_lock = threading.Lock()


@dataclass
class _Cache:
    """What this process has read of the file so far; processes append to it, and each reads what others have added."""

    path: Path
    entries: dict[str, Any] = field(default_factory=dict)
    inode: int = 0
    offset: int = 0
    num_lines: int = 0

    @staticmethod
    def of(path: Path) -> "_Cache":
        with _lock:
            return _caches.setdefault(path, _Cache(path))

    def get(self, file: Path, stamp: list[int]) -> str | None:
        with _lock, contextlib.suppress(OSError):
            self._read_on()
        entry = self.entries.get(str(file))
        return str(entry[1]) if entry and entry[0] == stamp else None

    def add(self, file: Path, stamp: list[int], sha256: str) -> None:
        with _lock, contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps([str(file), stamp, sha256]) + "\n"
            # One write to the end of the file: lines of two processes do not mix.
            with self.path.open("ab", buffering=0) as out:
                out.write(line.encode())
            self._read_on()
            if self.num_lines > max(MOST_LINES, 2 * len(self.entries)):
                there = {name: entry for name, entry in self.entries.items() if os.path.exists(name)}
                write_text(self.path, "".join(json.dumps([name, *entry]) + "\n" for name, entry in there.items()))

    def _read_on(self) -> None:
        with self.path.open("rb") as lines:
            stat = os.fstat(lines.fileno())
            if stat.st_ino != self.inode or stat.st_size < self.offset:
                self.entries, self.inode, self.offset, self.num_lines = {}, stat.st_ino, 0, 0
            lines.seek(self.offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                self.num_lines += 1
                # A line that is no entry is of a write that was cut off.
                with contextlib.suppress(ValueError, TypeError):
                    name, stamp, sha256 = json.loads(line)
                    self.entries[name] = (stamp, sha256)
