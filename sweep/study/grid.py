"""The step graph of an experiment, as pure data: what is built from what.

Two roots (prepared data, base model), then generator → synthetic pool, once for each generator; starting points; training
sets (size × kind × seed); task models (one a cell); an evaluation of every task model and starting point. Where
challenge sets are evaluated, the data is prepared once more with these, for the evaluations. What several cells share is one
step. Original training sets do not depend on a pool, so they need not wait. With shared trajectories a model that is not of
the largest size has that one, its trunk, for an input as well. With a judge, each pool's labels are judged, by a model that is
neither a starting point nor a cell.

Later generations are a chain beside the first: a generator finetuned on the pool before it, and its pool. In joint training a
cell's own set and its starting set are drawn into one, and the cell starts from the untrained model. A mix is drawn from data
and pool.

With several arms all this is built for each, as the study that has this arm alone would (`Experiment.in_arm`), and what arms
have in common is one step: data, generators, pools and sets always are, an untrained model where the head is the same. Models
and evaluations have the coordinate `arms`, all those that they are of. What differs from the study's own is in the names:
`start500-lm-seed0`, `start500-joint-lm-frozen0.25-original-60-seed0`.

Generator 0 and what is made from its pool are named as in a study with one generator, because they are the same artifacts.
Another's number is in its names: `generator1`, `pool1`, `synthetic-300-seed1-generator1`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.data.kinds import DEBIASED, FILTERED, ORIGINAL, Kind, parts_of
from pipelines.data.own_pool import OwnPoolConfig
from pipelines.data.training_set import BIASED, JOINT, TrainingSetConfig, num_drawn, training_set_config
from pipelines.evaluate.judge import JudgementConfig
from pipelines.finetune.base_model import PretrainedModelConfig, ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig
from pipelines.resources import Resources
from pipelines.tasks.heuristics import HEURISTICS
from pipelines.tasks.nli import NLI
from sweep.graph.step import Step
from sweep.study.arms import Arm, find_arm
from sweep.study.experiment import JUDGE_SEED, Experiment
from sweep.study.generators import EndpointGenerator, PromptedGenerator

OF_ARMS = ("starting_point", "task_model", "evaluation")
"""Stages of what arms may have otherwise than each other; sets are drawn without regard to them."""
GENERATION_SEEDS = 10_000
"""By how much the seeds of a generation's generators are above those of the one before: more than there are generators."""


def build_grid(experiment: Experiment) -> list[Step]:
    """All steps of `experiment`, each after its inputs and each once."""
    grid = _Grid(experiment)
    return _with_arms(grid.steps.values(), grid.arms_of)


def _with_arms(steps: Iterable[Step], arms_of: Mapping[str, Sequence[str]]) -> list[Step]:
    """The steps with their arms among their coordinates, and with inputs that have theirs."""
    if not arms_of:
        return list(steps)
    placed: dict[str, Step] = {}
    for step in steps:
        arms = {"arms": tuple(arms_of[step.fingerprint])} if step.fingerprint in arms_of else {}
        inputs = {name: placed[source.fingerprint] for name, source in step.inputs.items()}
        placed[step.fingerprint] = replace(step, inputs=inputs, coordinates={**step.coordinates, **arms})
    return list(placed.values())


