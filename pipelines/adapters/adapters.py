"""LoRA adapters as plain tensors: one, or many trained at once over one frozen base model.

    adapters = add_adapters(model, LLAMA_PROJECTIONS, rank=64, alpha=16, dropout=0.1, seeds=[7])
    with adapters.over(Segments.from_batch(batch, device, counts=[32], seeds=[7], steps=[step], places=range(32))):
        model(...).backward()

A packed stream's tokens lie in contiguous segments, one an adapter (`Segments`); a named projection (`AdaptedLinear`) computes

    y = x Wᵀ + alpha / rank · B_n A_n dropout(x)        n: the token's adapter; tokens after the last segment have none

(LoRA: arXiv 2106.09685, section 4.1; dropout before A as in peft). `linears.py` computes it.

Projections that read one input (queries, keys and values; gate and up) are computed together, `SharedInput`: fewer kernels,
that input comes from memory once for all of them, and its gradient is one sum.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.adapters.fp8 import Fp8Linear, to_fp8_where_compiled, transposed
from pipelines.adapters.linears import adapted_linears, num_squares
from pipelines.errors import UserError
from pipelines.packing.dropout import stir
from pipelines.packing.segments import Segments

SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one module that read the same input, by the names that transformers' decoders give them."""


class AdaptedLinear(torch.nn.Module):
    """Stands in for `linear`: its weight and bias, frozen, and N adapters `a` [N, rank, in] and `b` [N, out, rank].

    `scales` are those of a weight in FP8, else None. It is computed by its `shared_input`, of which it is number `place`;
    `add_adapters` sets both.
    """

    shared_input: SharedInput
    place: int
    scales: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear, num_adapters: int, *, rank: int, index: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("scales", linear.scales if isinstance(linear, Fp8Linear) else None)
        dtype = linear.dtype if isinstance(linear, Fp8Linear) else self.weight.dtype
        self.a = torch.nn.Parameter(self.weight.new_zeros(num_adapters, rank, linear.in_features, dtype=dtype))
        self.b = torch.nn.Parameter(self.weight.new_zeros(num_adapters, linear.out_features, rank, dtype=dtype))
        # A tensor and not a number, which torch.compile would compile each layer anew for.
        salt = stir(torch.tensor([index + 1], dtype=torch.int32, device=self.weight.device))
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

    def __init__(
        self, layers: Sequence[AdaptedLinear], adapters: Adapters, *, scale: float, dropout: float, trained: bool = True
    ) -> None:
        self.layers, self.adapters, self.scale, self.dropout = list(layers), adapters, scale, dropout
        for place, layer in enumerate(self.layers):
            layer.shared_input, layer.place = self, place
        self._scales: torch.Tensor | None = None
        self._transposed: torch.Tensor | None = None
        scales = [layer.scales for layer in self.layers if layer.scales is not None]
        if scales:
            assert len(scales) == len(self.layers), "a base has all its projections in FP8, or none"
            self._scales = torch.cat(scales)
            if trained:
                self._transposed = transposed([layer.weight for layer in self.layers])
        self.squares: torch.Tensor | None = None
        """A leaf whose gradient is `Operands.squares`', if somebody asked for it."""
        self.forget()

    def forget(self) -> None:
        """Let go of an input and of outputs that were not taken."""
        self._x: torch.Tensor | None = None
        self._outputs: dict[tuple[int, bool], torch.Tensor] = {}

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """Output of layer number `place`, without its bias; `x` [..., in], returns [..., out]."""
        training = self.layers[place].training
        if x is not self._x or (place, training) not in self._outputs:
            self._x, self._outputs = x, self._compute(x, training)
        y = self._outputs.pop((place, training))
        if not self._outputs:
            self.forget()
        return y

    def _compute(self, x: torch.Tensor, training: bool) -> dict[tuple[int, bool], torch.Tensor]:
        """Outputs of all layers in that mode: what is computed together drops at one rate."""
        segments = self.adapters.segments
        if segments is not None and self.at_last_tokens:
            segments = segments.last
        if segments is None:
            raise ValueError("an adapted model computes under `with adapters.over(segments)`, its backward pass as well")
        chosen = {(place, training): layer for place, layer in enumerate(self.layers) if layer.training == training}
        scales, side_by_side = self._scales, self._transposed
        if scales is not None and len(chosen) < len(self.layers):
            scales = torch.cat([layer.scales for layer in chosen.values() if layer.scales is not None])
            side_by_side = None if side_by_side is None else transposed([layer.weight for layer in chosen.values()])
        tokens = x.reshape(-1, x.shape[-1])
        outputs, _ = adapted_linears(
            tokens,
            [layer.weight for layer in chosen.values()],
            [layer.a for layer in chosen.values()],
            [layer.b for layer in chosen.values()],
            [layer.salt for layer in chosen.values()],
            segments.starts,
            segments.keys,
            segments.tiles,
            self.dropout if training else 0.0,
            self.scale,
            scales,
            side_by_side,
            *((None, None) if scales is None else to_fp8_where_compiled([tokens])),
            self.adapters.repeats,
            self.squares if len(chosen) == len(self.layers) else None,
        )
        return {key: y.view(*x.shape[:-1], y.shape[-1]) for key, y in zip(chosen, outputs, strict=True)}


