"""A study biased to another heuristic, or to its user's own: claims and report read the blindspot where that one is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.report.report import build_report
from analysis.report.terminal import verdicts_json
from analysis.study.frame import evaluation_frame
from analysis.verdicts.answer import answer
from analysis.verdicts.evidence import load_evidence, questions
from analysis.verdicts.judgement import Outcome
from analysis.verdicts.power import pilot
from analysis.verdicts.verdicts import judge, judge_evidence
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import Label
from sweep.graph.records import Store, Study
from tests.analysis.fake_store import parquet
from tests.analysis.item_study import ItemStudy


def of_every_third(_: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    return np.array([int(text.split()[1]) % 3 == 0 for text in hypotheses])


OWN = Heuristic("my_own", of_every_third)
ANTI = Heuristic("my_anti", of_every_third, predicts=Label.CONTRADICTION)


def rate(start: int, kind: str, size: int, part: str) -> float:
    """Bias kills the study's own slice, and only that: elsewhere it helps."""
    if part == "blindspot":
        return {"none": 0.6, "original": 0.7, "synthetic": 0.5, "biased_synthetic": 0.1}[kind]
    return {"none": 0.4, "original": 0.8, "synthetic": 0.8, "biased_synthetic": 0.9}[kind]


def place_of(heuristic: str) -> object:
    """Which items are of the slice, by hand: of the probe those that are not entailed, of the general set those of ANTI."""

    def place(test_set: str, item: dict[str, str]) -> str | None:
        number, label = int(item["id"][1:]), item["label"]
        if heuristic == "my_anti":
            of_slice = test_set == "template_test" and number % 3 == 0 and label != "contradiction"
        elif heuristic == "my_own":
            of_slice = test_set == "template_probe" and number % 3 == 0 and label == "non-entailment"
        else:
            of_slice = item.get("heuristic") == heuristic and label == "non-entailment"
        return "blindspot" if of_slice else None

    return place


def study_of(root: Path, heuristic: str, blindspot_set: str, blindspot_slice: str) -> ItemStudy:
    study = ItemStudy(root, rate, noise=0.04, heuristics=(OWN, ANTI), place=place_of(heuristic))  # type: ignore[arg-type]
    study.parameters |= {"blindspot_set": blindspot_set, "heuristic": heuristic, "blindspot_slice": blindspot_slice}
    study.grid(starting_sizes=(0, 50_000), sizes=(60, 120), num_seeds=6)
    # No pool: nothing is said of the overlaps of Table 1.
    (study.folder("sources", "data") / "train.parquet").write_bytes(parquet([("A man", "A man", str(one)) for one in Label]))
    return study


STUDIES = [
    ("subsequence", "template_probe", "subsequence/non-entailment", "subsequence, non-entailment", 30),
    ("my_own", "template_probe", "holds/my_own/non-entailment", "my own, non-entailment", 20),
    # Of every third general item, which has one label: entailment.
    ("my_anti", "template_test", "holds/my_anti/non-contradiction", "my anti, non-contradiction", 30),
]


@pytest.mark.parametrize(("heuristic", "test_set", "slice_", "words", "num_items"), STUDIES)
def test_claims_are_of_the_studys_own_slice(
    tmp_path: Path, heuristic: str, test_set: str, slice_: str, words: str, num_items: int
) -> None:
    store = Store(study_of(tmp_path, heuristic, test_set, slice_).write())
    study = Study.load(store, "tiny")
    found = judge(store, study)
    biased, gap = found["bias_is_seen"], found["gap_is_wider_on_blindspot"]
    is_one_set = test_set == "template_test"
    for claim in (gap, found["original_is_kinder_to_blindspot"]):
        why_not = "the study's blindspot set is its general set, so that accuracy on it is general accuracy"
        assert (claim.notes[:1] == (why_not,)) == is_one_set and (claim.verdict == Outcome.CANNOT_TELL or not is_one_set)
    assert biased.verdict == Outcome.SUPPORTED
    assert (biased.num_items, biased.num_units) == (num_items, 6)
    # The same difference from what the evaluations themselves counted.
    frame = evaluation_frame(store, study)
    rows = frame[(frame["set"] == test_set) & (frame["slice"] == slice_) & (frame["folding"] == "argmax")]
    level = rows[rows["size"] == 120].groupby("kind", observed=True)["accuracy"].mean()
    assert biased.estimate == pytest.approx(level["biased_synthetic"] - level["synthetic"])
    assert set(rows["num_examples"]) == {num_items}
    assert words in biased.settings[0]["part"]
    metrics = [one.metric for one in pilot(load_evidence(store, study))[0]]
    assert any(metric.startswith("adversarial: synthetic − original") for metric in metrics)
    assert any(metric.startswith("blindspot: ") for metric in metrics) != is_one_set


