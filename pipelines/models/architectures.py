"""Architectures that a study's models may have, by the `model_type` of a checkpoint's config.json. Pure.

Packed batches ask more of a decoder than that transformers can run it: its attention has to tell sequences apart, and
everything else has to work token by token. One that does neither computes other numbers and says nothing (a state that runs
on from text to text, positions that attention counts by itself), so that only those are taken that a test compares with
transformers' own computation (tests/pipelines/packing/test_attention.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.storage import fetch
from pipelines.terminal import with_article

LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Architecture:
    """A `model_type`. `projections` are the linear layers of each of its layers, by name: those that can have adapters.

    Without any it is trained with all its weights only. An encoder reads a whole text at once, and is a task model only;
    `has_pooler` says that transformers gives its body a layer behind the first token's state, which is left out here.
    """

    model_type: str
    projections: tuple[str, ...] = LLAMA_PROJECTIONS
    is_encoder: bool = False
    has_pooler: bool = False


_NEOX_PROJECTIONS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_BERT_PROJECTIONS = ("query", "key", "value", "dense")
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "olmo", "olmo2", "smollm3")

ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        *map(Architecture, _LLAMA_LIKE),
        Architecture("gpt_neox", _NEOX_PROJECTIONS),
        Architecture("phi", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
        Architecture("phi3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
        Architecture("starcoder2", ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj")),
        Architecture("bert", _BERT_PROJECTIONS, is_encoder=True, has_pooler=True),
        Architecture("roberta", _BERT_PROJECTIONS, is_encoder=True, has_pooler=True),
        # Their projections read relative positions as well as texts, and an adapter's input is texts alone.
        Architecture("deberta", (), is_encoder=True),
        Architecture("deberta-v2", (), is_encoder=True),
    )
}
GGUF_NAMES: Mapping[str, str] = {
    **{name: name for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "starcoder2")},
    "gemma3": "gemma3_text",
}
"""`general.architecture` of the GGUF files that transformers reads → the `model_type` that it gives them."""
BEYOND_LAYERS = ("lm_head", "embed_out")
"""Names of a decoder's output layer, which a generator can have an adapter on."""
FIXED_ROTATIONS = ("default", "linear", "yarn", "llama3")
"""Kinds of rotary positions that are the same whatever else is in a batch."""


def architecture(settings: Mapping[str, Any], source: object) -> Architecture:
    """The architecture of the config.json whose content is `settings`.

    Raises UserError, which names `source`, for one that would not compute here what it computes in transformers.
    """
    model_type = settings.get("model_type")
    found = ARCHITECTURES.get(str(model_type))
    if found is None:
        text_only = "; of a model that reads images as well, take the one that reads text" if "text_config" in settings else ""
        raise UserError(
            f"{source} has model_type={model_type!r}, none of those that are known to compute here what they compute in "
            f"transformers, and code that comes with a checkpoint is never run: take a model of one of them "
            f"({', '.join(ARCHITECTURES)}){text_only}"
        )
    rotations = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    for kind in _rotation_kinds(rotations):
        if kind not in FIXED_ROTATIONS:
            raise UserError(
                f"{source} has rotary positions of the kind {kind!r}, which change with the longest text of a batch, so that a "
                f"text's result would hang on its neighbours; take a model with one of {', '.join(FIXED_ROTATIONS)}"
            )
    if settings.get("use_bidirectional_attention"):
        raise UserError(
            f"{source} has use_bidirectional_attention, under which a token sees those after it, and T and G are causal: take "
            "the model that writes text"
        )
    if found.is_encoder and settings.get("is_decoder"):
        raise UserError(
            f"{source} has is_decoder=true, and {with_article(str(model_type))} is an encoder here: take the one that reads "
            "whole texts"
        )
    return found


def saved_architecture(base_model: str) -> Architecture:
    """The architecture of a base-model artifact."""
    return architecture_in(Path(fetch(base_model)) / "model")


def architecture_in(folder: Path) -> Architecture:
    """The architecture of the checkpoint in `folder`."""
    return architecture(json.loads((folder / "config.json").read_text()), folder)


def check_targets(name: str, targets: Sequence[str], model_type: str) -> None:
    """Raise UserError, which names the recipe `name`, if adapters on `targets` do not fit a known `model_type`."""
    found = ARCHITECTURES.get(model_type)
    if found is None:
        return
    if not found.projections:
        raise UserError(
            f"{name} has method='lora' and is {with_article(model_type)}, whose projections read more than texts, so that none "
            "can have an adapter: use method='full'"
        )
    beyond = () if found.is_encoder else BEYOND_LAYERS
    if unknown := [target for target in targets if target.rpartition(".")[2] not in (*found.projections, *beyond)]:
        raise UserError(
            f"{name} has lora_targets={tuple(targets)}, and {with_article(model_type)} has no layers named "
            f"{', '.join(unknown)}: give lora_targets={found.projections}"
        )


def _rotation_kinds(rotations: Mapping[str, Any]) -> set[str]:
    """The kinds in a config's `rope_parameters`, which some models have for each kind of layer, or older `rope_scaling`."""
    nested = [value for value in rotations.values() if isinstance(value, Mapping)]
    return {str(one.get("rope_type") or one.get("type") or "default") for one in (nested or [rotations])}
