"""The audit of anyone's labelled texts: what a dataset would teach a model besides its task.

    found = audit("pool.parquet", AuditSettings(reference="multinli_1.0_train.jsonl"))
    write_page(found, "audit-pool")

Each file is read once, in batches, by at most two processes; what stays in memory are about 150 bytes a row
(:mod:`analysis.corpus.scan`). Needs no GPU, no Ray and no store.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.corpus.audited import audited
from analysis.corpus.columns import ColumnNames
from analysis.corpus.copies import NO_ROW, Copies, Engine, OneMachine, is_among
from analysis.corpus.input import Source, read_rows
from analysis.corpus.labels import MEANINGS, compare, label_key, meaning_of
from analysis.corpus.measures import (
    MARGIN,
    Diversity,
    HeuristicFinding,
    Length,
    OneField,
    Share,
    diversity,
    heuristic_findings,
    lengths,
    one_field_each,
    predicted_labels,
    share_of,
)
from analysis.corpus.scan import MAX_PROCESSES, Report, Scan, silent
from pipelines.errors import UserError
from pipelines.tables.columns import check_given

FORMAT_VERSION = 2
"""The JSON's version; one more whenever a field changes its meaning or goes."""
NUM_SAMPLES = 5
SHOWN_CHARACTERS = 300
KINDS_OF_COPY = {"exact": "exact", "same_words": "same words", "near": "near"}
NO_GOLD_WARNING = 0.05
"""From this share of rows without a gold label on, the mark may be a label."""


@dataclass(frozen=True)
class AuditSettings:
    """The options of an audit."""

    columns: ColumnNames = field(default_factory=ColumnNames)
    entailment: tuple[str, ...] = ()
    """The labels, of any of the files, that mean entailment; empty for those that are called so."""
    label_names: Mapping[str, str] = field(default_factory=dict)
    """What other labels mean, such as {"2": "contradiction"}."""
    reference: Source | None = None
    """Rows to compare with: the original data."""
    generator_training: Source | None = None
    """The generator's training data: how much of it does the file repeat?"""
    tests: Mapping[str, Source] = field(default_factory=dict)
    """Test sets by name: how much of them does the file give away?"""
    heuristics: tuple[str, ...] = ()
    """Heuristics of one's own, as FILE.py:NAME or module:NAME, beside the built-in ones."""
    margin: float = MARGIN
    """Ratios of odds ratios between 1/margin and margin count as no difference."""
    seed: int = 0
    """Draws the samples."""
    processes: int = MAX_PROCESSES


@dataclass(frozen=True)
class FileSummary:
    """A file's size and labels, and what of it was not counted."""

    path: str
    columns: Mapping[str, str]
    num_rows: int
    """Complete rows, which every other number is about."""
    left_out: Mapping[str, int]
    labels: Mapping[str, Share]
    spellings: Mapping[str, Mapping[str, int]]
    """Labels that are spelled in several ways, each with its number of rows."""
    meanings: Mapping[str, str]
    """What each label was taken for."""


@dataclass(frozen=True)
class CopyCounts:
    """Numbers of rows that are copies, by kind: of earlier rows of the file, or of rows of `source`."""

    source: str
    """A path; empty for the file itself."""
    kinds: Mapping[str, Share]
    """By `exact`, `same_words`, `near` (:class:`analysis.corpus.copies.Copies`), and `any`."""
    other_label: Share | None
    """Rows with the words of others, of which none has their label; None where the labels cannot be compared."""
    near_other_label: Share | None
    """Rows that are near to one with another label: pairs that differ in little, and in the label."""
    not_compared: str = ""
    """Why the labels cannot be compared."""
    parts: Mapping[str, Share] = field(default_factory=dict)
    """Rows of which one field has the words of one of the source's."""
    given_away: Share | None = None
    """Of a test set: its rows that the file repeats."""


@dataclass(frozen=True)
class Sample:
    """Rows to look at, each with its number, label and texts; in pairs, the second of which is what it copies."""

    title: str
    rows: tuple[tuple[Mapping[str, str], ...], ...]


