"""What docs/audit.md says of five real sets."""

from pathlib import Path

import pytest

from analysis.audit import Audit, AuditSettings, Finding, audit
from analysis.corpus.columns import ColumnNames

DATA = (Path(__file__).parents[3] / ".." / "shared" / "data").resolve()
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")


def level(found: Audit, kind: str, name: str = "") -> tuple[str, float]:
    finding: Finding = next(one for one in found.findings if one.kind == kind and one.name == name)
    return finding.level, finding.estimate.value if finding.estimate else 0.0


def test_med_goes_against_overlap_and_is_made_of_near_copies() -> None:
    found = audit(DATA / "challenge" / "med" / "MED.tsv")
    assert found.answer.startswith("Usable with care: the data contradicts itself in 1 row, has lexical overlap")
    assert level(found, "plants", "lexical_overlap") == ("look", pytest.approx(0.35, abs=0.02))
    assert level(found, "near-duplicates") == ("look", pytest.approx(0.22, abs=0.015))


def test_neg_nli_has_too_few_rows_to_clear_it(tmp_path: Path) -> None:
    text = (DATA / "challenge" / "neg_nli" / "MNLI.txt").read_text(encoding="cp1252")
    (tmp_path / "neg_nli.tsv").write_text(text, encoding="utf-8")
    found = audit(tmp_path / "neg_nli.tsv", AuditSettings(ColumnNames({"premise": "Text", "hypothesis": "Hypothesis"})))
    assert found.answer.startswith("Usable with care: the data says nearly the same again in 1")
    assert {level(found, kind, name)[0] for kind in ("words", "one-field") for name in found.fields} == {"cannot tell"}
    assert abs(level(found, "one-field", "premise")[1]) < 0.05


@pytest.mark.slow
def test_sst_2_gives_its_own_dev_set_away() -> None:
    tests = {name: DATA / "sst2" / f"{name}.tsv" for name in ("test", "dev")}
    found = audit(DATA / "sst2" / "train.tsv", AuditSettings(tests=tests))
    assert found.answer.startswith("Not fit as it is: the data gives away 57.")
    assert level(found, "leaks", "dev") == ("act", pytest.approx(0.57, abs=0.015))
    assert level(found, "leaks", "test") == ("act", pytest.approx(0.009, abs=0.002))
    assert level(found, "duplicates") == ("act", pytest.approx(0.117, abs=0.001))
    assert level(found, "words", "text") == ("look", pytest.approx(0.385, abs=0.01))


@pytest.mark.slow
def test_hans_tells_the_label_by_the_premise_alone() -> None:
    found = audit(DATA / "hans" / "heuristics_evaluation_set.txt")
    assert level(found, "one-field", "premise") == ("act", pytest.approx(0.28, abs=0.03))
    assert level(found, "plants", "lexical_overlap")[0] == "cannot tell"
    words = found.words_frame()
    assert {"if", "unless", "remembered"} <= set(words.loc[words["field"] == "premise", "word"])


@pytest.mark.slow
def test_multinli_gives_nothing_away_and_has_associations() -> None:
    folder = DATA / "multinli"
    settings = AuditSettings(tests={"dev": folder / "multinli_1.0_dev_matched.jsonl"})
    found = audit(folder / "multinli_1.0_train.jsonl", settings)
    assert found.answer.startswith("Usable with care: the data has lexical overlap, subsequence and 3 more go with entailment")
    assert level(found, "plants", "lexical_overlap") == ("look", pytest.approx(24.4, abs=0.5))
    assert level(found, "one-field", "hypothesis") == ("look", pytest.approx(0.126, abs=0.02))
    assert level(found, "leaks", "dev") == ("fine", 0) and level(found, "duplicates") == ("fine", 0)
