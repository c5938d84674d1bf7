"""Any labelled text: a task's fields and labels, columns by field, heuristics of one's own on single texts."""

import json
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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


def test_a_label_that_is_none_of_the_tasks_is_refused_or_named(files: Path) -> None:
    text = (files / "pool.jsonl").read_text().replace('"yes"', '"1"')
    (files / "pool.jsonl").write_text(text)
    done = run(*COLUMNS)
    assert done.exit_code == 1 and "the labels '1' are none of the task answered's, which are no, yes" in done.stderr
    assert run(*COLUMNS, "--label-name", "1=yes").exit_code == 0


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
