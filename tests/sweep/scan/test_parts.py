"""What a cluster's tasks do, one after another in this process: pieces of a table, their batches, and parts of rows by key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.corpus import copies as one_machine
from analysis.corpus.copies import Copies
from analysis.corpus.input import open_texts
from analysis.corpus.scan import Sample, Scan, collected, scan_texts
from benchmarks.pairs import write_pairs
from pipelines.errors import UserError
from sweep.scan import on_ray, pieces
from sweep.scan.on_ray import OnRay, ScanOnRay

NUM_ROWS = 3_000


class Tables:
    """A list of tables with the methods of Ray's datasets that are used."""

    def __init__(self, tables: list[pa.Table]) -> None:
        self.tables = tables

    def map_batches(self, of_batch: Callable[..., Iterator[Any]], fn_kwargs: Mapping[str, Any], **_: Any) -> Tables:
        found = [pa.table(each) for table in self.tables for each in of_batch(table, **fn_kwargs)]
        # Blocks arrive in any order at a part.
        return Tables(found)

    def union(self, other: Tables) -> Tables:
        return Tables([*other.tables, *self.tables])

    def groupby(self, key: str, num_partitions: int) -> Tables:
        whole = pa.concat_tables(self.tables[::-1])
        parts = whole[key].to_numpy()
        assert parts.min() >= 0 and parts.max() < num_partitions
        return Tables([whole.filter(pa.array(parts == part)) for part in np.unique(parts)])

    def map_groups(self, of_group: Callable[[pa.Table], pa.Table], **_: Any) -> Tables:
        return Tables([of_group(table) for table in self.tables])

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self.tables)


def scan_in_pieces(path: Path) -> ScanOnRay:
    source = OnRay().open(str(path))
    assert isinstance(source.table, pieces.TableInPieces)
    options = {"source": source, "seed": 0, "sample_rows": 200, "references": ()}
    numbers = Tables([pa.table({"piece": [number]}) for number in range(len(source.table.pieces))])
    batches = numbers.map_batches(on_ray._measured, options)
    begins: dict[tuple[int, int], int] = {}
    sample = Sample(200)
    scan = collected(source, on_ray._in_order(batches, sample, begins), sample)
    return ScanOnRay(**{field.name: getattr(scan, field.name) for field in fields(Scan)}, batches=batches, begins=begins)


def test_ragged_rows_of_a_piece_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("premise,hypothesis,label\na,b,c\na,b\n")
    with pytest.raises(UserError, match="line 3 has 2 cells and the header 3"):
        scan_in_pieces(tmp_path / "a.csv")


def test_pieces_and_parts_have_the_numbers_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "GROUPS_AT_ONCE", 600)
    monkeypatch.setattr(pieces, "MAX_BATCH_ROWS", 130)
    whole, parted = {}, {}
    (tmp_path / "source").mkdir()
    write_pairs(tmp_path / "source" / "train-00000-of-00001.parquet", NUM_ROWS // 3, seed=1)
    write_pairs(tmp_path / "once.parquet", NUM_ROWS, 0, tmp_path / "source" / "train-00000-of-00001.parquet")
    pq.write_table(pq.read_table(tmp_path / "once.parquet"), tmp_path / "pairs.parquet", 250)
    (tmp_path / "once.parquet").unlink()
    for name in ("pairs.parquet", "source"):
        whole[name] = scan_texts(open_texts(tmp_path / name), sample_rows=200)
        parted[name] = scan_in_pieces(tmp_path / name)
        for column in ("row", "label", "exact", "words", "parts", "signature", "holds", "has_parse", "lengths"):
            assert np.array_equal(getattr(whole[name], column), getattr(parted[name], column)), column
        assert whole[name].sample.equals(parted[name].sample) and whole[name].labels == parted[name].labels
    assert len(parted["pairs.parquet"].source.table.pieces) == 4  # type: ignore[attr-defined]
    (scan, source), (here, source_here) = ((each["pairs.parquet"], each["source"]) for each in (parted, whole))
    names = sorted(here.labels)
    labels = tuple(np.array([names.index(name) for name in one.labels], np.int16)[one.label] for one in (here, source_here))
    for found, expected in (
        (OnRay().duplicates(scan), one_machine.duplicates(here)),
        (OnRay().copies_of(scan, source, labels), one_machine.copies_of(here, source_here, labels)),  # type: ignore[arg-type]
        (OnRay().copies_of(scan, source, None), one_machine.copies_of(here, source_here, None)),
    ):
        assert len(expected.rows) > 5
        for field in fields(Copies):
            assert np.array_equal(getattr(found, field.name), getattr(expected, field.name)), field.name


def test_csv_is_one_piece_with_the_rows_of_one_machine(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('premise,hypothesis,label\na b,b,x\n,c,x\nc d,"d, e",y\n')
    here, there = scan_texts(open_texts(path)), scan_in_pieces(path)
    assert here.row.tolist() == there.row.tolist() == [1, 3] and here.left_out == there.left_out
    assert np.array_equal(here.exact, there.exact)


def test_bits_are_those_that_were_packed() -> None:
    bits = np.random.default_rng(0).integers(0, 2, 100).astype(np.uint8)
    for begin in range(20):
        for num in (0, 1, 7, 8, 30):
            assert np.array_equal(on_ray._bits(np.packbits(bits), begin, num), bits[begin : begin + num])


def test_tables_that_the_machines_do_not_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on this machine only"):
        OnRay().open(pa.table({"text": ["a"], "label": ["b"]}))
    with pytest.raises(UserError, match="does not exist"):
        OnRay().open(str(tmp_path / "nothing"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not readable as Parquet"):
        OnRay().open(str(tmp_path / "broken.parquet"))
