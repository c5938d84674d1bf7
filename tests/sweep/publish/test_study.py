"""A study's repositories: Parquet where `datasets` looks for it, cards that the hub reads, licences said."""

import dataclasses
import glob
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, ModelCard
from typer.testing import CliRunner

from sweep import cli
from sweep.graph.records import Record, Store
from sweep.publish import datasets
from sweep.publish.datasets import write_pool
from sweep.publish.origins import Said
from tests.sweep.publish.small_study import MODEL, pool_rows


def published(store: Store, folder: Path, *words: str) -> str:
    result = CliRunner().invoke(cli.app, ["publish", "tiny", str(folder), "--store", store.uri, *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_pool_sets_and_models_are_written_as_a_hub_has_them(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, _ = built
    out = tmp_path / "out"
    said = published(store, out, "--model", MODEL, "--training-sets", "--license", "cc-by-4.0")
    assert sorted(path.name for path in out.iterdir()) == ["generator", "pool", MODEL, "training-sets"]
    for name, rows in (("pool", 90), ("training-sets", 48)):
        (config,) = DatasetCard.load(out / name / "README.md").data["configs"]
        (files,) = config["data_files"]
        found = [pq.read_table(path) for path in sorted(glob.glob(str(out / name / files["path"])))]
        assert files["split"] == "train" and sum(table.num_rows for table in found) == rows
        # Nothing lies there that the card does not name.
        assert len(list((out / name).rglob("*.parquet"))) == len(found)
    pool = pq.read_table(out / "pool" / "data" / "train-00000-of-00001.parquet")
    assert pool.select(["id", "premise", "hypothesis", "label"]).equals(pool_rows().drop_columns("generator"))
    card = (out / "pool" / "README.md").read_text()
    counts = Counter(pool["label"].to_pylist())
    row = " | ".join(str(counts[label]) for label in ("entailment", "neutral", "contradiction"))
    assert f"| default | {row} | 90 |" in card and "| no_hypothesis | 3 |" in card
    answer = next(line.strip().removeprefix("audit: ") for line in said.splitlines() if "audit:" in line)
    assert f"> {answer}" in card and "its test sets challenge, template_test" in card
    assert "the generator's training data" in card
    assert "before you pass it on, the project's template corpus: its licence is unknown" in said
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    AutoModelForCausalLM.from_pretrained(out / "generator")
    AutoModelForSequenceClassification.from_pretrained(out / MODEL)
    for name in ("generator", MODEL):
        assert ModelCard.load(out / name / "README.md").data.license == "cc-by-4.0"
        assert str(tmp_path) not in (out / name / "README.md").read_text()


def test_cards_alone_are_written_without_weights_and_audit(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    published(built[0], tmp_path / "out", "--model", MODEL, "--no-weights", "--no-audit")
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert "only their description" in (tmp_path / "out" / MODEL / "README.md").read_text()
    assert "It was not audited." in (tmp_path / "out" / "pool" / "README.md").read_text()


def test_weights_that_are_not_here_are_said_before_anything_is_written(
    built: tuple[Store, dict[str, Record]], tmp_path: Path
) -> None:
    shutil.copytree(built[0].uri, tmp_path / "store")
    for model in (tmp_path / "store").rglob("*.safetensors"):
        model.unlink()
    result = CliRunner().invoke(cli.app, ["publish", "tiny", str(tmp_path / "out"), "--store", str(tmp_path / "store")])
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert "generator/generator-" in result.stderr and "--no-weights writes cards alone" in result.stderr
    published(Store(tmp_path / "store"), tmp_path / "out", "--no-weights", "--no-audit")


def test_a_pool_that_was_given_is_held_against_the_reference_alone(
    built: tuple[Store, dict[str, Record]], tmp_path: Path
) -> None:
    store, records = built
    given = dataclasses.replace(records["synthetic_pool/pool"], inputs={})
    words = write_pool(store, given, tmp_path / "pool", Said(), audit=True, sources=records["sources/data"])
    verdicts = [verdict for _, verdict, _ in words.findings]
    assert any("of the reference" in verdict or "from the reference" in verdict for verdict in verdicts)
    assert not any("generator" in verdict for verdict in verdicts)


def test_a_large_pool_is_several_files_that_one_pattern_names(
    built: tuple[Store, dict[str, Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, records = built
    monkeypatch.setattr(datasets, "ROWS_PER_FILE", 40)
    write_pool(store, records["synthetic_pool/pool"], tmp_path / "pool", Said(), audit=False)
    files = sorted((tmp_path / "pool" / "data").iterdir())
    assert [path.name for path in files] == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert [pq.read_table(path).num_rows for path in files] == [40, 40, 10]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "OUT", "--model", "start0-original"], f"the nearest that there are: start0-seed0, {MODEL}"),
        (["nothing", "OUT"], "no study 'nothing' in"),
        (["tiny", "."], ". is there and not empty"),
        (["tiny", "OUT", "--public"], "--public without --push ORG/NAME: nothing leaves this machine"),
        (["tiny", "OUT", "--push", "name"], "--push name: give ORG/NAME"),
        (["tiny", "OUT", "--push", "org/name"], "--push org/name needs a token that may write there: set HF_TOKEN"),
    ],
)
def test_what_cannot_be_published_is_one_error_and_writes_nothing(
    built: tuple[Store, dict[str, Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "mine").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    result = CliRunner().invoke(cli.app, ["publish", *words, "--store", built[0].uri])
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("Error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