class _Grid:
    def __init__(self, experiment: Experiment) -> None:
        self.whole = self.experiment = experiment
        self.steps: dict[str, Step] = {}
        self.arm = Arm()
        self.arms_of: dict[str, list[str]] = {}
        folder = experiment.sources_folder
        options = {"folder": folder} if folder else {}
        training = experiment.sources.for_training
        self.sources = self._add("sources", "data", training, options=options)
        # Evaluations alone read all test sets, so that asking for another one builds nothing else anew.
        self.test_sources = self._add("sources", "data-with-test-sets", experiment.sources, options=options)
        text = {"sources": self.sources} if isinstance(experiment.base_model, ScratchModelConfig) else {}
        self.base_model = self.task_base = self._add("base_model", "base", experiment.base_model, text)
        if experiment.task_model_base is not None:
            self.task_base = self._add("base_model", "task-base", experiment.task_model_base)
        self.pools = [self._add_pool(number) for number in range(experiment.generators)] if experiment.has_pool else []
        self.generations = {1: self.pools}
        for generation in range(2, experiment.generations + 1):
            self.generations[generation] = [self._add_pool(number, generation) for number in range(experiment.generators)]
        if experiment.judge is not None:
            for pool in self.pools:
                self._add_judgement(pool)
        for arm in map(find_arm, experiment.arms or (self.arm,)):
            self.arm, self.experiment = arm, experiment.in_arm(arm) if experiment.arms else experiment
            for seed in experiment.seeds:
                for starting_size in experiment.starting_sizes:
                    self._add_starting_point(starting_size, seed)

    def _add(
        self,
        stage: str,
        slug: str,
        config: Any,
        inputs: Mapping[str, Step] | None = None,
        coordinates: Mapping[str, Any] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Step:
        if "task" in getattr(config, "__dataclass_fields__", ()):
            config = replace(config, task=self.experiment.task)
        # Drawing a random head is a matter of milliseconds, whatever finetuning a starting point takes; an endpoint does the
        # work of a pool elsewhere, and of one's own it is done.
        light = isinstance(config, UntrainedConfig | OwnPoolConfig) or getattr(config, "endpoint", None) is not None
        like = "evaluation" if stage == "judgement" and stage not in self.experiment.resources else stage
        resources = Resources() if light else self.experiment.resources.get(like, Resources())
        rehearsal = self.experiment.rehearsal
        step = Step(stage, slug, config, inputs or {}, coordinates or {}, resources, options or {}, rehearsal)
        if self.whole.arms and coordinates and stage in OF_ARMS:
            arms = self.arms_of.setdefault(step.fingerprint, [])
            arms += [self.arm.name] if self.arm.name not in arms else []
        return self.steps.setdefault(step.fingerprint, step)

    def _add_pool(self, number: int, generation: int = 1) -> Step:
        """The pool of a generator, and the generator, trained on original data or, in later generations, on earlier pools."""
        experiment = self.experiment
        which, named = self._which(number), f"{number or ''}"
        if experiment.own_pools:
            return self._add("synthetic_pool", f"pool{named}", experiment.own_pools[number], {}, which)
        assert experiment.generator is not None and experiment.generation is not None
        if not isinstance(experiment.generator, GeneratorConfig):
            return self._add_prompted_pool(number, named, which)
        texts = {"sources": self.sources}
        if generation > 1:
            which, named = which | {"generation": generation}, f"{named}-generation{generation}"
            since = 1 if experiment.accumulate else generation - 1
            pools = {f"pool{earlier}": self.generations[earlier][number] for earlier in range(since, generation)}
            texts = (texts if experiment.accumulate else {}) | pools
        seed = number + (generation - 1) * GENERATION_SEEDS
        generator = self._add(
            "generator",
            f"generator{named}",
            replace(experiment.generator, seed=experiment.generator.seed + seed),
            {**texts, "base_model": self.base_model},
            which,
        )
        config = replace(experiment.generation, seed=experiment.generation.seed + seed)
        return self._add("synthetic_pool", f"pool{named}", config, {"generator": generator}, which)

    def _add_prompted_pool(self, number: int, named: str, which: Mapping[str, int]) -> Step:
        """The pool of a model that is not finetuned, but sees examples of the training data in its prompts."""
        generator, generation = self.experiment.generator, self.experiment.generation
        assert isinstance(generator, PromptedGenerator | EndpointGenerator) and generation is not None
        prompting = generator.prompting(number)
        config = replace(generation, seed=generation.seed + number, prompting=prompting)
        inputs = {"sources": self.sources} if prompting.shots else {}
        if isinstance(generator, EndpointGenerator):
            config = replace(config, endpoint=generator.endpoint)
        else:
            inputs["generator"] = self._add("base_model", "prompted", generator.base_model)
        return self._add("synthetic_pool", f"pool{named}", config, inputs, which)

    def _which(self, number: int) -> dict[str, int]:
        """The coordinate that says which generator; a study of one has none."""
        return {"generator": number} if self.experiment.generators > 1 else {}

    def _add_starting_point(self, starting_size: int, seed: int) -> None:
        experiment = self.experiment
        untrained = starting_point = self._add(
            "starting_point",
            f"start0-{self._head_mark}seed{seed}",
            UntrainedConfig(seed=seed, head=experiment.head),
            {"base_model": self.task_base},
            {"starting_size": 0, "kind": "none", "size": 0, "seed": seed},
        )
        starting_set = None
        if starting_size:
            starting_set, starting_point = self._add_trained_start(starting_size, seed, starting_point)
        self._add_evaluation(starting_point)
        for kind in experiment.kinds_by_name:
            for size in experiment.training_sizes:
                cell = {"starting_size": starting_size, "kind": kind, "size": size, "seed": seed, **self._dial(kind)}
                if kind != "original":
                    cell |= self._which(experiment.generator_of(seed))
                self._add_cell(cell, starting_point, starting_set, untrained)

    def _dial(self, kind: str) -> dict[str, float]:
        """The coordinate that says how much of what a kind is, if it is more than a name (`records.DIALS`)."""
        experiment = self.experiment
        made_of = experiment.kinds_by_name[kind]
        if not isinstance(made_of, str):
            return {"synthetic_share": made_of.synthetic_share}
        if kind in experiment.generation_names[1:]:
            return {"generation": experiment.generation_names.index(kind) + 1}
        doses = {f"bias_{bias}": bias for bias in map(float, experiment.biases)}
        return {"bias": doses[kind]} if kind in doses else {}

    @property
    def _head_mark(self) -> str:
        """What names have before the rest where the arm's head is not the study's own."""
        return f"{self.experiment.head}-" if self.experiment.head != self.whole.head else ""

    def _recipe_mark(self, *, of_start: bool = False, of_cell: bool = False) -> str:
        """The same of what the arm changes in the recipe of a starting point, a cell, or either."""
        one, whole = self.experiment, self.whole
        starts_differ = of_start and one.task_model != whole.task_model
        cells_differ = of_cell and (one.cell or one.task_model) != (whole.cell or whole.task_model)
        return "".join(f"{said}-" for said in self.arm.of_recipe) if starts_differ or cells_differ else ""

    def _add_trained_start(self, starting_size: int, seed: int, untrained: Step) -> tuple[Step, Step]:
        """The starting set and the starting point of a size above 0, after the trunk that it branches off, if it does."""
        experiment = self.experiment
        smaller, largest = self._on_trajectory(starting_size, experiment.starting_sizes)
        trunk = None if starting_size == largest else self._add_trained_start(largest, seed, untrained)[1]
        coordinates = {"starting_size": starting_size, "kind": "none", "size": 0, "seed": seed}
        set_seed = seed if experiment.starting_set_seed is None else experiment.starting_set_seed
        starting_set = self._add(
            "starting_set",
            f"start{starting_size}-seed{set_seed}",
            TrainingSetConfig(
                kind="starting",
                size=starting_size,
                seed=set_seed,
                nested_sizes=smaller,
                task=experiment.task,
                **self._counted(),
            ),
            {"source": self.sources},
            coordinates,
        )
        slug = f"start{starting_size}-{self._head_mark}{self._recipe_mark(of_start=True)}seed{seed}"
        return starting_set, self._add_trained(
            "starting_point", slug, experiment.task_model, starting_set, untrained, trunk, coordinates
        )

    def _on_trajectory(self, size: int, sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The smaller of `sizes` (0 is none) whose trajectory `size` is on, ascending, and the size of the trunk."""
        if self.experiment.trajectories == "separate":
            return (), size
        return tuple(sorted(smaller for smaller in sizes if 0 < smaller < size)), max(sizes)

    def _add_trained(
        self,
        stage: str,
        slug: str,
        recipe: FinetuneConfig,
        training_set: Step,
        starting_point: Step,
        trunk: Step | None,
        coordinates: Mapping[str, Any],
    ) -> Step:
        inputs = {"training_set": training_set, "base_model": self.task_base, "starting_point": starting_point}
        nested_sizes = tuple(map(num_drawn, training_set.config.nested()))
        return self._add(
            stage,
            slug,
            TaskModelConfig(finetune=recipe, seed=coordinates["seed"], nested_sizes=nested_sizes),
            inputs | ({"trunk": trunk} if trunk else {}),
            coordinates,
        )

    def _add_cell(self, cell: Mapping[str, Any], starting_point: Step, starting_set: Step | None, untrained: Step) -> Step:
        experiment = self.experiment
        smaller, largest = self._on_trajectory(cell["size"], experiment.training_sizes)
        trunk = None
        if cell["size"] != largest:
            trunk = self._add_cell({**cell, "size": largest}, starting_point, starting_set, untrained)
        kind, size, seed = cell["kind"], cell["size"], cell["seed"]
        made_of = experiment.kinds_by_name[kind]
        parts = parts_of(made_of)
        excluded = starting_set if ORIGINAL in parts and experiment.disjoint_from_starting else None
        slug = _named(f"{kind}-{size}-seed{seed}", cell.get("generator", 0))
        # A set that avoids one starting point's examples belongs to that starting point alone.
        shared = {} if excluded else {"starting_size": None}
        training_set = self._add(
            "training_set",
            f"start{cell['starting_size']}-{slug}" if excluded else slug,
            training_set_config(
                made_of,
                size,
                seed,
                remainder=experiment.remainder,
                disjoint_from_starting=excluded is not None,
                nested_sizes=smaller,
                task=experiment.task,
                **self._bias(cell, made_of),
                **self._debiased(parts),
            ),
            self._drawn_from(made_of, seed, cell.get("generation", 1)) | ({"starting_set": excluded} if excluded else {}),
            {**cell, **shared},
        )
        is_joint = experiment.training == "joint" and starting_set is not None
        recipe_mark = self._recipe_mark(of_start=starting_set is not None and not is_joint, of_cell=True)
        marked = f"{self._head_mark}{recipe_mark}{slug}"
        if is_joint:
            assert starting_set is not None
            slug, marked, starting_point = f"joint-{slug}", f"joint-{marked}", untrained
            both = num_drawn(starting_set.config) + num_drawn(training_set.config)
            inputs = {"starting_set": starting_set, "own_set": training_set}
            joint = TrainingSetConfig(JOINT, both, seed, task=experiment.task, **self._counted())
            training_set = self._add("training_set", f"start{cell['starting_size']}-{slug}", joint, inputs, cell)
        recipe = experiment.cell or experiment.task_model
        slug = f"start{cell['starting_size']}-{marked}"
        task_model = self._add_trained("task_model", slug, recipe, training_set, starting_point, trunk, cell)
        self._add_evaluation(task_model)
        return task_model

    def _add_judgement(self, pool: Step) -> Step:
        experiment = self.experiment
        evaluation = experiment.evaluation
        config = JudgementConfig(
            sets=tuple(dict.fromkeys(("dev", experiment.general_set))),
            dtype=evaluation.dtype,
            merge_adapter=evaluation.merge_adapter,
            rehearse_examples=evaluation.rehearse_examples,
            heuristics=(experiment.heuristic,),
            tokens_per_batch=evaluation.tokens_per_batch,
            compile_from_examples=evaluation.compile_from_examples,
        )
        # What a judge is measured by may be a set that training does not know.
        is_known = experiment.general_set in experiment.sources.for_training.set_names
        inputs = {"sources": self.sources if is_known else self.test_sources, "pool": pool}
        if isinstance(experiment.judge, PretrainedModelConfig):
            inputs["base_model"] = self._add("base_model", "judge", experiment.judge)
        else:
            assert experiment.judge is not None
            inputs |= {"base_model": self.task_base, **self._add_judge(experiment.judge)}
        return self._add("judgement", f"judge-{pool.slug}", config, inputs, pool.coordinates)

    def _add_judge(self, size: int) -> dict[str, Step]:
        """The judge, and what it was trained on: original examples drawn for it, so that it corrects no model but others."""
        untrained = self._add("starting_point", "judge0", UntrainedConfig(JUDGE_SEED), {"base_model": self.task_base})
        drawn = TrainingSetConfig("starting", size, JUDGE_SEED, task=self.experiment.task, **self._counted())
        training_set = self._add("starting_set", f"judge{size}", drawn, {"source": self.sources})
        inputs = {"training_set": training_set, "base_model": self.task_base, "starting_point": untrained}
        # Whatever arm the study's own heads are: one judge for all of them.
        config = TaskModelConfig(replace(self.experiment.task_model, head_frozen_share=0.0), JUDGE_SEED)
        judge = self._add("starting_point", f"judge{size}", config, inputs)
        return {"judge0": judge, "judge0_set0": training_set}

    def _drawn_from(self, kind: Kind, seed: int, generation: int) -> dict[str, Step]:
        """What a set's examples come from: data, a pool, or for a mix both; also the pool's judgement, and what debiases it."""
        parts = parts_of(kind)
        sources: dict[str, Step] = {"source": self.sources} if ORIGINAL in parts else {}
        if parts != (ORIGINAL,):
            pool = self.generations[generation][self.experiment.generator_of(seed)]
            sources["source" if isinstance(kind, str) else "pool"] = pool
            if FILTERED in parts:
                sources["judgement"] = self._add_judgement(pool)
            if DEBIASED in parts:
                sources["reference"] = self.sources
        return sources

    def _bias(self, cell: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
        if "bias" in cell:
            share = self.experiment.heuristic_share
            return {"heuristic": self.experiment.heuristic, "bias": cell["bias"], "heuristic_share": share}
        return {"heuristic": self.experiment.heuristic} if BIASED in parts_of(kind) else self._counted()

    def _debiased(self, parts: Sequence[str]) -> dict[str, Any]:
        """The heuristics that a debiased set is debiased of: the study's and, in NLI, those that come with it."""
        if DEBIASED not in parts:
            return {}
        built_in = HEURISTICS.values() if self.experiment.task == NLI else ()
        return {"heuristics": tuple(dict.fromkeys((self.experiment.heuristic, *built_in)))}

    def _counted(self) -> dict[str, Any]:
        """The heuristic of a set that is not biased to it: it is counted there in tasks that have no lexical overlap."""
        return {} if self.experiment.task == NLI else {"heuristic": self.experiment.heuristic}

    def _add_evaluation(self, model: Step) -> None:
        inputs = {"sources": self.test_sources, "base_model": self.task_base, "task_model": model}
        # Its seed's generator even where it does not depend on one: kinds are compared within a seed.
        which = self._which(self.experiment.generator_of(model.coordinates["seed"]))
        evaluation = replace(self.experiment.evaluation, test_sets=self.experiment.test_sets)
        self._add("evaluation", model.slug, evaluation, inputs, {**model.coordinates, **which})


def _named(slug: str, generator: int) -> str:
    return f"{slug}-generator{generator}" if generator else slug
