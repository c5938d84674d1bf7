"""Work in one Ray task: the quickest start that a worker of its own has."""

from collections.abc import Callable
from typing import Any

from pipelines.resources import Resources


def in_one_task(function: Callable[..., Any], resources: Resources, *arguments: Any) -> Any:
    """`function(*arguments, use_gpu)`, in one Ray task with `resources` of one worker, or in this process if they say so.

    The task is named after the function. Its process is no other task's afterwards if it had a GPU, which it keeps.
    """
    use_gpu = resources.gpus_per_worker > 0
    if resources.in_process:
        return function(*arguments, use_gpu)
    import ray

    # Ray does so by itself only for GPUs that are no options (https://github.com/ray-project/ray/issues/29624).
    limits = {"max_calls": 1} if use_gpu else {}
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=0, **limits)(function)
    return ray.get(task.remote(*arguments, use_gpu))
