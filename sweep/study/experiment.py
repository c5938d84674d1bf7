"""A study as one frozen value, which an experiment function returns.

Nothing here says where it runs, except the fields marked runtime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from types import MappingProxyType
from typing import Any

from pipelines.data.kinds import FILTERED, Kind, find_kind, kind_name, parts_of
from pipelines.data.own_pool import OwnPoolConfig
from pipelines.data.protocol import Sources
from pipelines.data.table_sources import Table
from pipelines.data.training_set import check_bias
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.field_types import check_types
from pipelines.finetune.base_model import PretrainedModelConfig, RandomModelConfig, ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig, check_trajectory
from pipelines.finetune.task_model import UntrainedConfig
from pipelines.generate.config import GenerationConfig
from pipelines.identity import added, runtime
from pipelines.models.architectures import ARCHITECTURES, check_targets
from pipelines.models.quantization import FP8
from pipelines.models.tokenizer import check_encoder_reads
from pipelines.resources import Resources
from pipelines.tasks.heuristics import LEXICAL_OVERLAP, Heuristic
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import KINDS, KNOWN_KINDS, STAGES, TRAINED_KINDS, check_study_name
from sweep.study.arms import TRAININGS, Arm, find_arm
from sweep.study.claims import Claim
from sweep.study.generators import EndpointGenerator, PromptedGenerator
from sweep.study.paper_claims import PAPER_CLAIMS, axis_claims

TRAJECTORIES = ("separate", "shared")
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that vLLM's engine computes with on a CPU."""
MOST_SEED = 2**32 - 1
"""Steps multiply a seed, and the generators of torch take 64 bits."""
JUDGE_SEED = 1_000_003
"""The seed of a judge, and of nothing else: no model may be corrected by itself."""

TYPES: Mapping[str, tuple[Any, str]] = {
    "base_model": (
        ScratchModelConfig | PretrainedModelConfig | RandomModelConfig,
        "pretrained_model_config('FOLDER') or ScratchModelConfig(…)",
    ),
    "task_model_base": (PretrainedModelConfig | None, "pretrained_model_config('FOLDER')"),
    "generator": (
        GeneratorConfig | PromptedGenerator | EndpointGenerator | None,
        "GeneratorConfig(…), PromptedGenerator(…) or EndpointGenerator(…), one of them and not in a tuple",
    ),
    "generation": (GenerationConfig | None, "GenerationConfig(…), which is not in a tuple"),
    "synthetic": (str | Table | OwnPoolConfig | tuple | None, "the file's path as a text, or Table(…)"),
}
"""Fields of an `Experiment` whose types alone do not say what to write."""


