"""Arms of a study as values: the ways to train its cells. Pure.

    Arm()                                      # as the study itself says
    Arm(training="joint")                      # a cell on its starting set and its own together
    Arm(head="lm", head_frozen_share=0.25)     # the language model's rows, frozen for a quarter of the steps

Kinds of training set are compared within an arm, and arms at the same kind, starting point, size and seed.
"""

import math
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.finetune.recipe import check_one_of
from pipelines.finetune.task_model import HEADS

TRAININGS = ("two_steps", "joint")
PLAIN = "plain"
"""The name of the arm that is as the study itself says."""
FROZEN = "frozen"


@dataclass(frozen=True)
class Arm:
    """What one arm has that the study itself has otherwise; None leaves it as the study says.

    `training` and `head` are those of `Experiment`. `head_frozen_share` is that of both recipes, of starting points and of
    cells: the share of the steps (0 to 1) for which the head stays as it starts. Raises UserError for what is none of these.
    """

    training: str | None = None
    head: str | None = None
    head_frozen_share: float | None = None

    def __post_init__(self) -> None:
        if self.training is not None:
            check_one_of("training", self.training, TRAININGS)
        if self.head is not None:
            check_one_of("head", self.head, HEADS)
        share = self.head_frozen_share
        if share is None:
            return
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise UserError(f"head_frozen_share={share!r} is no number; give a share of the steps such as 0.25")
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise UserError(f"head_frozen_share={share}: it is a share of the steps; give 0 to 1")
        # 0 and 0.0 are one arm, and its recipe one fingerprint.
        object.__setattr__(self, "head_frozen_share", float(share))

    @property
    def name(self) -> str:
        """What tables, slugs and claims call it: what it says, as in `joint+lm+frozen0.25`; `plain` if it says nothing."""
        return "+".join(filter(None, (self.training, self.head, self.frozen))) or PLAIN

    @property
    def frozen(self) -> str:
        """What its name says of the share for which a head is frozen; "" if it says nothing."""
        return "" if self.head_frozen_share is None else f"{FROZEN}{repr(self.head_frozen_share).removesuffix('.0')}"


def find_arm(arm: Arm | str) -> Arm:
    """The arm of a name: parts joined by +, each a training, a head, or `frozen` and a share; `plain` for none.

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
    if part.startswith(FROZEN):
        try:
            return "head_frozen_share", float(part.removeprefix(FROZEN))
        except ValueError:
            pass
    valid = ", ".join((PLAIN, *TRAININGS, *HEADS))
    raise UserError(f"arm {arm!r}: {part!r} is none of {valid}, or {FROZEN}0.25 and the like, joined by +")
