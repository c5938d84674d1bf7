"""Records and manifests that someone else wrote: no name in them leads out of the store, and each is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.errors import DamagedError, UserError
from pipelines.storage import fetch, is_inside, is_plain_name, join, write_text
from sweep.cli import app
from sweep.graph.explain import explain
from sweep.graph.integrity import SET_ASIDE, UNDER_WAY, finish_setting_aside, inspect
from sweep.graph.records import RECORD_FILE, ArtifactId, Record, Store, Study, StudyStep, read_plan
from sweep.graph.sealed import unseal
from sweep.graph.spending import read_spending
from sweep.study.experiments import demo

FINGERPRINT = "ab" * 32
OUTSIDE = [
    "../../victim",
    "/etc/passwd",
    "a/../../victim",
    "..",
    ".hidden",
    "",
    "a\0b",
    "a\nb",
    "..\\victim",
    "a" * 300,
    "\u202egnp.exe",
    "\ud800",
]
"""Not one of them can be a part of a path in a store."""
FILES_OUTSIDE = ["../victim/secret", "/etc/passwd", "pool/../../../victim", "pool//a", "./a", "a\0", "..\\..\\victim", ""]
DEEP = "[" * 200_000
BUILT = Record(
    "evaluation",
    "cell",
    FINGERPRINT,
    payload={"config": {}},
    metrics={"accuracy": 0.5},
    files={"metrics.json": {"sha256": "00" * 32, "bytes": 2}},
    durations={"total_s": 1.0},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    write_text(join(store.folder(BUILT.id), "metrics.json"), "{}")
    store.write_record(BUILT)
    Study("mine", "A title", {}, (StudyStep("evaluation", "cell", FINGERPRINT, {}, {}),)).save(store)
    write_text(tmp_path / "victim" / "secret", "mine")
    return store


def tamper(path: str | Path, change: Any) -> None:
    values = unseal(Path(path).read_bytes())
    change(values)
    Path(path).write_text(json.dumps(values))


@pytest.mark.parametrize("part", ["stage", "slug", "fingerprint"])
@pytest.mark.parametrize("value", OUTSIDE)
def test_a_manifests_names_stay_in_the_store(store: Store, part: str, value: str) -> None:
    tamper(Study.path(store, "mine"), lambda values: values["steps"][0].update({part: value}))
    with pytest.raises(UserError, match=rf"studies/mine\.json is not a readable study \({part} .* cannot be a part of a path"):
        Study.load(store, "mine")


def test_commands_refuse_a_manifest_that_leads_out_of_the_store(store: Store, tmp_path: Path) -> None:
    tamper(Study.path(store, "mine"), lambda values: values["steps"][0].update(slug="../../victim"))
    for command in (["report", "mine"], ["verify", "mine", "--set-aside"], ["explain", "mine", "accuracy"], ["status", "mine"]):
        result = CliRunner().invoke(app, [*command, "--store", store.uri])
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1 and "studies/mine.json is not a readable study" in result.stderr
    assert (tmp_path / "victim" / "secret").read_text() == "mine"


@pytest.mark.parametrize("path", FILES_OUTSIDE)
def test_a_records_files_lie_in_its_folder(store: Store, path: str) -> None:
    record = join(store.folder(BUILT.id), RECORD_FILE)
    tamper(record, lambda values: values["files"].update({path: {"sha256": "00" * 32, "bytes": 4}}))
    with pytest.raises(DamagedError, match=r"record\.json is not a readable record \(its file .* does not lie in its folder"):
        store.read_record(BUILT.id)
    assert [damage.file for damage in inspect(store, BUILT.id, "anew")[1]] == [RECORD_FILE]


@pytest.mark.parametrize("value", OUTSIDE[:4])
def test_a_lineage_does_not_leave_the_store(store: Store, value: str) -> None:
    source = {"stage": "sources", "slug": value, "fingerprint": "cd" * 32}
    tamper(join(store.folder(BUILT.id), RECORD_FILE), lambda values: values.update(inputs={"sources": source}))
    study = Study.load(store, "mine")
    assert study.steps[0].record is None and "slug" in study.steps[0].damage
    with pytest.raises(UserError, match="no built artifact"):
        explain(store, study, "accuracy")


@pytest.mark.parametrize("path", FILES_OUTSIDE[:3])
def test_a_remote_record_downloads_nothing_beside_its_copy(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "cache"))
    store = Store(bucket)
    folder = store.folder(BUILT.id)
    write_text(join(folder, "metrics.json"), "{}")
    record = dataclasses.replace(BUILT, files={path: {"sha256": "00" * 32, "bytes": 2}})
    write_text(join(folder, RECORD_FILE), record.to_json())
    with pytest.raises(DamagedError, match=r"record\.json is not a readable record \(its file .* does not lie in its folder"):
        fetch(folder)
    assert list(tmp_path.rglob("*")) == []


def test_files_that_are_moved_aside_stay_in_the_store(store: Store, tmp_path: Path) -> None:
    folder = store.folder(BUILT.id)
    write_text(join(folder, UNDER_WAY), str(tmp_path / "victim" / "ours"))
    finish_setting_aside(store, BUILT.id)
    assert Path(store.uri, SET_ASIDE, "evaluation", "ours", RECORD_FILE).exists()
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["secret"]
    write_text(join(folder, UNDER_WAY), str(tmp_path / "victim" / ".."))
    with pytest.raises(DamagedError, match=r"\.set-aside does not name a folder"):
        finish_setting_aside(store, BUILT.id)


@pytest.mark.parametrize("name", [*OUTSIDE, "a/b", "\u0430dmin", "a b", "x" * 101, "studies/../mine", "<script>", "=1+1"])
def test_a_studys_name_is_a_files(store: Store, name: str) -> None:
    """Also look-alikes of Latin letters, and what a page or a table could take for its own."""
    with pytest.raises(UserError, match="an experiment's name is a file's name"):
        dataclasses.replace(demo(), name=name)
    with pytest.raises(UserError, match="an experiment's name is a file's name"):
        Study.load(store, name)
    tamper(Study.path(store, "mine"), lambda values: values.update(experiment=name))
    with pytest.raises(UserError, match=r"mine\.json is not a readable study \(name="):
        Study.load(store, "mine")


def test_deep_nesting_is_refused_by_the_files_name(store: Store) -> None:
    for path in ("plans/mine.json", "spend/mine/run.json"):
        write_text(join(store.uri, path), DEEP)
    with pytest.raises(UserError, match=r"spend/mine/run\.json is not a readable account"):
        read_spending(store, "mine")
    with pytest.raises(UserError, match=r"plans/mine\.json is not a readable estimate"):
        read_plan(store, "mine")
    write_text(join(store.folder(BUILT.id), RECORD_FILE), DEEP)
    with pytest.raises(DamagedError, match=r"record\.json is not a readable record"):
        store.read_record(BUILT.id)
    write_text(Study.path(store, "mine"), DEEP)
    with pytest.raises(UserError, match=r"mine\.json is not a readable study"):
        Study.load(store, "mine")


def test_usual_names_are_let_through() -> None:
    assert all(map(is_plain_name, ("start5000-biased-0.25-1800-seed0", "größe", "model-00001-of-00002.safetensors")))
    assert is_inside("model/config.json") and is_inside("pool/entailment-00000.parquet")
    assert ArtifactId("sources", "data", "cd" * 32).name == "sources/data"
