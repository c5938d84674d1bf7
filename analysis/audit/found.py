"""What an audit found, as values: numbers, findings with their levels, frames for notebooks."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.audit.evidence import Evidence
from analysis.audit.judged import FileNoise
from analysis.audit.rows import row_batches
from analysis.audit.word_heuristics import NextWord, Showing
from analysis.corpus.input import UNKNOWN_LABEL
from analysis.corpus.measures import Diversity, HeuristicFinding, Length, OneField, Ratio, Share
from analysis.corpus.single_words import SingleWords
from analysis.stats.statistics import Estimate, Interval, ends
from analysis.wording import shown

FORMAT_VERSION = 2
"""The JSON's version; one more whenever a field changes its meaning or goes."""
ACT, LOOK, CANNOT_TELL, FINE, NOT_ASKED = "act", "look", "cannot tell", "fine", "not asked"
LEVELS = (ACT, LOOK, CANNOT_TELL, FINE, NOT_ASKED)
"""Of a finding, the most urgent first."""
KINDS_OF_COPY = {"exact": "exact", "same_words": "same words", "near": "near"}


@dataclass(frozen=True)
class Figure:
    """The number that decides a finding's level: `unit` is "share" or "points" (both 0..1), or "ratio"."""

    value: float
    interval: Interval | None
    n: int
    """Rows that it is of."""
    unit: str


@dataclass(frozen=True)
class Finding:
    """One thing that an audit asks of the data, answered.

    `kind` is what it asks (:mod:`analysis.audit.findings` has them and their thresholds), `name` of which test set, heuristic
    or field. `verdict` goes on after 'The data', `action` is what to do; `reference` is the reference's own figure.
    """

    kind: str
    name: str
    verdict: str
    level: str
    sentence: str
    action: str = ""
    estimate: Figure | None = None
    reference: Figure | None = None
    steps: tuple[str, ...] = ()
    """How to ask on: a word's heuristic, as this command and a study's file name it; what test sets have of a heuristic."""


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
    unknown_labels: Mapping[str, int]
    """Labels that are none of the task's, whose rows are left out, the most frequent first."""

    @property
    def reasons(self) -> Mapping[str, int]:
        """How many rows are left out for what, labels that are none of the task's by their names."""
        names = [repr(shown(label, 40)) for label in self.unknown_labels]
        named = f"{UNKNOWN_LABEL}: {' and '.join([', '.join(names[:4]), *(['more'] if names[4:] else [])])}"
        return {named if reason == UNKNOWN_LABEL else reason: count for reason, count in self.left_out.items()}


@dataclass(frozen=True)
class CopyCounts:
    """Numbers of rows that are copies, by kind: of earlier rows of the file, or of rows of `source`."""

    source: str
    """A path; empty for the file itself."""
    kinds: Mapping[str, Share]
    """By `exact`, `same_words`, `near` (:class:`analysis.corpus.copies.Copies`), and `any`."""
    repeated: Share
    """Those that are exact or have the same words."""
    other_label: Share | None
    """Rows with the words of others, of which none has their label; None where the labels cannot be compared."""
    near_other_label: Share | None
    """Rows that are near to one with another label: pairs that differ in little, and in the label."""
    near_same_label: Share
    """Other near rows; where the labels cannot be compared, all."""
    not_compared: str = ""
    """Why the labels cannot be compared."""
    parts: Mapping[str, Share] = field(default_factory=dict)
    """Rows of which one field has the words of one of the source's."""
    given_away: Share | None = None
    """Of a test set: its rows that the file repeats; a near row with another label gives nothing away."""


@dataclass(frozen=True)
class Sample:
    """Rows to look at, each with its number, label and texts; in pairs, the second of which is what it copies."""

    title: str
    rows: tuple[tuple[Mapping[str, str], ...], ...]


