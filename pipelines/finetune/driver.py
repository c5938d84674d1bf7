"""Finetuning on Ray Train, for the generator and the task models alike.

    finetune(job, output="...", resources=Resources(num_workers=2, gpus_per_worker=1), report=no_report)

An interrupted run goes on from its last checkpoint when it is started again with the same output.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import NeighbourFailedError, NoticeError, UserError, portable
from pipelines.finetune.checkpoints import TOGETHER, checkpointing_engine, keep_result, read_result, save_result
from pipelines.finetune.job import FinetuneJob, Member
from pipelines.finetune.recipe import check_trajectory
from pipelines.models.process import free_memory, quiet_libraries, without_gpus
from pipelines.resources import Report, Resources
from pipelines.storage import absolute, arrow_filesystem, join
from pipelines.workers.printed import note_worker
from pipelines.workers.watchdog import naming_stalls, patiently, watched

RAY_TRAIN = ".ray_train"
FOR_EVER_S = "1e9"


def finetune(job: FinetuneJob, output: str, *, resources: Resources, report: Report) -> dict[str, Any]:
    """Run `job` on Ray Train and return its final metrics (loss, counts, throughput in examples and tokens a second).

    `output` (folder or URI) gets what `job.save` writes and `metrics.jsonl`, one JSON object a logged step. Checkpoints lie in
    `output/.checkpoints` until the caller removes them. Raises UserError for an example that is too long or a label that is
    unknown.
    """
    (result,) = finetune_group([job], [output], resources=resources, reports=[report])
    if isinstance(result, Exception):
        raise result
    return result


def finetune_group(
    jobs: Sequence[FinetuneJob], outputs: Sequence[str], *, resources: Resources, reports: Sequence[Report]
) -> list[dict[str, Any] | Exception]:
    """Run several jobs in one group of workers, whose start they share: at once where they can be, else one after another.

    Each has its own output, checkpoints and report, and ends as it would alone. Returns each one's metrics, or what it failed
    with: `NeighbourFailedError`, with its cause, if the workers were lost before it had ended. Jobs that ended in an earlier
    call are not run again. Nothing is tried again in here, and workers are waited for as long as they do not fit.
    Raises UserError for a job on a trajectory that cannot be on one.
    """
    for job in jobs:
        if job.is_on_trajectory:
            check_trajectory(job.config, resources.num_workers)
            if job.config.rehearse_steps:
                raise UserError(f"rehearse_steps={job.config.rehearse_steps}: a rehearsal has no nested sets; leave them out")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    # A wait for a machine is none of Ray Train's failures, which it would begin anew every minute.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", FOR_EVER_S)
    use_gpu = resources.gpus_per_worker > 0
    file_system, path = arrow_filesystem(join(outputs[0], RAY_TRAIN))
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "members": [
                Member(job, absolute(output), report) for job, output, report in zip(jobs, outputs, reports, strict=True)
            ],
            "gpu_share": min(1.0, resources.gpus_per_worker),
            "num_threads": max(1, int(resources.cpus_per_worker)),
        },
        scaling_config=ScalingConfig(
            num_workers=0 if resources.in_process else resources.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources.as_bundle(),
        ),
        torch_config=_torch_config(_backend(use_gpu)),
        run_config=RunConfig(
            name="train",
            storage_path=path,
            storage_filesystem=file_system,
            # The last two are without a limit otherwise.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        with naming_stalls(outputs):
            return list(trainer.fit().return_value)
    except TrainingFailedError as error:
        # The cause, not Ray's report of it: a user's mistake stays one, whichever worker found it.
        cause: Exception = next(iter(error.worker_failures.values())) if isinstance(error, WorkerGroupError) else error
        if len(jobs) == 1 and cause is error:
            raise
        if len(jobs) == 1:
            raise cause from error
        ended = [read_result(output) for output in outputs]
        return [result if result is not None else _neighbour_failed(cause, error) for result in ended]


def _neighbour_failed(cause: Exception, error: Exception) -> NeighbourFailedError:
    failed = NeighbourFailedError(str(cause))
    failed.__cause__ = error
    return failed


def _backend(use_gpu: bool) -> str:
    return "nccl" if use_gpu else "gloo"


def _torch_config(backend: str) -> Any:
    """Ray's, whose workers meet in a file and over loopback if they are all of one machine.

    Ray's own way has a port open to the network, which asks nobody for a token.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

    class OneMachineBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            if len(set(worker_group.execute(_node_id))) > 1:
                super().on_start(worker_group, backend_config)
                return
            worker_group.execute(_talk_over_loopback)
            worker_group.execute(_set_torch_distributed_env_vars)
            url = f"file://{worker_group.execute_single(0, _meeting_file)}"
            num_workers = len(worker_group)
            starts = [
                worker_group.execute_single_async(
                    rank, _setup_torch_process_group, backend, rank, num_workers, url, backend_config.timeout_s
                )
                for rank in range(num_workers)
            ]
            ray.get(starts)

    class OneMachineConfig(TorchConfig):
        backend_cls = OneMachineBackend

    import ray

    return OneMachineConfig(backend=backend)


