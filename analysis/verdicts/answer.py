"""A study's answer in words: how much is decided, whether it could have seen anything, and what each number rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.verdicts.command import Command
from analysis.verdicts.judgement import ONE_GENERATOR, Control, Judgement, Outcome, Verdicts
from analysis.verdicts.power import FEWEST_PILOT_SEEDS, ITEMS_LEAVE_DOUBT
from analysis.wording import NOTHING, in_words, measure_word, number_word

ONE_SEED = "One seed: nothing is said about training, and every interval is over test items only."
NO_CONTROL = (
    "No claim is a positive control: whether this study could have seen a blindspot grow is not known, so nothing about the "
    "blindspot is called refuted or equivalent."
)
NONE_BY_ACCURACY = (
    "By accuracy no claim is a positive control, so nothing about the blindspot is called refuted or equivalent by accuracy."
)
MOST_QUOTED = 2
"""Statements of one verdict that the sentence says in full."""
DECIDED = {Outcome.SUPPORTED: "supported", Outcome.REFUTED: "refuted", Outcome.EQUIVALENT: "equivalent within its margin"}


@dataclass(frozen=True)
class Answer:
    """A study's answer: one plain sentence, which says no more than the verdicts, and the command that would settle more."""

    said: str
    """The sentence without its full stop."""
    command: str = ""

    def __str__(self) -> str:
        """The whole sentence, the command in backticks."""
        return f"{self.said}: `{self.command}`" if self.command else f"{self.said}."


def answer(verdicts: Verdicts, command: Command | None = None, *, num_missing: int = 0) -> Answer:
    """What the primary claims say, or all where none is primary.

    A positive control that is not seen comes first, then what is decided in the study's own words, what is open, and what would
    settle it.

    `num_missing` results are missing, which is said. The number of seeds is `power.settling`'s upper end.
    """
    chosen = claims_of_answer(verdicts.judgements)
    first = _unseen(verdicts.controls)
    clauses = [f"{first}; {_decided(chosen, num_missing, is_first=False)}" if first else _decided(chosen, num_missing)]
    still_open = [judgement for judgement in chosen if judgement.verdict == Outcome.CANNOT_TELL]
    clauses += _unsettled(still_open)
    settled_by, with_command = _settled_by(still_open, command)
    return Answer("; ".join([*clauses, *settled_by]), with_command)


