"""The engine of a pool is killed while it writes; then, if need be, the same call runs again.

    python tests/chaos/engines.py [--points 2] [--seed 0]     half a minute a point on two cores

The real pool stage, Ray Data and vLLM, with a generator of a few thousand parameters. Killed (SIGKILL) is the engine's process:
once while it starts, once after a number of shards that is drawn, and each time that it is started again.

The verdict is `same` if the call goes on by itself, or, where the engine dies each time, ends with one clear error and the next
call goes on; if no shard that was committed is written again; and if then all files are those of an undisturbed pool.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from pipelines.generate.config import GenerationConfig
from pipelines.generate.pool import YIELD_FILE, generate
from pipelines.resources import Resources
from sweep.run.failures import one_line
from tests.pipelines.tiny_generator import save_models

ROOT = Path(__file__).parents[2]
ENGINE = "ShardWriter"
CONFIG = GenerationConfig(
    num_per_label=120, shard_size=16, max_new_tokens=64, max_num_seqs=32, dtype="float32", generator_id="tiny"
)
Files = dict[str, tuple[str, int]]


def files_of(output: Path) -> Files:
    """Path → sha256 and time of change, without what says how the pool was written."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.name != YIELD_FILE]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(output).parts)]
    return {
        str(path.relative_to(output)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in paths
    }


def kill_engine() -> bool:
    """Whether there was one."""
    found = False
    for process in psutil.Process().children(recursive=True):
        try:
            if ENGINE in " ".join(process.cmdline()):
                process.kill()
                found = True
        except psutil.Error:
            continue
    return found


class Killer:
    """Kills an engine: once as it starts, once after a number of shards, or each one that there is."""

    def __init__(self, when: int | str) -> None:
        self.num_kills = 0
        self._when = when
        self._committed: Files = {}
        self._output = Path()
        self._ended = threading.Event()

    def run(self, models: Path, output: Path) -> str:
        """Generate; the line of the error, "" if there is none."""
        self._output = output
        watch = threading.Thread(target=self._watch)
        watch.start()
        try:
            generate(CONFIG, str(models / "trained"), str(output), resources=Resources(), report=self._on_commit)
        except Exception as error:
            return one_line(error)
        finally:
            self._ended.set()
            watch.join()
        return ""

    def rewritten(self) -> list[str]:
        """Files of shards that were committed when the engine was killed, and that were written again."""
        after = files_of(self._output)
        return sorted(
            path for path, file in self._committed.items() if path.startswith("shards/") and after.get(path, file) != file
        )

    def _on_commit(self, metrics: Any, step: int) -> None:
        if self._when == step:
            self._committed = files_of(self._output)
            self.num_kills += kill_engine()

    def _watch(self) -> None:
        while isinstance(self._when, str) and not self._ended.wait(0.2):
            if self._when == "at its start" and self.num_kills:
                return
            self.num_kills += kill_engine()


def break_all(folder: Path, points: int, seed: int) -> dict[str, dict[str, Any]]:
    """By kind of death: `points`, how many calls `went_on` and `said` something, and which verdicts were `wrong`."""
    models, undisturbed = folder / "models", folder / "undisturbed"
    save_models(models)
    generate(CONFIG, str(models / "trained"), str(undisturbed), resources=Resources())
    expected = files_of(undisturbed)
    num_shards = sum(path.startswith("shards/") for path in expected)
    places = random.Random(seed).sample(range(1, num_shards // 2), points)
    kinds: dict[str, list[int | str]] = {
        "once while it starts": ["at its start"],
        "once while it writes": list(places),
        "each time that it is started": ["each time"],
    }
    found: dict[str, dict[str, Any]] = {}
    for kind, whens in kinds.items():
        row = found[kind] = {"points": 0, "went_on": 0, "said": 0, "wrong": []}
        for when in whens:
            row["points"] += 1
            output = folder / f"{when}".replace(" ", "-")
            killer = Killer(when)
            line = killer.run(models, output)
            row["went_on"] += not line
            row["said"] += bool(line)
            told = f"at {when}, killed {killer.num_kills} times"
            if when == "each time":
                if not line.startswith("its process"):
                    row["wrong"].append(f"{told}: it said {line!r}")
                if again := Killer(0).run(models, output):
                    row["wrong"].append(f"{told}: the next call said {again!r}")
            elif line or killer.num_kills != 1:
                row["wrong"].append(f"{told}: it said {line!r}")
            if rewritten := killer.rewritten():
                row["wrong"].append(f"{told}: written again though committed: {rewritten}")
            after = files_of(output)
            hashes = [{path: sha256 for path, (sha256, _) in files.items()} for files in (expected, after)]
            if unlike := sorted(path for path in {*expected, *after} if hashes[0].get(path) != hashes[1].get(path)):
                row["wrong"].append(f"{told}: other bytes in {', '.join(unlike[:3])}")
        print(f"{kind:32} {row['points']} points, {row['went_on']} went on, {len(row['wrong'])} wrong", flush=True)
        for line in row["wrong"]:
            print(f"    WRONG {line}", flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2, help="of an engine that is killed once while it writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the counts")
    options = parser.parse_args(arguments)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=environment,
        )
        for name in ("ray", "ray.data"):
            # As a run has it: what is wrong is in the error.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            found = break_all(Path(folder), options.points, options.seed)
        finally:
            ray.shutdown()
    counts = {kind: {**row, "wrong": len(row["wrong"])} for kind, row in found.items()}
    if options.json:
        options.json.write_text(json.dumps(counts))
    return int(any(row["wrong"] for row in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
