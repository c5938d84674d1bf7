"""The verdict of a study's results on each of its claims.

A claim is judged setting by setting, never by a mean over settings. In one setting all of its parts have to hold: the largest
of their p values counts (an intersection-union test, Berger 1982), and against it the smallest, times their number. Over
settings

- 'in every' is supported by the largest p value of the settings, and refuted by the smallest opposite one, times their number;
- 'in most' (more than half) goes by a partial conjunction, and so does its refutation (Benjamini and Heller 2008);
- 'about as much' is two one-sided tests in each setting, refuted by a setting beyond the margin.

A positive control comes first: where even data that was biased on purpose does not show in a measure, the study could not have
seen a blindspot grow, and nothing about the blindspot is found refuted or equivalent by that measure. Primary claims are
adjusted by Holm, the rest by Benjamini and Hochberg. With one seed nothing is said of training.

    judge("blindsweep-store", "demo")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.stats.hypotheses import benjamini_hochberg, holm, partial_conjunction, sign_flip
from analysis.stats.statistics import ends
from analysis.study.artifacts import has_lexical_overlap
from analysis.verdicts.evidence import UNDERTRAINED, Evidence, load_evidence, questions
from analysis.verdicts.judgement import ONE_GENERATOR, Control, Judgement, Outcome, Verdicts
from analysis.verdicts.power import ALPHA, Settling, Variance, settling
from analysis.verdicts.questions import Part, Question, Setting
from analysis.verdicts.table1 import overlap_questions
from analysis.wording import estimate_words, range_words
from pipelines.errors import UserError
from sweep.graph.records import Store, Study


def judge(
    store: Store | str,
    study: Study | str,
    *,
    margin: float | None = None,
    undertrained: int = UNDERTRAINED,
    cost_per_seed: float | None = None,
    partial: bool = False,
) -> Verdicts:
    """Judge every claim by a study's results.

    `margin` stands for the declared ones of accuracies (0.01 is a point), `undertrained` is the most examples of a starting
    point that counts as such. Raises IncompleteSweepError or UserError for what is missing; with `partial` it is left out, and
    the judgements say so. A claim about something the study does not have cannot be told.
    """
    evidence = load_evidence(store, study, partial=partial)
    return judge_evidence(evidence, margin=margin, undertrained=undertrained, cost_per_seed=cost_per_seed)


def judge_evidence(
    evidence: Evidence,
    *,
    margin: float | None = None,
    undertrained: int = UNDERTRAINED,
    cost_per_seed: float | None = None,
) -> Verdicts:
    """Judge every claim as `judge` does, from what is already loaded."""
    asked = questions(evidence, undertrained=undertrained, margin=margin)
    if has_lexical_overlap(evidence.task):
        asked += overlap_questions(evidence.counts)
    return judge_questions(
        asked,
        num_generators=evidence.num_generators,
        cost_per_seed=cost_per_seed,
        notes=(*evidence.responses.notes, *_missing_note(evidence.responses.missing)),
    )


def judge_questions(
    asked: Sequence[Question],
    *,
    num_generators: int = 1,
    cost_per_seed: float | None = None,
    notes: Sequence[str] = (),
) -> Verdicts:
    """Judge questions together, primary ones as one family and the rest as another.

    Raises UserError for a margin that is not above 0, and ValueError for questions of the same name.
    """
    for question in asked:
        if not question.margin > 0:
            raise UserError(f"margin={question.margin}: 'about as much' needs a margin above 0; 0.01 is one point of accuracy")
    if len({question.name for question in asked}) != len(asked):
        raise ValueError("two claims have the same name; a family tests each once")
    readings = {question.name: _read(question) for question in asked}
    seen = {question.measure: _is_seen(readings[question.name]) for question in asked if question.control}
    judged: dict[str, Judgement] = {}
    for primary, adjust in ((True, holm), (False, benjamini_hochberg)):
        family = [question for question in asked if question.primary == primary]
        adjusted = adjust([readings[question.name].p for question in family])
        num_tested = sum(not math.isnan(p) for p in adjusted)
        for question, p in zip(family, adjusted, strict=True):
            found = _conclude(question, readings[question.name], p, num_tested)
            found = _with_settling(found, question, num_tested, cost_per_seed)
            # After it: more seeds do not settle what is withheld.
            found = found if _may_be_denied(question, seen) else _withhold(found, question, seen)
            judged[question.name] = _with_notes(found, question, num_generators, notes)
    shown = {
        question.measure
        for question in asked
        if question.compares_on_blindspot and not question.control and judged[question.name].verdict == Outcome.SUPPORTED
    }
    controls = tuple(
        _control(question, readings[question.name], is_outdone=question.measure in shown)
        for question in asked
        if question.control
    )
    return Verdicts(tuple(judged[question.name] for question in asked), controls)


def _control(question: Question, reading: _Reading, *, is_outdone: bool) -> Control:
    """Whether a positive control is seen: as claimed, by itself, without an adjustment for the other claims."""
    is_seen = _is_seen(reading)
    by = {"accuracy": "", "auc": " by AUC"}.get(question.measure, f" by {question.measure}")
    if is_seen:
        p = f"p = {reading.p_for:.2g}"
        return Control(question.measure, True, f"The positive control is seen{by}: data biased on purpose shows ({p}).")
    why = question.why_not or ("it cannot be tested" if math.isnan(reading.p_for) else f"p = {reading.p_for:.2g}")
    so = f"{by[1:]} " if by else "this study could not have seen a blindspot grow, so "
    denied = "nothing about the blindspot is called refuted or equivalent"
    if is_outdone:
        so = "what is shown stands, and "
    sentence = f"The positive control is not seen{by} ({why}): {so}{denied}."
    return Control(question.measure, False, sentence, question.why_not, is_outdone)


def _is_seen(reading: _Reading) -> bool:
    return not math.isnan(reading.p_for) and reading.p_for <= ALPHA


@dataclass(frozen=True)
class _Reading:
    """A question's p values before any correction; NaN where nothing can be tested."""

    p_for: float = math.nan
    p_against: float = math.nan
    p_equivalent: float = math.nan

    @property
    def p(self) -> float:
        return math.nan if math.isnan(self.p_for) else min(self.p_for, self.p_against)


