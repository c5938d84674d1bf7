"""A small study on disk, written by hand: real files in the store's layout, no stage has run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.study.frame import evaluation_frame
from sweep.graph.records import Store, Study

KINDS = ("original", "synthetic", "biased_synthetic")
SETS = [
    ("template_test", "all", 3),
    ("template_probe", "all", 2),
    ("template_probe", "lexical_overlap/non-entailment", 2),
]
PAPER_SETS = [
    ("mnli_matched", "all", 3),
    ("hans", "all", 2),
    ("hans", "lexical_overlap/non-entailment", 2),
]
NUM_EXAMPLES = 200
Correct = Callable[[int, str, int, int, str, str], int]
"""(starting_size, kind, size, seed, set, slice) -> how many of NUM_EXAMPLES are right."""


def fingerprint(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def plausible(starting_size: int, kind: str, size: int, seed: int, set_: str, slice_: str) -> int:
    """Accuracies shaped like the study's: general rises, the adversarial slice falls with a biased set."""
    start = {"template_test": 66 + starting_size // 10, "template_probe": 100}[set_]
    gain = {"none": 0, "original": 1.0, "synthetic": 0.8, "biased_synthetic": 0.3}[kind] * size / 10
    if slice_ != "all":
        start, gain = (
            170 - starting_size // 10,
            {"original": 0.4, "synthetic": -0.2, "biased_synthetic": -1.6}.get(kind, 0) * size / 10,
        )
    return int(max(0, min(NUM_EXAMPLES, start + gain + 3 * seed)))


class FakeStudy:
    """Writes `{root}/studies/{name}.json` and the artifacts it names."""

    def __init__(self, root: Path, name: str = "tiny", title: str = "A tiny study") -> None:
        self.root, self.name, self.title = root, name, title
        self.steps: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.parameters: dict[str, Any] = {"general_set": "template_test", "blindspot_set": "template_probe"}
        self.generators = 1

    def add(
        self,
        stage: str,
        slug: str,
        *,
        coordinates: dict[str, Any] | None = None,
        inputs: dict[str, str] | None = None,
        metrics: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
        built: bool = True,
        marks: tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
    ) -> str:
        mark = fingerprint(stage, slug)
        step = {
            "stage": stage,
            "slug": slug,
            "fingerprint": mark,
            "coordinates": coordinates or {},
            "inputs": inputs or {},
        }
        self.steps.append(step)
        if not built:
            return mark
        folder = self.folder(stage, slug)
        described = {}
        for path, content in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
            described[path] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "format": 1,
            "stage": stage,
            "slug": slug,
            "fingerprint": mark,
            "payload": {"stage": stage, "version": 1, "config": config or {}, "inputs": inputs or {}},
            "inputs": {name: {"stage": name, "slug": name, "fingerprint": value} for name, value in (inputs or {}).items()},
            "coordinates": coordinates or {},
            "metrics": metrics or {},
            "num_rows": {},
            "files": described,
            "versions": {"torch": "2.13.0", "vllm": "0.32.0"},
            "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
            "durations": {"total_s": 12.5},
            "hardware": {"cpus": 2, "gpus": []},
            "created": "2025-01-02T03:04:05+00:00",
            "marks": marks,
        }
        (folder / "record.json").write_text(json.dumps(record))
        return mark

    def folder(self, stage: str, slug: str) -> Path:
        return self.root / stage / f"{slug}-{fingerprint(stage, slug)[:12]}"

    def add_evaluation(
        self,
        starting_size: int,
        kind: str,
        size: int,
        seed: int,
        correct: Correct = plausible,
        *,
        sets: list[tuple[str, str, int]] = SETS,
        built: bool = True,
        slug: str | None = None,
        more_right_when_summed: int | None = None,
        bias: float | None = None,
        **dials: Any,
    ) -> str:
        rows = []
        for set_, slice_, num_labels in sets:
            right = {"argmax": correct(starting_size, kind, size, seed, set_, slice_)}
            if more_right_when_summed is not None and num_labels == 2:
                right["summed"] = right["argmax"] + more_right_when_summed
            for folding, num_correct in right.items():
                rows.append(
                    {
                        "set": set_,
                        "slice": slice_,
                        "num_labels": num_labels,
                        "folding": folding,
                        "accuracy": num_correct / NUM_EXAMPLES,
                        "num_correct": num_correct,
                        "num_examples": NUM_EXAMPLES,
                    }
                )
        slug = slug or f"start{starting_size}-{kind}-{size}-seed{seed}"
        coordinates = {"starting_size": starting_size, "kind": kind, "size": size, "seed": seed}
        coordinates |= dials | ({} if bias is None else {"bias": bias})
        coordinates |= {"generator": seed % self.generators} if self.generators > 1 else {}
        model = self.add("task_model", slug, coordinates=coordinates, built=built, metrics={"examples_per_s": 300.0})
        return self.add(
            "evaluation",
            slug,
            coordinates=coordinates,
            inputs={"task_model": model},
            built=built,
            files={"metrics.json": json.dumps({"rows": rows}).encode()},
            metrics={"examples_per_s": 700.0},
        )

    def add_grid(
        self,
        starting_sizes: tuple[int, ...] = (0, 200),
        sizes: tuple[int, ...] = (60, 120),
        seeds: tuple[int, ...] = (0, 1),
        correct: Correct = plausible,
        skip: tuple[tuple[int, str, int, int], ...] = (),
    ) -> None:
        for seed in seeds:
            for start in starting_sizes:
                cells = [("none", 0), *((kind, size) for kind in KINDS for size in sizes)]
                for kind, size in cells:
                    self.add_evaluation(start, kind, size, seed, correct, built=(start, kind, size, seed) not in skip)

    def frame(self, *, partial: bool = False) -> pd.DataFrame:
        """Its evaluations' rows, read back from the store."""
        store = Store(self.write())
        return evaluation_frame(store, Study.load(store, self.name), partial=partial)

    def write(self) -> str:
        """Write the manifest; returns the store's path."""
        manifest = {
            "format": 1,
            "experiment": self.name,
            "title": self.title,
            "steps": self.steps,
            "failures": self.failures,
            "parameters": self.parameters,
        }
        (self.root / "studies").mkdir(parents=True, exist_ok=True)
        (self.root / "studies" / f"{self.name}.json").write_text(json.dumps(manifest))
        return str(self.root)


def parquet(rows: list[tuple[str, str, str]]) -> bytes:
    """Rows of (premise, hypothesis, label) as an examples file."""
    table = pa.table(
        {
            "id": [f"e{index}" for index in range(len(rows))],
            "premise": [row[0] for row in rows],
            "hypothesis": [row[1] for row in rows],
            "label": [row[2] for row in rows],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def label_metrics(num_rows: int, overlaps: dict[str, int]) -> dict[str, int]:
    """The metrics of a training set with `num_rows` examples of each label."""
    metrics: dict[str, int] = {}
    for label, overlap in overlaps.items():
        metrics |= {f"{label}/num_examples": num_rows, f"{label}/lexical_overlap": overlap}
    return metrics
