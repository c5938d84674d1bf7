"""The audit's scan on a Ray cluster, with the same numbers as on one machine.

    with joined("auto", [analysis]):
        found = audit("s3://bucket/pool", settings, engine=OnRay())

Ray Data measures a table's pieces wherever there is a CPU. What is measured stays in the cluster's object store, for copies:
their rows meet by the hashes of their words, and then by the bands of their signatures, in parts that are shuffled over the
nodes. The driver has the numbers of each row, too, on its disk, for all that is counted.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.corpus.columns import ColumnNames
from analysis.corpus.copies import (
    NEAR,
    NO_ROW,
    NUM_BANDS,
    Copies,
    Found,
    agreeing,
    band_keys,
    first_of_each,
    joined_copies,
    neighbours,
    neighbours_of,
    repeated,
    same_words_in_part,
    with_near,
    words_from_part,
)
from analysis.corpus.input import TextFile, clean_batch
from analysis.corpus.labels import label_key
from analysis.corpus.scan import NUM_COMPONENTS, SAMPLE_ROWS, Report, Sample, Scan, collected, measure, silent
from analysis.corpus.spill import part_of, parts_of
from pipelines.errors import UserError
from sweep.run.failures import root_cause
from sweep.scan.pieces import TableInPieces, open_pieces

MIN_PARTS = 8
"""Parts of the rows that are shuffled by their hashes, at least; each is looked at by one task."""
OTHER_LABEL = 3
"""Beside the kinds of copies: a row with the words of others, of which none has its label."""
SIGNATURE_BYTES = 2 * NUM_COMPONENTS

Labels = tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class ScanOnRay(Scan):
    """A scan whose measured batches are in the cluster's object store, too; `begins` has the first row of each of them."""

    batches: Any = None
    begins: Mapping[tuple[int, int], int] | None = None


class OnRay:
    """The steps of an audit, as `analysis.corpus.copies.OneMachine` has them, on the cluster that this process has joined."""

    def open(self, source: Any, names: ColumnNames | None = None, fields: tuple[str, ...] = ()) -> TextFile:
        return open_pieces(source, names, fields)

    def scan(
        self,
        source: TextFile,
        *,
        seed: int = 0,
        processes: int = 0,
        sample_rows: int = SAMPLE_ROWS,
        references: tuple[str, ...] = (),
        report: Report = silent,
    ) -> ScanOnRay:
        """As :func:`analysis.corpus.scan.scan_texts`, but that `processes` does not matter: Ray has its CPUs."""
        import ray

        table = source.table
        assert isinstance(table, TableInPieces), "opened by this class"
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        numbers = ray.data.from_items(
            [{"piece": number} for number in range(len(table.pieces))], override_num_blocks=len(table.pieces)
        )
        options = {"source": source, "seed": seed, "sample_rows": sample_rows, "references": references}
        batches = numbers.map_batches(_measured, batch_size=1, batch_format="pyarrow", fn_kwargs=options)
        with _errors_of_users():
            batches = batches.materialize()
        begins: dict[tuple[int, int], int] = {}
        sample = Sample(sample_rows)
        scan = collected(source, _in_order(batches, sample, begins), sample, references, report)
        return ScanOnRay(**{field.name: getattr(scan, field.name) for field in fields(Scan)}, batches=batches, begins=begins)

    def duplicates(self, scan: Scan, report: Report = silent) -> Copies:
        """As :func:`analysis.corpus.copies.duplicates`."""
        return _copies(scan, None, (scan.label, scan.label), report, f"looking for copies within {Path(scan.path).name}")

    def copies_of(self, scan: Scan, source: Scan, labels: Labels, report: Report = silent) -> Copies:
        """As :func:`analysis.corpus.copies.copies_of`."""
        return _copies(scan, source, labels, report, f"looking for copies of {Path(source.path).name}")


# Measuring.


