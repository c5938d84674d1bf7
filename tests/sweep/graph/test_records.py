"""A record means complete: it is there whole or not at all; a damaged one is an error that names it."""

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import DamagedError, UserError
from sweep.graph.records import RECORD_FILE, ArtifactId, Record, Store, Study, StudyStep, read_plan, write_plan
from sweep.graph.sealed import unseal

FINGERPRINT = "ab" * 32
RECORD = Record(
    "evaluation",
    "start0",
    FINGERPRINT,
    payload={"stage": "evaluation"},
    inputs={"sources": ArtifactId("sources", "data", "cd" * 32)},
    metrics={"hans/accuracy": 0.5, "nothing": None},
    created="2026-01-01T00:00:00+00:00",
    marks=("rehearsal",),
)
STORES = ["local", "s3"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket"))


def record_path(store: Store) -> str:
    return f"{store.folder(RECORD.id)}/{RECORD_FILE}"


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    assert store.read_record(RECORD.id) is None
    store.write_record(RECORD)
    assert store.read_record(RECORD.id) == RECORD
    assert json.loads(RECORD.to_json())["inputs"] == {"sources": {"stage": "sources", "slug": "data", "fingerprint": "cd" * 32}}
    assert store.folders("evaluation") == {RECORD.slug: [RECORD.fingerprint[:12]]}


def test_a_record_from_before_marks_has_none(store: Store) -> None:
    values = unseal(RECORD.to_json().encode())
    del values["marks"]
    store.write_bytes(record_path(store), json.dumps(values).encode())
    assert store.read_record(RECORD.id) == dataclasses.replace(RECORD, marks=())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 99}'])
def test_a_damaged_record_is_an_error_not_a_rebuild(store: Store, damage: bytes) -> None:
    store.write_bytes(record_path(store), damage)
    with pytest.raises(DamagedError, match=r"record\.json is not a readable record.*restore it"):
        store.read_record(RECORD.id)


def test_a_record_in_the_wrong_folder_is_an_error(store: Store) -> None:
    other = FINGERPRINT[:12] + "0" * 52
    store.write_bytes(record_path(store), dataclasses.replace(RECORD, fingerprint=other).to_json().encode())
    with pytest.raises(DamagedError, match="is the record of"):
        store.read_record(RECORD.id)


def test_files_leave_out_working_state_and_the_record(store: Store) -> None:
    folder = store.folder(RECORD.id)
    for name in ("a.txt", "pool/b.txt", ".checkpoints/c", ".lock", RECORD_FILE):
        store.write_bytes(f"{folder}/{name}", b"abc")
    # printf abc | sha256sum
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    expected = {"sha256": digest, "bytes": 3}
    assert store.files(folder) == {"a.txt": expected, "pool/b.txt": expected}


def test_objects_that_stand_for_folders_are_no_files_of_an_artifact(bucket: str, s3_client: Any) -> None:
    store = Store(bucket)
    folder = store.folder(RECORD.id)
    store.write_bytes(f"{folder}/pool/b.txt", b"abc")
    for name in ("", "pool/", "empty/"):
        s3_client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"{folder.removeprefix(bucket)[1:]}/{name}")
    assert list(store.files(folder)) == ["pool/b.txt"]