def _read(question: Question) -> _Reading:
    if not any(part.can_be_tested for part in question.parts):
        return _Reading()
    margin, num = question.margin, len(question.settings)
    needed = question.fewest_settings
    needed_against = 1 if question.rule == "every" else needed
    # Two seeds that tie on one part do not keep another part from refuting.
    claimed = [_of_all([part.p_claimed(margin) for part in setting.parts]) for setting in question.settings]
    opposite = [_of_any([part.p_opposite(margin) for part in setting.parts]) for setting in question.settings]
    p_for, p_against = partial_conjunction(claimed, needed), partial_conjunction(opposite, needed_against)
    is_simple = all(len(setting.parts) == 1 for setting in question.settings if setting.parts)
    if not is_simple or first_sign(question) == 0:
        return _Reading(p_for, p_against)
    equivalent = [setting.parts[0].p_equivalent(margin) if setting.parts else math.nan for setting in question.settings]
    return _Reading(p_for, p_against, partial_conjunction(equivalent, num))


def _of_all(p_values: Sequence[float]) -> float:
    return partial_conjunction(p_values, len(p_values)) if p_values else math.nan


def _of_any(p_values: Sequence[float]) -> float:
    return partial_conjunction(p_values, 1) if p_values else math.nan


def first_sign(question: Question) -> int:
    """The sign that its headline part is claimed to have; 0 for none."""
    return question.headline.sign if question.headline else 0


