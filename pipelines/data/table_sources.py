"""A study's own data: a table to train on, and any number of test sets.

    sources = TableSources(
        train=Table("train.tsv", columns={"text": "sentence"}, labels={"0": "negative", "1": "positive"}),
        general="dev.tsv",
        blindspots=Table("negation.csv", test_set=TestSet("negation", slices=("kind",), adversarial="kind/negated")),
        task=SENTIMENT,
    )

Test sets take the training table's columns and labels where they have none of their own. docs/data.md has the formats.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.table_rows import MAP_IT, TableRows, read_rows
from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.hashing import remembered_sha256
from pipelines.identity import MARKS, UNKNOWN, FileHash, JsonValue, added, runtime, sha256_of
from pipelines.storage import join
from pipelines.tables.columns import Wanted
from pipelines.tables.files import TableFile, find_files, is_there, open_table
from pipelines.tables.hub import is_on_hub
from pipelines.tables.labels import label_warning, unknown_warning
from pipelines.tables.readers import suffix_of
from pipelines.tables.remote import is_remote, local_copy
from pipelines.tables.splits import uncompressed
from pipelines.tasks.examples import write_examples, write_table
from pipelines.tasks.nli import NLI
from pipelines.tasks.slices import slices_of
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet

Names: TypeAlias = Mapping[Any, str] | tuple[tuple[str, str], ...]
NOT_LOOKED_AT = FileHash("", UNKNOWN)
OWN_NAMES = ("train", "dev", "dropped")
"""Files of prepared sources that are no test set."""
MOST_DEV_ROWS, DEV_SHARE = 250, 10
"""Without a number, a tenth of the label that has fewest rows is held out of each, and 250 at most."""


@dataclass(frozen=True)
class Table:
    """A file of labelled examples, or a folder of such files, and what its columns and label values are called.

    `columns` maps a name to the file's column: a field of the task, ``label``, ``id``, or a column that the test set asks for.
    Those that it lacks have the same name in the file, or a usual one (``sentence1`` is a premise). Without an ``id`` the row's
    number is part of one. `labels` maps the file's values to the task's labels; a value that it lacks stands for itself.
    `test_set` describes what the table tests, or just names it; without one, its name is the file's.

    Raises :class:`UserError` for mappings that name nothing.
    """

    path: str = runtime()
    """Relative to the study's `sources_folder` or, without one, to where the command is given."""
    columns: Names = ()
    labels: Names = ()
    test_set: TestSet | str | None = runtime(None)
    # Of the test set, what decides on the rows' content. How they are scored does not.
    content: tuple[str | None, ...] = field(default=(), init=False)
    file: FileHash = NOT_LOOKED_AT
    """The format and the content, filled in where the file is there."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise UserError(f"Table({self.path!r}): a table is a file; give its path as a text")
        for name in ("columns", "labels"):
            if not isinstance(given := getattr(self, name), Mapping | tuple):
                raise UserError(f"{self.path}: {name}={given!r} maps nothing; write {{'name': 'name in the file'}}")
            pairs = sorted((str(key), value) for key, value in dict(getattr(self, name)).items())
            if wrong := [value for pair in pairs for value in pair if not isinstance(value, str) or not value]:
                raise UserError(f"{self.path}: {name}={dict(pairs)} maps {wrong[0]!r}; give names, as texts")
            object.__setattr__(self, name, tuple(pairs))
        if not isinstance(self.test_set, TestSet | str | None):
            raise UserError(f"{self.path}: test_set={self.test_set!r} is neither a name nor a TestSet; give one of them")
        if self.test_set is not None:
            described = self.described
            content = (described.name, described.folded_onto, described.cluster, *described.slices)
            object.__setattr__(self, "content", content)
        check_types(self)

    @property
    def described(self) -> TestSet:
        """The test set that the table holds."""
        if isinstance(self.test_set, TestSet):
            return self.test_set
        if self.test_set is not None:
            return TestSet(self.test_set)
        stem = re.sub(r"\W+", "_", Path(uncompressed(self.path)).stem.lower()).strip("_")
        if not stem.isascii():
            raise UserError(
                f"{self.path}: a test set without a name has its file's, and {stem!r} is none, because it is part of metrics'; "
                "give it one of a-z, 0-9 and _: Table(…, test_set='name')"
            )
        return TestSet(stem if stem[:1].isalpha() else f"set_{stem}")

    def at(self, folder: str) -> str:
        """The absolute path of the file, or its address on the hub or in an object store."""
        return self.path if is_remote(self.path) else str(Path(folder, self.path).expanduser().absolute())

    def missing(self, folder: str) -> str:
        """For people: that the file is not there and its content not known; "" otherwise."""
        path = self.at(folder)
        if self.file.is_known:
            return ""
        if is_remote(path):
            cache = "Hugging Face cache" if is_on_hub(path) else "cache"
            return "" if local_copy(path, download=False) else f"{path} is not in the {cache}; a run fetches it"
        return "" if is_there(path) else f"not found at {path}"

    def fetched(self, folder: str) -> "Table":
        """With the absolute path of the file, which is fetched if it is on the hub or in an object store."""
        return replace(self, path=str(local_copy(self.at(folder))))


@dataclass(frozen=True)
class TableSources:
    """The training table, the test sets, and the task whose fields and labels they have.

    Of each label `dev_rows_per_label` rows of the training table are held out, drawn by their texts; by default a tenth of the
    label that has fewest rows, and 250 at most. A test set is described by its table's `test_set`. Tables may be given by their
    path alone.

    Raises :class:`UserError` for no test set and for two of one name.
    """

    train: Table | str
    general: Sequence[Table | str] | Table | str = ()
    blindspots: Sequence[Table | str] | Table | str = ()
    task: Task = added(NLI)
    dev_rows_per_label: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", _as_table(self.train))
        for name in ("general", "blindspots"):
            given = getattr(self, name)
            described = map(_as_table, given if isinstance(given, tuple | list) else (given,))
            object.__setattr__(self, name, tuple(replace(table, test_set=table.described) for table in described))
        check_types(self)
        if not self.tests:
            raise UserError(f"the sources of {self.training.path} have no test set; give general=… or blindspots=…, or both")
        if self.dev_rows_per_label is not None and self.dev_rows_per_label < 1:
            raise UserError(f"dev_rows_per_label={self.dev_rows_per_label}: the dev set cannot be empty; give 1 or more")
        names = [test_set.name for test_set in self.test_sets]
        if taken := [name for place, name in enumerate(names) if name in (*OWN_NAMES, *names[:place])]:
            raise UserError(
                f"test sets are named {', '.join(names)}: {taken[0]!r} is also the name of "
                f"{'prepared data' if taken[0] in OWN_NAMES else 'another'}; give each its own: Table(…, test_set='name')"
            )

    @property
    def training(self) -> Table:
        """The training table."""
        assert isinstance(self.train, Table)
        return self.train

    @property
    def tests(self) -> tuple[Table, ...]:
        """The tables of the test sets, the general ones first."""
        assert isinstance(self.general, tuple) and isinstance(self.blindspots, tuple)
        return (*self.general, *self.blindspots)

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        return tuple(table.described for table in self.tests)

    @property
    def set_names(self) -> tuple[str, ...]:
        return (*(test_set.name for test_set in self.test_sets), "dev")

    @property
    def made_of(self) -> dict[str, tuple[str, ...]]:
        return {}

    @property
    def for_training(self) -> "TableSources":
        """Without the blindspot sets, so that asking for another one builds nothing anew but evaluations."""
        return replace(self, blindspots=()) if self.general else self

    def for_task(self, task: Task) -> "TableSources":
        """With the study's task, which is given once: here or to the experiment.

        Raises :class:`UserError` for two tasks, for a description that names what is no label, for a mapping of a column that
        nothing asks for, and for one onto a label that the task does not have.
        """
        if self.task not in (task, NLI):
            raise UserError(
                f"the sources are of the task {self.task.name!r}, and the experiment's is {task.name!r}; give the experiment "
                "task=…, which it hands on, and the sources none"
            )
        sources = self if self.task == task else replace(self, task=task)
        for table in sources._tables():
            sources._check(table)
        return sources

    def missing(self, folder: str) -> tuple[str, ...]:
        """A line for each table that is not there and whose content is not known."""
        return tuple(dict.fromkeys(line for table in self._tables() if (line := table.missing(folder))))

    def with_content(self, folder: str) -> "TableSources":
        """With each table found, its columns looked for, and its content hashed.

        Raises :class:`UserError` for one that is not there, cannot be read, or lacks a column.
        """

        if all(table.file.is_known for table in self._tables()):
            return self

        def found(table: Table) -> Table:
            if table.file.is_known:
                return table
            table = table.fetched(folder)
            self.open(table)
            return replace(table, file=hash_table(table.path, remembered=True))

        return self._with_tables(found)

    def counts(self, folder: str) -> Mapping[str, int]:
        """Examples by set and label, as :func:`prepare` returns them: the tables are read for it, once."""
        return dict(_counts(self.with_content(folder)))

    def test_examples(self, name: str, folder: str) -> pa.Table:
        """The examples of a test set, as :func:`prepare` writes them."""
        sources = self.with_content(folder)
        return _test_set(sources, next(table for table in sources.tests if table.described.name == name), [])

    def read_as(self, folder: str) -> dict[str, str]:
        """For people: which columns each set is read from."""
        sources = self.with_content(folder)
        return {
            table.described.name if table.test_set else "train": f"{Path(table.path).name}, {sources.open(table).mapping}"
            for table in sources._tables()
        }

    def prepare(self, output: str, *, folder: str) -> dict[str, JsonValue]:
        """Write ``train``, ``dev``, each test set and ``dropped`` ``.parquet`` to ``output``.

        Sets have the task's columns and those that their descriptions ask for; a row without a cluster is one of its own. An
        id is the set's name and the row's number (in JSONL the line's), or the one in the file. ``dropped`` (set, file, row,
        reason, label, the fields, and raw of a row that has other cells) keeps each row that was left out: those that do not
        fit (:mod:`pipelines.data.table_rows`), and of the training table those whose texts occur again (``duplicate``: the
        first stays) or with two labels (``conflicting_labels``: none does). Returns counts by set and label, and dropped rows
        by set and reason. Training rows whose texts are in a test set, too, stay: a test set decides on nothing that is
        trained. They are counted as ``train/also_in_<set>``, and marked.

        Raises :class:`UserError` for a table whose content is not the config's, and as :func:`read_rows` does.
        """
        sources = self.with_content(folder)
        for table in sources._tables():
            if (there := hash_table(table.path)) != table.file:
                raise UserError(
                    f"{table.path} has sha256 {there.sha256[:12]}…, not {table.file.sha256[:12]}… as when the experiment was "
                    "made; start again to use the new content or restore the file"
                )
        prepared = prepare_tables(sources)
        for name, examples in prepared.sets.items():
            write_examples(examples, join(output, f"{name}.parquet"), self.task)
        names = ("set", "file", "reason", "label", *self.task.field_names, "raw")
        schema = pa.schema([*((name, pa.string()) for name in names), ("row", pa.int64())])
        write_table(pa.Table.from_pylist(prepared.dropped, schema=schema), join(output, "dropped.parquet"))
        return {**prepared.metrics, **({MARKS: list(prepared.marks)} if prepared.marks else {})}

    def open(self, table: Table) -> TableFile:
        """One of the tables, its columns looked for. Raises :class:`UserError` for one that is missing."""
        own, inherited = dict(table.columns), dict(self.training.columns)
        wanted = [
            Wanted(
                name,
                own.get(name) or inherited.get(name),
                is_strict=name in own,
                is_text=name in self.task.field_names,
                is_own=name in self.task.columns,
            )
            for name in (*self.task.field_names, "label", *self._extra(table))
        ]
        if "id" in own or "id" in inherited:
            given = own.get("id") or inherited["id"]
            wanted.append(Wanted("id", given, is_strict=True, is_optional="id" not in own, is_text=False, is_own=False))
        return open_table(table.path, wanted, "map it to one of them: columns={{'{name}': '…'}}")

    def labels_of(self, table: Table) -> tuple[str, ...]:
        """The labels that rows of a table may have."""
        if table.test_set is None:
            return self.task.labels
        folded_onto = table.described.folded_onto or self.task.folded_onto
        return (*self.task.labels, f"non-{folded_onto}") if folded_onto is not None else self.task.labels

    def _tables(self) -> tuple[Table, ...]:
        return (self.training, *self.tests)

    def _with_tables(self, function: Callable[[Table], Table]) -> "TableSources":
        assert isinstance(self.general, tuple) and isinstance(self.blindspots, tuple)
        return replace(
            self,
            train=function(self.training),
            general=tuple(map(function, self.general)),
            blindspots=tuple(map(function, self.blindspots)),
        )

    def _extra(self, table: Table) -> list[str]:
        """The columns that the test set's description asks for, besides the task's own."""
        if table.test_set is None:
            return []
        asked = (*table.described.slices, *([table.described.cluster] if table.described.cluster else []))
        return [name for name in dict.fromkeys(asked) if name not in self.task.columns]

    def _check(self, table: Table) -> None:
        # The training table is no test set, and its file may have any name.
        for name in ("folded_onto", "predicts") if table.test_set is not None else ():
            if (label := getattr(table.described, name)) is not None and label not in self.task.labels:
                raise UserError(
                    f"test set {table.described.name}: {name}={label!r} is none of {', '.join(self.task.labels)}, the "
                    f"labels of the task {self.task.name}; name one of them"
                )
        asked = {*self.task.columns, *(name for other in self._tables() for name in self._extra(other))}
        if unknown := sorted(set(dict(table.columns)) - asked):
            raise UserError(
                f"{table.path}: columns={dict(table.columns)} maps {unknown[0]!r}, and what is looked for is "
                f"{', '.join(sorted(asked))}; map one of these to the file's column"
            )
        allowed = self.labels_of(table)
        if wrong := sorted(set(dict(table.labels).values()) - set(allowed)):
            raise UserError(
                f"{table.path}: labels={dict(table.labels)} maps onto {wrong[0]!r}, which is none of {', '.join(allowed)}; "
                "map the file's values onto these"
            )


def _as_table(given: Any) -> Table:
    if isinstance(given, Table):
        return given
    if not isinstance(given, str):
        raise UserError(f"{given!r} is no table of examples; give the file's path as a text, or Table(…)")
    return Table(given)


@dataclass(frozen=True)
class PreparedTables:
    """The sets by name, the rows left out, counts of both, and what marks all that is made of them."""

    sets: dict[str, pa.Table]
    dropped: list[dict[str, Any]]
    metrics: dict[str, int]
    marks: tuple[str, ...]


def read_set(sources: TableSources, table: Table) -> TableRows:
    """The rows of one of the tables, with the task's labels. Raises :class:`UserError` as :func:`read_rows` does."""
    labels = {**dict(sources.training.labels), **dict(table.labels)}
    return read_rows(sources.open(table), sources.task.field_names, labels, sources.labels_of(table))