@dataclass(frozen=True)
class Audit:
    """All that there is to say of a file."""

    name: str
    answer: str
    """Is the data fit, and what is wrong: one sentence."""
    findings: tuple[Finding, ...]
    """The most urgent first."""
    fields: tuple[str, ...]
    task: str
    """The task's name; empty where none was given."""
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
    label_noise: FileNoise | None
    """The rates of wrong labels; None where it was not asked."""
    one_field: Mapping[str, OneField]
    """By field."""
    reference_one_field: Mapping[str, OneField]
    single_words: Mapping[str, SingleWords]
    """By field."""
    reference_single_words: Mapping[str, SingleWords]
    next_words: Mapping[str, tuple[NextWord, ...]]
    """The strongest words of each field as heuristics."""
    showing: Mapping[str, Mapping[str, Showing]]
    """Of each heuristic of the user's own, by its name, the rows of each test set that would show a model going by it."""
    lengths: tuple[Length, ...]
    reference_lengths: tuple[Length, ...]
    diversity: tuple[Diversity, ...]
    reference_diversity: tuple[Diversity, ...]
    samples: tuple[Sample, ...]
    seconds: float
    evidence: Evidence = field(repr=False, compare=False)
    """What it was computed from: the scans. Not part of the JSON."""

    def findings_frame(self) -> pd.DataFrame:
        """A row for each finding, the most urgent first."""
        return pd.DataFrame(
            [
                {
                    **{name: getattr(finding, name) for name in ("level", "kind", "name", "verdict")},
                    **_figure(finding.estimate),
                    **{f"reference_{key}": value for key, value in _figure(finding.reference, "value low high").items()},
                    "sentence": finding.sentence,
                    "action": finding.action,
                }
                for finding in self.findings
            ]
        )

    def heuristics_frame(self) -> pd.DataFrame:
        """A row for each heuristic: where it holds, and its odds ratio in the file, in the reference, and their ratio."""
        return pd.DataFrame(
            [
                {
                    **{"heuristic": found.name, "predicts": found.predicts, "verdict": found.verdict, "reason": found.reason},
                    **_share("holds", found.all_rows),
                    **_share("predicted", found.predicted),
                    **_ratio("odds_ratio", found.odds_ratio),
                    **_ratio("reference", found.reference),
                    **_ratio("relative", found.relative),
                    **_share("with_label", found.with_label),
                    **_share("reference_with_label", found.reference_with_label),
                    **_ratio("more_often", found.more_often),
                }
                for found in self.heuristics
            ],
            columns=_HEURISTICS,
        )

    def copies_frame(self) -> pd.DataFrame:
        """A row for each kind of copy: of the file itself, the generator's training data, the reference, each test set."""
        counts = [("file", self.duplicates)]
        counts += [("reference itself", self.reference_duplicates)] if self.reference_duplicates else []
        counts += [("copies", each) for each in self.copies] + [(f"test {name}", each) for name, each in self.leaks.items()]
        rows = []
        for of, each in counts:
            shares = {**each.kinds, "other_label": each.other_label, "near_other_label": each.near_other_label}
            shares |= {f"{name} alone": share for name, share in each.parts.items()} | {"given_away": each.given_away}
            rows += [
                {"of": of, "source": each.source, "kind": kind, **_share("", share)} for kind, share in shares.items() if share
            ]
        return pd.DataFrame(rows)

    def one_field_frame(self) -> pd.DataFrame:
        """A row for each field of the file and of the reference: how well it alone tells the label."""
        return pd.DataFrame(
            [
                {
                    **{"of": of, "field": name, "reason": found.reason},
                    **_share("accuracy", found.accuracy),
                    "majority": found.majority.share if found.majority else math.nan,
                    **_estimate("lift", found.lift),
                }
                for of, fields in (("file", self.one_field), ("reference", self.reference_one_field))
                for name, found in fields.items()
            ]
        )

    def words_frame(self) -> pd.DataFrame:
        """A row for each of the words that tell a label most; the intervals of a field hold all at once."""
        return pd.DataFrame(
            [
                {
                    **{"of": of, "field": name, "label": word.label, "word": word.word},
                    **_share("with_label", word.with_label),
                    **{"base": word.base, "z": word.z, "p": word.p, "design_effect": word.design_effect},
                }
                for of, fields in (("file", self.single_words), ("reference", self.reference_single_words))
                for name, found in fields.items()
                for word in found.words
            ],
            columns=_WORDS,
        )

    def labels_frame(self) -> pd.DataFrame:
        """A row for each label of each file."""
        files = {"file": self.file, "reference": self.reference, "generator's training data": self.generator_training}
        files |= {f"test {name}": summary for name, summary in self.tests.items()}
        return pd.DataFrame(
            [
                {"of": of, "label": label, "means": summary.meanings[label], **_share("", share)}
                for of, summary in files.items()
                if summary
                for label, share in summary.labels.items()
            ]
        )

    def diversity_frame(self) -> pd.DataFrame:
        """A row for each field and n of the file and of the reference: distinct n-grams over all."""
        return pd.DataFrame(
            [
                {"of": of, "field": found.field, "n": n, **_estimate("distinct", estimate)}
                for of, every in (("file", self.diversity), ("reference", self.reference_diversity))
                for found in every
                for n, estimate in found.distinct.items()
            ],
            columns=["of", "field", "n", "distinct", "distinct_low", "distinct_high"],
        )

    def rows_frame(self) -> pd.DataFrame:
        """Every finding by row, as :func:`analysis.audit.rows.write_rows` writes them."""
        table = pa.Table.from_batches(row_batches(self.evidence, self.heuristics))
        # Row numbers stay whole numbers, though some have none.
        return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)

    def _repr_html_(self) -> str:
        """The sentence and the findings, for a notebook."""
        cells = [(one.level, one.verdict, one.sentence, one.action) for one in self.findings]
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        head = "".join(f"<th>{name}</th>" for name in ("Level", "The data", "", "What to do"))
        return f"<p><b>{html.escape(self.answer)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def audit_json(audit: Audit) -> str:
    """The audit as JSON: the fields of :class:`Audit`, every share and ratio with its n and interval; no NaN, numbers that are
    not finite are null.
    """
    values = {"format_version": FORMAT_VERSION, **_plain(audit)}
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What is one entry a row is in --rows.
        names = [
            field.name
            for field in dataclasses.fields(value)
            if field.name not in ("evidence", "suspects") and not isinstance(getattr(value, field.name), np.ndarray)
        ]
        return {name: _plain(getattr(value, name)) for name in names} | (
            {"share": value.share} if isinstance(value, Share) else {}
        )
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _figure(figure: Figure | None, names: str = "value low high n unit") -> dict[str, Any]:
    low, high = ends(figure.interval) if figure else (math.nan, math.nan)
    values: dict[str, Any] = {"value": figure.value if figure else math.nan, "low": low, "high": high}
    values |= {"n": figure.n if figure else 0, "unit": figure.unit if figure else ""}
    return {name: values[name] for name in names.split()}


