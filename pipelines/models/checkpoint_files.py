"""Files of a checkpoint that somebody else made, looked at before anything is built from them: text and headers first.

A damaged or hostile file is refused here by its name, while no memory for a model has been taken and nothing waits for it.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.architectures import architecture, architecture_in
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import generator_prompt

AGAIN = "copy or download it again, whole"
INDEX_FILE = "model.safetensors.index.json"
MOST_TEXT_BYTES = 256 << 20
"""The largest JSON file of a checkpoint that is read: a tokenizer's has some ten million bytes."""

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "block_count")
# Each is an extent of some tensor, or divides one.
EXTENTS = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "vocab_size", "head_dim", "n_positions"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts"),
    *("embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length"),
)
# Where no weights say what is possible: more than any model has.
MOST_POSITIONS, MOST_LAYERS, LARGEST_EXTENT = 1 << 27, 10_000, 1 << 24


def check_inside(folder: Path, names: Collection[str]) -> None:
    """Raise UserError unless each of `names` is a regular file in `folder`, and small enough if it is JSON.

    A link may lead to another file of the folder or, in a snapshot of the Hugging Face cache, to the repository's blobs.
    """
    root = folder.resolve()
    allowed = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    for name in names:
        path = folder / name
        try:
            leads_to = path.resolve(strict=True)
            status = leads_to.stat()
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is not there, or is a link that leads nowhere: {AGAIN}") from error
        if not any(leads_to.is_relative_to(parent) for parent in allowed):
            raise UserError(
                f"{path} is a link out of its folder, to {leads_to}, and whatever lies there would become part of the "
                "study: if that is meant, put the file itself in its place (cp -L)"
            )
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is no regular file: {AGAIN}")
        if name.endswith(".json") and status.st_size > MOST_TEXT_BYTES:
            raise UserError(f"{path} has {status.st_size:,} bytes, which no checkpoint's JSON has: {AGAIN}")


def check_checkpoint(folder: Path, names: Collection[str]) -> None:
    """Raise UserError for a file among `names` in `folder` that is damaged or asks for what the others cannot give.

    Of safetensors only the headers are read here. See `check_finite` for their values.
    """
    check_texts(folder, names)
    weights = [name for name in names if name.endswith(".safetensors")]
    if INDEX_FILE in names:
        _check_index(folder / INDEX_FILE, weights)
    shapes = [shape for name in weights for shape in _shapes(folder / name)]
    largest = max((extent for shape in shapes for extent in shape), default=0)
    check_shape(folder / "config.json", most_layers=len(shapes), largest_extent=largest)


def check_texts(folder: Path, names: Collection[str]) -> None:
    """Raise UserError unless each of `names` that ends in .json is one JSON object."""
    for name in names:
        if name.endswith(".json"):
            read_object(folder / name)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises UserError if it holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__} where an object is needed: {AGAIN}")
    return content


def _check_index(path: Path, weights: Collection[str]) -> None:
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path} has no weight_map of tensors' names to files' names: {AGAIN}")
    for tensor, file in weight_map.items():
        if "/" in file or "\\" in file or file in ("", ".", ".."):
            raise UserError(
                f"{path} looks for {tensor} in {file!r}, outside its folder: take the checkpoint from whom you trust"
            )
        if file not in weights:
            raise UserError(
                f"{path} looks for {tensor} in {file!r}, which is not in its folder: copy or download that file, too"
            )


