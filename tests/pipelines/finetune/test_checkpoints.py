"""Checkpoints: whole by parameter, read on any number of workers, never unpickled, and a damaged one is not the end."""

import dataclasses
import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.multiprocessing.spawn import ProcessExitedException

from pipelines.errors import UserError
from pipelines.finetune import checkpoints
from pipelines.finetune.checkpoints import (
    DEEPSPEED,
    KINDS,
    TOGETHER,
    Checkpoints,
    Part,
    Piece,
    Progress,
    checkpointing_engine,
    read_metrics,
)
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job
from pipelines.finetune.together import train_together
from pipelines.identity import RESULT_FILE
from pipelines.models.process import has_gpu
from pipelines.resources import Resources, no_report
from pipelines.storage import fetch, filesystem, join, read_text, write_bytes, write_text
from tests.pipelines.finetune.workers import train

ROOT = Path(__file__).parents[3]
RECIPE = FinetuneConfig(
    learning_rate=1e-3, batch_size=16, dtype="float32", max_grad_norm=1.0, warmup_ratio=0.2, weight_decay=0.01, log_every=1,
    lora_rank=4, lora_dropout=0.2, checkpoint_every=2,
)  # fmt: skip
ROUNDING = {"float32": 2e-6, "bfloat16": 2e-3}
"""Relative, of a loss: several workers' gradients are added up in another order."""
ROUNDING_ON_GPU = 5e-3


# --- what is unpickled: nothing ---

UNPICKLES = re.compile(
    r"\b(torch\.(load|save)|c?[Pp]ickle|cloudpickle|dill|joblib|marshal|shelve|allow_pickle|load_checkpoint|save_checkpoint"
    r"|\w+_object_list|all_gather_object|gather_object)\b"
)
# Asks whether an exception can be sent to another process; Ray sends it. Nothing is read.
EXCEPTIONS = {"pipelines/errors.py": {"import pickle", "pickle.dumps(error)"}}


def test_nothing_in_the_product_pickles_or_unpickles():
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for floor in ("pipelines", "sweep", "analysis")
        for path in sorted((ROOT / floor).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNPICKLES.search(line) and line.strip() not in EXCEPTIONS.get(str(path.relative_to(ROOT)), ())
    }
    assert not found
    for line in ("x = torch.load(path)", "import pickle", "engine.load_checkpoint(folder)", "np.load(f, allow_pickle=True)"):
        assert UNPICKLES.search(line)


# --- files, with plain tensors ---

SIZES = {"body.weight": 12, "head.weight": 7}
VALUES = {kind: torch.arange(19, dtype=torch.float32) + 100 * number for number, kind in enumerate(KINDS)}


def parts_of(rank, num_workers, *, fill=None):
    """A worker's run of the parameters end to end, as ZeRO 1 and 2 cut them; of VALUES, or filled with one number."""
    length = -(-19 // num_workers)
    pieces, place = [], -rank * length
    for name, size in SIZES.items():
        start, end = max(0, -place), min(size, length - place)
        if start < end:
            pieces.append(Piece(name, start, end - start, place + start))
        place += size
    tensors = {}
    for kind, values in VALUES.items():
        padded = torch.cat([values, torch.zeros(length * num_workers - 19)])[rank * length : (rank + 1) * length].clone()
        tensors[kind] = padded if fill is None else torch.full_like(padded, fill)
    return [Part(tensors, pieces)]


@pytest.fixture
def workers(monkeypatch):
    """Several workers in this process, one after another, the first one last: it waits for the others."""
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 20)

    def save(output, step, num_workers, engine=DEEPSPEED):
        for rank in reversed(range(num_workers)):
            progress = Progress(step, [{"step": step - 1, "loss": 0.1 + step}], step - 1, 0.5 + rank, step)
            Checkpoints(output, engine, rank, num_workers).save(progress, parts_of(rank, num_workers))

    return save


def load_whole(output):
    parts = parts_of(0, 1, fill=-1.0)
    progress = Checkpoints(output, DEEPSPEED).load(parts)
    return progress, parts[0].tensors


