"""A damaged artifact is set aside and built again, and so is what was built from other content. No Ray: trials one by one.

On a local store and on S3's protocol.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.storage import fetch, filesystem, join, read_text, write_text
from sweep.graph import stages
from sweep.graph.integrity import STALE, set_aside, with_stale_marks
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.sealed import unseal
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.plan.plan import make_plan
from sweep.run.trial import INPUTS_FILE, Order, carry_out
from sweep.run.tune import MOST_REBUILDS, Run
from tests.sweep.run.stand_in_hosts import StandInHosts, end, orders_of

SALT = {"pool": "", "speed": "1"}
"""What a GPU adds to a pool, and a clock to a finetuning's metrics."""
CALLS: list[str] = []


def run_stage(job: Job) -> Mapping[str, Any]:
    """Write what the inputs hold, as the real stages do: fetched from a remote store."""
    stage = job.output.rsplit("/", 2)[1]
    CALLS.append(stage)
    inputs = {name: Path(fetch(join(folder, "value"))).read_text() for name, folder in sorted(job.inputs.items())}
    salt = SALT["pool"] if stage == "synthetic_pool" else ""
    write_text(join(job.output, "value"), hashlib.sha256(json.dumps([stage, inputs, salt]).encode()).hexdigest())
    write_text(join(job.output, "metrics.jsonl"), SALT["speed"])
    return {}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for stage in stages.REGISTRY:
        monkeypatch.setitem(stages.REGISTRY, stage, Stage(1, run_stage))
    monkeypatch.setitem(SALT, "pool", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "downloads"))
    CALLS.clear()


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A local store; by `ON_S3`, one on a server of S3 as well."""
    return Store(request.getfixturevalue("bucket") if getattr(request, "param", "") == "s3" else tmp_path / "store")


ON_S3 = pytest.mark.parametrize("store", ["local", "s3"], indirect=True)


def make_steps() -> list[Step]:
    """Sources, a generator, its pool, a set, a task model, its evaluation; and a set of the sources alone."""

    def step(stage: str, **inputs: Step) -> Step:
        return Step(stage, stage, TrainingSetConfig("starting", size=3, seed=len(inputs)), inputs)

    sources = step("sources")
    generator = step("generator", sources=sources)
    pool = step("synthetic_pool", generator=generator)
    drawn = step("training_set", source=pool)
    model = step("task_model", training_set=drawn)
    return [sources, generator, pool, drawn, model, step("evaluation", task_model=model), step("starting_set", source=sources)]


STEPS = make_steps()
SOURCES, GENERATOR, POOL, SET, MODEL, EVALUATION, OTHER_SET = STEPS


def drive(store: Store, steps: list[Step] = STEPS, **options: Any) -> Run:
    """A whole run of what is missing, or was as `planned`, and what its listener was told: `events`."""
    keep = options.get("keep_dependents", False)
    planned = options.pop("planned", None) or make_plan(steps, store, keep_dependents=keep)
    records = {one.step.fingerprint: one.record for one in planned if one.record}
    events: list[str] = []

    def listen(event: str, step: Step, progress: Any) -> None:
        if event in ("retry", "failed"):
            events.append(f"{event} {step.stage}: {(progress.retried | progress.failed)[step.fingerprint].error}")

    given: dict[str, Any] = {"listener": listen, "records": records, "hosts": StandInHosts(), "max_failures": 0, **options}
    run = Run(steps, set(records), store, Capacity(1, 0), **given)
    for trial in range(100):
        suggestion = run.suggest(str(trial))
        if suggestion == "FINISHED":
            run.events = events  # type: ignore[attr-defined]
            return run
        assert isinstance(suggestion, dict), "the run waits for something that never comes"
        end(run, str(trial), *map(carry_out, orders_of(run, str(trial))))
    raise AssertionError("the run goes round in circles")


def events(run: Run) -> list[str]:
    return run.events  # type: ignore[attr-defined, no-any-return]


def value(store: Store, step: Step) -> str | None:
    return read_text(join(store.folder(step.id), "value"))


def damage(store: Store, step: Step, how: str) -> None:
    """Other content of the same size, a file cut short, one that is gone, a record that is half there."""
    where = join(store.folder(step.id), "value")
    match how:
        case "other":
            write_text(where, "f" * 64)
        case "short":
            write_text(where, "f")
        case "gone":
            file_system, path = filesystem(where)
            file_system.rm_file(path)
        case "record":
            record = join(store.folder(step.id), "record.json")
            write_text(record, (read_text(record) or "")[:40])


def aside(store: Store) -> list[str]:
    file_system, root = filesystem(join(store.uri, "set-aside"))
    return sorted({path.removeprefix(root + "/").split("/")[0] for path in file_system.find(root)})


def whole(store: Store) -> dict[str, Any]:
    built = {one.step.stage: one.record for one in make_plan(STEPS, store)}
    assert all(built.values())
    return {stage: record.content for stage, record in built.items() if record}


@pytest.mark.parametrize(
    ("store", "how"),
    [*(("local", how) for how in ("other", "short", "gone", "record")), ("s3", "other")],
    indirect=["store"],
)
def test_a_damaged_input_is_named_set_aside_and_built_again_in_the_same_run(store: Store, how: str, tmp_path: Path) -> None:
    """Seen before: a pool's file with other text was drawn into a training set, under the old fingerprint."""
    drive(store)
    undisturbed = whole(store)
    for step in (SET, MODEL, EVALUATION):
        set_aside(store, step.id, "to be built again")
    before = make_plan(STEPS, store)
    damage(store, POOL, how)
    # A copy that was compared when it came is as good as the pool was.
    shutil.rmtree(tmp_path / "downloads", ignore_errors=True)
    CALLS.clear()
    run = drive(store, planned=before)
    assert not run.progress.failed and run.progress.num_done == len(STEPS)
    # What is in a remote file shows when it is fetched.
    assert CALLS[:-4] == (["training_set"] if how == "other" and not store.is_local else [])
    assert CALLS[-4:] == ["synthetic_pool", "training_set", "task_model", "evaluation"]
    (event,) = events(run)
    found = {
        "other": "value has other content (sha256 ",
        "short": "value has 1 bytes, 64 in its record",
        "gone": "value is missing",
        "record": "record.json is not a readable record",
    }
    assert event.startswith("retry training_set: training_set/training_set is built from what is not whole: synthetic_pool/")
    assert found[how] in event and f"set aside as {store.uri}/set-aside/synthetic_pool/" in event
    assert whole(store) == undisturbed
    assert aside(store) == ["evaluation", "synthetic_pool", "task_model", "training_set"]
    CALLS.clear()
    drive(store)
    assert CALLS == []


