"""A pool from a server with OpenAI's interface: a stub on loopback that fails on purpose, and a real one of vLLM's."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.endpoint import _asked_pause
from pipelines.generate.pool import generate
from pipelines.generate.prompting import Endpoint, Prompting
from pipelines.identity import identity
from pipelines.tasks.examples import read_examples, write_examples
from tests.pipelines.generate.test_prompting import training_data
from tests.pipelines.tiny_generator import KNOWN_SENTENCES, SENTIMENT, save_models

KEY = "sk-this-is-secret"
Answer = tuple[int, dict[str, str], dict[str, Any] | str]


class Server(ThreadingHTTPServer):
    """Answers each chat completion; `faults` are given first, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[Answer | None] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = written

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def written(body: dict[str, Any]) -> dict[str, Any]:
    """Three of four texts parse; they begin with the label's line, as they were asked to."""
    label = "not bad" if "the label not bad." in body["messages"][-1]["content"] else "bad"
    text = f"This is a sentence that is {label}. Sentence: Sentence {body['seed']}."
    reason = "length" if body["seed"] % 4 == 0 else "stop"
    return {
        "choices": [{"message": {"content": text}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.requests.append({"path": self.path, "failed": fault is not None, **body})
            self.server.keys.append(self.headers["Authorization"])
        status, headers, content = fault or (200, {}, self.server.answer(body))
        if status == 0:  # the connection breaks
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        raw = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def config(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GenerationConfig:
    monkeypatch.setenv("MY_KEY", KEY)
    write_examples(training_data(), tmp_path / "train.parquet", SENTIMENT)
    endpoint = Endpoint(
        "a-model", server.url, price_per_million_input_tokens=2.0, price_per_million_output_tokens=8.0, concurrency=4,
        api_key_env="MY_KEY", most_attempts=4, backoff_s=0.01,
    )  # fmt: skip
    return GenerationConfig(
        num_per_label=12, shard_size=8, max_new_tokens=40, generator_id="a-model", task=SENTIMENT,
        prompting=Prompting(shots=2), endpoint=endpoint, examples=str(tmp_path / "train.parquet"),
    )  # fmt: skip


TEXT_COSTS = (100 * 2.0 + 10 * 8.0) / 1e6
"""Dollars for one request of the test's server."""


def test_a_pool_is_written_with_its_rejects_and_what_it_cost(config: GenerationConfig, server: Server, tmp_path: Path) -> None:
    metrics = generate(config, "", str(tmp_path / "out"))
    examples = read_examples(tmp_path / "out" / "pool", SENTIMENT)
    labels = Counter(examples["label"].to_pylist())
    assert min(labels.values()) >= 12 and labels["bad"] == metrics["parsed/bad"]
    assert all(
        text == f"Sentence {seed}." for text, seed in zip(examples["sentence"], examples["seed"], strict=True) if 0
    ) or all(str(text) == f"Sentence {seed}." for text, seed in zip(examples["sentence"], examples["seed"], strict=True))
    rejects = pq.read_table(tmp_path / "out" / "rejects")
    assert set(rejects["reason"].to_pylist()) == {"no_end_marker"} and metrics["rejected"] == rejects.num_rows
    assert set(examples["generator"].to_pylist()) == {"a-model"}
    # Every request was paid for, those of shards that the pool does without among them.
    num = len(server.requests)
    assert (metrics["prompt_tokens"], metrics["completion_tokens"]) == (100 * num, 10 * num)
    assert metrics["dollars"] == pytest.approx(num * (100 * 2.0 + 10 * 8.0) / 1e6)
    body = server.requests[0]
    assert body["path"] == "/v1/chat/completions" and body["model"] == "a-model" and body["max_tokens"] == 40
    assert body["stop"] == [config.end_marker] and "top_k" not in body
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert len({request["seed"] for request in server.requests}) == num
    assert "Write one example with the label bad." in (tmp_path / "out" / "prompts" / "bad.txt").read_text()


def test_requests_are_sent_again_after_failures_that_may_pass(config: GenerationConfig, server: Server, tmp_path: Path) -> None:
    server.faults = [
        (429, {"Retry-After": "0.3"}, "slow down"), (503, {}, "overloaded"), (0, {}, ""), (200, {}, "no json"), (500, {}, "?"),
    ]  # fmt: skip
    started = time.monotonic()
    metrics = generate(config, "", str(tmp_path / "out"))
    assert time.monotonic() - started > 0.3, "the server is asked again no sooner than it says"
    assert metrics["num_retries"] == 5 == sum(request["failed"] for request in server.requests)
    answered = [request["seed"] for request in server.requests if not request["failed"]]
    assert len(answered) == len(set(answered)), "an answer is paid for once"


def test_a_server_that_keeps_failing_is_told_and_committed_shards_are_kept(
    config: GenerationConfig, server: Server, tmp_path: Path
) -> None:
    one_by_one = replace(config, endpoint=replace(config.endpoint, concurrency=1))

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if len([request for request in server.requests if not request["failed"]]) == 20:
            server.faults = [(503, {}, "overloaded")] * 1_000
        return written(body)

    server.answer = answer
    paid: list[float] = []

    def report(metrics: Mapping[str, float], step: int) -> None:
        paid.append(metrics["dollars"])

    with pytest.raises(UserError, match=r"gave no answer in 4 attempts, the last with 503: overloaded; run again later"):
        generate(one_by_one, "", str(tmp_path / "out"), report=report)
    # Two shards of eight were whole.
    assert paid == pytest.approx([8 * TEXT_COSTS, 16 * TEXT_COSTS])
    kept = sorted(path.name for path in (tmp_path / "out" / "shards").iterdir())
    assert kept
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "pool").iterdir()}
    server.faults, server.answer = [], written
    server.requests.clear()
    metrics = generate(config, "", str(tmp_path / "out"), report=report)
    assert paid == sorted(paid) and paid[2] == pytest.approx(24 * TEXT_COSTS), "what was paid before counts"
    assert paid[-1] == pytest.approx(metrics["dollars"])
    assert {path: path.read_bytes() for path in before} == before, "what is committed is not asked for again"
    seeds = {request["seed"] for request in server.requests}
    committed = {json.loads((tmp_path / "out" / "shards" / name).read_text())["label"] for name in kept}
    assert committed and not seeds & {row for path in before for row in pq.read_table(path)["seed"].to_pylist()}


def test_what_was_lost_or_damaged_is_written_again_with_the_same_pool(
    config: GenerationConfig, server: Server, tmp_path: Path
) -> None:
    """As an interrupted run leaves it: without a commit, with half a file, and without `yield.json`."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    generate(config, "", str(whole))
    shutil.copytree(whole, broken)
    lost, damaged, *kept = sorted(path.stem for path in (broken / "shards").iterdir())
    (broken / "shards" / f"{lost}.json").unlink()
    (broken / "pool" / f"{damaged}.parquet").write_bytes(b"cut off")
    (broken / "yield.json").unlink()
    before = {name: (broken / "pool" / f"{name}.parquet").stat().st_mtime_ns for name in kept}
    steps: list[int] = []
    metrics = generate(config, "", str(broken), report=lambda _, step: steps.append(step))
    assert kept and {name: (broken / "pool" / f"{name}.parquet").stat().st_mtime_ns for name in kept} == before
    assert len(steps) == metrics["num_shards"] + metrics["num_surplus_shards"] - len(kept) > 0
    for folder in ("pool", "rejects"):
        assert pq.read_table(broken / folder).equals(pq.read_table(whole / folder))
    assert (broken / "yield.json").read_bytes() == (whole / "yield.json").read_bytes()


def test_too_low_a_yield_says_so_and_keeps_the_rejects(config: GenerationConfig, server: Server, tmp_path: Path) -> None:
    def noise(body: dict[str, Any]) -> dict[str, Any]:
        answer = written(body)
        answer["choices"][0] = {"message": {"content": "xq 7 bla"}, "finish_reason": "stop"}
        return answer

    server.answer = noise
    many, asked = replace(config, num_per_label=400), []
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            generate(many, "", str(tmp_path / "out"))
        message = str(raised.value)
        assert "not bad: 0 of" in message and "400 wanted" in message
        assert "rejected as no_sentence" in message and "'xq 7 bla" in message
        assert "Train the generator longer" in message
        asked.append(len(server.requests))
    # It gives up after a few shards of the hundreds that the least yield would need; what is hopeless is not tried again.
    shards = list((tmp_path / "out" / "shards").iterdir())
    assert asked == [pq.read_table(tmp_path / "out" / "rejects").num_rows] * 2 == [8 * len(shards)] * 2
    assert 2 <= len(shards) < 40
    assert not (tmp_path / "out" / "yield.json").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            (401, {}, f"Incorrect API key provided: {KEY}"),
            r"refuses requests of model='a-model' with 401 \(.*provided: …\); see",
        ),
        ((429, {"Retry-After": "86400"}, "quota"), r"asks for a pause of 86,400 s \(quota\); run again then"),
        ((404, {}, "no such model"), r"with 404 \(no such model\)"),
        ((200, {}, {"object": "list"}), "answered with no chat completion"),
    ],
)
def test_a_refusal_is_told_at_once_without_the_key(
    config: GenerationConfig, server: Server, tmp_path: Path, fault: Answer, message: str
) -> None:
    server.faults = [fault] * 100
    with pytest.raises(UserError, match=message) as raised:
        generate(config, "", str(tmp_path / "out"))
    assert KEY not in str(raised.value)
    assert len(server.requests) < 20, "no further request is sent"


def test_the_key_is_sent_and_kept_nowhere(config: GenerationConfig, server: Server, tmp_path: Path) -> None:
    generate(config, "", str(tmp_path / "out"))
    assert set(server.keys) == {f"Bearer {KEY}"}
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in repr(config) + json.dumps(identity(config))
    other = replace(config.endpoint, url="http://localhost:1/v1", api_key_env="OTHER", price_per_million_input_tokens=9.0)
    assert identity(replace(config, endpoint=other)) == identity(config), "where it is and what it costs is no identity"
    assert identity(replace(config, endpoint=replace(other, model="another"))) != identity(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "api.openai.com/v1"}, r"^url='api\.openai\.com/v1' is no address"),
        ({"url": "https://host/v1/chat/completions"}, r"is added to it; give url='https://host/v1'"),
        ({"price_per_million_input_tokens": "0.4"}, r"price_per_million_input_tokens='0\.4'\): give a number"),
        ({"url": "https://me:secret@host/v1"}, "has a password or a query in it; put the key into the environment"),
        ({"url": "https://host/v1?key=secret"}, "has a password or a query"),
        ({"model": ""}, "^model=''"), ({"concurrency": 0}, "^concurrency=0"),
        ({"price_per_million_output_tokens": -1.0}, r"^price_per_million_output_tokens=-1\.0"),
    ],
)  # fmt: skip
def test_an_endpoint_that_makes_no_sense_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Endpoint(**{"model": "a-model", "url": "https://host/v1", **values})
    assert "secret" not in str(raised.value)


def test_a_pause_is_as_long_as_the_server_asks_for_in_seconds_or_as_a_date() -> None:
    assert _asked_pause("7", lambda: 0.0, 1.0) == 7.0
    assert _asked_pause("Thu, 01 Jan 1970 00:01:30 GMT", lambda: 60.0, 1.0) == 30.0
    assert _asked_pause("soon", lambda: 0.0, 1.0) == _asked_pause(None, lambda: 0.0, 1.0) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllms_own_server_writes_a_pool(config: GenerationConfig, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    end = "</s>"
    save_models(tmp_path, [
        f"<|assistant|>This is a sentence that is {label}. Sentence: {text}{end}" for label, text in KNOWN_SENTENCES.items()
    ])  # fmt: skip
    model = tmp_path / "trained" / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    # The tiny context has no room for a conversation: its last turn says all.
    label = "messages[-1]['content'].split(' label ')[1].split('.')[0]"
    tokenizer.chat_template = "{{ '<|assistant|>This is a sentence that is ' + " + label + " }}"
    tokenizer.save_pretrained(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port),
               "--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as serving,
    ):
        try:
            wait_for(port, serving, tmp_path / "server.log")
            endpoint = replace(config.endpoint, model="tiny", url=f"http://127.0.0.1:{port}/v1", concurrency=8)
            metrics = generate(replace(config, endpoint=endpoint, min_yield=0.05), "", str(tmp_path / "out"))
        finally:
            serving.terminate()
            serving.wait(60)
    sentences = read_examples(tmp_path / "out" / "pool", SENTIMENT)["sentence"].to_pylist()
    assert set(sentences) & set(KNOWN_SENTENCES.values())
    assert metrics["prompt_tokens"] > 0 and metrics["completion_tokens"] > metrics["parsed"] and metrics["dollars"] > 0


def wait_for(port: int, serving: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    end = time.monotonic() + 400
    while time.monotonic() < end:
        assert serving.poll() is None, log.read_text()[-3_000:]
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3_000:])
