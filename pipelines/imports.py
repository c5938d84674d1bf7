"""How a worker imports libraries such as torch and transformers, which make a million objects that stay until it ends."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """The search for garbage waits until all is there that is imported in here, and spares it from then on.

    Else it is made again and again while more comes, a fifth of the time, and takes a third of a second whenever a worker gives
    back what its last job has left.
    """
    num_loaded, was_on = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
        # Where all was there already, what else the process has by now may well become garbage.
        if len(sys.modules) > num_loaded:
            gc.collect()
            gc.freeze()


@contextlib.contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """What is imported in here does without these modules, as if they were not installed, unless they are loaded already."""
    hidden = [name for name in names if name not in sys.modules]
    # Python's own mark of a module that is not to be found.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """What is decorated with `torch.compile` in here stays as it is: to make torch's compiler ready takes most of a second."""
    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
