"""Finetunings that a notice stops: what they had done is committed, and they end as undisturbed ones do."""

import dataclasses
import datetime
import threading

import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import NoticeError
from pipelines.finetune import alone, together
from pipelines.finetune.alone import Notices
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job
from pipelines.finetune.together import train_together
from pipelines.resources import Resources, no_report
from pipelines.workers import notice
from pipelines.workers.notice import notice_given, tell_node, tell_run

RECIPE = FinetuneConfig(
    learning_rate=3e-3, batch_size=4, dtype="float32", lora_rank=4, log_every=1, lora_dropout=0.2, tokens_per_microbatch=250,
)  # fmt: skip


@pytest.fixture
def flags(ray_two_cpus):
    """The flags of the run and of the node, looked at without delay, and removed afterwards."""
    paths = [notice._flag("run"), notice._flag("node")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notice, "LOOK_EVERY_S", 0)
        yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def test_a_run_and_a_node_have_notices_of_their_own(flags):
    assert not notice_given()
    tell_node()
    assert notice_given() and not notice.run_notice_given()
    flags[1].unlink()
    tell_run()
    assert notice_given() and notice.run_notice_given()


def tell_at_7(metrics, step):
    if step == 7:
        tell_run()


def is_learnt_alike(one, other):
    """Whether two outputs have the same adapter and head, to the last bit."""
    files = ("head.safetensors", "adapter/adapter_model.safetensors")
    pairs = [(load_file(one / file), load_file(other / file)) for file in files]
    return all(torch.equal(tensor, found[name]) for expected, found in pairs for name, tensor in expected.items())


def test_a_stopped_finetuning_goes_on_and_ends_in_the_same_weights(flags, sources, base_model, untrained, tmp_path):
    job = finetuning_job(TaskModelConfig(RECIPE, 0), f"{sources}/train.parquet", base_model, untrained)

    def run(name, report):
        return finetune(job, str(tmp_path / name), resources=Resources(in_process=True), report=report)

    assert run("undisturbed", no_report)["resumed_at_step"] is None
    with pytest.raises(NoticeError, match="a notice stopped it at step 7 of 24, which is committed"):
        run("stopped", tell_at_7)
    flags[0].unlink()
    assert run("stopped", no_report)["resumed_at_step"] == 7
    assert is_learnt_alike(tmp_path / "undisturbed", tmp_path / "stopped")


def test_those_that_are_trained_at_once_are_stopped_at_once(sources, base_model, untrained, tmp_path, monkeypatch):
    """One of them has just saved a checkpoint by itself, and one more than there is room for has not begun."""
    monkeypatch.setattr(together, "MAX_SLOTS", 3)
    recipes = [dataclasses.replace(RECIPE, checkpoint_every=every) for every in (0, 7, 0, 0)]
    examples = f"{sources}/train.parquet"
    jobs = [
        finetuning_job(TaskModelConfig(recipe, seed), examples, base_model, untrained) for seed, recipe in enumerate(recipes)
    ]

    def run(name, report=no_report):
        members = [Member(job, str(tmp_path / name / str(place)), report) for place, job in enumerate(jobs)]
        return [result for _, result in sorted(train_together(members, gpu_share=0))]

    reported = set()
    monkeypatch.setattr(together, "notice_given", lambda: 7 in reported)
    undisturbed = run("undisturbed")
    stopped = run("stopped", lambda metrics, step: reported.add(step))
    assert [str(error) for error in run("stopped")] == ["a notice came before it began"] * 4
    reported.clear()
    resumed = run("stopped")
    assert str(stopped[3]) == "a notice came before it began" and resumed[3]["resumed_at_step"] is None
    for place in range(3):
        step = resumed[place]["resumed_at_step"]
        assert isinstance(stopped[place], NoticeError) and undisturbed[place]["resumed_at_step"] is None
        assert str(stopped[place]) == f"a notice stopped it at step {step} of 24, which is committed"
    assert resumed[1]["resumed_at_step"] == 7
    assert all(is_learnt_alike(tmp_path / "undisturbed" / str(place), tmp_path / "stopped" / str(place)) for place in range(4))


def test_workers_of_a_group_stop_after_the_same_step(monkeypatch):
    """Two that talk over gloo, here from threads; the second alone finds a notice, at its fourth step."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    worker, store, steps = threading.local(), torch.distributed.HashStore(), {}

    def all_reduce(tensor, op):
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = op
        worker.group.allreduce([tensor], options).wait()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(alone, "AGREE_EVERY_S", 1e-9)  # after each step
    monkeypatch.setattr(alone, "notice_given", lambda: worker.rank == 1 and worker.step >= 3)

    def work(rank):
        worker.rank, worker.step = rank, 0
        worker.group = torch.distributed.ProcessGroupGloo(store, rank, 2, datetime.timedelta(seconds=60))
        notices = Notices(torch.device("cpu"), 2)
        while not notices.given():
            worker.step += 1
        steps[rank] = worker.step

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps == {0: 3, 1: 3}
