"""A study's own tables: what is read, what is left out and why, and what is refused before anything is built."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.sources import nli_sources_config
from pipelines.data.table_sources import Table, TableSources, read_set
from pipelines.errors import UserError
from pipelines.identity import MARKS, UNKNOWN, identity
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Field, Task
from pipelines.tasks.test_sets import TestSet

SHARED = Path(__file__).parents[4] / "shared" / "data"
SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "positive"),
    fields=(Field("sentence", "Sentence:"),),
    classifier_prompt="Is it good? {sentence} It is",
    generator_prompt="Of the sentiment {label}",
)
NUMBERED = {"0": "negative", "1": "positive"}


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def sentences(folder: Path, num: int = 40, name: str = "train.csv") -> str:
    """A CSV of as many rows of each label, which is a number."""
    rows = [f"{name} sentence {number},{number % 2}" for number in range(2 * num)]
    return write(folder / name, "\n".join(["sentence,label", *rows, ""]))


def sources(folder: Path, **changes: Any) -> TableSources:
    values: dict[str, Any] = {"task": SENTIMENT, **changes}
    if "train" not in changes:
        values["train"] = Table(sentences(folder), labels=NUMBERED)
    if "general" not in changes:
        values["general"] = Table(sentences(folder, 5, "test.csv"), labels=NUMBERED)
    return TableSources(**values)


def prepared(sources: TableSources, output: Path, folder: str = "") -> dict[str, Any]:
    return sources.prepare(str(output), folder=folder)


def rows_of(output: Path, name: str, task: Task = SENTIMENT) -> list[dict[str, Any]]:
    return read_examples(output / f"{name}.parquet", task).to_pylist()


def test_sets_are_written_with_stable_ids_and_counts(tmp_path: Path) -> None:
    metrics = prepared(sources(tmp_path), tmp_path / "out")
    assert metrics == {
        "train/num_examples": 72, "train/negative": 36, "train/positive": 36,
        "dev/num_examples": 8, "dev/negative": 4, "dev/positive": 4,
        "test/num_examples": 10, "test/negative": 5, "test/positive": 5,
        "dropped/num_rows": 0,
    }  # fmt: skip
    train, dev = rows_of(tmp_path / "out", "train"), rows_of(tmp_path / "out", "dev")
    for row in (*train, *dev):
        number = int(row["id"].removeprefix("train-")) - 1
        assert row == {
            "id": f"train-{number + 1:06d}",
            "sentence": f"train.csv sentence {number}",
            "label": SENTIMENT.labels[number % 2],
        }
    assert len({row["id"] for row in (*train, *dev)}) == 80
    assert rows_of(tmp_path / "out", "test")[0]["id"] == "test-000001"


def test_the_dev_rows_are_drawn_by_their_texts_wherever_they_stand(tmp_path: Path) -> None:
    path = Path(sentences(tmp_path))
    prepared(sources(tmp_path), tmp_path / "a")
    header, *rows = path.read_text().splitlines()
    turned = Table(write(tmp_path / "turned.csv", "\n".join([header, *reversed(rows), ""])), labels=NUMBERED)
    prepared(sources(tmp_path, train=turned), tmp_path / "b")
    first, second = ({row["sentence"] for row in rows_of(tmp_path / name, "dev")} for name in "ab")
    assert first == second and first != {f"train.csv sentence {number}" for number in range(8)}
    asked = prepared(sources(tmp_path, dev_rows_per_label=39), tmp_path / "c")
    assert (asked["dev/negative"], asked["train/negative"]) == (39, 1)
    with pytest.raises(UserError, match="40 usable rows labelled negative, and dev_rows_per_label=40 leaves none"):
        prepared(sources(tmp_path, dev_rows_per_label=40), tmp_path / "d")


def test_a_row_that_does_not_fit_is_counted_kept_and_named(tmp_path: Path) -> None:
    good = [f"sentence {number},{number % 2}" for number in range(20)]
    bad = ["  ,1", "no label,", "nobody agreed,-", "other,7", "one cell", "three,1,1", "sentence 0,0", "both,0", "both,1"]
    path = write(tmp_path / "train.csv", "\n".join(["sentence,label", *bad, *good, ""]))
    metrics = prepared(sources(tmp_path, train=Table(path, labels=NUMBERED)), tmp_path / "out")
    assert {name: count for name, count in metrics.items() if name.startswith("dropped/")} == {
        "dropped/train/blank_sentence": 1,
        "dropped/train/no_label": 1,
        "dropped/train/no_gold_label": 1,
        "dropped/train/unknown_label": 1,
        "dropped/train/wrong_number_of_cells": 2,
        "dropped/train/duplicate": 1,
        "dropped/train/conflicting_labels": 2,
        "dropped/num_rows": 9,
    }
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert [(row["row"], row["reason"], row["sentence"], row["label"], row["raw"]) for row in dropped] == [
        (1, "blank_sentence", "", "1", None),
        (2, "no_label", "no label", "", None),
        (3, "no_gold_label", "nobody agreed", "-", None),
        (4, "unknown_label", "other", "7", None),
        (5, "wrong_number_of_cells", None, None, "one cell"),
        (6, "wrong_number_of_cells", None, None, "three,1,1"),
        (8, "conflicting_labels", "both", "negative", None),
        (9, "conflicting_labels", "both", "positive", None),
        (10, "duplicate", "sentence 0", "negative", None),
    ]
    assert {(row["set"], row["file"]) for row in dropped} == {("train", "train.csv")}
    # The rows after malformed ones keep the numbers that they have in the file.
    there = {row["id"]: row["sentence"] for name in ("train", "dev") for row in rows_of(tmp_path / "out", name)}
    assert there["train-000007"] == "sentence 0" and there["train-000029"] == "sentence 19"
    assert len(there) == 20


def test_a_mapping_that_does_not_fit_is_refused_with_the_values(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"80 of 80 rows have labels that are none of negative, positive: '0' \(40\), '1' \(40\)"
    ):
        prepared(sources(tmp_path, train=sentences(tmp_path)), tmp_path / "out")
    half = Table(sentences(tmp_path), labels={"0": "negative"})
    with pytest.raises(
        UserError, match=r"0 usable rows labelled positive \(left out: 40 unknown_label '1'\); give at least two"
    ):
        prepared(sources(tmp_path, train=half), tmp_path / "out")
    with pytest.raises(UserError, match="0 usable rows labelled positive"):
        prepared(
            sources(tmp_path, train=Table(sentences(tmp_path), labels={"0": "negative", "1": "negative"})), tmp_path / "out"
        )


def test_texts_of_a_test_set_in_the_training_table_are_counted_and_marked(tmp_path: Path) -> None:
    text = Path(sentences(tmp_path)).read_text()
    leak = write(tmp_path / "leak.csv", text.splitlines()[0] + "\n" + "\n".join(text.splitlines()[1:4]) + "\nnew,1\n")
    metrics = prepared(sources(tmp_path, general=leak), tmp_path / "out")
    assert metrics["train/also_in_leak"] == 3 and metrics["train/num_examples"] == 72
    assert metrics[MARKS] == ["3 of 4 texts of leak are in the training data, too"]


def test_many_unknown_labels_are_a_mark_and_few_are_not(tmp_path: Path) -> None:
    few = write(tmp_path / "few.csv", "sentence,label\n" + "".join(f"s{n},1\n" for n in range(99)) + "x,7\n")
    many = write(tmp_path / "many.csv", "sentence,label\n" + "".join(f"s{n},1\n" for n in range(9)) + "x,7\ny,0.5\nz,7\n")
    tests = [Table(path, labels=NUMBERED) for path in (few, many)]
    metrics = prepared(sources(tmp_path, general=tests), tmp_path / "out")
    assert (metrics["dropped/few/unknown_label"], metrics["dropped/many/unknown_label"]) == (1, 3)
    assert metrics[MARKS] == ["3 rows of many are left out for labels that are not the task's: '7' (2), '0.5' (1)"]


def test_minus_one_is_no_label_and_marked_where_it_is_frequent(tmp_path: Path) -> None:
    few = write(tmp_path / "few.csv", "sentence,label\n" + "".join(f"s{n},1\n" for n in range(98)) + "x,-1\ny,-\n")
    many = write(tmp_path / "many.csv", "sentence,label\n" + "".join(f"s{n},1\n" for n in range(8)) + "x,-1\ny,-1\n")
    tests = [Table(path, labels=NUMBERED) for path in (few, many)]
    metrics = prepared(sources(tmp_path, general=tests), tmp_path / "out")
    assert (metrics["dropped/few/no_gold_label"], metrics["dropped/many/no_gold_label"]) == (2, 2)
    assert metrics[MARKS] == [
        "many: 2 of 10 rows (20%) are labelled '-1', which is taken for 'no label', and are left out; if it is a label, "
        "map it: labels={'-1': '…'}"
    ]
    mapped = Table(many, labels={"-1": "negative", "1": "positive"})
    metrics = prepared(sources(tmp_path, general=mapped), tmp_path / "mapped")
    assert (metrics["many/negative"], MARKS in metrics) == (2, False)


def test_a_split_of_a_folder_is_named_behind_a_colon(tmp_path: Path) -> None:
    for split, num in (("train", 40), ("test", 5)):
        sentences(tmp_path / "data", num, f"{split}.csv")
    train, test = (Table(f"data:{split}", labels=NUMBERED) for split in ("train", "test"))
    there = sources(tmp_path, train=train, general=test)
    assert there.missing(str(tmp_path)) == () and there.set_names == ("data_test", "dev")
    metrics = prepared(there, tmp_path / "out", str(tmp_path))
    assert (metrics["train/num_examples"], metrics["data_test/num_examples"]) == (72, 10)
    alone = sources(tmp_path, train=Table("data/train.csv", labels=NUMBERED), general=test)
    assert identity(there.with_content(str(tmp_path))) == identity(alone.with_content(str(tmp_path)))
    with pytest.raises(UserError, match=r"several splits \(test, train\); give one of them, as in .*/data:train"):
        sources(tmp_path, train=Table("data", labels=NUMBERED)).with_content(str(tmp_path))


def test_a_training_file_may_have_any_name_and_a_test_file_is_given_one(tmp_path: Path) -> None:
    train = Table(sentences(tmp_path, name="Daten größe 1.csv"), labels=NUMBERED)
    of_folder = sources(tmp_path, train=train).for_task(SENTIMENT)
    assert of_folder.set_names == ("test", "dev")
    assert prepared(of_folder, tmp_path / "out")["train/num_examples"] == 72
    test = Table(sentences(tmp_path, 5, "prüfung.csv"), labels=NUMBERED)
    with pytest.raises(UserError, match=r"prüfung\.csv: a test set without a name.*'prüfung'.*Table\(…, test_set='name'\)"):
        sources(tmp_path, train=train, general=test)
    assert sources(tmp_path, train=train, general=replace(test, test_set="exam")).set_names == ("exam", "dev")


def test_a_described_set_has_its_slices_clusters_and_folded_labels(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": "a", "says": "b", "gold": "yes", "trick": "overlap", "frame": 3}),
        json.dumps({"text": "c", "says": "d", "gold": "no", "trick": None, "frame": None}),
        json.dumps({"text": "e", "says": "f", "gold": "neutral", "trick": " ", "frame": 3}),
    ]
    described = TestSet(
        "tricks",
        folded_onto="entailment",
        slices=("trick",),
        cluster="pattern",
        aligned="trick/overlap/entailment",
        adversarial="trick/overlap",
    )
    table = Table(
        write(tmp_path / "tricks.jsonl", "\n".join(lines)),
        columns={"premise": "text", "hypothesis": "says", "label": "gold", "pattern": "frame"},
        labels={"yes": "entailment", "no": "non-entailment"},
        test_set=described,
    )
    rows = "".join(f"p{n}\th{n}\t{label}\n" for label in NLI.labels for n in (label, label + "2"))
    train = write(tmp_path / "train.tsv", "sentence1\tsentence2\tgold_label\n" + rows)
    prepared(TableSources(train, blindspots=table), tmp_path / "out")
    assert rows_of(tmp_path / "out", "tricks", NLI) == [
        {"id": "tricks-000001", "premise": "a", "hypothesis": "b", "label": "entailment", "trick": "overlap", "pattern": "3"},
        {
            "id": "tricks-000002", "premise": "c", "hypothesis": "d", "label": "non-entailment", "trick": None,
            "pattern": "tricks-000002",
        },
        {"id": "tricks-000003", "premise": "e", "hypothesis": "f", "label": "non-entailment", "trick": None, "pattern": "3"},
    ]  # fmt: skip
    without = [json.dumps({**json.loads(line), "trick": None}) for line in lines]
    empty = write(tmp_path / "empty.jsonl", "\n".join(without))
    with pytest.raises(UserError, match=r"the slice column 'trick' of .*empty.jsonl is empty in every row"):
        prepared(TableSources(train, blindspots=replace(table, path=str(empty))), tmp_path / "out")
    none = replace(table, test_set=replace(described, adversarial="trick/negation"))
    with pytest.raises(
        UserError, match=r"no row of .*tricks.jsonl is in adversarial='trick/negation'; there are trick/overlap"
    ):
        prepared(TableSources(train, blindspots=none), tmp_path / "out")


def test_ids_of_the_file_are_kept_and_have_to_be_unique(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "sentence,label,key\n" + "".join(f"s{n},{n % 2},k{n}\n" for n in range(8)))
    table = Table(train, columns={"id": "key"}, labels=NUMBERED)
    prepared(sources(tmp_path, train=table), tmp_path / "out")
    found = {row["id"]: row["sentence"] for name in ("train", "dev") for row in rows_of(tmp_path / "out", name)}
    assert found == {f"k{n}": f"s{n}" for n in range(8)}
    # The test set has no such column, and is numbered.
    assert rows_of(tmp_path / "out", "test")[0]["id"] == "test-000001"
    write(tmp_path / "train.csv", "sentence,label,key\n" + "".join(f"s{n},{n % 2},k\n" for n in range(8)))
    with pytest.raises(UserError, match="8 rows of id 'k' in the column 'key'; ids are unique"):
        prepared(sources(tmp_path, train=table), tmp_path / "out")


def test_test_sets_take_the_training_tables_mapping_where_they_have_none(tmp_path: Path) -> None:
    train = Table(
        write(tmp_path / "train.csv", "phrase,mood\n" + "".join(f"s{n},{n % 2}\n" for n in range(8))),
        columns={"sentence": "phrase", "label": "mood"},
        labels=NUMBERED,
    )
    same = write(tmp_path / "same.csv", "phrase,mood\nx,1\n")
    other = Table(
        write(tmp_path / "other.csv", "phrase,verdict\nx,good\n"), columns={"label": "verdict"}, labels={"good": "positive"}
    )
    metrics = prepared(sources(tmp_path, train=train, general=same, blindspots=other), tmp_path / "out")
    assert (metrics["same/positive"], metrics["other/positive"]) == (1, 1)


def test_identity_is_content_and_mapping_and_no_path(tmp_path: Path) -> None:
    one, here = sources(tmp_path / "one").with_content(""), Table("test.csv", labels=NUMBERED)
    assert UNKNOWN not in json.dumps(identity(one))
    assert identity(one) == identity(sources(tmp_path / "other").with_content(""))
    assert identity(sources(tmp_path / "other").with_content("")) == identity(
        sources(tmp_path, train=Table("train.csv", labels=NUMBERED), general=here).with_content(str(tmp_path / "other"))
    )
    (tmp_path / "other" / "test.csv").write_text("sentence,label\nchanged,1\n")
    described = Table(f"{tmp_path}/one/test.csv", test_set=TestSet("test", slices=("label",)))
    for changed in (
        sources(tmp_path / "one", train=Table(f"{tmp_path}/one/train.csv", labels={"1": "negative", "0": "positive"})),
        sources(tmp_path / "one", general=Table(f"{tmp_path}/one/test.csv", test_set="another")),
        sources(tmp_path / "one", general=described),
        sources(tmp_path / "one", general=f"{tmp_path}/other/test.csv"),
        sources(tmp_path / "one", dev_rows_per_label=3),
    ):
        assert identity(changed.with_content("")) != identity(one)
    # How a set is scored and called is no matter of the data.
    titled = replace(described, test_set=TestSet("test", slices=("label",), adversarial="label/positive", title="Mine"))
    assert identity(sources(tmp_path / "one", general=described)) == identity(sources(tmp_path / "one", general=titled))


def test_only_blindspot_sets_are_for_evaluations_alone(tmp_path: Path) -> None:
    one = sources(tmp_path, blindspots=Table(sentences(tmp_path, 5, "test.csv"), test_set="spot"))
    assert one.set_names == ("test", "spot", "dev")
    assert one.for_training == sources(tmp_path)
    alone = sources(tmp_path, general=(), blindspots="test.csv")
    assert alone.for_training == alone


def test_content_that_changed_since_is_refused(tmp_path: Path) -> None:
    found = sources(tmp_path).with_content("")
    assert found.with_content("") is found
    (tmp_path / "train.csv").write_text("sentence,label\nx,1\ny,0\n")
    with pytest.raises(UserError, match=r"train.csv has sha256 .* not .* as when the experiment was made"):
        prepared(found, tmp_path / "out")


def test_what_is_missing_is_named_and_no_error_yet(tmp_path: Path) -> None:
    absent = sources(tmp_path, train="nowhere.csv", general=sentences(tmp_path, 5, "test.csv"))
    assert absent.missing("data") == (f"not found at {Path('data/nowhere.csv').absolute()}",)
    with pytest.raises(UserError, match=r"nowhere.csv does not exist"):
        absent.with_content("data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general": ()}, "no test set"),
        ({"blindspots": "b/test.csv"}, "'test' is also the name of another; give each its own"),
        ({"general": Table("x.csv", test_set="train")}, "'train' is also the name of prepared data"),
        (
            {"general": Table("x.csv", columns={"sentnce": "a"})},
            "maps 'sentnce', and what is looked for is id, label, sentence",
        ),
        ({"general": Table("x.csv", labels={"0": "bad"})}, "maps onto 'bad', which is none of negative, positive"),
        ({"general": Table("x.csv", test_set=TestSet("x", folded_onto="bad"))}, "folded_onto='bad' is none of negative"),
        (
            {"general": Table("x.csv", test_set=TestSet("x", slices=("kind",), adversarial="kind/a", predicts="bad"))},
            "predicts='bad' is none of negative",
        ),
        ({"dev_rows_per_label": 0}, "dev_rows_per_label=0"),
        ({"general": Path("x.csv")}, "is no table of examples; give the file's path as a text"),
        ({"train": None}, "None is no table of examples"),
    ],
)
def test_what_cannot_be_is_refused_without_a_file(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"train": "train.csv", "general": "test.csv", "task": SENTIMENT}
    with pytest.raises(UserError, match=re.escape(message)):
        TableSources(**values | changes).for_task(SENTIMENT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": Path("x.csv")}, "give its path as a text"),
        ({"columns": ["sentence"]}, "columns=['sentence'] maps nothing"),
        ({"labels": "positive"}, "labels='positive' maps nothing"),
        ({"test_set": 5}, "test_set=5 is neither a name nor a TestSet"),
    ],
)
def test_a_table_of_other_types_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Table(**{"path": "x.csv"} | wrong)


def test_a_column_alone_is_no_tuple_of_slices() -> None:
    with pytest.raises(UserError, match=r"slices='kind'\): give a tuple, .* such as \('kind',\)"):
        TestSet("x", slices="kind")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("described", "columns", "message"),
    [
        (TestSet("x", slices=("kind",)), {}, r"no kind column \(kind\); it has 'sentence', 'label'"),
        (TestSet("x", cluster="frame"), {"frame": "pattern"}, r"no frame column \('pattern'\)"),
        (TestSet("x"), {"id": "key"}, r"no id column \('key'\)"),
        (TestSet("x"), {"label": "gold"}, r"no label column \('gold'\); it has 'sentence', 'label': map it to one of them"),
    ],
)
def test_a_column_that_is_missing_is_named_before_rows_are_read(
    tmp_path: Path, described: TestSet, columns: dict[str, str], message: str
) -> None:
    table = Table(sentences(tmp_path, 5, "x.csv"), columns=columns, test_set=described)
    with pytest.raises(UserError, match=message):
        sources(tmp_path, general=table).with_content("")


def test_a_task_is_given_once(tmp_path: Path) -> None:
    without = sources(tmp_path, task=NLI, train="t.csv")
    assert without.for_task(SENTIMENT).task == SENTIMENT
    with pytest.raises(UserError, match="the sources are of the task 'sentiment', and the experiment's is 'nli'"):
        sources(tmp_path).for_task(NLI)


def test_numbers_and_class_names_of_parquet_are_mapped_by_either(tmp_path: Path) -> None:
    table = pa.table({"sentence": [f"s{n}" for n in range(8)], "label": [n % 2 for n in range(8)]})
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "numbers.parquet")
    pq.write_table(named, tmp_path / "names.parquet")
    for path, labels in (("numbers", NUMBERED), ("names", {"bad": "negative", "good": "positive"})):
        read = read_set(sources(tmp_path), Table(f"{tmp_path}/{path}.parquet", labels=labels))
        assert read.examples["label"].to_pylist() == ["negative", "positive"] * 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs MultiNLI and HANS")
def test_multinli_as_tables_is_what_its_own_reader_makes_of_it(tmp_path: Path) -> None:
    nli_sources_config(str(SHARED)).prepare(str(tmp_path / "own"), folder=str(SHARED))
    tables = TableSources(
        "multinli/multinli_1.0_train.jsonl",
        general=Table("multinli/multinli_1.0_dev_matched.jsonl", test_set="mnli_matched"),
        blindspots=Table(
            "hans/heuristics_evaluation_set.txt",
            test_set=TestSet("hans", folded_onto="entailment", slices=("heuristic",), cluster="template"),
        ),
    )
    metrics = prepared(tables, tmp_path / "tables", str(SHARED))

    def texts(folder: str, *names: str) -> list[tuple[str, ...]]:
        rows = [row for name in names for row in rows_of(tmp_path / folder, name, NLI)]
        return sorted(
            (row["id"].split("-")[-1], row["premise"].strip(), row["hypothesis"].strip(), row["label"]) for row in rows
        )

    assert texts("own", "mnli_matched") == texts("tables", "mnli_matched")
    assert [row[1:] for row in texts("own", "hans")] == [row[1:] for row in texts("tables", "hans")]
    # That reader drops every copy, this one all but the first; it also drops a row that is too long for one.
    own, ours = texts("own", "train", "dev"), texts("tables", "train", "dev")
    assert set(own) <= set(ours) and len(ours) - len(own) <= 1 + metrics.get("dropped/train/duplicate", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'sentence,label\n"never closed,0\nx,1\ny,0\n',
            "x.csv: line 2 has a quotation mark that is not closed up to line 4; close it, or, if it is text, write it twice",
        ),
        ("sentence,label\na, b,0\nc, d,1\n", "none of its 2 rows has as many cells as the header, 2: row 1 has 3"),
        ("sentence,label\n", "has no rows"),
    ],
)
def test_a_file_whose_rows_are_no_rows_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        sources(tmp_path, general=str(tmp_path / "x.csv")).counts("")


def test_a_half_where_the_heuristic_is_right_is_not_adversarial(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("sentence,label,kind\na,0,plain\nb,1,odd\nc,1,odd\n")
    for half, predicts, is_refused in (("kind/odd", "positive", True), ("kind/odd", "negative", False)):
        described = TestSet("x", slices=("kind",), adversarial=half, predicts=predicts)
        asked = sources(tmp_path, general=Table(str(tmp_path / "x.csv"), test_set=described))
        if is_refused:
            with pytest.raises(UserError, match="in adversarial='kind/odd' is labelled positive, which the heuristic predicts"):
                asked.counts("")
        else:
            assert asked.counts("")["x/num_examples"] == 3


def test_lines_may_end_in_carriage_returns_alone(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"sentence,label\rone,0\rtwo,1\r")
    counts = sources(tmp_path, general=Table(str(tmp_path / "x.csv"))).counts("")
    assert counts["x/num_examples"] == 2
