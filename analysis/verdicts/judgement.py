"""What is found about a study's claims: a judgement on each, and the positive controls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

ONE_GENERATOR = "One generator: this holds for its data; another generator's may differ by more than the interval says."


class Outcome(StrEnum):
    SUPPORTED = "supported"
    REFUTED = "refuted"
    EQUIVALENT = "equivalent"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Judgement:
    """The results' verdict on one claim.

    `estimate`, `low`, `high` (95%, not adjusted for the family) are of the headline part, averaged over settings, in `unit`:
    "share" is a difference of accuracies (0.01 is one point), "ratio" a ratio, "number" the measure's own. NaN where there is
    none. Of `num_settings` settings `num_signed` have the estimate's sign, and in `num_clear` the interval lies on that side.
    `p` is what the verdict rests on, two-sided where a sign is claimed; `p_adjusted` is over the family of `num_claims`: Holm's
    for primary claims, Benjamini and Hochberg's for the rest. `p_sign_flip` is that of the headline, for comparison.
    `smallest_margin` is the smallest at which the headline part would be equivalent in all settings. `rests_on` is "seeds" or
    "generators", `num_units` their number. `settings` are what it rests on; `is_control` marks a positive control.
    """

    name: str
    statement: str
    paper: str
    primary: bool = True
    verdict: Outcome = Outcome.CANNOT_TELL
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = "share"
    measure: str = "accuracy"
    num_settings: int = 0
    num_signed: int = 0
    num_clear: int = 0
    num_units: int = 0
    rests_on: str = "seeds"
    num_items: int = 0
    test: str = "none"
    p: float = math.nan
    p_adjusted: float = math.nan
    p_sign_flip: float = math.nan
    num_claims: int = 0
    margin: float = 0.01
    smallest_margin: float = math.nan
    settling_low: int | None = None
    settling_high: int | None = None
    settling_cost: float | None = None
    settings: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    is_control: bool = False


@dataclass(frozen=True)
class Verdicts:
    """The judgements on a study's claims, in their order, and its positive controls."""

    judgements: tuple[Judgement, ...]
    controls: tuple[Control, ...] = ()

    def __getitem__(self, name: str) -> Judgement:
        """The judgement on the claim of that name. Raises KeyError for a name that no claim has."""
        return {judgement.name: judgement for judgement in self.judgements}[name]


@dataclass(frozen=True)
class Control:
    """Whether the study's positive control shows in a measure, and the sentence that says so; `why_not` it could not be had.

    Where it is not seen, `is_outdone` says that a claim about a difference on the blindspot is supported by the measure all the
    same: plain synthetic data may lie as low as data that was biased on purpose.
    """

    measure: str
    is_seen: bool
    sentence: str
    why_not: str = ""
    is_outdone: bool = False


def headline_rows(judgement: Judgement) -> list[Mapping[str, Any]]:
    """The headline part of each setting that could be had: a row of `Judgement.settings` each."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in judgement.settings:
        if "part" in row:
            found.setdefault(row["setting"], row)
    return list(found.values())


def judgement_table(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """One row per claim, the columns of `Judgement` without settings; notes are joined. Settling seeds are Int64 with NA."""
    columns = [field.name for field in dataclasses.fields(Judgement) if field.name != "settings"]
    rows = [
        {name: "; ".join(judgement.notes) if name == "notes" else getattr(judgement, name) for name in columns}
        for judgement in judgements
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["verdict"] = table["verdict"].map(str)
    return table.astype({"settling_low": "Int64", "settling_high": "Int64", "settling_cost": "float64"})
