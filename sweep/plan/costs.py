"""Costs of a study's steps, estimated from a table of figures: GPU-time, tokens and disk. Pure.

    table = read_table()
    estimate = estimate_costs(build_grid(experiment), table, table.gpu("h200"))
    total(estimate.steps).gpu_hours

A step's work (examples, tokens) follows from its config and its inputs', its time from the table's rates. Nothing is
measured, started or looked up here.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pipelines.data.own_pool import OwnPoolConfig
from pipelines.data.training_set import TrainingSetConfig, num_drawn
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.evaluate.judge import JudgementConfig
from pipelines.finetune.base_model import PretrainedModelConfig, ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig, cooldown_start, nested_ends
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig
from pipelines.generate.config import GenerationConfig
from pipelines.generate.prompting import instruction
from pipelines.models.quantization import FP8
from pipelines.resources import Resources
from sweep.graph.queue import in_common, num_at_once
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.plan.model_shape import ModelShape
from sweep.plan.throughputs import BFLOAT16, CostTable, Gpu, NoEstimate, Rate

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2}
STATE_BYTES = 12
"""The optimizer's fp32 master copy and two moments of a trained parameter."""
MOMENTS_BYTES, GROUPED_STATE_BYTES = 8, 10
"""The same where weights are fp32 themselves, and where adapters are trained many at once: a master is two bytes more there."""
CLASSIFIERS = ("starting_point", "task_model", "evaluation", "judgement")
GENERATORS = ("generator", "synthetic_pool")


@dataclass(frozen=True)
class Setting:
    """What a rate is of: a kind of work and, of a finetuning, what one GPU has of a batch and how it takes the prompts.

    `head` is what the finetuned model puts out, where rates of that were measured apart.
    """

    work: str
    batch_size: float = 0
    share_prefix: bool | None = None
    head: str = ""

    def __str__(self) -> str:
        if self.share_prefix is None:
            return self.work
        what = f"{self.work} of {self.head}" if self.head else self.work
        return f"{what}, batch {self.batch_size:g}, {'shared' if self.share_prefix else 'no shared'} prefix"


@dataclass(frozen=True)
class Work:
    """The work of a GPU in a step: `kind` is one of FLOPS_PER_PARAMETER, `finetune` the recipe of a finetuning and `head` what
    its model puts out: "vocabulary" or "classes".
    """

    kind: str
    num_examples: float
    num_tokens: float
    batch_size: float = 0
    finetune: FinetuneConfig | None = None
    head: str = ""

    @property
    def setting(self) -> Setting:
        """What its rate is of."""
        return Setting(self.kind, self.batch_size, None if self.finetune is None else self.finetune.share_prefix)


@dataclass(frozen=True)
class StepCost:
    """The estimate for one step.

    It takes `seconds` from start to end if it runs alone. `num_bytes` stay; `checkpoint_bytes` are there only while it runs.
    `gpu_seconds` are paid for, if it shares a lane with all the others of its kind (`lane_seconds`): `setup_s` is what a lane
    takes once, `begin_s` what goes by before a finetuning's first step, and `once_s` what its step and those that are trained
    at once with it take together. Workers that hold parts of a GPU keep `load` GPUs at work; it is None where they hold whole
    ones. `gpu_seconds` are then reckoned beside as many like it as there is room for. `work` is None for a step that
    computes nothing on a GPU, `rate` too for one whose work runs on CPUs: there is no figure for those, and only its setup
    is counted. `memory_bytes` is the least that each worker's GPU has to hold: weights and, in a finetuning, gradients and the
    optimizer's state; activations and caches are left out, and so is what GPUs have no part in.
    """

    step: Step
    work: Work | None
    rate: Rate | None
    seconds: float
    num_bytes: float
    checkpoint_bytes: float = 0
    setup_s: float = 0
    once_s: float = 0
    gpu_seconds: float = 0
    memory_bytes: float = 0
    begin_s: float = 0
    load: float | None = None

    @property
    def own_s(self) -> float:
        """What it takes of its lane's time for itself."""
        return self.seconds - self.setup_s - self.begin_s - self.once_s

    @property
    def crowding(self) -> float:
        """How much longer its work takes where others like it have the rest of the GPU."""
        return 1.0 if self.load is None else max(1.0, self.load / self.step.resources.total_gpus)