@pytest.mark.parametrize("written_by", [1, 2, 3, 4])
@pytest.mark.parametrize("read_by", [1, 2, 4])
def test_any_number_of_workers_reads_what_any_number_wrote(workers, tmp_path, monkeypatch, written_by, read_by):
    workers(str(tmp_path), 6, written_by)
    monkeypatch.setattr(Checkpoints, "_least", lambda self, number: 6 if number is None else number)
    losses = []
    for rank in range(read_by):
        parts = parts_of(rank, read_by, fill=0.0)
        progress = Checkpoints(str(tmp_path), DEEPSPEED, rank, read_by).load(parts)
        assert (progress.next_step, progress.logged_step, progress.num_updates) == (6, 5, 6)
        assert progress.log == [{"step": 5, "loss": 6.1}]
        losses.append(progress.loss)
        for kind, expected in parts_of(rank, read_by)[0].tensors.items():
            assert torch.equal(parts[0].tensors[kind], expected)
    # Each as many times as it was written.
    assert sum(losses) == sum(0.5 + rank for rank in range(written_by))
    if read_by == written_by:
        assert losses == [0.5 + rank for rank in range(written_by)]


def test_a_checkpoint_is_safetensors_and_json(workers, tmp_path):
    workers(str(tmp_path), 6, 2)
    files = [path for path in (tmp_path / ".checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    names = set()
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, "pt") as tensors:
                names |= set(tensors.keys())
    assert {"master/0/body.weight", "exp_avg/10/body.weight", "exp_avg_sq/0/head.weight"} <= names
    assert len([path for path in files if path.suffix == ".safetensors"]) > 2, "large ones are several files"


def test_two_are_kept_and_what_was_never_whole_is_removed(workers, tmp_path):
    (tmp_path / ".checkpoints" / "step1").mkdir(parents=True)
    (tmp_path / ".checkpoints" / "step1" / "worker0-0.safetensors").write_bytes(b"half")
    for step in (2, 4, 6):
        workers(str(tmp_path), step, 2)
    names = sorted(path.name for path in (tmp_path / ".checkpoints").iterdir())
    assert names == ["step4", "step4.json", "step6", "step6.json"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": lambda folder: flip(folder / "step6" / "worker1-0.safetensors"),
    "truncated": lambda folder: (folder / "step6" / "worker0-0.safetensors").write_bytes(b"\x10"),
    "missing": lambda folder: (folder / "step6" / "worker0-0.safetensors").unlink(),
    "no folder": lambda folder: shutil.rmtree(folder / "step6"),
    "list empty": lambda folder: (folder / "step6.json").write_text(""),
    "list of another kind": lambda folder: (folder / "step6.json").write_text("[1]"),
    "list changed": lambda folder: (folder / "step6.json").write_text(
        (folder / "step6.json").read_text().replace("6.1", "5.1")
    ),
    "file of elsewhere": lambda folder: relist(
        folder, files={"../../../secret.safetensors": {"sha256": "", "slices": EVERYTHING}}
    ),
    "less than all": lambda folder: relist(folder, files={}),
    "format of another version": lambda folder: relist(folder, format=2),
}
EVERYTHING = [(name, 0, size) for name, size in SIZES.items()]


def relist(folder, **changes):
    content = checkpoints._read_list(str(folder), 6)
    (folder / "step6.json").write_text(checkpoints._sealed(content | changes))


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_one_is_damaged_the_one_before_it_is_used(workers, tmp_path, caplog, damage):
    for step in (4, 6):
        workers(str(tmp_path), step, 2)
    DAMAGES[damage](tmp_path / ".checkpoints")
    with caplog.at_level(logging.WARNING):
        progress, tensors = load_whole(str(tmp_path))
    assert progress.next_step == 4 and progress.log == [{"step": 3, "loss": 4.1}]
    assert all(torch.equal(tensors[kind], VALUES[kind]) for kind in KINDS)
    (line,) = caplog.messages
    assert line.startswith("the checkpoint at step 6 is removed, and what was before it goes on: ") and str(tmp_path) in line
    assert "\n" not in line
    # It stands in the way of nothing any more.
    assert sorted(path.name for path in (tmp_path / ".checkpoints").iterdir()) == ["step4", "step4.json"]


def test_where_all_are_damaged_the_job_begins(workers, tmp_path):
    workers(str(tmp_path), 6, 1)
    flip(tmp_path / ".checkpoints" / "step6" / "worker0-0.safetensors")
    progress, tensors = load_whole(str(tmp_path))
    assert progress is None
    assert all((values == -1.0).all() for values in tensors.values()), "nothing of it is used"
    (tmp_path / ".checkpoints" / "step6.json").write_text("{")
    assert checkpointing_engine(str(tmp_path)) is None


def test_a_pickled_checkpoint_is_removed_unread(tmp_path, monkeypatch, caplog):
    """As an earlier version wrote them; who unpickles this one makes a file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".checkpoints" / "step4" / "worker0" / "engine"
    folder.mkdir(parents=True)
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"cos\nsystem\n(S'touch pickled'\ntR.")
    latest = {"engine": "deepspeed", "next_step": 4, "num_workers": 1, "log": []}
    write_text(tmp_path / ".checkpoints" / "latest.json", json.dumps(latest))
    assert checkpointing_engine(str(tmp_path)) is None
    assert load_whole(str(tmp_path))[0] is None
    assert list(tmp_path.iterdir()) == []
    (line,) = caplog.messages
    assert "by an earlier version" in line and "begins anew" in line


def test_workers_whose_disks_are_their_own_are_told_so(workers, tmp_path):
    progress = Progress(6, [], 0, 0.0, 6)
    with pytest.raises(UserError, match=r"lacks what worker 1 of 2 has written: .* give a store that all nodes share"):
        Checkpoints(str(tmp_path), DEEPSPEED, 0, 2).save(progress, parts_of(0, 2))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_on_a_store_that_speaks_s3(workers, bucket, num_workers):
    output = join(bucket, "artifact")
    for step in (2, 4, 6):
        workers(output, step, num_workers, TOGETHER)
    assert checkpointing_engine(output) == TOGETHER
    assert load_whole(output)[0].next_step == 6
    write_bytes(join(output, ".checkpoints", "step6", "worker0-0.safetensors"), b"\x08")
    progress, tensors = load_whole(output)
    assert progress.next_step == 4
    assert all(torch.equal(tensors[kind], VALUES[kind]) for kind in KINDS)
    assert read_text(join(output, ".checkpoints", "step6.json")) is None


# --- real trainings ---


def losses(folder):
    return [entry["loss"] for entry in read_metrics(Path(folder) / "metrics.jsonl")]


def results(folder):
    """The files of the task model in `folder`."""
    files = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*.safetensors")}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".")}


def go_on(jobs, begun, outputs, **workers):
    """Train in `outputs` what runs were interrupted in that kept their last checkpoint where `begun`, which are whole, did."""
    for one, other in zip(begun, outputs, strict=True):
        shutil.copytree(one / ".checkpoints", other / ".checkpoints")
    assert {metrics["resumed_at_step"] for metrics in train(jobs, outputs, **workers)} == {4}


@pytest.fixture(scope="module")
def job_of(sources, base_model, untrained):
    def job(method, stage, dtype="float32", **changes):
        recipe = dataclasses.replace(RECIPE, method=method, zero_stage=stage, dtype=dtype, **changes)
        return finetuning_job(TaskModelConfig(recipe, 1), f"{sources}/train.parquet", base_model, untrained)

    return job


def check_turns(kinds, job_of, tmp_path, *, rounding, on_gpu=False):
    """What one worker began goes on on two, and what two began on one and on two."""
    jobs = [job_of(*kind) for kind in kinds]
    names = ("one", "two", "one, two", "two, one", "two, two")
    outputs = {name: [tmp_path / name / str(place) for place in range(len(jobs))] for name in names}
    train(jobs, outputs["one"], num_workers=1, on_gpu=on_gpu)
    train(jobs, outputs["two"], num_workers=2, on_gpu=on_gpu)
    for name, num_workers in (("one, two", 2), ("two, one", 1), ("two, two", 2)):
        go_on(jobs, outputs[name.split(",")[0]], outputs[name], num_workers=num_workers, on_gpu=on_gpu)
    for place, kind in enumerate(kinds):
        curves = {name: losses(folders[place]) for name, folders in outputs.items()}
        moved = max(curves["one"]) - min(curves["one"])
        for name, curve in curves.items():
            apart = np.abs(np.array(curve) / np.array(curves["one"]) - 1).max()
            print(f"{kind} {name}: {apart:.1e} apart, {moved:.2f} moved")
            np.testing.assert_allclose(curve, curves["one"], rtol=rounding(kind), err_msg=f"{kind} {name}")
        assert moved > 10 * rounding(kind), "a loss that stays put would prove nothing"
        two, again = (outputs[name][place] for name in ("two", "two, two"))
        if not on_gpu:
            assert losses(again) == losses(two) and results(again) == results(two), f"{kind}: as many workers, other bytes"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_engine_goes_on_on_another_number_of_workers(job_of, tmp_path):
    """DeepSpeed has an optimizer of its own for each stage and precision, but for ZeRO 1 in fp32, whose is that of 2."""
    kinds = [
        (method, stage, dtype)
        for method in ("lora", "full")
        for stage, dtype in (
            (0, "float32"), (0, "bfloat16"), (1, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "float32"), (3, "bfloat16")
        )
    ]  # fmt: skip
    check_turns(kinds, job_of, tmp_path, rounding=lambda kind: ROUNDING[kind[2]])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_two_workers_began_goes_on_on_four(job_of, tmp_path):
    jobs = [job_of("full", 3), job_of("lora", 2), job_of("lora", 0)]
    twos, fours = ([tmp_path / name / str(place) for place in range(len(jobs))] for name in ("two", "four"))
    train(jobs, twos, num_workers=2)
    go_on(jobs, twos, fours, num_workers=4)
    for two, four in zip(twos, fours, strict=True):
        np.testing.assert_allclose(losses(four), losses(two), rtol=ROUNDING["float32"])


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_one_gpu_and_two_take_turns(job_of, tmp_path):
    """Through NCCL: all weights and adapters with dropout, captured graphs at ZeRO 0 and 1."""
    if torch.cuda.device_count() < 2:
        pytest.skip("this takes two GPUs")
    kinds = [("full", 3, "bfloat16"), *(("lora", stage, "bfloat16") for stage in (0, 1, 3))]
    check_turns(kinds, job_of, tmp_path, rounding=lambda kind: ROUNDING_ON_GPU, on_gpu=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_resumed_stage_need_not_be_the_one_that_began(job_of, tmp_path):
    """ZeRO is a setting of where weights lie: 3 goes on as 0, and 1 as 3."""
    stages = ((3, 0), (1, 3))
    wholes, resumed = ([tmp_path / name / str(began) for began, _ in stages] for name in ("whole", "resumed"))
    train([job_of("lora", began, log_every=3) for began, _ in stages], wholes, num_workers=1)
    go_on([job_of("lora", stage, log_every=3) for _, stage in stages], wholes, resumed, num_workers=1)
    for whole, other in zip(wholes, resumed, strict=True):
        # The second entry is a mean over steps 3 to 5, of which one was before the checkpoint.
        assert len(losses(whole)) == 2
        np.testing.assert_allclose(losses(other), losses(whole), rtol=ROUNDING["float32"])


def test_a_process_that_was_given_no_gpu_takes_none(job_of, tmp_path, monkeypatch):
    """On a machine with GPUs Ray leaves them visible to it, and names the first one."""
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cuda:0"))
    finetune(job_of("lora", 0), str(tmp_path), resources=Resources(in_process=True), report=no_report)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not has_gpu()


def test_what_was_trained_among_many_goes_on_alone(job_of, tmp_path, monkeypatch):
    """By the names that both engines give: DeepSpeed takes up what `together.py` began."""
    job = job_of("lora", 0, checkpoint_every=4)
    ((_, metrics),) = train_together([Member(job, str(tmp_path / "begun"), no_report)], gpu_share=0)
    assert metrics["num_steps"] == 6 and checkpointing_engine(str(tmp_path / "begun")) == TOGETHER
    shutil.copytree(tmp_path / "begun" / ".checkpoints", tmp_path / "resumed" / ".checkpoints")
    # Where it can, it goes on as it began.
    monkeypatch.setattr("pipelines.finetune.together.checkpointing_engine", lambda output: None)
    metrics = finetune(job, str(tmp_path / "resumed"), resources=Resources(in_process=True), report=no_report)
    assert metrics["resumed_at_step"] == 4 and "mean_trained_together" not in metrics
    np.testing.assert_allclose(losses(tmp_path / "resumed"), losses(tmp_path / "begun"), rtol=ROUNDING["float32"])


class ExitOnce:
    """A report that ends its process at a step, the first time: a machine that is gone."""

    def __init__(self, marker, step):
        self.marker, self.step = marker, step

    def __call__(self, metrics, step):
        if step >= self.step and not Path(self.marker).exists():
            Path(self.marker).touch()
            os._exit(1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_killed_workers_go_on_from_a_remote_store(job_of, bucket, tmp_path):
    jobs = [job_of("lora", 0), job_of("lora", 1), job_of("full", 2), job_of("full", 3)]
    outputs = [join(bucket, str(place)) for place in range(len(jobs))]
    for job, output in zip(jobs, outputs, strict=True):
        with pytest.raises(ProcessExitedException):
            train([job], [output], num_workers=2, reports=[ExitOnce(f"{tmp_path}/gone-{output[-1]}", 5)])
        assert read_text(join(output, ".checkpoints", "step4.json")) is not None
    assert [metrics["resumed_at_step"] for metrics in train(jobs, outputs, num_workers=2)] == [4] * 4
    wholes = [tmp_path / "whole" / str(place) for place in range(len(jobs))]
    train(jobs, wholes, num_workers=2)
    for output, whole in zip(outputs, wholes, strict=True):
        fetched = Path(fetch(output, cache=tmp_path / "cache"))
        assert losses(fetched) == losses(whole) and results(fetched) == results(whole)


@pytest.fixture
def ray_on_bucket(bucket):
    """A Ray whose workers inherit the bucket's address and keys."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_trains_workers_go_on_from_a_remote_store(ray_on_bucket, job_of, bucket, tmp_path):
    """Killed and started again as a study does it, Ray Train's own folder on that store as well."""
    job, output, two = job_of("lora", 0), join(bucket, "artifact"), Resources(num_workers=2)
    with pytest.raises(Exception, match=r"(?i)died|worker|actor"):
        finetune(job, output, resources=two, report=ExitOnce(f"{tmp_path}/gone", 5))
    assert finetune(job, output, resources=two, report=no_report)["resumed_at_step"] == 4
    file_system, path = filesystem(join(output, ".ray_train"))
    # Ray leaves a marker and nothing that a later start would read.
    assert {entry["size"] for entry in file_system.find(path, detail=True).values()} <= {0}


def test_a_damaged_result_of_a_group_s_member_is_none(tmp_path: Path) -> None:
    output = str(tmp_path)
    checkpoints.keep_result(output, {"loss": 0.5})
    assert checkpoints.read_result(output) == {"loss": 0.5}
    written = (tmp_path / RESULT_FILE).read_bytes()
    for damaged in (b"", written[:5], b"\xff", b"3"):
        (tmp_path / RESULT_FILE).write_bytes(damaged)
        assert checkpoints.read_result(output) is None
