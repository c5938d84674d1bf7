"""Weights that give each heuristic the odds ratio asked for, at the least change of a labelled set. Pure numpy.

    weights = target_weights(label, holds, predicted=0, odds_ratios=[4.0, 2.0])
    keep = resample(weights, seed=0)

A heuristic's odds ratio is the odds of the label that it predicts where it holds, over those odds where it does not. Like the
audit, this adds a half to each of the four counts (Gart 1966); ``half`` says how much. That matters in small sets only.

Rows of one label of which the same heuristics hold are alike: a *cell*. Of all weights of the cells that give labels their
shares, and heuristics their odds ratios and the shares of rows of which they hold, the ones with the least Kullback-Leibler
divergence from the set as it is are chosen (Csiszár 1975; what iterative proportional fitting converges to). Where there are
none, because the rows of one heuristic are among another's, say, the heuristics' shares are let go and move as little as the
divergence wants. Where the targets exclude each other even then, the sum of the squared logarithms of reached over target is
least. Labels keep their shares in each case.

The logarithm of such a weight is a sum: a term of the label, and for each heuristic that holds one of two, by whether the label
is the predicted one. So two numbers a heuristic are searched for, however many rows there are.

No weight makes a row that is not there. A heuristic that holds of no row or of all, or that has one of its four counts empty,
keeps out of this: it is named with its reason, and no row has another weight because of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np

from pipelines.errors import UserError
from pipelines.splitmix import GOLDEN, mixed

HALF = 0.5
CLOSE = 1e-5
"""Of the logarithm of an odds ratio: what is closer to its target has reached it."""
HOPELESS = 0.1
"""What is farther off where a squared logarithm costs 1e5 will not be reached."""
STIFFNESS = (1e1, 1e3, 1e5, 1e8)
"""What a squared logarithm costs beside the divergence, in the order of the search: each goes on from the one before."""
STEPS = 60
LONGEST_STEP = 3.0


@dataclass(frozen=True)
class Weights:
    """A weight a row, and what they do to each heuristic, in the order that heuristics were given in."""

    values: np.ndarray
    """float64 [num_rows], 0 or more, with mean 1."""
    labels: np.ndarray
    """int64 [num_rows]: the labels' codes."""
    cells: np.ndarray
    """int64 [num_rows], from 0: rows of one cell have one label, one set of heuristics that hold, and one weight."""
    before: np.ndarray
    """float64 [num_heuristics]: odds ratios of the set as it is."""
    targets: np.ndarray
    """float64 [num_heuristics]: odds ratios asked for."""
    after: np.ndarray
    """float64 [num_heuristics]: odds ratios of the weighted set."""
    unreached: Mapping[int, str]
    """Heuristic → why its odds ratio is not the target."""
    shares_kept: bool
    """Whether each heuristic holds of the share of rows that it held of before."""

    @property
    def effective_size(self) -> float:
        """Kish's: as many rows of equal weight have a mean of the same variance, (Σw)² / Σw²."""
        return float(self.values.sum() ** 2 / (self.values**2).sum())

    @property
    def largest(self) -> float:
        """The largest weight, of a mean of 1."""
        return float(self.values.max())


def odds_ratios(
    label: np.ndarray,
    holds: np.ndarray,
    predicted: int | Sequence[int] | np.ndarray,
    weights: np.ndarray | None = None,
    half: float = HALF,
) -> np.ndarray:
    """Each heuristic's odds ratio, float64 [num_heuristics], from codes int [num_rows] and booleans [num_rows, num_heuristics].

    ``predicted`` is the code of the label that all heuristics predict, or one each. It is 0/0, a nan, where one of the four
    counts is 0 and ``half`` is, too.
    """
    label, holds, predicted = _checked(label, holds, predicted)
    tables = _tables(label, holds, predicted, np.ones(len(label)) if weights is None else weights) + half
    with np.errstate(divide="ignore", invalid="ignore"):
        return tables[0] * tables[3] / (tables[1] * tables[2])


