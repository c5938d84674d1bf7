"""A study with two arms in the report, the terminal and the JSON: each says which arm, and one of one arm says nothing."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.report.report import build_report
from analysis.report.terminal import print_verdicts, verdicts_json
from analysis.verdicts.answer import answer
from analysis.verdicts.evidence import load_evidence
from analysis.verdicts.verdicts import judge_evidence
from pipelines.tasks.nli import LABELS
from sweep.study.claims import as_json
from sweep.study.paper_claims import PAPER_CLAIMS, axis_claims
from tests.analysis.fake_store import parquet
from tests.analysis.item_study import ItemStudy, clear, joint_study


def kinder(start: int, kind: str, size: int, part: str) -> float:
    return clear(start, "original" if kind == "synthetic" else kind, size, part)


def written(study: ItemStudy) -> str:
    """Its store, with training data for the report's tables."""
    rows = parquet([("A man", "A man", str(label)) for label in LABELS])
    (study.folder("sources", "data") / "train.parquet").write_bytes(rows)
    return study.write()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    study = joint_study(tmp_path_factory.mktemp("store"), kinder, 3)
    claims = (*PAPER_CLAIMS, *axis_claims((), ("synthetic",), ("two_steps", "joint")))
    study.parameters["claims"] = as_json(claims)
    return written(study)


def test_the_report_shows_each_arm_and_says_which(store: str, tmp_path: Path) -> None:
    page = build_report(store, "tiny", tmp_path / "report").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "arms two_steps and joint" in text
    for arm in ("two_steps", "joint"):
        assert f"Accuracies behind the figure (arm {arm})" in text
        assert f'id="slices-{arm}"' in page and f"subcases of the blindspot set (arm {arm})" in text
        assert f"{arm}, start: untrained" in text and f"{arm}, start: 50,000 examples" in text
        assert f"arm {arm}, start 50,000 examples, size 120" in text
    assert "a starting point and a training size, in one of its arms" in text
    assert "In the arm joint, synthetic data lowers accuracy" in text
    # No two sections have one address.
    anchors = re.findall(r'<section id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    frame = pd.read_parquet(tmp_path / "report" / "frame.parquet")
    assert list(frame["arm"].unique()) == ["two_steps", "joint"]


def test_the_terminal_and_the_json_name_arms(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = load_evidence(store, "tiny")
    verdicts = judge_evidence(evidence)
    print_verdicts(answer(verdicts), verdicts, tuple(evidence.arms))
    told = " ".join(capsys.readouterr().out.split())
    assert "gap_is_as_wide_in_joint" in told
    assert "(a starting point and a size, in one of the arms two_steps and joint)" in told
    values = json.loads(json.dumps(verdicts_json("tiny", answer(verdicts), verdicts, evidence)))
    for table in ("subcases", "signal_detection"):
        assert {row["arm"] for row in values[table]} == {"two_steps", "joint"}
    claims = {claim["name"]: claim for claim in values["claims"]}
    settings = {row["setting"].partition(",")[0] for row in claims["synthetic_reinforces"]["settings"]}
    assert settings == {"arms two_steps and joint", "arm two_steps", "arm joint"}


def test_a_study_of_one_arm_says_nothing_of_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = ItemStudy(tmp_path / "store", clear)
    study.grid(starting_sizes=(0,), num_seeds=2)
    store = written(study)
    page = build_report(store, "tiny", tmp_path / "report").read_text()
    text = re.sub(r"data:[^\"]*|<[^>]*>", " ", page)
    assert not re.search(r"\barms?\b", text) and "{}" not in text
    evidence = load_evidence(store, "tiny")
    verdicts = judge_evidence(evidence)
    print_verdicts(answer(verdicts), verdicts, tuple(evidence.arms))
    told = capsys.readouterr().out
    assert not re.search(r"\barms?\b", told) and "{}" not in told
    assert "arm" not in verdicts_json("tiny", answer(verdicts), verdicts, evidence)["subcases"][0]
