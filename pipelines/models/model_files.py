"""Folders of model weights, written: random ones, a GGUF file's, and those of a quantised base. All are plain safetensors."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from pipelines.errors import UserError
from pipelines.imports import without_modules
from pipelines.models.architectures import architecture_in
from pipelines.models.checkpoint_files import reading
from pipelines.models.gguf_files import GgufHeader, parsed_once
from pipelines.models.quantization import FP8, fp8_round_trip, nf4_round_trip, say_fp8
from pipelines.models.weights import load_body, load_weights

SHARD_BYTES = 4 << 30
"""Bytes of a large model's weights in one file: several are read, written and hashed side by side."""


def save_model(model: Any, folder: Path, **options: Any) -> None:
    """`model.save_pretrained(folder, **options)`, without the seconds that it takes to import what nobody uses."""
    # Accelerate looks whether it is one of DeepSpeed's, which imports that, and its autotuner mlflow.
    with without_modules("deepspeed", "mlflow"):
        model.save_pretrained(folder, **options)


def check_complete(folder: Path, source: Path) -> None:
    """Raise UserError unless `folder`, the files of `source`, has every tensor of its body and, if it writes text, of its
    language model. None is kept.

    A tied checkpoint with the output layer alone is whole to the first and lacks the embeddings to the second.
    """
    with reading(source, "weights"):
        if not architecture_in(folder).is_encoder:
            load_weights(AutoModelForCausalLM, folder, source=source, device_map="meta")
        load_body(folder, source=source, device_map="meta")


def num_parameters(folder: Path) -> int:
    """The number of values in the safetensors of `folder`."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (not a dict)
    return count


def write_random(folder: Path, *, seed: int, dtype: str) -> int:
    """Give the config in `folder` weights: normal with its own standard deviation, norms of 1. Returns how many they are."""
    shape = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        auto_class = AutoModel if architecture_in(folder).is_encoder else AutoModelForCausalLM
        model = auto_class.from_config(shape, dtype=getattr(torch, dtype), trust_remote_code=False)
    std = getattr(shape, "initializer_range", 0.02)
    # Parameters are named once each, so that a tied output layer is not written beside the embeddings.
    named = list(model.named_parameters())

    def drawn(position: int) -> torch.Tensor:
        empty = named[position][1]
        tensor = torch.ones(empty.shape, dtype=empty.dtype)
        if empty.ndim < 2:
            return tensor
        # A stream for each tensor, so that all cores draw.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + position)
        return tensor.normal_(0.0, std, generator=generator)

    weight_map: dict[str, str] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for number, positions in enumerate(_shards([empty.nbytes for _, empty in named]), start=1):
            tensors = threads.map(drawn, positions)
            shard = {named[position][0]: tensor for position, tensor in zip(positions, tensors, strict=True)}
            file_name = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file_name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return sum(parameter.numel() for _, parameter in named)


def _shards(sizes: list[int]) -> list[list[int]]:
    """Positions of tensors of so many bytes, in runs that end when they reach `SHARD_BYTES`."""
    runs: list[list[int]] = [[]]
    used = 0
    for position, size in enumerate(sizes):
        if used >= SHARD_BYTES:
            runs.append([])
            used = 0
        runs[-1].append(position)
        used += size
    return runs


def quantize(folder: Path, projections: Sequence[str], *, dtype: str, quantization: str) -> int:
    """Give the weights named `projections` in `folder` the values of their quantised form; returns how many they are."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        if quantization == FP8:
            return fp8_round_trip(weight)
        return nf4_round_trip(weight, double_quantization=quantization == "nf4_double")

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith(tuple(f".{projection}.weight" for projection in projections)):
                tensors[name] = rounded(tensor).to(getattr(torch, dtype))
                count += tensor.numel()
        # Never in place: the file may be a hard link to the user's own.
        fresh = path.with_name(f".{path.name}")
        save_file(tensors, fresh, metadata={"format": "pt"})
        fresh.replace(path)
    if quantization == FP8:
        say_fp8(folder)
    return count


def convert_gguf(source: Path, header: GgufHeader, folder: Path, *, dtype: str) -> dict[str, Any]:
    """Write the model and the tokenizer of a GGUF file, dequantised.

    An output matrix beside the embeddings is kept, untied from them, also where the model was published with one matrix for
    both and the file has it twice, at two precisions. Returns its distance from the embeddings, relative to their size: well
    below 1 it is that same matrix. Raises UserError for a tokenizer that cannot be made to begin texts as the file says.
    """
    # Releases with GgufConfig keep the weights packed unless told otherwise; those without it always dequantise.
    packed: Any = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packed(dequantize=True)} if packed else {}
    kind = getattr(torch, dtype)
    # Alone in a folder: a tokenizer.json that lies beside the file would be taken for its own.
    with tempfile.TemporaryDirectory(prefix="blindsweep-") as alone, parsed_once():
        Path(alone, source.name).symlink_to(source.resolve())
        with reading(source, "weights"):
            model = load_weights(AutoModelForCausalLM, alone, source=source, gguf_file=source.name, dtype=kind, **options)
        with reading(source, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=source.name, trust_remote_code=False)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save_model(model.to(kind), folder)
    # Transformers leaves this out, whatever the file says.
    tokenizer.add_bos_token = header.adds_bos
    tokenizer.save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    if (saved("a")["input_ids"][:1] == [saved.bos_token_id]) != header.adds_bos:
        says = "begins texts with" if header.adds_bos else "leaves out"
        raise UserError(
            f"{source} says that its tokenizer {says} the beginning-of-sequence token ({saved.bos_token!r}), and it cannot be "
            "made to: take the model as a folder with safetensors and tokenizer.json"
        )
    if not header.has_output:
        return {}
    embeddings, output = (layer.weight.float() for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    return {"output_matrix_difference": ((output - embeddings).norm() / embeddings.norm()).item()}
