"""The verdict of a study's results on each of the paper's claims.

A claim is

- supported when every part has its sign: the largest of the parts' p values counts (an intersection-union test, Berger 1982);
- refuted when one part has the other sign: the smallest counts, times the number of parts;
- equivalent within a margin when two one-sided tests find the difference to lie within it;
- and otherwise it cannot be told.

Holm's correction runs over all claims that could be tested. Intervals are those of `stats/intervals.py`. With one seed nothing
is said of training.

    judge("blindsweep-store", "demo")
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from analysis.stats.hypotheses import benjamini_hochberg, equivalence, holm, sign_flip
from analysis.study.claims import UNDERTRAINED, Claim, Evidence, Part, claims, load_evidence
from analysis.study.power import ALPHA, Variance
from analysis.wording import estimate_words, range_words
from pipelines.errors import UserError
from sweep.graph.records import Store, Study

MARGIN = 0.01
"""One point of accuracy: what counts as 'about as much' unless said otherwise."""
RATIO_MARGIN = math.log(1.1)


class Outcome(StrEnum):
    SUPPORTED = "supported"
    REFUTED = "refuted"
    EQUIVALENT = "equivalent within a margin"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Judgement:
    """The results' verdict on one claim.

    `estimate`, `low`, `high` (95 %, not adjusted for the family) are of the headline part, in `unit`: "share" is a difference
    of accuracies (0.01 is one point), "ratio" a ratio. NaN where there is none. `p` is what the verdict rests on, two-sided
    where a sign is claimed; `p_adjusted` is Holm's over the family of `num_claims`. `p_sign_flip` is that of the headline part,
    for comparison. `settling_seeds` are the seeds in all that would settle it with 80 % power if the estimate were the truth,
    None if that is not known or no number is enough (`notes` say which); `settling_cost` is of the seeds still to be run.
    """

    name: str
    statement: str
    paper: str
    verdict: Outcome = Outcome.CANNOT_TELL
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = "share"
    num_seeds: int = 0
    num_items: int = 0
    test: str = "none"
    p: float = math.nan
    p_adjusted: float = math.nan
    p_sign_flip: float = math.nan
    num_claims: int = 0
    margin: float = MARGIN
    settling_seeds: int | None = None
    settling_cost: float | None = None
    parts: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def judge(
    store: Store | str,
    study: Study | str,
    *,
    margin: float = MARGIN,
    undertrained: int = UNDERTRAINED,
    cost_per_seed: float | None = None,
    partial: bool = False,
) -> list[Judgement]:
    """Judge every claim by a study's results.

    `margin` is a difference of accuracies (0.01 is a point), `undertrained` the most examples of a starting point that counts
    as such. Raises IncompleteSweepError or UserError for what is missing; with `partial` it is left out, and the judgements
    say so. A claim about something the study does not have cannot be told.
    """
    return judge_evidence(
        load_evidence(store, study, partial=partial),
        margin=margin,
        undertrained=undertrained,
        cost_per_seed=cost_per_seed,
    )


def judge_evidence(
    evidence: Evidence,
    *,
    margin: float = MARGIN,
    undertrained: int = UNDERTRAINED,
    cost_per_seed: float | None = None,
) -> list[Judgement]:
    """Judge every claim as `judge` does, from what is already loaded."""
    return judge_claims(
        claims(evidence, undertrained=undertrained),
        margin=margin,
        cost_per_seed=cost_per_seed,
        notes=(*evidence.responses.notes, *_missing_note(evidence.responses.missing)),
    )


def judge_claims(
    family: Sequence[Claim],
    *,
    margin: float = MARGIN,
    cost_per_seed: float | None = None,
    notes: Sequence[str] = (),
) -> list[Judgement]:
    """Judge a family of claims together. Raises ValueError for a margin that is not above 0, or claims of the same name."""
    if margin <= 0:
        raise UserError(f"margin={margin}: 'about as much' needs a margin above 0; 0.01 is one point of accuracy")
    if len({claim.name for claim in family}) != len(family):
        raise ValueError("two claims have the same name; a family tests each once")
    readings = [_read(claim, margin) for claim in family]
    adjusted = holm([reading.p for reading in readings])
    num_tested = sum(not math.isnan(p) for p in adjusted)
    return [
        _conclude(claim, reading, p, margin, num_tested, cost_per_seed, notes)
        for claim, reading, p in zip(family, readings, adjusted, strict=True)
    ]


def judgement_table(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """One row per claim, the columns of `Judgement` without parts; notes are joined. Settling seeds are Int64 with NA."""
    columns = [field.name for field in dataclasses.fields(Judgement) if field.name != "parts"]
    rows = [
        {name: "; ".join(judgement.notes) if name == "notes" else getattr(judgement, name) for name in columns}
        for judgement in judgements
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["verdict"] = table["verdict"].map(str)
    return table.astype({"settling_seeds": "Int64", "settling_cost": "float64"})


def subcase_table(evidence: Evidence) -> pd.DataFrame:
    """Synthetic minus original per subcase of the blindspot set, over all starting points and sizes.

    Columns: subcase, mean, low, high, num_seeds, num_items, p (two-sided), q (Benjamini and Hochberg over the subcases). A
    subcase of one template has its items as clusters, so that its interval says nothing of other templates; `clusters` counts
    them. With one seed p is NaN.
    """
    items = evidence.responses.items[evidence.blindspot_set]
    rows = []
    for subcase in sorted(set(items.subcases) - {""}):
        data = evidence.blindspot("synthetic", "original", evidence.starting_sizes, slice_name=f"subcase/{subcase}")
        part = Part.of(subcase, data, 0)
        effect = part.effect
        p = math.nan if effect.num_seeds == 1 else 2 * min(effect.p_above(), effect.p_below())
        rows.append([subcase, *part.in_unit(), effect.num_seeds, effect.num_items, data.num_clusters, p])
    table = pd.DataFrame(rows, columns=["subcase", "mean", "low", "high", "num_seeds", "num_items", "clusters", "p"])
    return table.assign(q=benjamini_hochberg(table["p"].tolist()))


@dataclass(frozen=True)
class _Reading:
    """A claim's parts, or why there are none, and its p values before any correction."""

    parts: tuple[Part, ...] = ()
    why_not: str = ""
    p_for: float = math.nan
    p_against: float = math.nan
    p_equivalent: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def p(self) -> float:
        return min(self.p_for, self.p_against)


