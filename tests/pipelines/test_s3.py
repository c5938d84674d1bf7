"""Stages and storage on an object store, over S3's own protocol on loopback."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.errors import DamagedError
from pipelines.storage import (
    RECORD_FILE,
    arrow_filesystem,
    check_store,
    fetch,
    filesystem,
    join,
    move,
    publish,
    read_text,
    remove,
    write_text,
)
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


def test_a_folder_is_moved_into_the_place_of_another(bucket, tmp_path):
    for root in (bucket, str(tmp_path)):
        write_text(join(root, "report", "in", "a.txt"), "new")
        write_text(join(root, "report@1", "b.txt"), "old")
        move(join(root, "report"), join(root, "report@1"))
        assert read_text(join(root, "report@1", "in", "a.txt")) == "new"
        assert read_text(join(root, "report@1", "b.txt")) is None
        assert read_text(join(root, "report", "in", "a.txt")) is None


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


def record(root: str, *paths: str) -> None:
    """Describe files as the record of a complete artifact does."""
    contents = {path: (read_text(join(root, path)) or "").encode() for path in paths}
    files = {path: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for path, content in contents.items()}
    write_text(join(root, RECORD_FILE), json.dumps({"files": files}))


@pytest.fixture(params=["", ".hidden"])
def artifact(bucket, request):
    """An artifact with a record, of a model in a folder and a file beside it, in a store that may lie in a hidden folder."""
    root = join(bucket, *filter(None, [request.param]), "generator", "data-0123")
    write_text(join(root, "model", "weights"), "weights")
    write_text(join(root, "metrics.jsonl"), "metrics")
    record(root, "model/weights", "metrics.jsonl")
    return root


@pytest.mark.parametrize("part", ["", "model", "model/weights"])
def test_what_is_fetched_is_compared_with_its_record(artifact, cache, s3_client, part):
    put(s3_client, join(artifact, "model", "weights"), b"poison!")
    with pytest.raises(DamagedError, match=r"model/weights has 7 bytes with sha256 \w+…; its record says 7 bytes"):
        fetch(join(artifact, part))
    assert list(cache.iterdir()) == []
    put(s3_client, join(artifact, "model", "weights"), b"weights")
    fetched = Path(fetch(join(artifact, part)))
    found = fetched if fetched.is_file() else next(fetched.rglob("weights"))
    assert found.read_text() == "weights"


def test_a_file_that_its_record_lists_and_that_is_gone_is_named(artifact, cache, s3_client):
    bucket, _, key = artifact.removeprefix("s3://").partition("/")
    s3_client.delete_object(Bucket=bucket, Key=f"{key}/metrics.jsonl")
    with pytest.raises(DamagedError, match=r"data-0123/metrics\.jsonl is missing, though its record lists it"):
        fetch(artifact)
    # What is asked for is whole.
    assert names(fetch(join(artifact, "model"))) == ["weights"]


def test_a_record_that_cannot_be_read_is_named(artifact, cache, s3_client):
    put(s3_client, join(artifact, RECORD_FILE), b"{")
    with pytest.raises(DamagedError, match=r"data-0123/record\.json is not a readable record"):
        fetch(join(artifact, "model"))


def test_a_copy_that_lost_a_file_or_is_cut_short_is_made_again(artifact, cache):
    folder = Path(fetch(artifact))
    (folder / "model" / "weights").write_text("weigh")
    (folder / "metrics.jsonl").unlink()
    assert Path(fetch(artifact)) == folder
    assert (folder / "model" / "weights").read_text() == "weights"
    assert (folder / "metrics.jsonl").read_text() == "metrics"
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_short_download_is_tried_again_and_never_taken(artifact, cache, bucket, monkeypatch):
    """With a record and without: the store says how much there is."""
    write_text(join(bucket, "loose", "file"), "0123456789")
    client, _ = filesystem(bucket)
    get_file, cuts = client.get_file, {"left": 0}

    def cut(source, target, **options):
        get_file(source, target, **options)
        if cuts["left"]:
            cuts["left"] -= 1
            Path(target).write_bytes(Path(target).read_bytes()[:3])

    monkeypatch.setattr(client, "get_file", cut)
    cuts["left"] = 1
    assert (Path(fetch(join(artifact, "model"))) / "weights").read_text() == "weights"
    cuts["left"] = 1
    assert (Path(fetch(join(bucket, "loose"))) / "file").read_text() == "0123456789"
    write_text(join(bucket, "loose", "file"), "9876543210")
    cuts["left"] = 2
    with pytest.raises(OSError, match="loose/file: 3 bytes came of 10"):
        fetch(join(bucket, "loose"))
    assert not list(cache.glob(".partial-*"))
    assert (Path(fetch(join(bucket, "loose"))) / "file").read_text() == "9876543210"


def test_examples_of_an_artifact_are_compared_before_they_are_read(bucket, cache, tmp_path, s3_client):
    prepare_template_corpus(CORPUS, str(tmp_path / "corpus"))
    root, content = join(bucket, "sources", "data-0123"), (tmp_path / "corpus" / "train.parquet").read_bytes()
    put(s3_client, join(root, "train.parquet"), content)
    sha256 = hashlib.sha256(content).hexdigest()
    write_text(join(root, RECORD_FILE), json.dumps({"files": {"train.parquet": {"sha256": sha256, "bytes": len(content)}}}))
    assert read_examples(join(root, "train.parquet")).num_rows == 60
    shutil.rmtree(cache)
    put(s3_client, join(root, "train.parquet"), (tmp_path / "corpus" / "dev.parquet").read_bytes())
    with pytest.raises(DamagedError, match=r"train\.parquet has"):
        draw_training_set(SET, join(root, "train.parquet"), join(bucket, "set"))


def test_pyarrow_uses_the_same_settings_and_hands_no_key_on(bucket, monkeypatch, tmp_path):
    """As Ray Train takes it to its workers."""
    file_system, path = arrow_filesystem(join(bucket, "artifact"))
    pickled = pickle.dumps(file_system)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
    with pickle.loads(pickled).open_output_stream(f"{path}/state") as stream:
        stream.write(b"state")
    assert read_text(join(bucket, "artifact", "state")) == "state"
    assert arrow_filesystem(tmp_path / "artifact") == (None, str(tmp_path / "artifact"))


def test_a_profile_and_a_region_are_enough(bucket, monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    file_system, _ = filesystem(bucket)
    # fsspec keeps its clients, and this one was made with keys.
    file_system.clear_instance_cache()
    try:
        check_store(bucket)
        assert filesystem(bucket)[0].s3.meta.region_name == "eu-central-1"
    finally:
        file_system.clear_instance_cache()