@dataclass(frozen=True)
class Audit:
    """All that there is to say of a file."""

    name: str
    fields: tuple[str, ...]
    file: FileSummary
    reference: FileSummary | None
    generator_training: FileSummary | None
    tests: Mapping[str, FileSummary]
    warnings: tuple[str, ...]
    margin: float
    seed: int
    heuristics: tuple[HeuristicFinding, ...]
    duplicates: CopyCounts
    reference_duplicates: CopyCounts | None
    copies: tuple[CopyCounts, ...]
    """Copies of the generator's training data and of the reference, if these are given."""
    leaks: Mapping[str, CopyCounts]
    """Copies of each test set."""
    one_field: Mapping[str, OneField]
    """By field."""
    reference_one_field: Mapping[str, OneField]
    lengths: tuple[Length, ...]
    reference_lengths: tuple[Length, ...]
    diversity: tuple[Diversity, ...]
    reference_diversity: tuple[Diversity, ...]
    samples: tuple[Sample, ...]
    seconds: float


def audit(
    source: Source, settings: AuditSettings | None = None, report: Report = silent, engine: Engine | None = None
) -> Audit:
    """Audit a file, a folder or a table of labelled texts: pairs, single texts, or those of a task.

    `report` is told how far the work is, from this thread. `engine` reads and compares; without it, this machine does.

    Raises :class:`UserError` where a file cannot be read, labels mean nothing that a heuristic predicts, or a setting makes no
    sense.
    """
    began = time.monotonic()
    settings = settings or AuditSettings()
    engine = engine or OneMachine()
    scans = _scan_all(source, settings, report, engine)
    scan = scans["file"]
    reference, training = scans.get("reference"), scans.get("generator_training")
    tests = {name: scans[f"test:{name}"] for name in settings.tests}
    named = _label_names(list(scans.values()), settings)
    _check_meanings(scan, reference, named, settings)

    within = engine.duplicates(scan, report)
    # One file can be both.
    sources = list({id(other): other for other in (training, reference) if other}.values())
    copies = [(other, engine.copies_of(scan, other, _common_labels(scan, other, named)[0], report)) for other in sources]
    leaks = {name: engine.copies_of(scan, test, _common_labels(scan, test, named)[0], report) for name, test in tests.items()}
    # The same number of rows for both, since both baseline and diversity depend on it.
    num_sampled = min(each.sample.num_rows for each in (scan, reference) if each)
    samples = {"file": scan.sample.slice(0, num_sampled)}
    if reference:
        samples["reference"] = reference.sample.slice(0, num_sampled)
    report("measuring samples", 0, None)
    baselines = one_field_each(samples, scan.fields)
    return Audit(
        _name_of(scan.path),
        scan.fields,
        _summary(scan, named),
        _summary(reference, named) if reference else None,
        _summary(training, named) if training else None,
        {name: _summary(test, named) for name, test in tests.items()},
        tuple(_warnings(list(scans.values()))),
        settings.margin,
        settings.seed,
        tuple(heuristic_findings(scan, reference, settings.margin, named)),
        _count_copies(scan, scan, within),
        _count_copies(reference, reference, engine.duplicates(reference, report)) if reference else None,
        tuple(_count_copies(scan, other, found, named) for other, found in copies),
        {name: _count_copies(scan, tests[name], found, named, is_test=True) for name, found in leaks.items()},
        baselines["file"],
        baselines.get("reference", {}),
        tuple(lengths(scan)),
        tuple(lengths(reference)) if reference else (),
        tuple(diversity(samples["file"], scan.fields)),
        tuple(diversity(samples["reference"], scan.fields)) if reference else (),
        tuple(_samples(scan, within, [*copies, *((tests[name], found) for name, found in leaks.items())], named, settings)),
        time.monotonic() - began,
    )


def _scan_all(source: Source, settings: AuditSettings, report: Report, engine: Engine) -> dict[str, Scan]:
    """Each file opened and scanned, by its role; one that has two roles is read once."""
    if not (math.isfinite(settings.margin) and settings.margin >= 1):
        raise UserError(
            f"margin={settings.margin}: it is a factor that counts as no difference; give 1 or more, such as {MARGIN}"
        )
    others: dict[str, Source | None] = {"reference": settings.reference, "generator_training": settings.generator_training}
    others |= {f"test:{name}": test for name, test in settings.tests.items()}
    roles = {role: other for role, other in others.items() if other is not None}
    for other in roles.values():
        if _identity(other) == _identity(source):
            raise UserError(f"{other} is the file to audit itself, which equals it in everything; give another or leave it out")
    # All are opened before one is read, so that a wrong name fails at once; and all have the fields of the first.
    opened = {"file": engine.open(source, settings.columns)}
    fields = opened["file"].fields
    opened |= {role: engine.open(other, settings.columns, fields) for role, other in roles.items()}
    check_given(settings.columns.given, [texts.table for texts in opened.values()])
    # A heuristic that cannot be loaded shows now, not in a process that measures.
    audited(fields, settings.heuristics)
    scans: dict[Any, Scan] = {}
    for role, texts in opened.items():
        key = _identity(source if role == "file" else roles[role])
        if key not in scans:
            scans[key] = engine.scan(
                texts, seed=settings.seed, processes=settings.processes, references=settings.heuristics, report=report
            )
    return {role: scans[_identity(source if role == "file" else roles[role])] for role in opened}


