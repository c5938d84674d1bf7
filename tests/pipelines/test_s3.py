"""Stages and storage on an object store, over S3's own protocol on loopback."""

from pathlib import Path

import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.storage import fetch, filesystem, join, publish, read_text, remove, write_text
from pipelines.tasks.examples import read_examples

CORPUS = TemplateCorpusConfig(num_train=60, num_dev=6, num_test=6, num_probe_per_group=6)
SET = TrainingSetConfig(kind="original", size=12, seed=0)


def put(client, uri: str, content: bytes = b"") -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=key, Body=content)


def names(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_corpus_and_a_training_set_are_made_there_as_they_are_here(bucket, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in (bucket, str(tmp_path / "here")):
        prepare_template_corpus(CORPUS, join(root, "corpus"))
        draw_training_set(SET, join(root, "corpus", "train.parquet"), join(root, "set"))
    for name in ("corpus/train.parquet", "corpus/template_probe.parquet", "set/examples.parquet"):
        assert read_examples(join(bucket, name)) == read_examples(tmp_path / "here" / name)
    assert names(fetch(join(bucket, "set"))) == ["examples.parquet"]
    assert {path.name for path in tmp_path.iterdir()} == {"here", "cache"}, "nothing is written under a folder named s3:"


def test_markers_of_folders_and_working_state_are_not_fetched(bucket, cache, s3_client):
    write_text(join(bucket, "artifact", "model", "config.json"), "{}")
    write_text(join(bucket, "artifact", ".checkpoints", "step1", "state.pt"), "state")
    for marker in ("artifact/", "artifact/model/", "artifact/empty/", "artifact/.ray_train/"):
        put(s3_client, f"{bucket}/{marker}")
    folder = fetch(join(bucket, "artifact"))
    assert names(folder) == ["model/config.json"]
    # Working state that goes on changing makes no second download.
    write_text(join(bucket, "artifact", ".checkpoints", "step2", "state.pt"), "state")
    assert fetch(join(bucket, "artifact")) == folder
    assert [path.name for path in cache.iterdir()] == [Path(folder).name]


def test_working_state_itself_can_be_fetched(bucket, cache, s3_client):
    put(s3_client, join(bucket, "artifact", ".checkpoints", "step1", "state.pt"), b"state")
    assert names(fetch(join(bucket, "artifact", ".checkpoints", "step1"))) == ["state.pt"]


def test_what_others_write_is_seen_after_a_listing(bucket, cache, s3_client):
    file_system, root = filesystem(bucket)
    assert file_system.ls(root) == []
    put(s3_client, join(bucket, "artifact", "first"), b"1")
    assert names(fetch(join(bucket, "artifact"))) == ["first"]
    put(s3_client, join(bucket, "artifact", "second"), b"2")
    assert names(fetch(join(bucket, "artifact"))) == ["first", "second"]
    assert read_text(join(bucket, "artifact", "third")) is None
    put(s3_client, join(bucket, "artifact", "third"), b"3")
    assert read_text(join(bucket, "artifact", "third")) == "3"
    remove(join(bucket, "artifact"))
    assert s3_client.list_objects_v2(Bucket=bucket.removeprefix("s3://"))["KeyCount"] == 0


def test_a_published_folder_comes_back(bucket, cache, tmp_path):
    (tmp_path / "artifact" / "pool").mkdir(parents=True)
    (tmp_path / "artifact" / "metrics.json").write_text("{}")
    (tmp_path / "artifact" / "pool" / "0.parquet").write_bytes(b"rows")
    publish(tmp_path / "artifact", join(bucket, "artifact"))
    assert names(fetch(join(bucket, "artifact"))) == ["metrics.json", "pool/0.parquet"]
    file = fetch(join(bucket, "artifact", "pool", "0.parquet"))
    assert Path(file).name == "0.parquet" and Path(file).read_bytes() == b"rows"
