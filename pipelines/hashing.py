"""File hashes that are remembered, so that describing 13 GB of weights takes no minute each time.

Only to *describe* files: who copies them hashes them anew.
"""

import contextlib
import json
import os
from pathlib import Path

from pipelines.identity import sha256_of
from pipelines.storage import write_text


def remembered_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a local file's content, in hex; from the user's cache while size, time of change and inode stay the same.

    The cache is `blindsweep/hashes.json` in `$XDG_CACHE_HOME`, by default `~/.cache`. One that cannot be read or written costs
    time and nothing else.
    """
    file = Path(path).resolve()
    stat = file.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    known = _read()
    entry = known.get(str(file))
    if isinstance(entry, dict) and entry.get("stamp") == stamp:
        return str(entry["sha256"])
    sha256 = sha256_of(file)
    # Read again: others may have hashed meanwhile. What two write at once and one loses is hashed again.
    _write(_read() | {str(file): {"stamp": stamp, "sha256": sha256}})
    return sha256


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blindsweep" / "hashes.json"


def _read() -> dict[str, object]:
    try:
        values = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(values: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        write_text(_cache_file(), json.dumps(values, indent=1))
