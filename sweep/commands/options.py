"""Options that several commands share, and how a command ends: with one message for a mistake, never a traceback."""

import functools
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipelines.errors import UserError
from pipelines.extras import of_missing_package
from pipelines.storage import is_disk_full
from pipelines.terminal import lead_nowhere
from sweep.commands import completion
from sweep.run.failures import in_lines, is_store_away, name_not_utf8, one_line, whole_traceback


def duration(text: str) -> float:
    """Seconds of `25m`, `1h30m`, `90s` or `90`. Raises typer.BadParameter for anything else, and for none."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", str(text).strip())
    seconds = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    if not seconds:
        raise typer.BadParameter(f"{text!r} is no time above 0; give one such as 25m, 1h30m or 90s")
    return float(seconds)


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A built-in experiment (see `experiments`) or file.py[:function].",
        autocompletion=completion.experiments,
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="A study's name (a built-in experiment's is its own) or file.py.",
        autocompletion=completion.studies,
    ),
]
OneOrAllStudies = Annotated[
    str | None,
    typer.Argument(metavar="[STUDY]", help="A study; without it, all in the store.", autocompletion=completion.studies),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter of the experiment; may be repeated."),
]
OtherName = Annotated[
    str | None,
    typer.Option("--name", help="Call the study so, beside one of its own name in the store. [default: its own name]"),
]
OnlyPiece = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="PIECE",
        help="Build a piece of the study: seed=3,4 or generator=1, or shared, which is what several seeds need, or both, as "
        "shared,seed=3,4. "
        "`bundle` and `unbundle` put pieces together.",
    ),
]
SeedsAtOnce = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Build N seeds before the next ones, which have what room these leave: a run that is cut off leaves whole seeds. "
        "`plan` says what it costs. [default: all at once]",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        parser=duration,
        metavar="TIME",
        help="End so long after the command began, such as 25m or 1h30m, as at a notice: steps have the last --notice-time "
        "of it to commit, and none begins of which nothing would be kept. The same command goes on.",
    ),
]
StoreUri = Annotated[
    str,
    typer.Option("--store", envvar="BLINDSWEEP_STORE", help="Folder or URI (s3://, gs://) of all artifacts."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server or database. [default: mlflow.db in the store]"),
]
Throughputs = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Figures of your own for estimates, in the form of sweep/plan/throughputs.toml."),
]


def _within(least: str, most: float, is_within: Callable[[float], bool]) -> Callable[..., float | None]:
    rule = f"a number {least}" + (f" and at most {most:g}" if math.isfinite(most) else "")

    def check(parameter: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and is_within(value) and value <= most):
            fail(f"{parameter.opts[0]} {value:g}: give {rule}")
        return value

    return check


# What an option's number may be; none of them takes `nan` or `inf`.
positive = _within("above 0", math.inf, lambda value: value > 0)
not_negative = _within("of 0 or more", math.inf, lambda value: value >= 0)
positive_points = _within("of points above 0", 100, lambda value: value > 0)
points = _within("of points of 0 or more", 100, lambda value: value >= 0)

Price = Annotated[
    float | None,
    typer.Option(callback=not_negative, help="Dollars you pay for one hour of one GPU. [default: list price]"),
]
SpotPrice = Annotated[float | None, typer.Option(callback=not_negative, help="The same, for spot GPUs.")]
CostPerSeed = Annotated[
    float | None,
    typer.Option(callback=not_negative, help="What one seed of the whole grid costs, in your own currency."),
]
Json = Annotated[bool, typer.Option("--json", help="All the numbers, for programs.")]
DEFAULT_STORE = completion.DEFAULT_STORE
DEFAULT_GPU = "h200"


def study_name(name: str) -> str:
    """The study that `name` means: of an experiment file, the name inside it; else `name` itself."""
    from sweep.study.loading import is_file, load_experiment

    return load_experiment(name).experiment.name if is_file(name) else name


def tell(text: object, *, on_stderr: bool = False) -> None:
    """Print, and go on where the reader of a pipe has seen enough: for commands whose exit code says what they found."""
    stream = sys.stderr if on_stderr else sys.stdout
    try:
        print(text, file=stream)
    except BrokenPipeError:
        lead_nowhere(stream)


def one_clear_error(command: Callable[..., None]) -> Callable[..., None]:
    """End a command with one message: for the user's mistakes, and for a defect of ours with its traceback's file."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:
            # The reader of a pipe has seen enough; Python must not complain again at exit.
            lead_nowhere(sys.stdout)
        except KeyboardInterrupt:
            fail("interrupted; what is built is kept, and the same command goes on from there", code=130)
        except Exception as error:
            if os.environ.get("BLINDSWEEP_DEBUG"):
                raise
            fail(_explain(of_missing_package(error) or error), code=getattr(error, "exit_code", 1))

    return wrapped


def _explain(error: Exception) -> str:
    if isinstance(error, UserError | OSError) or is_disk_full(error) or is_store_away(error) or name_not_utf8(error):
        return in_lines(error)
    with tempfile.NamedTemporaryFile("w", prefix="blindsweep-", suffix=".txt", delete=False) as file:
        file.write(whole_traceback(error))
    return f"{one_line(error)} (not expected; the whole traceback is in {file.name})"


def fail(message: str, code: int = 1) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    raise typer.Exit(code)
