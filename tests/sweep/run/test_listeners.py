"""What listens during a whole run, from where it can be reached, and whether anything is sent elsewhere.

`test_ends.py` looks at a run until it is stopped."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipelines.workers.telemetry import OFF
from sweep.graph.records import Store, Study
from sweep.index.views import EXPERIMENTS
from tests.sweep.run.listening import Seen, check, is_loopback, listeners

SCRIPT = Path(__file__).with_name("fake_command.py")
ROOT = Path(__file__).parents[3]
SMALL = ("-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "-p", "pool_size=900", "--no-report")
COMMAND = (sys.executable, "-c", "from sweep.cli import main; main()")
# The demo's own workers are the processes that drive them. Those that talk to each other are what may listen.
WITH_WORKERS = """
from dataclasses import replace
from sweep import Experiment, Resources
from sweep.experiments import demo


def with_workers() -> Experiment:
    study = demo(seeds=(0,), training_sizes=(300,), pool_size=900)
    two = Resources(num_workers=2)
    return replace(study, name="with_workers", resources={"base_model": two, "generator": two})
"""
STAND_IN = (sys.executable, str(SCRIPT), "run", "demo", *SMALL)


CLOUD = {"169.254.169.254", "metadata.google.internal"}
"""What a cloud's machine is told of itself by. Ray asks there whose it is, which with its reports turned off goes nowhere."""


def seen_during(command: tuple[str, ...], **environment: str) -> Seen:
    """What listens while a command runs, which asks nothing of any server elsewhere."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=refuse_all, args=(proxy, asked), daemon=True).start()
        seen = _seen_beside(proxy, command, environment)
    assert [line for line in asked if urlsplit(line.split()[1]).hostname not in CLOUD] == []
    return seen


def refuse_all(proxy: socket.socket, asked: list[str]) -> None:
    """Note the first line of each request until the socket is closed."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = proxy.accept()
            with connection, contextlib.suppress(TimeoutError):
                connection.settimeout(2)
                asked.append(connection.recv(4096).decode(errors="replace").partition("\r")[0])


def _seen_beside(proxy: socket.socket, command: tuple[str, ...], environment: Mapping[str, str]) -> Seen:
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    # Whatever is not on this machine would be asked for there, telemetry too. The tests' own settings against it are left out.
    elsewhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), address)
    here = dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
    inherited = {name: value for name, value in os.environ.items() if name not in {*OFF, "CI", "PYTEST_CURRENT_TEST"}}
    run = subprocess.Popen(
        command,
        env={**inherited, **elsewhere, **here, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    seen: Seen = set()
    while run.poll() is None:
        seen |= listeners(run.pid)
        time.sleep(0.2)
    assert run.returncode == 0
    return seen


def check_pages(address: str, folder: Path) -> None:
    """Raise AssertionError if a page that is shown asks for anything elsewhere; without Chromium nothing is shown."""
    if (chromium := shutil.which("chromium")) is None:
        return
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=refuse_all, args=(proxy, asked), daemon=True).start()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += [f"--proxy-server=127.0.0.1:{proxy.getsockname()[1]}", f"--user-data-dir={folder / 'chromium'}"]
        page = subprocess.run(
            [chromium, *options, "--virtual-time-budget=20000", "--dump-dom", address],
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout  # fmt: skip
    assert "Search experiments" in page
    # The browser's own look-ups aside.
    hosts = {line.split()[1].removeprefix("http://").partition("/")[0].partition(":")[0] for line in asked}
    assert {host for host in hosts if not host.endswith((".google.com", ".googleapis.com", ".gvt1.com"))} == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_ui_listens_on_loopback_only_and_its_pages_ask_for_nothing_elsewhere(tmp_path: Path) -> None:
    Study("mine", "A title", {}, ()).save(Store(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (*COMMAND, "ui", "--store", str(tmp_path), "--port", str(port))
    ui = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        seen: Seen = set()
        answers = False
        deadline = time.monotonic() + 240
        while not answers and time.monotonic() < deadline and ui.poll() is None:
            seen |= listeners(ui.pid)
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                answers = True
            time.sleep(0.2)
        seen |= listeners(ui.pid)
        check_pages(f"http://127.0.0.1:{port}/{EXPERIMENTS}", tmp_path)
    finally:
        os.killpg(ui.pid, signal.SIGKILL)
        ui.wait()
    assert answers and seen
    assert [name for address, name in seen if not is_loopback(address)] == []


@pytest.mark.slow
def test_ray_of_our_own_listens_on_loopback_only_and_reports_to_nobody(tmp_path: Path) -> None:
    check(seen_during((*STAND_IN, "--store", str(tmp_path)), SECONDS="0.1"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_stage_listens_elsewhere_or_reports_to_anybody(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(WITH_WORKERS)
    check(seen_during((*COMMAND, "run", str(tmp_path / "study.py"), "--store", str(tmp_path / "store"), "--no-report")))
