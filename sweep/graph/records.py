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
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedError, UserError
from pipelines.hashing import remembered_sha256
from pipelines.object_store import check_address, plain_errors
from pipelines.storage import (
    RECORD_FILE,
    files_below,
    filesystem,
    is_inside,
    is_local,
    is_plain_name,
    join,
    local_path,
    make_folder,
    sync_tree,
    write_bytes,
)
from sweep.graph.identity import SHORT, canonical_json
from sweep.graph.sealed import seal, unseal
from sweep.graph.stages import REGISTRY

FORMAT = 1
NOT_CONTENT = ("metrics.jsonl", "yield.json")
"""Files that no later step reads and that differ between two builds of one artifact: a finetuning's logged steps hold its
speed, a pool's yield the shards that fast engines wrote beyond need. Two builds of a study on a CPU differ in nothing else."""
STAGES = tuple(REGISTRY)
COORDINATES = ("starting_size", "kind", "size", "seed")
"""What places a task model and its evaluation in the grid; other artifacts have some of them. A dose of bias is a further
coordinate, `bias`, and so is the seed's `generator`, from 0, in a study with several. In a study with several arms, `arms` are
the names of those that a model or an evaluation is of; it is of several where they do the same."""
DIALS = ("bias", "synthetic_share", "generation")
"""Further coordinates, each of kinds that are more than a name, which it orders: a dose's bias, the part of a mix that is
synthetic, and from 2 the generation whose pool a synthetic set is drawn from."""
TRAINED_KINDS = ("original", "synthetic", "biased_synthetic")
"""The kinds that a study has unless it says otherwise."""
KNOWN_KINDS = (*TRAINED_KINDS, "filtered_synthetic", "debiased_synthetic")
KINDS = ("none", *KNOWN_KINDS)
"""Kinds of training set, in the order of pages and figures; "none", of size 0, is a starting point as it is."""
BLINDSPOT_SLICE = "lexical_overlap/non-entailment"
"""The blindspot's slice of studies whose manifest is older than `blindspot_slice`."""


def shown(coordinate: Any) -> str:
    """A coordinate's value as people read it: several arms side by side."""
    return ", ".join(coordinate) if isinstance(coordinate, list | tuple) else str(coordinate)


