"""Values of a user's own that a command is given by reference: ``FILE.py:NAME`` or ``module:NAME``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.user_file import module_from_file, place_of

T = TypeVar("T")
TASKS: Mapping[str, Task] = {NLI.name: NLI}
"""The built-in tasks by name."""


def find_value(reference: str, kind: type[T], built_in: Mapping[str, T]) -> T:
    """The built-in value of that name, or the one of this `kind` that ``module:NAME`` or ``FILE.py:NAME`` refers to.

    A module must be importable wherever the value is used; a file is read here only, and its functions travel along.
    Raises :class:`UserError` for an unknown name, and for a reference that cannot be loaded or is of another kind.
    """
    what = kind.__name__.lower()
    if reference in built_in:
        return built_in[reference]
    place, separator, name = reference.rpartition(":")
    if not separator:
        raise UserError(
            f"no {what} {reference!r}; built in: {', '.join(built_in)}; one of your own is FILE.py:NAME or module:NAME"
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"{what} {reference!r}: {place} is no file here; name the file that has the {kind.__name__} {name}")
    try:
        module = module_from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        file, line = place_of(error, Path(place))
        where = f"{file}:{line}" if line else place
        of_ours = isinstance(error, ImportError) and str(error.name).startswith(("pipelines", "sweep", "analysis"))
        way_out = "import from sweep what docs/studies.md lists" if of_ours else "mend it"
        raise UserError(
            f"{what} {reference!r}: {where} cannot be loaded ({type(error).__name__}: {error}); {way_out}"
        ) from error
    value = getattr(module, name, None)
    if not isinstance(value, kind):
        names = [key for key, value in vars(module).items() if isinstance(value, kind)]
        raise UserError(f"{what} {reference!r}: {place} has no {kind.__name__} {name}; it has {', '.join(names) or 'none'}")
    return value


def find_task(reference: str) -> Task:
    """The built-in task of that name, or the one that ``module:NAME`` or ``FILE.py:NAME`` refers to.

    Raises :class:`UserError` as :func:`find_value` does.
    """
    return find_value(reference, Task, TASKS)
