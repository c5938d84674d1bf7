"""A budget in flight: what a run counts, when it lets nothing more start, and the real command over its budget."""

import dataclasses
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.prompting import Endpoint, Prompting
from pipelines.resources import Resources
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.spending import ON_DEMAND, SPOT, BudgetReached, Held, RunSpending, dollars, read_spending, write_run
from sweep.graph.step import Step
from sweep.plan.costs import StepCost, endpoint_costs
from sweep.plan.throughputs import TABLE_FILE, read_table
from sweep.run.budget import (
    LOOK_EVERY_S,
    WRITE_EVERY_S,
    Meter,
    Prices,
    gpus_of_nodes,
    is_asked,
    look_at,
    to_come,
)
from sweep.run.progress import Progress
from sweep.run.session import RayOptions
from sweep.run.trial import Outcome
from sweep.run.tune import Run
from tests.sweep.run.stand_in_hosts import StandInHosts, orders_of
from tests.sweep.run.stand_in_hosts import end as end_lane

SCRIPT = Path(__file__).with_name("fake_command.py")
ROOT = Path(__file__).parents[3]


def step(number: int, num_gpus: float = 1) -> Step:
    config = TrainingSetConfig("starting", size=3, seed=number)
    return Step("training_set", f"s{number}", config, resources=Resources(gpus_per_worker=num_gpus, cpus_per_worker=0.1))


def cost(of: Step, seconds: float) -> StepCost:
    return StepCost(of, None, None, seconds, 0)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def prices(price: float | None = 3_600, spot_price: float | None = None) -> Prices:
    """By default a dollar a second."""
    table = read_table()
    return Prices(table, dataclasses.replace(table.gpu("l4"), price=price, spot_price=spot_price))


def meter(store: Store, clock: Clock, *, budget: float | None = None, costs: Any = (), **given: Any) -> Meter:
    return Meter(store, "study", given.pop("prices", prices()), costs, budget, clock=clock, **given)


def look(num_gpus: float = 1) -> Any:
    return lambda: {("l4", ON_DEMAND): num_gpus}


# --- what is held ---


def node(num_gpus: float, kind: str = "L4", market: str = "", alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": 8.0, **({"GPU": num_gpus, f"accelerator_type:{kind}": 1.0} if num_gpus else {})}
    return {"Alive": alive, "Resources": resources, "Labels": {"market": market} if market else {}}


def test_a_clusters_gpus_are_counted_by_kind_and_market() -> None:
    nodes = [
        node(0),
        node(4, "L40S", "spot"),
        node(4, "L40S", "spot"),
        node(4, "L40S", "on-demand"),
        node(1, "H100"),
        node(2, "T4"),
    ]
    assert gpus_of_nodes(nodes, prices().name_of) == {
        ("l40s", SPOT): 8,
        ("l40s", ON_DEMAND): 4,
        ("h100", ON_DEMAND): 1,
        # No row: as what the run was estimated for.
        ("l4", ON_DEMAND): 2,
    }


def test_a_node_that_is_gone_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [node(1, "H100"), node(8, "H100", alive=False)])
    assert look_at(RayOptions(address="auto"), Capacity(8, 1), prices())() == {("h100", ON_DEMAND): 1}


def test_prices_are_by_market_and_a_missing_one_is_the_dearer() -> None:
    known = prices(price=2, spot_price=0.5)
    assert (known.of("l4", ON_DEMAND), known.of("l4", SPOT)) == (2, 0.5)
    assert prices(price=2).of("l4", SPOT) == 2
    assert known.of("h200", SPOT) == 3.32, "the table's"
    assert known.of("rtx4090", ON_DEMAND) == 2, "no price of its own"
    unknown = Prices(read_table(), None)
    assert unknown.name_of("T4") == "T4" and unknown.of("T4", SPOT) is None
    assert unknown.name_of("H200") == "h200" and unknown.of("h200", ON_DEMAND) == 7.91


def test_on_one_machine_the_gpus_that_the_run_may_use_are_held() -> None:
    assert look_at(RayOptions(), Capacity(8, 4), prices())() == {("l4", ON_DEMAND): 4}
    assert look_at(RayOptions(), Capacity(8, 0), prices())() == {}


# --- the account ---


