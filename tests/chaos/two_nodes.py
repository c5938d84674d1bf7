"""A study over two nodes of one machine, of which one is killed while it runs: what the user sees, what it costs.

    python tests/chaos/two_nodes.py [FOLDER] [--scale N] [--case NAME]...     the table of docs/reliability.md

A node is Ray's: a raylet and its workers, with a CPU of its own. Killed means SIGKILL for all of them at once; another one
joins 20 s later. The driver's node has one CPU as well, and stays. Undisturbed, a scale of 1 takes four minutes on two cores.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sweep import (
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    GenerationConfig,
    GeneratorConfig,
    Resources,
    ScratchModelConfig,
    TemplateCorpusConfig,
)

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
JOINS_AFTER_S = 20
STAGES = ("generator", "synthetic_pool", "task_model")


def tiny(scale: int = 1, gpus: float = 0) -> Experiment:
    """Everything real and small: a generator and a pool over two workers, four cells of one worker each.

    `gpus` is for each engine of the pool; all else stays on CPUs.
    """
    recipe = FinetuneConfig(
        method="full",
        learning_rate=4e-3,
        batch_size=32,
        epochs=3,
        warmup_ratio=0.1,
        dtype="float32",
        zero_stage=0,
        checkpoint_every=20,
    )
    two, engines = Resources(num_workers=2), Resources(num_workers=2, gpus_per_worker=gpus)
    return Experiment(
        name="tiny",
        title="Small enough to be disturbed",
        sources=TemplateCorpusConfig(num_train=3_000 * scale, num_dev=30, num_test=60, num_probe_per_group=12),
        base_model=ScratchModelConfig(
            hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=128, vocabulary_size=768
        ),
        generator=GeneratorConfig(finetune=recipe),
        generation=GenerationConfig(
            num_per_label=400 * scale,
            shard_size=64,
            max_new_tokens=64,
            dtype="float32",
            min_yield=0.05,
            # Several studies at once share a GPU.
            gpu_memory_utilization=0.05,
        ),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32"),
        starting_sizes=(0,),
        training_sizes=(600 * scale, 900 * scale),
        seeds=(0,),
        kinds=("original", "synthetic"),
        general_set="template_test",
        blindspot_set="template_probe",
        resources={
            "generator": two,
            "synthetic_pool": engines,
            "evaluation": Resources(in_process=True),
        },
    )


@dataclass
class Ended:
    """A run of the study: its exit code, seconds, output, and the hash of each model and table by its place in the store."""

    code: int
    seconds: float
    output: str
    artifacts: dict[str, str]
    num_kills: int

    def said(self, *events: str) -> list[str]:
        """The lines of some events, without their time and position."""
        found = [re.search(rf"\b({'|'.join(events)})\b +\S+/.*", line) for line in self.output.splitlines()]
        return [" ".join(match[0].split()) for match in found if match]


class Nodes:
    """A cluster of the driver's node and another one that can be killed and replaced."""

    def __init__(self, gpus: float = 0) -> None:
        from ray.cluster_utils import Cluster

        self._node = {**NODE, "num_gpus": gpus}
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._node, "include_dashboard": False})
        self._other = self._cluster.add_node(**self._node)
        self._cluster.wait_for_nodes()
        self.address = self._cluster.address

    def kill(self) -> None:
        """SIGKILL for the other node's raylet, its agents and its workers, none of which may do anything before it ends."""
        processes = [info.process.pid for infos in self._other.all_processes.values() for info in infos]
        tree = [child for pid in processes for child in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)
        self._cluster.remove_node(self._other, allow_graceful=False)

    def replace(self) -> None:
        self._other = self._cluster.add_node(**self._node)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def two_nodes(gpus: float = 0) -> Iterator[Nodes]:
    nodes = Nodes(gpus)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def has_committed(stage: str) -> Callable[[Path], bool]:
    """Whether a step of the stage has committed something and is not complete."""
    what = "shards/*.json" if stage == "synthetic_pool" else ".checkpoints/step*.json"

    def look(store: Path) -> bool:
        folders = [folder for folder in store.glob(f"{stage}/*") if not (folder / "record.json").exists()]
        return any(True for folder in folders for _ in folder.glob(what))

    return look


