"""The real command line, Ray, Tune and MLflow over stand-ins for the stages of a built-in study.

SECONDS=0.5 python fake_command.py run demo --store STORE --no-report

With ASK_RAY=1 each step takes its resources from Ray, as the real ones do, and keeps the name of its node.
"""

import json
import os
import time
from dataclasses import replace
from typing import Any

from pipelines.errors import NoticeError
from pipelines.storage import join, write_text
from pipelines.workers.notice import notice_given
from sweep.cli import main
from sweep.graph import stages
from sweep.graph.stages import Job

SECONDS = float(os.environ["SECONDS"])
ASK_RAY = bool(os.environ.get("ASK_RAY"))


def run(job: Job) -> dict[str, Any]:
    """Take some time, report as a stage does, and write a small file; stop at a notice, unless DEAF is set."""
    for step in range(3):
        job.report({"loss": 1 / (step + 1)}, step)
        until = time.monotonic() + SECONDS / 3
        while time.monotonic() < until:
            time.sleep(min(0.1, SECONDS / 3))
            if "DEAF" not in os.environ and notice_given():
                raise NoticeError(f"a notice stopped it at step {step} of 3, which is committed")
    if ASK_RAY:
        write_text(join(job.output, "machine.txt"), _node_of_a_worker(job))
    write_text(join(job.output, "value.txt"), json.dumps(sorted(job.inputs)))
    # Sources say how much there is of what; a plan reads it.
    counts = {f"{name}/num_examples": 7_200 for name in ("train", "template_test", "template_probe")}
    return {"template_test/accuracy": 0.5, **counts}


def _node_of_a_worker(job: Job) -> str:
    import ray

    def node() -> str:
        return str(ray.get_runtime_context().get_node_id())

    amounts = {"num_cpus": job.resources.cpus_per_worker, "num_gpus": job.resources.gpus_per_worker}
    return str(ray.get(ray.remote(node).options(**amounts).remote()))


if __name__ == "__main__":
    for name, stage in stages.REGISTRY.items():
        stages.REGISTRY[name] = replace(stage, run=run, open=None, prepare=None)
    main()
