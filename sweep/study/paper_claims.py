"""The claims of a study that declares none: those of Zhang and Pavlick's paper, the same question asked of measures that do not
saturate, and what a study's mixes, debiased sets, generations and arms are there to answer."""

import re
from collections.abc import Sequence

from pipelines.data.kinds import DEBIASED, Added, Kind, Mix
from sweep.study.claims import START, Claim, Comparison, Difference, Measure

GENERAL_MARGIN = 0.02
"""Two points of accuracy: the paper calls a mean difference of 1.1 points 'on par'."""
KINDEST_FIRST = ("original", "debiased_synthetic", "filtered_synthetic", "synthetic", "biased_synthetic")
"""Kinds of data by what is expected of them on a blindspot."""
FLOOR = 0.05
"""Accuracy that counts as 'toward zero'."""


def _general(treatment: str, control: str, weight: float = 1.0) -> Difference:
    return Difference(treatment, control, "general", weight=weight)


def _blindspot(treatment: str, control: str) -> Difference:
    return Difference(treatment, control, "blindspot")


def _adversarial(treatment: str, control: str | None, measure: Measure = Measure.ACCURACY) -> Difference:
    return Difference(treatment, control, "adversarial", measure)


def _is(difference: Difference, sign: int) -> tuple[Comparison, ...]:
    return (Comparison((difference,), sign),)


_GAP = Comparison((_blindspot("synthetic", "original"), _general("synthetic", "original", weight=-1)), -1)
# The interaction leads: one change that is seen and one that is not would not show that they differ.
_DISPERSION = (
    Comparison((_general("synthetic", START), Difference("synthetic", START, "blindspot", weight=-1)), 1),
    Comparison((_general("synthetic", START),), 1),
    Comparison((_blindspot("synthetic", START),), -1),
)
_WORSE = {Measure.ACCURACY: -1, Measure.MARGIN: 1, Measure.AUC: -1, Measure.PULL: 1}
"""The sign of a change for the worse."""
_OTHERS = {
    Measure.MARGIN: ("margin", "moves the log-odds of the heuristic's label up"),
    Measure.AUC: ("auc", "makes it harder to tell where the heuristic is right from where it is wrong (AUC)"),
    Measure.PULL: ("pull", "pulls adversarial items further towards the heuristic's label than general items of their label"),
}


def _of_measure(measure: Measure) -> tuple[Claim, Claim]:
    """The study's question and its positive control, asked of another measure than accuracy."""
    name, does = _OTHERS[measure]
    sign = _WORSE[measure]
    return (
        Claim(
            f"synthetic_reinforces_by_{name}",
            f"Synthetic data {does}, compared with original data.",
            _is(_adversarial("synthetic", "original", measure), sign),
        ),
        Claim(
            f"bias_is_seen_by_{name}",
            f"Biased synthetic data {does}, compared with synthetic data.",
            _is(_adversarial("biased_synthetic", "synthetic", measure), sign),
            sizes="largest",
            control=True,
        ),
    )


PAPER_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "bias_is_seen",
        "Biased synthetic data lowers accuracy where going by the heuristic is wrong, compared with synthetic data.",
        _is(_adversarial("biased_synthetic", "synthetic"), -1),
        sizes="largest",
        primary=True,
        control=True,
        paper="yes, as expected of a sanity check",
    ),
    Claim(
        "synthetic_reinforces",
        "Synthetic data lowers accuracy where going by the heuristic is wrong, compared with original data.",
        _is(_adversarial("synthetic", "original"), -1),
        primary=True,
        paper="lower in 18 of 18 cells, by 19.2 points on average; not tested",
    ),
    Claim(
        "gap_is_wider_on_blindspot",
        "Synthetic data falls further behind original data on the blindspot set than on the general set.",
        (_GAP,),
        primary=True,
        paper="yes: almost equal on the general task, while a gap on the blindspot exists (4.5 points wider)",
    ),
    Claim(
        "original_is_kinder_to_blindspot",
        "On the blindspot set, original data helps more or harms less than synthetic data.",
        _is(_blindspot("synthetic", "original"), -1),
        primary=True,
        paper="yes, under most settings; less than expected",
    ),
    Claim(
        "synthetic_helps_general",
        "Training on synthetic data raises general accuracy of undertrained starting points.",
        _is(_general("synthetic", START), 1),
        rule="every",
        starts="undertrained",
        primary=True,
        paper="yes, up to a starting point of 20,000 examples",
    ),
    Claim(
        "synthetic_helps_as_much_as_original",
        "It does so about as much as original data, at the largest size.",
        _is(_general("synthetic", "original"), 0),
        rule="every",
        starts="undertrained",
        sizes="largest",
        margin=GENERAL_MARGIN,
        paper="yes, if the training set is large enough",
    ),
    Claim(
        "established_gain_nothing",
        "Neither original nor synthetic data changes general accuracy of well-established starting points by much.",
        (Comparison((_general("original", START),), 0), Comparison((_general("synthetic", START),), 0)),
        rule="every",
        starts="established",
        margin=GENERAL_MARGIN,
        paper="yes, beyond 20,000 examples",
    ),
    Claim(
        "blindspot_falls_while_general_rises_from",
        "From {start} examples, training on synthetic data lowers the blindspot set while it raises the general set.",
        _DISPERSION,
        starts="trained",
        each_start=True,
        paper="hypothesised; seen at 20,000 examples only",
    ),
    Claim(
        "blindspot_falls_while_general_rises",
        "As a rule, training on synthetic data lowers the blindspot set while it raises the general set.",
        _DISPERSION,
        starts="trained",
        paper="hypothesised; not a consistent pattern",
    ),
    Claim(
        "biased_is_worst",
        "Biased synthetic data does worst of the three kinds, on the general set, the blindspot set and where the heuristic is "
        "wrong.",
        tuple(
            Comparison((Difference("biased_synthetic", other, on),), -1)
            for on in ("general", "blindspot", "adversarial")
            for other in ("synthetic", "original")
        ),
        paper="in almost all tests",
    ),
    Claim(
        "biased_falls_over_training",
        "With biased synthetic data, accuracy where the heuristic is wrong falls as training sets grow.",
        (Comparison((_adversarial("biased_synthetic", None),), -1, over_sizes=True),),
        paper="yes, significantly; read off the figure, at 5 of 6 starting points",
    ),
    Claim(
        "biased_ends_near_zero",
        f"With the largest biased set, accuracy where the heuristic is wrong is below {100 * FLOOR:g}%.",
        (Comparison((_adversarial("biased_synthetic", None),), -1, threshold=FLOOR),),
        sizes="largest",
        paper="'toward zero': 23.6% on average",
    ),
    *(claim for measure in _OTHERS for claim in _of_measure(measure)),
)


