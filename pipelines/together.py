"""Task models over one frozen base, finetuned at once by one worker: the authors' batch of 2 fills a GPU when many train.

    for place, result in train_together(members, gpu_share=1.0): ...

The base's matrix products are computed over the examples of all members, and each member's examples meet its own adapter and
head (`adapters.py`). Apart from that a member trains as it would alone: its own examples in its own order, optimizer state,
schedule, clipping, dropout masks, seed, number of steps, log, checkpoints and failure. Members keep no step in common: in each
pass those take part that are furthest behind, and of the others those that fill its tokens; one that ends makes room for the
next. A member that shares its prompts' prefix within its batches computes it once for its examples of a pass. Trunks and
branches (`finetuning.py`) are trained here only: a trunk's state is kept in its output at each branch's first step.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from pipelines import adamw
from pipelines.adamw_settings import settings_row
from pipelines.adapter_files import adapter_tensors, load_adapter
from pipelines.attention import PACKED, PackedInput, register_packed_attention
from pipelines.errors import portable
from pipelines.examples import LABELS
from pipelines.finetuning import (
    STATES,
    TOGETHER,
    Member,
    adapters_of,
    check_loss,
    check_saved_adapter,
    checkpointing_engine,
    compile_layers,
    cooldown_start,
    encode_examples,
    free_memory,
    learning_rate_at,
    load_checkpoint,
    nested_ends,
    planned_batches,
    save_checkpoint,
    save_result,
    shared_prefixes,
    weights_of,
    working_folder,
)
from pipelines.models import compute_last_layer_where_read, load_head
from pipelines.packing import IGNORED, Shape, fullest, pack, packed_size, shape_for, split_by_tokens
from pipelines.segments import Segments
from pipelines.stepping import CapturedStep
from pipelines.storage import fetch, join
from pipelines.weights import adapted_layers, load_weights

MAX_SLOTS = 36
"""More than have room in a pass of 4 096 tokens, 31 with MultiNLI in batches of 2: there is a choice of those that fill it."""
STATE_BYTES = 16
"""Of GPU memory for each adapter parameter: weight, what its master has beyond, gradient (2 each), moments (4 each), some."""
STATE_FILE = "state.safetensors"


def compatible(members: Sequence[Member], places: Sequence[int]) -> list[list[int]]:
    """Those of `places` that can be trained at once, in groups: adapters of one shape for a classifier over the same weights.

    A job that was checkpointed here goes on here, if need be alone, and one on a trajectory is for here only. One that another
    engine has begun is left out.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    bound = set()
    for place in places:
        job, config = members[place].job, members[place].job.config
        engine = checkpointing_engine(members[place].output)
        if engine == TOGETHER or job.is_on_trajectory:
            bound.add(place)
        if job.objective != "classification" or config.method != "lora" or engine not in (None, TOGETHER):
            continue
        weights = _weights(members[place])
        shape = (config.lora_rank, config.lora_alpha, config.lora_targets, config.lora_dropout, config.dtype)
        limits = (config.max_grad_norm, config.tokens_per_microbatch, config.gradient_checkpointing)
        groups[weights, shape, limits].append(place)
    return [group for group in groups.values() if len(group) > 1 or bound.intersection(group)]


def _weights(member: Member) -> Path:
    """The folder of the frozen weights that a job stands on."""
    start = member.job.starting_point
    return weights_of(Path(fetch(start)) if start else None, member.job.base_model)


