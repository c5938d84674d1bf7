"""When artifacts were built, lane by lane, as their records say."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.data.training_set import TrainingSetConfig
from sweep.cli import app
from sweep.graph.records import Record, Store, Study, StudyStep
from sweep.graph.step import Step
from sweep.graph.timeline import LaneTime, Span, Timeline, as_json, timelines
from tests.sweep.conftest import record_of

BEGAN = 1_800_000_000.0


def recorded(slug: str, lane: str, opened: float, up: float, *moments: float, stage: str = "training_set") -> Record:
    step = Step(stage, slug, TrainingSetConfig("original", size=3, seed=sum(map(ord, slug))))
    names = ("ready", "given", "began", "ended")
    times = {name: BEGAN + value for name, value in zip(names, moments, strict=True)}
    where = {"lane": lane, "opened": BEGAN + opened, "up": BEGAN + up, "waited_for": "sources/data"}
    return record_of(step, timeline=where | times)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    records = [
        # Together from 10 on, then nothing for 5 s, then one more.
        recorded("a", "20270115T080000-1", 0, 9, 0, 0, 10, 20, stage="task_model"),
        recorded("b", "20270115T080000-1", 0, 9, 2, 3, 11, 25, stage="task_model"),
        recorded("c", "20270115T080000-1", 0, 9, 28, 29, 30, 40, stage="task_model"),
        recorded("d", "20270115T080000-2", 5, 6, 1, 5, 6, 7),
        recorded("e", "20270114T080000-1", -9e4, -9e4, -9e4, -9e4, -9e4, -8e4),
        record_of(Step("sources", "old", TrainingSetConfig("original", size=3, seed=1))),
    ]
    store = Store(tmp_path)
    for record in records:
        store.write_record(record)
    steps = tuple(StudyStep(record.stage, record.slug, record.fingerprint, {}, {}) for record in records)
    Study("mine", "Mine", {}, steps).save(store)
    return store


def test_lanes_say_what_they_did_and_steps_what_they_waited_for(store: Store) -> None:
    earlier, run = timelines(Study.load(store, "mine"))
    assert [span.slug for span in earlier.spans] == ["e"]
    assert (run.began, run.seconds) == (BEGAN, 40)
    models, sets = run.lanes
    assert (models.stages, models.up) == (("task_model",), 9)
    assert (models.start_s, models.work_s, models.idle_s) == (10, 25, 5)
    assert (sets.start_s, sets.work_s, sets.idle_s) == (1, 1, 0)
    assert [(span.slug, span.room_s, span.turn_s, span.waited_for) for span in run.spans] == [
        ("a", 0, 10, "sources/data"),
        ("b", 1, 8, "sources/data"),
        ("c", 1, 1, "sources/data"),
        ("d", 4, 1, "sources/data"),
    ]
    assert as_json(run)["lanes"][0]["steps"][1]["began"] == 11


def test_lanes_of_one_stage_that_follow_each_other_share_a_row() -> None:
    lanes = [
        LaneTime(str(number), opened, opened, (Span(stage, "a", 0, opened, opened, ended, ""),))
        for number, (stage, opened, ended) in enumerate(
            [
                ("training_set", 0, 2),
                ("training_set", 1, 3),
                ("evaluation", 2, 4),
                ("training_set", 2, 5),
                ("training_set", 3, 6),
            ]
        )
    ]
    rows = Timeline(0.0, tuple(lanes)).rows
    assert [[lane.name for lane in row] for row in rows] == [["0", "3"], ["1", "4"], ["2"]]


def test_the_command_draws_the_last_run(store: Store) -> None:
    shown = CliRunner().invoke(app, ["timeline", "mine", "--store", store.uri, "--steps"]).output
    assert "4 artifacts in 2 lanes, 40s" in shown and "1 more artifacts are of 1 earlier runs" in shown
    # 60 characters for 40 s.
    (bar,) = [line for line in shown.splitlines() if line.startswith("task_model")]
    assert f"|{'.' * 15}{'t' * 22}t{'_' * 7}{'t' * 15}|" in bar and "25s work,    10s start,     5s idle" in bar
    assert "d: 1s from 6s, after 4s for room and 1s in the lane; ready with sources/data" in shown
    found = json.loads(CliRunner().invoke(app, ["timeline", "mine", "--store", store.uri, "--json"]).output)
    assert [len(run["lanes"]) for run in found] == [1, 2]


def test_a_study_of_before_timelines_says_so(tmp_path: Path) -> None:
    Study("old", "Old", {}, ()).save(Store(tmp_path))
    done = CliRunner().invoke(app, ["timeline", "old", "--store", str(tmp_path)])
    assert done.exit_code == 1 and "run the study" in done.output