def lane_seconds(costs: Sequence[StepCost]) -> float:
    """Seconds from start to end of steps of one kind in one lane, which has as many at once as it may; of one, its `seconds`.

    Its workers start once. As a step ends, the next takes its place, the longest first: `once_s` passes for all that are there,
    until the last has ended.
    """
    own = sum(cost.own_s for cost in costs)
    places = [0.0] * min(num_at_once(costs[0].step), len(costs))
    # What goes by before a first step is the same for those that begin at once.
    for once_s in sorted((cost.begin_s + cost.once_s for cost in costs), reverse=True):
        heapq.heapreplace(places, places[0] + once_s)
    return max(cost.setup_s for cost in costs) + max(places) + own


def _with_gpu_seconds(costs: Sequence[StepCost]) -> list[StepCost]:
    """`costs` with `gpu_seconds`, shared out among the steps of a kind by their own: what one GPU at a time would take."""
    kinds: dict[Any, list[StepCost]] = {}
    for cost in costs:
        common = in_common(cost.step)
        kinds.setdefault(cost.step.fingerprint if common is None else common, []).append(cost)
    paid: dict[str, float] = {}
    for alike in kinds.values():
        setup_s, crowding = max(cost.setup_s for cost in alike), max(cost.crowding for cost in alike)
        lane_s = setup_s + crowding * (lane_seconds(alike) - setup_s)
        share = lane_s / (sum(cost.seconds for cost in alike) or 1)
        paid |= {cost.step.fingerprint: share * cost.seconds * cost.step.resources.total_gpus for cost in alike}
    return [replace(cost, gpu_seconds=paid[cost.step.fingerprint]) for cost in costs]


@dataclass(frozen=True)
class Estimate:
    """The costs of all steps of a study on one kind of GPU. `assumptions` are sentences for people."""

    gpu: Gpu
    steps: tuple[StepCost, ...]
    num_parameters: int
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """Sums over steps. Examples and tokens are counted once for each time that they are read or written."""

    num_steps: int
    num_examples: float
    num_tokens: float
    gpu_hours: float
    num_bytes: float


def total(costs: Iterable[StepCost]) -> Total:
    costs = list(costs)
    works = [cost.work for cost in costs if cost.work]
    return Total(
        len(costs),
        sum(work.num_examples for work in works),
        sum(work.num_tokens for work in works),
        sum(cost.gpu_seconds for cost in costs) / 3600,
        sum(cost.num_bytes for cost in costs),
    )


@dataclass(frozen=True)
class Replication:
    """GPU-hours by which a study grows: by `generator`, one more with its pool (0.0 where none writes), or by `seed`, one
    more with its starting points, cells and their evaluations.
    """

    generator: float
    seed: float


def replication(costs: Iterable[StepCost]) -> Replication:
    """What one more generator and one more seed cost: the means over those that there are."""
    costs = list(costs)
    of_generators = [cost for cost in costs if cost.step.stage in GENERATORS]
    of_seeds = [cost for cost in costs if "seed" in cost.step.coordinates]
    # Each with all of its generations.
    num_generators = sum(
        cost.step.stage == "synthetic_pool" and "generation" not in cost.step.coordinates for cost in of_generators
    )
    num_seeds = len({cost.step.coordinates["seed"] for cost in of_seeds})
    return Replication(
        total(of_generators).gpu_hours / max(num_generators, 1),
        total(of_seeds).gpu_hours / max(num_seeds, 1),
    )


@dataclass(frozen=True)
class EndpointCost:
    """What a model behind an endpoint would be paid for the pools of some steps: texts, tokens read and written, US dollars."""

    num_texts: float
    prompt_tokens: float
    completion_tokens: float
    dollars: float