def test_gpus_cost_while_they_are_held_and_nodes_come_and_go(tmp_path: Path) -> None:
    clock, store, there = Clock(), Store(tmp_path), {("l4", ON_DEMAND): 2.0}
    counter = meter(store, clock, prices=prices(price=3_600, spot_price=1_800))
    counter.begin(lambda: dict(there), keeps_all=False)
    clock.now += LOOK_EVERY_S
    counter.count()  # 10 s of 2
    there[("l4", SPOT)] = 4.0
    clock.now += LOOK_EVERY_S
    counter.count()  # again, and the spot node is seen
    del there[("l4", ON_DEMAND)]
    clock.now += LOOK_EVERY_S
    counter.count()
    clock.now += 5
    counter.end()
    found = read_spending(store, "study")
    assert found.by_market == {ON_DEMAND: 3 * 20, SPOT: 4 * 15 / 2}
    assert found.gpu_hours == pytest.approx((60 + 60) / 3600)
    clock.now += 100
    counter.end()
    assert read_spending(store, "study") == found, "it ended before"


def test_a_killed_run_forgets_a_minute_at_most_and_the_next_one_goes_on_from_there(tmp_path: Path) -> None:
    clock, store = Clock(), Store(tmp_path)
    told: list[Any] = []
    first = meter(store, clock, budget=500, tell=told.append)
    first.begin(look(), keeps_all=True)
    assert read_spending(store, "study").budget == 500, "there from the first second"
    for _ in range(150):
        clock.now += 1
        first.watch([], Progress([], set()))
    # And now it is killed.
    kept = read_spending(store, "study").dollars
    assert 150 - WRITE_EVERY_S <= kept <= 150 and kept == 120
    assert [metrics["spent/dollars"] for metrics in told] == [60, 120] and told[-1]["spent/budget"] == 500
    second = meter(store, clock, budget=130)
    second.begin(look(), keeps_all=True)
    clock.now += 5
    second.count()
    assert second.spending.dollars == 125 and second.line() == "spent $125.00 of $130.00"


def test_runs_at_the_same_time_count_each_other(tmp_path: Path) -> None:
    clock, store = Clock(), Store(tmp_path)
    ours, other = meter(store, clock), meter(store, clock)
    for one in (ours, other):
        one.begin(look(), keeps_all=True)
    for _ in range(2):
        clock.now += WRITE_EVERY_S
        for one in (ours, other):
            one.count()
    other.end()
    ours.end()
    assert ours.spending.dollars == read_spending(store, "study").dollars == 4 * WRITE_EVERY_S


def test_a_damaged_account_stops_a_run_with_a_budget_and_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes(f"{store.uri}/spend/study/a.json", b"{")
    meter(store, Clock()).begin(look(), keeps_all=True)
    with pytest.raises(UserError, match=r"a\.json is not a readable account"):
        meter(store, Clock(), budget=1).begin(look(), keeps_all=True)


def test_a_run_that_uses_no_gpu_has_no_account(tmp_path: Path) -> None:
    counter = meter(Store(tmp_path), Clock())
    assert counter.watch([[step(1)]], Progress([step(1)], set())) == ""
    counter.write()
    counter.end()
    assert list(tmp_path.iterdir()) == []


