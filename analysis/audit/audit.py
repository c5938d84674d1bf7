"""The audit of anyone's labelled texts: what a dataset would teach a model besides its task.

    found = audit("pool.parquet", AuditSettings(reference="multinli_1.0_train.jsonl"))
    print(found.answer)
    write_page(found, "audit-pool")

Each file is read once, in batches, by at most two processes; of each row about 120 bytes stay, in memory or, of many rows, in
files (:mod:`analysis.corpus.spill`). Needs no GPU and no store; an engine may need Ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from analysis.audit.evidence import AuditSettings, Evidence, RowFindings, common_labels, gather
from analysis.audit.findings import answer_of, findings_of
from analysis.audit.found import KINDS_OF_COPY, Audit, CopyCounts, FileSummary, Sample
from analysis.audit.judged import FileNoise, label_noise_of, suspect_rows
from analysis.audit.word_heuristics import next_words, showing_of
from analysis.corpus.copies import NO_ROW, Copies, Engine, OneMachine, is_among
from analysis.corpus.input import Source, read_rows
from analysis.corpus.labels import meaning_of
from analysis.corpus.measures import diversity, heuristic_findings, lengths, one_field_each, predicted_labels, share_of
from analysis.corpus.scan import Report, Scan, silent
from analysis.corpus.single_words import single_words
from analysis.wording import shown
from pipelines.tables.labels import label_warning, unknown_warning

NUM_SAMPLES = 5
MOST_LEFT_OUT = 0.05
"""Of a file's rows, so many may be left out before the answer says so."""


def audit(
    source: Source, settings: AuditSettings | None = None, report: Report = silent, engine: Engine | None = None
) -> Audit:
    """Audit a file, a folder or a table of labelled texts: pairs, single texts, or those of a task.

    `report` is told how far the work is, from this thread. `engine` reads and compares; without it, this machine does.

    Raises :class:`UserError` where a file cannot be read, labels mean nothing that a heuristic predicts or are none of the
    task's, or a setting makes no sense.
    """
    began = time.monotonic()
    found = numbers(gather(source, settings or AuditSettings(), report, engine or OneMachine()), report)
    return judged(replace(found, seconds=time.monotonic() - began))


def judged(found: Audit) -> Audit:
    """The audit with its findings and its answer, from its numbers. Whoever adds numbers, such as label noise, judges anew."""
    findings = findings_of(found)
    return replace(found, findings=findings, answer=answer_of(findings, list(found.file.labels)) + _left_out(found.file))


def numbers(evidence: Evidence, report: Report = silent) -> Audit:
    """All numbers of an audit, without its findings."""
    scan, reference = evidence.scan, evidence.reference
    # The same number of rows for both, since baseline, words and diversity depend on it.
    num_sampled = min(each.sample.num_rows for each in (scan, reference) if each)
    sample = scan.sample.slice(0, num_sampled)
    base = reference.sample.slice(0, num_sampled) if reference else None
    samples = {"file": sample} | ({"reference": base} if base else {})
    report("measuring samples", 0, None)
    noise = _label_noise(evidence, report)
    if noise is not None:
        evidence = replace(evidence, by_row=(*evidence.by_row, _doubtful(scan, noise)))
    with ThreadPoolExecutor(2) as pool:
        # These take longest; all else is measured beside them.
        baselines = pool.submit(one_field_each, samples, scan.fields)
        shown_rows = pool.submit(_samples, evidence)
        measured = _measured(evidence, sample, base)
    baseline = baselines.result()
    return replace(
        measured,
        label_noise=noise,
        one_field=baseline["file"],
        reference_one_field=baseline.get("reference", {}),
        samples=tuple(shown_rows.result()),
    )


def _measured(evidence: Evidence, sample: pa.Table, base: pa.Table | None) -> Audit:
    """The numbers without the baselines on one field, and without rows to look at."""
    scan, reference, training = evidence.scan, evidence.reference, evidence.generator_training
    named, settings, within = evidence.named, evidence.settings, evidence.within_reference
    copies = tuple(_count_copies(scan, other, found, named) for other, found in evidence.copies)
    leaks = {
        name: _count_copies(scan, evidence.tests[name], found, named, is_test=True) for name, found in evidence.leaks.items()
    }
    words = {found.field: found for found in single_words(sample, scan.fields)}
    of_own = range(len(scan.heuristics) - len(scan.references), len(scan.heuristics))
    return Audit(
        name=_name_of(scan.path),
        answer="",
        findings=(),
        fields=scan.fields,
        task=settings.task.name if settings.task else "",
        file=_summary(scan, named),
        reference=_summary(reference, named) if reference else None,
        generator_training=_summary(training, named) if training else None,
        tests={name: _summary(test, named) for name, test in evidence.tests.items()},
        warnings=(*_warnings(evidence.scans), *dict.fromkeys(_not_compared([*copies, *leaks.values()]))),
        margin=settings.margin,
        seed=settings.seed,
        heuristics=tuple(heuristic_findings(scan, reference, settings.margin, named)),
        duplicates=_count_copies(scan, scan, evidence.within),
        reference_duplicates=_count_copies(reference, reference, within) if reference and within else None,
        copies=copies,
        leaks=leaks,
        label_noise=None,
        one_field={},
        reference_one_field={},
        single_words=words,
        reference_single_words={found.field: found for found in single_words(base, scan.fields)} if base else {},
        next_words={name: next_words(found, scan, evidence.tests, settings.task, named) for name, found in words.items()},
        showing={scan.heuristics[index].name: showing_of(index, scan, evidence.tests, named) for index in of_own},
        lengths=tuple(lengths(scan)),
        reference_lengths=tuple(lengths(reference)) if reference else (),
        diversity=tuple(diversity(sample, scan.fields)),
        reference_diversity=tuple(diversity(base, scan.fields)) if base else (),
        samples=(),
        seconds=0.0,
        evidence=evidence,
    )


