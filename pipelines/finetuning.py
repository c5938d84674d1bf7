"""The finetuning engine that the generator and the task models share: Ray Train runs it, DeepSpeed steps it.

    finetune(job, output="...", resources=Resources(num_workers=2, gpus_per_worker=1), report=no_report)

Batches carry no padding (`packing.py`), adapters are peft's, ZeRO 0 to 3 is a setting that changes where the weights lie and
not what is computed, and an interrupted run goes on from its last checkpoint when it is started again with the same output.

Models of nested training sets can share one trajectory: a *trunk* goes through the largest set, whose rows begin with those of
the smaller ones (`training_set.py`), at a constant learning rate after warm-up. The model of a smaller set is a *branch*: it
leaves the trunk where the last `cooldown_ratio` of its own steps begin and takes these with a falling learning rate. So it has
seen exactly its own set, each example once, and only its cool-down is computed for it alone. The trunk ends with a cool-down of
its own: it is the model of the largest set (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv
2405.18392).
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import NeighbourFailedError, UserError, portable
from pipelines.examples import Label, read_examples
from pipelines.identity import added, runtime
from pipelines.packing import (
    Prefix,
    class_targets,
    common_prefix_length,
    microbatches,
    next_token_targets,
    pack,
    packed_size,
    shape_for,
    training_order,
)
from pipelines.prompts import classifier_prompts, generator_texts, plain_texts
from pipelines.resources import Report, Resources
from pipelines.storage import fetch, is_local, join, publish, read_text, remove, write_text

if TYPE_CHECKING:
    import torch

    from pipelines.adapters import Adapters
    from pipelines.attention import PackedInput

METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = ".checkpoints"
RESULT_FILE = ".result.json"
"""Of a member of a group that has ended while the others have not."""
RAY_TRAIN = ".ray_train"
LATEST = "latest.json"
STATES = "states"
"""Of a trunk: what its branches begin from, a folder a step."""
WARMUP_STABLE_DECAY = "warmup_stable_decay"
DEEPSPEED, TOGETHER = "deepspeed", "together"
"""The engines that step a job: DeepSpeed alone, or `together.py` several at once."""
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FinetuneConfig:
    """How a model is finetuned. The defaults are the recipe of the paper's released scripts, without their 4-bit base.

    `batch_size` counts the examples of one optimizer step over all workers; `epochs` may be a fraction. `share_prefix` computes
    once a batch what texts begin with alike: all prompts of T, those of one label of G (exact, except that its examples then
    share that part's dropout mask).
    With `group_by_length`, a batch holds examples of similar length, as transformers' Trainer groups them.
    Schedule "warmup_stable_decay" keeps the learning rate until the last `cooldown_ratio` of the steps, in which it falls to 0.
    `max_length` is in tokens, None for the model's own limit; a longer example is an error, never cut. On a GPU, runs of at
    least `compile_from_steps` optimizer steps (passes, of jobs that are finetuned at once) compile their decoder layers first
    (0: never), which takes a while to repay.
    `rehearse_steps` above 0 makes it a rehearsal: only so many steps, on the longest examples, which need most memory.
    """

    method: str = "lora"
    learning_rate: float = 2e-5
    epochs: float = 1.0
    batch_size: int = 2
    schedule: str = "cosine"
    warmup_ratio: float = 0.3
    weight_decay: float = 0.001
    max_grad_norm: float = 0.3
    dtype: str = "bfloat16"
    lora_rank: int = 64
    lora_alpha: float = 16
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = LLAMA_PROJECTIONS
    train_embeddings: bool = False
    share_prefix: bool = True
    group_by_length: bool = False
    max_length: int | None = None
    rehearse_steps: int = 0
    cooldown_ratio: float = added(0.0)
    zero_stage: int = runtime(1)
    gradient_checkpointing: bool = runtime(False)
    tokens_per_microbatch: int = runtime(16_384)
    compile_from_steps: int = runtime(10_000)
    log_every: int = runtime(10)
    checkpoint_every: int = runtime(1_000)

    def __post_init__(self) -> None:
        _one_of("method", self.method, ("lora", "full"))
        _one_of("schedule", self.schedule, ("cosine", "linear", "constant", WARMUP_STABLE_DECAY))
        _one_of("dtype", self.dtype, ("bfloat16", "float32"))
        _one_of("zero_stage", self.zero_stage, (0, 1, 2, 3))
        for name in (
            "learning_rate",
            "epochs",
            "batch_size",
            "lora_rank",
            "tokens_per_microbatch",
            "log_every",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"warmup_ratio={self.warmup_ratio} must be at least 0 and below 1")
        if (self.schedule == WARMUP_STABLE_DECAY) != (self.cooldown_ratio != 0):
            raise UserError(
                f"cooldown_ratio={self.cooldown_ratio} with schedule={self.schedule!r}: it is above 0 for "
                f"{WARMUP_STABLE_DECAY!r} and 0 for any other; give both or neither"
            )
        if not 0 <= self.cooldown_ratio <= 1 - self.warmup_ratio:
            raise UserError(
                f"cooldown_ratio={self.cooldown_ratio} with warmup_ratio={self.warmup_ratio}: they are parts of one run; give "
                "at least 0, and at most what the warm-up leaves"
            )


def _one_of(name: str, value: Any, valid: tuple[Any, ...]) -> None:
    if value not in valid:
        raise UserError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")


@dataclass(frozen=True)
class FinetuneJob:
    """One finetuning: what is learnt from which examples, from which weights, and how the result is saved.

    `objective` is "classification" (3-way, read from the last token; `starting_point` gives head and adapter or weights) or
    "language_modeling" (`text` names what is written for each example: "generator" or "plain").
    `save(folder, tensors, base_model)` runs on the first worker only, with every trained tensor on the CPU.
    """

    objective: str
    config: FinetuneConfig
    seed: int
    examples: str
    base_model: str
    save: Callable[[Path, dict[str, torch.Tensor], FinetuneJob], None]
    starting_point: str | None = None
    text: str = "generator"
    end_marker: str = ""
    max_examples: int | None = None
    nested_sizes: tuple[int, ...] = ()
    """Ascending: so many of the first examples are smaller sets, which are seen first, each before what the next adds."""
    trunk: str | None = None
    """Of a branch: the output of the trunk that it leaves. A job without one keeps what branches of its nested sets need."""

    @property
    def is_on_trajectory(self) -> bool:
        """Whether it is a branch, or a trunk that has any."""
        return bool(self.nested_sizes or self.trunk)


def nested_ends(sizes: Sequence[int], batch_size: int) -> list[int]:
    """After how many optimizer steps each of the nested sets of `sizes`, ascending, has been seen: no batch lies in two."""
    return list(accumulate(-(-(size - smaller) // batch_size) for smaller, size in pairwise((0, *sizes))))


def cooldown_start(num_steps: int, config: FinetuneConfig) -> int:
    """The first step of the cool-down of a run of `num_steps`, where a branch leaves its trunk."""
    return num_steps - math.ceil(config.cooldown_ratio * num_steps)


def learning_rate_at(step: int, num_steps: int, config: FinetuneConfig, *, shortest: int | None = None) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up over ceil(ratio * num_steps) steps, then the schedule.

    On a trajectory all have the warm-up of its `shortest` run, in steps. A cool-down falls as 1 - sqrt (Hägele et al. 2024).
    """
    warmup = math.ceil(config.warmup_ratio * (shortest or num_steps))
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    match config.schedule:
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return config.learning_rate * (1 - progress)
        case "warmup_stable_decay":
            start = cooldown_start(num_steps, config)
            fallen = math.sqrt((step - start) / (num_steps - start)) if step > start else 0.0
            return config.learning_rate * (1 - fallen)
        case _:
            return config.learning_rate


def deepspeed_config(config: FinetuneConfig) -> dict[str, Any]:
    """DeepSpeed's configuration for `config`. Accumulation is ours: the loop marks the boundary of each optimizer step."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if config.dtype == "bfloat16" and config.zero_stage == 1:
        # Selects the flat optimizer: on one GPU it takes 5 host synchronisations a step, stage 0's in bf16 two a parameter.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def finetune(job: FinetuneJob, output: str, *, resources: Resources, report: Report) -> dict[str, Any]:
    """Run `job` on Ray Train and return its final metrics (loss, counts, throughput in examples and tokens a second).

    `output` (folder or URI) gets what `job.save` writes and `metrics.jsonl`, one JSON object a logged step. Checkpoints lie in
    `output/.checkpoints` until the caller removes them. Raises UserError for an example that is too long or a label that is
    unknown.
    """
    (result,) = finetune_group([job], [output], resources=resources, reports=[report])
    if isinstance(result, Exception):
        raise result
    return result


def finetune_group(
    jobs: Sequence[FinetuneJob], outputs: Sequence[str], *, resources: Resources, reports: Sequence[Report]
) -> list[dict[str, Any] | Exception]:
    """As `finetune`, several jobs one after another in one group of workers, whose start they share.

    Each has its own output, checkpoints and report, and ends as it would alone. Returns each one's metrics, or what it failed
    with: `NeighbourFailedError` if the workers were lost before it had ended. Jobs that ended in an earlier call are not run
    again. Raises UserError for a job on a trajectory that cannot be on one.
    """
    for job in jobs:
        if job.is_on_trajectory:
            check_trajectory(job.config, resources.num_workers)
            if job.config.rehearse_steps:
                raise UserError(f"rehearse_steps={job.config.rehearse_steps}: a rehearsal has no nested sets; leave them out")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    use_gpu = resources.gpus_per_worker > 0
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "jobs": [
                Member(job, _absolute(output), report) for job, output, report in zip(jobs, outputs, reports, strict=True)
            ],
            "use_gpu": use_gpu,
            "gpu_share": min(1.0, resources.gpus_per_worker),
            "num_threads": max(1, int(resources.cpus_per_worker)),
        },
        scaling_config=ScalingConfig(
            num_workers=0 if resources.in_process else resources.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources.as_bundle(),
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=_absolute(join(outputs[0], RAY_TRAIN)),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        return list(trainer.fit().return_value)
    except WorkerGroupError as error:
        # The cause, not Ray's report of it: a user's mistake stays one, whichever worker found it.
        cause: Exception = next(iter(error.worker_failures.values()))
        if len(jobs) == 1:
            raise cause from error
        ended = [_read_result(output) for output in outputs]
        return [result if result is not None else NeighbourFailedError(str(cause)) for result in ended]


def check_trajectory(config: FinetuneConfig, num_workers: int) -> None:
    """Raise UserError unless finetunings by `config` can share a trajectory: its schedule, adapters, one epoch, one worker."""
    for name, value, wanted in (
        ("schedule", config.schedule, WARMUP_STABLE_DECAY),
        ("method", config.method, "lora"),
        ("epochs", config.epochs, 1),
        ("num_workers", num_workers, 1),
    ):
        if value != wanted:
            raise UserError(
                f"{name}={value!r}: finetunings that share a trajectory need {wanted!r}; give that, or train each size "
                "on its own"
            )


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if is_local(path) else path


# What follows runs in a Ray Train worker.


@dataclass(frozen=True)
class Member:
    """One job of a group, its output (absolute, or a URI) and where its step metrics go."""

    job: FinetuneJob
    output: str
    report: Report


def _train_worker(loop: Mapping[str, Any]) -> list[dict[str, Any] | Exception]:
    if not loop["use_gpu"]:
        # DeepSpeed chooses its accelerator when it is first imported, which is below.
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import deepspeed
    import ray.train
    import torch

    if not loop["use_gpu"]:
        torch.set_num_threads(loop["num_threads"])
    if not torch.distributed.is_initialized():
        # In the driving process Ray Train makes no process group, and DeepSpeed wants one even for one worker.
        os.environ.setdefault("LOCAL_RANK", "0")
        forget_process_groups()
        backend = "nccl" if loop["use_gpu"] else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    quiet_libraries()
    # DeepSpeed would compile its shared-memory kernels (a C++ compiler and a minute) for inference only: our reductions are
    # gloo's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if loop["use_gpu"] else "gloo")
    members: list[Member] = loop["jobs"]
    if len(members) == 1 and checkpointing_engine(members[0].output) != TOGETHER and not members[0].job.is_on_trajectory:
        return [_train(members[0], loop["use_gpu"])]
    results: dict[int, dict[str, Any] | Exception] = {}
    for place, member in enumerate(members):
        if (ended := _read_result(member.output)) is not None:
            results[place] = ended
    waiting = [place for place in range(len(members)) if place not in results]
    if ray.train.get_context().get_world_size() == 1:
        from pipelines.together import compatible, train_together

        for places in compatible(members, waiting):
            waiting = [place for place in waiting if place not in places]
            for place, result in train_together([members[place] for place in places], loop["gpu_share"]):
                results[places[place]] = _kept(members[places[place]], result)
    for place in waiting:
        try:
            result = _train(members[place], loop["use_gpu"])
        except Exception as error:
            if ray.train.get_context().get_world_size() > 1:
                # The other workers are in the midst of this job, and would wait for this one.
                raise
            results[place] = portable(error)
        else:
            results[place] = _kept(members[place], result)
        free_memory()
    if len(members) == 1 and isinstance(only := results[0], Exception):
        raise only
    return [results[place] for place in range(len(members))]


def _kept(member: Member, result: dict[str, Any] | Exception) -> dict[str, Any] | Exception:
    """`result`, and for a later call of the group that the job has ended, if it ended well."""
    import ray.train

    if not isinstance(result, Exception) and ray.train.get_context().get_world_rank() == 0:
        write_text(join(member.output, RESULT_FILE), json.dumps(result))
    return result


def free_memory() -> None:
    """Give back what nothing refers to any more, on the device as well."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read_result(output: str) -> dict[str, Any] | None:
    text = read_text(join(output, RESULT_FILE))
    return None if text is None else dict(json.loads(text))


def _train(member: Member, use_gpu: bool) -> dict[str, Any]:
    """Run and save one job; its metrics."""
    import ray.train
    import torch

    tensors, metrics, log = _run_steps(member, use_gpu)
    # What is saved may have to be put together on the device again, and the next job needs the room.
    free_memory()
    if ray.train.get_context().get_world_rank() == 0:
        save_result(member, tensors, log)
    torch.distributed.barrier()
    return metrics


def save_result(member: Member, tensors: dict[str, torch.Tensor], log: list[dict[str, float]]) -> None:
    """Write a job's output: its logged steps, and what it makes of the trained tensors."""
    with working_folder(member.output) as folder:
        (folder / METRICS_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in log))
        member.job.save(folder, tensors, member.job)


