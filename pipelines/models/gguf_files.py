"""The header of a GGUF file, walked before the library reads it: that one believes any count, and takes memory for it."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.checkpoint_files import AGAIN, check_sizes

GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
MOST_GGUF_VALUES = 20_000_000
"""Values in all lists of a GGUF file together, each of which becomes an object of the library that reads them."""


def check_gguf(path: Path) -> None:
    """Raise UserError unless the GGUF file at `path` has a header that fits its size, and a shape that fits its tensors."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    if size < 24:
        raise UserError(f"{path} is no GGUF file, with {size} bytes: {AGAIN}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if data[:4] != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            sizes, shapes = _read_gguf(data, GGML_QUANT_SIZES, GGMLQuantizationType)
        except (ValueError, struct.error, OverflowError, KeyError) as error:
            raise UserError(f"{path} is no whole GGUF file ({error}): {AGAIN}") from error
    if not shapes:
        raise UserError(f"{path} is no whole GGUF file (it has no tensors): {AGAIN}")
    check_sizes(path, sizes, most_layers=len(shapes), largest_extent=max(max(shape) for shape in shapes))


def _read_gguf(
    data: mmap.mmap, block_sizes: Mapping[Any, tuple[int, int]], kinds: Any
) -> tuple[dict[str, Any], list[list[int]]]:
    """Numbers in a GGUF file's metadata, by their keys without the architecture, and its tensors' shapes.

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
    shapes, ends = [], []
    for _ in range(num_tensors):
        name, num_extents = text(), take("I")
        if not 0 < num_extents <= 4:
            raise ValueError(f"{name} has {num_extents} extents")
        shape = [take("Q") for _ in range(num_extents)]
        kind, start = kinds(take("I")), take("Q")
        values_a_block, bytes_a_block = block_sizes[kind]
        if not all(shape):
            raise ValueError(f"{name} is empty")
        shapes.append(shape)
        ends.append((start + math.prod(shape) // values_a_block * bytes_a_block, name))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    begin = -(-place // alignment) * alignment
    if ends and begin + max(ends)[0] > len(data):
        raise ValueError(f"{max(ends)[1]} would end at byte {begin + max(ends)[0]:,} of {len(data):,}")
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it names no architecture")
    return {key.removeprefix(f"{architecture}."): number for key, number in metadata.items() if isinstance(number, int)}, shapes
