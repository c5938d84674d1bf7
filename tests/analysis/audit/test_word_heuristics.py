"""From a word that tells a label to a study: what the audit prints runs, and its counts are the study's slices."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from analysis.audit import Audit, AuditSettings, Finding, audit
from analysis.audit.page import write_page
from analysis.audit.word_heuristics import Showing
from pipelines.errors import UserError
from pipelines.evaluate.scoring import accuracy_rows, where_held
from pipelines.tasks.heuristics import find_heuristic
from pipelines.tasks.nli import NLI
from sweep import cli
from sweep.study.loading import load_experiment
from tests.analysis.audit.planted import LABELS, planted

STUDY = """
from dataclasses import replace

from sweep import Experiment, word_heuristic
from sweep.experiments import demo

WORD = {line}


def of_a_word() -> Experiment:
    study = demo(seeds=(0,))
    evaluation = replace(study.evaluation, heuristics=(WORD,))
    return replace(study, name="of_a_word", heuristic=WORD, blindspot_set="template_test", evaluation=evaluation)
"""
OPTION = "--heuristic hypothesis:nobody=contradiction"


def pairs(seed: int, **told: int) -> pa.Table:
    """Clean pairs, of which so many of each label begin with 'Nobody'."""
    rows = planted("english", 1_500, seed=seed, is_clean=True).table.to_pylist()
    for row in rows:
        if told.get(row["label"], 0):
            told[row["label"]] -= 1
            row["hypothesis"] = f"Nobody, {row['hypothesis']}"
    return pa.Table.from_pylist(rows)


TESTS = {
    "usual": [
        *(("a", "nobody left", "contradiction"), ("a", "Is nobody's", "neutral"), ("a", "NOBODY?", "entailment")),
        *(("nobody", "a", "neutral"), ("nobody", "nobody-else", "neutral")),
    ],
    "none_wrong": [("a", "nobody", "contradiction"), ("a", "b", "neutral"), ("a", "c", "entailment")],
    "no_row": [("nobody", "a", "contradiction"), ("a", "b", "neutral"), ("a", "c", "entailment")],
    "folded": [("a", "nobody", "non-entailment"), ("a", "b", "entailment")],
    "numbers": [("a", "nobody", "0"), ("a", "b", "1")],
    "long": [("a", "nobody", "neutral"), ("a", "b " * 600, "contradiction")],
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pairs(0, contradiction=200, neutral=20), "pool.parquet")
    pq.write_table(pairs(3, contradiction=40, neutral=40), "original.parquet")
    for name, rows in TESTS.items():
        columns = [list(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(columns, ["premise", "hypothesis", "label"]), f"{name}.parquet")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["audit", "pool.parquet", *arguments])


def of(found: Audit, kind: str, name: str) -> Finding:
    return next(finding for finding in found.findings if (finding.kind, finding.name) == (kind, name))


def test_what_the_audit_prints_of_a_word_runs(files: Path) -> None:
    printed = run("--reference", "original.parquet", "--test", "usual.parquet", "--json", "audit.json")
    assert printed.exit_code == 0, printed.output
    pattern = r"'(\w+)' as a heuristic: (--heuristic .*?); in a study's file \(docs/own_heuristic\.md\) (.*?); (in usual .*)\.$"
    ((word, option, line, shows),) = re.findall(pattern, printed.stdout, re.MULTILINE)
    assert (word, option) == ("nobody", OPTION)
    assert shows == "in usual it holds of 3 rows and is wrong of 2, which show whether a model goes by it"

    # The command again, with the option.
    again = run("--reference", "original.parquet", "--test", "usual.parquet", *shlex.split(option))
    assert again.exit_code == 0, again.output
    assert "plants hypothesis says nobody" in again.stdout
    assert f"I{shows[1:]}.\n" in again.stdout

    # A study's file with the line; and a built-in study that is given the option's value.
    Path("study.py").write_text(STUDY.format(line=line))
    value = shlex.split(option)[1]
    for arguments in (["study.py"], ["demo", "-p", "seeds=0", "-p", f"heuristic={value}"]):
        planned = CliRunner().invoke(cli.app, ["plan", *arguments, "--store", "store"])
        assert planned.exit_code == 0 and "to build" in planned.output, planned.output
    named = load_experiment("study.py").experiment
    of_word = load_experiment("demo", ["seeds=0", f"heuristic={value}"]).experiment
    assert named.heuristic == of_word.heuristic == find_heuristic(value)
    assert (of_word.blindspot_set, of_word.blindspot_slice) == (
        "template_test", "holds/hypothesis_says_nobody/non-contradiction"
    )  # fmt: skip
    assert replace(named, name="demo", parameters=of_word.parameters) == of_word

    found = json.loads((files / "audit.json").read_text())
    (told,) = found["next_words"]["hypothesis"]
    assert (told["word"], told["option"], told["line"], told["predicts"]) == (word, option, line, "contradiction")
    assert told["tests"] == {"usual": {"num_rows": 5, "num_held": 3, "num_wrong": 2, "is_all": True}}


def test_the_counts_are_those_of_a_studys_slices(files: Path) -> None:
    table = pq.read_table("usual.parquet")
    heuristic = find_heuristic("hypothesis:nobody=contradiction")
    held = where_held(table, (heuristic,), NLI)
    rows = accuracy_rows("usual", table, pa.array([0.0] * 15).to_numpy().reshape(5, 3), held)
    counts = {row["slice"]: row["num_examples"] for row in rows}
    found = audit("pool.parquet", AuditSettings(tests={"usual": "usual.parquet"}))
    shows = found.next_words["hypothesis"][0].tests["usual"]
    assert (shows.num_held, shows.num_wrong) == (counts[f"holds/{heuristic.name}"], counts[heuristic.held_slice])


def test_a_test_set_that_cannot_show_it_says_so(files: Path) -> None:
    settings = AuditSettings(tests={name: f"{name}.parquet" for name in TESTS}, heuristics=("hypothesis:nobody=contradiction",))
    found = audit("pool.parquet", settings)
    expected = {
        "usual": Showing(5, 3, 2),
        "none_wrong": Showing(3, 1, 0),
        "no_row": Showing(3, 0, 0),
        "folded": Showing(2, 1, None),
        "numbers": Showing(2, 1, None),
        "long": Showing(2, 1, 1),
    }
    assert found.showing == {"hypothesis_says_nobody": expected}
    # By the sample, in which a long text is cut.
    assert found.next_words["hypothesis"][0].tests == expected | {"long": Showing(2, 1, 1, is_all=False)}
    (step,) = of(found, "words", "hypothesis").steps
    for said in (
        "in none_wrong it holds of 1 row and is wrong of none, so that none_wrong cannot show whether a model goes by it",
        "in no_row it holds of no row, so that no_row cannot show whether a model goes by it",
        "in folded it holds of 1 row, and the labels do not tell where it is wrong",
        "in long it holds of 1 row at least and is wrong of 1, which show",
    ):
        assert said in step
    assert "In long it holds of 1 row and is wrong of 1, which" in of(found, "plants", "hypothesis_says_nobody").steps[-1]
    page = write_page(found, files / "page").read_text()
    assert "&#39;nobody&#39; as a heuristic: --heuristic hypothesis:nobody=contradiction;" in page


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "text:nobody=contradiction",
            "text_says_nobody is about the field 'text', and examples have premise, hypothesis; name",
        ),
        ("hypothesis:nobody=negative", "none of its labels is called negative; they are"),
        ("hypothesis:no-one=contradiction", "word='no-one' is no single word"),
    ],
)
def test_a_word_that_cannot_be_audited_is_refused(files: Path, reference: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        audit("pool.parquet", AuditSettings(heuristics=(reference,)))


def test_labels_are_named_as_the_study_has_them_and_the_shell_reads_them(files: Path) -> None:
    table = pq.read_table("pool.parquet").to_pylist()
    numbers = pa.Table.from_pylist([row | {"label": str(LABELS.index(row["label"]))} for row in table])
    named = {str(number): label for number, label in enumerate(LABELS)}
    (told,) = audit(numbers, AuditSettings(entailment=("0",), label_names=named)).next_words["hypothesis"]
    assert told.option == OPTION and told.line.endswith('predicts="contradiction")')
    # Two labels are a task's own, whose label is none of the three: a study's file has no line for it.
    folded = pa.Table.from_pylist(
        [row | {"label": "entailment" if row["label"] == "entailment" else "not_entailment"} for row in table]
    )
    assert {word.line for word in audit(folded).next_words["hypothesis"]} <= {""}
    single = [{"text": row["hypothesis"].replace("Nobody", "Nobody's"), "label": f"is {row['label']}"} for row in table]
    (told,) = audit(pa.Table.from_pylist(single)).next_words["text"]
    assert shlex.split(told.option) == ["--heuristic", "text:nobody's=is contradiction"]
    assert audit(pa.Table.from_pylist(single), AuditSettings(heuristics=(shlex.split(told.option)[1],))).showing == {
        "text_says_nobody_27_s": {}
    }
