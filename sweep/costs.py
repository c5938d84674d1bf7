"""What the steps of a study would cost: GPU-time, money, tokens and disk, estimated from a table of figures. Pure.

    table = read_table()
    estimate = estimate_costs(build_grid(experiment), table, gpu="h200")
    total(estimate.steps).gpu_hours

A step's work (examples, tokens) follows from its config and its inputs'; its time from the nearest row of
`throughputs.toml`, scaled where no row fits. Nothing is measured, started or looked up here.
"""

import functools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.base_model import PretrainedModelConfig, ScratchModelConfig
from pipelines.errors import UserError
from pipelines.evaluation import EvaluationConfig
from pipelines.examples import LABELS
from pipelines.finetuning import FinetuneConfig, cooldown_start, nested_ends
from pipelines.generation import GenerationConfig
from pipelines.generator import GeneratorConfig
from pipelines.sources import NLISourcesConfig
from pipelines.task_model import TaskModelConfig, UntrainedConfig
from pipelines.template_corpus import TemplateCorpusConfig
from pipelines.training_set import TrainingSetConfig, num_drawn
from sweep.grid import Step
from sweep.model_shape import ModelShape
from sweep.scheduler import in_common

TABLE_FILE = Path(__file__).with_name("throughputs.toml")
FLOPS_PER_PARAMETER = {"finetune_full": 6, "finetune_lora": 4, "generate": 2, "evaluate": 2}
"""Floating-point operations for a token and a parameter: 2 forward, 2 for the gradient of what flows back, 2 for that of
the weights, which an adapter hardly has."""
BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2}
STATE_BYTES = 12
"""For a trained parameter, of the optimizer's fp32 master copy and two moments."""
MULTINLI_LABELLED, MULTINLI_COPIES = 392_702, 230
"""Labelled rows of MultiNLI's training set, and those of them that are copies of a pair."""
MULTINLI_MATCHED, MULTINLI_MISMATCHED = 9_815, 9_832


