"""MultiNLI and HANS, from their official files to Parquet.

    prepare_nli_sources(nli_sources_config("data"), "sources", folder="data")

The folder holds ``multinli_1.0_train.jsonl``, ``multinli_1.0_dev_matched.jsonl`` and
``multinli_1.0_dev_mismatched.jsonl`` (directly, or in ``multinli/`` or ``multinli_1.0/``) and HANS's
``heuristics_evaluation_set.txt`` (directly, or in ``hans/``).

The training set is made in this order: rows without a gold label (``-``) are left out; of the rest, *every*
copy of a (premise, hypothesis) pair that occurs more than once, compared exactly; of the rest, the first 250
rows of each label in file order become the dev set. The whole of MultiNLI has 392,702 labelled rows: 230
copies and 750 dev rows fewer are the paper's 391,722 (section 2.2.3). A training file with fewer labelled rows is
marked as partial. Evaluation sets keep all their labelled rows.

The folder may hold challenge sets as well (:mod:`pipelines.data.challenge_sets`), for evaluation only.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipelines.data.challenge_readers import PARTS, Read
from pipelines.data.challenge_sets import (
    CHALLENGE_SETS,
    ChallengeFiles,
    challenge_files,
    challenge_sets,
    is_published,
    missing_challenge_files,
    read_challenge,
)
from pipelines.data.protocol import check_is_nli
from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import MARKS, FileHash, JsonValue, added, sha256_of
from pipelines.tasks.examples import write_examples, write_table
from pipelines.tasks.heuristics import HANS_HEURISTICS
from pipelines.tasks.nli import LABELS, NON_ENTAILMENT, Label
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet

TRAIN_FILE = "multinli_1.0_train.jsonl"
MATCHED_FILE = "multinli_1.0_dev_matched.jsonl"
MISMATCHED_FILE = "multinli_1.0_dev_mismatched.jsonl"
HANS_FILE = "heuristics_evaluation_set.txt"
FILES = (TRAIN_FILE, MATCHED_FILE, MISMATCHED_FILE, HANS_FILE)
SUBFOLDERS = {HANS_FILE: ("", "hans")} | dict.fromkeys(FILES[:3], ("", "multinli", "multinli_1.0"))

HANS_COLUMNS = (
    *("gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"),
    *("sentence1", "sentence2", "pairID", "heuristic", "subcase", "template"),
)
HANS_LABELS = (Label.ENTAILMENT.value, NON_ENTAILMENT)
NO_GOLD_LABEL = "-"

# The paper's arithmetic (section 2.2.3), with the config's defaults.
NUM_LABELLED_ROWS = 392_702
"""Rows of MultiNLI 1.0's training file; all have a gold label."""
NUM_DUPLICATE_ROWS = 230
"""Labelled rows that are copies of pairs that occur more than once, every one of them."""
DEV_ROWS_PER_LABEL = 250
NUM_TRAINING_ROWS = NUM_LABELLED_ROWS - NUM_DUPLICATE_ROWS - len(LABELS) * DEV_ROWS_PER_LABEL
"""The rows that are left for training: the paper's 391,722."""

NUM_MATCHED_ROWS, NUM_MISMATCHED_ROWS = 9_815, 9_832
"""Labelled rows of the two development files."""

MOST_NAMED = 4
"""So many missing files are named; a challenge set may have a dozen."""

MAX_LINE_BYTES = 16 << 20
"""No row is that long: the file has no lines, or is another."""
OWN_STUDY = "take it as it is in a study's own file: nli_sources_config(…, {})"
"""A way out that no command has: what a command needs is the official data."""
DOWNLOADS = (
    "`blindsweep data fetch` gets both; MultiNLI 1.0 is at https://cims.nyu.edu/~sbowman/multinli/ and HANS at "
    "https://github.com/tommccoy1/hans (heuristics_evaluation_set.txt)"
)


