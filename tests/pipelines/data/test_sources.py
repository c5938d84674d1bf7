import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.data import sources
from pipelines.data.sources import (
    DEV_ROWS_PER_LABEL,
    FILES,
    HANS_COLUMNS,
    HANS_FILE,
    MATCHED_FILE,
    NUM_DUPLICATE_ROWS,
    NUM_LABELLED_ROWS,
    NUM_TRAINING_ROWS,
    TRAIN_FILE,
    NLISourcesConfig,
    nli_sources_config,
    prepare_nli_sources,
)
from pipelines.errors import UserError
from pipelines.identity import identity
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import NLI

SHARED = (Path(__file__).parents[3] / ".." / "shared" / "data").resolve()

# (label, premise, hypothesis), in file order; the line number is the index plus one.
TRAIN = [
    ("entailment", "A one.", "B one."),
    ("-", "No agreement.", "On this."),
    ("neutral", "Twice.", "The same."),
    ("entailment", "A two.", "B two."),
    ("contradiction", "Twice.", "The same."),
    ("neutral", "A three.", "B three."),
    ("contradiction", "A four.", "B four."),
    ("contradiction", "A five.", "B five."),
    ("neutral", "A six.", "B six."),
    ("neutral", "Twice.", "The same. "),
    ("entailment", "A seven.", "B seven."),
]
HANS = [
    ("non-entailment", "The a saw the b .", "The b saw the a .", "lexical_overlap"),
    ("entailment", "The a and the b slept .", "The b slept .", "subsequence"),
    ("entailment", "The a slept and the b left .", "The a slept .", "constituent"),
]


def multinli_line(label, premise, hypothesis, number):
    return json.dumps(
        {
            "gold_label": label,
            "sentence1": premise,
            "sentence2": hypothesis,
            "pairID": f"p{number}",
            "genre": "fiction",
        }
    )


def hans_line(label, premise, hypothesis, heuristic, number):
    return "\t".join([label, "", "", "", "", premise, hypothesis, f"ex{number}", heuristic, "ln_some", "temp1"])


@pytest.fixture
def folder(tmp_path):
    """A folder as the downloads leave it: MultiNLI in its own folder, HANS beside it."""
    folder = tmp_path / "data"
    (folder / "multinli_1.0").mkdir(parents=True)
    for name in FILES[:3]:
        rows = TRAIN if name == TRAIN_FILE else TRAIN[:3]
        lines = [multinli_line(*row, number) for number, row in enumerate(rows)]
        (folder / "multinli_1.0" / name).write_text("\n".join(lines) + "\n")
    lines = ["\t".join(HANS_COLUMNS), *(hans_line(*row, number) for number, row in enumerate(HANS))]
    (folder / HANS_FILE).write_text("\n".join(lines) + "\n")
    return folder


def config_of(folder, **overrides):
    return nli_sources_config(str(folder), **({"dev_rows_per_label": 1, "hans_rows": 3} | overrides))


def prepare(folder, output, **overrides):
    return prepare_nli_sources(config_of(folder, **overrides), str(output), folder=str(folder))


def replace_line(path, number, text):
    lines = path.read_text().split("\n")
    lines[number - 1] = text
    path.write_text("\n".join(lines))


def test_a_test_set_is_read_alone_as_it_is_prepared(folder, tmp_path):
    prepare(folder, tmp_path / "out")
    config = config_of(folder)
    (folder / "multinli_1.0" / TRAIN_FILE).write_text("not read")
    for name in ("mnli_matched", "mnli_mismatched", "hans"):
        prepared = read_examples(tmp_path / "out" / f"{name}.parquet")
        assert config.test_examples(name, str(folder)).to_pylist() == prepared.select(NLI.columns).to_pylist()