@dataclass(frozen=True)
class ArtifactId:
    """The name of an artifact: `slug` is for people, `fingerprint` the identity, whose first digits are enough to find it.

    They make the path of its folder. Raises ValueError for one that could lead elsewhere.
    """

    stage: str
    slug: str
    fingerprint: str

    def __post_init__(self) -> None:
        for name in ("stage", "slug", "fingerprint"):
            if not is_plain_name(value := getattr(self, name)):
                raise ValueError(f"{name} {value!r} cannot be a part of a path")

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
    thing ("rehearsal", for one): its own stage's and those of all that it was built from, sorted. `input_contents`
    maps an input's name to the `content` that it had then. `timeline` says when it was built, in seconds since 1970: its inputs
    were `ready`, it was `given` to its `lane`, which was `opened` and had workers `up`, where it `began` and `ended`; the last
    of its inputs was that of the name `waited_for`. Records older than these fields have none.
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
    input_contents: Mapping[str, str] = field(default_factory=dict)
    timeline: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> ArtifactId:
        return ArtifactId(self.stage, self.slug, self.fingerprint)

    @property
    def build(self) -> str:
        """What tells this build of the artifact from another one, for people."""
        return f"sha256 {self.content[:SHORT]}…, of {self.created or 'an unknown time'}"

    @cached_property
    def content(self) -> str:
        """The sha256, in hex, of the files' paths and hashes, without those that say how it was built (`NOT_CONTENT`)."""
        files = {path: file["sha256"] for path, file in self.files.items() if path not in NOT_CONTENT}
        return hashlib.sha256(canonical_json(files).encode()).hexdigest()

    def to_json(self) -> str:
        return seal({"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Record":
        """Raises DamagedError naming `where` if the text is not a complete record."""
        try:
            values = unseal(text)
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            values["marks"] = tuple(values.get("marks", ()))
            values["inputs"] = {name: ArtifactId(**source) for name, source in values.get("inputs", {}).items()}
            record = cls(**values)
            for path, file in record.files.items():
                str(file["sha256"]), int(file["bytes"])
                if not is_inside(path):
                    raise ValueError(f"its file {path!r} does not lie in its folder")
            assert record.id  # its parts are names
            return record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(
                f"{where} is not a readable record ({error}); restore it, or the next run sets its folder aside and builds the "
                "artifact again"
            ) from error


class Store:
    """A folder or fsspec URI of artifacts. Creates nothing until something is written.

    Reading from an object store raises UserError for a missing bucket and for credentials that do not open it. Errors name
    `option`, by which it was given.
    """

    def __init__(self, uri: str | os.PathLike[str], option: str = "--store") -> None:
        check_address(str(uri))
        self.option = option
        self.is_local = is_local(uri)
        # Workers have another current directory.
        self.uri = str(local_path(uri).absolute()) if self.is_local else str(uri).rstrip("/")
        if self.is_local and (file := _file_in_the_way(Path(self.uri))):
            # A disk that is not mounted, for one.
            what = f"a link to {os.readlink(file)}, which is not there" if file.is_symlink() else "a file"
            raise UserError(f"store {uri}: {file} is {what}; give {option} a folder, or a URI such as s3://BUCKET/FOLDER")

    def folder(self, artifact: ArtifactId) -> str:
        return join(self.uri, artifact.stage, f"{artifact.slug}-{artifact.fingerprint[:SHORT]}")

    def read_record(self, artifact: ArtifactId) -> Record | None:
        """The record of a complete artifact, or None if it is not built.

        Raises DamagedError for a record that cannot be read or is of another artifact.
        """
        where = join(self.folder(artifact), RECORD_FILE)
        text = self._read(where)
        if text is None:
            return None
        record = Record.from_json(text, where)
        if not record.fingerprint.startswith(artifact.fingerprint):
            raise DamagedError(
                f"{where} is the record of {record.fingerprint[:SHORT]}, not of {artifact.fingerprint[:SHORT]}; artifacts were "
                "moved or renamed by hand: move them back, or the next run sets this one aside and builds it again"
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

    def read_bytes(self, record: Record, relpath: str) -> bytes:
        """Content of a file of an artifact. Raises DamagedError if it is not there or is not what the record says."""
        where = join(self.folder(record.id), relpath)
        content = self._read(where)
        if content is None:
            found = "is missing, though its artifact is recorded as complete"
        elif hashlib.sha256(content).hexdigest() != record.files.get(relpath, {}).get("sha256"):
            found = "is not the file that its record vouches for"
        else:
            return content
        raise DamagedError(
            f"{where} {found}; restore it, or `blindsweep verify --set-aside` sets its artifact aside, and the next run builds "
            "it again"
        )

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a whole file so that a reader sees the old content or the new, never a part.

        Raises DamagedError if a folder is in its place.
        """
        try:
            write_bytes(path, content)
        except IsADirectoryError as error:
            raise _a_folder_is_there(path) from error

    def folders(self, stage: str) -> dict[str, list[str]]:
        """Slug → the first digits of the fingerprints of its artifacts, complete or not, sorted; from one listing."""
        by_slug: dict[str, list[str]] = {}
        for name in sorted(self.names(join(self.uri, stage))):
            if name.startswith("."):
                continue
            by_slug.setdefault(name[: -SHORT - 1], []).append(name[-SHORT:])
        return by_slug

    def files(self, folder: str, only: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """Path, sha256 and size of each file of an artifact, or `only` of those; working state and the record left out."""
        file_system, root = filesystem(folder)
        paths = {
            path: info["name"]
            for path, info in files_below(file_system, root).items()
            if path != RECORD_FILE and (only is None or path in only)
        }

        def described(path: str) -> dict[str, Any]:
            if self.is_local:
                return {"sha256": remembered_sha256(path, anew=True), "bytes": os.path.getsize(path)}
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
        names = self.names(join(self.uri, "studies"))
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def _read(self, path: str) -> bytes | None:
        try:
            if self.is_local:
                return Path(path).read_bytes()
            file_system, remote = filesystem(path)
            with plain_errors(path):
                return bytes(file_system.cat_file(remote))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError as error:
            raise _a_folder_is_there(path) from error

    def names(self, folder: str) -> list[str]:
        """The names in a folder of the store, in no order; none where there is no such folder."""
        try:
            if self.is_local:
                return [entry.name for entry in os.scandir(folder)]
            file_system, remote = filesystem(folder)
            with plain_errors(folder):
                return [path.rstrip("/").rsplit("/", 1)[-1] for path in file_system.ls(remote, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []


def _file_in_the_way(folder: Path) -> Path | None:
    """The file, or link to nothing, that stands where `folder` or one above it would have to be; None if there is none."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
    return there if there is not None and not os.path.isdir(there) else None


def _a_folder_is_there(path: str) -> DamagedError:
    return DamagedError(f"{path} is a folder, where a file should be; move it away and run the same command again")


@dataclass(frozen=True)
class StudyStep:
    """One artifact of a study; `inputs` maps a name to a fingerprint; `record` is None if it is not built.

    `damage` says in what its record is damaged, which then counts as not built.
    """

    stage: str
    slug: str
    fingerprint: str
    coordinates: Mapping[str, Any]
    inputs: Mapping[str, str]
    record: Record | None = None
    damage: str = ""

    @property
    def id(self) -> ArtifactId:
        return ArtifactId(self.stage, self.slug, self.fingerprint)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of the study that it is of; none where the study has one, or where it is of no arm."""
        return tuple(self.coordinates.get("arms", ()))


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
    def pool_copies(self) -> tuple[str, ...]:
        """For people: what its own pool has of the sets that it is judged by; empty where nothing, or no pool of its own."""
        return tuple(self.parameters.get("pool_copies", ()))

    @property
    def blindspot_slice(self) -> str:
        """The slice of an evaluation in which going by the study's heuristic is wrong."""
        return str(self.parameters.get("blindspot_slice", BLINDSPOT_SLICE))

    @property
    def blindspot(self) -> str:
        """Where the blindspot is read: `set/slice`, or the slice alone where the manifest names no set."""
        return "/".join(filter(None, (self.parameters.get("blindspot_set"), self.blindspot_slice)))

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of its arms, in their order; none in a study that trains a cell in one way."""
        of_steps = [step.arms for step in self.steps if step.arms]
        # The grid goes through the arms one by one, and what the first has in common with others is not where these begin.
        return tuple(dict.fromkeys([*(arms[0] for arms in of_steps), *(arm for arms in of_steps for arm in arms)]))

    @property
    def num_built(self) -> int:
        return sum(step.record is not None for step in self.steps)

    def extends(self, other: "Study") -> bool:
        """Whether it has all steps of `other`, and no others of its seeds (or nothing but these)."""
        there = {step.fingerprint for step in other.steps}
        seeds = {step.coordinates.get("seed") for step in other.steps} - {None}
        added = [step for step in self.steps if step.fingerprint not in there]
        return len(self.steps) - len(added) == len(there) and all(step.coordinates.get("seed") not in seeds for step in added)

    @staticmethod
    def path(store: Store, name: str) -> str:
        """Where its manifest is. Raises UserError for a name that no study can have."""
        check_study_name(name)
        return join(store.uri, "studies", f"{name}.json")

    @classmethod
    def load(cls, store: Store, name: str) -> "Study":
        """The study with its records. Raises UserError as `listed`."""
        return cls.listed(store, name).with_records(store)

    @classmethod
    def listed(cls, store: Store, name: str) -> "Study":
        """The study as it is written, without records: one file is read.

        Raises UserError, naming the studies that there are, for one that was never run into the store.
        """
        if (found := cls.manifest(store, name)) is None:
            known = ", ".join(store.studies()) or "none yet"
            raise UserError(f"no study {name!r} in {store.uri} (there: {known}); run it first, or give {store.option}")
        return found

    @classmethod
    def manifest(cls, store: Store, name: str) -> "Study | None":
        """What its last run was to build, without any record; None if it was never run. Raises UserError if it is damaged."""
        where = cls.path(store, name)
        text = store._read(where)
        return None if text is None else cls.from_json(text, where)

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Study":
        """A manifest that was written by `to_json`, without records. Raises UserError naming `where` if it is none."""
        try:
            values = unseal(text)
            steps = tuple(StudyStep(**step) for step in values["steps"])
            for step in steps:
                assert step.id  # its parts are names
            check_study_name(values["experiment"])
            return cls(values["experiment"], values["title"], values["parameters"], steps, tuple(values["failures"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where} is not a readable study ({error}); run the experiment again to write it anew") from error

    def with_records(self, store: Store, only: Collection[str] | None = None) -> "Study":
        """The same, with the records that the store has: of all steps that are without one, or of the fingerprints `only`."""
        missing = [step for step in self.steps if step.record is None and (only is None or step.fingerprint in only)]
        # A store's own errors name what could not be read.
        if store.is_local:
            found = [_record_of(step, store) for step in missing]
        else:
            with ThreadPoolExecutor(8) as threads:
                found = list(threads.map(lambda step: _record_of(step, store), missing))
        read = {step.fingerprint: fields for step, fields in zip(missing, found, strict=True)}
        return dataclasses.replace(
            self, steps=tuple(dataclasses.replace(step, **read.get(step.fingerprint, {})) for step in self.steps)
        )

    def to_json(self) -> str:
        """The manifest as it is kept; records are not part of it."""
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
        return seal(values)

    def save(self, store: Store) -> None:
        """Write the manifest, if it is not there as it is."""
        content = self.to_json().encode()
        if store._read(self.path(store, self.experiment)) != content:
            store.write_bytes(self.path(store, self.experiment), content)


def check_study_name(name: str) -> None:
    """Raises UserError for a name that cannot be a file's, a folder's and MLflow's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise UserError(
            f"name={name!r}: an experiment's name is a file's name; use letters, digits, '-', '_', at most 100 of them"
        )


def _record_of(step: StudyStep, store: Store) -> dict[str, Any]:
    try:
        return {"record": store.read_record(step.id), "damage": ""}
    except DamagedError as error:
        return {"damage": str(error)}


def write_plan(store: Store, name: str, plan: Mapping[str, Any]) -> None:
    """Keep what a study was estimated to cost (`sweep.plan.page.plan_json`), for the report to compare with what it took."""
    store.write_bytes(join(store.uri, "plans", f"{name}.json"), seal(plan).encode())


def read_plan(store: Store, name: str) -> dict[str, Any] | None:
    """The estimate that was kept when the study was last run, or None. Raises UserError if it cannot be read."""
    where = join(store.uri, "plans", f"{name}.json")
    text = store._read(where)
    try:
        return None if text is None else unseal(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a readable estimate ({error}); run the study again to write it anew") from error


def throughputs(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The rates among metrics, `…_per_s`: of models that were trained together theirs in all, as one's time is its share."""
    together = metrics.get("mean_trained_together", 1)
    return {
        name: value * together for name, value in metrics.items() if name.endswith("_per_s") and isinstance(value, int | float)
    }


def counts_in_words(stages: Mapping[str, int]) -> str:
    """How many artifacts, or steps, there are of each stage: ``54 evaluation, 6 generator``."""
    return ", ".join(f"{num:,} {stage}" for stage, num in stages.items())
