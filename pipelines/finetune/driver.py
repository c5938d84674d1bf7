"""Finetuning on Ray Train, for the generator and the task models alike.

    finetune(job, output="...", resources=Resources(num_workers=2, gpus_per_worker=1), report=no_report)

An interrupted run goes on from its last checkpoint when it is started again with the same output.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pipelines.errors import NoticeError, UserError, portable
from pipelines.finetune.checkpoints import keep_result, read_result, save_result
from pipelines.finetune.job import FinetuneJob, Member
from pipelines.finetune.recipe import check_trajectory
from pipelines.imports import lasting_imports, without_compiler, without_modules
from pipelines.models.process import free_memory, quiet_libraries, without_gpus
from pipelines.resources import Report, Resources
from pipelines.storage import absolute, arrow_filesystem, join
from pipelines.workers.lane import Intake, Lane
from pipelines.workers.notice import notice_given
from pipelines.workers.one_task import in_one_task
from pipelines.workers.printed import note_worker
from pipelines.workers.watchdog import patiently, watched

RAY_TRAIN = ".ray_train"
FOR_EVER_S = "1e9"
WORKER = "a worker of a finetuning"
NO_MORE = -1
"""In the place of a job's number: the lane ends."""


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
    """Run several jobs in one lane, at once where they can be, else one after another.

    Each has its own output, checkpoints and report, and ends as it would alone. Returns each one's metrics, or what it failed
    with (`Lane.result`). Raises UserError for a job on a trajectory that cannot be on one.
    """
    members = [Member(job, absolute(output), report) for job, output, report in zip(jobs, outputs, reports, strict=True)]
    for member in members:
        check_member(member, resources)
    return finetuning_lane(absolute(outputs[0]), resources, expected=len(jobs)).run_all(members)


def check_member(member: Member, resources: Resources) -> None:
    """Raise UserError for a job on a trajectory that cannot be on one."""
    job = member.job
    if job.is_on_trajectory:
        check_trajectory(job.config, resources.num_workers)
        if job.config.rehearse_steps:
            raise UserError(f"rehearse_steps={job.config.rehearse_steps}: a rehearsal has no nested sets; leave them out")


def finetuning_lane(output: str, resources: Resources, *, expected: int) -> Lane:
    """A lane that finetunes: its jobs are `Member`s that `check_member` passes, and end with their metrics.

    They are trained at once where they can be, else one after another. A member that had ended in an earlier call, and of which
    no record was written, is not trained again. About so many jobs are `expected` in all. Ray Train's own folder is in
    `output`, the first job's. Workers are waited for as long as they do not fit, and nothing is tried again in here.
    """
    serve = partial(_serve, absolute(output), resources, expected)
    return Lane(serve, lambda member: str(member.output), in_process=resources.in_process)


def _serve(output: str, resources: Resources, expected: int, desk: Any) -> None:
    """Have Ray Train's workers take on what is at the `desk`, until they end."""
    loop = {
        "desk": desk,
        "output": output,
        "expected": expected,
        "gpu_share": min(1.0, resources.gpus_per_worker),
        "num_threads": max(1, int(resources.cpus_per_worker)),
    }
    if resources.num_workers == 1:
        # Without the four processes that Ray Train starts for a group, before and beside its workers.
        in_one_task(finetuning, resources, loop)
    else:
        _train_in_group(loop, resources)


def _train_in_group(loop: Mapping[str, Any], resources: Resources) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    # A wait for a machine is none of Ray Train's failures, which it would begin anew every minute.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", FOR_EVER_S)
    use_gpu = loop["gpu_share"] > 0
    file_system, path = arrow_filesystem(join(loop["output"], RAY_TRAIN))
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=dict(loop),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=use_gpu, resources_per_worker=resources.as_bundle()
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
        trainer.fit()
    except TrainingFailedError as error:
        # The cause, not Ray's report of it: a user's mistake stays one, whichever worker found it.
        cause: Exception = next(iter(error.worker_failures.values())) if isinstance(error, WorkerGroupError) else error
        if cause is error:
            raise
        raise cause from error


def finetuning(loop: Mapping[str, Any], use_gpu: bool) -> None:
    """Train in this process, as the only worker: Ray Train's local mode. Its name is the process's."""
    with lasting_imports():
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

    scaling = ScalingConfig(num_workers=0, use_gpu=use_gpu)
    TorchTrainer(_train_worker, train_loop_config=dict(loop), scaling_config=scaling).fit()


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


class _UnderWay:
    """The jobs of the lane that this worker has under way: where it says so if it stands still."""

    def __init__(self) -> None:
        self.outputs: dict[int, str] = {}

    def __call__(self) -> str:
        return next(iter(self.outputs.values()))


def _train_worker(loop: Mapping[str, Any]) -> None:
    """Train what is at the desk until no more comes."""
    import ray.train

    context = ray.train.get_context()
    use_gpu = loop["gpu_share"] > 0
    if context.get_world_rank() > 0:
        _follow(loop["desk"], loop["expected"], use_gpu=use_gpu, num_threads=loop["num_threads"])
        return
    intake = Intake(loop["desk"])
    # Before there is a job: a lane may be opened ahead of its first one.
    with watched(WORKER, loop["output"]):
        _set_up(use_gpu=use_gpu, num_threads=loop["num_threads"])
    from pipelines.finetune.together import is_trained_together

    several = context.get_world_size() > 1
    while intake.wait():
        member = next(iter(intake.waiting.values()))
        try:
            ended: Any = read_result(member.output)
            is_together = not several and is_trained_together(member, loop["expected"], on_gpu=use_gpu)
        except Exception as error:
            # The store of one: others have theirs.
            ended = portable(error)
        if ended is not None:
            intake.end(intake.begin()[0], ended)
        elif is_together:
            _train_together(intake, loop["gpu_share"], loop["expected"])
        else:
            _train_next_alone(intake, loop["expected"], use_gpu=use_gpu, several=several)
    if several:
        _tell(NO_MORE, use_gpu=use_gpu)