def prepare_tables(sources: TableSources) -> PreparedTables:
    """Read all tables and split the training table. Raises :class:`UserError` as :func:`TableSources.prepare` does."""
    dropped: list[dict[str, Any]] = []
    sets = _training_sets(sources, dropped) | {
        table.described.name: _test_set(sources, table, dropped) for table in sources.tests
    }
    metrics: dict[str, int] = {}
    for name, examples in sets.items():
        metrics[f"{name}/num_examples"] = examples.num_rows
        for label, count in sorted(Counter(examples["label"].to_pylist()).items()):
            metrics[f"{name}/{label}"] = count
    marks = []
    trained_on = {texts for name in ("train", "dev") for texts in _texts(sets[name], sources.task)}
    for table in sources.tests:
        test_texts = set(_texts(sets[table.described.name], sources.task))
        if num_shared := len(trained_on & test_texts):
            metrics[f"train/also_in_{table.described.name}"] = num_shared
            marks.append(f"{num_shared:,} of {len(test_texts):,} texts of {table.described.name} are in the training data, too")
    for (name, reason), count in sorted(Counter((row["set"], row["reason"]) for row in dropped).items()):
        metrics[f"dropped/{name}/{reason}"] = count
    metrics["dropped/num_rows"] = len(dropped)
    marks += _marks_of_unknown(metrics, dropped)
    return PreparedTables(sets, dropped, metrics, tuple(marks))


