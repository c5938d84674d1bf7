"""One small Ray, one tiny base model, its labelled files and tiny generators, shared by all tests of a process."""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.tasks.examples import write_examples

WORDS = ("the", "a", "doctor", "lawyer", "dog", "cat", "saw", "chased", "liked", "helped", "old", "young", "quickly", "red")


def labelled_pairs(num, seed=0):
    """Pairs that a tiny model can tell apart: a prefix is entailed, a negation contradicted, else neutral."""
    rng = random.Random(seed)
    rows = []
    for index in range(num):
        premise = " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9)))
        label = rng.choice(["entailment", "neutral", "contradiction"])
        hypothesis = {
            "entailment": " ".join(premise.split()[:3]),
            "contradiction": f"not {premise}",
            "neutral": " ".join(rng.choice(WORDS) for _ in range(4)),
        }[label]
        rows.append({"id": f"pair-{index}", "premise": premise, "hypothesis": hypothesis, "label": label})
    return pa.Table.from_pylist(rows)


OWN_RAY = re.compile(r"\bray\.init\(|\bCluster\(")
"""In the text of a file of tests: it starts a Ray of its own, which there can be one of in a process."""


@pytest.fixture(scope="module")
def ray_two_cpus():
    """Left on for the next file that takes it: to start it takes seconds. `pytest_runtest_teardown` ends it."""
    import ray

    if not ray.is_initialized():
        # "local", or another test's cluster would be joined, of which `Cluster` leaves the address behind.
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """End a shared Ray after its last test, and before a file of other tests or one with a Ray of its own."""
    yield
    if nextitem is not None and nextitem.path == item.path:
        return
    here = Path(__file__).parent
    ends = nextitem is None or here not in nextitem.path.parents or OWN_RAY.search(nextitem.path.read_text())
    if ends and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_examples(labelled_pairs(96), folder / "train.parquet")
    write_examples(labelled_pairs(60, seed=1), folder / "template_test.parquet")
    return str(folder)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory, sources):
    from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model

    folder = str(tmp_path_factory.mktemp("base"))
    shape = ScratchModelConfig(
        hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=96, vocabulary_size=400
    )
    prepare_base_model(shape, folder, sources=sources)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, base_model):
    from pipelines.finetune.task_model import UntrainedConfig, initial_task_model

    folder = str(tmp_path_factory.mktemp("untrained"))
    initial_task_model(UntrainedConfig(seed=3), base_model, folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with the generators `trained/model` and `random/model` of `tiny_generator`."""
    from tests.pipelines.tiny_generator import save_models

    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder
