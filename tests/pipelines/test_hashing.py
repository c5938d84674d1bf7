"""A remembered hash is used only for a file that has not changed."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from pipelines import hashing
from pipelines.hashing import remembered_sha256


@pytest.fixture
def num_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were really read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "SETTLED_S", -1)
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
    cache = tmp_path / "cache" / "blindsweep" / "hashes.jsonl"
    cache.parent.mkdir(parents=True)
    for damage in ("{", "[]", '{"' + str(file) + '": 5}'):
        cache.write_text(damage)
        assert remembered_sha256(file).startswith("ba7816bf")
    assert len(num_hashed) == 3
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder would be")
    assert remembered_sha256(file).startswith("ba7816bf")


def test_content_written_over_a_file_in_its_old_size_and_times_is_noticed(num_hashed: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    stat = file.stat()
    assert remembered_sha256(file).startswith("ba7816bf")
    time.sleep(0.05)  # a clock's tick
    with file.open("r+b") as same_inode:
        same_inode.write(b"abd")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) == (3, stat.st_mtime_ns, stat.st_ino)
    assert remembered_sha256(file) == hashlib.sha256(b"abd").hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(
    num_hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within the same tick of the file system's clock."""
    monkeypatch.setattr(hashing, "SETTLED_S", 60)
    (tmp_path / "weights").write_bytes(b"abc")
    for _ in range(2):
        remembered_sha256(tmp_path / "weights")
    assert len(num_hashed) == 2


def test_a_hash_that_is_taken_anew_is_remembered(num_hashed: list[Path], tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    for anew in (True, True, False):
        assert remembered_sha256(tmp_path / "weights", anew=anew).startswith("ba7816bf")
    assert len(num_hashed) == 2


def test_a_file_costs_one_line_however_many_there_are(
    num_hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / str(number) for number in range(50)]
    for file in files:
        file.write_text(file.name)
    written: list[int] = []
    monkeypatch.setattr(hashing, "write_text", lambda path, text: written.append(len(text)))
    for file in files:
        remembered_sha256(file)
    cache = tmp_path / "cache" / "blindsweep" / "hashes.jsonl"
    assert len(cache.read_text().splitlines()) == 50 and not written
    # Another process's entries are met, too.
    hashing._caches.clear()
    for file in files:
        remembered_sha256(file)
    assert len(num_hashed) == 50


def test_lines_that_are_out_of_date_are_dropped(
    num_hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "MOST_LINES", 10)
    file, gone = tmp_path / "weights", tmp_path / "gone"
    gone.write_text("gone")
    remembered_sha256(gone)
    gone.unlink()
    for number in range(30):
        file.write_text(str(number) * 3)
        remembered_sha256(file)
    cache = tmp_path / "cache" / "blindsweep" / "hashes.jsonl"
    assert len(cache.read_text().splitlines()) <= 11
    assert str(gone) not in cache.read_text()
    assert remembered_sha256(file) == hashlib.sha256(b"292929").hexdigest() and len(num_hashed) == 31