def _conclude(question: Question, reading: _Reading, adjusted: float, num_tested: int) -> Judgement:
    headline = question.headline
    blank = Judgement(
        question.name,
        question.statement,
        question.paper,
        question.primary,
        measure=question.measure,
        num_settings=len(question.settings),
        margin=_margin_in_unit(question),
        num_claims=num_tested,
        settings=tuple(row for setting in question.settings for row in _rows(setting)),
        is_control=question.control,
    )
    if headline is None:
        return replace(blank, notes=(question.why_not,) if question.why_not else ())
    verdict, p, test = Outcome.CANNOT_TELL, reading.p, _test_name(question)
    if adjusted <= ALPHA:
        positive = Outcome.EQUIVALENT if headline.sign == 0 else Outcome.SUPPORTED
        verdict = positive if reading.p_for <= reading.p_against else Outcome.REFUTED
    elif num_tested * reading.p_equivalent <= ALPHA:
        # Bonferroni: this second look comes after the first.
        p, adjusted = reading.p_equivalent, num_tested * reading.p_equivalent
        verdict, test = Outcome.EQUIVALENT, _equivalence_name(question)
    estimate, low, high = headline.in_unit()
    num_signed, num_clear = _agreement(question)
    return replace(
        blank,
        verdict=verdict,
        estimate=estimate,
        low=low,
        high=high,
        unit=headline.unit,
        num_signed=num_signed,
        num_clear=num_clear,
        num_units=headline.effect.num_seeds if headline.is_of_training else 0,
        num_items=max(part.effect.num_items for part in question.parts),
        test=test if not math.isnan(reading.p) else "none",
        p=p,
        p_adjusted=adjusted,
        p_sign_flip=sign_flip(headline.by_seed) if len(headline.by_seed) > 1 and headline.sign else math.nan,
        smallest_margin=_smallest_margin(question),
        notes=_reading_notes(question, verdict),
    )


def _reading_notes(question: Question, verdict: Outcome) -> tuple[str, ...]:
    notes = list(question.notes)
    parts = question.parts
    if question.is_of_training and all(part.effect.num_seeds == 1 for part in parts):
        notes.insert(0, "one seed: nothing is said of training, the interval is over test items only")
    elif not any(part.can_be_tested for part in parts):
        notes.insert(0, "the seeds agree exactly, so their variance is not known")
    elif verdict != Outcome.SUPPORTED and first_sign(question):
        notes += _contrary(question)
    return tuple(notes)


def _contrary(question: Question) -> list[str]:
    """Which parts do not show as claimed, where a claim has several, and in how many settings."""
    by_name: dict[str, list[Part]] = {}
    for part in question.parts:
        by_name.setdefault(part.name, []).append(part)
    if len(by_name) < 2:
        return []
    said = []
    for name, parts in by_name.items():
        if failing := [part for part in parts if not part.p_claimed(question.margin) <= ALPHA]:
            where = f" in {len(failing)} of {len(parts)} settings" if len(parts) > 1 else f": {_words(failing[0])}"
            said.append(f"not as claimed: {name}{where}")
    return said


def _may_be_denied(question: Question, seen: Mapping[str, bool]) -> bool:
    return not question.is_on_blindspot or seen.get(question.measure, False)


def _withhold(found: Judgement, question: Question, seen: Mapping[str, bool]) -> Judgement:
    """'Refuted' and 'equivalent' taken back: what even biased data does not move says nothing by not moving."""
    if found.verdict not in (Outcome.REFUTED, Outcome.EQUIVALENT):
        return found
    why = "is not seen" if question.measure in seen else "is missing"
    note = f"'{found.verdict}' is withheld: the positive control {why} by {question.measure}"
    return replace(found, verdict=Outcome.CANNOT_TELL, notes=(note, *found.notes))


def _with_settling(found: Judgement, question: Question, num_tested: int, cost_per_seed: float | None) -> Judgement:
    """With the seeds that would settle an open claim, for true differences as large as its margin."""
    if found.verdict != Outcome.CANNOT_TELL or not question.is_of_training or not num_tested:
        return found
    seeds = _settling(question, ALPHA / num_tested)
    if seeds.seeds is None:
        return replace(found, notes=(*found.notes, seeds.why_not) if seeds.why_not else found.notes)
    low, high = seeds.seeds
    cost = None if cost_per_seed is None else max(0, high - found.num_units) * cost_per_seed
    return replace(found, settling_low=low, settling_high=high, settling_cost=cost)


