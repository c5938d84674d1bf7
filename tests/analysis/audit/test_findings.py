"""Verdicts of an audit: levels by the interval, the most urgent first, an answer in a sentence, conditions for CI."""

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from analysis.audit import Audit, AuditSettings, Finding, audit, audit_json
from analysis.audit.audit import judged
from analysis.audit.findings import KINDS, answer_of, check_conditions, first_action, level_of
from analysis.audit.found import ACT, CANNOT_TELL, FINE, LEVELS, LOOK, NOT_ASKED, Figure
from analysis.audit.judged import FileNoise
from analysis.audit.noise import FEW, MANY, LabelNoise, NoiseRate, Suspects
from analysis.audit.page import write_page
from analysis.stats.statistics import Interval
from pipelines.errors import UserError
from sweep import cli
from tests.analysis.audit.planted import planted

WORDS = [f"{first}{second}" for first in ("ka", "lo", "mi", "nu", "re", "so") for second in ("ban", "dor", "fel", "gim", "sut")]


def texts(count: int, source: random.Random, told: float = 0.0) -> list[dict[str, str]]:
    """Single texts; of a share `told` of the positive ones one word tells the label."""
    rows = []
    for _ in range(count):
        label = source.choice(("negative", "positive"))
        words = source.choices(WORDS, k=9)
        if label == "positive" and source.random() < told:
            words[4] = "splendid"
        rows.append({"text": " ".join(words), "label": label})
    return rows


def of(found: Audit, kind: str, name: str = "") -> Finding:
    return next(finding for finding in found.findings if finding.kind == kind and name in ("", finding.name))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["audit", *map(str, arguments)])


@pytest.mark.parametrize(
    ("low", "high", "level", "counted"),
    [
        (0.0, 0.02, FINE, FINE),  # all of it up to the lower threshold
        (0.01, 0.03, CANNOT_TELL, LOOK),  # spans it
        (0.01, 0.20, CANNOT_TELL, LOOK),  # spans both
        (0.03, 0.05, LOOK, LOOK),  # between the two
        (0.03, 0.20, LOOK, LOOK),  # above the lower one, whatever the upper one
        (0.10, 0.20, LOOK, LOOK),  # the threshold itself is not above it
        (0.11, 0.20, ACT, ACT),
    ],
)
def test_the_interval_decides_the_level(low: float, high: float, level: str, counted: str) -> None:
    figure = Figure(0.15, Interval(low, high), 100, "share")
    assert level_of(figure, 0.02, 0.10) == level
    assert level_of(figure, 0.02, 0.10, is_counted=True) == counted


def test_no_interval_is_no_level_and_none_counted_is_fine() -> None:
    assert level_of(Figure(0.5, None, 1, "share"), 0.02, 0.10) == CANNOT_TELL
    assert level_of(Figure(0.0, Interval(0.0, 0.5), 3, "share"), 0.02, 0.10, is_counted=True) == FINE


def test_what_was_planted_is_said_the_most_urgent_first() -> None:
    made = planted("english")
    found = audit(made.table, AuditSettings(tests={"held_out": made.test}, processes=1))
    levels = [finding.level for finding in found.findings]
    assert levels == sorted(levels, key=LEVELS.index)
    leak = found.findings[0]
    assert (leak.kind, leak.name, leak.level) == ("leaks", "held_out", ACT)
    assert f"{made.counts['leaks']} of " in leak.sentence and "--repair OUT.parquet" in leak.action
    assert of(found, "contradictions").verdict == f"contradicts itself in {made.counts['other_label']} rows"
    assert found.answer.startswith("Not fit as it is: the data gives away ")
    assert first_action(found.findings) == leak.action


def test_where_nothing_was_planted_nothing_is_to_be_done() -> None:
    made = planted("english", seed=2, is_clean=True)
    found = audit(made.table, AuditSettings(tests={"held_out": made.test}, processes=1))
    assert {finding.level for finding in found.findings} <= {FINE, CANNOT_TELL, NOT_ASKED}
    assert found.answer.startswith("Nothing is found against the data, and ")


