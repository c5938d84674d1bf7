"""Bundles merged into a store: what they hold becomes complete there, once it is all there."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import DamagedError, UserError
from pipelines.storage import filesystem, join, remove
from sweep.bundles.part import Part, Piece, bundled_files, read_part
from sweep.graph.identity import SHORT
from sweep.graph.integrity import besides_weights, check, check_all
from sweep.graph.records import Record, Store, Study
from sweep.live.lease import lease_if_free

PIECES = ".unbundled"
"""In an artifact's folder: pieces of files whose others have not come yet."""
PIECE = re.compile(r"(\d+)(?:-\d+)?")
"""Its name: where it begins, and its bytes, which earlier versions left out."""
DECLARED = {"claims": "other claims", "plan": "another plan"}
"""Parameters that no step has and that all seeds of a study are judged by, with how one that differs is called."""


class ConflictError(UserError):
    """Two builds of one artifact, or two studies of one name, that are not the same."""


@dataclass(frozen=True)
class Merged:
    """What merging did: artifacts that became complete, that were there already, and the names of those that lack parts."""

    studies: tuple[str, ...]
    num_new: int
    num_there: int
    unfinished: tuple[str, ...]


def merge_bundles(store: Store, paths: Sequence[Path]) -> Merged:
    """Merge parts of bundles, in any order, into `store`; nothing is written before all of them are looked at.

    An artifact that is there already stays, and gets back files that have gone. Raises DamagedError for a damaged part,
    ConflictError for an artifact of which the store or another part has other content, for one that was built from another
    build of its input, and for a study of the same name with other claims, another plan, or other steps than those of further
    seeds; UserError for a file that is no part of a bundle, and while a run is building one of the artifacts.
    """
    parts = [read_part(path) for path in paths]
    there = _there(store, parts)
    _check_records(store, parts, there)
    _studies(store, parts)
    records = {fingerprint: record for part in parts for fingerprint, record in part.records.items()}
    complete = [record for fingerprint in records if (record := there.get(fingerprint)) is not None]
    found = check_all(store, complete, lambda _: "sizes")
    lacking = {fingerprint for fingerprint, damages in found.items() if besides_weights(damages)}
    new = [record for fingerprint, record in records.items() if there.get(fingerprint) is None or fingerprint in lacking]
    unfinished = []
    for record in new:
        mine = [(part, piece) for part in parts for piece in part.pieces if piece.artifact == record.id]
        if not _complete(store, record, mine):
            unfinished.append(record.id.name)
    # Read anew: another merge, or a run, may have written a longer one meanwhile.
    studies = _studies(store, parts)
    for study in studies:
        _save(store, study)
    return Merged(
        tuple(study.experiment for study in studies),
        len(new) - len(unfinished),
        len(records) - len(new),
        tuple(unfinished),
    )


def _there(store: Store, parts: Sequence[Part]) -> dict[str, Record | None]:
    """The store's records of what is in the parts, and of its inputs, by fingerprint; None for what is not built."""
    artifacts = {
        artifact.fingerprint: artifact
        for part in parts
        for record in part.records.values()
        for artifact in (record.id, *record.inputs.values())
    }
    return {fingerprint: store.read_record(artifact) for fingerprint, artifact in artifacts.items()}


def _check_records(store: Store, parts: Sequence[Part], there: Mapping[str, Record | None]) -> None:
    """Raise ConflictError unless all builds of an artifact are alike, and each was built from the builds that there are."""
    seen: dict[str, tuple[Record, str]] = {
        fingerprint: (record, store.folder(record.id)) for fingerprint, record in there.items() if record is not None
    }
    for part in parts:
        for fingerprint, record in part.records.items():
            other, where = seen.setdefault(fingerprint, (record, str(part.path)))
            if other.content != record.content:
                raise ConflictError(
                    f"{record.id.name}-{fingerprint[:SHORT]} has other content in {part.path} ({record.build}) than in "
                    f"{where} ({other.build}): pieces of one study that were built apart must not build the same artifact; "
                    "merge them into two stores, or build what they share first (`blindsweep run --only shared`)"
                )
    for part in parts:
        for record in part.records.values():
            for name, source in record.inputs.items():
                of_input = seen.get(source.fingerprint)
                content = record.input_contents.get(name)
                if of_input is not None and content is not None and of_input[0].content != content:
                    raise ConflictError(
                        f"{record.id.name} in {part.path} was built from another {source.name} than that in {of_input[1]} "
                        f"({of_input[0].build}); merge them into two stores"
                    )


