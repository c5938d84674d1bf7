"""Rates of wrong labels in a pool, from a judge that is wrong at times itself. Pure: numpy.

Of the rows that the pool labels l, let p[i] be the share whose true label is i, so that 1 - p[l] of these labels are wrong.
The judge says j of a share

    q[j] = sum over i of p[i] C[i, j],    C[i, j] = P(the judge says j | the true label is i).

C is counted on gold rows, whose labels are known, and is **taken to be the same in the pool**: the judge is as often wrong of a
row with true label i there, whichever label the pool gives it. For two labels this is the correction of Rogan and Gladen
(1978). All of it is done in each cell on its own (a heuristic holds, or does not), since a judge with a blindspot errs more
there. A cell's estimate is the likeliest p among shares, by EM (Dempster, Laird and Rubin 1977): the inverse of C leads outside
of them where labels are nearly all right.

An interval holds the pool's sampling error and the gold rows': both samples are drawn anew by the Bayesian bootstrap over
clusters of rows (Rubin 1981; the hypotheses of a premise stay together), with Jeffreys' prior on what the judge says, so that
an error not seen in few gold rows is not taken to be impossible. Draws are solved by the inverse, and so are rates over several
cells: shares cut off at 0 would no longer average to the truth. An interval is cut off at 0 and 1 at its end, and where the
estimate was, it reaches as far above the estimate as the draws do above the inverse's.

Without gold rows C is unknown, and only a bound is left (`wrong_label_bounds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.stats.statistics import CONFIDENCE, Interval
from pipelines.errors import UserError

PRIOR = 0.5
"""Jeffreys' pseudo-count of each label that the judge may give."""
NUM_DRAWS = 1_000
MOST_STEPS, RESOLUTION = 5_000, 1e-7
"""EM ends when no share moves by more in a step."""
ERRORS_DIFFER = 1.5
"""A rate is also given for a judge that is wrong so many times as often in the pool as of gold rows, or as rarely."""
TAILS = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)


@dataclass(frozen=True)
class JudgedRows:
    """Rows with a label and the judge's, all int [n]: `labels` and `judged` are classes, `cells` what is told apart.

    Rows of one of `clusters` stand or fall together. A gold row's label is the true one.
    """

    labels: np.ndarray
    judged: np.ndarray
    cells: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class WrongLabels:
    """The share of wrong labels among a pool's rows of a `label` in a `cell` (None: of any), 0 to 1.

    `share_disagreed` is where the judge gives another label, before correction. `num_gold` counts the gold rows that the
    judge's errors are known from. In a cell that is not identified these are too few to tell the judge from one that guesses:
    its interval is all of 0 to 1, and counts as that in rates over several cells.

    `true_labels` are the likeliest shares of the labels that the rows truly have: with a `label`, the rate is 1 minus its own.
    `if_errors_differ` is the interval if the judge may be wrong up to `ERRORS_DIFFER` times as often in the pool as of gold
    rows, or as rarely.
    """

    label: int | None
    cell: int | None
    rate: float
    interval: Interval
    share_disagreed: float
    num_rows: int
    num_gold: int
    is_identified: bool
    true_labels: tuple[float, ...]
    if_errors_differ: Interval


@dataclass(frozen=True)
class WrongLabelsAtMost:
    """What bounds the share of wrong labels among rows of a `label` in a `cell` (None: of any) without gold rows, 0 to 1.

    `bound` is the largest share that what the judge says allows, and `high` the end of its one-sided interval. A cell that is
    not identified, where the judge does not tell the labels apart, has a bound of 1.
    """

    label: int | None
    cell: int | None
    bound: float
    high: float
    share_disagreed: float
    num_rows: int
    is_identified: bool


