"""A real run whose stages only sleep: what the driver, the store and MLflow take for each step, by the number of lanes.

The graph is `demo`'s with the paper's axes, its resources those of `paper` with a CPU in a GPU's place, so that Ray's CPUs are
lanes. What a step does is a stand-in, and so are the processes of lanes unless they are asked for (benchmarks/scale_lanes.py).
All else is what a run does: the queue, Ray Tune, leases, records, heartbeat, MLflow.
"""

import contextlib
import json
import os
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.scale_lanes import FASTER, TAKES, use_stand_in_processes, use_stand_in_stages
from benchmarks.scale_requests import counted_s3
from pipelines.resources import Resources
from sweep.graph.records import Store
from sweep.run import study_run
from sweep.run.session import RayOptions
from sweep.run.tracking import Tracker, default_tracking_uri
from sweep.run.tune import Run
from sweep.study.loading import Loaded, load_experiment

AXES = ("starting_sizes=0,300,600,1200,2400,4800", "training_sizes=300,600,900")
MAX_GROUP = 36
CALLS = "BLINDSWEEP_SCALE_CALLS"
"""Environment variable for the processes of a run: where MLflow's calls are counted."""
WATCH_S = 1.0
FIGURES = {
    "steps_per_s": ("steps", "steps/s"),
    "driver_cpu_ms": ("driver's CPU a step", "ms"),
    "driver_share": ("driver's CPU", "of a core"),
    "attend_ms": ("a look at all lanes", "ms"),
    "driver_mib": ("driver's memory", "MiB"),
    "host_cpu_ms": ("CPU a step in its lane's host", "ms"),
    "mlflow_cpu_ms": ("MLflow's CPU a step", "ms"),
    "mlflow_calls": ("MLflow's calls a step", "calls"),
    "mlflow_behind_s": ("MLflow behind at the end", "s"),
    "requests": ("store's requests a step", "requests"),
}
"""Measured: title and unit."""


