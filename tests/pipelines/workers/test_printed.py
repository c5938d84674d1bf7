"""What workers printed last is read where Ray keeps it, when they are dead, too. Ray is real, and has two nodes."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.finetune.driver import finetune
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job
from pipelines.resources import Resources
from pipelines.workers.printed import NUM_LINES, last_lines, note_worker

ROOT = Path(__file__).parents[3]
RECIPE = FinetuneConfig(learning_rate=3e-3, batch_size=4, dtype="float32", lora_rank=4, tokens_per_microbatch=250, log_every=1)


@pytest.fixture(scope="module")
def two_nodes():
    """A head without CPUs, and a node with a folder of its own, as another machine has."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="node-")  # not pytest's: the address of a socket is short
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2, temp_dir=folder)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder)


def mask(text):
    return text.replace("hunter2", "***")


class Worker:
    def print(self, *lines):
        print(*lines, sep="\n", flush=True)

    def work_on(self, output):
        note_worker("a worker", [output])

    def die_of(self, what):
        os.write(2, f"{what}\n".encode())  # as a library does that is not Python's
        os._exit(1)


def test_a_dead_worker_s_last_lines_are_had_from_its_node_once(two_nodes):
    import ray

    worker = ray.remote(Worker).options(num_cpus=1).remote()
    ray.get(worker.print.remote("of an earlier step"))
    ray.get(worker.work_on.remote("s3://store/task_model/cell-12ab/"))
    ray.get(worker.print.remote(*range(1000, 1000 + 2 * NUM_LINES)))
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(worker.die_of.remote("no memory for hunter2"))
    assert last_lines("s3://store/task_model/cell-34cd", mask) == ""
    out, err = last_lines("s3://store/task_model/cell-12ab", mask).strip().split("\n\n")
    header, *lines = out.splitlines()
    assert header.startswith("--- the last lines of a worker (pid ") and header.endswith(", stdout")
    assert lines == [str(number) for number in range(1000 + NUM_LINES, 1000 + 2 * NUM_LINES)]
    header, *lines = err.splitlines()
    assert header.endswith(", stderr") and lines == ["no memory for ***"]
    assert last_lines("s3://store/task_model/cell-12ab", mask) == ""


def test_a_driver_s_own_terminal_is_not_kept(two_nodes):
    note_worker("a driver", ["there"])
    assert last_lines("there", mask) == ""


def die(metrics, step):
    print("printed by Python", flush=True)
    os.write(2, b"written by a library\n")
    os._exit(1)


@pytest.mark.slow
def test_workers_of_finetunings_and_evaluations_have_notes(two_nodes, sources, base_model, untrained, tmp_path):
    job = finetuning_job(TaskModelConfig(RECIPE, 0), f"{sources}/train.parquet", base_model, untrained)
    with pytest.raises(Exception):  # noqa: B017 - whatever Ray makes of it
        finetune(job, str(tmp_path / "trained"), resources=Resources(), report=die)
    said = last_lines(str(tmp_path / "trained"), mask)
    assert "a worker of a finetuning (pid" in said and "printed by Python" in said and "written by a library" in said, said

    config = EvaluationConfig(sets=("template_test",))
    with pytest.raises(Exception):  # noqa: B017
        evaluate(config, sources, base_model, untrained, str(tmp_path / "evaluated"), resources=Resources(), report=die)
    said = last_lines(str(tmp_path / "evaluated"), mask)
    assert "the worker of an evaluation (pid" in said and "printed by Python" in said and "written by a library" in said, said
