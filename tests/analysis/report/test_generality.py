"""Whether an effect is general or one set's alone: a study that plants it on some sets and not on others."""

import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from analysis.report.generality import CONTROL, ONE_SEED, generality_block, sets_needed
from analysis.report.report import build_report
from analysis.study.frame import evaluation_frame
from analysis.study.generality import Place, places, sets_with_halves
from analysis.verdicts.evidence import load_evidence
from pipelines.tasks.nli import LABELS
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import Store, Study
from tests.analysis.fake_store import parquet
from tests.analysis.item_study import ItemStudy, general_items, probe_items

MED = TestSet(
    "med", folded_onto="entailment", slices=("monotonicity",), cluster="cluster", title="MED",
    aligned="monotonicity/upward", adversarial="monotonicity/downward",
)  # fmt: skip
NEG_NLI = TestSet(
    "neg_nli", slices=("half",), cluster="cluster", title="NegNLI", predicts="contradiction",
    aligned="half/aligned", adversarial="half/adversarial",
)  # fmt: skip


def med_items() -> pa.Table:
    num = 200
    return pa.table(
        {
            "id": [f"m{i}" for i in range(num)],
            "premise": [f"p {i}" for i in range(num)],
            "hypothesis": [f"h {i}" for i in range(num)],
            "label": ["entailment" if i % 2 else "non-entailment" for i in range(num)],
            "monotonicity": ["upward" if i < 80 else "downward" if i < 180 else "non_monotone" for i in range(num)],
            "cluster": [f"c{i // 4}" for i in range(num)],
        }
    )


def neg_nli_items() -> pa.Table:
    num = 180
    halves = [None if i % 3 == 0 else "aligned" if i % 3 == 1 else "adversarial" for i in range(num)]
    return pa.table(
        {
            "id": [f"n{i}" for i in range(num)],
            "premise": [f"p {i}" for i in range(num)],
            "hypothesis": [f"h {i}" for i in range(num)],
            "label": ["contradiction" if half == "aligned" else "neutral" for half in halves],
            "half": pa.array(halves, pa.string()),
            "cluster": [f"c{i // 3}" for i in range(num)],
        }
    )


class ChallengeStudy(ItemStudy):
    """A probe, as HANS has its items, and two described sets. `lost` maps parts to what synthetic data takes from them."""

    test_sets = (MED, NEG_NLI)

    def __init__(self, root: Path, lost: dict[str, float]) -> None:
        def rate(start: int, kind: str, size: int, part: str) -> float:
            return 0.8 - {"synthetic": 1, "biased_synthetic": 1}.get(kind, 0) * lost.get(part, 0.0)

        def part_of(test_set: str, item: dict[str, str]) -> str | None:
            if test_set == "template_probe":
                return f"{item['heuristic']}/{item['label']}"
            return item.get("monotonicity") or (f"neg_nli/{item['half']}" if "half" in item else None)

        super().__init__(root, rate, place=part_of)
        self.parameters = {
            "general_set": "template_test",
            "blindspot_set": "template_probe",
            "blindspot_slice": "lexical_overlap/non-entailment",
            "test_sets": [asdict(test_set) for test_set in self.test_sets],
        }

    def items(self) -> dict[str, pa.Table]:
        return {
            "template_test": general_items(),
            "template_probe": probe_items(),
            "med": med_items(),
            "neg_nli": neg_nli_items(),
        }


HERE = {"lexical_overlap/non-entailment": 0.4}
ON_MED = {"downward": 0.3}


def answered(tmp_path: Path, lost: dict[str, float], num_seeds: int = 4) -> tuple[str, pd.DataFrame]:
    """The section's text, and its numbers."""
    study = ChallengeStudy(tmp_path / "store", lost)
    study.grid(starting_sizes=(50_000,), num_seeds=num_seeds)
    store = Store(study.write())
    loaded = Study.load(store, "tiny")
    frame = evaluation_frame(store, loaded)
    evidence = load_evidence(store, loaded, frame=frame, counts={}, also=sets_needed(loaded, frame))
    (block,), figure, numbers = generality_block(loaded, frame, evidence)
    assert block.title == "Is the effect general, or Template probe's alone?" and figure is not None
    return " ".join(block.text), numbers


def build(study: ItemStudy, output: Path) -> str:
    rows = parquet([("A man", "A man", str(label)) for label in LABELS])
    (study.folder("sources", "data") / "train.parquet").write_bytes(rows)
    return build_report(study.write(), "tiny", output).read_text()


