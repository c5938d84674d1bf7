"""G: the base model finetuned to write labelled examples (paper, section 2.2.2), merged to plain safetensors for vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.field_types import check_types
from pipelines.finetune.base_model import save_language_model
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import FinetuneJob
from pipelines.finetune.recipe import FinetuneConfig, check_one_of
from pipelines.identity import added
from pipelines.resources import Report, Resources, no_report
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import EN_DASH, END_MARKERS
from pipelines.tasks.task import Task


@dataclass(frozen=True)
class GeneratorConfig:
    """How G is finetuned: on every example of its training files, each written with `end_marker`."""

    finetune: FinetuneConfig
    seed: int = 0
    end_marker: str = EN_DASH
    task: Task = added(NLI)

    def __post_init__(self) -> None:
        check_types(self)
        check_one_of("end_marker", self.end_marker, END_MARKERS)


def finetune_generator(
    config: GeneratorConfig,
    training_set: str | Sequence[str],
    base_model: str,
    output: str,
    *,
    resources: Resources | None = None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Finetune the base model on the texts of `training_set` (examples Parquet, or several) and write `output/model/`, merged.

    Returns the training's metrics. Raises UserError for an example longer than the model or the config allows.
    """
    return finetune(generator_job(config, training_set, base_model), output, resources=resources or Resources(), report=report)


def generator_job(config: GeneratorConfig, training_set: str | Sequence[str], base_model: str) -> FinetuneJob:
    """What `finetune_generator` finetunes."""
    return FinetuneJob(
        objective="language_modeling",
        config=config.finetune,
        seed=config.seed,
        examples=training_set if isinstance(training_set, str) else tuple(training_set),
        base_model=base_model,
        save=save_language_model,
        text="generator",
        end_marker=config.end_marker,
        task=config.task,
    )
