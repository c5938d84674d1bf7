"""The built-in experiments. One of your own is a file with such a function:

    blindsweep run my_study.py

Each argument can be set from the command line with -p name=value.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipelines.data.challenge_sets import challenge_sets, unknown_challenge_files
from pipelines.data.sources import FILES, NLISourcesConfig, missing_files, nli_sources_config
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
from pipelines.finetune.recipe import WARMUP_STABLE_DECAY, FinetuneConfig
from pipelines.generate.config import GenerationConfig
from pipelines.identity import UNKNOWN, FileHash
from pipelines.models.architectures import ARCHITECTURES
from pipelines.resources import Resources
from pipelines.tasks.heuristics import find_heuristic
from pipelines.tasks.prompts import EN_DASH, HYPHENS
from sweep.graph.records import TRAINED_KINDS
from sweep.study.experiment import Experiment
from sweep.study.paper import MAX_NEW_TOKENS, PAPER_GENERATOR, PAPER_TASK_MODEL, POOL_PER_LABEL, STARTING_SIZES, TRAINING_SIZES

COOLDOWN_RATIO = 0.2
"""The cool-down's part of the steps that Hägele et al. (2024) find to be enough."""
MAX_GROUP = 36
"""Task models that the workers of one finetuning or evaluation take on: enough for their start to weigh little, and for a pass
of 4,096 tokens to be full of batches of 2 (31 of them) where memory holds their states."""


