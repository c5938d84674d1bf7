"""Whether the values of a config are of the types that its fields are annotated with. Pure: no heavy imports."""

import ast
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union

from pipelines.errors import UserError

WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
UNIONS = (Union, types.UnionType)


def check_types(config: Any) -> None:
    """Raise UserError for a field of the dataclass `config` whose value is of another type than its annotation.

    A whole number is a number, and True is none. Other libraries' numbers, such as numpy's, become Python's, and so have the
    same identity. A config calls this before it looks at a value, in its `__post_init__`.
    """
    for name, annotation in _annotations(config.__class__).items():
        value = getattr(config, name)
        try:
            read = _read(annotation, value)
        except TypeError:
            like = next(_like(annotation, value, getattr(type(config), name, None)), "")
            raise UserError(
                f"{type(config).__name__}({name}={value!r}): give {_describe(annotation)}{like and f', such as {like}'}"
            ) from None
        if read is not value:
            object.__setattr__(config, name, read)


@cache
def _annotations(config_type: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def _read(annotation: Any, value: Any) -> Any:
    """`value` itself if it is of the type, or the number of Python's that it is. Raises TypeError for another type."""
    if type(value) is annotation or (annotation is float and type(value) is int):
        return value
    if annotation in (int, float):
        return _number(annotation, value)
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        # What a protocol asks for is looked at where it is asked for.
        is_open = annotation is Any or not isinstance(annotation, type) or getattr(annotation, "_is_protocol", False)
        if is_open or isinstance(value, annotation):
            return value
        if issubclass(annotation, Enum) and value in list(annotation):
            return annotation(value)
        raise TypeError
    if origin in UNIONS:
        return _any_of(options, value)
    if origin is Literal:
        if value not in options:
            raise TypeError
    elif not isinstance(value, origin):
        raise TypeError
    elif origin is tuple:
        each = options[:1] * len(value) if options[1:] == (...,) else options
        if len(each) != len(value):
            raise TypeError
        items = tuple(map(_read, each, value))
        return value if all(item is given for item, given in zip(items, value, strict=True)) else items
    elif issubclass(origin, Mapping):
        for pair in value.items():
            for option, item in zip(options, pair, strict=True):
                _read(option, item)
    elif issubclass(origin, Sequence):
        for item in value:
            _read(options[0], item)
    return value


def _any_of(options: Sequence[Any], value: Any) -> Any:
    for option in options:
        try:
            return _read(option, value)
        except TypeError:
            pass
    raise TypeError


def _number(annotation: Any, value: Any) -> int | float:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool) and annotation is float:
        return float(value)
    raise TypeError


def _describe(annotation: Any) -> str:
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in UNIONS:
        *others, last = map(_describe, options)
        return f"{', '.join(others)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, options))}"
    if origin is tuple:
        if options[1:] != (...,):
            return f"a tuple of {' and '.join(map(_describe, options))}"
        return f"a tuple, of which each is {_describe(options[0])}"
    if isinstance(origin, type):
        if issubclass(origin, Mapping):
            return "a dict"
        return f"a sequence, of which each is {_describe(options[0])}" if issubclass(origin, Sequence) else "a function"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return f"one of {', '.join(repr(option.value) for option in annotation)}"
    return WORDS.get(annotation) or f"{getattr(annotation, '__name__', annotation)}(…)"


def _like(annotation: Any, value: Any, default: Any) -> Iterator[str]:
    """What can be written in the place of `value`: itself in other words, or the field's default."""
    written = [value] if isinstance(value, str) else [repr(tuple(value))] if isinstance(value, Iterable) else []
    written += [repr(int(value))] if isinstance(value, float) and value.is_integer() else []
    written += [repr((value,)), repr(default)]
    for text in written:
        try:
            literal = ast.literal_eval(text)
            _read(annotation, literal)
        except (TypeError, ValueError, SyntaxError):
            continue
        if literal not in (None, "", ()) and not isinstance(literal, bool):
            yield repr(literal) if isinstance(literal, tuple) else text
