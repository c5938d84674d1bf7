"""scripts/slurm.sh on a real Slurm of one machine: a study that a time limit interrupts, and that the queue takes up again."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "slurm.sh"
DAEMONS = ("munged", "slurmctld", "slurmd")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of commands for a Slurm of one machine on loopback."""
    if os.geteuid() or not all(map(shutil.which, DAEMONS)):
        pytest.skip("needs root and Debian's slurm-wlm and munge")
    for name in ("munge", "state", "spool"):
        (tmp_path / name).mkdir(mode=0o700)
    key = tmp_path / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    configuration = tmp_path / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    configuration.write_text(CONFIGURATION.format(folder=tmp_path, host=host, cpus=os.cpu_count(), **ports))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = ["munged", "--force", "--foreground", *(f"--{option}={tmp_path}/munge/{name}" for option, name in files.items())]
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D"]]
    daemons = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(2)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def output_of(*command: str, environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_time_limit_puts_the_study_back_into_the_queue_until_it_is_built(slurm: dict[str, str], tmp_path: Path) -> None:
    command = tmp_path / "blindsweep"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/sweep/run/fake_command.py "$@"\n')
    command.chmod(0o755)
    log = tmp_path / "log.txt"
    # Slurm's signal comes up to a minute early: after one to two minutes, and the stand-ins take longer.
    options = ["--time=3", "--signal=B:USR1@60", "--cpus-per-task=2", "--gres=none", "--mem=0", f"--output={log}", "--parsable"]
    study = ["demo", "-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "--max-cpus", "2", "--no-report"]
    environment = {**slurm, "BLINDSWEEP": str(command), "PYTHONPATH": str(ROOT), "SECONDS": "15"}
    submitted = ["sbatch", *options, str(SCRIPT), *study, "--store", str(tmp_path / "store")]
    job = output_of(*submitted, environment=environment).strip()

    deadline = time.monotonic() + 1200
    state = ""
    while not state.startswith(("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(5)
        shown = output_of("scontrol", "show", "job", job, environment=slurm)
        state = shown.partition("JobState=")[2].split()[0]
    text = log.read_text()
    assert state == "COMPLETED", text
    assert int(shown.partition("Restarts=")[2].split()[0]) >= 1, text
    assert "SIGUSR1" in text
    assert "15 artifacts" in text.splitlines()[-2], text
