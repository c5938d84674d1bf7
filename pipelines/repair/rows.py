"""A labelled set's rows dropped, relabelled, weighted or resampled, and what each step took. Pure numpy.

    repaired = Repaired.of(label).drop(leaks, "leaks").relabel(noisy, suggested)
    repaired = repaired.reweigh(holds, 0, odds_ratios=[4.0], how="resample", seed=0)
    kept = table.filter(repaired.keep)

Each row is counted under the first reason that took it. `analysis.audit.repairing` has the steps in the order of `CHOICES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.repair.weights import Weights, odds_ratios, resample, sparing_weights, target_weights

CHOICES: Mapping[str, tuple[str, ...]] = {
    "leaks": ("drop", "keep"),
    "near_leaks": ("drop", "keep"),
    "originals": ("drop", "keep"),
    "noisy": ("drop", "relabel", "keep"),
    "copies": ("drop", "keep"),
    "near_copies": ("drop", "keep"),
    "heuristics": ("resample", "weight", "keep"),
}
"""What a repair can do about each kind of finding, in the order in which it does."""


@dataclass(frozen=True)
class Repair:
    """What is done about each kind of finding (`CHOICES`). Raises :class:`UserError` for anything else."""

    leaks: str = "drop"
    near_leaks: str = "drop"
    originals: str = "drop"
    noisy: str = "drop"
    copies: str = "drop"
    near_copies: str = "drop"
    heuristics: str = "resample"
    seed: int = 0
    """Of the choice of rows among equals, when resampling."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"repair of {name}={value!r} is none of {', '.join(choices)}; give one of these")


@dataclass(frozen=True)
class Cost:
    """What one reason took."""

    reason: str
    num_rows: int
    by_label: Mapping[int, int]
    """Label's code, as it was before, → rows; only those that lost some."""


@dataclass(frozen=True)
class Repaired:
    """A repaired set: ``keep`` of its rows, with ``labels`` and ``weights``, and what it cost."""

    original: np.ndarray
    """int64 [num_rows]: the labels as they were."""
    keep: np.ndarray
    """bool [num_rows]."""
    labels: np.ndarray
    """int64 [num_rows]."""
    weights: np.ndarray
    """float64 [num_rows]: 1 on average of the rows that are kept, and 0 of the others."""
    costs: tuple[Cost, ...] = ()
    """Rows lost, in the order of application: with those that are kept they add up to all rows."""
    reweighted: Weights | None = None
    """Of the rows that were there before heuristics' turn; None where these are left as they are. Resampling goes by them."""

    @classmethod
    def of(cls, label: np.ndarray) -> "Repaired":
        """The set as it is, from codes int [num_rows]."""
        label = np.asarray(label).astype(np.int64)
        return cls(label, np.ones(len(label), bool), label, np.ones(len(label)))

    @property
    def num_kept(self) -> int:
        return int(self.keep.sum())

    @property
    def num_relabelled(self) -> int:
        """Rows kept with another label."""
        return int((self.keep & (self.labels != self.original)).sum())

    @property
    def effective_size(self) -> float:
        """As many rows of equal weight say as much: (Σw)² / Σw² (Kish 1965); 0 of nothing."""
        return float(self.weights.sum() ** 2 / max((self.weights**2).sum(), 1e-300))

    def drop(self, rows: Sequence[int] | np.ndarray, reason: str) -> "Repaired":
        """Without ``rows``, those of which that are still there being counted under ``reason``."""
        lost = _flags(rows, len(self.keep)) & self.keep
        keep = self.keep & ~lost
        return replace(
            self, keep=keep, weights=np.where(keep, self.weights, 0.0), costs=(*self.costs, _cost(reason, self.original, lost))
        )

    def relabel(self, rows: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> "Repaired":
        """With ``labels`` in place of those of ``rows``, of the rows that are still there."""
        if len(rows) != len(labels):
            raise UserError(f"{len(labels)} suggested labels for {len(rows):,} noisy rows; give one each, or drop these rows")
        _flags(rows, len(self.keep))
        new = self.labels.copy()
        new[np.asarray(rows, dtype=np.int64)] = labels
        new[~self.keep] = self.labels[~self.keep]
        return replace(self, labels=new)

    def reweigh(
        self,
        holds: np.ndarray,
        predicted: int | Sequence[int] | np.ndarray,
        odds_ratios: Sequence[float] | np.ndarray,
        *,
        how: str,
        seed: int,
        reason: str = "resampled",
    ) -> "Repaired":
        """With weights, or with fewer rows, so that each heuristic has its target; the arrays are those of all rows."""
        rows = np.flatnonzero(self.keep)
        label, own = self.labels[rows], np.asarray(holds, bool)[rows]
        if not len(rows):
            raise UserError("no rows are left that could be weighted; keep some of what was found")
        if how == "weight":
            reweighted = target_weights(label, own, predicted, odds_ratios)
            weights = np.zeros(len(self.keep))
            weights[rows] = reweighted.values
            return replace(self, weights=weights, reweighted=reweighted)
        reweighted = sparing_weights(label, own, predicted, odds_ratios)
        kept = resample(reweighted, seed)
        # The halves weigh more in the smaller set that is left.
        reweighted = sparing_weights(label, own, predicted, odds_ratios, size=int(kept.sum()))
        kept = resample(reweighted, seed)
        return replace(self.drop(rows[~kept], reason), reweighted=reweighted)

    def odds_ratios(self, holds: np.ndarray, predicted: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """Each heuristic's odds ratio, float64 [num_heuristics], as an audit of the repaired set says."""
        return odds_ratios(self.labels[self.keep], np.asarray(holds)[self.keep], predicted, self.weights[self.keep])


def _flags(rows: Sequence[int] | np.ndarray, num_rows: int) -> np.ndarray:
    places = np.asarray(rows, dtype=np.int64)
    if strange := [row for row in places.tolist() if not 0 <= row < num_rows]:
        raise UserError(f"row {strange[0]} is none of the set's {num_rows:,}; rows are numbered from 0")
    flags = np.zeros(num_rows, bool)
    flags[places] = True
    return flags


def _cost(reason: str, labels: np.ndarray, lost: np.ndarray) -> Cost:
    codes, numbers = np.unique(labels[lost], return_counts=True)
    return Cost(reason, int(lost.sum()), dict(zip(codes.tolist(), numbers.tolist(), strict=True)))