@dataclass(frozen=True)
class NLISourcesConfig:
    """The four files and those of challenge sets, by content, and how they are split. Made by :func:`nli_sources_config`."""

    files: tuple[FileHash, ...]
    """The four files by name, in the order of ``FILES``."""
    dev_rows_per_label: int = DEV_ROWS_PER_LABEL
    hans_rows: int = 30_000
    """The number of rows that HANS must have: a file cut off at the end of a line is otherwise not noticed."""
    drop_blank_rows: bool = False
    """Whether a MultiNLI row with a blank premise or hypothesis is dropped and counted; otherwise it is an
    error.
    """
    max_characters: int = 10_000
    """A MultiNLI pair with more characters is dropped and counted: no sentence is that long, so it is several rows that some
    reader ran together.
    """
    challenges: tuple[ChallengeFiles, ...] = added(())
    """Test sets beside those of the four files."""

    def __post_init__(self) -> None:
        check_types(self)
        if tuple(file.name for file in self.files) != FILES:
            given = ", ".join(file.name for file in self.files)
            raise UserError(f"files are {given or 'none'}; they must be {', '.join(FILES)}, in this order")
        for name in ("dev_rows_per_label", "hans_rows", "max_characters"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a set cannot be empty; give 1 or more")

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        """The challenge sets, described."""
        return tuple(CHALLENGE_SETS[challenge.name].test_set for challenge in self.challenges)

    @property
    def set_names(self) -> tuple[str, ...]:
        return ("mnli_matched", "mnli_mismatched", "hans", *(challenge.name for challenge in self.challenges), "dev")

    @property
    def made_of(self) -> dict[str, tuple[str, ...]]:
        return {challenge.name: CHALLENGE_SETS[challenge.name].made_of for challenge in self.challenges}

    @property
    def is_known(self) -> bool:
        """Whether the content of all files is."""
        return all(
            file.is_known for files in (self.files, *(challenge.files for challenge in self.challenges)) for file in files
        )

    def for_task(self, task: Task) -> NLISourcesConfig:
        check_is_nli(task, "MultiNLI and HANS")
        return self

    def missing(self, folder: str) -> tuple[str, ...]:
        absent = () if self.is_known else missing_files(folder, [challenge.name for challenge in self.challenges])
        if not absent:
            return ()
        more = f" and {len(absent) - MOST_NAMED:,} files more" if len(absent) > MOST_NAMED else ""
        is_nothing_there = set(FILES) <= set(absent)
        return (f"not found at {folder}" if is_nothing_there else f"{folder} has no {', '.join(absent[:MOST_NAMED])}{more}",)

    def with_content(self, folder: str) -> NLISourcesConfig:
        if self.is_known:
            return self
        options = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("files", "challenges")}
        return nli_sources_config(folder, [challenge.name for challenge in self.challenges], **options)

    def counts(self, folder: str) -> dict[str, int]:
        """Those of complete files, with the number of lines for the training set's where that is there."""
        num_dev = self.dev_rows_per_label * len(LABELS)
        num_train = NUM_LABELLED_ROWS - NUM_DUPLICATE_ROWS - num_dev
        if (path := find_file(Path(folder).expanduser(), TRAIN_FILE)) is not None:
            num_train = min(num_train, max(0, num_lines(path) - num_dev))
        sizes = {
            "train": num_train,
            "dev": num_dev,
            "mnli_matched": NUM_MATCHED_ROWS,
            "mnli_mismatched": NUM_MISMATCHED_ROWS,
            "hans": self.hans_rows,
            **{challenge.name: CHALLENGE_SETS[challenge.name].num_rows for challenge in self.challenges},
        }
        return {f"{name}/num_examples": size for name, size in sizes.items()}

    def test_examples(self, name: str, folder: str) -> pa.Table:
        """The pairs of a test set, as :func:`prepare` writes them; the training file is not read for it."""
        paths = _find(folder)
        if name == "hans":
            rows = _read_hans(paths[HANS_FILE], self.hans_rows)
        elif name in (of_multinli := {"mnli_matched": MATCHED_FILE, "mnli_mismatched": MISMATCHED_FILE}):
            rows = _read_multinli(paths[of_multinli[name]], name, self, [])
        else:
            challenges = tuple(challenge for challenge in self.challenges if challenge.name == name)
            rows = _read_challenges(replace(self, challenges=challenges), folder, paths)[name].rows
        return pa.table({column: [row[column] for row in rows] for column in ("id", "premise", "hypothesis", "label")})

    def read_as(self, folder: str) -> dict[str, str]:
        return {}

    def prepare(self, output: str, *, folder: str) -> dict[str, JsonValue]:
        return prepare_nli_sources(self, output, folder=folder)

    @property
    def for_training(self) -> NLISourcesConfig:
        """The same data without the challenge sets, which are evaluated and nothing else."""
        return replace(self, challenges=())


