"""A run that is stopped by a signal: real Ray, Tune and MLflow over stand-in stages, its processes counted afterwards."""

import fcntl
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweep.run.machine import temporary_folder
from sweep.run.session import _keeping_handler_of_sigterm
from tests.sweep.run.listening import Seen, check, listeners

SCRIPT = Path(__file__).with_name("fake_command.py")
ROOT = Path(__file__).parents[3]
CELL = ("-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "-p", "kinds=original")
STUDY = ("run", "demo", *CELL, "--no-report", "--max-cpus", "1")
"""Seven artifacts, the first of which all others are built from."""


def environment(seconds: float = 0) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "SECONDS": str(seconds)}


def start(
    store: Path, terminal: int | None = None, *options: str, seen: Seen | None = None, **more: str
) -> "subprocess.Popen[str]":
    """The command in a session of its own, on a terminal if one is given; returns when steps run that take a minute each.

    What listens until then is added to `seen`.
    """
    driver = subprocess.Popen(
        [sys.executable, str(SCRIPT), *STUDY, "--store", str(store), *options],
        env=environment(60) | more,
        stdin=terminal,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=None if terminal is None else lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
    )
    deadline = time.monotonic() + 180
    while statuses(store)["RUNNING"] < 2:
        assert driver.poll() is None and time.monotonic() < deadline
        if seen is not None:
            seen |= listeners(driver.pid)
        time.sleep(0.1)
    return driver


def statuses(store: Path) -> Counter[str]:
    """How many of MLflow's runs have each status."""
    if not (store / "mlflow.db").exists():
        return Counter()
    try:
        with sqlite3.connect(f"file:{store}/mlflow.db?mode=ro", uri=True) as database:
            return Counter(status for (status,) in database.execute("select status from runs"))
    except sqlite3.OperationalError:
        return Counter()  # its tables are being made


def processes_of(session: int) -> list[str]:
    """Command lines of a session's processes, those aside that only wait to be reaped; what was killed may take a moment."""
    for _ in range(30):
        alive = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    alive.append((folder / "cmdline").read_text())
            except OSError:
                continue
        if not alive:
            break
        time.sleep(0.1)
    return alive


@dataclass(frozen=True)
class Stopped:
    """What was seen of a run that a signal stopped, and of its store."""

    store: Path
    code: int
    seconds: float
    output: str
    left: list[str]
    statuses: Counter[str]
    seen: Seen


def stopped_by(number: signal.Signals, store: Path) -> Stopped:
    seen: Seen = set()
    driver = start(store, seen=seen)
    seen |= listeners(driver.pid)
    began = time.monotonic()
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=60)
    seconds = time.monotonic() - began
    return Stopped(store, driver.returncode, seconds, output, processes_of(driver.pid), statuses(store), seen)


