"""T: the base model with a head, a class for each label (paper, section 2.2.2), untrained or finetuned.

The head reads a decoder's last token, an encoder's first one.

A task model's folder holds `head.safetensors` and, unless it is untrained, `adapter/` (LoRA) or `model/` (all weights). A
starting point is a task model; finetuning one continues its own adapter (or weights) and head with a fresh optimizer.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.field_types import check_types
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import FinetuneJob
from pipelines.finetune.recipe import FinetuneConfig, check_one_of
from pipelines.identity import added
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import fetch, working_folder
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task

HEADS = ("random", "zero", "lm")


@dataclass(frozen=True)
class UntrainedConfig:
    """The starting point of size 0: the pretrained model with a head that is saved once.

    `head` "random" is drawn by `seed`, "zero" has no opinion, and "lm" has for each label the mean of the language model's own
    output rows of the label's tokens, as they follow the prompt: what it would say next.
    """

    seed: int
    task: Task = added(NLI)
    head: str = added("random")

    def __post_init__(self) -> None:
        check_types(self)
        check_one_of("head", self.head, HEADS)


@dataclass(frozen=True)
class TaskModelConfig:
    """How a task model is finetuned. `seed` moves the order, the dropout and a fresh adapter.

    `nested_sizes` are the numbers of examples of the smaller sets that come first in its training set, ascending: it is the
    trunk that their models branch off, or a branch itself if it is given a trunk (`recipe.py`).
    """

    finetune: FinetuneConfig
    seed: int
    nested_sizes: tuple[int, ...] = added(())
    task: Task = added(NLI)

    def __post_init__(self) -> None:
        check_types(self)


def initial_task_model(config: UntrainedConfig, base_model: str, output: str) -> dict[str, Any]:
    """Write the head [num_labels, hidden_size] that every other task model of this seed starts from."""
    from pipelines.models.architectures import saved_architecture
    from pipelines.models.classifier import head_of_language_model, random_head, save_head

    settings = json.loads((Path(fetch(base_model)) / "model" / "config.json").read_text())
    num_labels, hidden_size = len(config.task.labels), settings["hidden_size"]
    with working_folder(output) as folder:
        if config.head == "lm":
            head = head_of_language_model(base_model, config.task)
        else:
            head = random_head(num_labels, hidden_size, seed=config.seed, std=settings.get("initializer_range") or 0.02)
        save_head(folder, head * 0 if config.head == "zero" else head)
    return {"hidden_size": hidden_size, "reads_first_token": saved_architecture(base_model).is_encoder}


def finetune_task_model(
    config: TaskModelConfig,
    training_set: str,
    base_model: str,
    starting_point: str,
    output: str,
    *,
    trunk: str | None = None,
    resources: Resources | None = None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Finetune `starting_point` (a task model's folder) on `training_set` (examples Parquet); `output` is a task model again.

    A branch's `trunk` is the task model of the largest set, from the same starting point. Returns the training's metrics.
    Raises UserError if the starting point's adapter differs in rank, alpha or targets from the config's, if full weights were
    to be continued by an adapter's finetuning, and for a trajectory that cannot be shared.
    """
    job = finetuning_job(config, training_set, base_model, starting_point, trunk)
    return finetune(job, output, resources=resources or Resources(), report=report)


def finetuning_job(
    config: TaskModelConfig, training_set: str, base_model: str, starting_point: str, trunk: str | None = None
) -> FinetuneJob:
    """The job that `finetune_task_model` runs, for `driver.finetune_group`."""
    return FinetuneJob(
        objective="classification",
        config=config.finetune,
        seed=config.seed,
        examples=training_set,
        base_model=base_model,
        starting_point=starting_point,
        save=save_task_model,
        nested_sizes=config.nested_sizes,
        task=config.task,
        trunk=trunk,
    )


def save_task_model(folder: Path, tensors: dict[str, Any], job: FinetuneJob) -> None:
    """Write head and adapter, or head and all weights, from the trained tensors."""
    import torch

    from pipelines.models.classifier import save_head
    from pipelines.models.model_files import save_model
    from pipelines.models.weights import load_body, place_tensors, weights_of

    save_head(folder, tensors["head.weight"].float())
    if job.config.method == "lora":
        _save_adapter(folder / "adapter", tensors, job.config)
        start = Path(fetch(job.starting_point)) if job.starting_point else None
        if start is not None and (start / "model").exists():
            # An adapter on top of a fully finetuned starting point is only whole with those weights.
            shutil.copytree(start / "model", folder / "model", dirs_exist_ok=True)
        return
    model = load_body(weights_of(None, job.base_model), dtype=getattr(torch, job.config.dtype))
    place_tensors(model, {n.removeprefix("body."): t for n, t in tensors.items() if n.startswith("body.")})
    save_model(model, folder / "model")


def _save_adapter(folder: Path, tensors: dict[str, Any], config: FinetuneConfig) -> None:
    """Write the adapter as peft does."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    from pipelines.adapters.files import ADAPTER_FILE, PEFT_PREFIX

    folder.mkdir(exist_ok=True)
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted(config.lora_targets),
        inference_mode=True,
    ).to_dict()
    # The base is named by the artifact's inputs, not by a path that holds on one machine only.
    settings["base_model_name_or_path"] = None
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=1, sort_keys=True, default=str))
    adapter = {name: tensor.contiguous() for name, tensor in tensors.items() if name.startswith(PEFT_PREFIX)}
    save_file(adapter, folder / ADAPTER_FILE)
