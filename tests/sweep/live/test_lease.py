"""Leases between real processes, over S3's and Google's own protocols on loopback: raced for, killed and stopped while held."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import join, read_text, replace_if_unchanged, write_text
from sweep.graph import stages
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.live import lease as leases
from sweep.live.lease import LEASE_FILE, LOCK_FILE, Lease, LeaseLostError, lease
from sweep.run.failures import Kind
from sweep.run.trial import Order, Outcome, carry_out
from sweep.run.tune import Run
from tests.sweep.conftest import record_of
from tests.sweep.run.fake_study import Config
from tests.sweep.run.stand_in_hosts import StandInHosts

SCRIPT = Path(__file__).with_name("lease_holder.py")
ROOT = Path(__file__).parents[3]
ELSEWHERE = {"holder": "a", "host": "elsewhere", "process": "boot pid:[1] 1 1", "length_s": 600.0, "renewals": 3}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, first: str = "") -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments], env=environment, stdin=pipe, stdout=pipe, text=True
        )
        processes.append(process)
        if first:
            assert process.stdout is not None and process.stdout.readline().strip() == first
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(params=["bucket", "gcs_bucket"])
def remote(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL_S", 0.05)


@pytest.mark.slow
def test_two_processes_never_build_at_once_and_nothing_twice(bucket: str, start: Start) -> None:
    racers = [start("race", bucket, "40") for _ in range(2)]
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=120)[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(int(number) for number, _, _ in lines) == list(range(40))


def test_what_a_killed_holder_had_is_free_at_once(bucket: str, start: Start) -> None:
    holder = start("hold", bucket, "600", first="held")
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with lease(bucket):
        # Its length is ten minutes: that its process is gone is seen.
        assert time.monotonic() - began < 60


def test_a_dead_holder_on_another_machine_is_waited_for_by_its_length(bucket: str) -> None:
    content = {"holder": "a", "host": "elsewhere", "process": "boot pid:[1] 1 1", "length_s": 1.0, "renewals": 3}
    write_text(join(bucket, LEASE_FILE), json.dumps(content))
    began = time.monotonic()
    with lease(bucket) as held:
        assert time.monotonic() - began > 1
        held.check()
    # Given back: the next one need not wait, even if a renewal was on its way.
    assert isinstance(held, Lease) and held._write()
    assert json.loads(read_text(join(bucket, LEASE_FILE)) or "")["free"] is True


@pytest.mark.slow
def test_a_holder_that_renews_is_waited_for(bucket: str, start: Start) -> None:
    holder = start("hold", bucket, "1", first="held")
    waiter = start("hold", bucket, "1")
    time.sleep(3)
    told, _ = holder.communicate("\n", timeout=30)
    assert told.split() == ["kept"]
    assert waiter.communicate("\n", timeout=30)[0].split() == ["held", "kept"]


@pytest.mark.slow
def test_a_holder_that_was_stopped_finds_that_it_has_lost(bucket: str, start: Start) -> None:
    holder = start("hold", bucket, "1", first="held")
    holder.send_signal(signal.SIGSTOP)
    with lease(bucket) as held:
        holder.send_signal(signal.SIGCONT)
        output, _ = holder.communicate("\n", timeout=30)
        held.check()
    assert "lost" in output.split()


def test_a_holder_is_told_that_it_has_lost(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LENGTH_S", 0.6)
    told: list[bool] = []
    with lease(remote, when_lost=lambda: told.append(True)) as held:
        uri = join(remote, LEASE_FILE)
        found = leases.read_with_version(uri)
        # It may be renewed between the two.
        while not replace_if_unchanged(uri, b'{"holder": "another"}', found[1] if found else ""):
            found = leases.read_with_version(uri)
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
        assert told
        with pytest.raises(LeaseLostError):
            held.check()
    assert read_text(uri) == '{"holder": "another"}', "what is another's is not given back"


def test_a_renewal_whose_answer_was_lost_is_the_holder_s_own(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(remote) as held:

        def written_and_not_heard_of(*of: Any) -> None:
            assert replace_if_unchanged(*of)
            raise ConnectionError("the answer was lost")

        with monkeypatch.context() as patch, pytest.raises(ConnectionError):
            patch.setattr(leases, "replace_if_unchanged", written_and_not_heard_of)
            held.check()
        held.check()
    assert json.loads(read_text(join(remote, LEASE_FILE)) or "")["free"] is True


@pytest.mark.slow
def test_a_driver_that_was_stopped_for_long_leaves_a_whole_artifact(bucket: str, start: Start, s3_client: Any) -> None:
    stopped = start("build", bucket, "stopped", first="building")
    stopped.send_signal(signal.SIGSTOP)
    other = start("build", bucket, "other", first="building")
    other_says, _ = other.communicate("\n", timeout=60)
    assert json.loads(other_says.splitlines()[-1]) == {"value": "other", "error": ""}
    stopped.send_signal(signal.SIGCONT)
    # Its stage, which nothing ends here, writes over a file of the other's; that is found, and the artifact is built again.
    stopped_says, _ = stopped.communicate("\n\n", timeout=60)
    assert json.loads(stopped_says.splitlines()[-1])["error"] == ""
    store, step = Store(bucket), Step("task_model", "cell", Config())
    record = store.read_record(step.id)
    assert record is not None
    assert store.read_bytes(record, "value.txt").decode() == record.metrics["value"]


def test_a_step_whose_process_ended_for_its_lease_says_that_another_driver_has_it(bucket: str) -> None:
    step = Step("task_model", "cell", Config())

    def said(content: dict[str, Any]) -> str:
        run = Run([step], set(), Store(bucket), Capacity(1, 0), hosts=StandInHosts())
        assert run.suggest("trial")
        write_text(join(Store(bucket).folder(step.id), LEASE_FILE), json.dumps(content))
        run.complete("trial", {"lost": Outcome(None, "its process died", kind=Kind.DEATH)}, error=False)
        return run.progress.retried[step.fingerprint].error

    assert said(ELSEWHERE) == "another driver has taken its artifact over"
    assert said(ELSEWHERE | {"free": True}) == "its process died"
    # It is ready, and the lease given back.
    Store(bucket).write_record(record_of(step))
    assert said(ELSEWHERE | {"free": True}) == "another driver has taken its artifact over"


def test_on_a_local_store_a_process_that_still_holds_its_lock_while_it_ends_is_no_other_driver_s(tmp_path: Path) -> None:
    step = Step("task_model", "cell", Config())
    run = Run([step], set(), Store(tmp_path), Capacity(1, 0), hosts=StandInHosts())
    assert run.suggest("trial")
    with lease(run.store.folder(step.id)):
        run.complete("trial", {"lost": Outcome(None, "its process died", kind=Kind.DEATH)}, error=False)
    assert run.progress.retried[step.fingerprint].error == "its process died"


@pytest.mark.slow
def test_two_drivers_at_once_build_one_artifact_once(bucket: str, start: Start) -> None:
    first = start("build", bucket, "first", first="building")
    second = start("build", bucket, "second")
    assert json.loads(first.communicate("\n", timeout=60)[0])["value"] == "first"
    assert json.loads(second.communicate("\n", timeout=60)[0]) == {"value": "first", "error": ""}


def test_a_record_of_files_that_are_gone_gives_way_to_the_holder_s(remote: str) -> None:
    """A driver was stopped between its last look at its lease and its record, which it wrote when another had taken over."""
    from sweep.run.trial import _write_record

    step = Step("task_model", "cell", Config())
    records = [
        Record(
            step.stage, step.slug, step.fingerprint, step.payload, metrics={"value": value}, created="2026-01-01T00:00:00+00:00"
        )
        for value in (1, 2)
    ]
    for record in records:
        _write_record(record, Store(remote))
    found = Store(remote).read_record(step.id)
    assert found is not None and found.metrics == {"value": 2}


def test_a_store_that_is_removed_under_a_step_takes_no_half_of_it_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(job: Job) -> dict[str, float]:
        write_text(join(job.output, "first.txt"), "first")
        if not calls:
            shutil.rmtree(tmp_path / "store")
        calls.append(job.output)
        write_text(join(job.output, "second.txt"), "second")
        return {}

    monkeypatch.setitem(stages.REGISTRY, "sources", Stage(1, run))
    step = Step("sources", "data", Config())
    outcome = carry_out(Order(step, stages.REGISTRY["sources"], str(tmp_path / "store")))
    assert outcome.record is not None
    assert set(outcome.record.files) == {"first.txt", "second.txt"}
    assert len(calls) == 2


def test_who_waited_for_a_lock_that_was_removed_takes_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    held: list[bool] = []

    def hold() -> None:
        with lease(str(folder)):
            held.append(True)

    second = threading.Thread(target=hold)
    with contextlib.ExitStack() as newer:
        with lease(str(folder)):
            second.start()
            while not is_waited_for(folder / LOCK_FILE):
                time.sleep(0.01)
            shutil.rmtree(folder)
            newer.enter_context(lease(str(folder)))
        while not is_waited_for(folder / LOCK_FILE) and not held:
            time.sleep(0.01)
        assert not held
    second.join(10)
    assert held


def is_waited_for(lock: Path) -> bool:
    waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(line[6].endswith(f":{lock.stat().st_ino}") for line in waiting)