def target_weights(
    label: np.ndarray,
    holds: np.ndarray,
    predicted: int | Sequence[int] | np.ndarray,
    odds_ratios: Sequence[float] | np.ndarray,
    *,
    label_shares: Sequence[float] | np.ndarray | None = None,
    half: float = HALF,
) -> Weights:
    """Weights with which each heuristic has its target of ``odds_ratios``, or the nearest that there is.

    ``label`` are codes from 0, int [num_rows]; ``holds`` booleans [num_rows, num_heuristics]; ``predicted`` the code of the
    label that all heuristics predict, or one each. ``label_shares``, by code, take the place of the labels' own. ``half`` is
    added to each count.

    Raises :class:`UserError` for a target that is no number above 0, and ValueError for arrays of other shapes, no rows, and a
    share of a label that has no rows.
    """
    cells = _Cells.of(label, holds, predicted, odds_ratios, label_shares, half, None)
    search = cells.search(np.inf)
    masses = search.masses_of(search.run(keep_shares=True, give_up=True))
    if search.is_reached(masses, keep_shares=True):
        return cells.weights(masses, True)
    return cells.weights(search.masses_of(search.run(keep_shares=False)), False)


def sparing_weights(
    label: np.ndarray,
    holds: np.ndarray,
    predicted: int | Sequence[int] | np.ndarray,
    odds_ratios: Sequence[float] | np.ndarray,
    *,
    label_shares: Sequence[float] | np.ndarray | None = None,
    half: float = HALF,
    size: int | None = None,
) -> Weights:
    """As :func:`target_weights`, with the smallest largest weight that there is, within 3%: for :func:`resample`.

    What is resampled pays in rows, as many as the largest weight is above the mean. So heuristics' shares are let go. ``half``
    is of a set of ``size`` rows, by default as many as there are: give the size that is left where rows are dropped.
    """
    cells = _Cells.of(label, holds, predicted, odds_ratios, label_shares, half, size)
    search = cells.search(np.inf)
    numbers = search.run(keep_shares=False)
    best = search.masses_of(numbers)
    low, high = 1.0, float((best / cells.masses).max())
    if not search.is_reached(best, keep_shares=False):
        return cells.weights(best, False)
    while high / low > 1.03:
        bound = math.sqrt(low * high)
        search = cells.search(bound)
        found = search.run(keep_shares=False, start=numbers, give_up=True)
        masses = search.masses_of(found)
        if search.is_reached(masses, keep_shares=False):
            numbers, best, high = found, masses, float((masses / cells.masses).max())
        else:
            low = bound
    return cells.weights(best, False)


def resample(weights: Weights, seed: int) -> np.ndarray:
    """Rows kept, booleans [num_rows]: of each cell the share that its weight is of the largest, in whole rows.

    Numbers are rounded by the largest remainder: over labels, then over the cells of each. Which rows of a cell are kept
    depends on ``seed`` and the rows' places, and on nothing else.
    """
    cells, values = weights.cells, weights.values
    counts = np.bincount(cells)
    first = np.zeros(len(counts), np.int64)
    first[cells[::-1]] = np.arange(len(cells))[::-1]
    cell_label = weights.labels[first]
    wanted = counts * (values[first] / weights.largest)
    by_label = np.bincount(cell_label, wanted)
    totals = _largest_remainder(by_label, round(wanted.sum()))
    numbers = np.zeros(len(counts), np.int64)
    for label, total in enumerate(totals):
        own = cell_label == label
        numbers[own] = _largest_remainder(wanted[own], total)
    order = np.lexsort((_hashes(len(cells), seed), cells))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    keep = np.zeros(len(cells), bool)
    keep[order] = np.arange(len(cells)) - starts[cells[order]] < numbers[cells[order]]
    return keep


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """``total`` in whole numbers, int64, in proportion to ``shares`` of 0 or more, by Webster's method.

    A larger total gives none less, which rounding does not promise: smaller sets lie within larger ones.
    """
    numbers = np.zeros(len(shares), np.int64)
    queue = [(-share / 0.5, index) for index, share in enumerate(shares.tolist()) if share]
    heapify(queue)
    for _ in range(total):
        index = queue[0][1]
        numbers[index] += 1
        heapreplace(queue, (-float(shares[index]) / (numbers[index] + 0.5), index))
    return numbers


def _largest_remainder(wanted: np.ndarray, total: int) -> np.ndarray:
    numbers = np.floor(wanted + 1e-9).astype(np.int64)
    rest = wanted - numbers
    numbers[np.argsort(-rest, kind="stable")[: max(0, total - int(numbers.sum()))]] += 1
    return numbers


def _hashes(num: int, seed: int) -> np.ndarray:
    """A hash of each place and the seed, uint64 [num]."""
    places = np.arange(1, num + 1, dtype=np.uint64) * GOLDEN
    return mixed(mixed(places + mixed(np.array([seed % 2**64], np.uint64))))


