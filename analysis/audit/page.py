"""An audit for people: one self-contained HTML page, and a few lines for the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.audit.findings import (
    CONTRADICTIONS,
    COPIES,
    DIVERSITY,
    DUPLICATES,
    HEURISTICS,
    LEAKS,
    NEAR_DUPLICATES,
    NOISE,
    ONE_FIELD,
    WORDS,
    first_action,
)
from analysis.audit.found import (
    ACT,
    CANNOT_TELL,
    FINE,
    KINDS_OF_COPY,
    LEVELS,
    LOOK,
    NOT_ASKED,
    Audit,
    CopyCounts,
    Figure,
    FileSummary,
    Finding,
)
from analysis.audit.judged import FileNoise
from analysis.corpus.measures import Diversity, Length, Ratio, Share, difference
from analysis.corpus.single_words import SingleWords
from analysis.page import Block, Column, Fold, Table, grouped, number_columns, template, text_columns, write_file
from analysis.stats.statistics import Interval
from analysis.wording import NOTHING, counted, duration, percent, percent_range, points, points_range, shown

PAGE = "audit.html"
MOST_LABELS = 10
"""So many the terminal names."""
TITLES = {
    LEAKS: "Test set",
    CONTRADICTIONS: "Contradictions",
    NOISE: "Wrong labels",
    COPIES: "Copies",
    DUPLICATES: "Duplicates",
    NEAR_DUPLICATES: "Near copies",
    HEURISTICS: "Heuristic",
    ONE_FIELD: "One field alone",
    WORDS: "Single words",
    DIVERSITY: "Variety",
}
METHODS = (
    "Intervals are 95% intervals: Wilson's for shares; for odds ratios the logit interval with a half added to each count, "
    "widened where rows share a first text, as duplicates do. A finding's level is decided by its interval: act takes all of "
    "it above one threshold, fine all of it up to another. docs/audit.md has the thresholds and their reasons.",
    "A word is one of Unicode's segmentation that has a letter or a digit, lower-cased; where a language puts no spaces "
    "between words, a character. The heuristics have the tokens of HANS's authors: lower-cased, split at white space, the "
    "stand-alone . ? ! dropped, other punctuation kept. Those 'by words' go by words.",
    "Near copies: the Jaccard index of the word pairs, multiplied over the fields, is about 0.6 or more. Of rows alike to 0.8, "
    "99.7% are found; to 0.7, 91%.",
    "One field alone: a linear model on words and word pairs of a random sample; a larger model can find more.",
    "Single words: the competency test of Gardner et al. 2021, with exact intervals of the effective number of rows that hold "
    "for all words of a field at once (Bonferroni). A word tells a label where it at least doubles the label's odds, by the "
    "interval's low end.",
)


@dataclass(frozen=True)
class _Card:
    """A finding as the page draws it."""

    level: str
    css: str
    kind: str
    verdict: str
    sentence: str
    figure: str
    interval: str
    reference: str
    action: str
    steps: tuple[str, ...] = ()

    @property
    def pieces(self) -> list[str]:
        return _pieces(self.action)


def write_page(audit: Audit, folder: str | os.PathLike[str]) -> Path:
    """Write `audit.html` into a folder and return its path. The page loads nothing; texts of the data are escaped."""
    target = Path(folder) / PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    cards = _cards(audit)
    values = {
        "title": audit.answer,
        "name": shown(audit.file.path, 200),
        "summary": f"{audit.file.num_rows:,} rows · audited in {duration(audit.seconds)}",
        "marks": [],
        "missing": [],
        "claims": [],
        "figure": None,
        "question": [],
        "verdict": None,
        "worst": _css(audit.findings[0].level) if audit.findings else "",
        "first_action": _pieces(first_action(audit.findings)),
        "warnings": audit.warnings,
        "cards": [card for card in cards if card.level != NOT_ASKED],
        "not_asked": [card.sentence for card in cards if card.level == NOT_ASKED],
        "counts": [(level, _css(level), count) for level, count in _by_level(audit.findings).items() if level != NOT_ASKED],
        "blocks": [
            _size_block(audit),
            *([_heuristics_block(audit)] if audit.heuristics else []),
            _copies_block(audit),
            *([_noise_block(audit.label_noise)] if audit.label_noise else []),
            _one_field_block(audit),
            _words_block(audit),
            _variety_block(audit),
            _samples_block(audit),
            Block("methods", "How it is measured", METHODS),
        ],
    }
    write_file(target, template("audit.html.j2").render(values).encode())
    return target


def summary_lines(audit: Audit) -> list[str]:
    """The audit in a few lines of plain text without control characters: the answer, then the findings by urgency."""
    most_common = [f"{shown(name, 30)} {percent(share.share)}" for name, share in audit.file.labels.items()]
    more = len(most_common) - MOST_LABELS
    labels = ", ".join(most_common[:MOST_LABELS]) + (f" and {more:,} more" if more > 0 else "")
    lines = [audit.answer]
    if action := first_action(audit.findings):
        lines.append(f"Do first: {action}")
    lines += ["", f"{shown(audit.file.path, 200)}: {audit.file.num_rows:,} rows ({labels})"]
    for role, summary in _files(audit).items():
        prefix = "" if summary is audit.file else f"{role} {shown(summary.path, 200)}: {summary.num_rows:,} rows; "
        lines.append(f"  {prefix}columns {_columns(summary)}{_meanings(summary)}")
        if summary.left_out:
            lines.append(f"  left out: {_left_out(summary)}")
    lines += [f"  warning: {shown(warning, 600)}" for warning in audit.warnings]
    width = max(map(len, LEVELS))
    for card in _cards(audit):
        if card.level == NOT_ASKED:
            lines.append(f"  {card.level:{width}}  {card.sentence}")
            continue
        value = "" if card.figure in card.verdict else card.figure
        figures = [" ".join(filter(None, (value, card.interval))), f"reference {card.reference}" if card.reference else ""]
        words = "; ".join(filter(None, figures))
        lines.append(f"  {card.level:{width}}  {card.verdict}" + (f" ({words})" if words else ""))
        if card.level == CANNOT_TELL:
            lines.append(f"  {'':{width}}     {card.sentence}")
        if card.action:
            lines.append(f"  {'':{width}}  -> {card.action}")
        lines += [f"  {'':{width}}     {step}" for step in card.steps]
    return lines


def _by_level(findings: Sequence[Finding]) -> dict[str, int]:
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    return {level: count for level, count in counts.items() if count}


def _css(level: str) -> str:
    return {ACT: "act", LOOK: "look", CANNOT_TELL: "open", FINE: "fine"}.get(level, "")


def _cards(audit: Audit) -> list[_Card]:
    """The findings as they are drawn; an action that the one before it has is not said again."""
    cards: list[_Card] = []
    before = ""
    for finding in audit.findings:
        action = finding.action if finding.level in (ACT, LOOK) else ""
        value, interval = _figure_words(finding.estimate)
        cards.append(
            _Card(
                finding.level,
                _css(finding.level),
                TITLES[finding.kind],
                finding.verdict[:1].upper() + finding.verdict[1:],
                finding.sentence,
                value,
                interval,
                " ".join(filter(None, _figure_words(finding.reference))),
                "" if action == before else action,
                finding.steps,
            )
        )
        before = action
    return cards


def _pieces(action: str) -> list[str]:
    """An action, options of the command line at the odd places: no line is to break within one."""
    return re.split(r"(--[a-z-]+)", action) if action else []


def _figure_words(figure: Figure | None) -> tuple[str, str]:
    """The value and its interval."""
    if figure is None:
        return "", ""
    around = figure.interval
    if figure.unit == "ratio":
        return f"odds ratio {figure.value:.3g}", f"[{around.low:.3g}, {around.high:.3g}]" if around else ""
    if figure.unit == "points":
        return f"{points(figure.value)} points", points_range(around.low, around.high) if around else ""
    # A small share that is not 0 does not look like it.
    digits = 2 if max(figure.value, around.high if around else 0) < 0.01 else 1
    interval = f"[{100 * around.low:.{digits}f}, {100 * around.high:.{digits}f}]" if around else ""
    return percent(figure.value, digits if figure.value else 0), interval


def _size_block(audit: Audit) -> Block:
    files = _files(audit)
    groups = [
        [
            [
                *(role, shown(name, 60), shown(summary.meanings[name], 60)),
                *(f"{share.count:,}", *_share_cells(share)),
            ]
            for name, share in summary.labels.items()
        ]
        for role, summary in files.items()
    ]
    text = [f"Left out of the {role}: {_left_out(summary)}." for role, summary in files.items() if summary.left_out]
    numbers = number_columns("Rows (n)", "Share", "95% interval")
    columns = [Column("Data"), Column("Label", "wrap"), Column("Counts as"), *numbers]
    paths = [[role, shown(file.path, 300), f"{file.num_rows:,}", _columns(file)] for role, file in files.items()]
    of_files = Table([Column("Data"), Column("File", "wrap"), *number_columns("Rows"), Column("Columns", "wrap")], paths)
    return Block("size", "Size and labels", text, [of_files, grouped(columns, groups)])


def _heuristics_block(audit: Audit) -> Block:
    columns = [Column("Heuristic"), Column("Of"), *number_columns("Holds", "Rows (n)", "Share", "95% interval")]
    groups = []
    for finding in audit.heuristics:
        if finding.all_rows is not None:
            by_label = {shown(name, 60): share for name, share in (finding.by_label or {}).items()}
            groups.append(_share_rows(_title(finding.name), {"all": finding.all_rows, **by_label}))
    given = [[_title(finding.name), *_counted_cells(finding.predicted)] for finding in audit.heuristics if finding.predicted]
    given_columns = [Column("Where it holds"), *number_columns("Predicted label", "Rows (n)", "Share", "95% interval")]
    text = [
        f"{_title(finding.name)}: {finding.description}" + (f" ({finding.reason}.)" if finding.all_rows is None else "")
        for finding in audit.heuristics
    ]
    than = "the reference" if audit.reference else "no association at all (an odds ratio of 1): no reference is given"
    text.insert(0, f"Compared with {than}; factors up to {audit.margin:g} count as no difference.")
    tables = [_odds_table(audit), grouped(columns, groups), *([Table(given_columns, given)] if given else [])]
    return Block("heuristics", "Heuristics", text, tables)


def _odds_table(audit: Audit) -> Table:
    numbers = number_columns("Odds ratio", "Reference", "Times reference")
    rows = [
        [
            *(_title(finding.name), finding.verdict, _ratio(finding.odds_ratio), _ratio(finding.reference)),
            _ratio(finding.relative) if finding.reference else NOTHING,
            finding.reason,
        ]
        for finding in audit.heuristics
    ]
    return Table([*text_columns("Heuristic", "Verdict"), *numbers, Column("Why", "wrap")], rows)


def _copies_block(audit: Audit) -> Block:
    columns = [Column("Copies"), Column("Kind"), *number_columns("Rows", "Of (n)", "Share", "95% interval")]
    all_counts = [("in the file", audit.duplicates)]
    if audit.reference_duplicates:
        all_counts.append(("in the reference", audit.reference_duplicates))
    all_counts += [(f"of {_role(audit, counts)}", counts) for counts in audit.copies]
    groups = []
    all_counts += [(f"of the test set {shown(name, 40)}", counts) for name, counts in audit.leaks.items()]
    for name, counts in all_counts:
        slices = {words: counts.kinds[kind] for kind, words in KINDS_OF_COPY.items()} | {"any of these": counts.kinds["any"]}
        if counts.other_label and counts.near_other_label:
            slices["the same words, and another label"] = counts.other_label
            slices["near, and another label"] = counts.near_other_label
        slices |= {f"the {side} alone": share for side, share in counts.parts.items()}
        groups.append(_share_rows(name, slices))
    text = [
        "Within a file the later row counts as the copy. A row counts once, as the closest kind: exact; the same words, but "
        "for case, punctuation and spacing; near. The same words with another label contradict each other. Near rows with "
        "another label do not: they differ in little and in the label, as contrast pairs do, and teach the difference.",
    ]
    return Block("copies", "Duplicates and copies", text, [grouped(columns, groups)])


def _noise_block(found: FileNoise) -> Block:
    text = [
        f"{found.num_judged:,} of {found.num_rows:,} rows were judged, by {found.judge}. "
        "docs/label_noise.md says how a judge's own errors are taken into account."
    ]
    if found.noise is None:
        return Block("label-noise", "Wrong labels", [*text, f"Cannot tell: {found.reason}."])
    numbers = number_columns("Rows (n)", "Judge differs", "Wrong", "95% interval", "Trusted rows")
    columns = [Column("Label", "wrap"), Column("Where", "wrap"), *numbers, Column("Verdict"), Column("Why", "wrap")]
    rows = []
    for rate in (found.noise.in_all, *found.noise.rates):
        where = "all" if rate.heuristic is None or rate.holds is None else _title(rate.heuristic)
        rows.append(
            [
                *("all" if rate.label is None else shown(rate.label, 60), f"not {where}" if rate.holds is False else where),
                *(
                    f"{rate.num_rows:,}",
                    percent(rate.share_disagreed),
                    NOTHING if rate.rate is None else percent(rate.rate),
                ),
                *(percent_range(rate.interval.low, rate.interval.high), f"{rate.num_trusted:,}"),
                *(rate.verdict, rate.reason),
            ]
        )
    return Block("label-noise", "Wrong labels", text, [Table(columns, rows)])


def _one_field_block(audit: Audit) -> Block:
    columns = [
        *(Column("Data"), Column("Field")),
        *number_columns("Trained on", "Held out (n)", "Accuracy", "95% interval", "Majority", "Above it", "95% interval"),
    ]
    rows, text = [], []
    for role, baselines in (("file", audit.one_field), ("reference", audit.reference_one_field)):
        for field, baseline in baselines.items():
            if baseline.accuracy is None or baseline.majority is None or baseline.lift is None:
                text.append(f"Cannot tell for the {field} of the {role}: {baseline.reason}.")
                continue
            rows.append(
                [
                    *(role, field, f"{baseline.num_training:,}", f"{baseline.accuracy.n:,}"),
                    *_share_cells(baseline.accuracy),
                    *(percent(baseline.majority.share), points(baseline.lift.mean), _points(baseline.lift.interval)),
                ]
            )
    title = "One field alone" if len(audit.fields) > 1 else "A bag of words"
    return Block("one-field", title, text, [Table(columns, rows)] if rows else [])


def _words_block(audit: Audit) -> Block:
    numbers = number_columns("Rows", "Words tested", "Beyond", "Telling", "Rows with one", "Share", "95% interval")
    roles = (("file", audit.single_words), ("reference", audit.reference_single_words))
    rows, text = [], []
    for role, fields in roles:
        for field, found in fields.items():
            if found.telling is None:
                text.append(f"Cannot tell for the {field} of the {role}: {found.reason}.")
                continue
            counts = (found.num_rows, found.num_tested, found.num_beyond, found.num_telling, found.telling.count)
            rows.append([role, field, *map("{:,}".format, counts), *_share_cells(found.telling)])
    folds = [
        Fold(f"Words that tell a label: {field}, {role}", [_word_table(found)])
        for role, fields in roles
        for field, found in fields.items()
        if found.words
    ]
    tables = [Table([Column("Data"), Column("Field"), *numbers], rows)] if rows else []
    return Block("words", "Single words", text, tables, folds)


def _word_table(found: SingleWords) -> Table:
    numbers = number_columns("Rows (n)", "With the label", "All hold at once", "Of all rows", "z", "Corrected p")
    rows = [
        [
            *(shown(given.label, 60), shown(given.word, 40), f"{given.with_label.n:,}"),
            *(percent(given.with_label.share), percent_range(given.with_label.interval.low, given.with_label.interval.high)),
            *(percent(given.base), f"{given.z:.1f}", f"{given.p:.1g}"),
        ]
        for given in found.words
    ]
    return Table([Column("Label", "wrap"), Column("Word"), *numbers], rows)


def _variety_block(audit: Audit) -> Block:
    numbers = number_columns("Blocks", "File", "95% interval", "Reference", "Difference")
    columns = [*text_columns("Distinct n-grams", "n"), *numbers]
    rows = []
    text = ["Different word n-grams over all, in blocks of 5,000 words of sampled rows; n = 1 is the type-token ratio."]
    for diversity, other in _paired_diversity(audit):
        if diversity.reason:
            text.append(f"Cannot tell for the {diversity.field}: {diversity.reason}.")
        for n, estimate in diversity.distinct.items():
            base = other.distinct.get(n) if other else None
            apart = difference(estimate, base) if base else None
            rows.append(
                [
                    *(diversity.field, str(n), str(estimate.n), f"{estimate.mean:.3f}", _range(estimate.interval)),
                    *(f"{base.mean:.3f}" if base else NOTHING, _range(apart)),
                ]
            )
    of_lengths = [_lengths(audit.lengths, "file")]
    if audit.reference:
        of_lengths.append(_lengths(audit.reference_lengths, "reference"))
    tables, folds = [Table(columns, rows)] if rows else [], [Fold("Lengths in words", of_lengths)]
    return Block("variety", "Variety and length", text, tables, folds)


def _lengths(lengths: Sequence[Length], role: str) -> Table:
    numbers = number_columns("Rows (n)", "Mean", "95% interval", "Median", "5 to 95%", "Longest")
    columns = [Column("Label", "wrap"), Column("Side"), *numbers]
    rows = [
        [
            *(shown(length.label, 60), length.field, f"{length.mean.n:,}"),
            *(f"{length.mean.mean:.1f}", _range(length.mean.interval, 1), f"{length.median:g}"),
            *(f"{length.percentile_5:g} to {length.percentile_95:g}", f"{int(length.mean.high):,}"),
        ]
        for length in lengths
    ]
    return Table(columns, rows, caption=role)


def _samples_block(audit: Audit) -> Block:
    keys = ("row", "label", *audit.fields)
    columns = [Column("Row"), *text_columns("Label", *(field.capitalize() for field in audit.fields), css="wrap")]
    folds = []
    for sample in audit.samples:
        groups = [[[row[key] for key in keys] for row in group] for group in sample.rows]
        folds.append(Fold(sample.title, [grouped(columns, groups)]))
    text = ["Drawn at random, cut after 300 characters; below a copy is what it copies."]
    return Block("samples", "Samples", text, folds=folds)


def _files(audit: Audit) -> dict[str, FileSummary]:
    """The files by what they are for; one that is both reference and training data is named so."""
    files = {"file": audit.file}
    if audit.reference and audit.generator_training and audit.reference.path == audit.generator_training.path:
        return files | {"reference (also the generator's training data)": audit.reference}
    others = {"reference": audit.reference, "generator's training data": audit.generator_training}
    return (
        files
        | {role: file for role, file in others.items() if file}
        | {f"test set {shown(name, 40)}": file for name, file in audit.tests.items()}
    )


def _role(audit: Audit, counts: CopyCounts) -> str:
    return "the " + next(role for role, file in _files(audit).items() if file.path == counts.source)


def _columns(summary: FileSummary) -> str:
    return ", ".join(f"{name}={shown(column, 40)}" for name, column in summary.columns.items())


def _paired_diversity(audit: Audit) -> list[tuple[Diversity, Diversity | None]]:
    others = {diversity.field: diversity for diversity in audit.reference_diversity}
    return [(diversity, others.get(diversity.field)) for diversity in audit.diversity]


def _meanings(summary: FileSummary) -> str:
    """Which labels were taken for something else than they are called, and how they are spelled otherwise."""
    taken = [
        f"{shown(label, 40)!r} is {shown(meaning, 40)!r}" for label, meaning in summary.meanings.items() if label != meaning
    ]
    for label, spelled in summary.spellings.items():
        others = [f"{shown(name, 40)!r} ({count:,})" for name, count in spelled.items() if name != label]
        taken.append(f"{', '.join(others)} taken for {shown(label, 40)!r}")
    return "".join(f"; {each}" for each in taken)


def _left_out(summary: FileSummary) -> str:
    return ", ".join(f"{counted(count, 'row')} with {reason}" for reason, count in summary.reasons.items())


def _title(name: str) -> str:
    return name.replace("_", " ")


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio.value:.3g} [{ratio.interval.low:.3g}, {ratio.interval.high:.3g}]"


def _share_cells(share: Share) -> tuple[str, str]:
    return percent(share.share, 2), percent_range(share.interval.low, share.interval.high, 2)


def _counted_cells(share: Share) -> list[str]:
    return [f"{share.count:,}", f"{share.n:,}", *_share_cells(share)]


def _share_rows(name: str, slices: Mapping[str, Share]) -> list[list[str]]:
    return [[name, of, *_counted_cells(share)] for of, share in slices.items()]


def _points(interval: Interval | None) -> str:
    return points_range(interval.low, interval.high) if interval else NOTHING


def _range(interval: Interval | None, digits: int = 3) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}" if interval else NOTHING
