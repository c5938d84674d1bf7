"""Which values of a label column say that a row has no label."""

import pytest

from pipelines.tables.labels import label_warning


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
