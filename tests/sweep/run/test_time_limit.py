"""A run that is to end by a time: what it begins, what it leaves, and how it ends."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.resources import Resources
from sweep.commands.options import duration
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.step import Step
from sweep.plan.costs import StepCost
from sweep.run.ends import NOTICE, Stop
from sweep.run.study_run import _keep_to_limit
from sweep.run.trial import Outcome
from sweep.run.tune import Run
from tests.sweep.run.stand_in_hosts import StandInHosts, end, orders_of

SCRIPT = Path(__file__).with_name("fake_command.py")
ROOT = Path(__file__).parents[3]
GPU = Resources(gpus_per_worker=1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("25m", 1_500), ("1h30m", 5_400), ("90s", 90), ("90", 90), ("2h", 7_200), ("1h5s", 3_605)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "25 minutes", "-5m", "m", "1.5h", "30m1h", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="25m"):
        duration(text)


def generator(number: int) -> Step:
    """It commits on its way."""
    return Step("generator", f"generator{number}", GeneratorConfig(FinetuneConfig(), seed=number), resources=GPU)


def evaluation(number: int) -> Step:
    """It begins anew."""
    return Step("evaluation", f"evaluation{number}", EvaluationConfig(sets=("dev", f"set{number}")), resources=GPU)


def run_with(tmp_path: Path, *steps: Step, seconds_left: float, num_gpus: float = 1, start_s: float = 50) -> tuple[Run, Stop]:
    """A run of which a notice is due in so many seconds, whose steps take 1,000 s and a start."""
    run = Run(steps, set(), Store(tmp_path), Capacity(8, num_gpus), hosts=StandInHosts())
    stop = Stop(notice_s=100, limit_s=100 + seconds_left)
    _keep_to_limit(run, stop, [StepCost(step, None, None, start_s + 1_000, 0, setup_s=start_s) for step in steps])
    return run, stop


@pytest.mark.parametrize(
    ("step", "seconds_left", "starts"),
    [
        (generator(0), 60, True),
        (generator(0), 40, False),
        (evaluation(0), 1_060, True),
        (evaluation(0), 1_040, False),
    ],
)
def test_a_step_begins_if_something_of_it_would_be_kept(step: Step, seconds_left: float, starts: bool, tmp_path: Path) -> None:
    run, _ = run_with(tmp_path, step, seconds_left=seconds_left)
    suggested = run.suggest("a")
    if starts:
        assert isinstance(suggested, dict) and not run.hold
        return
    assert suggested == "FINISHED"
    kept_s = 50 if step.stage == "generator" else 1_050
    assert run.hold.startswith(f"nothing of {step.name} would be kept before {kept_s} s, and ")


def test_what_runs_is_waited_for_and_what_a_run_has_seen_counts_more_than_estimates(tmp_path: Path) -> None:
    steps = [evaluation(number) for number in range(3)]
    run, _ = run_with(tmp_path, *steps, seconds_left=1_060)
    assert isinstance(run.suggest("a"), dict) and run.suggest("b") is None
    (order,) = orders_of(run, "a")
    times = dict(zip(("opened", "given", "began", "ended"), (0.0, 0.0, 900.0, 1_000.0), strict=True))
    record = Record(order.step.stage, order.step.slug, order.step.fingerprint, order.step.payload)
    end(run, "a", Outcome(replace(record, durations={"total_s": 1_000.0}, timeline=times)))
    # It took 900 s to start, and 100 s of work.
    assert run.seconds_until_kept(steps[1:2], {}) == (steps[1].name, 1_000.0)
    assert isinstance(run.suggest("b"), dict)


def test_what_nothing_is_known_of_begins(tmp_path: Path) -> None:
    run = Run([evaluation(0)], set(), Store(tmp_path), Capacity(8, 1), hosts=StandInHosts())
    _keep_to_limit(run, Stop(notice_s=100, limit_s=101), ())
    assert isinstance(run.suggest("a"), dict)


def test_a_budget_is_kept_beside_it(tmp_path: Path) -> None:
    run = Run([evaluation(0)], set(), Store(tmp_path), Capacity(8, 1), hosts=StandInHosts())
    run.why_not = lambda steps, beside: "too dear"
    _keep_to_limit(run, Stop(), ())
    assert run.suggest("a") == "FINISHED" and run.hold == "too dear"


def test_a_notice_is_heard_while_a_step_waits_for_a_machine_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.run.ends.tell_all_nodes", lambda: [])
    run, stop = run_with(tmp_path, evaluation(0), seconds_left=3_000)
    run.tick = lambda progress: stop.hold(run)
    run.queue.capacity = Capacity(8, 0)
    assert run.suggest("a") is None and not run.hold
    stop._on_notice(NOTICE, None)
    assert run.suggest("b") == "FINISHED" and run.hold == "a notice came that it will be ended"


PROGRAM = """
import time
from types import SimpleNamespace as Some
from sweep.run import ends
ends.tell_all_nodes = lambda: []
run = Some(hold="", queue=Some(is_exhausted=False))
with ends.Stop(notice_s=60, limit_s=LIMIT, began=time.monotonic() - 10) as stop:
    BODY
    stop.check(run)
