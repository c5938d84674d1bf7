"""The `blindsweep` command. While its app is imported, a signal ends the process without a word."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sweep.app import app as app
else:

    def __getattr__(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sweep.app import app

        return app


def main() -> None:
    """Entry point of the `blindsweep` command."""
    with ending_without_a_word():
        import typer

        from pipelines.terminal import open_streams, write_every_character
        from pipelines.workers.telemetry import turn_off
        from sweep.app import app

        open_streams()
        write_every_character()
        turn_off()
        if os.environ.get("NO_COLOR"):
            from typer import rich_utils

            # Without colours typer still writes bold and dim.
            rich_utils.COLOR_SYSTEM = None
        command = typer.main.get_command(app)
    # From here on an interrupt is an exception, so that a command can clean up.
    try:
        with one_line_where_unwritten():
            command()
    finally:
        end_without_a_word()


@contextlib.contextmanager
def one_line_where_unwritten() -> Iterator[None]:
    """End with one line on stderr and exit code 1 where what is printed cannot be written, as on a full disk.

    A reader that has seen enough is no failure, and a command that has failed has said why.
    """
    from pipelines.terminal import lead_nowhere

    code: Any = 0
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code
        if not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        if os.environ.get("BLINDSWEEP_DEBUG"):
            raise
        lead_nowhere(sys.stdout)
        if not code and not isinstance(error, BrokenPipeError):
            code = 1
            with contextlib.suppress(OSError):
                print(f"Error: what this prints cannot be written: {error.strerror}", file=sys.stderr, flush=True)
    try:
        sys.stderr.flush()
    except OSError:
        lead_nowhere(sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def ending_without_a_word() -> Iterator[None]:
    """As `end_without_a_word`, for as long as nothing is begun."""
    before = end_without_a_word()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def end_without_a_word() -> dict[signal.Signals, Any]:
    """Let SIGINT, SIGTERM and SIGHUP end the process with 128 + signal, where Python would show a traceback.

    Returns their handlers until now; of those that were ignored (`nohup`) there are none, and they stay ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return {number: signal.signal(number, _end) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
