"""A few points of each fault; `python -m tests.chaos` tries more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def chaos(script: str, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "tests/chaos" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here (cc)")
def test_a_step_that_is_disturbed_at_any_call_is_built_as_if_it_had_not_been() -> None:
    chaos("writes.py", "--points", "2")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_damaged_files_are_named_and_built_again() -> None:
    chaos("damage.py", "--points", "4")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_damaged_lease_or_a_dead_holder_s_keeps_nobody_from_the_artifact() -> None:
    chaos("leases.py", "--points", "3")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_pool_whose_engine_is_killed_goes_on() -> None:
    chaos("engines.py", "--points", "1")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_run_of_which_a_process_is_killed_goes_on() -> None:
    chaos("processes.py", "--points", "1")