def nli_sources_config(folder: str, challenges: Sequence[str] = (), **overrides: Any) -> NLISourcesConfig:
    """Find and hash the four files and those of the challenge sets that are named, and read all of HANS, the challenge sets and
    the ends of the others, so that a bad folder fails at once.

    ``overrides`` are fields of :class:`NLISourcesConfig`. Raises :class:`UserError` for a missing folder or
    file, an unknown set or field, or rows as :func:`prepare_nli_sources` does.
    """
    valid = [name for name in NLISourcesConfig.__dataclass_fields__ if name not in ("files", "challenges")]
    if unknown := sorted(set(overrides) - set(valid)):
        raise UserError(f"{', '.join(unknown)}: the sources have no such option; valid: {', '.join(valid)}")
    paths = _find(folder)
    hashes = tuple(challenge_files(folder, challenge.test_set.name) for challenge in challenge_sets(challenges))
    config = NLISourcesConfig(tuple(FileHash(name, sha256_of(paths[name])) for name in FILES), challenges=hashes, **overrides)
    _read_hans(paths[HANS_FILE], config.hans_rows)
    for name in (TRAIN_FILE, MATCHED_FILE, MISMATCHED_FILE):
        _check_ends(paths[name])
    _read_challenges(config, folder, paths)
    return config


def prepare_nli_sources(config: NLISourcesConfig, output: str, *, folder: str) -> dict[str, JsonValue]:
    """Write ``train``, ``dev``, ``mnli_matched``, ``mnli_mismatched``, ``hans``, each challenge set and ``dropped``
    ``.parquet`` to ``output``.

    Ids are the set's name and the line number, which the file's hash makes stable. MultiNLI has the extra
    columns genre, pair_id; HANS heuristic, subcase, template, pair_id. ``dropped`` (set, line, pair_id,
    label, premise, hypothesis, reason) keeps each row that was left out: ``no_gold_label``,
    ``duplicate_pair``, ``blank_text`` or ``too_long``, of challenge sets also others. Returns row counts by set and label,
    and dropped rows by reason; ``train/num_labelled`` are the training file's rows with a gold label, ``train/is_partial``
    whether MultiNLI has more of them, and then there is a mark that says so. A challenge set has its ``licence`` and
    ``source``, and a mark where its files are not the published ones.

    Raises :class:`UserError`, naming file and line, for a missing folder or file, a file whose content is not
    the config's, a row that is not JSON or lacks a field, a wrong label, a blank sentence, fewer labelled
    rows than the dev set takes, or a HANS file with a row cut short or another number of rows.
    """
    paths = _find(folder)
    for file in config.files:
        if (sha256 := sha256_of(paths[file.name])) != file.sha256:
            raise UserError(
                f"{paths[file.name]} has sha256 {sha256[:12]}…, not {file.sha256[:12]}… as when the "
                "experiment was made; start again to use the new content or restore the file"
            )
    for challenge in config.challenges:
        if challenge_files(folder, challenge.name) != challenge:
            raise UserError(
                f"the files of the challenge set {challenge.name} in {folder} are others than when the experiment was made; "
                "start again to use the new content or restore the files"
            )
    dropped: list[dict[str, Any]] = []
    train = _read_multinli(paths[TRAIN_FILE], "train", config, dropped)
    num_labelled = len(train) + sum(row["reason"] != "no_gold_label" for row in dropped)
    train, dev = _split(train, config, paths[TRAIN_FILE], dropped)
    sets = {
        "train": train,
        "dev": dev,
        "mnli_matched": _read_multinli(paths[MATCHED_FILE], "mnli_matched", config, dropped),
        "mnli_mismatched": _read_multinli(paths[MISMATCHED_FILE], "mnli_mismatched", config, dropped),
        "hans": _read_hans(paths[HANS_FILE], config.hans_rows),
    }
    for name, read in _read_challenges(config, folder, paths).items():
        sets[name] = read.rows
        dropped += read.dropped
    metrics: dict[str, JsonValue] = {}
    for name, rows in sets.items():
        if not rows:
            raise UserError(f"{name} has no labelled rows; check the files in {folder}")
        columns = [column for column in rows[0] if column != "line"]
        write_examples(pa.table({column: [row[column] for row in rows] for column in columns}), f"{output}/{name}.parquet")
        metrics[f"{name}/num_examples"] = len(rows)
        for label, count in sorted(Counter(row["label"] for row in rows).items()):
            metrics[f"{name}/{label}"] = count
    names = ("set", "pair_id", "label", "premise", "hypothesis", "reason")
    schema = pa.schema([*((name, pa.string()) for name in names), ("line", pa.int64())])
    write_table(pa.Table.from_pylist(dropped, schema=schema), f"{output}/dropped.parquet")
    for (name, reason), count in sorted(Counter((row["set"], row["reason"]) for row in dropped).items()):
        metrics[f"dropped/{name}/{reason}"] = count
    metrics["dropped/num_rows"] = len(dropped)
    metrics["train/num_labelled"] = num_labelled
    metrics["train/is_partial"] = is_partial = num_labelled < NUM_LABELLED_ROWS
    marks: list[JsonValue] = []
    if is_partial:
        marks += [f"partial MultiNLI: {num_labelled:,} of {NUM_LABELLED_ROWS:,} labelled rows ({len(train):,} for training)"]
    for challenge, test_set in zip(config.challenges, config.test_sets, strict=True):
        metrics |= {f"{test_set.name}/licence": test_set.licence, f"{test_set.name}/source": test_set.source}
        if not is_published(challenge):
            marks.append(f"{test_set.title} of other files than the published ones")
    if marks:
        metrics[MARKS] = marks
    return metrics


