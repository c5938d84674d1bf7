"""The estimate of the time left, and the lines of a log."""

import io
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig
from pipelines.resources import Resources
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.step import Step
from sweep.run import progress as progress_module
from sweep.run.failures import MACHINE_LOST, Kind
from sweep.run.progress import LEFT_EVERY_S, Display, Pace, Progress, Transfers, Work, pulse_of, time_left
from sweep.run.trial import Outcome
from sweep.run.tune import Run
from tests.sweep.run.stand_in_hosts import StandInHosts, orders_of
from tests.sweep.run.stand_in_hosts import end as end_lane


def step(stage: str, number: int) -> Step:
    return Step(stage, f"{stage}{number}", TrainingSetConfig("starting", size=3, seed=number))


STEPS = [step("generator", 0), *(step("task_model", i) for i in range(4))]


def progress(**given: Any) -> Progress:
    return Progress(STEPS, set(), **given)


def test_nothing_is_said_while_a_stage_was_never_timed() -> None:
    assert time_left(progress(), {"task_model": 10}, 1) is None
    assert time_left(progress(), {"task_model": 10, "generator": 5}, 1) == 45


def test_a_running_step_that_says_how_far_it_is_needs_no_example() -> None:
    running = progress(
        running={STEPS[0].fingerprint: time.monotonic() - 30},
        throughput={STEPS[0].fingerprint: {"fraction_done": 0.75}},
    )
    assert time_left(running, {"task_model": 10}, 2) == pytest.approx((10 + 40) / 2, abs=0.1)


def test_a_step_that_waited_in_its_lane_is_timed_from_when_it_first_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("sweep.run.progress.time.monotonic", lambda: now)
    one = STEPS[1]
    state = Progress([one], set(), running={one.fingerprint: now - 200}, throughput={one.fingerprint: {"fraction_done": 0.1}})
    # It has taken 200 s for a tenth, most of them without being at work.
    assert time_left(state, {"task_model": 30}, 1) == pytest.approx(27)
    now += 5
    assert time_left(state, {"task_model": 30}, 1) == pytest.approx(22)
    state.throughput = {one.fingerprint: {"fraction_done": 0.3}}
    assert time_left(state, {"task_model": 30}, 1) == pytest.approx(5 / 0.2 * 0.7)
    # Taken on anew it is timed anew.
    state.begin(one.fingerprint)
    now += 60
    state.throughput = {one.fingerprint: {"fraction_done": 0.1}}
    assert time_left(state, {"task_model": 30}, 1) == pytest.approx(27)


def test_a_pace_says_how_far_a_step_is_and_when_it_is_known_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("sweep.run.progress.time.monotonic", lambda: now)
    name = STEPS[1].fingerprint
    state = progress(running={name: now - 200})
    assert state.pace(name) == Pace(None, 0.0, None)
    for seconds_more, part_done, left_s in ((0, 0.1, None), (5, 0.14, None), (5, 0.2, 80.0), (10, 0.2, 160.0)):
        now += seconds_more
        state.throughput = {name: {"fraction_done": part_done}}
        assert state.pace(name) == Pace(part_done, now - 1_000, left_s and pytest.approx(left_s))
        (working,) = pulse_of(state, None).working
        assert working.fraction_done == part_done


def test_side_by_side_steps_end_no_earlier_than_the_longest() -> None:
    assert time_left(progress(), {"task_model": 1, "generator": 60}, 8) == 60


def test_the_time_left_is_not_estimated_anew_for_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = 1000.0, Mock(side_effect=[60.0, 40.0])
    monkeypatch.setattr("sweep.run.progress.time.monotonic", lambda: now)
    monkeypatch.setattr("sweep.run.progress.time_left", left)
    display, under_way = Display({}, io.StringIO(), live=False), progress()
    assert [display.seconds_left(under_way) for _ in range(9)] == [60.0] * 9 and left.call_count == 1
    now += LEFT_EVERY_S
    assert display.seconds_left(under_way) == 40.0


