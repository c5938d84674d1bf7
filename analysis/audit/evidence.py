"""What an audit has to go by: each file scanned once, and which rows repeat which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.corpus.audited import audited
from analysis.corpus.columns import FLAGS, OTHERS, ColumnNames
from analysis.corpus.copies import Copies, Engine
from analysis.corpus.input import Source, TextFile
from analysis.corpus.labels import MEANINGS, compare, label_key, meaning_of
from analysis.corpus.measures import MARGIN, predicted_labels
from analysis.corpus.scan import MAX_PROCESSES, Report, Scan
from analysis.wording import shown
from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.tables.columns import check_given
from pipelines.tasks.task import Task

Judging: TypeAlias = Callable[[Sequence[pa.Table]], Sequence[pa.Table]]


@dataclass(frozen=True)
class AuditSettings:
    """The options of an audit."""

    columns: ColumnNames = field(default_factory=ColumnNames)
    task: Task | None = None
    """What the texts are of: its fields are the columns, its labels the only ones."""
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
    label_noise: bool = False
    """Whether to look for wrong labels without a judge and without trusted rows, where simple models of words say little."""
    trusted: Source | None = None
    """Rows like the file's whose labels are right, from which a judge's errors are known."""
    judge: Judging | None = None
    """What gives each label's probability to the rows of tables, as `sweep.commands.judging.judge_tables` does."""
    heuristics: tuple[str, ...] = ()
    """Heuristics of one's own, as FILE.py:NAME, module:NAME or, of a word, FIELD:WORD=LABEL, beside the built-in ones."""
    margin: float = MARGIN
    """Ratios of odds ratios between 1/margin and margin count as no difference."""
    seed: int = 0
    """Draws the samples, 0 to 4,294,967,295."""
    processes: int = MAX_PROCESSES

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.seed < 2**32 or self.processes < 1:
            raise UserError(
                f"AuditSettings(seed={self.seed}, processes={self.processes}): a seed is 0 to {2**32 - 1:,}, and there is 1 "
                "process at least"
            )


@dataclass(frozen=True)
class RowFindings:
    """Findings of one kind, each about a row: arrays or lists of num_findings, `rows` being indices of a scan.

    `originals` are indices of the scan `source`, of the row that each goes with; None where it goes with none.
    """

    kind: str
    rows: np.ndarray
    source: Scan | None = None
    originals: np.ndarray | None = None
    alike: np.ndarray | None = None
    """float: how alike the two are, 0 to 1."""
    notes: Sequence[str] | str = ""
    """One for each, or one for all."""


@dataclass(frozen=True)
class Evidence:
    """The scans of an audit's files by their roles, and the rows of the file that repeat others.

    `copies` are of the generator's training data and of the reference, each with its scan; `leaks` of the test sets, by name.
    `named` says what labels mean. `by_row` are findings by row that other parts of an audit have, such as doubtful labels.
    """

    settings: AuditSettings
    scan: Scan
    reference: Scan | None
    generator_training: Scan | None
    tests: Mapping[str, Scan]
    trusted: Scan | None
    named: Mapping[str, str]
    within: Copies
    within_reference: Copies | None
    copies: tuple[tuple[Scan, Copies], ...]
    leaks: Mapping[str, Copies]
    by_row: tuple[RowFindings, ...] = ()

    @property
    def scans(self) -> list[Scan]:
        """Every scan once, that of the file first."""
        every = [self.scan, self.reference, self.generator_training, *self.tests.values(), self.trusted]
        return list({id(scan): scan for scan in every if scan}.values())


def gather(source: Source, settings: AuditSettings, report: Report, engine: Engine) -> Evidence:
    """Open and scan each file of an audit, and look for copies, by an engine.

    Raises :class:`UserError` where a file cannot be read, labels mean nothing that a heuristic predicts or are none of the
    task's, or a setting makes no sense.
    """
    scans = _scan_all(source, settings, report, engine)
    scan = scans["file"]
    reference, training = scans.get("reference"), scans.get("generator_training")
    tests = {name: scans[f"test:{name}"] for name in settings.tests}
    named = _label_names(list(scans.values()), settings)
    _check_meanings(scan, reference, named, settings)
    # One file can be both.
    sources = {id(other): other for other in (training, reference) if other}.values()
    return Evidence(
        settings,
        scan,
        reference,
        training,
        tests,
        scans.get("trusted"),
        named,
        engine.duplicates(scan, report),
        engine.duplicates(reference, report) if reference else None,
        tuple((other, engine.copies_of(scan, other, common_labels(scan, other, named)[0], report)) for other in sources),
        {name: engine.copies_of(scan, test, common_labels(scan, test, named)[0], report) for name, test in tests.items()},
    )


