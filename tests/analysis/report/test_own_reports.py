"""Reports and verdicts of studies that are not about NLI speak of their own labels, fields and test sets."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from analysis.report.report import build_report
from analysis.report.slices import sets_block, slices_blocks
from analysis.report.terminal import print_verdicts, verdicts_json
from analysis.study.artifacts import counted_heuristic, lexical_overlap_counts, training_set_frame
from analysis.study.series import study_series
from analysis.verdicts.answer import answer, control_sentences
from analysis.verdicts.evidence import load_evidence
from analysis.verdicts.subcases import subcase_table
from analysis.verdicts.verdicts import judge_evidence
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import Label
from sweep.graph.records import Store, Study
from sweep.study.claims import Measure
from tests.analysis.item_study import ItemStudy, clear
from tests.analysis.own_study import OneSetStudy, OwnStudy, SentimentStudy, TopicStudy

NOT_THEIRS = re.compile("entail|premise|hypothes|neutral|contradict|hans|nli|lexical|paper|template|subcase", re.IGNORECASE)


def with_artifacts(study: OwnStudy) -> OwnStudy:
    """With a pool's yield and a training set's counts, as their stages write them."""
    labels = study.task.labels
    counts = {
        "parsed": dict.fromkeys(labels, 5),
        "generated": dict.fromkeys(labels, 6),
        "rejected": {"no_end_marker": len(labels)},
    }
    study.add("synthetic_pool", "pool", files={"yield.json": json.dumps(counts).encode()})
    metrics = {f"{label}/num_examples": 10 for label in labels} | {f"{label}/{study.heuristic}": 4 for label in labels}
    cell = {"starting_size": None, "kind": "biased_synthetic", "size": 60, "seed": 0}
    study.add("training_set", "biased", coordinates=cell, metrics=metrics)
    study.add(
        "training_set",
        "original",
        coordinates=cell | {"kind": "original"},
        metrics={f"{label}/num_examples": 10 for label in labels},
    )
    study.grid(starting_sizes=(0, 100), sizes=(60,), num_seeds=3)
    return study


def words_of(page: str) -> str:
    """The text of a page and its figures, without the embedded numbers."""
    page = re.sub(r"<style.*?</style>|data:text/csv[^\"]*", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page)))


@pytest.mark.parametrize("make", [SentimentStudy, TopicStudy])
def test_a_report_says_nothing_of_nli(tmp_path: Path, make: type[OwnStudy]) -> None:
    study = with_artifacts(make(tmp_path / "store"))
    path = build_report(study.write(), "tiny", tmp_path / "out")
    text = words_of(path.read_text())
    assert set(NOT_THEIRS.findall(text)) == set()
    described = study.test_sets[0]
    assert described.title in text and described.tests in text
    assert study.heuristic.replace("_", " ") in text
    assert {"sentence": "a sentence", "title": "a title and a body"}[study.task.field_names[0]] + " can be read" in text
    for label in study.task.labels:
        assert label in text
    assert "lexical" not in (path.parent / "verdicts.csv").read_text()


def test_verdicts_of_a_described_blindspot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = with_artifacts(SentimentStudy(tmp_path, jitter=8, shift=lambda kind: 0.3 if kind == "biased_synthetic" else 0.0))
    store = Store(study.write())
    evidence = load_evidence(store, Study.load(store, "tiny"))
    verdicts = judge_evidence(evidence)
    by_name = {judgement.name: judgement for judgement in verdicts.judgements}
    assert by_name["bias_is_seen"].verdict == "supported"
    assert by_name["bias_is_seen_by_margin"].verdict == "supported"
    assert not {judgement.paper for judgement in verdicts.judgements} - {""}
    assert "synthetic_overlaps_more" not in by_name
    (part, *_) = {row["part"] for row in by_name["bias_is_seen"].settings}
    assert part == "biased synthetic − synthetic on Negated reviews, half, negated"
    table = subcase_table(evidence).set_index("subcase")
    assert list(table.index) == ["half/negated", "half/plain", "length/long", "length/short"]
    assert table.loc["half/negated", ["num_items", "num_clusters"]].tolist() == [40, 20]
    assert table.loc["half/negated", "mean"] == pytest.approx(-0.4, abs=0.05)
    print_verdicts(answer(verdicts), verdicts)
    printed = capsys.readouterr().out + json.dumps(
        verdicts_json("tiny", answer(verdicts), verdicts, evidence)["signal_detection"]
    )
    assert set(NOT_THEIRS.findall(printed)) == set()


def test_the_blindspot_can_be_a_part_of_the_general_set(tmp_path: Path) -> None:
    study = OneSetStudy(tmp_path, jitter=8)
    study.parameters["heuristic_description"] = "The sentence has a negation."
    study.grid(starting_sizes=(0,), sizes=(60, 120), num_seeds=3)
    path = build_report(study.write(), "tiny", tmp_path / "out")
    text = words_of(path.read_text())
    assert set(NOT_THEIRS.findall(text)) == set()
    assert "(the sentence has a negation)" in text and "The claims are not judged" not in text
    frame, loaded = study.frame(), Study.load(Store(study.write()), "tiny")
    series = study_series(loaded, frame)
    # One set is one curve, and each seed counts once.
    assert [test.name for test in series] == ["reviews", "reviews, negation, non-negative"]
    evidence = load_evidence(Store(study.write()), loaded)
    pull = evidence.responses.measured(Measure.PULL, "reviews", series[-1].slice, [(0, "synthetic", 60)], "reviews")
    # 15 negated positive reviews against the 15 others.
    assert (evidence.responses.label, pull.num_items) == ("negative", 30)
    assert {judgement.num_units for judgement in judge_evidence(evidence).judgements} == {0, 3}
    (block,) = slices_blocks(loaded, frame, series[-1].set, series[-1].slice)
    assert [column.name for column in block.tables[0].columns][4:] == [
        "negation, negative (where it holds)",
        "negation, non-negative (where it holds)",
    ]


def test_measures_that_cannot_be_had_are_said_once(tmp_path: Path) -> None:
    study = with_artifacts(TopicStudy(tmp_path))
    store = Store(study.write())
    verdicts = judge_evidence(load_evidence(store, Study.load(store, "tiny")))
    main, others = control_sentences(verdicts.controls)
    assert main.startswith("The positive control is seen")
    assert others.startswith("By margin, AUC and pull there is no positive control") and "Money in sport" in others


def test_every_evaluated_set_has_a_column_and_described_ones_their_adversarial_half(tmp_path: Path) -> None:
    study = with_artifacts(TopicStudy(tmp_path))
    frame, loaded = study.frame(), Study.load(Store(study.write()), "tiny")
    series = study_series(loaded, frame)
    (block,) = sets_block(loaded, frame, series)
    sets, cells = block.tables
    assert [row[:3] for row in sets.rows] == [["news", "80", "4"], ["Money in sport", "80", "2"], ["blogs", "40", "4"]]
    # Nothing is said of any set's licence or source.
    assert [column.name for column in sets.columns][:3] == ["Test set", "Items (n)", "Labels"]
    assert "Licence" not in [column.name for column in sets.columns]
    assert [column.name for column in cells.columns][4:] == ["news", "Money in sport", "Money in sport, half, money", "blogs"]
    assert len(cells.rows) == 8
    (slices,) = slices_blocks(loaded, frame, series[-1].set, series[-1].slice)
    assert [column.name for column in slices.tables[0].columns][4:] == ["half, money", "half, clear"]
    assert "all but sport merge to non-sport" in slices.text[0]


def test_a_heuristic_of_ones_own_on_an_unfolded_set_has_a_section_of_slices(tmp_path: Path) -> None:
    first = Heuristic("first", lambda p, h: np.array([int(text.split()[1]) < 45 for text in h]), Label.NEUTRAL)
    study = ItemStudy(tmp_path, clear, heuristics=[first])
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=2)
    study.parameters |= {"blindspot_set": "template_test", "blindspot_slice": "holds/first/non-neutral"}
    frame, loaded = study.frame(), Study.load(Store(study.write()), "tiny")
    slices = slices_blocks(loaded, frame, "template_test", "holds/first/non-neutral")
    assert [block.anchor for block in slices] == ["slices", "slices-template_probe"]
    assert [column.name for column in slices[0].tables[0].columns][4:] == [
        "first, neutral (where it holds)",
        "first, non-neutral (where it holds)",
    ]
    assert "has two labels" not in " ".join(slices[0].text)


def test_who_wrote_the_pool_is_said(tmp_path: Path) -> None:
    def question(study: OwnStudy) -> str:
        return words_of(build_report(study.write(), "tiny", study.root / "out").read_text())

    def small(folder: str) -> OwnStudy:
        study = SentimentStudy(tmp_path / folder)
        study.add_cell(0, "none", 0, 0)
        return study

    finetuned, prompted, own = small("finetuned"), small("prompted"), small("own")
    finetuned.add("generator", "generator")
    for study, metrics in ((finetuned, {}), (prompted, {}), (own, {"file": "mine.csv"})):
        counts = {"parsed": {"negative": 2, "positive": 0}, "generated": {"negative": 3, "positive": 0}, "rejected": {"odd": 1}}
        study.add("synthetic_pool", "pool", files={"yield.json": json.dumps(counts).encode()}, metrics=metrics)
    assert "A generator, finetuned on the original training data, writes" in question(finetuned)
    assert "prompted, not finetuned" in question(prompted)
    text = question(own)
    assert "The synthetic pool was written before: mine.csv." in text
    assert "What the pool's rows became" in text and "a row is kept when it has a sentence and a label" in text


def test_training_sets_are_counted_by_the_study_s_heuristic(tmp_path: Path) -> None:
    study = with_artifacts(SentimentStudy(tmp_path))
    store = Store(study.write())
    loaded = Study.load(store, "tiny")
    assert counted_heuristic(loaded) == "positive_word"
    assert lexical_overlap_counts(store, loaded) == {}
    sets = training_set_frame(loaded)
    assert sets["label"].tolist() == ["negative", "positive"] * 2
    # A set whose record does not say is not counted as one without.
    assert sets["num_held"].tolist()[:2] == [4, 4] and sets["num_held"].isna().tolist()[2:] == [True, True]
