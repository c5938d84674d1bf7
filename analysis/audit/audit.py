"""The audit of anyone's labelled pairs: what a dataset would teach a model besides its task.

    audit = audit_pairs("pool.parquet", AuditSettings(reference="multinli_1.0_train.jsonl"))
    write_page(audit, "audit-pool")

Each file is read once, in batches, by at most two processes; what stays in memory are about 140 bytes a row
(:mod:`analysis.audit.scan`). Needs no GPU, no Ray and no store.
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

from analysis.audit.columns import ColumnNames
from analysis.audit.copies import NO_ROW, Copies, copies_of, duplicates
from analysis.audit.input import open_pairs, read_rows
from analysis.audit.measures import (
    MARGIN,
    Diversity,
    HeuristicFinding,
    HypothesisOnly,
    Length,
    Share,
    diversity,
    heuristic_findings,
    hypothesis_only,
    lengths,
    share_of,
)
from analysis.audit.scan import MAX_PROCESSES, Scan, audited, scan_pairs
from pipelines.errors import UserError

FORMAT_VERSION = 1
"""The JSON's version; one more whenever a field changes its meaning or goes."""
NUM_SAMPLES = 5
SHOWN_CHARACTERS = 300
ENTAILMENT_NAMES = ("entailment", "entails", "entailed")
"""Labels that mean entailment where nothing is said, in any case."""
KINDS_OF_COPY = {"exact": "exact", "same_words": "same words", "near": "near"}


@dataclass(frozen=True)
class AuditSettings:
    """The options of an audit."""

    columns: ColumnNames = field(default_factory=ColumnNames)
    entailment: tuple[str, ...] = ()
    """The labels, of any of the files, that mean entailment; empty for one that is called so."""
    reference: str | None = None
    """Pairs to compare with: the original data."""
    generator_training: str | None = None
    """The generator's training data: how much of it does the file repeat?"""
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
    """Complete pairs, which every other number is about."""
    left_out: Mapping[str, int]
    labels: Mapping[str, Share]
    entailment: tuple[str, ...]
    """The labels, of its own, that mean entailment."""


@dataclass(frozen=True)
class CopyCounts:
    """Numbers of rows that are copies, by kind: of earlier rows of the file, or of rows of `source`."""

    source: str
    """A path; empty for the file itself."""
    kinds: Mapping[str, Share]
    """By `exact`, `same_words`, `near` (:class:`analysis.audit.copies.Copies`), and `any`."""
    other_label: Share
    """Rows that are a copy, of any kind, of a row with another label."""
    parts: Mapping[str, Share] = field(default_factory=dict)
    """Rows whose premise, or hypothesis, has the words of one of the source's."""


@dataclass(frozen=True)
class Sample:
    """Rows to look at, each with its number, label, premise and hypothesis; in pairs, the second of which is what it copies."""

    title: str
    rows: tuple[tuple[Mapping[str, str], ...], ...]


@dataclass(frozen=True)
class Audit:
    """All that there is to say of a file."""

    name: str
    file: FileSummary
    reference: FileSummary | None
    generator_training: FileSummary | None
    margin: float
    seed: int
    heuristics: tuple[HeuristicFinding, ...]
    duplicates: CopyCounts
    reference_duplicates: CopyCounts | None
    copies: tuple[CopyCounts, ...]
    """Copies of the generator's training data and of the reference, if these are given."""
    hypothesis_only: HypothesisOnly
    reference_hypothesis_only: HypothesisOnly | None
    lengths: tuple[Length, ...]
    reference_lengths: tuple[Length, ...]
    diversity: tuple[Diversity, ...]
    reference_diversity: tuple[Diversity, ...]
    samples: tuple[Sample, ...]
    seconds: float


def audit_pairs(path: str | Path, settings: AuditSettings | None = None) -> Audit:
    """Audit a file or folder of labelled pairs.

    Raises :class:`UserError` where a file cannot be read, no label or an unknown one means entailment, or a setting makes no
    sense.
    """
    began = time.monotonic()
    settings = settings or AuditSettings()
    if not (math.isfinite(settings.margin) and settings.margin >= 1):
        raise UserError(
            f"margin={settings.margin}: it is a factor that counts as no difference; give 1 or more, such as {MARGIN}"
        )
    for other in (settings.reference, settings.generator_training):
        if other and Path(other).resolve() == Path(path).resolve():
            raise UserError(f"{other} is the file to audit itself, which equals it in everything; give another or leave it out")
    # All are opened before one is read, so that a wrong name fails at once.
    opened = {
        str(file): open_pairs(file, settings.columns)
        for file in (path, settings.reference, settings.generator_training)
        if file
    }
    # A heuristic that cannot be loaded shows now, not in a process that measures.
    audited(settings.heuristics)
    scans = {
        name: scan_pairs(pairs, seed=settings.seed, processes=settings.processes, references=settings.heuristics)
        for name, pairs in opened.items()
    }
    scan = scans[str(path)]
    reference = scans[settings.reference] if settings.reference else None
    training = scans[settings.generator_training] if settings.generator_training else None
    entailment = _entailment_labels([scan, reference] if reference else [scan], settings.entailment)

    within = duplicates(scan)
    # One file can be both.
    sources = list({id(source): source for source in (training, reference) if source}.values())
    copies = [(source, copies_of(scan, source)) for source in sources]
    # The same number of rows for both, since both baseline and diversity depend on it.
    num_sampled = min(each.sample.num_rows for each in (scan, reference) if each)
    return Audit(
        Path(path).resolve().stem,
        _summary(scan, entailment),
        _summary(reference, entailment) if reference else None,
        _summary(training, entailment) if training else None,
        settings.margin,
        settings.seed,
        tuple(heuristic_findings(scan, entailment, reference, settings.margin)),
        _count_copies(scan, scan, within),
        _count_copies(reference, reference, duplicates(reference)) if reference else None,
        tuple(_count_copies(scan, source, of_source) for source, of_source in copies),
        hypothesis_only(scan.sample.slice(0, num_sampled)),
        hypothesis_only(reference.sample.slice(0, num_sampled)) if reference else None,
        tuple(lengths(scan)),
        tuple(lengths(reference)) if reference else (),
        tuple(diversity(scan.sample.slice(0, num_sampled))),
        tuple(diversity(reference.sample.slice(0, num_sampled))) if reference else (),
        tuple(_samples(scan, entailment, within, copies, settings.seed)),
        time.monotonic() - began,
    )


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


