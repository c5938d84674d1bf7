"""The audit on two real Ray nodes, of files in a bucket: every number is the one of one machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from analysis.audit import AuditSettings, audit, audit_json
from analysis.corpus import copies as one_machine
from analysis.corpus.copies import Copies
from analysis.corpus.input import open_texts
from analysis.corpus.scan import scan_texts
from benchmarks.pairs import write_pairs
from pipelines.errors import UserError
from sweep.scan import pieces
from sweep.scan.on_ray import OnRay

ROOT = Path(__file__).parents[3]
NUM_ROWS = 9_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def two_nodes(s3_server: str) -> Iterator[set[str]]:
    """The ids of the two nodes of a running cluster that this process is connected to; they find the bucket."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        assert len(alive) == 2
        yield alive
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file in several row groups, two shards of another with some of its rows, and one of CSV."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "source").mkdir()
    write_pairs(folder / "source.parquet", NUM_ROWS // 3, seed=1)
    write_pairs(folder / "pairs.parquet", NUM_ROWS, 0, folder / "source.parquet")
    pairs, source = pq.read_table(folder / "pairs.parquet"), pq.read_table(folder / "source.parquet")
    # Some rows are left out, so that a row's number is not its place.
    blank = pairs.slice(0, 5).set_column(1, "hypothesis", [[" "] * 5])
    pq.write_table(pyarrow.concat_tables([pairs.slice(0, 4_000), blank, pairs.slice(4_000)]), folder / "pairs.parquet", 700)
    for number, start in enumerate((0, 1_300)):
        length = 1_300 if not number else None
        pq.write_table(source.slice(start, length), folder / "source" / f"train-{number:05}-of-00002.parquet", 500)
    pyarrow.csv.write_csv(source, folder / "source.csv")
    return folder


@pytest.fixture
def in_bucket(files: Path, bucket: str) -> str:
    import fsspec

    fsspec.filesystem("s3").put(str(files), f"{bucket}/files", recursive=True)
    return f"{bucket}/files"


def test_an_audit_on_two_nodes_has_the_numbers_of_one_machine(
    two_nodes: set[str], files: Path, in_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "GROUPS_AT_ONCE", 1_000)
    on_ray = OnRay()
    scans, texts = {}, {}
    for name in ("pairs.parquet", "source"):
        texts[name] = on_ray.open(f"{in_bucket}/{name}")
        scans[name] = on_ray.scan(texts[name], sample_rows=500), scan_texts(open_texts(files / name), sample_rows=500)
        for field in ("row", "label", "exact", "words", "parts", "signature", "holds", "has_parse", "lengths"):
            assert np.array_equal(*(getattr(scan, field) for scan in scans[name])), field
        for one, other in itertools.pairwise(scans[name]):
            assert (one.labels, one.left_out, one.spellings) == (other.labels, other.left_out, other.spellings)
            assert one.sample.equals(other.sample)
    table = texts["pairs.parquet"].table
    assert isinstance(table, pieces.TableInPieces) and len(table.pieces) > 5
    assert scans["pairs.parquet"][0].row.max() == NUM_ROWS + 5
    (scan, here), (source, source_here) = scans["pairs.parquet"], scans["source"]
    codes = [
        np.array([sorted(one.labels).index(label) for label in one.labels], np.int16)[one.label] for one in (here, source_here)
    ]
    labels = (codes[0], codes[1])
    pairs_of_copies = [
        (on_ray.duplicates(scan), one_machine.duplicates(here)),
        (on_ray.copies_of(scan, source, labels), one_machine.copies_of(here, source_here, labels)),
        (on_ray.copies_of(scan, source, None), one_machine.copies_of(here, source_here, None)),
    ]
    for number, (found, expected) in enumerate(pairs_of_copies):
        assert len(expected.rows) > 15 and set(expected.kinds) >= ({0, 1, 2} if not number else {0})
        for column in fields(Copies):
            assert np.array_equal(getattr(found, column.name), getattr(expected, column.name)), column.name


def test_the_whole_audit_is_the_same(two_nodes: set[str], files: Path, in_bucket: str) -> None:
    def numbers(folder: Any, engine: OnRay | None) -> str:
        settings = AuditSettings(reference=f"{folder}/source.csv", tests={"held out": f"{folder}/source"})
        found = audit(f"{folder}/pairs.parquet", settings, engine=engine)
        return audit_json(replace(found, seconds=0)).replace(str(folder), "FOLDER")

    assert numbers(in_bucket, OnRay()) == numbers(files, None)


def test_a_row_that_cannot_be_read_is_the_same_error(two_nodes: set[str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"premise": "a b", "hypothesis": "b", "label": "x"}\n{"premise": 1}\n')
    messages = []
    for engine in (OnRay(), one_machine.OneMachine()):
        with pytest.raises(UserError) as error:
            engine.scan(engine.open(str(path)), seed=0, processes=1, references=())
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "line 2" in messages[0]


def test_what_is_not_there_or_not_everywhere_is_refused(two_nodes: set[str], bucket: str) -> None:
    with pytest.raises(UserError, match="does not exist or is empty"):
        OnRay().open(f"{bucket}/nothing")
    with pytest.raises(UserError, match="on this machine only"):
        OnRay().open(pyarrow.table({"text": ["a"], "label": ["b"]}))
