"""One process of a run is killed, or its MLflow database is lost, cut or locked; then the same command runs again.

    python tests/chaos/processes.py [--points 2] [--seed 0]     half a minute a point on two cores

The real command line, Ray, Tune and MLflow over stand-ins for the stages (`stand_ins.py`). Killed (SIGKILL) are the driver, a
trial's process, the process that a stage runs in, MLflow's tracker, Ray's raylet and its control store, at a random time.
MLflow's database is removed, cut to half or locked, once while the run writes into it, and once between a run that was killed
and the next one.

The verdict is `same` if the disturbed run ends by itself, says what there is to say without a traceback and leaves no process
behind but Ray's agents; if it builds everything, where it was the database; and if then all artifacts are those of an
undisturbed run, none was built that had a record, and MLflow has one finished run of each.
"""

import argparse
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from light_study import contents

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("stand_ins.py")
STUDY = ("run", "demo", "-p", "training_sizes=300", "-p", "starting_sizes=0", "-p", "seeds=0", "--no-report", "--max-cpus", "2")
PROCESSES = {
    "the driver": "stand_ins.py",
    "a trial's process": "ImplicitFunc",
    "a stage's process": "ray::LaneHost",
    "MLflow's tracker": "ray::Tracker",
    "the raylet": "raylet/raylet",
    "Ray's control store": "gcs_server",
}
DATABASES = ("lost", "cut to half", "locked")
NUM_RUNS = 16
"""MLflow's, of the study: its own, and one of each artifact."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's, which outlive a driver that is killed by more than a minute."""
LONGEST_S = 600
"""What ends later counts as stuck."""


@dataclass
class Points:
    num: int = 0
    num_went_on: int = 0
    """Disturbed runs that built everything all the same."""
    wrong: list[str] = field(default_factory=list)