def _read_challenges(config: NLISourcesConfig, folder: str, paths: Mapping[str, Path]) -> dict[str, Read]:
    """The challenge sets by name. Raises UserError as :func:`read_challenge` does."""
    development = {}
    if any(CHALLENGE_SETS[challenge.name].made_of for challenge in config.challenges):
        for part, name in zip(PARTS, (MATCHED_FILE, MISMATCHED_FILE), strict=True):
            dropped: list[dict[str, Any]] = []
            rows = _read_multinli(paths[name], part, config, dropped)
            left_out = [row for row in dropped if row["reason"] != "no_gold_label"]
            development[part] = sorted((*rows, *left_out), key=lambda row: row["line"])
    return {challenge.name: read_challenge(folder, challenge.name, development) for challenge in config.challenges}


def find_file(folder: Path, name: str) -> Path | None:
    """The path of one of ``FILES`` in a folder of the raw data, or None."""
    return next((path for path in _places(folder, name) if path.is_file()), None)


def missing_files(folder: str, challenges: Sequence[str] = ()) -> tuple[str, ...]:
    """Those of ``FILES`` and of the challenge sets' that are not in a folder of the raw data; all where there is no folder."""
    missing = (name for name in FILES if find_file(Path(folder).expanduser(), name) is None)
    return (*missing, *missing_challenge_files(folder, challenges))