def test_hours_that_had_no_price_are_reckoned_at_that_of_now(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_run(store, "study", RunSpending("a", "2026", "2026", None, (Held("l4", ON_DEMAND, 10, None),)))
    counter = meter(store, Clock(), budget=100)
    counter.begin(look(), keeps_all=True)
    assert counter.line() == "spent $10.00 of $100.00"
    unpriced = meter(store, Clock(), prices=prices(price=None))
    unpriced.begin(look(), keeps_all=True)
    assert unpriced.line() == "spent $0.00 (10 GPU-seconds), of which 10 GPU-seconds have no price"


def test_a_store_that_is_away_does_not_end_the_run_and_misses_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    clock, store = Clock(), Store(tmp_path)
    counter = meter(store, clock)
    counter.begin(look(), keeps_all=True)

    def away(path: str, content: bytes) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", away)
        clock.now += WRITE_EVERY_S
        counter.count()
    clock.now += WRITE_EVERY_S
    counter.count()
    assert read_spending(store, "study").dollars == 2 * WRITE_EVERY_S
    with monkeypatch.context() as patch, pytest.raises(OSError, match="away"):
        patch.setattr(store, "write_bytes", away)
        meter(store, clock).begin(look(), keeps_all=True)


# --- the rule ---


def test_what_is_committed_is_what_runs_is_still_going_to_take() -> None:
    one, two, three = step(1), step(2, num_gpus=2), step(3)
    costs = {member.name: cost(member, seconds) for member, seconds in ((one, 100), (two, 50), (three, 30))}
    now = time.monotonic()
    progress = Progress([one, two, three], set(), running={one.fingerprint: now - 40, two.fingerprint: now - 10})
    running = [[one], [two]]
    assert to_come(running, progress, costs, None) == pytest.approx(60 + 2 * 40, abs=0.5)
    # A machine of eight is held until the longest has ended.
    assert to_come(running, progress, costs, 8) == pytest.approx(8 * 60, abs=0.5)
    assert to_come([*running, [three]], progress, costs, None) == pytest.approx(60 + 80 + 30, abs=0.5)
    # Half done after 40 s, whatever was estimated; and one that is over its estimate is about to end.
    progress.throughput = {one.fingerprint: {"fraction_done": 0.5}}
    progress.running[two.fingerprint] = now - 99
    assert to_come(running, progress, costs, None) == pytest.approx(40, abs=0.5)
    assert to_come([[step(9)]], progress, costs, 1) == 0, "no estimate"


def run_of(steps: list[Step], counter: Meter, num_gpus: float = 1) -> Run:
    run = Run(steps, set(), counter.store, Capacity(8, num_gpus), hosts=StandInHosts())
    run.why_not = lambda steps, beside: counter.why_not(steps, beside, run.progress)
    return run


def end(run: Run, trial: str) -> None:
    (order,) = orders_of(run, trial)
    done = order.step
    record = Record(done.stage, done.slug, done.fingerprint, done.payload, durations={"total_s": 1.0})
    end_lane(run, trial, Outcome(record))


@pytest.mark.parametrize("is_quick", [True, False])
def test_at_the_limit_nothing_new_starts_and_what_runs_is_finished(is_quick: bool, tmp_path: Path) -> None:
    steps, clock = [step(number) for number in range(3)], Clock()
    counter = meter(Store(tmp_path), clock, budget=100, costs=[cost(one, 40) for one in steps])
    counter.begin(look(2), keeps_all=False)
    run = run_of(steps, counter, num_gpus=2)
    assert isinstance(run.suggest("a"), dict), "40 of 100"
    assert isinstance(run.suggest("b"), dict), "and 40 more"
    clock.now += 15
    end(run, "a")
    # $30 spent, 40 of what runs (by the real clock, which stands still), 40 of the third.
    assert run.suggest("c") is None and not run.hold
    assert run.queue.running.keys() == {steps[1].fingerprint} and steps[2].fingerprint in run.queue.waiting
    clock.now += 5 if is_quick else 34
    end(run, "b")
    if is_quick:
        assert isinstance(run.suggest("c"), dict), "$40 spent: there is room again"
        end(run, "c")
        assert run.suggest("d") == "FINISHED" and not run.hold and len(run.progress.built) == 3
        return
    assert run.suggest("c") == "FINISHED"
    assert run.hold == "with training_set/s2 it would be $138.00, over the budget" and counter.is_reached
    assert len(run.progress.built) == 2 and not run.progress.failed


@pytest.mark.parametrize(("budget", "num_started"), [(None, 3), (130, 3), (119, 2), (79, 1)])
def test_as_many_start_as_the_budget_has_room_for(budget: float | None, num_started: int, tmp_path: Path) -> None:
    steps = [step(number) for number in range(3)]
    counter = meter(Store(tmp_path), Clock(), budget=budget, costs=[cost(one, 40) for one in steps])
    counter.begin(look(3), keeps_all=False)
    run = run_of(steps, counter, num_gpus=3)
    assert [isinstance(run.suggest(trial), dict) for trial in "abc"].count(True) == num_started
    assert counter.is_reached is (num_started < 3)


def test_a_store_that_does_not_answer_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, answers = Clock(), threading.Event()
    counter = meter(Store(tmp_path), clock)
    counter.begin(look(), keeps_all=True)
    with monkeypatch.context() as silent:
        silent.setattr("sweep.run.budget.SAVE_S", 0.1)
        silent.setattr("sweep.run.budget.write_run", lambda *arguments: answers.wait(60))
        clock.now += 100
        began = time.monotonic()
        counter.count()
        assert time.monotonic() - began < 10
    answers.set()
    clock.now += 100
    counter.count()
    assert read_spending(Store(tmp_path), "study").gpu_hours == pytest.approx(200 / 3600)


def test_steps_are_stopped_when_the_budget_itself_is_spent(tmp_path: Path) -> None:
    one, clock = step(1), Clock()
    counter = meter(Store(tmp_path), clock, budget=100, costs=[cost(one, 10)])
    counter.begin(look(), keeps_all=True)
    progress = Progress([one], set(), running={one.fingerprint: time.monotonic()})
    clock.now += 100
    # The step's own clock is the real one.
    assert re.fullmatch(r"spent \$100\.00 of \$100\.00, \$(10|9)\.\d\d committed", counter.watch([[one]], progress))
    clock.now += 1
    assert counter.watch([], progress) == "spent $101.00 of $100.00", "nothing runs that could be stopped"
    with pytest.raises(BudgetReached):
        counter.watch([], progress, is_waiting=True)
    with pytest.raises(BudgetReached):
        counter.watch([[one]], progress)
    assert counter.is_reached


# --- endpoints ---


def pool(name: str, price: float = 1_000.0) -> Step:
    """A pool of 3,000 texts, a dollar for a thousand tokens that are written."""
    endpoint = Endpoint("a-model", "http://127.0.0.1:1/v1", price_per_million_output_tokens=price)
    config = GenerationConfig(num_per_label=1_000, seed=len(name), prompting=Prompting(shots=0), endpoint=endpoint)
    return Step("synthetic_pool", name, config)


def test_what_an_endpoint_is_paid_counts_as_it_is_reported_and_at_the_end(tmp_path: Path) -> None:
    asked, free = pool("asked"), pool("free", price=0.0)
    assert is_asked(asked) and not is_asked(free) and not is_asked(step(1))
    (written,) = [found.dollars for found in [endpoint_costs([asked], read_table())] if found]
    progress = Progress([asked, free], set(), running={asked.fingerprint: time.monotonic()})
    counter = meter(Store(tmp_path), Clock(), budget=written + 10)
    counter.begin(dict, keeps_all=True)
    assert counter.watch([[asked]], progress).endswith(f"{dollars(written)} committed")
    progress.throughput = {asked.fingerprint: {"dollars": 5.0}, free.fingerprint: {"dollars": 0.0}}
    assert counter.watch([[asked]], progress) == (f"spent $5.00 of {dollars(written + 10)}, {dollars(written - 5)} committed")
    # The other run of the study has gone on with the same pool: what is paid for it stands once.
    write_run(counter.store, "study", RunSpending("earlier", "2026", "2026", None, asked={asked.fingerprint: 4.0}))
    counter.write()
    assert read_spending(counter.store, "study").dollars == 5 == counter.metrics()["spent/endpoint"]
    record = Record(asked.stage, asked.slug, asked.fingerprint, asked.payload, metrics={"dollars": 6.25})
    progress.running, progress.built = {}, {asked.fingerprint: record}
    counter.see(progress)
    counter.end()
    assert read_spending(counter.store, "study").dollars == 6.25


def test_a_pool_for_which_the_budget_has_no_room_is_not_asked_for_and_one_over_it_is_stopped(tmp_path: Path) -> None:
    first, second = pool("first"), pool("second")
    (written,) = [found.dollars for found in [endpoint_costs([first], read_table())] if found]
    counter = meter(Store(tmp_path), Clock(), budget=1.5 * written)
    counter.begin(dict, keeps_all=True)
    progress = Progress([first, second], set(), running={first.fingerprint: time.monotonic()})
    assert counter.why_not([first], [], progress) == ""
    assert counter.why_not([second], [[first]], progress) == (
        f"with synthetic_pool/second it would be {dollars(2 * written)}, over the budget"
    )
    progress.throughput = {first.fingerprint: {"dollars": 1.6 * written}}
    with pytest.raises(BudgetReached):
        counter.watch([[first]], progress)


# --- the command ---


@pytest.fixture
def command(tmp_path: Path) -> Any:
    """Runs the command line over stand-in stages on a machine with one stand-in GPU, at a dollar a second."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: stand-in'\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    (tmp_path / "study.py").write_text(
        "import dataclasses\nfrom sweep import Experiment, Resources\nfrom sweep.experiments import demo\n"
        "def study() -> Experiment:\n"
        "    stages = ('generator', 'synthetic_pool', 'starting_point', 'task_model', 'evaluation')\n"
        "    gpus = {stage: Resources(gpus_per_worker=1) for stage in stages}\n"
        "    small = demo(seeds=(0,), starting_sizes=(0,), training_sizes=(300,))\n"
        "    return dataclasses.replace(small, name='study', resources=gpus)\n"
    )
    # By the estimate it takes no time, so that only what is really spent can reach the budget.
    rows = ['[[gpu]]\nname = "mine"\nbf16_tflops = 1e9\nmemory_tb_per_s = 1e9\nprice = 3600\nsource = "made up"\n']
    constants = tomllib.loads(TABLE_FILE.read_text())["constant"]
    for name in {constant["name"] for constant in constants if constant["unit"] == "s"}:
        rows.append(f'[[constant]]\nname = "{name}"\nvalue = 0\nunit = "s"\nsource = "made up"\n')
    (tmp_path / "own.toml").write_text("\n".join(rows))

    def run(*arguments: str, seconds: float) -> "subprocess.CompletedProcess[str]":
        options = ("--store", str(tmp_path / "s"), "--gpu", "mine", "--throughputs", str(tmp_path / "own.toml"), "--no-report")
        return subprocess.run(
            [sys.executable, str(SCRIPT), "run", str(tmp_path / "study.py"), *options, *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "SECONDS": str(seconds),
            },
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.mark.slow
def test_a_run_ends_with_75_at_its_budget_and_the_same_command_with_a_larger_one_goes_on(command: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    # Ten steps of five seconds on the one GPU never fit; on a busy machine the start alone may take as long.
    done = command("--max-cpus", "2", "--budget", "30", seconds=5)
    assert done.returncode == 75, done.stderr
    line = done.stderr.splitlines()[-1]
    found = re.fullmatch(
        r"study: spent \$(\d+\.\d\d) of \$30\.00, .*: (\d+) of 15 artifacts are built; the same command with a larger "
        r"--budget goes on",
        line,
    )
    assert found, done.stderr
    assert float(found[1]) > 30 and int(found[2]) < 15
    spent = read_spending(store, "study")
    assert spent.dollars >= 30 and spent.by_market.keys() == {ON_DEMAND}
    with sqlite3.connect(tmp_path / "s" / "mlflow.db") as database:
        statuses = dict(database.execute("select name, status from runs"))
        assert statuses.pop("study") == "KILLED" and "RUNNING" not in statuses.values()
        (logged,) = database.execute("select value from latest_metrics where key = 'spent/dollars'").fetchone()
    assert 30 < logged <= spent.dollars

    # It does not begin at 0 again.
    again = command("--max-cpus", "2", "--budget", "30", seconds=5)
    assert again.returncode == 75
    assert "spent on it already" in again.stderr and "over the budget of $30.00: raise --budget" in again.stderr
    assert read_spending(store, "study") == spent

    done = command("--max-cpus", "2", "--budget", "3000", seconds=0)
    assert done.returncode == 0, done.stderr
    assert f"15 artifacts, {found[2]} were there" in done.stdout
    status = subprocess.run(
        [sys.executable, "-m", "sweep.cli", "status", "study", "--store", store.uri, "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = json.loads(status.stdout)["study"]
    assert (shown["built"], shown["artifacts"], shown["spent"]["budget"], shown["spent"]["runs"]) == (15, 15, 3_000, 2)
    assert shown["spent"]["dollars"] == shown["spent"]["by_market"][ON_DEMAND] > spent.dollars


@pytest.mark.slow
def test_on_a_cluster_its_gpu_nodes_are_paid_for_by_their_market(command: Any, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_gpus": 0})
    try:
        cluster.add_node(**node, num_gpus=2, labels={"market": "spot"})
        cluster.add_node(**node, num_gpus=1, labels={"market": "on-demand"})
        cluster.wait_for_nodes()
        # Two dollars a second: two spot GPUs at half a dollar, one at a dollar.
        options = ("--address", cluster.address, "--spot-price", "1800")
        done = command(*options, "--budget", "60", seconds=100)
        assert done.returncode == 75, done.stderr
        spent = read_spending(Store(tmp_path / "s"), "study")
        assert spent.dollars > 60 and spent.by_market[SPOT] == pytest.approx(spent.by_market[ON_DEMAND])
        done = command(*options, "--budget", "6000", seconds=0)
        assert done.returncode == 0, done.stderr
        assert read_spending(Store(tmp_path / "s"), "study").dollars > spent.dollars
    finally:
        cluster.shutdown()