def test_a_near_row_with_another_label_is_a_contrast_pair_to_keep() -> None:
    source = random.Random(4)
    rows = texts(600, source)
    last = {"negative": "positive", "positive": "negative"}
    contrast = [{"text": f"{row['text']} really", "label": last[row["label"]]} for row in rows[:100]]
    found = audit(pa.Table.from_pylist(rows + contrast), AuditSettings(tests={"t": pa.Table.from_pylist(rows[:300])}))
    near, leak = of(found, "near-duplicates"), of(found, "leaks")
    # Rows of a test set that have contrast pairs here, and nothing else, are not given away.
    others = audit(pa.Table.from_pylist(contrast), AuditSettings(tests={"t": pa.Table.from_pylist(rows)}))
    assert of(others, "leaks").level == FINE and "100 rows more are near to one of its rows" in of(others, "leaks").sentence
    assert near.level == FINE and "contrast pairs, keep them" in near.sentence
    # The test set is in the file word for word; the contrast pairs of it are not counted among what is to be dropped.
    assert "Drop the 300 rows that repeat t" in leak.action and "contrast pairs, keep them" in leak.sentence


def test_copies_of_a_reference_and_what_is_as_in_it() -> None:
    source = random.Random(5)
    reference = texts(6_000, source, told=0.6)
    pool = [*texts(5_900, source, told=0.6), *reference[:100]]
    found = audit(pa.Table.from_pylist(pool), AuditSettings(reference=pa.Table.from_pylist(reference)))
    copies, words = of(found, "copies", "reference"), of(found, "words")
    assert copies.level == ACT and re.match(r"Drop the 10\d rows that are copies", copies.action)
    assert words.level == LOOK and words.reference is not None and "no more than in the reference" in words.sentence
    plain = texts(6_000, source)
    more = of(audit(pa.Table.from_pylist(pool), AuditSettings(reference=pa.Table.from_pylist(plain))), "words")
    assert more.level == ACT and "'splendid' (positive)" in more.sentence


def test_what_needs_a_pair_says_so() -> None:
    found = audit(pa.Table.from_pylist(texts(700, random.Random(6))))
    needs = [finding.sentence for finding in found.findings if "need" in finding.sentence and "a pair" in finding.sentence]
    assert any(sentence.startswith("Lexical overlap, subsequence and constituent need a pair") for sentence in needs)
    assert any(sentence.startswith("One field alone needs a pair") for sentence in needs)


def test_label_noise_is_judged_where_it_is_known() -> None:
    found = audit(pa.Table.from_pylist(texts(700, random.Random(7))))
    assert of(found, "noise").level == NOT_ASKED
    rate = NoiseRate(None, None, None, 700, 300, 0.2, 0.15, Interval(0.12, 0.18), (0.5, 0.5), MANY, "as the trusted rows say")
    nobody = Suspects(*(np.zeros(0, np.int64),) * 3, np.zeros(0), np.zeros(0))
    noise = FileNoise(LabelNoise(rate, (), nobody, 0.05, 0.9), ("a", "b"), np.zeros(0, np.int64), 700, 700, "the judge")
    finding = of(judged(dataclasses.replace(found, label_noise=noise)), "noise")
    assert finding.level == ACT and "wrong labels, between 12.0" in finding.verdict
    few = dataclasses.replace(noise.noise, in_all=dataclasses.replace(rate, verdict=FEW, interval=Interval(0.0, 0.03)))
    finding = of(judged(dataclasses.replace(found, label_noise=dataclasses.replace(noise, noise=few))), "noise")
    assert finding.level == FINE and not finding.action


def test_simple_models_of_a_files_own_labels_cannot_tell_and_name_doubtful_rows(tmp_path: Path) -> None:
    found = audit(pa.Table.from_pylist(texts(900, random.Random(11))), AuditSettings(label_noise=True))
    assert of(found, "noise").level == CANNOT_TELL
    assert found.label_noise is not None and found.label_noise.num_judged > 0
    assert "label_noise" in json.loads(audit_json(found))
    assert "Wrong labels" in write_page(found, tmp_path).read_text()
    by_row = found.rows_frame()
    assert (by_row["kind"] == "doubtful_label").sum() == len(found.label_noise.rows)


def test_heuristics_of_one_verdict_share_a_clause() -> None:
    names = ("lexical_overlap", "subsequence", "constituent", "own")
    findings = [Finding("plants", name, f"plants {name.replace('_', ' ')}", ACT, "") for name in names]
    assert answer_of(findings[:1]) == "Not fit as it is: the data plants lexical overlap."
    assert answer_of(findings) == "Not fit as it is: the data plants lexical overlap, subsequence and 2 more."
    assert answer_of([Finding("words", "text", "has words", LOOK, "")]) == "Usable with care: the data has words."
    assert answer_of([Finding("words", "text", "has none", FINE, "")]) == "Fit, by all that was asked."


