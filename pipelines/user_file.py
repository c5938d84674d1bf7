"""A user's own Python file, as a module."""

import types
from pathlib import Path


def module_from_file(path: Path) -> types.ModuleType:
    """Run the file at `path` as a module of its name, which stays out of `sys.modules`, so that its functions travel by value.

    It is compiled from its text. Python's cached bytecode counts as fresh where a file has the same size and second, and would
    lie beside the user's file.
    """
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module
