"""A run that only beats: `python beating.py STORE STUDY FINGERPRINT` says so and waits to be ended, at a line by itself."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sweep.graph.records import Store
from sweep.live.heartbeat import Heartbeat, Pulse, Working


@contextlib.contextmanager
def other_run(store: Store, study: str, fingerprint: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process whose heart beats; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, store.uri, study, fingerprint],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "beats\n"
    yield process
    process.kill()
    process.communicate()


if __name__ == "__main__":
    store, study, fingerprint = sys.argv[1:]
    working = Working("task_model", "cell", fingerprint, 60.0, num_workers=2, rate="120 examples/s", fraction_done=0.25)
    pulse = Pulse({"sources": 1}, (working,), seconds_left=187.0, spent="spent $1.20 of $5.00")
    with Heartbeat(Store(store), study, pulse):
        print("beats", flush=True)
        sys.stdin.readline()