def _entailment_labels(scans: Sequence[Scan], named: Sequence[str]) -> tuple[str, ...]:
    """The labels that mean entailment; each file must have one, unless its labels are all one."""
    for scan in scans:
        usual = [label for label in scan.labels if label.lower() in ENTAILMENT_NAMES]
        if (set(named) & set(scan.labels) or len(scan.labels) == 1) if named else usual:
            continue
        listed = ", ".join(repr(shown(label, 40)) for label in scan.labels)
        what = f"none of its labels is {' or '.join(map(repr, named))}" if named else "none of its labels is called entailment"
        raise UserError(f"{scan.pairs.path}: {what}; they are {listed}: say which mean entailment with --entailment NAME")
    if named:
        return tuple(named)
    return tuple(dict.fromkeys(label for scan in scans for label in scan.labels if label.lower() in ENTAILMENT_NAMES))


def _summary(scan: Scan, entailment: Sequence[str]) -> FileSummary:
    counts = np.bincount(scan.label, minlength=len(scan.labels))
    return FileSummary(
        scan.pairs.path,
        scan.pairs.columns,
        scan.num_rows,
        scan.left_out,
        {name: share_of(count, scan.num_rows) for name, count in zip(scan.labels, counts, strict=True)},
        tuple(name for name in scan.labels if name in entailment),
    )


def _count_copies(scan: Scan, source: Scan, copies: Copies) -> CopyCounts:
    kinds = {kind: share_of((getattr(copies, kind) != NO_ROW).sum(), scan.num_rows) for kind in (*KINDS_OF_COPY, "any")}
    other_label = share_of(len(_with_other_label(scan, source, copies)), scan.num_rows)
    if scan is source:
        return CopyCounts("", kinds, other_label)
    parts = {
        side: share_of(np.isin(getattr(scan, side), getattr(source, side)).sum(), scan.num_rows)
        for side in ("premise", "hypothesis")
    }
    return CopyCounts(source.pairs.path, kinds, other_label, parts)


def _with_other_label(scan: Scan, source: Scan, copies: Copies) -> np.ndarray:
    rows = np.flatnonzero(copies.any != NO_ROW)
    names, source_names = np.array(scan.labels, object), np.array(source.labels, object)
    return rows[names[scan.label[rows]] != source_names[source.label[copies.any[rows]]]]


def _samples(
    scan: Scan, entailment: Sequence[str], within: Copies, sources: Iterable[tuple[Scan, Copies]], seed: int
) -> list[Sample]:
    """A few rows of each kind, drawn by `seed`; the file is read again for them, up to the last one."""
    random = np.random.default_rng(seed)
    is_entailment = scan.labelled(entailment)
    drawn: list[tuple[str, Scan, np.ndarray, np.ndarray]] = []

    def draw(title: str, rows: np.ndarray, source: Scan = scan, originals: np.ndarray | None = None) -> None:
        chosen = np.sort(random.choice(rows, min(NUM_SAMPLES, len(rows)), replace=False)) if len(rows) else rows
        drawn.append((title, source, chosen, np.array([], int) if originals is None else originals[chosen]))

    for index, heuristic in enumerate(audited(scan.references)):
        if heuristic.name in scan.heuristics:
            name = heuristic.name.replace("_", " ").capitalize()
            draw(f"{name} and entailment", np.flatnonzero(scan.holds[:, index] & is_entailment))
            draw(f"{name} but not entailment", np.flatnonzero(scan.holds[:, index] & ~is_entailment))
    for source, copies in [(scan, within), *sources]:
        of = "another row" if source is scan else Path(source.pairs.path).name
        for kind, words in KINDS_OF_COPY.items():
            rows = getattr(copies, kind)
            draw(f"Copy of {of}: {words}", np.flatnonzero(rows != NO_ROW), source, rows)
        draw(f"Copy of {of}: another label", _with_other_label(scan, source, copies), source, copies.any)
    for code, label in enumerate(scan.labels):
        draw(f"Label {label}", np.flatnonzero(scan.label == code))

    wanted: dict[int, set[int]] = {}
    for _, source, rows, originals in drawn:
        wanted.setdefault(id(scan), set()).update(scan.row[rows].tolist())
        wanted.setdefault(id(source), set()).update(source.row[originals].tolist())
    scans = {id(scan): scan, **{id(source): source for source, _ in sources}}
    texts = {key: read_rows(scans[key].pairs, numbers) for key, numbers in wanted.items()}

    def show(of: Scan, row: int) -> dict[str, str]:
        number = int(of.row[row])
        return {"row": f"{of.pairs.unit} {number}"} | {name: shown(text) for name, text in texts[id(of)][number].items()}

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
