"""Each file of a store is damaged in each way, and then the study is run again: what is said, and whether all bytes are right.

    python tests/chaos/damage.py [--points N]     N damages of each kind; all of them by default

Damaged are the files of complete artifacts, their records and locks, the study's manifest, what a killed finetuning and a
killed pool left to go on from, and the cache of hashes: cut to half, emptied, one bit flipped (at the beginning, in the middle,
at the end), removed, replaced by a folder. Of a complete artifact what is built from it is missing, so that the damage would go
on into it. And steps are built with the clock set back an hour.

The verdict is `same` if all bytes are those of an undisturbed run in the end, and nothing took more than one line to say.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import light_study
from light_study import build, build_all, contents, make_steps, warm_up
from writes import Ended, in_child, refill

from pipelines.errors import UserError
from pipelines.finetune.checkpoints import Checkpoints
from sweep.graph.queue import Capacity
from sweep.graph.records import Store, StudyStep
from sweep.graph.records import Study as Manifest
from sweep.graph.step import Step
from sweep.plan.plan import make_plan
from sweep.run.study_run import FOR_REPORT, _set_damaged_aside
from sweep.run.tune import Run
from tests.sweep.run.stand_in_hosts import StandInHosts, end, orders_of


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(share: float) -> Callable[[Path], None]:
    def at(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[int(share * (len(data) - 1))] ^= 4
        # In place: the time of change tells, as it does of all that goes through the file system.
        with path.open("r+b") as file:
            file.write(data)

    return at


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut to half": cut,
    "emptied": empty,
    "a bit flipped at its beginning": flip(0),
    "a bit flipped in the middle": flip(0.5),
    "a bit flipped at its end": flip(1),
    "removed": Path.unlink,
    "replaced by a folder": make_folder,
}
CLOCK_BACK_S = 3600


def run_again(steps: Sequence[Step], store: Store) -> list[str]:
    """As the command does, without Ray: look, plan, build what is missing. What the user is told of damage and failures."""
    planned = make_plan(steps, store, last=FOR_REPORT)
    notes = list(_set_damaged_aside(planned, store))
    records = {one.step.fingerprint: one.record for one in planned if one.record}
    lines = list(notes)

    def listen(event: str, step: Step, progress: Any) -> None:
        if event in ("retry", "failed"):
            lines.append(f"{event} {step.name}: {(progress.retried | progress.failed)[step.fingerprint].error}")

    given: dict[str, Any] = {"listener": listen, "records": records, "hosts": StandInHosts()}
    run = Run(list(steps), set(records), store, Capacity(1, 0), **given)
    for trial in range(100):
        suggestion = run.suggest(str(trial))
        if not isinstance(suggestion, dict):
            break
        end(run, str(trial), *(build(order.step, store) for order in orders_of(run, str(trial))))
    return lines


def in_manifest(step: Step) -> StudyStep:
    inputs = {name: source.fingerprint for name, source in step.inputs.items()}
    return StudyStep(step.stage, step.slug, step.fingerprint, dict(step.coordinates), inputs)


class Study:
    """A complete store, to be damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self.steps = make_steps()
        self.store = Store(folder / "store")
        self.whole = folder / "whole"
        done = in_child(lambda: build_all(self.steps, self.store))
        assert done.value == [], f"undisturbed: {done}"
        self.manifest = Manifest("light", "A light study", {"seeds": [0]}, tuple(map(in_manifest, self.steps)))
        self.manifest.save(self.store)
        refill(Path(self.store.uri), self.whole)
        self.expected = contents(self.whole)

    def users(self, name: str) -> list[Step]:
        """The steps that are built from a step, directly or not."""
        found: list[Step] = []
        for step in self.steps:
            if any(source.name == name or source in found for source in step.inputs.values()):
                found.append(step)
        return found

    def folder(self, step: Step) -> Path:
        return Path(self.store.folder(step.id))


def complete_files(study: Study) -> dict[str, list[tuple[str, list[Step]]]]:
    """Kind of file → paths below the store, and the steps to be missing."""
    found = defaultdict(list)
    for step in study.steps:
        folder = study.whole / study.folder(step).relative_to(study.store.uri)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in ("metrics.jsonl", "yield.json"):
                kind = {"record.json": "a record", ".lock": "a lock", ".parquet": "Parquet", ".safetensors": "safetensors"}
                name = kind.get(path.name) or kind.get(path.suffix) or "another file of an artifact"
                found[name].append((str(path.relative_to(study.whole)), study.users(step.name)))
    return found


def killed_finetuning(study: Study) -> Path:
    """The folder of a finetuning that was killed after its second checkpoint."""
    (step,) = (step for step in study.steps if step.stage == "task_model")
    _remove(study, [step, *study.users(step.name)])
    save = Checkpoints.save
    saved = []

    def save_and_die(self: Checkpoints, *arguments: Any) -> None:
        save(self, *arguments)
        saved.append(1)
        if len(saved) == 2:
            os._exit(9)

    def work() -> None:
        Checkpoints.save = save_and_die  # type: ignore[method-assign]
        build(step, study.store)

    assert in_child(work).code == 9
    return study.folder(step)


