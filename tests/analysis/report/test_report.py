import base64
import io
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.report.report import build_report
from analysis.report.slices import slices_blocks
from analysis.study.frame import IncompleteSweepError
from analysis.verdicts.answer import ONE_SEED
from pipelines.errors import UserError
from pipelines.tasks.nli import LABELS
from sweep.graph.records import Store, Study, write_plan
from tests.analysis.fake_store import PAPER_SETS, SETS, FakeStudy, fingerprint, label_metrics, parquet
from tests.analysis.item_study import ItemStudy, clear

ROOT = Path(__file__).resolve().parents[3]


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


def test_the_report_is_one_self_contained_file(full: FakeStudy, tmp_path: Path, printed_figures: None) -> None:
    path = build_report(full.write(), "tiny", tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "figure1.pdf", "figure1.png", "figure1.svg", "frame.csv",
        "frame.parquet", "report.html",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(path.parent / "frame.parquet"), full.frame(), check_dtype=False)
    assert (path.parent / "figure1.pdf").read_bytes().startswith(b"%PDF-")
    html = path.read_text()
    links = Links(html)
    assert all(link.startswith(("#", "data:")) for link in links.loaded)
    assert not links.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    assert "<svg" in html


def test_each_file_of_metrics_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(starting_sizes=(0,), num_seeds=2)
    (study.folder("sources", "data") / "train.parquet").write_bytes(parquet([("A man", "A man", str(one)) for one in LABELS]))
    read: Counter[str] = Counter()
    read_bytes = Store.read_bytes

    def counted(store: Store, folder: str, relpath: str) -> bytes:
        read[f"{folder}/{relpath}"] += 1
        return read_bytes(store, folder, relpath)

    monkeypatch.setattr(Store, "read_bytes", counted)
    build_report(study.write(), "tiny", tmp_path / "out")
    assert [count for path, count in read.items() if path.endswith("metrics.json")] == [1] * 14


def test_titles_are_escaped(full: FakeStudy, tmp_path: Path) -> None:
    html = build_report(full.write(), "tiny", tmp_path).read_text()
    assert "<script>" not in html
    assert "· Does &lt;script&gt;alert(&#34;it&#34;)&lt;/script&gt; &amp; more hold? ·" in html


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
        "question", "claims", "figure1", "contents", "paper_figure1", "table1", "slices", "yield", "composition",
        "stages",
        "spent", "origins", "provenance",
    ]  # fmt: skip
    text = Links(html).text
    for expected in (
        "rejected: no end marker", "1,001", "21,000 generated tokens/s", "35.00%", "torch", "2.13.0",
        "0123456789abcdef0123456789abcdef01234567", fingerprint("evaluation", "start0-none-0-seed0"),
        "template_probe",
    ):  # fmt: skip
        assert expected in text, expected


def test_verdicts_come_first_and_say_why_there_are_none(full: FakeStudy, tmp_path: Path) -> None:
    """The fake evaluations keep no logits, so there is nothing to judge; real ones are judged in test_verdicts."""
    path = build_report(full.write(), "tiny", tmp_path / "out")
    text = section(path.read_text(), "claims")
    assert "The claims are not judged: " in text and "logits.parquet" in text
    assert not (path.parent / "verdicts.csv").exists()


