"""The built-in experiments. One of your own is a file with such a function:

    blindsweep run my_study.py

Each argument can be set from the command line with -p name=value.
"""

import math
from dataclasses import replace

from pipelines.base_model import ScratchModelConfig, pretrained_model_config
from pipelines.compute import Resources
from pipelines.errors import UserError
from pipelines.evaluation import EvaluationConfig
from pipelines.finetuning import FinetuneConfig
from pipelines.generation import GenerationConfig
from pipelines.generator import GeneratorConfig
from pipelines.sources import nli_sources_config
from pipelines.template_corpus import TemplateCorpusConfig
from sweep.experiment import Experiment


def demo(
    seeds: tuple[int, ...] = (0, 1),
    starting_sizes: tuple[int, ...] = (0, 3_000),
    training_sizes: tuple[int, ...] = (300, 900),
    pool_size: int = 3_600,
) -> Experiment:
    """The whole study in minutes on two CPU cores: a tiny Llama and a procedural corpus, everything real.

    `pool_size` is the number of parsed synthetic examples, a third of each label.
    """
    recipe = FinetuneConfig(
        method="full",
        learning_rate=2e-3,
        epochs=5,
        batch_size=32,
        warmup_ratio=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        dtype="float32",
        zero_stage=0,
    )
    language = replace(recipe, learning_rate=3e-3, epochs=2)
    return Experiment(
        name="demo",
        title="A tiny Llama on the template corpus",
        sources=TemplateCorpusConfig(),
        base_model=ScratchModelConfig(
            hidden_size=96,
            num_layers=3,
            num_heads=3,
            num_kv_heads=3,
            intermediate_size=288,
            pretraining=language,
        ),
        generator=GeneratorConfig(finetune=replace(language, epochs=6)),
        generation=GenerationConfig(num_per_label=-(-pool_size // 3), shard_size=256, max_new_tokens=64, dtype="float32"),
        task_model=recipe,
        cell=replace(recipe, learning_rate=1e-3),
        evaluation=EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32"),
        starting_sizes=starting_sizes,
        training_sizes=training_sizes,
        seeds=seeds,
        general_set="template_test",
        blindspot_set="template_probe",
        resources={
            "base_model": Resources(num_workers=2),
            "generator": Resources(num_workers=2),
            "starting_point": Resources(in_process=True),
            "task_model": Resources(in_process=True),
        },
    )


def mini(
    data: str = "data",
    model: str = "models/SmolLM2-135M",
    device: str = "cuda",
    seeds: tuple[int, ...] = (0,),
    starting_sizes: tuple[int, ...] = (0, 10_000, 60_000),
    training_sizes: tuple[int, ...] = (1_800, 3_600),
    pool_size: int = 210_000,
    trials_per_gpu: int = 8,
) -> Experiment:
    """The paper's study with a small pretrained model, on real MultiNLI and HANS; one GPU.

    `data` is the folder of the official MultiNLI jsonl and HANS txt files, `model` a transformers checkpoint
    folder or a .gguf file. A model this small leaves most of a GPU idle, so `trials_per_gpu` finetunings
    share one, and half as many engines write the pool: an engine is bound by the CPU core that drives it.
    Original training sets hold no example that their starting point was finetuned on.
    """
    if device not in ("cuda", "cpu"):
        raise UserError(f"device={device!r} is not one of cuda, cpu")
    if trials_per_gpu < 1:
        raise UserError(f"trials_per_gpu={trials_per_gpu}: at least one finetuning runs on a GPU; give 1 or more")
    on_gpu = device == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    recipe = FinetuneConfig(
        method="full",
        learning_rate=1e-4,
        epochs=2,
        batch_size=64,
        warmup_ratio=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        dtype=dtype,
        log_every=20,
    )
    # Ray counts GPUs in ten-thousandths.
    share = Resources(gpus_per_worker=math.floor(10_000 / trials_per_gpu) / 10_000) if on_gpu else Resources()
    engines = replace(share, num_workers=max(1, trials_per_gpu // 2)) if on_gpu else Resources()
    return Experiment(
        name="mini",
        title="SmolLM2-135M on MultiNLI and HANS",
        sources=nli_sources_config(data),
        sources_folder=data,
        base_model=pretrained_model_config(model, dtype=dtype),
        generator=GeneratorConfig(finetune=replace(recipe, learning_rate=3e-4, epochs=1)),
        generation=GenerationConfig(num_per_label=-(-pool_size // 3), max_new_tokens=256, dtype=dtype),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("mnli_matched", "mnli_mismatched", "hans"), dtype=dtype),
        starting_sizes=starting_sizes,
        training_sizes=training_sizes,
        seeds=seeds,
        disjoint_from_starting=True,
        general_set="mnli_matched",
        blindspot_set="hans",
        resources={
            "generator": share,
            "synthetic_pool": engines,
            "starting_point": share,
            "task_model": share,
            "evaluation": share,
        },
    )
