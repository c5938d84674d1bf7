"""A pool of one's own: what is read, what is left out and kept, what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.own_pool import OwnPoolConfig, prepare_own_pool
from pipelines.data.table_sources import Table
from pipelines.errors import UserError
from pipelines.identity import MARKS, identity, sha256_of
from pipelines.tasks.examples import read_examples
from pipelines.tasks.task import Field, Task
from tests.pipelines.tiny_generator import SENTIMENT

ROWS = [
    {"premise": "A dog ran.", "hypothesis": "It moved.", "label": "entailment"},
    {"premise": "A dog ran.", "hypothesis": " ", "label": "neutral"},
    {"premise": " A dog ran. ", "hypothesis": "It slept.", "label": "contradiction"},
    {"premise": "A cat ran.", "hypothesis": "It ran.", "label": ""},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            lines = [rows[0].keys(), *(row.values() for row in rows)]
            path.write_text("".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_become_a_pool_and_those_that_are_no_examples_are_kept_with_their_reason(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mine{suffix}", ROWS)
    config = OwnPoolConfig(Table(str(path))).with_content()
    assert config.num_by_label == {"entailment": 1, "neutral": 0, "contradiction": 1}
    metrics = prepare_own_pool(config, str(tmp_path / "out"))
    examples = read_examples(tmp_path / "out" / "pool")
    assert examples.select(["id", "premise", "hypothesis", "label"]).to_pylist() == [
        {"id": "pool-000001", "premise": "A dog ran.", "hypothesis": "It moved.", "label": "entailment"},
        {"id": "pool-000003", "premise": "A dog ran.", "hypothesis": "It slept.", "label": "contradiction"},
    ]
    assert set(examples["generator"].to_pylist()) == {sha256_of(path)[:12]}
    rejects = pq.read_table(tmp_path / "out" / "rejects").select(["id", "label", "reason", "text"]).to_pylist()
    assert [(row["id"], row["reason"]) for row in rejects] == [
        ("pool-000002", "blank_hypothesis"), ("pool-000004", "no_label"),
    ]  # fmt: skip
    assert rejects[1]["text"] == "Premise: A cat ran. Hypothesis: It ran."
    assert metrics == {
        "file": f"mine{suffix}", "parsed": 2, "parsed/entailment": 1, "parsed/neutral": 0, "parsed/contradiction": 1,
        "rejected": 2, "rejected/blank_hypothesis": 1, "rejected/no_label": 1, "yield": 0.5,
    }  # fmt: skip
    summary = json.loads((tmp_path / "out" / "yield.json").read_text())
    assert summary["file"] == {"name": f"mine{suffix}", "sha256": sha256_of(path)}
    assert sum(summary["generated"].values()) == 4 == sum(summary["parsed"].values()) + sum(summary["rejected"].values())


def test_a_split_is_named_behind_a_colon_and_minus_one_is_marked(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "test.jsonl", ROWS)
    write(tmp_path / "mine" / "train.jsonl", [ROWS[0], ROWS[0] | {"label": "-1"}])
    config = OwnPoolConfig(Table(f"{tmp_path}/mine:train")).with_content()
    metrics = prepare_own_pool(config, str(tmp_path / "out"))
    assert (config.name, metrics["parsed"], metrics["rejected/no_gold_label"]) == ("mine:train", 1, 1)
    assert metrics[MARKS] == [
        "mine:train: 1 of 2 rows (50%) are labelled '-1', which is taken for 'no label', and are left out; if it is a label, "
        "map it: labels={'-1': '…'}"
    ]
    with pytest.raises(UserError, match="several splits"):
        OwnPoolConfig(Table(f"{tmp_path}/mine")).with_content()


def test_many_labels_that_are_not_the_tasks_are_marked(tmp_path: Path) -> None:
    for num, marks in ((1, None), (2, ["2 rows of mine.csv are left out for labels that are not the task's: 'Neutral' (2)"])):
        path = write(tmp_path / "mine.csv", [ROWS[0]] * 99 + [ROWS[0] | {"label": "Neutral"}] * num)
        config = OwnPoolConfig(Table(str(path))).with_content()
        metrics = prepare_own_pool(config, str(tmp_path / f"out{num}"))
        assert (metrics["parsed"], metrics["rejected/unknown_label"], metrics.get(MARKS)) == (99, num, marks)


def test_columns_and_labels_are_mapped_by_name_for_any_task(tmp_path: Path) -> None:
    path = write(
        tmp_path / "films.csv", [{"review": "Good.", "stars": 1, "key": "a"}, {"review": "Dull.", "stars": 0, "key": "b"}]
    )
    columns = {"sentence": "review", "label": "stars", "id": "key"}
    config = OwnPoolConfig(Table(str(path), columns=columns, labels={"0": "bad", "1": "not bad"}), SENTIMENT).with_content()
    prepare_own_pool(config, str(tmp_path / "out"))
    assert read_examples(tmp_path / "out" / "pool", SENTIMENT).select(["id", "sentence", "label"]).to_pylist() == [
        {"id": "a", "sentence": "Good.", "label": "not bad"},
        {"id": "b", "sentence": "Dull.", "label": "bad"},
    ]


def test_identity_is_the_content_and_the_mapping_and_not_the_place(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", ROWS)
    moved = tmp_path / "elsewhere" / "other_name.csv"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    one, other = (OwnPoolConfig(Table(str(place))).with_content() for place in (path, moved))
    assert identity(one) == identity(other)
    mapped = OwnPoolConfig(Table(str(path), labels={"0": "neutral"})).with_content()
    assert identity(mapped) != identity(one)
    path.write_text(path.read_text() + '"A","B","neutral"\n')
    assert identity(OwnPoolConfig(Table(str(path))).with_content()) != identity(one)
    with pytest.raises(UserError, match=r"mine\.csv has sha256 .* as when the experiment was made; start again"):
        prepare_own_pool(replace(one, table=replace(one.table, path=str(path))), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"premise": "A", "label": "neutral"}], r"no hypothesis column .* it has 'premise', 'label': map it to one of them"),
        ([{"premise": "A", "hypothesis": "B", "label": "maybe"}], r"none of entailment, neutral, contradiction: 'maybe'"),
        ([{"premise": "A", "hypothesis": "", "label": "neutral"}], r"none of its 1 rows is an example of the task nli"),
    ],
)
def test_a_pool_of_other_fields_or_labels_is_refused(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    path = write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(UserError, match=message):
        _ = OwnPoolConfig(Table(str(path))).with_content().num_by_label


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            Table("x.csv", columns={"text": "review"}),
            r"maps 'text', and a pool of the task nli has id, premise, hypothesis, label",
        ),
        (Table("x.csv", labels={"0": "bad"}), r"maps onto 'bad', which is none of entailment"),
    ],
)
def test_a_mapping_of_another_task_is_refused_without_the_file(table: Table, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OwnPoolConfig(table)


def test_a_pool_of_single_texts_keeps_its_rejects(tmp_path: Path) -> None:
    task = Task("mood", ("bad", "good"), (Field("text", "Text:"),), "{text} It is", "A text is {label}")
    path = tmp_path / "pool.csv"
    path.write_text("text,label\nFine,good\nAwful,bad\n,good\nOdd,maybe\n")
    config = OwnPoolConfig(Table(str(path)), task=task).with_content()
    prepare_own_pool(config, str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / "pool")["text"].to_pylist() == ["Fine", "Awful"]
    assert pq.read_table(tmp_path / "out" / "rejects")["text"].to_pylist() == ["Text: ", "Text: Odd"]
