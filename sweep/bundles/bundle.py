"""A study written as a bundle: its records, results and small artifacts by fingerprint, without weights."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.errors import DamagedError, UserError
from pipelines.storage import write_bytes
from sweep.bundles.part import ENTRY_BYTES, Piece, bundled_files, packed_size, part_bytes
from sweep.graph.pieces import Only, parse_only, piece_of, seeds_lacking
from sweep.graph.records import Record, Store, Study

LEAST_PART = 64 * 1024
"""Bytes below which a part would hold little beside its header."""
SUFFIX = ".zip"
WHOLE = "whole"
"""The piece that is made of all seeds of which everything is built."""


@dataclass(frozen=True)
class Bundle:
    """What was written: `parts`, and the number of artifacts in them, of the piece `only` if not of the whole study; `left_out`
    are those of it that are not built.
    """

    parts: tuple[Path, ...]
    num_artifacts: int
    left_out: int
    only: Only | None = None


@dataclass
class _Box:
    """What goes into one part."""

    room: int
    records: dict[str, Record] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)


def write_bundle(store: Store, name: str, target: Path, *, part_size: int, only: str | None = None) -> Bundle:
    """Write what is built of study `name` as `target`, a zip file, or in parts `target`-001.zip and so on.

    `only` a piece of it (`parse_only`), or the seeds that are `WHOLE`; a run may go on meanwhile. No part has more than
    `part_size` bytes, and a file that does not fit lies in several. Parts that are there as they would be written, of a call
    that was cut off, stay. Raises UserError for a part size that is too small, for another file in a part's place, for a study
    that is not known or of which nothing is built, and where no seed is whole; DamagedError for an artifact that is damaged.
    """
    study = Study.load(store, name)
    piece = None if only is None else _whole_seeds(study, store) if only == WHOLE else parse_only(only, more=WHOLE)
    steps = study.steps if piece is None else piece_of(study.steps, piece)
    if damage := next((step.damage for step in steps if step.damage), ""):
        # It counts as not built, and would be left out as if it were.
        raise DamagedError(damage)
    records = [step.record for step in steps if step.record is not None]
    if not records:
        of_piece = f" of the piece {piece}" if piece else ""
        raise UserError(f"nothing{of_piece} of {name} is built in {store.uri}; run it first, or give --store")
    manifest = replace(study, steps=tuple(replace(step, record=None, damage="") for step in study.steps))
    of_manifest = packed_size(manifest.to_json().encode())
    of_records = {record.fingerprint: packed_size(record.to_json().encode()) for record in records}
    least = max(LEAST_PART, 2 * (of_manifest + max(of_records.values()) + ENTRY_BYTES))
    if part_size < least:
        raise UserError(f"--part-size {part_size}: a part of this study needs {least} bytes at least; give more")
    boxes = _pack(store, records, of_records, part_size - of_manifest - ENTRY_BYTES)
    parts = _paths(target, len(boxes))
    there = {path for path in parts if path.exists()}
    for path, box in zip(parts, boxes, strict=True):
        if path in there and not (path.is_file() and path.read_bytes() == _part(store, manifest, box)):
            raise UserError(f"{path} is there already, with other content; remove it, or give another file")
    for path, box in zip(parts, boxes, strict=True):
        if path not in there:
            write_bytes(path, _part(store, manifest, box))
    return Bundle(tuple(parts), len(records), len(steps) - len(records), piece)


def _whole_seeds(study: Study, store: Store) -> Only:
    lacking = seeds_lacking(study.steps)
    if whole := frozenset(seed for seed, num_lacking in lacking.items() if not num_lacking):
        return Only("seed", whole)
    if not lacking:
        raise UserError(f"--only {WHOLE}: {study.experiment} has no seeds; leave it out")
    nearest = min(lacking, key=lacking.__getitem__)
    raise UserError(
        f"--only {WHOLE}: no seed of {study.experiment} is whole in {store.uri}, and the nearest, seed {nearest}, lacks "
        f"{lacking[nearest]:,} artifacts; build on, with --seeds-at-once 1 if the time is short"
    )


def _paths(target: Path, number: int) -> list[Path]:
    stem = target.with_suffix("") if target.suffix == SUFFIX else target
    if number == 1:
        return [stem.with_name(stem.name + SUFFIX)]
    return [stem.with_name(f"{stem.name}-{place:03}{SUFFIX}") for place in range(1, number + 1)]


def _part(store: Store, manifest: Study, box: _Box) -> bytes:
    contents = {piece: _content(store, box.records[piece.artifact.fingerprint], piece) for piece in box.pieces}
    return part_bytes(manifest, box.records.values(), contents)


def _content(store: Store, record: Record, piece: Piece) -> bytes:
    return store.read_bytes(record, piece.path)[piece.offset : piece.offset + piece.num_bytes]


def _pack(store: Store, records: Sequence[Record], of_records: Mapping[str, int], room: int) -> list[_Box]:
    """Deal records, of which each takes its part of `of_records`, and their files into boxes of `room` bytes."""
    boxes = [_Box(room)]

    def enter(record: Record) -> None:
        """Put a record into the last box, unless it is there."""
        if record.fingerprint not in boxes[-1].records:
            boxes[-1].records[record.fingerprint] = record
            boxes[-1].room -= of_records[record.fingerprint] + ENTRY_BYTES + 2 * len(record.slug)

    for record in records:
        of_record = of_records[record.fingerprint]
        if boxes[-1].room < of_record + 2 * ENTRY_BYTES:
            boxes.append(_Box(room))
        enter(record)
        for path in bundled_files(record):
            content = store.read_bytes(record, path)
            for piece, num_packed in _pieces(record, path, content, room - of_record):
                if boxes[-1].room < num_packed and boxes[-1].pieces:
                    boxes.append(_Box(room))
                    enter(record)
                boxes[-1].pieces.append(piece)
                boxes[-1].room -= num_packed
    return boxes


def _pieces(record: Record, path: str, content: bytes, room: int) -> Iterator[tuple[Piece, int]]:
    """The pieces of a file, each with what it takes: one if it fits into `room` bytes, else such as do at any rate."""
    whole = packed_size(content) + ENTRY_BYTES + 4 * len(path)
    most = room - 2 * ENTRY_BYTES - 4 * len(path)
    step = max(1, len(content)) if whole <= most else most
    for offset in range(0, max(1, len(content)), step):
        block = content[offset : offset + step]
        piece = Piece(record.id, path, offset, len(block), hashlib.sha256(block).hexdigest())
        yield piece, packed_size(block) + ENTRY_BYTES + 4 * len(path)
