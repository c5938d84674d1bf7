"""How many of a file's labels are wrong, by label and by whether a heuristic holds, and which rows to look at first.

    noise = label_noise(rows, ("entailment", "neutral", "contradiction"), ("lexical_overlap",), trusted)

Pure: arrays in, numbers out. Where *trusted* rows say how often the judge is wrong, the rates are those of a study's report
(`analysis.stats.label_noise.wrong_label_rates`). The verdict asks for more than their interval: that the judge might be wrong
half as often again of these rows as of the trusted ones, or as rarely, must not change it; and that it is right of at least
four trusted rows in five.

Without trusted rows, a right label that the judge gets wrong and a wrong label look alike. No rate is given then, and no
verdict but that few are wrong, where even all that the judge's disagreement allows are few (`wrong_label_bounds`); else it
cannot tell. A judge that was trained on the file's own labels never can: labels that are wrong by a rule it has learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats.label_noise import (
    ERRORS_DIFFER,
    NUM_DRAWS,
    JudgedRows,
    WrongLabels,
    WrongLabelsAtMost,
    wrong_label_bounds,
    wrong_label_rates,
)
from analysis.stats.statistics import Interval
from pipelines.errors import UserError

FEW, MANY, CANNOT_TELL = "few wrong", "many wrong", "cannot tell"
LIMIT = 0.05
"""By default, so large a share of wrong labels counts as few."""
LEAST_ACCURACY = 0.8
"""A judge that is right of fewer trusted rows than that has no say: how often it errs depends on which rows it sees."""
MOST_SUSPECTS = 1_000


@dataclass(frozen=True)
class JudgedLabels:
    """Labelled rows, and what a judge that was not trained on them says.

    `labels` int [n] are codes, `probabilities` float [n, k] the judge's for each code, `clusters` int [n] what stands or falls
    together (the rows of a premise), `holds` bool [n, H] where each heuristic holds.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    clusters: np.ndarray
    holds: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        return np.asarray(self.probabilities.argmax(axis=1))


@dataclass(frozen=True)
class NoiseRate:
    """The share of wrong labels among the rows of a `label` (None: of any), all or those where a heuristic holds or does not.

    `rate` and `true_labels`, the shares of the labels that the rows truly have, are None without trusted rows; `interval` holds
    the rate then, from 0 on. `share_disagreed` is where the judge gives another label, which is no rate of wrong labels.
    `num_trusted` counts the trusted rows that the judge's errors are known from. `reason` is a clause.
    """

    label: str | None
    heuristic: str | None
    holds: bool | None
    num_rows: int
    num_trusted: int
    share_disagreed: float
    rate: float | None
    interval: Interval
    true_labels: tuple[float, ...] | None
    verdict: str
    """FEW, MANY or CANNOT_TELL."""
    reason: str


@dataclass(frozen=True)
class Suspects:
    """The rows whose labels are most likely wrong, the likeliest first: arrays [m].

    `rows` are places in the judged rows, `given` and `suggested` codes of labels. `probability` is what the judge gives to the
    suggested label, and `given_probability` to the given one; both are as good as the judge.
    """

    rows: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    probability: np.ndarray
    given_probability: np.ndarray


@dataclass(frozen=True)
class LabelNoise:
    """`in_all` is the verdict on the file; `rates` are by label, and by label and heuristic cell.

    `accuracy` is the share of trusted rows that the judge is right of, None without them.
    """

    in_all: NoiseRate
    rates: tuple[NoiseRate, ...]
    suspects: Suspects
    limit: float
    accuracy: float | None


