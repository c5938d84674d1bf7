"""Whether artifacts are what their records say, what becomes of those that are not, and what was built from other content.

    check(store, record, "anew")                  # every file is read
    set_aside(store, record.id, "a file has other content")

An artifact that is set aside lies in `{store}/set-aside/` and counts as not built; nothing is ever removed.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipelines.errors import DamagedError, UserError
from pipelines.hashing import remembered_sha256
from pipelines.object_store import plain_errors
from pipelines.storage import RECORD_FILE, files_below, filesystem, is_plain_name, join, read_text, write_text
from sweep.graph.identity import SHORT
from sweep.graph.records import ArtifactId, Record, Store

SET_ASIDE = "set-aside"
"""The store's folder of what was set aside; `why.txt` beside the files says why."""
UNDER_WAY = ".set-aside"
"""In an artifact's folder while its files are being moved: where to. A process that finds it goes on."""
HOLDING = (".lock", ".lease")
"""What a process holds while it alone may build an artifact: it stays where others look for it."""
STALE = "stale: built from inputs that were built again since, with other content"
"""The mark of what `run --keep-dependents` kept, and of what is built from it."""

WEIGHTS = ".safetensors"
"""How the names of files end that hold weights, and nothing but weights."""

How = Literal["sizes", "remembered", "anew"]
"""How files are compared: by their sizes; by hashes too, which on this machine may be remembered and in a remote store are not
taken; by hashes of every file as it is now, which reads a remote store's files over the network."""


MISSING = "is missing"


@dataclass(frozen=True)
class Damage:
    """A file that is not what its artifact's record says, or the record itself; `found` completes the sentence."""

    artifact: ArtifactId
    file: str
    found: str

    def __str__(self) -> str:
        return f"{self.artifact.name}-{self.artifact.fingerprint[:SHORT]}/{self.file} {self.found}"

    @property
    def is_lost_weights(self) -> bool:
        """Whether it is a file of weights that is not there, as after a bundle: nothing of what was measured is lost."""
        return self.found == MISSING and self.file.endswith(WEIGHTS)


def besides_weights(damages: Iterable[Damage]) -> list[Damage]:
    """Those of `damages` that are more than weights which are not here: of these something is lost."""
    return [damage for damage in damages if not damage.is_lost_weights]


def inspect(store: Store, artifact: ArtifactId, how: How) -> tuple[Record | None, list[Damage]]:
    """The record of an artifact, None if it is not built or the record is damaged, and all that is damaged.

    What comes damaged from a remote store is read a second time: it may be the connection that damaged it.
    """
    for is_last in (store.is_local, True):
        try:
            record = store.read_record(artifact)
        except DamagedError as error:
            if is_last:
                found = str(error).partition(f"/{RECORD_FILE} ")[2].partition(";")[0]
                return None, [Damage(artifact, RECORD_FILE, found)]
        else:
            break
    return record, check(store, record, how) if record else []


def check_all(store: Store, records: Iterable[Record], how: Callable[[Record], How]) -> dict[str, list[Damage]]:
    """`check` of many artifacts, of which a remote store is asked for one listing a stage; by fingerprint, the whole left out.

    The records were read before, so that what is built meanwhile has its files in the listing.
    """
    records = list(records)
    listed: dict[str, dict[str, int | None]] = {}
    for stage in [] if store.is_local else {record.stage for record in records}:
        file_system, root = filesystem(join(store.uri, stage))
        with plain_errors(store.uri):
            for path, info in files_below(file_system, root).items():
                name, _, within = path.partition("/")
                listed.setdefault(f"{stage}/{name}", {})[within] = info["size"]
    found = {}
    for record in records:
        sizes = None if store.is_local else listed.get(f"{record.stage}/{record.slug}-{record.fingerprint[:SHORT]}", {})
        if damages := check(store, record, how(record), sizes):
            found[record.fingerprint] = damages
    return found


def check(store: Store, record: Record, how: How, sizes: Mapping[str, int | None] | None = None) -> list[Damage]:
    """The files of a complete artifact that are missing or not what the record says, in the order of the record.

    `sizes` are those of its files, where they are known from a listing.
    """
    folder = store.folder(record.id)
    if sizes is None and store.is_local:
        sizes = {path: _size(Path(folder, path)) for path in record.files}
    elif sizes is None:
        file_system, root = filesystem(folder)
        sizes = {path: info["size"] for path, info in files_below(file_system, root).items()}
    found = {}
    for path, file in record.files.items():
        if sizes.get(path) is None:
            found[path] = MISSING
        elif sizes[path] != file["bytes"]:
            found[path] = f"has {sizes[path]:,} bytes, {file['bytes']:,} in its record"
    paths = [path for path in record.files if path not in found]
    hashes: dict[str, str | None] = {}
    if how == "anew" and not store.is_local:
        hashes = {path: file["sha256"] for path, file in store.files(folder, paths).items()}
        if others := [path for path, sha256 in hashes.items() if sha256 != record.files[path]["sha256"]]:
            hashes |= {path: file["sha256"] for path, file in store.files(folder, others).items()}
    elif how != "sizes" and store.is_local:
        with ThreadPoolExecutor(8) as threads:
            remembered = threads.map(lambda path: _sha256(Path(folder, path), anew=how == "anew"), paths)
            hashes = dict(zip(paths, remembered, strict=True))
    for path, sha256 in hashes.items():
        if sha256 is None:
            found[path] = "cannot be read from the disk (input/output error)"
        elif sha256 != record.files[path]["sha256"]:
            found[path] = f"has other content (sha256 {sha256[:SHORT]}…, {record.files[path]['sha256'][:SHORT]}… in its record)"
    return [Damage(record.id, path, found[path]) for path in record.files if path in found]


