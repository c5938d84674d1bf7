import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.identity import identity, identity_fields, runtime, runtime_fields, sha256_of


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    rate: float
    verbose: bool = runtime(False)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    colour: Colour = Colour.RED
    names: tuple[str, ...] = ("a", "b")
    note: str | None = None
    path: str = runtime("/somewhere")
    sizes: dict[str, int] = runtime(default_factory=dict)


def test_identity_is_plain_json_of_identity_fields_only():
    assert identity(Outer(Inner(0.5, verbose=True), path="/elsewhere")) == {
        "inner": {"rate": 0.5},
        "colour": "red",
        "names": ["a", "b"],
        "note": None,
    }
    assert type(identity(Outer(Inner(0.5)))["colour"]) is str


def test_a_whole_number_in_a_float_field_has_the_identity_of_the_float():
    rate = identity(Inner(1))["rate"]
    assert type(rate) is float and rate == 1.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), ["Inner.rate=nan", "finite"]),
        (float("inf"), ["Inner.rate=inf", "finite"]),
        ({"a": 1}, ["Inner.rate=", "builtins.dict", "tuple"]),
        ([1], ["builtins.list"]),
        (np.float64(0.5), ["numpy.float64"]),
        (print, ["builtins.builtin_function_or_method"]),
    ],
)
def test_values_without_a_stable_identity_are_refused_by_field_and_type(value, words):
    with pytest.raises(UserError) as error:
        identity(Inner(value))
    for word in words:
        assert word in str(error.value)


def test_a_bad_value_deep_inside_is_named_by_its_path():
    with pytest.raises(UserError, match=r"Outer\.names\[1\]"):
        identity(Outer(Inner(0.5), names=("a", {"b"})))  # type: ignore[arg-type]


def test_fields_are_identity_unless_declared_runtime():
    assert identity_fields(Outer) == {"inner", "colour", "names", "note"}
    assert runtime_fields(Outer) == {"path", "sizes"}
    assert dataclasses.replace(Outer(Inner(0.5)), path="/x").path == "/x"


def test_sha256_of_a_file(tmp_path):
    # The digest of "abc" is the standard's own example (FIPS 180-2, appendix B.1).
    (tmp_path / "file").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "file") == digest
