"""Loads an Experiment by `demo` or `my_study.py:function` and its `-p name=value`."""

import ast
import difflib
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Union

from pipelines.errors import UserError
from pipelines.user_file import module_from_file, place_of
from sweep.study import public
from sweep.study.experiment import Experiment

Function = Callable[..., Experiment]
PACKAGES = ("pipelines", "sweep", "analysis")
RENAMED = {"TASK_MODEL": "PAPER_TASK_MODEL", "GENERATOR": "PAPER_GENERATOR"}
"""Public names that were others where they used to be."""


@dataclass(frozen=True)
class Loaded:
    """An experiment, the parameters that it was made with, defaults included, and what was given to have it."""

    experiment: Experiment
    parameters: Mapping[str, Any]
    command: Mapping[str, Any] = field(default_factory=dict)
    """`load_experiment`'s arguments: the experiment, the study's name and the `name=value` texts."""


def builtin_experiments() -> dict[str, Function]:
    """The functions of sweep/study/experiments.py and real_study.py that return an Experiment, by name."""
    from sweep.study import experiments, real_study

    return _experiment_functions(experiments) | _experiment_functions(real_study)


def load_experiment(experiment: str, assignments: Sequence[str] = (), *, name: str | None = None) -> Loaded:
    """A built-in `experiment` or `file.py[:function]`, by `name` if that is given; `assignments` are `name=value` texts.

    Raises UserError for an unknown name or parameter (with the valid ones), a value of the wrong type, and
    any error in the user's file, with its line.
    """
    if is_file(experiment):
        function, file = _function_of_file(experiment)
    else:
        known = builtin_experiments()
        if experiment not in known:
            raise UserError(
                f"no experiment {experiment!r}; built in: {', '.join(known)}{_did_you_mean(experiment, known)}; "
                "for one of your own give its file: my_study.py or my_study.py:function"
            )
        function, file = known[experiment], None
    arguments = parse_parameters(function, assignments)
    try:
        made = function(**arguments)
    except Exception as error:
        if file is None:
            raise
        raise UserError(_located(error, file)) from None
    if not isinstance(made, Experiment):
        raise UserError(f"{experiment}: {function.__name__}() returned {type(made).__name__}, not an Experiment")
    with_defaults = inspect.signature(function).bind(**arguments)
    with_defaults.apply_defaults()
    parameters = {parameter: _plain(value) for parameter, value in with_defaults.arguments.items()}
    given = {"experiment": experiment, "name": name, "parameters": list(assignments)}
    return Loaded(replace(made, name=name or made.name, parameters=tuple(parameters)), parameters, given)


def is_file(name: str) -> bool:
    """Whether `name` is `file.py[:function]`."""
    return name.partition(":")[0].endswith(".py")


def parse_parameters(function: Function, assignments: Sequence[str]) -> dict[str, Any]:
    """Arguments for `function` from `name=value` texts, by the types of its annotations."""
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    arguments: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        name = name.strip()
        if not separator:
            raise UserError(f"-p {assignment}: write it as name=value")
        if name not in signature.parameters:
            valid = ", ".join(signature.parameters) or "none"
            raise UserError(
                f"{function.__name__} has no parameter {name!r}{_did_you_mean(name, signature.parameters)}; valid: {valid}"
            )
        if name in arguments:
            raise UserError(f"-p {name} is given twice; give it once")
        try:
            arguments[name] = _parse(text.strip(), hints.get(name, str))
        except ValueError:
            raise UserError(f"-p {assignment}: {text!r} is not {_describe(hints.get(name, str))}") from None
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in arguments
    ]
    if missing:
        raise UserError(
            f"{function.__name__} needs {', '.join(missing)}; give " + " ".join(f"-p {name}=..." for name in missing)
        )
    return arguments


