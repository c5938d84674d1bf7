"""Each step of a chain of real stages is disturbed at each call that changes the store, and then built again.

    python tests/chaos/writes.py [--points N]      N points of each step and each fault; all of them by default

A point is the n-th write, fsync, rename, link, unlink, mkdir, rmdir, truncate, chmod or open for writing below the store,
counted in libc (`faulty_calls.c`). There the process is killed (in the midst of a write half of it is there); or the disk is
full or read-only from then on; or the one call ends with an input/output error; or the store is gone. Then all is built
undisturbed.

The verdict is `same` if a disturbed step says nothing or one clear line, and all bytes are those of an undisturbed run.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from light_study import build, build_all, contents, left_over, make_steps, warm_up

from sweep.graph.records import Store
from sweep.graph.step import Step

SOURCE = Path(__file__).with_name("faulty_calls.c")
LIBRARY = "FAULTY_CALLS"
KINDS = {"killed": 1, "disk full": 2, "read-only": 3, "input/output error": 4, "store gone": 5}
"""The faults, and what `faulty_calls.c` calls them."""
CLEAR = {
    "disk full": r"the disk is full|No space left on device",
    "read-only": r"Read-only file system",
    "input/output error": r"Input/output error",
    "store gone": r"is gone|No such file or directory|has no record|removed|does not exist",
}
"""What a failed step's line must say."""


@dataclass
class Points:
    """The verdicts of one step and one fault."""

    num: int = 0
    num_failed: int = 0
    """Disturbed steps that said so, in one line; the others were killed or none the worse for it."""
    num_left_over: int = 0
    wrong: list[str] = field(default_factory=list)


def disturb_steps(
    folder: Path, points: int | None = None, kinds: tuple[str, ...] = tuple(KINDS)
) -> dict[tuple[str, str], Points]:
    """Verdicts by step and kind of fault. Only in a process that `main` started: the library has to be there."""
    warm_up()
    steps = make_steps()
    before = [_built(folder, steps[:number]) for number in range(len(steps) + 1)]
    found: dict[tuple[str, str], Points] = {}
    for number, step in enumerate(steps):
        store = Store(folder / "store")
        refill(before[number], Path(store.uri))
        num_calls = int(in_child(lambda store=store, step=step: _calls_of(step, store)).value)
        places = spread(num_calls, points)
        for kind in kinds:
            verdict = found[step.name, kind] = Points()
            for place in places:
                refill(before[number], Path(store.uri))
                _judge(steps[: number + 1], store, kind, place, contents(before[number + 1]), verdict)
            print(f"{step.name:28} {kind:20} {verdict.num} points, {verdict.num_failed} said so, "
                  f"{len(verdict.wrong)} wrong, {verdict.num_left_over} with files left over", flush=True)  # fmt: skip
            for line in verdict.wrong:
                print(f"    WRONG {line}", flush=True)
    return found


def _judge(steps: list[Step], store: Store, kind: str, place: int, expected: dict[str, str], verdict: Points) -> None:
    verdict.num += 1

    def disturbed() -> str:
        ctypes.CDLL(None).disturb(store.uri.encode(), place, KINDS[kind])
        return build(steps[-1], store).error

    first = in_child(disturbed)
    told = f"{steps[-1].name}, {kind} at call {place} ({first.struck})"
    if kind != "killed" and first.value is None:
        verdict.wrong.append(f"{told}: it ended with {first.code}: {first.printed[-300:]}")
    elif first.value:
        verdict.num_failed += 1
        if not re.search(CLEAR[kind], first.value) or "\n" in first.value:
            verdict.wrong.append(f"{told}: it said {first.value!r}")
    second = in_child(lambda: build_all(steps, store))
    if second.value is None or "given up" in second.value:
        verdict.wrong.append(f"{told}: then {second.value or second.printed[-300:]}")
        return
    found = contents(Path(store.uri))
    if unlike := sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path)):
        verdict.wrong.append(f"{told}: other bytes in {', '.join(unlike[:4])}; the first time it said {first.value!r}")
    verdict.num_left_over += bool(left_over(Path(store.uri)))


def _built(folder: Path, steps: list[Step]) -> Path:
    """A copy of the store after these steps, undisturbed."""
    store = Store(folder / "store")
    if not steps:
        shutil.rmtree(store.uri, ignore_errors=True)
        Path(store.uri).mkdir(parents=True)
    result = in_child(lambda: build_all(steps, store))
    assert result.value == [], f"undisturbed: {result}"
    copy = folder / f"after{len(steps)}"
    refill(Path(store.uri), copy)
    return copy


def refill(source: Path, target: Path) -> None:
    for old in (target, target.with_name(f"{target.name}.gone")):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(source, target)


def _calls_of(step: Step, store: Store) -> int:
    ctypes.CDLL(None).disturb(store.uri.encode(), 0, 0)
    outcome = build(step, store)
    assert outcome.record is not None, outcome.error
    return int(ctypes.CDLL(None).num_calls())


def spread(number: int, points: int | None) -> list[int]:
    """1 to `number`, or `points` of these at even distances."""
    if points is None or points >= number:
        return list(range(1, number + 1))
    return sorted({1 + round(place * (number - 1) / max(1, points - 1)) for place in range(points)})


@dataclass(frozen=True)
class Ended:
    """How a child ended: what it returned, None if it did not get there, its exit code and what it printed."""

    value: Any
    code: int
    printed: str

    @property
    def struck(self) -> str:
        return next((line for line in self.printed.splitlines() if line.startswith("struck")), "not reached")


class Child:
    """A fork of this process that does `work`, so that it can be killed and starts as a fresh one does."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._result, self._printed = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.pid = os.fork()
        if self.pid:
            return
        os.dup2(self._printed.fileno(), 1)
        os.dup2(self._printed.fileno(), 2)
        code = 1
        with contextlib.suppress(BaseException):
            try:
                content = json.dumps(work()).encode()
                if LIBRARY in os.environ:
                    ctypes.CDLL(None).disturb(b"", 0, 0)
                self._result.write(content)
                self._result.flush()
                code = 0
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(code)

    def wait(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        with self._result, self._printed:
            self._result.seek(0)
            self._printed.seek(0)
            text, printed = self._result.read(), self._printed.read().decode(errors="replace")
        return Ended(json.loads(text) if text else None, os.waitstatus_to_exitcode(status), printed)


def in_child(work: Callable[[], Any]) -> Ended:
    """Do it in a `Child`, and wait for it."""
    return Child(work).wait()


@contextlib.contextmanager
def library() -> Iterator[Path]:
    """`faulty_calls.c`, compiled."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        path = Path(folder, "faulty_calls.so")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", path, SOURCE, "-ldl"], check=True)
        yield path


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="of each step and fault, evenly spread; all of them by default")
    parser.add_argument("--kind", action="append", choices=tuple(KINDS), help="only this fault; may be given again")
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    if LIBRARY not in os.environ:
        with library() as path:
            environment = {**os.environ, LIBRARY: str(path), "LD_PRELOAD": str(path)}
            return subprocess.run([sys.executable, __file__, *given], env=environment).returncode
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        found = disturb_steps(Path(folder), options.points, tuple(options.kind or KINDS))
    table = {kind: [points for (_, of), points in found.items() if of == kind] for kind in KINDS}
    counts = {
        kind: Counter(
            points=sum(points.num for points in rows),
            said=sum(points.num_failed for points in rows),
            wrong=sum(len(points.wrong) for points in rows),
            left_over=sum(points.num_left_over for points in rows),
        )
        for kind, rows in table.items()
        if rows
    }
    for kind, row in counts.items():
        said = f"{row['said']} said so in one line, {row['wrong']} wrong, {row['left_over']} left files over"
        print(f"{kind}: {row['points']} points, {said}")
    if options.json:
        options.json.write_text(json.dumps(counts))
    return int(any(row["wrong"] for row in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
