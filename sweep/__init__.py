"""From an experiment to finished artifacts: experiments, the step graph, plans, runs and the command line.

What a study's file imports is handed on here and in `sweep.experiments`; docs/studies.md lists it. A name is imported when it
is first asked for, so that reading a store's records does not import what only an experiment needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sweep.public import HOMES

__all__ = list(HOMES)

if TYPE_CHECKING:
    from pipelines.base_model import PretrainedModelConfig as PretrainedModelConfig
    from pipelines.base_model import RandomModelConfig as RandomModelConfig
    from pipelines.base_model import ScratchModelConfig as ScratchModelConfig
    from pipelines.base_model import pretrained_model_config as pretrained_model_config
    from pipelines.base_model import random_model_config as random_model_config
    from pipelines.errors import UserError as UserError
    from pipelines.evaluation import EvaluationConfig as EvaluationConfig
    from pipelines.examples import Label as Label
    from pipelines.finetuning import LLAMA_PROJECTIONS as LLAMA_PROJECTIONS
    from pipelines.finetuning import FinetuneConfig as FinetuneConfig
    from pipelines.generation import GenerationConfig as GenerationConfig
    from pipelines.generator import GeneratorConfig as GeneratorConfig
    from pipelines.heuristics import HEURISTICS as HEURISTICS
    from pipelines.heuristics import LEXICAL_OVERLAP as LEXICAL_OVERLAP
    from pipelines.heuristics import Heuristic as Heuristic
    from pipelines.heuristics import find_heuristic as find_heuristic
    from pipelines.heuristics import tokens as tokens
    from pipelines.prompts import EN_DASH as EN_DASH
    from pipelines.prompts import HYPHENS as HYPHENS
    from pipelines.resources import Resources as Resources
    from pipelines.sources import NLISourcesConfig as NLISourcesConfig
    from pipelines.sources import nli_sources_config as nli_sources_config
    from pipelines.template_corpus import TemplateCorpusConfig as TemplateCorpusConfig
    from sweep.experiment import Experiment as Experiment
    from sweep.paper import PAPER_GENERATOR as PAPER_GENERATOR
    from sweep.paper import PAPER_TASK_MODEL as PAPER_TASK_MODEL
else:

    def __getattr__(name: str) -> Any:
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
