"""Accuracy where a heuristic holds, counted by hand."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig, logits_table
from pipelines.evaluate.scoring import accuracy_rows, is_right, where_held
from pipelines.tasks.heuristics import HEURISTICS, LEXICAL_OVERLAP, Heuristic
from pipelines.tasks.nli import NLI, Label

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


def examples(labels):
    columns = {name: [row[number] for row in ROWS] for number, name in enumerate(("premise", "hypothesis"))}
    return pa.table({"id": [f"i{number}" for number in range(len(ROWS))], **columns, "label": labels})


def test_the_logits_keep_where_each_heuristic_holds():
    heuristics, logits = (LEXICAL_OVERLAP, NOBODY), np.zeros((len(ROWS), 3), dtype=np.float32)
    config = EvaluationConfig(("some",), heuristics=heuristics)
    three = examples([row[2] for row in ROWS])
    folded = examples(["entailment", "entailment", "non-entailment", "non-entailment", "non-entailment"])
    tables = [logits_table(config, "some", table, logits, where_held(table, heuristics)) for table in (three, folded)]
    assert tables[0]["holds/lexical_overlap"].to_pylist() == [True, True, True, True, False]
    assert tables[0]["holds/nobody"].to_pylist() == [False, False, False, False, True]
    # Two labels do not tell a contradiction, so it is not asked there.
    assert tables[1]["holds/nobody"].to_pylist() == [None] * 5
    assert pa.concat_tables(tables).num_rows == 10
    plain = logits_table(EvaluationConfig(("some",)), "some", three, logits)
    assert not any(name.startswith("holds/") for name in plain.column_names)


def test_what_is_asked_decides_what_is_right():
    predicted, labels = np.array([row[3] for row in ROWS]), np.array([row[2] for row in ROWS])
    assert is_right(predicted, labels, NLI).tolist() == [True, False, False, False, False]
    assert is_right(predicted, labels, NLI, Label.ENTAILMENT).tolist() == [True, False, False, True, False]
    assert is_right(predicted, labels, NLI, Label.CONTRADICTION).tolist() == [True, False, True, False, False]