def label_noise(
    rows: JudgedLabels,
    names: Sequence[str],
    heuristics: Sequence[str] = (),
    trusted: JudgedLabels | None = None,
    *,
    knows_labels: bool = False,
    limit: float = LIMIT,
    seed: int = 0,
    most_suspects: int = MOST_SUSPECTS,
) -> LabelNoise:
    """The rates of wrong labels among `rows`, by label and, for each of the heuristics, by label and cell.

    `names` are those of the codes. A verdict is that at most, or more than, `limit` of the labels are wrong, or neither. What
    is said of labels in all and by label takes the cells of the first heuristic apart, as a study's report does: a judge with a
    blindspot is wrong more often there. `knows_labels`: the judge was trained on other rows of the same file. Raises UserError
    for no rows.
    """
    if not len(rows.labels):
        raise UserError("there are no judged rows, and nothing has no rate of wrong labels; give rows that a judge has judged")
    accuracy = float(np.mean(trusted.judged == trusted.labels)) if trusted is not None and len(trusted.labels) else None
    settings = _Settings(tuple(names), limit, accuracy, knows_labels, seed)
    overall: list[NoiseRate] = []
    by_cell: list[NoiseRate] = []
    for index, heuristic in enumerate(heuristics or (None,)):
        found = _rates(rows, trusted, heuristic, index, settings)
        by_cell += [rate for rate in found if rate.holds is not None]
        overall = overall or [rate for rate in found if rate.holds is None]
    return LabelNoise(overall[-1], (*overall[:-1], *by_cell), suspects(rows, most_suspects), limit, accuracy)


def suspects(rows: JudgedLabels, most: int = MOST_SUSPECTS) -> Suspects:
    """At most `most` rows to look at first, by confident learning (Northcutt, Jiang and Chuang 2021).

    A row is a suspect where the judge is confident of another label than the given one: where it gives that label at least the
    probability that it gives it on average of rows so labelled. They are in the order of how much more probable it finds that
    label than the given one.
    """
    probabilities = np.asarray(rows.probabilities, np.float64)
    num_labels = probabilities.shape[1]
    given_probability = probabilities[np.arange(len(rows.labels)), rows.labels]
    counts = np.bincount(rows.labels, minlength=num_labels)
    sums = np.bincount(rows.labels, given_probability, minlength=num_labels)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    places = np.flatnonzero((confident.max(axis=1) >= 0) & (suggested != rows.labels))
    probability = probabilities[places, suggested[places]]
    places = places[np.argsort(given_probability[places] - probability, kind="stable")][:most]
    return Suspects(
        places,
        rows.labels[places],
        suggested[places],
        probabilities[places, suggested[places]],
        given_probability[places],
    )


@dataclass(frozen=True)
class _Settings:
    names: tuple[str, ...]
    limit: float
    accuracy: float | None
    knows_labels: bool
    seed: int


def _rates(
    rows: JudgedLabels, trusted: JudgedLabels | None, heuristic: str | None, index: int, settings: _Settings
) -> list[NoiseRate]:
    """By label and cell, by label, and in all; without a heuristic there are no cells."""
    found = _of_cells(rows, trusted, heuristic, index, settings)
    unknown = [rate for rate in found if rate.holds is not None and _is_open(rate)]
    return [replace(rate, reason=rate.reason + _where(rate, unknown, settings.limit)) for rate in found]


def _is_open(rate: NoiseRate) -> bool:
    return (rate.interval.low, rate.interval.high) == (0, 1)


def _where(rate: NoiseRate, unknown: Sequence[NoiseRate], limit: float) -> str:
    """What keeps a rate over both cells of a heuristic open, for its reason: the one cell of which nothing is known."""
    if rate.holds is not None or rate.verdict != CANNOT_TELL or _is_open(rate):
        return ""
    cells = [cell for cell in unknown if rate.label in (None, cell.label)]
    is_much = sum(cell.num_rows for cell in cells) > limit * rate.num_rows
    if not is_much or len({cell.holds for cell in cells}) != 1:
        return ""
    name = str(cells[0].heuristic).replace("_", " ")
    return f"; where {name} {'holds' if cells[0].holds else 'does not hold'} all labels may be wrong"