def _follow(desk: Any, expected: int, *, use_gpu: bool, num_threads: int) -> None:
    """Train, as one of several workers, what the first one of them begins."""
    _set_up(use_gpu=use_gpu, num_threads=num_threads)
    intake = Intake(desk)
    while (number := _tell(NO_MORE, use_gpu=use_gpu)) != NO_MORE:
        member = intake.job(number)
        note_worker(WORKER, [member.output])
        with watched(WORKER, member.output):
            with contextlib.suppress(NoticeError):  # the first worker hands it back
                _train_alone(member, expected, use_gpu=use_gpu)
            free_memory()


def _tell(number: int, *, use_gpu: bool) -> int:
    """The first worker's `number`, in all of them. Collective."""
    import torch

    told = torch.tensor(number, device=_device(use_gpu))
    torch.distributed.broadcast(told, src=0)
    return int(told.item())


def _device(use_gpu: bool) -> Any:
    import ray.train
    import torch

    # In the driving process Ray Train names the machine's first GPU, whoever has it.
    return ray.train.torch.get_device() if use_gpu else torch.device("cpu")


def _train_together(intake: Intake, gpu_share: float, expected: int) -> None:
    """Train the first job that waits, and at once with it those that can be, as long as any come."""
    from pipelines.finetune.bank import MAX_SLOTS
    from pipelines.finetune.together import shape_together, train_together

    shape = shape_together(next(iter(intake.waiting.values())))
    numbers: list[int] = []
    under_way = _UnderWay()
    is_alike: dict[int, bool] = {}

    def joining(most: int, *, is_idle: bool = False) -> Iterator[Member]:
        intake.look()
        if is_idle and not intake.wait():
            return
        for number, member in list(intake.waiting.items()):
            # Once: it is looked at before every step, and a store may be far.
            if number in is_alike:
                continue
            try:
                is_alike[number] = read_result(member.output) is None and shape_together(member) == shape
            except Exception as error:
                # Those under way have no part in it.
                intake.end(intake.begin(number)[0], portable(error))
        for number in [number for number in intake.waiting if is_alike[number]][:most]:
            _, member = intake.begin(number)
            numbers.append(number)
            under_way.outputs[number] = member.output
            note_worker(WORKER, [member.output])
            yield member

    first = list(joining(min(MAX_SLOTS, expected)))
    with watched(WORKER, under_way):
        for place, result in train_together(first, gpu_share, joining=joining, expected=expected):
            if not isinstance(result, Exception):
                result = _kept(under_way.outputs[numbers[place]], result)
            del under_way.outputs[numbers[place]]
            intake.end(numbers[place], result)


def _kept(output: str, metrics: dict[str, Any]) -> dict[str, Any] | Exception:
    """`metrics` of a job that has ended well, noted for a later call; or why that cannot be noted, for which no other fails."""
    try:
        keep_result(output, metrics)
    except Exception as error:
        return portable(error)
    return metrics


def _train_next_alone(intake: Intake, expected: int, *, use_gpu: bool, several: bool) -> None:
    """Train the first job that waits by itself, on all workers."""
    number, member = intake.begin()
    note_worker(WORKER, [member.output])
    if notice_given():
        intake.end(number, NoticeError("a notice came before it began"))
        return
    if several:
        _tell(number, use_gpu=use_gpu)
    with watched(WORKER, member.output):
        result: dict[str, Any] | Exception
        try:
            metrics = _train_alone(member, expected, use_gpu=use_gpu)
        except Exception as error:
            # All workers stop at a notice.
            if several and not isinstance(error, NoticeError):
                # The other workers are in the midst of this job, and would wait for this one.
                raise
            result = portable(error)
        else:
            result = _kept(member.output, metrics)
        free_memory()
    intake.end(number, result)


def _set_up(*, use_gpu: bool, num_threads: int) -> None:
    """Make this process ready for DeepSpeed."""
    if not use_gpu:
        without_gpus()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # DeepSpeed's autotuner and transformers' assisted decoding would import them, a quarter of a start, for nobody.
    with lasting_imports(), without_modules("mlflow", "sklearn"):
        import deepspeed
        import torch

        # A lane that was opened ahead of its first job has the time.
        import pipelines.finetune.alone
        import pipelines.finetune.together  # noqa: F401

        # ZeRO asks of an optimizer whether it is this one. None is, so that its functions need not be compiled.
        with without_compiler():
            import deepspeed.runtime.zero.muon.muon_optimizer

    if use_gpu:
        torch.cuda.init()
    else:
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


def _train_alone(member: Member, expected: int, *, use_gpu: bool) -> dict[str, Any]:
    """Train and save one job, on all workers of the group; its metrics."""
    import ray.train
    import torch

    from pipelines.finetune.alone import train_alone

    context = ray.train.get_context()
    rank = context.get_world_rank()
    num_workers = context.get_world_size()
    trained = train_alone(member, _device(use_gpu), rank=rank, num_workers=num_workers, keeps_weights=expected > 1)
    # What is saved may have to be put together on the device again, and the next job needs the room.
    free_memory()
    with patiently():
        if rank == 0:
            save_result(member, trained.tensors, trained.log)
        torch.distributed.barrier()
    return trained.metrics
