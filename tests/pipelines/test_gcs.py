"""Storage on Google Cloud Storage's own protocol, as far as an emulator on loopback carries."""

from pathlib import Path

import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.errors import UserError
from pipelines.storage import check_store, fetch, filesystem, join, publish, read_text, remove, write_text
from pipelines.tasks.examples import read_examples

CORPUS = TemplateCorpusConfig(num_train=60, num_dev=6, num_test=6, num_probe_per_group=6)
SET = TrainingSetConfig(kind="original", size=12, seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "cache"))


def names(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_a_corpus_and_a_training_set_are_made_there_as_they_are_here(gcs_bucket, tmp_path):
    for root in (gcs_bucket, str(tmp_path / "here")):
        prepare_template_corpus(CORPUS, join(root, "corpus"))
        draw_training_set(SET, join(root, "corpus", "train.parquet"), join(root, "set"))
    for name in ("corpus/train.parquet", "set/examples.parquet"):
        assert read_examples(join(gcs_bucket, name)) == read_examples(tmp_path / "here" / name)


def test_a_published_folder_comes_back_without_working_state_and_can_be_removed(gcs_bucket, tmp_path):
    (tmp_path / "artifact" / "pool").mkdir(parents=True)
    (tmp_path / "artifact" / "pool" / "0.parquet").write_bytes(b"rows")
    publish(tmp_path / "artifact", join(gcs_bucket, "artifact"))
    write_text(join(gcs_bucket, "artifact", ".checkpoints", "state"), "state")
    assert names(fetch(join(gcs_bucket, "artifact"))) == ["pool/0.parquet"]
    assert read_text(join(gcs_bucket, "artifact", "missing")) is None
    remove(join(gcs_bucket, "artifact"))
    files, root = filesystem(gcs_bucket)
    assert files.find(root) == []


def test_a_store_is_looked_at_and_a_missing_bucket_is_named(gcs_bucket, gcs_server):
    check_store(gcs_bucket)
    files, root = filesystem(gcs_bucket)
    assert files.find(root) == []
    with pytest.raises(UserError, match=rf"there is no bucket nowhere \(at {gcs_server}\); make it first"):
        check_store("gs://nowhere/a")
