"""A study in a store, as it is recorded: real models that nobody trained, a pool, an evaluation."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.data.training_set import TrainingSetConfig
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.task_model import UntrainedConfig
from pipelines.resources import Resources
from pipelines.storage import join
from pipelines.tasks.examples import write_examples
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import EN_DASH
from sweep.graph.records import ArtifactId, Record, Store, Study, StudyStep
from sweep.graph.stages import REGISTRY, Job
from tests.pipelines.conftest import labelled_pairs

SHAPE = ScratchModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64, vocabulary_size=400)
CELL = {"starting_size": 0, "kind": "synthetic", "size": 48, "seed": 0}
MODEL = "start0-synthetic-48-seed0"
TYPES: Mapping[str, Mapping[str, Any]] = {
    "sources": {"type": "TemplateCorpusConfig"},
    "base_model": {"type": "ScratchModelConfig"},
    "generator": {"type": "GeneratorConfig", "end_marker": EN_DASH},
    "synthetic_pool": {"type": "GenerationConfig", "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 0},
}


def pool_rows() -> pa.Table:
    rows = labelled_pairs(90, seed=7)
    return rows.append_column("generator", pa.repeat(pa.scalar("0123456789ab"), rows.num_rows))


def write_study(root: Path, name: str = "tiny") -> tuple[Store, dict[str, Record]]:
    """Records by `stage/slug`."""
    store, records, steps = Store(root), {}, []

    def record(
        stage: str,
        slug: str,
        write: Callable[[str, Mapping[str, str]], Any],
        coordinates: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        **inputs: str,
    ) -> None:
        sources = {key: records[source].id for key, source in inputs.items()}
        identity = ArtifactId(stage, slug, f"{len(records) + 1:04x}{len(records) + 0xA0:08x}" + "0" * 52)
        folder = store.folder(identity)
        write(folder, {key: store.folder(source) for key, source in sources.items()})
        built = Record(
            stage,
            slug,
            identity.fingerprint,
            {"config": TYPES.get(stage, {"task": None})},
            sources,
            coordinates=coordinates or {},
            metrics=metrics or {},
            files=store.files(folder),
            git={"commit": "f" * 40, "dirty": False},
            created="2026-01-02T03:04:05+00:00",
        )
        store.write_record(built)
        records[f"{stage}/{slug}"] = built
        fingerprints = {key: source.fingerprint for key, source in sources.items()}
        steps.append(StudyStep(stage, slug, identity.fingerprint, coordinates or {}, fingerprints))

    def stage(name: str, config: Any) -> Callable[[str, Mapping[str, str]], Any]:
        return lambda folder, inputs: REGISTRY[name].run(Job(config, inputs, folder, Resources(in_process=True)))

    def sources(folder: str, _: Mapping[str, str]) -> None:
        for set_name, seed, num in (("train", 0, 96), ("dev", 3, 12), ("template_test", 1, 40)):
            write_examples(labelled_pairs(num, seed=seed), join(folder, f"{set_name}.parquet"))

    record("sources", "data", sources)
    record("base_model", "base", stage("base_model", SHAPE), sources="sources/data")
    record(
        "generator",
        "generator",
        lambda folder, inputs: shutil.copytree(join(inputs["base_model"], "model"), join(folder, "model")),
        sources="sources/data",
        base_model="base_model/base",
    )
    record(
        "synthetic_pool",
        "pool",
        lambda folder, _: write_examples(pool_rows(), join(folder, "pool", "entailment-00000.parquet")),
        metrics={"parsed": 90, "rejected": 3, "rejected/no_hypothesis": 3},
        generator="generator/generator",
    )
    start = {"starting_size": 0, "kind": "none", "size": 0, "seed": 0}
    record("starting_point", "start0-seed0", stage("starting_point", UntrainedConfig(0)), start, base_model="base_model/base")
    drawn = TrainingSetConfig("synthetic", 48, 0)
    record("training_set", "synthetic-48-seed0", stage("training_set", drawn), source="synthetic_pool/pool")

    def head(folder: str, inputs: Mapping[str, str]) -> None:
        from safetensors.torch import load_file, save_file

        Path(folder).mkdir(parents=True)
        drawn = load_file(Path(inputs["starting_point"]) / "head.safetensors")["weight"]
        save_file({"weight": 50 * drawn}, f"{folder}/head.safetensors")

    of_cell = {"training_set": "training_set/synthetic-48-seed0", "starting_point": "starting_point/start0-seed0"}
    record("task_model", MODEL, head, CELL, base_model="base_model/base", **of_cell)
    evaluation = EvaluationConfig(("template_test",), dtype="float32")
    inputs = {"sources": "sources/data", "base_model": "base_model/base"}
    record("evaluation", MODEL, stage("evaluation", evaluation), CELL, **inputs, task_model=f"task_model/{MODEL}")

    def with_test_sets(folder: str, inputs: Mapping[str, str]) -> None:
        sources(folder, inputs)
        write_examples(labelled_pairs(20, seed=4), join(folder, "challenge.parquet"))

    # As a study has it whose blindspot set is not of its training data: what is built on that does not change with it.
    record("sources", "data-with-test-sets", with_test_sets)
    parameters = {"general_set": "template_test", "task": NLI.name}
    Study(name, "A tiny study", parameters, tuple(steps)).save(store)
    return store, records
