"""docs/take_out.md does what it says, and CITATION.cff has the form of the Citation File Format."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sweep import cli
from sweep.commands.take_out import DTYPES
from tests.sweep.publish.small_study import MODEL, write_study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "take_out.md").read_text()
COMMANDS = re.findall(r"^blindsweep (.+)$", "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)
SCRIPT = "".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_pages_commands_and_script_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    store, _ = write_study(tmp_path / "store", "demo")
    monkeypatch.setenv("BLINDSWEEP_STORE", store.uri)
    assert [command.split()[0] for command in COMMANDS] == ["export", "publish", "publish"]
    for command in COMMANDS[:2]:
        # The demo's own task models take minutes to train.
        words = [word.replace("start0-synthetic-900-seed0", MODEL) for word in shlex.split(command)]
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 0, result.output
    # What is pushed, and where to, tests/sweep/publish/test_upload.py has: here there is no token.
    monkeypatch.delenv("HF_TOKEN", raising=False)
    refused = CliRunner().invoke(cli.app, shlex.split(COMMANDS[2]))
    assert "--push my-name/demo needs a token" in refused.stderr
    written = {path.name for path in (tmp_path / "my-repositories").iterdir()}
    assert written == {"pool", "training-sets", "generator", MODEL}
    capsys.readouterr()
    exec(compile(SCRIPT, "take_out.md", "exec"), {})
    assert eval(capsys.readouterr().out.splitlines()[-1])[0] in ("entailment", "neutral", "contradiction")
    # And so does the card's own.
    card = (tmp_path / "my-model" / "README.md").read_text()
    exec(compile(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], "README.md", "exec"), {})


def test_the_page_names_every_option() -> None:
    for option in ("--merge", "--body", "--dtype", "--license", "--base-license", "--source-license", "--push", "--public"):
        assert option in PAGE
    assert "float32" in DTYPES


def test_the_citation_has_the_formats_fields_and_the_projects_own_values() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # The format's required fields, and what it takes for each (Citation File Format 1.2.0).
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert all(isinstance(citation[name], str) and citation[name] for name in ("message", "title", "version"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    known = {"abstract", "authors", "cff-version", "keywords", "license", "message", "references", "title", "type", "version"}
    assert set(citation) <= known
    for work in (citation, *citation["references"]):
        assert work["authors"] and work["title"]
        for author in work["authors"]:
            assert set(author) == {"name"} or {"family-names", "given-names"} <= set(author)
    (paper,) = citation["references"]
    assert paper["title"] == "Does Training on Synthetic Data Make Models Less Robust?"
    assert [author["family-names"] for author in paper["authors"]] == ["Zhang", "Pavlick"]