@lru_cache(maxsize=8)
def _counts(sources: TableSources) -> tuple[tuple[str, int], ...]:
    return tuple(prepare_tables(sources).metrics.items())


def _test_set(sources: TableSources, table: Table, dropped: list[dict[str, Any]]) -> pa.Table:
    described, task = table.described, sources.task
    read = read_set(sources, table)
    dropped += _named(read.dropped, described.name, table)
    examples = with_ids(read, described.name, task)
    if described.folded_onto is not None:
        folded = [task.fold(label, described.folded_onto) for label in examples["label"].to_pylist()]
        examples = examples.set_column(examples.column_names.index("label"), "label", pa.array(folded, pa.string()))
    if described.cluster is not None:
        clusters = pc.coalesce(examples[described.cluster], examples["id"])
        examples = examples.set_column(examples.column_names.index(described.cluster), described.cluster, clusters)
    for column in described.slices:
        if examples.num_rows and examples[column].null_count == examples.num_rows:
            raise UserError(
                f"test set {described.name}: the slice column {column!r} of {table.path} is empty in every row; fill it in, or "
                "leave it out of slices"
            )
    for half in ("aligned", "adversarial"):
        if (name := getattr(described, half)) is not None and not _has_slice(examples, name):
            column = name.partition("/")[0]
            values = ", ".join(
                f"{column}/{value}" for value in sorted(pc.unique(examples[column].drop_null()).to_pylist())[:12]
            )
            raise UserError(
                f"test set {described.name}: no row of {table.path} is in {half}={name!r}; there are {values or 'none'}"
            )
    if (label := described.predicts) is not None and described.adversarial is not None:
        others = examples.filter(pc.not_equal(examples["label"], label))
        if not _has_slice(others, described.adversarial):
            raise UserError(
                f"test set {described.name}: every row of {table.path} in adversarial={described.adversarial!r} is labelled "
                f"{label}, which the heuristic predicts, so that going by it is right there; name another slice or predicts"
            )
    return examples


