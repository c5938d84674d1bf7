"""A config refuses values of another type than its fields' annotations, by the field's name."""

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.generate.config import GenerationConfig
from pipelines.generate.prompting import Endpoint, Prompting
from pipelines.identity import identity
from pipelines.repair.rows import Repair
from sweep.study import public

ROOT = Path(__file__).parents[2]


class Strange:
    def __repr__(self) -> str:
        return "STRANGE"


STRANGE = Strange()


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Named(Protocol):
    name: str


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Config:
    number: int = 3
    rate: float = 0.25
    flag: bool = False
    text: str = "word"
    colour: Colour = Colour.RED
    choice: Literal["one", "two"] = "one"
    limit: int | None = None
    sizes: tuple[int, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    inner: Inner = Inner()
    parts: Mapping[str, Inner] | None = None
    names: Sequence[str] = ()
    named: Named | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        check_types(self)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"number": "4"}, "Config(number='4'): give a whole number, such as 4"),
        ({"number": 4.0}, "Config(number=4.0): give a whole number, such as 4"),
        ({"number": math.nan}, "Config(number=nan): give a whole number, such as 3"),
        ({"number": True}, "Config(number=True): give a whole number, such as 3"),
        ({"rate": "2e-3"}, "Config(rate='2e-3'): give a number, such as 2e-3"),
        ({"rate": "fast"}, "Config(rate='fast'): give a number, such as 0.25"),
        ({"rate": None}, "Config(rate=None): give a number, such as 0.25"),
        ({"rate": False}, "Config(rate=False): give a number, such as 0.25"),
        ({"flag": 1}, "Config(flag=1): give True or False"),
        ({"flag": "True"}, "Config(flag='True'): give True or False"),
        ({"text": 5}, "Config(text=5): give a text, such as 'word'"),
        ({"colour": "green"}, "Config(colour='green'): give one of 'red', 'blue'"),
        ({"choice": "three"}, "Config(choice='three'): give one of 'one', 'two', such as 'one'"),
        ({"limit": "9"}, "Config(limit='9'): give a whole number or None, such as 9"),
        ({"sizes": 5}, "Config(sizes=5): give a tuple, of which each is a whole number, such as (5,)"),
        ({"sizes": "5,6"}, "Config(sizes='5,6'): give a tuple, of which each is a whole number, such as (5, 6)"),
        ({"sizes": [5, 6]}, "Config(sizes=[5, 6]): give a tuple, of which each is a whole number, such as (5, 6)"),
        ({"sizes": (5, 6.5)}, "Config(sizes=(5, 6.5)): give a tuple, of which each is a whole number"),
        ({"pair": ("a",)}, "Config(pair=('a',)): give a tuple of a text and a whole number, such as ('a', 1)"),
        ({"inner": {"rate": 1}}, "Config(inner={'rate': 1}): give Inner(…)"),
        ({"parts": {"a": 5}}, "Config(parts={'a': 5}): give a dict or None"),
        ({"names": (1,)}, "Config(names=(1,)): give a sequence, of which each is a text"),
    ],
)
def test_a_value_of_another_type_is_refused_by_field_with_what_to_write(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Config(**fields)
    assert str(error.value) == message


def test_values_of_the_annotated_types_stay_as_they_are() -> None:
    sizes = (1, 2)
    config = Config(rate=2, colour="blue", limit=5, sizes=sizes, parts={"a": Inner()}, names=["a"], named=5, anything=[1])  # type: ignore[arg-type]
    assert config.sizes is sizes
    assert type(config.rate) is int and config.colour is Colour.BLUE


@pytest.mark.parametrize(
    ("numpys", "pythons"),
    [
        ({"rate": np.float32(0.5)}, {"rate": 0.5}),
        ({"rate": np.int64(2)}, {"rate": 2}),
        ({"number": np.int64(7), "limit": np.uint8(5)}, {"number": 7, "limit": 5}),
        ({"sizes": tuple(np.array([3, 4]))}, {"sizes": (3, 4)}),
    ],
)
def test_numbers_of_numpy_become_pythons_with_the_same_identity(numpys: dict[str, Any], pythons: dict[str, Any]) -> None:
    read = Config(**numpys)
    for name, value in pythons.items():
        assert repr(getattr(read, name)) == repr(value)
    only_numbers = {"named": None, "parts": None, "names": (), "anything": None}
    assert identity(dataclasses.replace(read, **only_numbers)) == identity(Config(**pythons))


def test_a_studys_recipe_with_numpys_numbers_has_the_identity_of_the_recipe_without() -> None:
    given = FinetuneConfig(learning_rate=np.float64(2e-3), batch_size=np.int32(4))
    assert identity(given) == identity(FinetuneConfig(learning_rate=2e-3, batch_size=4))
    with pytest.raises(UserError, match=r"GenerationConfig\(temperature='1'\): give a number, such as 1$"):
        GenerationConfig(temperature="1")  # type: ignore[arg-type]


def config_types() -> list[type]:
    """The dataclasses that a study's file can make, and the config of every stage."""
    known = [
        value for name in public.__all__ if dataclasses.is_dataclass(value := getattr(public, name)) and type(value) is type
    ]
    named = [
        getattr(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)), name)
        for path in sorted((ROOT / "pipelines").rglob("*.py"))
        for name in re.findall(r"^class (\w+Config)\b", path.read_text(), re.MULTILINE)
    ]
    return list(dict.fromkeys([*known, *named, Prompting, Endpoint, Repair]))


@pytest.mark.parametrize("config_type", config_types(), ids=lambda each: each.__name__)
def test_every_config_refuses_what_is_of_no_type_that_it_has(config_type: type) -> None:
    config = object.__new__(config_type)
    for field in dataclasses.fields(config_type):
        object.__setattr__(config, field.name, STRANGE)
    with pytest.raises(UserError, match=r"STRANGE.*give"):
        config.__post_init__()
