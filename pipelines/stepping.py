"""A step's loss and gradients at ZeRO 0 to 2: over flat parameters and, on a GPU, from captured CUDA graphs.

A small model's step is hundreds of kernels of a few microseconds each. Launching them one by one, and handling a few hundred
parameters in Python, takes several times as long as running them. So DeepSpeed is given the trained weights laid end to end, in
at most two parameters (those that decay and those that do not), and forward and backward pass are captured once for each shape
of batch, then replayed. Neither changes what is computed. ZeRO-3, which partitions weights by layer, steps the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipelines.attention import PackedInput


class FlatModel(torch.nn.Module):
    """`model`'s trained parameters, laid end to end, as the parameters `flats`; maps (PackedInput, targets) to the summed loss.

    To be built before and bound after `deepspeed.initialize`, which moves the storage of the parameters that it is given.
    """

    def __init__(self, model: torch.nn.Module, *, capture: bool) -> None:
        super().__init__()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [[p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]]
        self._groups = [group for group in groups if group]
        self.decays = [group[0].ndim > 1 for group in self._groups]
        self.flats = torch.nn.ParameterList(torch.cat([p.detach().reshape(-1) for p in group]) for group in self._groups)
        # Not as a submodule: DeepSpeed is to see the flat parameters only.
        self._model: Callable[..., torch.Tensor]
        object.__setattr__(self, "_model", model)
        self._graphs = _Graphs(self) if capture else None

    def bind(self) -> None:
        """Point the model's parameters into the flat ones, wherever they lie by now."""
        for flat, group in zip(self.flats, self._groups, strict=True):
            for parameter, piece in zip(group, flat.data.split([p.numel() for p in group]), strict=True):
                parameter.data = piece.view_as(parameter)

    def forward(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = _LossWithGradients.apply(self, packed, targets, *self.flats)
        return loss

    def compute(self, packed: PackedInput, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The summed loss and its gradient with respect to each of `flats`."""
        if self._graphs is not None:
            return self._graphs(packed, targets)
        return self.compute_eagerly(packed, targets)

    def compute_eagerly(self, packed: PackedInput, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As `compute`, kernel by kernel."""
        with torch.enable_grad():
            loss = self._model(packed, targets)
            gradients = iter(torch.autograd.grad(loss, [p for group in self._groups for p in group]))
        flat = [torch.cat([next(gradients).reshape(-1) for _ in group]) for group in self._groups]
        return loss.detach(), flat


class _LossWithGradients(torch.autograd.Function):
    """Forward computes the gradients as well, because a captured graph holds both passes; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, flat_model: FlatModel, packed: PackedInput, targets: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        loss, ctx.gradients = flat_model.compute(packed, targets)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # A product, never the graph's own buffer: that one is overwritten by the next replay.
        return None, None, None, *(gradient * scale for gradient in ctx.gradients)


class _Graphs:
    """One captured forward and backward pass for each shape of batch, all in one memory pool."""

    def __init__(self, flat_model: FlatModel) -> None:
        self._flat_model = flat_model
        self._pool: Any = None
        self._gradients: list[torch.Tensor] = []
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, PackedInput, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, packed: PackedInput, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        shape = tuple(len(tensor.view(-1)) for tensor in (*packed.tensors(), targets))
        if shape not in self._captured:
            self._captured[shape] = self._capture(packed, targets)
        else:
            _, static, static_targets, _ = self._captured[shape]
            for target, source in zip((*static.tensors(), static_targets), (*packed.tensors(), targets), strict=True):
                target.copy_(source, non_blocking=True)
        graph, _, _, loss = self._captured[shape]
        graph.replay()
        return loss.clone(), self._gradients

    def _capture(
        self, packed: PackedInput, targets: torch.Tensor
    ) -> tuple[torch.cuda.CUDAGraph, PackedInput, torch.Tensor, torch.Tensor]:
        """Capture on `packed` itself, which from here on is the graph's own: later batches are copied into it."""
        compute = self._flat_model.compute_eagerly
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._gradients = [torch.empty_like(flat) for flat in self._flat_model.flats]
        # The captured step is still to come, and must meet the dropout masks that its seed gives.
        random_state = torch.cuda.get_rng_state()
        # What runs for the first time may allocate, compile and choose kernels, none of which can be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                compute(packed, targets)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (NCCL's watchdog, DeepSpeed's) may call CUDA meanwhile; only this one is captured.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss, gradients = compute(packed, targets)
            for kept, gradient in zip(self._gradients, gradients, strict=True):
                kept.copy_(gradient)
        torch.cuda.set_rng_state(random_state)
        return graph, packed, targets, loss
