"""An audit for people: one self-contained HTML page, and a few lines for the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.audit.audit import KINDS_OF_COPY, Audit, CopyCounts, FileSummary, shown
from analysis.corpus.measures import Diversity, Length, OneField, Ratio, Share, difference
from analysis.page import Block, Column, Fold, Table, Verdict, grouped, number_columns, template, text_columns, write_file
from analysis.stats.statistics import Interval
from analysis.wording import NOTHING, duration, percent, percent_range, points, points_range, thousands

PAGE = "audit.html"
NOTES = (
    "Intervals are 95 % intervals: Wilson's for shares; for odds ratios the logit interval with a half added to each count, "
    "widened where rows share a premise, as duplicates do.",
    "A word is what stands between white space, lower-cased, without punctuation. The heuristics have the tokens of HANS's "
    "authors: lower-cased, the stand-alone . ? ! dropped, other punctuation kept.",
    "Near copies: the Jaccard index of the premises' word pairs times that of the hypotheses' is about 0.6 or more. "
    "Of pairs alike to 0.8, 99.7 % are found; to 0.7, 91 %.",
    "The hypothesis-only baseline is a linear model on words and word pairs of a random sample; a larger model can find more.",
)


def write_page(audit: Audit, folder: str | os.PathLike[str]) -> Path:
    """Write `audit.html` into a folder and return its path. The page loads nothing; texts of the data are escaped."""
    target = Path(folder) / PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "title": f"What {shown(audit.name, 80)} teaches besides its task",
        "name": shown(audit.file.path, 200),
        "summary": f"{thousands(audit.file.num_rows)} rows · audited in {duration(audit.seconds)}",
        "marks": [],
        "missing": [],
        "claims": [],
        "figure": None,
        "question": [
            "A model that is finetuned on generated data learns what the data shows, also where it is wrong. This page "
            "counts what can be counted without a model: whether a syntactic heuristic tells the label, and more so than in "
            "the reference; what is there twice or copied; whether the hypothesis alone gives the label away; how varied "
            "the text is.",
        ],
        "verdict": _verdict(audit),
        "blocks": [
            _size_block(audit),
            _heuristics_block(audit),
            _copies_block(audit),
            _one_field_block(audit),
            _variety_block(audit),
            _samples_block(audit),
        ],
    }
    write_file(target, template("audit.html.j2").render(values).encode())
    return target


def summary_lines(audit: Audit) -> list[str]:
    """The audit in a few lines of plain text without control characters."""
    labels = ", ".join(f"{shown(name, 30)} {percent(share.share)}" for name, share in audit.file.labels.items())
    lines = [f"{shown(audit.file.path, 200)}: {thousands(audit.file.num_rows)} rows ({labels})"]
    for role, summary in _files(audit).items():
        prefix = "" if summary is audit.file else f"{role} {shown(summary.path, 200)}: {thousands(summary.num_rows)} rows; "
        lines.append(f"  {prefix}columns {_columns(summary)}{_meanings(summary)}")
        if summary.left_out:
            lines.append(f"  left out: {_left_out(summary)}")
    lines += [f"  warning: {warning}" for warning in audit.warnings]
    return lines + [f"  {line}" for line in _findings(audit)]


def _findings(audit: Audit) -> list[str]:
    lines = []
    for finding in audit.heuristics:
        line = f"{_title(finding.name)}: {finding.verdict} ({finding.reason})"
        if finding.odds_ratio:
            line += f"; odds ratio {_ratio(finding.odds_ratio)}, n={thousands(finding.odds_ratio.n)}"
        if finding.reference and finding.relative:
            line += f", {_ratio(finding.relative)} times the reference's"
        lines.append(line)
    lines.append(f"duplicates: {_copy_words(audit.duplicates)}")
    lines += [f"copies of {_role(audit, counts)}: {_copy_words(counts)}" for counts in audit.copies]
    lines += [
        f"test set {shown(name, 60)}: {_share_words(counts.given_away)} of its rows are in the file; {_copy_words(counts)}"
        for name, counts in audit.leaks.items()
    ]
    for of, baselines in (("", audit.one_field), (", reference", audit.reference_one_field)):
        lines += [_baseline_words(f"{field} only{of}", baseline) for field, baseline in baselines.items()]
    for diversity, other in _paired_diversity(audit):
        line = f"distinct n-grams of {diversity.field}: {_distinct_words(diversity)}"
        lines.append(line + (f"; reference {_distinct_words(other)}" if other else ""))
    return lines


def _verdict(audit: Audit) -> Verdict:
    than = "the reference" if audit.reference else "no association at all (an odds ratio of 1): no reference is given"
    numbers = number_columns("Odds ratio", "Reference", "Times reference")
    columns = [*text_columns("Heuristic", "Verdict"), *numbers, Column("Why", "wrap")]
    rows = [
        [
            *(_title(finding.name), finding.verdict, _ratio(finding.odds_ratio), _ratio(finding.reference)),
            _ratio(finding.relative) if finding.reference else NOTHING,
            finding.reason,
        ]
        for finding in audit.heuristics
    ]
    lead = [f"Does the data plant a heuristic? Compared with {than}; factors up to {audit.margin:g} count as no difference."]
    rest = [line for line in _findings(audit)[len(audit.heuristics) :] if not line.startswith("distinct")]
    return Verdict(lead, [Table(columns, rows)], [*rest, *NOTES])


def _size_block(audit: Audit) -> Block:
    files = _files(audit)
    groups = [
        [
            [
                *(role, shown(name, 60), shown(summary.meanings[name], 60)),
                *(thousands(share.count), *_share_cells(share)),
            ]
            for name, share in summary.labels.items()
        ]
        for role, summary in files.items()
    ]
    text = [f"Left out of the {role}: {_left_out(summary)}." for role, summary in files.items() if summary.left_out]
    numbers = number_columns("Rows (n)", "Share", "95 % interval")
    columns = [Column("Data"), Column("Label", "wrap"), Column("Counts as"), *numbers]
    paths = [[role, shown(file.path, 300), thousands(file.num_rows), _columns(file)] for role, file in files.items()]
    of_files = Table([Column("Data"), Column("File", "wrap"), *number_columns("Rows"), Column("Columns", "wrap")], paths)
    return Block("size", "Size and labels", text, [of_files, grouped(columns, groups)])


def _heuristics_block(audit: Audit) -> Block:
    columns = [Column("Heuristic"), Column("Of"), *number_columns("Holds", "Rows (n)", "Share", "95 % interval")]
    groups = []
    for finding in audit.heuristics:
        if finding.all_rows is not None:
            by_label = {shown(name, 60): share for name, share in (finding.by_label or {}).items()}
            groups.append(_share_rows(_title(finding.name), {"all": finding.all_rows, **by_label}))
    given = [[_title(finding.name), *_counted_cells(finding.predicted)] for finding in audit.heuristics if finding.predicted]
    given_columns = [Column("Where it holds"), *number_columns("Predicted label", "Rows (n)", "Share", "95 % interval")]
    text = [
        f"{_title(finding.name)}: {finding.description}" + (f" ({finding.reason}.)" if finding.all_rows is None else "")
        for finding in audit.heuristics
    ]
    tables = [grouped(columns, groups), *([Table(given_columns, given)] if given else [])]
    return Block("heuristics", "Heuristics by label", text, tables)


def _copies_block(audit: Audit) -> Block:
    columns = [Column("Copies"), Column("Kind"), *number_columns("Rows", "Of (n)", "Share", "95 % interval")]
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
        *(f"Labels {name}: cannot compare, {counts.not_compared}." for name, counts in all_counts if counts.not_compared),
    ]
    return Block("copies", "Duplicates and copies", text, [grouped(columns, groups)])


def _one_field_block(audit: Audit) -> Block:
    columns = [
        *(Column("Data"), Column("Field")),
        *number_columns("Trained on", "Held out (n)", "Accuracy", "95 % interval", "Majority", "Above it", "95 % interval"),
    ]
    rows, text, words = [], [], []
    for role, baselines in (("file", audit.one_field), ("reference", audit.reference_one_field)):
        for field, baseline in baselines.items():
            if baseline.accuracy is None or baseline.majority is None or baseline.lift is None:
                text.append(f"Cannot tell for the {field} of the {role}: {baseline.reason}.")
                continue
            rows.append(
                [
                    *(role, field, thousands(baseline.num_training), thousands(baseline.accuracy.n)),
                    *_share_cells(baseline.accuracy),
                    *(percent(baseline.majority.share), points(baseline.lift.mean), _points(baseline.lift.interval)),
                ]
            )
    for field, baseline in audit.one_field.items():
        words += [
            [
                *(field, shown(given.label, 60), shown(given.word, 40), thousands(given.with_label.n)),
                *_share_cells(given.with_label),
            ]
            for given in baseline.words
        ]
    numbers = number_columns("Rows (n)", "With the label", "95 % interval")
    word_columns = [Column("Field"), Column("Label", "wrap"), Column("Word"), *numbers]
    folds = [Fold("Words that go with a label", [Table(word_columns, words)])] if words else []
    title = "One field alone" if len(audit.fields) > 1 else "Words alone"
    return Block("one-field", title, text, [Table(columns, rows)] if rows else [], folds)


def _variety_block(audit: Audit) -> Block:
    numbers = number_columns("Blocks", "File", "95 % interval", "Reference", "Difference")
    columns = [*text_columns("Distinct n-grams", "n"), *numbers]
    rows = []
    text = ["Different word n-grams over all, in blocks of 5 000 words of sampled rows; n = 1 is the type-token ratio."]
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
    numbers = number_columns("Rows (n)", "Mean", "95 % interval", "Median", "5 to 95 %", "Longest")
    columns = [Column("Label", "wrap"), Column("Side"), *numbers]
    rows = [
        [
            *(shown(length.label, 60), length.field, thousands(length.mean.n)),
            *(f"{length.mean.mean:.1f}", _range(length.mean.interval, 1), f"{length.median:g}"),
            *(f"{length.percentile_5:g} to {length.percentile_95:g}", thousands(int(length.mean.high))),
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


def _distinct_words(diversity: Diversity) -> str:
    words = [f"{n}: {share.mean:.3f} ({_range(share.interval)})" for n, share in diversity.distinct.items()]
    return ", ".join(words) or f"cannot tell, {diversity.reason}"


def _baseline_words(name: str, baseline: OneField) -> str:
    if baseline.accuracy is None or baseline.majority is None or baseline.lift is None:
        return f"{name}: cannot tell, {baseline.reason}"
    return (
        f"{name}: accuracy {percent(baseline.accuracy.share)}, {points(baseline.lift.mean)} points "
        f"{_points(baseline.lift.interval)} above the majority class's {percent(baseline.majority.share)} "
        f"(n={thousands(baseline.accuracy.n)})"
    )


def _copy_words(counts: CopyCounts) -> str:
    every = counts.kinds["any"]
    kinds = ", ".join(f"{thousands(counts.kinds[kind].count)} {words}" for kind, words in KINDS_OF_COPY.items())
    around = percent_range(every.interval.low, every.interval.high, 2)
    if counts.other_label is None or counts.near_other_label is None:
        labels = f"cannot compare labels: {shown(counts.not_compared, 400)}"
    else:
        labels = (
            f"{thousands(counts.other_label.count)} with the same words and another label, "
            f"{thousands(counts.near_other_label.count)} near with another label"
        )
    return f"{percent(every.share, 2)} of rows ({around}; {kinds}; {labels})"


def _share_words(share: Share | None) -> str:
    return f"{thousands(share.count)} of {thousands(share.n)}" if share else NOTHING


def _meanings(summary: FileSummary) -> str:
    """Which labels were taken for something else than they are called, and how they are spelled otherwise."""
    taken = [
        f"{shown(label, 40)!r} is {shown(meaning, 40)!r}" for label, meaning in summary.meanings.items() if label != meaning
    ]
    for label, spelled in summary.spellings.items():
        others = [f"{shown(name, 40)!r} ({thousands(count)})" for name, count in spelled.items() if name != label]
        taken.append(f"{', '.join(others)} taken for {shown(label, 40)!r}")
    return "".join(f"; {each}" for each in taken)


def _left_out(summary: FileSummary) -> str:
    return ", ".join(f"{thousands(count)} rows with {reason}" for reason, count in summary.left_out.items())


def _title(name: str) -> str:
    return name.replace("_", " ")


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio.value:.3g} [{ratio.interval.low:.3g}, {ratio.interval.high:.3g}]"


def _share_cells(share: Share) -> tuple[str, str]:
    return percent(share.share, 2), percent_range(share.interval.low, share.interval.high, 2)


def _counted_cells(share: Share) -> list[str]:
    return [thousands(share.count), thousands(share.n), *_share_cells(share)]


def _share_rows(name: str, slices: Mapping[str, Share]) -> list[list[str]]:
    return [[name, of, *_counted_cells(share)] for of, share in slices.items()]


def _points(interval: Interval | None) -> str:
    return points_range(interval.low, interval.high) if interval else NOTHING


def _range(interval: Interval | None, digits: int = 3) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}" if interval else NOTHING
