"""An audit for people: one self-contained HTML page, and a few lines for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from analysis.audit import KINDS_OF_COPY, Audit, CopyCounts, FileSummary, Sample, shown
from analysis.audit_measures import Diversity, HeuristicFinding, HypothesisOnly, Length, Ratio, Share, difference
from analysis.page import Block, Column, Fold, Table, Verdict, template, write_file
from analysis.statistics import Interval
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
        "summary": f"{thousands(audit.file.num_rows)} pairs · audited in {duration(audit.seconds)}",
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
            _hypothesis_block(audit),
            _variety_block(audit),
            _samples_block(audit.samples),
        ],
    }
    write_file(target, template("audit.html.j2").render(values).encode())
    return target


def summary_lines(audit: Audit) -> list[str]:
    """The audit in a few lines of plain text without control characters."""
    labels = ", ".join(f"{shown(name, 30)} {percent(one.share)}" for name, one in audit.file.labels.items())
    lines = [f"{shown(audit.file.path, 200)}: {thousands(audit.file.num_rows)} pairs ({labels})"]
    for role, summary in _files(audit).items():
        prefix = "" if summary is audit.file else f"{role} {shown(summary.path, 200)}: {thousands(summary.num_rows)} pairs; "
        entailment = _names(summary.entailment) or "no label of it"
        lines.append(f"  {prefix}columns {_columns(summary)}; entailment is {entailment}")
        if summary.left_out:
            lines.append(f"  left out: {_left_out(summary)}")
    return lines + [f"  {line}" for line in _findings(audit)]


def _findings(audit: Audit) -> list[str]:
    lines = []
    for one in audit.heuristics:
        line = f"{_title(one.name)}: {one.verdict} ({one.reason})"
        if one.odds_ratio:
            line += f"; odds ratio {_ratio(one.odds_ratio)}, n={thousands(one.odds_ratio.n)}"
        if one.reference and one.relative:
            line += f", {_ratio(one.relative)} times the reference's"
        lines.append(line)
    lines.append(f"duplicates: {_copy_words(audit.duplicates)}")
    lines += [f"copies of {_role(audit, one)}: {_copy_words(one)}" for one in audit.copies]
    lines.append(_baseline_words("hypothesis-only", audit.hypothesis_only))
    if audit.reference_hypothesis_only:
        lines.append(_baseline_words("hypothesis-only, reference", audit.reference_hypothesis_only))
    for measured, other in _paired_diversity(audit):
        line = f"distinct n-grams of {measured.side}: {_distinct_words(measured)}"
        lines.append(line + (f"; reference {_distinct_words(other)}" if other else ""))
    return lines


def _verdict(audit: Audit) -> Verdict:
    than = "the reference" if audit.reference else "no association at all (an odds ratio of 1): no reference is given"
    columns = [
        Column("Heuristic"),
        Column("Verdict"),
        Column("Odds ratio", "number"),
        Column("Reference", "number"),
        Column("Times reference", "number"),
        Column("Why", "wrap"),
    ]
    rows = [
        [
            _title(one.name),
            one.verdict,
            _ratio(one.odds_ratio),
            _ratio(one.reference),
            _ratio(one.relative) if one.reference else NOTHING,
            one.reason,
        ]
        for one in audit.heuristics
    ]
    lead = [f"Does the data plant a heuristic? Compared with {than}; factors up to {audit.margin:g} count as no difference."]
    rest = [line for line in _findings(audit)[len(audit.heuristics) :] if not line.startswith("distinct")]
    return Verdict(lead, [Table(columns, rows)], [*rest, *NOTES])


def _size_block(audit: Audit) -> Block:
    rows: list[list[str]] = []
    starts = set()
    files = _files(audit)
    text = []
    for role, summary in files.items():
        starts.add(len(rows))
        for name, one in summary.labels.items():
            means = "entailment" if name in summary.entailment else NOTHING
            rows.append([role, shown(name, 60), means, thousands(one.count), *_share_cells(one)])
        if summary.left_out:
            text.append(f"Left out of the {role}: {_left_out(summary)}.")
    columns = [
        Column("Data"),
        Column("Label", "wrap"),
        Column("Counts as"),
        Column("Pairs (n)", "number"),
        Column("Share", "number"),
        Column("95 % interval", "number"),
    ]
    paths = [[role, shown(one.path, 300), thousands(one.num_rows), _columns(one)] for role, one in files.items()]
    of_files = Table([Column("Data"), Column("File", "wrap"), Column("Pairs", "number"), Column("Columns", "wrap")], paths)
    return Block("size", "Size and labels", text, [of_files, Table(columns, rows, group_starts=frozenset(starts - {0}))])


def _heuristics_block(audit: Audit) -> Block:
    columns = [
        Column("Heuristic"),
        Column("Of"),
        Column("Holds", "number"),
        Column("Pairs (n)", "number"),
        Column("Share", "number"),
        Column("95 % interval", "number"),
    ]
    rows: list[list[str]] = []
    starts = set()
    for one in audit.heuristics:
        if one.all_rows is None:
            continue
        starts.add(len(rows))
        slices = {"all": one.all_rows, **{shown(name, 60): share for name, share in (one.by_label or {}).items()}}
        rows += [
            [_title(one.name), of, thousands(share.count), thousands(share.n), *_share_cells(share)]
            for of, share in slices.items()
        ]
    given = [
        [_title(one.name), thousands(one.entailment.count), thousands(one.entailment.n), *_share_cells(one.entailment)]
        for one in audit.heuristics
        if one.entailment
    ]
    given_columns = [Column("Where it holds"), Column("Entailment", "number"), Column("Pairs (n)", "number"), *columns[-2:]]
    text = [f"{_title(one.name)}: {one.description}{_undecided(one)}" for one in audit.heuristics]
    tables = [Table(columns, rows, group_starts=frozenset(starts - {0}))]
    return Block("heuristics", "Heuristics by label", text, [*tables, *([Table(given_columns, given)] if given else [])])


def _undecided(one: HeuristicFinding) -> str:
    return f" ({one.reason}.)" if one.all_rows is None else ""


def _copies_block(audit: Audit) -> Block:
    columns = [
        Column("Copies"),
        Column("Kind"),
        Column("Rows", "number"),
        Column("Of (n)", "number"),
        Column("Share", "number"),
        Column("95 % interval", "number"),
    ]
    rows: list[list[str]] = []
    starts = set()
    all_counts = [("in the file", audit.duplicates)]
    if audit.reference_duplicates:
        all_counts.append(("in the reference", audit.reference_duplicates))
    all_counts += [(f"of {_role(audit, one)}", one) for one in audit.copies]
    for name, counts in all_counts:
        starts.add(len(rows))
        slices = {words: counts.kinds[kind] for kind, words in KINDS_OF_COPY.items()} | {"any of these": counts.kinds["any"]}
        slices["any, and another label"] = counts.other_label
        slices |= {f"the {side} alone": share for side, share in counts.parts.items()}
        rows += [[name, kind, thousands(one.count), thousands(one.n), *_share_cells(one)] for kind, one in slices.items()]
    text = [
        "Within a file the later row counts as the copy. A row counts once, as the closest kind: exact; the same words, but "
        "for case, punctuation and spacing; near. A copy with another label is a contradiction in the data.",
    ]
    return Block("copies", "Duplicates and copies", text, [Table(columns, rows, group_starts=frozenset(starts - {0}))])


def _hypothesis_block(audit: Audit) -> Block:
    columns = [
        Column("Data"),
        Column("Trained on", "number"),
        Column("Held out (n)", "number"),
        Column("Accuracy", "number"),
        Column("95 % interval", "number"),
        Column("Majority", "number"),
        Column("Above it", "number"),
        Column("95 % interval", "number"),
    ]
    rows, text = [], []
    for role, one in (("file", audit.hypothesis_only), ("reference", audit.reference_hypothesis_only)):
        if one is None:
            continue
        if one.accuracy is None or one.majority is None or one.lift is None:
            text.append(f"Cannot tell for the {role}: {one.reason}.")
            continue
        rows.append(
            [
                role,
                thousands(one.num_training),
                thousands(one.accuracy.n),
                *_share_cells(one.accuracy),
                percent(one.majority.share),
                points(one.lift.mean),
                _points(one.lift.interval),
            ]
        )
    words = [
        [shown(one.label, 60), shown(one.word, 40), thousands(one.with_label.n), *_share_cells(one.with_label)]
        for one in audit.hypothesis_only.words
    ]
    word_columns = [
        Column("Label", "wrap"),
        Column("Word"),
        Column("Hypotheses (n)", "number"),
        Column("With the label", "number"),
        Column("95 % interval", "number"),
    ]
    folds = [Fold("Words that go with a label", [Table(word_columns, words)])] if words else []
    return Block("hypothesis-only", "The hypothesis alone", text, [Table(columns, rows)] if rows else [], folds)


def _variety_block(audit: Audit) -> Block:
    columns = [
        Column("Distinct n-grams"),
        Column("n"),
        Column("Blocks", "number"),
        Column("File", "number"),
        Column("95 % interval", "number"),
        Column("Reference", "number"),
        Column("Difference", "number"),
    ]
    rows, text = (
        [],
        ["Different word n-grams over all, in blocks of 5 000 words of sampled rows; n = 1 is the type-token ratio."],
    )
    for one, other in _paired_diversity(audit):
        if one.reason:
            text.append(f"Cannot tell for the {one.side}: {one.reason}.")
        for n, estimate in one.distinct.items():
            base = other.distinct.get(n) if other else None
            apart = difference(estimate, base) if base else None
            rows.append(
                [
                    one.side,
                    str(n),
                    str(estimate.n),
                    f"{estimate.mean:.3f}",
                    _range(estimate.interval),
                    f"{base.mean:.3f}" if base else NOTHING,
                    _range(apart),
                ]
            )
    return Block(
        "variety",
        "Variety and length",
        text,
        [Table(columns, rows)] if rows else [],
        [
            Fold(
                "Lengths in words",
                [_lengths(audit.lengths, "file"), *([_lengths(audit.reference_lengths, "reference")] * bool(audit.reference))],
            )
        ],
    )


def _lengths(lengths: Sequence[Length], role: str) -> Table:
    columns = [
        Column("Label", "wrap"),
        Column("Side"),
        Column("Rows (n)", "number"),
        Column("Mean", "number"),
        Column("95 % interval", "number"),
        Column("Median", "number"),
        Column("5 to 95 %", "number"),
        Column("Longest", "number"),
    ]
    rows = [
        [
            shown(one.label, 60),
            one.side,
            thousands(one.mean.n),
            f"{one.mean.mean:.1f}",
            _range(one.mean.interval, 1),
            f"{one.median:g}",
            f"{one.percentile_5:g} to {one.percentile_95:g}",
            thousands(int(one.mean.high)),
        ]
        for one in lengths
    ]
    return Table(columns, rows, caption=role)


def _samples_block(samples: Sequence[Sample]) -> Block:
    columns = [Column("Row"), Column("Label", "wrap"), Column("Premise", "wrap"), Column("Hypothesis", "wrap")]
    folds = []
    for sample in samples:
        rows: list[list[str]] = []
        starts = set()
        for group in sample.rows:
            starts.add(len(rows))
            rows += [[one["row"], one["label"], one["premise"], one["hypothesis"]] for one in group]
        folds.append(Fold(sample.title, [Table(columns, rows, group_starts=frozenset(starts - {0}))]))
    return Block(
        "samples", "Samples", ["Drawn at random, cut after 300 characters; below a copy is what it copies."], folds=folds
    )


def _files(audit: Audit) -> dict[str, FileSummary]:
    """The files by what they are for; one that is both reference and training data is named so."""
    files = {"file": audit.file}
    if audit.reference and audit.generator_training and audit.reference.path == audit.generator_training.path:
        return files | {"reference (also the generator's training data)": audit.reference}
    others = {"reference": audit.reference, "generator's training data": audit.generator_training}
    return files | {role: one for role, one in others.items() if one}


def _role(audit: Audit, counts: CopyCounts) -> str:
    return "the " + next(role for role, one in _files(audit).items() if one.path == counts.source)


def _columns(summary: FileSummary) -> str:
    return ", ".join(f"{name}={shown(column, 40)}" for name, column in summary.columns.items())


def _paired_diversity(audit: Audit) -> list[tuple[Diversity, Diversity | None]]:
    others = {one.side: one for one in audit.reference_diversity}
    return [(one, others.get(one.side)) for one in audit.diversity]


def _distinct_words(one: Diversity) -> str:
    words = [f"{n}: {found.mean:.3f} ({_range(found.interval)})" for n, found in one.distinct.items()]
    return ", ".join(words) or f"cannot tell, {one.reason}"


def _baseline_words(name: str, one: HypothesisOnly) -> str:
    if one.accuracy is None or one.majority is None or one.lift is None:
        return f"{name}: cannot tell, {one.reason}"
    return (
        f"{name}: accuracy {percent(one.accuracy.share)}, {points(one.lift.mean)} points {_points(one.lift.interval)} above "
        f"the majority class's {percent(one.majority.share)} (n={thousands(one.accuracy.n)})"
    )


def _copy_words(counts: CopyCounts) -> str:
    every = counts.kinds["any"]
    kinds = ", ".join(f"{thousands(counts.kinds[kind].count)} {words}" for kind, words in KINDS_OF_COPY.items())
    around = percent_range(every.interval.low, every.interval.high, 2)
    contradicting = f"{thousands(counts.other_label.count)} of them with another label"
    return f"{percent(every.share, 2)} of rows ({around}; {kinds}; {contradicting})"


def _left_out(summary: FileSummary) -> str:
    return ", ".join(f"{thousands(count)} rows with {reason}" for reason, count in summary.left_out.items())


def _title(name: str) -> str:
    return name.replace("_", " ")


def _names(labels: Sequence[str]) -> str:
    return ", ".join(repr(shown(label, 40)) for label in labels)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio.value:.3g} [{ratio.interval.low:.3g}, {ratio.interval.high:.3g}]"


def _share_cells(share: Share) -> tuple[str, str]:
    return percent(share.share, 2), percent_range(share.interval.low, share.interval.high, 2)


def _points(interval: Interval | None) -> str:
    return points_range(interval.low, interval.high) if interval else NOTHING


def _range(interval: Interval | None, digits: int = 3) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}" if interval else NOTHING