def endpoint_costs(steps: Iterable[Step], table: CostTable) -> EndpointCost | None:
    """The estimate for those of `steps` that ask an endpoint; None if there is none. Texts that do not parse are paid for, too.

    Tokens are Llama 2's of NLI's texts; of an instruction, one for four characters.
    """
    costs = []
    for step in steps:
        config = step.config
        if not isinstance(config, GenerationConfig) or config.endpoint is None or config.prompting is None:
            continue
        num_texts = sum(config.num_by_label.values()) / table["yield"]
        asked = len(instruction(config.prompting, config.task, config.end_marker)) / 4
        # Each example is shown with the request for it, about as long again, and the last request has none.
        prompt = asked + (config.prompting.shots + 0.5) * 2 * table["tokens.generator_text"]
        read, written = num_texts * prompt, num_texts * table["tokens.generated"]
        costs.append((num_texts, read, written, config.endpoint.dollars(read, written)))
    return EndpointCost(*map(sum, zip(*costs, strict=True))) if costs else None


def rates(costs: Iterable[StepCost]) -> dict[Setting, Rate]:
    """How fast each kind of work is reckoned to be in its setting."""
    return {replace(cost.work.setting, head=cost.rate.rows[0].head): cost.rate for cost in costs if cost.work and cost.rate}


def unmeasured(costs: Iterable[StepCost], gpu: Gpu) -> str:
    """A sentence about the work whose rate was not measured on this `gpu` but reckoned from data sheets; "" if all was."""
    others = {setting.work: rate.measured_on for setting, rate in rates(costs).items() if rate.measured_on}
    if not others:
        return ""
    return (
        f"not measured on {gpu.name}, reckoned from the makers' data sheets: {', '.join(others)}, from rates of "
        f"{' and '.join(dict.fromkeys(others.values()))}"
    )


def estimate_costs(
    steps: Sequence[Step],
    table: CostTable,
    gpu: Gpu,
    *,
    settings: Mapping[str, Any] | None = None,
    task_settings: Mapping[str, Any] | None = None,
    num_examples: Mapping[str, int] | None = None,
) -> Estimate:
    """Estimate every step, built or not.

    `settings` is the base model's `config.json`, for a checkpoint, `task_settings` that of task models with a base of their
    own; `num_examples` are the counts of the prepared data by set, if it is built. Of an evaluation's rows, those count once
    that stand in two sets by what the sources say; other repeats are not known. Raises NoEstimate, with the reason, where
    nothing can be said: no step asks for a GPU, or the model's size or the data's is unknown.
    """
    if not any(step.resources.total_gpus for step in steps):
        raise NoEstimate("no step asks for a GPU, and there is no figure for CPUs")
    # The first: a judge may have a base model of its own.
    by_stage = {step.stage: step for step in reversed(steps)}
    # The last: it has the test sets that only evaluations read.
    sources, base_model = [step for step in steps if step.stage == "sources"][-1], by_stage["base_model"]
    assumptions = []
    if num_examples is None:
        num_examples, is_exact = _expected_counts(sources)
        if not is_exact:
            assumptions.append(f"{num_examples['train']:,} training rows, the most there can be: the data is not prepared yet")
    shape = _shape(base_model, settings)
    shapes = {base_model.fingerprint: shape}
    task_base = by_stage["starting_point"].inputs["base_model"]
    if task_base.fingerprint not in shapes:
        shapes[task_base.fingerprint] = _shape(task_base, task_settings)
    estimator = _Estimator(table, gpu, shape, shapes, num_examples, sources.config.made_of)
    costs = tuple(_with_gpu_seconds([estimator.cost(step) for step in steps]))
    if any(isinstance(step.config, GenerationConfig) and step.config.prompting and not step.config.endpoint for step in steps):
        assumptions.append("the prompted model is reckoned at the base model's size, and reading its prompts at no time")
    if num_on_cpus := sum(cost.work is not None and cost.rate is None for cost in costs):
        assumptions.append(f"{num_on_cpus:,} steps compute on CPUs, for which there is no figure: only their setup is counted")
    return Estimate(gpu, costs, shape.num_parameters, tuple(assumptions))


