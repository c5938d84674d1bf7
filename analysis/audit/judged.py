"""The label noise of a scanned file: its rows joined with what a judge says of them, or simple models where there is none.

    found = label_noise_of(scan, trusted=reference, judged=judged, trusted_judged=judged_reference)

A judge's table has a column `row` (int64, the scan's row numbers) and for each of its labels `p/<label>` (float32, null where
it does not judge a row).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from analysis.audit.noise import CANNOT_TELL, JudgedLabels, LabelNoise, label_noise
from analysis.audit.simple_models import cross_validated, judged_by_trusted
from analysis.corpus.labels import Comparison, compare
from analysis.corpus.scan import Scan
from pipelines.errors import UserError

PROBABILITY = "p/"


@dataclass(frozen=True)
class FileNoise:
    """A file's label noise; `noise` is None where nothing was judged, which `reason` explains: nothing can be told then.

    `classes` are the names of the labels in common terms, `rows` int64 [m] the file's row numbers of the suspects
    (`noise.suspects`), `num_judged` and `num_rows` how many of the rows were judged. `judge` says in words who judged.
    """

    noise: LabelNoise | None
    classes: tuple[str, ...]
    rows: np.ndarray
    num_judged: int
    num_rows: int
    judge: str
    reason: str = ""

    @property
    def verdict(self) -> str:
        return self.noise.in_all.verdict if self.noise else CANNOT_TELL


def label_noise_of(
    scan: Scan,
    *,
    trusted: Scan | None = None,
    judged: pa.Table | None = None,
    trusted_judged: pa.Table | None = None,
    named: Mapping[str, str] | None = None,
    seed: int = 0,
) -> FileNoise:
    """The label noise of a file, by the judge whose table is `judged`, or by simple models of words.

    `trusted` are rows like the file's whose labels are right. With a judge they count where `trusted_judged` has what it says
    of them. Without one, simple models learn from them alone, or, where there are none, from the file's own sample, each row
    being judged by a model that has not seen it. `named` is what labels mean by the user's word. Raises UserError for a judge's
    table that has no row of the file.
    """
    if judged is not None:
        return _by_judge(scan, trusted, judged, trusted_judged, named, seed)
    comparison = compare(scan.labels, (trusted or scan).labels, named)
    if comparison.reason:
        return _nothing(scan, "simple models of the trusted rows", comparison.reason)
    classes = tuple(sorted({*comparison.first.values(), *comparison.second.values()}))
    sample = _in_common_terms(scan, comparison.first)
    if trusted is None:
        judge = "simple models of words, cross-validated on the file's own rows"
        said = cross_validated(sample, scan.fields, classes, seed=seed)
        gold = None
    else:
        judge = "simple models of words that learnt from the trusted rows"
        of_trusted = _in_common_terms(trusted, comparison.second)
        said, said_of_trusted = judged_by_trusted(sample, of_trusted, scan.fields, classes, seed=seed)
        gold_rows = of_trusted["row"].to_numpy()[said_of_trusted.rows]
        gold = _joined(trusted, gold_rows, comparison.second, classes, said_of_trusted.probabilities)
    if said.reason:
        return _nothing(scan, judge, said.reason)
    rows = sample["row"].to_numpy()[said.rows]
    joined = _joined(scan, rows, comparison.first, classes, said.probabilities)
    return _found(scan, rows, joined, gold, classes, judge, trusted is None, seed)


def suspect_rows(found: FileNoise) -> pa.Table:
    """The rows to look at first, the likeliest wrong first: `row` (int64), `label`, `suggested`, `probability`,
    `given_probability` (:class:`~analysis.audit.noise.Suspects`), labels in common terms."""
    suspects = found.noise.suspects if found.noise else None
    codes, shares = np.zeros(0, np.int64), np.zeros(0)
    given, suggested, probability, given_probability = (
        (suspects.given, suspects.suggested, suspects.probability, suspects.given_probability)
        if suspects
        else (codes, codes, shares, shares)
    )
    return pa.table(
        {
            "row": pa.array(found.rows, pa.int64()),
            "label": pa.array([found.classes[code] for code in given], pa.string()),
            "suggested": pa.array([found.classes[code] for code in suggested], pa.string()),
            "probability": pa.array(probability, pa.float64()),
            "given_probability": pa.array(given_probability, pa.float64()),
        }
    )


def _by_judge(
    scan: Scan,
    trusted: Scan | None,
    judged: pa.Table,
    trusted_judged: pa.Table | None,
    named: Mapping[str, str] | None,
    seed: int,
) -> FileNoise:
    judge = "the judge"
    known = [name.removeprefix(PROBABILITY) for name in judged.column_names if name.startswith(PROBABILITY)]
    # The file's labels beside the trusted ones, so that two labels of either fold three of the judge's.
    own = tuple(dict.fromkeys((*scan.labels, *(trusted.labels if trusted else ()))))
    comparison = compare(own, known, named)
    if comparison.reason:
        return _nothing(scan, judge, f"the judge has other labels than the file: {comparison.reason}")
    classes = tuple(dict.fromkeys(comparison.second.values()))
    if strange := [label for label in own if comparison.first[label] not in classes]:
        return _nothing(scan, judge, f"the judge knows no label {', '.join(map(repr, strange))}; it knows {', '.join(known)}")
    rows, probabilities = _said(judged, scan, comparison, classes)
    if not len(rows):
        raise UserError(f"the judge's table has no row of {scan.path}; judge that file's rows, by their numbers")
    gold = None
    if trusted is not None and trusted_judged is not None:
        gold_rows, of_gold = _said(trusted_judged, trusted, comparison, classes)
        gold = _joined(trusted, gold_rows, comparison.first, classes, of_gold)
    joined = _joined(scan, rows, comparison.first, classes, probabilities)
    return _found(scan, rows, joined, gold, classes, judge, False, seed)


def _found(
    scan: Scan,
    rows: np.ndarray,
    joined: JudgedLabels,
    gold: JudgedLabels | None,
    classes: tuple[str, ...],
    judge: str,
    knows_labels: bool,
    seed: int,
) -> FileNoise:
    heuristics = [heuristic.name for heuristic in scan.heuristics if not heuristic.needs_parse]
    noise = label_noise(joined, classes, heuristics, gold, knows_labels=knows_labels, seed=seed)
    return FileNoise(noise, classes, rows[noise.suspects.rows], len(rows), scan.num_rows, judge)


def _nothing(scan: Scan, judge: str, reason: str) -> FileNoise:
    return FileNoise(None, (), np.zeros(0, np.int64), 0, scan.num_rows, judge, reason)


def _in_common_terms(scan: Scan, meanings: Mapping[str, str]) -> pa.Table:
    labels = pa.array([meanings[label] for label in scan.sample["label"].to_pylist()], pa.string())
    return scan.sample.set_column(scan.sample.column_names.index("label"), "label", labels)


def _said(judged: pa.Table, scan: Scan, comparison: Comparison, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers [m] of the scan that were judged, and the probabilities float32 [m, k] of the classes."""
    numbers = judged["row"].to_numpy()
    probabilities = np.zeros((len(numbers), len(classes)), np.float32)
    for label, meaning in comparison.second.items():
        probabilities[:, classes.index(meaning)] += judged[f"{PROBABILITY}{label}"].to_numpy(zero_copy_only=False)
    usable = (scan.row[_places(scan, numbers)] == numbers) & np.isfinite(probabilities).all(axis=1)
    return numbers[usable], probabilities[usable]


def _places(scan: Scan, rows: np.ndarray) -> np.ndarray:
    """Where rows with these numbers are in the scan, whose numbers ascend, or where they would be."""
    return np.minimum(np.searchsorted(scan.row, rows), scan.num_rows - 1)


def _joined(
    scan: Scan, rows: np.ndarray, meanings: Mapping[str, str], classes: Sequence[str], probabilities: np.ndarray
) -> JudgedLabels:
    """The scan's rows with these numbers, all of which it has, beside their probabilities."""
    places = _places(scan, rows)
    assert (scan.row[places] == rows).all()
    codes = np.array([classes.index(meanings[label]) for label in scan.labels], np.int64)
    asked = [index for index, heuristic in enumerate(scan.heuristics) if not heuristic.needs_parse]
    return JudgedLabels(codes[scan.label[places]], probabilities, scan.parts[places, 0], scan.holds[places][:, asked])