def _shapes(path: Path) -> list[list[int]]:
    """The shapes of the tensors in a safetensors file, from its header, which the library compares with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            return [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): {AGAIN}") from error


def check_shape(path: Path, *, most_layers: int = MOST_LAYERS, largest_extent: int = LARGEST_EXTENT) -> None:
    """Raise UserError if the config.json at `path` asks for a model that weights of such a number and extent cannot be, or
    for an architecture that is not known here."""
    config = read_object(path)
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{path} names no model_type: {AGAIN}")
    architecture(config, path)
    check_sizes(path, config, most_layers=most_layers, largest_extent=largest_extent)
    check_heads(path, config)
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(key, "")):
            raise UserError(f"{path} has {key}={config[key]!r}, code from elsewhere, which is never run: remove that line")


def check_sizes(path: Path, sizes: Mapping[str, Any], *, most_layers: int, largest_extent: int) -> None:
    """Raise UserError if one of `sizes`, by its name in a config.json or in GGUF's metadata, is more than the weights allow."""
    for key, value in sizes.items():
        if isinstance(value, Mapping):
            check_sizes(path, value, most_layers=most_layers, largest_extent=largest_extent)
        limits = (
            (LAYERS, most_layers, "the weights beside it have tensors"),
            (EXTENTS, largest_extent, "their largest extent"),
            (("max_position_embeddings", "context_length"), MOST_POSITIONS, "any model has"),
        )
        for names, most, reason in limits:
            if key not in names or value is None:
                continue
            for number in value if isinstance(value, list) else [value]:
                if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= most:
                    raise UserError(
                        f"{path} has {key}={number!r}, where a whole number from 1 to {most:,} is possible ({reason}): {AGAIN}"
                    )


def check_heads(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError if the attention heads that a config.json names cannot share its hidden size, or keys and values.

    Where the heads' size is given, or one of the numbers is not, nothing is said of the hidden size.
    """
    heads, hidden, shared = (settings.get(key) for key in ("num_attention_heads", "hidden_size", "num_key_value_heads"))
    if type(heads) is not int or heads < 1:
        return
    if type(hidden) is int and not settings.get("head_dim") and hidden % heads:
        raise UserError(
            f"{path} has hidden_size={hidden} and num_attention_heads={heads}, which does not divide it, and no head_dim: "
            f"{AGAIN}"
        )
    if type(shared) is int and shared > 0 and heads % shared:
        raise UserError(
            f"{path} has num_attention_heads={heads} and num_key_value_heads={shared}, which does not divide them: {AGAIN}"
        )


def check_finite(path: Path, source: Path) -> None:
    """Raise UserError, which names `source`, if a value in the safetensors file `path` is NaN or infinite.

    Reads the file once, through the page cache.
    """
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            tensor = tensors.get_tensor(name)
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            # Least and greatest carry a NaN along, need no copy and, unlike a sum, cannot overflow.
            extremes = torch.stack(torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float()))
            if not extremes.isfinite().all():
                raise UserError(
                    f"{source} has NaN or infinite values in {name}: {AGAIN}, or take a checkpoint from before they came"
                )


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Have whatever transformers raises over the user's files end as UserError that names `path`, and `what` of it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        words = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: transformers cannot read its {what} ({type(error).__name__}: {words}): {AGAIN}") from error


def check_tokenizer(folder: Path, source: Path) -> None:
    """Raise UserError unless the tokenizer in `folder`, made from `source`, writes the prompts and can end a text.

    An encoder's is asked whether it tells two texts of a pair apart.
    """
    from transformers import AutoConfig, AutoTokenizer

    is_encoder = architecture_in(folder).is_encoder
    with reading(source, "tokenizer"):
        rows = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().vocab_size
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        prompts = [tuple(tokenizer(generator_prompt(label))["input_ids"]) for label in NLI.labels]
        special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep")}
        pair, joined = (tokenizer(*texts)["input_ids"] for texts in (("a", "b"), ("a b",)))
    if is_encoder and (
        special["sep"] is None or pair.count(special["sep"]) < 2 or pair[-1] != special["sep"] or pair == joined
    ):
        raise UserError(f"{source}: its tokenizer puts no separator between the texts of a pair and after them: {AGAIN}")
    if special["eos"] is None and not is_encoder:
        raise UserError(f"{source}: its tokenizer has no end-of-sequence token: {AGAIN}, with tokenizer_config.json")
    if len(set(prompts)) < len(prompts) or not all(prompts):
        raise UserError(f"{source}: its tokenizer writes the prompts of several labels alike, as if no word was known: {AGAIN}")
    for name, number in (*special.items(), ("a prompt's", max(map(max, prompts)))):
        if number is not None and number >= rows:
            raise UserError(
                f"{source}: its tokenizer gives {name} token the number {number}, but the model has {rows} embeddings only: "
                "take tokenizer and weights of one model"
            )
