"""The needs of every test: no network look-ups, skips where there is no GPU or compiler, servers of S3 and GCS."""

import gc
import logging
import os
import shutil
import signal
import sysconfig
import threading
import uuid
from collections.abc import Generator
from http import HTTPStatus
from pathlib import Path

import pytest

# Set before anything is imported, and inherited by Ray's workers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Models of a few thousand parameters gain nothing from a second thread, and threads of several processes wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process a finetuning less; no machine of a test is taken away with notice.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# How often Ray Train's controller looks at its workers, a finetuning's end included: every 2 s otherwise.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# As `pipelines.object_store` has it: gcsfs looks when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# A shell has what it starts in the background ignore Ctrl-C, and so would the commands that tests start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST_FIRST = ("test_tune.py", "test_finetuning.py", "test_pool.py", "test_failures.py", "test_ends.py")
"""Files of a minute or more. Begun last, one of them would go on alone while the other of two processes has nothing to do."""


def missing_for_compiling() -> str | None:
    """The tools that this machine lacks of those that torch.compile's default backend builds C++ with, or None."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"no C++ compiler here ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no C headers of Python here"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collection imports, torch and transformers among it, are a million objects. They are searched for garbage when all
    are there, and then no more: a test's own search would take half a second longer."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    reasons = {"gpu": None if shutil.which("nvidia-smi") else "no NVIDIA GPU here", "needs_compiler": missing_for_compiling()}
    for marker, reason in reasons.items():
        if reason:
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def s3_server():
    """The address of a server on this machine that speaks S3. Child processes find it, too."""
    import fsspec
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    one_at_a_time, put = threading.Lock(), S3Response._key_response_put

    def put_alone(response, *arguments):
        with one_at_a_time:
            return put(response, *arguments)

    # S3 compares and writes in one; the mock could let another writer in between.
    S3Response._key_response_put = put_alone
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()
    S3Response._key_response_put = put
    # Later servers have other ports, and fsspec keeps its clients.
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def gcs_server():
    """The address of a server on this machine that speaks Google Cloud Storage's protocol, and a bucket `studies` in it."""
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    import fsspec
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    upload = objects._media_upload

    def upload_on_condition(request, response, storage):
        """The emulator heeds no `ifGenerationMatch`; Google's answer to it, as its JSON API's reference says."""
        expected = request.query.get("ifGenerationMatch", [None])[0]
        try:
            there = storage.get_file_obj(request.params["bucket_name"], request.query["name"][0])["generation"]
        except NotFound:
            there = "0"
        if expected not in (None, there):
            response.status = HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "conditionNotMet"}})
            return
        upload(request, response, storage)

    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="studies")
    server.start()
    address = "http://{}:{}".format(*server._api._httpd.server_address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_media_upload", upload_on_condition)
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        # No look-up of credentials on the network, here and in child processes.
        patch.setenv("FSSPEC_GS", '{"token": "anon"}')
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield address
    server.stop()
    fsspec.filesystem("gs", token="anon").clear_instance_cache()


@pytest.fixture
def gcs_bucket(gcs_server):
    """The URI of an empty folder of a test's own in a bucket of that server."""
    return f"gs://studies/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def s3_client(s3_server):
    """Amazon's own client: what another process does to the store."""
    import boto3

    return boto3.client("s3", endpoint_url=s3_server)


@pytest.fixture
def bucket(s3_client):
    """The URI of an empty bucket of a test's own."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3_client.create_bucket(Bucket=name)
    return f"s3://{name}"