def _read(claim: Claim, margin: float) -> _Reading:
    try:
        parts = tuple(claim.parts())
        notes = tuple(claim.notes())
    except UserError as error:
        return _Reading(why_not=str(error))
    if any(part.is_of_training and part.effect.num_seeds == 1 for part in parts):
        return _Reading(parts, "one seed: nothing is said of training, the interval is over test items only", notes=notes)
    if any(not part.effect.has_interval for part in parts):
        return _Reading(parts, "the seeds agree exactly, so their variance is not known", notes=notes)
    first = parts[0]
    if first.sign == 0:
        beyond = min(first.effect.p_above(margin), first.effect.p_below(-margin))
        return _Reading(parts, p_for=equivalence(first.effect, margin), p_against=min(1.0, 2 * beyond), notes=notes)
    tails = [_tail(part) for part in parts]
    return _Reading(
        parts,
        p_for=min(1.0, max(2 * tail for tail in tails)),
        p_against=min(1.0, len(parts) * min(2 * (1 - tail) for tail in tails)),
        p_equivalent=equivalence(first.effect, _margin(first, margin)) if len(parts) == 1 else math.nan,
        notes=notes,
    )


def _margin(part: Part, margin: float) -> float:
    return margin if part.unit == "share" else RATIO_MARGIN


