"""The artifact store and its records. Light imports: reading a study needs no Ray, torch or MLflow.

    store = Store("blindsweep-store")
    study = Study.load(store, "demo")
    [step.record.metrics for step in study.steps if step.record]

An artifact lies at `{store}/{stage}/{slug}-{fingerprint12}/`. Its `record.json` is written last and
atomically: a record means complete, no record means not built. Names that begin with a dot are working state
and never part of an artifact.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.storage import files_below, filesystem, is_local, join, local_path, make_folder, sync_tree, write_bytes
from sweep.graph.identity import SHORT
from sweep.graph.stages import REGISTRY

RECORD_FILE = "record.json"
FORMAT = 1
STAGES = tuple(REGISTRY)
COORDINATES = ("starting_size", "kind", "size", "seed")
"""What places a task model and its evaluation in the grid; other artifacts have some of them."""
TRAINED_KINDS = ("original", "synthetic", "biased_synthetic")
KINDS = ("none", *TRAINED_KINDS)
"""Kinds of training set, in the order of pages and figures; "none", of size 0, is a starting point as it is."""
BLINDSPOT_SLICE = "lexical_overlap/non-entailment"
"""The blindspot's slice of studies whose manifest is older than `blindspot_slice`."""


@dataclass(frozen=True)
class ArtifactId:
    """The name of an artifact: `slug` is for people, `fingerprint` the identity, whose first digits are enough to find it."""

    stage: str
    slug: str
    fingerprint: str

    @property
    def name(self) -> str:
        """`stage/slug`, as messages show it."""
        return f"{self.stage}/{self.slug}"


