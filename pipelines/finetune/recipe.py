"""The recipe of a finetuning: its settings, its learning rate at each step, and the trajectory that nested sets share.

Models of nested training sets can share one trajectory: a *trunk* goes through the largest set, whose rows begin with those of
the smaller ones (`training_set.py`), at a constant learning rate after warm-up. The model of a smaller set is a *branch*: it
leaves the trunk where the last `cooldown_ratio` of its own steps begin and takes these with a falling learning rate. So it has
seen exactly its own set, each example once, and only its cool-down is computed for it alone. The trunk ends with a cool-down of
its own: it is the model of the largest set (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv
2405.18392).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import added, runtime
from pipelines.models.architectures import LLAMA_PROJECTIONS

if TYPE_CHECKING:
    import torch

    from pipelines.adapters.adapters import Adapters

WARMUP_STABLE_DECAY = "warmup_stable_decay"


@dataclass(frozen=True)
class FinetuneConfig:
    """How a model is finetuned. The defaults are the recipe of the paper's released scripts, without their 4-bit base.

    `batch_size` counts the examples of one optimizer step over all workers; `epochs` may be a fraction. `share_prefix` computes
    once a batch what texts begin with alike: all prompts of T, those of one label of G (exact, except that its examples then
    share that part's dropout mask).
    With `group_by_length`, a batch holds examples of similar length, as transformers' Trainer groups them.
    Schedule "warmup_stable_decay" keeps the learning rate until the last `cooldown_ratio` of the steps, in which it falls to 0.
    `max_length` is in tokens, None for the model's own limit; a longer example is an error, never cut. On a GPU, runs of at
    least `compile_from_steps` optimizer steps (passes, of jobs that are finetuned at once) compile their decoder layers first
    (0: never), which takes a while to repay.
    A classifier's head stays as it starts for the first `head_frozen_share` of the steps (rounded up), at a learning rate of 0:
    its gradient counts in the clipping, and its moments move along.
    `rehearse_steps` above 0 makes it a rehearsal: only so many steps, on the longest examples, which need most memory.
    """

    method: str = "lora"
    learning_rate: float = 2e-5
    epochs: float = 1.0
    batch_size: int = 2
    schedule: str = "cosine"
    warmup_ratio: float = 0.3
    weight_decay: float = 0.001
    max_grad_norm: float = 0.3
    dtype: str = "bfloat16"
    lora_rank: int = 64
    lora_alpha: float = 16
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = LLAMA_PROJECTIONS
    train_embeddings: bool = False
    share_prefix: bool = True
    group_by_length: bool = False
    max_length: int | None = None
    rehearse_steps: int = 0
    cooldown_ratio: float = added(0.0)
    head_frozen_share: float = added(0.0)
    zero_stage: int = runtime(1)
    gradient_checkpointing: bool = runtime(False)
    tokens_per_microbatch: int = runtime(16_384)
    compile_from_steps: int = runtime(10_000)
    log_every: int = runtime(10)
    checkpoint_every: int = runtime(1_000)

    def __post_init__(self) -> None:
        check_types(self)
        check_one_of("method", self.method, ("lora", "full"))
        check_one_of("schedule", self.schedule, ("cosine", "linear", "constant", WARMUP_STABLE_DECAY))
        check_one_of("dtype", self.dtype, ("bfloat16", "float32"))
        check_one_of("zero_stage", self.zero_stage, (0, 1, 2, 3))
        for name in ("learning_rate", "epochs", "batch_size", "lora_rank", "tokens_per_microbatch", "log_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"warmup_ratio={self.warmup_ratio} must be at least 0 and below 1")
        if (self.schedule == WARMUP_STABLE_DECAY) != (self.cooldown_ratio != 0):
            raise UserError(
                f"cooldown_ratio={self.cooldown_ratio} with schedule={self.schedule!r}: it is above 0 for "
                f"{WARMUP_STABLE_DECAY!r} and 0 for any other; give both or neither"
            )
        if not 0 <= self.cooldown_ratio <= 1 - self.warmup_ratio:
            raise UserError(
                f"cooldown_ratio={self.cooldown_ratio} with warmup_ratio={self.warmup_ratio}: they are parts of one run; give "
                "at least 0, and at most what the warm-up leaves"
            )
        if not 0 <= self.head_frozen_share <= 1:
            raise UserError(f"head_frozen_share={self.head_frozen_share}: it is a share of the steps; give 0 to 1")


def check_one_of(name: str, value: Any, valid: tuple[Any, ...]) -> None:
    """Raise UserError for a setting that is none of the valid ones."""
    if value not in valid:
        raise UserError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")


def nested_ends(sizes: Sequence[int], batch_size: int) -> list[int]:
    """After how many optimizer steps each of the nested sets of `sizes`, ascending, has been seen: no batch lies in two."""
    return list(accumulate(-(-(size - smaller) // batch_size) for smaller, size in pairwise((0, *sizes))))


def cooldown_start(num_steps: int, config: FinetuneConfig) -> int:
    """The first step of the cool-down of a run of `num_steps`, where a branch leaves its trunk."""
    return num_steps - math.ceil(config.cooldown_ratio * num_steps)


def learning_rate_at(step: int, num_steps: int, config: FinetuneConfig, *, shortest: int | None = None) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up over ceil(ratio * num_steps) steps, then the schedule.

    On a trajectory all have the warm-up of its `shortest` run, in steps. A cool-down falls as 1 - sqrt (Hägele et al. 2024).
    """
    warmup = math.ceil(config.warmup_ratio * (shortest or num_steps))
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    match config.schedule:
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return config.learning_rate * (1 - progress)
        case "warmup_stable_decay":
            start = cooldown_start(num_steps, config)
            fallen = math.sqrt((step - start) / (num_steps - start)) if step > start else 0.0
            return config.learning_rate * (1 - fallen)
        case _:
            return config.learning_rate


def check_trajectory(config: FinetuneConfig, num_workers: int) -> None:
    """Raise UserError unless finetunings by `config` can share a trajectory: its schedule, adapters, one epoch, one worker."""
    for name, value, wanted in (
        ("schedule", config.schedule, WARMUP_STABLE_DECAY),
        ("method", config.method, "lora"),
        ("epochs", config.epochs, 1),
        ("head_frozen_share", config.head_frozen_share, 0),
        ("num_workers", num_workers, 1),
    ):
        if value != wanted:
            raise UserError(
                f"{name}={value!r}: finetunings that share a trajectory need {wanted!r}; give that, or train each size "
                "on its own"
            )


def check_loss(loss: float, step: int, config: FinetuneConfig) -> None:
    """Raise UserError for a loss that is no number."""
    if not math.isfinite(loss):
        raise UserError(
            f"loss is {loss} at step {step} with learning_rate={config.learning_rate}: training diverged; lower the learning "
            "rate or raise warmup_ratio"
        )


def adapters_of(backbone: torch.nn.Module, config: FinetuneConfig, *, seeds: Sequence[int | None]) -> Adapters:
    """Freeze `backbone` and give it the adapters that `config` describes, in its own dtype, one for each seed.

    fp32 adapters on a bf16 model would break ZeRO-3 and halve the speed; the optimizer keeps the fp32 master copy.
    """
    from pipelines.adapters.adapters import add_adapters

    return add_adapters(
        backbone, config.lora_targets, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout, seeds=seeds
    )


def check_saved_adapter(saved: Path, config: FinetuneConfig) -> None:
    """Raise UserError unless the adapter in `saved` has the rank, alpha and targets that `config` asks to continue with."""
    written = json.loads((saved / "adapter_config.json").read_text())
    for name, wanted in (("r", config.lora_rank), ("lora_alpha", config.lora_alpha)):
        if written[name] != wanted:
            raise UserError(
                f"the starting point's adapter has {name}={written[name]} and this finetuning asks for {wanted}: an adapter is "
                "continued as it is; use the same value for both"
            )
    if set(written["target_modules"]) != set(config.lora_targets):
        raise UserError(
            f"the starting point's adapter is on {sorted(written['target_modules'])} and this finetuning asks for "
            f"{sorted(config.lora_targets)}; use the same lora_targets for both"
        )
