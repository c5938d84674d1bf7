"""What listens during a run, and from where it can be reached."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweep.graph.records import Store, Study

SCRIPT = Path(__file__).with_name("fake_command.py")
ROOT = Path(__file__).parents[3]
SMALL = ("-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "-p", "pool_size=900", "--no-report")
REAL = (sys.executable, "-c", "from sweep.cli import main; main()", "run", "demo", *SMALL)
STAND_IN = (sys.executable, str(SCRIPT), "run", "demo", *SMALL)


def listeners(session: int) -> set[tuple[str, str]]:
    """(address, process) of each TCP socket on which a process of the session listens."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            name = (folder / "comm").read_text().strip()
            links = {os.readlink(link) for link in (folder / "fd").iterdir()}
        except OSError:
            continue
        found |= {(inodes[link], name) for link in links & inodes.keys()}
    return found


def is_loopback(address: str) -> bool:
    """Whether it is 127.0.0.1 or ::1, alone or as the kernel writes them in IPv6."""
    return bool(re.fullmatch(r"0100007F|0{16}FFFF00000100007F|0{24}01000000", address))


def seen_during(command: tuple[str, ...], **environment: str) -> set[tuple[str, str]]:
    run = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    seen: set[tuple[str, str]] = set()
    while run.poll() is None:
        seen |= listeners(run.pid)
        time.sleep(0.2)
    assert run.returncode == 0
    return seen


def check(seen: set[tuple[str, str]]) -> None:
    assert any(is_loopback(address) and "raylet" in name for address, name in seen), "Ray's own were found"
    assert {name for address, name in seen if not is_loopback(address)} == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_ui_listens_on_loopback_only(tmp_path: Path) -> None:
    Study("mine", "A title", {}, ()).save(Store(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (*REAL[:3], "ui", "--store", str(tmp_path), "--port", str(port))
    ui = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        seen: set[tuple[str, str]] = set()
        answers = False
        deadline = time.monotonic() + 240
        while not answers and time.monotonic() < deadline and ui.poll() is None:
            seen |= listeners(ui.pid)
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                answers = True
            time.sleep(0.2)
        seen |= listeners(ui.pid)
    finally:
        os.killpg(ui.pid, signal.SIGKILL)
        ui.wait()
    assert answers and seen
    assert [name for address, name in seen if not is_loopback(address)] == []


def test_ray_of_our_own_listens_on_loopback_only(tmp_path: Path) -> None:
    check(seen_during((*STAND_IN, "--store", str(tmp_path)), SECONDS="0.1"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_stage_listens_elsewhere(tmp_path: Path) -> None:
    check(seen_during((*REAL, "--store", str(tmp_path))))
