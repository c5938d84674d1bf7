"""A step's loss and gradients at ZeRO 0 to 2: over flat parameters and, on a GPU, from captured CUDA graphs.

A small model's step is hundreds of short kernels. Launching them one by one, and handling hundreds of parameters in Python,
takes several times as long as running them. So DeepSpeed is given the trained weights laid end to end, in at most three
parameters (those that decay and those that do not, and a head that is frozen for a while), and forward and backward pass are
captured once for each shape of batch that comes again, then replayed. Neither changes what is computed. ZeRO-3, which
partitions weights by layer, steps the model itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipelines.adapters.adapters import Adapters
from pipelines.packing.stream import PackedInput

HEAD = "head.weight"
"""The name of a classifier's head."""
ALIGNED = 64
"""Bytes that the beginnings of a step's arguments are multiples of."""


class FlatModel(torch.nn.Module):
    """A module whose parameters `flats` are those that `model` trains, laid end to end; with `own_head`, the head by itself.

    It maps (PackedInput, targets) to the summed loss.

    To be built before and bound after `deepspeed.initialize`, which moves the storage of the parameters that it is given.
    """

    def __init__(
        self, model: torch.nn.Module, adapters: Adapters | None = None, *, capture: bool, own_head: bool = False
    ) -> None:
        super().__init__()
        self._adapters = adapters
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        head = {HEAD: trained.pop(HEAD)} if own_head else {}
        groups = [{n: p for n, p in trained.items() if p.ndim > 1}, {n: p for n, p in trained.items() if p.ndim <= 1}, head]
        self.sizes = [{name: p.numel() for name, p in group.items()} for group in groups if group]
        """What lies in each of `flats`, end to end: by name of the model's parameters, how many numbers."""
        self._groups = [list(group.values()) for group in groups if group]
        self.decays = [group[0].ndim > 1 for group in self._groups]
        self.heads = [bool(head) and sizes.keys() == head.keys() for sizes in self.sizes]
        """Which of `flats` is the head by itself."""
        self.flats = torch.nn.ParameterList(torch.cat([p.detach().reshape(-1) for p in group]) for group in self._groups)
        # Not as a submodule: DeepSpeed is to see the flat parameters only.
        self._model: Callable[..., torch.Tensor]
        object.__setattr__(self, "_model", model)
        self._step = CapturedStep(self.compute_eagerly) if capture else self.compute_eagerly
        self._gradients: list[torch.Tensor] = []

    def bind(self) -> None:
        """Point the model's parameters into the flat ones, wherever they lie by now."""
        for flat, group in zip(self.flats, self._groups, strict=True):
            for parameter, piece in zip(group, flat.data.split([p.numel() for p in group]), strict=True):
                parameter.data = piece.view_as(parameter)

    def forward(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = _LossWithGradients.apply(self, packed, targets, *self.flats)
        return loss

    def compute(self, packed: PackedInput, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The summed loss and its gradient with respect to each of `flats`, in tensors that the next call overwrites."""
        if not self._gradients:
            self._gradients = [torch.empty_like(flat) for flat in self.flats]
        return self._step(packed, targets), self._gradients

    def compute_eagerly(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        """The summed loss, kernel by kernel; the gradients are left where `compute` finds them."""
        # A captured step's segments are its own.
        with torch.enable_grad(), over_segments(self._adapters, packed):
            loss = self._model(packed, targets)
            gradients = iter(torch.autograd.grad(loss, [p for group in self._groups for p in group]))
        for kept, group in zip(self._gradients, self._groups, strict=True):
            torch.cat([next(gradients).reshape(-1) for _ in group], out=kept)
        return loss.detach()


def over_segments(adapters: Adapters | None, packed: PackedInput) -> AbstractContextManager[None]:
    """Compute with `adapters` over the segments of `packed`, if it has any."""
    return adapters.over(packed.segments) if adapters and packed.segments else nullcontext()


class _LossWithGradients(torch.autograd.Function):
    """Forward computes the gradients as well, because a captured graph holds both passes; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, flat_model: FlatModel, packed: PackedInput, targets: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        loss, ctx.gradients = flat_model.compute(packed, targets)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # Products, never the tensors themselves: the next step overwrites those.
        return None, None, None, *(gradient * scale for gradient in ctx.gradients)


class CapturedStep:
    """`compute` from a CUDA graph, captured once for each shape of its arguments, all graphs in one memory pool.

    `compute(packed, *tensors)` must launch the same kernels for all arguments of one shape, and return one tensor; whatever
    else it computes it leaves in tensors that exist before. It computes on the GPU; its arguments are best on the CPU,
    `ARGUMENTS_ON`. The first arguments of a shape are computed with kernel by kernel: what runs for the first time may
    allocate, compile and choose kernels, none of which can be captured, and a shape may come once only.
    """

    ARGUMENTS_ON = torch.device("cpu")

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        self._compute = compute
        self._pool: Any = None
        self._rooms: dict[tuple[Any, ...], _Room] = {}
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def __call__(self, packed: PackedInput, *tensors: torch.Tensor) -> torch.Tensor:
        arguments = [*packed.tensors(), *tensors]
        key = (packed.width, *(tensor.shape for tensor in arguments))
        is_first = key not in self._rooms
        if is_first:
            self._rooms[key] = _Room(arguments)
        room = self._rooms[key]
        room.fill(arguments)
        inputs = packed.with_tensors(room.tensors), *room.tensors[len(packed.tensors()) :]
        if is_first:
            return self._compute(*inputs)
        if key not in self._captured:
            self._captured[key] = self._capture(*inputs)
        graph, result = self._captured[key]
        graph.replay()
        return result.clone()

    def _capture(self, *inputs: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # The captured step is still to come, and must meet the masks that its seed gives a model with dropout of its own.
        random_state = torch.cuda.get_rng_state()
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (NCCL's watchdog, DeepSpeed's) may call CUDA meanwhile; only this one is captured.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self._compute(*inputs)
        torch.cuda.set_rng_state(random_state)
        return graph, result


class _Room:
    """Memory of the GPU for tensors like those given, one after another, so that one copy fills it."""

    def __init__(self, like: Sequence[torch.Tensor]) -> None:
        # Each begins where any kernel may read it.
        self._ends = list(itertools.accumulate(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in like))
        self._memory = torch.empty(self._ends[-1], dtype=torch.uint8, device="cuda")
        self.tensors = self._views(self._memory, like)

    def _views(self, memory: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        starts = [0, *self._ends[:-1]]
        return [
            memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, like, strict=True)
        ]

    def fill(self, tensors: Sequence[torch.Tensor]) -> None:
        """From tensors on the CPU, without waiting for the GPU; those on the GPU are waited for."""
        # Its memory is given to nobody else before the copy has been made.
        staged = torch.empty(self._ends[-1], dtype=torch.uint8, pin_memory=True)
        for piece, tensor in zip(self._views(staged, tensors), tensors, strict=True):
            piece.copy_(tensor)
        self._memory.copy_(staged, non_blocking=True)
