"""A notice that a run or a node ends soon: a file in the node's Ray session folder, which workers look for between steps.

    step()
    if notice_given():
        save()
        raise NoticeError("…")

`tell_run` gives a run's notice on the node where it is called, `tell_node` that of a whole node.
"""

import os
import time
from pathlib import Path

LOOK_EVERY_S = 0.5


def notice_given() -> bool:
    """Whether this process's run or node ends soon; looked at no more often than `LOOK_EVERY_S`. False outside Ray."""
    return _given("run") or _given("node")


def run_notice_given() -> bool:
    """Whether this process's run ends soon, not only its node. False outside Ray."""
    return _given("run")


def tell_run() -> None:
    """Give notice to all workers that the run of this process has on this node."""
    _flag("run").touch()


def tell_node(node: str | None = None) -> None:
    """Give notice to all workers of all runs on a node of this machine; without its id, the one that this process is on."""
    _flag("node", node).touch()


_looks: dict[str, tuple[float, bool]] = {}  # whose → when, and what was there


def _given(whose: str) -> bool:
    now = time.monotonic()
    looked_at, is_given = _looks.get(whose, (-LOOK_EVERY_S, False))
    if now - looked_at < LOOK_EVERY_S:
        return is_given
    import ray

    is_given = ray.is_initialized() and os.path.exists(_flag(whose))
    _looks[whose] = now, is_given
    return is_given


def _flag(whose: str, node: str | None = None) -> Path:
    """By the job's and the node's id, which no other run and no later node has."""
    import ray
    from ray._private import worker

    context = ray.get_runtime_context()
    name = context.get_job_id() if whose == "run" else node or context.get_node_id()
    return Path(worker._global_node.get_session_dir_path(), f"blindsweep-notice-{name}")
