"""Writes on a condition and an object store's refusals: over S3's and Google's own protocols on loopback, and local."""

import json
import os
import sys
import threading
import time
import uuid

import pytest

from pipelines.errors import StoreUnreachableError, UserError
from pipelines.storage import (
    check_store,
    fetch,
    join,
    publish,
    read_text,
    read_with_age,
    read_with_version,
    replace_if_unchanged,
    write_if_absent,
    write_text,
)


@pytest.fixture(params=["local", "bucket", "gcs_bucket"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else request.getfixturevalue(request.param)


@pytest.fixture
def fresh_clients():
    """fsspec keeps a client for each place and not for each setting."""
    import fsspec

    clear = fsspec.get_filesystem_class("s3").clear_instance_cache
    clear()
    yield
    clear()


def test_a_file_is_made_once_and_replaced_by_who_has_read_it_last(root):
    uri = join(root, "folder", "file")
    assert read_with_version(uri) is None
    first = write_if_absent(uri, b"first")
    assert first is not None and write_if_absent(uri, b"second") is None
    assert read_with_version(uri) == (b"first", first)
    second = replace_if_unchanged(uri, b"second", first)
    assert second not in (None, first)
    assert replace_if_unchanged(uri, b"third", first) is None
    assert read_with_version(uri) == (b"second", second)
    assert replace_if_unchanged(join(root, "folder", "missing"), b"first", first) is None
    assert read_with_version(join(root, "folder", "missing")) is None


def test_a_file_s_age_is_counted_from_its_last_write(root, monkeypatch):
    uri = join(root, "folder", "file")
    assert read_with_age(uri) is None
    write_text(uri, "first")
    if root.startswith("s3://"):
        # Both times are the store's: what this machine takes for the time is of no matter.
        monkeypatch.setattr("time.time", lambda: 0.0)
    content, age = read_with_age(uri)
    assert content == b"first" and 0 <= age < 30
    if not root.startswith(("s3://", "gs://")):
        os.utime(uri, (time.time() - 100, time.time() - 100))
        assert 100 <= read_with_age(uri)[1] < 130


def test_of_many_writers_one_succeeds(root):
    uri = join(root, "counter")
    version = write_if_absent(uri, json.dumps({"writer": "", "count": 0}).encode())
    assert version is not None
    wins = []

    def count() -> None:
        writer = uuid.uuid4().hex
        for _ in range(10):
            content, version = read_with_version(uri)
            values = {"writer": writer, "count": json.loads(content)["count"] + 1}
            if replace_if_unchanged(uri, json.dumps(values).encode(), version) is not None:
                wins.append(values["count"])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Two that won over one version would have written one count twice.
    assert sorted(wins) == list(range(1, len(wins) + 1)) and wins
    assert json.loads(read_text(uri))["count"] == len(wins)


def test_a_write_whose_answer_was_lost_is_known_by_its_content(bucket, s3_client):
    s3_client.put_object(Bucket=bucket.removeprefix("s3://"), Key="record.json", Body=b"mine")
    # The request is repeated, and now fails for its own success.
    version = write_if_absent(join(bucket, "record.json"), b"mine")
    assert read_with_version(join(bucket, "record.json")) == (b"mine", version)


def test_a_store_that_works_is_left_as_it_was(bucket, s3_client):
    check_store(join(bucket, "studies"))
    assert s3_client.list_objects_v2(Bucket=bucket.removeprefix("s3://"))["KeyCount"] == 0


def test_a_missing_bucket_is_named_and_none_is_made(s3_server, s3_client, tmp_path):
    (tmp_path / "file").write_text("")
    actions = {
        "check": lambda uri: check_store(uri),
        "write": lambda uri: write_text(uri, "text"),
        "publish": lambda uri: publish(tmp_path, uri),
        "write once": lambda uri: write_if_absent(uri, b"text"),
        "replace": lambda uri: replace_if_unchanged(uri, b"text", '"version"'),
        "read": lambda uri: read_with_version(uri),
        "read text": lambda uri: read_text(uri),
    }
    for name, act in actions.items():
        with pytest.raises(UserError, match=r"s3://no-such-bucket/a: there is no bucket no-such-bucket .*; make it first"):
            act("s3://no-such-bucket/a")
        assert "no-such-bucket" not in {there["Name"] for there in s3_client.list_buckets()["Buckets"]}, name


def test_credentials_that_are_missing_are_named(bucket, monkeypatch, fresh_clients):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(UserError, match=f"no credentials for bucket {bucket[5:]}, key a; set AWS_ACCESS_KEY_ID and"):
        check_store(join(bucket, "a"))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match="AWS_PROFILE=nobody is in no file"):
        check_store(join(bucket, "a"))


def test_a_server_that_does_not_answer_is_named(monkeypatch, fresh_clients):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(UserError, match=r"s3://bucket/a: AWS_ENDPOINT_URL=http://127\.0\.0\.1:9 does not answer"):
        check_store("s3://bucket/a")
    # In the midst of a run it may come back.
    with pytest.raises(StoreUnreachableError, match="does not answer"):
        read_text("s3://bucket/a")


@pytest.fixture
def busy_server(monkeypatch, fresh_clients):
    """Gives the answers of a list, each once, and any object after the last of them."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    answers = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, code = answers.pop(0) if answers else (200, "")
            text = f"<Error><Code>{code}</Code><Message>Not now.</Message></Error>" if code else "content"
            self.send_response(status)
            self.send_header("Content-Length", str(len(text) + 1 if code == "cut" else len(text)))
            self.send_header("ETag", '"version"')
            self.send_header("Last-Modified", self.date_time_string())
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text.encode())

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    # Without botocore's own, which take seconds.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield answers
    server.shutdown()


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "ServiceUnavailable"), (503, "SlowDown")])
def test_a_server_that_cannot_serve_for_now_is_asked_again(status, code, busy_server):
    busy_server += [(status, code)] * 3
    assert read_text("s3://bucket/a") == "content"
    busy_server += [(status, code)] * 9
    with pytest.raises(StoreUnreachableError, match=r"s3://bucket/a: \S+ cannot serve for now \(.*\); try again later"):
        read_text("s3://bucket/a")


@pytest.mark.parametrize("read", [read_text, read_with_version, read_with_age])
def test_an_object_that_is_cut_off_in_the_midst_is_read_again(read, busy_server):
    # The first answer of some is to a question for the size.
    busy_server += [(200, "")] * (read is read_text) + [(200, "cut")] * 2
    assert "content" in str(read("s3://bucket/a"))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AccessDenied", "access to bucket {0}, key a is denied .*; the credentials need to list, read, write and delete"),
        ("InvalidAccessKeyId", "the credentials for bucket {0}, key a are not valid .*; check AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "the credentials for bucket {0}, key a are not valid"),
        ("ExpiredToken", "the credentials for bucket {0}, key a are not valid"),
        ("RequestTimeTooSkewed", r"s3://{0}/a\S*: this machine's clock is not the store's .*; set it, by NTP"),
        ("PermanentRedirect", "bucket {0} is in another region .*; set AWS_REGION"),
    ],
)
def test_each_refusal_is_one_line(code, says, bucket, monkeypatch):
    """What Amazon answers and the server of the tests never does."""
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem
    from s3fs.errors import translate_boto_error

    async def refuse(self, method, *arguments, **options):
        raise translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no\nway"}}, method))

    monkeypatch.setattr(S3FileSystem, "_call_s3", refuse)
    with pytest.raises(UserError, match=says.format(bucket[5:])) as refusal:
        check_store(join(bucket, "a"))
    assert "\n" not in str(refusal.value)


def test_a_bucket_that_may_only_be_read_is_found_before_anything_is_built(bucket, monkeypatch):
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem
    from s3fs.errors import translate_boto_error

    call = S3FileSystem._call_s3

    async def read_only(self, method, *arguments, **options):
        if method == "put_object":
            raise translate_boto_error(ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, method))
        return await call(self, method, *arguments, **options)

    write_text(join(bucket, "a", "b"), "text")
    monkeypatch.setattr(S3FileSystem, "_call_s3", read_only)
    with pytest.raises(UserError, match="is denied"):
        check_store(bucket)
    # As a folder that may only be read: a run of which everything is built goes on.
    with pytest.raises(PermissionError):
        write_text(join(bucket, "a", "b"), "other")
    assert fetch(join(bucket, "a", "b"))


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3:/bucket/a", "write s3://BUCKET/FOLDER"),
        ("s3:bucket/a", "write s3://BUCKET/FOLDER"),
        ("gs//bucket/a", "write gs://BUCKET/FOLDER"),
        ("S3://bucket/a", "write s3:// in lower case"),
        ("s3://", "names no bucket; write s3://BUCKET/FOLDER"),
        ("s3:///a", "names no bucket"),
        ("s4://bucket/a", "use a local path, s3:// or gs://"),
    ],
)
def test_an_address_with_a_slip_is_refused(uri, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        check_store(uri)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(monkeypatch, fresh_clients):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    with pytest.raises(UserError, match="s3://bucket/a needs the package s3fs, which is not here; pip install s3fs"):
        check_store("s3://bucket/a")