def claims_of_answer(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements that the answer is about: on primary claims, or on all where none is primary."""
    return [judgement for judgement in judgements if judgement.primary] or list(judgements)


def _unseen(controls: Sequence[Control]) -> str:
    """That the study could not have seen a blindspot grow, or that it is not known whether; "" where it could."""
    if not controls:
        return "Whether this study could have seen a blindspot grow is not known, for no claim is a positive control"
    seen = [control for control in controls if control.is_seen]
    main = next((control for control in controls if control.measure == "accuracy"), controls[0])
    if main.is_seen:
        return ""
    by = f" by {measure_word(main.measure)}" if seen or main.measure != "accuracy" else ""
    but = f" (by {in_words([measure_word(control.measure) for control in seen])} it is seen)" if seen else ""
    if main.is_outdone:
        return f"The positive control is not seen{by}{but}, so that nothing about the blindspot is refuted or equivalent{by}"
    return f"The positive control is not seen{by}{but}, so{by} this study could not have seen a blindspot grow"


def _decided(chosen: Sequence[Judgement], num_missing: int, *, is_first: bool = True) -> str:
    """'With 5 seeds two of five primary claims are decided: “…” is supported, “…” is refuted'."""
    if not chosen:
        return "No claim is declared" if is_first else "no claim is declared"
    word = "primary claim" if chosen[0].primary else "claim"
    settled = [judgement for judgement in chosen if judgement.verdict in DECIDED]
    start = _start(chosen, num_missing)
    how_many = f"{number_word(len(settled)) if settled else 'none'} of {number_word(len(chosen))} {word}s"
    if len(settled) == len(chosen) > 1:
        how_many = f"all {number_word(len(chosen))} {word}s" if len(chosen) > 2 else f"both {word}s"
    if len(chosen) == 1:
        how_many = f"the one {word}" if settled else f"not even the one {word}"
    said = f"{start} {how_many} {'are' if len(settled) > 1 else 'is'} decided"
    said = said if is_first else said[0].lower() + said[1:]
    groups = [(word, [one for one in settled if one.verdict == outcome]) for outcome, word in DECIDED.items()]
    told = [f"{_quoted(group)} {'are' if len(group) > 1 else 'is'} {word}" for word, group in groups if group]
    return f"{said}: {', '.join(told)}" if told else said


def _start(chosen: Sequence[Judgement], num_missing: int) -> str:
    """'With 5 seeds and one generator', of claims that rest on other numbers 'three to 5 seeds'; and how many are missing."""
    resting = next((judgement for judgement in chosen if judgement.num_units), None)
    of = []
    if resting:
        alike = [judgement for judgement in chosen if judgement.num_units and judgement.rests_on == resting.rests_on]
        alike.sort(key=lambda judgement: judgement.num_units)
        fewest, most = alike[0], alike[-1]
        start = f"{number_word(fewest.num_units)} to " if fewest.num_units < most.num_units else ""
        of = [f"{start}{number_word(most.num_units)} {units_name(most)}"]
    of += ["one generator"] if one_generator(chosen) else []
    of += [f"{num_missing} result{'' if num_missing == 1 else 's'} missing"] if num_missing else []
    return f"With {in_words(of)}," if of else "As it is,"


def _quoted(group: Sequence[Judgement]) -> str:
    """The claims' statements, what is no control first; of many, how many more there are."""
    ordered = sorted(group, key=lambda judgement: judgement.is_control)
    shown = [f"“{judgement.statement.strip().removesuffix('.')}”" for judgement in ordered[:MOST_QUOTED]]
    more = len(ordered) - len(shown)
    return in_words([*shown, f"{number_word(more)} more"] if more else shown)


def _unsettled(still_open: Sequence[Judgement]) -> list[str]:
    """What more seeds do not settle, and why."""
    said = []
    for why, words in (
        ("withheld", "{} would be denied, which is withheld as the control is not seen"),
        (
            "items",
            "no number of seeds would settle {} at a difference as small as the margin, for test items leave too much doubt",
        ),
        ("enough", "{} {stays} open though there are enough seeds for a difference as large as the margin"),
        ("other", "{} {cannot} be told from this study"),
    ):
        if num := sum(_why_open(judgement) == why for judgement in still_open):
            stays, cannot = ("stays", "cannot") if num == 1 else ("stay", "cannot")
            said.append(words.format(number_word(num), stays=stays, cannot=cannot))
    return said


def _why_open(judgement: Judgement) -> str:
    if any("is withheld" in note for note in judgement.notes):
        return "withheld"
    if judgement.settling_high is not None:
        return "more" if judgement.settling_high > judgement.num_units else "enough"
    if ITEMS_LEAVE_DOUBT in judgement.notes:
        return "items"
    return "pilot" if 0 < judgement.num_units < FEWEST_PILOT_SEEDS else "other"


def _settled_by(still_open: Sequence[Judgement], command: Command | None) -> tuple[list[str], str]:
    """What more seeds would settle, and the command for the least of it."""
    more = [judgement for judgement in still_open if _why_open(judgement) == "more"]
    pilots = [judgement for judgement in still_open if _why_open(judgement) == "pilot"]
    if more:
        first = min(more, key=lambda judgement: judgement.settling_high or 0)
        number, rests_on = first.settling_high or 0, first.rests_on
        num = sum(one.rests_on == rests_on and (one.settling_high or 0) <= number for one in more)
        others = f", and {number_word(len(more) - num)} would take more" if len(more) > num else ""
        counted = number_word(number) if number <= 10 else f"{number:,}"
        said = f"{counted} {rests_on} would settle {number_word(num)} more with 80% power{others}"
    elif pilots:
        number, rests_on = FEWEST_PILOT_SEEDS, pilots[0].rests_on
        which = "it" if len(still_open) == 1 else "the open ones"
        said = f"how many {rests_on} would settle {which} can be said from {number_word(number)} on"
    else:
        return [], ""
    return [said], command.with_units(number, rests_on) if command else ""


def one_generator(judgements: Sequence[Judgement]) -> bool:
    """Whether what is said of synthetic data is of one generator's."""
    return any(ONE_GENERATOR in judgement.notes for judgement in judgements)


def one_seed(judgements: Sequence[Judgement]) -> bool:
    """Whether what is said of training rests on one seed only."""
    units = [judgement.num_units for judgement in judgements if judgement.num_units]
    return bool(units) and all(num == 1 for num in units)


def units_words(judgement: Judgement) -> str:
    """'5 seeds' or '3 generators'; a dash where training plays no part."""
    if not judgement.num_units:
        return NOTHING
    return f"{judgement.num_units} {units_name(judgement)}"


def units_name(judgement: Judgement) -> str:
    """'seeds' or 'generators', or one of them."""
    return judgement.rests_on[:-1] if judgement.num_units == 1 else judgement.rests_on


def agreement_words(judgement: Judgement) -> str:
    """'5 of 6, 3 clear': settings with the estimate's sign, and those with an interval on that side; a dash for one."""
    if judgement.num_settings < 2 or math.isnan(judgement.estimate):
        return NOTHING
    return f"{judgement.num_signed} of {judgement.num_settings}, {judgement.num_clear} clear"


def settling_words(judgement: Judgement) -> str:
    """'5 to 12 seeds' in all would settle it, for a difference as large as the margin; a dash where that is not known."""
    low, high = judgement.settling_low, judgement.settling_high
    if low is None or high is None:
        return NOTHING
    return f"{high:,} {judgement.rests_on}" if low == high else f"{low:,} to {high:,} {judgement.rests_on}"


def control_sentences(controls: Sequence[Control]) -> list[str]:
    """Whether the study could have seen anything: by accuracy, and by each measure that says otherwise or stands alone."""
    if not controls:
        return [NO_CONTROL]
    main = next((control for control in controls if control.measure == "accuracy"), None)
    others = [control for control in controls if main is None or control.is_seen != main.is_seen]
    said = [control.sentence for control in others if not control.why_not]
    for why_not in dict.fromkeys(control.why_not for control in others if control.why_not):
        names = [measure_word(control.measure) for control in others if control.why_not == why_not]
        said.append(f"By {in_words(names)} there is no positive control, and nothing is refuted or equivalent: {why_not}.")
    return [main.sentence, *said] if main else [*said, NONE_BY_ACCURACY]
