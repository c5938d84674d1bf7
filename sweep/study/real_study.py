"""The studies on real data that this project runs itself and publishes (docs/studies), and the search for their learning rate.

    blindsweep run study_qwen -p data=FOLDER -p model=qwen2.5-coder-1.5b-instruct.gguf --only seed=0

A seed has a generator of its own, so that pieces share nothing that is trained (docs/pieces.md), and is small enough for one
GPU within minutes.
"""

import math
import re
from dataclasses import replace
from typing import Any

from pipelines.data.kinds import find_kind
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.resources import Resources
from sweep.graph.records import TRAINED_KINDS
from sweep.study.arms import Arm
from sweep.study.claims import Claim
from sweep.study.experiment import Experiment
from sweep.study.experiments import MAX_GROUP, mini
from sweep.study.paper_claims import PAPER_CLAIMS, axis_claims

CHALLENGES = ("mnli_hard", "med", "scone", "neg_nli")
STUDY_KINDS = (*TRAINED_KINDS, "mixed_50")
PRIMARY = (
    "bias_is_seen",
    "bias_is_seen_by_margin",
    "synthetic_reinforces",
    "synthetic_reinforces_by_margin",
    "gap_is_wider_on_blindspot",
)
"""The claims that are declared before the seeds are built: one family, adjusted together."""
PLAN = "ed183b12f63d115bd65629bc4bca4a09e6735cd056d61e8a0306500a127aac47"
"""The sha256 of docs/studies/qwen-plan.md, which says before the seeds are built what is asked of them."""
RATE = 1e-4
"""The learning rate for batches of 2, as the search on the dev rows has it (docs/studies/data/rate_search.json)."""
SMOLLM_RATE = 2e-4
"""SmolLM2-135M's: ten times the paper's, at which it hardly learns (docs/mini.md)."""
SEARCHED = 2e-4
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0)
"""The search is of `SEARCHED` times each of these."""
SEARCH_SEED = 1_000
"""No study's."""


def study_qwen(
    data: str = "data",
    model: str = "models/qwen2.5-coder-1.5b-instruct.gguf",
    device: str = "cuda",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    starting_sizes: tuple[int, ...] = (20_000,),
    training_sizes: tuple[int, ...] = (600, 1_200),
    kinds: tuple[str, ...] = STUDY_KINDS,
    rate: float = RATE,
    pool_per_label: tuple[int, ...] = (36_000, 5_000, 5_000),
    generator_epochs: float = 0.2,
    challenges: tuple[str, ...] = CHALLENGES,
    judge: int = 0,
    plan: str = PLAN,
) -> Experiment:
    """The paper's study with Qwen2.5-Coder-1.5B: MultiNLI, HANS and four more challenge sets, a generator for each seed.

    `data` is the folder of the official files, `model` a .gguf file or a checkpoint folder. Cells are finetuned by the paper's
    recipe (LoRA, batches of 2) at the learning rate `rate`, which `rate_search` found on rows that nothing else sees; starting
    points in batches of 32 and generators, at ten times the paper's rate, in batches of 24, with rates that grow with the root
    of the factor. `pool_per_label` counts entailments, neutrals and contradictions: entailments with lexical overlap are rare,
    and the largest biased set takes a third of its size of them. `judge` above 0 has a model finetuned on so many original
    examples judge the pools' labels; it is shared by all seeds, so one piece builds it (`--only shared,seed=0`). `plan`, the
    sha256 of docs/studies/qwen-plan.md, which has the design and its reasons, stays with the results.
    """
    title = "Qwen2.5-Coder-1.5B on MultiNLI, HANS and four challenge sets"
    return _study("study_qwen", resources=_resources(device), **locals())


def study_smollm(
    data: str = "data",
    model: str = "models/SmolLM2-135M-Instruct.Q4_1.gguf",
    device: str = "cuda",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    starting_sizes: tuple[int, ...] = (20_000,),
    training_sizes: tuple[int, ...] = (600, 1_200),
    kinds: tuple[str, ...] = STUDY_KINDS,
    rate: float = SMOLLM_RATE,
    pool_per_label: tuple[int, ...] = (36_000, 5_000, 5_000),
    generator_epochs: float = 0.2,
    challenges: tuple[str, ...] = CHALLENGES,
    judge: int = 0,
    plan: str = PLAN,
) -> Experiment:
    """`study_qwen` with SmolLM2-135M and ten seeds: a model that is at the floor of HANS, where accuracy sees nothing.

    Its question is whether the margin sees what accuracy cannot. Parameters are as there; `rate` is this model's own. More of
    it fits on a GPU at once: five generators, or ten pools.
    """
    title = "SmolLM2-135M on MultiNLI, HANS and four challenge sets"
    return _study("study_smollm", resources=_resources(device, is_small=True), **locals())


