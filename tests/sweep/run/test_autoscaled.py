"""A cluster that has no GPU until one is asked for: Ray's own autoscaler over machines that are processes of this one."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweep.graph.records import Store, Study
from sweep.run.session import _read_autoscaler

ROOT = Path(__file__).parents[3]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
COMMAND = Path(__file__).with_name("fake_command.py")
STUDY = '''
from dataclasses import replace
from sweep import Experiment, Resources
from sweep.experiments import demo


def on_gpus(gpus: float = 1) -> Experiment:
    """A demo whose models want a GPU each."""
    study = demo(seeds=(0,), training_sizes=(300,), starting_sizes=(0,))
    stages = ("generator", "synthetic_pool", "task_model", "evaluation")
    return replace(study, name="on_gpus", resources={stage: Resources(gpus_per_worker=gpus) for stage in stages})
'''


def configuration(address: str) -> dict[str, Any]:
    """The form of cluster.yaml: a head without GPUs, and up to two machines with one, none of them up."""
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 10,
        "provider": {
            # By its place: under its own name it reads defaults from a file that Ray's wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "worker_liveness_check": False,
            "gcs_address": address,
        },
        "auth": {},
        **{f"{when}_commands": [] for when in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
        **{"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            # By this name Ray's stand-in for a cloud knows its head.
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }


def test_what_a_cluster_may_grow_to_is_bounded_by_the_machines_of_a_kind_and_in_all() -> None:
    types = {
        "head": {"resources": {"CPU": 12, "GPU": 0}},
        "spot": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 8},
        "small": {"resources": {"CPU": 96}, "max_workers": 1},
        "unbounded": {"resources": {"CPU": 8, "GPU": 1}},
    }
    grown = _read_autoscaler({"max_workers": 10, "head_node_type": "head", "available_node_types": types})
    assert grown is not None
    assert grown.most("GPU") == 8 * 4 + 2 * 1
    assert grown.most("CPU") == 12 + 96 + 8 * 48 + 8
    assert [type_.most for type_ in grown.types] == [1, 8, 1, 10]
    # Ray's local provider: what its machines have is known when they are there.
    local = {"local.cluster.node": {"resources": {}, "node_config": {}, "max_workers": 1, "min_workers": 1}}
    assert _read_autoscaler({"max_workers": 1, "head_node_type": "local.cluster.node", "available_node_types": local}) is None


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a running cluster of `configuration`."""
    from ray.util import get_node_ip_address

    # This machine's own; Ray takes it in the place of the loopback's.
    host = get_node_ip_address()
    with socket.create_server((host, 0)) as server:
        address = f"{host}:{server.getsockname()[1]}"
    file = tmp_path / "autoscaling.json"
    file.write_text(json.dumps(configuration(address)))
    temporary = tempfile.mkdtemp(dir="/tmp", prefix="bs-")  # the path of a socket below it is short
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--node-ip-address={host}"),
        *(f"--port={address.rpartition(':')[2]}", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"),
        *(f"--autoscaling-config={file}", "--include-dashboard=false", f"--temp-dir={temporary}"),
    ]
    settings = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PYTHONUNBUFFERED": "1"}
    environment = {**os.environ, **TOKEN, **settings, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "ray.log").open("w")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 150
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (tmp_path / "ray.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        # The machines are children of the autoscaler's.
        tree = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def run(study: Path, store: Path, address: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(COMMAND), "run", str(study), "--store", str(store), "--address", address, "--no-report"]
    environment = {**os.environ, **TOKEN, "PYTHONPATH": str(ROOT), "SECONDS": "0.1", "ASK_RAY": "1"}
    return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=270)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_default_flags_on_a_cluster_that_has_no_gpu_yet(cluster: str, tmp_path: Path) -> None:
    study = tmp_path / "study.py"
    study.write_text(STUDY)
    refused = run(study, tmp_path / "refused", cluster, "-p", "gpus=2")
    assert refused.returncode == 1
    assert "needs 1 workers of {'CPU': 1, 'GPU': 2" in refused.stderr, refused.stderr
    done = run(study, tmp_path / "store", cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    built = Study.load(Store(tmp_path / "store"), "on_gpus")
    assert built.num_built == len(built.steps)
    machines = {path.read_text() for path in (tmp_path / "store").glob("task_model/*/machine.txt")}
    # Started for it: the stand-in numbers its machines, and the head is the first.
    assert machines and not any(machine.endswith("00000") for machine in machines)
