"""`blindsweep bundle` and `unbundle`: a study in files that travel, and files made a study again."""

import re
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UserError
from sweep.commands.options import DEFAULT_STORE, StoreUri, StudyName, study_name
from sweep.commands.upkeep.gc import size
from sweep.graph.records import Store

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def bundle(
    study: StudyName,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The zip file to write; several parts are FILE-001.zip and so on.")
    ],
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PIECE",
            help="Take a piece of it, as `run --only` has it (seed=3,4, generator=1, shared); or whole: the seeds of which "
            "everything is built.",
        ),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    part_size: Annotated[str, typer.Option(metavar="SIZE", help="The most that one file may take, such as 16MiB.")] = "1GiB",
) -> None:
    """Write what is built of a study into files that travel: records, results, pool and sets, without weights.

    Each file can be checked and merged alone,
    by `unbundle`, into any store. A run may go on meanwhile.

        blindsweep bundle mini mini.zip
        blindsweep bundle mini seeds.zip --only whole
        blindsweep bundle mini piece.zip --part-size 16MiB --store s3://bucket/studies
    """
    from sweep.bundles.bundle import write_bundle

    written = write_bundle(Store(store), study_name(study), file, part_size=_bytes(part_size), only=only)
    for part in written.parts:
        print(f"{part}  {size(part.stat().st_size)}")
    left = f"; {written.left_out:,} are not built" if written.left_out else ""
    of_piece = f" of {written.only}" if written.only else ""
    print(f"{written.num_artifacts:,} artifacts{of_piece} without weights in {_files(len(written.parts))}{left}")


def unbundle(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Parts of bundles, in any order.")],
    store: StoreUri = DEFAULT_STORE,
) -> None:
    """Merge files that `bundle` wrote into a store. All are checked before anything is written.

    What is there already stays. Two builds of one artifact that differ are an error, which names both. Weights are in no
    bundle: what needs them builds them again, and `plan` says so.

        blindsweep unbundle piece0-*.zip piece1-*.zip --store together
    """
    from sweep.bundles.merge import merge_bundles

    where = Store(store)
    merged = merge_bundles(where, files)
    print(f"{where.uri}: {merged.num_new:,} artifacts of {', '.join(merged.studies)} merged, {merged.num_there:,} were there")
    if merged.unfinished:
        names = ", ".join(merged.unfinished[:3]) + (", …" if len(merged.unfinished) > 3 else "")
        print(f"{len(merged.unfinished):,} more wait for other parts of their bundle: {names}")
    print("`blindsweep report` reads them; `blindsweep reindex` puts them into MLflow")


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number:,} files"


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if found is None or not (number := int(float(found[1]) * UNITS[found[2] or ""])):
        raise UserError(f"--part-size {text}: give a number of bytes above 0, or one with a unit, such as 16MiB or 2GB")
    return number
