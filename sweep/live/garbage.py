"""What lies in a store that no study refers to, and its removal. What a study can reach, or a run is building, stays."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.storage import RECORD_FILE, filesystem, join, remove
from sweep.graph.identity import SHORT
from sweep.graph.integrity import HOLDING
from sweep.graph.records import STAGES, Store, Study
from sweep.live.heartbeat import Beat, read_beats
from sweep.live.lease import is_held, lease_if_free

ARTIFACT = re.compile(rf".+-[0-9a-f]{{{SHORT}}}")


@dataclass(frozen=True)
class Folder:
    """An artifact's folder, `name` being `slug-fingerprint`; it is complete if it has a record."""

    stage: str
    name: str
    num_bytes: int
    is_complete: bool


@dataclass(frozen=True)
class Garbage:
    """`loose` is what may go. `held` are folders that nothing refers to and a run is building; `reachable` are the studies'."""

    loose: tuple[Folder, ...]
    held: tuple[Folder, ...]
    reachable: tuple[Folder, ...]
    num_studies: int

    @property
    def num_bytes(self) -> int:
        return total(self.loose)


def total(folders: Iterable[Folder]) -> int:
    """The bytes of `folders` together."""
    return sum(folder.num_bytes for folder in folders)


def find_garbage(store: Store) -> Garbage:
    """Look at every manifest and every artifact's folder of a store; nothing is written.

    Only folders that are named as artifacts are, in the folders of stages, are looked at. Raises UserError where a manifest
    cannot be read, or there is none: then nobody knows what is referred to.
    """
    names = store.studies()
    if not names:
        raise UserError(
            f"no study in {store.uri}: nothing there would be referred to; give the --store of your studies, or remove the "
            "folder yourself"
        )
    wanted = {
        (step.stage, f"{step.slug}-{step.fingerprint[:SHORT]}") for name in names for step in Study.listed(store, name).steps
    }
    loose, held, reachable = [], [], []
    for folder in _folders(store):
        if (folder.stage, folder.name) in wanted:
            reachable.append(folder)
        elif is_held(join(store.uri, folder.stage, folder.name)):
            held.append(folder)
        else:
            loose.append(folder)
    return Garbage(tuple(loose), tuple(held), tuple(reachable), len(names))


def live_runs(store: Store) -> list[Beat]:
    """The runs that go on in a store, of any study."""
    return [beat for name in store.studies() for beat in read_beats(store, name) if beat.is_live]


def remove_garbage(store: Store) -> Garbage:
    """Remove what may go, and return it; `held` has what a run took on meanwhile, too.

    Raises UserError while a run goes on: it may count on what an earlier manifest of its study referred to. What was found
    before is not trusted: studies may have come since.
    """
    if runs := live_runs(store):
        raise UserError(
            f"a run of {runs[0].study} goes on in {store.uri} (on {runs[0].host}, since {runs[0].started}); remove nothing "
            "before it has ended, or look with --dry-run"
        )
    found = find_garbage(store)
    removed: list[Folder] = []
    held = list(found.held)
    for folder in found.loose:
        (removed if _remove(store, folder) else held).append(folder)
    return Garbage(tuple(removed), tuple(held), found.reachable, found.num_studies)


def _remove(store: Store, folder: Folder) -> bool:
    """Remove one folder, its record first: half removed, it is not built. False if a run holds it by now."""
    uri = join(store.uri, folder.stage, folder.name)
    with lease_if_free(uri) as lease:
        # One that another machine's run died with cannot be had without waiting; it is nobody's.
        if lease is None and is_held(uri):
            return False
        file_system, root = filesystem(uri)
        paths = file_system.find(root)
        holding = [path for path in paths if path.rpartition("/")[2] in HOLDING]
        record = [path for path in paths if path == f"{root.rstrip('/')}/{RECORD_FILE}"]
        rest = [path for path in paths if path not in (*holding, *record)]
        # What others look for before they build goes last: they meet all of it or nothing.
        for some in filter(None, (record, rest, holding)):
            file_system.rm(some)
        if store.is_local:
            remove(uri)
    return True


def _folders(store: Store) -> list[Folder]:
    """The folders of all artifacts with their sizes, from one listing a stage, in the order of the pipeline."""
    folders = []
    for stage in STAGES:
        file_system, root = filesystem(join(store.uri, stage))
        root = root.rstrip("/")
        sizes: dict[str, int] = {name: 0 for name in store.names(join(store.uri, stage)) if ARTIFACT.fullmatch(name)}
        complete = set()
        for path, info in file_system.find(root, detail=True).items():
            name, _, below = path.removeprefix(f"{root}/").partition("/")
            if name in sizes and below:
                sizes[name] += info["size"] or 0
                if below == RECORD_FILE:
                    complete.add(name)
        folders += [Folder(stage, name, sizes[name], name in complete) for name in sorted(sizes)]
    return folders