def _identity(source: Source) -> Any:
    if isinstance(source, pa.Table | pd.DataFrame):
        return id(source)
    return str(source) if "://" in str(source) else str(Path(source).resolve())


def _name_of(path: str) -> str:
    return Path(path).resolve().stem if "://" not in path else path.rstrip("/").rpartition("/")[2].partition(".")[0]


def audit_json(audit: Audit) -> str:
    """The audit as JSON: the fields of :class:`Audit`, every share and ratio with its n and interval; no NaN, numbers that are
    not finite are null.
    """
    values = {"format_version": FORMAT_VERSION, **_plain(audit)}
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)


def shown(text: str, num_characters: int = SHOWN_CHARACTERS) -> str:
    """Text of unknown origin as one line for people: cut, and without characters that control a terminal or reorder a page."""
    line = " ".join(text[: 4 * num_characters].split())
    # Format characters (Cf) turn the direction of text; lone surrogates and unassigned ones cannot be written.
    safe = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") else character
        for character in line
    )
    return safe if len(safe) <= num_characters else safe[: num_characters - 1] + "…"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return fields | ({"share": value.share} if isinstance(value, Share) else {})
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _label_names(scans: Sequence[Scan], settings: AuditSettings) -> dict[str, str]:
    """What labels mean by the user's word; one that is not entailment and has no meaning of NLI's is non-entailment then."""
    named = dict(settings.label_names)
    if settings.entailment:
        keys = {label_key(label) for label in settings.entailment}
        for label in (label for scan in scans for label in scan.labels):
            if label_key(label) in keys:
                named[label] = "entailment"
            elif meaning_of(label, named) not in MEANINGS:
                named[label] = "non-entailment"
    for label in (*settings.label_names, *settings.entailment):
        if not any(label_key(label) == label_key(own) for scan in scans for own in scan.labels):
            listed = "; ".join(f"{scan.path}: {_listed(scan.labels)}" for scan in scans)
            raise UserError(f"no file has the label {label!r}; they have {listed}: mend the name")
    return named


def _check_meanings(scan: Scan, reference: Scan | None, named: Mapping[str, str], settings: AuditSettings) -> None:
    """Raise :class:`UserError` where a heuristic predicts a label that a file does not have, unless its labels are all one."""
    for one in (scan, reference):
        for heuristic in one.heuristics if one else ():
            if one is None or predicted_labels(heuristic, one.labels, named) or (settings.entailment and len(one.labels) == 1):
                continue
            way_out = (
                "say which mean entailment with --entailment NAME"
                if heuristic.predicts == "entailment"
                else f"say which means it with --label-name LABEL={heuristic.predicts}"
            )
            raise UserError(
                f"{one.path}: none of its labels is called {heuristic.predicts}; they are {_listed(one.labels)}: {way_out}"
            )


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(repr(shown(label, 40)) for label in labels)


def _warnings(scans: Sequence[Scan]) -> Iterable[str]:
    for scan in {id(scan): scan for scan in scans}.values():
        unlabelled = scan.left_out.get("no gold label", 0)
        num_read = scan.num_rows + sum(scan.left_out.values())
        if unlabelled > NO_GOLD_WARNING * num_read and scan.source.marks_may_be_labels(scan.labels):
            yield (
                f"{scan.path}: {unlabelled:,} of {num_read:,} rows have the label -1, the usual mark of a row without one, and "
                "are left out; if it is a label here, keep it with --keep-label=-1"
            )


def _common_labels(scan: Scan, source: Scan, named: Mapping[str, str]) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """The labels of both files as integers that mean the same, or None and why they cannot be compared."""
    comparison = compare(scan.labels, source.labels, named)
    if comparison.reason:
        return None, comparison.reason
    codes: dict[str, int] = {}
    arrays = []
    for one, meanings in ((scan, comparison.first), (source, comparison.second)):
        code = np.array([codes.setdefault(meanings[label], len(codes)) for label in one.labels], np.int16)
        arrays.append(code[one.label])
    return (arrays[0], arrays[1]), ""