def _studies(store: Store, parts: Sequence[Part]) -> list[Study]:
    """The manifests that the store is to have: of one with further seeds the longest, else its own before those of the parts.

    Raises ConflictError for other steps, and for another plan or other claims.
    """
    seen: dict[str, tuple[Study, str]] = {}
    for part in parts:
        name = part.study.experiment
        if name not in seen and (own := Study.manifest(store, name)) is not None:
            seen[name] = own, Study.path(store, name)
        study, where = seen.setdefault(name, (part.study, str(part.path)))
        for declared, another in DECLARED.items():
            one, other = part.study.parameters.get(declared), study.parameters.get(declared)
            if one != other:
                said = f": {one} and {other}" if isinstance(one, str) and isinstance(other, str) else ""
                raise ConflictError(
                    f"{part.path} was built under {another} than {where}{said}; all seeds of {name} are judged by one: "
                    "merge it into another store"
                )
        if not (is_longer := part.study.extends(study)) and not study.extends(part.study):
            raise ConflictError(
                f"{part.path} is of a study {name} with {len(part.study.steps):,} steps, and {where} has others "
                f"({len(study.steps):,}): merge it into another store, or run the study there with the same parameters first"
            )
        longer, of_longer = (part.study, str(part.path)) if is_longer else (study, where)
        # Why a piece lacks a step is known to that piece alone.
        failures = {failure["fingerprint"]: failure for failure in (*study.failures, *part.study.failures)}
        seen[name] = replace(longer, failures=tuple(failures.values())), of_longer
    return [study for study, _ in seen.values()]


def _save(store: Store, study: Study) -> None:
    """Write a manifest without the failures of what is complete by now."""
    built = {step.fingerprint for step in study.with_records(store).steps if step.record is not None}
    failures = tuple(failure for failure in study.failures if failure["fingerprint"] not in built)
    replace(study, failures=failures).save(store)


def _complete(store: Store, record: Record, pieces: Sequence[tuple[Part, Piece]]) -> bool:
    """Write the pieces of an artifact that is not built, and complete it if that is all of it; whether it was."""
    folder = store.folder(record.id)
    with lease_if_free(folder) as held:
        if held is None:
            raise UserError(
                f"{folder} is being built by a run, or merged by another unbundle; when that has ended, give the "
                "same command again"
            )
        for part, piece in pieces:
            size = bundled_files(record)[piece.path]
            whole = piece.num_bytes == size
            at = join(folder, piece.path) if whole else _piece_path(folder, piece)
            store.write_bytes(at, part.content(piece))
        for path, size in bundled_files(record).items():
            if (content := _put_together(store, folder, path, size)) is not None:
                if hashlib.sha256(content).hexdigest() != record.files[path]["sha256"]:
                    raise DamagedError(
                        f"{join(folder, path)}: its pieces make another file; merge all parts of its bundle again"
                    )
                store.write_bytes(join(folder, path), content)
        if besides_weights(check(store, record, "sizes")):
            return False
        held.check()
        remove(join(folder, PIECES))
        store.write_record(record)
        return True


def _piece_path(folder: str, piece: Piece) -> str:
    return join(folder, PIECES, *piece.path.split("/"), f"{piece.offset}-{piece.num_bytes}")


def _put_together(store: Store, folder: str, path: str, size: int) -> bytes | None:
    """The file whose pieces have all come, of whichever bundles; None if some have not, or there are none."""
    at = join(folder, PIECES, *path.split("/"))
    content = bytearray()
    for offset, name in sorted((int(found[1]), found[0]) for name in store.names(at) if (found := PIECE.fullmatch(name))):
        if offset > len(content):
            return None
        file_system, where = filesystem(join(at, name))
        # Bundles with parts of other sizes are cut in other places, so that pieces may overlap.
        content += bytes(file_system.cat_file(where))[len(content) - offset :]
    return bytes(content) if content and len(content) == size else None
