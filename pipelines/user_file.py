"""A user's own Python file, as a module."""

import traceback
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


def place_of(error: BaseException, path: Path) -> tuple[Path, int | None]:
    """The last file of the folder of `path` that led to `error`, and the line there: `path` itself, or a helper beside it."""
    folder = path.absolute().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        # The `__init__` of a dataclass is of a file `<string>`, which would seem to be in the working directory.
        if not frame.filename.startswith("<") and Path(frame.filename).absolute().parent == folder:
            return path.parent / Path(frame.filename).name, frame.lineno
    return path, None
