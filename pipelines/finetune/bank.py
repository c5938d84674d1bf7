"""One frozen base with the adapters, heads and optimizer states of many task models, stepped in passes over all of them.

The base's matrix products are computed over the examples of all members of a pass, and each member's examples meet its own
adapter and head (`adapters/adapters.py`). In each pass those take part that are furthest behind, and of the others those that
fill its tokens. A member that shares its prompts' prefix within its batches computes it once for its examples of a pass.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModel

from pipelines.adapters import adamw
from pipelines.adapters.adamw_settings import NUM_SETTINGS, STAYS, settings_row
from pipelines.adapters.adapters import draw_a, target_layers
from pipelines.adapters.files import A_SUFFIX, adapter_tensors, read_adapter
from pipelines.adapters.fp8 import Fp8Linear
from pipelines.finetune.checkpoints import FIRST, KINDS, MASTER, SECOND, Part, Piece
from pipelines.finetune.course import Course
from pipelines.finetune.job import FinetuneJob, Member
from pipelines.finetune.recipe import adapters_of, check_saved_adapter
from pipelines.finetune.stepping import HEAD, CapturedStep
from pipelines.models.classifier import compute_last_layer_where_read, load_head
from pipelines.models.weights import compile_layers, load_packed, weights_of
from pipelines.packing.batches import IGNORED, Shape, pack, shape_for
from pipelines.packing.dealing import fullest, packed_size, split_by_tokens
from pipelines.packing.segments import Segments, to_device
from pipelines.packing.stream import PackedInput
from pipelines.storage import fetch

MAX_SLOTS = 36
"""More than fit into a pass of 4,096 tokens with MultiNLI in batches of 2: there is a choice of those that fill it."""
STATE_BYTES = 16
"""GPU memory for each adapter parameter: weight, what its master has beyond, gradient (2 each), moments (4 each), some."""
STATE_FILE = "state.safetensors"
TRUNK_NAMES = {"masters": MASTER, "first": FIRST, "second": SECOND}
"""Tensors of that file, each a slot's whole row."""


@dataclass(frozen=True)
class _Step:
    """A step made ready: of which courses, each at its step; the slots that take it; what gives the inputs of each pass."""

    courses: dict[int, tuple[Course, int]]
    chosen: list[int]
    passes: list[Callable[[], tuple[Any, ...]]]
    sizes: torch.Tensor
    settings: torch.Tensor

    def is_of(self, courses: dict[int, Course]) -> bool:
        """Whether `courses` are those it was made for, where they were then."""
        return courses.keys() == self.courses.keys() and all(
            self.courses[slot][0] is course and self.courses[slot][1] == course.next_step for slot, course in courses.items()
        )


