"""A scanned file's label noise, with a judge's table and without: labels of both in common terms, rows by their numbers."""

import random

import numpy as np
import pyarrow as pa
import pytest

from analysis.audit.judged import label_noise_of, suspect_rows
from analysis.audit.noise import CANNOT_TELL, FEW, MANY
from analysis.corpus.input import open_texts
from analysis.corpus.scan import Scan, scan_texts
from pipelines.errors import UserError

LABELS = ("entailment", "neutral", "contradiction")
WORDS = [f"w{number}" for number in range(300)]


def pairs(num: int, wrong: float = 0.0, seed: int = 0, *, tail: float = 0.5) -> tuple[pa.Table, list[str]]:
    """Pairs with a share of wrong labels, and the right ones. A word of the hypothesis tells which.

    Lexical overlap holds of half the entailments, and of others where the premise has that word, too: a share `tail`.
    """
    draw = random.Random(seed)
    rows, truths = [], []
    for _ in range(num):
        premise = [draw.choice(WORDS) for _ in range(7)] + (["not", "maybe"] if draw.random() < tail else [])
        truth = draw.choice(LABELS)
        hypothesis = {
            "entailment": premise[:4] if draw.random() < 0.5 else ["so", *premise[:3]],
            "neutral": ["maybe", *premise[:3]],
            "contradiction": ["not", *premise[:3]],
        }[truth]
        label = draw.choice([other for other in LABELS if other != truth]) if draw.random() < wrong else truth
        rows.append({"premise": " ".join(premise), "hypothesis": " ".join(hypothesis), "label": label})
        truths.append(truth)
    return pa.Table.from_pylist(rows), truths


def scanned(table: pa.Table) -> Scan:
    return scan_texts(open_texts(table), processes=1)


def judgement(scan: Scan, truths: list[str], accuracy: float = 0.99, seed: int = 0) -> pa.Table:
    """A judge's table that is right of a share of the rows, in another order than the file's."""
    draw = np.random.default_rng(seed)
    said = np.array([LABELS.index(truth) for truth in truths])
    mistaken = draw.random(len(said)) >= accuracy
    said[mistaken] = (said[mistaken] + draw.integers(1, 3, mistaken.sum())) % 3
    shares = np.full((len(said), 3), 0.1, np.float32)
    shares[np.arange(len(said)), said] = 0.8
    order = draw.permutation(len(said))
    columns = {f"p/{label}": shares[order, code] for code, label in enumerate(LABELS)}
    return pa.table({"row": scan.row[order], **columns})


def test_a_judges_table_is_joined_by_row_and_its_rates_are_by_label_and_heuristic() -> None:
    (table, truths), (gold, gold_truths) = pairs(3_000, 0.2), pairs(3_000, seed=1)
    scan, trusted = scanned(table), scanned(gold)
    judged, of_trusted = judgement(scan, truths), judgement(trusted, gold_truths, seed=1)
    found = label_noise_of(scan, trusted=trusted, judged=judged, trusted_judged=of_trusted)
    assert found.noise is not None and found.verdict == MANY and found.judge == "the judge"
    wrong = np.array([label != truth for label, truth in zip(table["label"].to_pylist(), truths, strict=True)])
    assert found.noise.in_all.interval.low <= wrong.mean() <= found.noise.in_all.interval.high
    assert (found.num_judged, found.num_rows) == (3_000, 3_000)
    rates = {(rate.label, rate.heuristic, rate.holds) for rate in found.noise.rates}
    assert ("entailment", "lexical_overlap", True) in rates and ("neutral", "lexical_overlap_by_words", False) in rates
    # The suspects are rows of the file.
    places = [scan.row.tolist().index(row) for row in found.rows[:200]]
    assert wrong[places].mean() > 0.9
    listed = suspect_rows(found).slice(0, 200)
    assert listed["row"].to_pylist() == found.rows[:200].tolist()
    assert listed["label"].to_pylist() == [table["label"][place].as_py() for place in places]
    assert np.mean([truths[place] == one for place, one in zip(places, listed["suggested"].to_pylist(), strict=True)]) > 0.9
    assert (listed["probability"].to_numpy() > listed["given_probability"].to_numpy()).all()
    # Rows that the judge has not judged are left out.
    nulls = judged.set_column(
        1, "p/entailment", pa.array([None] * 100 + judged["p/entailment"].to_pylist()[100:], pa.float32())
    )
    assert label_noise_of(scan, judged=nulls.slice(0, 2_000)).num_judged == 1_900