def test_duplicates_go_with_every_copy_then_the_first_rows_of_each_label_are_dev(folder, tmp_path):
    metrics = prepare(folder, tmp_path / "out")
    train = read_examples(tmp_path / "out" / "train.parquet")
    dev = read_examples(tmp_path / "out" / "dev.parquet")
    # Line 10 differs from the duplicates of lines 3 and 5 by a space: it is another pair.
    assert train["id"].to_pylist() == [
        "train-000004",
        "train-000008",
        "train-000009",
        "train-000010",
        "train-000011",
    ]
    # The first neutral row in the file is a duplicate, so that dev takes the next.
    assert dev["id"].to_pylist() == ["train-000001", "train-000006", "train-000007"]
    assert dev["label"].to_pylist() == ["entailment", "neutral", "contradiction"]
    assert train["pair_id"].to_pylist()[0] == "p3" and train["genre"].to_pylist()[0] == "fiction"

    dropped = read_dropped(tmp_path / "out")
    assert dropped == [
        ("train", 2, "p1", "-", "no_gold_label"),
        ("mnli_matched", 2, "p1", "-", "no_gold_label"),
        ("mnli_mismatched", 2, "p1", "-", "no_gold_label"),
        ("train", 3, "p2", "neutral", "duplicate_pair"),
        ("train", 5, "p4", "contradiction", "duplicate_pair"),
    ]
    assert metrics == {
        "train/num_examples": 5,
        "train/entailment": 2,
        "train/neutral": 2,
        "train/contradiction": 1,
        "dev/num_examples": 3,
        "dev/entailment": 1,
        "dev/neutral": 1,
        "dev/contradiction": 1,
        "mnli_matched/num_examples": 2,
        "mnli_matched/entailment": 1,
        "mnli_matched/neutral": 1,
        "mnli_mismatched/num_examples": 2,
        "mnli_mismatched/entailment": 1,
        "mnli_mismatched/neutral": 1,
        "hans/num_examples": 3,
        "hans/entailment": 2,
        "hans/non-entailment": 1,
        "dropped/train/no_gold_label": 1,
        "dropped/train/duplicate_pair": 2,
        "dropped/mnli_matched/no_gold_label": 1,
        "dropped/mnli_mismatched/no_gold_label": 1,
        "dropped/num_rows": 5,
        "train/num_labelled": 10,
        "train/is_partial": True,
        "marks": ["partial MultiNLI: 10 of 392,702 labelled rows (5 for training)"],
    }


def test_the_paper_s_391_722_are_the_rule_s_arithmetic():
    # Paper, section 2.2.3: all labelled rows, without every copy of a duplicated pair, without 250 rows a label.
    assert (NUM_LABELLED_ROWS, NUM_DUPLICATE_ROWS, DEV_ROWS_PER_LABEL) == (392_702, 230, 250)
    assert 392_702 - 230 - 750 == 391_722 == NUM_TRAINING_ROWS
    assert NLISourcesConfig.__dataclass_fields__["dev_rows_per_label"].default == 250


def test_only_a_training_file_with_fewer_labelled_rows_is_partial(folder, tmp_path, monkeypatch):
    # The file has eleven rows, one of them without a gold label.
    monkeypatch.setattr("pipelines.data.sources.NUM_LABELLED_ROWS", 10)
    whole = prepare(folder, tmp_path / "whole")
    assert (whole["train/num_labelled"], whole["train/is_partial"]) == (10, False) and "marks" not in whole
    monkeypatch.setattr("pipelines.data.sources.NUM_LABELLED_ROWS", 11)
    partial = prepare(folder, tmp_path / "partial")
    assert partial["marks"] == ["partial MultiNLI: 10 of 11 labelled rows (5 for training)"]


def test_rows_that_are_left_out_for_their_text_are_labelled_rows_all_the_same(folder, tmp_path):
    replace_line(folder / "multinli_1.0" / TRAIN_FILE, 11, multinli_line("neutral", "P", "", 10))
    metrics = prepare(folder, tmp_path / "out", drop_blank_rows=True)
    assert (metrics["train/num_labelled"], metrics["train/num_examples"]) == (10, 4)


def read_dropped(output):
    import pyarrow.parquet as pq

    rows = pq.read_table(output / "dropped.parquet").to_pylist()
    rows.sort(key=lambda row: row["reason"] != "no_gold_label")
    return [(row["set"], row["line"], row["pair_id"], row["label"], row["reason"]) for row in rows]


