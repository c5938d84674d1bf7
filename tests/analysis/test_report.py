import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from analysis.frame import IncompleteSweepError
from analysis.report import build_report
from pipelines.errors import UserError
from tests.analysis.fake_store import SETS, FakeStudy, fingerprint, label_metrics, parquet

ROOT = Path(__file__).resolve().parents[2]


class Links(HTMLParser):
    """Collects everything that a browser would load, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        loading = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        self.loaded += [value or "" for name, value in attrs if name in loading]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def full(tmp_path: Path) -> FakeStudy:
    study = FakeStudy(tmp_path / "store", title='Does <script>alert("it")</script> & more hold?')
    pairs = [
        ("The doctor saw the lawyer .", "The lawyer saw the doctor .", "entailment"),
        ("The doctor saw the lawyer .", "The doctor left .", "entailment"),
        ("A man sleeps", "A man", "neutral"),
        ("A man sleeps", "A dog", "neutral"),
        ("Birds fly", "Birds", "contradiction"),
        ("Birds fly", "Fish swim", "contradiction"),
    ]
    study.add("sources", "data", files={"train.parquet": parquet(pairs)})
    counts = {
        "parsed": {"entailment": 2, "neutral": 2, "contradiction": 2},
        "generated": {"entailment": 1002, "neutral": 2, "contradiction": 3},
        "rejected": {"no_end_marker": 1001},
    }
    files = {"pool/entailment-0.parquet": parquet(pairs), "yield.json": json.dumps(counts).encode()}
    study.add("synthetic_pool", "pool", files=files, metrics={"generated_tokens_per_s": 21_000.0})
    study.add(
        "training_set",
        "original-60-seed0",
        coordinates={"starting_size": None, "kind": "original", "size": 60, "seed": 0},
        metrics=label_metrics(20, {"entailment": 7, "neutral": 1, "contradiction": 0}),
    )
    study.add_grid(seeds=(0, 1, 2))
    return study


def test_the_report_is_one_self_contained_file(full: FakeStudy, tmp_path: Path) -> None:
    path = build_report(full.write(), "tiny", tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "figure1.png", "figure1.svg", "frame.csv", "report.html",
    ]  # fmt: skip
    html = path.read_text()
    links = Links(html)
    assert all(link.startswith(("#", "data:")) for link in links.loaded)
    assert not links.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    assert "<svg" in html


def test_titles_are_escaped(full: FakeStudy, tmp_path: Path) -> None:
    html = build_report(full.write(), "tiny", tmp_path).read_text()
    assert "<script>" not in html
    assert "<h1>Does &lt;script&gt;alert(&#34;it&#34;)&lt;/script&gt; &amp; more hold?</h1>" in html


def test_the_embedded_data_are_the_frame(full: FakeStudy, tmp_path: Path) -> None:
    path = build_report(full.write(), "tiny", tmp_path)
    data = next(link for link in Links(path.read_text()).loaded if link.startswith("data:text/csv"))
    content = base64.b64decode(data.split(",", 1)[1])
    assert content == (tmp_path / "frame.csv").read_bytes()
    frame = pd.read_csv(io.BytesIO(content))
    assert len(frame) == 2 * 3 * 7 * 3


def test_the_report_has_its_sections_and_numbers(full: FakeStudy, tmp_path: Path) -> None:
    html = build_report(full.write(), "tiny", tmp_path).read_text()
    sections = re.findall(r'<section[^>]* id="(\w+)"', html)
    assert sections == [
        "question", "verdict", "figure1", "table1", "yield", "composition", "stages", "provenance",
    ]  # fmt: skip
    text = Links(html).text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    for expected in (
        "rejected: no end marker", "1 001", "21 000 generated tokens/s", "35.00 %", "torch", "2.13.0",
        "0123456789abcdef0123456789abcdef01234567", fingerprint("evaluation", "start0-none-0-seed0"),
        "template_probe",
    ):  # fmt: skip
        assert expected in text, expected


def test_marks_stand_at_the_top(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add("sources", "data", marks=("partial MultiNLI: <10> of 392,702 labelled rows",))
    study.add_grid((0,), (60,), (0,))
    html = build_report(study.write(), "tiny", tmp_path).read_text()
    assert re.findall(r'<section[^>]* id="(\w+)"', html)[:2] == ["marks", "question"]
    # One artifact is marked; four cells, each a task model and its evaluation, are not.
    assert "<li>partial MultiNLI: &lt;10&gt; of 392,702 labelled rows: 1 of 9 artifacts</li>" in html


def verdicts(study: FakeStudy, tmp_path: Path) -> str:
    html = build_report(study.write(), "tiny", tmp_path / "out").read_text()
    found = re.search(r'<section id="verdict">(.*?)</section>', html, re.DOTALL)
    assert found
    return Links(found[1]).text


def with_difference(tmp_path: Path, differences: list[int]) -> FakeStudy:
    """Synthetic minus original, in items of 200, one a seed, the same on every set."""
    study = FakeStudy(tmp_path / "store")
    seeds = tuple(range(len(differences)))
    study.add_grid(
        (0,),
        (60,),
        seeds,
        lambda start, kind, size, seed, *_: 100 + (kind == "synthetic") * differences[seed],
    )
    return study


def test_a_replication_lists_its_departures_and_choices(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add_grid((0,), (60,), (0,))
    note = {"topic": "T: batch size", "paper": "2", "ours": "32", "why": "fewer <steps>"}
    assert "Departures from the paper" not in build_report(study.write(), "tiny", tmp_path / "out").read_text()
    study.parameters |= {"departures": [note], "unsettled": []}
    page = build_report(study.write(), "tiny", tmp_path / "out").read_text()
    assert "Departures from the paper" in page and "fewer &lt;steps&gt;" in page
    assert "Unsettled in the paper, chosen here: none" in page
    # Not a second time, as raw values, among the parameters.
    assert page.count("T: batch size") == 1


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    text = verdicts(with_difference(tmp_path, [-60]), tmp_path)
    assert "undecided at the one starting point; there is no interval to read" in text
    assert "no interval (n=1)" in text
    assert "lower at" not in text


def test_an_interval_over_zero_decides_nothing(tmp_path: Path) -> None:
    text = verdicts(with_difference(tmp_path, [-60, 2, -5]), tmp_path)
    assert "no interval leaves out zero" in text
    assert "lower at" not in text


def test_an_interval_below_zero_is_lower(tmp_path: Path) -> None:
    text = verdicts(with_difference(tmp_path, [-20, -22, -24]), tmp_path)
    assert "with synthetic instead of original data, accuracy is lower at 1 of 1 starting point." in text
    # −0.11 ± 4.30265 × 0.01/√3.
    assert "[\N{MINUS SIGN}13.5, \N{MINUS SIGN}8.5]" in text


def test_a_positive_control_that_cannot_be_read_is_said_to_be_missing(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add_grid(skip=tuple((start, "biased_synthetic", 120, seed) for start in (0, 200) for seed in (0, 1)))
    html = build_report(study.write(), "tiny", tmp_path / "out", partial=True).read_text()
    assert "Positive control:" not in html
    assert "The positive control, biased synthetic minus original, cannot be read over all sizes: no seed has both" in html


def test_a_partial_report_names_what_is_missing(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add_grid(skip=((200, "synthetic", 120, 1),))
    store = study.write()
    with pytest.raises(IncompleteSweepError):
        build_report(store, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    html = build_report(store, "tiny", tmp_path / "out", partial=True).read_text()
    assert "Incomplete: 1 missing result<" in html
    assert "starting_size=200, kind=synthetic, size=120, seed=1: evaluation (not built)" in html


def test_a_partial_report_of_a_study_that_has_only_begun(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add_evaluation(0, "none", 0, 0, built=False)
    path = build_report(study.write(), "tiny", tmp_path / "study.html", partial=True)
    assert path.name == "study.html"
    assert "No task model is evaluated yet" in path.read_text()
    study.add_evaluation(0, "original", 60, 0)
    path = build_report(study.write(), "tiny", tmp_path / "study.html", partial=True)
    assert "Nothing can be said about synthetic minus original" in path.read_text()


def test_sets_that_the_manifest_does_not_name_are_found_or_asked_for(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.parameters = {}
    study.add_grid((0,), (60,), (0,))
    assert build_report(study.write(), "tiny", tmp_path / "out").exists()
    other = FakeStudy(tmp_path / "other")
    other.parameters = {"general_set": "mnli_matched"}
    other.add_evaluation(0, "none", 0, 0, sets=SETS)
    with pytest.raises(UserError, match=r"general_set='mnli_matched'.*template_test"):
        build_report(other.write(), "tiny", tmp_path / "out")


def test_analysis_imports_neither_ray_nor_torch() -> None:
    code = (
        "import analysis.report, sys; "
        "print([name for name in ('ray', 'torch', 'vllm', 'mlflow', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
