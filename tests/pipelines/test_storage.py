import errno
import os
import shutil
import tempfile

import fsspec
import pytest

from pipelines.errors import UserError
from pipelines.storage import absolute, fetch, is_local, join, local_path, publish, read_text, working_folder, write_text


@pytest.fixture
def remote(tmp_path):
    """A folder in fsspec's in-memory file system: like an object store's, no local path leads to it."""
    file_system = fsspec.filesystem("memory")
    root = f"memory://{tmp_path.name}"
    yield root
    if file_system.exists(root):
        file_system.rm(root, recursive=True)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "artifact"
    (folder / "pool").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "pool" / "0.parquet").write_bytes(b"rows")
    return folder


@pytest.mark.parametrize(
    ("uri", "local"),
    [("/a/b", True), ("a/b", True), ("file:///a/b", True), ("s3://bucket/a", False), ("memory://a", False)],
)
def test_is_local(uri, local):
    assert is_local(uri) is local


def test_local_path_of_a_remote_uri_is_refused():
    assert str(local_path("file:///a/b")) == "/a/b"
    with pytest.raises(UserError, match="s3://bucket"):
        local_path("s3://bucket/a")


def test_absolute_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b") == absolute("file://a/b") == str(tmp_path / "a" / "b")
    assert absolute("s3://bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("/a", "b"), "/a/b"),
        (("/a/", "/b/", "c.json"), "/a/b/c.json"),
        (("s3://bucket", "a"), "s3://bucket/a"),
        (("memory://", "a"), "memory://a"),
        (("/", "a"), "/a"),
        (("a",), "a"),
    ],
)
def test_join(parts, joined):
    assert join(*parts) == joined


def test_a_local_folder_is_fetched_as_it_is(folder):
    assert fetch(str(folder)) == str(folder)
    assert fetch(f"file://{folder}") == str(folder)
    with pytest.raises(UserError, match="nowhere"):
        fetch(folder / "nowhere")


def test_a_cache_that_cannot_be_written_is_named_with_its_setting(folder, remote, tmp_path, monkeypatch):
    publish(folder, remote)
    (tmp_path / "file").touch()
    # As a HOME that is none.
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file/cache .* cannot be written \(Not a directory\); set BLINDSWEEP_CACHE"):
        fetch(remote)


def test_published_files_come_back(folder, remote, tmp_path):
    publish(folder, f"{remote}/artifact")
    found = local_path(fetch(f"{remote}/artifact", cache=tmp_path / "cache"))
    assert (found / "metrics.json").read_text() == "{}"
    assert (found / "pool" / "0.parquet").read_bytes() == b"rows"
    assert sorted(path.name for path in found.rglob("*")) == ["0.parquet", "metrics.json", "pool"]


def test_one_file_comes_back_under_its_name(folder, remote, tmp_path):
    publish(folder, f"{remote}/artifact")
    found = local_path(fetch(f"{remote}/artifact/pool/0.parquet", cache=tmp_path / "cache"))
    assert found.name == "0.parquet" and found.read_bytes() == b"rows"


def test_a_download_is_made_once_and_again_when_the_content_changed(folder, remote, tmp_path):
    cache = tmp_path / "cache"
    publish(folder, f"{remote}/artifact")
    first = local_path(fetch(f"{remote}/artifact", cache=cache))
    (first / "metrics.json").write_text("[]")
    again = local_path(fetch(f"{remote}/artifact", cache=cache))
    assert (again / "metrics.json").read_text() == "[]"

    (folder / "metrics.json").write_text('{"changed": 1}')
    publish(folder, f"{remote}/artifact")
    changed = local_path(fetch(f"{remote}/artifact", cache=cache))
    assert (changed / "metrics.json").read_text() == '{"changed": 1}'
    assert not list(cache.glob(".partial-*"))


def test_a_failed_download_leaves_nothing_that_looks_complete(folder, remote, tmp_path, monkeypatch):
    publish(folder, f"{remote}/artifact")
    cache = tmp_path / "cache"
    memory = type(fsspec.filesystem("memory"))

    def broken(self, source, target, **options):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "get_file", broken)
        with pytest.raises(ConnectionError):
            fetch(f"{remote}/artifact", cache=cache)
    assert list(cache.iterdir()) == []
    assert (local_path(fetch(f"{remote}/artifact", cache=cache)) / "metrics.json").exists()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_publishing_here_replaces_files_of_the_same_name(folder, tmp_path, prefix):
    target = tmp_path / "store" / "artifact"
    publish(folder, f"{prefix}{target}")
    (target / "other").write_text("stays")
    (folder / "metrics.json").write_text('{"changed": 1}')
    publish(folder, f"{prefix}{target}")
    assert (target / "metrics.json").read_text() == '{"changed": 1}'
    assert (target / "other").read_text() == "stays"
    assert [path.name for path in target.parent.iterdir()] == ["artifact"]


