"""Tables in a bucket, over S3's own protocol on loopback; of other addresses what needs no network."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.storage import write_bytes
from pipelines.tables.columns import Wanted
from pipelines.tables.files import open_table
from pipelines.tables.remote import is_remote, local_copy
from pipelines.tables.values import text_columns

NAMES = ("train-00000-of-00002-0a1b.parquet", "train-00001-of-00002-2c3d.parquet", "test-00000-of-00001-4e5f.parquet")


def texts(path: str) -> list[str]:
    table = open_table(path, [Wanted("text")])
    return [text for raw in table.raw_batches() for text in text_columns(raw, table)[0]["text"].to_pylist()]


def put(client, uri: str, content: bytes) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=key, Body=content)
    return uri


def parquet(*rows: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": rows}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def pool(bucket, s3_client, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "cache"))
    for name in NAMES:
        put(s3_client, f"{bucket}/pool/data/{name}", parquet(name[:10]))
    put(s3_client, f"{bucket}/pool/README.md", b"?")
    return f"{bucket}/pool"


def fetched(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


def test_one_split_is_fetched_and_no_other_file(pool, tmp_path):
    with pytest.raises(UserError, match=rf"{pool} has several splits \(test, train\); give one of them, as in {pool}:train"):
        open_table(pool, [Wanted("text")])
    assert local_copy(f"{pool}:train", download=False) is None
    assert texts(f"{pool}:train") == ["train-0000", "train-0000"]
    assert fetched(tmp_path / "cache") == set(NAMES[:2])
    assert local_copy(f"{pool}:train", download=False) is not None and local_copy(f"{pool}:test", download=False) is None
    assert texts(f"{pool}/data/test-*.parquet") == ["test-00000"]
    assert texts(f"{pool}/data/{NAMES[0]}") == ["train-0000"]


def test_what_has_changed_is_fetched_again(bucket, s3_client, pool):
    path = put(s3_client, f"{bucket}/own.jsonl", b'{"text": "a"}\n')
    assert texts(path) == texts(path) == ["a"]
    put(s3_client, path, b'{"text": "b"}\n')
    assert texts(path) == ["b"]


def test_a_shard_that_is_missing_there_is_named(bucket, s3_client, pool):
    name, _, key = f"{pool}/data/{NAMES[1]}".removeprefix("s3://").partition("/")
    s3_client.delete_object(Bucket=name, Key=key)
    for path in (f"{pool}:train", f"{pool}/data/train-*.parquet"):
        with pytest.raises(UserError, match="the shard train-00001-of-00002 is missing"):
            open_table(path, [Wanted("text")])


def test_a_saved_data_set_is_read_by_its_state(bucket, s3_client, pool):
    for split in ("train", "test"):
        sink, table = pa.BufferOutputStream(), pa.table({"text": [split]})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        put(s3_client, f"{bucket}/saved/{split}/data-00000-of-00001.arrow", sink.getvalue().to_pybytes())
        put(s3_client, f"{bucket}/saved/{split}/state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    put(s3_client, f"{bucket}/saved/dataset_dict.json", b'{"splits": ["train", "test"]}')
    assert texts(f"{bucket}/saved:test") == texts(f"{bucket}/saved/test") == ["test"]


def test_a_colon_in_an_objects_name_is_part_of_it(bucket, s3_client, pool):
    put(s3_client, f"{bucket}/a:train/b:c.csv", b"text\na\n")
    assert texts(f"{bucket}/a:train") == texts(f"{bucket}/a:train/b:c.csv") == ["a"]


def test_what_is_not_there_is_named(pool):
    for path in (f"{pool}/none.csv", f"{pool}/none/*.csv", f"{pool}/none:train", f"{pool}x"):
        with pytest.raises(UserError, match=r"does not exist or is empty; check the address"):
            open_table(path, [Wanted("text")])
    with pytest.raises(UserError, match="is a file, which has no splits; leave :train out"):
        open_table(f"{pool}/data/{NAMES[0]}:train", [Wanted("text")])


def test_a_bucket_of_google_is_read_alike(gcs_bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("BLINDSWEEP_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        write_bytes(f"{gcs_bucket}/pool/{split}.jsonl", f'{{"text": "{split}"}}\n'.encode())
    assert texts(f"{gcs_bucket}/pool:test") == texts(f"{gcs_bucket}/pool/te*.jsonl") == ["test"]
    with pytest.raises(UserError, match="several splits"):
        open_table(f"{gcs_bucket}/pool", [Wanted("text")])


@pytest.mark.parametrize("path", ["https://host/a.csv", "hf://org/name", "hf://models/org/name"])
def test_other_addresses_are_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"tables are read from s3://, gs:// and hf://datasets/, not from there"):
        open_table(path, [Wanted("text")])


def test_a_path_here_is_no_address(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    assert not is_remote(str(tmp_path)) and local_copy(f"{tmp_path}:train") == f"{tmp_path}:train"
    assert texts(f"file://{tmp_path}/a.csv") == ["a"]
    with pytest.raises(UserError, match=r"is no address of a bucket; write s3://BUCKET/FOLDER|does not exist"):
        open_table("s3:/bucket/a.csv", [Wanted("text")])
    assert "s3:" not in os.listdir()
