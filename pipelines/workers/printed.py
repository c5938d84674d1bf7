"""What workers printed last, for whoever asks why they failed: Ray keeps it on the node, in a file a process.

    note_worker("a worker of a finetuning", [output])    # in a worker, before it begins
    last_lines(output, without_secrets)                  # in the process that waited for it, when it has failed

A note in the node's Ray session folder says which files are of an output's workers, and where in them its own lines begin: a
process may have worked on something else before.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.storage import naming_full_disk

NUM_LINES = 200
"""Of each file of each worker."""
NUM_BYTES = 100_000
"""As much of a file's end is read."""
ANSWER_S = 20.0
"""How long other nodes have for an answer: one may be gone without Ray knowing it yet."""
RAYS_OWN = re.compile(r"^:(job_id|actor_name|task_name):.*\n?", re.MULTILINE)


def note_worker(what: str, outputs: Iterable[str]) -> None:
    """Note that this process, which is `what`, works on `outputs` (folders or URIs) from now on. Only Ray's workers do."""
    import ray
    from ray._private.worker import global_worker

    if global_worker.mode != ray.WORKER_MODE:
        return
    files = [global_worker.get_out_file_path(), global_worker.get_err_file_path()]
    note = {
        "worker": f"{what} (pid {os.getpid()} on {socket.gethostname()})",
        "files": {file: os.path.getsize(file) for file in files if os.path.exists(file)},
    }
    for output in outputs:
        folder = _folder(output)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}.json"
        # A step that needs no worker of its own is worked on by the process that drives it, which has a note.
        with contextlib.suppress(FileExistsError), naming_full_disk(path), path.open("x") as file:
            json.dump(note, file)


def last_lines(output: str, mask: Callable[[str], str]) -> str:
    """The last `NUM_LINES` lines that each of the workers noted for `output` has printed, of those on nodes that live.

    `mask` is applied on the worker's node, whose environment knows its secrets. Notes are removed: they are of this attempt.
    Empty outside Ray. It takes no longer than `ANSWER_S` seconds, and leaves out the nodes that do.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return ""
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    task = ray.remote(num_cpus=0, max_retries=0)(_last_lines_here)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(output, mask)
        for node in others
    ]
    parts = _last_lines_here(output, mask)
    until = time.monotonic() + ANSWER_S
    for answer in asked:
        # Of a node that is lost meanwhile there is nothing to be had.
        with contextlib.suppress(ray.exceptions.RayError):
            parts |= ray.get(answer, timeout=max(0.0, until - time.monotonic()))
    return "\n".join(parts.values())


def _last_lines_here(output: str, mask: Callable[[str], str]) -> dict[str, str]:
    """By file, of the workers on this node."""
    found = {}
    for path in sorted(_folder(output).glob("*.json")):
        # Nodes of one machine share a session folder, and may look at the same time. A full disk cuts a note off.
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            note: Mapping[str, Any] = json.loads(path.read_text())
            path.unlink()
            for file, start in note["files"].items():
                if text := _end_of(Path(file), start):
                    kind = "stderr" if file.endswith(".err") else "stdout"
                    found[file] = mask(f"--- the last lines of {note['worker']}, {kind}\n{text}\n")
    return found


def _end_of(path: Path, start: int) -> str:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - NUM_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(RAYS_OWN.sub("", text).strip().splitlines()[-NUM_LINES:])


def _folder(output: str) -> Path:
    """The notes on an output's workers: in the session's folder, by the last part of the output's path or URI."""
    from ray._private import worker

    name = output.rstrip("/").rpartition("/")[2]
    return Path(worker._global_node.get_session_dir_path(), "blindsweep-workers", name)
