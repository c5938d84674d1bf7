"""Resources that a stage may use, and the function that takes its step metrics. Pure: no heavy imports."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from pipelines.errors import UserError
from pipelines.field_types import check_types

Report: TypeAlias = Callable[[Mapping[str, float], int], None]
"""``report(metrics, step)``: where step metrics go. Picklable; may be called from any process."""


def no_report(metrics: Mapping[str, float], step: int) -> None:
    """The :data:`Report` that keeps nothing."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """Workers of one stage and what each may use. Runtime, never identity.

    ``cpus_per_worker`` and ``gpus_per_worker`` are Ray's logical units and may be fractions.
    Raises :class:`UserError` for a worker count below 1, a negative or non-finite amount, or a worker that
    asks for nothing.
    """

    num_workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    in_process: bool = False
    """A finetuning's, or an evaluation's, one worker is the process that drives it: it starts in a second instead of ten. For
    models that train in seconds; with a GPU, for a process that has one to itself, which a study's steps have not.
    """
    max_group: int = 1
    """Finetunings that may be trained at once in a lane; from 2 on finetunings, or evaluations, over one base model are done by
    workers that start once (docs/scheduling.md)."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_workers < 1:
            raise UserError(f"num_workers={self.num_workers}: a stage needs at least one worker; give 1 or more")
        if self.max_group < 1:
            raise UserError(f"max_group={self.max_group}: a worker takes on at least one step; give 1 or more")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            amount = getattr(self, name)
            if not (math.isfinite(amount) and amount >= 0):
                raise UserError(f"{name}={amount}: an amount of a resource is finite and not negative; give 0 or more")
        if self.in_process and self.num_workers != 1:
            raise UserError(
                f"in_process=True with num_workers={self.num_workers}: one worker can be the driving process; leave in_process "
                "out"
            )
        if not self.as_bundle():
            raise UserError("a worker with 0 CPUs and 0 GPUs cannot be placed; set cpus_per_worker or gpus_per_worker")

    def as_bundle(self) -> dict[str, float]:
        """The resources of *one* worker, as Ray names them; an amount of 0 is left out."""
        amounts = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def total_cpus(self) -> float:
        return self.num_workers * self.cpus_per_worker

    @property
    def total_gpus(self) -> float:
        return self.num_workers * self.gpus_per_worker