def demo(
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    starting_sizes: tuple[int, ...] = (0,),
    training_sizes: tuple[int, ...] = (900,),
    pool_size: int = 3_600,
    heuristic: str = "lexical_overlap",
    biases: tuple[float, ...] = (),
    heuristic_share: float | None = None,
    generators: int = 1,
    kinds: tuple[str, ...] = TRAINED_KINDS,
    training: Literal["two_steps", "joint"] = "two_steps",
    head: Literal["random", "zero", "lm"] = "random",
    arms: tuple[str, ...] = (),
    generations: int = 1,
    accumulate: bool = False,
) -> Experiment:
    """The whole study in minutes on two CPU cores: a tiny Llama and a procedural corpus, everything real.

    Its minutes are spent on seeds, so that the bias that was put in on purpose is seen; it has one starting point and one size.
    `pool_size` is the number of parsed synthetic examples, a third of each label. `heuristic` (a built-in one's name,
    FILE.py:NAME, or a word's, hypothesis:never=contradiction) is what biased sets are biased to; each of `biases` is a dose of
    it, in sets of `heuristic_share`. One that has no `probe_slice` is looked for where it holds in the general set.
    Each of `generators` writes a pool of its own, and the seeds are dealt over them (docs/studies.md). `kinds` may have mixes
    (`mixed_50`); they, `training`, `head`, `arms` (`two_steps,joint` or `random,lm+frozen0.25`), `generations` and `accumulate`
    are those of docs/kinds.md.
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
    going_by = find_heuristic(heuristic)
    where_it_holds = () if going_by.probe_slice else (going_by,)
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
        evaluation=EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32", heuristics=where_it_holds),
        starting_sizes=starting_sizes,
        training_sizes=training_sizes,
        seeds=seeds,
        kinds=kinds,
        training=training,
        head=head,
        arms=arms,
        generators=generators,
        generations=generations,
        accumulate=accumulate,
        heuristic=going_by,
        biases=biases,
        heuristic_share=heuristic_share,
        general_set="template_test",
        blindspot_set="template_test" if where_it_holds else "template_probe",
        # A tiny model's step is too short to share: one worker takes as long as two, and leaves a CPU to the cells.
        resources=dict.fromkeys(
            ("base_model", "generator", "starting_point", "task_model", "evaluation"), Resources(in_process=True)
        ),
    )


def mini(
    data: str = "data",
    model: str = "models/SmolLM2-135M",
    device: str = "cuda",
    seeds: tuple[int, ...] = (0,),
    starting_sizes: tuple[int, ...] = (0, 10_000, 60_000),
    training_sizes: tuple[int, ...] = (1_800, 3_600),
    pool_size: int = 210_000,
    generator_epochs: float = 1.0,
    trials_per_gpu: int = 8,
    generation_workers: int = 0,
    recipe: Literal["full", "paper"] = "full",
    heuristic: str = "lexical_overlap",
    biases: tuple[float, ...] = (),
    heuristic_share: float | None = None,
    generators: int = 1,
    challenges: tuple[str, ...] = (),
    kinds: tuple[str, ...] = TRAINED_KINDS,
    training: Literal["two_steps", "joint"] = "two_steps",
    head: Literal["random", "zero", "lm"] = "random",
    head_frozen_share: float = 0.0,
    arms: tuple[str, ...] = (),
    generations: int = 1,
    accumulate: bool = False,
    task_base: str = "",
    generation_precision: Literal["bfloat16", "fp8"] = "bfloat16",
) -> Experiment:
    """The paper's study with a small pretrained model, on real MultiNLI and HANS; one GPU.

    `data` is the folder of the official MultiNLI jsonl and HANS txt files, `model` a transformers checkpoint
    folder or a .gguf file. A model this small leaves most of a GPU idle, so `trials_per_gpu` finetunings
    share one, and half as many engines (or `generation_workers`) write the pool: an engine is bound by the CPU core that
    drives it.
    Original training sets hold no example that their starting point was finetuned on. `recipe` "full" trains all weights in
    batches of 64; "paper" finetunes as `paper` does (LoRA, batches of 2, G of 6), at ten times its rate. `generator_epochs` may
    be a fraction. `heuristic`, `biases`, `heuristic_share`, `generators`, `kinds`, `training`, `head`, `arms`, `generations`
    and `accumulate` are as in `demo`; heads are frozen for `head_frozen_share` of a finetuning's steps. Each of `challenges` is
    a further test set: mnli_hard, med, scone, neg_nli; hans is always there (docs/challenges.md). `task_base` is the task
    models' own checkpoint where it is not `model`, which writes the pool: an encoder (BERT) or another decoder
    (docs/models.md). `generation_precision` is as in `paper`.
    """
    if device not in ("cuda", "cpu"):
        raise UserError(f"device={device!r} is not one of cuda, cpu")
    if device == "cpu" and generation_precision != "bfloat16":
        raise UserError(
            f"generation_precision={generation_precision!r} with device='cpu': it needs matrix units of a GPU; leave it out"
        )
    if trials_per_gpu < 1:
        raise UserError(f"trials_per_gpu={trials_per_gpu}: at least one finetuning runs on a GPU; give 1 or more")
    if generation_workers < 0:
        raise UserError(f"generation_workers={generation_workers}: give a number of engines, or 0 for half of trials_per_gpu")
    on_gpu = device == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    full = FinetuneConfig(
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
    task_model, generator = full, replace(full, learning_rate=3e-4, epochs=1)
    if recipe == "paper":
        task_model, generator = (
            # At the paper's own rate a model of this size has hardly begun after 10,000 examples (docs/mini.md).
            replace(papers, learning_rate=10 * papers.learning_rate, dtype=dtype, log_every=100)
            for papers in (PAPER_TASK_MODEL, PAPER_GENERATOR)
        )
    sources = nli_sources_config(data, challenges)
    base_model = pretrained_model_config(model, dtype=dtype)
    own_base = pretrained_model_config(task_base, dtype=dtype) if task_base else None
    if own_base is not None and ARCHITECTURES[own_base.model_type].is_encoder and recipe == "full":
        # The largest of the rates that BERT's authors finetune with.
        task_model = replace(task_model, learning_rate=5e-5)
    task_model = _fitted(replace(task_model, head_frozen_share=head_frozen_share), own_base or base_model)
    generator = _fitted(replace(generator, epochs=generator_epochs), base_model)
    # Ray counts GPUs in ten-thousandths.
    share = Resources(gpus_per_worker=math.floor(10_000 / trials_per_gpu) / 10_000) if on_gpu else Resources()
    shared = replace(share, max_group=MAX_GROUP)
    engines = replace(share, num_workers=generation_workers or max(1, trials_per_gpu // 2)) if on_gpu else Resources()
    left = round(1 - engines.total_gpus, 4)
    going_by = find_heuristic(heuristic)
    where_it_holds = () if going_by.probe_slice else (going_by,)
    return Experiment(
        name="mini",
        title=f"{Path(model.partition('@')[0]).name.removesuffix('.gguf')} on MultiNLI and HANS",
        sources=sources,
        sources_folder=data,
        base_model=base_model,
        task_model_base=own_base,
        generator=GeneratorConfig(finetune=generator),
        generation=GenerationConfig(
            num_per_label=-(-pool_size // 3),
            max_new_tokens=256,
            dtype=dtype,
            quantization=_quantization(generation_precision),
        ),
        task_model=task_model,
        evaluation=EvaluationConfig(sets=_evaluated(challenges), dtype=dtype, heuristics=where_it_holds),
        starting_sizes=starting_sizes,
        training_sizes=training_sizes,
        seeds=seeds,
        kinds=kinds,
        training=training,
        head=head,
        arms=arms,
        generators=generators,
        generations=generations,
        accumulate=accumulate,
        heuristic=going_by,
        biases=biases,
        heuristic_share=heuristic_share,
        disjoint_from_starting=True,
        general_set="mnli_matched",
        blindspot_set="mnli_matched" if where_it_holds else "hans",
        resources={
            # The pool and most cells wait for it, so that nothing is to slow it down but its engines, which start meanwhile.
            "generator": replace(share, gpus_per_worker=max(0.5, share.gpus_per_worker, left)) if on_gpu else share,
            "synthetic_pool": engines,
            "starting_point": shared,
            "task_model": shared,
            "evaluation": shared,
        },
    )


def paper(
    data: str = "data",
    model: str = "models/Llama-2-7b-hf",
    seeds: tuple[int, ...] = (0,),
    starting_sizes: tuple[int, ...] = STARTING_SIZES,
    training_sizes: tuple[int, ...] = TRAINING_SIZES,
    pool_per_label: tuple[int, ...] = POOL_PER_LABEL,
    base_precision: Literal["bfloat16", "nf4", "nf4_double", "fp8"] = "bfloat16",
    remainder: Literal["first_labels", "drop", "error"] = "first_labels",
    disjoint_from_starting: bool = False,
    starting_set_seed: int | None = None,
    end_marker: Literal["en_dash", "hyphens"] = "en_dash",
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
    weights: Literal["files", "random"] = "files",
    gpus_per_finetuning: int = 1,
    generation_workers: int = 1,
    generators: int = 1,
    challenges: tuple[str, ...] = (),
    generation_precision: Literal["bfloat16", "fp8"] = "bfloat16",
) -> Experiment:
    """The paper's study: Llama-2-7B, MultiNLI and HANS, the recipe of the released scripts; GPUs of 80 GB.

    `data` is the folder of the official MultiNLI jsonl and HANS txt files; `model` a transformers checkpoint folder, a .gguf
    file, or `org/name[@revision]` on the Hugging Face hub (meta-llama/Llama-2-7b-hf is gated: set HF_TOKEN, or HF_ENDPOINT for
    a mirror). A plan needs neither. The plan lists where the study departs from the paper's, by default only in the frozen
    weights' precision (`base_precision`; "fp8" computes faster, on GPUs from Ada on, and is not shown to find the same yet:
    docs/speed.md), and what is chosen where paper and scripts settle nothing: `remainder` for sizes that
    do not divide by 3, `disjoint_from_starting`, `starting_set_seed` (none: each seed draws its own), `end_marker`, and the
    sampling. `pool_per_label` counts entailments, neutrals and contradictions. Each of `generators` writes such a pool, and the
    seeds are dealt over them. `challenges` are as in `mini`. With `generation_precision` "fp8" G writes with weights and
    activations of 8 bits, on GPUs from Ada on (docs/models.md). `weights=random` is for a rehearsal: `model` then only needs a
    tokenizer and, if the shape is not Llama-2-7B's, a config.json.
    """
    if len(pool_per_label) != 3:
        raise UserError(f"pool_per_label={pool_per_label}: give three numbers, for entailment, neutral and contradiction")
    if gpus_per_finetuning < 1:
        raise UserError(f"gpus_per_finetuning={gpus_per_finetuning}: a finetuning of 7 billion weights needs at least one")
    if weights == "random" and base_precision != "bfloat16":
        raise UserError(
            f"base_precision={base_precision!r} with weights='random': random weights are not quantised; leave one of them out"
        )
    marker = EN_DASH if end_marker == "en_dash" else HYPHENS
    runtime: dict[str, Any] = {
        "log_every": 50,
        "checkpoint_every": 5_000,
        "tokens_per_microbatch": 4_096,
        # Compiling takes as long as some hundred steps, and has to be repaid.
        "compile_from_steps": 2_000,
    }
    finetuning = Resources(num_workers=gpus_per_finetuning, gpus_per_worker=1)
    base_model: PretrainedModelConfig | RandomModelConfig
    if weights == "random":
        base_model = random_model_config(model)
    else:
        base_model = pretrained_model_config(model, quantization=_quantization(base_precision), may_be_absent=True)
    return Experiment(
        name="paper",
        title="Llama-2-7B on MultiNLI and HANS, as Zhang and Pavlick",
        replicates_paper=True,
        sources=_sources_if_there(data, challenges),
        sources_folder=data,
        base_model=base_model,
        generator=GeneratorConfig(finetune=replace(_fitted(PAPER_GENERATOR, base_model), **runtime), end_marker=marker),
        generation=GenerationConfig(
            num_per_label=(pool_per_label[0], pool_per_label[1], pool_per_label[2]),
            exact=True,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=MAX_NEW_TOKENS,
            end_marker=marker,
            quantization=_quantization(generation_precision),
        ),
        task_model=replace(_fitted(PAPER_TASK_MODEL, base_model), **runtime),
        evaluation=EvaluationConfig(sets=_evaluated(challenges)),
        starting_sizes=starting_sizes,
        training_sizes=training_sizes,
        seeds=seeds,
        generators=generators,
        remainder=remainder,
        disjoint_from_starting=disjoint_from_starting,
        starting_set_seed=starting_set_seed,
        general_set="mnli_matched",
        blindspot_set="hans",
        resources={
            "generator": finetuning,
            "synthetic_pool": Resources(num_workers=generation_workers, gpus_per_worker=1),
            "starting_point": replace(finetuning, max_group=MAX_GROUP),
            "task_model": replace(finetuning, max_group=MAX_GROUP),
            "evaluation": Resources(gpus_per_worker=1, max_group=MAX_GROUP),
        },
    )


def paper_fast(
    data: str = "data",
    model: str = "models/Llama-2-7b-hf",
    seeds: tuple[int, ...] = (0,),
    starting_sizes: tuple[int, ...] = STARTING_SIZES,
    training_sizes: tuple[int, ...] = TRAINING_SIZES,
    pool_per_label: tuple[int, ...] = POOL_PER_LABEL,
    base_precision: Literal["bfloat16", "nf4", "nf4_double", "fp8"] = "bfloat16",
    batch_factor: int = 16,
    trajectories: Literal["separate", "shared"] = "separate",
    weights: Literal["files", "random"] = "files",
    gpus_per_finetuning: int = 1,
    generation_workers: int = 1,
    generators: int = 1,
    challenges: tuple[str, ...] = (),
    generation_precision: Literal["bfloat16", "fp8"] = "bfloat16",
) -> Experiment:
    """`paper`, cheaper: larger batches, what their texts begin with alike computed once in each, and generated texts that end
    where the end marker begins; all else as there.

    Batches are `batch_factor` times the paper's (T: 2 to 32, G: 6 to 96), and the learning rate grows with the factor's square
    root (2e-5 to 8e-5), as suits Adam (Malladi et al. 2022). With `trajectories` "shared", T's sizes are one finetuning with a
    cool-down for each, a third fewer examples: another schedule than the paper's, and not tried at this scale
    (docs/trajectories.md); by default each size is finetuned on its own.
    """
    if batch_factor < 1:
        raise UserError(f"batch_factor={batch_factor}: give a whole number of at least 1, by which batches grow")
    study = paper(
        data,
        model,
        seeds,
        starting_sizes,
        training_sizes,
        pool_per_label,
        base_precision,
        weights=weights,
        gpus_per_finetuning=gpus_per_finetuning,
        generation_workers=generation_workers,
        generators=generators,
        challenges=challenges,
        generation_precision=generation_precision,
    )
    assert isinstance(study.generator, GeneratorConfig) and study.generation is not None, "the paper finetunes its generator"
    task_model, generator = (
        replace(
            recipe,
            batch_size=recipe.batch_size * batch_factor,
            learning_rate=recipe.learning_rate * math.sqrt(batch_factor),
            share_prefix=True,
            log_every=10,
            checkpoint_every=1_000,
        )
        for recipe in (study.task_model, study.generator.finetune)
    )
    if trajectories == "shared":
        task_model = replace(task_model, schedule=WARMUP_STABLE_DECAY, cooldown_ratio=COOLDOWN_RATIO)
    return replace(
        study,
        name="paper_fast",
        title=f"{study.title}, in larger batches",
        task_model=task_model,
        trajectories=trajectories,
        generator=replace(study.generator, finetune=generator),
        generation=replace(study.generation, stop_early=True),
    )


def _quantization(precision: str) -> str:
    """A precision, as options name it, as configs do."""
    return "none" if precision == "bfloat16" else precision


def _evaluated(challenges: tuple[str, ...]) -> tuple[str, ...]:
    return ("mnli_matched", "mnli_mismatched", "hans", *(challenge.test_set.name for challenge in challenge_sets(challenges)))


def _fitted(recipe: FinetuneConfig, base_model: PretrainedModelConfig | RandomModelConfig) -> FinetuneConfig:
    """`recipe` with its adapters, if it has any, on the projections that the architecture of `base_model` has."""
    known = ARCHITECTURES.get(getattr(base_model, "model_type", ""))
    return (
        replace(recipe, lora_targets=known.projections) if known and known.projections and recipe.method == "lora" else recipe
    )


def _sources_if_there(data: str, challenges: tuple[str, ...]) -> NLISourcesConfig:
    """The files in `data`, or of unknown content while one is missing there."""
    if not missing_files(data, challenges):
        return nli_sources_config(data, challenges)
    return NLISourcesConfig(
        tuple(FileHash(name, UNKNOWN) for name in FILES),
        challenges=tuple(unknown_challenge_files(challenge.test_set.name) for challenge in challenge_sets(challenges)),
    )
