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
    saved, own = load_file(folder / ADAPTER_FILE), adapter_tensors(adapters, adapter)
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
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
            weight = model.get_parameter(f"{layer}.weight")
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            with torch.no_grad():
                # As one product with one rounding of the sum; A and B may lie on another device.
                weight.addmm_(b.to(weight), a.to(weight), alpha=scale)
