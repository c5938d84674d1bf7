"""What a command prints cannot be written: one line says so, with the exit code of a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FULL = Path("/dev/full")
SAID = "Error: what this prints cannot be written: No space left on device\n"

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")


def ended(shell: str, *, unbuffered: bool) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    command = shell.replace("blindsweep", f"{sys.executable} -m sweep.cli")
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", ["--help", "--version", "run --help", "data", "experiments"])
def test_a_full_disk_under_what_is_printed_is_one_line(arguments: str, unbuffered: bool) -> None:
    done = ended(f"blindsweep {arguments} > /dev/full", unbuffered=unbuffered)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    if arguments != "experiments" or not unbuffered:
        assert done.stderr == SAID


@pytest.mark.parametrize("unbuffered", [False, True])
def test_with_both_outputs_on_a_full_disk_the_exit_code_says_it(unbuffered: bool) -> None:
    assert ended("blindsweep --help > /dev/full 2>&1", unbuffered=unbuffered).returncode == 1


def test_a_command_that_failed_says_that_alone() -> None:
    done = ended("blindsweep run no_such_study > /dev/full", unbuffered=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no experiment 'no_such_study'") and done.stderr.count("Error") == 1


def test_a_reader_that_ends_early_is_no_failure() -> None:
    done = ended("set -o pipefail; blindsweep experiments | true", unbuffered=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_condition_that_is_met_is_the_exit_code_whoever_reads_and_whatever_the_repair_leaves(tmp_path: Path) -> None:
    rows = [f"text {number},{label}" for number in range(300) for label in "ab"]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    command = f"blindsweep audit {tmp_path}/rows.csv --output {tmp_path}/out --fail-on contradictions"
    unread = ended(f"set -o pipefail; {command} --json - 2>&1 | true", unbuffered=False)
    assert (unread.returncode, unread.stderr) == (3, "")
    emptied = ended(f"{command} --repair {tmp_path}/repaired.parquet", unbuffered=False)
    assert emptied.returncode == 3 and emptied.stdout.startswith("Not fit as it is: the data contradicts itself in 300 rows")
    assert (
        "--fail-on contradictions: the data contradicts" in emptied.stderr
        and "no row is left after the repair" in emptied.stderr
    )
