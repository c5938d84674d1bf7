"""The stage of the synthetic pool with engines that only sleep: Ray Data, parsing, Parquet, commits, the store's requests.

An engine sleeps for a shard's time, if any is given, and hands out texts that parse. All else is the stage as it is:
`generate`, its pool of workers, the decision about each shard, and how one is committed.
"""

import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.scale_driver import Watch, own_store
from benchmarks.scale_requests import counted_s3
from pipelines.generate import writer
from pipelines.generate.config import GenerationConfig
from pipelines.generate.pool import generate
from pipelines.resources import Resources
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import generator_prompt, generator_text

SHARD_SIZE = 1_024
FIGURES = {
    "shards_per_s": ("shards", "shards/s"),
    "writer_cpu_ms": ("a writer's CPU a shard", "ms"),
    "driver_cpu_ms": ("the driver's CPU a shard", "ms"),
    "others_cpu_ms": ("Ray's own CPU a shard", "ms"),
    "requests": ("store's requests a shard", "requests"),
}
"""Measured: title and unit."""


class StandInEngine:
    """In the place of vLLM: one shard's texts at a time, after a shard's time."""

    def __init__(self, shard_s: float) -> None:
        self._shard_s = shard_s
        self._lock = threading.Lock()

    def complete(self, label: str, sampling: Any, seeds: list[int]) -> tuple[list[str], int]:
        with self._lock:
            time.sleep(self._shard_s)
        return [text_of(label, seed) for seed in seeds], 58 * len(seeds)


def text_of(label: str, seed: int) -> str:
    """What follows the prompt in a text of about the usual length, another one for each seed."""
    words = " ".join(f"word{seed >> shift & 0xFFF}" for shift in range(0, 48, 4))
    text = generator_text(label, {"premise": f"The {words} of it all.", "hypothesis": f"It is {words[:40]}."})
    return text.removeprefix(generator_prompt(label))


def _no_options(*_: Any, **__: Any) -> dict[str, Any]:
    return {}


def _prompts(*_: Any) -> dict[str, str]:
    return {label: label for label in NLI.labels}


class StandInWriter(writer.ShardWriter):
    """A worker of the pool whose process has no engine and no tokenizer."""

    def __init__(self, *, shard_s: float, **given: Any) -> None:
        def engine(*_: Any, **__: Any) -> StandInEngine:
            return StandInEngine(shard_s)

        names = {
            "Engine": engine,
            "engine_options": _no_options,
            "encode_prompts": _prompts,
            # torch is imported for it.
            "_peak_gpu_memory_gib": float,
        }
        for name, value in names.items():
            setattr(writer, name, value)
        super().__init__(**given)

    def _sampling(self) -> None:
        """An engine that sleeps draws nothing."""


def measure_pool(num_engines: int, store_kind: str, folder: str, *, num_shards: int, shard_s: float) -> dict[str, Any]:
    """A whole pool of about so many shards by so many engines; figures by FIGURES' names and others, None for what is none."""
    import ray

    model = Path(folder) / "generator"
    model.mkdir()
    (model / "config.json").write_text("{}")
    config = GenerationConfig(num_per_label=num_shards * SHARD_SIZE // len(NLI.labels), shard_size=SHARD_SIZE, min_yield=0.9)

    watch, before = Watch(), 0

    def report(metrics: Any, step: int) -> None:
        nonlocal before
        if not before:
            # Workers are up; what they have begun by then counts for little.
            before = step
            watch.mark()

    with counted_s3() if store_kind == "s3" else own_store(folder) as (uri, requests):
        writer.ShardWriter = type("ShardWriter", (StandInWriter,), {"__init__": _with(shard_s)})  # type: ignore[assignment, misc]
        ray.init(num_cpus=num_engines, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        with watch:
            metrics = generate(config, str(model), f"{uri}/pool", resources=Resources(num_workers=num_engines), report=report)
            watch.read()
        counts = requests()
        ray.shutdown()
    committed, kinds = metrics["num_shards"] + metrics["num_surplus_shards"], watch.kinds()
    counted = max(committed - before, 1)
    writers = [name for name in kinds if name.startswith("MapWorker")]
    writers_s = sum(kinds[name].cpu_s for name in writers)
    others_s = sum(kind.cpu_s for name, kind in kinds.items() if name not in writers)
    return {
        "num_shards": committed,
        "shards_per_s": counted / watch.seconds,
        "writer_cpu_ms": 1_000 * writers_s / counted,
        "driver_cpu_ms": 1_000 * watch.own_s / counted,
        "others_cpu_ms": 1_000 * others_s / counted,
        "requests": sum(counts.values()) / committed if counts else None,
        "requests_by_kind": {kind: number / committed for kind, number in sorted(counts.items())},
        "processes": {name: asdict(kind) for name, kind in kinds.items()},
    }


def _with(shard_s: float) -> Any:
    def __init__(self: StandInWriter, **given: Any) -> None:
        StandInWriter.__init__(self, shard_s=shard_s, **given)

    return __init__
