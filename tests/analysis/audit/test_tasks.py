"""Any labelled text: a task's fields and labels, columns by field, heuristics of one's own on single texts."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.data.table_sources import Table, TableSources, read_set
from pipelines.tasks.references import find_task
from sweep import cli

TASK = """
import numpy as np
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.task import Field, Task

ANSWERED = Task(
    name="answered",
    labels=("no", "yes"),
    fields=(Field("question", "Question:"), Field("passage", "Passage:")),
    classifier_prompt="Question: {question} Passage: {passage} It is answered:",
    generator_prompt="Is it answered? {label}",
)

def long(questions, passages):
    return np.array([len(text.split()) > 5 for text in passages], dtype=bool)

LENGTH = Heuristic("length", long, predicts="yes", description="The passage is long.")
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK)
    source = random.Random(0)
    words = [f"w{index}" for index in range(100)]
    lines = []
    for _ in range(800):
        answered = source.random() < 0.5
        passage = source.choices(words, k=9 if answered and source.random() < 0.8 else 4)
        lines.append({"q": " ".join(source.choices(words, k=5)), "p": " ".join(passage), "gold": "yes" if answered else "no"})
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["audit", "pool.jsonl", "--output", "out", *arguments])


COLUMNS = ("--task", "mine.py:ANSWERED", "--field", "question=q", "--field", "passage=p", "--label", "gold")