def train_together(members: Sequence[Member], gpu_share: float) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Train `members`, which `compatible` has put together; yields the place and the metrics (or failure) of each as it ends.

    `gpu_share` is the part of a GPU that is this worker's, 0 for the CPU.
    """
    waiting = deque(enumerate(members))
    most = MAX_SLOTS
    bank: _Bank | None = None
    courses: dict[int, tuple[int, _Course]] = {}  # slot → place, course
    try:
        while True:
            while waiting and (bank is None or len(courses) < bank.num_slots):
                place, member = waiting.popleft()
                try:
                    course = _Course(member)
                    if bank is None:
                        bank = _Bank(members, gpu_share, most, num_passes=course.num_passes(len(members)))
                    slot = next(slot for slot in range(bank.num_slots) if slot not in courses)
                    course.take(bank, slot)
                except Exception as error:
                    yield place, portable(error)
                else:
                    courses[slot] = place, course
            if bank is None or not courses:
                return
            try:
                bank.step({slot: course for slot, (_, course) in courses.items()})
            except torch.OutOfMemoryError as error:
                if bank.num_slots == 1:
                    raise
                # Fewer at a time, from where each was last saved.
                most = bank.num_slots * 3 // 4
                waiting.extendleft((place, course.member) for place, course in reversed(courses.values()))
                courses.clear()
                # The frames of the error hold the tensors of the step.
                error.__traceback__ = bank = None
                free_memory()
                continue
            for slot, (place, course) in list(courses.items()):
                if not course.needs_attention:
                    continue
                try:
                    is_over = course.attend(bank, slot, len(courses))
                except Exception as error:
                    del courses[slot]
                    yield place, portable(error)
                else:
                    if is_over:
                        del courses[slot]
                        yield place, course.metrics(bank)
    finally:
        bank = None
        free_memory()


class _Course:
    """One member's way through its examples."""

    def __init__(self, member: Member) -> None:
        self.started = time.perf_counter()
        self.member, self.job, self.config = member, member.job, member.job.config
        self.sequences, self.labels = encode_examples(self.job)
        self.lengths = [len(sequence) for sequence in self.sequences]
        self.longest = max(self.lengths)
        self.batches = planned_batches(self.job, self.lengths)
        self.prefixes = shared_prefixes(self.job, self.sequences, self.labels)
        ends = [len(self.batches)]
        if self.job.is_on_trajectory:
            ends = nested_ends((*self.job.nested_sizes, len(self.lengths)), self.config.batch_size)
        assert ends[-1] == len(self.batches)
        self.shortest = ends[0]
        self.branched_at = cooldown_start(ends[-1], self.config) if self.job.trunk else 0
        self.kept_at = set() if self.job.trunk else {cooldown_start(end, self.config) for end in ends[:-1]}
        self.next_step = self.first_step = 0
        self.log: list[dict[str, float]] = []
        self.needs_attention = False
        self.neighbours: list[int] = []

    def take(self, bank: _Bank, slot: int) -> None:
        """Begin in `slot`, a branch where it leaves its trunk, or go on from the last checkpoint."""
        bank.fill(slot, self.job)
        if self.branched_at:
            bank.read_state(slot, self._kept_state())
        next_step, self.log = load_checkpoint(
            lambda folder: bank.read_state(slot, Path(folder)), self.member.output, engine=TOGETHER
        )
        self.next_step = self.first_step = max(next_step, self.branched_at)
        self.setup_s = time.perf_counter() - self.started
        self.window_start = self.train_start = time.perf_counter()
        self.window_step = self.next_step

    def _kept_state(self) -> Path:
        assert self.job.trunk is not None
        return Path(fetch(join(self.job.trunk, STATES, f"step{self.branched_at}")))

    @property
    def fraction(self) -> float:
        """Of its own steps; a branch's trunk is not among them."""
        return (self.next_step - self.branched_at) / (len(self.batches) - self.branched_at)

    @property
    def next_batch(self) -> list[int]:
        return self.batches[self.next_step]

    @property
    def num_tokens(self) -> int:
        """Of the next batch."""
        return packed_size([self.lengths[i] for i in self.next_batch], [self.prefixes[i] for i in self.next_batch])

    def num_passes(self, num_courses: int) -> float:
        """Of so many courses like this one: at least its own steps, more if their tokens do not fit into these."""
        steps = self.batches[self.branched_at :]
        num_tokens = sum(self.lengths[i] for batch in steps for i in batch)
        return max(len(steps), num_courses * num_tokens / self.config.tokens_per_microbatch)

    def advance(self) -> None:
        """The next step has been computed."""
        self.next_step += 1
        config, step = self.config, self.next_step
        is_last = step == len(self.batches)
        saves = bool(config.checkpoint_every) and step % config.checkpoint_every == 0
        self.needs_attention = is_last or saves or step in self.kept_at or step % config.log_every == 0

    def attend(self, bank: _Bank, slot: int, num_courses: int) -> bool:
        """Log, check and save what is due after a step. Returns whether it was the last. Raises UserError if it diverged."""
        self.needs_attention = False
        config, step = self.config, self.next_step
        is_last = step == len(self.batches)
        if step % config.log_every == 0 or is_last:
            done = [i for batch in self.batches[self.window_step : step] for i in batch]
            elapsed = time.perf_counter() - self.window_start
            entry = {
                "step": step,
                "loss": bank.take_loss(slot) / len(done),
                "learning_rate": self.learning_rate_at(step - 1),
                "examples_per_s": len(done) / elapsed,
                "tokens_per_s": sum(self.lengths[i] for i in done) / elapsed,
                "fraction_done": self.fraction,
            }
            check_loss(entry["loss"], step, config)
            self.window_step, self.window_start = step, time.perf_counter()
            self.neighbours.append(num_courses)
            self.log.append(entry)
            self.member.report({name: value for name, value in entry.items() if name != "step"}, step)
        if step in self.kept_at:
            with working_folder(join(self.member.output, STATES, f"step{step}")) as folder:
                bank.write_state(slot, folder)
        if is_last:
            save_result(self.member, bank.tensors(slot), self.log)
        elif config.checkpoint_every and step % config.checkpoint_every == 0:
            save_checkpoint(
                lambda folder: bank.write_state(slot, Path(folder)), self.member.output, step, self.log, engine=TOGETHER
            )
        return is_last

    def learning_rate_at(self, step: int) -> float:
        return learning_rate_at(step, len(self.batches), self.config, shortest=self.shortest)

    def metrics(self, bank: _Bank) -> dict[str, Any]:
        train_s = time.perf_counter() - self.train_start
        done = [i for batch in self.batches[self.first_step :] for i in batch]
        return {
            "num_examples": len(self.sequences),
            "num_steps": len(self.batches),
            "num_tokens": sum(self.lengths[i] for batch in self.batches for i in batch),
            "final_loss": self.log[-1]["loss"],
            "train_s": train_s,
            "setup_s": self.setup_s,
            "examples_per_s": len(done) / train_s,
            "tokens_per_s": sum(self.lengths[i] for i in done) / train_s,
            "num_trained_parameters": bank.num_parameters,
            "shared_prefix_tokens": max(prefix.length for prefix in self.prefixes),
            "branched_at_step": self.branched_at or None,
            "resumed_at_step": self.first_step if self.first_step > self.branched_at else None,
            "mean_trained_together": sum(self.neighbours) / len(self.neighbours),
            "peak_gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if bank.on_gpu else None,
        }


