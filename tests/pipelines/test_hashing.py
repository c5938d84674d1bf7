"""A remembered hash is used only for a file that has not changed."""

import hashlib
import os
from pathlib import Path

import pytest

from pipelines import hashing
from pipelines.hashing import remembered_sha256


@pytest.fixture
def num_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were really read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[Path] = []

    def count(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(hashing, "sha256_of", count)
    return read


def test_a_file_is_read_once_until_it_changes(num_hashed: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    # printf abc | sha256sum
    first = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [remembered_sha256(file), remembered_sha256(file)] == [first, first]
    assert len(num_hashed) == 1
    link = tmp_path / "link"
    link.symlink_to(file)
    assert remembered_sha256(link) == first and len(num_hashed) == 1
    stat = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert remembered_sha256(file) == hashlib.sha256(b"abd").hexdigest()
    # Another file under the name, with the old size and times.
    other = tmp_path / "other"
    other.write_bytes(b"abe")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    other.replace(file)
    assert remembered_sha256(file) == hashlib.sha256(b"abe").hexdigest()
    assert len(num_hashed) == 3


def test_a_damaged_or_unwritable_cache_only_costs_time(num_hashed: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    cache = tmp_path / "cache" / "blindsweep" / "hashes.json"
    cache.parent.mkdir(parents=True)
    for damage in ("{", "[]", '{"' + str(file) + '": 5}'):
        cache.write_text(damage)
        assert remembered_sha256(file).startswith("ba7816bf")
    assert len(num_hashed) == 3
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder would be")
    assert remembered_sha256(file).startswith("ba7816bf")
