"""Lanes as the driver has them: what joins, when they end, and what a lost one costs."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY, Mock

import psutil
import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig
from pipelines.generate.config import GenerationConfig
from pipelines.resources import Resources
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.run.failures import Kind
from sweep.run.lanes import Hosts
from sweep.run.progress import Progress
from sweep.run.session import RayOptions, ray_session
from sweep.run.trial import Outcome, job_ahead
from sweep.run.tune import LINGER_S, MAX_LOSSES, Run, run_steps
from sweep.study.grid import build_grid
from tests.sweep.run.stand_in_hosts import StandInHosts, end, orders_of
from tests.sweep.run.tiny_study import tiny


def built(step: Step) -> Outcome:
    return Outcome(Record(step.stage, step.slug, step.fingerprint, step.payload, durations={"total_s": 1.0}))


def drawn(slug: str, *inputs: Step) -> Step:
    """A step on a CPU; of 3 examples times its place in the alphabet."""
    config = TrainingSetConfig("starting", size=3 * (ord(slug[0]) - 96), seed=0)
    return Step("starting_set", slug, config, {one.slug: one for one in inputs})


BASE = drawn("base")
SET = drawn("set")
ONE, TWO, LATE = (
    Step(
        "task_model",
        slug,
        TaskModelConfig(FinetuneConfig(method="full"), seed),
        {"base_model": BASE, **inputs},
        resources=Resources(gpus_per_worker=1, max_group=9),
    )
    for seed, (slug, inputs) in enumerate({"one": {}, "two": {}, "late": {"training_set": SET}}.items())
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two cells in a lane on the only GPU, a set beside them, and a cell that waits for it."""
    run = Run([BASE, SET, ONE, TWO, LATE], {BASE.fingerprint}, Store(tmp_path), Capacity(9, 1), hosts=StandInHosts())
    assert run.suggest("set") and run.suggest("cells") and run.suggest("none") is None
    return run


def under_way(run: Run) -> list[str]:
    return [order.step.slug for order in orders_of(run, "cells")]


def hosts(run: Run) -> StandInHosts:
    assert isinstance(run.hosts, StandInHosts)
    return run.hosts


def end_one(run: Run, step: Step, outcome: Outcome | None = None) -> None:
    (place,) = [place for place, sent in run.lanes["cells"].sent.items() if sent is step]
    hosts(run).outcomes[place] = outcome or built(step)
    run.attend()


def test_a_step_is_built_when_it_ends_and_what_becomes_ready_joins_the_lane(run: Run) -> None:
    assert under_way(run) == ["one", "two"]
    end_one(run, ONE)
    assert ONE.fingerprint in run.progress.built and TWO.fingerprint in run.progress.running
    end(run, "set", built(SET))
    assert under_way(run) == ["two", "late"]
    assert {order.timeline["lane"] for order in orders_of(run, "cells")} == {run.lanes["cells"].name}
    assert orders_of(run, "cells")[1].timeline["waited_for"] == "starting_set/set"
    end(run, "cells", built(TWO), built(LATE))
    assert not run.lanes and run.suggest("none") == "FINISHED" and len(run.progress.built) == 4


def test_a_look_asks_once_for_all_lanes_what_has_ended_and_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cell(number: int, **inputs: Step) -> Step:
        config = TaskModelConfig(FinetuneConfig(method="full"), number)
        return replace(ONE, slug=f"cell{number}", config=config, inputs={"base_model": BASE, **inputs})

    def num_asked(num_lanes: int) -> tuple[int, int]:
        """In a look at so many lanes whose cells have all ended; others wait for a set that is being drawn."""
        steps = [BASE, SET, *map(cell, range(num_lanes)), *(cell(number, training_set=SET) for number in range(100, 120))]
        run = Run(steps, {BASE.fingerprint}, Store(tmp_path), Capacity(99, num_lanes), hosts=StandInHosts())
        assert all(run.suggest(str(number)) for number in range(num_lanes + 1))
        hosts(run).outcomes |= {
            place: built(order.step) for place, order in enumerate(hosts(run).orders) if order.step is not SET
        }
        arrived, is_near = Mock(wraps=run.hosts.arrived), Mock(return_value=False)
        monkeypatch.setattr(run.hosts, "arrived", arrived)
        monkeypatch.setattr(run, "_is_near", is_near)
        run.attend()
        assert len(run.progress.built) == num_lanes == sum(not lane.lane.steps for lane in run.lanes.values())
        return arrived.call_count, is_near.call_count

    assert num_asked(8) == num_asked(2) == (1, 1)


