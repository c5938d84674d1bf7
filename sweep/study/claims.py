"""What a study claims, as plain declarations: which differences, in which settings, with which sign.

A study's file may declare its own (`Experiment(claims=...)`); the paper's are the default. They lie in the study's manifest;
`analysis.verdicts` judges them.

    Claim(
        "subsequence_suffers",
        "Synthetic data lowers accuracy where going by the heuristic is wrong, compared with original data.",
        (Comparison((Difference("synthetic", "original", "adversarial"),), sign=-1),),
        primary=True,
    )
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipelines.data.kinds import Kind, find_kind, kind_name
from pipelines.errors import UserError
from pipelines.field_types import check_types
from sweep.study.arms import Arm, arm_name

PLACES = ("general", "blindspot", "adversarial")
RULES = ("every", "most")
STARTS = ("all", "untrained", "trained", "undertrained", "established")
SIZES = ("all", "largest")
ARMS = ("all",)
START = "none"
"""The kind of a starting point as it is."""
NOT_FROM_POOL = (START, "original")
"""Kinds that no generator has a part in."""


class Measure(StrEnum):
    """A number that a task model has on a test set.

    All but accuracy go by an item's score: the log-odds of the label that the study's heuristic predicts
    (`pipelines.evaluate.scoring.scores`). They still move where accuracy is at 0 or 1.
    """

    ACCURACY = "accuracy"
    """The share of right items."""
    MARGIN = "margin"
    """The mean score, in log-odds. It sees a shift of the threshold between labels."""
    AUC = "auc"
    """The chance that an item where going by the heuristic is right scores above one where it is wrong, ties counting half."""
    PULL = "pull"
    """The chance that an adversarial item scores above a general item of the same label, ties counting half. One half is no
    pull; its level also holds the difference of the two texts' domains, so that only differences between kinds speak."""


@dataclass(frozen=True)
class Difference:
    """A measure with one kind of training set, less that with another; `control` None is its level.

    `on` is "general" or "blindspot", a test set, or "adversarial", the blindspot's slice where going by the study's heuristic
    is wrong. Kinds are training sets', by name or as mixes, or "none", the starting point. Measures but accuracy are read on
    "adversarial" only.

    In a study with several arms it is taken in the `arm` that is named, or else in that of the setting. `against` another arm
    it is what it is in the first, less what it is there, at the same starting point, size and seed: without a control, arm
    against arm at one kind; with one, how much wider a gap is in one arm than in another.
    """

    treatment: Kind
    control: Kind | None
    on: str
    measure: Measure = Measure.ACCURACY
    weight: float = 1.0
    arm: Arm | str | None = None
    against: Arm | str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for side in ("treatment", "control"):
            if (kind := getattr(self, side)) is not None:
                object.__setattr__(self, side, kind_name(find_kind(kind)))
        for side in ("arm", "against"):
            if (arm := getattr(self, side)) is not None:
                object.__setattr__(self, side, arm_name(arm))
        if self.on not in PLACES:
            raise UserError(f"on={self.on!r} is no place of a claim; valid: {', '.join(PLACES)}")
        if self.measure != Measure.ACCURACY and self.on != "adversarial":
            raise UserError(f"measure={str(self.measure)!r} on {self.on!r}: only accuracy is had there; use on='adversarial'")
        if self.treatment == self.control:
            raise UserError(f"a difference of {self.treatment!r} with itself is 0; name another control")
        if not self.weight:
            raise UserError("weight=0 leaves a difference out; remove it")
        if not math.isfinite(self.weight):
            raise UserError(f"weight={self.weight}: give a finite number")
        if self.arm is not None and self.arm == self.against:
            raise UserError(f"arm {self.arm!r} against itself is 0; name another arm")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it names."""
        return tuple(arm_name(arm) for arm in (self.arm, self.against) if arm is not None)


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of differences and its claimed sign: -1, 1, or 0 for 'about as much'.

    The sum is compared with `threshold`. With `over_sizes` it is the sum's slope per doubling of the training set's size.
    Differences of one comparison are on one place, or on the general set and one other.
    """

    differences: tuple[Difference, ...]
    sign: int
    threshold: float = 0.0
    over_sizes: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not self.differences:
            raise UserError("a comparison without differences compares nothing; give at least one")
        if self.sign not in (-1, 0, 1):
            raise UserError(f"sign={self.sign!r} is none of -1, 0, 1")
        if not math.isfinite(self.threshold):
            raise UserError(f"threshold={self.threshold}: sums are compared with it; give a finite number")
        if len({difference.measure for difference in self.differences}) > 1:
            raise UserError("the differences of one comparison are of several measures, which have no common unit; use one")
        if {difference.on for difference in self.differences} >= {"blindspot", "adversarial"}:
            raise UserError("'adversarial' is a part of 'blindspot': one comparison cannot be on both; use two")

    @property
    def measure(self) -> Measure:
        return self.differences[0].measure

    @property
    def is_on_blindspot(self) -> bool:
        return any(difference.on != "general" for difference in self.differences)

    @property
    def starts_from_nothing(self) -> bool:
        """Whether it is a change on the blindspot since the starting point, whose untrained level is the random head's."""
        return any(difference.on != "general" and difference.control == START for difference in self.differences)

    @property
    def kinds(self) -> frozenset[str]:
        """All kinds that it is about, starting points among them."""
        return frozenset(
            kind_name(kind) for difference in self.differences for kind in (difference.treatment, difference.control) if kind
        )

    @property
    def names_all_arms(self) -> bool:
        """Whether all of its differences say which arm they are of, so that it is the same whatever arm is looked at."""
        return all(difference.arm is not None for difference in self.differences)

    @property
    def is_from_pool(self) -> bool:
        """Whether a generator has a part in it."""
        return not self.kinds <= set(NOT_FROM_POOL)


