"""The names that a study's file imports from `sweep`, and where each is defined."""

HOMES = {
    name: module
    for module, names in {
        "pipelines.finetune.base_model": (
            *("PretrainedModelConfig", "RandomModelConfig", "ScratchModelConfig"),
            *("pretrained_model_config", "random_model_config"),
        ),
        "pipelines.errors": ("UserError",),
        "pipelines.evaluate.evaluation": ("EvaluationConfig",),
        "pipelines.tasks.examples": ("Label",),
        "pipelines.finetune.recipe": ("LLAMA_PROJECTIONS", "FinetuneConfig"),
        "pipelines.generate.config": ("GenerationConfig",),
        "pipelines.finetune.generator": ("GeneratorConfig",),
        "pipelines.tasks.heuristics": ("HEURISTICS", "LEXICAL_OVERLAP", "Heuristic", "find_heuristic", "tokens"),
        "pipelines.tasks.prompts": ("EN_DASH", "HYPHENS"),
        "pipelines.resources": ("Resources",),
        "pipelines.data.sources": ("NLISourcesConfig", "nli_sources_config"),
        "pipelines.data.template_corpus": ("TemplateCorpusConfig",),
        "sweep.study.experiment": ("Experiment",),
        "sweep.study.paper": ("PAPER_GENERATOR", "PAPER_TASK_MODEL"),
    }.items()
    for name in names
}
"""The module of each public name."""