def rate_search(
    data: str = "data",
    model: str = "models/qwen2.5-coder-1.5b-instruct.gguf",
    device: str = "cuda",
    rate: float = SEARCHED,
    factors: tuple[float, ...] = RATE_FACTORS,
    starting_size: int = 4_000,
    training_size: int = 600,
    seeds: tuple[int, ...] = (SEARCH_SEED,),
) -> Experiment:
    """The search for `study_qwen`'s learning rate: starting points and cells at `rate` times each of `factors`, on dev rows.

    Each factor is an arm, and all are trained at once. What is evaluated are the 750 dev rows that are held out of the training
    set: no matched or mismatched row and none of HANS is read by any step of it but the one that writes the data. Dev rows have
    no blindspot to report on, so it is run with --no-report.
    `python -m analysis.publication rates` writes what it found and which factor is chosen.
    """
    if len(set(factors)) < 2:
        raise UserError(f"factors={factors}: a search compares rates; give two factors or more, such as 0.5,1,2")
    study = _recipe(mini(data, model, device, recipe="paper", seeds=seeds, kinds=("original",)), rate)
    return replace(
        study,
        name="rate_search",
        title="A learning rate by the dev rows",
        starting_sizes=(starting_size,),
        training_sizes=(training_size,),
        arms=tuple(Arm(rate_factor=factor) for factor in factors),
        generator=None,
        generation=None,
        evaluation=EvaluationConfig(sets=("dev",), dtype=study.evaluation.dtype),
        general_set="dev",
        blindspot_set="dev",
        claims=(),
        resources=_resources(device),
    )


def _study(
    name: str,
    *,
    title: str,
    resources: dict[str, Resources],
    device: str,
    rate: float,
    pool_per_label: tuple[int, ...],
    judge: int,
    plan: str,
    kinds: tuple[str, ...],
    seeds: tuple[int, ...],
    **parameters: Any,
) -> Experiment:
    if len(pool_per_label) != 3:
        raise UserError(f"pool_per_label={pool_per_label}: give three numbers, for entailment, neutral and contradiction")
    if judge < 0:
        raise UserError(f"judge={judge}: it is finetuned on so many original examples; give 1 or more, or 0 for no judge")
    if not re.fullmatch(r"[0-9a-f]{64}", plan):
        raise UserError(f"plan={plan!r}: it is the sha256 of the file that declares the claims, 64 digits of 0-9 and a-f")
    study = mini(device=device, recipe="paper", seeds=seeds, kinds=kinds, generators=len(seeds), **parameters)
    assert isinstance(study.generator, GeneratorConfig) and study.generation is not None, "mini finetunes its generator"
    # Generators are told apart by a number below that of seeds: other seeds are to have other generators, too.
    first = min(seeds, default=0) // max(1, len(seeds)) * len(seeds)
    return replace(
        _recipe(study, rate),
        name=name,
        title=title,
        generator=replace(study.generator, seed=first, finetune=_larger_batches(study.generator.finetune, 4)),
        generation=replace(
            study.generation,
            seed=first,
            num_per_label=(pool_per_label[0], pool_per_label[1], pool_per_label[2]),
            stop_early=True,
        ),
        replicates_paper=True,
        claims=_claims(kinds),
        judge=judge or None,
        resources=resources,
    )


def _recipe(study: Experiment, rate: float) -> Experiment:
    """`study` with cells in the paper's batches of 2 and starting points in batches of 32."""
    cell = replace(study.task_model, learning_rate=rate, tokens_per_microbatch=4_096)
    return replace(study, task_model=_larger_batches(cell, 16), cell=cell)


def _larger_batches(recipe: FinetuneConfig, factor: int) -> FinetuneConfig:
    """As `paper_fast` has them: the rate grows with the root of the factor, and prompts' beginnings are computed once."""
    return replace(
        recipe,
        batch_size=recipe.batch_size * factor,
        learning_rate=recipe.learning_rate * math.sqrt(factor),
        share_prefix=True,
        log_every=10,
    )


def _claims(kinds: tuple[str, ...]) -> tuple[Claim, ...]:
    """The paper's and those of the study's mixes, with `PRIMARY` as the primary ones."""
    mixes = [kind for kind in map(find_kind, kinds) if not isinstance(kind, str)]
    declared = (*PAPER_CLAIMS, *axis_claims(mixes, ("synthetic",)))
    return tuple(replace(claim, primary=claim.name in PRIMARY) for claim in declared)


def _resources(device: str, *, is_small: bool = False) -> dict[str, Resources]:
    """One GPU's parts: generators, an engine for each pool, finetunings beside them, and evaluations as soon as there are any.

    Several pools are written at once, each by one engine, so that fewer engines start. The larger model's generator takes 40 to
    44 GiB: beside engines, an H200 has room for two. A process of a small model (`is_small`) leaves most of the GPU to others,
    whatever part it asks for, and more fit there.
    """
    if device != "cuda":
        return {}
    finetuning = Resources(gpus_per_worker=0.2 if is_small else 0.3, max_group=MAX_GROUP)
    evaluation = Resources(gpus_per_worker=0.1 if is_small else 0.2, max_group=MAX_GROUP)
    return {
        "generator": Resources(gpus_per_worker=0.2 if is_small else 0.4),
        "synthetic_pool": Resources(num_workers=1, gpus_per_worker=0.1),
        "starting_point": finetuning,
        "task_model": finetuning,
        "evaluation": evaluation,
    }