def test_hans_rows_keep_what_they_are_named_for(folder, tmp_path):
    prepare(folder, tmp_path / "out")
    rows = read_examples(tmp_path / "out" / "hans.parquet").to_pylist()
    assert rows[0] == {
        "id": "hans-000002",
        "pair_id": "ex0",
        "premise": "The a saw the b .",
        "hypothesis": "The b saw the a .",
        "label": "non-entailment",
        "heuristic": "lexical_overlap",
        "subcase": "ln_some",
        "template": "temp1",
    }


@pytest.mark.parametrize("places", [("", ""), ("multinli", "hans"), ("multinli_1.0", "hans")])
def test_files_are_found_where_the_downloads_or_a_tidy_user_put_them(folder, tmp_path, places):
    tidy = tmp_path / "tidy"
    for name in FILES:
        target = tidy / places[name == HANS_FILE]
        target.mkdir(parents=True, exist_ok=True)
        source = folder / ("" if name == HANS_FILE else "multinli_1.0") / name
        (target / name).write_bytes(source.read_bytes())
    assert identity(config_of(tidy)) == identity(config_of(folder))


def test_identity_is_the_content_not_the_place(folder):
    before = config_of(folder)
    assert [file.name for file in before.files] == list(FILES)
    path = folder / "multinli_1.0" / MATCHED_FILE
    path.write_text(path.read_text() + multinli_line("neutral", "More.", "Text.", 99) + "\n")
    after = config_of(folder)
    assert [a == b for a, b in zip(before.files, after.files, strict=True)] == [True, False, True, True]


def test_a_file_that_changed_after_planning_is_refused(folder, tmp_path):
    config = config_of(folder)
    path = folder / "multinli_1.0" / MATCHED_FILE
    path.write_text(path.read_text() + multinli_line("neutral", "More.", "Text.", 99) + "\n")
    with pytest.raises(UserError, match=f"{MATCHED_FILE} has sha256"):
        prepare_nli_sources(config, str(tmp_path / "out"), folder=str(folder))


def test_missing_folder_and_missing_file(folder):
    with pytest.raises(UserError, match=r"data folder '/no/where' does not exist.*cims\.nyu\.edu"):
        nli_sources_config("/no/where")
    (folder / HANS_FILE).unlink()
    with pytest.raises(UserError, match=r"has no heuristics_evaluation_set\.txt; put it at one of"):
        config_of(folder)


def test_an_unknown_option_is_answered_with_the_valid_ones(folder):
    with pytest.raises(UserError, match=r"dev_rows: .* valid: dev_rows_per_label, hans_rows, drop_blank_rows"):
        nli_sources_config(str(folder), dev_rows=3)


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (4, multinli_line("entailed", "P", "H", 3), ["'entailed'", "entailment, neutral, contradiction"]),
        (4, multinli_line("non-entailment", "P", "H", 3), ["'non-entailment'"]),
        (4, '{"gold_label": "neutral", "sentence1": "cut o', ["not a JSON object", "cut off"]),
        (4, "", ["a blank line", "remove it"]),
        (4, '["neutral"]', ["gold_label, sentence1, sentence2"]),
        (4, '{"gold_label": "neutral", "sentence1": "P"}', ["gold_label, sentence1, sentence2"]),
        (
            4,
            multinli_line("neutral", " ", "H", 3),
            ["blank premise (sentence1)", "nli_sources_config(…, drop_blank_rows=True)"],
        ),
        (11, multinli_line("neutral", "P", "", 10), ["blank hypothesis (sentence2)"]),
    ],
)
def test_a_bad_multinli_row_is_named_by_file_and_line(folder, tmp_path, line, text, words):
    path = folder / "multinli_1.0" / TRAIN_FILE
    replace_line(path, line, text)
    with pytest.raises(UserError) as error:
        prepare(folder, tmp_path / "out")
    for word in [f"{path}:{line}:", *words]:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\n\n\n"])
def test_a_blank_line_at_the_end_is_named_before_anything_runs(folder, ending):
    path = folder / "multinli_1.0" / TRAIN_FILE
    num_lines = len(path.read_bytes().splitlines())
    path.write_bytes(path.read_bytes() + ending)
    line = num_lines + len(ending.splitlines())
    with pytest.raises(UserError, match=rf"{TRAIN_FILE}:{line}: a blank line"):
        config_of(folder)