def pairs(count: int, overlapping: int, random: random.Random) -> pa.Table:
    """Pairs of which the first `overlapping` entailments have lexical overlap, and one of four others as many."""
    rows = []
    for number in range(count):
        premise = random.choices(WORDS, k=12)
        label = ("entailment", "neutral")[number % 2]
        overlaps = number // 2 < (overlapping if label == "entailment" else overlapping // 4)
        hypothesis = premise[2:7] if overlaps else [*random.choices(WORDS, k=4), "else"]
        rows.append({"premise": " ".join(premise), "hypothesis": " ".join(hypothesis), "label": label})
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(("planted_rows", "level"), [(320, LOOK), (100, CANNOT_TELL), (60, CANNOT_TELL)])
def test_a_heuristic_that_holds_far_more_often_is_to_be_looked_at(planted_rows: int, level: str) -> None:
    """Of 2,000 entailments, beside a reference with 80: the odds ratios are alike, whichever there are more of."""
    source = random.Random(12)
    found = audit(pairs(4_000, planted_rows, source), AuditSettings(reference=pairs(4_000, 80, source)))
    finding = of(found, "plants", "lexical_overlap")
    assert finding.level == level
    assert f"holds of {100 * planted_rows / 2_000:.1f}%, and of 4.0% in the reference" in finding.sentence
    if level == LOOK:
        assert finding.verdict == "has more lexical overlap with entailment than the reference"
        assert finding.estimate is not None and finding.estimate.value == pytest.approx(0.16)
        assert finding.action.startswith("Take fewer rows where the heuristic holds and the label is entailment")
    by_row = found.rows_frame()
    assert ("lexical_overlap" in by_row.loc[by_row["kind"] == "heuristic", "note"].tolist()) == (level == LOOK)


def test_a_single_label_is_said_first() -> None:
    rows = pa.Table.from_pylist(texts(60, random.Random(13)))
    alike = rows.set_column(1, "label", pa.array(["spam"] * 60))
    assert audit(alike).answer.startswith("No classifier learns from it alone: every row has the label spam. ")
    assert not audit(rows).answer.startswith("No classifier")


def test_a_condition_that_is_met_ends_in_3_and_says_which(tmp_path: Path) -> None:
    rows = texts(400, random.Random(8))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    pq.write_table(pa.Table.from_pylist([*rows[:3], *texts(300, random.Random(9))]), tmp_path / "held.parquet")
    given = (tmp_path / "pool.parquet", "--test", tmp_path / "held.parquet", "--output", tmp_path / "out")
    done = run(*given)
    assert done.exit_code == 0, done.output
    failed = run(*given, "--fail-on", "leaks,duplicates")
    assert failed.exit_code == 3 and (tmp_path / "out" / "audit.html").is_file()
    assert failed.stderr.startswith("--fail-on leaks: the data gives away 1.0% of the test set held")
    assert failed.stderr.count("--fail-on") == 1
    assert run(*given, "--fail-on", "duplicates").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--output", "pool.csv", "--output pool.csv is a file, and the page lies in a folder; name a folder, or a new one"),
        ("--judge", "nobody", "no model at 'nobody'"),
        ("--heuristic", "none.py:MINE", "heuristic 'none.py:MINE': none.py is no file here"),
    ],
)
def test_what_an_option_lacks_is_said_before_the_file_is_read(
    option: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pool.csv").write_text("text,label\n" + "no,lab,els\n" * 3)  # which is an error of its own
    done = run("pool.csv", option, value)
    assert done.exit_code == 1 and said in done.stderr


def test_a_condition_that_is_none_or_was_not_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--fail-on leak: the names are leaks, contradictions, .*, and act for any of them"):
        check_conditions(["leak"])
    check_conditions([*KINDS, "act"])
    pq.write_table(pa.Table.from_pylist(texts(20, random.Random(1))), tmp_path / "pool.parquet")
    done = run(tmp_path / "pool.parquet", "--fail-on", "leaks", "--output", tmp_path / "out")
    assert done.exit_code == 1 and "so it could not fail; give --test" in done.stderr
    said = {"plants": "does not ask that of these files, so it could not fail; give --heuristic"}
    said |= dict.fromkeys(("near-duplicates", "words"), "beside a reference alone, so it could not fail; give --reference")
    for name, why in said.items():
        done = run(tmp_path / "pool.parquet", "--fail-on", name, "--output", tmp_path / "out")
        assert done.exit_code == 1 and why in done.stderr
    options = ("--heuristic", f"text:{WORDS[0]}=positive", "--fail-on", "plants", "--output", tmp_path / "out")
    done = run(tmp_path / "pool.parquet", *options)
    assert done.exit_code == 1 and "so it could not fail; give --reference" in done.stderr
