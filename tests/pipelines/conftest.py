"""One small Ray, one tiny base model and one labelled file, shared by the tests of a module."""

import logging
import random
import uuid

import fsspec
import pyarrow as pa
import pytest

from pipelines.examples import write_examples

WORDS = ("the", "a", "doctor", "lawyer", "dog", "cat", "saw", "chased", "liked", "helped", "old", "young", "quickly", "red")


def labelled_pairs(num, seed=0):
    """Pairs that a tiny model can tell apart: a prefix is entailed, a negation contradicted, else neutral."""
    rng = random.Random(seed)
    rows = []
    for index in range(num):
        premise = " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9)))
        label = rng.choice(["entailment", "neutral", "contradiction"])
        hypothesis = {
            "entailment": " ".join(premise.split()[:3]),
            "contradiction": f"not {premise}",
            "neutral": " ".join(rng.choice(WORDS) for _ in range(4)),
        }[label]
        rows.append({"id": f"pair-{index}", "premise": premise, "hypothesis": hypothesis, "label": label})
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def s3_server():
    """The address of a server on this machine that speaks S3. Child processes find it, too."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
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
    # Later servers have other ports, and fsspec keeps its clients.
    fsspec.filesystem("s3").clear_instance_cache()


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


@pytest.fixture(scope="module")
def ray_two_cpus():
    import ray

    # "local", or another test's cluster would be joined, of which `Cluster` leaves the address behind.
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_examples(labelled_pairs(96), folder / "train.parquet")
    write_examples(labelled_pairs(60, seed=1), folder / "template_test.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory, sources):
    from pipelines.base_model import ScratchModelConfig, prepare_base_model

    folder = str(tmp_path_factory.mktemp("base"))
    shape = ScratchModelConfig(
        hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=96, vocabulary_size=400
    )
    prepare_base_model(shape, folder, sources=sources)
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, base_model):
    from pipelines.task_model import UntrainedConfig, initial_task_model

    folder = str(tmp_path_factory.mktemp("untrained"))
    initial_task_model(UntrainedConfig(seed=3), base_model, folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with the generators `trained/model` and `random/model` of `tiny_generator`."""
    from tests.pipelines.tiny_generator import save_models

    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder
