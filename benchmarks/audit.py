"""Time and memory of the audit of a large file, and of its near copies beside datasketch's:

    python -m benchmarks.audit --rows 1_800_000 --note "two idle cores"

  ours          `audit PAIRS --reference OTHERS` as a command: a process of its own with those that it starts. Then, for the
                near copies, reading, measuring and `duplicates`, which is the audit's part that finds copies within a file
  datasketch    what one would write with datasketch (which must be installed): MinHash.bulk with as many functions, an LSH of
                as many bands, each row asked for and put in, and what it finds compared at the same threshold. One process,
                since its index is one; its hash function is zlib's, which is faster than its own. A pair is the word pairs of
                both texts together, so that it also finds many pairs that share a premise

The pairs are made up (:mod:`benchmarks.pairs`), with MultiNLI's lengths and known numbers of copies; 80,000 more are the
reference. Memory is the most that the process and its children had at one time, sampled: their shares of all pages (PSS), also
of files that are mapped. CPU time is that of all processes, and says more where others use the machine. Making the pairs is
not counted.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import (
    ROOT,
    Figure,
    alternately,
    answer,
    finish,
    in_own_process,
    make_parser,
    parse,
    phase,
    values_of,
    wait_for,
)
from benchmarks.pairs import write_pairs

VARIANTS = ("ours", "datasketch")
SAMPLE_EVERY_S = 0.1
THRESHOLD = 0.6
TARGET_S, TARGET_MB = 20, 1_000
"""For 1.8 million rows on two idle cores."""


def main() -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--rows", type=int, default=1_800_000)
    parser.add_argument("--reference-rows", type=int, default=80_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.only:
        run = near_copies if arguments.only == "ours" else datasketch_copies
        answer(run(arguments.path, arguments.processes))
        return
    # Where they lie is no part of the command.
    arguments.path = None
    with tempfile.TemporaryDirectory() as folder:
        others, pairs = Path(folder) / "others.parquet", Path(folder) / "pairs.parquet"
        phase(f"making {arguments.reference_rows + arguments.rows:,} pairs")
        write_pairs(others, arguments.reference_rows, seed=1)
        planted = write_pairs(pairs, arguments.rows, 0, others)
        whole = partial(audit_command, pairs, others, arguments.processes)
        copies = {name: partial(_alone, name, pairs, arguments.processes) for name in arguments.variants}
        audits = alternately({"ours": whole} if "ours" in arguments.variants else {}, arguments.repeats)
        near = alternately(copies, arguments.repeats)
    is_target = arguments.rows == 1_800_000
    figures = [
        Figure("audit", "s", values_of(audits, "seconds"), lower_is_better=True, target=TARGET_S if is_target else None),
        Figure("audit, CPU", "s", values_of(audits, "cpu_s"), lower_is_better=True),
        Figure("memory", "MB", values_of(audits, "peak_mb"), lower_is_better=True, target=TARGET_MB),
        Figure("near copies", "s", values_of(near, "seconds"), peer="datasketch", lower_is_better=True),
        Figure("near copies, CPU", "s", values_of(near, "cpu_s"), peer="datasketch", lower_is_better=True),
    ]
    details = {"planted": asdict(planted), "audits": audits, "near copies": near}
    finish(parser, arguments, figures, details=details)


def _alone(name: str, path: Path, processes: int) -> dict[str, Any] | None:
    return in_own_process("benchmarks.audit", ["--only", name, "--path", str(path), "--processes", str(processes)])


def audit_command(path: Path, others: Path, processes: int) -> dict[str, Any] | None:
    """Seconds, CPU seconds and peak memory of the command, and the copies that it counted; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "audit.json"
        words = ["audit", str(path), "--reference", str(others), "--processes", str(processes)]
        command = [sys.executable, "-c", "from sweep.cli import main; main()", *words]
        before, started = os.times(), time.perf_counter()
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(
                [*command, "--output", f"{folder}/page", "--json", str(numbers)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            peak = PeakMemory(process.pid)
            try:
                code = wait_for(process)
            finally:
                peak_mb = peak.stop()
            seconds, after = time.perf_counter() - started, os.times()
            output.seek(0)
            print(output.read()[-2_000:], flush=True)
        if code:
            return None
        kinds = json.loads(numbers.read_text())["duplicates"]["kinds"]
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    counts = {name: share["count"] for name, share in kinds.items()}
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb, "copies": counts}


class PeakMemory:
    """The most memory that a process and its children have at one time, in MB, sampled until `stop`."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._ended = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self._peak = max(self._peak, sum(map(_share_mb, _with_children(self._pid))))

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _with_children(int(child))


def _share_mb(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0  # it has ended
    return int(found[1]) / 1e3 if found else 0.0


def near_copies(path: Path, processes: int) -> dict[str, Any]:
    """Ours: the file measured and its duplicates found."""
    from analysis.corpus.copies import duplicates
    from analysis.corpus.input import open_texts
    from analysis.corpus.scan import scan_texts

    started, cpu_s = time.perf_counter(), sum(os.times()[:4])
    copies = duplicates(scan_texts(open_texts(path), processes=processes))
    return {"seconds": time.perf_counter() - started, "cpu_s": sum(os.times()[:4]) - cpu_s, "copies": len(copies.rows)}


def datasketch_copies(path: Path, processes: int) -> dict[str, Any]:
    """The peer: rows that are alike to an earlier one, by datasketch."""
    import pyarrow.parquet as pq
    from datasketch import MinHash, MinHashLSH

    started, cpu_s = time.perf_counter(), sum(os.times()[:4])
    index = MinHashLSH(num_perm=30, params=(10, 3))
    hashes: dict[int, Any] = {}
    num_copies = number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(32_768, columns=["premise", "hypothesis"]):
            texts = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            for signature in MinHash.bulk(map(_shingles, texts), num_perm=30, hashfunc=zlib.crc32):
                found = index.query(signature)
                num_copies += any(signature.jaccard(hashes[other]) >= THRESHOLD for other in found)
                index.insert(number, signature)
                hashes[number] = signature
                number += 1
    return {"seconds": time.perf_counter() - started, "cpu_s": sum(os.times()[:4]) - cpu_s, "copies": num_copies}


def _shingles(texts: Sequence[str]) -> list[bytes]:
    """The word pairs of both texts, each marked by its text."""
    return [
        f"{place} {first} {second}".encode()
        for place, text in enumerate(texts)
        for first, second in pairwise(["", *re.findall(r"\w+", text.lower())])
    ]


if __name__ == "__main__":
    main()
