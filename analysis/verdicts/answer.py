"""A study's answer in words: how much is decided, whether it could have seen anything, and what each number rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.verdicts.judgement import ONE_GENERATOR, Control, Judgement, Outcome
from analysis.wording import NOTHING, in_words

ONE_SEED = "One seed: nothing is said about training, and every interval is over test items only."
NO_CONTROL = (
    "No claim is a positive control: whether this study could have seen a blindspot grow is not known, so nothing about the "
    "blindspot is called refuted or equivalent."
)
MEASURE_WORDS = {"auc": "AUC"}
DECIDED = {Outcome.SUPPORTED: "supported", Outcome.REFUTED: "refuted", Outcome.EQUIVALENT: "equivalent within its margin"}


def answer(judgements: Sequence[Judgement]) -> str:
    """One sentence on the primary claims: how many are decided, how, and from what; on all claims where none is primary."""
    chosen = [judgement for judgement in judgements if judgement.primary] or list(judgements)
    word = "primary claims" if any(judgement.primary for judgement in judgements) else "claims"
    counts = {outcome: sum(judgement.verdict == outcome for judgement in chosen) for outcome in DECIDED}
    said = [f"{count} {DECIDED[outcome]}" for outcome, count in counts.items() if count]
    units = [judgement for judgement in chosen if judgement.num_units]
    start = f"With {units_words(units[0])}, " if units else ""
    if not said:
        return f"{start}none of {len(chosen)} {word} is decided."
    return f"{start}{sum(counts.values())} of {len(chosen)} {word} are decided: {', '.join(said)}."


def decided(judgements: Sequence[Judgement]) -> list[str]:
    """'Supported: …', and so on, with the statements of the primary claims that got the verdict, or of all where none is."""
    chosen = [judgement for judgement in judgements if judgement.primary] or list(judgements)
    said = []
    for outcome, word in DECIDED.items():
        if statements := [judgement.statement for judgement in chosen if judgement.verdict == outcome]:
            said.append(f"{word[0].upper()}{word[1:]}: {' '.join(statements)}")
    return said


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
    return f"{judgement.num_units} {judgement.rests_on[:-1] if judgement.num_units == 1 else judgement.rests_on}"


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
    return f"{high} {judgement.rests_on}" if low == high else f"{low} to {high} {judgement.rests_on}"


def control_sentences(controls: Sequence[Control]) -> list[str]:
    """Whether the study could have seen anything: by accuracy, and by each measure that says otherwise."""
    main = next((control for control in controls if control.measure == "accuracy"), None)
    if main is None:
        return [NO_CONTROL]
    others = [control for control in controls if control.is_seen != main.is_seen]
    said = [control.sentence for control in others if not control.why_not]
    for why_not in dict.fromkeys(control.why_not for control in others if control.why_not):
        names = [MEASURE_WORDS.get(control.measure, control.measure) for control in others if control.why_not == why_not]
        said.append(f"By {in_words(names)} there is no positive control, and nothing is refuted or equivalent: {why_not}.")
    return [main.sentence, *said]
