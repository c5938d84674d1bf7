"""Every stage for real, as small as it goes: what the tests run to an end, kill and resume."""

from dataclasses import replace
from typing import Any

from sweep import (
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    GenerationConfig,
    GeneratorConfig,
    Resources,
    ScratchModelConfig,
    TemplateCorpusConfig,
)


def tiny(kinds: tuple[str, ...] = ("original",), seeds: tuple[int, ...] = (0,)) -> Experiment:
    recipe = FinetuneConfig(
        method="full", learning_rate=1e-3, batch_size=16, epochs=2, dtype="float32", zero_stage=0, checkpoint_every=5
    )
    return Experiment(
        name="tiny",
        title="A tiny study",
        sources=TemplateCorpusConfig(num_train=480, num_dev=30, num_test=60, num_probe_per_group=12),
        base_model=ScratchModelConfig(
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            intermediate_size=64,
            vocabulary_size=600,
            pretraining=recipe,
        ),
        generator=GeneratorConfig(finetune=replace(recipe, learning_rate=4e-3, epochs=6)),
        generation=GenerationConfig(num_per_label=20, shard_size=32, max_new_tokens=64, dtype="float32", min_yield=0.01),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32"),
        starting_sizes=(0,),
        training_sizes=(60,),
        seeds=seeds,
        kinds=kinds,
        general_set="template_test",
        blindspot_set="template_probe",
        resources={"starting_point": Resources(in_process=True), "task_model": Resources(in_process=True)},
    )


def writing(seeds: tuple[int, ...], **axes: Any) -> Experiment:
    """`tiny`, whose generator learns enough to write pairs, with heads as large as vLLM's attention on a CPU wants them."""
    study = tiny(seeds=seeds)
    return replace(
        study,
        sources=replace(study.sources, num_train=960),
        base_model=replace(study.base_model, hidden_size=64, num_layers=2, intermediate_size=128),
        generator=replace(study.generator, finetune=replace(study.generator.finetune, epochs=10)),
        **axes,
    )
