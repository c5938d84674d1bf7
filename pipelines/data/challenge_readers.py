"""Readers of the published files of challenge sets: rows of examples, and those that do not fit, each with its reason. Pure."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.tasks.nli import NLI, Label

ENTAILMENT = Label.ENTAILMENT.value
PARTS = ("matched", "mismatched")
"""MultiNLI's two development files."""
SCONE_SPLITS = ("train", "test")
SCONE_FILES = {
    "no_negation": "aligned",
    "one_not_scoped": "aligned",
    "one_scoped": "adversarial",
    "one_scoped_one_not_scoped": "adversarial",
    "two_not_scoped": "aligned",
    "two_scoped": "aligned",
}
"""ScoNe's files, and whether a pair keeps its label where all negations in it are left out. One that scopes over the word that
differs turns the inference around; one that does not leaves it, and two of which one scopes over the other cancel out.
"""
MED_GENRES = {"upward_monotone": "upward", "downward_monotone": "downward", "non_monotone": "non_monotone"}
NEGATED = ("premise", "hypothesis", "both")
"""What is negated in the three pairs that NegNLI makes of one of MultiNLI's, in their order."""
MNLI_PAIR_ID = re.compile(r"\d+[enc]")


@dataclass
class Read:
    """A set's rows, with the task's columns, its slices' and its cluster's; and those left out, each with a ``reason``."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)


Development = Mapping[str, Sequence[Mapping[str, Any]]]
"""``matched`` and ``mismatched`` → all labelled rows of that file, in order; one that was left out has a ``reason``."""


def _lines(
    path: Path, columns: Sequence[str], read: Read, delimiter: str, encoding: str = "utf-8"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row's line and cells by column. A row with another number of cells is left out. Tabs need no quotes."""
    try:
        with path.open(encoding=encoding, newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
            header = next(lines, [])
            if missing := [column for column in columns if column not in header]:
                raise UserError(
                    f"{path}:1: no column {', '.join(missing)}; the header is {', '.join(header) or 'empty'}; get the "
                    "published file"
                )
            for cells in lines:
                if len(cells) == len(header):
                    yield lines.line_num, dict(zip(header, cells, strict=True))
                else:
                    text = delimiter.join(cells)
                    read.dropped.append(_dropped("wrong_number_of_columns", lines.line_num, path.name, "", text, ""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {encoding} ({error}); get the published file") from error


def _numbered(
    path: Path, number: str, columns: Sequence[str], read: Read, delimiter: str, encoding: str = "utf-8"
) -> dict[str, tuple[int, dict[str, str]]]:
    """The rows by the number that the column `number` gives them. The second of one number is left out."""
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    for line, row in _lines(path, (number, *columns), read, delimiter, encoding):
        if row[number] in rows:
            text = delimiter.join(row.values())
            read.dropped.append(_dropped("repeated_number", line, path.name, "", text, ""))
        else:
            rows[row[number]] = (line, row)
    return rows


def _dropped(reason: str, line: int, pair_id: str, label: str, premise: str, hypothesis: str) -> dict[str, Any]:
    row = {"pair_id": pair_id, "label": label, "premise": premise, "hypothesis": hypothesis}
    return {**row, "line": line, "reason": reason}


def _add(read: Read, line: int, row: dict[str, Any], reason: str = "") -> None:
    """The row to those that are read; or to those left out, for its own fault or the given one."""
    if not reason and row["label"] not in NLI.labels:
        reason = "unknown_label"
    elif not (row["premise"].strip() and row["hypothesis"].strip()):
        reason = reason or "blank_text"
    if reason:
        read.dropped.append(_dropped(reason, line, row["id"], row["label"], row["premise"], row["hypothesis"]))
    else:
        read.rows.append(row)


def read_mnli_hard(paths: Mapping[str, Path], development: Development) -> Read:
    read = Read()
    for part in PARTS:
        labelled, path = development[part], paths[f"mnli_validation_{part}_hardness.csv"]
        flags = _hardness(path, part, labelled)
        for index, row in enumerate(labelled):
            flagged = {
                "id": f"mnli_hard-{part}-{index:06d}",
                **{column: row[column] for column in (*NLI.field_names, "label")},
                "hardness": "hard" if flags[index] else "easy",
                "part": part,
            }
            _add(read, row["line"], flagged, row.get("reason", ""))
    return read


def _hardness(path: Path, part: str, labelled: Sequence[Mapping[str, Any]]) -> list[bool]:
    """A flag for each labelled row of the development file. The rows themselves are not in the file of flags."""
    read = Read()
    flags: dict[int, bool] = {}
    of = f"row of the labelled rows of MultiNLI's {part} development file"
    way_out = "get the published files of both"
    for line, row in _lines(path, ("idx", "pairID", "hardness"), read, ","):
        if row["hardness"] not in ("0", "1"):
            raise UserError(f"{path}:{line}: hardness={row['hardness']!r} is neither 0 nor 1; {way_out}")
        index = int(row["idx"]) if row["idx"].isdecimal() else -1
        if not 0 <= index < len(labelled):
            raise UserError(f"{path}:{line}: idx={row['idx']} is no {of}, which has {len(labelled):,}; {way_out}")
        if index in flags:
            raise UserError(f"{path}:{line}: idx={index} is flagged twice; {way_out}")
        pair_id = labelled[index]["pair_id"]
        # A file that was put together anew has ids of its own, which say nothing.
        if MNLI_PAIR_ID.fullmatch(pair_id) and pair_id != row["pairID"]:
            raise UserError(f"{path}:{line}: idx={index} is pair {row['pairID']} here and {pair_id} in the {of}; {way_out}")
        flags[index] = row["hardness"] == "1"
    if read.dropped or len(flags) != len(labelled):
        raise UserError(
            f"{path} has flags for {len(flags):,} rows and MultiNLI's {part} development file has {len(labelled):,} labelled "
            f"rows; {way_out}"
        )
    return [flags[index] for index in range(len(labelled))]


def read_med(paths: Mapping[str, Path], development: Development) -> Read:
    """``gold_label`` neutral stands for whatever is not entailed, so that the set has two labels."""
    read = Read()
    wording = _Wording()
    rows = _numbered(paths["MED.tsv"], "index", ("genre", "sentence1", "sentence2", "gold_label"), read, "\t")
    for number, (line, row) in rows.items():
        marks = row["genre"].split(":")
        monotonicity = [MED_GENRES[mark] for mark in marks if mark in MED_GENRES]
        wording.join(row["sentence1"], row["sentence2"])
        example = {
            "id": f"med-{number.zfill(6)}",
            "premise": row["sentence1"],
            "hypothesis": row["sentence2"],
            "label": row["gold_label"],
            "monotonicity": monotonicity[0] if len(monotonicity) == 1 else "",
            "collected": marks[0],
        }
        _add(read, line, example, "" if len(monotonicity) == 1 else "unknown_monotonicity")
    for example in read.rows:
        example["label"] = NLI.fold(example["label"], ENTAILMENT)
        example["cluster"] = wording.first(example["premise"])
    return read


class _Wording:
    """Sentences that occur in one pair, and those in pairs with them, and so on: MED turns a premise and a hypothesis around,
    and sets one sentence beside several.
    """

    def __init__(self) -> None:
        self._other: dict[str, str] = {}

    def first(self, sentence: str) -> str:
        while (other := self._other.setdefault(sentence, sentence)) != sentence:
            sentence = other
        return sentence

    def join(self, one: str, other: str) -> None:
        self._other[self.first(other)] = self.first(one)


def read_scone(paths: Mapping[str, Path], development: Development) -> Read:
    """Rows of one number make a minimal set over the six files; all that are made of one sentence are a cluster."""
    read = Read()
    for split in SCONE_SPLITS:
        lines = {name: _scone_lines(paths[f"{split}/{name}.csv"], name, read) for name in SCONE_FILES}
        for name, half in SCONE_FILES.items():
            edited = "" if name == "one_scoped" else "_edited"
            for number, (line, row) in lines[name].items():
                originals = {lines[other][number][1]["sentence1"] for other in SCONE_FILES if number in lines[other]}
                is_whole = len(originals) == 1 and all(number in lines[other] for other in SCONE_FILES)
                group = lines["no_negation"][number][1]["group_index"] if is_whole else ""
                example = {
                    "id": f"scone-{split}-{name}-{number.zfill(6)}",
                    "premise": row[f"sentence1{edited}"],
                    "hypothesis": row[f"sentence2{edited}"],
                    "label": row[f"gold_label{edited}"],
                    "negation": name,
                    "half": half,
                    "cluster": f"{split}-{group}",
                }
                _add(read, line, example, "" if is_whole else "no_minimal_set")
    for example in read.rows:
        example["label"] = NLI.fold(example["label"], ENTAILMENT)
    return read


def _scone_lines(path: Path, name: str, read: Read) -> dict[str, tuple[int, dict[str, str]]]:
    columns = ["sentence1", "sentence2"]
    if name == "one_scoped":
        columns += ["gold_label"]
    else:
        columns += ["group_index", "sentence1_edited", "sentence2_edited", "gold_label_edited"]
    # The number of a row is in a column without a name.
    return _numbered(path, "", columns, read, ",")


def read_neg_nli(paths: Mapping[str, Path], development: Development) -> Read:
    """Three pairs in a row are made of one: its premise negated, its hypothesis, and both."""
    read = Read()
    rows = _numbered(paths["MNLI.txt"], "index", ("Text", "Hypothesis", "gold_label"), read, "\t", "cp1252")
    for number, (line, row) in rows.items():
        original, place = divmod(int(number), 3) if number.isdecimal() else (-1, 0)
        triple = [rows.get(str(3 * original + other), (0, None))[1] for other in range(3)]
        first, second, third = triple
        is_whole = (
            first is not None
            and second is not None
            and third is not None
            and first["Text"] == third["Text"]
            and second["Hypothesis"] == third["Hypothesis"]
        )
        half = None
        if NEGATED[place] != "premise":
            half = "aligned" if row["gold_label"] == Label.CONTRADICTION else "adversarial"
        example = {
            "id": f"neg_nli-{number.zfill(6)}",
            "premise": row["Text"],
            "hypothesis": row["Hypothesis"],
            "label": row["gold_label"],
            "negated": NEGATED[place],
            "half": half,
            "cluster": f"{original:06d}",
        }
        _add(read, line, example, "" if is_whole else "not_in_a_triple")
    return read
