"""Accuracy where a heuristic holds, counted by hand."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.evaluation import EvaluationConfig, accuracy_rows, where_held
from pipelines.examples import Label
from pipelines.heuristics import HEURISTICS, LEXICAL_OVERLAP, Heuristic

ROWS = [
    # premise, hypothesis, label, predicted
    ("the doctor left", "the doctor left", "entailment", 0),
    ("the doctor left", "doctor", "entailment", 2),
    ("the doctor left", "left", "neutral", 0),
    ("the doctor left", "the doctor", "contradiction", 1),
    ("the doctor left", "nobody left", "contradiction", 0),
]
NOBODY = Heuristic("nobody", lambda p, h: np.array(["nobody" in text for text in h]), predicts=Label.CONTRADICTION)


def slices(labels, heuristics):
    columns = {name: [row[number] for row in ROWS] for number, name in enumerate(("premise", "hypothesis"))}
    logits = np.eye(3)[[row[3] for row in ROWS]]
    table = pa.table({**columns, "label": labels})
    rows = accuracy_rows("some", table, logits, where_held(table, heuristics))
    return {row["slice"]: (row["num_correct"], row["num_examples"]) for row in rows if row["slice"].startswith("holds/")}


def test_a_heuristic_has_slices_where_it_holds_in_any_set():
    assert slices([row[2] for row in ROWS], (LEXICAL_OVERLAP, NOBODY)) == {
        "holds/lexical_overlap": (2, 4),
        "holds/lexical_overlap/entailment": (1, 2),
        # A contradiction taken for neutral is right: neither is an entailment.
        "holds/lexical_overlap/non-entailment": (1, 2),
        "holds/nobody": (0, 1),
        "holds/nobody/contradiction": (0, 1),
    }


def test_two_labels_do_not_tell_a_contradiction():
    folded = ["entailment", "entailment", "non-entailment", "non-entailment", "non-entailment"]
    assert set(slices(folded, (LEXICAL_OVERLAP, NOBODY))) == {
        "holds/lexical_overlap",
        "holds/lexical_overlap/entailment",
        "holds/lexical_overlap/non-entailment",
    }


def test_two_heuristics_of_one_name_are_refused():
    with pytest.raises(UserError, match="nobody, nobody"):
        EvaluationConfig(("some",), heuristics=(NOBODY, dataclasses.replace(NOBODY, version=2)))


def test_the_slice_that_goes_against_a_heuristic():
    assert HEURISTICS["subsequence"].blindspot_slice == "subsequence/non-entailment"
    assert NOBODY.blindspot_slice == "holds/nobody/non-contradiction"
