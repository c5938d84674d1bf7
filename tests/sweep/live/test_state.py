"""How far a study is, from records, heartbeats and what unfinished steps left; looked at once and again."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import write_text
from sweep.graph.records import Store, Study
from sweep.graph.step import Step
from sweep.live.heartbeat import Beat, Pulse, Working
from sweep.live.state import StageState, Watch, as_json, look, state_of
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded

Write = Callable[[Iterable[Step], Store], None]


@pytest.fixture
def steps(experiment: Experiment) -> list[Step]:
    return build_grid(experiment)


@pytest.fixture
def store(tmp_path: Path, experiment: Experiment, steps: list[Step], record_all: Write) -> Store:
    """A store of the small study, of which all but task models and evaluations are built."""
    store = Store(tmp_path / "s")
    # As a manifest of an older version may have them: in no order.
    manifest(Loaded(experiment, {}), steps[::-1]).save(store)
    record_all([step for step in steps if step.stage not in ("task_model", "evaluation")], store)
    return store


def beat(*working: Step, age_s: float = 0.0, **pulse: Any) -> Beat:
    at_work = tuple(Working(step.stage, step.slug, step.fingerprint, 1.0, 2) for step in working)
    return Beat("1", "small", "2026-01-01T00:00:00+00:00", "host", "elsewhere", Pulse(working=at_work, **pulse), age_s)


def failure(step: Step, error: str) -> dict[str, str]:
    return {"stage": step.stage, "slug": step.slug, "fingerprint": step.fingerprint, "error": error, "log": ""}


def of(stage: str, steps: Iterable[Step]) -> list[Step]:
    return [step for step in steps if step.stage == stage]


def test_stages_stand_in_the_order_of_the_pipeline(store: Store) -> None:
    stages = [stage.stage for stage in look(store, "small").stages]
    assert stages == [
        "sources", "base_model", "starting_set", "starting_point", "generator", "synthetic_pool", "training_set",
        "task_model", "evaluation",
    ]  # fmt: skip


def test_every_artifact_is_counted_once(store: Store, steps: list[Step]) -> None:
    models, evaluations = of("task_model", steps), of("evaluation", steps)
    study = Study.load(store, "small")
    runs = (beat(models[0], failures=(failure(models[1], "no room"),), blocked={models[1].name: {"evaluation": 1}}),)
    state = state_of(study, runs, {models[1].fingerprint, models[2].fingerprint})
    found = {stage.stage: stage for stage in state.stages}
    assert found["task_model"] == StageState("task_model", 12, 0, running=1, interrupted=1, failed=1)
    assert found["task_model"].to_build == 9
    assert found["evaluation"].to_build == len(evaluations)
    assert [dict(one) for one in state.failures] == [failure(models[1], "no room")]
    assert state.blocked == {models[1].name: {"evaluation": 1}} and state.num_workers == 2
    assert not state.is_built


def test_what_a_run_that_died_had_is_interrupted_and_never_running(store: Store, steps: list[Step]) -> None:
    model = of("task_model", steps)[0]
    state = state_of(Study.load(store, "small"), (beat(model, age_s=61.0, seconds_left=5.0),))
    assert (state.count("running"), state.count("interrupted"), state.live) == (0, 1, ())
    assert state.seconds_left is None and as_json(state)["runs"][0]["state"] == "interrupted"


def test_a_failure_that_was_made_good_is_none(store: Store, steps: list[Step], record_all: Write) -> None:
    model = of("task_model", steps)[0]
    record_all([model], store)
    state = state_of(Study.load(store, "small"), (beat(failures=(failure(model, "no room"),)),))
    assert state.failures == () and state.count("failed") == 0


def test_a_step_that_has_left_something_is_interrupted_and_one_that_left_a_lock_is_not(store: Store, steps: list[Step]) -> None:
    first, second, third = of("task_model", steps)[:3]
    write_text(os.path.join(store.folder(first.id), ".inputs.json"), "{}")
    write_text(os.path.join(store.folder(first.id), ".lock"), "")
    write_text(os.path.join(store.folder(second.id), ".lock"), "")
    write_text(os.path.join(store.folder(second.id), ".lease"), "")
    os.makedirs(store.folder(third.id))
    state = look(store, "small")
    assert state.count("interrupted") == 1 and state.runs == ()


def test_a_run_s_own_count_is_believed_while_it_lives(store: Store, steps: list[Step]) -> None:
    study = Study.load(store, "small")
    for age_s, num_done in ((0.0, 7), (100.0, 0)):
        state = state_of(study, (beat(age_s=age_s, done={"task_model": 7}),))
        assert next(stage.done for stage in state.stages if stage.stage == "task_model") == num_done


def test_a_watch_reads_again_only_what_may_have_changed(
    store: Store, steps: list[Step], record_all: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = Store.read_record

    def counting(self: Store, artifact: Any) -> Any:
        read.append(artifact.slug)
        return original(self, artifact)

    monkeypatch.setattr(Store, "read_record", counting)
    runs: tuple[Beat, ...] = ()
    monkeypatch.setattr("sweep.live.state.read_beats", lambda store, name: runs)
    model, other = of("task_model", steps)[:2]
    watch = Watch(store, "small")
    runs = (beat(model),)
    assert watch.look().count("running") == 1
    assert len(read) == len(steps)
    read.clear()
    record_all([model], store)
    runs = (beat(other, done={"task_model": 1}),)
    state = watch.look()
    assert read == [model.slug]
    assert (state.count("running"), state.stages[-2].done) == (1, 1)
    # When it has ended all that is missing is looked at, and nothing else.
    read.clear()
    runs = ()
    record_all([other], store)
    num_missing = sum(step.stage in ("task_model", "evaluation") for step in steps) - 1
    assert watch.look().stages[-2].done == 2 and len(read) == num_missing


def test_a_study_that_was_made_anew_is_read_anew(store: Store, experiment: Experiment, steps: list[Step]) -> None:
    watch = Watch(store, "small")
    assert watch.look().count("total") == len(steps)
    few = [step for step in steps if step.stage not in ("task_model", "evaluation")]
    manifest(Loaded(experiment, {}), few).save(store)
    state = watch.look()
    assert state.count("total") == len(few) and state.is_built


def test_a_process_of_this_machine_that_is_gone_is_known_before_its_time(store: Store) -> None:
    from sweep.live.process import name_of_process

    own = name_of_process(os.getpid())
    machine, namespace, pid, start = own.split(" ")
    gone = Beat("1", "small", "", "host", f"{machine} {namespace} {pid} {int(start) - 1}", Pulse(), 0.0)
    assert not gone.is_live and Beat("1", "small", "", "host", own, Pulse(), 0.0).is_live
