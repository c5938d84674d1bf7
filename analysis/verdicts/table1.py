"""The claims of the paper's Table 1: how often lexical overlap occurs, and how it goes with entailment, in two data sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from analysis.stats.intervals import Effect
from analysis.study.artifacts import LabelCount, entailment_and_rest
from analysis.study.tables import entailment_odds_ratio
from analysis.verdicts.questions import Part, Question, Setting
from pipelines.errors import UserError

Counts = Mapping[str, LabelCount]
RATIO_MARGIN = math.log(1.1)
"""What counts as 'about as often': a factor of 1.1."""
INDEPENDENT = "examples count as independent draws from the generators that wrote them; further ones are not spoken of"


def overlap_questions(counts: Mapping[str, Counts]) -> list[Question]:
    """Both claims, from the lexical overlaps by label of "original" and "synthetic" data; without both, why not.

    Examples count as independent draws of one generator: another generator is not spoken of.
    """
    return [
        _question(
            "synthetic_overlaps_more",
            "Synthetic data has lexical overlap more often than original data, for every label.",
            "yes: 2.35, 2.32 and 1.83 times as often",
            counts,
            _overlap_parts,
            lambda synthetic, original: [INDEPENDENT],
        ),
        _question(
            "overlap_predicts_entailment_more",
            "In synthetic data, lexical overlap goes with entailment more strongly than in original data.",
            "yes, slightly",
            counts,
            lambda synthetic, original: [_association_part(synthetic, original)],
            _association_note,
        ),
    ]


def _question(
    name: str,
    statement: str,
    paper: str,
    counts: Mapping[str, Counts],
    parts: Callable[[Counts, Counts], list[Part]],
    notes: Callable[[Counts, Counts], list[str]],
) -> Question:
    question = Question(name, statement, paper=paper, margin=RATIO_MARGIN, measure="counts", primary=False)
    if counts.keys() != {"original", "synthetic"}:
        why_not = "the original data or the synthetic pool is not in the store, and both are counted"
        return replace(question, why_not=why_not)
    try:
        found = parts(counts["synthetic"], counts["original"])
        said = notes(counts["synthetic"], counts["original"])
    except UserError as error:
        return replace(question, why_not=str(error))
    return replace(question, settings=(Setting("", tuple(found)),), headline=found[0], notes=tuple(said))


def _overlap_parts(synthetic: Counts, original: Counts) -> list[Part]:
    """Headline: the ratio of the shares averaged over labels. Then one ratio per label, of independent shares (Katz 1978)."""
    labels = list(original)
    sides = []
    for counts in (synthetic, original):
        share, variance = 0.0, 0.0
        for label in labels:
            count = counts[label]
            share += count.share / len(labels)
            variance += count.share * (1 - count.share) / count.num_rows / len(labels) ** 2
        if share == 0:
            raise UserError("one side has no lexical overlap at all, so there is no ratio")
        sides.append((math.log(share), variance / share**2))
    num = sum(count.num_rows for counts in (synthetic, original) for count in counts.values())
    parts = [_ratio_part("share with lexical overlap, synthetic : original", sides[0], sides[1], num)]
    for label in labels:
        count, base = synthetic[label], original[label]
        if not (count.num_lexical_overlap and base.num_lexical_overlap):
            raise UserError(f"no {label} with lexical overlap on one side, so there is no ratio")
        above, below = ((math.log(c.share), 1 / c.num_lexical_overlap - 1 / c.num_rows) for c in (count, base))
        parts.append(_ratio_part(f"{label}, synthetic : original", above, below, count.num_rows + base.num_rows))
    return parts


def _ratio_part(name: str, above: tuple[float, float], below: tuple[float, float], num: int) -> Part:
    return Part(name, Effect(above[0] - below[0], 1, num, math.nan, above[1] + below[1]), 1, "ratio")


def _association_part(synthetic: Counts, original: Counts) -> Part:
    """The ratio of the odds ratios of overlap and entailment; an odds ratio, unlike a correlation, leaves the base rate out."""
    for counts in (synthetic, original):
        if not all(cell for group in entailment_and_rest(counts) for cell in group.with_and_without):
            raise UserError("a label without any, or with nothing but lexical overlap has no odds ratio")
    ratio = entailment_odds_ratio(synthetic).over(entailment_odds_ratio(original))
    num = sum(count.num_rows for counts in (synthetic, original) for count in counts.values())
    effect = Effect(math.log(ratio.ratio), 1, num, math.nan, ratio.standard_error**2)
    return Part("odds ratio of overlap and entailment, synthetic : original", effect, 1, "ratio")


def _association_note(synthetic: Counts, original: Counts) -> list[str]:
    words = []
    for name, counts in (("synthetic", synthetic), ("original", original)):
        (a, b), (c, d) = (group.with_and_without for group in entailment_and_rest(counts))
        phi = (a * d - b * c) / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        words.append(
            f"{name}: odds ratio {a * d / (b * c):.1f}, correlation {phi:.3f}, P(entailment | overlap) {a / (a + c):.3f}"
        )
    return [*words, INDEPENDENT]
