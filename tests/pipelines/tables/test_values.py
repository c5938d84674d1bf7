"""Which values of a label column say that a row has no label."""

import pyarrow as pa
import pytest

from pipelines.tables.values import label_warning, without_label


def test_marks_of_no_label_are_told_apart_and_can_be_kept() -> None:
    labels = pa.array(["-1", "0", "-", None, "-1"], pa.string())
    assert {mark: rows.tolist() for mark, rows in without_label(labels).items()} == {
        "-": [False, False, True, False, False],
        "-1": [True, False, False, False, True],
    }
    assert list(without_label(labels, keep=("-1", "0"))) == ["-"]


@pytest.mark.parametrize(
    ("counts", "num_rows", "warning"),
    [
        ({}, 0, ""),
        ({"-": 185}, 10_000, ""),
        ({"-1": 5}, 100, ""),
        (
            {"-1": 1, "-": 0},
            4,
            "1 of 4 rows (25%) are labelled '-1', which is taken for 'no label', and are left out; if it is a label, name -1",
        ),
        (
            {"-": 30, "-1": 20},
            100,
            "30 of 100 rows (30%) are labelled '-' and 20 of 100 rows (20%) are labelled '-1', which is taken for 'no label', "
            "and are left out; if it is a label, name -",
        ),
    ],
)
def test_a_mark_that_is_frequent_may_be_a_label(counts: dict[str, int], num_rows: int, warning: str) -> None:
    assert label_warning(counts, num_rows, "name {mark}") == warning