def _parse(text: str, annotation: Any) -> Any:
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        items = [item for item in text.strip("()").split(",") if item.strip()]
        return tuple(_parse(item.strip(), options[0]) for item in items)
    if origin in (Union, types.UnionType):
        if type(None) in options and text.lower() == "none":
            return None
        for option in options:
            if option is not type(None):
                try:
                    return _parse(text, option)
                except ValueError:
                    continue
        raise ValueError
    if origin is Literal:
        for option in options:
            if text == str(option):
                return option
        raise ValueError
    if annotation is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise ValueError
    if annotation is int:
        return int(text.replace("_", ""))
    if annotation in (float, Path, str):
        return annotation(text)
    raise UserError(f"a parameter of type {annotation} cannot be given with -p; use int, float, str, bool or tuple")


def _describe(annotation: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if annotation in names:
        return names[annotation]
    if typing.get_origin(annotation) is tuple:
        return f"a list like 1,2,3 of which each is {_describe(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    return f"a value of type {annotation}"


def _function_of_file(name: str) -> tuple[Function, Path]:
    path_text, _, wanted = name.partition(":")
    path = Path(path_text)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a Python file with an experiment function")
    functions = _experiment_functions(_import_file(path))
    if wanted:
        if wanted not in functions:
            raise UserError(
                f"{path} has no experiment function {wanted!r}{_did_you_mean(wanted, functions)}; it has: "
                f"{', '.join(functions) or 'none'}"
            )
        return functions[wanted], path
    if path.stem in functions:
        return functions[path.stem], path
    if len(functions) == 1:
        return next(iter(functions.values())), path
    if not functions:
        raise UserError(
            f"{path} has no experiment function: define one annotated with its result, as in `def my_study() -> Experiment:`"
        )
    raise UserError(f"{path} has several experiments; say which: {path}:" + f", {path}:".join(functions))


def _import_file(path: Path) -> types.ModuleType:
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        return module_from_file(path)
    except SyntaxError as error:
        line = (error.text or "").strip()
        where = f"{error.filename}:{error.lineno}"
        raise UserError(f"{where}: {error.msg}" + (f": {line}" if line else "")) from None
    except Exception as error:
        raise UserError(_located(error, path)) from None
    finally:
        sys.path.remove(str(path.parent.absolute()))


def _experiment_functions(module: types.ModuleType) -> dict[str, Function]:
    functions: dict[str, Function] = {}
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            returned = value.__annotations__.get("return")
            if returned is Experiment or (isinstance(returned, str) and returned.endswith("Experiment")):
                functions[name] = value
    return functions


def _located(error: Exception, path: Path) -> str:
    """The error behind the last line of the user's files that led to it."""
    file, line = place_of(error, path)
    where = f"{file}:{line}" if line else str(file)
    if isinstance(error, ImportError) and line and (advice := _import_to_write(error, file, line)):
        return f"{where}: {advice}"
    if isinstance(error, UserError):
        return f"{where}: {error}"
    described = traceback.TracebackException.from_exception(error)
    return f"{where}: {' '.join(''.join(described.format_exception_only()).split())}"


def _import_to_write(error: ImportError, file: Path, line: int) -> str:
    """The import to write for one of a module that is not ours, or not any more; "" for any other failure."""
    missing = error.name or ""
    if missing.partition(".")[0] not in PACKAGES:
        return ""
    statements = [node for node in ast.walk(ast.parse(file.read_bytes())) if getattr(node, "lineno", 0) == line]
    names = [alias.name for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names]
    if not isinstance(error, ModuleNotFoundError):
        # The module is there and lacks a name: of a package in lower case, that is a module.
        name = next((name for name in names if f"'{name}'" in error.msg), "")
        if not (missing in PACKAGES and name.islower()):
            guess = _did_you_mean(name, public.__all__)
            return f"ImportError: cannot import name {name!r} from {missing!r}{guess}" if name else ""
        missing, names = f"{missing}.{name}", []
    homes = {name: RENAMED.get(name, name) for name in names}
    known = [new if new == name else f"{new} as {name}" for name, new in homes.items() if new in public.__all__]
    if not known:
        return f"there is no {missing}; a study's file imports from sweep what docs/reference/python.md lists"
    others = [name for name, new in homes.items() if new not in public.__all__]
    also = f"; docs/reference/python.md, which lists what there is, has no {', '.join(others)}" if others else ""
    return f'there is no {missing}; write "from sweep import {", ".join(known)}"{also}'


def _did_you_mean(name: str, valid: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