class _Bank:
    """A frozen body with N adapters and heads, each with its optimizer state: N places for members to train in.

    Parameters and state of slot n are row n of matrices [N, P].
    """

    def __init__(self, members: Sequence[Member], gpu_share: float, most: int, *, num_passes: float) -> None:
        from transformers import AutoModel

        config = members[0].job.config
        self.on_gpu = gpu_share > 0
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.dtype = getattr(torch, config.dtype)
        self.max_norm, self.token_budget = config.max_grad_norm, config.tokens_per_microbatch
        register_packed_attention()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        body = load_weights(AutoModel, _weights(members[0]), dtype=self.dtype, attn_implementation=PACKED)
        self.body = body.to(self.device)
        if config.gradient_checkpointing:
            self.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Counted on one adapter, then made for as many as fit.
        shape = self.body.config
        adapted = adapted_layers(self.body, config.lora_targets).values()
        num_in_adapter = config.lora_rank * sum(layer.in_features + layer.out_features for layer in adapted)
        self.num_parameters = num_in_adapter + len(LABELS) * shape.hidden_size
        self.num_slots = min(len(members), most, self._num_fitting(gpu_share, shape))
        self.batch_size = max(member.job.config.batch_size for member in members)
        # A slot's examples have one prefix, if any.
        self.rows_per_slot = self.batch_size + any(member.job.config.share_prefix for member in members)
        self.adapters = adapters_of(self.body, config, seeds=[None] * self.num_slots)
        compute_last_layer_where_read(self.body)
        self.body.train()
        if self.on_gpu and 0 < config.compile_from_steps <= num_passes:
            compile_layers(self.body)
        self.head = torch.nn.Parameter(
            torch.zeros(self.num_slots, len(LABELS), shape.hidden_size, device=self.device, dtype=self.dtype)
        )
        self.parameters = [p for layer in self.adapters.layers.values() for p in (layer.a, layer.b)] + [self.head]
        rows = {"device": self.device, "dtype": self.dtype}
        self.weights = torch.zeros(self.num_slots, self.num_parameters, **rows)
        offset = 0
        for parameter in self.parameters:
            size = parameter[0].numel()
            # A view into the slots' rows: what the optimizer writes is what is computed with.
            parameter.data = self.weights[:, offset : offset + size].view(parameter.shape)
            offset += size
        assert offset == self.num_parameters
        self.rest = None if self.dtype == torch.float32 else torch.zeros_like(self.weights, dtype=torch.int16)
        self.moments = (
            torch.zeros_like(self.weights, dtype=torch.float32),
            torch.zeros_like(self.weights, dtype=torch.float32),
        )
        self.losses = torch.zeros(self.num_slots, dtype=torch.float64, device=self.device)
        self.longest = 0
        self._step = self._compute_and_update
        if self.on_gpu and self.dtype == torch.bfloat16:
            self._step = CapturedStep(self._compute_and_update, rehearse=self._compute_and_keep)

    def _num_fitting(self, gpu_share: float, shape: Any) -> int:
        """How many members' state fits beside the body and the activations of a pass."""
        if not self.on_gpu:
            return MAX_SLOTS
        free, total = torch.cuda.mem_get_info()
        # Values a token that a decoder layer keeps for the backward pass: its inputs, norms, projections and their products.
        kept = 12 * shape.hidden_size + 5 * shape.intermediate_size
        activations = 2 * self.token_budget * shape.num_hidden_layers * kept
        room = min(free, total * gpu_share - torch.cuda.memory_allocated()) * 0.92 - activations
        return max(1, int(room / (STATE_BYTES * self.num_parameters)))

    # --- a slot's content ---

    def fill(self, slot: int, job: Any) -> None:
        """Put the beginning of `job` into `slot`: a fresh adapter or its starting point's, its head, no moments."""
        start = Path(fetch(job.starting_point))
        if (start / "adapter").exists():
            check_saved_adapter(start / "adapter", job.config)
            load_adapter(self.adapters, slot, start / "adapter")
        else:
            self.adapters.draw(slot, job.seed)
        self.head.data[slot].copy_(load_head(start, dtype=self.dtype, device=self.device).weight)
        if self.rest is not None:
            self.rest[slot].zero_()
        for moment in self.moments:
            moment[slot].zero_()
        self.losses[slot] = 0

    def tensors(self, slot: int) -> dict[str, torch.Tensor]:
        """What `slot` has learnt, on the CPU, by the names that `finetuning.gather_trained` gives."""
        found = {name: tensor.cpu().clone() for name, tensor in adapter_tensors(self.adapters, slot).items()}
        return {"head.weight": self.head.detach()[slot].cpu().clone(), **found}

    def write_state(self, slot: int, folder: Path) -> None:
        # Joined on the CPU: the device may have no room for a master's four bytes.
        weights, first, second = (rows[slot].cpu() for rows in (self.weights, *self.moments))
        masters = weights if self.rest is None else adamw.join_masters(weights, self.rest[slot].cpu())
        save_file({"masters": masters, "first": first, "second": second}, folder / STATE_FILE)

    def read_state(self, slot: int, folder: Path) -> None:
        state = load_file(folder / STATE_FILE)
        if self.rest is None:
            self.weights[slot].copy_(state["masters"])
        else:
            for rows, row in zip((self.weights, self.rest), adamw.split_masters(state["masters"]), strict=True):
                rows[slot].copy_(row)
        for name, moment in zip(("first", "second"), self.moments, strict=True):
            moment[slot].copy_(state[name])

    def take_loss(self, slot: int) -> float:
        """The losses of the examples since it was last taken, added up."""
        loss = self.losses[slot].item()
        self.losses[slot] = 0
        return loss

    # --- a step ---

    def step(self, courses: dict[int, _Course]) -> None:
        """One optimizer step of some of them, as `_chosen`; of one whose batch does not fit into a pass, in several."""
        chosen = self._chosen(courses)
        self.longest = max(self.longest, *(course.longest for course in courses.values()))
        if len(chosen) > 1:
            passes = [[(slot, list(range(len(courses[slot].next_batch)))) for slot in chosen]]
        else:
            course = courses[chosen[0]]
            lengths = [course.lengths[i] for i in course.next_batch]
            prefixes = [course.prefixes[i] for i in course.next_batch]
            runs = split_by_tokens(lengths, self.token_budget, prefixes=prefixes)
            passes = [[(chosen[0], run)] for run in runs]
        sizes = self._moved(torch.tensor([len(courses[s].next_batch) if s in chosen else 0 for s in range(self.num_slots)]))
        settings = self._settings(courses, chosen)
        if len(passes) == 1:
            self.losses += self._step(*self._inputs(courses, passes[0]), settings) * sizes
        else:
            total: list[torch.Tensor] = []
            for one in passes:
                losses, gradients = self._compute(*self._inputs(courses, one))
                self.losses += losses * sizes
                total = [kept.add_(gradient) for kept, gradient in zip(total, gradients, strict=True)] if total else gradients
            self._update(total, settings)
        for slot in chosen:
            courses[slot].advance()

    def _chosen(self, courses: dict[int, _Course]) -> list[int]:
        """Slots of the next pass, ascending: what is furthest behind of a half of them, and of the others those that fill it.

        So none falls behind for long, and a pass's tokens are used but for a few.
        """
        sizes = {slot: courses[slot].num_tokens for slot in sorted(courses, key=lambda slot: (courses[slot].fraction, slot))}
        behind = list(sizes)
        half = -(-len(behind) // 2)
        # A token of filling, as `_inputs` adds it.
        room = self.token_budget - 1
        chosen: list[int] = []
        for slot in behind[:half]:
            if not chosen or sizes[slot] <= room:
                chosen.append(slot)
                room -= sizes[slot]
        chosen += [behind[half + place] for place in fullest([sizes[slot] for slot in behind[half:]], room)]
        return sorted(chosen)

    def _inputs(self, courses: dict[int, _Course], taken: Sequence[tuple[int, Sequence[int]]]) -> tuple[Any, ...]:
        """Of a pass over places of the next batches of slots in ascending order: the first arguments of `_compute`."""
        rows = [(slot, place) for slot, run in taken for place in run]
        examples = [(slot, courses[slot], courses[slot].next_batch[place]) for slot, place in rows]
        sequences = [course.sequences[i] for _, course, i in examples]
        prefixes = [course.prefixes[i]._replace(adapter=slot) for slot, course, i in examples]
        counts, seeds, steps = [0] * self.num_slots, [0] * self.num_slots, [0] * self.num_slots
        for slot, run in taken:
            counts[slot], seeds[slot], steps[slot] = len(run), courses[slot].job.seed, courses[slot].next_step
        # One token of filling at least: what no example fills in the grid below is read from it.
        num_tokens = packed_size([len(sequence) for sequence in sequences], prefixes) + 1
        num_shared = sum(prefix.length for prefix in prefixes)
        if self.on_gpu:
            shape = shape_for(
                num_tokens,
                num_rows=self.num_slots * self.rows_per_slot,
                width=-(-self.longest // 256) * 256,
                num_shared=num_shared,
            )
        else:
            num_rows = len(rows) + len({prefix for prefix in prefixes if prefix.length})
            shape = Shape(num_tokens, num_rows + 1, self.longest, num_shared)
        packed = pack(sequences, prefixes=prefixes, shape=shape)
        segments = Segments.from_batch(
            packed, self.device, counts=counts, seeds=seeds, steps=steps, places=[place for _, place in rows]
        )
        # Slot by slot, so that a product of slots and heads has no term in common between slots.
        last = np.full((self.num_slots, self.batch_size), packed.num_tokens - 1, dtype=np.int64)
        targets = np.full_like(last, IGNORED)
        weights = np.zeros(last.shape, dtype=np.float32)
        for number, (slot, place) in enumerate(rows):
            course = courses[slot]
            last[slot, place] = packed.last_index[number]
            targets[slot, place] = course.labels[course.next_batch[place]]
            weights[slot, place] = 1 / len(course.next_batch)
        grid = [self._moved(torch.from_numpy(array)) for array in (last, targets, weights)]
        return PackedInput.from_batch(packed, self.device, segments), *grid

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.on_gpu else tensor

    def _compute(
        self, packed: PackedInput, last: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Each slot's loss [N], and the gradients of `parameters`, [N, P_i] each.

        [N, batch_size] are `last`, the place in the stream of an example's last token, `targets`, `weights` in the slot's mean.
        """
        assert packed.segments is not None
        with torch.enable_grad(), self.adapters.over(packed.segments):
            states = self.body(
                input_ids=packed.input_ids, position_ids=packed.position_ids, packed=packed, use_cache=False
            ).last_hidden_state[0]
            states = states.index_select(0, last.flatten()).view(*last.shape, -1)
            logits = torch.bmm(states, self.head.transpose(1, 2)).float()
            each = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
            losses = (each.view_as(weights) * weights).sum(1)
            gradients = torch.autograd.grad(losses.sum(), self.parameters)
        return losses.detach(), [gradient.reshape(len(gradient), -1) for gradient in gradients]

    def _compute_and_update(self, *arguments: Any) -> torch.Tensor:
        """`_compute` of all arguments but the last and `_update` with that one; each slot's loss [N]."""
        *inputs, settings = arguments
        losses, gradients = self._compute(*inputs)
        self._update(gradients, settings)
        return losses

    def _compute_and_keep(self, *arguments: Any) -> torch.Tensor:
        """The same, kernel for kernel, with settings that keep all rows as they are."""
        *inputs, settings = arguments
        return self._compute_and_update(*inputs, torch.full_like(settings, -1.0))

    def _update(self, gradients: list[torch.Tensor], settings: torch.Tensor) -> None:
        settings = adamw.clip(settings, gradients, self.max_norm)
        adamw.update(self.weights, self.rest, *self.moments, gradients, settings)

    def _settings(self, courses: dict[int, _Course], chosen: Sequence[int]) -> torch.Tensor:
        """Of the step that is next, for `adamw.update`: the slots that are not chosen stay as they are."""
        rows = []
        for slot in range(self.num_slots):
            if slot not in chosen:
                rows.append([0.0, 0.0, -1.0, 1.0, 1.0])
                continue
            course = courses[slot]
            rate = course.learning_rate_at(course.next_step)
            rows.append(settings_row(course.next_step + 1, rate=rate, weight_decay=course.config.weight_decay))
        return self._moved(torch.tensor(rows, dtype=torch.float32))
