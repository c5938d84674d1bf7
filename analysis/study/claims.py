"""The paper's statements as named claims: each says which differences of a study's results it is about, and their signs.

A claim is a conjunction of parts, the headline first; `analysis.study.verdicts` judges them. Differences are paired by seed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from analysis.stats.intervals import Effect, Replicates
from analysis.stats.statistics import ends
from analysis.study.artifacts import LabelCount, entailment_and_rest, lexical_overlap_counts
from analysis.study.frame import evaluation_frame
from analysis.study.items import Responses, load_responses
from analysis.study.series import study_series
from analysis.study.tables import entailment_odds_ratio
from analysis.wording import slice_name as slice_words
from pipelines.errors import UserError
from pipelines.tasks.examples import LABELS
from sweep.graph.records import Store, Study

UNDERTRAINED = 20_000
"""The paper calls starting points undertrained without a number; in its Figure 1 MultiNLI rises up to 20 000 examples."""

FLOOR = 0.05
"""Accuracy from which there is little left to fall."""


@dataclass(frozen=True)
class Part:
    """One difference of a claim. `sign` is the claimed one, 0 for none. `unit` "share" is of accuracies (0..1); "ratio" is kept
    as a logarithm here and reported as a ratio. `by_seed` are the seeds' values, empty where the seed plays no part.
    """

    name: str
    effect: Effect
    sign: Literal[-1, 0, 1]
    unit: Literal["share", "ratio"] = "share"
    by_seed: tuple[float, ...] = ()
    bound: float = 1.0
    """The largest that a "share" can be: 1 for a difference of accuracies, 2 for a difference of such."""

    @classmethod
    def of(cls, name: str, data: Replicates, sign: Literal[-1, 0, 1], bound: float = 1.0) -> Part:
        return cls(name, data.effect(), sign, "share", tuple(float(value) for value in data.values), bound)

    def in_unit(self) -> tuple[float, float, float]:
        """Estimate and 95 % interval in `unit`: of logarithms their ratio, of shares cut at `bound`; NaN for none."""
        low, high = ends(self.effect.interval())
        if self.unit == "ratio":
            return math.exp(self.effect.mean), math.exp(low), math.exp(high)
        # NaN stays: it is not beyond any bound.
        return self.effect.mean, -self.bound if low < -self.bound else low, self.bound if high > self.bound else high

    @property
    def is_of_training(self) -> bool:
        return bool(self.by_seed)


@dataclass(frozen=True)
class Claim:
    """A statement and how to get its parts, the headline first. `paper` is what the paper itself found.

    `parts` raises UserError when the study lacks what the claim is about.
    """

    name: str
    statement: str
    paper: str
    parts: Callable[[], Sequence[Part]]
    notes: Callable[[], Sequence[str]] = field(default=lambda: ())


@dataclass(frozen=True)
class Evidence:
    """All that claims are made of.

    `blindspot_slice` is where going by the study's heuristic is wrong; `counts` are lexical overlaps by label of "original" and
    "synthetic" data, where known.
    """

    responses: Responses
    general_set: str
    blindspot_set: str
    blindspot_slice: str
    starting_sizes: tuple[int, ...]
    sizes: tuple[int, ...]
    counts: Mapping[str, Mapping[str, LabelCount]] = field(default_factory=dict)

    def general(self, treatment: str, control: str, starts: Sequence[int], sizes: Sequence[int] | None = None) -> Replicates:
        return self.responses.change(self.general_set, "all", treatment, control, starts, sizes or self.sizes)

    def blindspot(
        self, treatment: str, control: str, starts: Sequence[int], sizes: Sequence[int] | None = None, slice_name: str = "all"
    ) -> Replicates:
        return self.responses.change(self.blindspot_set, slice_name, treatment, control, starts, sizes or self.sizes)

    def adversarial(
        self, treatment: str, control: str, starts: Sequence[int], sizes: Sequence[int] | None = None
    ) -> Replicates:
        return self.blindspot(treatment, control, starts, sizes, self.blindspot_slice)


def load_evidence(
    store: Store | str,
    study: Study | str,
    *,
    partial: bool = False,
    frame: pd.DataFrame | None = None,
    counts: Mapping[str, Mapping[str, LabelCount]] | None = None,
) -> Evidence:
    """Read what the claims need of a study. Raises as `judge` does.

    Who has the study's `frame` (`evaluation_frame`) or overlap `counts` (`lexical_overlap_counts`) already hands them on: a
    pool of millions is not read twice.
    """
    store = store if isinstance(store, Store) else Store(store)
    study = study if isinstance(study, Study) else Study.load(store, study)
    frame = evaluation_frame(store, study, partial=partial) if frame is None else frame
    series = study_series(study, frame)
    counts = _overlap_counts(store, study) if counts is None else counts
    general, blindspot = series[0].set, series[1].set
    responses = load_responses(store, study, [general, blindspot], frame, partial=partial)
    # The study's own grid, not what is there of it: an average over what happens to be built is another quantity.
    grid = [step.coordinates for step in study.steps if step.stage == "evaluation"]
    return Evidence(
        responses,
        general,
        blindspot,
        study.blindspot_slice,
        tuple(sorted({int(cell["starting_size"]) for cell in grid})),
        tuple(sorted({int(cell["size"]) for cell in grid} - {0})),
        # One without the other makes no claim.
        counts if len(counts) > 1 else {},
    )


def claims(evidence: Evidence, *, undertrained: int = UNDERTRAINED) -> list[Claim]:
    """The paper's statements (sections 3, 4 and Table 1) over a study's results."""
    starts, sizes = evidence.starting_sizes, evidence.sizes
    few = [start for start in starts if start <= undertrained]
    adversarial = slice_words(evidence.blindspot_slice)

    def some(chosen: Sequence[int]) -> Sequence[int]:
        if not chosen:
            raise UserError(f"no starting point of at most {undertrained} examples; raise the limit of what is undertrained")
        return chosen

    of_accuracies = [
        Claim(
            "synthetic_helps_general",
            "Training on synthetic data raises general accuracy of undertrained starting points.",
            "yes, up to a starting point of 20 000 examples",
            lambda: [Part.of("general, synthetic − starting point", evidence.general("synthetic", "none", some(few)), 1)],
        ),
        Claim(
            "synthetic_helps_as_much_as_original",
            "It does so about as much as original data, at the largest size.",
            "yes, if the training set is large enough",
            lambda: [
                Part.of("general, synthetic − original", evidence.general("synthetic", "original", some(few), sizes[-1:]), 0)
            ],
        ),
        *(
            Claim(
                f"blindspot_falls_while_general_rises/start={start}",
                f"From {start} examples, training on synthetic data lowers the blindspot set while it raises the general set.",
                "hypothesised; seen at 20 000 examples only",
                lambda start=start: _dispersion(evidence, [start]),  # type: ignore[misc]
            )
            for start in starts
        ),
        Claim(
            "blindspot_falls_while_general_rises",
            "As a rule, training on synthetic data lowers the blindspot set while it raises the general set.",
            "hypothesised; not a consistent pattern",
            lambda: _dispersion(evidence, starts),
        ),
        Claim(
            "original_is_kinder_to_blindspot",
            "On the blindspot set, original data helps more or harms less than synthetic data.",
            "yes, under most settings; less than expected",
            lambda: [Part.of("blindspot, synthetic − original", evidence.blindspot("synthetic", "original", starts), -1)],
        ),
        Claim(
            "bias_collapses_adversarial",
            f"Biased synthetic data drives accuracy on {adversarial} toward zero.",
            "yes, significantly",
            lambda: [
                Part.of(
                    f"{adversarial}, biased synthetic − starting point",
                    evidence.adversarial("biased_synthetic", "none", starts, sizes[-1:]),
                    -1,
                )
            ],
            lambda: _level_note(evidence),
        ),
    ]
    return of_accuracies + overlap_claims(evidence.counts)


def overlap_claims(counts: Mapping[str, Mapping[str, LabelCount]]) -> list[Claim]:
    """The claims of Table 1, from the lexical overlaps by label of "original" and "synthetic" data.

    Examples count as independent draws of one generator: another generator is not spoken of.
    """

    def both() -> tuple[Mapping[str, LabelCount], Mapping[str, LabelCount]]:
        if counts.keys() != {"original", "synthetic"}:
            raise UserError("the original data or the synthetic pool is not in the store, and both are counted")
        return counts["synthetic"], counts["original"]

    return [
        Claim(
            "synthetic_overlaps_more",
            "Synthetic data has lexical overlap more often than original data, for every label.",
            "yes: 2.35, 2.32 and 1.83 times as often",
            lambda: _overlap_parts(*both()),
            lambda: ["examples count as independent draws from one generator"],
        ),
        Claim(
            "overlap_predicts_entailment_more",
            "In synthetic data, lexical overlap goes with entailment more strongly than in original data.",
            "yes, slightly",
            lambda: [_association_part(*both())],
            lambda: _association_note(*both()),
        ),
    ]


def _dispersion(evidence: Evidence, starts: Sequence[int]) -> list[Part]:
    general = evidence.general("synthetic", "none", starts)
    blindspot = evidence.blindspot("synthetic", "none", starts)
    return [
        # The interaction: two p values, one below 5 % and one above, would not show that the changes differ.
        Part.of("change of general − change of blindspot", general - blindspot, 1, bound=2.0),
        Part.of("change of general", general, 1),
        Part.of("change of blindspot", blindspot, -1),
    ]


def _level_note(evidence: Evidence) -> list[str]:
    """The level that biased data leads to, and what else leads there: what is at the floor anyway shows no bias."""
    size = evidence.sizes[-1]

    def level(kind: str, starts: Sequence[int], size: int) -> float:
        cells = [(start, kind, size) for start in starts]
        return evidence.responses.accuracy(evidence.blindspot_set, evidence.blindspot_slice, cells).effect().mean

    biased = level("biased_synthetic", evidence.starting_sizes, size)
    notes = [f"accuracy there with biased synthetic data, largest size: {100 * biased:.1f} %"]
    for kind in ("synthetic", "original"):
        # Not every study has both.
        with contextlib.suppress(UserError):
            if (unbiased := level(kind, evidence.starting_sizes, size)) <= FLOOR:
                notes.append(
                    f"with {kind} data of that size, unbiased, it is {100 * unbiased:.1f} %: the fall is not the bias's"
                )
    fallen = [start for start in evidence.starting_sizes if level("none", [start], 0) <= FLOOR]
    if fallen:
        notes.append(
            f"at most {100 * FLOOR:g} % before, so with nothing to fall: starting points of {', '.join(map(str, fallen))}"
        )
    return notes


def _overlap_counts(store: Store, study: Study) -> dict[str, dict[str, LabelCount]]:
    built = [step.stage for step in study.steps if step.record]
    if any(built.count(stage) != 1 for stage in ("sources", "synthetic_pool")):
        return {}
    return lexical_overlap_counts(store, study)


def _overlap_parts(synthetic: Mapping[str, LabelCount], original: Mapping[str, LabelCount]) -> list[Part]:
    """Headline: the ratio of the shares averaged over labels. Then one ratio per label, of independent shares (Katz 1978)."""
    labels = [str(label) for label in LABELS]
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


def _association_part(synthetic: Mapping[str, LabelCount], original: Mapping[str, LabelCount]) -> Part:
    """The ratio of the odds ratios of overlap and entailment; an odds ratio, unlike a correlation, leaves the base rate out."""
    for counts in (synthetic, original):
        if not all(cell for group in entailment_and_rest(counts) for cell in group.with_and_without):
            raise UserError("a label without any, or with nothing but lexical overlap has no odds ratio")
    ratio = entailment_odds_ratio(synthetic).over(entailment_odds_ratio(original))
    num = sum(count.num_rows for counts in (synthetic, original) for count in counts.values())
    effect = Effect(math.log(ratio.ratio), 1, num, math.nan, ratio.standard_error**2)
    return Part("odds ratio of overlap and entailment, synthetic : original", effect, 1, "ratio")


def _association_note(synthetic: Mapping[str, LabelCount], original: Mapping[str, LabelCount]) -> list[str]:
    words = []
    for name, counts in (("synthetic", synthetic), ("original", original)):
        (a, b), (c, d) = (group.with_and_without for group in entailment_and_rest(counts))
        phi = (a * d - b * c) / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        words.append(
            f"{name}: odds ratio {a * d / (b * c):.1f}, correlation {phi:.3f}, P(entailment | overlap) {a / (a + c):.3f}"
        )
    return [*words, "examples count as independent draws from one generator"]
