"""The watcher of spot notices, against a metadata service on loopback and real Ray nodes."""

import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import ray

from pipelines.errors import NoticeError
from pipelines.resources import Resources
from sweep.cluster import spot
from sweep.cluster.spot import ACTION, RECOMMENDATION, Metadata, seconds_left

ROOT = Path(__file__).parents[3]


class Service(http.server.ThreadingHTTPServer):
    """Version 2 of the metadata service: `notices` by path below meta-data, to whoever shows a token that is `valid`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.notices: dict[str, Any] = {}
        self.valid: set[str] = set()
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token" and int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
        token = f"token-{time.monotonic_ns()}"
        self.server.valid.add(token)
        self._answer(200, token)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/latest/meta-data/")
        if self.headers["X-aws-ec2-metadata-token"] not in self.server.valid:
            self._answer(401, "")
        elif name in self.server.notices:
            self._answer(200, json.dumps(self.server.notices[name]))
        else:
            self._answer(404, "")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        """Not into the test's output."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service
        service.shutdown()


def action(seconds: float) -> dict[str, str]:
    """The notice of a machine that is taken in so many seconds."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}


def test_what_the_service_says_is_read_with_a_token_that_is_renewed(service: Service) -> None:
    metadata = Metadata(service.address)
    assert metadata.get(ACTION) is None and len(service.valid) == 1
    service.notices[ACTION] = action(120)
    service.valid.clear()
    found = metadata.get(ACTION)
    assert found["action"] == "terminate" and 110 < seconds_left(found) <= 120
    assert seconds_left({"action": "stop"}) == 120


def test_a_node_is_drained_once_for_a_recommendation_and_again_for_the_notice(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained = []

    def drain(address: str, node: str | None, reason: str, deadline_s: float | None) -> None:
        drained.append((reason, deadline_s is None))
        if len(drained) == 1:
            threading.Timer(0.1, service.notices.update, [{ACTION: action(120)}]).start()

    monkeypatch.setattr(spot, "drain", drain)
    monkeypatch.setattr(spot, "LOOK_EVERY_S", 0.01)
    service.notices[RECOMMENDATION] = {"noticeTime": "2026-11-29T12:00:00Z"}
    spot.watch(Metadata(service.address), "auto", None)
    assert drained == [("rebalance recommendation", True), ("spot notice", False)]


def test_a_notice_is_passed_on_however_often_the_service_or_ray_fails_before(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [ray.exceptions.RpcError("Ray's control store is away"), RuntimeError("it cannot be joined")]
    drained = []

    def drain(address: str, node: str | None, reason: str, deadline_s: float | None) -> None:
        if failures:
            raise failures.pop()
        drained.append(reason)
        service.notices[ACTION] = action(120)

    answers: list[Any] = [ValueError("no JSON"), http.client.IncompleteRead(b"")]
    get = Metadata.get

    def broken_at_first(self: Metadata, path: str) -> Any:
        if answers:
            raise answers.pop()
        return get(self, path)

    monkeypatch.setattr(Metadata, "get", broken_at_first)
    monkeypatch.setattr(spot, "drain", drain)
    monkeypatch.setattr(spot, "LOOK_EVERY_S", 0.01)
    service.notices[RECOMMENDATION] = {"noticeTime": "2026-11-29T12:00:00Z"}
    spot.watch(Metadata(service.address), "auto", None)
    assert drained == ["rebalance recommendation", "spot notice"]


def test_a_service_that_answers_late_is_watched(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Mock(side_effect=[OSError("timed out"), OSError("timed out"), None])
    monkeypatch.setattr(Metadata, "get", get)
    monkeypatch.setattr(spot, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(spot, "watch", watched := Mock())
    monkeypatch.setattr(sys, "argv", ["spot", "--metadata", service.address])
    spot.main()
    assert watched.call_count == 1


def test_it_ends_where_there_is_no_such_service() -> None:
    command = [sys.executable, "-m", "sweep.cluster.spot", "--metadata", "http://127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "this is no machine of Amazon's" in done.stderr


class Started:
    """A report that leaves a file named after its node once training is under way, and slows it down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, metrics: Any, step: int) -> None:
        import ray

        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.1)

    @property
    def nodes(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_finetuning_on_a_noticed_node_commits_and_goes_on_elsewhere(service: Service, tmp_path: Path) -> None:
    from ray._private.state import state
    from ray.cluster_utils import Cluster

    from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
    from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model
    from pipelines.finetune.driver import finetune
    from pipelines.finetune.recipe import FinetuneConfig
    from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model

    sources, base, start, output = (str(tmp_path / name) for name in ("sources", "base", "start", "output"))
    prepare_template_corpus(TemplateCorpusConfig(num_train=2_400, num_dev=30, num_test=30, num_probe_per_group=12), sources)
    shape = ScratchModelConfig(
        hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=128, vocabulary_size=768
    )
    prepare_base_model(shape, base, sources=sources)
    initial_task_model(UntrainedConfig(seed=0), base, start)
    recipe = FinetuneConfig(learning_rate=1e-3, batch_size=8, lora_rank=4, dtype="float32", log_every=1, zero_stage=1)
    job = finetuning_job(TaskModelConfig(recipe, 0), f"{sources}/train.parquet", base, start)

    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0})
    watcher = None
    try:
        for _ in range(2):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        started = Started(tmp_path / "started")
        started.folder.mkdir()
        ended: list[Any] = []

        def run() -> None:
            try:
                ended.append(finetune(job, output, resources=Resources(), report=started))
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not started.nodes:
            assert thread.is_alive(), ended
            time.sleep(0.1)
        (taken,) = started.nodes
        service.notices[ACTION] = action(120)
        command = [sys.executable, "-m", "sweep.cluster.spot", "--metadata", service.address, "--address", cluster.address]
        watcher = subprocess.Popen([*command, "--node", taken], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        noticed = time.monotonic()
        thread.join(100)
        took = time.monotonic() - noticed
        assert isinstance(ended[0], NoticeError) and "which is committed" in str(ended[0]), ended
        assert took < 60
        assert watcher.wait(60) == 0
        is_drained = taken in state.get_draining_nodes()
        assert is_drained or not next(node["Alive"] for node in ray.nodes() if node["NodeID"] == taken)

        metrics = finetune(job, output, resources=Resources(), report=started)
        assert str(ended[0]) == f"a notice stopped it at step {metrics['resumed_at_step']} of 300, which is committed"
        assert len(started.nodes) == 2, "it went on elsewhere"
    finally:
        if watcher is not None:
            watcher.kill()
        ray.shutdown()
        cluster.shutdown()
