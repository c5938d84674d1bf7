"""Several workers on this machine that train jobs one after another as Ray Train's do, without Ray: they start in seconds."""

import json
import os
import tempfile
from pathlib import Path

import torch

from pipelines.finetune.checkpoints import save_result
from pipelines.finetune.job import Member
from pipelines.resources import no_report


def train(jobs, outputs, *, num_workers, on_gpu=False, reports=None):
    """Train each of `jobs` on all workers, into the local folders or URIs `outputs`; the first worker's metrics of each."""
    reports = reports or [no_report] * len(jobs)
    members = [Member(job, str(output), report) for job, output, report in zip(jobs, outputs, reports, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (num_workers, folder, members, on_gpu), nprocs=num_workers)
        return json.loads((Path(folder) / "metrics.json").read_text())


def _work(rank, num_workers, folder, members, on_gpu):
    os.environ["LOCAL_RANK"] = str(rank)
    from pipelines.finetune import driver

    if on_gpu:
        torch.cuda.set_device(rank)
        # As a test of this process may have left it.
        os.environ.pop("DS_ACCELERATOR", None)
    driver._talk_over_loopback()
    torch.distributed.init_process_group(
        driver._backend(on_gpu), init_method=f"file://{folder}/meet", rank=rank, world_size=num_workers
    )
    driver._set_up(use_gpu=on_gpu, num_threads=1)
    from pipelines.finetune.alone import train_alone
    from pipelines.models.process import free_memory

    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    metrics = []
    for member in members:
        trained = train_alone(member, device, rank=rank, num_workers=num_workers)
        free_memory()
        if rank == 0:
            save_result(member, trained.tensors, trained.log)
        torch.distributed.barrier()
        metrics.append(trained.metrics)
    if rank == 0:
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()