def test_a_tasks_fields_are_audited_with_its_own_heuristic(files: Path) -> None:
    done = run(*COLUMNS, "--heuristic", "mine.py:LENGTH", "--json", "a.json")
    assert done.exit_code == 0, done.output
    found = json.loads((files / "a.json").read_text())
    assert (found["task"], found["fields"]) == ("answered", ["question", "passage"])
    (length,) = found["heuristics"]
    assert (length["name"], length["predicts"], length["verdict"]) == ("length", "yes", "goes with the label")
    assert "Has length go with yes (odds ratio " in done.stdout
    assert "need a pair of a premise and a hypothesis" in done.stdout
    assert set(found["one_field"]) == set(found["single_words"]) == {"question", "passage"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*COLUMNS, "--field", "answer=p"), "'answer', and the task answered has the fields question, passage"),
        ((*COLUMNS, "--premise", "p"), "'premise', and the task answered has the fields question, passage"),
        (("--field", "question=q", "--field", "passage=x", "--label", "gold"), "no passage column ('x')"),
        (("--field", "label=gold"), "label is no text of an example; give --label gold"),
        (("--field", "question"), "--field 'question' is no NAME=COLUMN"),
        (("--task", "answered"), "no task 'answered'; built in: nli"),
        (("--premise", "p", "--hypothesis", "q", "--field", "context=q", "--label", "gold"), "'context', and an example here"),
    ],
)
def test_fields_that_are_none_are_refused(files: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1 and message in done.stderr, done.output
    assert not (files / "out").exists()


def test_labels_of_most_rows_that_are_none_of_the_tasks_are_refused_or_named(files: Path) -> None:
    text = (files / "pool.jsonl").read_text().replace('"yes"', '"1"').replace('"no"', '"0"')
    (files / "pool.jsonl").write_text(text)
    done = run(*COLUMNS)
    assert done.exit_code == 1 and "800 of 800 rows have labels that are none of no, yes: '0' (400), '1' (400)" in done.stderr
    assert "name the label that each stands for: --label-name LABEL=no" in done.stderr
    assert run(*COLUMNS, "--label-name", "1=yes", "--label-name", "0=no").exit_code == 0
    wrong = run(*COLUMNS, "--label-name", "1=YES", "--label-name", "0=no")
    assert wrong.exit_code == 1 and "'1' is to stand for 'YES', which is none of the task answered's: no, yes" in wrong.stderr


def test_the_rows_that_a_study_leaves_out_for_their_labels_an_audit_leaves_out(files: Path) -> None:
    rows = [json.loads(line) for line in (files / "pool.jsonl").read_text().splitlines()]
    for row, label in zip(rows, ("YES", "maybe", " yes ", "-1", "- ", "maybe"), strict=False):
        row["gold"] = label
    for row in rows[6:20]:
        row["gold"] = "no."
    (files / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = TableSources(
        train=Table("pool.jsonl", columns={"question": "q", "passage": "p", "label": "gold"}),
        general=Table("pool.jsonl", test_set="test"),
        task=find_task("mine.py:ANSWERED"),
    )
    studied = read_set(sources, sources.training)
    assert Counter(row["reason"] for row in studied.dropped) == {"no_gold_label": 2, "unknown_label": 17}
    assert studied.unknown_labels == {"no.": 14, "maybe": 2, "YES": 1}

    done = run(*COLUMNS, "--json", "a.json")
    assert done.exit_code == 0, done.output
    found = json.loads((files / "a.json").read_text())["file"]
    assert found["left_out"] == {"no gold label": 2, "another label than the task's": 17}
    assert found["unknown_labels"] == dict(studied.unknown_labels)
    assert found["num_rows"] == studied.examples.num_rows == 781
    assert {label: share["count"] for label, share in found["labels"].items()} == Counter(studied.examples["label"].to_pylist())
    assert "17 rows with another label than the task's: 'no.', 'maybe', 'YES'" in done.stdout
    assert "17 rows of pool.jsonl are left out for labels that are not the task's: 'no.' (14), 'maybe' (2)" in done.stdout
    # Without a task they are spellings of what is there.
    bare = run(*COLUMNS[2:], "--json", "b.json")
    assert bare.exit_code == 0 and "'no.' (14) taken for 'no'" in bare.stdout


def test_one_row_that_is_left_out_is_one_row(files: Path) -> None:
    rows = (files / "pool.jsonl").read_text().splitlines()
    rows[0] = json.dumps({**json.loads(rows[0]), "gold": "maybe"})
    (files / "pool.jsonl").write_text("\n".join(rows))
    assert "left out: 1 row with another label than the task's: 'maybe'\n" in run(*COLUMNS).stdout


def test_a_mark_for_no_label_is_one_where_it_is_given_a_meaning(files: Path) -> None:
    (files / "pool.jsonl").write_text((files / "pool.jsonl").read_text().replace('"no"', '"-1"'))
    done = run(*COLUMNS, "--label-name=-1=no", "--json", "a.json")
    assert done.exit_code == 0, done.output
    found = json.loads((files / "a.json").read_text())["file"]
    assert (found["num_rows"], found["left_out"], found["meanings"]["-1"]) == (800, {}, "no")


@pytest.mark.parametrize(
    ("predicate", "said"),
    [
        (
            "lambda questions, passages: 1 / 0",
            r"ended in ZeroDivisionError: division by zero \(mine\.py:\d+\), asked about 800",
        ),
        ("lambda passages: 1", r"ended in TypeError: .* takes 1 positional argument but 2 were given .*; mend it"),
    ],
)
def test_a_heuristic_of_ones_own_that_fails_is_named(files: Path, predicate: str, said: str) -> None:
    (files / "mine.py").write_text(f'{TASK}\nMINE = Heuristic("mine", {predicate}, predicts="yes")\n')
    done = run(*COLUMNS, "--heuristic", "mine.py:MINE")
    assert done.exit_code == 1 and re.search(f"Error: heuristic mine: its predicate {said}", done.stderr), done.stderr


def test_a_heuristic_that_is_changed_between_two_audits_is_read_anew(files: Path) -> None:
    counts = []
    for least in (5, 50):
        (files / "mine.py").write_text(TASK.replace("> 5", f"> {least}"))
        assert run(*COLUMNS, "--heuristic", "mine.py:LENGTH", "--json", "a.json").exit_code == 0
        (length,) = json.loads((files / "a.json").read_text())["heuristics"]
        counts.append(sum(label["count"] for label in length["by_label"].values()))
    assert counts[0] > 100 and counts[1] == 0


def test_a_field_of_few_names_is_learnt_by_heart_and_ties_no_rows_together(files: Path) -> None:
    """Products that tell nine of ten queues, and words of the body that tell them: neither hides the other."""
    source, queues = random.Random(0), ["bills", "repairs"]
    rows = []
    for number in range(3_000):
        queue = source.choice(queues)
        product = source.randrange(5) + 5 * (queue == "bills") * (source.random() < 0.8)
        body = f"number {number} is {'late' if queue == 'bills' and source.random() < 0.8 else 'here'} w{source.randrange(500)}"
        rows.append({"product": f"product{product}", "body": body, "label": queue})
    (files / "tickets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (files / "tickets.py").write_text(
        "from sweep import Field, Task\n"
        "TICKETS = Task(name='tickets', labels=('bills', 'repairs'), fields=(Field('product', 'P:'), Field('body', 'B:')),\n"
        "    classifier_prompt='{product} {body} is', generator_prompt='a ticket of {label}')\n"
    )
    options = ("--task", "tickets.py:TICKETS", "--heuristic", "body:late=bills", "--label-noise", "--json", "a.json")
    done = CliRunner().invoke(cli.app, ["audit", "tickets.jsonl", *options])
    assert done.exit_code == 0, done.output
    found = json.loads((files / "a.json").read_text())
    told = found["one_field"]["product"]
    assert told["lift"]["mean"] == pytest.approx(0.4, abs=0.05)  # 90% are told: 1 in 5 bills has a product of the repairs
    assert {word["word"] for word in found["single_words"]["body"]["words"]} == {"late", "here"}
    (late,) = found["heuristics"]
    assert late["odds_ratio"]["design_effect"] < 1.5  # five rows in six share their product with 250 others
    assert found["label_noise"]["num_judged"] == 3_000
    # What a body says can be all that there is to know: nothing here asks for action without a reference.
    levels = {finding["level"] for finding in found["findings"] if finding["kind"] in ("one-field", "words")}
    assert levels == {"look", "cannot tell"}
