"""An artifact's identity: the canonical payload of a step, and its fingerprint.

`fingerprint = sha256(canonical JSON of stage, stage version, config, fingerprints of inputs)`. Paths, the
store, resources and tracking are not in it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.errors import UserError
from pipelines.identity import identity

SHORT = 12
"""Hexadecimal digits of a fingerprint that a folder's name shows."""


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, UTF-8 as it is. Raises UserError for NaN and infinities."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{value!r} has no stable identity: {error}; give finite numbers") from error


def payload(stage: str, version: int, config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Everything that can change a stage's result, as plain JSON values.

    `config` is the stage's frozen dataclass, `inputs` maps an input's name to its fingerprint. The config's
    type name is part of it, because two kinds of source or base model may have fields of the same names.
    """
    return {
        "stage": stage,
        "version": version,
        "config": {"type": type(config).__name__, **identity(config)},
        "inputs": dict(sorted(inputs.items())),
    }


def fingerprint(payload: Mapping[str, Any]) -> str:
    """64 hexadecimal digits that name `payload`."""
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested objects as (dotted name, value); a list is one leaf."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flatten(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