def axis_claims(kinds: Sequence[Kind], generations: Sequence[str], arms: Sequence[str] = ()) -> tuple[Claim, ...]:
    """What kinds, generations (the kinds of their synthetic sets, from the first) and arms are there to answer.

    None is primary.
    """
    return (
        *(_of_mix(kind) for kind in kinds if not isinstance(kind, str)),
        *(_OF_DEBIASED if {DEBIASED, "synthetic"} <= set(kinds) else ()),
        *(_of_generations(generations) if len(generations) > 1 else ()),
        *(_of_arm(arm, arms[0]) for arm in arms[1:]),
    )


_OF_DEBIASED = (
    Claim(
        "debiasing_helps",
        "Debiased synthetic data raises accuracy where going by the heuristic is wrong, compared with synthetic data.",
        _is(_adversarial(DEBIASED, "synthetic"), 1),
    ),
)


def _of_arm(arm: str, first: str) -> Claim:
    """Whether the study's difference is as large in an arm as in the first: a claim that the data may refute."""
    slug = re.sub(r"\W", "_", arm)
    return Claim(
        f"gap_is_as_wide_in_{slug}",
        f"In the arm {arm}, synthetic data lowers accuracy where the heuristic is wrong about as much as in the arm {first}.",
        (Comparison((Difference("synthetic", "original", "adversarial", arm=arm, against=first),), 0),),
        rule="every",
    )


def _of_mix(mix: Mix | Added) -> Claim:
    slug, words = mix.name.replace(".", "_"), f"{mix.title} data"
    if isinstance(mix, Added):
        return Claim(
            f"{slug}_reinforces",
            f"With {words}, accuracy where the heuristic is wrong is lower than with the original examples alone.",
            _is(_adversarial(mix.name, "original"), -1),
        )
    best, *_, worst = (kind for kind in KINDEST_FIRST if kind in mix.parts)
    return Claim(
        f"{slug}_is_between",
        f"With {words}, accuracy where the heuristic is wrong lies between that with {best.replace('_', ' ')} and that with "
        f"{worst.replace('_', ' ')} data alone.",
        (Comparison((_adversarial(mix.name, best),), -1), Comparison((_adversarial(worst, mix.name),), -1)),
    )


def _of_generations(names: Sequence[str]) -> tuple[Claim, ...]:
    # The least-squares slope over 1, 2 …, a weighted sum of the levels: of differences with the first, as weights add up to 0.
    middle = (len(names) - 1) / 2
    squares = sum((number - middle) ** 2 for number in range(len(names)))
    slope = tuple(
        Difference(name, names[0], "adversarial", weight=(number - middle) / squares)
        for number, name in enumerate(names)
        if number and number != middle
    )
    return (
        Claim(
            "blindspot_grows_over_generations",
            "Accuracy where the heuristic is wrong falls with each generation of the generator, on average.",
            (Comparison(slope, -1),),
        ),
        Claim(
            "general_falls_over_generations",
            f"Synthetic data of generation {len(names)} lowers general accuracy, compared with that of the first.",
            _is(_general(names[-1], names[0]), -1),
        ),
    )