def _conclude(
    claim: Claim,
    reading: _Reading,
    adjusted: float,
    margin: float,
    num_tested: int,
    cost_per_seed: float | None,
    shared_notes: Sequence[str],
) -> Judgement:
    notes = [*([reading.why_not] if reading.why_not else []), *reading.notes]
    if not reading.parts:
        return Judgement(
            claim.name, claim.statement, claim.paper, num_claims=num_tested, margin=margin, notes=(*notes, *shared_notes)
        )
    first = reading.parts[0]
    verdict, p, test = Outcome.CANNOT_TELL, reading.p, _test_name(reading, margin)
    if adjusted <= ALPHA:
        positive = Outcome.EQUIVALENT if first.sign == 0 else Outcome.SUPPORTED
        verdict = positive if reading.p_for <= reading.p_against else Outcome.REFUTED
    elif num_tested * reading.p_equivalent <= ALPHA:
        # Bonferroni: this second look comes after Holm's first.
        p, adjusted = reading.p_equivalent, num_tested * reading.p_equivalent
        verdict, test = Outcome.EQUIVALENT, f"two one-sided tests, margin {_margin_words(first, margin)}"
    if verdict != Outcome.SUPPORTED and len(reading.parts) > 1 and not reading.why_not:
        notes += [f"not as claimed: {part.name} {_signed(part)}" for part in reading.parts if _tail(part) > ALPHA / 2]
    settling = None
    if verdict == Outcome.CANNOT_TELL and not reading.why_not:
        settling = _settling_seeds(reading.parts, margin, ALPHA / num_tested)
        if settling is None and first.is_of_training:
            notes.append("no number of seeds would settle it, were the estimate the truth")
    estimate, low, high = first.in_unit()
    return Judgement(
        name=claim.name,
        statement=claim.statement,
        paper=claim.paper,
        verdict=verdict,
        estimate=estimate,
        low=low,
        high=high,
        unit=first.unit,
        num_seeds=min(part.effect.num_seeds for part in reading.parts),
        num_items=max(part.effect.num_items for part in reading.parts),
        test=test,
        p=p,
        p_adjusted=adjusted,
        p_sign_flip=sign_flip(first.by_seed) if len(first.by_seed) > 1 and first.sign else math.nan,
        num_claims=num_tested,
        margin=math.exp(RATIO_MARGIN) if first.unit == "ratio" else margin,
        settling_seeds=settling,
        settling_cost=None
        if settling is None or cost_per_seed is None
        else max(0, settling - first.effect.num_seeds) * cost_per_seed,
        parts=tuple(_part_row(part) for part in reading.parts),
        notes=(*notes, *(shared_notes if first.is_of_training else ())),
    )


def _test_name(reading: _Reading, margin: float) -> str:
    if reading.why_not:
        return "none"
    first = reading.parts[0]
    if first.sign == 0:
        return f"two one-sided tests, margin {_margin_words(first, margin)}"
    kind = "t over seeds and items" if first.is_of_training else "z of a log ratio"
    return kind if len(reading.parts) == 1 else f"{kind}, all of {len(reading.parts)} parts"


def _margin_words(part: Part, margin: float) -> str:
    return f"±{100 * margin:g} points" if part.unit == "share" else f"a factor of {math.exp(RATIO_MARGIN):g}"


def _tail(part: Part) -> float:
    """One-sided p value of the claimed sign."""
    return part.effect.p_above() if part.sign > 0 else part.effect.p_below()


def _signed(part: Part) -> str:
    """A part's estimate and interval in words."""
    estimate, low, high = part.in_unit()
    return f"{estimate_words(estimate, part.unit)} {range_words(low, high, part.unit)}"


def _part_row(part: Part) -> dict[str, Any]:
    estimate, low, high = part.in_unit()
    return {
        "name": part.name,
        "claimed_sign": part.sign,
        "estimate": estimate,
        "low": low,
        "high": high,
        "unit": part.unit,
        "num_seeds": part.effect.num_seeds,
        "num_items": part.effect.num_items,
    }


def _settling_seeds(parts: Sequence[Part], margin: float, alpha: float) -> int | None:
    """The seeds that would settle a claim were its estimates the truth, by the way that needs fewest."""
    if not all(part.is_of_training for part in parts):
        return None
    variances = [Variance.of(part.name, part.effect) for part in parts]
    means = [part.effect.mean for part in parts]
    ways: list[int | None] = []
    first, mean = parts[0], means[0]
    if first.sign == 0 or len(parts) == 1:
        ways.append(variances[0].seeds_for_equivalence(mean, margin, alpha))
    if first.sign == 0:
        ways.append(variances[0].seeds_for(abs(mean) - margin, alpha) if abs(mean) > margin else None)
    else:
        as_claimed = [part.sign * mean > 0 for part, mean in zip(parts, means, strict=True)]
        needed = [variance.seeds_for(mean, alpha) for variance, mean in zip(variances, means, strict=True)]
        if all(as_claimed):
            ways.append(None if None in needed else max(number for number in needed if number is not None))
        ways += [number for number, fits in zip(needed, as_claimed, strict=True) if not fits]
    return min((way for way in ways if way is not None), default=None)


def _missing_note(missing: Sequence[str]) -> list[str]:
    return [f"partial: {len(missing)} results are missing, {missing[0]}, for one"] if missing else []
