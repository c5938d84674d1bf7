"""`pipelines` and `analysis` are this project's, also beside a user's own folders or files of these names; both are found.

Python knows one package of a name in a process. Wherever `sweep` is imported that is ours, whatever comes first on the path,
and what ours lacks is looked for in the user's. A module that both have, such as `analysis.report`, is ours.
"""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = {"pipelines": "identity.py", "analysis": "wording.py"}
"""Our packages beside `sweep`, each with a file of its own by which it is told from another of its name."""
_ours: dict[str, Path] = {}
_theirs: dict[str, ModuleType] = {}


def keep_ours() -> None:
    """Make ours what their names mean in this process: when `sweep` is imported, and so in each of Ray's workers.

    Raises ImportError where a user's module of the name of one of ours was imported before.
    """
    for name in OURS:
        folder = _folder(name)
        if folder is None:
            continue
        _ours[name] = folder
        module = sys.modules.get(name) or _load(name, folder)
        places = list(getattr(module, "__path__", ()))
        if Path(getattr(module, "__file__", None) or "/").resolve().parent == folder.resolve():
            module.__dict__.setdefault("__getattr__", functools.partial(_name_of_theirs, name))
        elif str(folder) not in places:
            # Theirs was first, and keeps its names. Ours has none, only modules, which are now found in it.
            _check_free(name, folder)
            module.__path__ = [str(folder), *places]
    if _ModulesOfTheirs not in sys.meta_path:
        sys.meta_path.append(_ModulesOfTheirs)


def _folder(name: str) -> Path | None:
    """Our package's folder: beside `sweep` or, in a cluster's workers, where each lies in one of its own, on the path.

    None where it was not brought: a run's workers have no use for `analysis`.
    """
    for place in (Path(__file__).parents[1], *map(Path, sys.path)):
        if (place / name / OURS[name]).is_file():
            return (place / name).absolute()
    return None


def _load(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_free(name: str, folder: Path) -> None:
    for full_name, module in list(sys.modules.items()):
        parent, _, child = full_name.rpartition(".")
        if parent == name and any((folder / each).exists() for each in (child, f"{child}.py")):
            raise ImportError(
                f"{getattr(module, '__file__', None) or full_name} was imported as {full_name}, and blindsweep has a module of "
                "this name, too: import sweep before it, or call it something else"
            )


def _find_theirs(name: str) -> ModuleSpec | None:
    """The user's own package or module of this name, by the path as it is now."""
    ours = _ours[name].parent
    return PathFinder.find_spec(name, [place for place in sys.path if Path(place).absolute() != ours])


def _run_theirs(name: str, found: ModuleSpec) -> ModuleType:
    """The user's own package or module, run when something of it is first asked for."""
    if name not in _theirs:
        _theirs[name] = importlib.util.module_from_spec(found)
        try:
            if found.loader and found.origin:
                found.loader.exec_module(_theirs[name])
        except BaseException:
            del _theirs[name]
            raise
    return _theirs[name]


def _name_of_theirs(name: str, wanted: str) -> Any:
    """`__getattr__` of our package."""
    is_ours = any((_ours[name] / each).exists() for each in (wanted, f"{wanted}.py"))
    if not is_ours and not wanted.startswith("__") and (found := _find_theirs(name)):
        module = _run_theirs(name, found)
        if wanted in vars(module):
            return vars(module)[wanted]
    raise AttributeError(f"module {name!r} has no attribute {wanted!r}")


class _ModulesOfTheirs:
    """What `import` asks for a module that our package does not have."""

    @staticmethod
    def find_spec(full_name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        name, _, child = full_name.partition(".")
        theirs = _find_theirs(name) if name in _ours and child and "." not in child else None
        found = theirs and PathFinder.find_spec(full_name, theirs.submodule_search_locations or [])
        if theirs and found:
            _run_theirs(name, theirs)
        return found
