"""The origin of a number: its artifact, its rows, its configuration, its run, and all that it was built from.

blindsweep explain mini hans/accuracy --cell start5000-original-1800-seed0
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import UserError
from pipelines.storage import join
from sweep.graph.identity import SHORT, flatten
from sweep.graph.records import RECORD_FILE, Record, Store, Study, shown


@dataclass(frozen=True)
class Origin:
    """The origin of one number of a study.

    `record` and `folder` are its artifact's. `lineage` are the records that it was built from, each with its depth (the
    artifact itself is 0), nearest first and each once.
    """

    metric: str
    record: Record
    folder: str
    lineage: tuple[tuple[int, Record], ...]

    @property
    def value(self) -> Any:
        return self.record.metrics[self.metric]


def explain(store: Store, study: Study, metric: str, cell: str = "") -> list[Origin]:
    """The origins of `metric` in each artifact of `study` that has it, or in the one whose slug is `cell`.

    Raises UserError, with the nearest valid names, for a metric or a cell that no built artifact has.
    """
    built = {step.fingerprint: _placed(step.record, step.coordinates) for step in study.steps if step.record is not None}
    having = [record for record in built.values() if metric in record.metrics]
    if not having:
        names = sorted({name for record in built.values() for name in record.metrics})
        raise UserError(f"no built artifact of {study.experiment} has a metric {metric!r}{_nearest(metric, names)}")
    chosen = [record for record in having if not cell or record.slug == cell]
    if not chosen:
        slugs = sorted({record.slug for record in having})
        raise UserError(f"no built artifact {cell!r} of {study.experiment} has {metric}{_nearest(cell, slugs)}")
    return [Origin(metric, record, store.folder(record.id), tuple(lineage_of(record, store))) for record in chosen]


def _placed(record: Record, coordinates: Mapping[str, Any]) -> Record:
    """The record with its place in this study: its own is that in the study that built it, which may have had one generator."""
    return replace(record, coordinates={**record.coordinates, **coordinates})


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=5, cutoff=0.3) or valid[:5]
    return f"; the nearest that there are: {', '.join(close)}" if close else "; nothing is built yet"


def lineage_of(record: Record, store: Store) -> Iterator[tuple[int, Record]]:
    """The records that an artifact was built from, each once with its depth, nearest first; itself is 0.

    Raises UserError for one that is gone.
    """
    seen = set()
    todo = [(0, record)]
    while todo:
        depth, built = todo.pop(0)
        if built.fingerprint in seen:
            continue
        seen.add(built.fingerprint)
        yield depth, built
        for _, source in sorted(built.inputs.items()):
            ancestor = store.read_record(source)
            if ancestor is None:
                raise UserError(f"{built.id.name} was built from {source.name}, whose record is gone; restore it")
            todo.append((depth + 1, ancestor))


def as_text(origin: Origin) -> Iterator[str]:
    """Lines for a terminal."""
    record = origin.record
    yield f"{origin.metric} = {origin.value}"
    if record.coordinates:
        yield "  cell     " + ", ".join(f"{name} {shown(value)}" for name, value in record.coordinates.items())
    if record.marks:
        yield f"  marked   {'; '.join(record.marks)}"
    yield f"  record   {join(origin.folder, RECORD_FILE)}"
    for name, count in record.num_rows.items():
        yield f"  rows     {join(origin.folder, name)}: {count:,}"
    yield f"  run      in MLflow: tags.fingerprint = '{record.fingerprint}'"
    commit = record.git.get("commit", "unknown")[:SHORT]
    yield f"  built    {record.created} in {record.durations['total_s']:.0f} s, code {commit}"
    for depth, built in origin.lineage:
        settings = ", ".join(
            f"{name}={value}" for name, value in flatten(built.payload["config"]) if value not in (None, "") and name != "type"
        )
        yield f"  {'  ' * depth}{built.stage}/{built.slug}-{built.fingerprint[:SHORT]}: {settings}"


def as_json(origin: Origin) -> dict[str, Any]:
    """The same as JSON values."""
    record = origin.record
    return {
        "metric": origin.metric,
        "value": origin.value,
        "coordinates": dict(record.coordinates),
        "marks": list(record.marks),
        "fingerprint": record.fingerprint,
        "folder": origin.folder,
        "rows": dict(record.num_rows),
        "lineage": [
            {
                "depth": depth,
                "stage": built.stage,
                "slug": built.slug,
                "fingerprint": built.fingerprint,
                "config": built.payload["config"],
            }
            for depth, built in origin.lineage
        ],
    }
