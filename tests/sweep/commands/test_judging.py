"""Rows of any table are judged by a study's task model, and by a classifier's own checkpoint, as the study's stage does."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.task_model import UntrainedConfig
from pipelines.models.tokenizer import load_tokenizer
from pipelines.resources import Resources
from pipelines.storage import join
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.nli import LABELS
from sweep import cli
from sweep.commands.judging import judge_tables
from sweep.graph.records import ArtifactId, Record, Store
from sweep.graph.stages import REGISTRY, Job
from tests.pipelines.conftest import labelled_pairs

SHAPE = ScratchModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64, vocabulary_size=400)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Record]]:
    """A store with a base model, a training set and a task model, recorded as a study records them.

    The task model was not trained: its head is a drawn one that is sure of itself.
    """
    store, records = Store(tmp_path_factory.mktemp("store")), {}

    def record(stage: str, slug: str, write: Callable[[str, Mapping[str, str]], Any], **inputs: str) -> None:
        sources = {name: records[source].id for name, source in inputs.items()}
        identity = ArtifactId(stage, slug, f"{len(records) + 1:012x}" + "0" * 52)
        folder = store.folder(identity)
        write(folder, {name: store.folder(source) for name, source in sources.items()})
        payload = {"config": {"task": None}}
        records[slug] = Record(stage, slug, identity.fingerprint, payload, sources, files=store.files(folder))
        store.write_record(records[slug])

    def stage(name: str, config: Any) -> Callable[[str, Mapping[str, str]], Any]:
        return lambda folder, inputs: REGISTRY[name].run(Job(config, inputs, folder, Resources(in_process=True)))

    def save_head(folder: str, inputs: Mapping[str, str]) -> None:
        from safetensors.torch import load_file, save_file

        Path(folder).mkdir(parents=True)
        head = load_file(Path(inputs["starting_point"]) / "head.safetensors")["weight"]
        save_file({"weight": 50 * head}, Path(folder) / "head.safetensors")

    record("sources", "pairs", lambda folder, _: write_examples(labelled_pairs(96), join(folder, "train.parquet")))
    record("base_model", "base", stage("base_model", SHAPE), sources="pairs")
    record("starting_set", "set", stage("starting_set", TrainingSetConfig("starting", 48, 0)), source="pairs")
    record("starting_set", "more", stage("starting_set", TrainingSetConfig("starting", 24, 1)), source="pairs")
    record("starting_point", "untrained", stage("starting_point", UntrainedConfig(0)), base_model="base")
    of_start = {"training_set": "set", "base_model": "base", "starting_point": "untrained"}
    record("starting_point", "start", save_head, **of_start)
    record("task_model", "judge", save_head, training_set="more", base_model="base", starting_point="start")
    return store, records


def numbered(table: pa.Table, first: int = 0) -> pa.Table:
    """Rows as an audit has them: their numbers, and the texts."""
    return pa.table({"row": pa.array(range(first, first + table.num_rows), pa.int64()), **{
        name: table[name] for name in ("premise", "hypothesis")
    }})  # fmt: skip


def probabilities(table: pa.Table) -> np.ndarray:
    return np.stack([table[f"p/{label}"].to_numpy(zero_copy_only=False) for label in LABELS], axis=1)


def test_a_task_model_of_a_study_judges_tables_without_labels(built: tuple[Store, dict[str, Record]]) -> None:
    store, records = built
    rows, others = numbered(labelled_pairs(40, seed=5), 7), numbered(labelled_pairs(30, seed=6))
    blank = rows.set_column(2, "hypothesis", pa.array([" ", None, *rows["hypothesis"].to_pylist()[2:]]))
    judged, of_others = judge_tables(store.folder(records["judge"].id), [blank, others])
    assert judged["row"].to_pylist() == list(range(9, 47)) and of_others["row"].to_pylist() == list(range(30))
    assert judged.column_names == ["row", *(f"p/{label}" for label in LABELS)]
    assert judged.schema.field("row").type == pa.int64() and judged.schema.field("p/neutral").type == pa.float32()
    np.testing.assert_allclose(probabilities(judged).sum(axis=1), 1, rtol=1e-5)
    # A row's probabilities are its own, whatever is judged beside it.
    (alone,) = judge_tables(store.folder(records["judge"].id), [rows])
    np.testing.assert_allclose(probabilities(alone)[2:], probabilities(judged), rtol=1e-4)
    assert np.ptp(probabilities(judged)) > 0.05


def test_rows_that_the_task_model_was_trained_on_are_not_judged(built: tuple[Store, dict[str, Record]]) -> None:
    store, records = built
    # Its own set, and that of the starting point which it continues.
    known = [read_examples(join(store.folder(records[slug].id), "examples.parquet")).slice(0, 5) for slug in ("more", "set")]
    parts = [numbered(labelled_pairs(4, seed=5)), *(numbered(rows, 4 + 5 * place) for place, rows in enumerate(known))]
    (judged,) = judge_tables(store.folder(records["judge"].id), [pa.concat_tables(parts)])
    assert judged["row"].to_pylist() == list(range(14))
    assert judged["p/entailment"].is_null().to_pylist() == [False] * 4 + [True] * 10
    (by_start,) = judge_tables(store.folder(records["start"].id), [parts[0]])
    assert by_start["p/entailment"].null_count == 0


def test_a_classifiers_own_checkpoint_says_what_its_task_model_says(
    built: tuple[Store, dict[str, Record]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import LlamaForSequenceClassification

    store, records = built
    folder, base = (Path(store.folder(records[slug].id)) for slug in ("judge", "base"))
    head = load_file(folder / "head.safetensors")["weight"]
    own = LlamaForSequenceClassification.from_pretrained(base / "model", num_labels=3, dtype="float32")
    own.score.weight.data.copy_(head[[2, 0, 1]])
    own.config.id2label = {0: "CONTRADICTION", 1: "entailment", 2: "neutral"}
    own.save_pretrained(tmp_path / "checkpoint")
    load_tokenizer(str(base)).save_pretrained(tmp_path / "checkpoint")
    rows = [numbered(labelled_pairs(20, seed=8))]
    (by_task_model,), (by_checkpoint,) = (
        judge_tables(model, rows) for model in (str(folder), str(tmp_path / "checkpoint"))
    )  # fmt: skip
    np.testing.assert_allclose(probabilities(by_checkpoint), probabilities(by_task_model), rtol=1e-4)
    own.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    own.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(UserError, match=re.escape(f"the checkpoint in {tmp_path / 'checkpoint'} are label_0, label_1, ")):
        judge_tables(str(tmp_path / "checkpoint"), rows)


def test_what_cannot_judge_says_so(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    rows = numbered(labelled_pairs(4))
    with pytest.raises(UserError, match=r"an artifact of the stage base_model, and what judges is a task model; give a folder"):
        judge_tables(store.folder(records["base"].id), [rows])
    with pytest.raises(UserError, match="no model at"):
        judge_tables(str(tmp_path / "nothing"), [rows])
    with pytest.raises(UserError, match=r"reads premise, hypothesis, and the rows have no hypothesis; judge them with a model"):
        judge_tables(store.folder(records["judge"].id), [rows.drop_columns("hypothesis")])
    lost = dataclasses.replace(
        records["judge"], slug="lost", inputs={"base_model": ArtifactId("base_model", "gone", "a" * 64)}
    )  # fmt: skip
    store.write_record(lost)
    with pytest.raises(UserError, match="is not there, and the judge was made from it"):
        judge_tables(store.folder(lost.id), [rows])


def test_the_audit_asks_the_judge_it_is_given(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    for name, seed in (("pool", 8), ("right", 9)):
        write_examples(labelled_pairs(60, seed=seed), tmp_path / f"{name}.parquet")
    words = ["audit", tmp_path / "pool.parquet", "--judge", store.folder(records["judge"].id)]
    words += ["--trusted", tmp_path / "right.parquet", "--output", tmp_path, "--json", tmp_path / "audit.json"]
    done = CliRunner().invoke(cli.app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    noise = json.loads((tmp_path / "audit.json").read_text())["label_noise"]
    assert (noise["judge"], noise["num_judged"]) == ("the judge", 60)
    in_all = noise["noise"]["in_all"]
    assert in_all["verdict"] == "cannot tell" and "by 60 gold rows the judge does not tell the labels apart" in in_all["reason"]