def wrong_label_rates(
    pool: JudgedRows, gold: JudgedRows, names: Sequence[str], num_cells: int, *, seed: int, num_draws: int = NUM_DRAWS
) -> list[WrongLabels]:
    """The rate of wrong labels for each label and cell that the pool has rows of, for each label, and in all, in this order.

    `names` are those of the labels, for messages; cells are 0 to `num_cells` - 1. Rates over several cells are not cut off cell
    by cell, so that they need not be the mean of the cells'. Raises UserError where the pool is empty, where the gold rows lack
    a label, and where by them the judge does not tell the labels apart: it could not say then which labels of a pool are wrong.
    """
    if not len(pool.labels):
        raise UserError("the pool has no judged rows, and nothing has no rate of wrong labels; judge a pool with rows")
    shape = (num_cells, len(names), len(names))
    random = np.random.default_rng(seed)
    gold_counts, gold_draws = _counts(gold, shape), _draws(gold, shape, num_draws, random)
    pool_counts, pool_draws = _counts(pool, shape), _draws(pool, shape, num_draws, random)
    _check_judge(gold_counts.sum(axis=0), gold_draws.sum(axis=1), names)
    confusion, said = _shares(gold_counts + PRIOR), _shares(pool_counts + PRIOR)
    likeliest = true_shares(confusion[:, None], said)
    confusion_draws, said_draws = _shares(gold_draws), _shares(pool_draws)
    solved, drawn = _solved(confusion, said), _wrong(_solved(confusion_draws, said_draws))
    identified = _tells_apart(confusion_draws)
    # The same where the judge errs more, or less, than of gold rows.
    others = []
    for factor in (ERRORS_DIFFER, 1 / ERRORS_DIFFER):
        changed_draws = _with_errors(confusion_draws, factor)
        others.append((_wrong(_solved(changed_draws, said_draws)), _tells_apart(changed_draws)))
    sizes, agreed = pool_counts.sum(axis=2), np.einsum("cll->cl", pool_counts)

    def ends(
        where: tuple[np.ndarray, ...], weights: np.ndarray, drawn: np.ndarray, known: np.ndarray, moved: float
    ) -> Interval:
        weighed = weights * known[where[0]]
        unknown = 1 - float(weighed.sum())
        low, high = np.quantile((drawn[:, where[0], where[1]] * weighed).sum(axis=(1, 2)), TAILS)
        low, high = min(low + min(moved, 0.0), 1 - unknown), max(high + max(moved, 0.0), 0.0)
        return Interval(float(max(0.0, low)), float(min(1 - unknown, high) + unknown))

    def row(label: int | None, cell: int | None) -> WrongLabels:
        where = np.ix_(range(num_cells) if cell is None else [cell], range(len(names)) if label is None else [label])
        num_rows = int(sizes[where].sum())
        weights = sizes[where] / num_rows
        known = weights * identified[where[0]]
        unknown = 1 - float(known.sum())
        middle = float((_wrong(solved)[where] * known).sum())
        rate = float(np.clip(middle, 0, 1 - unknown)) if cell is None else float((_wrong(likeliest)[where] * known).sum())
        moved = rate - middle
        with_unknown = rate + float((_wrong(likeliest)[where] * (weights - known)).sum())
        shares = np.einsum("cl,cli->i", known, solved[where] if cell is None else likeliest[where])
        shares += np.einsum("cl,cli->i", weights - known, likeliest[where])
        apart = [ends(where, weights, *other, 0.0) for other in others]
        here = ends(where, weights, drawn, identified, moved)
        return WrongLabels(
            label,
            cell,
            with_unknown,
            here,
            1 - int(agreed[where].sum()) / num_rows,
            num_rows,
            int(gold_counts[where[0].ravel()].sum()),
            unknown < 0.5,
            _as_shares(shares, label, with_unknown),
            Interval(min(here.low, *(other.low for other in apart)), max(here.high, *(other.high for other in apart))),
        )

    rows = [row(label, cell) for label in range(len(names)) for cell in range(num_cells) if sizes[cell, label]]
    rows += [row(label, None) for label in range(len(names)) if sizes[:, label].any()]
    return [*rows, row(None, None)]