def test_where_overlap_goes_with_entailment_alone_a_judge_that_goes_by_it_looks_the_same() -> None:
    (table, truths), (gold, gold_truths) = pairs(2_000, tail=0), pairs(2_000, seed=1, tail=0)
    scan, trusted = scanned(table), scanned(gold)
    judged, of_trusted = judgement(scan, truths), judgement(trusted, gold_truths, seed=1)
    for found in (
        label_noise_of(scan, trusted=trusted, judged=judged, trusted_judged=of_trusted),
        label_noise_of(scan, judged=judged),
    ):
        assert found.noise is not None and found.verdict == CANNOT_TELL and found.noise.in_all.interval.high > 0.1
        assert "where lexical overlap holds" in found.noise.in_all.reason
        (without,) = [rate for rate in found.noise.rates if rate.label == "neutral" and rate.heuristic is None]
        assert without.interval.high < 0.05


def test_two_labels_of_the_file_fold_the_judges_three_and_spellings_do_not_matter() -> None:
    table, truths = pairs(2_000)
    folded = ["Entailment." if label == "entailment" else "not_entailment" for label in table["label"].to_pylist()]
    scan = scanned(table.set_column(2, "label", pa.array(folded)))
    found = label_noise_of(scan, judged=judgement(scan, truths))
    assert found.classes == ("entailment", "non-entailment") and found.verdict == FEW
    numbers = {"entailment": "0", "neutral": "1", "contradiction": "2"}
    numbered = scanned(table.set_column(2, "label", pa.array([numbers[label] for label in table["label"].to_pylist()])))
    unnamed = label_noise_of(numbered, judged=judgement(numbered, truths))
    assert unnamed.verdict == CANNOT_TELL and unnamed.noise is None and "the judge has other labels" in unnamed.reason
    named = {number: label for label, number in numbers.items()}
    assert label_noise_of(numbered, judged=judgement(numbered, truths), named=named).verdict == FEW
    some = {number: label for number, label in named.items() if number != "2"}
    assert "the judge knows no label '2'" in label_noise_of(numbered, judged=judgement(numbered, truths), named=some).reason


def test_without_a_judge_simple_models_learn_from_trusted_rows_or_cannot_tell() -> None:
    (table, truths), (gold, _) = pairs(2_000, 0.2), pairs(2_000, seed=1)
    scan, trusted = scanned(table), scanned(gold)
    own, by_trusted = label_noise_of(scan), label_noise_of(scan, trusted=trusted)
    wrong = np.mean([label != truth for label, truth in zip(table["label"].to_pylist(), truths, strict=True)])
    for found in (own, by_trusted):
        assert found.noise is not None and found.num_judged == 2_000 and found.noise.in_all.num_rows == 2_000
        assert found.noise.in_all.interval.low <= wrong <= found.noise.in_all.interval.high
    assert own.verdict == CANNOT_TELL and "cross-validated" in own.judge
    assert by_trusted.verdict == MANY and "learnt from the trusted rows" in by_trusted.judge
    few = label_noise_of(scanned(table.slice(0, 300)))
    assert (
        suspect_rows(few).num_rows == 0
        and few.verdict == CANNOT_TELL
        and few.noise is None
        and "300 rows are too few" in few.reason
    )
    other = scanned(gold.set_column(2, "label", pa.array(["a", "b"] * 1_000)))
    assert "the labels are" in label_noise_of(scan, trusted=other).reason


def test_a_judges_table_of_another_file_is_refused() -> None:
    table, truths = pairs(50)
    scan = scanned(table)
    judged = judgement(scan, truths)
    elsewhere = judged.set_column(0, "row", pa.array(np.arange(50) + 10_000))
    with pytest.raises(UserError, match="has no row of"):
        label_noise_of(scan, judged=elsewhere)