def _label_noise(evidence: Evidence, report: Report) -> FileNoise | None:
    settings, scan, trusted = evidence.settings, evidence.scan, evidence.trusted
    if not (settings.label_noise or settings.trusted is not None or settings.judge):
        return None
    report("judging labels", 0, None)
    said: list[pa.Table | None] = [None, None]
    if settings.judge:
        said[: 2 if trusted else 1] = settings.judge([scan.sample, trusted.sample] if trusted else [scan.sample])
    return label_noise_of(
        scan, trusted=trusted, judged=said[0], trusted_judged=said[1], named=evidence.named, seed=settings.seed
    )


def _doubtful(scan: Scan, noise: FileNoise) -> RowFindings:
    suspects = suspect_rows(noise)
    shares = zip(suspects["suggested"].to_pylist(), suspects["probability"].to_pylist(), strict=True)
    notes = [f"{label} by the judge, with a probability of {share:.2f}" for label, share in shares]
    return RowFindings("doubtful_label", np.searchsorted(scan.row, noise.rows), notes=notes)


def _left_out(file: FileSummary) -> str:
    """For the answer: that it is not of all rows, where more than a few are left out."""
    num_out = sum(file.left_out.values())
    if num_out <= MOST_LEFT_OUT * (file.num_rows + num_out):
        return ""
    reasons = ", ".join(f"{count:,} with {reason}" for reason, count in file.reasons.items())
    return f" That is of {file.num_rows:,} of its {file.num_rows + num_out:,} rows: the others are left out ({reasons})."


def _name_of(path: str) -> str:
    return Path(path).resolve().stem if "://" not in path else path.rstrip("/").rpartition("/")[2].partition(".")[0]


def _warnings(scans: Sequence[Scan]) -> Iterable[str]:
    for scan in {id(scan): scan for scan in scans}.values():
        unlabelled = scan.left_out.get("no gold label", 0)
        num_read = scan.num_rows + sum(scan.left_out.values())
        warning = label_warning({"-1": unlabelled}, num_read, "keep it: --keep-label={mark}")
        if warning and scan.source.marks_may_be_labels(scan.labels):
            yield f"{scan.path}: {warning}"
        if warning := unknown_warning(Counter(scan.unknown_labels), scan.num_rows, scan.path):
            yield f"{warning}; say what they stand for with --label-name LABEL=MEANING"


def _not_compared(copies: Iterable[CopyCounts]) -> Iterable[str]:
    for counts in copies:
        if counts.not_compared:
            yield (
                f"{counts.source}: {counts.not_compared}. Until then a row that is near to one of its rows counts as a copy of "
                "it, whatever their labels"
            )


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
        scan.unknown_labels,
    )


def _count_copies(
    scan: Scan, source: Scan, copies: Copies, named: Mapping[str, str] | None = None, *, is_test: bool = False
) -> CopyCounts:
    num_rows = scan.num_rows
    kinds = {kind: share_of((getattr(copies, kind) != NO_ROW).sum(), num_rows) for kind in (*KINDS_OF_COPY, "any")}
    repeated = share_of(kinds["exact"].count + kinds["same_words"].count, num_rows)
    other = None if copies.other_label is None else share_of(copies.other_label.sum(), num_rows)
    differs = np.zeros(num_rows, bool) if copies.near_other_label is None else copies.near_other_label
    near = None if copies.near_other_label is None else share_of(differs.sum(), num_rows)
    is_same = (copies.near != NO_ROW) & ~differs
    same = share_of(is_same.sum(), num_rows)
    if scan is source:
        return CopyCounts("", kinds, repeated, other, near, same)
    parts = {name: share_of(is_among(scan.part(name), source.part(name)).sum(), num_rows) for name in scan.fields}
    reason = common_labels(scan, source, named or {})[1]
    given = None
    if is_test:
        # By words, and each row of the test set that a near copy was found of: only one of a row's originals is known.
        given_away = is_among(source.words, scan.words) | is_among(source.exact, scan.exact)
        given_away[copies.near[is_same]] = True
        given = share_of(given_away.sum(), source.num_rows)
    return CopyCounts(source.path, kinds, repeated, other, near, same, reason, parts, given)


def _samples(evidence: Evidence) -> list[Sample]:
    """A few rows of each kind, drawn by the seed; the file is read again for them, up to the last one."""
    scan, within, named = evidence.scan, evidence.within, evidence.named
    sources = [*evidence.copies, *((evidence.tests[name], copies) for name, copies in evidence.leaks.items())]
    random = np.random.default_rng(evidence.settings.seed)
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