def _sha256(path: Path, *, anew: bool) -> str | None:
    try:
        return remembered_sha256(path, anew=anew)
    except OSError as error:
        if error.errno == errno.EIO:
            return None
        raise


def whole_folder(store: Store, record: Record) -> str:
    """The folder of an artifact to read from. Raises DamagedError, naming the first damaged file, if it is not whole,
    UserError if it only lacks weights."""
    if damages := check(store, record, "remembered"):
        if all(damage.is_lost_weights for damage in damages):
            raise UserError(
                f"{damages[0]}: its weights are not here, as after a bundle; copy them from where they were built, or "
                "`blindsweep verify --weights --set-aside` has the next run build them again"
            )
        raise DamagedError(
            f"{damages[0]}; restore it, or `blindsweep verify --set-aside` sets its artifact aside, and the next run builds it "
            "again"
        )
    return store.folder(record.id)


def _size(path: Path) -> int | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def set_aside(store: Store, artifact: ArtifactId, why: str) -> str:
    """Move an artifact out of the way, its record first, so that it counts as not built; returns where it lies now.

    Only to be called by who alone may build the artifact. Begun by a process that was killed, it is finished by
    `finish_setting_aside`.
    """
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = join(store.uri, SET_ASIDE, artifact.stage, f"{artifact.slug}-{artifact.fingerprint[:SHORT]}-{now}")
    write_text(join(target, "why.txt"), why + "\n")
    write_text(join(store.folder(artifact), UNDER_WAY), target)
    finish_setting_aside(store, artifact)
    return target


def finish_setting_aside(store: Store, artifact: ArtifactId) -> None:
    """Go on with what a process began that was stopped in the midst of it; else do nothing."""
    folder = store.folder(artifact)
    target = read_text(join(folder, UNDER_WAY))
    if target is None:
        return
    name = target.rpartition("/")[2]
    if not is_plain_name(name):
        raise DamagedError(
            f"{folder}/{UNDER_WAY} does not name a folder ({name!r}); remove it, and look at what else was changed"
        )
    file_system, root = filesystem(folder)
    # The store may have moved since; and what is read in one leads nowhere else.
    _, there = filesystem(join(store.uri, SET_ASIDE, artifact.stage, name))
    paths = [path.removeprefix(root.rstrip("/") + "/") for path in file_system.find(root)]
    paths = [path for path in paths if path not in (*HOLDING, UNDER_WAY)]
    for path in sorted(paths, key=lambda path: path != RECORD_FILE):
        destination = f"{there.rstrip('/')}/{path}"
        file_system.makedirs(destination.rsplit("/", 1)[0], exist_ok=True)
        file_system.mv(f"{root}/{path}", destination)
    if store.is_local:
        # One of them may stand in the place of a file that is to be written.
        for subfolder, _, _ in os.walk(root, topdown=False):
            if subfolder != root:
                os.rmdir(subfolder)
    file_system.rm_file(f"{root}/{UNDER_WAY}")


def what_is_set_aside(store: Store) -> tuple[int, int]:
    """How many artifacts lie in the store's `SET_ASIDE`, and the bytes of all that is in there; from one listing."""
    file_system, root = filesystem(join(store.uri, SET_ASIDE))
    sizes = {path: info["size"] or 0 for path, info in file_system.find(root, detail=True).items()}
    return sum(path.endswith("/why.txt") for path in sizes), sum(sizes.values())


def changed_inputs(record: Record, built: Mapping[str, Record]) -> list[str]:
    """The inputs, by name, that were built again with other content since `record` was; `built` is by fingerprint.

    Of a record older than `input_contents`, or of an input that is not built, that is not known, and it is not among them.
    """
    return sorted(
        name
        for name, source in record.inputs.items()
        if name in record.input_contents
        and source.fingerprint in built
        and built[source.fingerprint].content != record.input_contents[name]
    )


def why_stale(record: Record, changed: Iterable[str]) -> str:
    """The reason to build an artifact again, in words."""
    return f"built again with other content: {', '.join(f'{name} {record.inputs[name].slug}' for name in changed)}"


def with_stale_marks(records: Iterable[Record]) -> dict[str, Record]:
    """The records whose mark `STALE` is missing, or left from before, put right; by fingerprint.

    `records` come in the order in which they are built.
    """
    built: dict[str, Record] = {}
    corrected: dict[str, Record] = {}
    for record in records:
        sources = [built[source.fingerprint] for source in record.inputs.values() if source.fingerprint in built]
        is_stale = bool(changed_inputs(record, built)) or any(STALE in source.marks for source in sources)
        if not is_stale and len(sources) < len(record.inputs):
            # With an input that is not built nobody can tell: it stays as it is.
            is_stale = STALE in record.marks
        if is_stale != (STALE in record.marks):
            marks = {*record.marks, STALE} if is_stale else {*record.marks} - {STALE}
            record = corrected[record.fingerprint] = replace(record, marks=tuple(sorted(marks)))
        built[record.fingerprint] = record
    return corrected