@pytest.fixture(scope="module")
def terminated(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    return stopped_by(signal.SIGTERM, tmp_path_factory.mktemp("terminated"))


def assert_is_stopped(run: Stopped, number: signal.Signals) -> None:
    assert run.code == 128 + number
    assert run.seconds < 15
    *events, last = run.output.splitlines()
    assert last == f"stopped by {number.name}: 0 of 7 artifacts are built; the same command goes on"
    assert len(events) == 1 and "start   sources/data" in events[0]
    assert run.left == []
    assert run.statuses == {"KILLED": 2}, "the study's run and the step's"


def test_a_signal_stops_the_run_in_one_line(terminated: Stopped) -> None:
    assert_is_stopped(terminated, signal.SIGTERM)


def test_what_a_run_starts_listens_on_loopback_only(terminated: Stopped) -> None:
    check(terminated.seen)


def test_the_same_command_goes_on(terminated: Stopped) -> None:
    command = [sys.executable, str(SCRIPT), *STUDY, "--store", str(terminated.store)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "7 artifacts, 0 were there, 7 built" in done.stdout
    assert statuses(terminated.store) == {"FINISHED": 8}


@pytest.mark.slow
def test_ctrl_c_stops_the_run_too(tmp_path: Path) -> None:
    assert_is_stopped(stopped_by(signal.SIGINT, tmp_path), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("is_deaf", [False, True])
def test_at_a_notice_steps_commit_and_the_run_ends_well(is_deaf: bool, tmp_path: Path) -> None:
    """SIGUSR1 to all of its processes, as Slurm may send it; steps that do not hear of it are stopped when the time is over."""
    driver = start(tmp_path, None, "--notice-time", "3" if is_deaf else "60", **({"DEAF": "1"} if is_deaf else {}))
    began = time.monotonic()
    os.killpg(driver.pid, signal.SIGUSR1)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, output
    assert time.monotonic() - began > 3 or not is_deaf
    first, *stopped, last = output.splitlines()
    assert last == "stopped at a notice (SIGUSR1): 0 of 7 artifacts are built; the same command goes on"
    assert "start   sources/data" in first
    assert len(stopped) == (not is_deaf) and all(
        "a notice stopped it at step 0 of 3, which is committed" in line for line in stopped
    )
    assert processes_of(driver.pid) == []
    assert statuses(tmp_path) == {"KILLED": 2}
    if not is_deaf:
        command = [sys.executable, str(SCRIPT), *STUDY, "--store", str(tmp_path)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        assert "7 artifacts, 0 were there, 7 built" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_closed_terminal_stops_the_run_too(tmp_path: Path) -> None:
    try:
        ours, theirs = os.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminals here ({error})")
    driver = start(tmp_path, theirs)
    os.close(theirs)
    # All processes of the terminal get SIGHUP, Ray's own among them, and nothing can be printed any more.
    os.close(ours)
    assert driver.wait(timeout=15) == 128 + signal.SIGHUP
    assert processes_of(driver.pid) == []
    assert statuses(tmp_path) == {"KILLED": 2}


@pytest.mark.slow
def test_a_signal_to_all_of_its_processes_and_a_second_one_end_it_at_once(tmp_path: Path) -> None:
    driver = start(tmp_path)
    os.killpg(driver.pid, signal.SIGTERM)
    time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=15)
    assert driver.returncode == 128 + signal.SIGTERM
    assert output.splitlines()[1:] == ["stopped by SIGTERM: 0 of 7 artifacts are built; the same command goes on"]
    assert processes_of(driver.pid) == []
    assert statuses(tmp_path) == {"RUNNING": 2}, "it did not wait for MLflow"


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer_does_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        driver = subprocess.Popen(
            [sys.executable, str(SCRIPT), *STUDY, "--store", str(tmp_path), "--tracking-uri", server],
            env=environment(60),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        connection, _ = silent.accept()
        with connection:
            time.sleep(1)
            began = time.monotonic()
            driver.send_signal(signal.SIGTERM)
            output, _ = driver.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert driver.returncode == 143
    assert output.splitlines()[-1] == "stopped by SIGTERM: 0 of 7 artifacts are built; the same command goes on"
    assert processes_of(driver.pid) == []


def test_a_folder_that_a_killed_process_left_behind_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = f"""
import os, tempfile
from sweep.run.machine import temporary_folder
tempfile.tempdir = {str(tmp_path)!r}
with temporary_folder("of-a-run-") as folder:
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", killed], env=environment(), timeout=30)
    assert len(list(tmp_path.iterdir())) == 1
    with temporary_folder("of-a-run-") as ours:
        assert [str(path) for path in tmp_path.iterdir()] == [ours]
        with temporary_folder("of-a-run-") as another:
            assert {str(path) for path in tmp_path.iterdir()} == {ours, another}
    assert list(tmp_path.iterdir()) == []


def run_stopped(body: str, prelude: str = "") -> "subprocess.CompletedProcess[str]":
    program = f"""
import os, signal, subprocess, time
from sweep.run import ends
{prelude}
with ends.Stop():
    {body}
"""
    return subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=30)


def test_a_run_that_does_not_end_by_itself_is_ended_with_all_that_it_started() -> None:
    body = """
    subprocess.Popen(["sh", "-c", "sleep 100 & sleep 100"])  # they hold the pipe: the test would wait for them
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        time.sleep(100)
"""
    done = run_stopped(body, "ends.LIMIT_S = 1")
    assert done.returncode == 143
    assert done.stderr == "stopped by SIGTERM: what is built is kept; the same command goes on\n"


def test_a_second_signal_ends_it_at_once_with_all_that_it_started() -> None:
    body = """
    subprocess.Popen(["sh", "-c", "sleep 100 & sleep 100"])
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGINT)
        print("it went on", flush=True)
"""
    done = run_stopped(body)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
    assert done.stderr == "stopped by SIGTERM: what is built is kept; the same command goes on\n"


@pytest.mark.parametrize(("is_done", "code"), [(False, 0), (True, 3)])
def test_a_notice_holds_the_run_and_stops_it_unless_it_is_done(is_done: bool, code: int) -> None:
    """Its workers are told once. A run that has come to its end meanwhile goes on with what is left to do, here `exit(3)`."""
    prelude = f"""
from types import SimpleNamespace as Some
told = []
ends.tell_all_nodes = lambda: told.append(1) or told
run = Some(hold="", queue=Some(is_exhausted={is_done}))
"""
    body = """
    stop = ends.Stop(notice_s=60)
    with stop:
        stop.hold(run)
        assert not run.hold and not told
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(3):
            stop.hold(run)
        assert run.hold and told == [1]
        stop.check(run)
    exit(3)
"""
    done = run_stopped(body, prelude)
    assert done.returncode == code, done.stderr
    stopped = "stopped at a notice (SIGUSR1): what is built is kept; the same command goes on\n"
    assert done.stderr == ("" if is_done else stopped)


def test_an_ignored_signal_stays_ignored() -> None:
    done = run_stopped("os.kill(os.getpid(), signal.SIGHUP)", "signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    assert (done.returncode, done.stderr) == (0, "")


def test_rays_handler_of_sigterm_does_not_stay() -> None:
    def start_ray() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if ends:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        ends = False
        _keeping_handler_of_sigterm(start_ray)
        assert signal.getsignal(signal.SIGTERM) is stop
        ends = True
        with pytest.raises(KeyboardInterrupt):
            _keeping_handler_of_sigterm(start_ray)
    finally:
        signal.signal(signal.SIGTERM, before)


AT_THE_END = """
import os, signal, sys, time
from sweep.cli import main
from sweep.commands import run
from sweep.run import study_run
NUMBER = int(sys.argv.pop())

def write_report(*of, **how):
    os.kill(os.getpid(), NUMBER)
    time.sleep(1)
    print("the report is written")

study_run.run_study = lambda *of, **how: study_run.Result(1, 1, 0, (), ())
run._is_evaluated, run.write_report = lambda *of: True, write_report
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_the_report_is_written_ends_the_run_as_ever_and_a_notice_lets_it_be_written(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", AT_THE_END, "run", "demo", *CELL, "--store", str(tmp_path), str(int(number))]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    if number is signal.SIGUSR1:
        assert ended.returncode == 0 and "the report is written" in ended.stdout
    else:
        assert ended.returncode == 128 + number and "the report" not in ended.stdout
        assert ended.stderr == f"stopped by {number.name}: what is built is kept; the same command goes on\n"


STOPPED = """
import os, time
from sweep.run.ends import Stop

with Stop():
    print("said before")
    os.kill(os.getpid(), {number})
    time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_run_has_said_before_a_signal_is_in_its_log(number: int) -> None:
    buffered = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", STOPPED.format(number=int(number))]
    ended = subprocess.run(command, env=buffered, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (128 + number, "said before\n")


WITHOUT_READERS = """
import pathlib
from sweep.cli import main
from sweep.commands import run
from sweep.run import study_run
from sweep.run.progress import Display

def run_study(*of, **how):
    with Display({}) as display:
        display.say("it has begun")
    return study_run.Result(1, 1, 0, (), ())

study_run.run_study = run_study
run._is_evaluated, run.write_report = lambda *of: True, lambda *of, **how: pathlib.Path("report").touch()
main()
"""


@pytest.mark.parametrize("outputs", ["| true", "> /dev/full", ">&-", "> /dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_run_goes_on_where_nobody_can_read_what_it_prints(outputs: str, tmp_path: Path) -> None:
    command = f"""({sys.executable} -c '{WITHOUT_READERS}' {" ".join(("run", "demo", *CELL))} && touch ended_well) {outputs}"""
    ended = subprocess.run(["bash", "-c", command], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert {"report", "ended_well"} <= {path.name for path in tmp_path.iterdir()}
