"""From a stage's end to its record: what a process leaves that is killed between them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.identity import RESULT_FILE
from pipelines.storage import join, read_text, write_text
from sweep.graph.records import Store
from sweep.graph.stages import REGISTRY, Job, Stage
from sweep.graph.step import Step
from sweep.run import trial
from sweep.run.trial import Order, carry_out

STEP = Step("sources", "data", TrainingSetConfig("starting", size=3, seed=0))


class Killed(BaseException):
    """What ends a process; nothing in it may hold it up."""


@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_is_all_written_is_not_made_again_after_a_kill_before_its_record(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_trained = 0

    def finetune(job: Job) -> Mapping[str, Any]:
        nonlocal num_trained
        if read_text(join(job.output, RESULT_FILE)) is None:
            num_trained += 1
            write_text(join(job.output, ".checkpoints", "step4.json"), "84 GB of it")
            write_text(join(job.output, "model"), "weights")
            write_text(join(job.output, RESULT_FILE), "{}")
        return {}

    def kill(*arguments: object) -> None:
        raise Killed

    monkeypatch.setitem(REGISTRY, "sources", Stage(1, finetune))
    store = Store(request.getfixturevalue("bucket") if where == "s3" else tmp_path)
    order = Order(STEP, REGISTRY["sources"], store.uri)
    for place in ("versions", "_write_record"):
        with monkeypatch.context() as here, pytest.raises(Killed):
            here.setattr(trial, place, kill)
            carry_out(order)
    assert num_trained == 1
    assert read_text(join(store.folder(STEP.id), ".checkpoints", "step4.json")) is None, "large, and no more needed"
    record = carry_out(order).record
    assert record is not None and list(record.files) == ["model"] and num_trained == 1
    assert read_text(join(store.folder(STEP.id), RESULT_FILE)) is None


@pytest.mark.parametrize(
    ("where", "below"), [("local", ".hidden/store"), ("local", "folder/../store"), ("s3", ".hidden/store")]
)
def test_a_store_may_lie_in_a_hidden_folder_and_be_named_by_way_of_another(
    where: str, below: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()

    def build(job: Job) -> Mapping[str, Any]:
        write_text(join(job.output, ".checkpoints", "step4.json"), "working state")
        write_text(join(job.output, "model"), "weights")
        return {}

    monkeypatch.setitem(REGISTRY, "sources", Stage(1, build))
    store = Store(join(request.getfixturevalue("bucket") if where == "s3" else tmp_path, below))
    record = carry_out(Order(STEP, REGISTRY["sources"], store.uri)).record
    assert record is not None and list(record.files) == ["model"]
    assert read_text(join(store.folder(STEP.id), ".checkpoints", "step4.json")) is None
    assert read_text(join(store.folder(STEP.id), "model")) == "weights"
