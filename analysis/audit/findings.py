"""Verdicts of an audit: each question's level, what it says, and what to do. docs/audit.md has the thresholds' reasons.

A level is decided by the 95% interval of the figure. *Act* takes all of it above the higher threshold, *fine* all of it up to
the lower one; it is *look* where all of it is above the lower one, and *cannot tell* where it spans that. Copies are counted
and not sampled: one that is there is there, so that theirs are never *cannot tell*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.audit.found import ACT, CANNOT_TELL, FINE, LEVELS, LOOK, NOT_ASKED, Audit, CopyCounts, Figure, Finding
from analysis.audit.noise import FEW, LIMIT, MANY
from analysis.audit.word_heuristics import NextWord, Showing, strongest
from analysis.corpus.columns import PAIR
from analysis.corpus.labels import meaning_of
from analysis.corpus.measures import (
    AGAINST,
    AS_REFERENCE,
    GOES_WITH,
    INDEPENDENT,
    PLANTS,
    WEAKER,
    Diversity,
    HeuristicFinding,
    OneField,
    Ratio,
    Share,
    difference,
    share_of,
)
from analysis.corpus.single_words import SingleWords
from analysis.stats.statistics import Estimate, Interval
from analysis.wording import in_words, percent, points, points_range, shown
from pipelines.errors import UserError

LEAKS, CONTRADICTIONS, NOISE, COPIES, DUPLICATES, NEAR_DUPLICATES = (
    *("leaks", "contradictions", "noise"),
    *("copies", "duplicates", "near-duplicates"),
)
HEURISTICS, ONE_FIELD, WORDS, DIVERSITY = "plants", "one-field", "words", "diversity"
KINDS = (
    *(LEAKS, CONTRADICTIONS, NOISE, COPIES, DUPLICATES),
    *(HEURISTICS, ONE_FIELD, NEAR_DUPLICATES, WORDS, DIVERSITY),
)
"""What an audit asks, the most urgent first."""


@dataclass(frozen=True)
class Threshold:
    """Up to `look` is fine, over `act` asks for action (never, where it is infinite).

    With a reference's figure, action is asked for where the excess over that is above the second of `reference`.
    """

    figure: str
    look: float
    act: float
    reference: tuple[float, float] | None = None


THRESHOLDS: Mapping[str, Threshold] = {
    LEAKS: Threshold("test set's rows with a copy in the file", 0.0, 0.001),
    CONTRADICTIONS: Threshold("rows with the words of others and another label", 0.0, 0.001),
    NOISE: Threshold("labels that are wrong", LIMIT, LIMIT),
    COPIES: Threshold("rows that repeat the generator's training data or the reference", 0.001, 0.01),
    DUPLICATES: Threshold("rows with the words of an earlier row", 0.01, 0.05),
    NEAR_DUPLICATES: Threshold("rows that nearly repeat an earlier one with their label", 0.01, math.inf, (0.02, 0.10)),
    ONE_FIELD: Threshold("accuracy above the majority's, from one field of several", 0.02, 0.20, (0.02, 0.05)),
    WORDS: Threshold("rows with a word that doubles a label's odds", 0.01, 0.25, (0.02, 0.05)),
    DIVERSITY: Threshold("distinct word pairs fewer than the reference's", 0.10, 0.20),
}
"""By kind; that of heuristics is the audit's margin."""
LESS_VARIED_N = 2
"""Diversity is judged by distinct-2."""
ENOUGH_FOR_WORDS = 5_000
"""With fewer rows a word that one in a hundred has could double a label's odds unseen: no word found is no word cleared."""
REPAIR = "blindsweep audit … --repair OUT.parquet"
NEEDS = {
    LEAKS: "--test",
    COPIES: "--generator-training or --reference",
    HEURISTICS: "--reference",
    NOISE: "--judge or --trusted",
}
"""Options without which a kind is not asked, or has no verdict to act on."""


def findings_of(audit: Audit) -> tuple[Finding, ...]:
    """The findings from an audit's numbers, the most urgent first."""
    every = [
        *_leaks(audit),
        _contradictions(audit),
        _noise(audit),
        *_copies(audit),
        _duplicates(audit),
        _near_duplicates(audit),
        *_heuristics(audit),
        *(_one_field(audit, name) for name in audit.fields),
        *(_words(audit, name) for name in audit.fields),
        *_diversity(audit),
    ]
    return tuple(sorted(every, key=_urgency))


