import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.nli import LABELS, NLI, Label


def table(**changes):
    columns = {
        "id": ["a", "b", "c"],
        "premise": ["P a.", "P b.", "P c."],
        "hypothesis": ["H a.", "H b.", "H c."],
        "label": ["entailment", "neutral", "contradiction"],
    }
    return pa.table(columns | changes)


def test_label_order_is_the_heads():
    assert [(label.value, label.index) for label in LABELS] == [
        ("entailment", 0),
        ("neutral", 1),
        ("contradiction", 2),
    ]
    assert Label("neutral").index == 1


@pytest.mark.parametrize(
    ("label", "folded"),
    [
        ("entailment", "entailment"),
        ("neutral", "non-entailment"),
        ("contradiction", "non-entailment"),
        ("non-entailment", "non-entailment"),
    ],
)
def test_folding(label, folded):
    assert NLI.fold(label, Label.ENTAILMENT) == folded


@pytest.mark.parametrize(
    ("label", "folded"),
    [("entailment", "non-neutral"), ("neutral", "neutral"), ("contradiction", "non-neutral")],
)
def test_folding_onto_another_label(label, folded):
    assert NLI.fold(label, Label.NEUTRAL) == folded


def test_folding_an_unknown_label_is_an_error():
    with pytest.raises(UserError, match="'contradictory'"):
        NLI.fold("contradictory", Label.ENTAILMENT)
    with pytest.raises(UserError, match="non-entailment may or may not be of neutral"):
        NLI.fold("non-entailment", Label.NEUTRAL)


@pytest.mark.parametrize("prefix", ["", "file://", "memory:/"])
def test_round_trip_keeps_rows_and_extra_columns(tmp_path, prefix):
    examples = table(shard=pa.array([1, 2, 3], pa.int32()))
    path = f"{prefix}{tmp_path}/deep/examples.parquet"
    write_examples(examples, path)
    assert read_examples(path).equals(examples)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    write_examples(table(id=["d", "e", "f"]), tmp_path / "2.parquet")
    write_examples(table(genre=["x", "y", "z"]), tmp_path / "1.parquet")
    (tmp_path / ".3.parquet.partial").write_bytes(b"half a file")
    found = read_examples(tmp_path)
    assert found["id"].to_pylist() == ["a", "b", "c", "d", "e", "f"]
    assert found["genre"].to_pylist() == ["x", "y", "z", None, None, None]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "examples.parquet"
    write_examples(table(), path)
    with pytest.raises(UserError):
        write_examples(table(label=["entailment", "neutral", "wrong"]), path)
    assert read_examples(path).equals(table())
    assert [entry.name for entry in tmp_path.iterdir()] == ["examples.parquet"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"label": ["entailment", "neutral", "contradictory"]},
            ["row 2", "id c", "'contradictory'", "neutral"],
        ),
        ({"premise": ["P", " \n", "P"]}, ["row 1", "id b", "blank premise"]),
        ({"hypothesis": ["", "H", "H"]}, ["row 0", "blank hypothesis"]),
        ({"hypothesis": ["H", None, "H"]}, ["hypothesis", "1 nulls"]),
        ({"id": ["a", "b", "a"]}, ["3 rows", "2 different ids"]),
        ({"label": [0, 1, 2]}, ["label", "int64"]),
    ],
)
def test_bad_examples_are_named(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        write_examples(table(**changes), tmp_path / "examples.parquet")
    for word in [*words, "examples.parquet"]:
        assert word in str(error.value)


def test_missing_column_is_named(tmp_path):
    with pytest.raises(UserError, match="no column hypothesis"):
        write_examples(table().drop_columns(["hypothesis"]), tmp_path / "examples.parquet")


def test_missing_file_empty_folder_and_truncated_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_examples(tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"no \.parquet files"):
        read_examples(tmp_path)
    path = tmp_path / "examples.parquet"
    write_examples(table(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not readable as Parquet"):
        read_examples(path)
