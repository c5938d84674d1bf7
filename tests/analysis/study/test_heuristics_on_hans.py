"""The page on HANS: its counts by hand on three items, and the committed one up to date."""

from pathlib import Path

import numpy as np
import pytest

from analysis.study.heuristics_on_hans import PARSED, agreement, hans_frame, main, page, probe_frame, yes_counts
from pipelines.data.sources import HANS_COLUMNS
from pipelines.errors import UserError

ROOT = Path(__file__).parents[3]
DATA = (ROOT / ".." / "shared" / "data").resolve()
# label, parse of the premise, premise, hypothesis, heuristic
ITEMS = [
    (
        "non-entailment",
        '(ROOT (S (NP (DT The) (NN "cook)) (VP (VBD saw) (NP (DT the) (NN boy)))))',
        'The "cook saw the boy',
        'The boy saw the "cook',
        "lexical_overlap",
    ),
    (
        "non-entailment",
        "(ROOT (S (NP (NP (DT The) (NN cook)) (VP (VBN sent) (ADVP (RB home)))) (VP (VBD left))))",
        "The cook sent home left",
        "The cook sent home",
        "subsequence",
    ),
    (
        "entailment",
        "(ROOT (S (NP (PRP We)) (VP (VBD knew) (SBAR (IN that) (S (NP (NNS boys)) (VP (VBD left)))))))",
        "We knew that boys left",
        "Boys left",
        "constituent",
    ),
]


def write_hans(folder: Path) -> str:
    lines = ["\t".join(HANS_COLUMNS)]
    for label, parse, premise, hypothesis, heuristic in ITEMS:
        lines.append("\t".join([label, "", "", parse, "", premise, hypothesis, "ex0", heuristic, f"some_{heuristic}", "temp1"]))
    (folder / "heuristics_evaluation_set.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_yeses_are_counted_by_heuristic_and_label(tmp_path: Path) -> None:
    predicates = ["lexical_overlap", "subsequence", "constituent", PARSED]
    counts = yes_counts(hans_frame(write_hans(tmp_path)), ("heuristic", "gold_label"), predicates)
    assert counts.to_numpy().tolist() == [
        ["lexical_overlap", "non-entailment", 1, 1, 0, 0, 0],
        # A reduced relative clause: a subtree of the parse, not a clause.
        ["subsequence", "non-entailment", 1, 1, 1, 0, 1],
        ["constituent", "entailment", 1, 1, 1, 1, 1],
    ]


def test_agreement_by_hand() -> None:
    found = agreement(np.array([True, True, False, False]), np.array([True, False, False, False]))
    # Observed 3/4, by chance 1/2 × 1/4 + 1/2 × 3/4 = 1/2: kappa (3/4 - 1/2) / (1/2).
    assert found == {"n": 4, "both": 1, "only_said": 1, "only_so": 0, "neither": 2, "kappa": 0.5}
    assert np.isnan(agreement(np.array([True]), np.array([True]))["kappa"])
    with pytest.raises(ValueError, match="no rows"):
        agreement(np.array([], dtype=bool), np.array([], dtype=bool))


def test_the_page_is_written(tmp_path: Path) -> None:
    main([write_hans(tmp_path), str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    assert "| subsequence | non-entailment | 1 | 1 | 1 | 0 | 1 |" in text
    assert "| likely, against HANS's parses | 3 | 1 | 0 | 1 | 1 | 0.400 |" in text


def test_a_folder_without_hans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no heuristics_evaluation_set"):
        hans_frame(str(tmp_path))
    (tmp_path / "heuristics_evaluation_set.txt").write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match="header is not HANS's"):
        hans_frame(str(tmp_path))


def test_the_committed_page_is_what_the_command_writes() -> None:
    if not DATA.is_dir():
        pytest.skip(f"HANS is not at {DATA}")
    assert (ROOT / "docs" / "heuristics.md").read_text() == page(hans_frame(str(DATA)), probe_frame())