def _run_steps(member: Member, use_gpu: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, float]]]:
    """The trained tensors (of `gather_trained`), the metrics and the logged steps of one job."""
    import deepspeed
    import ray.train
    import torch

    from pipelines.stepping import FlatModel

    job, config = member.job, member.job.config
    assert not job.is_on_trajectory, "together.py keeps and reads the states of trajectories"
    started = time.perf_counter()
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if use_gpu:
        torch.cuda.reset_peak_memory_stats()

    sequences, labels = encode_examples(job)
    lengths = [len(sequence) for sequence in sequences]
    batches = planned_batches(job, lengths)
    classify = job.objective == "classification"
    prefixes = shared_prefixes(job, sequences, labels)

    model, adapters = build_model(job, device)
    if use_gpu and 0 < config.compile_from_steps <= len(batches):
        compile_layers(model)
    # Kernels of the CPU and of fp32 grow with the longest row, so filling would cost what it saves.
    use_graphs = use_gpu and config.dtype == "bfloat16" and config.zero_stage < 3
    flat = FlatModel(model, capture=use_graphs) if config.zero_stage < 3 else None
    engine, *_ = deepspeed.initialize(
        model=flat or model, optimizer=_optimizer(flat or model, config), config=deepspeed_config(config)
    )
    if flat is not None:
        flat.bind()

    first_step, log = load_checkpoint(
        lambda folder: engine.load_checkpoint(folder, tag="engine", load_module_strict=False),
        member.output,
        engine=DEEPSPEED,
        num_workers=num_workers,
    )
    setup_s = time.perf_counter() - started
    window = {"loss": 0.0, "examples": 0, "tokens": 0, "weight": 0.0, "start": time.perf_counter()}
    totals = {"examples": 0, "tokens": 0, "start": time.perf_counter()}
    examples = _Examples(sequences, labels, lengths, prefixes)
    prepared = _microbatches(
        job, examples, batches, first_step, rank, num_workers, device, filled=use_graphs, adapted=adapters is not None
    )
    upcoming = next(prepared, None)
    while upcoming is not None:
        now, batch, step = upcoming, batches[upcoming.step], upcoming.step
        if now.begins_step:
            # Seeded by step, so that a resumed run meets the masks that an uninterrupted one would, in models with dropout of
            # their own; adapters' dropout needs no seeding.
            torch.manual_seed((job.seed * 1_000_003 + step) * 1_009 + rank)
            rate = learning_rate_at(step, len(batches), config)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            weight = len(batch) if classify else sum(lengths[i] - 1 for i in batch)
        engine.set_gradient_accumulation_boundary(now.ends_step)
        with adapters.over(now.packed.segments) if adapters and now.packed.segments else contextlib.nullcontext():
            loss = engine(now.packed, now.targets)
            if not now.has_examples:
                # It takes part in the collectives all the same.
                loss = loss * 0.0
            # DeepSpeed averages gradients over workers; the step's loss is the mean over its examples (tokens).
            engine.backward(loss * (num_workers / weight))
        # The optimizer waits for the device; until then the next one is made ready.
        upcoming = next(prepared, None)
        engine.step()
        window["loss"] += loss.detach()
        if not now.ends_step:
            continue
        window["examples"] += len(batch)
        window["tokens"] += sum(lengths[i] for i in batch)
        window["weight"] += weight
        last = step == len(batches) - 1
        if (step + 1) % config.log_every == 0 or last:
            total_loss = torch.as_tensor(window["loss"], device=device, dtype=torch.float64).reshape(1)
            torch.distributed.all_reduce(total_loss)
            elapsed = time.perf_counter() - window["start"]
            entry = {
                "step": step + 1,
                "loss": total_loss.item() / window["weight"],
                "learning_rate": rate,
                "examples_per_s": window["examples"] / elapsed,
                "tokens_per_s": window["tokens"] / elapsed,
                "fraction_done": (step + 1) / len(batches),
            }
            check_loss(entry["loss"], step + 1, config)
            totals["examples"] += window["examples"]
            totals["tokens"] += window["tokens"]
            window = {"loss": 0.0, "examples": 0, "tokens": 0, "weight": 0.0, "start": time.perf_counter()}
            if rank == 0:
                log.append(entry)
                member.report({k: v for k, v in entry.items() if k != "step"}, step + 1)
        if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0 and not last:
            save_checkpoint(
                lambda folder: engine.save_checkpoint(folder, tag="engine", exclude_frozen_parameters=config.method == "lora"),
                member.output,
                step + 1,
                log,
                engine=DEEPSPEED,
                rank=rank,
                num_workers=num_workers,
            )

    train_s = time.perf_counter() - totals["start"]
    tensors = gather_trained(model, config, rank)
    num_trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    engine.destroy()
    metrics = {
        "num_examples": len(sequences),
        "num_steps": len(batches),
        "num_tokens": sum(lengths[i] for batch in batches for i in batch),
        "final_loss": log[-1]["loss"] if log else None,
        "train_s": train_s,
        "setup_s": setup_s,
        "examples_per_s": totals["examples"] / train_s,
        "tokens_per_s": totals["tokens"] / train_s,
        "num_trained_parameters": num_trained,
        "shared_prefix_tokens": max(prefix.length for prefix in prefixes),
        "resumed_at_step": first_step if first_step > 0 else None,
        "peak_gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if use_gpu else None,
    }
    return tensors, metrics, log


