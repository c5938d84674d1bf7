"""What is damaged is found and moved out of the way; what was built from other content is known. Local stores and S3."""

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
from s3fs.core import S3File

from pipelines.errors import DamagedError
from pipelines.finetune.checkpoints import METRICS_FILE
from pipelines.generate.pool import YIELD_FILE
from pipelines.storage import RECORD_FILE, filesystem, join, read_text, write_text
from sweep.graph import integrity
from sweep.graph.integrity import (
    STALE,
    UNDER_WAY,
    How,
    changed_inputs,
    check,
    finish_setting_aside,
    inspect,
    set_aside,
    whole_folder,
    with_stale_marks,
)
from sweep.graph.records import NOT_CONTENT, ArtifactId, Record, Store

FINGERPRINT = "ab" * 32


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store(tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket"))


def build(store: Store, files: dict[str, str], stage: str = "synthetic_pool", slug: str = "pool", **fields: Any) -> Record:
    artifact = ArtifactId(stage, slug, fields.pop("fingerprint", FINGERPRINT))
    for path, text in files.items():
        write_text(join(store.folder(artifact), path), text)
    record = Record(
        stage, slug, artifact.fingerprint, payload={"config": {}}, files=store.files(store.folder(artifact)), **fields
    )
    store.write_record(record)
    return record


def remove(store: Store, record: Record, path: str) -> None:
    file_system, root = filesystem(store.folder(record.id))
    file_system.rm_file(f"{root}/{path}")


def everything(folder: str) -> set[str]:
    file_system, root = filesystem(folder)
    return {path.removeprefix(f"{root.rstrip('/')}/") for path in file_system.find(root)}


def test_a_whole_artifact_has_no_damage(store: Store) -> None:
    record = build(store, {"pool/a": "abc", "yield.json": "{}"})
    for how in ("sizes", "remembered", "anew"):
        assert inspect(store, record.id, how) == (record, [])  # type: ignore[arg-type]
    assert whole_folder(store, record) == store.folder(record.id)
    assert inspect(store, ArtifactId("synthetic_pool", "other", "cd" * 32), "anew") == (None, [])


@pytest.mark.parametrize("how", ["sizes", "remembered", "anew"])
def test_missing_and_short_files_are_found_however_one_looks(store: Store, how: How) -> None:
    record = build(store, {"pool/a": "abc", "pool/b": "abc", "yield.json": "{}"})
    remove(store, record, "pool/a")
    write_text(join(store.folder(record.id), "yield.json"), "{")
    name = f"synthetic_pool/pool-{FINGERPRINT[:12]}"
    expected = [f"{name}/pool/a is missing", f"{name}/yield.json has 1 bytes, 2 in its record"]
    assert [str(damage) for damage in check(store, record, how)] == expected
    with pytest.raises(DamagedError, match=r"pool/a is missing; restore it, or `blindsweep verify --set-aside`"):
        whole_folder(store, record)


def test_other_content_is_found_by_hashes(store: Store) -> None:
    record = build(store, {"pool/a": "abc"})
    for how in ("remembered", "anew"):
        assert not check(store, record, how)  # type: ignore[arg-type]
    write_text(join(store.folder(record.id), "pool/a"), "abd")
    assert not check(store, record, "sizes")
    # In a remote store, whoever fetches a file compares it.
    found = {how: [damage.found for damage in check(store, record, how)] for how in ("remembered", "anew")}  # type: ignore[arg-type]
    # printf abd | sha256sum; printf abc | sha256sum
    other = ["has other content (sha256 a52d159f262b…, ba7816bf8f01… in its record)"]
    assert found == {"remembered": other if store.is_local else [], "anew": other}


@pytest.mark.parametrize("damaged", ["pool/a", RECORD_FILE])
def test_what_a_connection_damaged_once_is_read_again(bucket: str, damaged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(bucket)
    record = build(store, {"pool/a": "abc", "pool/b": "abc"})
    reads: list[str] = []

    def read(path: str, content: bytes) -> bytes:
        if path.endswith(damaged):
            reads.append(path)
        return content[:-1] + b"?" if path.endswith(damaged) and len(reads) == 1 else content

    of_file, of_record = S3File._fetch_range, Store._read
    monkeypatch.setattr(S3File, "_fetch_range", lambda self, start, end: read(self.path, of_file(self, start, end)))
    monkeypatch.setattr(Store, "_read", lambda self, path: read(path, of_record(self, path) or b""))
    assert inspect(store, record.id, "anew") == (record, [])
    assert len(reads) == 2


def test_what_a_disk_lost_behind_the_file_system_s_back_is_found_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a stat shows has changed: here, the remembered hash of what was there before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipelines.hashing.SETTLED_S", -1)
    store = Store(tmp_path / "store")
    record = build(store, {"pool/a": "abc"})
    monkeypatch.setattr("pipelines.hashing.sha256_of", lambda path: "0" * 64)
    assert not check(store, record, "remembered")
    assert [damage.found[:17] for damage in check(store, record, "anew")] == ["has other content"]


def test_a_file_that_the_disk_cannot_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    record = build(store, {"pool/a": "abc"})

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("pipelines.hashing.sha256_of", broken)
    assert [damage.found for damage in check(store, record, "anew")] == ["cannot be read from the disk (input/output error)"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "stage": "synthetic_pool"}'])
def test_a_record_that_cannot_be_read_is_damage(store: Store, text: str) -> None:
    record = build(store, {"pool/a": "abc"})
    write_text(join(store.folder(record.id), RECORD_FILE), text)
    found, damages = inspect(store, record.id, "anew")
    assert found is None and [damage.file for damage in damages] == [RECORD_FILE]
    assert str(damages[0]).startswith(f"{record.id.name}-{FINGERPRINT[:12]}/record.json is not a readable record (")


def test_the_record_of_another_artifact_is_damage(store: Store) -> None:
    record = build(store, {"pool/a": "abc"})
    other = dataclasses.replace(record, fingerprint="cd" * 32)
    write_text(join(store.folder(record.id), RECORD_FILE), other.to_json())
    found, damages = inspect(store, record.id, "anew")
    assert found is None
    assert [damage.found for damage in damages] == [f"is the record of {'cd' * 6}, not of {'ab' * 6}"]


def test_what_is_set_aside_is_whole_there_and_not_built_here(store: Store) -> None:
    record = build(store, {"pool/a": "abc", "pool/b": "abd", "yield.json": "{}"})
    folder = store.folder(record.id)
    for name in integrity.HOLDING:
        write_text(join(folder, name), "")
    where = set_aside(store, record.id, "pool/a is missing")
    assert where.startswith(f"{store.uri}/set-aside/synthetic_pool/pool-{FINGERPRINT[:12]}-")
    assert everything(where) == {"why.txt", "record.json", "pool/a", "pool/b", "yield.json"}
    assert read_text(join(where, "why.txt")) == "pool/a is missing\n"
    # The lock stays where others look for it.
    assert everything(folder) == set(integrity.HOLDING) and store.read_record(record.id) is None
    again = build(store, {"pool/a": "abc"})
    assert set_aside(store, again.id, "once more") != where


@pytest.mark.parametrize("num_moved", range(4))
def test_setting_aside_that_was_cut_off_goes_on(store: Store, num_moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record = build(store, {"pool/a": "abc", "pool/b": "abd", "yield.json": "{}"})
    file_system, _ = filesystem(store.uri)
    move, moved = file_system.mv, list[str]()

    def killed(source: str, target: str, **options: Any) -> None:
        if len(moved) == num_moved:
            raise KeyboardInterrupt
        moved.append(source)
        move(source, target, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(file_system, "mv", killed)
        set_aside(store, record.id, "damaged")
    # Never a record beside a part of its files.
    assert (store.read_record(record.id) is None) == (num_moved > 0)
    where = read_text(join(store.folder(record.id), UNDER_WAY))
    assert where is not None
    for _ in range(2):
        finish_setting_aside(store, record.id)
        assert everything(where) == {"why.txt", "record.json", "pool/a", "pool/b", "yield.json"}
        assert everything(store.folder(record.id)) == set()


def test_content_leaves_out_what_differs_between_two_builds(store: Store) -> None:
    assert set(NOT_CONTENT) == {METRICS_FILE, YIELD_FILE}
    files = {"model/weights": "weights", METRICS_FILE: "fast", YIELD_FILE: "few"}
    first = build(store, files).content
    assert build(store, files | {METRICS_FILE: "slow", YIELD_FILE: "many"}).content == first
    assert build(store, files | {"model/weights": "others"}).content != first
    # Under another name it is another content.
    other = build(store, {"model/other": "weights"}, slug="other").content
    assert build(store, {"model/weights": "weights"}, slug="third").content == first != other


def chain(store: Store) -> list[Record]:
    """A pool, a set of it, an evaluation of that."""
    pool = build(store, {"pool/a": "abc"}, fingerprint="a" * 64)
    drawn = build(
        store,
        {"examples": "a"},
        "training_set",
        "set",
        fingerprint="b" * 64,
        inputs={"source": pool.id},
        input_contents={"source": pool.content},
    )
    last = build(
        store,
        {"logits": "1"},
        "evaluation",
        "cell",
        fingerprint="c" * 64,
        inputs={"set": drawn.id},
        input_contents={"set": drawn.content},
    )
    return [pool, drawn, last]


def test_what_was_built_from_other_content_is_known(store: Store) -> None:
    pool, drawn, last = chain(store)
    built = {record.fingerprint: record for record in (pool, drawn, last)}
    assert [changed_inputs(record, built) for record in built.values()] == [[], [], []]
    built[pool.fingerprint] = build(store, {"pool/a": "abd"}, fingerprint=pool.fingerprint)
    assert [changed_inputs(record, built) for record in built.values()] == [[], ["source"], []]
    # Not known: an input that is not built, a record from before.
    assert changed_inputs(drawn, {}) == []
    assert changed_inputs(dataclasses.replace(drawn, input_contents={}), built) == []


def test_marks_follow_what_is_stale_and_go_with_it(store: Store) -> None:
    pool, drawn, last = chain(store)
    assert with_stale_marks([pool, drawn, last]) == {}
    other = build(store, {"pool/a": "abd"}, fingerprint=pool.fingerprint)
    drawn = dataclasses.replace(drawn, marks=("rehearsal",))
    marked = with_stale_marks([other, drawn, last])
    assert {record.slug: record.marks for record in marked.values()} == {"set": ("rehearsal", STALE), "cell": (STALE,)}
    kept = [other, marked[drawn.fingerprint], marked[last.fingerprint]]
    assert with_stale_marks(kept) == {}
    # The pool as it was: the set is right again, and so is what is built from it.
    assert {record.slug: record.marks for record in with_stale_marks([pool, *kept[1:]]).values()} == {
        "set": ("rehearsal",),
        "cell": (),
    }
    # Without the pool nobody can tell.
    assert with_stale_marks(kept[1:]) == {}


def test_a_directory_in_the_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = build(store, {"pool/a": "abc"})
    remove(store, record, "pool/a")
    (Path(store.folder(record.id)) / "pool").rmdir()
    write_text(join(store.folder(record.id), "pool"), "a file")
    assert [damage.found for damage in integrity.check(store, record, "anew")] == ["is missing"]


@pytest.mark.parametrize("name", ["pool/a", "record.json"])
def test_a_folder_in_the_place_of_a_file_is_damage_and_goes_with_what_is_set_aside(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    record = build(store, {"pool/a": "abc", "pool/b": "abd"})
    folder = Path(store.folder(record.id))
    (folder / name).unlink()
    (folder / name).mkdir()
    _, damages = integrity.inspect(store, record.id, "sizes")
    assert [damage.file for damage in damages] == [name]
    set_aside(store, record.id, "damaged")
    assert build(store, {"pool/a": "abc", "pool/b": "abd"}) == store.read_record(record.id)
