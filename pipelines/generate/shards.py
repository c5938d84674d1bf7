"""The pool's shards: which are needed, and how each is committed once. No Ray, no vLLM.

A shard is `count` prompts of one label. Its name, seeds and row ids follow from (label, index, seed) alone,
so any worker can write any shard. It is committed by its `shards/<name>.json`, written after its two Parquet
files: no JSON, no shard. The pool is a rule over committed shards (`kept_shards`), never over who finished
first.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import filesystem, is_local, join, write_bytes
from pipelines.tasks.parquet import parquet_table

POOL, REJECTS, SURPLUS, SHARDS = "pool", "rejects", "surplus", "shards"


@dataclass(frozen=True)
class Shard:
    """`count` prompts of `label`, the `index`-th such shard of that label. `seed` is the shard's own."""

    label: str
    index: int
    seed: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.label}-{self.index:05d}"

    @property
    def files(self) -> tuple[str, str]:
        """Its examples and its rejects, relative to the output folder."""
        return f"{POOL}/{self.name}.parquet", f"{REJECTS}/{self.name}.parquet"

    @property
    def surplus_file(self) -> str:
        """Its examples beyond the number that the pool must have exactly, if there are any."""
        return f"{SURPLUS}/{self.name}.parquet"

    def row_id(self, row: int) -> str:
        return f"{self.name}-{row:05d}"

    def row_seed(self, row: int) -> int:
        """The seed of one request. Depends on nothing but the shard and the row, so not on what shares its batch."""
        return derive_seed(self.seed, row)


