"""What the tutorial and the how-to pages promise, run: commands with their exit codes, a heuristic's file, the notebook."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from scripts import notebook
from sweep import cli
from sweep.study.grid import build_grid
from sweep.study.loading import load_experiment
from tests.analysis.audit.planted import planted

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def page(name: str) -> str:
    return (DOCS / name).read_text()


def run(command: str) -> Any:
    program, *words = shlex.split(command)
    assert program == "blindsweep"
    return CliRunner().invoke(cli.app, words)


def test_the_tutorial_counts_the_demos_steps() -> None:
    listed = re.findall(r"^\| (\w+) \| (\d+) \|", page("tutorial.md"), re.MULTILINE)
    steps = build_grid(load_experiment("demo").experiment)
    assert {stage: int(number) for stage, number in listed} == Counter(step.stage for step in steps)
    assert f"demo: {len(steps)} artifacts, 0 were there, {len(steps)} built" in page("tutorial.md")


def test_the_tutorial_names_sections_that_reports_have() -> None:
    table = page("tutorial.md").partition("| section |")[2].partition("\n\n")[0]
    titles = re.findall(r"^\| ([A-Z][^|]+) \|", table, re.MULTILINE)
    source = "".join(path.read_text() for path in (ROOT / "analysis" / "report").glob("*.py"))
    # Two are put together: a test set's own title, and how it is cut.
    missing = [title for title in titles if f'"{title}"' not in source]
    assert len(titles) == 14 and missing == ["Template probe by heuristic, subcase and folding of the labels"]


@pytest.mark.parametrize("command", re.findall(r"^blindsweep run (demo -p .+?)(?: +#.*)?$", page("tutorial.md"), re.MULTILINE))
def test_what_the_tutorial_asks_more_can_be_planned(command: str, tmp_path: Path) -> None:
    result = run(f"blindsweep plan {command} --store {tmp_path}")
    assert result.exit_code == 0, result.output


def test_a_heuristic_of_ones_own_is_audited_and_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", page("own_heuristic.md"), re.DOTALL)
    (of_word,) = re.findall(r"^    (NEGATION = word_heuristic.*)$", page("own_heuristic.md"), re.MULTILINE)
    pq.write_table(planted("english", 300).table, "pool.parquet")
    commands = re.findall(r"^blindsweep .+$", page("own_heuristic.md"), re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["audit", "plan", "audit", "plan", "plan"]
    imported = block.replace("tokens", "word_heuristic", 1)
    for text in (block, re.sub(r"NEGATIONS = .*(?=\n\n\ndef negated)", of_word, imported, flags=re.DOTALL)):
        Path("negation.py").write_text(text)
        for command in commands:
            result = run(command)
            assert result.exit_code == 0, result.output
        assert "bias_0.7" in run(f"{commands[-1]} --all").output
    assert "tokens" not in text and load_experiment("negation.py").experiment.heuristic.name == "hypothesis_says_never"


def test_the_changed_built_in_study_is_another_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(from dataclasses import replace\n.*?)```", page("studies.md"), re.DOTALL)
    (tmp_path / "gentle.py").write_text(block)
    changed, demo = (
        {step.slug: step.fingerprint for step in build_grid(load_experiment(name, ["seeds=0"]).experiment)}
        for name in (str(tmp_path / "gentle.py"), "demo")
    )
    others = {slug for slug in changed if changed[slug] != demo[slug]}
    assert others and all("-900-seed0" in slug for slug in others)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    made, original = planted("english", 600), planted("english", 600, seed=2, is_clean=True)
    for name, table in (("pool", made.table), ("test", made.test), ("original", original.table), ("clean", original.table)):
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet")
    return tmp_path


def ci_command() -> str:
    """The command of the workflow, which is also the page's first."""
    text = page("audit_in_ci.md")
    (workflow,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    steps = yaml.safe_load(workflow)["jobs"]["audit"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("run", "").startswith("blindsweep ")]
    (first,) = re.findall(r"^blindsweep audit (?:.*\\\n)*.*$", text, re.MULTILINE)
    assert shlex.split(command) == shlex.split(first.replace("\\\n", ""))
    (kept,) = [step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", "")]
    assert f"--output {kept}" in command
    return str(command)


def test_an_audit_in_ci_ends_as_the_page_says(data: Path) -> None:
    command = ci_command()
    failed = run(command)
    assert failed.exit_code == 3
    assert {line.partition(":")[0] for line in failed.stderr.splitlines()} == {
        "--fail-on leaks",
        "--fail-on contradictions",
        "--fail-on plants",
    }
    assert (data / "audit" / "audit.html").is_file()
    assert "format_version" in json.loads((data / "audit" / "audit.json").read_text())
    assert run(command.replace("data/pool.parquet", "data/clean.parquet")).exit_code == 0
    assert run(command.replace("data/pool.parquet", "data/gone.parquet")).exit_code == 1
    assert run(command.replace("--test data/test.parquet", "")).exit_code == 1
    assert run(f"{command} --no-such-option").exit_code == 2


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_has_the_outputs_that_its_code_gives(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = json.loads(file.read_text())
    assert (saved["nbformat"], saved["nbformat_minor"]) == (4, 5)
    now = notebook.run(saved)
    # Another way to write a number is no other number.
    assert outputs(now) == outputs(saved), f"renew it: python scripts/notebook.py {file.relative_to(ROOT)}"


def outputs(cells: dict[str, Any]) -> list[str]:
    found = [cell["outputs"] for cell in cells["cells"] if cell["cell_type"] == "code"]
    texts = [json.dumps(each, ensure_ascii=False, sort_keys=True) for each in found]
    return [re.sub("[\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE},]| (?=%)", "", text) for text in texts]


def test_a_notebook_whose_code_gives_something_else_is_noticed() -> None:
    cell = {"cell_type": "code", "source": ["x = 1\n", "print('y')\n", "x + 1"], "outputs": []}
    done = notebook.run({"cells": [cell, {"cell_type": "markdown", "source": ["x"]}]})
    stream, value = done["cells"][0]["outputs"]
    assert (stream["text"], value["data"]) == (["y\n"], {"text/plain": ["2"]})
    assert outputs(done) != outputs({"cells": [cell]})