@dataclass(frozen=True)
class Claim:
    """A statement, and the comparisons that all have to hold in `rule` ("every", or "most": more than half) of its settings.

    A setting is a starting point and a training size, and in a study with several arms an arm. `starts` are "all", "untrained"
    (0), "trained", "undertrained" (up to a number of examples that the reader of the results gives), "established" (beyond it),
    or sizes of starting points; `sizes` are "all", "largest", or training sizes; `arms` are "all" or some arms, by value or by
    name. With `each_start` it is a claim for each starting point, named `NAME/start=N`, and `{start}` stands for its size in
    the statement. `margin` is what 'about as much' and the number of seeds that settle it go by, in the measure's unit (0.01 is
    a point of accuracy); None is the measure's own. Primary claims are few and declared before the run. `control` marks the
    claim that shows for its measure that the study can see a blindspot grow. `paper` is what the paper found.

    Raises UserError for what is not one of these.
    """

    name: str
    statement: str
    comparisons: tuple[Comparison, ...]
    rule: str = "most"
    starts: str | tuple[int, ...] = "all"
    sizes: str | tuple[int, ...] = "all"
    arms: str | tuple[Arm | str, ...] = "all"
    each_start: bool = False
    primary: bool = False
    control: bool = False
    margin: float | None = None
    paper: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(
                f"claim name={self.name!r}: it is part of tables and addresses; use a-z, 0-9 and _, from a letter on"
            )
        if not self.comparisons:
            raise UserError(f"claim {self.name}: without comparisons it claims nothing; give at least one")
        if len({comparison.sign == 0 for comparison in self.comparisons}) > 1:
            raise UserError(f"claim {self.name}: 'about as much' (sign 0) beside a direction is two claims; declare each")
        if len({comparison.over_sizes for comparison in self.comparisons}) > 1:
            raise UserError(f"claim {self.name}: slopes over sizes beside differences at a size are two claims; declare each")
        if self.rule not in RULES:
            raise UserError(f"claim {self.name}: rule={self.rule!r} is none of {', '.join(RULES)}")
        for axis, words, values in (("starts", STARTS, "sizes"), ("sizes", SIZES, "sizes"), ("arms", ARMS, "arms")):
            value = getattr(self, axis)
            if isinstance(value, str) and value not in words:
                raise UserError(f"claim {self.name}: {axis}={value!r} is none of {', '.join(words)}, nor a tuple of {values}")
        if not isinstance(self.arms, str):
            object.__setattr__(self, "arms", tuple(map(arm_name, self.arms)))
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise UserError(f"claim {self.name}: margin={self.margin}: a margin is above 0; 0.01 is one point of accuracy")
        if self.control and (len(self.comparisons) != 1 or not self.comparisons[0].is_on_blindspot):
            raise UserError(f"claim {self.name}: a control is one comparison on the blindspot; it has another form")

    @property
    def is_on_blindspot(self) -> bool:
        return any(comparison.is_on_blindspot for comparison in self.comparisons)

    @property
    def compares_on_blindspot(self) -> bool:
        """Whether it says that kinds differ on the blindspot, and not what the level of one is, or that they are alike."""
        return any(
            comparison.is_on_blindspot and comparison.sign and all(each.control for each in comparison.differences)
            for comparison in self.comparisons
        )

    @property
    def is_from_pool(self) -> bool:
        return any(comparison.is_from_pool for comparison in self.comparisons)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset[str]().union(*(comparison.kinds for comparison in self.comparisons))

    @property
    def named_arms(self) -> frozenset[str]:
        """The arms that it or its differences name; a study must have them."""
        of_differences = (arm for one in self.comparisons for difference in one.differences for arm in difference.arms)
        return frozenset([*(() if isinstance(self.arms, str) else map(arm_name, self.arms)), *of_differences])


def as_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Claims as a manifest has them."""
    return [dataclasses.asdict(claim) for claim in claims]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Claim, ...]:
    """The claims of a manifest. Raises UserError for what is no claim."""
    try:
        return tuple(_claim(value) for value in values)
    except (TypeError, KeyError) as error:
        raise UserError(f"the study's manifest has a claim that cannot be read ({error}); run the study again") from error


def _claim(value: Mapping[str, Any]) -> Claim:
    comparisons = tuple(
        Comparison(**{**comparison, "differences": tuple(Difference(**each) for each in comparison["differences"])})
        for comparison in value["comparisons"]
    )
    # Manifests from before arms have none.
    axes = {axis: value.get(axis, "all") for axis in ("starts", "sizes", "arms")}
    axes = {axis: given if isinstance(given, str) else tuple(given) for axis, given in axes.items()}
    return Claim(**{**value, "comparisons": comparisons, **axes})