def test_publishing_a_folder_onto_itself_keeps_it(folder):
    publish(folder, folder)
    assert (folder / "metrics.json").read_text() == "{}"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    write_text(tmp_path / "folder" / "latest.json", "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "folder" / "latest.json", "new")
    assert read_text(tmp_path / "folder" / "latest.json") == "old"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["latest.json"]


def test_mistakes_are_told(tmp_path, remote):
    with pytest.raises(UserError, match="not a folder"):
        publish(tmp_path / "nowhere", remote)
    with pytest.raises(UserError, match="does not exist"):
        fetch(f"{remote}/nowhere", cache=tmp_path)
    with pytest.raises(UserError, match="nosuch://"):
        fetch("nosuch://bucket/a", cache=tmp_path)


def test_a_working_folder_of_a_file_address_is_the_folder_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with working_folder(f"file://{tmp_path}/a") as folder:
        (folder / "text").write_text("1")
    assert (tmp_path / "a" / "text").read_text() == "1"


def by_python(path):
    path.symlink_to("/dev/full")
    path.write_text("1")


def by_a_library(path):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [by_python, by_a_library])
@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_full_disk_is_named_where_the_library_that_wrote_does_not(where, write, tmp_path, remote, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with (
        pytest.raises(OSError, match="No space left on device") as error,
        working_folder(str(tmp_path / "a") if where == "local" else join(remote, "a")) as folder,
    ):
        write(folder / "weights")
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(folder)
    assert folder.parent == (tmp_path if where == "local" else tmp_path / "scratch")


def test_a_full_disk_is_named_where_a_text_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device") as error:
        write_text(tmp_path / "record.json", "{}")
    assert error.value.filename == str(tmp_path / "record.json") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_where_folders_are_copied(number, folder, remote, tmp_path, monkeypatch):
    publish(folder, remote)

    def full(source, target, *of, **how):
        # As shutil raises it: a list, without a number.
        raise shutil.Error([(str(source), str(target), str(OSError(number, os.strerror(number))))])

    monkeypatch.setattr(shutil, "copytree", full)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/there'"):
        publish(folder, tmp_path / "there")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/cache'"):
        fetch(remote, cache=tmp_path / "cache")


def test_a_file_that_cannot_be_written_has_its_own_name_in_the_error(tmp_path):
    with pytest.raises(OSError) as error:
        write_text(tmp_path / ("a" * 300), "text")
    assert error.value.filename == str(tmp_path / ("a" * 300))


def test_what_else_goes_wrong_in_a_working_folder_is_raised_as_it_is(tmp_path):
    with pytest.raises(UserError, match="size=0"), working_folder(str(tmp_path / "a")):
        raise UserError("size=0; give 1")


class DiskCalls:
    """What the disk is told, in order: ("write" | "sync" | "rename", path). A write shows when the file has changed since."""

    def __init__(self, monkeypatch):
        self.calls = []
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def synced(descriptor):
            self.calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
            fsync(descriptor)

        def moved(move):
            def call(source, target, **options):
                self.calls.append(("rename", str(target)))
                move(source, target, **options)

            return call

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", moved(replace))
        monkeypatch.setattr(os, "rename", moved(rename))

    def before_rename_to(self, target):
        place = self.calls.index(("rename", str(target)))
        return {path for call, path in self.calls[:place] if call == "sync"}

    def after_rename_to(self, target):
        place = self.calls.index(("rename", str(target)))
        return {path for call, path in self.calls[place:] if call == "sync"}


def test_a_written_file_is_on_the_disk_under_its_name(tmp_path, monkeypatch):
    disk = DiskCalls(monkeypatch)
    target = tmp_path / "new" / "shards" / "a.json"
    write_text(target, "{}")
    assert any(path.startswith(f"{target.parent}/.a.json") for path in disk.before_rename_to(target))
    assert str(target.parent) in disk.after_rename_to(target)
    # The new folders' own names.
    assert {str(tmp_path), str(tmp_path / "new")} <= disk.before_rename_to(target)


def test_a_published_copy_is_on_the_disk_before_it_has_its_name(folder, tmp_path, monkeypatch):
    disk = DiskCalls(monkeypatch)
    target = tmp_path / "store" / "artifact"
    publish(folder, target)
    synced = {path.partition("-artifact-")[2].partition("/")[2] for path in disk.before_rename_to(target)}
    assert {"metrics.json", "pool/0.parquet", "pool"} <= synced
    assert str(target.parent) in disk.after_rename_to(target)


def test_what_is_written_into_a_working_folder_is_on_the_disk(tmp_path, monkeypatch):
    disk = DiskCalls(monkeypatch)
    with working_folder(str(tmp_path / "step1" / "worker0")) as folder:
        (folder / "state").write_text("1")
    synced = {path for call, path in disk.calls if call == "sync"}
    assert {str(folder / "state"), str(folder), str(folder.parent), str(tmp_path)} <= synced


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_of_an_artifact_are_for_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with working_folder(str(tmp_path / "artifact")) as folder:
            # As safetensors does.
            descriptor, name = tempfile.mkstemp(dir=folder)
            os.close(descriptor)
            os.rename(name, folder / "weights")
    finally:
        os.umask(before)
    assert (folder / "weights").stat().st_mode & 0o777 == mode