def _of_cells(
    rows: JudgedLabels, trusted: JudgedLabels | None, heuristic: str | None, index: int, settings: _Settings
) -> list[NoiseRate]:
    num_labels, num_cells = len(settings.names), 1 if heuristic is None else 2
    pool = _in_cells(rows, heuristic, index)
    unusable = ""
    if trusted is not None:
        try:
            gold = _in_cells(trusted, heuristic, index)
            rates = wrong_label_rates(pool, gold, settings.names, num_cells, seed=settings.seed)
            return [_rate(rate, heuristic, settings) for rate in rates if heuristic or rate.cell is None]
        except UserError as error:
            # The judge, or the trusted rows, are not up to it. How many rows there are is known all the same.
            unusable = str(error)
    num_draws = 2 if unusable else NUM_DRAWS
    bounds = wrong_label_bounds(pool, num_labels, num_cells, seed=settings.seed, num_draws=num_draws)
    return [_bounded(bound, heuristic, settings, unusable) for bound in bounds if heuristic or bound.cell is None]


def _in_cells(rows: JudgedLabels, heuristic: str | None, index: int) -> JudgedRows:
    cells = np.zeros(len(rows.labels), np.int64) if heuristic is None else rows.holds[:, index].astype(np.int64)
    return JudgedRows(rows.labels.astype(np.int64), rows.judged, cells, rows.clusters)


def _rate(rate: WrongLabels, heuristic: str | None, settings: _Settings) -> NoiseRate:
    limit = settings.limit
    low, high = rate.interval.low, rate.interval.high
    widest = rate.if_errors_differ
    if not rate.is_identified:
        verdict, reason = CANNOT_TELL, "by too few trusted rows the judge does not tell the labels apart here"
    elif settings.accuracy is not None and settings.accuracy < LEAST_ACCURACY:
        verdict = CANNOT_TELL
        reason = f"the judge is right of {_percent(settings.accuracy)} of the trusted rows; it takes {_percent(LEAST_ACCURACY)}"
    elif widest.high <= limit:
        verdict, reason = FEW, f"at most {_percent(limit)} of the labels are wrong"
    elif widest.low > limit:
        verdict, reason = MANY, f"more than {_percent(limit)} of the labels are wrong"
    elif low <= limit < high:
        verdict, reason = CANNOT_TELL, f"the interval holds {_percent(limit)}"
    else:
        verdict = CANNOT_TELL
        reason = (
            f"a judge wrong {ERRORS_DIFFER:g} times as often here as of trusted rows, or as rarely, would make it "
            f"{_percent(widest.low)} to {_percent(widest.high)}"
        )
    return NoiseRate(
        *_place(rate, heuristic, settings),
        rate.num_rows,
        rate.num_gold,
        rate.share_disagreed,
        rate.rate,
        rate.interval,
        rate.true_labels,
        verdict,
        reason,
    )


def _bounded(bound: WrongLabelsAtMost, heuristic: str | None, settings: _Settings, unusable: str) -> NoiseRate:
    """What can be said by the judge's disagreement alone; nothing, for a reason, where trusted rows are `unusable`."""
    verdict = CANNOT_TELL
    if unusable:
        reason = unusable
    elif not bound.is_identified:
        reason = "the judge does not tell the labels apart here"
    elif settings.knows_labels:
        reason = (
            f"up to {_percent(bound.high)} may be wrong, or none, and more if they are wrong by a rule: the model has learnt "
            "from the file's own labels, and there are no trusted rows"
        )
    elif bound.high <= settings.limit:
        verdict, reason = FEW, f"the judge disagrees with so few labels that at most {_percent(bound.high)} are wrong"
    else:
        reason = f"up to {_percent(bound.high)} may be wrong, or none: without trusted rows the judge's errors are unknown"
    interval = Interval(0.0, 1.0 if unusable else bound.high)
    place = _place(bound, heuristic, settings)
    return NoiseRate(*place, bound.num_rows, 0, bound.share_disagreed, None, interval, None, verdict, reason)


def _place(
    of: WrongLabels | WrongLabelsAtMost, heuristic: str | None, settings: _Settings
) -> tuple[str | None, str | None, bool | None]:
    label = None if of.label is None else settings.names[of.label]
    if of.cell is None or heuristic is None:
        return label, None, None
    return label, heuristic, bool(of.cell)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