def test_a_chain_of_damaged_artifacts_is_built_again_from_its_beginning(store: Store) -> None:
    drive(store)
    undisturbed = whole(store)
    set_aside(store, SET.id, "to be built again")
    for step in (SOURCES, GENERATOR, POOL):
        damage(store, step, "short")
    run = drive(store)
    assert not run.progress.failed and whole(store) == undisturbed
    # What was damaged and is built again as it was makes nothing stale.
    assert {"task_model", "evaluation", "starting_set"} & set(aside(store)) == set()


def test_an_input_that_is_damaged_each_time_is_given_up_by_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Store):
        """A disk that cuts short whatever is written to it."""

        def write_record(self, record: Record) -> None:
            super().write_record(record)
            if record.stage == "sources":
                damage(self, SOURCES, "short")

    monkeypatch.setattr("sweep.run.trial.Store", Broken)
    run = drive(store)
    assert CALLS.count("sources") == MOST_REBUILDS + 1
    assert {step.stage for step in STEPS if step.fingerprint in run.progress.failed} >= {"generator"}
    assert any("failed generator" in event and "value has 1 bytes, 64 in its record" in event for event in events(run))


def test_an_input_that_cannot_be_built_again_blocks_what_needs_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(store)
    for step in (SET, MODEL, EVALUATION):
        set_aside(store, step.id, "to be built again")
    damage(store, POOL, "short")

    def fail(job: Job) -> Mapping[str, Any]:
        raise ValueError("no GPU today")

    monkeypatch.setitem(stages.REGISTRY, "synthetic_pool", Stage(1, fail))
    run = drive(store)
    assert [step.stage for step in STEPS if step.fingerprint in run.progress.failed] == ["synthetic_pool"]
    assert set(run.progress.blocked) == {SET.fingerprint, MODEL.fingerprint, EVALUATION.fingerprint}