def test_a_record_follows_all_that_it_speaks_of_onto_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no power cut leaves a record without its data: files as a stage wrote them, folders, then the record."""
    store, calls = Store(tmp_path / "store"), list[tuple[str, str]]()
    folder = Path(store.folder(RECORD.id))
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        calls.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    (folder / "pool").mkdir(parents=True)
    (folder / "pool" / "b.txt").write_text("rows")
    (folder / "weights").write_text("weights")
    os.chmod(folder / "weights", 0o600)
    store.write_record(RECORD)
    place = calls.index(("rename", str(folder / RECORD_FILE)))
    before, after = ({path for call, path in part if call == "sync"} for part in (calls[:place], calls[place:]))
    data = {folder / "pool" / "b.txt", folder / "weights", folder / "pool", folder, folder.parent}
    assert {str(path) for path in data} <= before
    assert str(folder) in after
    assert (folder / "weights").stat().st_mode & 0o777 == folder.stat().st_mode & 0o666


def test_a_missing_file_of_an_artifact_is_named(store: Store) -> None:
    with pytest.raises(DamagedError, match=r"yield\.json is missing"):
        store.read_bytes(RECORD, "yield.json")


def test_a_file_that_is_not_what_its_record_says_is_not_read(store: Store) -> None:
    where = f"{store.folder(RECORD.id)}/yield.json"
    store.write_bytes(where, b"{}")
    record = dataclasses.replace(RECORD, files=store.files(store.folder(RECORD.id)))
    assert store.read_bytes(record, "yield.json") == b"{}"
    store.write_bytes(where, b"[]")
    with pytest.raises(DamagedError, match=r"yield\.json is not the file that its record vouches for; .*verify --set-aside"):
        store.read_bytes(record, "yield.json")


def test_a_study_comes_back_with_the_records_there_are(store: Store) -> None:
    store.write_record(RECORD)
    steps = tuple(
        StudyStep("evaluation", "start0", print_, {"seed": 0}, {"sources": "cd" * 32}) for print_ in (FINGERPRINT, "ef" * 32)
    )
    Study("mine", "A title", {"seeds": [0]}, steps, ({"fingerprint": "ef" * 32, "error": "no"},)).save(store)
    study = Study.load(store, "mine")
    assert [step.record for step in study.steps] == [RECORD, None]
    assert study.failures[0]["error"] == "no" and store.studies() == ["mine"]
    with pytest.raises(UserError, match=r"no study 'yours'.*there: mine"):
        Study.load(store, "yours")


def _flip(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert text.count(old) == 1
    Path(path).write_text(text.replace(old, new))


def test_a_value_that_the_disk_has_changed_is_found_in_whatever_the_store_says(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record(RECORD)
    Study("mine", "A title", {"seeds": [0]}, (StudyStep("evaluation", "start0", FINGERPRINT, {"seed": 0}, {}),)).save(store)
    write_plan(store, "mine", {"hours": 0.5})
    _flip(record_path(store), '"hans/accuracy": 0.5', '"hans/accuracy": 0.7')
    with pytest.raises(DamagedError, match=r"record\.json is not a readable record \(it has other values than were written"):
        store.read_record(RECORD.id)
    _flip(Study.path(store, "mine"), '"seed": 0', '"seed": 4')
    with pytest.raises(UserError, match=r"mine\.json is not a readable study \(it has other values than were written"):
        Study.load(store, "mine")
    _flip(str(tmp_path / "plans" / "mine.json"), "0.5", "0.7")
    with pytest.raises(UserError, match=r"mine\.json is not a readable estimate \(it has other values than were written"):
        read_plan(store, "mine")


def test_a_folder_in_a_manifest_s_place_is_named_by_who_reads_and_who_writes(tmp_path: Path) -> None:
    store, study = Store(tmp_path), Study("mine", "A title", {}, ())
    (tmp_path / "studies" / "mine.json").mkdir(parents=True)
    (tmp_path / "plans" / "mine.json").mkdir(parents=True)
    for act in (
        lambda: Study.load(store, "mine"),
        lambda: study.save(store),
        lambda: read_plan(store, "mine"),
        lambda: write_plan(store, "mine", {}),
    ):
        with pytest.raises(UserError, match=r"mine\.json is a folder, where a file should be; move it away"):
            act()


def _write_forever(path: str, value: str) -> None:
    store = Store(path)
    while True:
        store.write_bytes(f"{path}/file", json.dumps([value] * 50_000).encode())


def test_a_reader_never_sees_a_part_whatever_is_killed(tmp_path: Path) -> None:
    Store(tmp_path).write_bytes(f"{tmp_path}/file", b'["first"]')
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        writers = [context.Process(target=_write_forever, args=(str(tmp_path), value)) for value in "ab"]
        for writer in writers:
            writer.start()
        for _ in range(300):
            assert len(set(json.loads((tmp_path / "file").read_bytes()))) == 1
        for writer in writers:
            writer.kill()
            writer.join()
    assert len(set(json.loads((tmp_path / "file").read_bytes()))) == 1


@pytest.mark.parametrize("text", ["", '{"stages"', "3"])
def test_a_damaged_estimate_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    assert read_plan(store, "tiny") is None
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "tiny.json").write_text(text)
    with pytest.raises(UserError, match=r"plans/tiny\.json is not a readable estimate \("):
        read_plan(store, "tiny")
