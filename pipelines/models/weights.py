"""Weights of pretrained models, read whole: transformers draws a tensor that a checkpoint lacks at random and only logs it."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipelines.adapters.adapters import target_layers
from pipelines.adapters.files import ADAPTER_FILE, PEFT_PREFIX, merge_adapter
from pipelines.adapters.fp8 import check_capability, fp8_projections
from pipelines.errors import UserError
from pipelines.models.architectures import architecture_in
from pipelines.models.quantization import computes_in_fp8
from pipelines.packing.attention import PACKED, register_packed_attention
from pipelines.storage import fetch

KEPT_SHARE = 0.1
"""The part of the free memory that weights may take which are kept beside those that are trained: GPUs' workers share it."""


def load_weights(auto_class: Any, folder: Path | str, *, source: Path | None = None, **options: Any) -> Any:
    """`auto_class.from_pretrained(folder, **options)`, of which every tensor was in the checkpoint, in its shape.

    An output layer tied to the embeddings need not be there. Raises UserError for a checkpoint that lacks any other tensor,
    which it names as `source`, if the files in `folder` are those of another place.
    """
    model, loading = auto_class.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
    )
    if missing := sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}):
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"the checkpoint in {source or folder} lacks {len(missing)} tensors that {type(model).__name__} needs ({shown}), "
            "or has them in another shape, so that they would be random: copy or download it again, whole"
        )
    return model


def load_packed(
    auto_class: Any,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | None,
    *,
    as_numbers: bool = False,
    is_kept: bool = False,
) -> Any:
    """`load_weights` of a decoder whose attention reads packed batches, on `device`, or left where it is.

    If it `is_kept`, a copy stays in memory for the next call, unless that would take much of what is free.
    Projections of a base quantised to FP8 compute in it unless they are wanted `as_numbers`, for an adapter to be added to.
    Raises UserError for a GPU that cannot.
    """
    register_packed_attention()
    return _placed(folder, device, as_numbers, is_kept, auto_class, dtype=dtype, attn_implementation=PACKED)


def _placed(folder: Path, device: torch.device | None, as_numbers: bool, is_kept: bool, auto_class: Any, **options: Any) -> Any:
    in_fp8 = computes_in_fp8(folder) and not as_numbers
    if in_fp8 and device is None:
        raise UserError(
            "the base model is quantised to fp8, and ZeRO-3 partitions weights of one type only: use zero_stage 0 to 2, or a "
            "base that is not quantised"
        )
    if in_fp8 and device is not None:
        # Before minutes of reading.
        check_capability(device)
    load = load_body if auto_class is AutoModel else functools.partial(load_weights, auto_class)
    model = _copy_of_kept(load, folder, **options) if is_kept else load(folder, **options)
    if device is None:
        return model
    model.to(device)
    if in_fp8:
        fp8_projections(model, architecture_in(folder).projections)
        if device.type == "cuda":
            # The wider weights' memory, which is another process's as long as this one keeps it.
            torch.cuda.empty_cache()
    return model


def _copy_of_kept(load: Callable[..., Any], folder: Path, **options: Any) -> Any:
    """What `load` gives, of which a copy is kept. Of one folder at a time: what was kept before is forgotten."""
    files = sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir())
    key = (*files, str(options))
    if key not in _kept:
        _kept.clear()
        model = load(folder, **options)
        num_bytes = sum(parameter.nbytes for parameter in model.parameters())
        if num_bytes > KEPT_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            return model
        _kept[key] = model
    return copy.deepcopy(_kept[key])


_kept: dict[Any, Any] = {}


def load_body(folder: Path, **options: Any) -> Any:
    """`load_weights` of a checkpoint's body: a decoder without its output layer, an encoder without a pooler."""
    if architecture_in(folder).has_pooler:
        options["add_pooling_layer"] = False
    return load_weights(AutoModel, folder, **options)


def load_classifier_body(
    folder: Path, dtype: torch.dtype, device: torch.device | None, *, as_numbers: bool = False, is_kept: bool = False
) -> Any:
    """`load_body` as T computes with it: a decoder's is `load_packed`, an encoder's attention is transformers' own."""
    if architecture_in(folder).is_encoder:
        return _placed(folder, device, as_numbers, is_kept, AutoModel, dtype=dtype)
    return load_packed(AutoModel, folder, dtype, device, as_numbers=as_numbers, is_kept=is_kept)


def weights_of(task_model: str | None, base_model: str) -> Path:
    """The folder of the weights that a task model stands on: its own, if all were trained, or the base's."""
    if task_model is not None and (own := Path(fetch(task_model)) / "model").exists():
        return own
    return Path(fetch(base_model)) / "model"


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each decoder layer in place, for any sequence length: one graph a layer where our kernels attend, else two."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def merge_saved_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Fold the adapter that peft, or `task_model.save_task_model`, saved in `folder` into the weights of `model`.

    Raises UserError unless it has the tensors of every layer that its settings name, and no other.
    """
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / ADAPTER_FILE)
    layers = target_layers(model, settings["target_modules"])
    needed = {f"{PEFT_PREFIX}{layer}.lora_{letter}.weight" for layer in layers for letter in "AB"}
    if unmatched := sorted(tensors.keys() ^ needed):
        raise UserError(
            f"the adapter in {folder} and the layers that its settings name differ in {len(unmatched)} tensors, "
            f"{unmatched[0]} the first: copy it again, whole"
        )
    merge_adapter(model, tensors, scale=settings["lora_alpha"] / settings["r"])


def place_tensors(model: Any, tensors: dict[str, Any]) -> None:
    """Copy each named tensor into the parameter of that name; a name that the model lacks is a defect of ours."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
