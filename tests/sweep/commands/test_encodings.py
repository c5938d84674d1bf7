"""What a command prints where the output's encoding lacks some of it: all of it, spelled, and never an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT, LABELS = "naïve – 東京 −1 “x” 😀", ("très bon", "schlecht…")


def printed(folder: Path, encoding: str, *arguments: str | bytes) -> bytes:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "sweep.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = "".join(f"{TEXT} {number},{label}\n" for number in range(20) for label in LABELS)
    (tmp_path / "pool.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", TEXT),
        ("latin-1", r"naïve - \u6771\u4eac -1 'x' \ud83d\ude00"),
        ("ascii", r"na\u00efve - \u6771\u4eac -1 'x' \ud83d\ude00"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(table: Path, encoding: str, shown: str) -> None:
    lines = printed(table, encoding, "data", "check", "pool.csv").decode(encoding).splitlines()
    assert f"longest: {len(TEXT) + 3} characters, '{shown} 10'" in lines
    found = json.loads(printed(table, encoding, "audit", "pool.csv", "--json", "-").decode(encoding))
    ends = "schlecht…" if encoding == "utf-8" else "schlecht..."
    assert set(found["file"]["labels"]) == {"très bon", ends}
