"""The end of a cluster, from its own head: Ray first, then the workers, then the head.

`ray exec --stop` promises the same. It ends with `ray teardown`, which is no command of Ray's any more (2.60), and switches off
the head all the same: nothing would end the workers then.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UserError

CONFIG_FILE = "ray_bootstrap_config.yaml"
"""`ray up` puts it into the home of a cluster's head, and nowhere else."""
ATTEMPTS, PAUSE_S = 5, 60.0
"""Whoever waits for the workers' end is not there to try it again."""
LIMIT_S = 300.0
WAY_OUT = "from your own machine: ray down -y cluster.yaml"


def end_cluster() -> None:
    """End Ray on this head, all workers of its cluster, and then this machine, which goes off within seconds.

    Raises UserError where this is no head, and where workers cannot be ended in `ATTEMPTS`, `PAUSE_S` seconds apart: then the
    head stays on, so that nothing goes on unseen.
    """
    config = Path.home() / CONFIG_FILE
    if not config.exists():
        raise UserError(f"there is no {config}, so that this is not the head of a cluster; to end one {WAY_OUT}")
    # First: its autoscaler starts other workers for those that end, if work waits or the cluster has a smallest size.
    # What becomes of it is no reason to let the workers go on.
    _run(["ray", "stop"])
    if why := _end_workers(config):
        raise UserError(f"the workers could not be ended ({why}), so that the head stays on; end both {WAY_OUT}")
    if why := _run(["sudo", "shutdown", "-h", "now"]):
        raise UserError(f"the workers are ended, but the head could not be switched off ({why}); end it {WAY_OUT}")


def _end_workers(config: Path) -> str:
    """Why the workers could not be ended, or "" when none is left."""
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            print(f"{why}; once more in {PAUSE_S:g} s", file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)
        if not (why := _run(["ray", "down", "--yes", "--workers-only", str(config)])):
            break
    return why


def _run(command: Sequence[str]) -> str:
    """Run a command, whose output is passed on; in one line why it failed, or "" if it did not."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S)
    except FileNotFoundError:
        return f"{command[0]} is not on this machine's PATH"
    except subprocess.TimeoutExpired:
        return f"{' '.join(command[:2])} did not end within {LIMIT_S:g} s"
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return said[-1] if said else f"{' '.join(command[:2])} ended with {done.returncode}"
