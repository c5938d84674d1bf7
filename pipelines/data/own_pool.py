"""A pool of one's own in place of a generator's: a table of labelled examples, written out in the layout that all pools have.

    Experiment(…, synthetic="written.csv")
    Experiment(…, synthetic=Table("written.csv", columns={"premise": "text_a"}, labels={"0": "entailment"}))

A row that is no example of the task is left out, kept with its reason, and counted.
"""

import functools
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.data.table_rows import MAP_IT, TableRows, read_rows
from pipelines.data.table_sources import Table, hash_table, with_ids
from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import MARKS, added
from pipelines.storage import join, write_bytes
from pipelines.tables.columns import Wanted
from pipelines.tables.files import open_table
from pipelines.tables.labels import unknown_warning
from pipelines.tasks.examples import write_examples, write_table
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task

POOL_FILE, REJECTS_FILE, YIELD_FILE = "pool/own.parquet", "rejects/own.parquet", "yield.json"
REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "label", "generator", "reason", "text")])
OTHER = "no label of the task"
"""What rows that are of no label of the task are counted under."""


@dataclass(frozen=True)
class OwnPoolConfig:
    """A table that is a study's pool. Its identity is the table's: its content, and how its columns and labels are read."""

    table: Table
    task: Task = added(NLI)

    def __post_init__(self) -> None:
        check_types(self)
        table, task = self.table, self.task
        if unknown := sorted(set(dict(table.columns)) - {*task.columns}):
            raise UserError(
                f"{table.path}: columns={dict(table.columns)} maps {unknown[0]!r}, and a pool of the task {task.name} has "
                f"{', '.join(task.columns)}; map one of these to the file's column"
            )
        if table.test_set is not None:
            raise UserError(f"{table.path}: test_set={table.test_set!r} on a pool, which tests nothing; leave it out")
        if wrong := sorted(set(dict(table.labels).values()) - {*task.labels}):
            raise UserError(
                f"{table.path}: labels={dict(table.labels)} maps onto {wrong[0]!r}, which is none of {', '.join(task.labels)}; "
                "map the file's values onto these"
            )

    @property
    def is_known(self) -> bool:
        return self.table.file.is_known

    @property
    def name(self) -> str:
        """Whose pool it is, for people: the file's name."""
        return Path(self.table.path).name

    @property
    def num_by_label(self) -> dict[str, int]:
        """Examples that the pool has of each label, in the task's order: the table is read for it, once.

        Raises UserError as reading does.
        """
        labels = Counter(examples_of(self)["label"].to_pylist())
        return {label: labels[label] for label in self.task.labels}

    def with_content(self) -> "OwnPoolConfig":
        """With the table found, its columns looked for, and its content hashed.

        Raises UserError for one that is not there, cannot be read, or lacks a column.
        """
        if self.is_known:
            return self
        table = self.table.fetched("")
        _open(table, self.task)
        return replace(self, table=replace(table, file=hash_table(table.path, remembered=True)))


def examples_of(config: OwnPoolConfig) -> pa.Table:
    """The pool's examples: the task's columns and `generator`, which says by the file's hash whose they are."""
    table = with_ids(read_pool(config), "pool", config.task).select(config.task.columns)
    return table.append_column("generator", pa.repeat(pa.scalar(_generator(config)), table.num_rows))


def prepare_own_pool(config: OwnPoolConfig, output: str) -> dict[str, Any]:
    """Write `pool/own.parquet`, `rejects/own.parquet` (id, label, generator, reason, text) and, last, `yield.json`.

    Returns counts as `generate` does, and the file's name. Raises UserError for a table that is missing or not the one that the
    study was planned with, and as reading does.
    """
    config = config.with_content()
    if (there := hash_table(config.table.path)) != config.table.file:
        raise UserError(
            f"{config.table.path} has sha256 {there.sha256[:12]}…, not {config.table.file.sha256[:12]}… as when the experiment "
            "was made; start again to use the new content, or restore the file"
        )
    examples, rejects = examples_of(config), _rejects(config)
    write_examples(examples, join(output, POOL_FILE), config.task)
    write_table(rejects, join(output, REJECTS_FILE))
    parsed = Counter(examples["label"].to_pylist())
    reasons = Counter(rejects["reason"].to_pylist())
    left_out = Counter(label if label in config.task.labels else OTHER for label in rejects["label"].to_pylist())
    labels = [*config.task.labels, *([OTHER] if left_out[OTHER] else [])]
    summary = {
        "file": {"name": config.name, "sha256": config.table.file.sha256},
        "parsed": {label: parsed[label] for label in labels},
        "generated": {label: parsed[label] + left_out[label] for label in labels},
        "rejected": dict(reasons.most_common()),
    }
    write_bytes(join(output, YIELD_FILE), json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return {
        "file": config.name,
        "parsed": examples.num_rows,
        **{f"parsed/{label}": parsed[label] for label in config.task.labels},
        "rejected": rejects.num_rows,
        **{f"rejected/{reason}": num for reason, num in reasons.most_common()},
        "yield": examples.num_rows / (examples.num_rows + rejects.num_rows),
        **({MARKS: marks} if (marks := pool_marks(config)) else {}),
    }


def pool_marks(config: OwnPoolConfig) -> list[str]:
    """What is said of all that is made of the pool: that many of its rows were left out for their labels."""
    rows = read_pool(config)
    unmapped = rows.label_warning(MAP_IT)
    unknown = unknown_warning(rows.unknown_labels, rows.examples.num_rows, config.name)
    return [*([f"{config.name}: {unmapped}"] if unmapped else []), *([unknown] if unknown else [])]


def _open(table: Table, task: Task) -> Any:
    given = dict(table.columns)
    wanted = [
        Wanted(name, given.get(name), is_strict=name in given, is_text=name != "label") for name in (*task.field_names, "label")
    ]
    if "id" in given:
        wanted.append(Wanted("id", given["id"], is_strict=True, is_text=False, is_own=False))
    return open_table(table.path, wanted, "map it to one of them: Table(…, columns={{'{name}': '…'}})")


@functools.lru_cache(maxsize=4)
def read_pool(config: OwnPoolConfig) -> TableRows:
    """The rows of the table. Raises UserError where none is an example of the task."""
    rows = read_rows(_open(config.table, config.task), config.task.field_names, dict(config.table.labels), config.task.labels)
    if not rows.examples.num_rows:
        raise UserError(f"{config.table.path}: none of its {rows.num_rows:,} rows is an example of the task {config.task.name}")
    return rows


def _rejects(config: OwnPoolConfig) -> pa.Table:
    task, labels = config.task, dict(config.table.labels)
    rows = [
        {
            "id": f"pool-{row['row']:06d}",
            "label": labels.get(row["label"], row["label"]),
            "generator": _generator(config),
            "reason": row["reason"],
            "text": row["raw"] or " ".join(f"{field.mark} {row[field.name] or ''}" for field in task.fields),
        }
        for row in read_pool(config).dropped
    ]
    return pa.Table.from_pylist(rows, REJECTS_SCHEMA)


def _generator(config: OwnPoolConfig) -> str:
    return config.table.file.sha256[:12]
