"""Watches for the notice that Amazon gives a spot machine two minutes before it takes it back.

    python -m sweep.cluster.spot &        on each spot node, after `ray start`

At the notice, Ray drains the node: nothing new is placed there, and the autoscaler looks for another one. Workers on it commit
what they have done (`pipelines/workers/notice.py`), and their steps go on elsewhere. A mere recommendation to move (the machine
has an elevated risk) drains the node as well, without a deadline, so that it is left when its steps end; they are not stopped.

Where there is no metadata service (no machine of Amazon's), it ends after a few looks.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

METADATA = "http://169.254.169.254"
TOKEN_S = 21600
LOOK_EVERY_S = 5.0
"""As Amazon recommends."""
FIRST_LOOKS = 3
"""How often it is asked at first, as the machine starts, until there is no such service."""
ACTION, RECOMMENDATION = "spot/instance-action", "events/recommendations/rebalance"


class Metadata:
    """Version 2 of the metadata service at an address: a token first, then whatever is asked."""

    def __init__(self, address: str = METADATA) -> None:
        self._address = address
        self._token = ""

    def get(self, path: str) -> Any:
        """The JSON at `path` below `latest/meta-data`, None if there is none. Raises OSError if nothing answers."""
        for _ in range(2):
            if not self._token:
                asking = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
                self._token = self._request("PUT", "api/token", asking)
            try:
                return json.loads(self._request("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}))
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                self._token = ""  # it is over
        raise OSError("the metadata service takes none of its own tokens")

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._address}/latest/{path}", method=method, headers=headers)
        # Never through a proxy: the service is on the machine itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=2) as answer:
            text: str = answer.read().decode()
        return text


def seconds_left(action: Any) -> float:
    """Seconds until the machine is taken, of the service's `spot/instance-action`; 120 if it does not say."""
    try:
        end = datetime.strptime(action["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError):
        return 120.0
    return max(0.0, (end - datetime.now(UTC)).total_seconds())


def drain(address: str, node: str | None, reason: str, deadline_s: float | None) -> None:
    """Have Ray place nothing on a node of the cluster at `address` any more; with a deadline, its workers get notice.

    Without `node` it is the one of this machine.
    """
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    from pipelines.workers.notice import tell_node

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        node = node or ray.get_runtime_context().get_node_id()
        deadline_ms = 0 if deadline_s is None else int(1000 * (time.time() + deadline_s))
        client = ray._private.worker.global_worker.gcs_client
        why = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        is_accepted, refusal = client.drain_node(node, why, reason, deadline_ms)
        if not is_accepted:
            print(f"Ray does not drain this node: {refusal}", file=sys.stderr, flush=True)
        if deadline_s is not None:
            tell_node(node)
    finally:
        ray.shutdown()


def watch(metadata: Metadata, address: str, node: str | None) -> None:
    """Wait for a notice, then have the node drained; returns when that is done."""
    is_recommended = False
    while True:
        try:
            if (action := metadata.get(ACTION)) is not None:
                left = seconds_left(action)
                print(f"a spot notice: this machine is taken in {left:.0f} s", flush=True)
                drain(address, node, "spot notice", left)
                return
            if not is_recommended and metadata.get(RECOMMENDATION) is not None:
                print("a rebalance recommendation: nothing new is placed on this machine", flush=True)
                drain(address, node, "rebalance recommendation", None)
                is_recommended = True
        except Exception as error:
            # One answer that fails, of the service or of Ray, says nothing about the next; and nobody else looks.
            print(f"{type(error).__name__}: {error}; tried again", file=sys.stderr, flush=True)
        time.sleep(LOOK_EVERY_S)


def main() -> None:
    """Entry point of `python -m sweep.cluster.spot`."""
    parser = argparse.ArgumentParser(description="Have Ray drain this node when Amazon says that it takes the machine back.")
    parser.add_argument("--metadata", default=METADATA, help="address of the metadata service")
    parser.add_argument("--address", default="auto", help="address of the Ray cluster")
    parser.add_argument("--node", help="id of the Ray node, if this machine has several")
    options = parser.parse_args()
    metadata = Metadata(options.metadata)
    for left in reversed(range(FIRST_LOOKS)):
        try:
            metadata.get(ACTION)
            break
        except OSError as error:
            if not left:
                print(f"no metadata service at {options.metadata} ({error}): this is no machine of Amazon's", file=sys.stderr)
                return
            time.sleep(LOOK_EVERY_S)
    watch(metadata, options.address, options.node)


if __name__ == "__main__":
    main()
