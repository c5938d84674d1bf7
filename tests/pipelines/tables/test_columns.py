"""Which column is which, where several tables are read by the same names."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from pipelines.errors import UserError
from pipelines.tables.columns import Wanted, check_given


@dataclass(frozen=True)
class Opened:
    path: str
    present: Sequence[str]
    columns: dict[str, str] = field(default_factory=dict)


def test_a_given_column_may_be_in_one_table_alone() -> None:
    tables = [Opened("a.csv", ["premise", "gold"]), Opened("b.csv", ["premise", "label"])]
    check_given({"label": "gold", "premise": "premise", "parse": None}, tables)
    check_given({}, tables)


def test_a_given_column_that_no_table_has_is_refused() -> None:
    tables = [Opened("a.csv", ["premise", "annotator_label"]), Opened("b.csv", ["premise", "label"])]
    with pytest.raises(UserError) as error:
        check_given({"premise": None, "label": "anotator_label"}, tables)
    assert str(error.value) == (
        "--label anotator_label: no file has that column, did you mean 'annotator_label'?; a.csv has 'premise', "
        "'annotator_label'; b.csv has 'premise', 'label': name one of them, or leave --label out"
    )
    with pytest.raises(UserError, match=r"--parse trees: no file has that column; a.csv has"):
        check_given({"parse": "trees"}, tables)


@pytest.mark.parametrize(
    ("wanted", "present", "found"),
    [
        (Wanted("label"), ["Text", "Label"], "Label"),
        (Wanted("label"), ["LABEL", "labels"], "labels"),
        (Wanted("text"), ["Sentence", "CONTENT"], "Sentence"),
        (Wanted("review"), ["Review"], "Review"),
        # Two that differ in case only, one that need not be there, one that is given and strict: nothing stands in.
        (Wanted("label"), ["LABEL", "Label"], None),
        (Wanted("id", is_optional=True), ["ID"], None),
        (Wanted("label", "gold", is_strict=True), ["Gold", "Label"], None),
        (Wanted("label", "gold"), ["Gold", "Label"], "Label"),
    ],
)
def test_usual_names_are_found_in_any_case(wanted: Wanted, present: list[str], found: str | None) -> None:
    assert wanted.find(present) == found
