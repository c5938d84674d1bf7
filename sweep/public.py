"""The names that a study's file imports from `sweep`, and where each is defined."""

HOMES = {
    name: module
    for module, names in {
        "pipelines.base_model": (
            *("PretrainedModelConfig", "RandomModelConfig", "ScratchModelConfig"),
            *("pretrained_model_config", "random_model_config"),
        ),
        "pipelines.errors": ("UserError",),
        "pipelines.evaluation": ("EvaluationConfig",),
        "pipelines.examples": ("Label",),
        "pipelines.recipe": ("LLAMA_PROJECTIONS", "FinetuneConfig"),
        "pipelines.generation_config": ("GenerationConfig",),
        "pipelines.generator": ("GeneratorConfig",),
        "pipelines.heuristics": ("HEURISTICS", "LEXICAL_OVERLAP", "Heuristic", "find_heuristic", "tokens"),
        "pipelines.prompts": ("EN_DASH", "HYPHENS"),
        "pipelines.resources": ("Resources",),
        "pipelines.sources": ("NLISourcesConfig", "nli_sources_config"),
        "pipelines.template_corpus": ("TemplateCorpusConfig",),
        "sweep.experiment": ("Experiment",),
        "sweep.paper": ("PAPER_GENERATOR", "PAPER_TASK_MODEL"),
    }.items()
    for name in names
}
"""The module of each public name."""
