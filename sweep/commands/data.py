"""The experiments and the data that there are: `blindsweep experiments` and `data fetch`."""

from pathlib import Path
from shlex import quote
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer


def experiments() -> None:
    """List the built-in experiments and their parameters."""
    import inspect

    from sweep.study.loading import builtin_experiments

    for name, function in builtin_experiments().items():
        print(f"{name}: {(inspect.getdoc(function) or '').splitlines()[0]}")
        for parameter in inspect.signature(function).parameters.values():
            default = "required" if parameter.default is parameter.empty else f"default {parameter.default!r}"
            print(f"    -p {parameter.name}=...  {_kind(parameter.annotation)}, {default}")


def _kind(annotation: Any) -> str:
    """What a parameter may be, as people read it: its choices, where there are some, else its type."""
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "|".join(map(str, choices))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join("None" if choice is NoneType else _kind(choice) for choice in choices)
    return str(annotation) if choices else str(getattr(annotation, "__name__", annotation))


def fetch(
    to: Annotated[Path, typer.Option(help="Folder that is to hold everything.")] = Path("data"),
    copies: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Take the files, or multinli_1.0.zip, from here; nothing is downloaded."),
    ] = None,
    challenges: Annotated[
        str, typer.Option(metavar="NAMES", help="Challenge sets as well: hans,mnli_hard,med,scone,neg_nli or some of them.")
    ] = "",
) -> None:
    """Get MultiNLI 1.0 (227 MB) and HANS (15 MB) from their official places, and verify them; challenge sets (3 MB) as well.

    The folder then holds the official files, the same as Parquet, and origin.json, which says where each file is from,
    its sha256, and whether it is the complete official one. What is there is not downloaded again, and a broken
    download goes on where it ended.

        blindsweep data fetch
        blindsweep data fetch --from /mnt/corpora --to data
        blindsweep data fetch --challenges mnli_hard,med,scone,neg_nli
    """
    from pipelines.data.downloads import fetch_nli_data
    from pipelines.data.sources import NUM_TRAINING_ROWS
    from pipelines.identity import MARKS
    from sweep.run.progress import Transfers

    names = [name.strip() for name in challenges.split(",") if name.strip()]
    with Transfers() as transfers:
        origin = fetch_nli_data(to, copies=copies, challenges=names, say=transfers.say, on_bytes=transfers)
    metrics = origin["parquet"]["metrics"]
    print(f"{to}: {metrics['train/num_examples']:,} training rows; all of MultiNLI gives {NUM_TRAINING_ROWS:,}")
    for mark in metrics.get(MARKS, ()):
        print(f"whatever is built from it is marked: {mark}")
    for name in names:
        print(f"{name}: {metrics[f'{name}/num_examples']:,} examples")
    also = f" -p {quote('challenges=' + ','.join(names))}" if names else ""
    print(f"next: blindsweep run mini -p {quote(f'data={to}')} -p model=CHECKPOINT{also}")
