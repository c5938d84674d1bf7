"""What a command prints where the output's encoding lacks some of it: all of it, spelled, and never an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.example_data import own_pairs

ROOT = Path(__file__).parents[3]
TEXT, LABELS = "naïve – 東京 −1 “x” 😀", ("très bon", "schlecht…")
STUDY = str(ROOT / "docs/examples/own_nli.py")
NOT_UTF_8 = os.fsdecode(b"caf\xe9")


def printed(folder: Path, encoding: str, *arguments: str | bytes) -> bytes:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "sweep.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with tables, and a path to each that is not UTF-8."""
    folder = tmp_path / NOT_UTF_8
    folder.mkdir()
    own_pairs(folder)
    (folder / "pairs.csv").write_text("premise,hypothesis,label\na,b,c\n")
    pq.write_table(pa.table({"premise": ["a"], "hypothesis": ["b"], "label": ["c"]}), tmp_path / "pairs.parquet")
    (tmp_path / "pairs.parquet").rename(folder / "pairs.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["audit", f"{NOT_UTF_8}/pairs.csv"], r"caf\xe9/pairs.csv"),
        (["data", "check", f"{NOT_UTF_8}/pairs.parquet"], r"caf\xe9/pairs.parquet"),
        (["plan", STUDY, "-p", f"data={NOT_UTF_8}"], r"caf\xe9/train.csv"),
        (["run", STUDY, "-p", f"data={NOT_UTF_8}"], r"caf\xe9/train.csv"),
    ],
)
def test_a_file_whose_name_is_not_utf_8_is_named_and_to_be_renamed(folder: Path, arguments: list[str], name: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sweep.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    said = f"{name}' is not UTF-8, as a file's or folder's name has to be for this; rename it or name another\n"
    assert done.returncode == 1 and done.stderr.startswith("Error: b'") and done.stderr.endswith(said), done.stderr
    assert done.stderr.count("\n") == 1


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