class NoEstimate(UserError):
    """Why nothing can be said about a study's costs; everything else about it can."""


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 peak, memory bandwidth, and the price in US dollars of one hour of one GPU, on demand and spot."""

    name: str
    bf16_tflops: float
    memory_tb_per_s: float
    price: float
    spot_price: float
    source: str


@dataclass(frozen=True)
class Throughput:
    """Examples a second of one whole GPU; `batch_size` is its part of an optimizer step, 0 where there is none.

    Of `together` models that are finetuned at once, each with its own batch, the examples of all are counted.
    """

    gpu: str
    work: str
    model: str
    parameters: int
    examples_per_s: float
    tokens_per_example: float
    source: str
    batch_size: int = 0
    together: int = 1


@dataclass(frozen=True)
class Constant:
    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class CostTable:
    """The figures that estimates are made from. Every row has its source."""

    gpus: Mapping[str, Gpu]
    throughputs: tuple[Throughput, ...]
    constants: Mapping[str, Constant]

    def __getitem__(self, constant: str) -> float:
        if constant not in self.constants:
            raise NoEstimate(f"{TABLE_FILE} has no constant {constant!r}; add its row")
        return self.constants[constant].value

    def gpu(self, name: str, *, price: float | None = None, spot_price: float | None = None) -> Gpu:
        """The GPU called `name`, at other prices if given. Raises UserError for an unknown one or a price below 0."""
        if name not in self.gpus:
            raise UserError(
                f"gpu={name!r} has no row; there are {', '.join(self.gpus)}: choose one, or add its row to {TABLE_FILE}"
            )
        listed = self.gpus[name]
        given = replace(
            listed,
            price=listed.price if price is None else price,
            spot_price=listed.spot_price if spot_price is None else spot_price,
        )
        for field in ("price", "spot_price"):
            value = getattr(given, field)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{field}={value}: it is dollars for one hour of one GPU; give 0 or more")
        return given

    def rate(self, work: str, batch_size: float, gpu: Gpu, num_parameters: int) -> "Rate":
        """How fast one whole `gpu` does `work` on a model of `num_parameters`, `batch_size` examples an optimizer step.

        From the rows of the nearest number of parameters, of the same GPU if it has any. Between two batch
        sizes, the seconds of a step are interpolated; below the smallest a step takes as long as at the
        smallest, above the largest an example takes as long as at the largest.
        """
        alone = [row for row in self.throughputs if row.together == 1]
        rows = [row for row in alone if row.work == work]
        if not rows:
            rows = [row for row in alone if row.work.split("_")[0] == work.split("_")[0]]
        if not rows:
            raise NoEstimate(f"no row of {TABLE_FILE} tells how fast {work!r} is; add one")

        def distance(row: Throughput) -> tuple[float, bool]:
            return abs(math.log(row.parameters / num_parameters)), row.gpu != gpu.name

        nearest = min(rows, key=distance)
        rows = sorted((row for row in rows if distance(row) == distance(nearest)), key=lambda row: row.batch_size)
        tokens_per_s, used = _at_batch_size(rows, batch_size)
        row, notes = used[0], []
        several = [
            one for one in self.throughputs if one.together > 1 and one.work == row.work and distance(one) == distance(row)
        ]
        shared = 0.0
        if several:
            nearest_batch = min(several, key=lambda one: abs(one.batch_size - batch_size))
            step_s = batch_size * row.tokens_per_example / tokens_per_s
            shared = min(1.0, _shared_seconds(rows, nearest_batch) / step_s)
            used = [*used, nearest_batch]
        if sum(one.together == 1 for one in used) > 1:
            notes.append(f"interpolated to batch {batch_size:g}")
        if row.gpu != gpu.name:
            theirs = self.gpus[row.gpu]
            if work == "generate":
                tokens_per_s *= gpu.memory_tb_per_s / theirs.memory_tb_per_s
                notes.append(f"scaled from {row.gpu} by memory bandwidth")
            else:
                tokens_per_s *= gpu.bf16_tflops / theirs.bf16_tflops
                notes.append(f"scaled from {row.gpu} by bf16 peak")
        if row.parameters != num_parameters or row.work != work:
            tokens_per_s *= FLOPS_PER_PARAMETER[row.work] * row.parameters / (FLOPS_PER_PARAMETER[work] * num_parameters)
            what = row.work if row.work != work else row.model
            notes.append(f"scaled from {what} ({row.parameters / 1e6:,.0f} M parameters) by operations a token")
        return Rate(tokens_per_s, tuple(used), "; ".join(notes), shared)


def _at_batch_size(rows: Sequence[Throughput], batch_size: float) -> tuple[float, list[Throughput]]:
    """Tokens a second from rows of one model on one GPU, in the order of their batch sizes; and the rows used."""
    below = [row for row in rows if row.batch_size <= batch_size]
    above = [row for row in rows if row.batch_size > batch_size]
    if not above:
        return below[-1].examples_per_s * below[-1].tokens_per_example, below[-1:]
    upper = above[0]
    slow_step = upper.batch_size / upper.examples_per_s
    if not below:
        return batch_size / slow_step * upper.tokens_per_example, [upper]
    lower = below[-1]
    if lower.batch_size == batch_size:
        return lower.examples_per_s * lower.tokens_per_example, [lower]
    share = (batch_size - lower.batch_size) / (upper.batch_size - lower.batch_size)
    quick_step = lower.batch_size / lower.examples_per_s
    seconds = quick_step + share * (slow_step - quick_step)
    return batch_size / seconds * lower.tokens_per_example, [lower, upper]


def _shared_seconds(rows: Sequence[Throughput], several: Throughput) -> float:
    """Seconds of an optimizer step that models finetuned at once pay once: a pass takes so much and the same for each model.

    From a step of one model, by its `rows`, and one of `several`, at the batch size of these; at least 0.
    """
    tokens_per_s, used = _at_batch_size(rows, several.batch_size)
    one_s = several.batch_size * used[0].tokens_per_example / tokens_per_s
    all_s = several.together * several.batch_size / several.examples_per_s
    return max(0.0, one_s - (all_s - one_s) / (several.together - 1))


@dataclass(frozen=True)
class Rate:
    """Tokens a second of one GPU, the rows it comes from, and how they were scaled ("" if they fit as they are).

    `shared` is the part of that time, from 0 to 1, that models which are finetuned at once take once and not each.
    """

    tokens_per_s: float
    rows: tuple[Throughput, ...]
    scaled: str
    shared: float = 0.0


@functools.cache
def read_table(path: Path = TABLE_FILE) -> CostTable:
    """Read the table. Raises UserError for two rows of the same thing: which one counts would be chance."""
    content = tomllib.loads(path.read_text())
    gpus = [Gpu(**row) for row in content["gpu"]]
    constants = [Constant(**row) for row in content["constant"]]
    throughputs = [Throughput(**row) for row in content["throughput"]]
    keys = [gpu.name for gpu in gpus] + [constant.name for constant in constants]
    keys += [f"{row.gpu}, {row.work}, {row.model}, batch {row.batch_size}, {row.together} together" for row in throughputs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"{path} has two rows of {'; '.join(twice)}: keep one of each")
    return CostTable({gpu.name: gpu for gpu in gpus}, tuple(throughputs), {constant.name: constant for constant in constants})


@dataclass(frozen=True)
class Work:
    """What a GPU computes in a step: `kind` is one of FLOPS_PER_PARAMETER."""

    kind: str
    num_examples: float
    num_tokens: float
    batch_size: float = 0


@dataclass(frozen=True)
class StepCost:
    """The estimate for one step. `seconds` from its start to its end if it runs alone; `gpu_seconds` are paid for, if it shares
    workers with as many others as it may.

    Of `seconds`, those who share workers take the longest `setup_s` and the longest `once_s` once (`group_seconds`).
    `num_bytes` stay; `checkpoint_bytes` are there only while it runs. `work` is None for a step that computes
    nothing on a GPU, `rate` too for one whose work runs on CPUs: there is no figure for those, and only its
    setup is counted.
    """

    step: Step
    work: Work | None
    rate: Rate | None
    seconds: float
    gpu_seconds: float
    num_bytes: float
    checkpoint_bytes: float = 0
    setup_s: float = 0
    once_s: float = 0


def group_seconds(costs: Sequence[StepCost]) -> float:
    """From start to end of steps that the same workers take on together; of one, its `seconds`."""
    own = sum(one.seconds - one.setup_s - one.once_s for one in costs)
    return max(one.setup_s for one in costs) + max(one.once_s for one in costs) + own


def _shared_costs(costs: Sequence[StepCost]) -> list[StepCost]:
    """`costs` with `gpu_seconds` shared out in the largest groups that there can be: what one GPU at a time would take."""
    groups: dict[Any, list[StepCost]] = {}
    for one in sorted(costs, key=lambda one: -one.seconds):
        common = in_common(one.step)
        groups.setdefault(one.step.fingerprint if common is None else common, []).append(one)
    paid: dict[str, float] = {}
    for alike in groups.values():
        most = alike[0].step.resources.max_group
        for members in (alike[first : first + most] for first in range(0, len(alike), most)):
            each = group_seconds(members) / (sum(one.seconds for one in members) or 1)
            paid |= {one.step.fingerprint: each * one.seconds * one.step.resources.total_gpus for one in members}
    return [replace(one, gpu_seconds=paid[one.step.fingerprint]) for one in costs]


@dataclass(frozen=True)
class Estimate:
    """What all steps of a study would cost on one kind of GPU. `assumptions` are sentences for people."""

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
    work = [one.work for one in costs if one.work]
    return Total(
        len(costs),
        sum(one.num_examples for one in work),
        sum(one.num_tokens for one in work),
        sum(one.gpu_seconds for one in costs) / 3600,
        sum(one.num_bytes for one in costs),
    )


def rates(costs: Iterable[StepCost]) -> dict[tuple[str, float], Rate]:
    """(kind of work, batch size on one GPU) → how fast it is reckoned to be."""
    return {(one.work.kind, one.work.batch_size): one.rate for one in costs if one.work and one.rate}


def estimate_costs(
    steps: Sequence[Step],
    table: CostTable,
    gpu: Gpu,
    *,
    settings: Mapping[str, Any] | None = None,
    num_examples: Mapping[str, int] | None = None,
) -> Estimate:
    """Estimate every step, built or not.

    `settings` is the base model's `config.json`, for a checkpoint; `num_examples` are the counts of the
    prepared data by set, if it is built. Raises NoEstimate, with the reason, where nothing can be said: no
    step asks for a GPU, or the model's size or the data's is unknown.
    """
    if not any(step.resources.total_gpus for step in steps):
        raise NoEstimate("no step asks for a GPU, and there is no figure for CPUs")
    by_stage = {step.stage: step for step in steps}
    sources, base_model = by_stage["sources"], by_stage["base_model"]
    assumptions = []
    if num_examples is None:
        num_examples = known_counts(sources.config)
        if isinstance(sources.config, NLISourcesConfig):
            assumptions.append(f"{num_examples['train']:,} training rows, all of MultiNLI: the data is not prepared yet")
    shape = ModelShape.of_scratch(base_model.config) if isinstance(base_model.config, ScratchModelConfig) else None
    if shape is None:
        if settings is None:
            raise NoEstimate("the base model's config.json is not at hand, so its size is unknown")
        try:
            shape = ModelShape.of_settings(settings)
        except UserError as error:
            raise NoEstimate(str(error)) from error
    estimator = _Estimator(table, gpu, shape, num_examples)
    costs = tuple(_shared_costs([estimator.cost(step) for step in steps]))
    if num_on_cpus := sum(one.work is not None and one.rate is None for one in costs):
        assumptions.append(f"{num_on_cpus} steps compute on CPUs, for which there is no figure: only their setup is counted")
    return Estimate(gpu, costs, shape.num_parameters, tuple(assumptions))


def known_counts(config: Any) -> Mapping[str, int]:
    """Examples by set of data that is not prepared yet. Raises NoEstimate for a kind of data that is not known here.

    MultiNLI and HANS are taken to be complete, which is the most that they can be.
    """
    match config:
        case NLISourcesConfig():
            num_dev = config.dev_rows_per_label * len(LABELS)
            return {
                "train": MULTINLI_LABELLED - MULTINLI_COPIES - num_dev,
                "dev": num_dev,
                "mnli_matched": MULTINLI_MATCHED,
                "mnli_mismatched": MULTINLI_MISMATCHED,
                "hans": config.hans_rows,
            }
        case TemplateCorpusConfig():
            return {
                "train": config.num_train,
                "dev": config.num_dev,
                "template_test": config.num_test,
                "template_probe": 6 * config.num_probe_per_group,
            }
        case _:
            raise NoEstimate(f"how many examples {type(config).__name__} gives is unknown before it is built")


class _Estimator:
    def __init__(self, table: CostTable, gpu: Gpu, shape: ModelShape, num_examples: Mapping[str, int]) -> None:
        self.table, self.gpu, self.shape, self.num_examples = table, gpu, shape, num_examples

    def cost(self, step: Step) -> StepCost:
        work, num_gpus = self.work(step), step.resources.total_gpus
        if work is None:
            seconds = self.table[f"seconds.{step.stage}"]
            return StepCost(step, None, None, seconds, seconds * num_gpus, self.num_bytes(step))
        rate = self.table.rate(work.kind, work.batch_size, self.gpu, self.shape.num_parameters) if num_gpus else None
        setup_s = self.table[f"setup.{work.kind.split('_')[0]}"]
        work_s = work.num_tokens / rate.tokens_per_s / num_gpus if rate else 0.0
        finetune = finetuning_of(step.config)
        # One worker trains several at once; what several workers take on, they train one after another.
        once_s = rate.shared * work_s if rate and step.resources.num_workers == 1 and in_common(step) is not None else 0.0
        return StepCost(
            step,
            work,
            rate,
            setup_s + work_s,
            (setup_s + work_s) * num_gpus,
            self.num_bytes(step),
            self.checkpoint_bytes(step, finetune, work) if finetune else 0,
            setup_s,
            once_s,
        )

    def work(self, step: Step) -> Work | None:
        config, table = step.config, self.table
        match config:
            case GeneratorConfig():
                return self._finetuning(step, self.num_examples["train"], table["tokens.generator_text"])
            case TaskModelConfig():
                return self._finetuning(step, num_trained(step), table["tokens.classifier"])
            case ScratchModelConfig() if config.pretraining is not None:
                num_examples = min(config.pretraining_examples or math.inf, self.num_examples["train"])
                return self._finetuning(step, num_examples, table["tokens.plain"])
            case GenerationConfig():
                num_texts = num_parsed(config) / table["yield"]
                not_written = table["tokens.marker_rest"] if config.stop_early else 0
                return Work("generate", num_texts, num_texts * (table["tokens.generated"] - not_written))
            case EvaluationConfig():
                counts = {name: self._num_evaluated(name) for name in config.sets}
                tokens = {name: table["tokens.classifier_hans" if name == "hans" else "tokens.classifier"] for name in counts}
                return Work("evaluate", sum(counts.values()), sum(counts[name] * tokens[name] for name in counts))
            case _:
                return None

    def _finetuning(self, step: Step, num_examples: float, tokens_per_example: float) -> Work:
        finetune = finetuning_of(step.config)
        assert finetune is not None, f"{step.name} is not a finetuning"
        num_examples *= finetune.epochs
        batch_size = finetune.batch_size / step.resources.num_workers
        return Work(f"finetune_{finetune.method}", num_examples, num_examples * tokens_per_example, batch_size)

    def _num_evaluated(self, name: str) -> int:
        if name not in self.num_examples:
            raise NoEstimate(f"how many examples the set {name!r} has is unknown before it is built")
        return self.num_examples[name]

    def num_bytes(self, step: Step) -> float:
        """What the step's artifact takes on disk."""
        config, table = step.config, self.table
        match config:
            case PretrainedModelConfig():
                return self.shape.num_parameters * BYTES_PER_NUMBER[config.dtype]
            case ScratchModelConfig():
                return self.shape.num_parameters * BYTES_PER_NUMBER["float32"]
            case GeneratorConfig():
                return self.shape.num_parameters * BYTES_PER_NUMBER[config.finetune.dtype]
            case GenerationConfig():
                return num_parsed(config) * table["bytes.pool"]
            case TrainingSetConfig():
                return num_drawn(config) * table["bytes.examples"]
            case UntrainedConfig() | TaskModelConfig():
                return self._task_model_bytes(step)
            case EvaluationConfig():
                return sum(self._num_evaluated(name) for name in config.sets) * table["bytes.logits"]
            case _:
                return sum(self.num_examples.values()) * table["bytes.examples"]

    def _task_model_bytes(self, step: Step) -> float:
        head = len(LABELS) * self.shape.hidden_size * BYTES_PER_NUMBER["float32"]
        if isinstance(step.config, UntrainedConfig):
            return head
        finetune = step.config.finetune
        size = BYTES_PER_NUMBER[finetune.dtype]
        weights = self.shape.num_body_parameters * size
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
            return self.shape.num_parameters
        adapter = self.shape.num_lora_parameters(finetune.lora_rank, finetune.lora_targets)
        if not finetune.train_embeddings or isinstance(step.config, TaskModelConfig):
            return adapter
        return adapter + self.shape.num_embedding_parameters * (1 if self.shape.is_tied else 2)

    def checkpoint_bytes(self, step: Step, finetune: FinetuneConfig, work: Work) -> float:
        """Of the checkpoints of a finetuning that is long enough to write any: what is trained, and the optimizer's
        fp32 master copy and two moments; twice, because a new one is written before the old one goes."""
        if not 0 < finetune.checkpoint_every < work.num_examples / finetune.batch_size:
            return 0
        return 2 * self._num_trained(step, finetune) * (BYTES_PER_NUMBER[finetune.dtype] + STATE_BYTES)


def num_trained(step: Step) -> int:
    """Examples of one epoch that a task model is trained on by its own step: of a branch, those of its cool-down."""
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


def finetuning_of(config: Any) -> FinetuneConfig | None:
    """How a step finetunes; None for one that does not."""
    match config:
        case GeneratorConfig() | TaskModelConfig():
            return config.finetune
        case ScratchModelConfig():
            return config.pretraining
        case _:
            return None


def num_parsed(config: GenerationConfig) -> int:
    """Examples that the pool is asked to have, over all labels."""
    wanted = config.num_per_label
    return wanted * len(LABELS) if isinstance(wanted, int) else sum(wanted)
