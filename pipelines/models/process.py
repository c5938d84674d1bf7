"""A worker process's memory and log."""

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator


def without_gpus() -> None:
    """Make this process one that has no GPU, on a machine with GPUs as well; to be called before it imports DeepSpeed.

    Ray leaves the machine's GPUs visible to a process that was given none.
    """
    # DeepSpeed chooses its accelerator when it is first imported.
    os.environ["DS_ACCELERATOR"] = "cpu"


def has_gpu() -> bool:
    """Whether this process was given a GPU: not whether it sees one."""
    import torch

    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()


def free_memory() -> None:
    """Give back what nothing refers to any more, on the device as well."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_gpu_memory_gib() -> float:
    """The most device memory that tensors have taken since the peak was last reset."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


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


def quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries out of a study's log; their warnings stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
