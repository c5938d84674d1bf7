"""Real Ray Tune on two CPUs, with cheap stages: isolation, no deadlock, resumption, MLflow's content."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.resources import Resources
from pipelines.storage import join, write_text
from pipelines.workers import notice
from sweep.graph.integrity import set_aside
from sweep.graph.queue import Capacity
from sweep.graph.records import ArtifactId, Record, Store, Study
from sweep.graph.step import Step
from sweep.plan.plan import make_plan
from sweep.run.ends import NOTICE, Stop
from sweep.run.progress import Display, Progress
from sweep.run.session import RayOptions, ray_session
from sweep.run.tracking import Card, StepReport, Tracker
from sweep.run.trial import Outcome
from sweep.run.tune import Run, run_steps
from tests.sweep.run.stand_in_hosts import StandInHosts, orders_of
from tests.sweep.run.stand_in_hosts import end as end_lane

SCRIPT = Path(__file__).with_name("fake_study.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def capacity(fake: ModuleType) -> Iterator[Capacity]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers inherit it.
        patch.setenv("A_SECRET", "of-a-worker")
        with ray_session(RayOptions(max_cpus=2), []) as found:
            import ray.cloudpickle

            # Workers cannot import a module of the tests by its name.
            ray.cloudpickle.register_pickle_by_value(fake)
            yield found


@pytest.fixture(scope="module")
def tracking_uri(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where `undisturbed` is tracked."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path_factory.mktemp('tracked') / 'mlflow.db')}"


@pytest.fixture(scope="module")
def undisturbed(
    fake: ModuleType, capacity: Capacity, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Progress]:
    """A store with all that `make_steps` has, built in one go, and how that went. Not to be changed."""
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    return store, run_tracked(fake.make_steps(), store, capacity, tracking_uri)


def run(steps: list[Any], store: Store, capacity: Capacity, **options: Any) -> Progress:
    cached = [one.step.fingerprint for one in make_plan(steps, store) if one.is_cached]
    if len(cached) == len(steps):
        return Progress(steps, set(cached))
    return run_steps(Run(steps, set(cached), store, capacity, **{"max_failures": 0, **options}))


def run_tracked(steps: list[Any], store: Store, capacity: Capacity, uri: str) -> Progress:
    import ray

    tracker = ray.remote(Tracker).options(num_cpus=0).remote(uri, store.uri, Study("fake", "Fake", {"p": 1}, ()))
    ray.get(tracker.declare.remote([step.fingerprint for step in steps]))
    progress = run(steps, store, capacity, tracker=tracker)
    for fingerprint in progress.cached:
        step = next(one for one in steps if one.fingerprint == fingerprint)
        record = store.read_record(step.id)
        tracker.finish.remote(record, is_new=False)
    assert ray.get(tracker.close.remote("FINISHED")) == []
    return progress


def calls(store: Store) -> Counter[str]:
    return Counter((Path(store.uri) / "calls.txt").read_text().split())


def contents(store: Store) -> dict[str, Any]:
    """Files of each artifact, by hash."""
    found = {}
    for stage in ("sources", "task_model", "evaluation"):
        for path in Path(store.uri, stage).glob("*/record.json"):
            record = Record.from_json(path.read_bytes(), str(path))
            found[f"{stage}/{record.slug}"] = record.files
    return found


def test_nothing_starts_beside_a_step_that_is_over_before_a_process_is_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr("sweep.run.tune.time.monotonic", lambda: now)
    steps = [Step("starting_set", f"cell{seed}", TrainingSetConfig("starting", size=3, seed=seed)) for seed in range(6)]
    capacity = Capacity(6, 0)
    run = Run(steps, set(), Store(tmp_path), capacity, hosts=StandInHosts())

    def end(trial: str, seconds: float) -> None:
        (order,) = orders_of(run, trial)
        step = order.step
        record = Record(step.stage, step.slug, step.fingerprint, step.payload, durations={"total_s": seconds})
        end_lane(run, trial, Outcome(record))

    # Nothing is known of their kind yet, so that two may run at once.
    assert run.suggest("a") and run.suggest("b")
    end("a", 0.2)
    assert run.suggest("c") is None
    now = 5.1
    assert run.suggest("c"), "b takes long after all"
    end("b", 30.0)
    assert run.suggest("d") and run.suggest("e"), "the last of the kind was long"


@pytest.mark.timeout(250)
def test_two_cpu_steps_on_two_cpus_all_run_and_none_twice(
    fake: ModuleType, capacity: Capacity, undisturbed: tuple[Store, Progress]
) -> None:
    (store, progress), steps = undisturbed, fake.make_steps()
    assert len(progress.built) == len(steps) == 13
    assert not progress.failed and not progress.running
    assert all(one.is_cached for one in make_plan(steps, store))
    record = progress.built[steps[1].fingerprint]
    assert set(record.files) == {"value.txt", "metrics.jsonl"}
    assert record.metrics["value"] == 1 and record.versions["ray"] and record.hardware["num_cpus"]
    folder = Path(store.folder(steps[1].id))
    assert not (folder / ".checkpoints").exists()
    assert run(steps, store, capacity).cached == {step.fingerprint for step in steps}
    assert set(calls(store).values()) == {1}


@pytest.mark.timeout(250)
def test_a_failure_is_reported_and_does_not_lose_the_others(fake: ModuleType, capacity: Capacity, tmp_path: Path) -> None:
    store, steps = Store(tmp_path), fake.failing_steps()
    progress = run(steps, store, capacity)
    names = {step.fingerprint: step.slug for step in steps}
    errors = {names[one]: outcome.error for one, outcome in progress.failed.items()}
    assert errors["user"] == "value=1 is bad; give 2"
    assert errors["disk"].startswith("the disk is full at ")
    assert errors["process"].startswith("its process died")
    assert errors["defect"] == "TypeError: unexpected"
    blocked = {names[one]: cause for one, cause in progress.blocked.items()}
    assert blocked == {f"{prefix}-{fails}": f"task_model/{fails}" for fails in errors for prefix in ("after", "after-after")}
    assert {names[one] for one in progress.built} == {"sound"}
    logs = {names[one]: Path(outcome.log).read_text() for one, outcome in progress.failed.items()}
    assert "Traceback" in logs["defect"] and "in run" in logs["defect"]
    # A process that died could raise nothing, and what it printed is there.
    assert "the last words of a process: ***" in logs["process"]
    assert not [name for name, log in logs.items() if "last words" in log and name != "process"]


def lanes(store: Store) -> list[str]:
    """What each lane took on, in the order of their starts."""
    return (Path(store.uri) / "lanes.txt").read_text().splitlines()[1:]


@pytest.mark.timeout(250)
def test_steps_alike_are_built_in_one_lane_and_a_failure_is_its_own(
    fake: ModuleType, capacity: Capacity, tmp_path: Path
) -> None:
    store, steps = Store(tmp_path), fake.lane_steps("user")
    progress = run(steps, store, capacity)
    # Of the two that it has, either may be first.
    assert [" ".join(sorted(lane.split())) for lane in lanes(store)] == ["0 1 2 3 4 5 6 closed", "7 closed"]
    assert {one.slug for one in steps if one.fingerprint in progress.failed} == {"cell3"}
    assert next(iter(progress.failed.values())).error == "value=1 is bad; give 2"
    assert len(progress.built) == 7 and set(calls(store).values()) == {1}
    records = [progress.built[step.fingerprint] for step in steps if step.fingerprint in progress.built]
    assert len({record.timeline["lane"] for record in records}) == 2
    moments = ("ready", "given", "began", "ended")
    for record in records:
        times = [record.timeline[moment] for moment in moments]
        assert times == sorted(times) and record.timeline["opened"] <= record.timeline["began"]
        assert record.durations["stage_s"] <= record.durations["total_s"]
    assert records[0].timeline["waited_for"] == "" and records[-1].timeline["opened"] >= records[0].timeline["ended"]


@pytest.mark.timeout(250)
def test_a_lane_that_loses_its_process_keeps_what_has_ended(fake: ModuleType, capacity: Capacity, tmp_path: Path) -> None:
    store, steps = Store(tmp_path), fake.lane_steps("process")
    progress = run(steps, store, capacity)
    # Two were there, of which nobody knows which is at fault; a lane with the others goes on. The one that is, is tried once
    # more in company if its lane had got on, and then alone.
    assert "closed" not in lanes(store)[0] and lanes(store)[-1]
    assert max(calls(store).values()) <= 3 and list(calls(store).values()).count(1) >= 6
    assert {one.slug for one in steps if one.fingerprint in progress.failed} == {"cell3"}
    assert next(iter(progress.failed.values())).error.startswith("its process died")
    assert len(progress.built) == 7


@pytest.mark.timeout(250)
def test_retries_resume_from_the_stages_own_state(fake: ModuleType, capacity: Capacity, tmp_path: Path) -> None:
    store = Store(tmp_path)
    steps = [fake.Step("task_model", "once", fake.Config(fails="once"))]
    assert run(steps, store, capacity, max_failures=1).built
    assert calls(store).most_common(1)[0][1] == 2


@pytest.mark.timeout(250)
def test_at_a_notice_what_runs_commits_and_nothing_else_starts(fake: ModuleType, capacity: Capacity, tmp_path: Path) -> None:
    store, stop = Store(tmp_path), Stop(notice_s=200)
    noticed = fake.Step("task_model", "noticed", fake.Config(fails="notice"), resources=Resources(cpus_per_worker=2))
    later = fake.Step("task_model", "later", fake.Config(1), resources=Resources(cpus_per_worker=2))
    lines = io.StringIO()

    def tick(progress: Progress) -> None:
        # Once it runs, what SIGUSR1 calls.
        if (tmp_path / "calls.txt").exists():
            stop._on_notice(NOTICE, None)
        stop.hold(held)

    with Display({}, lines, live=False) as display:
        held = Run([noticed, later], set(), store, capacity, max_failures=0, listener=display.on_event, tick=tick)
        try:
            progress = run_steps(held)
        finally:
            notice._flag("run").unlink()
    assert held.hold == "a notice came that it will be ended" and not held.queue.is_exhausted
    assert not progress.built and not progress.failed and not progress.running
    assert "a notice stopped it at step 1 of 3, which is committed" in lines.getvalue()
    assert calls(store) == {f"noticed-{noticed.fingerprint[:12]}": 1}
    # The same steps go on.
    assert len(run([later], store, capacity).built) == 1


@pytest.mark.timeout(250)
def test_a_damaged_input_is_built_again_in_the_midst_of_a_run(
    fake: ModuleType, capacity: Capacity, undisturbed: tuple[Store, Progress], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0].uri, tmp_path / "store")
    store, steps, stream = Store(tmp_path / "store"), fake.make_steps(), io.StringIO()
    root, cells = steps[0], [step for step in steps if step.stage == "task_model"]
    for step in cells[:3]:
        set_aside(store, step.id, "to be built again")
    (Path(store.folder(root.id)) / "value.txt").write_text("9")
    with Display({}, stream, live=False) as display:
        progress = run(steps, store, capacity, listener=display.on_event)
    assert not progress.failed and progress.num_done == len(steps)
    assert contents(store) == contents(undisturbed[0])
    # The root once more, of what was built from it only what was missing.
    assert calls(store)[f"data-{root.fingerprint[:12]}"] == 2
    assert sorted(calls(store)[f"{step.slug}-{step.fingerprint[:12]}"] for step in cells) == [1, 1, 1, 2, 2, 2]
    assert "/value.txt has other content (sha256 19581e27de7c…, 5feceb66ffc8… in its record); set aside as" in stream.getvalue()


@pytest.mark.timeout(290)
def test_a_run_killed_in_the_middle_goes_on_with_the_same_artifacts(
    fake: ModuleType, capacity: Capacity, undisturbed: tuple[Store, Progress], tmp_path: Path
) -> None:
    store, steps = Store(tmp_path), fake.make_steps(num_cells=3)
    command = [sys.executable, str(SCRIPT), store.uri, "1.5", "3"]
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while len(contents(store)) < 2:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = contents(store)
    assert 2 <= len(before) < len(steps) == 7
    progress = run(steps, store, capacity)
    # Workers of the killed run may have finished a step that was under way.
    assert len(progress.cached) >= len(before) and len(progress.cached) + len(progress.built) == len(steps)
    whole = contents(undisturbed[0])
    assert contents(store) == {f"{step.stage}/{step.slug}": whole[f"{step.stage}/{step.slug}"] for step in steps}


@pytest.mark.timeout(250)
def test_mlflow_has_every_artifact_once_with_metrics_tags_and_lineage(
    fake: ModuleType, capacity: Capacity, undisturbed: tuple[Store, Progress], tracking_uri: str
) -> None:
    from mlflow import MlflowClient

    store, steps = undisturbed[0], fake.make_steps()

    def runs() -> list[Any]:
        return list(client.search_runs([client.get_experiment_by_name("fake").experiment_id]))

    client = MlflowClient(tracking_uri)
    first = runs()
    assert len(run_tracked(steps, store, capacity, tracking_uri).cached) == len(steps)
    assert {run.info.run_id for run in runs()} == {run.info.run_id for run in first}
    (parent,) = (run for run in first if run.data.tags.get("study") == "fake")
    children = {run.data.tags["slug"]: run for run in first if run.data.tags["stage"] == "task_model"}
    assert len(first) == 1 + 13 and len(children) == 6
    cell = children["cell3"]
    assert cell.data.tags["mlflow.parentRunId"] == parent.info.run_id
    expected = {"kind": "original", "size": "3", "seed": "0", "starting_point": "0", "stage": "task_model"}
    assert expected.items() <= cell.data.tags.items()
    assert cell.data.tags["fingerprint"] in {step.fingerprint for step in steps}
    assert {"kind": "original", "size": "3", "config.value": "3"}.items() <= cell.data.params.items()
    losses = client.get_metric_history(cell.info.run_id, "curve/loss")
    assert [(one.step, one.value) for one in losses] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [one.value for one in client.get_metric_history(cell.info.run_id, "curve/examples_per_s")] == [10.0] * 3
    # Of its evaluation, so that kinds are compared in one table.
    assert cell.data.metrics["hans/accuracy"] == 0.25
    assert cell.data.metrics["hans/lexical_overlap.margin"] == 1.5
    tags = client.get_experiment_by_name("fake").tags
    view = json.loads(json.loads(tags["mlflow.sharedViewState.cells"])["state"])
    assert view["selectedColumns"][:2] == ["metrics.`general`", "metrics.`margin`"]
    assert (cell.data.metrics["general"], cell.data.metrics["margin"]) == (0.25, 1.5)
    order = [f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"]
    compared = client.search_runs([parent.info.experiment_id], view["searchFilter"], order_by=order)
    assert [run.data.tags["slug"] for run in compared] == sorted(children)
    (source,) = cell.inputs.dataset_inputs
    assert source.dataset.name == "sources/data" and source.dataset.digest == steps[0].fingerprint[:12]
    assert all(run.info.status == "FINISHED" for run in first)


@pytest.mark.slow
@pytest.mark.timeout(250)
def test_processes_hammering_the_tracker_lose_nothing(capacity: Capacity, empty_database: Path, tmp_path: Path) -> None:
    import ray
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    tracker = ray.remote(Tracker).options(num_cpus=0).remote(uri, str(tmp_path), Study("hammer", "", {}, ()))
    cards = [Card(ArtifactId("task_model", f"cell{i}", str(i) * 64), {}, {}) for i in range(4)]
    ray.get([tracker.start.remote(card) for card in cards])

    def hammer(fingerprint: str) -> None:
        report = StepReport(tracker, fingerprint)
        for step in range(200):
            report({"loss": step, "learning_rate": 0.1}, step)
        ray.get(report._outstanding)

    task = ray.remote(num_cpus=0)(hammer)
    ray.get([task.remote(card.id.fingerprint) for card in cards])
    # What a tracker that fell behind was not sent is in the artifact's own log.
    store = Store(str(tmp_path))
    log = "".join(json.dumps({"step": step, "loss": step, "learning_rate": 0.1}) + "\n" for step in range(200))
    for card in cards:
        write_text(join(store.folder(card.id), "metrics.jsonl"), log)
        files = {"metrics.jsonl": {"sha256": hashlib.sha256(log.encode()).hexdigest(), "bytes": len(log)}}
        created = datetime.now(UTC).isoformat()
        one = Record("task_model", card.id.slug, card.id.fingerprint, {"config": {}}, files=files, created=created)
        ray.get(tracker.finish.remote(one))
    assert ray.get(tracker.close.remote("FINISHED")) == []
    client = MlflowClient(uri)
    for run in client.search_runs([client.get_experiment_by_name("hammer").experiment_id]):
        if "fingerprint" in run.data.tags:
            losses = client.get_metric_history(run.info.run_id, "curve/loss")
            assert sorted((one.step, one.value) for one in losses) == [(step, step) for step in range(200)]
