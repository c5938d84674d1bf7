"""Studies whose pool a prompted checkpoint or a model behind an endpoint writes, for real, to their verdicts."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.generate.prompting import Prompting, Shot, plain_prompt
from pipelines.tasks.prompts import EN_DASH
from sweep.graph.records import Store, Study
from tests.pipelines.generate.test_endpoint import server  # noqa: F401 (a fixture)
from tests.pipelines.tiny_generator import KNOWN_SENTENCES, SENTIMENT, save_models

STUDY = """\
import numpy as np

from sweep import (
    EndpointGenerator, EvaluationConfig, Experiment, FinetuneConfig, GenerationConfig, Heuristic, PromptedGenerator, Resources,
    ScratchModelConfig, TableSources,
)
from tests.pipelines.tiny_generator import SENTIMENT


def laughed(sentences):
    return np.array(["1" in sentence or "laughed" in sentence for sentence in sentences], dtype=bool)


LAUGHED = Heuristic("laughed", laughed, predicts="bad")


def tiny() -> Experiment:
    recipe = FinetuneConfig(method="full", learning_rate=1e-3, batch_size=16, epochs=2, dtype="float32", zero_stage=0)
    return Experiment(
        name="tiny",
        title="Sentences from GENERATOR",
        task=SENTIMENT,
        sources=TableSources(train="train.csv", general="test.csv"),
        base_model=ScratchModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64),
        generator=GENERATOR,
        generation=GenerationConfig(num_per_label=20, shard_size=32, max_new_tokens=40, dtype="float32", min_yield=0.05),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("test",), dtype="float32", heuristics=(LAUGHED,)),
        heuristic=LAUGHED,
        starting_sizes=(0,),
        training_sizes=(30,),
        seeds=(0, 1),
        kinds=("original", "synthetic"),
        general_set="test",
        blindspot_set="test",
        resources={"starting_point": Resources(in_process=True), "task_model": Resources(in_process=True)},
    )
"""


def write_study(folder: Path, generator: str) -> list[dict[str, str]]:
    rows = [{"sentence": f"{label} {number}.", "label": label} for number in range(40) for label in SENTIMENT.labels]
    for name, part in (("train", rows[:60]), ("test", rows[60:])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["sentence", "label"])
            writer.writeheader()
            writer.writerows(part)
    (folder / "study.py").write_text(STUDY.replace("GENERATOR", generator))
    return rows[:60]


def run_whole(blindsweep: Callable[..., str]) -> list[str]:
    """Run the study to its report and verdicts; return the pool's sentences."""
    told = blindsweep("run", "study.py", "--max-cpus", "2")
    assert " 0 were there" in told and "failed" not in told, told
    claims = {claim["name"]: claim for claim in json.loads(blindsweep("verdicts", "tiny", "--json"))["claims"]}
    assert claims["synthetic_reinforces"]["settings"]
    assert "everything is built" in blindsweep("plan", "study.py")
    store = Store("store")
    (pool,) = [step for step in Study.load(store, "tiny").steps if step.stage == "synthetic_pool"]
    sentences: list[str] = pq.read_table(Path(store.folder(pool.id)) / "pool")["sentence"].to_pylist()
    return sentences


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_behind_an_endpoint_writes_a_studys_pool(
    blindsweep: Callable[..., str],
    server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-this-is-secret")
    write_study(
        tmp_path,
        f"EndpointGenerator({server.url!r}, 'tiny', price_per_million_input_tokens=1.0, "
        "price_per_million_output_tokens=4.0, shots=2)",
    )
    assert "tiny" in blindsweep("plan", "study.py") and not server.requests
    sentences = run_whole(blindsweep)
    assert len(sentences) >= 40 and all(sentence.startswith("Sentence ") for sentence in sentences)
    assert not any(b"sk-this-is-secret" in path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_prompted_checkpoint_writes_a_studys_pool(blindsweep: Callable[..., str], tmp_path: Path) -> None:
    prompting = Prompting("Go on.", shots=1)
    shots = [Shot(row["label"], row) for row in write_study(
        tmp_path, "PromptedGenerator('trained/model', instruction='Go on.', shots=1)"
    )]  # fmt: skip
    save_models(tmp_path, [
        f"{plain_prompt(label, [shot], prompting, SENTIMENT)}. Sentence: {sentence}{EN_DASH}"
        for label, sentence in KNOWN_SENTENCES.items()
        for shot in shots
        if shot.label == label
    ])  # fmt: skip
    sentences = run_whole(blindsweep)
    assert set(sentences) & set(KNOWN_SENTENCES.values())
