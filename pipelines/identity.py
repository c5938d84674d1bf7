"""Which part of a stage's config is identity, as plain values. Pure: no heavy imports.

Every field of a stage's config is either *identity* (it can change the result, so it is part of the
fingerprint) or *runtime* (it cannot). A plain field is identity; a field declared with :func:`runtime` is
not.
"""

import dataclasses
import hashlib
import math
import os
from enum import Enum
from typing import Any, TypeAlias

from pipelines.errors import UserError

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"

MARKS = "marks"
"""The key under which a stage may return, among its metrics, texts that must stay with its artifact and with all that is
built from it, such as ``["rehearsal"]``: that a result is not what its name promises.
"""

RESULT_FILE = ".result.json"
"""Working state in an artifact's folder that outlives all other until there is a record: the metrics of what is all written,
with which a later attempt is done at once.
"""

UNKNOWN = "unknown"
"""Stands for the hash of a file that is not here, in the identity of what can be planned and not yet built."""


@dataclasses.dataclass(frozen=True)
class FileHash:
    """A file's name and the sha256 of its content in hex: the identity of data that is given as a file."""

    name: str
    sha256: str

    @property
    def is_known(self) -> bool:
        return self.sha256 != UNKNOWN


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a local file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def runtime(default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that cannot change a result: where, how fast and how chattily a stage runs. Not in fingerprints."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={"role": "runtime"})
    return dataclasses.field(default=default, metadata={"role": "runtime"})


def added(default: Any) -> Any:
    """An identity field that a config got when artifacts had been built without it: where it has its default, which must mean
    what was done before, it is left out of the fingerprint, so that these artifacts are still found.
    """
    return dataclasses.field(default=default, metadata={"role": "added"})


def runtime_fields(config_type: type) -> set[str]:
    """Names of the fields declared with :func:`runtime`."""
    return {field.name for field in dataclasses.fields(config_type) if field.metadata.get("role") == "runtime"}


def identity_fields(config_type: type) -> set[str]:
    """Names of the fields that are part of the fingerprint."""
    return {field.name for field in dataclasses.fields(config_type)} - runtime_fields(config_type)


def identity(config: Any) -> dict[str, JsonValue]:
    """The identity fields of a config, recursively, as plain JSON values; without those :func:`added` that have their default.

    Nested dataclasses become objects, tuples become lists, enums their values. A whole number in a field
    annotated ``float`` becomes a float, so that ``learning_rate=1`` and ``learning_rate=1.0``, which are
    equal, have one identity.

    Raises :class:`UserError`, naming field and type, for any other type (a value with no stable identity is
    refused) and for NaN and infinities (JSON has none).
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UserError(f"identity is of a dataclass instance, not of {config!r} ({_type_name(config)}); pass the config")
    return _object(config, path=type(config).__name__)


def _object(config: Any, path: str) -> dict[str, JsonValue]:
    values: dict[str, JsonValue] = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("role") == "runtime":
            continue
        value = getattr(config, field.name)
        if field.metadata.get("role") == "added" and value == field.default:
            continue
        if field.type in (float, "float") and type(value) is int:
            value = float(value)
        values[field.name] = _plain(value, f"{path}.{field.name}")
    return values


def _plain(value: Any, path: str) -> JsonValue:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _object(value, path)
    if isinstance(value, Enum):
        return _plain(value.value, path)
    if isinstance(value, tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{path}={value}: NaN and infinities have no place in an identity; give a finite number")
    # Exact types: a numpy scalar or a str subclass prints like a plain value but need not do so in the next
    # version.
    if value is None or type(value) in (str, int, float, bool):
        return value  # type: ignore[no-any-return]
    raise UserError(
        f"{path}={value!r} is of type {_type_name(value)}, which has no stable identity; use str, int, "
        "float, bool, None, an enum, a tuple or a frozen dataclass of these, or declare it with runtime()"
    )


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
