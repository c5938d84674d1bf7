"""LoRA adapters as plain tensors: one, or many trained at once over one frozen base model.

    adapters = add_adapters(model, LLAMA_PROJECTIONS, rank=64, alpha=16, dropout=0.1, seeds=[7])
    with adapters.over(Segments.from_batch(batch, device, counts=[32], seeds=[7], steps=[step], places=range(32))):
        model(...).backward()

A packed stream's tokens lie in contiguous segments, one an adapter (`Segments`); a named projection (`AdaptedLinear`) computes

    y = x Wᵀ + alpha / rank · B_n A_n dropout(x)        n: the token's adapter; tokens after the last segment have none

(LoRA: arXiv 2106.09685, section 4.1; dropout before A as in peft). Dropout is a function of what is dropped and not of a random
stream: a mask is recomputed wherever it is needed, and an example's masks do not depend on the company it is computed in. On
a GPU in half precision the kernels of `adapter_kernels.py` do the work, elsewhere plain PyTorch; both drop the same elements.

Projections that read one input (queries, keys and values; gate and up) are computed together, `SharedInput`: fewer kernels,
that input comes from memory once for all of them, and its gradient is one sum.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pipelines.errors import UserError
from pipelines.packing import PackedBatch

SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one module that read the same input, by the names that transformers' decoders give them."""

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
TOKENS_PER_TILE = 64
"""Tokens that one program of a kernel handles; they belong to one adapter. Of the 130 or so that one of many adapters has in a
pass, 128 would leave a second tile of a few, which reads all of the adapter again."""

MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Those of the 32-bit hash lowbias32 (Chris Wellons, https://nullprogram.com/blog/2018/07/31/), as int32."""


def token_keys(seed: ArrayLike, step: ArrayLike, place: ArrayLike, position: ArrayLike) -> np.ndarray:
    """The dropout key of each token, int32 in the shape that the four integers (arrays) broadcast to.

    A token is known by its run's `seed`, the optimizer `step`, its example's `place` in that step's whole batch (-1 - n for
    prefix n, which examples share) and its `position` in the example: by nothing that depends on how a batch is dealt and
    packed.
    """
    state = np.zeros(1, dtype=np.uint64)
    for value in (seed, step, place, position):
        # splitmix64 (Steele, Lea and Flood 2014). 64 bits, so that only single tokens and never whole examples can meet.
        state = state + np.asarray(value, dtype=np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(32)).astype(np.uint32).view(np.int32)


@dataclass(frozen=True)
class Segments:
    """Which adapter and which dropout key each of a stream's T tokens has. All on one device.

    Shapes: `starts` int32 [N + 1], adapter n's tokens being starts[n] up to starts[n + 1]; `keys` int32 [T]; `tiles` int32
    [(T + (N + 1) * 63) // 64, 3], rows of (adapter, first token, end) that cover all T tokens once, adapter -1 for those
    after starts[N] and for rows to spare. Shapes depend on T and N only, so a captured graph can be replayed with new contents.

    `last` has those of the tokens at `PackedBatch.last_index`, as a stream of their own.
    """

    starts: torch.Tensor
    keys: torch.Tensor
    tiles: torch.Tensor
    last: Segments | None = None

    @classmethod
    def from_arrays(cls, starts: ArrayLike, keys: np.ndarray, device: torch.device | str) -> Segments:
        """From `starts` [N + 1], ascending from 0 to at most T, and `keys` int32 [T] (zeros if nothing is dropped)."""
        bounds = np.asarray(starts, dtype=np.int64)
        if bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] > len(keys):
            raise ValueError(f"starts={bounds.tolist()} must ascend from 0 to at most the stream's {len(keys)} tokens")
        bounds = np.append(bounds, len(keys))
        owners = [*range(len(bounds) - 2), -1]
        rows = [
            (owner, first, min(first + TOKENS_PER_TILE, end))
            for owner, (begin, end) in zip(owners, itertools.pairwise(bounds.tolist()), strict=True)
            for first in range(begin, end, TOKENS_PER_TILE)
        ]
        tiles = np.full(((len(keys) + len(owners) * (TOKENS_PER_TILE - 1)) // TOKENS_PER_TILE, 3), (-1, 0, 0), dtype=np.int32)
        tiles[: len(rows)] = np.array(rows, dtype=np.int32).reshape(-1, 3)

        def move(array: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            on_gpu = torch.device(device).type == "cuda"
            return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor

        return cls(move(bounds[:-1].astype(np.int32)), move(np.ascontiguousarray(keys, dtype=np.int32)), move(tiles))

    @classmethod
    def from_batch(
        cls,
        batch: PackedBatch,
        device: torch.device | str,
        *,
        counts: Sequence[int],
        seeds: Sequence[int],
        steps: Sequence[int],
        places: Sequence[int],
    ) -> Segments:
        """Of a packed batch whose sequences are, in order, `counts[0]` of adapter 0, `counts[1]` of adapter 1 and so on.

        `seeds` and `steps` are one an adapter, `places` one a sequence: its place in its adapter's whole optimizer batch. A
        prefix is the adapter's whose sequences share it.
        Raises ValueError if the counts do not add up, or if sequences of several adapters share a prefix: its states differ.
        """
        if sum(counts) != batch.num_sequences or len(places) != batch.num_sequences:
            raise ValueError(f"counts={list(counts)} and {len(places)} places for a batch of {batch.num_sequences} sequences")
        contents = batch.contents
        lengths, shared = batch.lengths[: len(contents)], batch.shared[: len(contents)]
        # A prefix lies before the first sequence that shares it.
        sequences = np.where(contents < 0, np.roll(contents, -1), contents)
        adapters = np.repeat(np.arange(len(counts)), counts)[sequences]
        if (shared[1:].astype(bool) & (adapters[1:] != adapters[:-1])).any():
            raise ValueError("a prefix that two adapters share is computed by neither: give each one's sequences their own")
        starts = np.searchsorted(np.repeat(adapters, lengths), np.arange(len(counts) + 1))
        keys = np.zeros(batch.num_tokens, dtype=np.int32)
        row_places = np.where(contents < 0, contents, np.take(places, sequences))
        seed, step, place = (np.repeat(of, lengths) for of in (np.take(seeds, adapters), np.take(steps, adapters), row_places))
        keys[: starts[-1]] = token_keys(seed, step, place, batch.position_ids[: starts[-1]])
        last = cls.from_arrays(np.append(0, np.cumsum(counts)), keys[batch.last_index], device)
        return replace(cls.from_arrays(starts, keys, device), last=last)

    @classmethod
    def of_one(cls, batch: PackedBatch, device: torch.device | str) -> Segments:
        """One adapter for all of a packed batch, which drops nothing, so that no token needs a key."""
        last = cls.from_arrays([0, batch.num_sequences], np.zeros(batch.num_rows, dtype=np.int32), device)
        whole = cls.from_arrays([0, batch.num_tokens], np.zeros(batch.num_tokens, dtype=np.int32), device)
        return replace(whole, last=last)

    def tensors(self) -> list[torch.Tensor]:
        """Everything on the device, in a fixed order; two of one shape differ in nothing else."""
        return [self.starts, self.keys, self.tiles, *(self.last.tensors() if self.last else [])]


def _stir(words: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 words that spreads close ones over their whole range: lowbias32's two products."""
    words = words * MULTIPLIERS[0]
    # A signed shift copies the sign, so what it shifted in is masked out.
    words = words ^ ((words >> 15) & 0x1FFFF)
    return words * MULTIPLIERS[1]


def drop_below(dropout: float) -> int:
    """The int32 below which a hash, uniform over int32, means 'dropped' with probability `dropout`."""
    return round(dropout * 2**32) - 2**31


def keep_mask(keys: torch.Tensor, salt: torch.Tensor, num_channels: int, dropout: float) -> torch.Tensor:
    """Which elements dropout keeps, bool [T, num_channels], of `keys` int32 [T] and the module's `salt` int32 [1].

    Multiply-shift hashing (Dietzfelbinger et al. 1997, https://doi.org/10.1006/jagm.1997.0873): each row draws an odd factor,
    and the product's high bits decide. Only int32 operations that wrap around, so that CPU, GPU and Triton kernels agree in
    every bit, and few: a kernel does them in the time that it waits for memory.
    """
    rows = _stir(keys + salt)
    factors = _stir(rows) | 1
    channels = torch.arange(num_channels, dtype=torch.int32, device=keys.device)
    # The low half tells any two of 65 536 channels apart: those that differ in high bits only would be dropped together.
    columns = (_stir(channels) << 16) ^ channels
    return (rows[:, None] ^ columns) * factors[:, None] >= drop_below(dropout)


def _pieces(starts: torch.Tensor) -> Iterator[tuple[int, slice]]:
    for adapter, (first, end) in enumerate(itertools.pairwise(starts.tolist())):
        yield adapter, slice(first, end)


def _dropped(x: torch.Tensor, keys: torch.Tensor, salt: torch.Tensor, dropout: float) -> torch.Tensor:
    if not dropout:
        return x
    return torch.where(keep_mask(keys, salt, x.shape[1], dropout), x, 0) / (1 - dropout)


def reference_forward(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What `adapted_linears` returns, in plain PyTorch, any dtype and device."""
    outputs = [x @ weight.t() for weight in weights]
    z = x.new_zeros(len(a), len(x), a[0].shape[1])
    for place, y in enumerate(outputs):
        dropped = _dropped(x, keys, salts[place], dropout)
        for n, piece in _pieces(starts):
            z[place, piece] = dropped[piece] @ a[place][n].t()
            y[piece] += scale * (z[place, piece] @ b[place][n].t())
    return outputs, z


def reference_backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """What `adapted_linears_backward` returns, in plain PyTorch, any dtype and device."""
    grad_x = torch.zeros_like(x) if needs_grad_x else x.new_empty(0)
    grads_a, grads_b = [torch.zeros_like(one) for one in a], [torch.zeros_like(one) for one in b]
    for place, grad in enumerate(grads):
        if needs_grad_x:
            grad_x += grad @ weights[place]
        dropped = _dropped(x, keys, salts[place], dropout)
        for n, piece in _pieces(starts):
            grad_z = scale * (grad[piece] @ b[place][n])
            grads_a[place][n] = grad_z.t() @ dropped[piece]
            grads_b[place][n] = scale * (grad[piece].t() @ z[place, piece])
            if needs_grad_x:
                grad_x[piece] += _dropped(grad_z @ a[place][n], keys[piece], salts[place], dropout)
    return grad_x, grads_a, grads_b


def _has_kernels(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


# Custom operators, which torch.compile takes as they are: it neither looks inside nor breaks its graph there.


@torch.library.custom_op("blindsweep::adapted_linears", mutates_args=())
def adapted_linears(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """m projections of one input: their y = x Wᵀ + scale · B_n z and, of all, z = A_n dropout(x) [m, T, rank].

    Shapes: `x` [T, in]; of each projection `weights` [out, in] (frozen), `a` [N, rank, in], `b` [N, out, rank], `salts` int32
    [1], y [T, out], and `out` may differ; `starts`, `keys` and `tiles` as in `Segments`. z is for the backward pass and has no
    gradient. Raises ValueError if `keys` are not as many as tokens.
    """
    if len(keys) != len(x) or len(starts) != len(a[0]) + 1:
        raise ValueError(
            f"segments of {len(keys)} tokens and {len(starts) - 1} adapters "
            f"for a stream of {len(x)} tokens and {len(a[0])} adapters"
        )
    if _has_kernels(x):
        from pipelines.adapter_kernels import forward
    else:
        forward = reference_forward
    return forward(x.contiguous(), weights, a, b, salts, starts, keys, tiles, dropout, scale)


@torch.library.custom_op("blindsweep::adapted_linears_backward", mutates_args=())
def adapted_linears_backward(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    salts: Sequence[torch.Tensor],
    starts: torch.Tensor,
    keys: torch.Tensor,
    tiles: torch.Tensor,
    dropout: float,
    scale: float,
    needs_grad_x: bool,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of x (empty unless `needs_grad_x`), a and b of `adapted_linears`, from `grads` [T, out] of its y."""
    if _has_kernels(x):
        from pipelines.adapter_kernels import backward
    else:
        backward = reference_backward
    grads = [grad.contiguous() for grad in grads]
    return backward(grads, x.contiguous(), z, weights, a, b, salts, starts, keys, tiles, dropout, scale, needs_grad_x)


@adapted_linears.register_fake
def _(
    x: torch.Tensor, weights: Sequence[torch.Tensor], a: Sequence[torch.Tensor], *_: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    outputs = [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]
    return outputs, x.new_empty(len(a), x.shape[0], a[0].shape[1])


@adapted_linears_backward.register_fake
def _(
    grads: Sequence[torch.Tensor],
    x: torch.Tensor,
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    *rest: Any,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    grads_a, grads_b = ([one.new_empty(one.shape) for one in of] for of in (a, b))
    return x.new_empty(x.shape if rest[-1] else 0), grads_a, grads_b


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[torch.Tensor], torch.Tensor]) -> None:
    x, weights, a, b, salts, *segments, ctx.dropout, ctx.scale = inputs
    ctx.num_projections = len(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], *segments, *weights, *a, *b, *salts)


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None], _: Any) -> tuple[Any, ...]:
    num = ctx.num_projections
    none = [None] * num
    if all(grad is None for grad in grads):
        return None, none, none, none, none, *(None,) * 5
    x, z, starts, keys, tiles, *lists = ctx.saved_tensors
    weights, a, b, salts = (lists[first : first + num] for first in range(0, 4 * num, num))
    known = [
        x.new_zeros(x.shape[0], weight.shape[0]) if grad is None else grad for grad, weight in zip(grads, weights, strict=True)
    ]
    needs_grad_x = ctx.needs_input_grad[0]
    grad_x, grads_a, grads_b = adapted_linears_backward(
        known, x, z, weights, a, b, salts, starts, keys, tiles, ctx.dropout, ctx.scale, needs_grad_x
    )
    return grad_x if needs_grad_x else None, none, grads_a, grads_b, none, *(None,) * 5


adapted_linears.register_autograd(_backward, setup_context=_save_for_backward)


class AdaptedLinear(torch.nn.Module):
    """Stands in for `linear`: its weight and bias, frozen, and N adapters `a` [N, rank, in] and `b` [N, out, rank].

    It is computed by its `shared_input`, of which it is number `place`; `add_adapters` sets both.
    """

    shared_input: SharedInput
    place: int

    def __init__(self, linear: torch.nn.Linear, num_adapters: int, *, rank: int, index: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.a = torch.nn.Parameter(self.weight.new_zeros(num_adapters, rank, linear.in_features))
        self.b = torch.nn.Parameter(self.weight.new_zeros(num_adapters, linear.out_features, rank))
        # A tensor and not a number, which torch.compile would compile each layer anew for.
        salt = _stir(torch.tensor([index + 1], dtype=torch.int32, device=self.weight.device))
        self.salt: torch.Tensor
        self.register_buffer("salt", salt, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in], its leading dimensions the stream's T tokens; returns [..., out]."""
        y = self.shared_input.output(self.place, x)
        return y if self.bias is None else y + self.bias


class SharedInput:
    """Projections that read the same input: the one that is called first computes all, the others take theirs from here.

    They do so whatever their order if they are called with the very tensor that the first was called with, and compute anew
    with any other. Between their calls it must not be written to. With `at_last_tokens` the input has only those.
    """

    at_last_tokens = False

    def __init__(self, layers: Sequence[AdaptedLinear], adapters: Adapters, *, scale: float, dropout: float) -> None:
        self.layers, self.adapters, self.scale, self.dropout = list(layers), adapters, scale, dropout
        for place, layer in enumerate(self.layers):
            layer.shared_input, layer.place = self, place
        self.forget()

    def forget(self) -> None:
        """Let go of an input and of outputs that were not taken."""
        self._x: torch.Tensor | None = None
        self._outputs: dict[tuple[int, bool], torch.Tensor] = {}

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """Of layer number `place`, without its bias; `x` [..., in], returns [..., out]."""
        training = self.layers[place].training
        if x is not self._x or (place, training) not in self._outputs:
            self._x, self._outputs = x, self._compute(x, training)
        y = self._outputs.pop((place, training))
        if not self._outputs:
            self.forget()
        return y

    def _compute(self, x: torch.Tensor, training: bool) -> dict[tuple[int, bool], torch.Tensor]:
        """Of all layers in that mode: what is computed together drops at one rate."""
        segments = self.adapters.segments
        if segments is not None and self.at_last_tokens:
            segments = segments.last
        if segments is None:
            raise ValueError("an adapted model computes under `with adapters.over(segments)`, its backward pass as well")
        chosen = {(place, training): layer for place, layer in enumerate(self.layers) if layer.training == training}
        outputs, _ = adapted_linears(
            x.reshape(-1, x.shape[-1]),
            [layer.weight for layer in chosen.values()],
            [layer.a for layer in chosen.values()],
            [layer.b for layer in chosen.values()],
            [layer.salt for layer in chosen.values()],
            segments.starts,
            segments.keys,
            segments.tiles,
            self.dropout if training else 0.0,
            self.scale,
        )
        return {key: y.view(*x.shape[:-1], y.shape[-1]) for key, y in zip(chosen, outputs, strict=True)}


class Adapters:
    """The N adapters of a model: `layers`, its adapted projections by name, and `segments`, the stream that they work on."""

    def __init__(self, num_adapters: int) -> None:
        self.num_adapters = num_adapters
        self.layers: dict[str, AdaptedLinear] = {}
        self.shared_inputs: list[SharedInput] = []
        self.segments: Segments | None = None

    @contextmanager
    def over(self, segments: Segments) -> Iterator[None]:
        """Compute over `segments`: forward and backward pass, because gradient checkpointing computes forward twice."""
        previous = self.segments
        self._turn_to(segments)
        try:
            yield
        finally:
            self._turn_to(previous)

    def _turn_to(self, segments: Segments | None) -> None:
        self.segments = segments
        # What an interrupted pass has left is of other segments, and holds memory.
        for shared_input in self.shared_inputs:
            shared_input.forget()

    def draw(self, adapter: int, seed: int) -> None:
        """Make adapter number `adapter` a fresh one: A from Kaiming's uniform distribution (a = √5) by `seed`, B zero."""

        def drawn(place: int, layer: AdaptedLinear) -> torch.Tensor:
            # On the CPU and in float32, so that a seed means one adapter whatever the device and the dtype.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
            return torch.nn.init.kaiming_uniform_(torch.empty(layer.a.shape[1:]), a=math.sqrt(5), generator=generator)

        layers = list(self.layers.values())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for layer, a in zip(layers, threads.map(drawn, range(len(layers)), layers), strict=True):
                layer.a.data[adapter].copy_(a)
                layer.b.data[adapter].zero_()

    def adapter_tensors(self, adapter: int) -> dict[str, torch.Tensor]:
        """What adapter number `adapter` has learnt, by the names of peft's `adapter_model.safetensors`; views, not copies."""
        return {
            f"{PEFT_PREFIX}{name}.lora_{letter.upper()}.weight": getattr(layer, letter).detach()[adapter]
            for name, layer in self.layers.items()
            for letter in ("a", "b")
        }

    def load_adapter(self, adapter: int, folder: Path) -> None:
        """Make adapter number `adapter` the one that peft, or `adapter_tensors`, saved in `folder`.

        Raises UserError unless it is on the same projections in the same shapes.
        """
        from safetensors.torch import load_file

        saved, own = load_file(folder / ADAPTER_FILE), self.adapter_tensors(adapter)
        if unmatched := sorted(saved.keys() ^ own.keys()):
            raise UserError(
                f"the adapter in {folder} and this model's targets differ in {len(unmatched)} tensors, {unmatched[0]} "
                "the first: use the targets that it was trained with"
            )
        for name, tensor in own.items():
            if saved[name].shape != tensor.shape:
                raise UserError(
                    f"the adapter in {folder} has {name} of shape {list(saved[name].shape)}, this model of "
                    f"{list(tensor.shape)}: use its own rank and base model"
                )
            tensor.copy_(saved[name])


def add_adapters(
    model: torch.nn.Module, targets: Sequence[str], *, rank: int, alpha: float, dropout: float, seeds: Sequence[int | None]
) -> Adapters:
    """Freeze `model` and give its linear layers named `targets` adapters in their own dtype, one for each of `seeds`.

    A target names every linear layer whose dotted name ends with it, as peft's `target_modules`. As in peft, A is drawn from
    Kaiming's uniform distribution (a = √5), here by the adapter's own seed, and B is zero, so that the model is unchanged. The
    adapter of a seed None is zero, to be filled later.
    Raises UserError for a target that names no linear layer and for values that no adapter can have.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise UserError(f"lora_rank={rank} must be above 0, lora_dropout={dropout} at least 0 and below 1")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := [target for target, names in chosen.items() if not names]:
        raise UserError(
            f"lora_targets={unknown} name no linear layer of this model; it has "
            + ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
        )
    model.requires_grad_(False)
    adapters = Adapters(len(seeds))
    named = set().union(*chosen.values())
    for index, name in enumerate(name for name in linears if name in named):
        linear = linears[name]
        layer = AdaptedLinear(linear, len(seeds), rank=rank, index=index)
        layer.train(linear.training)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer)
        adapters.layers[name] = layer
    adapters.shared_inputs = [
        SharedInput(layers, adapters, scale=alpha / rank, dropout=dropout) for layers in _by_input(adapters.layers)
    ]
    for adapter, seed in enumerate(seeds):
        if seed is not None:
            adapters.draw(adapter, seed)
    return adapters


def _by_input(layers: Mapping[str, AdaptedLinear]) -> list[list[AdaptedLinear]]:
    """`layers`, by their dotted names, in groups that read the same input."""
    groups: dict[Any, list[AdaptedLinear]] = {}
    for name, layer in layers.items():
        parent, _, attribute = name.rpartition(".")
        siblings = next((names for names in SHARED_INPUTS if attribute in names), (attribute,))
        # ZeRO-3 gathers a module's weights in that module's own call, and no other's.
        if hasattr(layer.weight, "ds_id"):
            siblings = (attribute,)
        groups.setdefault((parent, siblings, layer.a.shape[2]), []).append(layer)
    return list(groups.values())


def peft_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained tensors of a module that holds an adapted decoder as one of its attributes, adapters under peft's names.

    "body.layers.0.self_attn.q_proj.a" [1, rank, in] becomes "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    [rank, in]; what is no adapter's keeps its name.
    """
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, letter = name.rpartition(".")
        if letter in ("a", "b"):
            renamed[f"{PEFT_PREFIX}{layer.partition('.')[2]}.lora_{letter.upper()}.weight"] = tensor[0]
        else:
            renamed[name] = tensor
    return renamed


def merge_adapter(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, scale: float) -> None:
    """Add scale · B A to the weight of each linear layer of `model` that `tensors`, by peft's names, have an adapter for."""
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
            weight = model.get_parameter(f"{layer}.weight")
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            with torch.no_grad():
                # As one product with one rounding of the sum; A and B may lie on another device.
                weight.addmm_(b.to(weight), a.to(weight), alpha=scale)
