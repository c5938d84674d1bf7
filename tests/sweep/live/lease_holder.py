"""A process that holds leases, to be raced with, killed and stopped.

python lease_holder.py race URI ROUNDS     build what is missing of ROUNDS folders; a line "round begin end" each
python lease_holder.py hold URI LENGTH     say "held", wait for a line, say what `check` says
python lease_holder.py build STORE NAME    carry out a step that says "building" and waits for a line; say what it recorded
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.storage import join, read_text, working_folder, write_if_absent
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.live import lease as leases
from sweep.live.lease import LeaseLostError, lease
from sweep.run.trial import Order, carry_out
from tests.sweep.run.fake_study import Config


def say(*words: Any) -> None:
    print(*words, flush=True)


def race(uri: str, rounds: int) -> None:
    for number in range(rounds):
        folder = join(uri, str(number))
        with lease(folder):
            if read_text(join(folder, "built")) is None:
                begin = time.monotonic()
                time.sleep(0.02)
                assert write_if_absent(join(folder, "built"), str(time.monotonic()).encode())
                say(number, begin, time.monotonic())


def hold(uri: str) -> None:
    with lease(uri, when_lost=lambda: say("told")) as held:
        say("held")
        sys.stdin.readline()
        try:
            held.check()
            say("kept")
        except LeaseLostError:
            say("lost")


def build(store: str, name: str) -> None:
    def run(job: Job) -> dict[str, Any]:
        say("building")
        sys.stdin.readline()
        with working_folder(job.output) as folder:
            Path(folder, "value.txt").write_text(name)
        return {"value": name}

    step = Step("task_model", "cell", Config())
    outcome = carry_out(Order(step, Stage(1, run), store))
    say(json.dumps({"value": outcome.record and outcome.record.metrics["value"], "error": outcome.error}))


if __name__ == "__main__":
    leases.POLL_S = 0.1
    match sys.argv[1:]:
        case ["race", uri, rounds]:
            leases.POLL_S = 0.01
            race(uri, int(rounds))
        case ["hold", uri, length]:
            leases.LENGTH_S = float(length)
            hold(uri)
        case ["build", store, name]:
            leases.LENGTH_S = 1.0
            build(store, name)
