"""The lease of a finetuning on S3's protocol is damaged, or its holder is dead; then another driver builds the artifact.

    python tests/chaos/leases.py [--points N]     N cases of each kind; all of them by default

The lease is what a holder left that was killed in the midst of its work, or one that a living holder renews; then it is cut to
half, emptied, one bit of it flipped, removed, or an object lies below its name as in a folder. The other driver starts at once.

The verdict is `same` if it builds the artifact without a line, with the bytes of an undisturbed run, and if a holder that lives
either ends for its lease is lost, or has the same artifact.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from damage import DAMAGES
from light_study import build, contents, make_steps, warm_up
from writes import Child, in_child

from pipelines.finetune.checkpoints import Checkpoints
from sweep.graph.records import Store
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.live import lease as leases
from sweep.live.lease import LEASE_FILE
from sweep.run.trial import Order, carry_out

SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
BUCKET = "studies"
LENGTH_S = 1.0
LOST_CODE = 75
ELSEWHERE = {"process": "boot pid:[1] 1 1"}
"""A process of another machine, of which nobody here can know that it is gone."""


@contextlib.contextmanager
def bucket() -> Iterator[Any]:
    """Amazon's client, of a server on this machine. The environment has its address."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        try:
            yield client
        finally:
            server.kill()


class Objects:
    """What lies below a folder of the bucket."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def of(self, folder: str) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{folder}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {key.removeprefix(f"{folder}/"): self.read(key) for key in keys}

    def read(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def write(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def damage(self, key: str, how: str) -> None:
        """As files are damaged; what becomes a folder is an object below that name."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "lease")
            path.write_bytes(self.read(key))
            DAMAGES[how](path)
            if path.is_file():
                self.write(key, path.read_bytes())
                return
        self._client.delete_object(Bucket=BUCKET, Key=key)
        if how == "replaced by a folder":
            self.write(f"{key}/inside", b"")


class Case:
    """A folder of the bucket with all that the finetuning is built from."""

    def __init__(self, objects: Objects, inputs: dict[str, bytes], name: str, step: Step) -> None:
        self._objects, self._name, self._step = objects, name, step
        self.store = Store(f"s3://{BUCKET}/{name}")
        self.lease = f"{self.store.folder(step.id).removeprefix(f's3://{BUCKET}/')}/{LEASE_FILE}"
        for path, content in inputs.items():
            objects.write(f"{name}/{path}", content)

    def contents(self) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            for path, content in self._objects.of(self._name).items():
                if LEASE_FILE not in path.split("/"):
                    Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                    Path(folder, path).write_bytes(content)
            return contents(Path(folder))

    def kill_a_holder(self) -> None:
        """A driver dies after its second checkpoint, and holds the lease."""
        save, saved = Checkpoints.save, []

        def save_and_die(checkpoints: Checkpoints, *arguments: Any) -> None:
            save(checkpoints, *arguments)
            saved.append(1)
            if len(saved) == 2:
                os._exit(9)

        def work() -> None:
            Checkpoints.save = save_and_die  # type: ignore[method-assign]
            build(self._step, self.store)

        assert in_child(work).code == 9

    def hold(self) -> Child:
        """A driver that has begun, and takes its time."""
        with tempfile.TemporaryDirectory() as folder:
            begun = Path(folder, "begun")
            stage = REGISTRY[self._step.stage]

            def slowly(job: Any) -> Any:
                begun.touch()
                time.sleep(3 * LENGTH_S)
                return stage.run(job)

            def work() -> str:
                order = Order(self._step, replace(stage, run=slowly), self.store.uri)
                outcome = carry_out(order, when_lost=partial(os._exit, LOST_CODE))
                return outcome.error

            child = Child(work)
            deadline = time.monotonic() + 60
            while not begun.exists():
                assert time.monotonic() < deadline, "the holder never began"
                time.sleep(0.02)
            return child

    def build(self) -> str:
        """By another driver; the line that it says."""
        ended = in_child(lambda: build(self._step, self.store).error)
        return f"it ended with {ended.code}: {ended.printed[-300:]}" if ended.value is None else str(ended.value)


def break_all(client: Any, points: int | None = None) -> dict[str, dict[str, Any]]:
    """By kind of lease: `points`, how many `said` something, and which verdicts were `wrong`."""
    warm_up()
    leases.LENGTH_S, leases.POLL_S = LENGTH_S, 0.05
    objects = Objects(client)
    steps = make_steps()
    (step,) = (step for step in steps if step.stage == "task_model")
    first = Store(f"s3://{BUCKET}/first")
    # Without the evaluation, which nothing is tried on.
    done = in_child(lambda: [build(one, first).error for one in steps[: steps.index(step)]])
    assert done.value and not any(done.value), done
    inputs = objects.of("first")
    undisturbed = Case(objects, inputs, "undisturbed", step)
    assert undisturbed.build() == ""
    expected = undisturbed.contents()
    found: dict[str, dict[str, Any]] = {}

    def judge(kind: str, how: str, case: Case, lines: list[str]) -> None:
        row = found.setdefault(kind, {"points": 0, "said": 0, "wrong": []})
        row["points"] += 1
        row["said"] += any(lines)
        after = case.contents()
        if unlike := sorted(path for path in {*expected, *after} if expected.get(path) != after.get(path)):
            row["wrong"].append(f"{how}: other bytes in {', '.join(unlike[:3])}; it said {lines}")
        elif any(lines):
            row["wrong"].append(f"{how}: it said {lines}")

    def case_of(kind: str, how: str) -> Case:
        return Case(objects, inputs, f"{kind} {how}".replace(" ", "-").replace("'", ""), step)

    def of_a_dead_holder(how: str) -> None:
        case = case_of(dead, how)
        case.kill_a_holder()
        if how == "whole, on another machine":
            objects.write(case.lease, json.dumps(json.loads(objects.read(case.lease)) | ELSEWHERE).encode())
        elif how != "whole":
            objects.damage(case.lease, how)
        judge(dead, how, case, [case.build()])

    def of_a_living_holder(how: str) -> None:
        case = case_of(living, how)
        holder = case.hold()
        if how != "whole":
            objects.damage(case.lease, how)
        line = case.build()
        ended = holder.wait()
        is_right = ended.code == LOST_CODE or ended.value == ""
        judge(living, how, case, [line, "" if is_right else f"the holder ended with {ended.code}: {ended.printed[-300:]}"])

    dead, living = "the lease of a dead holder", "the lease of a living holder"
    kinds: dict[str, tuple[Callable[[str], None], list[str]]] = {
        dead: (of_a_dead_holder, ["whole", "whole, on another machine", *DAMAGES]),
        living: (of_a_living_holder, ["whole", *DAMAGES]),
    }
    for kind, (do, hows) in kinds.items():
        for how in hows if points is None else random.Random(0).sample(hows, min(points, len(hows))):
            do(how)
        row = found[kind]
        print(f"{kind:32} {row['points']} points, {row['said']} said so, {len(row['wrong'])} wrong", flush=True)
        for line in row["wrong"]:
            print(f"    WRONG {line}", flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="of each kind of lease, drawn; all of them by default")
    parser.add_argument("--json", type=Path, help="file for the counts")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, bucket() as client:
        os.environ |= {"XDG_CACHE_HOME": str(Path(folder, "cache")), "BLINDSWEEP_CACHE": str(Path(folder, "fetched"))}
        found = break_all(client, options.points)
    counts = {kind: {**row, "wrong": len(row["wrong"])} for kind, row in found.items()}
    if options.json:
        options.json.write_text(json.dumps(counts))
    return int(any(row["wrong"] for row in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