def _urgency(finding: Finding) -> tuple[int, int, float]:
    # Heuristics stay in their order, each implying the one before.
    size = finding.estimate.value if finding.estimate and finding.kind != HEURISTICS else 0.0
    return LEVELS.index(finding.level), KINDS.index(finding.kind), -size


def answer_of(findings: Sequence[Finding], labels: Sequence[str] = ()) -> str:
    """Is the data fit, and what is wrong with it: one sentence; `labels` are those that its rows have."""
    if len(labels) == 1:
        return f"No classifier learns from it alone: every row has the label {shown(labels[0], 40)}. {answer_of(findings)}"
    for level, fit in ((ACT, "Not fit as it is"), (LOOK, "Usable with care")):
        if found := [finding for finding in findings if finding.level == level]:
            clauses = _clauses(found)
            shown_clauses = clauses if len(clauses) <= 4 else [*clauses[:3], f"has {len(clauses) - 3} more findings"]
            return f"{fit}: the data {in_words(shown_clauses)}."
    unknown = [finding for finding in findings if finding.level == CANNOT_TELL]
    if unknown:
        return f"Nothing is found against the data, and {len(unknown)} of {len(findings)} questions cannot be answered."
    return "Fit, by all that was asked."


def first_action(findings: Sequence[Finding]) -> str:
    """What to do first; empty where there is nothing to do."""
    return next((finding.action for finding in findings if finding.level in (ACT, LOOK) and finding.action), "")


def not_asked(findings: Iterable[Finding]) -> list[str]:
    """What was not asked, each with what it takes."""
    return [finding.sentence for finding in findings if finding.level == NOT_ASKED]


def check_conditions(names: Sequence[str], audit: Audit | None = None) -> None:
    """Raise :class:`UserError` for a name in `--fail-on` that is none, and with the audit for one that could not fail."""
    for name in names:
        if name not in (*KINDS, ACT):
            raise UserError(f"--fail-on {name}: the names are {', '.join(KINDS)}, and {ACT} for any of them; name one of these")
        if audit is None or name == ACT:
            continue
        if all(one.kind != name or one.level == NOT_ASKED for one in audit.findings):
            what, way_out = "does not ask that of these files", f"give {NEEDS[name]}" if name in NEEDS else "leave it out"
            if name == HEURISTICS and not audit.heuristics:
                way_out = "give --heuristic"
        elif audit.reference is None and (name in (HEURISTICS, NEAR_DUPLICATES) or _is_content(audit, name)):
            what, way_out = "asks for action on that beside a reference alone", "give --reference"
        else:
            continue
        raise UserError(f"--fail-on {name}: the audit {what}, so it could not fail; {way_out}")


def _is_content(audit: Audit, kind: str) -> bool:
    """Whether what is found can be what the texts are about: a review's words, a ticket's body. Whether it should is the task's
    to say; a hypothesis without its premise can say nothing."""
    return kind in (ONE_FIELD, WORDS) and audit.fields != PAIR


def met(names: Sequence[str], findings: Sequence[Finding]) -> list[Finding]:
    """The findings that meet a condition of `--fail-on`: those of level act; of leaks any row is enough."""
    return [
        finding
        for finding in findings
        if (finding.level == ACT and (finding.kind in names or ACT in names))
        or (finding.level == LOOK and finding.kind == LEAKS and LEAKS in names)
    ]


def level_of(figure: Figure, look: float, act: float, *, is_counted: bool = False) -> str:
    """The level of a figure, by its 95% interval; of copies, which are counted, none is fine whatever the interval."""
    interval = figure.interval
    if interval is None:
        return CANNOT_TELL
    if interval.low > act:
        return ACT
    if interval.high <= look or (is_counted and not figure.value):
        return FINE
    return LOOK if is_counted or interval.low > look else CANNOT_TELL


