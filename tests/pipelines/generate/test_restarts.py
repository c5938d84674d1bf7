"""Engines that die, or stand still, through the real pool of Ray Data: a limited number of starts, then one clear error."""

import os
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import StalledError, UserError
from pipelines.generate import engine, writer
from pipelines.generate.config import GenerationConfig
from pipelines.generate.shards import plan_shards
from pipelines.generate.writer import MAX_RESTARTS, run_engines
from pipelines.resources import Resources
from pipelines.tasks.nli import LABELS
from pipelines.workers.watchdog import STALL_AFTER
from sweep.run.failures import one_line

CONFIG = GenerationConfig(num_per_label=10, shard_size=10, generator_id="none")
SHARDS = plan_shards(dict.fromkeys(LABELS, 10), shard_size=10, min_yield=0.5, seed=0)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


class Dies:
    """Leaves a line for each start and ends its process: at once, or with its first shard."""

    def __init__(self, output: str, model: str, **_: Any) -> None:
        with Path(output, "starts.txt").open("a") as file:
            file.write("start\n")
        self.model = model
        if model == "at once":
            os._exit(7)

    def __call__(self, batch: Any) -> Any:
        os._exit(7)


class HangingLLM:
    """A vLLM that does not end its start, or its first step."""

    def __init__(self, hangs: str) -> None:
        if hangs == "at its start":
            time.sleep(1000)
        self.llm_engine = self

    def get_tokenizer(self) -> None: ...

    def generate(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        time.sleep(1000)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at once", "at its first shard"])
def test_an_engine_that_dies_each_time_is_given_up(
    when: str, ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ShardWriter", Dies)
    with pytest.raises(Exception) as caught:
        list(run_engines(CONFIG, when, str(tmp_path), SHARDS, Resources(), "request"))
    assert "its process" in one_line(caught.value)
    assert (tmp_path / "starts.txt").read_text().count("start") == 1 + MAX_RESTARTS


def test_a_worker_is_noted_before_anything_of_its_engine_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []
    monkeypatch.setattr(writer, "note_worker", lambda what, outputs: noted.append((what, outputs)))
    with pytest.raises(UserError, match="nothing does not exist"):
        writer.ShardWriter(CONFIG, str(tmp_path / "nothing"), "pool", "request", Resources())
    assert noted == [("a vLLM engine", ["pool"])]


@pytest.mark.parametrize(("when", "what"), [("at its start", "a vLLM engine, while it started,"), ("later", "a vLLM engine")])
def test_an_engine_that_stands_still_is_named(when: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm: Any = types.ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = HangingLLM, dict
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for change in ("allocate_by_the_block", "inspect_models_here", "step_together"):
        monkeypatch.setattr(engine, change, lambda *_: None)
    monkeypatch.setattr(engine, "Decoder", lambda *_: types.SimpleNamespace(may_end=frozenset()))
    monkeypatch.setattr(engine._Submission, "request", lambda *_: None)
    monkeypatch.setenv(STALL_AFTER, "0.2")
    with pytest.raises(StalledError) as caught:
        engine.Engine({"hangs": when}, stop=".", prompts=[], max_queued=4).complete([1], vllm.SamplingParams(), [1])
    assert one_line(caught.value) == f"{what} stood still for 0.6 s ({STALL_AFTER} sets how long it may)"
    assert "test_restarts.py" in caught.value.__notes__[0]