# What follows runs in a Ray Train worker.


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _talk_over_loopback() -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")


def _meeting_file() -> str:
    """A file that is not there yet, in the folder of this machine's Ray."""
    from ray._private.worker import global_worker

    return os.path.join(global_worker.node.get_session_dir_path(), f"process-group-{uuid.uuid4().hex}")


def _train_worker(loop: Mapping[str, Any]) -> list[dict[str, Any] | Exception]:
    """Train the members of a group. Returns the metrics of each or its failure; an only member's failure is raised."""
    outputs = [member.output for member in loop["members"]]
    note_worker("a worker of a finetuning", outputs)
    with watched("a worker of a finetuning", outputs[0]):
        return _train(loop)


def _train(loop: Mapping[str, Any]) -> list[dict[str, Any] | Exception]:
    members, gpu_share = loop["members"], loop["gpu_share"]
    _set_up(use_gpu=gpu_share > 0, num_threads=loop["num_threads"])
    if len(members) == 1 and checkpointing_engine(members[0].output) != TOGETHER and not members[0].job.is_on_trajectory:
        return [_train_alone(members[0], use_gpu=gpu_share > 0)]
    results = _train_group(members, gpu_share)
    if len(members) == 1 and isinstance(only := results[0], Exception):
        raise only
    return results


def _set_up(*, use_gpu: bool, num_threads: int) -> None:
    """Make this process ready for DeepSpeed."""
    if not use_gpu:
        without_gpus()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import deepspeed
    import torch

    if not use_gpu:
        torch.set_num_threads(num_threads)
    backend = _backend(use_gpu)
    if not torch.distributed.is_initialized():
        # In the driving process Ray Train makes no process group, and DeepSpeed wants one even for one worker.
        os.environ.setdefault("LOCAL_RANK", "0")
        _forget_process_groups()
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    quiet_libraries()
    # DeepSpeed would compile its shared-memory kernels (a C++ compiler and a minute) for inference only: our reductions are
    # gloo's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend)


def _forget_process_groups() -> None:
    """Make DeepSpeed forget the process groups of an earlier finetuning in this process, which Ray Train has destroyed."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    comm.cdb = None
    for name in ("_WORLD_GROUP", "_DATA_PARALLEL_GROUP"):
        setattr(groups, name, None)


def _train_group(members: Sequence[Member], gpu_share: float) -> list[dict[str, Any] | Exception]:
    """Train those that can be at once, then the others one by one; those that ended in an earlier call are left alone."""
    import ray.train

    context = ray.train.get_context()
    results: dict[int, dict[str, Any] | Exception] = {}

    def end(place: int, result: dict[str, Any] | Exception) -> None:
        results[place] = result
        if not isinstance(result, Exception) and context.get_world_rank() == 0:
            keep_result(members[place].output, result)

    for place, member in enumerate(members):
        if (ended := read_result(member.output)) is not None:
            results[place] = ended
    if context.get_world_size() == 1:
        from pipelines.finetune.together import compatible, train_together

        for places in compatible(members, [place for place in range(len(members)) if place not in results]):
            for number, result in train_together([members[place] for place in places], gpu_share):
                end(places[number], result)
    for place, member in enumerate(members):
        if place in results:
            continue
        if any(isinstance(result, NoticeError) for result in results.values()):
            end(place, NoticeError("a notice came before it began"))
            continue
        try:
            result = _train_alone(member, use_gpu=gpu_share > 0)
        except Exception as error:
            # All workers stop at a notice.
            if context.get_world_size() > 1 and not isinstance(error, NoticeError):
                # The other workers are in the midst of this job, and would wait for this one.
                raise
            result = portable(error)
        end(place, result)
        free_memory()
    return [results[place] for place in range(len(members))]


def _train_alone(member: Member, *, use_gpu: bool) -> dict[str, Any]:
    """Train and save one job, on all workers of the group; its metrics."""
    import ray.train
    import torch

    from pipelines.finetune.alone import train_alone

    context = ray.train.get_context()
    rank = context.get_world_rank()
    # In the driving process Ray Train names the machine's first GPU, whoever has it.
    device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
    trained = train_alone(member, device, rank=rank, num_workers=context.get_world_size())
    # What is saved may have to be put together on the device again, and the next job needs the room.
    free_memory()
    with patiently():
        if rank == 0:
            save_result(member, trained.tensors, trained.log)
        torch.distributed.barrier()
    return trained.metrics