def measure_driver(
    num_lanes: int,
    store_kind: str,
    folder: str,
    *,
    num_seeds: int,
    faster: float,
    seconds: float,
    has_own_processes: bool,
    cut_short: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """A study on so many lanes; figures by FIGURES' names and others, None for what is none.

    What comes before a first step is given to a lane is in none, nor is what comes after the last one's end but for MLflow's.
    A run that takes longer than so many `seconds`, 0.0 for any, is left there: `cut_short` is called with what was measured.
    """
    os.environ |= {FASTER: str(faster), CALLS: str(Path(folder) / "calls.json"), "XDG_CACHE_HOME": str(Path(folder) / "cache")}
    use_stand_in_stages()
    if not has_own_processes:
        # Ray would start a process for each CPU, of which none would have anything to do.
        os.environ |= {"RAY_prestart_worker_first_driver": "0"}
        use_stand_in_processes()
    study_run.Tracker = CountedTracker  # type: ignore[assignment, misc]
    loaded, watch = small_study(num_seeds), Watch()
    with counted_s3() if store_kind == "s3" else own_store(folder) as (uri, requests):
        store, before = Store(uri), Counter[str]()

        def begin() -> None:
            before.update(requests())
            watch.mark()

        def look(run: Run) -> None:
            is_over = not (run.queue.waiting or run.queue.running)
            if watch.ended or not (is_over or 0 < seconds < watch.age_s):
                return
            watch.end()
            if not is_over:
                counts = requests() - before
                cut_short(_described(watch, spent, counts, len(run.progress.built), num_lanes, has_own_processes))

        spent = _instrument(begin, look)
        with watch:
            result = study_run.run_study(loaded, store, default_tracking_uri(store), RayOptions(max_cpus=num_lanes))
            behind_s = time.perf_counter() - watch.ended
        counts = requests() - before
    assert result.num_built == result.num_steps, f"{result.num_built} of {result.num_steps}: {result.failures[:1]}"
    # A run waits for MLflow no longer than a second a step: on a busy machine it may be behind then, and leaves no counts.
    written = Path(os.environ[CALLS])
    calls = json.loads(written.read_text()) if written.exists() else {"calls": {}, "seconds": None}
    return {
        **_described(watch, spent, counts, result.num_built, num_lanes, has_own_processes),
        "num_tracking_errors": len(result.tracking_errors),
        "first_tracking_error": "".join(result.tracking_errors[:1]),
        "mlflow_cpu_ms": 1_000 * watch.kinds()["CountedTracker"].cpu_s / result.num_built,
        "mlflow_behind_s": behind_s,
        "mlflow_calls": sum(calls["calls"].values()) / result.num_built or None,
        "mlflow_s": calls["seconds"],
        "mlflow_by_call": calls["calls"],
    }


def _described(
    watch: "Watch", spent: Mapping[str, float], counts: Mapping[str, int], steps: int, num_lanes: int, has_own_processes: bool
) -> dict[str, Any]:
    kinds = watch.kinds()
    hosts = [kind for kind in kinds if kind.startswith("LaneHost")]
    trials = [kind for kind in kinds if kind.startswith(("ImplicitFu", "Trials"))]
    return {
        "num_steps": steps,
        "seconds": watch.seconds,
        "steps_per_s": steps / watch.seconds,
        "driver_cpu_ms": 1_000 * watch.own_s / steps,
        "driver_share": watch.own_s / watch.seconds,
        "all_cpu_ms": 1_000 * (watch.own_s + sum(kind.cpu_s for kind in kinds.values())) / steps,
        "attend_ms": 1_000 * spent["attend"] / max(spent["num_attend"], 1),
        "attends_per_s": spent["num_attend"] / watch.seconds,
        "driver_mib": watch.driver_mib,
        "host_cpu_ms": 1_000 * sum(kinds[kind].cpu_s for kind in hosts) / steps,
        "host_mib": sum(kinds[kind].mib * kinds[kind].most for kind in hosts) / num_lanes if has_own_processes else None,
        "trial_mib": sum(kinds[kind].mib * kinds[kind].most for kind in trials) / num_lanes if has_own_processes else None,
        "requests": sum(counts.values()) / steps if counts else None,
        "requests_by_kind": {kind: number / steps for kind, number in sorted(counts.items())},
        "driver_parts_s": {name: round(value, 3) for name, value in spent.items()},
        "processes": {name: asdict(kind) for name, kind in kinds.items()},
    }


def small_study(num_seeds: int) -> Loaded:
    """The demo with the axes of the paper and its resources, a CPU in a GPU's place."""
    loaded = load_experiment("demo", ["seeds=" + ",".join(map(str, range(num_seeds))), *AXES])
    one, shared = Resources(), Resources(max_group=MAX_GROUP)
    resources = {name: shared if name in ("starting_point", "task_model", "evaluation") else one for name in TAKES}
    known = loaded.experiment.resources.keys()
    return replace(loaded, experiment=replace(loaded.experiment, resources={name: resources[name] for name in known}))


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


def _instrument(begin: Callable[[], None], look: Callable[[Run], None]) -> dict[str, float]:
    """Seconds of CPU, of the thread that runs them, in the run's own parts of the driver, and how often they were called.

    `begin` is called when the first step is given to a lane: Ray is up; `look` after each part.
    """
    spent: dict[str, float] = defaultdict(float)
    for name in ("suggest", "complete", "attend", "poll"):
        function = getattr(Run, name)

        def timed(run: Run, *arguments: Any, _name: str = name, _function: Any = function) -> Any:
            if not spent:
                begin()
            began = time.thread_time()
            try:
                return _function(run, *arguments)
            finally:
                spent[_name] += time.thread_time() - began
                spent[f"num_{_name}"] += 1
                look(run)

        setattr(Run, name, timed)
    return spent


@dataclass
class Kind:
    """Processes of a kind: the most at once, the CPU seconds of all, and MiB of one that no other process shares (median)."""

    most: int
    cpu_s: float
    mib: float


class Watch(threading.Thread):
    """Looks at this process and those below it. What they take is counted from `mark` on, of this process until `end`.

    What the looks themselves take is left out.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self._cpu_s: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._kind: dict[int, str] = {}
        self._most: Counter[str] = Counter()
        self._mib: dict[str, list[float]] = {}
        self._marked = time.perf_counter(), time.process_time()
        self._looks_s = 0.0
        self.driver_mib = self.seconds = self.own_s = self.ended = 0.0

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self.join()

    def mark(self) -> None:
        """Count from now on."""
        self._look()
        self._before, self._looks_s = dict(self._cpu_s), 0.0
        self._marked = time.perf_counter(), time.process_time()

    @property
    def age_s(self) -> float:
        """Seconds since the mark."""
        return time.perf_counter() - self._marked[0]

    def end(self) -> None:
        """Take what this process has spent until now as its last word; the others are looked at until they end."""
        self.read()
        self.ended = time.perf_counter()

    def read(self) -> None:
        """Look once more."""
        self._look()
        if not self.ended:
            self.seconds, self.own_s = self.age_s, time.process_time() - self._marked[1] - self._looks_s

    def run(self) -> None:
        while not self._is_over.wait(WATCH_S):
            self.read()

    def _look(self) -> None:
        import psutil

        with self._lock:
            began = time.thread_time()
            here, there = psutil.Process(), Counter[str]()
            if not self.ended:
                self.driver_mib = max(self.driver_mib, here.memory_info().rss / 2**20)
            for process in here.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times, memory, words = process.cpu_times(), process.memory_info(), process.cmdline()
                    # One that is ending has lost its name.
                    kind = _kind_of(words, process.name()) if words or process.pid not in self._kind else ""
                    self._cpu_s[process.pid] = times.user + times.system
                    if not kind:
                        continue
                    self._kind[process.pid] = kind
                    there[kind] += 1
                    self._mib.setdefault(kind, []).append((memory.rss - memory.shared) / 2**20)
            self._most |= there
            self._looks_s += time.thread_time() - began

    def kinds(self) -> dict[str, Kind]:
        """What was seen, by the processes' names."""
        cpu_s: dict[str, float] = defaultdict(float)
        for pid, seconds in self._cpu_s.items():
            cpu_s[self._kind[pid]] += seconds - self._before.get(pid, 0.0)
        return {kind: Kind(self._most[kind], cpu_s[kind], statistics.median(self._mib[kind])) for kind in self._most}


def _kind_of(words: Sequence[str], name: str) -> str:
    """The class of an actor, or else the program, by the words of its command."""
    title = words[0] if words else name
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0]
    return Path(words[1] if "python" in title and len(words) > 1 else title).name
