"""What the Tab key finds, asked as bash asks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sweep import cli

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store = tmp_path / "blindsweep-store"
    for name in ("studies/gentle.json", "task_model/start0-original-900-seed0-0123456789ab/record.json"):
        (store / name).parent.mkdir(parents=True)
        (store / name).write_text("{}")
    # Not built: it has no record.
    (store / "task_model/start0-original-900-seed1-0123456789ab").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLINDSWEEP_STORE", raising=False)
    return tmp_path


PUBLISHED = ["study_qwen", "study_smollm", "rate_search"]


def completed(*words: str) -> list[str]:
    environment = {"_BLINDSWEEP_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(("blindsweep", *words))}
    result = CliRunner().invoke(cli.app, env=environment | {"COMP_CWORD": str(len(words))}, prog_name="blindsweep")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["p"], ["plan", "power", "publish"]),
        (["run", ""], ["demo", "mini", "paper", "paper_fast", *PUBLISHED]),
        # Files are the shell's.
        (["run", "my_"], []),
        (["report", ""], ["gentle", "demo", "mini", "paper", "paper_fast", *PUBLISHED]),
        (["report", "--store", "elsewhere", "g"], []),
        (["report", "--store", "s3://bucket/x", "p"], ["paper", "paper_fast"]),
        (["compare", "demo", "ge"], ["gentle"]),
        (["export", "start"], ["start0-original-900-seed0"]),
        (["publish", "demo", "out", "--model", ""], ["start0-original-900-seed0"]),
        (["run", "demo", "--max-c"], ["--max-cpus"]),
    ],
)
def test_words_are_completed(words: list[str], found: list[str]) -> None:
    assert completed(*words) == found


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_with_what_show_completion_prints(folder: Path) -> None:
    command = folder / "blindsweep"
    command.write_text(f"#!{sys.executable}\nimport sweep.cli\nsweep.cli.main()\n")
    command.chmod(0o755)
    script = """
set -e
source <(blindsweep --show-completion)
complete -p blindsweep
COMP_WORDS=(blindsweep run pa); COMP_CWORD=2
$(complete -p blindsweep | sed 's/.*-F \\([^ ]*\\).*/\\1/') blindsweep
echo "${COMPREPLY[@]}"
"""
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SHELL": "/bin/bash"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "paper paper_fast"