def test_an_idle_lane_waits_for_what_is_about_to_be_ready_and_no_longer_than_a_start_takes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("sweep.run.tune.time.monotonic", lambda: now)
    end(run, "cells", built(ONE), built(TWO))
    lane = run.lanes["cells"]
    assert not lane.is_closed and run.groups == [[SET]]
    now += LINGER_S - 1
    run.attend()
    assert not lane.is_closed
    now += 2
    run.attend()
    assert lane.is_closed
    end(run, "set", built(SET))
    assert under_way(run) == [], "it has ended"
    run.complete("cells", {"lost": None}, error=False)
    assert run.suggest("another")


@pytest.mark.parametrize(
    ("outcome", "joins"),
    [
        (Outcome(None, "TypeError: unexpected"), True),
        (Outcome(None, "its process died", kind=Kind.DEATH), False),
        (Outcome(None, "a notice stopped it", was_stopped=True), False),
        (Outcome(None, "its process died", was_neighbour=True, kind=Kind.DEATH), False),
    ],
)
def test_a_lane_that_has_lost_its_workers_takes_on_no_more(run: Run, outcome: Outcome, joins: bool) -> None:
    end(run, "set", built(SET))
    end_one(run, ONE, outcome)
    # The one that failed comes before the one that has become ready, and both are not to be under way at once.
    assert under_way(run) == (["two", "one"] if joins else ["two"])
    end_one(run, TWO)
    assert run.lanes["cells"].is_closed is not joins and TWO.fingerprint in run.progress.built


def test_steps_that_a_lost_host_had_under_way_are_neighbours_and_what_it_built_stays(run: Run) -> None:
    end_one(run, ONE)
    end(run, "set", built(SET))
    run.complete("cells", {"lost": Outcome(None, "its process died", kind=Kind.DEATH)}, error=False)
    assert run.progress.built.keys() == {ONE.fingerprint, SET.fingerprint} and not run.progress.failed
    # The lane had got on since it was given the first of the two.
    assert [outcome.was_neighbour for outcome in run.progress.retried.values()] == [True, True]
    assert run.progress.losses == {TWO.fingerprint: 1}
    assert run.suggest("alone") and len(orders_of(run, "alone")) == 1


def test_a_lane_whose_trial_s_process_ends_has_another_and_goes_on(run: Run) -> None:
    run.complete("cells", None, error=True)
    assert not run.progress.retried and ONE.fingerprint in run.progress.running
    end(run, "set", built(SET))
    assert run.suggest("again") == {"lane": ANY} and run.suggest("none") is None
    assert [order.step.slug for order in orders_of(run, "again")] == ["one", "two"] and hosts(run).sound == [True]
    # Its host has ended as well.
    run.complete("again", {"lost": Outcome(None, "its process died", kind=Kind.DEATH)}, error=False)
    assert [outcome.error for outcome in run.progress.retried.values()] == ["its process died"] * 2


def test_a_lane_whose_trial_s_processes_end_one_after_another_is_given_up(run: Run) -> None:
    trial = "cells"
    for number in range(MAX_LOSSES):
        assert not run.progress.retried
        run.complete(trial, None, error=True)
        trial = f"cells{number}"
        run.suggest(trial)
    assert [outcome.error for outcome in run.progress.retried.values()] == ["the process that drove it was lost"] * 2


def test_an_outcome_that_comes_after_its_trial_s_end_is_waited_for(run: Run) -> None:
    (place,) = run.lanes["set"].sent
    hosts(run).late = {place: built(SET)}
    run.complete("set", {"lost": False}, error=False)
    assert SET.fingerprint in run.progress.built and not run.progress.retried


def test_a_step_that_needs_much_imported_has_a_host_that_began_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Mock] = []

    def new(hosts: Hosts) -> Mock:
        made.append(Mock())
        return made[-1]

    monkeypatch.setattr(Hosts, "_new", new)
    base = replace(BASE, stage="base_model")
    hosts = Hosts()
    hosts.prepare([SET, base])
    (prepared,) = made
    prepared.prepare.remote.assert_called_once_with(REGISTRY["base_model"])
    assert hosts.take(SET) is made[1] and hosts.take(base) is prepared
    hosts.give_back(prepared, is_sound=True)
    assert hosts.take(base) is prepared and hosts.take(base) is made[2], "once"


