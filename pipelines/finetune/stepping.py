"""A step's loss and gradients at ZeRO 0 to 2: over flat parameters and, on a GPU, from captured CUDA graphs.

A small model's step is hundreds of short kernels. Launching them one by one, and handling hundreds of parameters in Python,
takes several times as long as running them. So DeepSpeed is given the trained weights laid end to end, in at most three
parameters (those that decay and those that do not, and a head that is frozen for a while), and forward and backward pass are
captured once for each shape of batch, then replayed. Neither changes what is computed. ZeRO-3, which partitions weights by
layer, steps the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipelines.packing.stream import PackedInput

HEAD = "head.weight"
"""The name of a classifier's head."""


class FlatModel(torch.nn.Module):
    """A module whose parameters `flats` are those that `model` trains, laid end to end; with `own_head`, the head by itself.

    It maps (PackedInput, targets) to the summed loss.

    To be built before and bound after `deepspeed.initialize`, which moves the storage of the parameters that it is given.
    """

    def __init__(self, model: torch.nn.Module, *, capture: bool, own_head: bool = False) -> None:
        super().__init__()
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
        with torch.enable_grad():
            loss = self._model(packed, targets)
            gradients = iter(torch.autograd.grad(loss, [p for group in self._groups for p in group]))
        for kept, group in zip(self._gradients, self._groups, strict=True):
            torch.cat([next(gradients).reshape(-1) for _ in group], out=kept)
        return loss.detach()


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
    else it computes it leaves in tensors that exist before. It is run before it is captured: if it changes what it reads,
    `rehearse` must launch its kernels on the same arguments and change nothing.
    """

    def __init__(self, compute: Callable[..., torch.Tensor], *, rehearse: Callable[..., torch.Tensor] | None = None) -> None:
        self._compute = compute
        self._rehearse = rehearse or compute
        self._pool: Any = None
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    def __call__(self, packed: PackedInput, *tensors: torch.Tensor) -> torch.Tensor:
        arguments = [*packed.tensors(), *tensors]
        key = (packed.width, *(tensor.shape for tensor in arguments))
        if key in self._captured:
            for static, argument in zip(self._captured[key][1], arguments, strict=True):
                static.copy_(argument, non_blocking=True)
        else:
            self._captured[key] = self._capture(packed, tensors, arguments)
        graph, _, result = self._captured[key]
        graph.replay()
        return result.clone()

    def _capture(
        self, packed: PackedInput, tensors: tuple[torch.Tensor, ...], arguments: list[torch.Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        """Capture on the arguments themselves, which from here on are the graph's own: later ones are copied into them."""
        is_first = self._pool is None
        if is_first:
            self._pool = torch.cuda.graph_pool_handle()
        # The captured step is still to come, and must meet the masks that its seed gives a model with dropout of its own.
        random_state = torch.cuda.get_rng_state()
        # What runs for the first time may allocate, compile and choose kernels, none of which can be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2 if is_first else 1):
                self._rehearse(packed, *tensors)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (NCCL's watchdog, DeepSpeed's) may call CUDA meanwhile; only this one is captured.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = self._compute(packed, *tensors)
        torch.cuda.set_rng_state(random_state)
        return graph, arguments, result
