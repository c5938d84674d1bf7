"""A server on this machine that speaks S3 and counts what it is asked."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

COUNTS = "/counts-of-the-benchmark"
BUCKET = "scale"
CLIENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def counted_s3() -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """The URI of a store on such a server, in a process of its own, and a function that gives the requests so far by kind."""
    environment = {**os.environ, **CLIENT}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale_requests"], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address, "the server did not start"
            os.environ |= {**CLIENT, "AWS_ENDPOINT_URL": address}
            import boto3

            boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
            before = _counts(address)
            yield f"s3://{BUCKET}/store", lambda: _counts(address) - before
        finally:
            server.terminate()


def _counts(address: str) -> Counter[str]:
    with urllib.request.urlopen(address + COUNTS, timeout=30) as answer:
        return Counter(json.load(answer))


def kind_of(method: str, path: str, query: str) -> str:
    """A request's kind: as S3 is paid for, a listing apart from a read; and of what."""
    if method == "GET" and ("list-type" in query or path.strip("/").count("/") == 0):
        method = "LIST"
    *_, name = path.rstrip("/").split("/")
    what = name if name in ("record.json", ".lease", ".inputs.json", "mlflow.db", "yield.json") else ""
    for part in ("/live/", "/studies/", "/shards/", "/pool/", "/rejects/"):
        what = what or (part.strip("/") if part in path else "")
    return f"{method} {what or 'other'}"


def main() -> None:
    """Serve on a free port, whose address is printed."""
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    counts: Counter[str] = Counter()

    def counting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == COUNTS:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(counts).encode()]
        counts[kind_of(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", ""))] += 1
        answer: Iterable[bytes] = application(environ, start_response)
        return answer

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        time.sleep(0)
