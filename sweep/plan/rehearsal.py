"""A study's rehearsal: the same stages at the real model's shape, each cut to a few batches, in minutes.

It shows a missing token, a wrong path or too little memory before money is spent; its numbers mean nothing. Nothing of it can
be taken for the real thing: `rehearsal` is in the identity of each artifact, and they lie in a store of their own.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.data.kinds import DEBIASED, FILTERED, Added, Kind, Mix, kind_name, sizes_of
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.generate.config import STAND_IN
from pipelines.tasks.heuristics import LEXICAL_OVERLAP, Heuristic
from pipelines.tasks.nli import NLI
from sweep.graph.records import KINDS, STAGES, Record
from sweep.study.claims import Claim
from sweep.study.experiment import Experiment
from sweep.study.generators import EndpointGenerator, PromptedGenerator

STEPS = 3
"""Optimizer steps of a finetuning: the first allocates the optimizer's state, the second is what all others are like."""
NEW_TOKENS = 128
"""Tokens of a generated text: an engine takes its memory before the first one, and random weights never end a text."""
EXAMPLES = 512
"""Examples evaluated of each test set, the longest: a batch or two of a large model."""
FOLDER = "rehearsal"
"""Folder of the rehearsals' store, in the study's."""


def rehearsal(experiment: Experiment) -> Experiment:
    """`experiment` with one seed, its smallest and its largest starting point, one size of each kind, and short stages.

    Data, model, batch shapes, precision and resources stay. Finetunings take a few steps on their longest examples; there is
    one generator, and its pool is one shard a label, of stand-ins cut from what it writes; evaluations take the longest
    examples.
    """
    recipes = (experiment.task_model, experiment.cell or experiment.task_model)
    num_labels = len(experiment.task.labels)
    size = num_labels * -(-STEPS * max(recipe.batch_size for recipe in recipes) // num_labels)
    kinds = tuple(dict.fromkeys(map(_plain, experiment.kinds)))
    # The smallest part of a mix still has an example of each label.
    while any(min(sizes_of(kind, size).values()) < num_labels for kind in kinds):
        size += num_labels
    # Of the set that takes most from the pool.
    most = max([size, *(sum(sizes_of(kind, size).values()) - size for kind in kinds)])
    generation = experiment.generation
    if generation is not None:
        # Together, the labels' shards fill an engine's batch.
        filling = -(-(generation.max_num_seqs or 1_024) // num_labels)
        generation = replace(
            generation,
            num_per_label=-(-most // num_labels),
            shard_size=max(size // num_labels, min(generation.shard_size, filling)),
            max_new_tokens=min(generation.max_new_tokens, NEW_TOKENS),
            stand_ins=True,
        )
    base_model = experiment.base_model
    if isinstance(base_model, ScratchModelConfig) and base_model.pretraining is not None:
        base_model = replace(base_model, pretraining=_short(base_model.pretraining))
    return replace(
        experiment,
        name=f"{experiment.name}-rehearsal",
        title=f"A rehearsal, whose numbers mean nothing: {experiment.title}",
        rehearsal=True,
        # One size of each: there is nothing to share.
        trajectories="separate",
        replicates_paper=False,
        base_model=base_model,
        generator=_short_generator(experiment.generator),
        generation=generation,
        synthetic=experiment.own_pools[:1] or None,
        task_model=_short(experiment.task_model),
        cell=_short(experiment.cell) if experiment.cell else None,
        evaluation=replace(experiment.evaluation, rehearse_examples=EXAMPLES),
        starting_sizes=tuple(sorted({min(experiment.starting_sizes), max(experiment.starting_sizes)})),
        training_sizes=(size,),
        seeds=experiment.seeds[:1],
        generators=1,
        # It holds in all stand-ins of one label and in no others: the full dose is all that they are good for.
        heuristic=_heuristic(experiment),
        biases=(),
        # Nor does a model of a few steps agree with enough of its labels to filter it, nor has it rows to debias it with.
        kinds=kinds,
        # What a third is made from, a second is.
        generations=min(2, experiment.generations),
        heuristic_share=None,
        claims=_claims(experiment, kinds),
    )


def _claims(experiment: Experiment, kinds: Sequence[Kind]) -> tuple[Claim, ...]:
    """The claims about kinds that are rehearsed, at whatever starting points and sizes there are."""
    generations = experiment.generation_names[: min(2, experiment.generations)]
    there = {*KINDS, *map(kind_name, kinds), *generations}
    return tuple(
        replace(claim, starts=_in_words(claim.starts), sizes=_in_words(claim.sizes))
        for claim in experiment.claims
        if claim.kinds <= there
    )


def _in_words(axis: str | tuple[int, ...]) -> str:
    return axis if isinstance(axis, str) else "all"


def _short_generator(
    generator: GeneratorConfig | PromptedGenerator | EndpointGenerator | None,
) -> GeneratorConfig | PromptedGenerator | EndpointGenerator | None:
    return replace(generator, finetune=_short(generator.finetune)) if isinstance(generator, GeneratorConfig) else generator


def _plain(kind: Kind) -> Kind:
    """A kind with synthetic examples in place of filtered and of debiased ones."""
    if isinstance(kind, str):
        return "synthetic" if kind in (FILTERED, DEBIASED) else kind
    parts = dict(kind.parts)
    for part in (FILTERED, DEBIASED):
        if part in parts:
            parts["synthetic"] = parts.get("synthetic", 0.0) + parts.pop(part)
    if parts == kind.parts:
        return kind
    if isinstance(kind, Added):
        del parts["original"]
        return Added(**parts)
    return Mix(**parts) if len(parts) > 1 else "synthetic"


def _heuristic(experiment: Experiment) -> Heuristic:
    """The heuristic that a pool of stand-ins can be biased to (`stand_in`); for a pool of one's own, the study's."""
    if experiment.own_pools:
        return experiment.heuristic
    if experiment.task == NLI:
        return LEXICAL_OVERLAP
    if not experiment.has_pool:
        return experiment.heuristic
    label = experiment.task.labels[0]
    return Heuristic("no_stand_in", _is_no_stand_in, predicts=label, probe_slice=experiment.blindspot_slice)


def _is_no_stand_in(*texts: Iterable[str]) -> np.ndarray:
    """Of which examples the last text is something else than what stands there for all labels but the first."""
    return np.array([str(text) != STAND_IN for text in texts[-1]], dtype=bool)


def _short(recipe: FinetuneConfig) -> FinetuneConfig:
    return replace(recipe, rehearse_steps=STEPS, log_every=1)


@dataclass(frozen=True)
class StageSummary:
    """A stage's artifacts built, median seconds of one, largest peak of GPU memory (GiB) and median examples a second.

    The last two are None where the stage has no such number.
    """

    stage: str
    num_built: int
    seconds: float
    peak_gpu_memory_gib: float | None
    examples_per_s: float | None


def summarize(records: Iterable[Record]) -> list[StageSummary]:
    """One summary a stage that has records, in the order of the pipeline."""
    by_stage: dict[str, list[Record]] = {}
    for record in records:
        by_stage.setdefault(record.stage, []).append(record)
    summaries = []
    for stage in sorted(by_stage, key=STAGES.index):
        of_stage = by_stage[stage]
        peaks = [record.metrics["peak_gpu_memory_gib"] for record in of_stage if record.metrics.get("peak_gpu_memory_gib")]
        speeds = [record.metrics["examples_per_s"] for record in of_stage if record.metrics.get("examples_per_s")]
        summaries.append(
            StageSummary(
                stage,
                len(of_stage),
                statistics.median(record.durations["total_s"] for record in of_stage),
                max(peaks, default=None),
                statistics.median(speeds) if speeds else None,
            )
        )
    return summaries