def _has_slice(examples: pa.Table, name: str) -> bool:
    """Whether an example is in a slice of a described set."""
    column = name.partition("/")[0]
    columns = {column: np.array(examples[column].to_pylist(), dtype=object)}
    return name in slices_of(columns, np.array(examples["label"].to_pylist()))


def _training_sets(sources: TableSources, dropped: list[dict[str, Any]]) -> dict[str, pa.Table]:
    """The training set and the dev set, each in the order of the file."""
    table, task = sources.training, sources.task
    read = read_set(sources, table)
    examples = with_ids(read, "train", task)
    texts, labels = _texts(examples, task), examples["label"].to_pylist()
    labels_of: dict[tuple[str, ...], set[str]] = {}
    for key, label in zip(texts, labels, strict=True):
        labels_of.setdefault(key, set()).add(label)
    kept, out, seen = dict[int, str](), [], set()
    for place, (key, label) in enumerate(zip(texts, labels, strict=True)):
        if key not in seen and len(labels_of[key]) == 1:
            seen.add(key)
            kept[place] = label
            continue
        reason = "duplicate" if len(labels_of[key]) == 1 else "conflicting_labels"
        fields = dict(zip(task.field_names, key, strict=True))
        out.append({"row": int(read.numbers[place]), "reason": reason, "label": label, "raw": None, **fields})
    dropped += _named(sorted([*read.dropped, *out], key=lambda row: row["row"]), "train", table)
    left_out = Counter(_reason(row) for row in dropped if row["set"] == "train")
    num_dev = _num_dev(sources, Counter(kept.values()), left_out)
    held_out: set[int] = set()
    for label in task.labels:
        drawn = sorted((place for place in kept if kept[place] == label), key=lambda place: _draw_key(texts[place]))
        held_out.update(drawn[:num_dev])
    return {
        "train": examples.take(pa.array([place for place in kept if place not in held_out], pa.int64())),
        "dev": examples.take(pa.array(sorted(held_out), pa.int64())),
    }