print("it went on")
"""


def ended(limit_s: float, body: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.replace("LIMIT", str(limit_s)).replace("BODY", body)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("limit_s", "body", "line"),
    [
        (69, "stop.hold(run)", "stopped at the time limit: what is built is kept; the same command goes on"),
        (
            170,
            "run.hold = stop.why_not('evaluation/one', 150)",
            "stopped at the time limit, since nothing of evaluation/one would be kept before 150 s, and N s are left to begin "
            "in: what is built is kept; the same command goes on",
        ),
        (
            69,
            "stop.notes.append('one is set aside'); stop.hold(run)",
            "Warning: one is set aside\nstopped at the time limit: what is built is kept; the same command goes on",
        ),
        (170, "stop.hold(run); assert not run.hold; stop.why_not('evaluation/one', 150)", ""),
        (170, "run.hold = stop.why_not('evaluation/one', 50)", ""),
    ],
)
def test_at_the_limit_a_run_ends_as_at_a_notice(limit_s: float, body: str, line: str) -> None:
    done = ended(limit_s, body)
    assert done.returncode == 0, done.stderr
    assert re.sub(r"\d+ s are", "N s are", done.stderr.strip()) == line
    assert done.stdout == ("" if line else "it went on\n")


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_what_was_set_aside_is_said_where_a_signal_ends_the_run(number: str, code: int) -> None:
    done = ended(170, f"import os, signal; stop.notes.append('one is set aside'); os.kill(os.getpid(), signal.{number})")
    assert done.returncode == code
    assert done.stderr == f"Warning: one is set aside\nstopped by {number}: what is built is kept; the same command goes on\n"


@pytest.mark.slow
def test_the_command_ends_by_its_limit_and_the_same_one_goes_on(tmp_path: Path) -> None:
    study = ("run", "demo", "-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "-p", "kinds=original")
    command = [sys.executable, str(SCRIPT), *study, "--no-report", "--max-cpus", "2", "--store", str(tmp_path)]

    def run(seconds: float, *options: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SECONDS": str(seconds)}
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=240)

    # Its steps would take an hour.
    done = run(1_000, "--time-limit", "1m", "--notice-time", "20")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "stopped at the time limit: 0 of 7 artifacts are built; the same command goes on"
    done = run(0, "--time-limit", "10m")
    assert done.returncode == 0 and "7 artifacts, 0 were there, 7 built" in done.stdout, done.stderr
    refused = run(0, "--time-limit", "1m")
    assert refused.returncode == 1 and "--time-limit: of 60 s steps have the last 110 to commit" in refused.stderr
