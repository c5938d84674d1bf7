"""The header of a GGUF file, walked before the library reads it: that one believes any count, and takes memory for it."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.models.architectures import GGUF_NAMES, architecture
from pipelines.models.checkpoint_files import AGAIN, check_sizes

GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
MOST_GGUF_VALUES = 20_000_000
"""Values in all lists of a GGUF file together, each of which becomes an object of the library that reads them."""


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file's metadata but for its lists, and its tensors' shapes by their names."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, list[int]]

    @property
    def name(self) -> str:
        """The file's own name of its architecture."""
        name: str = self.metadata["general.architecture"]
        return name

    @property
    def model_type(self) -> str:
        """Transformers' name of its architecture, or the file's own."""
        return GGUF_NAMES.get(self.name, self.name)

    @property
    def adds_bos(self) -> bool:
        """Whether its tokenizer begins texts with the beginning-of-sequence token.

        Where the file does not say it, those of SentencePiece ("llama") do, as in llama.cpp, if they have the token.
        """
        adds = self.metadata.get("tokenizer.ggml.add_bos_token")
        if isinstance(adds, bool):
            return adds
        has_token = "tokenizer.ggml.bos_token_id" in self.metadata
        return has_token and self.metadata.get("tokenizer.ggml.model") == "llama"

    @property
    def has_output(self) -> bool:
        """Whether it has an output matrix beside its embeddings."""
        return "output.weight" in self.shapes


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """In here a GGUF file is parsed once, where transformers would for the config, the weights and the tokenizer each.

    The library that does it takes slices of the file for every piece of a vocabulary, of which numpy makes memory maps of their
    own; here they are arrays. Which tensor goes by which name is found once as well, not for each module.
    """
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    ours = {"GGUFReader": functools.cache(Reader), "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map)}
    theirs = {name: getattr(gguf, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(gguf, name, value)
        yield
    finally:
        for name, value in theirs.items():
            setattr(gguf, name, value)


def check_gguf(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`.

    Raises UserError unless it fits the file's size, its shape the tensors, and its architecture is one that is known.
    """
    header = read_gguf(path)
    if header.name not in GGUF_NAMES:
        raise UserError(
            f"{path} has the architecture {header.name!r}, and of GGUF files those of {', '.join(GGUF_NAMES)} are read: take a "
            "folder with safetensors, or a model of one of these"
        )
    architecture({"model_type": header.model_type}, path)
    sizes = {key.removeprefix(f"{header.name}."): number for key, number in header.metadata.items() if isinstance(number, int)}
    largest = max(max(shape) for shape in header.shapes.values())
    check_sizes(path, sizes, most_layers=len(header.shapes), largest_extent=largest)
    return header


def read_gguf(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`. Raises UserError if the file is not as large as that says."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    if size < 24:
        raise UserError(f"{path} is no GGUF file, with {size:,} bytes: {AGAIN}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if data[:4] != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            header = _read_gguf(data, GGML_QUANT_SIZES, GGMLQuantizationType)
        except (ValueError, struct.error, OverflowError, KeyError) as error:
            raise UserError(f"{path} is no whole GGUF file ({error}): {AGAIN}") from error
    if not header.shapes:
        raise UserError(f"{path} is no whole GGUF file (it has no tensors): {AGAIN}")
    return header


def _read_gguf(data: mmap.mmap, block_sizes: Mapping[Any, tuple[int, int]], kinds: Any) -> GgufHeader:
    """The header of a GGUF file's bytes.

    Raises ValueError or struct.error where it ends too early or counts what it does not hold.
    """
    place, num_values = 4, 0

    def take(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        nonlocal place
        length = take("Q")
        if length > len(data) - place:
            raise ValueError(f"at byte {place} a text of {length:,} bytes goes beyond its end")
        place += length
        return bytes(data[place - length : place]).decode(errors="replace")

    def value(kind: int, depth: int = 0) -> Any:
        nonlocal place, num_values
        if kind == GGUF_STRING:
            return text()
        if kind in GGUF_SCALARS:
            return take(GGUF_SCALARS[kind])
        if kind != GGUF_ARRAY or depth > 4:
            raise ValueError(f"at byte {place} there is a value of unknown type {kind}")
        element, length = take("I"), take("Q")
        num_values += length
        least = struct.calcsize(f"<{GGUF_SCALARS[element]}") if element in GGUF_SCALARS else 8
        if length * least > len(data) - place or num_values > MOST_GGUF_VALUES:
            raise ValueError(f"at byte {place} a list of {length:,} values is longer than it can be")
        if element in GGUF_SCALARS:
            place += length * least
            return None
        for _ in range(length):
            value(element, depth + 1)
        return None

    if (version := take("I")) not in (2, 3):
        raise ValueError(f"its version is {version}, where 2 and 3 are read")
    num_tensors, num_keys = take("Q"), take("Q")
    if (num_tensors + num_keys) * 12 > len(data):
        raise ValueError(f"it counts {num_tensors:,} tensors and {num_keys:,} keys in {len(data):,} bytes")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = text()
        metadata[key] = value(take("I"))
    shapes: dict[str, list[int]] = {}
    ends = []
    for _ in range(num_tensors):
        name, num_extents = text(), take("I")
        if not 0 < num_extents <= 4:
            raise ValueError(f"{name} has {num_extents} extents")
        shape = [take("Q") for _ in range(num_extents)]
        kind, start = kinds(take("I")), take("Q")
        values_a_block, bytes_a_block = block_sizes[kind]
        if not all(shape):
            raise ValueError(f"{name} is empty")
        shapes[name] = shape
        ends.append((start + math.prod(shape) // values_a_block * bytes_a_block, name))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    begin = -(-place // alignment) * alignment
    if ends and begin + max(ends)[0] > len(data):
        raise ValueError(f"{max(ends)[1]} would end at byte {begin + max(ends)[0]:,} of {len(data):,}")
    if not isinstance(metadata.get("general.architecture"), str):
        raise ValueError("it names no architecture")
    return GgufHeader(metadata, shapes)
