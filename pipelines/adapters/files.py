"""Adapters under the names and in the file that peft gives them: written, read, merged into weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipelines.adapters.adapters import Adapters
from pipelines.errors import UserError

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
A_SUFFIX = ".lora_A.weight"


def adapter_tensors(adapters: Adapters, adapter: int) -> dict[str, torch.Tensor]:
    """Factors of number `adapter` of `adapters`, by the names in peft's `adapter_model.safetensors`; views, not copies."""
    return {
        f"{PEFT_PREFIX}{name}.lora_{letter.upper()}.weight": getattr(layer, letter).detach()[adapter]
        for name, layer in adapters.layers.items()
        for letter in ("a", "b")
    }


def load_adapter(adapters: Adapters, adapter: int, folder: Path) -> None:
    """Make number `adapter` of `adapters` the one that peft, or `adapter_tensors`, saved in `folder`.

    Raises UserError unless it is on the same projections in the same shapes.
    """
    own = adapter_tensors(adapters, adapter)
    saved = read_adapter(folder, {name: tensor.shape for name, tensor in own.items()})
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def read_adapter(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The adapter saved in `folder`, on the CPU. Raises UserError unless its tensors are those of `shapes`, by name."""
    saved = load_file(folder / ADAPTER_FILE)
    if unmatched := sorted(saved.keys() ^ shapes.keys()):
        raise UserError(
            f"the adapter in {folder} and this model's targets differ in {len(unmatched)} tensors, {unmatched[0]} "
            "the first: use the targets that it was trained with"
        )
    for name, shape in shapes.items():
        if saved[name].shape != shape:
            raise UserError(
                f"the adapter in {folder} has {name} of shape {list(saved[name].shape)}, this model of "
                f"{list(shape)}: use its own rank and base model"
            )
    return saved


def peft_name(name: str) -> str:
    """Name of a parameter of a module that holds an adapted decoder as one of its attributes, an adapter's under peft's.

    "body.layers.0.self_attn.q_proj.a" becomes "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"; what is no
    adapter's keeps its name.
    """
    layer, _, letter = name.rpartition(".")
    return f"{PEFT_PREFIX}{layer.partition('.')[2]}.lora_{letter.upper()}.weight" if letter in ("a", "b") else name


def peft_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained tensors by `peft_name`: of an adapter's [1, ...], the first and only."""
    return {peft_name(name): tensor[0] if peft_name(name) != name else tensor for name, tensor in tensors.items()}


def merge_adapter(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, scale: float) -> None:
    """Add scale · B A to the weight of each linear layer of `model` that `tensors`, by peft's names, have an adapter for."""
    for name, a in tensors.items():
        if name.endswith(A_SUFFIX):
            layer = name.removeprefix(PEFT_PREFIX).removesuffix(A_SUFFIX)
            weight = model.get_parameter(f"{layer}.weight")
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            with torch.no_grad():
                # As one product with one rounding of the sum; A and B may lie on another device.
                weight.addmm_(b.to(weight), a.to(weight), alpha=scale)
