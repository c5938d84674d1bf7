"""What a stage is told about where it runs, and what of its config is identity. Pure: no heavy imports.

Every field of a stage's config is either *identity* (it can change the result, so it is part of the
fingerprint) or *runtime* (it cannot). A plain field is identity; a field declared with :func:`runtime` is
not.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeAlias

from pipelines.errors import UserError

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"
Report: TypeAlias = Callable[[Mapping[str, float], int], None]
"""``report(metrics, step)``: where step metrics go. Picklable; may be called from any process."""


MARKS = "marks"
"""The key under which a stage may return, among its metrics, texts that must stay with its artifact and with all that is
built from it, such as ``["rehearsal"]``: that a result is not what its name promises.
"""


def no_report(metrics: Mapping[str, float], step: int) -> None:
    """The :data:`Report` that keeps nothing."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one stage may use. Runtime, never identity.

    ``cpus_per_worker`` and ``gpus_per_worker`` are Ray's logical units and may be fractions.
    Raises :class:`UserError` for a worker count below 1, a negative or non-finite amount, or a worker that
    asks for nothing.
    """

    num_workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    in_process: bool = False
    """A finetuning's, or an evaluation's, one worker is the process that drives it: it starts in a second instead of ten. For
    models that train in seconds; with a GPU, for a process that has one to itself, which a study's steps have not.
    """
    max_group: int = 1
    """Finetunings, or evaluations, over one base model that one group of workers may take on together, and so start once."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise UserError(f"num_workers={self.num_workers}: a stage needs at least one worker; give 1 or more")
        if self.max_group < 1:
            raise UserError(f"max_group={self.max_group}: a worker takes on at least one step; give 1 or more")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            amount = getattr(self, name)
            if not (math.isfinite(amount) and amount >= 0):
                raise UserError(f"{name}={amount}: an amount of a resource is finite and not negative; give 0 or more")
        if self.in_process and self.num_workers != 1:
            raise UserError(
                f"in_process=True with num_workers={self.num_workers}: one worker can be the driving process; leave in_process "
                "out"
            )
        if not self.as_bundle():
            raise UserError("a worker with 0 CPUs and 0 GPUs cannot be placed; set cpus_per_worker or gpus_per_worker")

    def as_bundle(self) -> dict[str, float]:
        """The resources of *one* worker, as Ray names them; an amount of 0 is left out."""
        amounts = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def total_cpus(self) -> float:
        return self.num_workers * self.cpus_per_worker

    @property
    def total_gpus(self) -> float:
        return self.num_workers * self.gpus_per_worker


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