def _marks_of_unknown(metrics: Mapping[str, int], dropped: Sequence[Mapping[str, Any]]) -> list[str]:
    """A mark for each set many rows of which were left out for their labels: it may be the mapping that lacks something."""
    marks = []
    for name in dict.fromkeys(row["set"] for row in dropped):
        of_set = [row for row in dropped if row["set"] == name]
        values = Counter(row["label"] for row in of_set if row["reason"] == "unknown_label")
        kept = metrics[f"{name}/num_examples"] + (metrics["dev/num_examples"] if name == "train" else 0)
        if warning := unknown_warning(values, kept, name):
            marks.append(warning)
        unlabelled = Counter(row["label"] for row in of_set if row["reason"] == "no_gold_label")
        if warning := label_warning(unlabelled, kept + len(of_set), MAP_IT):
            marks.append(f"{name}: {warning}")
    return marks


def _reason(row: Mapping[str, Any]) -> str:
    """Why a row was left out, with the value that is to be mapped."""
    return f"{row['reason']} {row['label']!r}" if row["reason"] == "unknown_label" else str(row["reason"])


def _num_dev(sources: TableSources, num_rows: Mapping[str, int], reasons: Counter[str]) -> int:
    path, asked = sources.training.path, sources.dev_rows_per_label
    scarcest = min(sources.task.labels, key=lambda label: num_rows[label])
    least = num_rows[scarcest]
    if least < 2 or (asked is not None and asked >= least):
        taken = "" if asked is None else f", and dev_rows_per_label={asked} leaves none for training"
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(8))
        raise UserError(
            f"{path} has {least:,} usable rows labelled {scarcest}{left_out and f' (left out: {left_out})'}{taken}; give at "
            f"least two of each label of the task {sources.task.name}, another mapping labels={{…}}, or fewer dev rows"
        )
    return asked if asked is not None else max(1, min(MOST_DEV_ROWS, least // DEV_SHARE))


def _draw_key(texts: Sequence[str]) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).digest()


def _texts(examples: pa.Table, task: Task) -> list[tuple[str, ...]]:
    return list(zip(*(examples[name].to_pylist() for name in task.field_names), strict=True))


def with_ids(read: TableRows, name: str, task: Task) -> pa.Table:
    """The examples, the task's columns first. Raises :class:`UserError` for ids of the file that are missing or repeat."""
    examples = read.examples
    if "id" in examples.column_names:
        ids = examples["id"].to_pylist()
        counts = Counter(ids)
        repeated, count = counts.most_common(1)[0] if ids else ("", 0)
        if None in counts or count > 1:
            what = f"{count:,} rows of id {repeated!r}" if None not in counts else f"{counts[None]:,} rows without an id"
            raise UserError(
                f"{read.table.path}: {what} in the column {read.table.columns['id']!r}; ids are unique: map another column, or "
                "none, and rows are numbered"
            )
    else:
        examples = examples.append_column("id", pa.array([f"{name}-{number:06d}" for number in read.numbers], pa.string()))
    return examples.select([*task.columns, *(column for column in examples.column_names if column not in task.columns)])


def _named(rows: Sequence[dict[str, Any]], name: str, table: Table) -> list[dict[str, Any]]:
    return [{"set": name, "file": Path(table.path).name, **row} for row in rows]


def hash_table(path: str, *, remembered: bool = False) -> FileHash:
    """Format and content of a file, or of the files of a folder."""
    files, kind = find_files(path)
    hashes = [remembered_sha256(file) if remembered else sha256_of(file) for file in files]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    # A table is read by its suffix, which says what is between cells.
    return FileHash(suffix_of(files[0]).removeprefix(".") if kind == "table" else kind, sha256)
