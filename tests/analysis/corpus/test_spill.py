"""Arrays on disk: what comes back, what is left behind, and that nothing depends on where or in how many parts they lie."""

import errno
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from analysis.corpus import scan, spill
from analysis.corpus.copies import Copies, copies_of, duplicates, is_among
from analysis.corpus.input import open_texts
from analysis.corpus.scan import Scan, scan_texts
from analysis.corpus.spill import Columns, by_key, forget, taken
from benchmarks.pairs import Planted, write_pairs
from pipelines.errors import UserError

NUM_ROWS = 6_000


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Planted]:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "source.parquet", NUM_ROWS // 3, seed=1)
    return (
        folder / "pairs.parquet",
        folder / "source.parquet",
        write_pairs(folder / "pairs.parquet", NUM_ROWS, 0, folder / "source.parquet"),
    )


def found_in(path: Path, source: Path, processes: int = 1) -> tuple[Scan, Copies, Copies]:
    one, other = (scan_texts(open_texts(each), sample_rows=500, processes=processes) for each in (path, source))
    return one, duplicates(one), copies_of(one, other, (one.label, other.label))


def test_parts_files_threads_and_processes_change_nothing(
    pairs: tuple[Path, Path, Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source, planted = pairs
    whole, within, copies = found_in(path, source)
    monkeypatch.setattr(spill, "MEMORY_BYTES", 50_000)
    monkeypatch.setattr(spill, "PART_ROWS", 700)
    monkeypatch.setattr(spill, "CHUNK_ROWS", 300)
    monkeypatch.setattr(scan, "PIECE_ROWS", 100)
    monkeypatch.setattr(scan, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr("analysis.corpus.copies.SMALL_ROWS", 0)
    parted, within_parted, copies_parted = found_in(path, source, processes=2)
    assert not parted.exact.flags.writeable and whole.exact.flags.writeable, "on disk and not"
    for name in ("row", "label", "exact", "words", "parts", "signature", "holds", "has_parse", "lengths"):
        assert np.array_equal(getattr(whole, name), getattr(parted, name)), name
    assert whole.labels == parted.labels and whole.sample.equals(parted.sample)
    for one, other in ((within, within_parted), (copies, copies_parted)):
        for field in fields(Copies):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name
    counts = np.bincount(within.kinds, minlength=3)
    # Copies of one row are copies of each other, too: two in capitals are equal, and the other file's rows have copies there.
    assert planted.exact <= counts[0] and planted.exact + planted.same_words <= counts[:2].sum()
    assert counts[:2].sum() <= planted.exact + planted.same_words + planted.leaked
    assert 0.97 * planted.near <= counts[2] <= 1.1 * planted.near
    assert np.bincount(copies.kinds, minlength=3)[:2].sum() == planted.leaked


def test_columns_in_files_are_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[dict[str, np.ndarray]] = [
        {
            "a": np.arange(9, dtype=np.uint16).reshape(3, 3) + n,
            "b": np.array([n, n, n], np.int64),
            "none": np.zeros((3, 0), bool),
        }
        for n in range(5)
    ]
    memory, files = Columns(), Columns(memory_bytes=60)
    for batch in batches:
        memory.add(batch)
        files.add(batch)
    expected, found = memory.finished(), files.finished()
    assert found["a"].base is not None and files.num_rows == 15
    for name in ("a", "b", "none"):
        assert found[name].dtype == expected[name].dtype and found[name].shape == expected[name].shape
        assert np.array_equal(found[name], expected[name])
    forget(*found.values(), *expected.values())
    assert np.array_equal(found["a"], expected["a"]), "what was let go of is read again"
    monkeypatch.setattr(spill, "CHUNK_ROWS", 4)
    for rows in (np.array([14, 0, 3, 3, 9, 4]), np.zeros(0, np.int64)):
        assert np.array_equal(taken(found["a"], rows), expected["a"][rows])
        assert np.array_equal(taken(expected["b"], rows), expected["b"][rows])


def test_equal_keys_meet_in_one_part_with_ascending_rows() -> None:
    keys = np.random.default_rng(0).integers(0, 50, 2_000).astype(np.uint64)
    parts = list(by_key(len(keys), lambda where: (keys[where], np.arange(where.start, where.stop)), 7))
    assert len(parts) == 7
    seen = [set(part_keys.tolist()) for part_keys, _ in parts]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 50
    for part_keys, rows in parts:
        assert np.array_equal(keys[rows], part_keys) and (np.diff(rows) > 0).all()


def test_is_among_reads_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hashes, others = (random.integers(0, 3_000, 2_000).astype(np.uint64) for _ in range(2))
    monkeypatch.setattr(spill, "PART_ROWS", 300)
    monkeypatch.setattr(spill, "CHUNK_ROWS", 128)
    assert np.array_equal(is_among(hashes, others), np.isin(hashes, others))


def test_no_file_is_left_and_a_full_disk_says_where_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    columns = Columns(memory_bytes=0)
    columns.add({"a": np.arange(1_000)})
    assert list(tmp_path.iterdir()) == [], "files have no name, so that none can be left behind"

    class Full:
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill, "_temporary_file", Full)
    with pytest.raises(UserError, match=f"{tmp_path} is full .*TMPDIR=/some/folder"):
        Columns(memory_bytes=0).add({"a": np.arange(1_000)})
