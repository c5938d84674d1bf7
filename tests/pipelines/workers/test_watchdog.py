"""Watchdogs: what stands still is ended by name, and what works on, or was suspended, is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from pipelines.errors import StalledError, UserError
from pipelines.workers import watchdog
from pipelines.workers.watchdog import STALL_AFTER, STALLED_FILE, beat, naming_stalls, patiently, stall_after, wait_for

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_setting_that_is_no_time_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STALL_AFTER, text)
    with pytest.raises(UserError, match=f"{STALL_AFTER}={text}: give a number of seconds above 0"):
        stall_after()


def test_a_call_of_what_stands_still_ends_with_the_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STALL_AFTER, "0.1")
    with pytest.raises(StalledError, match=r"an engine stood still for 0\.3 s") as caught:
        wait_for(Future(), "an engine")
    assert "test_a_call_of_what_stands_still" in caught.value.__notes__[0]


def test_beats_keep_a_call_waiting_and_its_result_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STALL_AFTER, "0.2")
    future: Future[int] = Future()

    def work() -> None:
        for _ in range(20):
            beat()
            time.sleep(0.1)  # twenty of them take longer than three times the limit
        future.set_result(3)

    threading.Thread(target=work).start()
    assert wait_for(future, "an engine") == 3
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        wait_for(failed, "an engine")


PROGRAM = """
import sys, time
from pipelines.workers.watchdog import beat, watched
with watched("a finetuning", sys.argv[1]):
    for _ in range(int(sys.argv[2])):
        beat()
        time.sleep(0.1)
    print("hangs", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(output: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, str(output), *arguments]
    environment = {**os.environ, STALL_AFTER: "0.5", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_process_that_stands_still_ends_and_says_where_it_stood(tmp_path: Path) -> None:
    process = start(tmp_path, "3", "100")
    assert process.wait(30) == 1
    with pytest.raises(StalledError, match="a finetuning stood still") as caught, naming_stalls(lambda: [str(tmp_path)]):
        raise ConnectionError("a worker is gone")
    assert 'File "<string>", line 9' in caught.value.__notes__[0]
    assert not (tmp_path / STALLED_FILE).exists()
    with pytest.raises(ConnectionError), naming_stalls(lambda: [str(tmp_path)]):
        raise ConnectionError("of another cause")


def test_a_suspended_process_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "3", "0.3")
    assert process.stdout is not None and process.stdout.readline() == "hangs\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0


def test_what_is_written_may_take_as_long_as_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STALL_AFTER, "10")
    monkeypatch.setattr(watchdog, "_pulse", watchdog._Pulse())
    watch = watchdog._Watch()
    for _ in range(3):
        beat()
        watch.tick()
    assert watch.limit_s < 30
    with patiently():
        assert watch.limit_s == 30
    assert watch.limit_s < 30