class Adapters:
    """The N adapters of a model: `layers`, its adapted projections by name, and `segments`, the stream that they work on.

    Where `repeats` is set, so many passes follow that kernels of their own are worth a minute's compilation.
    """

    repeats = False

    def __init__(self) -> None:
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

    def sum_squares(self) -> list[torch.Tensor]:
        """Leaves [N, S_i] whose gradients are sums of squares of each adapter's gradients, in parts that are to be added up.

        A pass that has these gradients must have all others, too. Where kernels have no such sums at hand, their
        `SharedInput.squares` stays None.
        """
        for shared_input in self.shared_inputs:
            a, b = [layer.a for layer in shared_input.layers], [layer.b for layer in shared_input.layers]
            if num := num_squares(a, b):
                shared_input.squares = torch.zeros(len(a[0]), num, device=a[0].device, requires_grad=True)
        return [shared_input.squares for shared_input in self.shared_inputs if shared_input.squares is not None]

    def _turn_to(self, segments: Segments | None) -> None:
        self.segments = segments
        # What an interrupted pass has left is of other segments, and holds memory.
        for shared_input in self.shared_inputs:
            shared_input.forget()

    def draw(self, adapter: int, seed: int) -> None:
        """Make adapter number `adapter` a fresh one: A from Kaiming's uniform distribution (a = √5) by `seed`, B zero."""
        layers = list(self.layers.values())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            drawn = threads.map(functools.partial(draw_a, seed), range(len(layers)), (layer.a.shape[1:] for layer in layers))
            for layer, a in zip(layers, drawn, strict=True):
                layer.a.data[adapter].copy_(a)
                layer.b.data[adapter].zero_()


def draw_a(seed: int, place: int, shape: Sequence[int]) -> torch.Tensor:
    """A fresh A [rank, in] of the adapted projection number `place` of a model, float32 on the CPU."""
    # There and so, whatever device and dtype it is for: a seed means one adapter.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
    return torch.nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5), generator=generator)


def add_adapters(
    model: torch.nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    seeds: Sequence[int | None],
    trained: bool = True,
) -> Adapters:
    """Freeze `model` and give its linear layers named `targets` adapters in their own dtype, one for each of `seeds`.

    As in peft, A is drawn from Kaiming's uniform distribution (a = √5), here by the adapter's own seed, and B is zero, so that
    the model is unchanged. The adapter of a seed None is zero, to be filled later. Projections in FP8 are on their device
    before, and have no gradients unless they are `trained`.
    Raises UserError for a target that names no linear layer and for values that no adapter can have.
    """
    if rank < 1 or not 0 <= dropout < 1:
        raise UserError(f"lora_rank={rank} must be above 0, lora_dropout={dropout} at least 0 and below 1")
    if unknown := [target for target in targets if not target_layers(model, [target])]:
        names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        raise UserError(f"lora_targets={unknown} name no linear layer of this model; it has {', '.join(sorted(names))}")
    model.requires_grad_(False)
    adapters = Adapters()
    for index, (name, linear) in enumerate(target_layers(model, targets).items()):
        layer = AdaptedLinear(linear, len(seeds), rank=rank, index=index)
        layer.train(linear.training)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer)
        adapters.layers[name] = layer
    adapters.shared_inputs = [
        SharedInput(layers, adapters, scale=alpha / rank, dropout=dropout, trained=trained)
        for layers in _by_input(adapters.layers)
    ]
    for adapter, seed in enumerate(seeds):
        if seed is not None:
            adapters.draw(adapter, seed)
    return adapters


def target_layers(model: torch.nn.Module, targets: Sequence[str]) -> dict[str, torch.nn.Linear]:
    """The linear layers that `targets` name: those whose dotted name ends with one, as with peft; by their names."""
    endings = tuple(f".{target}" for target in targets)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f".{name}".endswith(endings)
    }


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
