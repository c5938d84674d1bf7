"""Hostile texts in what is shown or exported: markup stays text, and no cell of a CSV is a formula."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.audit.audit import AuditSettings
from analysis.audit.audit import audit as audit_texts
from analysis.audit.page import write_page
from analysis.page import csv_bytes
from analysis.report.report import build_report
from sweep.graph.records import Study
from sweep.index.study_page import as_markdown, describe_study
from sweep.run.tracking import Tracker
from tests.analysis.fake_store import FakeStudy, parquet

HOSTILE = '"><script>alert(1)</script></style><img src=x onerror=alert(2)><a href="javascript:alert(3)">'
FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://a")']


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes


def check_page(page: str) -> None:
    assert "&lt;script&gt;" in page, "the text is shown"
    for raw in ("<script", "</style><img", "<img src=x", '<a href="javascript'):
        assert raw not in page
    tags = Tags(page)
    assert not {"script", "iframe", "object", "embed"} & set(tags.tags)
    assert not [name for name, value in tags.attributes if name.startswith("on") or "javascript:" in (value or "")]


def hostile_study(folder: Path) -> FakeStudy:
    study = FakeStudy(folder, title=HOSTILE)
    study.parameters |= {"heuristic": HOSTILE, "model": HOSTILE, "seeds": [HOSTILE]}
    pairs = [(HOSTILE, HOSTILE, label) for label in ("entailment", "neutral", "contradiction")]
    study.add("sources", "data", files={"train.parquet": parquet(pairs)}, marks=(HOSTILE,))
    study.add("base_model", "base", config={"model": HOSTILE, "revision": HOSTILE})
    study.add_grid((0, 200), (60,), (0, 1), skip=((0, "original", 60, 0),))
    broken = next(step for step in study.steps if step["stage"] == "evaluation" and "start0-original-60-seed0" in step["slug"])
    study.failures.append({name: broken[name] for name in ("stage", "slug", "fingerprint")} | {"error": HOSTILE})
    return study


def test_a_report_shows_titles_names_marks_and_errors_as_text(tmp_path: Path) -> None:
    page = build_report(hostile_study(tmp_path / "store").write(), "tiny", tmp_path / "out", partial=True).read_text()
    check_page(page)
    # The title twice, the heuristic, a mark, the failure.
    assert page.count("&lt;script&gt;") >= 5


def test_an_audit_shows_texts_labels_and_the_file_s_name_as_text(tmp_path: Path) -> None:
    rows = [
        {"premise": f"{HOSTILE} {i % 7}", "hypothesis": f"{HOSTILE} {i % 5}", "label": "entailment" if i % 2 else HOSTILE}
        for i in range(60)
    ]
    path = tmp_path / "<script>alert(1)<&>.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    check_page(write_page(audit_texts(path, AuditSettings()), tmp_path / "out").read_text())


def test_mlflow_s_notes_show_the_title_as_text(tmp_path: Path) -> None:
    """MLflow draws a note as Markdown."""
    title = f"{HOSTILE}\n# big [here](javascript:alert(4)) ![x](http://a/b.png) `code`"
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "store"), Study("mine", title, {}, ()))
    assert tracker.errors == []
    notes = [
        tracker.client.get_experiment_by_name("mine").tags["mlflow.note.content"],
        tracker.client.get_run(tracker.parent_id).data.tags["mlflow.note.content"],
    ]
    for note in notes:
        shown = note.partition("\n\n")[0]
        assert "<" not in note and "\n" not in shown and "[here" in shown
        assert not re.search(r"(?<!\\)[\[\]`*_]", shown)
        assert "&lt;script&gt;" in note and "[Kinds, mean over seeds](#/experiments/" in note
    # The answer comes before both, and a title's place is as it was.
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    describe_study(uri, "mine", HOSTILE, "blindsweep run mine -p seeds=0,1,2")
    described = tracker.client.get_run(tracker.parent_id).data.tags["mlflow.note.content"]
    assert described == tracker.client.get_experiment_by_name("mine").tags["mlflow.note.content"]
    answer, command, *rest = described.split("\n\n")
    assert "<" not in described and answer.startswith("**") and answer.endswith(":**")
    assert command == "    blindsweep run mine -p seeds=0,1,2" and "\n\n".join(rest) == notes[0]
    describe_study(uri, "another", "", "")
    assert as_markdown("A tiny study: does it (yet) hold?") == "A tiny study: does it (yet) hold?"


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_an_export_is_a_formula(text: str) -> None:
    columns = {"slug": [text, "a=b", None], "gain": [-0.5, 1e-9, 2.0], "n": [-1, 2, 3], "mixed": [-1, text, True], text: 1}
    frame = pd.DataFrame(columns)
    frame["kind"] = pd.Categorical([text, "b", "b"])
    # Some spreadsheets begin a new row, and so a new cell, at a carriage return.
    safe = "'" + text.replace("\r", " ")
    rows = list(csv.reader(csv_bytes(frame).decode().splitlines(keepends=True)))
    assert rows[0] == ["slug", "gain", "n", "mixed", safe, "kind"]
    assert rows[1] == [safe, "-0.5", "-1", "-1", "1", safe]
    assert rows[2] == ["a=b", "1e-09", "2", safe, "1", "b"]
    assert frame["slug"][0] == text, "the frame itself is as it was"


def test_a_report_s_exports_have_no_formula(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    sets = [("template_test", "all", 3), ("template_probe", "all", 2), ("template_probe", "=1+1", 2)]
    study.add_evaluation(0, "none", 0, 0, lambda *_: 100, sets=sets)
    study.parameters["blindspot_slice"] = "=1+1"
    page = build_report(study.write(), "tiny", tmp_path / "out", partial=True)
    exports = [path for path in page.parent.glob("*.csv")]
    assert exports and "'=1+1" in (page.parent / "frame.csv").read_text()
    for path in exports:
        with path.open(newline="") as file:
            for row in csv.reader(file):
                assert not [cell for cell in row if cell[:1] in "=+@" and cell]
