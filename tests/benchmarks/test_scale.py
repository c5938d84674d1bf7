"""How far a study scales: the schedule's parts by hand, and each part of the command."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest

from benchmarks import scale_played
from benchmarks.scale import cause, described, knee, line, most_ends, parts, plan_of
from benchmarks.scale_lanes import FASTER, TAKES, StandInLane
from benchmarks.scale_pool import text_of
from benchmarks.scale_requests import kind_of
from pipelines.data.training_set import TrainingSetConfig
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig
from pipelines.resources import Resources
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import Parsed, parse_generated
from sweep.graph.stages import Job
from sweep.graph.step import Step
from sweep.graph.timeline import as_json
from sweep.plan.schedule import Schedule, StepTime, simulate

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text())


def step(slug: str, *inputs: Step) -> Step:
    config = TrainingSetConfig("starting", size=ord(slug), seed=0)
    return Step("starting_set", slug, config, {one.slug: one for one in inputs}, resources=Resources(gpus_per_worker=1))


def played(num_gpus: int) -> tuple[Schedule, dict[str, float]]:
    """a of 10 s, then b of 20; beside them c, d and e of 30 s each, all with 5 s of start."""
    a = step("a")
    seconds = {a: 10.0, step("b", a): 20.0, **{step(slug): 30.0 for slug in "cde"}}
    times = {one.fingerprint: StepTime(setup_s=5, own_s=value) for one, value in seconds.items()}
    return simulate(list(seconds), times, [], num_gpus), {one.name: value for one, value in seconds.items()}


def test_a_schedule_s_own_timeline_played_through_is_that_schedule() -> None:
    schedule, _ = played(2)
    assert schedule.timeline is not None
    run = as_json(schedule.timeline)
    a = step("a")
    again = scale_played.played([a, step("b", a), *map(step, "cde")], run, 2)
    assert again.timeline == schedule.timeline
    assert scale_played.described(again, run) == {
        "seconds": 75.0, "played_s": 75.0, "lanes": 5, "played_lanes": 5, "apart": 0.0,
    }  # fmt: skip
    # A step that the run did not build was there before.
    run["lanes"] = [lane for lane in run["lanes"] if lane["steps"][0]["slug"] != "a"]
    assert scale_played.played([a, step("b", a), *map(step, "cde")], run, 4).seconds == 35.0


def test_steps_that_are_trained_at_once_are_played_through_as_they_went() -> None:
    """Two cells at once, of which one ends first, and a third that takes its place."""
    base = step("a")
    resources = Resources(gpus_per_worker=1, max_group=2)
    configs = [TaskModelConfig(FinetuneConfig(method="lora"), seed) for seed in range(3)]
    cells = [Step("task_model", *of, {"base_model": base}, resources=resources) for of in zip("bcd", configs, strict=True)]
    times = {one.fingerprint: StepTime(setup_s=5, own_s=own_s) for one, own_s in zip(cells, (10, 30, 15), strict=True)}
    schedule = simulate([base, *cells], times, [base.fingerprint], 1)
    assert schedule.timeline is not None
    run = as_json(schedule.timeline)
    (lane,) = run["lanes"]
    assert [(of["slug"], of["began"], of["ended"]) for of in lane["steps"]] == [("b", 5, 25), ("c", 5, 60), ("d", 25, 55)]
    assert scale_played.shares(lane["steps"]) == {("task_model", "b"): 10, ("task_model", "c"): 30, ("task_model", "d"): 15}
    again = scale_played.played([base, *cells], run, 1)
    assert again.timeline == schedule.timeline and scale_played.described(again, run)["apart"] == 0


def test_the_knee_is_where_more_gpus_give_next_to_nothing() -> None:
    schedules = [played(num_gpus)[0] for num_gpus in (1, 2, 3, 4, 5)]
    # One GPU: 5 starts and 120 s. Two: a, b and e, beside c and d. Three: a, b; c, e; d. Four: c, d and e beside a and b.
    assert [schedule.seconds for schedule in schedules] == [145, 75, 70, 40, 40]
    assert [schedule.critical_s for schedule in schedules] == [40] * 5
    assert knee(schedules).num_gpus == 4 and knee(schedules[:3]).num_gpus == 2


def test_the_wall_time_is_made_of_work_starts_and_waits() -> None:
    schedule, alone = played(4)
    assert parts(schedule, alone) == {"work_s": 30, "beside_s": 0, "start_s": 10, "room_s": 0}
    assert cause(schedule, alone) == "starting_set/b, 0.01 h"
    schedule, alone = played(1)
    of = parts(schedule, alone)
    assert sum(of.values()) == schedule.seconds == 145 and of["room_s"] == 145 - of["work_s"] - of["start_s"] > 70
    assert cause(schedule, alone).startswith("too few GPUs")
    row = described(schedule, alone)
    assert row["parts"] == of and row["num_lanes"] == 5 and line(row).startswith("| 1 | 0.04 | 0% | 17.2% | 5 | 0.035 | 0.05 |")
    # A, b, c, d and e end after 15, 40, 75, 110 and 145 s.
    assert [most_ends(schedule, within_s) for within_s in (10, 30, 60, 1_000)] == [1, 2, 3, 5]
    # What takes thrice its time since others are beside it is no work of its own.
    beside = parts(schedule, {name: seconds / 3 for name, seconds in alone.items()})
    assert beside["beside_s"] == pytest.approx(2 * beside["work_s"])


def test_the_paper_is_bound_by_gpus_and_then_by_its_longest_chain() -> None:
    costs = plan_of("paper", ["seeds=0"], "h200", [1, 256])
    alone = {cost.step.name: cost.seconds - cost.setup_s for cost in costs.estimate.steps}
    one, most = costs.schedules
    assert cause(one, alone).startswith("too few GPUs")
    # The first evaluation's workers are not up before it is ready.
    assert most.critical_s < most.seconds < most.critical_s + 120
    assert parts(most, alone)["room_s"] == 0 and described(most, alone)["chain"][1:3] == [
        "generator/generator",
        "synthetic_pool/pool",
    ]


def test_requests_are_told_apart_as_they_are_paid_for() -> None:
    folder = "/scale/store/task_model/slug-012345678901"
    assert kind_of("GET", f"{folder}/record.json", "") == "GET record.json"
    assert kind_of("GET", "/scale", "list-type=2&prefix=store%2Flive") == "LIST other"
    assert kind_of("PUT", "/scale/store/synthetic_pool/pool-0/shards/neutral-00001.json", "") == "PUT shards"
    assert kind_of("HEAD", f"{folder}/head.safetensors", "") == "HEAD other"


@pytest.mark.parametrize("label", NLI.labels)
def test_the_stand_in_writes_texts_that_parse_and_differ(label: str) -> None:
    texts = [text_of(label, seed) for seed in (1, 2**40)]
    assert all(isinstance(parse_generated(text), Parsed) for text in texts) and texts[0] != texts[1]


def test_a_stand_in_takes_a_part_of_a_step_s_time_and_more_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    reported: list[int] = []
    monkeypatch.setattr("benchmarks.scale_lanes.time.sleep", slept.append)
    monkeypatch.setenv(FASTER, "10")
    config = TaskModelConfig(FinetuneConfig(), 0)
    job = Job(config, {}, f"{tmp_path}/task_model/slug", Resources(), report=lambda metrics, step: reported.append(step))
    lane, takes = StandInLane(job), TAKES["task_model"]
    metrics, _ = lane.run(job)
    assert slept[0] == pytest.approx(takes.start_s / 10, abs=0.5) and reported == list(range(1, 11))
    assert slept[1:] == pytest.approx([(takes.once_s + takes.own_s) / 100] * 10)
    assert (tmp_path / "task_model/slug/metrics.jsonl").read_text().count("fraction_done") == 10 and metrics["num_examples"]
    # Beside three others.
    lane._num_under_way = 3
    lane.run(job)
    assert slept[12:] == pytest.approx([(takes.once_s + 4 * takes.own_s) / 100] * 10)


def test_what_evaluates_does_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FASTER, "1000")
    job = Job(EvaluationConfig(sets=("hans",)), {}, f"{tmp_path}/evaluation/slug", Resources())
    lane = StandInLane(job)
    with ThreadPoolExecutor() as pool:
        (metrics, one), (_, other) = pool.map(lane.run, [job, job])
    assert max(one.began, other.began) >= min(one.ended, other.ended)
    assert metrics["hans/accuracy"] == 0.5 and len(metrics) == 13


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["schedule", "--studies", "1 seed", "--gpus", "1", "4"], {"1 GPUs", "4 GPUs"}),
        (["driver", "--lanes", "2", "9", "--seeds", "1", "--faster", "100000"], {"ours_2", "ours_9"}),
        (["driver", "--lanes", "2", "--seeds", "1", "--faster", "100000", "--processes", "own"], {"ours_2"}),
        (["driver", "--lanes", "2", "--seeds", "1", "--seconds", "1"], {"ours_2"}),
        (["step", "--steps", "4"], {"ours_4"}),
        (["pool", "--engines", "1", "--shards", "6", "--stores", "local", "s3"], {"ours_1"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_each_part_has_a_result(words: list[str], names: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", *words, "--output", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    result = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert {name for figure in result["figures"] for name in figure["variants"]} == names