def wrong_label_bounds(
    pool: JudgedRows, num_labels: int, num_cells: int, *, seed: int, num_draws: int = NUM_DRAWS
) -> list[WrongLabelsAtMost]:
    """The most labels that can be wrong by a judge whose errors are unknown, in the order of `wrong_label_rates`.

    Let V[i, l] be the share labelled l of the rows that the judge calls i, and T[i, l] that of the rows that truly are i. It is
    assumed that, in each cell, **rows called i are labelled l != i at least as often as rows that truly are i**: V[i, l] >=
    T[i, l]. Rows called i are not all i, and the others may rightly be labelled l. With g[l] rows labelled l, of which no more
    than all are right, at most sum over i != l of g[i] V[i, l] / V[i, i] are wrong.

    Nothing bounds the rate from below: labels that are all right, and a judge that is wrong wherever it disagrees, are a
    solution, too. Raises UserError for an empty pool.
    """
    if not len(pool.labels):
        raise UserError("the pool has no judged rows, and nothing has no rate of wrong labels; judge a pool with rows")
    shape = (num_cells, num_labels, num_labels)
    counts, draws = _counts(pool, shape), _draws(pool, shape, num_draws, np.random.default_rng(seed))
    identified = _tells_apart(_shares(draws))
    sizes, agreed = counts.sum(axis=2), np.einsum("cll->cl", counts)
    by_label, in_all = (np.concatenate(bounds) for bounds in zip(_bounds(counts[None] + PRIOR), _bounds(draws), strict=True))
    by_label[:, ~identified], in_all[:, ~identified] = 1.0, 1.0

    def row(label: int | None, cell: int | None) -> WrongLabelsAtMost:
        where = np.ix_(range(num_cells) if cell is None else [cell], range(num_labels) if label is None else [label])
        num_rows = int(sizes[where].sum())
        weights = sizes[where] / num_rows
        of_rows = (by_label[:, where[0], where[1]] * weights).sum(axis=(1, 2))
        if label is None:
            of_rows = np.minimum(of_rows, (in_all[:, where[0].ravel()] * weights.sum(axis=1)).sum(axis=1))
        high = float(np.quantile(of_rows[1:], CONFIDENCE))
        is_identified = float((weights.sum(axis=1) * identified[where[0].ravel()]).sum()) > 0.5
        disagreed = 1 - int(agreed[where].sum()) / num_rows
        return WrongLabelsAtMost(label, cell, float(of_rows[0]), high, disagreed, num_rows, is_identified)

    rows = [row(label, cell) for label in range(num_labels) for cell in range(num_cells) if sizes[cell, label]]
    rows += [row(label, None) for label in range(num_labels) if sizes[:, label].any()]
    return [*rows, row(None, None)]