def _clauses(findings: Sequence[Finding]) -> list[str]:
    """What is wrong, a clause each; test sets share theirs, and so do heuristics of one verdict."""
    clauses: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        name = _words_of(finding.name)
        if finding.kind == LEAKS:
            of = finding.verdict.removeprefix("gives away ")
            before = clauses.setdefault(("gives away ", ""), [])
            before.append(of.replace("of the test set ", "of ") if before else of)
        elif finding.kind == HEURISTICS:
            start, _, end = finding.verdict.partition(name)
            clauses.setdefault((start, end), []).append(name)
        else:
            clauses[finding.verdict, ""] = [""]
    short = [names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"] for names in clauses.values()]
    return [f"{before}{in_words(names)}{after}" for (before, after), names in zip(clauses, short, strict=True)]


def _leaks(audit: Audit) -> Iterator[Finding]:
    if not audit.leaks:
        yield Finding(LEAKS, "", "was held against no test set", NOT_ASKED, "Leaks into test sets: give each with --test FILE.")
    for name, counts in audit.leaks.items():
        given = counts.given_away
        assert given is not None
        title = shown(name, 40)
        level = _level(LEAKS, given)
        sentence = (
            f"{_of(given)} rows of the test set {title} are repeated here: accuracy on them says what a model remembers."
            if given.count
            else f"None of the {given.n:,} rows of the test set {title} is repeated here."
        )
        sentence += _contrast(counts, "of its rows")
        near = counts.near_same_label.count
        num_copies = counts.repeated.count + near
        what = f"{_rows(num_copies)} that {'nearly ' if near == num_copies else ''}repeat {title}"
        what += f", {near:,} of them nearly" if 0 < near < num_copies else ""
        action = f"Drop the {what}: {REPAIR}; or score it without its {_rows(given.count)}."
        verdict = (
            f"gives away {percent(given.share)} of the test set {title}" if given.count else f"gives nothing of {title} away"
        )
        yield Finding(LEAKS, name, verdict, level, sentence, action if given.count else "", _figure(given))


def _contradictions(audit: Audit) -> Finding:
    found = audit.duplicates.other_label
    assert found is not None
    level = _level(CONTRADICTIONS, found)
    verdict = f"contradicts itself in {_rows(found.count)}" if found.count else "does not contradict itself"
    sentence = (
        f"{_rows(found.count)} of {found.n:,} have the words of an earlier row, none of which has their label: "
        "at most one of the labels is right."
        if found.count
        else "No row has the words of another and another label."
    )
    action = ""
    if found.count:
        which = _rows(found.count)
        action = f"Drop the {which} and what they contradict: {REPAIR}; or read both (--rows OUT.parquet) and mend the labels."
    reference = audit.reference_duplicates.other_label if audit.reference_duplicates else None
    return Finding(CONTRADICTIONS, "", verdict, level, sentence, action, _figure(found), _figure(reference))


def _noise(audit: Audit) -> Finding:
    found = audit.label_noise
    if found is None:
        how = "Wrong labels: --judge MODEL or --trusted FILE estimates them, --label-noise by simple models of words."
        return Finding(NOISE, "", "was not asked about wrong labels", NOT_ASKED, how)
    if found.noise is None:
        return Finding(NOISE, "", "may have wrong labels", CANNOT_TELL, f"Wrong labels: cannot tell, {found.reason}.")
    rate = found.noise.in_all
    low, high = percent(rate.interval.low), percent(rate.interval.high)
    share = f"between {low} and {high}" if rate.rate is not None else f"at most {high}"
    level = {FEW: FINE, MANY: ACT}.get(rate.verdict, CANNOT_TELL)
    verdict = {
        FEW: f"has few wrong labels, {share}",
        MANY: f"has wrong labels, {share}",
    }.get(rate.verdict, "may have wrong labels")
    sentence = f"By {found.judge}, {share} of {found.num_judged:,} labels are wrong: {rate.reason}."
    action = "" if level == FINE else f"Read the doubtful rows (--rows OUT.parquet), then relabel or drop them: {REPAIR}."
    figure = None if rate.rate is None else Figure(rate.rate, rate.interval, rate.num_rows, "share")
    return Finding(NOISE, "", verdict, level, sentence, action, figure)


def _copies(audit: Audit) -> Iterator[Finding]:
    if audit.generator_training is None:
        sentence = "Copies of what the generator was trained on: give it with --generator-training FILE."
        yield Finding(COPIES, "", "was not held against the generator's training data", NOT_ASKED, sentence)
    for counts in audit.copies:
        role = _role(audit, counts)
        share = _sum(counts.repeated, counts.near_same_label)
        level = _level(COPIES, share)
        verdict = (
            f"copies {percent(share.share)} of its rows from the {role}" if share.count else f"copies nothing of the {role}"
        )
        sentence = f"{_of(share)} rows repeat the {role}, {counts.near_same_label.count:,} of them nearly."
        if counts.other_label and counts.other_label.count:
            sentence += f" {_rows(counts.other_label.count)} have the words of its rows, and none their label."
        sentence += _contrast(counts, "of its rows") if counts.source else ""
        action = f"Drop the {_rows(share.count)} that are copies: {REPAIR}." if level != FINE else ""
        yield Finding(COPIES, role, verdict, level, sentence, action, _figure(share))


def _duplicates(audit: Audit) -> Finding:
    share, base = audit.duplicates.repeated, audit.reference_duplicates
    level = _level(DUPLICATES, share)
    verdict = "hardly repeats itself" if level == FINE else f"repeats itself in {percent(share.share)} of rows"
    exact = audit.duplicates.kinds["exact"].count
    sentence = f"{_of(share)} rows have the words of an earlier row, {exact:,} of them character by character."
    action = f"Drop the {_rows(share.count)} that repeat an earlier one: {REPAIR}." if level != FINE else ""
    return Finding(DUPLICATES, "", verdict, level, sentence, action, _figure(share), _figure(base.repeated if base else None))


def _near_duplicates(audit: Audit) -> Finding:
    counts, base = audit.duplicates, audit.reference_duplicates
    share = counts.near_same_label
    figure, other = Figure(share.share, share.interval, share.n, "share"), _figure(base.near_same_label if base else None)
    level = _level_beside(NEAR_DUPLICATES, figure, other, is_counted=True)
    verdict = "has few near copies" if level == FINE else f"says nearly the same again in {percent(share.share)} of rows"
    sentence = f"{_of(share)} rows nearly repeat an earlier one with their label."
    sentence += _compared(NEAR_DUPLICATES, figure, other) + _contrast(counts, "of the file")
    action = (
        ""
        if level == FINE
        else f"Look at some near copies (under Samples), and drop them where they add nothing: {REPAIR}, which takes them with "
        "the others; --repair-as near_copies=keep leaves them."
    )
    return Finding(NEAR_DUPLICATES, "", verdict, level, sentence, action, figure, other)


_TIES = {
    PLANTS: (ACT, "plants {}"),
    GOES_WITH: (LOOK, "has {} go with {label}"),
    AGAINST: (LOOK, "has {} go against {label}"),
    AS_REFERENCE: (FINE, "ties {} to {label} as the reference does"),
    WEAKER: (FINE, "ties {} to {label} less than the reference does"),
    INDEPENDENT: (FINE, "does not tie {} to {label}"),
}
"""A heuristic's level, and what the data does with it."""


def _heuristics(audit: Audit) -> Iterator[Finding]:
    if audit.fields != PAIR:
        sentence = "Lexical overlap, subsequence and constituent need a pair of a premise and a hypothesis."
        if not audit.heuristics:
            sentence += " Heuristics of your own: --heuristic FILE.py:NAME."
        yield Finding(HEURISTICS, "", "needs a pair for HANS's heuristics", NOT_ASKED, sentence)
    for found in audit.heuristics:
        yield _heuristic(audit, found)


def _heuristic(audit: Audit, found: HeuristicFinding) -> Finding:
    name = _words_of(found.name)
    if found.all_rows is None:
        sentence = f"{name.capitalize()}: {found.reason}."
        return Finding(HEURISTICS, found.name, f"was not asked about {name}", NOT_ASKED, sentence)
    level, clause = _TIES.get(found.verdict, (CANNOT_TELL, "may or may not tie {} to {label}"))
    if found.odds_ratio is None:
        clause = "cannot show whether {} tells {label}"
    action = ""
    if found.verdict == PLANTS:
        action = (
            f"Resample or weight rows until its odds ratio is the reference's: {REPAIR}; or have rows written where it holds "
            f"and the label is not {found.predicts}."
        )
    elif found.verdict in (GOES_WITH, AGAINST):
        action = "Hold it against data that people wrote, --reference FILE: theirs has associations, too."
    elif level == CANNOT_TELL:
        action = "Nothing follows from this file alone; more rows could tell." if found.odds_ratio else ""
    figure, other = _ratio_figure(found.odds_ratio), _ratio_figure(found.reference)
    if level in (CANNOT_TELL, FINE) and found.is_more_often:
        level, clause = LOOK, "has more {} with {label} than the reference"
        figure, other = _figure(found.with_label), _figure(found.reference_with_label)
        action = (
            f"Take fewer rows where the heuristic holds and the label is {shown(found.predicts, 40)}, or have some written "
            "where it holds and the label is another."
        )
    return Finding(
        HEURISTICS,
        found.name,
        clause.format(name, label=shown(found.predicts, 40)),
        level,
        _heuristic_sentence(audit, found, name),
        action,
        figure,
        other,
        tuple(f"{_capital(_shown_by(test, rows))}." for test, rows in audit.showing.get(found.name, {}).items()),
    )


def _heuristic_sentence(audit: Audit, found: HeuristicFinding, name: str) -> str:
    assert found.all_rows is not None
    holds, asked = found.all_rows.count, found.all_rows.n
    if found.predicted is None or holds == asked:
        return f"{name.capitalize()}: {found.reason}, so that there is nothing to compare with."
    wanted = meaning_of(found.predicts)
    positive = sum(
        share.n for label, share in (found.by_label or {}).items() if audit.file.meanings.get(label, label) == wanted
    )
    elsewhere = _part(positive - found.predicted.count, asked - holds)
    sentence = (
        f"Where {name} holds, {_part(found.predicted.count, holds)} have the label {shown(found.predicts, 40)}; elsewhere "
        f"{elsewhere} have it."
    )
    if found.with_label and found.reference_with_label:
        own, other = percent(found.with_label.share), percent(found.reference_with_label.share)
        sentence += f" Of rows with that label it holds of {own}, and of {other} in the reference."
    return sentence if found.verdict in (INDEPENDENT, GOES_WITH, AGAINST) else f"{sentence} {_capital(found.reason)}."


def _one_field(audit: Audit, name: str) -> Finding:
    found, base = audit.one_field[name], audit.reference_one_field.get(name)
    if len(audit.fields) == 1:
        sentence = "One field alone needs a pair: of a single text, the text is all that there is."
        if found.accuracy and found.majority:
            sentence += (
                f" A bag of words tells {percent(found.accuracy.share)} of labels (the most frequent label alone is right in "
                f"{percent(found.majority.share)})."
            )
        return Finding(ONE_FIELD, name, "needs a pair", NOT_ASKED, sentence)
    if found.lift is None or found.accuracy is None or found.majority is None:
        return Finding(ONE_FIELD, name, f"cannot say what the {name} alone tells", CANNOT_TELL, f"{_capital(found.reason)}.")
    figure, other = _lift(found), _lift(base)
    assert figure is not None
    level = _level_beside(ONE_FIELD, figure, other)
    if level == ACT and other is None and _is_content(audit, ONE_FIELD):
        level = LOOK
    sentence = (
        f"A linear model that sees the {name} alone is right in {percent(found.accuracy.share)} of held-out rows, and the most "
        f"frequent label in {percent(found.majority.share)}." + _compared(ONE_FIELD, figure, other)
    )
    verdicts = {
        FINE: f"does not give the label away by the {name} alone",
        CANNOT_TELL: f"may give the label away by the {name} alone",
    }
    verdict = verdicts.get(level, f"gives the label away by the {name} alone ({points(found.lift.mean)} points)")
    actions = {
        ACT: f"Have each {name} written for another label, too, so that it cannot tell; and report accuracy on the rows that "
        f"the {name} alone gets wrong.",
        LOOK: f"Report accuracy on the rows that the {name} alone gets wrong, too: in the others a model need not read on.",
    }
    return Finding(ONE_FIELD, name, verdict, level, sentence, actions.get(level, ""), figure, other)


def _words(audit: Audit, name: str) -> Finding:
    found, base = audit.single_words[name], audit.reference_single_words.get(name)
    if found.telling is None:
        return Finding(WORDS, name, f"cannot say what words of the {name} tell", CANNOT_TELL, f"{_capital(found.reason)}.")
    figure, other = _figure(found.telling), _figure(base.telling if base else None)
    assert figure is not None
    level = _level_beside(WORDS, figure, other)
    if level == ACT and other is None and _is_content(audit, WORDS):
        level = LOOK
    sentence = (
        f"Of {found.num_tested:,} words tested {found.num_beyond:,} go with or against a label, by intervals "
        f"that hold all at once. {found.num_telling:,} at least double a label's odds"
        + (f": {_strongest(found)} the most." if found.num_telling else ".")
        + _compared(WORDS, figure, other)
    )
    verdict = f"has words of the {name} that tell the label in {percent(figure.value)} of rows"
    if not found.num_telling:
        verdict = f"has no word of the {name} that tells the label"
    if level == FINE and found.num_rows < ENOUGH_FOR_WORDS:
        level, verdict = CANNOT_TELL, f"has too few rows to say that no word of the {name} tells the label"
    action = ""
    if level in (ACT, LOOK):
        action = f"Have rows written with words such as {_strongest(found)}, and with the other labels"
        action += ", or test on some." if other or len(audit.fields) > 1 else "; --reference FILE says how usual it is."
    steps = tuple(map(_step, audit.next_words[name])) if level in (ACT, LOOK) else ()
    return Finding(WORDS, name, verdict, level, sentence, action, figure, other, steps)


def _step(word: NextWord) -> str:
    """How to ask whether a model goes by the word."""
    how = [f"{word.word!r} as a heuristic: {word.option}"]
    how += [f"in a study's file (docs/own_heuristic.md) {word.line}"] if word.line else []
    how += [_shown_by(test, rows) for test, rows in word.tests.items()]
    return "; ".join(how) + "."


def _shown_by(test: str, rows: Showing) -> str:
    """What a test set has of a heuristic: where going by it is wrong, a model that does so is seen."""
    test = shown(test, 40)
    held = f"in {test} it holds of {_rows(rows.num_held)}" if rows.num_held else f"in {test} it holds of no row"
    if not rows.is_all:
        held += " of the sample" if not rows.num_held else " at least"
    if rows.num_held and rows.num_wrong is None:
        return f"{held}, and the labels do not tell where it is wrong"
    if not rows.num_wrong:
        return (
            f"{held}{' and is wrong of none' if rows.num_held else ''}, so that {test} cannot show whether a model goes by it"
        )
    return f"{held} and is wrong of {rows.num_wrong:,}, which show whether a model goes by it"


def _diversity(audit: Audit) -> Iterator[Finding]:
    if not audit.reference_diversity:
        sentence = "Variety needs something to compare with: --reference FILE."
        yield Finding(DIVERSITY, "", "was compared with nothing", NOT_ASKED, sentence)
        return
    others = {each.field: each for each in audit.reference_diversity}
    for found in audit.diversity:
        yield _variety(found, others[found.field])


def _variety(found: Diversity, base: Diversity) -> Finding:
    own, other = found.distinct.get(LESS_VARIED_N), base.distinct.get(LESS_VARIED_N)
    apart = difference(own, other) if own and other else None
    if own is None or other is None or apart is None:
        reason = found.reason or (f"in the reference, {base.reason}" if base.reason else "there are too few blocks of words")
        return Finding(DIVERSITY, found.field, f"may be less varied in the {found.field}", CANNOT_TELL, f"{_capital(reason)}.")
    # By how much less, as a share of the reference's.
    around = Interval(-apart.high / other.mean, -apart.low / other.mean)
    less = Figure(1 - own.mean / other.mean, around, own.n, "share")
    level = level_of(less, THRESHOLDS[DIVERSITY].look, THRESHOLDS[DIVERSITY].act)
    verdicts = {FINE: f"is as varied as the reference in the {found.field}"}
    verdicts[CANNOT_TELL] = f"may be less varied than the reference in the {found.field}"
    verdict = verdicts.get(level, f"is less varied than the reference in the {found.field}")
    sentence = (
        f"In 5,000 words of the {found.field} {percent(own.mean)} of word pairs differ, and {percent(other.mean)} in the "
        "reference."
    )
    action = ""
    if level in (ACT, LOOK):
        action = "Ask the generator for more: more prompts, a higher temperature; and drop near copies."
    return Finding(DIVERSITY, found.field, verdict, level, sentence, action, _estimate_figure(own), _estimate_figure(other))


def _level_beside(kind: str, figure: Figure, reference: Figure | None, *, is_counted: bool = False) -> str:
    """By the figure's own thresholds; with a reference's, what is not clearly more than that is to be looked at only."""
    threshold = THRESHOLDS[kind]
    alone = level_of(figure, threshold.look, threshold.act, is_counted=is_counted)
    if reference is None or threshold.reference is None or alone == FINE:
        return alone
    excess = _excess(figure, reference)
    if excess and excess.low > threshold.reference[1]:
        return ACT
    return LOOK if alone == ACT else alone


def _compared(kind: str, figure: Figure, reference: Figure | None) -> str:
    """A sentence on what the figure is beside the reference's; nothing without one."""
    threshold = THRESHOLDS[kind].reference
    excess = _excess(figure, reference) if reference and threshold else None
    if reference is None or threshold is None or excess is None:
        return ""
    apart = f"{points(figure.value - reference.value)} points {points_range(excess.low, excess.high)}"
    if excess.high <= threshold[0]:
        return f" That is no more than in the reference ({apart})."
    return f" That is more than in the reference ({apart})." if excess.low > 0 else f" Beside the reference: {apart}."


def _excess(figure: Figure, reference: Figure) -> Interval | None:
    """The interval of the difference of two independent figures (MOVER, Zou and Donner 2008)."""
    if figure.interval is None or reference.interval is None:
        return None
    own, other, apart = figure.interval, reference.interval, figure.value - reference.value
    return Interval(
        apart - math.hypot(figure.value - own.low, other.high - reference.value),
        apart + math.hypot(own.high - figure.value, reference.value - other.low),
    )


def _level(kind: str, share: Share) -> str:
    return level_of(
        Figure(share.share, share.interval, share.n, "share"), THRESHOLDS[kind].look, THRESHOLDS[kind].act, is_counted=True
    )


def _contrast(counts: CopyCounts, of: str) -> str:
    near = counts.near_other_label
    if near is None or not near.count:
        return ""
    if near.count == 1:
        return f" 1 row more is near to one {of} and has another label: a contrast pair, keep it."
    return f" {_rows(near.count)} more are near to one {of} and have another label: contrast pairs, keep them."


def _strongest(found: SingleWords) -> str:
    return in_words([f"{shown(word.word, 30)!r} ({shown(word.label, 30)})" for word in strongest(found)])


def _role(audit: Audit, counts: CopyCounts) -> str:
    training = audit.generator_training
    return "generator's training data" if training and training.path == counts.source else "reference"


def _sum(first: Share, second: Share) -> Share:
    return share_of(first.count + second.count, first.n)


def _figure(share: Share | None) -> Figure | None:
    return Figure(share.share, share.interval, share.n, "share") if share else None


def _ratio_figure(ratio: Ratio | None) -> Figure | None:
    return Figure(ratio.value, ratio.interval, ratio.n, "ratio") if ratio else None


def _estimate_figure(estimate: Estimate) -> Figure:
    return Figure(estimate.mean, estimate.interval, estimate.n, "share")


def _lift(found: OneField | None) -> Figure | None:
    return Figure(found.lift.mean, found.lift.interval, found.lift.n, "points") if found and found.lift else None


def _of(share: Share) -> str:
    return f"{share.count:,} of {share.n:,}"


def _part(count: int, of: int) -> str:
    return f"{percent(count / of)} of {_rows(of)}" if of >= 100 else f"{count} of {_rows(of)}"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _words_of(name: str) -> str:
    return name.replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