def _shape(base_model: Step, settings: Mapping[str, Any] | None) -> ModelShape:
    if isinstance(base_model.config, ScratchModelConfig):
        return ModelShape.of_scratch(base_model.config)
    if settings is None:
        raise NoEstimate("the base model's config.json is not at hand, so its size is unknown")
    try:
        return ModelShape.of_settings(settings)
    except UserError as error:
        raise NoEstimate(str(error)) from error


def _expected_counts(sources: Step) -> tuple[dict[str, int], bool]:
    """Examples by set of data that is not prepared yet, and whether that is known and not only the most that there can be.

    Raises NoEstimate where it is not here.
    """
    try:
        counts = sources.config.counts(sources.options.get("folder", ""))
    except UserError as error:
        raise NoEstimate(f"how many examples there are is unknown before they are built ({error})") from error
    sets = {name.removesuffix("/num_examples"): count for name, count in counts.items() if name.endswith("/num_examples")}
    return sets, any(name.startswith("train/") and name != "train/num_examples" for name in counts)


def option_of_fp8(step: Step) -> str:
    """The option that has a step's model computed in FP8; "" where none does. A 4-bit base computes as the numbers it has."""
    if isinstance(step.config, GenerationConfig):
        return "generation_precision" if step.config.quantization == FP8 else ""
    base = step.inputs.get("base_model")
    return "base_precision" if base is not None and getattr(base.config, "quantization", "none") == FP8 else ""