@dataclass(frozen=True)
class Layout:
    """How a slot's trained tensors lie in its row, by the names that `alone.gather_trained` gives; and their dtype."""

    shapes: dict[str, torch.Size]
    dtype: torch.dtype

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        ends = itertools.accumulate(sizes)
        return [Piece(name, 0, size, end - size) for name, size, end in zip(self.shapes, sizes, ends, strict=True)]

    @property
    def size(self) -> int:
        return self.pieces[-1].place + self.pieces[-1].size

    def tensors(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a `row`."""
        return {name: row[place : place + size].view(self.shapes[name]) for name, _, size, place in self.pieces}

    def beginning(self, job: FinetuneJob) -> torch.Tensor:
        """A row on the CPU with what `job` begins with: a fresh adapter or its starting point's, and its head."""
        assert job.starting_point is not None, "a classifier starts from a saved head"
        start = Path(fetch(job.starting_point))
        row = torch.zeros(self.size, dtype=self.dtype)
        own = self.tensors(row)
        own.pop(HEAD).copy_(load_head(start, dtype=self.dtype, device=row.device).weight.detach())
        if (start / "adapter").exists():
            check_saved_adapter(start / "adapter", job.config)
            saved = read_adapter(start / "adapter", {name: tensor.shape for name, tensor in own.items()})
            for name, tensor in own.items():
                tensor.copy_(saved[name])
            return row
        # B stays zero.
        for place, tensor in enumerate(tensor for name, tensor in own.items() if name.endswith(A_SUFFIX)):
            tensor.copy_(draw_a(job.seed, place, tensor.shape))
        return row

    def blank_state(self) -> Part:
        """A state for `Bank.set_state` that is still to be filled."""
        return Part({kind: torch.empty(self.size) for kind in KINDS}, self.pieces)

    def read_trunk_state(self, folder: Path) -> Part:
        """A state that `write_trunk_state` kept in `folder`."""
        saved = load_file(folder / STATE_FILE)
        return Part({kind: saved[name] for name, kind in TRUNK_NAMES.items()}, self.pieces)


def write_trunk_state(state: Part, folder: Path) -> None:
    """Keep the `state` that branches leave, which is part of the trunk's output."""
    save_file({name: state.tensors[kind] for name, kind in TRUNK_NAMES.items()}, folder / STATE_FILE)


class Bank:
    """A frozen body with N adapters and heads, each with its optimizer state: N places for members to train in.

    Parameters and state of slot n are row n of matrices [N, P].
    """

    def __init__(self, member: Member, gpu_share: float, most: int, *, num_passes: float) -> None:
        """Of `most` slots, fewer if they do not fit, for members of the shape of this one (`together.shape_together`).

        Layers are compiled if that pays over so many passes.
        """
        config = member.job.config
        self.on_gpu = gpu_share > 0
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.dtype = getattr(torch, config.dtype)
        self.max_norm, self.token_budget = config.max_grad_norm, config.tokens_per_microbatch
        self.freezes_heads = False
        self.batch_size = self.rows_per_slot = 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        weights = weights_of(member.job.starting_point, member.job.base_model)
        self.body = load_packed(AutoModel, weights, self.dtype, self.device)
        if config.gradient_checkpointing:
            self.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Counted on one adapter, then made for as many as fit.
        shape = self.body.config
        adapted = target_layers(self.body, config.lora_targets).values()
        num_in_adapter = config.lora_rank * sum(layer.in_features + layer.out_features for layer in adapted)
        num_labels = len(member.job.task.labels)
        self.num_parameters = num_in_adapter + num_labels * shape.hidden_size
        # A base in FP8 gets its weights in a second order, a byte each.
        still_to_come = sum(layer.weight.nbytes for layer in adapted if isinstance(layer, Fp8Linear))
        self.num_slots = min(most, self._num_fitting(gpu_share, shape, still_to_come))
        self.adapters = adapters_of(self.body, config, seeds=[None] * self.num_slots)
        compute_last_layer_where_read(self.body)
        self.body.train()
        if self.on_gpu and 0 < config.compile_from_steps <= num_passes:
            self.adapters.repeats = True
            compile_layers(self.body)
        self.head = torch.nn.Parameter(
            torch.zeros(self.num_slots, num_labels, shape.hidden_size, device=self.device, dtype=self.dtype)
        )
        layers = self.adapters.layers.values()
        self.parameters = [p for layer in layers for p in (layer.a, layer.b)] + [self.head]
        # One alone has kernels that do not sum them, and its few gradients are read soon.
        self.squares = self.adapters.sum_squares() if self.num_slots > 1 else []
        has_squares = [layer.shared_input.squares is not None for layer in layers for _ in (layer.a, layer.b)]
        self.without_squares = [place for place, has in enumerate([*has_squares, False]) if not has]
        """Places of those `parameters` the squares of whose gradients are still to be summed; the head is always one."""
        rows = {"device": self.device, "dtype": self.dtype}
        self.weights = torch.zeros(self.num_slots, self.num_parameters, **rows)
        names = [*adapter_tensors(self.adapters, 0), HEAD]
        self.layout = Layout({n: p.shape[1:] for n, p in zip(names, self.parameters, strict=True)}, self.dtype)
        self.pieces = self.layout.pieces
        for piece, parameter in zip(self.pieces, self.parameters, strict=True):
            # A view into the slots' rows: what the optimizer writes is what is computed with.
            parameter.data = self.weights[:, piece.place : piece.place + piece.size].view(parameter.shape)
        assert self.layout.size == self.num_parameters
        self.rest = None if self.dtype == torch.float32 else torch.zeros_like(self.weights, dtype=torch.int16)
        self.moments = torch.zeros_like(self.weights, dtype=torch.float32), torch.zeros_like(self.weights, dtype=torch.float32)
        self.losses = torch.zeros(self.num_slots, dtype=torch.float64, device=self.device)
        self.longest = 0
        self._upcoming: _Step | None = None
        self._step = self._compute_and_update
        if self.on_gpu and self.dtype == torch.bfloat16:
            self._step = CapturedStep(self._compute_and_update)

    def _num_fitting(self, gpu_share: float, shape: Any, still_to_come: int) -> int:
        """How many members' state fits beside the body, the bytes that it gets yet, and the activations of a pass."""
        if not self.on_gpu:
            return MAX_SLOTS
        free, total = torch.cuda.mem_get_info()
        # Values a token that a decoder layer keeps for the backward pass: its inputs, norms, projections and their products.
        kept = 12 * shape.hidden_size + 5 * shape.intermediate_size
        activations = 2 * self.token_budget * shape.num_hidden_layers * kept
        room = min(free, total * gpu_share - torch.cuda.memory_allocated()) * 0.92 - activations - still_to_come
        return max(1, int(room / (STATE_BYTES * self.num_parameters)))

    # --- a slot's content ---

    def widen(self, member: Member) -> None:
        """Have room in each slot for a batch of `member`."""
        config = member.job.config
        self.freezes_heads = self.freezes_heads or bool(config.head_frozen_share)
        self.batch_size = max(self.batch_size, config.batch_size)
        # A slot's examples have one prefix, if any.
        self.rows_per_slot = max(self.rows_per_slot, self.batch_size + config.share_prefix)

    def fill(self, slot: int, weights: torch.Tensor) -> None:
        """Put a beginning's `weights` (`Layout.beginning`) into `slot`, with no moments."""
        self.weights[slot].copy_(weights)
        if self.rest is not None:
            self.rest[slot].zero_()
        for moment in self.moments:
            moment[slot].zero_()
        self.losses[slot] = 0

    def tensors(self, slot: int) -> dict[str, torch.Tensor]:
        """The trained tensors of `slot`, a copy on the CPU, by the names that `alone.gather_trained` gives."""
        return self.layout.tensors(self.weights[slot].to("cpu", copy=True))

    def state(self, slot: int) -> Callable[[], Part]:
        """What gives the optimizer's state of `slot` as it is now, on the CPU. Names are those of `tensors`."""
        rows = (self.weights, *self.moments, *([] if self.rest is None else [self.rest]))
        weights, first, second, *rest = (each[slot].to("cpu", copy=True) for each in rows)
        pieces = self.pieces

        def joined() -> Part:
            # On the CPU, and not while the device waits: it may have no room for a master's four bytes.
            masters = adamw.join_masters(weights, *rest) if rest else weights
            return Part({MASTER: masters, FIRST: first, SECOND: second}, pieces)

        return joined

    def set_state(self, slot: int, state: Part, *, loss: float = 0.0) -> None:
        """Put `state`, and the losses since the last logged step, into `slot`."""
        masters = state.tensors[MASTER]
        if self.rest is None:
            self.weights[slot].copy_(masters)
        else:
            for rows, row in zip((self.weights, self.rest), adamw.split_masters(masters), strict=True):
                rows[slot].copy_(row)
        for kind, moment in zip((FIRST, SECOND), self.moments, strict=True):
            moment[slot].copy_(state.tensors[kind])
        self.losses[slot] = loss

    def take_loss(self, slot: int) -> float:
        """The losses of the examples since it was last taken, added up."""
        loss = self.losses[slot].item()
        self.losses[slot] = 0
        return loss

    # --- a step ---

    def step(self, courses: dict[int, Course]) -> None:
        """One optimizer step of those that `_chosen` takes. A batch that does not fit into a pass is computed in several."""
        ready, self._upcoming = self._upcoming, None
        if ready is None or not ready.is_of(courses):
            ready = self._prepare(courses)
        if len(ready.passes) == 1:
            self.losses += self._step(*ready.passes[0](), ready.settings) * ready.sizes
        else:
            total: list[torch.Tensor] = []
            for inputs in ready.passes:
                # Squares of gradients of several passes are not their sum's.
                losses, gradients, _ = self._compute(*inputs())
                self.losses += losses * ready.sizes
                total = [kept.add_(gradient) for kept, gradient in zip(total, gradients, strict=True)] if total else gradients
            self._update(total, ready.settings)
        for slot in ready.chosen:
            courses[slot].advance()
        # While the device computes: a loss that is read waits for it, and what comes then is ready.
        if not any(course.is_over for course in courses.values()):
            self._upcoming = self._prepare(courses)

    def _prepare(self, courses: dict[int, Course]) -> _Step:
        chosen = self._chosen(courses)
        self.longest = max(self.longest, *(course.longest for course in courses.values()))
        if len(chosen) > 1:
            passes = [[(slot, list(range(len(courses[slot].next_batch)))) for slot in chosen]]
        else:
            course = courses[chosen[0]]
            lengths = [course.examples.lengths[i] for i in course.next_batch]
            prefixes = [course.examples.prefixes[i] for i in course.next_batch]
            runs = split_by_tokens(lengths, self.token_budget, prefixes=prefixes)
            passes = [[(chosen[0], run)] for run in runs]
        of_slots = [len(courses[slot].next_batch) if slot in chosen else 0 for slot in range(self.num_slots)]
        # A step of one pass may be captured.
        where = getattr(self._step, "ARGUMENTS_ON", self.device) if len(passes) == 1 else self.device
        inputs: list[Callable[[], tuple[Any, ...]]] = [
            functools.partial(self._inputs, courses, places, where) for places in passes
        ]
        if len(inputs) == 1:
            # Of several passes one at a time has room.
            made = inputs[0]()
            inputs = [lambda: made]
        return _Step(
            courses={slot: (course, course.next_step) for slot, course in courses.items()},
            chosen=chosen,
            passes=inputs,
            sizes=to_device(np.array(of_slots), self.device),
            settings=self._settings(courses, chosen, where),
        )

    def _chosen(self, courses: dict[int, Course]) -> list[int]:
        """Slots of the next pass, ascending: of the half that is furthest behind those that fit, then others that fill it.

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

    def _inputs(
        self, courses: dict[int, Course], taken: Sequence[tuple[int, Sequence[int]]], where: torch.device
    ) -> tuple[Any, ...]:
        """The arguments of `_compute` for a pass over `taken`: slots in ascending order, each with places of its next batch."""
        rows = [(slot, place) for slot, run in taken for place in run]
        examples = [(slot, courses[slot], courses[slot].next_batch[place]) for slot, place in rows]
        sequences = [course.examples.sequences[i] for _, course, i in examples]
        prefixes = [course.examples.prefixes[i]._replace(adapter=slot) for slot, course, i in examples]
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
            packed, where, counts=counts, seeds=seeds, steps=steps, places=[place for _, place in rows]
        )
        # Slot by slot, so that a product of slots and heads has no term in common between slots.
        last = np.full((self.num_slots, self.batch_size), packed.num_tokens - 1, dtype=np.int64)
        targets = np.full_like(last, IGNORED)
        weights = np.zeros(last.shape, dtype=np.float32)
        for number, (slot, place) in enumerate(rows):
            course = courses[slot]
            last[slot, place] = packed.last_index[number]
            targets[slot, place] = course.examples.labels[course.next_batch[place]]
            weights[slot, place] = 1 / len(course.next_batch)
        grid = [to_device(array, where) for array in (last, targets, weights)]
        return PackedInput.from_batch(packed, where, segments), *grid

    def _compute(
        self, packed: PackedInput, last: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Each slot's loss [N], the gradients of `parameters`, [N, P_i] each, and of `squares`: sums of most of theirs.

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
            gradients = torch.autograd.grad(losses.sum(), [*self.parameters, *self.squares])
        of_each = [gradient.reshape(len(gradient), -1) for gradient in gradients]
        return losses.detach(), of_each[: len(self.parameters)], of_each[len(self.parameters) :]

    def _compute_and_update(self, *arguments: Any) -> torch.Tensor:
        """`_compute` of all arguments but the last and `_update` with that one; each slot's loss [N]."""
        *inputs, settings = arguments
        losses, gradients, squares = self._compute(*inputs)
        self._update(gradients, settings, squares)
        return losses

    def _update(self, gradients: list[torch.Tensor], settings: torch.Tensor, squares: Sequence[torch.Tensor] = ()) -> None:
        to_read = [gradients[place] for place in self.without_squares] if squares else gradients
        settings = adamw.clip(settings, to_read, self.max_norm, squares=squares)
        if not self.freezes_heads:
            adamw.update(self.weights, self.rest, *self.moments, gradients, settings)
            return
        # A learning rate of 0 for the head alone: its moments move along, and its weights are put back.
        is_frozen = settings[:, NUM_SETTINGS:] > 0
        heads = [rows[:, -self.head[0].numel() :] for rows in (self.weights, self.rest) if rows is not None]
        before = [rows.clone() for rows in heads]
        adamw.update(self.weights, self.rest, *self.moments, gradients, settings)
        for rows, kept in zip(heads, before, strict=True):
            rows.copy_(torch.where(is_frozen, kept, rows))

    def _settings(self, courses: dict[int, Course], chosen: Sequence[int], where: torch.device) -> torch.Tensor:
        """The settings of the next step for `adamw.update`: slots that are not chosen stay as they are.

        If any head is ever frozen, a further column says which are in this step.
        """
        rows = np.full((self.num_slots, NUM_SETTINGS), STAYS, dtype=np.float32)
        frozen = np.zeros((self.num_slots, 1), dtype=np.float32)
        for slot in chosen:
            course = courses[slot]
            rate = course.learning_rate_at(course.next_step)
            rows[slot] = settings_row(course.next_step + 1, rate=rate, weight_decay=course.config.weight_decay)
            frozen[slot] = course.head_is_frozen
        if self.freezes_heads:
            rows = np.concatenate([rows, frozen], axis=1)
        return to_device(rows, where)
