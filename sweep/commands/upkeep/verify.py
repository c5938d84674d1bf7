"""`blindsweep verify`: every file of every artifact against its record."""

import json as js
from collections.abc import Iterator
from typing import Annotated

import typer

from pipelines.storage import join
from sweep.commands.options import DEFAULT_STORE, Json, OneOrAllStudies, StoreUri, study_name, tell
from sweep.graph.identity import SHORT
from sweep.graph.integrity import SET_ASIDE, Damage, besides_weights, inspect, set_aside, what_is_set_aside
from sweep.graph.records import STAGES, ArtifactId, Store, Study
from sweep.run.failures import one_line


def verify(
    study: OneOrAllStudies = None,
    store: StoreUri = DEFAULT_STORE,
    set_damaged_aside: Annotated[
        bool, typer.Option("--set-aside", help="Move damaged artifacts to STORE/set-aside: the next run builds them again.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Count weights that are not here, as after a bundle, as damage.")
    ] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Compare only which files are there and their sizes: none is read.")
    ] = False,
    json: Json = False,
) -> None:
    """Read every file of every artifact and compare it with its record; exit code 1 if anything is damaged.

    Nothing is remembered from before: this finds what a disk has lost since. A remote store's files are read over the
    network, and those that come damaged a second time. Not while a run is building from the artifacts, with --set-aside.

        blindsweep verify demo
        blindsweep verify --store s3://bucket/studies --set-aside
    """
    where = Store(store)
    artifacts = list(_of_study(where, study_name(study)) if study else _of_store(where))
    num_complete = num_files = num_bytes = 0
    damaged: dict[ArtifactId, list[Damage]] = {}
    moved: dict[ArtifactId, str] = {}
    unreadable: dict[ArtifactId, str] = {}
    without_weights: list[ArtifactId] = []
    for artifact in artifacts:
        try:
            record, damages = inspect(where, artifact, "sizes" if sizes else "anew")
        except PermissionError as error:
            # Whether it is damaged, who may read it can tell: it is not moved.
            unreadable[artifact] = one_line(error)
            if not json:
                tell(f"{artifact.name}-{artifact.fingerprint[:SHORT]} cannot be read ({unreadable[artifact]})")
            continue
        if record is not None:
            artifact = record.id  # in a store's folders fingerprints are short
            num_files += len(record.files)
            num_bytes += sum(file["bytes"] for file in record.files.values())
        num_complete += record is not None or bool(damages)
        if not weights and any(damage.is_lost_weights for damage in damages):
            without_weights.append(artifact)
            damages = besides_weights(damages)
        if not damages:
            continue
        damaged[artifact] = damages
        if not json:
            for damage in damages:
                tell(damage)
        if set_damaged_aside:
            moved[artifact] = set_aside(where, artifact, "\n".join(map(str, damages)))
            if not json:
                tell(f"  set aside as {moved[artifact]}")
    num_aside, bytes_aside = what_is_set_aside(where)
    if json:
        values = {
            "store": where.uri,
            "artifacts": num_complete,
            "files": num_files,
            "bytes": num_bytes,
            "not_built": len(artifacts) - num_complete - len(unreadable),
            "without_weights": [artifact.name for artifact in without_weights],
            "unreadable": {artifact.name: error for artifact, error in unreadable.items()},
            "damaged": [
                {
                    "stage": artifact.stage,
                    "slug": artifact.slug,
                    "fingerprint": artifact.fingerprint,
                    "files": [{"file": damage.file, "found": damage.found} for damage in damages],
                    "set_aside": moved.get(artifact),
                }
                for artifact, damages in damaged.items()
            ],
            "in_set_aside": {"artifacts": num_aside, "bytes": bytes_aside},
        }
        tell(js.dumps(values, indent=1, ensure_ascii=False))
    else:
        tell(_summary(num_complete, num_files, num_bytes, len(artifacts), len(damaged), len(moved), len(unreadable)))
        if without_weights:
            tell(f"{len(without_weights)} of them have no weights here, as after a bundle; nothing that was measured is lost")
        if num_aside:
            held = f"{num_aside:,} artifacts, {bytes_aside / 1e6:,.1f} MB"
            tell(f"{join(where.uri, SET_ASIDE)} holds {held}, that nothing reads: remove what you do not need")
    if damaged or unreadable:
        raise typer.Exit(1)


def _of_study(store: Store, name: str) -> Iterator[ArtifactId]:
    for step in Study.load(store, name).steps:
        yield step.id


def _of_store(store: Store) -> Iterator[ArtifactId]:
    for stage in STAGES:
        for slug, fingerprints in store.folders(stage).items():
            for fingerprint in fingerprints:
                yield ArtifactId(stage, slug, fingerprint)


def _summary(
    num_complete: int, num_files: int, num_bytes: int, num: int, num_damaged: int, num_moved: int, num_unreadable: int
) -> str:
    looked = f"{num_complete:,} artifacts, {num_files:,} files, {num_bytes / 1e6:,.1f} MB"
    if num_missing := num - num_complete - num_unreadable:
        looked += f" ({num_missing} more are not built)"
    if num_unreadable:
        looked += f"; {num_unreadable} more cannot be read by this user"
    if not num_damaged:
        return f"{looked}: all as their records say"
    damaged = "1 artifact is damaged" if num_damaged == 1 else f"{num_damaged:,} artifacts are damaged"
    way_out = "set aside, and the next run builds again" if num_moved else "--set-aside has the next run build it again"
    return f"{looked}: {damaged}; {way_out}"
