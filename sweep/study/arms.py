"""Arms of a study as values: the ways to train its cells. Pure.

    Arm()                                      # as the study itself says
    Arm(training="joint")                      # a cell on its starting set and its own together
    Arm(head="lm", head_frozen_share=0.25)     # the language model's rows, frozen for a quarter of the steps
    Arm(rate_factor=0.5)                       # at half the learning rate

Kinds of training set are compared within an arm, and arms at the same kind, starting point, size and seed.
"""

import math
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.finetune.recipe import check_one_of
from pipelines.finetune.task_model import HEADS

TRAININGS = ("two_steps", "joint")
PLAIN = "plain"
"""The name of the arm that is as the study itself says."""
FROZEN, RATE = "frozen", "rate"


@dataclass(frozen=True)
class Arm:
    """What one arm has that the study itself has otherwise; None leaves it as the study says.

    `training` and `head` are those of `Experiment`. `head_frozen_share` is that of both recipes, of starting points and of
    cells: the share of the steps (0 to 1) for which the head stays as it starts. Both their learning rates are multiplied by
    `rate_factor`. Raises UserError for what is none of these.
    """

    training: str | None = None
    head: str | None = None
    head_frozen_share: float | None = None
    rate_factor: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.training is not None:
            check_one_of("training", self.training, TRAININGS)
        if self.head is not None:
            check_one_of("head", self.head, HEADS)
        for name in ("head_frozen_share", "rate_factor"):
            # 0 and 0.0 are one arm, and its recipe one fingerprint.
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        share, factor = self.head_frozen_share, self.rate_factor
        if share is not None and not (math.isfinite(share) and 0 <= share <= 1):
            raise UserError(f"head_frozen_share={share}: it is a share of the steps; give 0 to 1")
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise UserError(f"rate_factor={factor}: learning rates are multiplied by it; give a number above 0")

    @property
    def name(self) -> str:
        """What tables, slugs and claims call it: what it says, as in `joint+lm+frozen0.25`; `plain` if it says nothing."""
        return "+".join(filter(None, (self.training, self.head, *self.of_recipe))) or PLAIN

    @property
    def of_recipe(self) -> tuple[str, ...]:
        """What its name says of recipes: the share for which a head is frozen, and the factor of learning rates."""
        said = ((FROZEN, self.head_frozen_share), (RATE, self.rate_factor))
        return tuple(f"{word}{repr(value).removesuffix('.0')}" for word, value in said if value is not None)


def find_arm(arm: Arm | str) -> Arm:
    """The arm of a name: parts joined by +, each a training, a head, `frozen` and a share, or `rate` and a factor; `plain` for
    none.

    Raises UserError for a name that no arm has.
    """
    if isinstance(arm, Arm):
        return arm
    if not isinstance(arm, str):
        raise UserError(f"{arm!r} is no arm; give Arm(…) or a name such as 'joint' or 'lm+frozen0.25'")
    said: dict[str, str | float] = {}
    for part in arm.split("+") if arm != PLAIN else ():
        field, value = _parse(part, arm)
        if field in said:
            raise UserError(f"arm {arm!r} says twice what its {field} is; say it once")
        said[field] = value
    return Arm(**said)  # type: ignore[arg-type]


def arm_name(arm: Arm | str) -> str:
    """The name of an arm, as coordinates and claims have it."""
    return find_arm(arm).name


def _parse(part: str, arm: str) -> tuple[str, str | float]:
    if part in TRAININGS:
        return "training", part
    if part in HEADS:
        return "head", part
    for word, field in ((FROZEN, "head_frozen_share"), (RATE, "rate_factor")):
        if part.startswith(word):
            try:
                return field, float(part.removeprefix(word))
            except ValueError:
                pass
    valid = ", ".join((PLAIN, *TRAININGS, *HEADS))
    raise UserError(f"arm {arm!r}: {part!r} is none of {valid}, or {FROZEN}0.25, {RATE}0.5 and the like, joined by +")
