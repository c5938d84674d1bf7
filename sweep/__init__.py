"""From an experiment to finished artifacts: experiments, the step graph, plans, runs and the command line.

What a study's file imports is handed on here and in `sweep.experiments`; docs/studies.md lists it. A name is imported when it
is first asked for, so that reading a store's records does not import what only an experiment needs.
"""
# ruff: noqa: F401

import importlib
from typing import TYPE_CHECKING, Any

from sweep.study.public import HOMES

__all__ = list(HOMES)

if TYPE_CHECKING:
    from pipelines.data.sources import NLISourcesConfig, nli_sources_config
    from pipelines.data.template_corpus import TemplateCorpusConfig
    from pipelines.errors import UserError
    from pipelines.evaluate.evaluation import EvaluationConfig
    from pipelines.finetune.base_model import (
        PretrainedModelConfig,
        RandomModelConfig,
        ScratchModelConfig,
        pretrained_model_config,
        random_model_config,
    )
    from pipelines.finetune.generator import GeneratorConfig
    from pipelines.finetune.recipe import LLAMA_PROJECTIONS, FinetuneConfig
    from pipelines.generate.config import GenerationConfig
    from pipelines.resources import Resources
    from pipelines.tasks.examples import Label
    from pipelines.tasks.heuristics import HEURISTICS, LEXICAL_OVERLAP, Heuristic, find_heuristic, tokens
    from pipelines.tasks.prompts import EN_DASH, HYPHENS
    from sweep.study.experiment import Experiment
    from sweep.study.paper import PAPER_GENERATOR, PAPER_TASK_MODEL
else:

    def __getattr__(name: str) -> Any:
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