@dataclass(frozen=True)
class _Examples:
    """One entry an example: token ids, label index, number of tokens, what of it others begin with."""

    sequences: list[list[int]]
    labels: list[int]
    lengths: list[int]
    prefixes: list[Prefix]


@dataclass(frozen=True)
class _Microbatch:
    """A worker's part of an optimizer step, or a piece of it, on the device. Without examples of its own it holds any one."""

    step: int
    begins_step: bool
    ends_step: bool
    has_examples: bool
    packed: PackedInput
    targets: torch.Tensor


def _microbatches(
    job: FinetuneJob,
    examples: _Examples,
    batches: Sequence[Sequence[int]],
    first_step: int,
    rank: int,
    num_workers: int,
    device: torch.device,
    *,
    filled: bool,
    adapted: bool,
) -> Iterator[_Microbatch]:
    """Those of worker `rank`, from `first_step` to the end; `filled` to few shapes, with segments if the model is `adapted`."""
    import torch

    from pipelines.attention import PackedInput
    from pipelines.segments import Segments

    config = job.config
    lengths, prefixes = examples.lengths, examples.prefixes
    num_rows = -(-config.batch_size // num_workers) + len({prefix for prefix in prefixes if prefix.length})
    longest = max(lengths)
    for step in range(first_step, len(batches)):
        batch = batches[step]
        share = microbatches(
            [lengths[i] for i in batch],
            num_workers=num_workers,
            token_budget=config.tokens_per_microbatch,
            prefixes=[prefixes[i] for i in batch],
        )[rank]
        for number, places in enumerate(share):
            # Those that share a prefix side by side.
            taken = sorted(places or [0], key=lambda place: prefixes[batch[place]])
            chosen = [batch[place] for place in taken]
            shared = [prefixes[i] for i in chosen]
            shape = None
            if filled:
                shape = shape_for(
                    packed_size([lengths[i] for i in chosen], shared),
                    num_rows=num_rows,
                    width=longest,
                    num_shared=sum(prefix.length for prefix in shared),
                )
            packed = pack([examples.sequences[i] for i in chosen], prefixes=shared, shape=shape)
            is_class = job.objective == "classification"
            targets = class_targets(packed, [examples.labels[i] for i in chosen]) if is_class else next_token_targets(packed)
            segments = None
            if adapted:
                segments = Segments.from_batch(
                    packed, device, counts=[len(chosen)], seeds=[job.seed], steps=[step], places=taken
                )
            yield _Microbatch(
                step,
                begins_step=number == 0,
                ends_step=number == len(share) - 1,
                has_examples=bool(places),
                packed=PackedInput.from_batch(packed, device, segments),
                targets=torch.from_numpy(targets).to(device, non_blocking=True),
            )


def _optimizer(model: torch.nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW over what `model` trains; matrices decay, vectors (norms, biases) do not."""
    import torch

    from pipelines.stepping import FlatModel

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = model.decays if isinstance(model, FlatModel) else [parameter.ndim > 1 for parameter in trained]
    groups = [
        {"params": [p for p, one in zip(trained, decays, strict=True) if one == decayed], "weight_decay": rate}
        for decayed, rate in ((True, config.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=trained[0].device.type == "cuda"
    )


def forget_process_groups() -> None:
    """Make DeepSpeed forget the process groups of an earlier finetuning in this process, which Ray Train has destroyed."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    comm.cdb = None
    for name in ("_WORLD_GROUP", "_DATA_PARALLEL_GROUP"):
        setattr(groups, name, None)


def check_loss(loss: float, step: int, config: FinetuneConfig) -> None:
    """Raise UserError for a loss that is no number."""
    if not math.isfinite(loss):
        raise UserError(
            f"loss is {loss} at step {step} with learning_rate={config.learning_rate}: training diverged; lower the learning "
            "rate or raise warmup_ratio"
        )


def planned_batches(job: FinetuneJob, lengths: Sequence[int]) -> list[list[int]]:
    """The example indices of each optimizer step, for examples of `lengths` in tokens.

    What each nested set adds to the one before is ordered and dealt into batches by itself. So those of a smaller set are the
    first ones of a larger one.
    """
    import numpy as np

    config = job.config
    batches: list[list[int]] = []
    for first, end in pairwise((0, *job.nested_sizes, len(lengths))):
        own = lengths[first:end]
        order = training_order(
            len(own),
            config.epochs,
            seed=job.seed,
            lengths=own if config.group_by_length else None,
            batch_size=config.batch_size,
        )
        if config.rehearse_steps:
            order = np.argsort(-np.array(own), kind="stable")[: config.rehearse_steps * config.batch_size]
        order = order + first
        batches += [order[start : start + config.batch_size].tolist() for start in range(0, len(order), config.batch_size)]
    return batches


def encode_examples(job: FinetuneJob) -> tuple[list[list[int]], list[int]]:
    """Token ids and label index of each example of `job`, in the file's order. Raises UserError for one that is too long."""
    tokenizer = load_tokenizer(job.base_model)
    table = read_examples(job.examples)
    if job.max_examples is not None:
        table = table.slice(0, job.max_examples)
    labels = [Label(name).index for name in table["label"].to_pylist()]
    if job.objective == "classification":
        texts = classifier_prompts(table)
    elif job.text == "generator":
        texts = generator_texts(table, job.end_marker)
    else:
        texts = plain_texts(table)
    sequences = tokenizer(texts)["input_ids"]
    check_lengths(sequences, table["id"].to_pylist(), limit=job.config.max_length or model_limit(job.base_model))
    return sequences, labels


def shared_prefixes(job: FinetuneJob, sequences: list[list[int]], labels: Sequence[int]) -> list[Prefix]:
    """What each example shares with others of its batches: the longest beginning that those of its number have in common.

    A generator's texts say their label first, so that theirs is the label's index. Plain texts begin each with its own premise.
    """
    if not job.config.share_prefix or (job.objective, job.text) == ("language_modeling", "plain"):
        return [Prefix(0)] * len(sequences)
    numbers = [0] * len(sequences) if job.objective == "classification" else labels
    alike: dict[int, list[list[int]]] = {number: [] for number in numbers}
    for number, sequence in zip(numbers, sequences, strict=True):
        alike[number].append(sequence)
    prefixes = {number: Prefix(common_prefix_length(ones), number) for number, ones in alike.items()}
    return [prefixes[number] for number in numbers]


def check_lengths(sequences: list[list[int]], ids: list[str], *, limit: int) -> None:
    """Raise UserError if any sequence has more than `limit` tokens: cut, it would lose the token the class is read from."""
    too_long = [position for position, sequence in enumerate(sequences) if len(sequence) > limit]
    if too_long:
        worst = max(too_long, key=lambda position: len(sequences[position]))
        raise UserError(
            f"{len(too_long)} of {len(sequences)} examples are longer than {limit} tokens (the longest, {ids[worst]!r}, has "
            f"{len(sequences[worst])}); raise max_length if the model allows it, or drop them from the data"
        )


def load_tokenizer(base_model: str) -> Any:
    """The tokenizer in the `model/` folder of a base-model artifact, run without any remote code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(join(fetch(base_model), "model"), use_fast=True)


def model_limit(base_model: str) -> int:
    """Longest sequence, in tokens, that the base model's positions allow and that its layers attend to all of."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(join(fetch(base_model), "model"))
    limit: int = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if window and "sliding_attention" in getattr(config, "layer_types", ["sliding_attention"]):
        limit = min(limit, window)
    return limit


def build_model(job: FinetuneJob, device: torch.device) -> tuple[torch.nn.Module, Adapters | None]:
    """The module that maps (PackedInput, label indices) to the batch's summed loss, and its adapters, if it trains any.

    Only what is trained requires gradients.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from pipelines.adapter_files import load_adapter
    from pipelines.attention import PACKED, register_packed_attention
    from pipelines.models import Classifier, LanguageModel, compute_last_layer_where_read, load_head
    from pipelines.weights import load_weights

    config = job.config
    dtype = getattr(torch, config.dtype)
    classify = job.objective == "classification"
    register_packed_attention()
    zero3 = None
    if config.zero_stage == 3:
        from transformers.integrations import HfDeepSpeedConfig

        # While this object lives, from_pretrained hands each weight to DeepSpeed as it is read, already partitioned.
        zero3 = HfDeepSpeedConfig(deepspeed_config(config))
    start = Path(fetch(job.starting_point)) if job.starting_point else None
    weights = weights_of(start, job.base_model)
    auto_class = AutoModel if classify else AutoModelForCausalLM
    try:
        backbone = load_weights(auto_class, weights, dtype=dtype, attn_implementation=PACKED)
    finally:
        # An error's frames must not keep it for the next job of this process.
        del zero3
    if config.zero_stage != 3:
        backbone.to(device)
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    adapters = None
    if config.method == "lora":
        adapters = adapters_of(backbone, config, seeds=[job.seed])
        if start is not None and (start / "adapter").exists():
            check_saved_adapter(start / "adapter", config)
            load_adapter(adapters, 0, start / "adapter")
        if config.train_embeddings and not classify:
            for module in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
                for parameter in module.parameters():
                    parameter.requires_grad = True
    if not classify:
        return LanguageModel(backbone).train(), adapters
    assert start is not None, "a classifier starts from a saved head"
    compute_last_layer_where_read(backbone)
    return Classifier(backbone, load_head(start, dtype=dtype, device=device)).train(), adapters


def weights_of(task_model: Path | None, base_model: str) -> Path:
    """The folder of the weights that a task model's (local) folder stands on: its own, if all were trained, or the base's."""
    if task_model is not None and (task_model / "model").exists():
        return task_model / "model"
    return Path(join(fetch(base_model), "model"))


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each decoder layer in place, for any sequence length: one graph a layer where our kernels attend, else two."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def adapters_of(backbone: torch.nn.Module, config: FinetuneConfig, *, seeds: Sequence[int | None]) -> Adapters:
    """Freeze `backbone` and give it the adapters that `config` describes, in its own dtype, one for each seed.

    fp32 adapters on a bf16 model would break ZeRO-3 and halve the speed; the optimizer keeps the fp32 master copy.
    """
    from pipelines.adapters import add_adapters

    return add_adapters(
        backbone,
        config.lora_targets,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seeds=seeds,
    )


def check_saved_adapter(saved: Path, config: FinetuneConfig) -> None:
    """Raise UserError unless the adapter in `saved` has the rank, alpha and targets that `config` asks to continue with."""
    written = json.loads((saved / "adapter_config.json").read_text())
    for name, wanted in (("r", config.lora_rank), ("lora_alpha", config.lora_alpha)):
        if written[name] != wanted:
            raise UserError(
                f"the starting point's adapter has {name}={written[name]} and this finetuning asks for {wanted}: an adapter is "
                "continued as it is; use the same value for both"
            )
    if set(written["target_modules"]) != set(config.lora_targets):
        raise UserError(
            f"the starting point's adapter is on {sorted(written['target_modules'])} and this finetuning asks for "
            f"{sorted(config.lora_targets)}; use the same lora_targets for both"
        )


def gather_trained(model: torch.nn.Module, config: FinetuneConfig, rank: int) -> dict[str, torch.Tensor]:
    """Every trained tensor by name, whole and on the CPU, on the first worker; an empty dict on the others. Collective.

    Adapters have the names of `adapter_files.peft_names`.
    """
    import deepspeed

    from pipelines.adapter_files import peft_names

    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=config.zero_stage == 3):
            if rank == 0:
                tensors[name] = parameter.detach().cpu().clone()
    return peft_names(tensors) if config.method == "lora" else tensors


def save_checkpoint(
    write: Callable[[str], Any],
    output: str,
    next_step: int,
    log: list[dict[str, float]],
    *,
    engine: str,
    rank: int = 0,
    num_workers: int = 1,
) -> None:
    """Keep what a later call goes on from: what `write(folder)` writes, and how far the job is.

    Each worker writes a folder of its own, and the checkpoint counts once all of them are there. `engine` says who can read it.
    """
    import torch

    where = join(output, CHECKPOINTS)
    before = read_text(join(where, LATEST))
    with working_folder(join(where, f"step{next_step}", f"worker{rank}")) as folder:
        write(str(folder))
    if num_workers > 1:
        torch.distributed.barrier()
    if rank == 0:
        latest = {"engine": engine, "next_step": next_step, "num_workers": num_workers, "log": log}
        write_text(join(where, LATEST), json.dumps(latest))
        if before is not None:
            remove(join(where, f"step{json.loads(before)['next_step']}"))


def load_checkpoint(
    read: Callable[[str], Any], output: str, *, engine: str, num_workers: int = 1
) -> tuple[int, list[dict[str, float]]]:
    """Let `read(folder)` take up the last checkpoint. Returns the step to go on with and the steps logged so far.

    Raises UserError for one that another engine or number of workers wrote.
    """
    where = join(output, CHECKPOINTS)
    text = read_text(join(where, LATEST))
    if text is None:
        return 0, []
    latest = json.loads(text)
    if (latest["engine"], latest["num_workers"]) != (engine, num_workers):
        raise UserError(
            f"{where} was written by {latest['num_workers']} workers ({latest['engine']}) and this finetuning has "
            f"{num_workers} ({engine}): a checkpoint fits one number only; use it again, or remove that folder to begin anew"
        )
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as whole:
        for worker in range(num_workers):
            part = Path(fetch(join(where, f"step{latest['next_step']}", f"worker{worker}"))).resolve()
            shutil.copytree(part, whole, dirs_exist_ok=True, copy_function=os.symlink)
        read(whole)
    return latest["next_step"], latest["log"]


def checkpointing_engine(output: str) -> str | None:
    """Which engine wrote the last checkpoint in `output`, None if there is none."""
    text = read_text(join(output, CHECKPOINTS, LATEST))
    return None if text is None else str(json.loads(text)["engine"])


class working_folder:  # in lower case: it is used like a function, `with working_folder(output) as folder`
    """A local folder to write `output` in: `output` itself if it is local, else a temporary one, published on success."""

    def __init__(self, output: str) -> None:
        self.output = output

    def __enter__(self) -> Path:
        self.folder = Path(self.output if is_local(self.output) else tempfile.mkdtemp(prefix="blindsweep-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def __exit__(self, kind: Any, *_: Any) -> None:
        if is_local(self.output):
            return
        try:
            if kind is None:
                publish(str(self.folder), self.output)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The logged steps of a finetuning, from its `metrics.jsonl`."""
    for line in path.read_text().splitlines():
        yield json.loads(line)


def quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries out of a study's log; their warnings stay."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