def _summary(scan: Scan, named: Mapping[str, str]) -> FileSummary:
    counts = np.bincount(scan.label, minlength=len(scan.labels))
    return FileSummary(
        scan.path,
        scan.source.columns,
        scan.num_rows,
        scan.left_out,
        {name: share_of(count, scan.num_rows) for name, count in zip(scan.labels, counts, strict=True)},
        {name: spelled for name, spelled in scan.spellings.items() if len(spelled) > 1},
        {name: meaning_of(name, named) for name in scan.labels},
    )


def _count_copies(
    scan: Scan, source: Scan, copies: Copies, named: Mapping[str, str] | None = None, *, is_test: bool = False
) -> CopyCounts:
    num_rows = scan.num_rows
    kinds = {kind: share_of((getattr(copies, kind) != NO_ROW).sum(), num_rows) for kind in (*KINDS_OF_COPY, "any")}
    other = None if copies.other_label is None else share_of(copies.other_label.sum(), num_rows)
    near = None if copies.near_other_label is None else share_of(copies.near_other_label.sum(), num_rows)
    if scan is source:
        return CopyCounts("", kinds, other, near)
    parts = {name: share_of(is_among(scan.part(name), source.part(name)).sum(), num_rows) for name in scan.fields}
    reason = _common_labels(scan, source, named or {})[1]
    if not is_test:
        return CopyCounts(source.path, kinds, other, near, reason, parts)
    # By words, and each row of the test set that a near copy was found of: only one of a row's originals is known.
    given_away = is_among(source.words, scan.words)
    given_away[copies.any[copies.any != NO_ROW]] = True
    return CopyCounts(source.path, kinds, other, near, reason, parts, share_of(given_away.sum(), source.num_rows))


def _samples(
    scan: Scan,
    within: Copies,
    sources: Iterable[tuple[Scan, Copies]],
    named: Mapping[str, str],
    settings: AuditSettings,
) -> list[Sample]:
    """A few rows of each kind, drawn by the seed; the file is read again for them, up to the last one."""
    random = np.random.default_rng(settings.seed)
    drawn: list[tuple[str, Scan, np.ndarray, np.ndarray]] = []

    def draw(title: str, rows: np.ndarray, source: Scan = scan, originals: np.ndarray | None = None) -> None:
        chosen = np.sort(random.choice(rows, min(NUM_SAMPLES, len(rows)), replace=False)) if len(rows) else rows
        drawn.append((title, source, chosen, np.array([], int) if originals is None else originals[chosen]))

    for index, heuristic in enumerate(scan.heuristics):
        positive = scan.labelled(predicted_labels(heuristic, scan.labels, named))
        name = heuristic.name.replace("_", " ").capitalize()
        draw(f"{name} and {heuristic.predicts}", np.flatnonzero(scan.holds[:, index] & positive))
        draw(f"{name} but not {heuristic.predicts}", np.flatnonzero(scan.holds[:, index] & ~positive))
    for source, copies in [(scan, within), *sources]:
        of = "another row" if source is scan else _name_of(source.path)
        for kind, words in KINDS_OF_COPY.items():
            rows = getattr(copies, kind)
            draw(f"Copy of {of}: {words}", np.flatnonzero(rows != NO_ROW), source, rows)
        for marks, title in ((copies.other_label, "another label"), (copies.near_other_label, "near, with another label")):
            if marks is not None:
                draw(f"Copy of {of}: {title}", np.flatnonzero(marks & (copies.any != NO_ROW)), source, copies.any)
    for code, label in enumerate(scan.labels):
        draw(f"Label {label}", np.flatnonzero(scan.label == code))

    wanted: dict[int, set[int]] = {}
    for _, source, rows, originals in drawn:
        wanted.setdefault(id(scan), set()).update(scan.row[rows].tolist())
        wanted.setdefault(id(source), set()).update(source.row[originals].tolist())
    scans = {id(scan): scan, **{id(source): source for source, _ in sources}}
    texts = {key: read_rows(scans[key].source, numbers) for key, numbers in wanted.items()}

    def show(of: Scan, row: int) -> dict[str, str]:
        number = int(of.row[row])
        shown_texts = {name: shown(text) for name, text in texts[id(of)][number].items()}
        return {"row": f"{of.source.table.unit} {number}"} | shown_texts

    return [
        Sample(
            shown(title, 120),
            tuple(
                (show(scan, row), *([show(source, originals[index])] if len(originals) else []))
                for index, row in enumerate(rows)
            ),
        )
        for title, source, rows, originals in drawn
        if len(rows)
    ]