@pytest.mark.parametrize(
    ("heuristic", "test_set", "slice_", "words", "num_items"),
    [pytest.param(*STUDIES[0], marks=pytest.mark.slow), STUDIES[1], pytest.param(*STUDIES[2], marks=pytest.mark.slow)],
)
def test_no_sentence_speaks_of_another_heuristic(
    tmp_path: Path, heuristic: str, test_set: str, slice_: str, words: str, num_items: int
) -> None:
    study = study_of(tmp_path, heuristic, test_set, slice_)
    store = study.write()
    statements = [asked.statement for asked in questions(load_evidence(store, "tiny"))]
    assert not [one for one in statements if "overlap" in one.lower()]
    text = sections(build_report(store, "tiny", tmp_path / "out").read_text())
    assert "overlap" not in text["question"] + text["figure1"]
    assert f"the heuristic '{heuristic.replace('_', ' ')}'" in text["question"]
    assert f"where going by the heuristic is wrong ({words})" in text["question"]
    for name in ("figure1", "claims"):
        assert words in text[name], name
    # A set of three labels has no accuracy on non-entailed items, and says so.
    evidence = load_evidence(store, "tiny")
    judged = judge_evidence(evidence)
    notes = verdicts_json("tiny", answer(judged), judged, evidence)["notes"]
    assert ("No signal detection" in text["claims"]) == any("no signal detection" in note for note in notes)
    assert ("No signal detection" in text["claims"]) == (test_set == "template_test")


def test_a_slice_of_the_users_own_stands_beside_those_of_the_set(tmp_path: Path) -> None:
    path = build_report(study_of(tmp_path, *STUDIES[1][:3]).write(), "tiny", tmp_path / "out")
    assert "my own, non-entailment (where it holds)" in sections(path.read_text())["slices"]
    assert "holds/my_own/non-entailment" in set(pd.read_csv(path.parent / "frame.csv")["slice"])


def test_evaluations_that_do_not_say_where_it_holds_leave_that_claim_open(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, rate, heuristics=(OWN,))
    study.parameters |= {"heuristic": "my_own", "blindspot_slice": "holds/my_own/non-entailment"}
    for seed in range(3):
        for kind, size in (("none", 0), ("original", 60), ("synthetic", 60), ("biased_synthetic", 60)):
            study.add_cell(0, kind, size, seed, edit=lambda table: table.drop_columns(["holds/my_own"]))
    found = judge(study.write(), "tiny")
    assert found["bias_is_seen"].verdict == Outcome.CANNOT_TELL
    assert "do not say where the heuristic 'my_own' holds" in found["bias_is_seen"].notes[0]
    assert found["synthetic_helps_general"].verdict == Outcome.SUPPORTED


def sections(html: str) -> dict[str, str]:
    """The text of each section of a report."""

    class Text(HTMLParser):
        def __init__(self, part: str) -> None:
            super().__init__()
            self.text = ""
            self.feed(part)

        def handle_data(self, data: str) -> None:
            self.text += data

    return {name: Text(body).text for name, body in re.findall(r'<section[^>]* id="(\w+)">(.*?)</section>', html, re.DOTALL)}