def _measured(
    batch: pa.Table, source: TextFile, seed: int, sample_rows: int, references: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The measured batches of a piece, each a row of Ray's dataset: its place among all, and all else as bytes."""
    table = source.table
    assert isinstance(table, TableInPieces)
    for piece in batch["piece"].to_pylist():
        # Of a piece no more rows are sampled than of all.
        sample = Sample(sample_rows)
        number = -1
        for number, raw in enumerate(table.read(table.pieces[piece])):
            measured = measure(clean_batch(raw, source), seed, sample.limit, references)
            sample.add(measured.pop("sample"))
            yield _packed(piece, number, measured)
        if number >= 0:
            yield _packed(piece, number + 1, {"sample": sample.drawn()})


def _packed(piece: int, number: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    return {"piece": [piece], "number": [number], "measured": [_as_bytes(measured)]}


def _as_bytes(measured: Mapping[str, Any]) -> bytes:
    """Arrays as npy, tables as Arrow streams and the rest as JSON, in one archive: nothing of it is unpickled."""
    arrays, rest = {}, {}
    for name, value in measured.items():
        if isinstance(value, np.ndarray):
            arrays[f"array {name}"] = value
        elif isinstance(value, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, value.schema) as stream:
                stream.write_table(value)
            arrays[f"table {name}"] = np.frombuffer(sink.getvalue(), np.uint8)
        else:
            rest[name] = value
    buffer = io.BytesIO()
    np.savez(buffer, rest=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _from_bytes(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content)) as archive:
        measured: dict[str, Any] = json.loads(archive["rest"].tobytes())
        for key in archive.files:
            what, _, name = key.partition(" ")
            if what == "array":
                measured[name] = archive[key]
            elif what == "table":
                measured[name] = pa.ipc.open_stream(archive[key].tobytes()).read_all()
    return measured


def _in_order(batches: Any, sample: Sample, begins: dict[tuple[int, int], int]) -> Iterator[dict[str, Any]]:
    """The measured batches; notes which row each begins with, and adds the pieces' samples."""
    num_rows, last = 0, (-1, -1)
    for batch in batches.iter_batches(batch_size=1, batch_format="pyarrow"):
        place = (batch["piece"][0].as_py(), batch["number"][0].as_py())
        assert place > last, "Ray keeps the order"
        last, measured = place, _from_bytes(batch["measured"][0].as_py())
        if "sample" in measured:
            sample.add(measured["sample"])
            continue
        begins[place] = num_rows
        num_rows += len(measured["row"])
        yield measured


# Copies.


def _copies(scan: Scan, source: Scan | None, labels: Labels, report: Report, doing: str) -> Copies:
    num_parts = max(MIN_PARTS, parts_of(max(scan.num_rows, source.num_rows if source else 0)))
    report(doing, 0, None)
    sides = [(scan, None if labels is None else labels[0]), *([] if source is None else [(source, labels and labels[1])])]
    keyed = [
        _shuffled(each, _by_words, side=side, codes=_codes(each, label), num_parts=num_parts)
        for side, (each, label) in enumerate(sides)
    ]
    is_within = source is None
    found = _grouped(keyed, functools.partial(_words_in_part, is_within=is_within), num_parts)
    is_copy = found[2] != OTHER_LABEL
    of_words = (found[0][is_copy], found[1][is_copy], found[2][is_copy].astype(np.uint8), found[0][~is_copy])
    copies = joined_copies(scan.num_rows, [of_words], labels)
    report(doing, 1, 2)
    left = np.ones(scan.num_rows, bool)
    left[copies.rows] = False
    chosen = (np.packbits(left), None)
    keyed = [
        _shuffled(each, _by_bands, side=side, chosen=chosen[side], num_parts=num_parts) for side, (each, _) in enumerate(sides)
    ]
    near = _grouped(keyed, functools.partial(_near_in_part, is_within=is_within), NUM_BANDS * num_parts)
    report(doing, 2, 2)
    return with_near(copies, first_of_each([(near[0], near[1])]), labels)


def _codes(scan: Scan, label: np.ndarray | None) -> dict[str, int] | None:
    """For each label of a scan, by its key, its code in common terms."""
    if label is None:
        return None
    codes, first = np.unique(scan.label, return_index=True)
    return {label_key(scan.labels[code]): int(label[at]) for code, at in zip(codes, first, strict=True)}


def _shuffled(scan: Scan, keys: Callable[..., Iterator[pa.Table]], **options: Any) -> Any:
    assert isinstance(scan, ScanOnRay), "made by this class"
    options["begins"] = scan.begins
    return scan.batches.map_batches(keys, batch_size=1, batch_format="pyarrow", fn_kwargs=options)


def _grouped(keyed: list[Any], found_in: Callable[[pa.Table], pa.Table], num_parts: int) -> tuple[np.ndarray, ...]:
    """What is found in each part: rows, originals and kinds."""
    together = keyed[0].union(*keyed[1:]) if len(keyed) > 1 else keyed[0]
    grouped = together.groupby("part", num_partitions=num_parts).map_groups(found_in, batch_format="pyarrow")
    columns: dict[str, list[np.ndarray]] = {"row": [], "original": [], "kind": []}
    with _errors_of_users():
        for batch in grouped.iter_batches(batch_size=None, batch_format="pyarrow"):
            # A block without rows may have no columns.
            for name, parts in columns.items() if batch.num_rows else ():
                parts.append(batch[name].to_numpy())
    return tuple(np.concatenate([np.zeros(0, np.int64), *parts]) for parts in columns.values())


def _unpacked(batch: pa.Table, begins: Mapping[tuple[int, int], int]) -> Iterator[tuple[dict[str, Any], int]]:
    for piece, number, content in zip(*(batch[name] for name in ("piece", "number", "measured")), strict=True):
        begin = begins.get((piece.as_py(), number.as_py()))
        if begin is not None:
            yield _from_bytes(content.as_py()), begin


def _by_words(
    batch: pa.Table, begins: Mapping[tuple[int, int], int], side: int, codes: Mapping[str, int] | None, num_parts: int
) -> Iterator[pa.Table]:
    """The rows of a batch by the part that the hash of their words belongs to."""
    for measured, begin in _unpacked(batch, begins):
        keys = measured["words"]
        label = np.full(len(keys), -1, np.int16)
        if codes is not None:
            label = np.array([codes[label_key(name)] for name in measured["label_names"]], np.int16)[measured["label"]]
        rows = np.arange(begin, begin + len(keys))
        columns = {
            "key": keys,
            "row": rows,
            "exact": measured["exact"],
            "label": label,
            "side": np.full(len(keys), side, np.int8),
        }
        yield pa.table({"part": part_of(keys, num_parts).astype(np.int32), **columns})


def _by_bands(
    batch: pa.Table, begins: Mapping[tuple[int, int], int], side: int, chosen: np.ndarray | None, num_parts: int
) -> Iterator[pa.Table]:
    """The rows of a batch whose bits are set in `chosen`, all without it, once for each band of their signatures."""
    for measured, begin in _unpacked(batch, begins):
        num_rows = len(measured["row"])
        at = np.arange(num_rows) if chosen is None else np.flatnonzero(_bits(chosen, begin, num_rows))
        signature = np.ascontiguousarray(measured["signature"][at])
        packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(SIGNATURE_BYTES), len(at), [None, pa.py_buffer(signature)])
        for band in range(NUM_BANDS):
            keys = band_keys(signature, band)
            part = part_of(keys, num_parts).astype(np.int32) + np.int32(band * num_parts)
            columns = {"part": part, "key": keys, "row": at + begin, "side": np.full(len(at), side, np.int8)}
            yield pa.table({**columns, "signature": packed})


def _bits(packed: np.ndarray, begin: int, num: int) -> np.ndarray:
    """Some of the bits that numpy has packed: uint8 [num]."""
    whole = np.unpackbits(packed[begin // 8 : (begin + num + 7) // 8])
    return whole[begin % 8 : begin % 8 + num]


def _sides(table: pa.Table) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The columns of a part's rows, in the order of rows: the file's, and the source's."""
    columns = {name: table[name].to_numpy() for name in table.column_names if name not in ("signature", "part")}
    if "signature" in table.column_names:
        packed = table["signature"].combine_chunks()
        content = np.frombuffer(packed.buffers()[1], np.uint16).reshape(-1, NUM_COMPONENTS)
        columns["signature"] = content[packed.offset : packed.offset + len(packed)]
    order = np.lexsort((columns["row"], columns["side"]))
    ordered = {name: column[order] for name, column in columns.items()}
    end = int((ordered["side"] == 0).sum())
    return {name: column[:end] for name, column in ordered.items()}, {name: column[end:] for name, column in ordered.items()}


def _words_in_part(table: pa.Table, is_within: bool) -> pa.Table:
    own, others = _sides(table)
    if is_within:
        keys, at = repeated(own["key"], np.arange(len(own["key"])))
        found: Found = same_words_in_part(keys, own["row"][at], own["exact"][at], own["label"][at])
    else:
        parts = [
            (each["key"], each["row"], each["exact"], None if (each["label"] < 0).any() else each["label"])
            for each in (own, others)
        ]
        found = words_from_part(*parts)
    rows, originals, kinds, other_label = found
    none = np.full(len(other_label), NO_ROW)
    return _table(
        np.concatenate([rows, other_label]),
        np.concatenate([originals, none]),
        np.concatenate([kinds.astype(np.int8), np.full(len(other_label), OTHER_LABEL, np.int8)]),
    )


def _near_in_part(table: pa.Table, is_within: bool) -> pa.Table:
    own, others = _sides(table)
    if is_within:
        others = own
        keys, at = repeated(own["key"], np.arange(len(own["key"])))
        pairs = agreeing(neighbours(keys, at), own["signature"], own["signature"])
    else:
        places = (np.arange(len(each["key"])) for each in (own, others))
        pairs = agreeing(
            neighbours_of(own["key"], next(places), others["key"], next(places)), own["signature"], others["signature"]
        )
    return _table(own["row"][pairs[0]], others["row"][pairs[1]], np.full(len(pairs[0]), NEAR))


def _table(rows: np.ndarray, originals: np.ndarray, kinds: np.ndarray) -> pa.Table:
    return pa.table({"row": rows.astype(np.int64), "original": originals.astype(np.int64), "kind": kinds.astype(np.int8)})


@contextlib.contextmanager
def _errors_of_users() -> Iterator[None]:
    """Raises what a task raised for its user as it was raised there, without Ray's traceback around it."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, UserError):
            raise
        raise UserError(str(cause)) from None