def run(
    store: Path,
    nodes: Nodes,
    when: Callable[[Path, float], bool],
    *,
    parameters: Sequence[str] = (),
    limit_s: float = 900,
) -> Ended:
    """The documented command with default flags; the other node is killed whenever `when(store, seconds since it joined)`."""
    study = ["run", str(__file__), *(word for parameter in parameters for word in ("-p", parameter))]
    where = ["--store", str(store), "--address", nodes.address, "--no-report"]
    command = [sys.executable, "-m", "sweep.cli", *study, *where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    num_kills, joins_at, began = 0, 0.0, time.monotonic()
    joined = began
    with tempfile.TemporaryFile("w+") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while driver.poll() is None and time.monotonic() - began < limit_s:
                if joins_at and time.monotonic() > joins_at:
                    nodes.replace()
                    joins_at, joined = 0.0, time.monotonic()
                elif not joins_at and when(store, time.monotonic() - joined):
                    nodes.kill()
                    num_kills, joins_at = num_kills + 1, time.monotonic() + JOINS_AFTER_S
                time.sleep(0.2)
            seconds = time.monotonic() - began
        finally:
            if driver.poll() is None:
                driver.terminate()
                driver.wait(30)
        if joins_at:
            nodes.replace()
        log.seek(0)
        return Ended(driver.returncode, seconds, log.read(), artifacts(store), num_kills)


def never(store: Path, seconds: float) -> bool:
    return False


def once_during(*stages: str) -> Callable[[Path, float], bool]:
    """Once in each of the stages, after the first commit."""
    left = list(stages)

    def when(store: Path, seconds: float) -> bool:
        if not left or not has_committed(left[0])(store):
            return False
        left.pop(0)
        return True

    return when


def every(period_s: float) -> Callable[[Path, float], bool]:
    """That long after the last one has joined, so that nodes are lost at that rate."""
    return lambda store, seconds: seconds > period_s - JOINS_AFTER_S


def artifacts(store: Path) -> dict[str, str]:
    """What the study's numbers come from; logs have times in them."""
    found: dict[str, str] = {}
    for path in store.glob("*/*/record.json"):
        files: dict[str, Any] = json.loads(path.read_bytes())["files"]
        for name, file in files.items():
            if name.endswith((".safetensors", ".parquet")):
                found[f"{path.parent.relative_to(store)}/{name}"] = json.dumps(file, sort_keys=True)
    return found


CASES: dict[str, Callable[[], Callable[[Path, float], bool]]] = {
    "none": lambda: never,
    "during the generator": lambda: once_during("generator"),
    "during the pool": lambda: once_during("synthetic_pool"),
    "during the cells": lambda: once_during("task_model"),
    "every minute": lambda: every(60),
    "every five minutes": lambda: every(300),
}


def main(folder: Path, cases: Sequence[str], scale: int, gpus: int) -> None:
    undisturbed = None
    print("| a node is lost | times | what the user saw | exit | seconds | of the undisturbed run | same bytes |")
    print("|---|---|---|---|---|---|---|")
    for name in cases:
        with two_nodes(gpus) as nodes:
            parameters = (f"scale={scale}", f"gpus={gpus}")
            ended = run(folder / name.replace(" ", "-"), nodes, CASES[name](), parameters=parameters)
        (folder / f"{name.replace(' ', '-')}.log").write_text(ended.output)
        (folder / f"{name.replace(' ', '-')}.json").write_text(json.dumps(ended.artifacts, indent=1, sort_keys=True))
        undisturbed = ended if name == "none" else undisturbed
        seen = "; ".join(dict.fromkeys(ended.said("lost", "retry", "waits", "failed"))) or "nothing"
        ratio, same = "", ""
        if undisturbed:
            ratio = f"{ended.seconds / undisturbed.seconds:.2f}"
            same = "yes" if ended.artifacts == undisturbed.artifacts else "no"
        print(f"| {name} | {ended.num_kills} | {seen} | {ended.code} | {ended.seconds:.0f} | {ratio} | {same} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where stores and logs are kept")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="of each node; vLLM's CUDA build takes 1")
    parser.add_argument("--case", action="append", choices=CASES, help="only this; may be given again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        main(folder, options.case or list(CASES), options.scale, options.gpus)