class Command:
    """The command, running."""

    def __init__(self, store: Path) -> None:
        self.log = store.with_suffix(".log")
        self.builds = store.with_suffix(".builds")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SECONDS": "0.5", "BUILDS": str(self.builds)}
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                [sys.executable, str(SCRIPT), *STUDY, "--store", str(store)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.seen: dict[int, psutil.Process] = {}

    def processes(self) -> list[psutil.Process]:
        """The driver and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.process.children(recursive=True):
                self.seen[process.pid] = process
        return [self.process, *self.seen.values()]

    def find(self, pattern: str) -> psutil.Process | None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if pattern in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def wait(self) -> int | None:
        """Its exit code; None if it had to be killed."""
        deadline = time.monotonic() + LONGEST_S
        while self.process.poll() is None:
            self.processes()
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                return None
            time.sleep(0.2)
        return int(self.process.returncode)

    def left_behind(self, seconds: float = 60) -> list[str]:
        """Processes that go on after the driver; they are killed."""
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=seconds)
        names = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                name = " ".join(process.cmdline())[:60].strip() or process.name()
                process.kill()
                if not name.startswith(AGENTS):
                    names.append(name)
        return names


def started(command: Command) -> bool:
    """Wait for the first step; whether it came to one."""
    deadline = time.monotonic() + LONGEST_S
    while "start " not in command.log.read_text():
        if command.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


Disturbance = Callable[[Command, Path], contextlib.AbstractContextManager[str]]
"""What happens to a command while it runs, and until it has ended; gives what the verdict should mention."""


def kill(pattern: str, delay: float) -> Disturbance:
    @contextlib.contextmanager
    def disturbance(command: Command, store: Path) -> Iterator[str]:
        time.sleep(delay)
        victim = command.find(pattern)
        while victim is None and command.process.poll() is None:
            time.sleep(0.1)
            victim = command.find(pattern)
        if victim is not None:
            victim.kill()
        yield "" if victim else "not met"

    return disturbance


def once_tracked(command: Command, store: Path) -> str:
    """Wait until MLflow has the first artifact; "not met" if the command ended before."""
    while command.process.poll() is None and index_of(store).get("FINISHED", 0) < 1:
        time.sleep(0.1)
    return "" if command.process.poll() is None else "not met"


@contextlib.contextmanager
def kill_driver(command: Command, store: Path) -> Iterator[str]:
    """Once there is a database that can be broken before the next run."""
    missed = once_tracked(command, store)
    command.process.kill()
    yield missed


def break_database(how: str) -> Disturbance:
    """While the run goes on."""

    @contextlib.contextmanager
    def disturbance(command: Command, store: Path) -> Iterator[str]:
        missed = once_tracked(command, store)
        with database(how, store):
            yield missed

    return disturbance


def disturb(
    store: Path, meanwhile: Disturbance, between: Callable[[Path], contextlib.AbstractContextManager[None]],
    expected: dict[str, str], points: Points, told: str, must_go_on: bool = False,
) -> None:  # fmt: skip
    """One point: run, disturb, run again."""
    points.num += 1
    wrong: list[str] = []
    command = Command(store)
    if not started(command):
        points.wrong.append(f"{told}: it never began: {command.log.read_text()[-300:]}")
        command.wait()
        return
    with meanwhile(command, store) as missed:
        code = command.wait()
    first = command.log.read_text()
    if missed:
        told += f" ({missed})"
    if code is None:
        wrong.append("stuck")
    if must_go_on and code != 0:
        wrong.append("it did not go on")
    if left := command.left_behind():
        wrong.append(f"left behind: {left}")
    points.num_went_on += code == 0
    with between(store):
        codes = []
        while len(codes) < 2 and codes[-1:] != [0]:
            again = Command(store)
            codes.append(again.wait())
            if left := again.left_behind():
                wrong.append(f"left behind by the next run: {left}")
    if "locked" in told:
        # What MLflow was not told while it was locked.
        Command(store).wait()
    if "Traceback" in first + again.log.read_text():
        wrong.append("a traceback")
    if codes != [0]:
        wrong.append(f"the same command ended with {codes}: {again.log.read_text()[-300:]}")
    found = contents(store)
    kept = {path: content for path, content in found.items() if path.endswith(("value.txt", "record.json"))}
    if unlike := sorted(path for path in {*expected, *kept} if expected.get(path) != kept.get(path)):
        wrong.append(f"other content in {unlike[:4]}")
    builds = command.builds.read_text().splitlines()
    if twice := [line for line in builds if line.endswith(" again")]:
        wrong.append(f"built though complete: {twice}")
    if (index := index_of(store)) != {"FINISHED": NUM_RUNS}:
        wrong.append(f"MLflow has {index}")
    if wrong:
        points.wrong.append(f"{told}, exit code {code}: {'; '.join(wrong)}; it said {first.splitlines()[-3:]}")


def index_of(store: Path) -> dict[str, int]:
    """MLflow's runs by status, and how many artifacts have more than one; empty while there are no tables."""
    try:
        return _index_of(store)
    except sqlite3.DatabaseError:
        return {}


def _index_of(store: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(f"file:{store}/mlflow.db?mode=ro", uri=True)) as database:
        counts = dict(database.execute("select status, count(*) from runs where lifecycle_stage = 'active' group by status"))
        query = """select value from tags join runs using (run_uuid)
                   where key = 'fingerprint' and lifecycle_stage = 'active' group by value having count(*) > 1"""
        if twice := len(database.execute(query).fetchall()):
            counts["twice"] = twice
    return counts


@contextlib.contextmanager
def database(how: str, store: Path) -> Iterator[None]:
    path = store / "mlflow.db"
    if how == "locked":
        holder = sqlite3.connect(path, isolation_level=None, timeout=60)
        holder.execute("begin exclusive")
        try:
            yield
        finally:
            holder.close()
        return
    if how == "lost":
        path.unlink()
    elif how == "cut to half":
        os.truncate(path, path.stat().st_size // 2)
    yield


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2, help="of each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=(*PROCESSES, "the database"), help="may be given again")
    parser.add_argument("--json", type=Path, help="file for the counts")
    options = parser.parse_args(arguments)
    found: dict[str, Points] = {}
    try:
        break_all(found, options.points, options.seed, options.only or [*PROCESSES, "the database"])
    finally:
        if options.json:
            rows = {name: {"points": of.num, "went_on": of.num_went_on, "wrong": len(of.wrong)} for name, of in found.items()}
            options.json.write_text(json.dumps(rows))
    return int(any(points.wrong for points in found.values()))


def break_all(found: dict[str, Points], num: int, seed: int, only: Sequence[str]) -> None:
    """Fill `found`, by what is broken: `num` points of each process, two of each kind of broken database."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        undisturbed = Path(folder, "undisturbed")
        command = Command(undisturbed)
        code = command.wait()
        assert code == 0, command.log.read_text()
        command.left_behind()
        assert index_of(undisturbed) == {"FINISHED": NUM_RUNS}
        files = contents(undisturbed).items()
        expected = {path: content for path, content in files if path.endswith(("value.txt", "record.json"))}
        for name, pattern in PROCESSES.items():
            delays = [draw.uniform(0, 6) for _ in range(num)]
            if name not in only:
                continue
            points = found[name] = Points()
            for delay in delays:
                store = Path(folder, f"{len(found)}-{points.num}")
                disturb(store, kill(pattern, delay), lambda store: contextlib.nullcontext(), expected, points,
                        f"{name} killed after {delay:.1f} s")  # fmt: skip
            show(name, points)
        if "the database" in only:
            for how in DATABASES:
                points = found[f"MLflow's database {how}"] = Points()
                disturb(Path(folder, f"within-{how[:4]}"), break_database(how), lambda store: contextlib.nullcontext(),
                        expected, points, f"the database {how} while the run writes", must_go_on=True)  # fmt: skip
                disturb(Path(folder, f"between-{how[:4]}"), kill_driver,
                        lambda store, how=how: database(how, store), expected, points,
                        f"the driver killed, then the database {how}")  # fmt: skip
                show(f"MLflow's database {how}", points)


def show(name: str, points: Points) -> None:
    print(f"{name:32} {points.num} points, {points.num_went_on} runs went on, {len(points.wrong)} wrong", flush=True)
    for line in points.wrong:
        print(f"    WRONG {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
