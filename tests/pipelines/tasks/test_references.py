"""Tasks and other values of a user's own, by reference."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.references import find_task

TASK = """
from pipelines.tasks.task import Field, Task

SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "positive"),
    fields=(Field("sentence", "Sentence:"),),
    classifier_prompt="Sentence: {sentence} The sentiment is",
    generator_prompt="The sentiment is {label}",
)
NONE = "no task"
"""


def test_a_task_is_found_by_its_name_and_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    assert find_task("nli") is NLI
    assert find_task(f"{tmp_path}/mine.py:SENTIMENT").field_names == ("sentence",)
    assert find_task("pipelines.tasks.nli:NLI") is NLI


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sentiment", "no task 'sentiment'; built in: nli; one of your own is FILE.py:NAME or module:NAME"),
        ("mine.py:NONE", "mine.py has no Task NONE; it has SENTIMENT"),
        ("mine.py:OTHER", "it has SENTIMENT"),
        ("missing.py:TASK", "missing.py is no file here; name the file that has the Task TASK"),
        ("broken.py:TASK", "broken.py:2 cannot be loaded (ZeroDivisionError"),
    ],
)
def test_a_reference_to_no_task_is_refused(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_task(reference)
    assert message in str(error.value)