def killed_pool(study: Study) -> Path:
    """The folder of a pool that was killed after its fourth shard."""
    (step,) = (step for step in study.steps if step.stage == "synthetic_pool")
    _remove(study, [step, *study.users(step.name)])

    def write_and_die(*arguments: Any) -> Any:
        for number, row in enumerate(light_study.write_shards(*arguments)):
            if number == 3:
                os._exit(9)
            yield row

    def work() -> None:
        light_study.pool.run_engines = write_and_die
        build(step, study.store)

    assert in_child(work).code == 9
    return study.folder(step)


def read_and_run_again(study: "Study") -> list[str]:
    """As a command that reads the study does, and then a run; a folder is moved away between them, as the line says."""
    lines = []
    try:
        found = Manifest.load(study.store, study.manifest.experiment)
        if replace(found, steps=tuple(replace(step, record=None) for step in found.steps)) != study.manifest:
            lines.append("Error: it was read as another study")
    except UserError as error:
        lines.append(str(error))
    try:
        study.manifest.save(study.store)
    except UserError as error:
        lines.append(str(error))
        if "move it away" in str(error):
            shutil.rmtree(Manifest.path(study.store, study.manifest.experiment))
        study.manifest.save(study.store)
    return lines + run_again(study.steps, study.store)


def _remove(study: Study, steps: Sequence[Step]) -> None:
    for step in steps:
        shutil.rmtree(study.folder(step))


def drawn(damages: list[Any], points: int | None) -> list[Any]:
    """`points` of them, the same ones each time."""
    return damages if points is None else random.Random(0).sample(damages, min(points, len(damages)))


def damage_all(folder: Path, points: int | None = None) -> dict[str, dict[str, Any]]:
    """By kind of file: `points`, how many `said` something, and which verdicts were `wrong`."""
    warm_up()
    study = Study(folder)
    place = Path(study.store.uri)
    found: dict[str, dict[str, Any]] = {}

    def judge(kind: str, told: str, ended: Ended) -> None:
        row = found.setdefault(kind, {"points": 0, "said": 0, "wrong": []})
        row["points"] += 1
        lines = ended.value
        if lines is None:
            row["wrong"].append(f"{told}: ended with {ended.code}: {ended.printed[-300:]}")
            return
        row["said"] += bool(lines)
        after = contents(place)
        if unlike := sorted(path for path in {*study.expected, *after} if study.expected.get(path) != after.get(path)):
            row["wrong"].append(f"{told}: other bytes in {', '.join(unlike[:3])}; it said {lines}")
        elif any("\n" in line or "Error:" in line for line in lines):
            row["wrong"].append(f"{told}: it said {lines}")

    def show(kind: str) -> None:
        row = found[kind]
        print(f"{kind:40} {row['points']} points, {row['said']} said so, {len(row['wrong'])} wrong", flush=True)
        for line in row["wrong"]:
            print(f"    WRONG {line}", flush=True)

    for kind, files in complete_files(study).items():
        damages = [(path, missing, how) for path, missing in files for how in DAMAGES]
        for path, missing, how in drawn(damages, points):
            refill(study.whole, place)
            _remove(study, missing)
            DAMAGES[how](place / path)
            judge(kind, f"{path} {how}", in_child(lambda: run_again(study.steps, study.store)))
        show(kind)

    for kind, kill in {"a file of a killed finetuning": killed_finetuning, "a file of a killed pool": killed_pool}.items():
        refill(study.whole, place)
        left = kill(study)
        interrupted = folder / "interrupted"
        refill(place, interrupted)
        files_left = [str(path.relative_to(place)) for path in sorted(left.rglob("*")) if path.is_file()]
        damages = [(path, how) for path in files_left for how in DAMAGES]
        for path, how in drawn(damages, points):
            refill(interrupted, place)
            DAMAGES[how](place / path)
            judge(kind, f"{path} {how}", in_child(lambda: run_again(study.steps, study.store)))
        show(kind)

    manifest = Path(Manifest.path(study.store, study.manifest.experiment))
    for missing, how in drawn([(missing, how) for missing in ([], study.steps[-1:]) for how in DAMAGES], points):
        refill(study.whole, place)
        _remove(study, missing)
        DAMAGES[how](manifest)
        told = f"{how}, with {len(missing)} step to build"
        judge("a study's manifest", told, in_child(lambda: read_and_run_again(study)))
    show("a study's manifest")

    cache = Path(os.environ["XDG_CACHE_HOME"], "blindsweep", "hashes.jsonl")
    remembered = cache.read_bytes()
    for how in DAMAGES:
        refill(study.whole, place)
        _remove(study, study.users("sources/data"))
        shutil.rmtree(cache) if cache.is_dir() else cache.unlink(missing_ok=True)
        cache.write_bytes(remembered)
        DAMAGES[how](cache)
        judge("the cache of hashes", how, in_child(lambda: run_again(study.steps, study.store)))
    show("the cache of hashes")

    def set_back() -> list[str]:
        real = time.time
        time.time = lambda: real() - CLOCK_BACK_S
        return run_again(study.steps, study.store)

    for step in study.steps:
        refill(study.whole, place)
        _remove(study, [step, *study.users(step.name)])
        judge("the clock set back an hour", step.name, in_child(set_back))
    show("the clock set back an hour")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="of each kind of file, drawn; all of them by default")
    parser.add_argument("--json", type=Path, help="file for the counts")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        found = damage_all(Path(folder), options.points)
    counts = {kind: {**row, "wrong": len(row["wrong"])} for kind, row in found.items()}
    if options.json:
        options.json.write_text(json.dumps(counts))
    return int(any(row["wrong"] for row in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