def derive_seed(*parts: int | str) -> int:
    """63 bits (a non-negative int64) of the SHA-256 of `parts`: different parts, different seed."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan_shards(num_per_label: Mapping[str, int], *, shard_size: int, min_yield: float, seed: int) -> list[Shard]:
    """Every shard that could be needed, in the order of work: labels in turn, so that they progress together.

    A label gets as many shards as would reach its number at a yield of `min_yield`.
    """
    num_shards = {label: math.ceil(num / (shard_size * min_yield)) for label, num in num_per_label.items()}
    return [
        Shard(label, index, derive_seed(seed, label, index), shard_size)
        for index in range(max(num_shards.values()))
        for label in num_per_label
        if index < num_shards[label]
    ]


@dataclass(frozen=True)
class Commit:
    """Contents of a committed shard. `request` is the hash of everything that decides its content.

    Of `num_parsed` examples, the last `num_surplus` are kept beside the pool.
    """

    label: str
    index: int
    seed: int
    count: int
    request: str
    num_parsed: int
    rejected: dict[str, int]
    num_tokens: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_surplus: int = 0

    @property
    def shard(self) -> Shard:
        return Shard(self.label, self.index, self.seed, self.count)


Commits = Mapping[tuple[str, int], Commit]


class Decision(Enum):
    GENERATE = "generate"
    WAIT = "wait"
    """Shards before it are under way and will probably do: ask again when more of them are committed."""
    SKIP = "skip"
    """Its label has enough without it, or yields so little that generating more is of no use."""


def decide(shard: Shard, commits: Commits, *, target: int, min_yield: float) -> Decision:
    """Whether `shard` must be generated, given what is committed: it must if those before it have too few examples.

    Shards before it that are not committed count as under way, at their label's yield so far (1 before
    anything is known) less two standard deviations.
    """
    of_label = [commit for commit in commits.values() if commit.label == shard.label]
    before = [commit for commit in of_label if commit.index < shard.index]
    num_parsed = sum(commit.num_parsed for commit in before)
    if num_parsed >= target or is_hopeless(of_label, min_yield):
        return Decision.SKIP
    num_under_way = shard.count * (shard.index - len(before))
    observed = num_parsed / sum(commit.count for commit in before) if before else 1.0
    expected = num_under_way * observed - 2 * math.sqrt(num_under_way * observed * (1 - observed))
    return Decision.WAIT if num_under_way and num_parsed + expected >= target else Decision.GENERATE


def is_hopeless(commits: Iterable[Commit], min_yield: float) -> bool:
    """Whether the parsed fraction is below `min_yield` by more than chance explains (three standard deviations)."""
    commits = list(commits)
    expected = min_yield * sum(commit.count for commit in commits)
    return expected - sum(commit.num_parsed for commit in commits) > 3 * math.sqrt(expected * (1 - min_yield))


def kept_shards(commits: Commits, num_per_label: Mapping[str, int]) -> dict[str, list[Commit]]:
    """The pool: of each label, shards 0..k, where k is the first at which they hold enough examples.

    A label that does not reach its number has all shards before its first missing one; the caller compares.
    """
    kept: dict[str, list[Commit]] = {}
    for label, target in num_per_label.items():
        kept[label] = []
        while sum(commit.num_parsed for commit in kept[label]) < target:
            commit = commits.get((label, len(kept[label])))
            if commit is None:
                break
            kept[label].append(commit)
    return kept


class ShardFolder:
    """The output folder, local or a URI, that every worker writes to. Reading is incremental: a commit never changes."""

    def __init__(self, output: str) -> None:
        self.output = output
        self._files, self._root = filesystem(output)
        self._commits: dict[str, Commit] = {}
        self._unreadable: set[str] = set()

    def commits(self) -> dict[tuple[str, int], Commit]:
        """All committed shards, as far as this process can see by now. One whose JSON cannot be read is not committed."""
        names = self._names(SHARDS, ".json")
        for name in names - set(self._commits):
            try:
                values = json.loads(self._files.cat_file(f"{self._root}/{SHARDS}/{name}.json"))
                commit = Commit(**values)
                if commit.shard.name != name:
                    raise ValueError(f"it is of {commit.shard.name}")
            except (ValueError, KeyError, TypeError, IsADirectoryError):
                self._unreadable.add(name)
            else:
                self._commits[name] = commit
        return {(commit.label, commit.index): commit for name, commit in self._commits.items() if name in names}

    def commit(self, shard: Shard, request: str, parsed: pa.Table, rejects: pa.Table, num_tokens: int) -> Commit:
        """Write the shard's files, then its JSON. Each appears whole or not at all. A shard that is committed
        stays as it is: a worker that was given up and lives on must not change what another has committed
        meanwhile.
        """
        if (done := self.commits().get((shard.label, shard.index))) is not None:
            return done
        files = self._write_tables(dict(zip(shard.files, (parsed, rejects), strict=True)))
        counts = rejects["reason"].value_counts().to_pylist()
        rejected = {count["values"]: count["counts"] for count in sorted(counts, key=lambda count: str(count["values"]))}
        commit = Commit(**asdict(shard), request=request, num_parsed=parsed.num_rows, rejected=rejected,
                        num_tokens=num_tokens, files=files)  # fmt: skip
        self.write(f"{SHARDS}/{shard.name}.json", json.dumps(asdict(commit), indent=1).encode())
        return commit

    def set_aside(self, commit: Commit, num_surplus: int) -> None:
        """Move a committed shard's last `num_surplus` examples from the pool into a file beside it.

        Interrupted, it leaves a shard that is damaged, and so generated again.
        """
        if commit.num_surplus == num_surplus:
            return
        assert not commit.num_surplus, "a shard is cut once: the number wanted is part of the request"
        pool_file, _ = commit.shard.files
        examples = self.read_table(pool_file)
        num_kept = examples.num_rows - num_surplus
        tables = {commit.shard.surplus_file: examples.slice(num_kept), pool_file: examples.slice(0, num_kept)}
        cut = replace(commit, files={**commit.files, **self._write_tables(tables)}, num_surplus=num_surplus)
        self.write(f"{SHARDS}/{commit.shard.name}.json", json.dumps(asdict(cut), indent=1).encode())
        self._commits[commit.shard.name] = cut

    def _write_tables(self, tables: Mapping[str, pa.Table]) -> dict[str, dict[str, Any]]:
        files = {}
        for path, table in tables.items():
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            self.write(path, buffer.getvalue())
            files[path] = {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "bytes": buffer.tell()}
        return files

    def drop_damaged(self) -> list[str]:
        """Withdraw the commits that cannot be read, or whose files are missing or not what was committed; return their names.

        Local files are compared by hash and number of rows, remote ones by size.
        """
        self._unreadable.clear()
        damaged = [commit.shard for commit in self.commits().values() if not self._is_intact(commit)]
        for name in self._unreadable:
            self._files.rm(f"{self._root}/{SHARDS}/{name}.json", recursive=True)
        for shard in damaged:
            self.withdraw(shard)
        return [*(shard.name for shard in damaged), *sorted(self._unreadable)]

    def withdraw(self, shard: Shard) -> None:
        """Take a shard back: its JSON first, so that no commit ever stands without its files."""
        for path in (f"{SHARDS}/{shard.name}.json", *shard.files, shard.surplus_file):
            if self._files.exists(f"{self._root}/{path}"):
                # Something else may stand in a file's place.
                self._files.rm(f"{self._root}/{path}", recursive=True)
        self._commits.pop(shard.name, None)

    def remove_uncommitted(self) -> None:
        """Remove files of shards that were never committed, so that a reader of the whole folder sees committed ones only."""
        committed = {commit.shard.name for commit in self.commits().values()}
        for folder in (POOL, REJECTS, SURPLUS):
            for name in self._names(folder, ".parquet") - committed:
                self._files.rm(f"{self._root}/{folder}/{name}.parquet", recursive=True)

    def write(self, path: str, content: bytes) -> None:
        """One file of the folder, whole or not at all."""
        write_bytes(join(self.output, path), content)

    def read_table(self, path: str) -> pa.Table:
        with self._files.open(f"{self._root}/{path}", "rb") as file:
            return parquet_table(file, join(self.output, path))

    def read(self, path: str) -> bytes:
        content: bytes = self._files.cat_file(f"{self._root}/{path}")
        return content

    def paths(self, folder: str, suffix: str) -> list[str]:
        """The files of a folder that end in `suffix`, in the order of their names."""
        return [f"{folder}/{name}{suffix}" for name in sorted(self._names(folder, suffix))]

    def _names(self, folder: str, suffix: str) -> set[str]:
        try:
            paths = self._files.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return set()
        names = (path.rsplit("/", 1)[-1] for path in paths)
        return {name.removesuffix(suffix) for name in names if name.endswith(suffix) and not name.startswith(".")}

    def _is_intact(self, commit: Commit) -> bool:
        pool_file, rejects_file = commit.shard.files
        num_rows = {pool_file: commit.num_parsed - commit.num_surplus, rejects_file: sum(commit.rejected.values())}
        for path, expected in commit.files.items():
            try:
                if self._files.size(f"{self._root}/{path}") != expected["bytes"]:
                    return False
                if is_local(self.output):
                    content = self._files.cat_file(f"{self._root}/{path}")
                    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                        return False
                    # The counts decide where the pool ends, and nothing vouches for the JSON.
                    if pq.read_metadata(io.BytesIO(content)).num_rows != num_rows.get(path, commit.num_surplus):
                        return False
            except (FileNotFoundError, IsADirectoryError):
                return False
        return True
