"""Finetuning and generation over two real Ray nodes on one machine: the generator learns, then it writes.

Each node has one CPU, so that two workers of one CPU each can only run one to a node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model
from pipelines.finetune.generator import GeneratorConfig, finetune_generator
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetune_task_model, initial_task_model
from pipelines.generate.config import GenerationConfig
from pipelines.generate.pool import generate
from pipelines.resources import Resources
from pipelines.tasks.examples import read_examples

ROOT = Path(__file__).parents[3]
TWO_WORKERS = Resources(num_workers=2, cpus_per_worker=1)
NUM_PER_LABEL = 20


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[set[str]]:
    """The ids of the two nodes of a running cluster that this process is connected to."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        # Workers find the packages as this process does, also where they are not installed.
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        assert len(alive) == 2
        yield alive
    finally:
        ray.shutdown()
        cluster.shutdown()


def nodes_by_actor_class() -> dict[str, set[str]]:
    """On which nodes the actors of each class were placed, those that have ended included."""
    import ray._private.state

    placed: dict[str, set[str]] = defaultdict(set)
    for actor in ray._private.state.actors().values():
        placed[actor["ActorClassName"]].add(actor["Address"]["NodeID"])
    return placed


def nodes_of(marker: str) -> set[str]:
    """The nodes of the actors whose class name has `marker` in it."""
    placed = nodes_by_actor_class()
    found = [nodes for name, nodes in placed.items() if marker in name]
    assert found, f"no actor class has {marker!r} in its name; there were {sorted(placed)}"
    return set.union(*found)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sources/` and `base/`: a small corpus, and a tiny Llama with random weights."""
    folder = tmp_path_factory.mktemp("two_nodes")
    prepare_template_corpus(
        TemplateCorpusConfig(num_train=3_000, num_dev=30, num_test=30, num_probe_per_group=12),
        str(folder / "sources"),
    )
    shape = ScratchModelConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=128,
        vocabulary_size=768,
    )
    prepare_base_model(shape, str(folder / "base"), sources=str(folder / "sources"))
    return folder


class Losses:
    """Receives what a stage reports, in a file, because it is called in another process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, metrics: Any, step: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{metrics['loss']}\n")

    def read(self) -> list[float]:
        return [float(line) for line in self.path.read_text().splitlines()]


@pytest.fixture(scope="module")
def generator(two_nodes: set[str], prepared: Path) -> tuple[Path, dict[str, Any], list[float]]:
    """G, finetuned by two workers: its folder, its metrics and the losses that it reported."""
    losses = Losses(prepared / "losses.txt")
    config = FinetuneConfig(
        method="full",
        learning_rate=4e-3,
        batch_size=32,
        epochs=2,
        warmup_ratio=0.1,
        dtype="float32",
        zero_stage=1,
        log_every=20,
    )
    metrics = finetune_generator(
        GeneratorConfig(config, seed=0),
        str(prepared / "sources" / "train.parquet"),
        str(prepared / "base"),
        str(prepared / "generator"),
        resources=TWO_WORKERS,
        report=losses,
    )
    return prepared / "generator", metrics, losses.read()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_finetuning_uses_both_nodes_and_learns(
    two_nodes: set[str], generator: tuple[Path, dict[str, Any], list[float]]
) -> None:
    folder, metrics, losses = generator
    assert nodes_of("RayTrainWorker") == two_nodes
    assert metrics["num_examples"] == 3_000
    # The shared batch is split over the workers, not given to each: 2 epochs of 3,000 in batches of 32.
    assert metrics["num_steps"] == 188
    assert losses[-1] < 0.5 * losses[0]
    assert (folder / "model" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_generation_uses_both_nodes_and_parses(
    two_nodes: set[str], prepared: Path, generator: tuple[Path, dict[str, Any], list[float]]
) -> None:
    config = GenerationConfig(num_per_label=NUM_PER_LABEL, shard_size=32, max_new_tokens=64, dtype="float32", min_yield=0.05)
    metrics = generate(config, str(generator[0]), str(prepared / "pool"), resources=TWO_WORKERS)
    assert nodes_of("ShardWriter") == two_nodes
    pool = read_examples(str(prepared / "pool" / "pool"))
    assert metrics["parsed"] == pool.num_rows
    for label in ("entailment", "neutral", "contradiction"):
        num_parsed = pool.column("label").to_pylist().count(label)
        assert num_parsed == metrics[f"parsed/{label}"] >= NUM_PER_LABEL
    assert len(set(pool.column("id").to_pylist())) == pool.num_rows
    rejects = [pq.read_table(path) for path in (prepared / "pool" / "rejects").glob("*.parquet")]
    # Every prompt is accounted for: whole shards of 32, each text parsed or kept with a reason.
    assert pool.num_rows + sum(table.num_rows for table in rejects) == 32 * metrics["num_shards"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_model_of_two_nodes_equals_that_of_one(two_nodes: set[str], prepared: Path) -> None:
    from safetensors.numpy import load_file

    initial_task_model(UntrainedConfig(seed=0), str(prepared / "base"), str(prepared / "start"))
    config = FinetuneConfig(
        learning_rate=1e-3,
        epochs=0.1,
        batch_size=12,
        lora_rank=4,
        # The workers draw different dropout masks; without dropout only rounding is left.
        lora_dropout=0.0,
        dtype="float32",
        share_prefix=False,
    )
    heads = {}
    for num_workers in (1, 2):
        output = prepared / f"task_model_{num_workers}"
        finetune_task_model(
            TaskModelConfig(config, seed=0),
            str(prepared / "sources" / "train.parquet"),
            str(prepared / "base"),
            str(prepared / "start"),
            str(output),
            resources=Resources(num_workers=num_workers),
        )
        heads[num_workers] = load_file(output / "head.safetensors")
    start = load_file(prepared / "start" / "head.safetensors")
    for name, head in heads[2].items():
        moved = abs(head - start[name]).max()
        assert moved > 1e-3
        assert abs(head - heads[1][name]).max() < 0.02 * moved