def _checked(
    label: np.ndarray, holds: np.ndarray, predicted: int | Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, holds = np.asarray(label), np.asarray(holds, dtype=bool)
    if holds.ndim != 2 or label.shape != holds.shape[:1]:
        raise ValueError(f"labels of shape {label.shape} and heuristics of {holds.shape}; give [n] and [n, num_heuristics]")
    return label.astype(np.int64), holds, np.broadcast_to(np.asarray(predicted, np.int64), holds.shape[1:])


def _parts(label: np.ndarray, holds: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Which of a heuristic's four counts each row or cell is in, booleans [4, num, num_heuristics].

    They are: it holds and the label is the predicted one; it holds of another; it does not hold, of the two.
    """
    right = label[:, None] == predicted
    return np.stack([holds & right, holds & ~right, ~holds & right, ~holds & ~right])


def _tables(label: np.ndarray, holds: np.ndarray, predicted: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """The four counts of each heuristic, float64 [4, num_heuristics]."""
    right = label[:, None] == predicted
    which = 2 * ~holds + ~right
    columns = [np.bincount(which[:, index], masses, minlength=4) for index in range(holds.shape[1])]
    return np.stack(columns, axis=1) if columns else np.zeros((4, 0))


def _ratios(label: np.ndarray, holds: np.ndarray, predicted: np.ndarray, masses: np.ndarray, added: float) -> np.ndarray:
    tables = _tables(label, holds, predicted, masses) + added
    return tables[0] * tables[3] / (tables[1] * tables[2])


@dataclass(frozen=True)
class _Cells:
    """The cells of a set, and what is asked of their weights. Heuristics that nothing can be asked of are ``unreached``."""

    labels: np.ndarray
    """int64 [num_rows]."""
    of_rows: np.ndarray
    """int64 [num_rows]: each row's cell."""
    label: np.ndarray
    holds: np.ndarray
    predicted: np.ndarray
    own_masses: np.ndarray
    """float64 [num_cells]: shares of the rows."""
    masses: np.ndarray
    """The same with the shares of labels that are asked for."""
    targets: np.ndarray
    halves: tuple[float, float]
    """What is added to each count, as a share of the set as it is and of the weighted one."""
    unreached: Mapping[int, str]

    @classmethod
    def of(
        cls,
        label: np.ndarray,
        holds: np.ndarray,
        predicted: int | Sequence[int] | np.ndarray,
        odds_ratios: Sequence[float] | np.ndarray,
        label_shares: Sequence[float] | np.ndarray | None,
        half: float,
        size: int | None,
    ) -> "_Cells":
        label, holds, predicted = _checked(label, holds, predicted)
        num = holds.shape[1]
        targets = np.asarray(odds_ratios, dtype=np.float64)
        if targets.shape != (num,):
            raise ValueError(f"{targets.shape} targets for {num} heuristics; give one each")
        if strange := [float(target) for target in targets if not (np.isfinite(target) and target > 0)]:
            raise UserError(f"odds ratio {strange[0]:g} is no target: give a number above 0, such as 1 for no association")
        if not len(label):
            raise ValueError("no rows; there is nothing to weight")
        code = label << num
        for index in range(num):
            code |= holds[:, index].astype(np.int64) << index
        codes, of_rows, counts = np.unique(code, return_inverse=True, return_counts=True)
        cell_label, cell_holds = codes >> num, (codes[:, None] >> np.arange(num) & 1).astype(bool)
        of_label = np.bincount(label)
        own_masses = masses = counts / len(label)
        if label_shares is not None:
            shares = np.asarray(label_shares, dtype=np.float64)
            if len(shares) != len(of_label) or not of_label.all() or not (shares > 0).all():
                raise ValueError(
                    f"shares {shares.tolist()} of labels with {of_label.tolist()} rows; give each that has rows one"
                )
            masses = (shares / shares.sum())[cell_label] * counts / of_label[cell_label]
        unreached = _impossible(cell_label, cell_holds, predicted, masses)
        halves = (half / len(label), half / (len(label) if size is None else size))
        return cls(label, of_rows, cell_label, cell_holds, predicted, own_masses, masses, targets, halves, unreached)

    def search(self, bound: float) -> "_Search":
        """For masses that are at most ``bound`` times the old ones."""
        rest = [index for index in range(len(self.targets)) if index not in self.unreached]
        holds, predicted, logs = self.holds[:, rest], self.predicted[rest], np.log(self.targets[rest])
        return _Search(self.label, holds, predicted, self.masses, logs, self.halves[1], bound)

    def weights(self, masses: np.ndarray, shares_kept: bool) -> Weights:
        unreached = dict(self.unreached)
        with np.errstate(divide="ignore", invalid="ignore"):
            before, after = (
                _ratios(self.label, self.holds, self.predicted, those, half)
                for those, half in zip((self.own_masses, masses), self.halves, strict=True)
            )
            away = np.abs(np.log(after / self.targets))
        for index in range(len(self.targets)):
            if index not in unreached and not away[index] < CLOSE:
                unreached[index] = f"beside the other heuristics' targets {after[index]:.3g} is the nearest"
        values = (masses / self.own_masses)[self.of_rows]
        return Weights(
            values, self.labels, self.of_rows, before, self.targets, after, dict(sorted(unreached.items())), shares_kept
        )


def _impossible(label: np.ndarray, holds: np.ndarray, predicted: np.ndarray, masses: np.ndarray) -> dict[int, str]:
    """Heuristic → why no weights of the rows that there are can change its odds ratio."""
    reasons = {}
    for index, table in enumerate((_tables(label, holds, predicted, masses) > 0).T):
        held_right, held_wrong, right, wrong = table.tolist()
        if not (held_right or held_wrong) or not (right or wrong):
            reasons[index] = f"it holds of {'every row' if held_right or held_wrong else 'no row'}"
        elif not (held_right or right) or not (held_wrong or wrong):
            reasons[index] = f"{'every' if held_right or right else 'no'} row has the label that it predicts"
        elif not table.all():
            where = "it holds" if not (held_right and held_wrong) else "it does not hold"
            which = "the label that it predicts" if not (held_right and right) else "another label than it predicts"
            reasons[index] = f"no row where {where} has {which}"
    return reasons


class _Search:
    """The weights of cells, as masses that add up to 1, by penalised Newton steps over two numbers a heuristic."""

    def __init__(
        self,
        label: np.ndarray,
        holds: np.ndarray,
        predicted: np.ndarray,
        masses: np.ndarray,
        logs: np.ndarray,
        added: float,
        bound: float,
    ) -> None:
        self.parts = _parts(label, holds, predicted).astype(float)
        self.features = np.concatenate(self.parts[:2], axis=1)
        self.label, self.masses, self.logs, self.added, self.bound = label, masses, logs, added, bound
        self.of_label = (label[:, None] == np.unique(label)).astype(float)
        self.place = self.of_label.argmax(1)
        self.shares = self.of_label.T @ masses
        self.held = masses @ holds

    def run(self, keep_shares: bool, *, start: np.ndarray | None = None, give_up: bool = False) -> np.ndarray:
        """The two numbers of each heuristic, float64 [2 * num_heuristics], from a search nearby on, or from none.

        With ``give_up`` they are not those of the nearest masses, where the targets are far off.
        """
        numbers = np.zeros(self.features.shape[1]) if start is None else start
        for stiffness in (STIFFNESS if start is None else STIFFNESS[-2:]) if len(numbers) else ():
            numbers = self._descend(numbers, stiffness, keep_shares)
            masses = self.masses_of(numbers)
            if give_up and stiffness > 1e4 and np.abs(self._residuals(masses, masses, keep_shares)[0]).max() > HOPELESS:
                break
        return numbers

    def masses_of(self, numbers: np.ndarray) -> np.ndarray:
        """The masses of cells, float64 [num_cells]."""
        return self._masses(numbers)[0]

    def is_reached(self, masses: np.ndarray, keep_shares: bool) -> bool:
        residuals, _ = self._residuals(masses, masses, keep_shares)
        return bool((np.abs(residuals) < CLOSE).all())

    def _masses(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The masses, and the logarithms (with a bound, the logits) of what they are multiples of the old ones by."""
        logs = self.features @ numbers
        highest = np.max(np.where(self.of_label > 0, logs[:, None], -np.inf), axis=0)
        if np.isinf(self.bound):
            terms = -highest - np.log(self.of_label.T @ (self.masses * np.exp(logs - highest[self.place])))
            terms += np.log(np.where(self.shares > 0, self.shares, 1))
            logs = logs + terms[self.place]
            return self.masses * np.exp(logs), logs
        # The label's term has no closed form: between the two that make its highest and its lowest cell a 1.
        low, high = -highest, -np.min(np.where(self.of_label > 0, logs[:, None], np.inf), axis=0)
        terms = (low + high) / 2
        for _ in range(100):
            masses = self.masses * self._multiples(logs + terms[self.place])
            over = self.of_label.T @ masses - self.shares
            if np.abs(over).max() < 1e-13:
                break
            low, high = np.where(over < 0, terms, low), np.where(over > 0, terms, high)
            slope = self.of_label.T @ (masses * (1 - masses / (self.masses * self.bound)))
            newton = terms - over / np.where(slope > 0, slope, 1)
            terms = np.where((newton > low) & (newton < high) & (slope > 0), newton, (low + high) / 2)
        logs = logs + terms[self.place]
        return self.masses * self._multiples(logs), logs

    def _multiples(self, logs: np.ndarray) -> np.ndarray:
        """Between 0 and the bound, 1 for a 0 (the logit method of Deville and Särndal 1992)."""
        return self.bound / (1 + (self.bound - 1) * np.exp(np.clip(-logs, -700, 700)))

    def _slopes(self, masses: np.ndarray) -> np.ndarray:
        """The derivatives of the masses by their logarithms or logits."""
        return masses * (1 - masses / (self.masses * self.bound))

    def _residuals(self, masses: np.ndarray, slopes: np.ndarray, keep_shares: bool) -> tuple[np.ndarray, np.ndarray]:
        """What is to be 0, [num], and its derivatives by what ``slopes`` is the masses' derivative by, [num_cells, num]."""
        tables = np.einsum("i,kih->kh", masses, self.parts) + self.added
        signs = np.array([1, -1, -1, 1])[:, None]
        away = (signs * np.log(tables)).sum(0) - self.logs
        by = slopes[:, None] * np.einsum("kh,kih->ih", signs / tables, self.parts)
        if not keep_shares:
            return away, by
        # Of the logarithm, so that a rare heuristic's share is kept as closely as a frequent one's.
        holds = self.parts[0] + self.parts[1]
        held = masses @ holds
        return np.append(away, np.log(held / self.held)), np.append(by, slopes[:, None] * holds / held, axis=1)

    def _cost(self, numbers: np.ndarray, stiffness: float, keep_shares: bool) -> float:
        masses, _ = self._masses(numbers)
        multiples = masses / self.masses
        with np.errstate(divide="ignore", invalid="ignore"):
            divergence = np.where(multiples > 0, multiples * np.log(multiples), 0)
            if np.isfinite(self.bound):
                rest = self.bound - multiples
                divergence += np.where(rest > 0, rest * np.log(rest / (self.bound - 1)), 0)
            residuals, _ = self._residuals(masses, masses, keep_shares)
            cost = float(self.masses @ divergence) + stiffness / 2 * float(residuals @ residuals)
        return cost if np.isfinite(cost) else np.inf

    def _descend(self, numbers: np.ndarray, stiffness: float, keep_shares: bool) -> np.ndarray:
        cost = self._cost(numbers, stiffness, keep_shares)
        for _ in range(STEPS):
            masses, logs = self._masses(numbers)
            slopes = self._slopes(masses)
            residuals, by = self._residuals(masses, slopes, keep_shares)
            # Masses of a label add up to its share: what counts of a feature is how it differs from the label's mean.
            totals = self.of_label.T @ slopes
            means = (self.of_label.T @ (slopes[:, None] * self.features)) / np.where(totals > 0, totals, 1)[:, None]
            centred = self.features - means[self.place]
            jacobian = by.T @ centred
            gradient = centred.T @ (slopes * logs) + stiffness * jacobian.T @ residuals
            curvature = centred.T @ (slopes[:, None] * centred) + stiffness * jacobian.T @ jacobian
            curvature += 1e-12 * (1 + np.trace(curvature)) * np.eye(len(numbers))
            step = -np.linalg.lstsq(curvature, gradient, rcond=None)[0]
            if -float(gradient @ step) < 1e-15 * max(1.0, stiffness * 1e-6):
                break
            step *= min(1.0, LONGEST_STEP / np.abs(step).max())
            decrease = -float(gradient @ step)
            length = 1.0
            while (trial := self._cost(numbers + length * step, stiffness, keep_shares)) > cost - 1e-4 * length * decrease:
                length /= 2
                if length < 1e-5:
                    return numbers
            numbers, cost = numbers + length * step, trial
        return numbers