def _bounds(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of each label [draws, cells, k] and of all [draws, cells], from counts [draws, cells, k labels, k judged]."""
    given = counts.sum(axis=-1) / counts.sum(axis=(-2, -1))[..., None]
    called = np.swapaxes(counts / counts.sum(axis=-2, keepdims=True), -1, -2)  # V[i, l]
    right = np.einsum("...ii->...i", called)
    wrong = given[..., None] * called / right[..., None]
    off = wrong.sum(axis=-2) - np.einsum("...ii->...i", wrong)
    by_label = np.minimum(off / given, 1.0)
    # In all: of each true class at most the share 1 - V[i, i] is labelled wrongly, and what is rightly labelled i is at most
    # g[i], so that class i is at most g[i] / V[i, i] of the rows. The classes with the largest shares are filled up first.
    order = np.argsort(right, axis=-1)
    most_wrong = 1 - np.take_along_axis(right, order, axis=-1)
    room = np.take_along_axis(given / right, order, axis=-1)
    filled = np.minimum(np.cumsum(room, axis=-1), 1.0)
    sizes = np.diff(filled, axis=-1, prepend=0.0)
    return by_label, (most_wrong * sizes).sum(axis=-1)


def _with_errors(confusion: np.ndarray, factor: float) -> np.ndarray:
    """C [..., k, k] with each error `factor` times as likely, or as near to that as shares allow."""
    right = np.einsum("...ii->...i", confusion)
    changed = confusion * np.minimum(factor, 1 / np.maximum(1 - right, 1e-12))[..., None]
    places = np.arange(confusion.shape[-1])
    changed[..., places, places] = 0.0
    changed[..., places, places] = 1 - changed.sum(axis=-1)
    return changed


def _as_shares(shares: np.ndarray, label: int | None, rate: float) -> tuple[float, ...]:
    """Shares [k] that may lie below 0, as ones that do not, with 1 - `rate` for the `label`."""
    shares = np.maximum(shares, 0.0)
    if label is None:
        return tuple(map(float, shares / shares.sum()))
    others = np.where(np.arange(len(shares)) == label, 0.0, shares)
    total = float(others.sum())
    others = others * (rate / total) if total > 0 else np.where(np.arange(len(shares)) == label, 0.0, rate / (len(shares) - 1))
    others[label] = 1 - rate
    return tuple(map(float, others))


def true_shares(confusion: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The shares p [..., k] of true labels that make `said` likeliest, by EM.

    `said` [..., k] is how often the judge gives each label, as shares; `confusion` [..., k, k] is C, its rows shares as well,
    and no column 0 in all rows. Leading dimensions are broadcast.
    """
    shares = np.full(np.broadcast_shapes(confusion.shape[:-1], said.shape), 1 / said.shape[-1])
    for _ in range(MOST_STEPS):
        joint = shares[..., None] * confusion
        moved = (joint * (said / joint.sum(axis=-2))[..., None, :]).sum(axis=-1)
        step = np.abs(moved - shares).max(initial=0)
        shares = moved
        if step < RESOLUTION:
            break
    return shares


def _solved(confusion: np.ndarray, said: np.ndarray) -> np.ndarray:
    """p [..., cells, labels, k] with q = p C, for C [..., cells, k, k] and q [..., cells, labels, k]; not always shares."""
    # A cell without gold rows has no inverse, and is not identified.
    return said @ np.linalg.pinv(confusion)


def _wrong(shares: np.ndarray) -> np.ndarray:
    """1 - p[l] of each label l [..., labels], from its p [..., labels, k]."""
    return 1 - np.einsum("...ll->...l", shares)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(axis=-1, keepdims=True)


def _places(rows: JudgedRows, shape: tuple[int, int, int]) -> np.ndarray:
    return np.ravel_multi_index((rows.cells, rows.labels, rows.judged), shape)


def _counts(rows: JudgedRows, shape: tuple[int, int, int]) -> np.ndarray:
    """Rows by cell, label and judged label."""
    return np.bincount(_places(rows, shape), minlength=int(np.prod(shape))).reshape(shape)


def _draws(rows: JudgedRows, shape: tuple[int, int, int], num_draws: int, random: np.random.Generator) -> np.ndarray:
    """`_counts` of the sample drawn anew, with Jeffreys' pseudo-counts: weights [num_draws, *shape].

    Each cluster weighs an exponential variate. Clusters with equal counts are drawn as one: their sum is a gamma variate.
    """
    size = int(np.prod(shape))
    patterns, multiplicity = _patterns(rows.clusters, _places(rows, shape), size)
    weights = random.standard_gamma(multiplicity, (num_draws, len(patterns)))
    return (weights @ patterns + random.standard_gamma(PRIOR, (num_draws, size))).reshape(num_draws, *shape)


def _patterns(clusters: np.ndarray, places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The different counts by place that clusters have [m, size], in lexical order, and how many clusters have each [m]."""
    _, cluster = np.unique(clusters, return_inverse=True)
    # All clusters by all places would be 400 MB for 60,000 rows of 20 labels. A hash of each finds those that are alike.
    keys = np.random.default_rng(0).integers(0, 2**64, size, np.uint64)
    hashes = np.zeros(cluster.max(initial=-1) + 1, np.uint64)
    np.add.at(hashes, cluster, keys[places])
    _, first, multiplicity = np.unique(hashes, return_index=True, return_counts=True)
    number = np.full(len(hashes), -1)
    number[first] = np.arange(len(first))
    chosen = number[cluster] >= 0
    patterns = np.zeros((len(first), size), np.int64)
    np.add.at(patterns, (number[cluster[chosen]], places[chosen]), 1)
    order = np.lexsort(patterns.T[::-1])
    return patterns[order], multiplicity[order]


def _tells_apart(confusion: np.ndarray) -> np.ndarray:
    """Whether C [draws, ..., k, k] has an inverse by all that the gold rows say: its determinant, 1 for a judge that never
    errs and 0 for one that guesses, is above 0 in nearly all draws."""
    return np.quantile(np.linalg.det(confusion), TAILS[0], axis=0) > 0


def _check_judge(counts: np.ndarray, draws: np.ndarray, names: Sequence[str]) -> None:
    lacking = [name for name, total in zip(names, counts.sum(axis=1), strict=True) if not total]
    if lacking:
        raise UserError(
            f"no gold row is labelled {', '.join(lacking)}, so the judge's errors there are unknown; give gold rows of each"
        )
    if not _tells_apart(_shares(draws)):
        said = "; ".join(
            f"{name}: {', '.join(f'{100 * share:.0f}% {other}' for share, other in zip(row, names, strict=True))}"
            for name, row in zip(names, _shares(counts), strict=True)
        )
        raise UserError(
            f"by {counts.sum():,} gold rows the judge does not tell the labels apart (its answers are, of {said}), so it "
            "cannot show how many labels of the pool are wrong; train it on more examples, take a larger model, or give more "
            "gold rows"
        )
