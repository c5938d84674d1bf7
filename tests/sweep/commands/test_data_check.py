"""`blindsweep data check` says what would be read, and refuses what a study would."""

import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.errors import UserError
from sweep import cli

STUDY = """
from dataclasses import replace
from sweep import EvaluationConfig, Experiment, Table, TableSources
from sweep.experiments import demo

def mine(data: str = ".") -> Experiment:
    sources = TableSources(Table("train.csv", labels={"no": "contradiction"}), general="test.jsonl", dev_rows_per_label=1)
    evaluation = EvaluationConfig(sets=("test",), heuristics=(demo().heuristic,))
    return replace(demo(), sources=sources, sources_folder=data, training_sizes=(3,), evaluation=evaluation,
                   general_set="test", blindspot_set="test")
"""

OWN_POOL = """
from dataclasses import replace
from sweep import Experiment
from sweep.experiments import demo

def mine() -> Experiment:
    return replace(demo(), generator=None, generation=None, synthetic={pool!r})
"""


def check(*arguments: str) -> list[str]:
    result = CliRunner().invoke(cli.app, ["data", "check", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["data", "check", *arguments])
    assert result.exit_code == 1
    return result.stderr


def test_a_split_is_asked_for_and_is_named_as_a_study_would(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"sentence,label\n{split},good\n")
    assert f"{tmp_path} has several splits (test, train); give one of them, as in {tmp_path}:train" in refused(str(tmp_path))
    said = check(f"{tmp_path}:test")
    assert said[0] == f"{tmp_path}:test: 1 row" and said[-1].startswith(f"in a study: Table('{tmp_path}:test', ")
    refused(f"{tmp_path}:dev")


def test_a_table_is_said_as_it_would_be_read(tmp_path: Path) -> None:
    path = tmp_path / "reviews.tsv"
    path.write_text('id\tsentence\tlabel\n1\tgood "stuff"\t1\n2\t\t0\n3\tlabel of none\t-\n4\tbad\t0\n5\tcut\n')
    assert check(str(path)) == [
        f"{path}: 5 rows",
        "columns: sentence is 'sentence', label is 'label'; not read: 'id'",
        "labels: 1 1, 0 1",
        "left out: 3 rows",
        "    1 blank_sentence, the first at row 2: no text, label '0'",
        "    1 no_gold_label, the first at row 3: 'label of none', label '-'",
        "    1 wrong_number_of_cells, the first at row 5: '5 cut'",
        "longest: 12 characters, 'good \"stuff\"'",
        "marked: 1 of 5 rows (20%) are labelled '-', which is taken for 'no label', and are left out; if it is a label, "
        "map it: --label -=LABEL",
        f"in an audit: blindsweep audit {path}",
        f"in a study: Table({str(path)!r}, columns={{}}, labels={{'0': '…', '1': '…'}})",
    ]
    mapped = check(str(path), "--label", "1=positive", "--label", "0=negative", "--column", "review=sentence")
    assert "columns: review is 'sentence', label is 'label'; not read: 'id'" in mapped
    assert "labels: positive 1 ('1'), negative 1 ('0')" in mapped
    assert mapped[-1].endswith("columns={'review': 'sentence'}, labels={'1': 'positive', '0': 'negative'})")


@pytest.mark.parametrize(
    ("header", "arguments", "options"),
    [
        ("id,message,verdict", ("--column", "text=message", "--column", "label=verdict"), "--text message --label verdict"),
        ("id,my words,stars",
         ("--column", "review=my words", "--column", "label=stars", "--label", "1=bad", "--label", "2=good"),
         "--field 'review=my words' --label stars --label-name 1=bad --label-name 2=good"),
        ("id,sentence,label", (), ""),
    ],
)  # fmt: skip
def test_the_audit_that_it_names_reads_the_table(
    header: str, arguments: tuple[str, ...], options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{number},some text of {number},{1 + number % 2}" for number in range(30)]
    Path("a.csv").write_text("\n".join([header, *rows]))
    (line,) = [line for line in check("a.csv", *arguments) if line.startswith("in an audit: ")]
    assert line == f"in an audit: blindsweep audit a.csv {options}".rstrip()
    done = CliRunner().invoke(cli.app, shlex.split(line.removeprefix("in an audit: blindsweep ")))
    assert done.exit_code == 0 and "a.csv: 30 rows" in done.stdout, done.output


@pytest.mark.parametrize(
    ("header", "labels", "audit", "value"),
    [
        ("text,label", ["bad", "good"], "", "columns={'sentence': 'text'}, labels={}), of a Task with labels=('bad', 'good')"),
        ("text,label", ["0", "1.0"], "", "columns={'sentence': 'text'}, labels={'0': '…', '1.0': '…'})"),
        ("premise,hypothesis,label", ["ENTAILMENT", "odd"], "", "columns={}, labels={'ENTAILMENT': 'entailment', 'odd': '…'})"),
        ("Premise,Hypothesis,Label", ["0", "1"], " --entailment LABEL, which is 0 or 1",
         "columns={'premise': 'Premise', 'hypothesis': 'Hypothesis', 'label': 'Label'}, labels={'0': '…', '1': '…'})"),
    ],
)  # fmt: skip
def test_what_the_labels_mean_is_asked_where_it_is_not_known(
    header: str, labels: list[str], audit: str, value: str, tmp_path: Path
) -> None:
    path, texts = tmp_path / "a.csv", ",some text" * header.count(",")
    path.write_text("\n".join([header, *(f"{texts[1:]},{label}" for label in labels)]))
    assert check(str(path))[-2:] == [
        f"in an audit: blindsweep audit {path}{audit}",
        f"in a study: Table({str(path)!r}, {value}",
    ]


def test_a_column_that_holds_no_labels_is_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,label", *(f"text {n},{n / 7}" for n in range(1, 300))]))
    in_audit, in_study = check(str(path))[-2:]
    assert in_audit == "in an audit: no, it has 299 labels, and an audit reads 200 at most"
    assert in_study.endswith(", …})") and len(in_study) < 1_000


def test_a_pair_is_found_by_its_usual_names(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence1": ["a"], "sentence2": ["b"], "gold_label": ["neutral"]}), tmp_path / "pairs.parquet")
    lines = check(str(tmp_path / "pairs.parquet"))
    assert lines[1] == "columns: premise is 'sentence1', hypothesis is 'sentence2', label is 'gold_label'"
    assert lines[-1].endswith("columns={'premise': 'sentence1', 'hypothesis': 'sentence2', 'label': 'gold_label'}, labels={})")


def test_each_set_of_a_study_is_said(tmp_path: Path) -> None:
    rows = [f"{label} p{n} h,h,{label}" for label in ("entailment", "neutral", "no") for n in range(3)]
    (tmp_path / "train.csv").write_text("\n".join(["premise,hypothesis,label", *rows, rows[0], "x,y,maybe", ""]))
    (tmp_path / "test.jsonl").write_text('{"premise": "no p0 h", "hypothesis": "h", "label": "no"}\n')
    (tmp_path / "mine.py").write_text(STUDY)
    said = check(str(tmp_path / "mine.py"), "-p", f"data={tmp_path}")
    # Which of the longest rows is held out goes by the texts' hashes.
    assert [line for line in said if "longest: 16 characters" not in line] == [
        "train: 6 examples",
        "    from train.csv, premise is 'premise', hypothesis is 'hypothesis', label is 'label'",
        "    labels: entailment 2, neutral 2, contradiction 2",
        "    left out: 2 rows",
        "        1 duplicate, the first at row 10: 'entailment p0 h' | 'h', label 'entailment'",
        "        1 unknown_label, the first at row 11: 'x' | 'y', label 'maybe'",
        "dev: 3 examples",
        "    labels: entailment 1, neutral 1, contradiction 1",
        "test: 1 examples",
        "    from test.jsonl, premise is 'premise', hypothesis is 'hypothesis', label is 'label'",
        "    labels: contradiction 1",
        "    longest: 8 characters, 'no p0 h' | 'h'",
        "marked: 1 of 1 texts of test are in the training data, too",
        "marked: 1 rows of train are left out for labels that are not the task's: 'maybe' (1)",
    ]
    (tmp_path / "test.jsonl").unlink()
    assert f"not found at {tmp_path / 'test.jsonl'}" in refused(str(tmp_path / "mine.py"), "-p", f"data={tmp_path}")


POOL_AND_TABLES = """
from dataclasses import replace
from sweep import EvaluationConfig, Experiment, Table, TableSources
from sweep.experiments import demo

def mine() -> Experiment:
    sources = TableSources(Table("train.csv"), general="test.csv", dev_rows_per_label=1)
    evaluation = EvaluationConfig(sets=("test",), heuristics=(demo().heuristic,))
    return replace(demo(), sources=sources, training_sizes=(3,), evaluation=evaluation, general_set="test",
                   blindspot_set="test", generator=None, generation=None, synthetic="pool.csv")
"""


def write_tables_and_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{label} p{n},h,{label}" for n in range(6) for label in ("entailment", "neutral", "contradiction")]
    for name, some in (
        ("train", rows),
        ("test", ["h other,h,neutral", "h next,h,neutral"]),
        ("pool", [*rows, "h other,h,neutral", "h one,h,entailment"]),
    ):
        Path(f"{name}.csv").write_text("\n".join(["premise,hypothesis,label", *some]))
    Path("mine.py").write_text(POOL_AND_TABLES)


def test_a_pool_that_has_texts_of_a_test_set_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables_and_pool(tmp_path, monkeypatch)
    result = CliRunner().invoke(cli.app, ["data", "check", "mine.py"])
    assert "    marked: 1 of 2 texts of test are in the pool, too: models that are trained on it know them" in result.stdout
    assert "are in the training data" not in result.stdout
    assert "take them out of the file ('h other' | 'h')\n" in result.stdout
    planned = CliRunner().invoke(cli.app, ["plan", "mine.py"])
    assert "pool: pool.csv: 1 of 2 texts of test are in the pool, too: " in planned.stdout, planned.output


def test_a_run_warns_of_texts_of_a_test_set_before_it_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(uri: str) -> None:
        raise UserError("here it would begin")

    monkeypatch.setattr("sweep.run.study_run.check_store", stop)
    write_tables_and_pool(tmp_path, monkeypatch)
    run = CliRunner().invoke(cli.app, ["run", "mine.py", "--no-report"])
    warning, error = run.stderr.splitlines()[-2:]
    assert warning.startswith("Warning: pool: pool.csv: 1 of 2 texts of test are in the pool, too: ")
    assert error == "Error: here it would begin"


def test_a_pool_of_ones_own_is_said_with_the_sets(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("premise,hypothesis,label\na,b,neutral\nc,d,perhaps\ne,f,entailment\n")
    (tmp_path / "mine.py").write_text(OWN_POOL.format(pool=str(tmp_path / "pool.csv")))
    said = check(str(tmp_path / "mine.py"))
    assert said[said.index("pool: 2 examples") :] == [
        "pool: 2 examples",
        "    from pool.csv, premise is 'premise', hypothesis is 'hypothesis', label is 'label'",
        "    labels: neutral 1, entailment 1",
        "    left out: 1 row",
        "        1 unknown_label, the first at row 2: 'c' | 'd', label 'perhaps'",
        "    longest: 2 characters, 'a' | 'b'",
        "    marked: 1 rows of pool.csv are left out for labels that are not the task's: 'perhaps' (1)",
    ]
    assert "template_probe: 1,200 examples" in said
    (tmp_path / "pool.csv").unlink()
    assert f"pool: not found at {tmp_path / 'pool.csv'}" in refused(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "no column has a usual name of a text, or of a label; it has 'review', 'stars': name a text, --column text=COLUMN, "
            "a pair, --column premise=COLUMN --column hypothesis=COLUMN, or any others, each --column NAME=COLUMN, and",
        ),
        (
            ["--column", "label=stars"],
            "no column has a usual name of a text; it has 'review', 'stars': name a text, --column text=COLUMN, a pair",
        ),
        (["--column", "text=reviews"], "no text column ('reviews')"),
        (["--column", "text=review"], "no label column (label, gold_label"),
        (
            ["--column", "text=review", "--column", "label=stars", "--label", "five=good"],
            "2 of 2 rows have labels that are none of good",
        ),
        (["--column", "review"], "write it as --column NAME=COLUMN"),
        (["-p", "seeds=0"], "-p sets a parameter of a study"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "a.csv").write_text("review,stars\nfine,5\npoor,1\n")
    assert message in refused(str(tmp_path / "a.csv"), *arguments)
