"""The names that a study's file imports from `sweep`, and nothing else; docs/reference/python.md lists them."""

from pipelines.data.kinds import Added, Mix
from pipelines.data.sources import NLISourcesConfig, nli_sources_config
from pipelines.data.table_sources import Table, TableSources
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
from pipelines.tasks.heuristics import HEURISTICS, LEXICAL_OVERLAP, Heuristic, find_heuristic, tokens, word_heuristic
from pipelines.tasks.nli import Label
from pipelines.tasks.prompts import EN_DASH, HYPHENS
from pipelines.tasks.task import Field, Task
from pipelines.tasks.test_sets import TestSet
from sweep.study.arms import Arm
from sweep.study.claims import Claim, Comparison, Difference, Measure
from sweep.study.experiment import Experiment
from sweep.study.generators import EndpointGenerator, PromptedGenerator
from sweep.study.paper import PAPER_GENERATOR, PAPER_TASK_MODEL
from sweep.study.paper_claims import PAPER_CLAIMS

__all__ = [
    "EN_DASH",
    "HEURISTICS",
    "HYPHENS",
    "LEXICAL_OVERLAP",
    "LLAMA_PROJECTIONS",
    "PAPER_CLAIMS",
    "PAPER_GENERATOR",
    "PAPER_TASK_MODEL",
    "Added",
    "Arm",
    "Claim",
    "Comparison",
    "Difference",
    "EndpointGenerator",
    "EvaluationConfig",
    "Experiment",
    "Field",
    "FinetuneConfig",
    "GenerationConfig",
    "GeneratorConfig",
    "Heuristic",
    "Label",
    "Measure",
    "Mix",
    "NLISourcesConfig",
    "PretrainedModelConfig",
    "PromptedGenerator",
    "RandomModelConfig",
    "Resources",
    "ScratchModelConfig",
    "Table",
    "TableSources",
    "Task",
    "TemplateCorpusConfig",
    "TestSet",
    "UserError",
    "find_heuristic",
    "nli_sources_config",
    "pretrained_model_config",
    "random_model_config",
    "tokens",
    "word_heuristic",
]