@dataclass(frozen=True)
class Experiment:
    """Starting points × training-set kinds × sizes × seeds, and everything they are made from.

    `starting_sizes` counts the examples that each starting point was finetuned on (0: the base model with a
    random head), `training_sizes` those of a cell's training set. A seed moves the subsets drawn, the order, the head and the
    dropout together. There are as many `generators`, each with a pool of its own, and seed s has the one of number
    s mod `generators`: seeds added later leave those before them as they are. `cell` is the cells' recipe where it is not
    `task_model`, that of starting points.

    A kind is a name or a mix (`pipelines.data.kinds`: `Mix`, `Added`, `mixed_25`). With `training` "joint", a cell is not
    finetuned from its starting point on, but from the untrained one, on the starting set and its own set together. The
    untrained `head` is random, zero, or read off the language model (`UntrainedConfig`). With `arms`, two or more, each cell is
    trained in each of them, by value or by name (`sweep.study.arms`). With several `generations`, each but
    the first has a generator finetuned on the pool before it, or with `accumulate` on the original data and all pools before
    it; sets of the kind synthetic are then drawn from each pool, those of generation 2 as the kind `synthetic_generation2`
    (docs/kinds.md).

    A pool of one's own takes the place of `generator` and `generation`: `synthetic` is its file, or a `Table` that says how the
    file is read, or a tuple of those, one for each of `generators`.

    The `task` is what is learnt, in every stage. The `heuristic` is what biased sets are biased to. Each of `biases` is a
    further kind, a dose: of the examples in its sets of which the heuristic holds, a share `heuristic_share` of the set, that
    share has the label that the heuristic predicts (`TrainingSetConfig`). `remainder` says what happens to a size that the
    labels do not divide. With `disjoint_from_starting`, an original training set has no example that its starting point was
    finetuned on. Starting sets are drawn by the study's seed, or all by `starting_set_seed`. With `trajectories` "shared", the
    starting points of a seed are one finetuning with a cool-down for each size, and so are the cells of a starting point,
    kind and seed (`check_trajectory`); else each is finetuned on its own. `rehearsal` marks every artifact's identity.

    Task models are finetuned from `base_model`, as generators are, or from a `task_model_base` of their own, which may be an
    encoder (docs/models.md); whatever is theirs, evaluations and a judge finetuned here among it, stands on that.

    The `judge` judges the pools' labels (docs/label_noise.md): a task model finetuned from the untrained start on so many
    original examples, for this alone, or a classifier's checkpoint. Sets of the kind filtered_synthetic need one.

    `claims` are what its results are judged by. `general_set` and `blindspot_set` are the evaluation sets that they and the
    report set side by side. With `replicates_paper`, plan
    and report say where the study departs from the paper's, and what it chose where the paper is silent. `sources_folder` is
    where the data is. `parameters` are the names that `-p` sets, as whoever loads the study says. `resources` maps a stage to
    what each of its steps may use; a stage not named gets one worker with one CPU.

    Raises UserError for a name that cannot be a file's, an empty or repeated axis, an unknown kind or stage, a dose that is
    not one, generators with unequal numbers of seeds, a recipe or resources that no trajectory can be shared with, a recipe
    that does not fit its model's architecture, sources of another task, a set that they do not have, or a report set that is
    not evaluated.
    """

    name: str
    title: str
    sources: Sources
    base_model: ScratchModelConfig | PretrainedModelConfig | RandomModelConfig
    task_model: FinetuneConfig
    evaluation: EvaluationConfig
    starting_sizes: tuple[int, ...]
    training_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    general_set: str
    blindspot_set: str
    task: Task = added(NLI)
    task_model_base: PretrainedModelConfig | None = added(None)
    generator: GeneratorConfig | PromptedGenerator | EndpointGenerator | None = field(default=None, kw_only=True)
    generation: GenerationConfig | None = field(default=None, kw_only=True)
    synthetic: str | Table | OwnPoolConfig | tuple[str | Table | OwnPoolConfig, ...] | None = field(
        default=None, kw_only=True, metadata={"role": "added"}
    )
    kinds: tuple[Kind, ...] = TRAINED_KINDS
    heuristic: Heuristic = added(LEXICAL_OVERLAP)
    biases: tuple[float, ...] = added(())
    heuristic_share: float | None = added(None)
    generators: int = added(1)
    generations: int = added(1)
    accumulate: bool = added(False)
    training: str = added("two_steps")
    head: str = added("random")
    arms: tuple[Arm | str, ...] = added(())
    judge: int | PretrainedModelConfig | None = added(None)
    cell: FinetuneConfig | None = None
    remainder: str = "first_labels"
    disjoint_from_starting: bool = False
    starting_set_seed: int | None = None
    trajectories: str = added("separate")
    rehearsal: bool = False
    claims: tuple[Claim, ...] = runtime(PAPER_CLAIMS)
    replicates_paper: bool = runtime(False)
    sources_folder: str = runtime("")
    parameters: tuple[str, ...] = runtime(())
    resources: Mapping[str, Resources] = field(default_factory=lambda: MappingProxyType({}), metadata={"role": "runtime"})

    def __post_init__(self) -> None:
        self._check_types()
        check_study_name(self.name)
        object.__setattr__(self, "kinds", tuple(map(find_kind, self.kinds)))
        self._find_sources()
        self._check_axes()
        self._check_task()
        self._check_biases()
        self._check_pools()
        self._check_generators()
        self._check_generations()
        self._check_judge()
        self._check_resources()
        self._check_recipes()
        self._check_models()
        self._check_evaluation()
        self._check_arms()
        self._check_claims()

    @property
    def has_pool(self) -> bool:
        """Whether any kind of training set is made from what a generator writes."""
        return bool(self.biases) or any(kind != "original" for kind in self.kinds)

    @property
    def kinds_by_name(self) -> Mapping[str, Kind]:
        """What its coordinates and claims call each kind → how its sets are drawn: mixes, doses and generations among them."""
        named = {kind_name(kind): kind for kind in self.kinds}
        # As floats: the doses 0 and 0.0 are one, and have one name.
        named |= {f"bias_{float(bias)}": "biased_synthetic" for bias in self.biases}
        return named | {name: "synthetic" for name in self.generation_names[1:]}

    @property
    def generation_names(self) -> tuple[str, ...]:
        """The kind of the synthetic sets of each generation, from the first."""
        return ("synthetic", *(f"synthetic_generation{number}" for number in range(2, self.generations + 1)))

    @property
    def declared_claims(self) -> tuple[Claim, ...]:
        """Its `claims`; beside the default ones also those that ask after its mixes, debiased sets, generations and arms."""
        if self.claims != PAPER_CLAIMS:
            return self.claims
        return (*PAPER_CLAIMS, *axis_claims(self.kinds, self.generation_names, self.arm_names))

    @property
    def arm_names(self) -> tuple[str, ...]:
        """What coordinates and claims call its arms; none in a study that has one way to train a cell."""
        return tuple(find_arm(arm).name for arm in self.arms)

    def option(self, name: str, value: str) -> str:
        """How people give one of its fields another value: by `-p` where that sets it, else in the study's file."""
        return f"{'-p ' if name in self.parameters else ''}{name}={value}"

    def in_arm(self, arm: Arm | str) -> "Experiment":
        """The study with one arm alone: a study with several builds what all of these do. It has no claims of its own.

        Raises UserError for an arm that it cannot have.
        """
        arm = find_arm(arm)
        task_model, cell = self.task_model, self.cell
        if (share := arm.head_frozen_share) is not None:
            task_model = replace(task_model, head_frozen_share=share)
            cell = cell and replace(cell, head_frozen_share=share)
        if (factor := arm.rate_factor) is not None:
            task_model = replace(task_model, learning_rate=factor * task_model.learning_rate)
            cell = cell and replace(cell, learning_rate=factor * cell.learning_rate)
        return replace(
            self,
            arms=(),
            claims=PAPER_CLAIMS,
            training=arm.training or self.training,
            head=arm.head or self.head,
            task_model=task_model,
            cell=cell,
        )

    @property
    def own_pools(self) -> tuple[OwnPoolConfig, ...]:
        """The study's own pools, one for each generator; none where generators write them."""
        assert self.synthetic is None or isinstance(self.synthetic, tuple)
        return tuple(pool for pool in self.synthetic or () if isinstance(pool, OwnPoolConfig))

    def generator_of(self, seed: int) -> int:
        """The number of the generator, from 0, whose pool the synthetic training sets of `seed` are drawn from."""
        return seed % self.generators

    def _check_types(self) -> None:
        for name, (types, way_out) in TYPES.items():
            if not isinstance(value := getattr(self, name), types):
                raise UserError(f"{name}={value!r} is of another type than a study's; give {way_out}")
        if not hasattr(self.sources, "for_task"):
            raise UserError(f"sources={self.sources!r} is no description of data; give TableSources(train=…, general=…)")
        check_types(self)

    def _find_sources(self) -> None:
        """Have the sources be of the study's task, and described by their content if all of it is here."""
        sources = self.sources.for_task(self.task)
        if not sources.missing(self.sources_folder):
            sources = sources.with_content(self.sources_folder)
        object.__setattr__(self, "sources", sources)

    def _check_axes(self) -> None:
        for axis in ("starting_sizes", "training_sizes", "seeds", "kinds"):
            values = getattr(self, axis)
            if not values:
                raise UserError(f"{axis}=() leaves nothing to do; give at least one value")
            if len(set(values)) != len(values):
                raise UserError(f"{axis}={values} names a value twice; name each once")
        for axis, least in (("starting_sizes", 0), ("training_sizes", 1), ("seeds", 0)):
            if min(getattr(self, axis)) < least:
                raise UserError(f"{axis}={getattr(self, axis)}: each is at least {least}")
        if max(self.seeds) > MOST_SEED:
            raise UserError(f"seeds={self.seeds}: a random generator takes seeds of at most {MOST_SEED:,}; give smaller ones")
        if unknown := {kind for kind in self.kinds if isinstance(kind, str)} - set(KNOWN_KINDS):
            raise UserError(
                f"kinds={sorted(unknown)} are unknown; valid: {', '.join(KNOWN_KINDS)}, mixed_25 (a quarter is synthetic) and "
                "the like, Mix(…), Added(…)"
            )
        names = [kind_name(kind) for kind in self.kinds]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"kinds={repeated} are there twice, in other words; name each once")
        if self.training not in TRAININGS:
            raise UserError(f"training={self.training!r} is not one of {', '.join(map(repr, TRAININGS))}")
        UntrainedConfig(seed=0, head=self.head)

    def _check_biases(self) -> None:
        if len(set(self.biases)) != len(self.biases):
            raise UserError(f"biases={self.biases} names a dose twice; name each once")
        for bias in self.biases:
            check_bias(bias, self.heuristic_share)
            if bias == 1 and self.heuristic_share is None:
                raise UserError(f"biases={self.biases}: the full dose at full share is the kind biased_synthetic; leave 1 out")
        if self.heuristic_share is not None and not self.biases:
            raise UserError(f"heuristic_share={self.heuristic_share} is of doses of bias, and there is none; give biases, too")

    def _check_pools(self) -> None:
        if self.synthetic is None:
            for name in ("generator", "generation") if self.has_pool else ():
                if getattr(self, name) is None:
                    raise UserError(
                        f"{name}=None, and kinds={self.kinds} need a pool; give generator and generation, or a pool of your "
                        "own: synthetic='pool.parquet'"
                    )
            return
        if self.generator is not None or self.generation is not None:
            raise UserError(
                f"synthetic={self.synthetic!r} is a pool of your own, which takes the place of generator and generation; leave "
                "these out, or synthetic"
            )
        if not self.has_pool:
            raise UserError(
                f"synthetic={self.synthetic!r} is a pool, and kinds={self.kinds} take nothing from one; add the kind "
                "synthetic, or leave it out"
            )
        given = self.synthetic if isinstance(self.synthetic, tuple) else (self.synthetic,)
        pools = tuple(map(self._own_pool, given))
        object.__setattr__(self, "synthetic", pools)
        if len(pools) != self.generators:
            raise UserError(
                f"synthetic names {len(pools)} pools and generators={self.generators}; give one file for each generator"
            )
        known = [pool.table.file.sha256 for pool in pools if pool.is_known]
        if len(set(known)) < len(known):
            raise UserError(
                f"synthetic={[pool.table.path for pool in pools]} has the same content twice; give each generator its own file"
            )

    def _own_pool(self, given: str | Table | OwnPoolConfig) -> OwnPoolConfig:
        """A pool as it is given, described by its content if it is there."""
        table = given.table if isinstance(given, OwnPoolConfig) else Table(given) if isinstance(given, str) else given
        pool = OwnPoolConfig(replace(table, path=table.at(self.sources_folder)), self.task)
        return pool if pool.table.missing("") else pool.with_content()

    def _check_generators(self) -> None:
        if self.generators < 1:
            raise UserError(f"generators={self.generators}: at least one writes a pool; give 1 or more")
        if self.generators > 1 and not self.has_pool:
            raise UserError(
                f"generators={self.generators} are for kinds made from a pool, and kinds={self.kinds} has none; leave it out, "
                "or add the kind synthetic"
            )
        seeds_of = [[seed for seed in self.seeds if self.generator_of(seed) == k] for k in range(self.generators)]
        counts = [len(seeds) for seeds in seeds_of]
        if len(set(counts)) > 1:
            fitting = dict.fromkeys(_dealt(seeds_of, num) for num in (min(counts), max(counts)) if num)
            raise UserError(
                f"seeds={self.seeds} with generators={self.generators}: seed s has generator s mod {self.generators}, so that "
                f"generators 0 to {self.generators - 1} have {', '.join(map(str, counts))} of them, and each needs as many as "
                f"the others; give seeds={' or seeds='.join(','.join(map(str, seeds)) for seeds in fitting)}"
            )

    def _check_generations(self) -> None:
        if self.generations < 1:
            raise UserError(f"generations={self.generations}: the first is trained on original data; give 1 or more")
        if self.generations > 1 and not isinstance(self.generator, GeneratorConfig):
            raise UserError(
                f"generations={self.generations}: each is finetuned on the pool before it, and the first is of no finetuned "
                "generator; give generator=GeneratorConfig(…), or leave generations out"
            )
        if self.generations > 1 and "synthetic" not in self.kinds:
            raise UserError(
                f"generations={self.generations}: each is seen in synthetic sets of its own, and kinds={self.kinds} has no "
                "'synthetic' of the first to compare them with; add it, or leave generations out"
            )
        if self.accumulate and self.generations == 1:
            raise UserError(
                "accumulate=True is about what later generations are trained on, and there is one; give generations=2"
            )

    def _check_judge(self) -> None:
        if self.judge is None and any(FILTERED in parts_of(kind) for kind in self.kinds):
            raise UserError(f"kinds={self.kinds}: {FILTERED} sets are of rows that a judge agrees with; give judge, too")
        if self.judge is not None and not self.has_pool:
            raise UserError(
                f"judge={self.judge}: it judges what a generator writes, and kinds={self.kinds} need none; leave it out"
            )
        if isinstance(self.judge, int) and self.judge < 1:
            raise UserError(f"judge={self.judge}: it is finetuned on so many original examples; give 1 or more")
        if self.judge is not None and JUDGE_SEED in self.seeds:
            raise UserError(f"seeds={self.seeds}: {JUDGE_SEED} is the judge's, which no other model may share; take another")

    def _check_resources(self) -> None:
        if unknown := set(self.resources) - set(STAGES):
            raise UserError(f"resources of {sorted(unknown)}: no such stage; valid: {', '.join(STAGES)}")
        for stage, resources in self.resources.items():
            if resources.in_process and resources.gpus_per_worker:
                raise UserError(
                    f"resources[{stage!r}] has in_process=True and gpus_per_worker={resources.gpus_per_worker:g}: the process "
                    "that drives a step has no GPU; leave in_process out"
                )

    def _check_recipes(self) -> None:
        finetuned = self.generator if isinstance(self.generator, GeneratorConfig) else None
        if finetuned and self.generation and finetuned.end_marker != self.generation.end_marker:
            raise UserError(
                f"the generator is taught the end marker {finetuned.end_marker!r} and generation waits "
                f"for {self.generation.end_marker!r}; give both the same end_marker"
            )
        for name, recipe, base in self._recipes:
            quantization = getattr(base, "quantization", "none")
            if quantization != "none" and recipe.method != "lora":
                raise UserError(
                    f"the base model has quantization={quantization!r} and {name} has method={recipe.method!r}: only a frozen "
                    "base can be quantised; use method='lora' or quantization='none'"
                )
            if quantization == FP8 and recipe.zero_stage == 3:
                raise UserError(
                    f"the base model has quantization={quantization!r} and {name} has zero_stage=3, which partitions weights "
                    "of one type only: use zero_stage 0 to 2, or a base that is not quantised"
                )
        # Those that begin with the untrained head.
        begin = [self.task_model] if any(self.starting_sizes) else []
        begin += [self.cell or self.task_model] if 0 in self.starting_sizes or self.training == "joint" else []
        if self.head == "zero" and any(recipe.head_frozen_share == 1 for recipe in begin):
            raise UserError(
                "head='zero' with head_frozen_share=1: through a head of zeros that stays as it is nothing is learnt; give a "
                "smaller share, or another head"
            )
        if self.trajectories not in TRAJECTORIES:
            raise UserError(f"trajectories={self.trajectories!r} is not one of {', '.join(map(repr, TRAJECTORIES))}")
        if self.trajectories == "shared" and self.training == "joint":
            raise UserError(
                "trajectories='shared' with training='joint': sets that are shuffled together do not begin with a smaller one; "
                "train each size on its own (trajectories='separate')"
            )
        if isinstance(self.generator, GeneratorConfig) and self.generator.finetune.head_frozen_share:
            raise UserError(
                f"the generator has head_frozen_share={self.generator.finetune.head_frozen_share}, and no classifier's head; "
                "leave it out there"
            )
        if self.trajectories == "shared":
            for stage, recipe in (("starting_point", self.task_model), ("task_model", self.cell or self.task_model)):
                check_trajectory(recipe, self.resources.get(stage, Resources()).num_workers)

    @property
    def base_of_task_models(self) -> ScratchModelConfig | PretrainedModelConfig | RandomModelConfig:
        """The model that starting points and cells are finetuned from: the generators' own unless another is given."""
        return self.task_model_base or self.base_model

    @property
    def _recipes(self) -> list[tuple[str, FinetuneConfig, ScratchModelConfig | PretrainedModelConfig | RandomModelConfig]]:
        """Each recipe by its name, with the model that it is of."""
        recipes = [("task_model", self.task_model, self.base_of_task_models)]
        if self.cell is not None:
            recipes.append(("cell", self.cell, self.base_of_task_models))
        if isinstance(self.generator, GeneratorConfig) and self.has_pool:
            recipes.append(("generator", self.generator.finetune, self.base_model))
        return recipes

    def _check_models(self) -> None:
        if isinstance(self.generator, GeneratorConfig) and self.has_pool and _is_encoder(self.base_model):
            raise UserError(
                "base_model is an encoder, which writes no text for a pool: give it as task_model_base, and a decoder here"
            )
        self._check_head_size()
        if isinstance(self.generator, PromptedGenerator) and _is_encoder(self.generator.base_model):
            raise UserError(
                f"the prompted generator is the {self.generator.base_model.model_type} at {self.generator.base_model.path}, an "
                "encoder, which writes no text; give a decoder's checkpoint"
            )
        if isinstance(self.judge, PretrainedModelConfig) and _is_encoder(self.judge):
            raise UserError(
                f"judge is the {self.judge.model_type} at {self.judge.path}, an encoder, of which no head is read; give a "
                "decoder's checkpoint, or the number of examples to finetune a judge on"
            )
        for name, recipe, base in self._recipes:
            if recipe.method == "lora":
                check_targets(name, recipe.lora_targets, getattr(base, "model_type", "llama"))
        if not _is_encoder(self.base_of_task_models):
            return
        check_encoder_reads(self.task)
        for name, value, refused, others in (
            ("head", self.head, "lm", "it has no rows for words, which a head could begin with; give 'random' or 'zero'"),
            ("trajectories", self.trajectories, "shared", "it is trained alone; give 'separate'"),
        ):
            if value == refused:
                raise UserError(f"{name}={value!r} with an encoder as the task models' base: {others}")

    def _check_head_size(self) -> None:
        """Raise UserError for a model that is pretrained here and that no engine on the CPU can write with."""
        base = self.base_model
        on_gpu = self.resources.get("synthetic_pool", Resources()).gpus_per_worker
        if on_gpu or not (
            self.has_pool and isinstance(self.generator, GeneratorConfig) and isinstance(base, ScratchModelConfig)
        ):
            return
        if base.head_size not in CPU_HEAD_SIZES:
            raise UserError(
                f"base_model has hidden_size={base.hidden_size} and num_heads={base.num_heads}, heads of {base.head_size}, and "
                f"engines on the CPU write with heads of {', '.join(map(str, CPU_HEAD_SIZES))}: give a hidden_size of "
                f"{CPU_HEAD_SIZES[0] * base.num_heads}, or other num_heads"
            )

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        """The sets that are evaluated and that the sources describe, in the order of the evaluation."""
        described = {test_set.name: test_set for test_set in self.sources.test_sets}
        return tuple(described[name] for name in self.evaluation.sets if name in described)

    @property
    def blindspot_slice(self) -> str:
        """Where going by the heuristic is wrong: the blindspot set's adversarial half, or the heuristic's own slice.

        That is the slice that it names, if the set can have it, or those examples of which it holds with another label.
        """
        described = self._described_blindspot
        return (described and described.adversarial) or self._probe_slice or self.heuristic.held_slice

    @property
    def _described_blindspot(self) -> TestSet | None:
        return next((test_set for test_set in self.test_sets if test_set.name == self.blindspot_set), None)

    @property
    def _probe_slice(self) -> str | None:
        """The heuristic's, unless the blindspot set is described and has no such slices: those of HANS, for one."""
        probe, described = self.heuristic.probe_slice, self._described_blindspot
        return probe if not (probe and described) or probe.partition("/")[0] in (*described.slices, "holds") else None

    def _check_task(self) -> None:
        for heuristic in (self.heuristic, *self.evaluation.heuristics):
            heuristic.check(self.task)

    def _check_evaluation(self) -> None:
        known = self.sources.set_names
        if unknown := [name for name in self.evaluation.sets if name not in known]:
            raise UserError(
                f"evaluation.sets={self.evaluation.sets}: the sources have no set {unknown[0]!r}; they have {', '.join(known)}"
            )
        for name in ("general_set", "blindspot_set"):
            if getattr(self, name) not in self.evaluation.sets:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not evaluated; it must be one of evaluation.sets={self.evaluation.sets}"
                )
        # What a set can be cut by is asked of one that is there.
        names = [heuristic.name for heuristic in self.evaluation.heuristics]
        if self.blindspot_slice == self.heuristic.held_slice and self.heuristic.name not in names:
            raise UserError(
                f"heuristic={self.heuristic.name!r} has no probe_slice that the blindspot set {self.blindspot_set!r} has, and "
                "the set no adversarial half; give it one, TestSet(…, slices=…, adversarial=…), or evaluate the heuristic "
                "where it holds: EvaluationConfig(heuristics=(…,))"
            )

    def _check_arms(self) -> None:
        object.__setattr__(self, "arms", tuple(map(find_arm, self.arms)))
        if len(self.arms) == 1:
            raise UserError(
                f"arms has {self.arm_names[0]!r} alone: a study trains its cells in one way unless it has two arms or more; "
                "give another one, or training, head and head_frozen_share themselves"
            )
        seen: dict[Any, str] = {}
        for name, arm in zip(self.arm_names, self.arms, strict=True):
            try:
                one = self.in_arm(arm)
            except UserError as error:
                raise UserError(f"arm {name!r}: {error}") from error
            # From the untrained start, a cell is trained alike jointly and in two steps, and by its own recipe.
            of_starts = (one.training, one.task_model) if any(self.starting_sizes) else ()
            values = one.head, one.cell or one.task_model, *of_starts
            if (other := seen.setdefault(values, name)) != name or self.arm_names.count(name) > 1:
                twice = f"arms={other!r} and {name!r} are the same in this study" if other != name else f"arm {name!r} is twice"
                or_start = "" if of_starts else ", or give a starting size above 0, if that is where they differ"
                raise UserError(f"{twice}; leave one of them out{or_start}")

    def _check_claims(self) -> None:
        names = [claim.name for claim in self.claims]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"claims={repeated} are declared twice; give each a name of its own")
        measures = [claim.comparisons[0].measure for claim in self.claims if claim.control]
        if len(set(measures)) != len(measures):
            raise UserError("two claims are the positive control of one measure; mark one of them with control=True")
        known = {*KINDS, *self.kinds_by_name}
        for claim in self.claims:
            if unknown := sorted(claim.kinds - known):
                raise UserError(f"claim {claim.name} is about {unknown}; kinds of training set are {', '.join(sorted(known))}")
            if unknown := sorted(claim.named_arms - set(self.arm_names)):
                has = f"are {', '.join(self.arm_names)}" if self.arms else "would be its arms=(…), and it has none"
                raise UserError(f"claim {claim.name} is about the arms {unknown}; those of the study {has}")
            for axis, of_study in (("starts", "starting_sizes"), ("sizes", "training_sizes")):
                named, there = getattr(claim, axis), getattr(self, of_study)
                if lacking := [] if isinstance(named, str) else sorted(set(named) - set(there)):
                    raise UserError(
                        f"claim {claim.name}: {axis}={named} names {', '.join(map(str, lacking))}, which the study lacks: its "
                        f"{of_study} are {', '.join(map(str, there))}; name some of these, or {axis}='all'"
                    )


def _is_encoder(base: ScratchModelConfig | PretrainedModelConfig | RandomModelConfig) -> bool:
    known = ARCHITECTURES.get(getattr(base, "model_type", ""))
    return known is not None and known.is_encoder


def _dealt(seeds_of: Sequence[Sequence[int]], num: int) -> tuple[int, ...]:
    """`num` seeds of each generator, sorted: its own, the first of them, and where there are fewer the smallest others."""
    dealt = []
    for generator, seeds in enumerate(seeds_of):
        others = (seed for seed in count(generator, len(seeds_of)) if seed not in seeds)
        dealt += [*seeds[:num], *islice(others, max(0, num - len(seeds)))]
    return tuple(sorted(dealt))