def test_a_cut_off_multinli_file_is_noticed_before_anything_runs(folder):
    path = folder / "multinli_1.0" / TRAIN_FILE
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=f"{TRAIN_FILE}:11: not a JSON object"):
        config_of(folder)


def test_blank_rows_can_be_dropped_and_are_counted(folder, tmp_path):
    replace_line(folder / "multinli_1.0" / TRAIN_FILE, 11, multinli_line("neutral", "P", "", 10))
    metrics = prepare(folder, tmp_path / "out", drop_blank_rows=True)
    assert metrics["dropped/train/blank_text"] == 1 and metrics["train/num_examples"] == 4


def test_dev_may_not_take_a_whole_label(folder, tmp_path):
    with pytest.raises(UserError, match="2 rows labelled contradiction and dev_rows_per_label=2"):
        prepare(folder, tmp_path / "out", dev_rows_per_label=2)


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (1, "gold_label\tsentence1\tsentence2", ["header"]),
        (3, hans_line("neutral", "P", "H", "subsequence", 1), ["'neutral'", "entailment, non-entailment"]),
        (3, hans_line("entailment", "P", "H", "overlap", 1), ["'overlap'", "lexical_overlap"]),
        (3, hans_line("entailment", "", "H", "subsequence", 1), ["blank sentence1"]),
        (4, "entailment\t( ( The", ["2 columns", "11", "cut off"]),
    ],
)
def test_a_bad_hans_row_is_named_before_anything_runs(folder, line, text, words):
    replace_line(folder / HANS_FILE, line, text)
    with pytest.raises(UserError) as error:
        config_of(folder)
    for word in [f"{folder / HANS_FILE}:{line}:", *words]:
        assert word in str(error.value)


def test_hans_cut_off_between_lines_is_noticed_by_its_number_of_rows(folder):
    lines = (folder / HANS_FILE).read_text().split("\n")
    (folder / HANS_FILE).write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(UserError, match=r"heuristics_evaluation_set\.txt:3: .* 2 rows, HANS has 3;"):
        config_of(folder)
    with pytest.raises(UserError, match="HANS has 30,000"):
        nli_sources_config(str(folder))


def test_real_files(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"real MultiNLI and HANS are not at {SHARED}")
    config = nli_sources_config(str(SHARED))
    metrics = prepare_nli_sources(config, str(tmp_path), folder=str(SHARED))
    # 80,180 labelled rows, no pair twice, one row that is several run together, 750 for dev.
    assert metrics["train/num_labelled"] == 80_180
    assert {name for name in metrics if name.startswith("dropped/train/")} == {"dropped/train/too_long"}
    assert metrics["train/num_examples"] == 79_429 == 80_180 - metrics["dropped/train/too_long"] - 750
    assert metrics["marks"] == ["partial MultiNLI: 80,180 of 392,702 labelled rows (79,429 for training)"]
    assert metrics["mnli_matched/num_examples"] == 9_815
    assert metrics["mnli_mismatched/num_examples"] == 9_832
    dev = read_examples(tmp_path / "dev.parquet")
    assert Counter(dev["label"].to_pylist()) == {"entailment": 250, "neutral": 250, "contradiction": 250}
    hans = read_examples(tmp_path / "hans.parquet")
    groups = Counter(zip(hans["heuristic"].to_pylist(), hans["label"].to_pylist(), strict=True))
    assert len(groups) == 6 and set(groups.values()) == {5_000}
    assert len(set(hans["subcase"].to_pylist())) == 30


@pytest.mark.parametrize(
    "content", [b'{"gold_label": ' + b"[" * 200_000, b"a" * 70_000, b"\0\n", b"\xff\xfe\n", b"[]\n", b'{"gold_label": {}}\n']
)
def test_a_hostile_row_is_refused_by_its_file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 65_536)
    for name in sources.FILES:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"multinli_1\.0_train\.jsonl:1: "):
        sources._read_multinli(tmp_path / sources.TRAIN_FILE, "train", None, [])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"heuristics_evaluation_set\.txt:1: "):
        sources._read_hans(tmp_path / sources.HANS_FILE, 1)