def _settling(question: Question, alpha: float) -> Settling:
    """By the part of each setting that varies most, at the level that all parts leave to it."""
    tested = [[part for part in setting.parts if part.can_be_tested] for setting in question.settings]
    hardest = [max(parts, key=lambda part: part.effect.standard_error) for parts in tested if parts]
    if len(hardest) < question.fewest_settings:
        num_tied = sum(bool(setting.parts) and not parts for setting, parts in zip(question.settings, tested, strict=True))
        where = f"in {num_tied} of {len(tested)} settings"
        is_news = hardest and num_tied
        return Settling(None, f"the seeds agree exactly {where}, so their variance there is not known" if is_news else "")
    variances = [Variance.of(part.name, part.effect) for part in hardest]
    at_least = min(len(variances), question.fewest_settings)
    is_equivalence = first_sign(question) == 0
    alpha /= max(len(parts) for parts in tested)
    return settling(variances, question.margin, alpha, is_equivalence=is_equivalence, at_least=at_least)


def _with_notes(found: Judgement, question: Question, num_generators: int, shared: Sequence[str]) -> Judgement:
    notes = list(found.notes)
    if question.is_from_pool and num_generators == 1 and question.headline is not None:
        notes.append(ONE_GENERATOR)
    of_generators = question.is_from_pool and num_generators > 1
    return replace(
        found,
        rests_on="generators" if of_generators else "seeds",
        notes=(*notes, *(shared if question.is_of_training or not question.parts else ())),
    )


def _agreement(question: Question) -> tuple[int, int]:
    """In how many settings the headline part has the sign of its mean, and in how many its interval lies on that side."""
    assert question.headline is not None
    threshold = question.headline.threshold
    side = math.copysign(1.0, question.headline.effect.mean - threshold)
    first = [setting.parts[0] for setting in question.settings if setting.parts]
    signed = sum(side * (part.effect.mean - threshold) > 0 for part in first)
    clear = 0
    for part in first:
        low, high = ends(part.effect.interval())
        clear += low > threshold if side > 0 else high < threshold
    return signed, clear


def _smallest_margin(question: Question) -> float:
    """The smallest margin at which the headline part would be equivalent in every setting; NaN where one has no interval."""
    first = [setting.parts[0] for setting in question.settings if setting.parts]
    margins = [part.smallest_margin(ALPHA) for part in first]
    if any(math.isnan(margin) for margin in margins):
        return math.nan
    return math.exp(max(margins)) if first[0].unit == "ratio" else max(margins)


def _margin_in_unit(question: Question) -> float:
    is_ratio = question.headline is not None and question.headline.unit == "ratio"
    return math.exp(question.margin) if is_ratio else question.margin


def _test_name(question: Question) -> str:
    headline = question.headline
    assert headline is not None
    if headline.sign == 0:
        return _equivalence_name(question)
    kind = "t over seeds and items" if headline.is_of_training else "z of a log ratio"
    num_parts = max(len(setting.parts) for setting in question.settings)
    kind += f", all of {num_parts} parts" if num_parts > 1 else ""
    return kind if len(question.settings) == 1 else f"{kind}, in {question.rule} of {len(question.settings)} settings"


def _equivalence_name(question: Question) -> str:
    margin = _margin_words(question)
    rule = "" if len(question.settings) == 1 else f", in {question.rule} of {len(question.settings)} settings"
    return f"two one-sided tests, margin {margin}{rule}"


def _margin_words(question: Question) -> str:
    unit = question.headline.unit if question.headline else "share"
    if unit == "ratio":
        return f"a factor of {math.exp(question.margin):g}"
    return f"±{100 * question.margin:g} points" if unit == "share" else f"±{question.margin:g}"


def _words(part: Part) -> str:
    """A part's estimate and interval in words."""
    estimate, low, high = part.in_unit()
    return f"{estimate_words(estimate, part.unit)} {range_words(low, high, part.unit)}"


def _rows(setting: Setting) -> list[dict[str, Any]]:
    if not setting.parts:
        return [{"setting": setting.name, "why_not": setting.why_not}]
    rows = []
    for part in setting.parts:
        estimate, low, high = part.in_unit()
        rows.append(
            {
                "setting": setting.name,
                "part": part.name,
                "claimed_sign": part.sign,
                "estimate": estimate,
                "low": low,
                "high": high,
                "unit": part.unit,
                "values": list(part.by_seed),
                "num_units": part.effect.num_seeds,
                "num_items": part.effect.num_items,
            }
        )
    return rows


def _missing_note(missing: Sequence[str]) -> list[str]:
    return [f"partial: {len(missing)} results are missing, {missing[0]}, for one"] if missing else []
