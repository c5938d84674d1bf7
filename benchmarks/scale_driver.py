"""A real run whose stages only sleep: what the driver, the store and MLflow take for each step, by the number of lanes.

The graph is `demo`'s with the paper's axes, its resources those of `paper` with a CPU in a GPU's place, so that Ray's CPUs are
lanes. A stage sleeps for what the plan says that it takes on average in `paper`, and writes a file. All else is what a run
does: Ray Tune, hosts of lanes, leases, records, heartbeat, MLflow.
"""

import contextlib
import json
import os
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.scale_requests import counted_s3
from pipelines.resources import Resources
from pipelines.workers.lane import Lane, Times
from sweep.graph import stages
from sweep.graph.records import Store
from sweep.graph.stages import Job, Workers
from sweep.run import study_run
from sweep.run.session import RayOptions
from sweep.run.tracking import Tracker, default_tracking_uri
from sweep.run.tune import Run
from sweep.study.loading import Loaded, load_experiment

AXES = ("starting_sizes=0,300,600,1200,2400,4800", "training_sizes=300,600,900")
MAX_GROUP = 36
SECONDS = {
    "sources": 10.0, "base_model": 60, "starting_set": 5, "starting_point": 1_000, "generator": 2_500, "synthetic_pool": 3_100,
    "training_set": 15, "task_model": 260, "evaluation": 72,
}  # fmt: skip
"""What a step takes in `paper` on an H200, to two digits: the plan's estimate, of a finetuning in a full lane."""
FASTER, CALLS = "BLINDSWEEP_SCALE_FASTER", "BLINDSWEEP_SCALE_CALLS"
"""Environment variables for the processes of a run: how much faster stages are, and where MLflow's calls are counted."""
WATCH_S = 1.0
FIGURES = {
    "driver_cpu_ms": ("driver's CPU a step", "ms"),
    "all_cpu_ms": ("CPU of all processes a step", "ms"),
    "attend_ms": ("a look at all lanes", "ms"),
    "driver_mib": ("driver's memory", "MiB"),
    "lane_mib": ("memory of a lane's processes", "MiB"),
    "mlflow_calls": ("MLflow's calls a step", "calls"),
    "requests": ("store's requests a step", "requests"),
}
"""Measured: title and unit."""


def measure_driver(num_lanes: int, store_kind: str, folder: str, *, num_seeds: int, faster: float) -> dict[str, Any]:
    """A whole study on so many lanes; figures by FIGURES' names and others, None for what is none."""
    os.environ |= {FASTER: str(faster), CALLS: str(Path(folder) / "calls.json"), "XDG_CACHE_HOME": str(Path(folder) / "cache")}
    for name, stage in stages.REGISTRY.items():
        is_shared = stage.open is not None
        opens = _open if is_shared else None
        stages.REGISTRY[name] = replace(stage, run=sleep, open=opens, is_together=_is_together, prepare=None)
    study_run.Tracker = CountedTracker  # type: ignore[assignment, misc]
    loaded = small_study(num_seeds)
    with counted_s3() if store_kind == "s3" else own_store(folder) as (uri, requests):
        store = Store(uri)
        watch = Watch()
        spent = _instrument(watch.mark)
        began = time.perf_counter()
        with watch:
            result = study_run.run_study(loaded, store, default_tracking_uri(store), RayOptions(max_cpus=num_lanes))
        wall_s, counts = time.perf_counter() - began, requests()
    assert result.num_built == result.num_steps, f"{result.num_built} of {result.num_steps}: {result.failures[:1]}"
    # A run waits for MLflow no longer than a second a step: on a busy machine it may be behind then, and leaves no counts.
    written = Path(os.environ[CALLS])
    calls = json.loads(written.read_text()) if written.exists() else {"calls": {}, "seconds": None}
    steps = result.num_built
    kinds = watch.kinds()
    hosts = [kind for kind in kinds if kind.startswith(("LaneHost", "ImplicitFunc"))]
    return {
        "num_steps": steps,
        "num_tracking_errors": len(result.tracking_errors),
        "first_tracking_error": "".join(result.tracking_errors[:1]),
        "wall_s": wall_s,
        "driver_cpu_ms": 1_000 * watch.own_s / steps,
        "driver_share": watch.own_s / watch.seconds,
        "all_cpu_ms": 1_000 * (watch.own_s + sum(kind.cpu_s for kind in kinds.values())) / steps,
        "attend_ms": 1_000 * spent["attend"] / max(spent["num_attend"], 1),
        "attends_per_s": spent["num_attend"] / watch.seconds,
        "driver_mib": watch.driver_mib,
        "lane_mib": sum(kinds[kind].mib * kinds[kind].most for kind in hosts) / num_lanes or None,
        "mlflow_calls": sum(calls["calls"].values()) / steps or None,
        "mlflow_s": calls["seconds"],
        "mlflow_by_call": calls["calls"],
        "requests": sum(counts.values()) / steps if counts else None,
        "requests_by_kind": {kind: number / steps for kind, number in sorted(counts.items())},
        "driver_parts_s": {name: round(value, 3) for name, value in spent.items()},
        "processes": {name: asdict(kind) for name, kind in kinds.items()},
    }


