"""Findings by row: their numbers are the page's, and each says which row it is and which it goes with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from analysis.audit import Audit, AuditSettings, audit
from analysis.audit import rows as by_row
from analysis.audit.evidence import Evidence, RowFindings
from analysis.audit.rows import SCHEMA, write_rows
from pipelines.errors import UserError
from sweep import cli
from tests.analysis.audit.planted import Planted, planted


@pytest.fixture(scope="module")
def made() -> Planted:
    return planted("english", 600)


@pytest.fixture(scope="module")
def found(made: Planted) -> Audit:
    training = planted("english", 300, seed=3).table
    settings = AuditSettings(tests={"held_out": made.test}, generator_training=training, processes=1)
    return audit(made.table, settings)


def test_the_counts_by_kind_are_the_pages(found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_row, "BATCH_ROWS", 17)
    num_rows = write_rows(tmp_path / "rows.parquet", found.evidence, found.heuristics)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema == SCHEMA and table.num_rows == num_rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    frame = found.rows_frame()
    for counts, what, note in ((found.duplicates, "duplicate", ""), (found.leaks["held_out"], "leak", "held_out")):
        of = frame[(frame["source"] == counts.source) & (frame["note"] == note)]
        for kind in ("exact", "same_words", "near"):
            assert (of["kind"] == f"{kind}_{what}").sum() == counts.kinds[kind].count
        assert counts.other_label is not None and (of["kind"] == "contradiction").sum() == counts.other_label.count
        assert counts.near_other_label is not None and (of["kind"] == "contrast_pair").sum() == counts.near_other_label.count
    assert found.duplicates.kinds["exact"].count == 90 and found.leaks["held_out"].kinds["any"].count == 45
    overlap = found.heuristics[0]
    assert overlap.verdict == "goes with the label" and overlap.all_rows is not None
    assert ((frame["kind"] == "heuristic") & (frame["note"] == "lexical_overlap")).sum() == overlap.all_rows.count
    assert len(frame) == num_rows and pa.array(frame["source_row"]).to_pylist() == table["source_row"].to_pylist()


def test_a_row_names_the_one_that_it_goes_with(found: Audit, made: Planted) -> None:
    frame = found.rows_frame()
    own, test = made.table.to_pylist(), made.test.to_pylist()
    for finding in frame[frame["kind"].isin(["exact_duplicate", "exact_leak"])].itertuples():
        copied = (own if finding.kind == "exact_duplicate" else test)[finding.source_row - 1]
        row = own[finding.row - 1]
        assert (row["premise"], row["hypothesis"]) == (copied["premise"], copied["hypothesis"]) and finding.alike == 1
        assert (finding.label, finding.source_label) == (row["label"], copied["label"])
    near = frame[frame["kind"] == "near_duplicate"]
    assert len(near) > 40 and near["alike"].between(0.5, 1).all()
    contradictions = frame[(frame["kind"] == "contradiction") & (frame["source"] == "") & (frame["note"] == "")]
    assert len(contradictions) == 30 and (contradictions["label"] != contradictions["source_label"]).all()


def test_findings_of_other_parts_come_along(found: Audit) -> None:
    evidence = found.evidence
    doubtful = RowFindings("label_noise", np.array([2, 5]), notes=["neutral", "contradiction"])
    with_noise = Evidence(**{**vars(evidence), "by_row": (doubtful,)})
    last = list(by_row.row_batches(with_noise, found.heuristics))[-1].to_pylist()
    assert [(row["row"], row["kind"], row["note"], row["source_row"], row["alike"]) for row in last] == [
        (3, "label_noise", "neutral", None, None),
        (6, "label_noise", "contradiction", None, None),
    ]


def test_another_format_is_refused_before_anything_is_read(found: Audit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give a name that ends in \.parquet"):
        write_rows(tmp_path / "rows.csv", found.evidence, found.heuristics)
    done = CliRunner().invoke(cli.app, ["audit", "missing.csv", "--rows", str(tmp_path / "rows.csv")])
    assert done.exit_code == 1 and "--rows" in done.stderr and "missing.csv" not in done.stderr