def test_the_halves_are_those_of_each_set_and_of_each_heuristic(tmp_path: Path) -> None:
    study = ChallengeStudy(tmp_path, {})
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    store = Store(study.write())
    loaded = Study.load(store, "tiny")
    found = places(loaded, evaluation_frame(store, loaded))
    assert found == (
        Place("Template test set", "template_test", "all", "general"),
        Place("Template probe (lexical overlap)", "template_probe", "lexical_overlap/non-entailment", "adversarial"),
        Place("Template probe (lexical overlap)", "template_probe", "lexical_overlap/entailment", "aligned"),
        Place("Template probe (subsequence)", "template_probe", "subsequence/non-entailment", "adversarial"),
        Place("Template probe (subsequence)", "template_probe", "subsequence/entailment", "aligned"),
        Place("MED", "med", "monotonicity/downward", "adversarial"),
        Place("MED", "med", "monotonicity/upward", "aligned"),
        Place("NegNLI", "neg_nli", "half/adversarial", "adversarial"),
        Place("NegNLI", "neg_nli", "half/aligned", "aligned"),
    )
    assert sets_with_halves(found) == ("template_probe", "med", "neg_nli")


def test_an_effect_on_other_sets_is_not_the_blindspots_alone(tmp_path: Path) -> None:
    text, numbers = answered(tmp_path, HERE | ON_MED)
    assert "clearly lower on Template probe (lexical overlap) and MED and clearly higher on none, of four" in text
    assert CONTROL in text
    assert "The effect is not Template probe's alone." in text and "as well, which no heuristic" not in text
    effects = numbers[numbers["control"] == "original"].set_index(["set", "half"])
    downward = effects.loc[("med", "adversarial")]
    assert downward["difference"] == pytest.approx(-0.3, abs=0.05) and downward["interval_high"] < 0
    assert (downward["num_items"], downward["n"], downward["num_settings"]) == (100, 4, 2)
    assert effects.loc[("med", "aligned"), "difference"] == pytest.approx(0, abs=0.05)
    added = numbers[(numbers["control"] == "synthetic") & (numbers["set"] == "med")]
    assert added["difference"].abs().max() < 0.05


def test_an_effect_on_the_blindspot_alone_is_not_shown_to_be_its_alone(tmp_path: Path) -> None:
    text, _ = answered(tmp_path, HERE)
    assert "It is seen on Template probe and on no other set; that it is Template probe's alone is not shown by that" in text
    assert re.search(r"the others' intervals reach to −\d+\.\d points", text)


def test_an_effect_elsewhere_or_nowhere_is_said(tmp_path: Path) -> None:
    assert "It is seen on other sets and not on Template probe." in answered(tmp_path / "a", ON_MED)[0]
    assert "There is no clear effect to be general or not." in answered(tmp_path / "b", {})[0]


def test_a_loss_on_both_halves_is_no_heuristics(tmp_path: Path) -> None:
    text, _ = answered(tmp_path, ON_MED | {"upward": 0.3})
    assert "On MED accuracy falls where the heuristic is right as well, which no heuristic explains." in text


def test_one_seed_says_nothing_of_generality(tmp_path: Path) -> None:
    text, numbers = answered(tmp_path, HERE | ON_MED, num_seeds=1)
    assert text.startswith(ONE_SEED) and "clearly lower" not in text
    assert set(numbers["n"]) == {1} and numbers["interval_low"].notna().all()


def test_the_report_has_the_section_with_its_figure_where_several_sets_test_a_heuristic(tmp_path: Path) -> None:
    study = ChallengeStudy(tmp_path / "store", HERE)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=2)
    html = build(study, tmp_path / "out")
    (section,) = re.findall(r'<section id="generality".*?</section>', html, re.DOTALL)
    assert "<svg" in section and "Is the effect general, or Template probe&#39;s alone?" in section
    written = {path.name for path in (tmp_path / "out").glob("generality*")}
    assert written == {f"generality.{kind}" for kind in ("csv", "pdf", "png", "svg")}


def test_a_study_with_one_set_of_a_heuristic_has_no_such_section(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, lambda start, kind, size, part: 0.7)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    store = Store(study.write())
    loaded = Study.load(store, "tiny")
    frame = evaluation_frame(store, loaded)
    assert sets_needed(loaded, frame) == ()
    assert generality_block(loaded, frame, load_evidence(store, loaded, frame=frame, counts={}))[0] == []
