"""A small study with logits and sources on disk: 90 general items of 30 premises, 120 probe items of 24 templates."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluate.evaluation import EvaluationConfig, logits_table
from pipelines.evaluate.scoring import accuracy_rows, where_held
from pipelines.identity import identity
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import LABELS, NLI, NON_ENTAILMENT, Label
from pipelines.tasks.test_sets import TestSet
from tests.analysis.fake_store import KINDS, FakeStudy, fingerprint

Rate = Callable[[int, str, int, str], float]
"""(starting_size, kind, size, part) -> share of right items, part being "general", "entailment" or "non-entailment"."""
Place = Callable[[str, dict[str, str]], str | None]
"""(test set, item) -> another part that the item belongs to, or None."""


def encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def general_items() -> pa.Table:
    num = 90
    return pa.table(
        {
            "id": [f"g{i}" for i in range(num)],
            "premise": [f"premise {i // 3} ." for i in range(num)],
            "hypothesis": [f"hypothesis {i} ." for i in range(num)],
            "label": [str(LABELS[i % 3]) for i in range(num)],
        }
    )


def probe_items() -> pa.Table:
    num = 120
    labels = [str(LABELS[0]) if i % 2 == 0 else NON_ENTAILMENT for i in range(num)]
    return pa.table(
        {
            "id": [f"p{i}" for i in range(num)],
            "premise": [f"premise {i} ." for i in range(num)],
            "hypothesis": [f"hypothesis {i} ." for i in range(num)],
            "label": labels,
            "heuristic": ["lexical_overlap" if i < 60 else "subsequence" for i in range(num)],
            "subcase": [f"{'l' if i < 60 else 's'}{'e' if i % 2 == 0 else 'n'}_{i // 30 % 2}" for i in range(num)],
            "template": [f"t{i % 6}" for i in range(num)],
        }
    )


class ItemStudy(FakeStudy):
    """Each cell is right at exactly the share of items that `rate` says (rounded), which ones being drawn by cell and seed.

    Logits are 1 or 0, plus less than `jitter` 64ths, plus what `shift` says for the kind on the label `shifted`.
    """

    shifted: str = Label.ENTAILMENT
    task = NLI
    test_sets: tuple[TestSet, ...] = ()

    def __init__(
        self,
        root: Path,
        rate: Rate,
        *,
        noise: float = 0.02,
        sources: bool = True,
        heuristics: Sequence[Heuristic] = (),
        place: Place = lambda *_: None,
        jitter: int = 0,
        shift: Callable[[str], float] = lambda kind: 0.0,
    ) -> None:
        super().__init__(root)
        self.rate, self.noise, self.heuristics, self.place = rate, noise, heuristics, place
        self.jitter, self.shift = jitter, shift
        self.sets = self.items()
        files = {f"{name}.parquet": encode(table) for name, table in self.sets.items()}
        self.sources = self.add("sources", "data", files=files, built=sources)

    def items(self) -> dict[str, pa.Table]:
        """The test sets, the general one first."""
        return {"template_test": general_items(), "template_probe": probe_items()}

    def grid(
        self, starting_sizes: tuple[int, ...] = (0, 50_000), sizes: tuple[int, ...] = (60, 120), num_seeds: int = 3
    ) -> None:
        for seed in range(num_seeds):
            for start in starting_sizes:
                for kind, size in [("none", 0), *((kind, size) for kind in KINDS for size in sizes)]:
                    self.add_cell(start, kind, size, seed)

    def add_cell(
        self,
        start: int,
        kind: str,
        size: int,
        seed: int,
        *,
        edit: Callable[[pa.Table], pa.Table] | None = None,
        generator: int | None = None,
        arms: tuple[str, ...] = (),
    ) -> None:
        random = np.random.default_rng([start, [*KINDS, "none"].index(kind), size, seed])
        rows: list[dict[str, Any]] = []
        tables = []
        config = EvaluationConfig(tuple(self.sets), heuristics=tuple(self.heuristics), task=self.task, test_sets=self.test_sets)
        for name, table in self.sets.items():
            labels = table["label"].to_pylist()
            usual = ["general" if name == next(iter(self.sets)) else label for label in labels]
            parts = [self.place(name, item) or part for item, part in zip(table.to_pylist(), usual, strict=True)]
            right = np.zeros(len(labels), dtype=bool)
            for part in dict.fromkeys(parts):
                where = np.flatnonzero([one == part for one in parts])
                share = self.rate(start, kind, size, part) + random.normal() * self.noise
                right[random.choice(where, round(np.clip(share, 0, 1) * len(where)), replace=False)] = True
            logits = np.zeros((len(labels), len(self.task.labels)), dtype=np.float32)
            last = len(self.task.labels) - 1
            for row, (label, is_right) in enumerate(zip(labels, right, strict=True)):
                target = self.task.labels.index(label) if label in self.task.labels else last
                # A wrong answer must be wrong after folding onto the first label, too.
                wrong = last if target == 0 else 0
                logits[row, target if is_right else wrong] = 1.0
            if self.jitter:
                logits += random.integers(self.jitter, size=logits.shape) / 64
            logits[:, self.task.labels.index(self.shifted)] += self.shift(kind)
            held = where_held(table, self.heuristics, self.task)
            rows += accuracy_rows(name, table, logits, held, self.task, config.described(name))
            tables.append(logits_table(config, name, table, logits, held))
        everything = pa.concat_tables(tables)
        self.add(
            "evaluation",
            "-".join([f"start{start}", *arms, kind, f"{size}-seed{seed}"]),
            coordinates={"starting_size": start, "kind": kind, "size": size, "seed": seed}
            | ({} if generator is None else {"generator": generator})
            | ({"arms": arms} if arms else {}),
            inputs={"sources": self.sources},
            config=identity(config),
            files={
                "metrics.json": metrics_json(rows),
                "logits.parquet": encode(edit(everything) if edit else everything),
            },
        )

    def logits_path(self, start: int, kind: str, size: int, seed: int) -> Path:
        slug = f"start{start}-{kind}-{size}-seed{seed}"
        return self.root / "evaluation" / f"{slug}-{fingerprint('evaluation', slug)[:12]}" / "logits.parquet"


def metrics_json(rows: list[dict[str, Any]]) -> bytes:
    import json

    return json.dumps({"rows": rows}).encode()


def clear(start: int, kind: str, size: int, part: str) -> float:
    """Synthetic data helps in general as much as original, harms the adversarial items, and bias kills them."""
    if part == "general":
        return {"none": 0.4, "original": 0.8, "synthetic": 0.8, "biased_synthetic": 0.6}[kind]
    if part == "entailment":
        return 0.8
    return {"none": 0.6, "original": 0.7, "synthetic": 0.3, "biased_synthetic": 0.05}[kind]


def joint_study(root: Path, joint: Rate, num_seeds: int, starts: tuple[int, ...] = (0, 50_000)) -> ItemStudy:
    """Two arms, two_steps as `clear` and joint as given; untrained, and what is trained from there, they are the same."""
    study = ItemStudy(root, clear)
    for seed in range(num_seeds):
        for start in starts:
            for kind, size in [("none", 0), *((kind, size) for kind in KINDS for size in (60, 120))]:
                for arms in (("two_steps", "joint"),) if not start or kind == "none" else (("two_steps",), ("joint",)):
                    study.rate = joint if arms == ("joint",) else clear
                    study.add_cell(start, kind, size, seed, arms=arms)
    return study
