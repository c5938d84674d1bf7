"""A signal at any moment of a command, from its first import to its process's end: no traceback, and the promised exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A process that a shell starts in the background has them ignored.
HEEDED = """
import signal, sys
number = int(sys.argv[-1])
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
"""
AT_AN_IMPORT = """
import os, signal, sys
number, moment = int(sys.argv.pop()), sys.argv.pop()

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder)
from sweep.cli import main
main()
"""
AT_THE_END = """
import atexit, os, signal, sys
number = int(sys.argv.pop())
atexit.register(lambda: os.kill(os.getpid(), number))
from sweep.cli import main
main()
"""


def ended(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["typer", "sweep.commands.upkeep.verify"])
def test_a_signal_while_the_command_line_is_imported_ends_it_without_a_word(moment: str, number: signal.Signals) -> None:
    done = ended(HEEDED + AT_AN_IMPORT, "experiments", moment, int(number))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


@pytest.mark.parametrize(("command", "moment"), [("run", "sweep.plan.rehearsal"), ("plan", "sweep.study.loading")])
def test_an_interrupt_in_a_command_is_one_line(command: str, moment: str, tmp_path: Path) -> None:
    done = ended(HEEDED + AT_AN_IMPORT, command, "demo", "--store", tmp_path / "store", moment, int(signal.SIGINT))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Error: interrupted; what is built is kept, and the same command goes on from there\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_a_command_s_end_shows_no_traceback(number: signal.Signals) -> None:
    done = ended(HEEDED + AT_THE_END, "--version", int(number))
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert done.stdout.startswith("blindsweep ")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    done = ended(
        f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN){AT_AN_IMPORT}", "--version", "typer", int(signal.SIGHUP)
    )
    assert done.returncode == 0 and done.stdout.startswith("blindsweep ")
