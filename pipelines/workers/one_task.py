"""Work in one Ray task: the quickest start that a worker of its own has."""

from collections.abc import Callable
from typing import Any

from pipelines.resources import Resources


def in_one_task(function: Callable[..., Any], resources: Resources, *arguments: Any) -> Any:
    """`function(*arguments, use_gpu)`, in one Ray task with `resources` of one worker, or in this process if they say so.

    The task has the function's name. Its process is no other task's afterwards: it keeps the GPU that it had, or has made
    itself one without (`process.without_gpus`).
    """
    use_gpu = resources.gpus_per_worker > 0
    if resources.in_process:
        return function(*arguments, use_gpu)
    import ray

    options = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker, "max_calls": 1, "max_retries": 0}
    return ray.get(ray.remote(**options)(function).remote(*arguments, use_gpu))