def test_verdicts_are_shown_with_what_they_rest_on(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(num_seeds=10)
    train = study.folder("sources", "data") / "train.parquet"
    train.write_bytes(parquet([("A man", "A man", str(label)) for label in LABELS]))
    path = build_report(study.write(), "tiny", tmp_path / "out")
    text = section(path.read_text(), "claims")
    heading = "<h1>With ten seeds and one generator, all five primary claims are decided: “Synthetic data lowers accuracy"
    # Before all else: a page is read from its top.
    assert heading in path.read_text().partition("<section")[0]
    raises = r"Training on synthetic data raises general accuracy of undertrained starting points\.\|supported\|\+[34]\d\.\d\|"
    assert re.search(raises, text)
    assert "9 exploratory claims" in text and "start untrained, size 60" in text
    assert "subcases of the blindspot set" in text and "Sensitivity d′ [95%]" in text
    assert ONE_SEED not in text
    measures = section(path.read_text(), "measures")
    assert "makes it harder to tell where the heuristic is right" in measures and "pull" in measures
    assert (path.parent / "measures.svg").exists()
    # Of 120 probe items, half of them entailments that are called so at 0.8, `clear` says how many of the others are, about.
    lean = Links(measures.partition("How often models say entailment")[2]).text
    for kind, size, share in (("Starting point", 0, 60), ("Original", 60, 55), ("Synthetic", 120, 75)):
        shown = re.search(rf"50,000 examples\|{kind}\|{size}\|[\d.]+%\|([\d.]+)%", lean)
        assert shown and float(shown[1]) == pytest.approx(share, abs=1.5)
    # The answer is given once: no other section has differences of kinds with intervals of its own.
    assert "<figure" in path.read_text().partition('id="claims"')[2].partition('id="figure1"')[0]
    assert not re.search(r'id="(verdict|differences)"', path.read_text())
    table = pd.read_csv(path.parent / "verdicts.csv")
    assert table.loc[0, ["name", "verdict", "num_units"]].tolist() == ["bias_is_seen", "supported", 10]


def test_rejected_texts_are_shown_as_text(full: FakeStudy, tmp_path: Path) -> None:
    rows = [
        {"id": f"r{n}", "label": "neutral", "shard": 0, "seed": n, "generator": "g", "reason": reason, "text": text}
        for n, (reason, text) in enumerate(
            [("no_end_marker", "<b>bold</b> <script>alert(1)</script>"), ("no_hypothesis", "x" * 301),
             *[("no_end_marker", f"text {n}") for n in range(3)]]
        )
    ]  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    counts = {
        "parsed": dict.fromkeys(LABELS, 1), "generated": {"entailment": 6, "neutral": 1, "contradiction": 1},
        "rejected": {"no_end_marker": 4, "no_hypothesis": 1},
    }  # fmt: skip
    study = FakeStudy(tmp_path / "rejecting")
    files = {
        "yield.json": json.dumps(counts).encode(),
        "pool/a.parquet": parquet([("A man", "A man", str(label)) for label in LABELS]),
        "rejects/a.parquet": buffer.getvalue(),
    }
    study.add("synthetic_pool", "pool", files=files)
    study.add_grid((0,), (60,), (0,))
    html = build_report(study.write(), "tiny", tmp_path / "out").read_text()
    assert "<script>" not in html and "<b>bold" not in html
    text = section(html, "yield")
    assert "no end marker|neutral|<b>bold</b> <script>alert(1)</script>|" in text
    # Three of a reason, and no more than 300 characters of one.
    assert "|text 1|" in text and "|text 2|" not in text
    assert f"no hypothesis|neutral|{'x' * 300}… (301 characters)|" in text


def test_training_curves_are_drawn_for_what_has_logged_steps(full: FakeStudy, tmp_path: Path) -> None:
    log = b"".join(json.dumps({"step": n, "loss": 1 / n, "learning_rate": 0.1}).encode() + b"\n" for n in (1, 2, 3))
    full.add("generator", "generator", files={"metrics.jsonl": log})
    for kind in ("original", "synthetic"):
        place = {"starting_size": 0, "kind": kind, "size": 60, "seed": 9}
        full.add("task_model", f"curved-{kind}", coordinates=place, files={"metrics.jsonl": log})
    path = build_report(full.write(), "tiny", tmp_path / "out")
    text = section(path.read_text(), "curves")
    assert "Generator (1)" in text and "Original (1)" in text and "Synthetic (1)" in text
    assert "Starting points" not in text
    assert {"training_curves.svg", "training_curves.png", "training_curves.pdf"} <= {one.name for one in path.parent.iterdir()}


def test_what_was_planned_stands_beside_what_was_spent(full: FakeStudy, tmp_path: Path) -> None:
    store = Store(full.write())
    text = section(build_report(store, "tiny", tmp_path / "out").read_text(), "spent")
    assert "No estimate was made of what this study costs." in text
    # 45 task models of 12.5 s on half a GPU are 0.078 GPU-hours.
    stages = {stage: {"gpus_per_step": 0.5, "in_all": {"gpu_hours": 2.0}}
              for stage in ("sources", "synthetic_pool", "training_set", "task_model", "evaluation")}  # fmt: skip
    write_plan(store, "tiny", {"stages": stages, "costs": {"gpu": "h100", "price": 10.0}})
    text = section(build_report(store, "tiny", tmp_path / "out").read_text(), "spent")
    assert "task model|42 of 42|8 min 45 s|2.00|0.07|$20.00|$0.73|" in text
    # Without a price, hours alone.
    costs = {"gpu": "l40s", "price": None, "unmeasured": "not measured on l40s"}
    write_plan(store, "tiny", {"stages": stages, "costs": costs})
    text = section(build_report(store, "tiny", tmp_path / "out").read_text(), "spent")
    assert "task model|42 of 42|8 min 45 s|2.00|0.07|" in text and "$" not in text
    assert "(no price was known)" in text and "The estimate was not measured on l40s." in text
    assert "for all of its artifacts" in text
    # A run of a piece has planned that alone, and perhaps no step of a stage.
    of_piece = {"stages": {"task_model": stages["task_model"]}, "costs": {**costs, "in_all": {"steps": 20}}}
    write_plan(store, "tiny", of_piece)
    text = section(build_report(store, "tiny", tmp_path / "out").read_text(), "spent")
    assert re.search(r"for 20 of \d+ of its artifacts", text)
    assert "|2.00|0.07|" in text and re.search(r"evaluation\|42 of 42\|8 min 45 s\|0.00\|0.00\|", text)


def test_each_number_leads_to_its_run_its_rows_and_its_configuration(full: FakeStudy, tmp_path: Path) -> None:
    text = section(build_report(full.write(), "tiny", tmp_path / "out").read_text(), "origins")
    cell = "start0-original-60-seed0"
    assert f"blindsweep explain tiny METRIC --cell {cell}|" in text
    assert f"|tags.fingerprint = '{fingerprint('evaluation', cell)}'|{full.folder('evaluation', cell)}|" in text


def test_marks_stand_at_the_top(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    files = {"train.parquet": parquet([("A man sleeps", "A man", "entailment")])}
    study.add("sources", "data", files=files, marks=("partial MultiNLI: <10> of 392,702 labelled rows",))
    study.add_grid((0,), (60,), (0,))
    html = build_report(study.write(), "tiny", tmp_path).read_text()
    assert re.findall(r'<section[^>]* id="(\w+)"', html)[:3] == ["marks", "question", "claims"]
    assert "<h2>Read with care</h2>" in html and "Not the full study" not in html
    # One artifact is marked; four cells, each a task model and its evaluation, are not.
    assert "<li>partial MultiNLI: &lt;10&gt; of 392,702 labelled rows: 1 of 9 artifacts</li>" in html


def test_copies_of_test_texts_in_the_pool_stand_with_the_marks(tmp_path: Path) -> None:
    told = "pool: mine.csv: 3 of 900 texts of template_test are in the pool, too"
    study = FakeStudy(tmp_path / "store")
    study.parameters["pool_copies"] = [told]
    study.add_grid((0,), (60,), (0,))
    html = build_report(study.write(), "tiny", tmp_path).read_text()
    assert f"<li>{told}</li>" in html and 'id="marks"' in html


MULTINLI = {"files": [{"name": "multinli_1.0_train.jsonl", "sha256": "ab" * 32}]}


def section(html: str, anchor: str) -> str:
    """The text of a section, folded tables included; a bar stands between cells."""
    found = re.search(rf'<section id="{anchor}">(.*?)</section>', html, re.DOTALL)
    assert found, anchor
    return Links(found[1].replace("</td>", "|</td>")).text


def test_a_study_on_the_papers_cells_is_set_beside_its_figure(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.parameters = {"general_set": "mnli_matched", "blindspot_set": "hans"}
    for seed in (0, 1):
        for kind, size in (("none", 0), ("original", 18_020), ("original", 900)):
            correct = 171 if kind == "original" else 66
            study.add_evaluation(0, kind, size, seed, lambda *_, correct=correct: correct, sets=PAPER_SETS)
    path = build_report(study.write(), "tiny", tmp_path / "out")
    text = section(path.read_text(), "paper_figure1")
    # In common: the starting point and one cell. Matched has 0.328 and 0.851 in the paper, 0.33 and 0.855 here.
    assert "MultiNLI matched|2|+0.3|+0.2 to +0.4|2 of 2|\N{EN DASH}|1|58|" in text
    assert "untrained|Original|18,020|85.5%|\N{EN DASH}|2|85.1%|±1.2|+0.4|yes|\N{EN DASH}|" in text
    # What only one side has is said to have no counterpart.
    assert "untrained|Original|900|85.5%|\N{EN DASH}|2|\N{EN DASH}|\N{EN DASH}|not in the paper|" in text
    assert "391,722 examples|Synthetic|73,080|\N{EN DASH}|\N{EN DASH}|\N{EN DASH}|" in text
    assert text.count("not here, or not evaluated") == 3 * 58
    assert "The paper's Figure 1 (Zhang and Pavlick), drawn again from the readings" in text
    table = pd.read_csv(path.parent / "figure1_vs_paper.csv")
    assert len(table) == 3 * (60 + 1)
    assert not (path.parent / "table1_vs_paper.csv").exists()


def test_a_study_on_other_cells_says_that_the_figure_is_left_out(full: FakeStudy, tmp_path: Path) -> None:
    path = build_report(full.write(), "tiny", tmp_path / "out")
    text = section(path.read_text(), "paper_figure1")
    assert "Left out: no finetuned cell of this study has" in text
    assert "|" not in text
    # The template corpus is not the paper's data: its Table 1 stands alone.
    assert "Paper's" not in section(path.read_text(), "table1")


def test_multinli_is_set_beside_the_papers_table(full: FakeStudy, tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "only-sources")
    pairs = [("A man sleeps", "A man", "entailment"), ("A man", "A dog", "neutral"), ("Birds", "Fish", "contradiction")]
    study.add("sources", "data", files={"train.parquet": parquet(pairs)}, config=MULTINLI)
    study.add_grid((0,), (60,), (0,))
    path = build_report(study.write(), "tiny", tmp_path / "out")
    text = section(path.read_text(), "table1")
    # No pool yet: one of one has lexical overlap, 130,541 of the paper's count.
    assert "Original|entailment|1|1|100.000%|130,541|2,139|1.639%|130,541 [" in text
    assert "Synthetic|" not in text
    # (1.5 × 2.5) / (0.5 × 0.5), a half being added to each count.
    assert "Ours|original|1 of 1|0 of 2|15.00|" in text
    assert "Paper's|original|2,139 of 130,541|241 of 261,181|18.04|15.79 to 20.61|" in text
    assert "Paper's|synthetic|24,360 of 631,992|2,194 of 1,187,821|21.66|20.74 to 22.63|" in text
    assert "Paper's|synthetic over original|||1.20|1.04 to 1.38|" in text
    assert pd.read_csv(path.parent / "table1_vs_paper.csv")["dataset"].tolist() == ["original"] * 3


def test_hans_is_shown_by_heuristic_subcase_and_folding(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.parameters = {"general_set": "mnli_matched", "blindspot_set": "hans"}
    names = ["constituent/entailment", "lexical_overlap/entailment", "lexical_overlap/non-entailment", "subcase/ln_passive"]
    sets = [*PAPER_SETS[:2], ("mnli_matched", "all", 2), *(("hans", name, 2) for name in names)]
    right = {"constituent/entailment": 40, "lexical_overlap/entailment": 190, "subcase/ln_passive": 20}
    for seed in (0, 1):
        study.add_evaluation(
            0, "none", 0, seed, lambda *place: right.get(place[-1], 100), sets=sets, more_right_when_summed=4 + 2 * seed
        )
    page = build_report(study.write(), "tiny", tmp_path / "out").read_text()
    text = section(page, "slices")
    # Six such columns side by side are as wide as the page: they may break before the interval, and not within it.
    assert '<span class="option">97.5</span> <span class="option">[91.1, 100.0]</span>' in page
    # The order of the HANS paper: lexical overlap, then constituent.
    assert re.search(r"lexical overlap, entailment\s*lexical overlap, non-entailment\s*constituent, entailment", text)
    assert "untrained|Starting point|0|2|95.0|50.0|20.0|" in text
    # Summed: 194 and 196, 104 and 106, 44 and 46 of 200; a mean of two is ± 12.7062 × 0.005.
    assert "untrained|Starting point|0|2|97.5 [91.1, 100.0]|52.5 [46.1, 58.9]|22.5 [16.1, 28.9]|" in text
    assert "ln passive|10.0|" in text
    for name in ("HANS", "HANS, lexical overlap, non-entailment", "MultiNLI matched"):
        assert f"{name}|1|+2.5|+2.5 to +2.5|" in text
    # Of two labels; with three, nothing is folded. ±12.7062 × 0.005.
    assert "untrained|Starting point|0|50.0%|52.5%|+2.5|[\N{MINUS SIGN}3.9, +8.9]|2|" in text


def test_a_set_without_heuristics_has_no_section_of_slices(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add_grid((0,), (60,), (0,))
    frame, loaded = study.frame(), Study.load(Store(study.write()), "tiny")
    for blindspot, anchors in {"template_probe": ["slices"], "template_test": []}.items():
        blocks = slices_blocks(loaded, frame, blindspot, "lexical_overlap/non-entailment")
        assert [block.anchor for block in blocks] == anchors


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
    assert "The claims are not judged: " in path.read_text()


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


@pytest.mark.parametrize(("module", "heavy"), [("report.report", ()), ("verdicts.verdicts", ("matplotlib",))])
def test_analysis_imports_neither_ray_nor_torch(module: str, heavy: tuple[str, ...]) -> None:
    heavy = ("ray", "torch", "vllm", "mlflow", "transformers", *heavy)
    code = f"import analysis.{module}, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_report_on_several_generators_says_what_it_is_over(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.generators = 2
    pairs = [("A man sleeps", hypothesis, str(label)) for label in LABELS for hypothesis in ("A man", "A dog")]
    study.add("sources", "data", files={"train.parquet": parquet(pairs)})
    for number, generated in enumerate((8, 10)):
        counts = {
            "parsed": {str(label): 2 for label in LABELS},
            "generated": {str(label): generated for label in LABELS},
            "rejected": {"no_end_marker": 3 * generated - 6},
        }
        files = {"pool/a.parquet": parquet(pairs), "yield.json": json.dumps(counts).encode()}
        study.add("synthetic_pool", f"pool{number or ''}", coordinates={"generator": number}, files=files)
    study.add_grid(seeds=(0, 1, 2, 3))
    html = build_report(study.write(), "tiny", tmp_path / "out").read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    assert "Synthetic data is the pools of 2 generators together" in text
    # Twice the pairs of one pool: four of each label, of which two have lexical overlap.
    assert "Synthetic entailment 4 2 50.000" in text
    # Generator 0 wrote 24 texts for 6 pairs, generator 1 wrote 30.
    assert "0 24 6 25.00" in text and "1 30 6 20.00" in text