def test_nothing_joins_what_the_budget_has_no_room_for(run: Run) -> None:
    asked: list[tuple[list[Step], Any]] = []

    def why_not(steps: Any, beside: Any) -> str:
        asked.append((list(steps), list(beside)))
        return "over the budget"

    run.why_not = why_not
    end(run, "set", built(SET))
    end_one(run, ONE)
    assert under_way(run) == ["two"] and asked[0] == ([TWO, LATE], [])
    end_one(run, TWO)
    assert run.lanes["cells"].is_closed
    run.complete("cells", {"lost": None}, error=False)
    assert run.suggest("last") == "FINISHED" and run.hold == "over the budget"


def early(tmp_path: Path) -> tuple[Run, Step, Step]:
    """A run whose generator is under way on half of a GPU, and whose pool's lane is opened ahead on the other half."""
    half = Resources(gpus_per_worker=0.5)
    generator = Step("generator", "g", GeneratorConfig(FinetuneConfig()), {"base_model": BASE}, {}, half)
    pool = Step("synthetic_pool", "p", GenerationConfig(), {"generator": generator}, {}, half)
    run = Run([BASE, generator, pool], {BASE.fingerprint}, Store(tmp_path), Capacity(9, 1), hosts=StandInHosts())
    assert run.suggest("generator") and run.suggest("pool")
    assert run.lanes["pool"].lane.awaited is pool and not run.lanes["pool"].sent
    run.attend()
    return run, generator, pool


def test_engines_start_while_their_generator_is_trained_and_write_when_it_is_built(tmp_path: Path) -> None:
    run, generator, pool = early(tmp_path)
    (order,) = hosts(run).opened.values()
    assert order.step is pool and job_ahead(order).starts_with == {"base_model": run.store.folder(BASE.id)}
    assert run.groups == [[generator], [pool]], "both cost"
    assert list(run.progress.running) == [generator.fingerprint] and not list(tmp_path.iterdir())
    end(run, "generator", built(generator))
    (given,) = orders_of(run, "pool")
    assert given.step is pool and given.timeline["lane"] == order.timeline["lane"]
    end(run, "pool", built(pool))
    assert not run.lanes and not hosts(run).given_up and run.suggest("none") == "FINISHED"


