"""A finetuning's own files beside its model: logged steps, checkpoints, kept states, and a result for the rest of a group."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.finetune.job import Member
from pipelines.storage import fetch, join, read_text, remove, working_folder, write_text

if TYPE_CHECKING:
    import torch

METRICS_FILE = "metrics.jsonl"
"""A finetuning's logged steps, one JSON object a line."""
CHECKPOINTS = ".checkpoints"
RESULT_FILE = ".result.json"
"""Metrics of a member of a group that has ended while others have not."""
LATEST = "latest.json"
STATES = "states"
DEEPSPEED, TOGETHER = "deepspeed", "together"
"""The engines that step a job: DeepSpeed alone, or `together.py` several at once."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a job's output, as one engine's worker number `rank` of `num_workers` writes and reads them."""

    output: str
    engine: str
    rank: int = 0
    num_workers: int = 1

    def save(self, next_step: int, log: list[dict[str, float]], *, write: Callable[[str], Any]) -> None:
        """Keep the state that a later call goes on from, which `write(folder)` writes, and how far the job is.

        Each worker writes a folder of its own, and the checkpoint counts once all of them are there.
        """
        where = join(self.output, CHECKPOINTS)
        before = read_text(join(where, LATEST))
        with working_folder(join(where, f"step{next_step}", f"worker{self.rank}")) as folder:
            write(str(folder))
        if self.num_workers > 1:
            import torch

            torch.distributed.barrier()
        if self.rank == 0:
            latest = {"engine": self.engine, "next_step": next_step, "num_workers": self.num_workers, "log": log}
            write_text(join(where, LATEST), json.dumps(latest))
            if before is not None:
                remove(join(where, f"step{json.loads(before)['next_step']}"))

    def load(self, *, read: Callable[[str], Any]) -> tuple[int, list[dict[str, float]]]:
        """Let `read(folder)` take up the last checkpoint. Returns the step to go on with and the steps logged so far.

        Raises UserError for one that another engine or number of workers wrote.
        """
        where = join(self.output, CHECKPOINTS)
        text = read_text(join(where, LATEST))
        if text is None:
            return 0, []
        latest = json.loads(text)
        if (latest["engine"], latest["num_workers"]) != (self.engine, self.num_workers):
            raise UserError(
                f"{where} was written by {latest['num_workers']} workers ({latest['engine']}) and this finetuning has "
                f"{self.num_workers} ({self.engine}): a checkpoint fits one number only; use it again, or remove that folder "
                "to begin anew"
            )
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as whole:
            for worker in range(self.num_workers):
                part = Path(fetch(join(where, f"step{latest['next_step']}", f"worker{worker}"))).resolve()
                shutil.copytree(part, whole, dirs_exist_ok=True, copy_function=os.symlink)
            read(whole)
        return latest["next_step"], latest["log"]


def checkpointing_engine(output: str) -> str | None:
    """The engine that wrote the last checkpoint in `output`, None if there is none."""
    text = read_text(join(output, CHECKPOINTS, LATEST))
    return None if text is None else str(json.loads(text)["engine"])


def last_commit(output: str) -> int | None:
    """The step that a finetuning would go on with, None before its first checkpoint."""
    text = read_text(join(output, CHECKPOINTS, LATEST))
    return None if text is None else int(json.loads(text)["next_step"])


def trunk_state(output: str, step: int) -> str:
    """Where the trunk in `output` keeps the state that a branch leaves it with before `step`."""
    return join(output, STATES, f"step{step}")


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The logged steps of a finetuning, from its `metrics.jsonl`."""
    for line in path.read_text().splitlines():
        yield json.loads(line)


def save_result(member: Member, tensors: dict[str, torch.Tensor], log: list[dict[str, float]]) -> None:
    """Write a job's output: its logged steps, and what its `save` makes of the trained tensors."""
    with working_folder(member.output) as folder:
        (folder / METRICS_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in log))
        member.job.save(folder, tensors, member.job)


def keep_result(output: str, metrics: dict[str, Any]) -> None:
    """Keep for a later call of the group that the job has ended well."""
    write_text(join(output, RESULT_FILE), json.dumps(metrics))


def read_result(output: str) -> dict[str, Any] | None:
    """The metrics of a job that has ended in an earlier call of its group, None for another."""
    text = read_text(join(output, RESULT_FILE))
    return None if text is None else dict(json.loads(text))