@ON_S3
def test_a_stage_that_fails_on_an_input_removed_under_it_goes_on_when_it_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(store, [SOURCES])
    gone = []

    def remove_first(job: Job) -> Mapping[str, Any]:
        if not gone:
            gone.append(set_aside(store, SOURCES.id, "by another driver"))
        return run_stage(job)

    monkeypatch.setitem(stages.REGISTRY, "starting_set", Stage(1, remove_first))
    run = drive(store, [SOURCES, OTHER_SET])
    assert not run.progress.failed and len(events(run)) == 1
    assert "has no record (removed since?)" in events(run)[0]


def test_what_a_trial_built_is_on_the_disk_before_its_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def follow(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def write_plainly(job: Job) -> Mapping[str, Any]:
        (Path(job.output) / "value").write_text("as a library writes")
        return {}

    monkeypatch.setitem(stages.REGISTRY, "sources", Stage(1, write_plainly))
    monkeypatch.setattr(os, "fsync", follow)
    drive(store, [SOURCES])
    folder = store.folder(SOURCES.id)
    assert synced.index(f"{folder}/value") < next(
        i for i, path in enumerate(synced) if path.startswith(f"{folder}/.record.json")
    )


def test_a_record_says_what_it_was_built_from(store: Store) -> None:
    drive(store)
    pool, drawn = store.read_record(POOL.id), store.read_record(SET.id)
    assert pool and drawn and drawn.input_contents == {"source": pool.content}
    old = unseal(drawn.to_json().encode())
    del old["input_contents"]
    assert Record.from_json(json.dumps(old).encode(), "old").input_contents == {}


def rebuild_pool(store: Store) -> None:
    """The pool alone, as a GPU writes it the second time."""
    set_aside(store, POOL.id, "to be built again")
    SALT["pool"] = "other bytes"
    outcome = carry_out(Order(POOL, stages.REGISTRY["synthetic_pool"], store.uri))
    assert outcome.record is not None
    CALLS.clear()


@ON_S3
def test_what_was_built_from_other_content_is_planned_and_built_again(store: Store) -> None:
    drive(store)
    before = {step.stage: value(store, step) for step in STEPS}
    rebuild_pool(store)
    planned = {one.step.stage: one for one in make_plan(STEPS, store)}
    assert [stage for stage, one in planned.items() if one.is_stale] == ["training_set"]
    assert planned["training_set"].reason == "built again with other content: source synthetic_pool"
    assert [stage for stage, one in planned.items() if one.is_uncertain] == ["task_model", "evaluation"]
    run = drive(store)
    assert CALLS == ["training_set", "task_model", "evaluation"]
    assert [event.partition(": built again")[0] for event in events(run)] == ["retry task_model", "retry evaluation"]
    after = {step.stage: value(store, step) for step in STEPS}
    assert [stage for stage in after if after[stage] != before[stage]] == [
        "synthetic_pool",
        "training_set",
        "task_model",
        "evaluation",
    ]
    assert all(one.is_cached and not one.is_uncertain for one in make_plan(STEPS, store))


def test_other_speeds_make_nothing_stale(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(store)
    monkeypatch.setitem(SALT, "speed", "2")
    set_aside(store, GENERATOR.id, "to be built again")
    planned = make_plan(STEPS, store)
    assert [one.step.stage for one in planned if one.is_uncertain] == [
        "synthetic_pool",
        "training_set",
        "task_model",
        "evaluation",
    ]
    CALLS.clear()
    drive(store)
    assert CALLS == ["generator"] and not any(one.is_stale for one in make_plan(STEPS, store))


def test_records_from_before_are_never_stale(store: Store) -> None:
    drive(store)
    for step in STEPS:
        record = store.read_record(step.id)
        assert record is not None
        store.write_record(dataclasses.replace(record, input_contents={}))
    rebuild_pool(store)
    assert all(one.is_cached and not one.is_uncertain for one in make_plan(STEPS, store))
    drive(store)
    assert CALLS == []


def test_dependents_that_are_kept_are_marked_until_they_are_built_again(store: Store) -> None:
    drive(store)
    rebuild_pool(store)
    planned = make_plan(STEPS, store, keep_dependents=True)
    assert all(one.is_cached for one in planned)
    for record in with_stale_marks(one.record for one in planned if one.record).values():
        store.write_record(record)
    set_aside(store, EVALUATION.id, "to be built again")
    drive(store, keep_dependents=True)
    assert CALLS == ["evaluation"]
    records = {step.stage: store.read_record(step.id) for step in STEPS}
    assert [stage for stage, record in records.items() if record and STALE in record.marks] == [
        "training_set",
        "task_model",
        "evaluation",
    ]
    drive(store)
    assert CALLS == ["evaluation", "training_set", "task_model", "evaluation"]
    records = {step.stage: store.read_record(step.id) for step in STEPS}
    assert not any(record.marks for record in records.values() if record)


def test_what_an_attempt_left_is_not_taken_on_with_inputs_of_other_content(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a pool of one generator must not be filled up by another."""
    drive(store)
    set_aside(store, SET.id, "to be built again")

    def half(job: Job) -> Mapping[str, Any]:
        seen.append(read_text(join(job.output, ".checkpoint")))
        write_text(join(job.output, ".checkpoint"), "half")
        if len(seen) < 4:
            raise ConnectionError("a machine went away")
        return run_stage(job)

    seen: list[str | None] = []
    monkeypatch.setitem(stages.REGISTRY, "training_set", Stage(1, half))
    drive(store)
    drive(store)
    rebuild_pool(store)
    drive(store)
    drive(store)
    assert seen == [None, "half", None, "half"]
    folder = store.folder(SET.id)
    assert read_text(join(folder, ".checkpoint")) is None and read_text(join(folder, ".inputs.json")) is None


@pytest.mark.parametrize("note", [b"", b'{"source', b"\xff\xfe", None], ids=["empty", "cut", "no text", "a folder"])
def test_what_an_attempt_left_whose_note_cannot_be_read_is_not_gone_on_with(tmp_path: Path, note: bytes | None) -> None:
    store = Store(tmp_path / "store")
    folder = Path(store.folder(SOURCES.id))
    folder.mkdir(parents=True)
    (folder / "shard").write_text("of who knows what")
    (folder / INPUTS_FILE).write_bytes(note) if note is not None else (folder / INPUTS_FILE).mkdir()
    run = drive(store, [SOURCES])
    assert events(run) == []
    assert {path.name for path in folder.iterdir()} == {"value", "metrics.jsonl", "record.json", ".lock"}


def test_the_note_of_the_inputs_stays_until_there_is_a_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, what was built would be taken for what later, other inputs gave."""
    there = []

    def look(record: Record, store: Store) -> None:
        there.append(read_text(join(store.folder(record.id), INPUTS_FILE)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sweep.run.trial._write_record", look)
        drive(store, [SOURCES])
    assert there == ["{}"]
    drive(store, [SOURCES])
    assert read_text(join(store.folder(SOURCES.id), INPUTS_FILE)) is None


def test_what_a_killed_process_left_in_a_subfolder_goes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = Path(store.folder(SOURCES.id))
    (folder / "pool").mkdir(parents=True)
    (folder / "pool" / ".shard.parquet.1234abcd.partial").write_text("half")
    drive(store, [SOURCES])
    assert not list(folder.rglob("*.partial"))