@dataclass(frozen=True)
class Record:
    """The facts of one complete artifact.

    `payload` is what its fingerprint is made of. `inputs` are the artifacts that it was built from, by their names in
    the stage; `coordinates` places it in the grid (`COORDINATES`); `files` maps a path inside the
    folder to {"sha256", "bytes"}; `num_rows` maps a Parquet file, or the folder of several, to its rows;
    `durations` are in seconds; `created` is ISO 8601 in UTC. `marks` say in what the artifact is not the real
    thing ("rehearsal", for one): its own stage's and those of all that it was built from, sorted. Records older
    than the field have none.
    """

    stage: str
    slug: str
    fingerprint: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, ArtifactId] = field(default_factory=dict)
    coordinates: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    durations: Mapping[str, float] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    marks: tuple[str, ...] = ()

    @property
    def id(self) -> ArtifactId:
        return ArtifactId(self.stage, self.slug, self.fingerprint)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Record":
        """Raises UserError naming `where` if the text is not a complete record."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            values["marks"] = tuple(values.get("marks", ()))
            values["inputs"] = {name: ArtifactId(**source) for name, source in values.get("inputs", {}).items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is not a readable record ({error}); a record is written in one piece, so it was "
                "damaged afterwards: restore it, or remove its folder to have the artifact built again"
            ) from error


class Store:
    """A folder or fsspec URI of artifacts. Creates nothing until something is written."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.is_local = is_local(uri)
        # Workers have another current directory.
        self.uri = str(local_path(uri).absolute()) if self.is_local else str(uri).rstrip("/")

    def folder(self, artifact: ArtifactId) -> str:
        return join(self.uri, artifact.stage, f"{artifact.slug}-{artifact.fingerprint[:SHORT]}")

    def read_record(self, artifact: ArtifactId) -> Record | None:
        """The record of a complete artifact, or None if it is not built.

        Raises UserError for a record that cannot be read or is of another artifact.
        """
        where = join(self.folder(artifact), RECORD_FILE)
        text = self._read(where)
        if text is None:
            return None
        record = Record.from_json(text, where)
        if not record.fingerprint.startswith(artifact.fingerprint):
            raise UserError(
                f"{where} is the record of {record.fingerprint}, not of {artifact.fingerprint}; artifacts were moved "
                "or renamed by hand: remove that folder to have the artifact built again"
            )
        return record

    def write_record(self, record: Record) -> None:
        """Mark an artifact complete. Everything it consists of must already be in its folder.

        In a local store all of it is on the disk before the record is.
        """
        folder = self.folder(record.id)
        if self.is_local:
            make_folder(Path(folder))
            sync_tree(folder)
        self.write_bytes(join(folder, RECORD_FILE), record.to_json().encode())

    def read_bytes(self, folder: str, relpath: str) -> bytes:
        """Content of a file of an artifact. Raises UserError if it is not there."""
        content = self._read(join(folder, relpath))
        if content is None:
            raise UserError(
                f"{join(folder, relpath)} is missing, though its artifact is recorded as complete; restore "
                f"it, or remove {folder} to have it built again"
            )
        return content

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a whole file so that a reader sees the old content or the new, never a part."""
        write_bytes(path, content)

    def folders(self, stage: str) -> dict[str, list[str]]:
        """Slug → the first digits of the fingerprints of its artifacts, complete or not, sorted; from one listing."""
        by_slug: dict[str, list[str]] = {}
        for name in sorted(self._names(join(self.uri, stage))):
            if name.startswith("."):
                continue
            by_slug.setdefault(name[: -SHORT - 1], []).append(name[-SHORT:])
        return by_slug

    def files(self, folder: str) -> dict[str, dict[str, Any]]:
        """Path, sha256 and size of each file of an artifact; working state and the record left out."""
        file_system, root = filesystem(folder)
        paths = {path: info["name"] for path, info in files_below(file_system, root).items() if path != RECORD_FILE}

        def described(path: str) -> dict[str, Any]:
            digest = hashlib.sha256()
            with file_system.open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            return {"sha256": digest.hexdigest(), "bytes": file_system.size(path)}

        # Hashing leaves the interpreter to others; the weights of a large model are several files.
        with ThreadPoolExecutor(8) as threads:
            return dict(zip(paths, threads.map(described, paths.values()), strict=True))

    def studies(self) -> list[str]:
        """Names of the studies that were ever run into this store."""
        names = self._names(join(self.uri, "studies"))
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def _read(self, path: str) -> bytes | None:
        try:
            if self.is_local:
                return Path(path).read_bytes()
            file_system, remote = filesystem(path)
            return bytes(file_system.cat_file(remote))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _names(self, folder: str) -> list[str]:
        try:
            if self.is_local:
                return [entry.name for entry in os.scandir(folder)]
            file_system, remote = filesystem(folder)
            return [path.rstrip("/").rsplit("/", 1)[-1] for path in file_system.ls(remote, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []


@dataclass(frozen=True)
class StudyStep:
    """One artifact of a study; `inputs` maps a name to a fingerprint; `record` is None if it is not built."""

    stage: str
    slug: str
    fingerprint: str
    coordinates: Mapping[str, Any]
    inputs: Mapping[str, str]
    record: Record | None = None

    @property
    def id(self) -> ArtifactId:
        return ArtifactId(self.stage, self.slug, self.fingerprint)


@dataclass(frozen=True)
class Study:
    """One experiment as it was run: all its steps, and the failures of its last run.

    A failure is {"stage", "slug", "fingerprint", "error"}; blocked steps have an error that begins with
    "blocked by".
    """

    experiment: str
    title: str
    parameters: Mapping[str, Any]
    steps: tuple[StudyStep, ...]
    failures: tuple[Mapping[str, str], ...] = ()

    @property
    def marks(self) -> dict[str, int]:
        """Mark → how many of the built artifacts carry it, sorted; empty for a study that is the real thing."""
        counts = Counter(mark for step in self.steps if step.record for mark in step.record.marks)
        return dict(sorted(counts.items()))

    @property
    def blindspot_slice(self) -> str:
        """The slice of an evaluation in which going by the study's heuristic is wrong."""
        return str(self.parameters.get("blindspot_slice", BLINDSPOT_SLICE))

    @property
    def blindspot(self) -> str:
        """Where the blindspot is read: `set/slice`, or the slice alone where the manifest names no set."""
        return "/".join(filter(None, (self.parameters.get("blindspot_set"), self.blindspot_slice)))

    @property
    def num_built(self) -> int:
        return sum(step.record is not None for step in self.steps)

    @staticmethod
    def path(store: Store, name: str) -> str:
        return join(store.uri, "studies", f"{name}.json")

    @classmethod
    def load(cls, store: Store, name: str) -> "Study":
        """Raises UserError, naming the studies that there are, for one that was never run into the store."""
        where = cls.path(store, name)
        text = store._read(where)
        if text is None:
            known = ", ".join(store.studies()) or "none yet"
            raise UserError(f"no study {name!r} in {store.uri} (there: {known}); run it first, or give --store")
        try:
            values = json.loads(text)
            steps = tuple(StudyStep(**step) for step in values["steps"])
            steps = tuple(dataclasses.replace(step, record=store.read_record(step.id)) for step in steps)
            return cls(values["experiment"], values["title"], values["parameters"], steps, tuple(values["failures"]))
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where} is not a readable study ({error}); run the experiment again to write it anew") from error

    def save(self, store: Store) -> None:
        """Write the manifest; records are not part of it."""
        steps = [
            {**dataclasses.asdict(step.id), "coordinates": dict(step.coordinates), "inputs": dict(step.inputs)}
            for step in self.steps
        ]
        values = {
            "format": FORMAT,
            "experiment": self.experiment,
            "title": self.title,
            "parameters": dict(self.parameters),
            "steps": steps,
            "failures": [dict(failure) for failure in self.failures],
        }
        store.write_bytes(self.path(store, self.experiment), json.dumps(values, indent=1, ensure_ascii=False).encode())


def write_plan(store: Store, name: str, plan: Mapping[str, Any]) -> None:
    """Keep what a study was estimated to cost (`sweep.plan.page.plan_json`), for the report to compare with what it took."""
    store.write_bytes(join(store.uri, "plans", f"{name}.json"), json.dumps(plan, indent=1, ensure_ascii=False).encode())


def read_plan(store: Store, name: str) -> dict[str, Any] | None:
    """The estimate that was kept when the study was last run, or None."""
    text = store._read(join(store.uri, "plans", f"{name}.json"))
    return None if text is None else dict(json.loads(text))