_SHARE = ("count", "n", "share", "low", "high")
# Frames that can be empty have their columns all the same.
_HEURISTICS = [
    *("heuristic", "predicts", "verdict", "reason"),
    *(f"{name}_{key}" for name in ("holds", "predicted") for key in _SHARE),
    *(f"{name}{end}" for name in ("odds_ratio", "reference", "relative") for end in ("", "_low", "_high")),
    *(f"{name}_{key}" for name in ("with_label", "reference_with_label") for key in _SHARE),
    *(f"more_often{end}" for end in ("", "_low", "_high")),
]
_WORDS = ["of", "field", "label", "word", *(f"with_label_{key}" for key in _SHARE), "base", "z", "p", "design_effect"]


def _named(name: str, values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {f"{name}_{key}" if name else key: value for key, value in values}


def _share(name: str, share: Share | None) -> dict[str, Any]:
    low, high = ends(share.interval if share else None)
    values: Sequence[tuple[str, Any]] = [("count", share.count if share else 0), ("n", share.n if share else 0)]
    return _named(name, [*values, ("share", share.share if share else math.nan), ("low", low), ("high", high)])


def _ratio(name: str, ratio: Ratio | None) -> dict[str, Any]:
    low, high = ends(ratio.interval if ratio else None)
    return {name: ratio.value if ratio else math.nan, f"{name}_low": low, f"{name}_high": high}


def _estimate(name: str, estimate: Estimate | None) -> dict[str, Any]:
    low, high = ends(estimate.interval if estimate else None)
    return {name: estimate.mean if estimate else math.nan, f"{name}_low": low, f"{name}_high": high}