def small_study(num_seeds: int) -> Loaded:
    """The demo with the axes of the paper and its resources, a CPU in a GPU's place."""
    loaded = load_experiment("demo", ["seeds=" + ",".join(map(str, range(num_seeds))), *AXES])
    one, shared = Resources(), Resources(max_group=MAX_GROUP)
    resources = {name: shared if name in ("starting_point", "task_model", "evaluation") else one for name in SECONDS}
    known = loaded.experiment.resources.keys()
    return replace(loaded, experiment=replace(loaded.experiment, resources={name: resources[name] for name in known}))


def _is_together(config: Any) -> bool:
    return hasattr(config, "finetune")


def sleep(job: Job) -> Mapping[str, Any]:
    """Take as long as a step of its stage, report ten times, and write a file."""
    stage = Path(job.output).parent.name
    seconds = SECONDS[stage] / float(os.environ[FASTER])
    for number in range(10):
        time.sleep(seconds / 10)
        job.report({"loss": 1.0, "examples_per_s": 10.0, "fraction_done": (number + 1) / 10}, number + 1)
    Store(job.output).write_bytes(f"{job.output}/value.txt", b"0")
    return {"value": 0}


class _Lane:
    """In the place of workers: each step in the thread that brings it, at once."""

    def run(self, job: Job) -> tuple[Mapping[str, Any], Times]:
        began, started = time.time(), time.monotonic()
        metrics = sleep(job)
        return metrics, Times(began, began, time.time(), time.monotonic() - started)

    def close(self) -> None:
        """There is nothing to end."""


def _open(job: Job) -> Workers:
    return Workers(cast(Lane, _Lane()), lambda job: job)


class CountedTracker(Tracker):
    """Counts the calls of MLflow's client and what they take, and leaves that in a file when it is closed."""

    def __init__(self, *arguments: Any) -> None:
        self._calls: Counter[str] = Counter()
        self._seconds = 0.0
        super().__init__(*arguments)

    @property
    def client(self) -> Any:
        return _Counting(super().client, self)

    def close(self, status: str) -> list[str]:
        errors = super().close(status)
        Path(os.environ[CALLS]).write_text(json.dumps({"calls": self._calls, "seconds": self._seconds}))
        return errors


class _Counting:
    def __init__(self, client: Any, tracker: CountedTracker) -> None:
        self._client, self._tracker = client, tracker

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._tracker._calls[name] += 1
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._tracker._seconds += time.perf_counter() - began

        return call


@contextmanager
def own_store(folder: str) -> Iterator[tuple[str, Any]]:
    """The folder of a store, whose requests nobody counts."""
    yield str(Path(folder) / "store"), Counter


def _instrument(mark: Callable[[], None]) -> dict[str, float]:
    """Seconds of CPU, of the thread that runs them, in the run's own parts of the driver, and how often they were called.

    `mark` is called when the first step is given to a lane: Ray is up.
    """
    spent: dict[str, float] = defaultdict(float)
    for name in ("suggest", "complete", "attend", "poll"):
        function = getattr(Run, name)

        def timed(*arguments: Any, _name: str = name, _function: Any = function) -> Any:
            if not spent:
                mark()
            began = time.thread_time()
            try:
                return _function(*arguments)
            finally:
                spent[_name] += time.thread_time() - began
                spent[f"num_{_name}"] += 1

        setattr(Run, name, timed)
    return spent


@dataclass
class Kind:
    """Processes of a kind: the most at once, the CPU seconds of all, and MiB of one that no other process shares (median)."""

    most: int
    cpu_s: float
    mib: float


class Watch(threading.Thread):
    """Looks at this process and those below it. What they take is counted from `mark` on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._cpu_s: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._kind: dict[int, str] = {}
        self._most: Counter[str] = Counter()
        self._mib: dict[str, list[float]] = {}
        self._marked = time.perf_counter(), time.process_time()
        self.driver_mib = self.seconds = self.own_s = 0.0

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self.join()

    def mark(self) -> None:
        """Count from now on."""
        self._look()
        self._before = dict(self._cpu_s)
        self._marked = time.perf_counter(), time.process_time()

    def read(self) -> None:
        """Take what has been spent until now as the last word of this process; the others are looked at until they end."""
        self._look()
        self.seconds, self.own_s = time.perf_counter() - self._marked[0], time.process_time() - self._marked[1]

    def run(self) -> None:
        while not self._is_over.wait(WATCH_S):
            self.read()

    def _look(self) -> None:
        import psutil

        with self._lock:
            here, there = psutil.Process(), Counter[str]()
            self.driver_mib = max(self.driver_mib, here.memory_info().rss / 2**20)
            for process in here.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times, memory = process.cpu_times(), process.memory_info()
                    kind = _kind_of(process)
                    self._cpu_s[process.pid], self._kind[process.pid] = times.user + times.system, kind
                    there[kind] += 1
                    self._mib.setdefault(kind, []).append((memory.rss - memory.shared) / 2**20)
            self._most |= there

    def kinds(self) -> dict[str, Kind]:
        """What was seen, by the processes' names."""
        cpu_s: dict[str, float] = defaultdict(float)
        for pid, seconds in self._cpu_s.items():
            cpu_s[self._kind[pid]] += seconds - self._before.get(pid, 0.0)
        return {kind: Kind(self._most[kind], cpu_s[kind], statistics.median(self._mib[kind])) for kind in self._most}


def _kind_of(process: Any) -> str:
    """The class of an actor, or else the program."""
    words = process.cmdline()
    title = words[0] if words else str(process.name())
    if title.startswith("ray::"):
        return str(title.removeprefix("ray::").split(".")[0])
    return Path(words[1] if "python" in title and len(words) > 1 else title).name