@pytest.mark.parametrize("why", ["it fails", "it takes long", "a notice"])
def test_engines_that_wait_for_nothing_are_ended_and_that_is_no_failure_of_theirs(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("sweep.run.tune.time.monotonic", lambda: now)
    run, generator, pool = early(tmp_path)
    if why == "it fails":
        end(run, "generator", Outcome(None, "value=1 is bad; give 2", is_final=True))
    elif why == "a notice":
        run.hold = "a notice came"
    else:
        for passed, fraction in ((0, 0.01), (LINGER_S + 1, 0.02)):
            now += passed
            run.progress.throughput = {generator.fingerprint: {"fraction_done": fraction}}
            assert not run.lanes["pool"].is_closed
            run.attend()
    run.attend()
    assert hosts(run).given_up == [run.lanes["pool"].name] and run.lanes["pool"].has_failed
    run.complete("pool", {"lost": False}, error=False)
    assert pool.fingerprint not in run.progress.failed | run.progress.retried and not run.attempts
    if why == "it takes long":
        run.attend()
        assert run.suggest("none") is None
        now += 2 * LINGER_S
        run.progress.throughput = {generator.fingerprint: {"fraction_done": 0.6}}
        assert run.suggest("pool"), "it is near by now"
        end(run, "generator", built(generator))
        assert orders_of(run, "pool")[0].step is pool


def test_engines_that_are_lost_while_they_wait_cost_nothing(tmp_path: Path) -> None:
    run, generator, pool = early(tmp_path)
    run.complete("pool", {"lost": Outcome(None, "its process died", kind=Kind.DEATH)}, error=False)
    assert not run.progress.retried and not run.progress.losses and pool.fingerprint in run.queue.waiting
    assert hosts(run).sound == [False], "nobody else is given a host that has died"
    end(run, "generator", built(generator))
    assert run.suggest("pool") and orders_of(run, "pool")[0].step is pool


def test_a_lane_ahead_has_the_room_before_what_is_less_urgent_and_ready(tmp_path: Path) -> None:
    half = Resources(gpus_per_worker=0.5)
    generator = Step("generator", "g", GeneratorConfig(FinetuneConfig()), {"base_model": BASE}, {}, half)
    pool = Step("synthetic_pool", "p", GenerationConfig(), {"generator": generator}, {}, half)
    steps = [BASE, generator, pool, replace(ONE, resources=half), own := drawn("own", pool), drawn("then", own)]
    run = Run(steps, {BASE.fingerprint}, Store(tmp_path), Capacity(9, 1), hosts=StandInHosts())
    assert run.suggest("generator") and run.suggest("next")
    assert run.lanes["next"].steps == [pool]


@pytest.mark.parametrize(
    ("start_s", "quiet_s", "opens"), [(20, 0, False), (10, 0, True), (20, 6, False), (20, 9, True), (20, 25, True)]
)
def test_a_lane_that_is_up_keeps_what_it_gets_to_before_another_would_have_started(
    start_s: float, quiet_s: float, opens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [replace(ONE, slug=f"cell{seed}", config=replace(ONE.config, seed=seed)) for seed in range(5)]
    first = drawn("first")
    blocker = replace(first, resources=Resources(gpus_per_worker=1))
    run = Run([BASE, blocker, *cells], {BASE.fingerprint}, Store(tmp_path), Capacity(9, 2), hosts=StandInHosts())
    assert run.suggest("blocker") and run.suggest("cells") and run.suggest("none") is None
    assert under_way(run) == ["cell0", "cell1"]
    times = {"opened": 0.0, "given": 0.0, "began": start_s, "ended": start_s + 4.0}
    record = built(cells[0]).record
    assert record is not None
    end_one(run, cells[0], Outcome(replace(record, timeline=times)))
    end(run, "blocker", built(blocker))
    # Four cells of four seconds are left; what is under way may be overdue.
    now = time.monotonic() + quiet_s
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert (run.suggest("another") is not None) == opens
    run.attend()
    assert len(under_way(run)) == 2


def test_nothing_is_started_ahead_that_the_budget_has_no_room_for(tmp_path: Path) -> None:
    half = Resources(gpus_per_worker=0.5)
    generator = Step("generator", "g", GeneratorConfig(FinetuneConfig()), {"base_model": BASE}, {}, half)
    pool = Step("synthetic_pool", "p", GenerationConfig(), {"generator": generator}, {}, half)
    run = Run([BASE, generator, pool], {BASE.fingerprint}, Store(tmp_path), Capacity(9, 1), hosts=StandInHosts())
    run.why_not = lambda steps, beside: "over the budget" if pool in steps else ""
    assert run.suggest("generator")
    assert run.suggest("pool") is None and not run.hold, "what is spent until it is ready nobody knows yet"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_lane_whose_worker_is_killed_costs_what_was_under_way(method: str, tmp_path: Path) -> None:
    """The worker of a real lane of finetunings is killed when it has built one of its four cells."""
    experiment = tiny(kinds=("original",), seeds=tuple(range(4)))
    recipe = replace(experiment.task_model, method=method, lora_rank=2, epochs=8)
    here, shared = Resources(in_process=True), Resources(max_group=2)
    stages = {"base_model": here, "starting_point": here, "task_model": shared, "evaluation": here}
    steps = build_grid(replace(experiment, task_model=recipe, resources=stages))
    store, events, killed = Store(tmp_path), list[tuple[str, str]](), list[int]()

    def listen(event: str, step: Step, progress: Progress) -> None:
        events.append((event, step.name))
        if event == "done" and step.stage == "task_model" and not killed:
            for process in psutil.Process().children(recursive=True):
                if "ray::finetuning" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    # One lane at a time.
    with ray_session(RayOptions(max_cpus=1), steps) as capacity:
        progress = run_steps(Run(steps, set(), store, capacity, listener=listen))
    assert killed and not progress.failed and len(progress.built) == len(steps)
    done = [name for event, name in events if event == "done"]
    assert len(done) == len(set(done)), "what had ended was not built again"
    records = [progress.built[step.fingerprint] for step in steps if step.stage == "task_model"]
    lanes = Counter(record.timeline["lane"] for record in sorted(records, key=lambda record: record.timeline["ended"]))
    first, *others = lanes.values()
    # Two that are trained at once end together. Those that fell at once without having got on are tried one by one.
    assert (first, others) == (1, [3]) if method == "full" else (first in (1, 2) and len(others) in (1, 2))
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"], "nothing is left of the worker's"
