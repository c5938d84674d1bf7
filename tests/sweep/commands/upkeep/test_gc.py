"""`blindsweep gc` takes what no study refers to and nothing else, in a folder and over S3's protocol."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.storage import filesystem, join, write_text
from sweep import cli
from sweep.graph.records import Store, Study, StudyStep
from sweep.graph.sealed import seal
from sweep.graph.step import Step
from sweep.live import garbage
from sweep.live.heartbeat import Heartbeat, Pulse
from sweep.live.lease import LEASE_FILE, LOCK_FILE, is_held, lease
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from tests.sweep.conftest import record_of

ELSEWHERE = {"holder": "a", "host": "elsewhere", "process": "boot pid:[1] 1 1", "length_s": 60.0, "renewals": 3}


def gc(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["gc", "--store", store.uri, *arguments])


@pytest.fixture(params=["local", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "s" if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def steps(store: Store, experiment: Experiment) -> list[Step]:
    """Six artifacts of 100 bytes and their records: two studies have the first, one has the second, the other the third."""
    steps = build_grid(experiment)[:6]
    for step in steps:
        write_text(join(store.folder(step.id), "a"), "x" * 100)
        store.write_record(record_of(step))
    for name, own in (("one", steps[:2]), ("two", [steps[0], steps[2]])):
        Study(name, "A title", {}, tuple(StudyStep(s.stage, s.slug, s.fingerprint, {}, {}) for s in own)).save(store)
    return steps


def contents(store: Store) -> set[str]:
    """All that the store holds but leases and locks, which looking at them may leave."""
    file_system, root = filesystem(store.uri)
    return {path for path in file_system.find(root) if not path.endswith((LOCK_FILE, LEASE_FILE))}


def test_a_look_removes_and_writes_nothing(store: Store, steps: list[Step]) -> None:
    file_system, root = filesystem(store.uri)
    before = set(file_system.find(root))
    done = gc(store, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("nothing refers to 3 artifacts; removing frees ")
    assert "\nkept: 3 artifacts that 2 studies refer to, " in done.stdout
    assert set(file_system.find(root)) == before
    values = json.loads(gc(store, "--dry-run", "--json").stdout)
    assert {folder["folder"] for folder in values["unreferenced"]} == {
        store.folder(step.id).rpartition("/")[2] for step in steps[3:]
    }
    assert values["removed"] is False and values["bytes"] == sum(folder["bytes"] for folder in values["unreferenced"])
    assert all(folder["bytes"] > 100 and folder["complete"] for folder in values["unreferenced"])


def test_what_a_study_can_reach_stays_and_the_rest_goes(store: Store, steps: list[Step]) -> None:
    before = contents(store)
    # A user's own, a half-made file of another tool, and what is set aside.
    own = ("sources/notes/mine.txt", "sources/.partial-x/a", "set-aside/sources/x-0123456789ab-now/why.txt", "reports/a")
    for path in own:
        write_text(join(store.uri, path), "mine")
    done = gc(store, "--yes")
    assert done.exit_code == 0, done.output
    assert "removed: 3 artifacts, " in done.stdout and "set-aside holds 1 artifacts, 4 B, that are not touched" in done.stdout
    _, root = filesystem(store.uri)
    gone = {path for path in before if any(f"/{store.folder(step.id).rpartition('/')[2]}/" in path for step in steps[3:])}
    assert len(gone) == 6 and contents(store) == (before - gone) | {f"{root.rstrip('/')}/{path}" for path in own}
    file_system, _ = filesystem(store.uri)
    assert not any(file_system.exists(filesystem(store.folder(step.id))[1]) for step in steps[3:])
    assert "every artifact is referred to" in gc(store).stdout


def test_an_unfinished_folder_goes_unless_a_run_holds_it_or_a_study_wants_it(store: Store, steps: list[Step]) -> None:
    wanted, loose, held = steps[1], steps[3], steps[4]
    file_system, _ = filesystem(store.uri)
    for step in (wanted, loose, held):
        file_system.rm_file(filesystem(join(store.folder(step.id), "record.json"))[1])
    with lease(store.folder(held.id)):
        text = gc(store, "--yes").stdout
    assert "nothing refers to 1 artifact and 1 unfinished folder; " in text
    assert "kept: 1 folder that a run is building, " in text
    assert [file_system.exists(filesystem(join(store.folder(step.id), "a"))[1]) for step in (wanted, loose, held)] == [
        True, False, True,
    ]  # fmt: skip
    # The lease is given back.
    assert "removed: 1 unfinished folder, " in gc(store, "--yes").stdout


def test_a_lease_of_another_machine_holds_for_as_long_as_it_is_young(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(join(bucket, LEASE_FILE), json.dumps(ELSEWHERE))
    assert is_held(bucket)
    write_text(join(bucket, LEASE_FILE), json.dumps(ELSEWHERE | {"length_s": -1.0}))
    assert not is_held(bucket)
    write_text(join(bucket, LEASE_FILE), json.dumps(ELSEWHERE | {"free": True}))
    assert not is_held(bucket)


def test_what_a_run_takes_on_between_the_look_and_the_removal_stays(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (first, second) = Store(tmp_path), build_grid(experiment)[:2]
    for step in (first, second):
        write_text(join(store.folder(step.id), "a"), "x")
    Study("one", "A title", {}, ()).save(store)
    found = garbage.find_garbage(store)
    monkeypatch.setattr(garbage, "find_garbage", lambda store: found)
    with lease(store.folder(second.id)):
        removed = garbage.remove_garbage(store)
    assert [folder.name for folder in removed.held] == [Path(store.folder(second.id)).name]
    assert not Path(store.folder(first.id)).exists() and Path(store.folder(second.id), "a").exists()


def test_nothing_is_removed_while_a_run_goes_on(store: Store, steps: list[Step]) -> None:
    before = contents(store)
    with Heartbeat(store, "two", Pulse()):
        done = gc(store, "--yes")
        assert done.exit_code == 1 and "a run of two goes on in" in done.stderr
        assert "a run goes on: nothing would be removed" in gc(store, "--dry-run").stdout
    assert contents(store) == before


def test_nobody_is_asked_without_a_terminal(store: Store, steps: list[Step]) -> None:
    before = contents(store)
    done = gc(store)
    assert done.exit_code == 1 and "add --yes" in done.stderr and contents(store) == before


def test_on_a_terminal_it_asks_and_no_is_no(tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    store, step = Store(tmp_path), build_grid(experiment)[0]
    write_text(join(store.folder(step.id), "a"), "x")
    Study("one", "A title", {}, ()).save(store)
    monkeypatch.setattr("sweep.commands.upkeep.gc._is_terminal", lambda: True)
    answers = iter("ny")
    for exit_code, exists in ((1, True), (0, False)):
        done = CliRunner().invoke(cli.app, ["gc", "--store", store.uri], input=next(answers) + "\n")
        assert (done.exit_code, Path(store.folder(step.id)).exists()) == (exit_code, exists), done.output


@pytest.mark.parametrize("text", [None, "{", seal({"format": 1, "steps": 3})])
def test_where_nobody_knows_what_is_referred_to_nothing_goes(text: str | None, tmp_path: Path, experiment: Experiment) -> None:
    store, step = Store(tmp_path), build_grid(experiment)[0]
    write_text(join(store.folder(step.id), "a"), "x")
    if text is not None:
        Study("one", "A title", {}, ()).save(store)
        write_text(join(store.uri, "studies", "two.json"), text)
    done = gc(store, "--yes")
    assert done.exit_code == 1 and ("no study in" if text is None else "two.json is not a readable study") in done.stderr
    assert Path(store.folder(step.id), "a").exists()