def num_lines(path: Path) -> int:
    """The number of lines of a file, without keeping them."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _places(folder: Path, name: str) -> list[Path]:
    return [folder / subfolder / name for subfolder in SUBFOLDERS[name]]


def _find(folder: str) -> dict[str, Path]:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"data folder {folder!r} does not exist; give the folder with MultiNLI and HANS. {DOWNLOADS}")
    paths = {}
    for name in FILES:
        path = find_file(root, name)
        if path is None:
            places = ", ".join(map(str, _places(root, name)))
            raise UserError(f"data folder {folder!r} has no {name}; put it at one of {places}. {DOWNLOADS}")
        paths[name] = path
    return paths


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    for line in itertools.count(1):
        raw = file.readline(MAX_LINE_BYTES)
        if not raw:
            return
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raise UserError(
                f"{path}:{line}: longer than {MAX_LINE_BYTES:,} bytes; the file is not what it should be: download it again"
            )
        yield raw


def _check_ends(path: Path) -> None:
    """Parse the first row, and the last one if it can be had without reading the file: a cut-off download shows there."""
    with path.open("rb") as file:
        first = file.readline(MAX_LINE_BYTES)
        _multinli_row(first, path, 1)
        size = file.seek(0, 2)
        file.seek(max(0, size - 1_000_000))
        tail = file.read()
    lines = tail.removesuffix(b"\n").rsplit(b"\n", 1)
    if len(lines) == 2:
        _multinli_row(lines[1], path, num_lines(path))


def _multinli_row(raw: bytes, path: Path, line: int) -> dict[str, Any]:
    if line > 1 and not raw.strip():
        raise UserError(f"{path}:{line}: a blank line, and each is a row; remove it")
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{line}: not a JSON object ({error}); the file may be cut off: download it again") from error
    fields = ("gold_label", "sentence1", "sentence2")
    if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in fields):
        raise UserError(
            f"{path}:{line}: a row has the text fields {', '.join(fields)}; mend the row or download the file again"
        )
    label = row["gold_label"]
    if label not in LABELS and label != NO_GOLD_LABEL:
        raise UserError(
            f"{path}:{line}: gold_label {label!r} is none of {', '.join(LABELS)} and {NO_GOLD_LABEL!r} (no "
            "agreement); correct the label"
        )
    return {
        "pair_id": str(row.get("pairID") or ""),
        "premise": row["sentence1"],
        "hypothesis": row["sentence2"],
        "label": label,
        "genre": str(row.get("genre") or ""),
        "line": line,
    }


def _read_multinli(path: Path, name: str, config: NLISourcesConfig, dropped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as file:
        for line, raw in enumerate(_lines(file, path), start=1):
            row = _multinli_row(raw, path, line)
            if row["label"] == NO_GOLD_LABEL:
                dropped.append({**row, "set": name, "reason": "no_gold_label"})
            elif not (row["premise"].strip() and row["hypothesis"].strip()):
                if not config.drop_blank_rows:
                    field = "hypothesis (sentence2)" if row["premise"].strip() else "premise (sentence1)"
                    raise UserError(
                        f"{path}:{row['line']}: blank {field}; mend the row, or {OWN_STUDY.format('drop_blank_rows=True')}"
                    )
                dropped.append({**row, "set": name, "reason": "blank_text"})
            elif len(row["premise"]) + len(row["hypothesis"]) > config.max_characters:
                dropped.append({**row, "set": name, "reason": "too_long"})
            else:
                rows.append({"id": f"{name}-{row['line']:06d}", **row})
    return rows


def _split(
    rows: list[dict[str, Any]], config: NLISourcesConfig, path: Path, dropped: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    copies = Counter((row["premise"], row["hypothesis"]) for row in rows)
    taken: Counter[str] = Counter()
    train, dev = [], []
    for row in rows:
        if copies[row["premise"], row["hypothesis"]] > 1:
            dropped.append({**row, "set": "train", "reason": "duplicate_pair"})
        elif taken[row["label"]] < config.dev_rows_per_label:
            taken[row["label"]] += 1
            dev.append(row)
        else:
            train.append(row)
    left = Counter(row["label"] for row in train)
    for label in LABELS:
        if not left[label]:
            raise UserError(
                f"{path} has {taken[label]:,} rows labelled {label} and dev_rows_per_label={config.dev_rows_per_label} leaves "
                f"none for training; give a larger file, or {OWN_STUDY.format('dev_rows_per_label=…')}"
            )
    return train, dev


def _read_hans(path: Path, num_rows: int) -> list[dict[str, Any]]:
    way_out = "the file is cut off or edited: download it again"
    rows = []
    with path.open("rb") as file:
        for line, raw in enumerate(_lines(file, path), start=1):
            try:
                cells = raw.decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{line}: not UTF-8 ({error}); {way_out}") from error
            if line == 1:
                if tuple(cells) != HANS_COLUMNS:
                    raise UserError(f"{path}:1: the header is not HANS's ({', '.join(HANS_COLUMNS)}); {way_out}")
                continue
            if len(cells) != len(HANS_COLUMNS):
                raise UserError(f"{path}:{line}: {len(cells)} columns, HANS has {len(HANS_COLUMNS)}; {way_out}")
            row = dict(zip(HANS_COLUMNS, cells, strict=True))
            if row["gold_label"] not in HANS_LABELS:
                raise UserError(
                    f"{path}:{line}: gold_label {row['gold_label']!r} is none of {', '.join(HANS_LABELS)}; correct the label"
                )
            if row["heuristic"] not in HANS_HEURISTICS:
                raise UserError(
                    f"{path}:{line}: heuristic {row['heuristic']!r} is none of {', '.join(HANS_HEURISTICS)}; {way_out}"
                )
            if blank := [name for name in ("sentence1", "sentence2", "subcase", "template") if not row[name].strip()]:
                raise UserError(f"{path}:{line}: blank {blank[0]}; {way_out}")
            rows.append(
                {
                    "id": f"hans-{line:06d}",
                    "pair_id": row["pairID"],
                    "premise": row["sentence1"],
                    "hypothesis": row["sentence2"],
                    "label": row["gold_label"],
                    "heuristic": row["heuristic"],
                    "subcase": row["subcase"],
                    "template": row["template"],
                    "line": line,
                }
            )
    if len(rows) != num_rows:
        raise UserError(
            f"{path}:{len(rows) + 1}: the file ends after {len(rows):,} rows, HANS has {num_rows:,}; "
            f"{way_out}, or {OWN_STUDY.format(f'hans_rows={len(rows)}')}"
        )
    return rows