def test_nothing_is_said_of_no_time_at_all() -> None:
    steps = [step("task_model", 0), step("task_model", 1)]
    record = Record(steps[0].stage, steps[0].slug, steps[0].fingerprint, {}, durations={"total_s": 10.0})
    for running_s, said in ((2, True), (10, False), (60, False)):
        stream = io.StringIO()
        running = {steps[1].fingerprint: time.monotonic() - running_s}
        Display({}, stream, live=False).on_event(
            "start", steps[1], Progress(steps, set(), running, {record.fingerprint: record})
        )
        assert ("left" in stream.getvalue()) == said


def test_a_log_counts_the_steps_that_are_given_up() -> None:
    stream = io.StringIO()
    display = Display({}, stream, live=False)
    failed = progress(
        failed={STEPS[0].fingerprint: Outcome(None, "no room")},
        blocked={one.fingerprint: STEPS[0].name for one in STEPS[1:]},
    )
    display.on_event("failed", STEPS[0], failed)
    for one in STEPS[1:]:
        display.on_event("blocked", one, failed)
    assert stream.getvalue().count("\n") == 1
    assert "generator/generator0: no room; 4 steps that need it are given up" in stream.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_what_is_spent_is_in_the_table_and_now_and_then_in_a_log(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Display({}, stream, live=live) as display:
        for amount in ("$1.00", "$2.00", "$3.00"):
            if amount == "$3.00":
                monkeypatch.setattr(progress_module, "SAY_SPENT_EVERY_S", 0)
            display.on_tick(progress(spent=f"spent {amount} of $500.00, $3.10 committed"))
    shown = " ".join(stream.getvalue().split())
    assert "spent $3.00 of $500.00, $3.10 committed" in shown
    if not live:
        assert shown.count("spent") == 1


@pytest.mark.parametrize("live", [False, True])
def test_every_event_of_a_run_can_be_shown(live: bool, tmp_path: Path) -> None:
    """Two neighbours of a group lose their machine, then their process; alone, one is built, and the other fails twice."""
    base = step("base_model", 0)
    resources = Resources(max_group=2)
    lucky, doomed = (
        Step("task_model", slug, TaskModelConfig(FinetuneConfig(), seed), {"base_model": base}, resources=resources)
        for seed, slug in enumerate(("lucky", "doomed"))
    )
    user = Step("evaluation", "user", TrainingSetConfig("starting", size=3, seed=9), {"task_model": doomed})
    stream, events = io.StringIO(), []
    display = Display({}, stream, live=live)

    def listen(event: str, shown: Step, progress: Progress) -> None:
        events.append((event, shown.slug))
        display.on_event(event, shown, progress)

    def end(trial: str, **outcomes: Outcome) -> None:
        assert run.suggest(trial)
        end_lane(run, trial, *(outcomes[order.step.slug] for order in orders_of(run, trial)))

    def built(done: Step) -> Outcome:
        metrics = {"examples_per_s": 10.0, "mean_trained_together": 8.0}
        durations = {"total_s": 1.0}
        return Outcome(Record(done.stage, done.slug, done.fingerprint, done.payload, metrics=metrics, durations=durations))

    steps = [base, lucky, doomed, user]
    lost = Outcome(None, "its process was lost", was_neighbour=True)
    machine = Outcome(None, MACHINE_LOST, "log.txt", was_neighbour=True, kind=Kind.LOSS)
    with display:
        given: dict[str, Any] = {"listener": listen, "tick": display.on_tick, "hosts": StandInHosts()}
        run = Run(steps, {base.fingerprint}, Store(tmp_path), Capacity(1, 0), max_failures=1, **given)
        end("both", lucky=machine, doomed=machine)
        end("both again", lucky=lost, doomed=lost)
        end("lucky alone", lucky=built(lucky))
        end("doomed alone", doomed=Outcome(None, "no room [here]", "log.txt"))
        end("doomed again", doomed=Outcome(None, "no room at all", "log.txt"))
        run.progress.waits[doomed.fingerprint] = "it needs 1 GPU"
        run.listener("waits", doomed, run.progress)
        run.poll()
    starts = [("start", "lucky"), ("start", "doomed")]
    assert events == [
        *starts, ("lost", "lucky"), ("lost", "doomed"),
        *starts, ("retry", "lucky"), ("retry", "doomed"), starts[0], ("done", "lucky"), starts[1], ("retry", "doomed"),
        starts[1], ("failed", "doomed"), ("blocked", "user"), ("waits", "doomed"),
    ]  # fmt: skip
    shown = " ".join(stream.getvalue().split())  # a terminal folds its lines
    assert shown.count("lost task_model/lucky: the machine that it ran on was lost; goes on (loss 1)") == 1
    assert live or shown.count("done task_model/lucky in 1s, 80 examples/s") == 1
    assert shown.count("waits task_model/doomed: it needs 1 GPU") == 1
    assert shown.count("retry task_model/lucky: its process was lost") == 1
    assert shown.count("retry task_model/doomed: its process was lost") == 1
    assert shown.count("retry task_model/doomed: no room [here] (traceback: log.txt)") == 1
    assert shown.count("failed task_model/doomed: no room at all (traceback: log.txt); 1 step that needs it is given up") == 1
    assert run.progress.built.keys() == {lucky.fingerprint} and run.progress.failed.keys() == {doomed.fingerprint}


def test_what_another_run_has_built_meanwhile_is_said_to_be_its_own(tmp_path: Path) -> None:
    ours, again, theirs = (step("training_set", number) for number in range(3))
    stream = io.StringIO()
    run = Run(
        [ours, again, theirs], set(), Store(tmp_path), Capacity(1, 0),
        listener=Display({}, stream, live=False).on_event, hosts=StandInHosts(),
    )  # fmt: skip
    for trial, was_there in (("ours", False), ("again", True), ("theirs", True)):
        assert run.suggest(trial)
        (order,) = orders_of(run, trial)
        done, own = order.step, order.timeline
        # An earlier attempt of this run has an earlier lane of it.
        lane = "20260101T000000-1" if trial == "theirs" else f"{own['lane'].rpartition('-')[0]}-0"
        timeline = {**own, "lane": lane}
        record = Record(done.stage, done.slug, done.fingerprint, done.payload, durations={"total_s": 1.0}, timeline=timeline)
        end_lane(run, trial, Outcome(record, was_there=was_there))
    assert run.progress.taken == {theirs.fingerprint} and len(run.progress.built) == 3
    lines = [line.partition("done    ")[2] for line in stream.getvalue().splitlines() if "done    " in line]
    assert lines == [f"{ours.name} in 1s", f"{again.name} in 1s", f"{theirs.name} by another run in 1s"]


@pytest.mark.parametrize("live", [False, True])
def test_a_download_is_a_line_at_each_tenth_or_a_bar(live: bool) -> None:
    stream = io.StringIO()
    with Transfers(stream, live=live) as transfers:
        for num_bytes in range(0, 2_000_001, 50_000):
            transfers("a.zip", num_bytes, 2_000_000)
        transfers.say("a.zip: as published [here]")
    shown = stream.getvalue()
    assert "a.zip: as published [here]\n" in shown
    if live:
        assert "100%" in shown or "2.0/2.0 MB" in shown
    else:
        # From the beginning to the end, both included.
        assert shown.splitlines()[:2] == ["a.zip: 0.0 of 2.0 MB", "a.zip: 0.2 of 2.0 MB"]
        assert shown.splitlines()[10] == "a.zip: 2.0 of 2.0 MB" and len(shown.splitlines()) == 12


def test_work_says_at_times_how_far_it_is_and_nothing_of_what_is_soon_done(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 0.0, 1.0, 2.9, 12.0, 13.0, 25.0, 26.0))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    stream = io.StringIO()
    with Work(stream, live=False) as work:
        for done in (0, 100, 290):
            work("reading pairs.csv", done, 2_000)
        assert stream.getvalue() == ""
        for done in (500, 600, 1_000):
            work("reading pairs.csv", done, 2_000)
        work("looking for copies", 0, None)
    assert stream.getvalue().splitlines() == [
        "   12s  reading pairs.csv: 500 of about 2,000, about 36s left",
        "   25s  reading pairs.csv: 1,000 of about 2,000, about 25s left",
        "   26s  looking for copies",
    ]


def test_work_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress_module, "QUIET_S", 0)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Work(stream) as work:
        work("reading [x].csv", 10, 20)
        work("looking for copies", 1, None)
    assert "reading [x].csv" in stream.getvalue() and "looking for copies" in stream.getvalue()