def common_labels(scan: Scan, source: Scan, named: Mapping[str, str]) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
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


def _scan_all(source: Source, settings: AuditSettings, report: Report, engine: Engine) -> dict[str, Scan]:
    """Each file opened and scanned, by its role; one that has two roles, and the same labels in both, is read once."""
    if not (math.isfinite(settings.margin) and settings.margin >= 1):
        raise UserError(
            f"margin={settings.margin}: it is a factor that counts as no difference; give 1 or more, such as {MARGIN}"
        )
    others: dict[str, Source | None] = {"reference": settings.reference, "generator_training": settings.generator_training}
    others["trusted"] = settings.trusted
    others |= {f"test:{name}": test for name, test in settings.tests.items()}
    roles = {role: other for role, other in others.items() if other is not None}
    for other in roles.values():
        if _identity(other) == _identity(source):
            raise UserError(f"{other} is the file to audit itself, which equals it in everything; give another or leave it out")
    # All are opened before one is read, so that a wrong name fails at once; and all have the fields of the first.
    # A notebook's user changes a heuristic's file between two audits.
    audited.cache_clear()
    opened = _open_all(source, roles, settings, engine)
    # A heuristic that cannot be loaded shows now, not in a process that measures.
    audited(opened["file"].fields, settings.heuristics)
    scans: dict[Any, Scan] = {}
    for role, texts in opened.items():
        key = _identity(source if role == "file" else roles[role]), texts.allowed
        if key not in scans:
            scans[key] = engine.scan(
                texts, seed=settings.seed, processes=settings.processes, references=settings.heuristics, report=report
            )
    return {role: scans[_identity(source if role == "file" else roles[role]), opened[role].allowed] for role in opened}


def _open_all(source: Source, roles: Mapping[str, Source], settings: AuditSettings, engine: Engine) -> dict[str, TextFile]:
    fields = settings.task.field_names if settings.task else ()
    opened = {"file": engine.open(source, settings.columns, fields)}
    fields = opened["file"].fields
    if unknown := [name for name in settings.columns.given if name not in (*fields, *OTHERS)]:
        what = f"the task {settings.task.name} has" if settings.task else "an example here has"
        raise UserError(
            f"a column is given for {', '.join(map(repr, unknown))}, and {what} the fields {', '.join(fields)}; name these"
        )
    opened |= {role: engine.open(other, settings.columns, fields) for role, other in roles.items()}
    labels = _what_labels_stand_for(settings)
    opened = {role: replace(texts, labels=labels, allowed=_allowed_labels(settings, role)) for role, texts in opened.items()}
    given = {name if name in FLAGS else f"field {name}": columns for name, columns in settings.columns.given.items()}
    check_given(given, [texts.table for texts in opened.values()])
    return opened


def _identity(source: Source) -> Any:
    if isinstance(source, pa.Table | pd.DataFrame):
        return id(source)
    # What is neither is refused where it is opened.
    return str(Path(source).resolve()) if isinstance(source, str | Path) and "://" not in str(source) else str(source)


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
            files = "; ".join(f"{scan.path}: {listed(scan.labels)}" for scan in scans)
            raise UserError(f"no file has the label {label!r}; they have {files}: mend the name")
    return named


def _allowed_labels(settings: AuditSettings, role: str) -> tuple[str, ...] | None:
    """The labels that a file may have by the task; test sets may have theirs folded to two."""
    if settings.task is None:
        return None
    labels = settings.task.labels
    if not role.startswith("test:"):
        return labels
    # With --entailment all others mean non-entailment.
    return None if settings.entailment else (*labels, *(f"non-{label}" for label in labels))


def _what_labels_stand_for(settings: AuditSettings) -> dict[str, str]:
    """What labels stand for, as given. Raises :class:`UserError` for a meaning that is none of the task's labels."""
    given = {**settings.columns.kept, **dict.fromkeys(settings.entailment, "entailment"), **settings.label_names}
    if settings.task is None:
        return given
    known = _allowed_labels(replace(settings, entailment=()), "test:")
    for label, meaning in given.items():
        if known and meaning not in known:
            raise UserError(
                f"the label {label!r} is to stand for {meaning!r}, which is none of the task {settings.task.name}'s: "
                f"{', '.join(settings.task.labels)}; name one of these, --label-name {label}=…"
            )
    return given


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
                f"{one.path}: none of its labels is called {heuristic.predicts}; they are {listed(one.labels)}: {way_out}"
            )


def listed(labels: Iterable[str]) -> str:
    """Labels as an error names them."""
    return ", ".join(repr(shown(label, 40)) for label in labels)
