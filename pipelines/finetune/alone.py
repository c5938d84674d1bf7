"""One job finetuned by DeepSpeed, on one or several workers.

ZeRO 0 to 3 is a setting that moves where the weights lie and not what is computed. Batches carry no padding
(`packing/batches.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipelines.adapters.adapters import Adapters
from pipelines.adapters.files import load_adapter, peft_name, peft_names
from pipelines.errors import NoticeError
from pipelines.finetune.checkpoints import DEEPSPEED, FIRST, MASTER, SECOND, Checkpoints, Part, Piece
from pipelines.finetune.course import Course
from pipelines.finetune.job import FinetuneJob, Member
from pipelines.finetune.recipe import FinetuneConfig, adapters_of, check_saved_adapter
from pipelines.finetune.stepping import HEAD, CapturedStep, FlatModel, over_segments
from pipelines.models.classifier import compute_last_layer_where_read, load_head
from pipelines.models.encoder import classifier
from pipelines.models.language_model import LanguageModel
from pipelines.models.weights import compile_layers, load_classifier_body, load_packed, weights_of
from pipelines.packing.batches import class_targets, next_token_targets, pack, padded, shape_for
from pipelines.packing.dealing import microbatches, packed_size
from pipelines.packing.segments import Segments
from pipelines.packing.stream import PackedInput
from pipelines.resources import no_report
from pipelines.storage import fetch
from pipelines.workers.notice import notice_given

AGREE_EVERY_S = 5.0
"""How often workers that step together ask each other whether one of them was given notice."""


def train_alone(member: Member, device: torch.device, *, rank: int, num_workers: int, keeps_weights: bool = False) -> Trained:
    """Train one job as worker number `rank` of those that run this together.

    With `keeps_weights`, the weights that it starts from stay in memory for the next job over the same ones.
    Raises UserError for an example that is too long, a starting point that does not fit, and a loss that is no number;
    NoticeError, in all workers after the same step, when it was stopped at a notice.
    """
    training = _Training(member, _Worker(device, rank, num_workers), keeps_weights)
    upcoming = next(training.microbatches, None)
    while upcoming is not None:
        now = upcoming
        if now.begins_step:
            training.begin_step()
        loss = training.compute_gradients(now)
        # The optimizer waits for the device; until then the next one is made ready.
        upcoming = next(training.microbatches, None)
        training.engine.step()
        training.loss += loss
        if now.ends_step:
            training.end_step()
    return training.end()


@dataclass(frozen=True)
class Trained:
    """The outcome of a job on one worker: trained tensors (`gather_trained`), metrics, logged steps (both the first one's)."""

    tensors: dict[str, torch.Tensor]
    metrics: dict[str, Any]
    log: list[dict[str, float]]


@dataclass(frozen=True)
class _Worker:
    """The device and the place of this worker among those that train one job."""

    device: torch.device
    rank: int
    num_workers: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


class Notices:
    """`notice_given` for workers that step together: one answer in all of them, after the same step."""

    def __init__(self, device: torch.device, num_workers: int) -> None:
        self._device, self._num_workers = device, num_workers
        self._num_steps, self._every = 0, 1
        self._since = time.monotonic()

    def given(self) -> bool:
        """To be called after each step; collective about every `AGREE_EVERY_S`, or after each step that takes longer."""
        if self._num_workers == 1:
            return notice_given()
        self._num_steps += 1
        if self._num_steps < self._every:
            return False
        mine = [float(notice_given()), time.monotonic() - self._since]
        ours = torch.tensor(mine, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(ours, op=torch.distributed.ReduceOp.MAX)
        is_given, seconds = ours.tolist()
        # Of what is the same in all, so that they ask each other after the same step again.
        self._every = max(1, int(AGREE_EVERY_S * self._num_steps / max(seconds, 1e-3)))
        self._num_steps, self._since = 0, time.monotonic()
        return bool(is_given)


class _Training:
    """A job under way on this worker: its course, model, engine and checkpoints."""

    def __init__(self, member: Member, worker: _Worker, keeps_weights: bool) -> None:
        assert not member.job.is_on_trajectory, "together.py keeps and reads the states of trajectories"
        # The first worker reports for all.
        self.course = Course(replace(member, report=no_report) if worker.rank else member)
        self.worker, self.config = worker, member.job.config
        if worker.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.model, self.adapters = build_model(member.job, worker.device, keeps_weights=keeps_weights)
        is_encoder = member.job.reads_whole_texts
        if worker.on_gpu and not is_encoder and 0 < self.config.compile_from_steps <= len(self.course.batches):
            compile_layers(self.model)
        # Kernels of the CPU and of fp32 grow with the longest row, so filling would cost what it saves. An encoder's grids are
        # of too many shapes.
        use_graphs = worker.on_gpu and self.config.dtype == "bfloat16" and self.config.zero_stage < 3 and not is_encoder
        self.engine = _deepspeed_engine(self.model, self.adapters, self.config, capture=use_graphs)
        self.checkpoints = Checkpoints(member.output, DEEPSPEED, worker.rank, worker.num_workers, worker.device)
        progress = self.checkpoints.load(optimizer_state(self.engine, worker.rank))
        if progress is not None:
            take_up_state(self.engine, progress.num_updates)
        self.course.begin(progress)
        self.notices = Notices(worker.device, worker.num_workers)
        self.loss: torch.Tensor | float = progress.loss if progress else 0.0
        self.microbatches = _microbatches(self.course, worker, filled=use_graphs, adapted=self.adapters is not None)

    def begin_step(self) -> None:
        course, step = self.course, self.course.next_step
        # Seeded by step, so that a resumed run meets the masks that an uninterrupted one would, in models with dropout of
        # their own; adapters' dropout needs no seeding.
        torch.manual_seed((course.job.seed * 1_000_003 + step) * 1_009 + self.worker.rank)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0 if group.get("is_head") and course.head_is_frozen else course.learning_rate_at(step)
        self.weight = course.weight([course.next_batch])

    def compute_gradients(self, microbatch: _Microbatch) -> torch.Tensor:
        """Forward and backward pass; the summed loss."""
        packed = microbatch.packed
        self.engine.set_gradient_accumulation_boundary(microbatch.ends_step)
        with over_segments(self.adapters, packed):
            loss = self.engine(packed, microbatch.targets)
            if not microbatch.has_examples:
                # It takes part in the collectives all the same.
                loss = loss * 0.0
            # DeepSpeed averages gradients over workers; the step's loss is the mean over its examples (tokens).
            self.engine.backward(loss * (self.worker.num_workers / self.weight))
        summed: torch.Tensor = loss.detach()
        return summed

    def end_step(self) -> None:
        """Log and keep what is due. Raises UserError if the loss is no number, NoticeError if all are to stop here."""
        course = self.course
        course.advance()
        if course.is_logged:
            total_loss = torch.as_tensor(self.loss, device=self.worker.device, dtype=torch.float64).reshape(1)
            torch.distributed.all_reduce(total_loss)
            course.log_step(total_loss.item())
            self.loss = 0.0
        is_stopped = self.notices.given() and not course.is_over
        if course.is_saved or is_stopped:
            # What every worker holds whole is kept by one.
            is_keeper = self.config.zero_stage > 0 or self.worker.rank == 0
            self.checkpoints.save(
                course.progress(float(self.loss), num_updates=num_updates(self.engine)),
                optimizer_state(self.engine, self.worker.rank) if is_keeper else [],
            )
        if is_stopped:
            raise NoticeError(course.stopped_at)

    def end(self) -> Trained:
        """Gather what was trained, and give back the engine's memory."""
        self.course.end()
        tensors = gather_trained(self.model, self.config, self.worker.rank)
        num_trained = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)
        self.engine.destroy()
        return Trained(tensors, self.course.metrics(num_trained, on_gpu=self.worker.on_gpu), self.course.log)


# --- a worker's batches ---


@dataclass(frozen=True)
class _Microbatch:
    """A worker's part of an optimizer step, or a piece of it. Without examples of its own it holds any one."""

    begins_step: bool
    ends_step: bool
    has_examples: bool
    packed: PackedInput
    targets: torch.Tensor


def _microbatches(course: Course, worker: _Worker, *, filled: bool, adapted: bool) -> Iterator[_Microbatch]:
    """The worker's, to the end of the course; `filled` to few shapes, with segments if the model is `adapted`."""
    job, config, examples = course.job, course.config, course.examples
    lengths, prefixes = examples.lengths, examples.prefixes
    num_rows = -(-config.batch_size // worker.num_workers) + len({prefix for prefix in prefixes if prefix.length})
    is_encoder = job.reads_whole_texts
    # What is filled is the argument of a captured step.
    where = CapturedStep.ARGUMENTS_ON if filled else worker.device
    for step in range(course.first_step, len(course.batches)):
        batch = course.batches[step]
        share = microbatches(
            # Padded, each has the longest one's.
            [max(lengths[k] for k in batch) if is_encoder else lengths[i] for i in batch],
            num_workers=worker.num_workers,
            token_budget=config.tokens_per_microbatch,
            prefixes=[prefixes[i] for i in batch],
        )[worker.rank]
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
                    width=course.longest,
                    num_shared=sum(prefix.length for prefix in shared),
                )
            sequences = [examples.sequences[i] for i in chosen]
            packed = padded(sequences) if is_encoder else pack(sequences, prefixes=shared, shape=shape)
            is_class = job.objective == "classification"
            targets = class_targets(packed, [examples.labels[i] for i in chosen]) if is_class else next_token_targets(packed)
            segments = None
            if adapted:
                segments = Segments.from_batch(
                    packed, where, counts=[len(chosen)], seeds=[job.seed], steps=[step], places=taken
                )
            yield _Microbatch(
                begins_step=number == 0,
                ends_step=number == len(share) - 1,
                has_examples=bool(places),
                packed=PackedInput.from_batch(packed, where, segments),
                targets=torch.from_numpy(targets).to(where, non_blocking=True),
            )


# --- model and engine ---


def build_model(
    job: FinetuneJob, device: torch.device, *, keeps_weights: bool = False
) -> tuple[torch.nn.Module, Adapters | None]:
    """The module that maps (PackedInput, label indices) to the batch's summed loss, and its adapters, if it trains any.

    Only what is trained requires gradients. `keeps_weights` is as in `train_alone`; what ZeRO-3 partitions is not kept.
    """
    config = job.config
    dtype = getattr(torch, config.dtype)
    classify = job.objective == "classification"
    zero3 = None
    if config.zero_stage == 3:
        from transformers.integrations import HfDeepSpeedConfig

        # While this object lives, from_pretrained hands each weight to DeepSpeed as it is read, already partitioned.
        zero3 = HfDeepSpeedConfig(deepspeed_config(config))
    weights = weights_of(job.starting_point, job.base_model)
    where = device if config.zero_stage != 3 else None
    try:
        if classify:
            is_kept = keeps_weights and where is not None
            backbone = load_classifier_body(weights, dtype, where, is_kept=is_kept)
        else:
            backbone = load_packed(AutoModelForCausalLM, weights, dtype, where)
    finally:
        # An error's frames must not keep it for the next job of this process.
        del zero3
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    start = Path(fetch(job.starting_point)) if job.starting_point else None
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
    return classifier(backbone, load_head(start, dtype=dtype, device=device)).train(), adapters


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
        # Selects the flat optimizer: on one GPU it waits for the device a few times a step, stage 0's for each parameter.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _deepspeed_engine(model: torch.nn.Module, adapters: Adapters | None, config: FinetuneConfig, *, capture: bool) -> Any:
    """DeepSpeed's engine over `model`, with flat parameters and, if `capture`, CUDA graphs at ZeRO 0 to 2."""
    import deepspeed

    flat = None
    if config.zero_stage < 3:
        flat = FlatModel(model, adapters, capture=capture, own_head=config.head_frozen_share > 0)
    engine, *_ = deepspeed.initialize(
        model=flat or model, optimizer=_optimizer(flat or model, config), config=deepspeed_config(config)
    )
    if flat is not None:
        flat.bind()
    return engine


def _optimizer(model: torch.nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW over what `model` trains; matrices decay, vectors (norms, biases) do not. A head that stays frozen for a while is a
    group of its own, marked `is_head`."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = [parameter for _, parameter in named]
    decays = model.decays if isinstance(model, FlatModel) else [parameter.ndim > 1 for parameter in trained]
    heads = model.heads if isinstance(model, FlatModel) else [name == HEAD for name, _ in named]
    own_head = config.head_frozen_share > 0
    groups: list[dict[str, Any]] = [
        {
            "params": [
                p for p, does, is_head in zip(trained, decays, heads, strict=True) if (does, is_head and own_head) == of
            ],
            "weight_decay": config.weight_decay if of[0] else 0.0,
            **({"is_head": True} if of[1] else {}),
        }
        for of in ((True, False), (False, False), (True, True))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=trained[0].device.type == "cuda"
    )


def gather_trained(model: torch.nn.Module, config: FinetuneConfig, rank: int) -> dict[str, torch.Tensor]:
    """Every trained tensor by name, whole and on the CPU, on the first worker; an empty dict on the others. Collective.

    Adapters have the names of `adapters.peft_names`.
    """
    import deepspeed

    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=config.zero_stage == 3):
            if rank == 0:
                tensors[name] = parameter.detach().cpu().clone()
    return peft_names(tensors) if config.method == "lora" else tensors


# --- the optimizer's state ---


def optimizer_state(engine: Any, rank: int) -> list[Part]:
    """What worker number `rank` holds of AdamW's state, as the tensors themselves; names are those of `gather_trained`.

    ZeRO 0 holds each group's parameters whole, end to end; 1 and 2 cut that into a run for each worker, 3 each parameter. Runs
    are of equal length: the last ones end in numbers that are no parameter's.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    parts = []
    if stage == 3:
        names = {parameter: peft_name(name) for name, parameter in engine.module.named_parameters()}
        for tensor, parameters in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
            pieces, place = [], 0
            for parameter in parameters:
                length = parameter.partition_numel()
                if (count := min(length, parameter.ds_numel - rank * length)) > 0:
                    pieces.append(Piece(names[parameter], rank * length, count, place))
                place += length
            parts.append(Part(_state_of(optimizer, tensor), pieces))
        return parts
    for group, sizes in zip(optimizer.param_groups, engine.module.sizes, strict=True):
        (tensor,) = group["params"]
        # Where in it a parameter begins; below 0 if that is another worker's.
        pieces, place = [], -rank * tensor.numel() if stage else 0
        for name, size in sizes.items():
            start, end = max(0, -place), min(size, tensor.numel() - place)
            if start < end:
                pieces.append(Piece(peft_name(name), start, end - start, place + start))
            place += size
        parts.append(Part(_state_of(optimizer, tensor), pieces))
    return parts


def _state_of(optimizer: Any, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Masters and moments of a tensor that AdamW steps; the moments are made as it makes them at its first step."""
    state = optimizer.state[tensor]
    if not state:
        state["step"] = torch.zeros((), device=tensor.device if optimizer.param_groups[0]["fused"] else "cpu")
        state[FIRST], state[SECOND] = torch.zeros_like(tensor), torch.zeros_like(tensor)
    return {MASTER: tensor, FIRST: state[FIRST], SECOND: state[SECOND]}


def num_updates(engine: Any) -> int:
    """AdamW's own count of its steps."""
    return int(next(iter(engine.optimizer.state.values()))["step"])


@torch.no_grad()
def take_up_state(engine: Any, num_updates: int) -> None:
    """Have the model compute with the masters that `optimizer_state` was filled with, and AdamW count from `num_updates`."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    for state in optimizer.state.values():
        state["step"].fill_(num_updates)
    if stage == 0:
        for flat, group in zip(engine.module.flats, optimizer.param_groups, strict=True):
            flat.copy_(group["params"][0])
    elif stage < 3:
        optimizer.update_lp_params()
    else:
        # Small parameters lie whole on each worker: they are given up, and gathered anew.
        optimizer.checkpoint_event_prologue()
        for weights, masters in zip(
            optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            weights.copy_(masters)
        optimizer.checkpoint_event_epilogue()