class _Estimator:
    def __init__(
        self,
        table: CostTable,
        gpu: Gpu,
        shape: ModelShape,
        shapes: Mapping[str, ModelShape],
        num_examples: Mapping[str, int],
        made_of: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.table, self.gpu, self.num_examples, self.made_of = table, gpu, num_examples, made_of
        self._shape, self._shapes = shape, shapes

    def shape(self, step: Step) -> ModelShape:
        """The shape of a step's model: of the base that it is or stands on, or else of the generators'."""
        return self._shapes.get(step.inputs.get("base_model", step).fingerprint, self._shape)

    def cost(self, step: Step) -> StepCost:
        work, resources = self.work(step), step.resources
        num_parameters = self.shape(step).num_parameters
        if work is None:
            seconds = self.table.constant(f"seconds.{step.stage}", num_parameters)
            return StepCost(step, None, None, seconds, self.num_bytes(step), load=0.0 if _in_parts(resources) else None)
        rate = load = None
        work_s = 0.0
        if num_gpus := resources.total_gpus:
            precision = FP8 if option_of_fp8(step) else BFLOAT16
            share = work.setting.share_prefix is not False
            rate = self.table.rate(work.kind, work.batch_size, self.gpu, num_parameters, precision, share, work.head)
            # A worker with a part of a GPU computes on all of it that the others leave.
            work_s = work.num_tokens / rate.tokens_per_s / (resources.num_workers if _in_parts(resources) else num_gpus)
            load = rate.load * resources.num_workers if _in_parts(resources) else None
        setup_s = self.table.constant(f"setup.{work.kind.split('_')[0]}", num_parameters)
        begin_s = self.table.constant(f"begin.{work.kind}", num_parameters) if work.finetune and num_gpus else 0.0
        # LoRA's are trained at once by one worker, and all else in a lane is done one after another.
        is_together = resources.num_workers == 1 and in_common(step) is not None
        is_together = is_together and REGISTRY[step.stage].is_together(step.config)
        once_s = rate.shared * work_s if rate and is_together else 0.0
        return StepCost(
            step,
            work,
            rate,
            setup_s + begin_s + work_s,
            self.num_bytes(step),
            self.checkpoint_bytes(step, work),
            setup_s,
            once_s,
            memory_bytes=self.memory_bytes(step, work) if num_gpus else 0,
            begin_s=begin_s,
            load=load,
        )

    def work(self, step: Step) -> Work | None:
        config, table = step.config, self.table
        match config:
            case GeneratorConfig():
                return self._finetuning(step, config.finetune, self._num_read_by(step), table["tokens.generator_text"])
            case TaskModelConfig():
                return self._finetuning(step, config.finetune, _num_trained_on(step), table["tokens.classifier"])
            case ScratchModelConfig() if config.pretraining is not None:
                num_examples = min(config.pretraining_examples or math.inf, self.num_examples["train"])
                return self._finetuning(step, config.pretraining, num_examples, table["tokens.plain"])
            # An endpoint's work is no GPU of ours: `endpoint_costs`.
            case GenerationConfig() if config.endpoint is None:
                num_texts = sum(config.num_by_label.values()) / table["yield"]
                not_written = table["tokens.marker_rest"] if config.stop_early else 0
                return Work("generate", num_texts, num_texts * (table["tokens.generated"] - not_written))
            case EvaluationConfig():
                counts = self._num_computed(step)
                tokens = {name: table["tokens.classifier_hans" if name == "hans" else "tokens.classifier"] for name in counts}
                return Work("evaluate", sum(counts.values()), sum(counts[name] * tokens[name] for name in counts))
            case _:
                return None

    def _finetuning(self, step: Step, finetune: FinetuneConfig, num_examples: float, tokens_per_example: float) -> Work:
        num_examples *= finetune.epochs
        batch_size = finetune.batch_size / step.resources.num_workers
        head = "classes" if step.stage in CLASSIFIERS else "vocabulary"
        return Work(f"finetune_{finetune.method}", num_examples, num_examples * tokens_per_example, batch_size, finetune, head)

    def _num_read_by(self, step: Step) -> int:
        """Examples that a generator is trained on: the original ones, and in later generations earlier pools."""
        pools = [source.config for source in step.inputs.values() if isinstance(source.config, GenerationConfig)]
        original = self.num_examples["train"] if "sources" in step.inputs else 0
        return original + sum(sum(config.num_by_label.values()) for config in pools)

    def _num_classified(self, step: Step) -> dict[str, int]:
        """Examples that an evaluation or a judgement reads, by set."""
        counts = {name: self._num_evaluated(name) for name in step.config.sets}
        if isinstance(step.config, JudgementConfig):
            counts["pool"] = _num_in_pool(step.inputs["pool"].config)
        return counts

    def _num_computed(self, step: Step) -> dict[str, int]:
        """Examples that an evaluation or a judgement computes, by set: one that stands in two sets is computed once."""
        counts = self._num_classified(step)
        repeated = {name: sum(counts.get(other, 0) for other in self.made_of.get(name, ())) for name in counts}
        return {name: max(count - repeated[name], 0) for name, count in counts.items()}

    def _num_evaluated(self, name: str) -> int:
        if name not in self.num_examples:
            raise NoEstimate(f"how many examples the set {name!r} has is unknown before it is built")
        return self.num_examples[name]

    def num_bytes(self, step: Step) -> float:
        """Bytes of the step's artifact on disk."""
        config, table = step.config, self.table
        match config:
            case PretrainedModelConfig():
                return self.shape(step).num_parameters * BYTES_PER_NUMBER[config.dtype]
            case ScratchModelConfig():
                return self.shape(step).num_parameters * BYTES_PER_NUMBER["float32"]
            case GeneratorConfig():
                return self.shape(step).num_parameters * BYTES_PER_NUMBER[config.finetune.dtype]
            case GenerationConfig() | OwnPoolConfig():
                return _num_in_pool(config) * table["bytes.pool"]
            case TrainingSetConfig():
                return num_drawn(config) * table["bytes.examples"]
            case UntrainedConfig() | TaskModelConfig():
                return self._task_model_bytes(step)
            case EvaluationConfig():
                return sum(self._num_classified(step).values()) * table["bytes.logits"]
            case _:
                return sum(self.num_examples.values()) * table["bytes.examples"]

    def _task_model_bytes(self, step: Step) -> float:
        head = len(step.config.task.labels) * self.shape(step).hidden_size * BYTES_PER_NUMBER["float32"]
        if isinstance(step.config, UntrainedConfig):
            return head
        finetune = step.config.finetune
        size = BYTES_PER_NUMBER[finetune.dtype]
        weights = self.shape(step).num_body_parameters * size
        if finetune.method == "full":
            return head + weights
        # An adapter on a fully finetuned starting point is kept with those weights.
        start = step.inputs["starting_point"].config
        has_weights = isinstance(start, TaskModelConfig) and start.finetune.method == "full"
        trained = self._num_trained(step, finetune)
        # A trunk keeps what its branches begin from: one state for each smaller set.
        states = 0 if "trunk" in step.inputs else len(step.config.nested_sizes) * trained * STATE_BYTES
        return head + trained * size + states + (weights if has_weights else 0)

    def _num_trained(self, step: Step, finetune: FinetuneConfig) -> int:
        if finetune.method == "full":
            return self.shape(step).num_parameters
        adapter = self.shape(step).num_lora_parameters(finetune.lora_rank, finetune.lora_targets)
        if not finetune.train_embeddings or isinstance(step.config, TaskModelConfig):
            return adapter
        return adapter + self.shape(step).num_embedding_parameters * (1 if self.shape(step).is_tied else 2)

    def memory_bytes(self, step: Step, work: Work) -> float:
        """The least bytes on a worker's GPU; ZeRO shares out the optimizer's state from stage 1 on, gradients from 2, weights
        at 3.
        """
        shape, finetune = self.shape(step), work.finetune
        # A task model has no language-model head.
        num_weights = shape.num_body_parameters if step.stage in CLASSIFIERS else shape.num_parameters
        if finetune is None:
            return num_weights * BYTES_PER_NUMBER[step.config.dtype]
        size, trained = BYTES_PER_NUMBER[finetune.dtype], self._num_trained(step, finetune)
        if finetune.method == "full":
            trained = num_weights
        else:
            num_weights += self.shape(step).num_lora_parameters(finetune.lora_rank, finetune.lora_targets)
        state = STATE_BYTES if finetune.dtype != "float32" else MOMENTS_BYTES
        if finetune.method == "lora" and finetune.dtype != "float32":
            state = GROUPED_STATE_BYTES
        share = [step.resources.num_workers if finetune.zero_stage >= stage else 1 for stage in (1, 2, 3)]
        return trained * state / share[0] + trained * size / share[1] + num_weights * size / share[2]

    def checkpoint_bytes(self, step: Step, work: Work) -> float:
        """Bytes of checkpoints, 0 for a finetuning too short to write any: what is trained, and the optimizer's state.

        They are there twice, because a new one is written before the old one goes."""
        finetune = work.finetune
        if finetune is None or not 0 < finetune.checkpoint_every < work.num_examples / finetune.batch_size:
            return 0
        return 2 * self._num_trained(step, finetune) * (BYTES_PER_NUMBER[finetune.dtype] + STATE_BYTES)


def _in_parts(resources: Resources) -> bool:
    """Whether its workers hold parts of GPUs, on which others compute as well."""
    return 0 < resources.gpus_per_worker < 1


def _num_in_pool(config: GenerationConfig | OwnPoolConfig) -> int:
    if isinstance(config, OwnPoolConfig) and not config.is_known:
        raise NoEstimate(f"how many examples {config.table.path} has is unknown before it is there")
    return sum(config.num_by_label.values())


def _num_trained_on(step: Step) -> int:
    """Examples of one epoch that a task model is trained on by its own step; for a branch, those of its cool-down."""
    config, size = step.config, num_drawn(step.inputs["training_set"].config)
    if "trunk" not in step.inputs:
        return size
    sizes = (*config.nested_sizes, size)
    ends = nested_ends(sizes, config.finetune.batch_size)
    branch = cooldown_start(ends[-1], config.finetune)
    seen = 0
    for (smaller, larger), begin in zip(pairwise((0, *sizes)), (0, *ends), strict=False):
        seen += min(larger - smaller, max(0, branch - begin) * config.finetune.batch_size)
    return size - seen
