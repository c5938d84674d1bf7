"""The study of Zhang and Pavlick as its paper and released scripts have it, and how an experiment differs from it.

`departures` compares an experiment with what is settled, `unsettled` says what was chosen where nothing is. Both read the
experiment itself, so that a changed parameter cannot go unsaid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pipelines.data.kinds import kind_name
from pipelines.data.sources import NLISourcesConfig
from pipelines.data.training_set import sizes_per_label
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import LLAMA_PROJECTIONS, FinetuneConfig
from pipelines.generate.config import GenerationConfig
from pipelines.models.quantization import FP8
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from pipelines.tasks.prompts import EN_DASH
from sweep.graph.records import TRAINED_KINDS
from sweep.study.experiment import Experiment

MODEL = "Llama-2-7b-hf"
STARTING_SIZES = (0, 5_000, 10_000, 20_000, 100_000, 391_722)
"""Section 2.3.2. The last is the whole training set."""
TRAINING_SIZES = (73_080, 36_040, 18_020)
"""Section 2.3.3."""
POOL_PER_LABEL = (631_992, 562_822, 624_999)
"""Table 1: entailment, neutral, contradiction; 1,819,813 in all."""
POOL_OVERLAP_ENTAILMENTS = 24_360
"""Table 1: a third of 73,080, so that the largest biased set takes all of them."""
EVALUATED_SETS = ("mnli_matched", "hans")

PAPER_TASK_MODEL = FinetuneConfig(
    method="lora",
    learning_rate=2e-5,
    epochs=1.0,
    batch_size=2,
    schedule="cosine",
    warmup_ratio=0.3,
    weight_decay=0.001,
    max_grad_norm=0.3,
    dtype="bfloat16",
    lora_rank=64,
    lora_alpha=16,
    lora_dropout=0.1,
    lora_targets=LLAMA_PROJECTIONS,
    share_prefix=False,
    group_by_length=True,
)
"""The recipe of T in the released scripts; the head is trained in full."""
PAPER_GENERATOR = replace(PAPER_TASK_MODEL, batch_size=6, train_embeddings=True)
"""The recipe of G in the released scripts."""
MAX_NEW_TOKENS = 512

RECIPE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "method": "trained weights",
        "learning_rate": "learning rate",
        "epochs": "epochs",
        "batch_size": "batch size",
        "schedule": "learning rate's schedule",
        "warmup_ratio": "warm-up ratio",
        "weight_decay": "weight decay",
        "max_grad_norm": "gradient-norm clip",
        "dtype": "precision",
        "lora_rank": "LoRA rank",
        "lora_alpha": "LoRA alpha",
        "lora_dropout": "LoRA dropout",
        "lora_targets": "adapted projections",
        "train_embeddings": "embeddings and LM head in full",
        "share_prefix": "dropout mask of the prompt's beginning shared in a batch",
        "group_by_length": "batches grouped by length",
        "max_length": "longest example",
        "rehearse_steps": "steps of a rehearsal",
        "cooldown_ratio": "cool-down ratio",
        "head_frozen_share": "share of the steps with a frozen head",
    }
)
WHY: Mapping[str, str] = MappingProxyType(
    {
        "batch_size": "steps of so few examples leave a GPU idle: the same epoch in fewer steps costs a fraction",
        "learning_rate": "grows with the square root of the batch's factor, as suits Adam (Malladi et al. 2022)",
        "share_prefix": "what prompts (G: those of one label) begin with is computed once a batch; exact but for that mask",
        "schedule": "constant until a cool-down, so that sizes share what comes before (Hu et al. 2024, Hägele et al. 2024)",
        "cooldown_ratio": "the part of a size's steps that is its own (Hägele et al. 2024)",
    }
)


@dataclass(frozen=True)
class Note:
    """One point of the recipe: what the paper or its scripts have, what this experiment has, and the reason."""

    topic: str
    paper: str
    ours: str
    why: str


def departures(experiment: Experiment) -> tuple[Note, ...]:
    """The points in which `experiment` differs from what is settled, in the order of the pipeline."""
    return tuple(note for note in _compared(experiment) if note.paper != note.ours)


def _compared(experiment: Experiment) -> Iterator[Note]:
    chosen = "the experiment's choice"
    if isinstance(experiment.sources, NLISourcesConfig):
        ours = f"{experiment.sources.dev_rows_per_label} of each label"
        yield Note("dev rows held out", "250 of each label", ours, chosen)
    else:
        yield Note("data", "MultiNLI and HANS", type(experiment.sources).__name__, chosen)
    named = f"{getattr(experiment.base_model, 'revision', '')} {getattr(experiment.base_model, 'path', '')}"
    ours = MODEL if MODEL.lower() in named.lower() else named.strip() or type(experiment.base_model).__name__
    yield Note("base model", MODEL, ours, "by the name that was given; the record has the files' hashes")
    quantization = getattr(experiment.base_model, "quantization", "none")
    ours = {"nf4": "4-bit NF4", "nf4_double": "4-bit NF4", FP8: "8-bit FP8, and what meets them is cast to it"}.get(
        quantization, f"not quantised, {experiment.task_model.dtype}"
    )
    why = "4 bits save memory that is there, and are less exact; -p base_precision=nf4 has the paper's"
    if quantization == FP8:
        why = "matrix units are twice as fast in 8 bits, and a product is nearer to the exact one than with 4-bit weights"
    yield Note("frozen weights of the base model", "4-bit NF4", ours, why)
    for topic, paper, value in (
        ("starting points", STARTING_SIZES, experiment.starting_sizes),
        ("training-set sizes", TRAINING_SIZES, experiment.training_sizes),
        ("kinds of training set", TRAINED_KINDS, tuple(map(kind_name, experiment.kinds))),
    ):
        # An axis is a set: the order of its values changes nothing.
        same = sorted(paper, key=str) == sorted(value, key=str)
        yield Note(topic, _text(paper), _text(paper if same else value), chosen)
    why = "an interval over seeds of one pool says nothing of another"
    yield Note("generators, each with a pool", "1", _text(experiment.generators), why)
    training = {"two_steps": "from its starting point", "joint": "on its set and the starting point's together"}
    yield Note("a cell is finetuned", training["two_steps"], training[experiment.training], chosen)
    yield Note("untrained head", "random", experiment.head, chosen)
    yield Note("arms that each cell is trained in", "one", _text(experiment.arm_names) or "one", chosen)
    yield Note("generations of the generator", "1", _text(experiment.generations), chosen)
    yield Note("doses of bias", "none", _text(experiment.biases) or "none", chosen)
    yield Note("heuristic of the biased sets", LEXICAL_OVERLAP.name, experiment.heuristic.name, chosen)
    if isinstance(experiment.generator, GeneratorConfig):
        yield from _recipe("G", PAPER_GENERATOR, experiment.generator.finetune)
    else:
        ours = "a pool of one's own" if experiment.own_pools else type(experiment.generator).__name__
        yield Note("generator", "Llama-2-7B, finetuned", ours, chosen)
    if experiment.generation is not None:
        yield from _pool(experiment.generation)
    yield from _recipe("T", PAPER_TASK_MODEL, experiment.task_model)
    if experiment.cell is not None and experiment.cell != experiment.task_model:
        yield from _recipe("T, from its starting point", PAPER_TASK_MODEL, experiment.cell)
    if experiment.trajectories == "shared":
        why = "a smaller size is the beginning of the largest one's, with a cool-down of its own: only that is computed for it"
        yield Note("finetunings of nested sizes", "each from the start", "one trajectory, with a branch for each size", why)
    lacking = [name for name in EVALUATED_SETS if name not in experiment.evaluation.sets]
    ours = f"without {_text(lacking)}" if lacking else _text(EVALUATED_SETS)
    yield Note("test sets", _text(EVALUATED_SETS), ours, chosen)


def _pool(generation: GenerationConfig) -> Iterator[Note]:
    chosen = "the experiment's choice"
    ours = _text(tuple(generation.num_by_label.values()))
    ours = ours if generation.exact else f"at least {ours}"
    yield Note("synthetic pool, examples of each label", _text(POOL_PER_LABEL), ours, chosen)
    yield Note("longest generated text, tokens", _text(MAX_NEW_TOKENS), _text(generation.max_new_tokens), chosen)
    if generation.quantization == FP8:
        why = "matrix units are twice as fast in 8 bits; that the pool is alike was not shown"
        yield Note("G's weights and activations as it writes", generation.dtype, "8-bit FP8", why)
    why = "none of 79,429 rows of MultiNLI has the en dash that it begins with; the marker is a seventh of what is written"
    ours = "with its first character" if generation.stop_early else "when it is complete"
    yield Note("a text ends at the end marker", "when it is complete", ours, why)


def _recipe(of: str, paper: FinetuneConfig, ours: FinetuneConfig) -> Iterator[Note]:
    for field, name in RECIPE_NAMES.items():
        why = WHY.get(field, "the experiment's choice")
        yield Note(f"{of}: {name}", _text(getattr(paper, field)), _text(getattr(ours, field)), why)


def unsettled(experiment: Experiment) -> tuple[Note, ...]:
    """The points that neither paper nor scripts settle, or both in different ways, and what `experiment` has there."""
    generation, seeds = experiment.generation, experiment.seeds
    odd = [size for size in experiment.training_sizes if size % 3]
    whole = max(STARTING_SIZES)
    notes = [
        Note(
            f"sizes that 3 labels do not divide ({_text(odd) or 'none here'})",
            "'equal numbers with each label'",
            "; ".join(f"{_text(tuple(sizes_per_label(size, experiment.remainder).values()))}" for size in odd)
            or experiment.remainder,
            f"remainder={experiment.remainder!r}",
        ),
        Note(
            "freedom of the largest biased set",
            f"none in entailment: {POOL_OVERLAP_ENTAILMENTS:,} overlap entailments in the pool, all of them taken",
            "drawn from those that our pool holds; the set fails, by name, if they are fewer than it takes",
            "our generator writes another pool; its count is in the report's Table 1",
        ),
        Note(
            "original sets and the starting point's own examples",
            "not stated",
            "disjoint" if experiment.disjoint_from_starting else "may overlap",
            f"the starting point of {whole:,} has seen all there is, so disjoint sets cannot be had for it",
        ),
        Note(
            "starting sets",
            "simple random samples, seed 42",
            "simple random samples by hash, "
            + ("each study seed its own" if experiment.starting_set_seed is None else f"seed {experiment.starting_set_seed}"),
            "the scripts' sample depends on their library and file order",
        ),
        Note(
            f"starting point of {whole:,}",
            "the maximum training-set size",
            "the whole training set, in another order for each seed" if whole in experiment.starting_sizes else "not built",
            "there are so many rows after duplicates and dev set",
        ),
        *(_sampling(generation) if generation is not None else ()),
        Note(
            "seeds",
            "one run a cell, no interval",
            f"{len(seeds)}: {_text(seeds)}",
            f"a seed moves samples, order, head and dropout together; {_sharing(experiment)}"
            + ("; one seed gives no interval" if len(seeds) == 1 else ""),
        ),
    ]
    if (quantization := getattr(experiment.base_model, "quantization", "none")) in ("nf4", "nf4_double"):
        ours = "in 8 bits" if quantization == "nf4_double" else "in 32 bits"
        notes.append(Note("NF4's constants", "not stated", ours, f"base_precision={quantization!r}"))
    return tuple(notes)


def _sampling(generation: GenerationConfig) -> Iterator[Note]:
    is_ancestral = (generation.temperature, generation.top_p, generation.top_k) == (1.0, 1.0, -1)
    yield Note(
        "sampling from G",
        "the checkpoint's defaults of the time, not recorded",
        f"temperature {generation.temperature:g}, top-p {generation.top_p:g}, top-k "
        + ("off" if generation.top_k == -1 else _text(generation.top_k)),
        "ancestral sampling: what G learnt, unchanged" if is_ancestral else "the experiment's choice",
    )
    yield Note(
        "end marker of a generated example",
        "an en dash in the paper, two hyphens in the scripts",
        "en dash" if generation.end_marker == EN_DASH else "two hyphens",
        "one of the two, for G's training texts and for the parser",
    )


def _sharing(experiment: Experiment) -> str:
    num_sharing = len(experiment.seeds) // experiment.generators
    if experiment.generators == 1:
        return "G and its pool are shared"
    return f"{num_sharing} at a time share a G and its pool" if num_sharing > 1 else "each has a G and a pool of its own"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not limited"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
