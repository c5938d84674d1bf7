"""A worker process's memory and log."""

import gc
import logging
import os
import warnings


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
    """The most memory of its GPU that this process has held since the peak was last reset, in GiB.

    It is what others on that GPU could not have: tensors, and what captured graphs and torch keep for the next ones. What CUDA
    itself takes, some 0.5 GiB, is beside it.
    """
    import torch

    return torch.cuda.max_memory_reserved() / 2**30


def quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries out of a study's log; their warnings stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
