"""A study of two seeds, each with a generator of its own, as if it had been built."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from pipelines.storage import join, write_bytes
from sweep.graph.records import Record, Store
from sweep.graph.step import Step
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded
from tests.sweep.conftest import record_of

MODELS = ("base_model", "generator", "starting_point", "task_model")
Build = Callable[..., Store]


@pytest.fixture
def two_seeds(experiment: Experiment) -> Experiment:
    return dataclasses.replace(
        experiment, seeds=(0, 1), generators=2, starting_sizes=(0,), training_sizes=(30,), kinds=("synthetic",)
    )


@pytest.fixture
def build(two_seeds: Experiment, tmp_path: Path) -> Build:
    """`build(name, fingerprints=None, salt="", uri=None)`: a store with those artifacts, whose trained weights hold `salt`."""

    def written(
        name: str, fingerprints: Collection[str] | None = None, salt: str = "", uri: str | None = None, size: int = 400
    ) -> Store:
        store, built = Store(uri or tmp_path / name), dict[str, Record]()
        steps = build_grid(two_seeds)
        for step in steps:
            if fingerprints is None or step.fingerprint in fingerprints:
                built[step.fingerprint] = build_one(store, step, built, salt, size)
        manifest(Loaded(two_seeds, {}), steps).save(store)
        return store

    return written


def build_one(store: Store, step: Step, built: dict[str, Record], salt: str, size: int) -> Record:
    folder = store.folder(step.id)
    of = f"{step.fingerprint}{salt if step.stage not in ('sources', 'base_model') else ''}".encode()
    blocks = [hashlib.sha256(of + bytes([place % 256, place // 256])).digest() for place in range(size // 32 + 1)]
    write_bytes(join(folder, "results/values.bin"), b"".join(blocks)[:size])
    write_bytes(join(folder, "metrics.jsonl"), b'{"loss": 1.0}\n' * 20)
    if step.stage in MODELS:
        write_bytes(join(folder, "model/model.safetensors"), of * 50)
    record = record_of(
        step,
        files=store.files(folder),
        input_contents={name: built[source.fingerprint].content for name, source in step.inputs.items()},
    )
    store.write_record(record)
    return record
