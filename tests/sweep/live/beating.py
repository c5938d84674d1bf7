"""A run that only beats: `python beating.py STORE STUDY FINGERPRINT` says so and waits to be ended, at a line by itself."""

import sys

from sweep.graph.records import Store
from sweep.live.heartbeat import Heartbeat, Pulse, Working

if __name__ == "__main__":
    store, study, fingerprint = sys.argv[1:]
    working = Working("task_model", "cell", fingerprint, 60.0, num_workers=2, rate="120 examples/s", fraction_done=0.25)
    pulse = Pulse({"sources": 1}, (working,), seconds_left=187.0, spent="spent $1.20 of $5.00")
    with Heartbeat(Store(store), study, pulse):
        print("beats", flush=True)
        sys.stdin.readline()
