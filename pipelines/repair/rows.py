"""Repairing a labelled set by what an audit found: leaks, noisy labels, copies, heuristics' odds ratios. Pure numpy.

    findings = Findings(leaks=[4, 9], noisy=[7], suggested=[2], copies=[(3, 1), (5, 1)])
    repaired = repair(label, findings, Repair(noisy="relabel", seed=0), holds, predicted=0, odds_ratios=[4.0])
    kept = table.filter(repaired.keep)

What is asked for is applied in this order, and each row is counted under the first reason that took it:

1. ``leaks`` are dropped;
2. ``noisy`` labels are dropped, or get the suggested label;
3. ``copies``: of rows that are copies of each other the first that is left is kept;
4. ``heuristics``: what is left is weighted or resampled so that each heuristic has the odds ratio asked for
   (:mod:`pipelines.repair.weights`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.errors import UserError
from pipelines.repair.weights import Weights, odds_ratios, resample, sparing_weights, target_weights

CHOICES: Mapping[str, tuple[str, ...]] = {
    "leaks": ("drop", "keep"),
    "noisy": ("drop", "relabel", "keep"),
    "copies": ("drop", "keep"),
    "heuristics": ("resample", "weight", "keep"),
}
"""What a repair can do about each kind of finding, in the order in which it does."""


@dataclass(frozen=True)
class Repair:
    """What is done about each kind of finding (`CHOICES`). Raises :class:`UserError` for anything else."""

    leaks: str = "drop"
    noisy: str = "drop"
    copies: str = "drop"
    heuristics: str = "resample"
    seed: int = 0
    """Of the choice of rows among equals, when resampling."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"repair of {name}={value!r} is none of {', '.join(choices)}; give one of these")


@dataclass(frozen=True)
class Findings:
    """Rows by number, from 0: what an audit found. A row may be in several."""

    leaks: Sequence[int] = ()
    """Rows that are also in a test set."""
    noisy: Sequence[int] = ()
    """Rows whose label is likely wrong."""
    suggested: Sequence[int] = ()
    """The label's code that each of ``noisy`` should have; only to relabel them."""
    copies: Sequence[tuple[int, int]] = ()
    """Pairs of rows that are copies of each other; a row may be in several."""


@dataclass(frozen=True)
class Cost:
    """What one reason took."""

    reason: str
    num_rows: int
    by_label: Mapping[int, int]
    """Label's code, as it was before, → rows; only those that lost some."""
    by_cell: Mapping[tuple[int, tuple[bool, ...]], int] = field(default_factory=dict)
    """Of resampling: label and whether each heuristic holds → rows."""


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

    def drop_copies(self, pairs: Sequence[tuple[int, int]] | np.ndarray, reason: str = "copies") -> "Repaired":
        """Without rows that are copies of an earlier one that is kept."""
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        _flags(pairs.ravel(), len(self.keep))
        pairs = np.sort(pairs[self.keep[pairs].all(1) & (pairs[:, 0] != pairs[:, 1])], axis=1)
        lost: set[int] = set()
        # By the later row of a pair: what happens to the earlier one is decided by then.
        for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
            if earlier not in lost:
                lost.add(later)
        return self.drop(sorted(lost), reason)

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
        lost = np.zeros(len(self.keep), bool)
        lost[rows[~kept]] = True
        patterns = np.concatenate([self.labels[lost, None], np.asarray(holds)[lost]], axis=1).astype(np.int64)
        cells, numbers = np.unique(patterns, axis=0, return_counts=True)
        by_cell = {
            (cell[0], tuple(map(bool, cell[1:]))): num for cell, num in zip(cells.tolist(), numbers.tolist(), strict=True)
        }
        dropped = self.drop(np.flatnonzero(lost), reason)
        costs = (*self.costs, replace(dropped.costs[-1], by_cell=by_cell))
        return replace(dropped, costs=costs, reweighted=reweighted)

    def odds_ratios(self, holds: np.ndarray, predicted: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """Each heuristic's odds ratio, float64 [num_heuristics], as an audit of the repaired set says."""
        return odds_ratios(self.labels[self.keep], np.asarray(holds)[self.keep], predicted, self.weights[self.keep])


def repair(
    label: np.ndarray,
    findings: Findings,
    how: Repair,
    holds: np.ndarray | None = None,
    predicted: int | Sequence[int] | np.ndarray = 0,
    odds_ratios: Sequence[float] | np.ndarray = (),
) -> Repaired:
    """The set with codes ``label``, int [num_rows], repaired as ``how`` says.

    ``holds``, booleans [num_rows, num_heuristics], says of which rows each heuristic holds, ``predicted`` the code of the label
    that all of them predict, or one each, and ``odds_ratios`` the targets, the reference's. Without any, heuristics are left as
    they are. Raises :class:`UserError` for a row that is not there, for noisy rows that have no suggested label to get, and if
    no row is left to weight.
    """
    repaired = Repaired.of(label)
    if how.leaks == "drop":
        repaired = repaired.drop(findings.leaks, "leaks")
    if how.noisy == "drop":
        repaired = repaired.drop(findings.noisy, "noisy labels")
    elif how.noisy == "relabel":
        repaired = repaired.relabel(findings.noisy, findings.suggested)
    if how.copies == "drop":
        repaired = repaired.drop_copies(findings.copies)
    if holds is not None and how.heuristics != "keep" and np.shape(holds)[1]:
        repaired = repaired.reweigh(holds, predicted, odds_ratios, how=how.heuristics, seed=how.seed)
    return repaired


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
