"""Which files of a folder are one table, by their names alone."""

import pytest

from pipelines.errors import UserError
from pipelines.tables.splits import files_like, files_of, format_of, split_of, split_path, uncompressed


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("folder:train", ("folder", "train")),
        ("folder/:train+validation", ("folder", "train+validation")),
        ("s3://bucket/folder:dev", ("s3://bucket/folder", "dev")),
        ("hf://datasets/org/name@main:test", ("hf://datasets/org/name@main", "test")),
        ("s3://bucket", ("s3://bucket", "")),
        ("a:b/c.csv", ("a:b/c.csv", "")),
        ("a:", ("a:", "")),
        (":a", (":a", "")),
    ],
)
def test_a_path_may_end_in_a_split(path: str, parts: tuple[str, str]) -> None:
    assert split_path(path) == parts


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("train-00000-of-00002-0a1b2c3d4e5f6a7b.parquet", "train"),
        ("glue-validation-00000-of-00001.arrow", "validation"),
        ("validation_matched-00000-of-00001.parquet", "validation_matched"),
        ("Test.csv", "Test"),
        ("multinli_1.0_dev_matched.jsonl", "dev_matched"),
        ("snli_1.0_train.jsonl.gz", "train"),
        ("train_0.csv", "train"),
        ("train-part-3.csv.zst", "train"),
        ("pool-00000-of-00004.parquet", "pool"),
        ("entailment-00007.parquet", ""),
        ("0000.parquet", ""),
        ("latest.csv", ""),
        ("contest.parquet", ""),
        ("trainers.csv", ""),
    ],
)
def test_a_name_says_of_which_split_it_is(name: str, split: str) -> None:
    assert split_of(name) == split


def test_a_name_says_its_format() -> None:
    names = ("a.Parquet", "a.b/c.csv.GZ", "x.jsonl.zst", "x.parquet.gz", "x", ".gz")
    assert list(map(format_of, names)) == [".parquet", ".csv.gz", ".jsonl.zst", ".gz", "", ""]
    assert list(map(uncompressed, ("a.csv.bz2", "a.csv", "a.b.XZ"))) == ["a.csv", "a.csv", "a.b"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "tsv.gz", "jsonl", "jsonl.zst", "json"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train-00000-of-00002", "train-00001-of-00002"], ["test-00000-of-00001"]),
        (["train-00000-of-00002-0a1b", "train-00001-of-00002-2c3d"], ["test-00000-of-00001-4e5f"]),
        (["data/train-00000-of-00001"], ["data/test-00000-of-00001", "data/validation-00000-of-00001"]),
        (["train"], ["test", "validation"]),
        (["pairs_train_0", "pairs_train_1"], ["pairs_dev_0"]),
        (["train/0000", "train/0001"], ["test/0000"]),
        (["train/any", "train/some"], ["dev/some"]),
        (["default/train/0000"], ["default/validation/0000", "default/test/0000"]),
        (["mine/own_split/0000"], ["mine/another/0000"]),
        (["mnli/train-00000-of-00001"], ["mnli/validation_matched-00000-of-00001"]),
    ],
)
def test_a_split_is_asked_for_and_taken(train: list[str], test: list[str], suffix: str) -> None:
    wanted, others = ([f"{name}.{suffix}" for name in names] for names in (train, test))
    names = ["README.md", ".gitattributes", "dataset_infos.json", *others, *wanted]
    split = "own_split" if "own_split" in train[0] else "train"
    with pytest.raises(UserError, match=r"my/folder has several splits \(.*\); give one of them, as in my/folder:\w+"):
        files_of(names, "my/folder")
    assert files_of(names, "my/folder", split) == wanted
    assert files_of(["README.md", *wanted], "my/folder") == wanted
    with pytest.raises(UserError, match="has no split 'nothing'; it has"):
        files_of(names, "my/folder", "nothing")


def test_several_splits_are_put_together_where_that_is_asked_for() -> None:
    names = [f"{name}.csv" for name in ("train", "validation", "test")]
    assert files_of(names, "f", "train+validation") == ["train.csv", "validation.csv"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no files of a table"),
        (["README.md", "notes.txt", "state_of_things.md"], "has no files of a table"),
        (["train.parquet", "more.parquet"], r"several splits \(train, and files of none \(more.parquet\)\)"),
        (
            ["cola/train/0000.parquet", "mnli/train/0000.parquet"],
            "several folders with tables; give one of them: f/cola, f/mnli",
        ),
        (["en/a.jsonl", "de/a.jsonl"], "several folders with tables; give one of them: f/de, f/en"),
        (["a.csv", "b.tsv"], r"files of several formats \(1 .csv, 1 .tsv\); give those of one, as in f/\*.csv"),
        (["a.csv", "a.csv.gz"], "files of several formats"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "the shard train-00001-of-00003 is missing"),
        (["data/train-00001-of-00002-ab.parquet"], "the shard train-00000-of-00002 is missing"),
        (["a-00000-of-00001.csv", "a-00000-of-00002.csv", "a-00001-of-00002.csv"], "shards of two writings"),
        (["train-00000-of-00001-aa.csv", "train-00000-of-00001-bb.csv"], "shards of two writings"),
    ],
)
def test_a_folder_that_is_not_one_table_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        files_of(names, "f")


def test_a_folder_without_splits_has_none_to_name() -> None:
    names = ["entailment-00000.parquet", "neutral-00000.parquet", "neutral-00001.parquet"]
    assert files_of(names, "f") == names
    with pytest.raises(UserError, match="f has no splits; leave :train out"):
        files_of(names, "f", "train")


def test_what_others_leave_beside_a_table_is_none() -> None:
    left = ["_SUCCESS", ".part.parquet", "cache-0a1b2c.arrow", "dataset_info.json", "eval_results.json", "_tmp/x.parquet"]
    assert files_of([*left, "train.arrow"], "f") == ["train.arrow"]
    assert files_of(["dataset_info.json", "train.json"], "f") == ["train.json"]


def test_shards_may_be_counted_from_one() -> None:
    names = ["part-00001-of-00002.csv", "part-00002-of-00002.csv"]
    assert files_of(names, "f") == names


def test_a_pattern_takes_what_fits_and_no_two_kinds_of_split() -> None:
    names = ["dev_matched.csv", "dev_mismatched.csv", "train.csv", "a-00000-of-00003.csv", "a-00001-of-00003.csv"]
    assert files_like(names, "dev_*.csv", "f") == names[:2]
    assert files_like(names, "a-0000[01]*", "f") == names[3:]
    with pytest.raises(UserError, match="the shard a-00002-of-00003 is missing"):
        files_like(names, "a-*.csv", "f")
    with pytest.raises(UserError, match=r"f/\*.csv has several splits"):
        files_like(names[:3], "*.csv", "f")
    assert files_like(names[:3], "*.csv", "f", "train+dev_matched") == ["dev_matched.csv", "train.csv"]
    with pytest.raises(UserError, match="is a pattern of 0 files"):
        files_like(names, "none*", "f")


def test_of_a_saved_data_set_with_splits_one_is_named() -> None:
    names = ["dataset_dict.json", *(f"{split}/{name}" for split in ("train", "test") for name in ("state.json", "data.arrow"))]
    with pytest.raises(UserError, match=r"f has several splits \(test, train\)"):
        files_of(names, "f")
    assert files_of(names, "f", "test") == ["test/data.arrow", "test/state.json"]
