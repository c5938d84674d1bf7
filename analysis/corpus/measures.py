"""Measures of scans, each estimate with its n and interval: heuristics, hypothesis-only baseline, lengths, diversity.

Pure: arrays in, numbers out. Rows count as independent draws, but for the odds ratios: pairs that share a premise, duplicates
among them, are one draw there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import optimize, sparse, stats
from scipy.sparse import csgraph

from analysis.corpus.audited import AuditedHeuristic
from analysis.corpus.clusters import NO_CELL, NUM_CELLS, Clusters, categories, clusters_of
from analysis.corpus.labels import meaning_of
from analysis.corpus.scan import Scan
from analysis.corpus.spill import forget
from analysis.corpus.words import Hashed, in_order, word_hashes, word_pairs
from analysis.stats.statistics import CONFIDENCE, Estimate, Interval, mean_estimate, wilson_interval
from pipelines.splitmix import mixed

MARGIN = 1.25
"""By default, ratios of odds ratios between 1/1.25 and 1.25 count as no difference."""
MORE_OFTEN = 2.0
"""Over so many times as often as in the reference, a heuristic that goes with its label is to be looked at."""
PLANTS, AS_REFERENCE, WEAKER, CANNOT_TELL = "plants the heuristic", "as the reference", "weaker", "cannot tell"
GOES_WITH, INDEPENDENT, AGAINST = "goes with the label", "independent of the label", "goes against the label"
"""The same three where there is no reference: data that its authors wrote has associations, too."""

NUM_FEATURES = 1 << 15
PENALTY = 20.0
"""Times half the sum of squared weights: on MultiNLI less costs accuracy and more gains none."""
NUM_STEPS = 15
HELD_OUT = 5
"""One hypothesis of so many is held out."""
MAX_GROUP = 0.1
"""A group of rows that is a larger share of the sample cannot be held out."""
MIN_BASELINE_ROWS = 500
BLOCK_WORDS = 5_000
MAX_BLOCKS = 40
MAX_N = 3


@dataclass(frozen=True)
class Share:
    """A share of rows: count of n, with Wilson's interval."""

    count: int
    n: int
    interval: Interval

    @property
    def share(self) -> float:
        return self.count / self.n


def share_of(count: int, n: int) -> Share:
    """Raises ValueError for an empty slice."""
    return Share(int(count), int(n), wilson_interval(int(count), int(n)))


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval; `log_error` is the standard error of its logarithm, and n the number of rows."""

    value: float
    log_error: float
    n: int
    interval: Interval
    method: str
    design_effect: float = 1.0
    """Times the variance that independent rows would have."""


def odds_ratio(
    holds: np.ndarray, entailment: np.ndarray, premise: np.ndarray | Clusters, asked: np.ndarray | None = None
) -> Ratio:
    """The odds of entailment where a heuristic holds over the odds where it does not.

    Arguments have shape (num_rows,): booleans, booleans, what tells premises apart (hashes, or the clusters that they make),
    and which rows are counted, all without it. The logit interval with a half added
    to each of the four counts (Gart 1966), which exists for counts of 0, too; its variance is multiplied by the design effect
    of premises that several rows share, estimated from the sums of the rows' influences over each premise, where that is over
    1. Raises ValueError where the heuristic holds of no row or of all, or all rows or none are entailment.
    """
    cell = 2 * holds.astype(np.int8) + entailment
    if asked is not None:
        cell[~asked] = NO_CELL
        holds, entailment = holds[asked], entailment[asked]
    for name, flags in (("the heuristic holds of", holds), ("entailment are", entailment)):
        if flags.all() or not flags.any():
            raise ValueError(f"{name} {int(flags.sum())} of {len(flags):,} rows: there is nothing to compare with")
    counts = np.bincount(cell, minlength=NUM_CELLS)[:NUM_CELLS] + 0.5
    signs = np.array([1, -1, -1, 1])
    log = float((signs * np.log(counts)).sum())
    influence = signs / counts
    of_cluster, times = (premise if isinstance(premise, Clusters) else clusters_of(premise)).cells(cell)
    effect = max(1.0, float(times @ (of_cluster @ influence) ** 2 / ((counts - 0.5) @ influence**2)))
    error = math.sqrt(float((1 / counts).sum()) * effect)
    return _ratio(log, error, len(holds), "logit with a half added, clustered by premise", effect)


def ratio_of_odds_ratios(ratio: Ratio, other: Ratio) -> Ratio:
    """One odds ratio over another of independent data; n is the number of rows of both."""
    log = math.log(ratio.value) - math.log(other.value)
    error = math.hypot(ratio.log_error, other.log_error)
    return _ratio(log, error, ratio.n + other.n, "difference of two independent log odds ratios")


def ratio_of_shares(own: Share, other: Share, effects: tuple[float, float] = (1.0, 1.0)) -> Ratio:
    """One share over another of independent rows: Katz's interval with a half added to each count, by design effects."""
    parts = [(share.count + 0.5, share.n + 0.5, effect) for share, effect in zip((own, other), effects, strict=True)]
    logs = [math.log(count / n) for count, n, _ in parts]
    error = math.sqrt(sum((1 / count - 1 / n) * effect for count, n, effect in parts))
    return _ratio(logs[0] - logs[1], error, own.n + other.n, "difference of two independent log shares")


def _ratio(log: float, error: float, n: int, method: str, effect: float = 1.0) -> Ratio:
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * error
    return Ratio(math.exp(log), error, n, Interval(math.exp(log - half), math.exp(log + half)), method, effect)


@dataclass(frozen=True)
class HeuristicFinding:
    """A file's use of a heuristic, compared with the reference or, without one, with no association (odds ratio 1)."""

    name: str
    description: str
    predicts: str
    """The label that the heuristic goes with; the numbers below count rows that have it."""
    verdict: str
    """PLANTS, AS_REFERENCE or WEAKER; without a reference GOES_WITH, INDEPENDENT or AGAINST; or CANNOT_TELL."""
    reason: str
    num_unasked: int = 0
    """Rows that it could not be asked about, for want of a parse."""
    all_rows: Share | None = None
    """Rows of which it holds, of those that it could be asked about; None where there are none."""
    by_label: dict[str, Share] | None = None
    """The same of each label's rows."""
    predicted: Share | None = None
    """Rows with the predicted label among those of which it holds; None where it holds of none."""
    odds_ratio: Ratio | None = None
    reference: Ratio | None = None
    """The reference's odds ratio."""
    relative: Ratio | None = None
    """The odds ratio over the reference's, or over 1."""
    with_label: Share | None = None
    """Rows of which it holds among those that have the predicted label; None where there are none of these."""
    reference_with_label: Share | None = None
    """The same in the reference."""
    more_often: Ratio | None = None
    """The one share over the other."""
    is_more_often: bool = False
    """Whether it goes with the label, not less than in the reference, and `more_often` is over MORE_OFTEN by its interval."""


def predicted_labels(heuristic: AuditedHeuristic, labels: Sequence[str], named: Mapping[str, str]) -> tuple[str, ...]:
    """A file's labels that mean what a heuristic predicts; `named` says what labels mean where their names do not."""
    wanted = meaning_of(heuristic.predicts)
    return tuple(label for label in labels if meaning_of(label, named) == wanted)


def heuristic_findings(
    scan: Scan, reference: Scan | None = None, margin: float = MARGIN, named: Mapping[str, str] | None = None
) -> list[HeuristicFinding]:
    """A finding for each heuristic; `named` are meanings of labels (:func:`analysis.corpus.labels.meaning_of`)."""
    return [_finding(index, heuristic, scan, reference, margin, named or {}) for index, heuristic in enumerate(scan.heuristics)]


def _finding(
    index: int, heuristic: AuditedHeuristic, scan: Scan, reference: Scan | None, margin: float, named: Mapping[str, str]
) -> HeuristicFinding:
    asked = scan.asked(heuristic)
    finding = HeuristicFinding(
        heuristic.name, heuristic.description, heuristic.predicts, CANNOT_TELL, "", num_unasked=int((~asked).sum())
    )
    if not asked.any():
        return replace(finding, reason="needs a parse, and no row has one")
    holds = scan.holds[:, index]
    of_label = {name: asked & (scan.label == code) for code, name in enumerate(scan.labels)}
    positive = scan.labelled(predicted_labels(heuristic, scan.labels, named))
    finding = replace(
        finding,
        all_rows=share_of(holds.sum(), asked.sum()),
        by_label={name: share_of(holds[rows].sum(), rows.sum()) for name, rows in of_label.items() if rows.any()},
        predicted=share_of(positive[holds].sum(), holds.sum()) if holds.any() else None,
    )
    ratio = _odds_ratio_of(index, scan, positive)
    if isinstance(ratio, str):
        return replace(finding, reason=ratio)
    finding = replace(finding, odds_ratio=ratio)
    if reference is None:
        verdict, reason = judge(ratio, margin, "no association", heuristic.predicts)
        odds = f"the odds of {heuristic.predicts} are"
        names = {
            PLANTS: (GOES_WITH, f"{odds} over {margin:g} times as high where it holds"),
            AS_REFERENCE: (INDEPENDENT, f"{odds} as high where it holds, within a factor of {margin:g}"),
            WEAKER: (AGAINST, f"{odds} under 1/{margin:g} as high where it holds"),
        }
        verdict, reason = names.get(verdict, (verdict, reason))
        return replace(finding, verdict=verdict, reason=reason, relative=ratio)
    if not reference.asked(heuristic).any():
        return replace(finding, reason="needs a parse, and no row of the reference has one")
    base_positive = reference.labelled(predicted_labels(heuristic, reference.labels, named))
    base = _odds_ratio_of(index, reference, base_positive)
    own, other = _with_label(index, scan, positive), _with_label(index, reference, base_positive)
    if own and other:
        effects = (ratio.design_effect, 1.0 if isinstance(base, str) else base.design_effect)
        more_often = ratio_of_shares(own, other, effects)
        finding = replace(finding, with_label=own, reference_with_label=other, more_often=more_often)
    if isinstance(base, str):
        return replace(finding, reason=f"in the reference, {base}")
    relative = ratio_of_odds_ratios(ratio, base)
    verdict, reason = judge(relative, margin, "the reference", heuristic.predicts)
    is_more = finding.more_often is not None and finding.more_often.interval.low > MORE_OFTEN
    return replace(
        finding,
        verdict=verdict,
        reason=reason,
        reference=base,
        relative=relative,
        is_more_often=is_more and ratio.interval.low > margin and verdict != WEAKER,
    )


def _with_label(index: int, scan: Scan, positive: np.ndarray) -> Share | None:
    """Among rows with the label that a heuristic predicts, those of which it holds."""
    rows = positive & scan.asked(scan.heuristics[index])
    return share_of(scan.holds[rows, index].sum(), rows.sum()) if rows.any() else None


def judge(relative: Ratio, margin: float, than: str, predicts: str = "entailment") -> tuple[str, str]:
    """The verdict on a ratio of odds ratios, and why: all of the interval must lie above, within or below the margin."""
    low, high = relative.interval.low, relative.interval.high
    association = f"the association with {predicts}"
    if low > margin:
        return PLANTS, f"{association} is over {margin:g} times that of {than}"
    if high < 1 / margin:
        return WEAKER, f"{association} is under 1/{margin:g} of that of {than}"
    if low > 1 / margin and high < margin:
        return AS_REFERENCE, f"{association} is that of {than} within a factor of {margin:g}"
    if low > 1:
        return CANNOT_TELL, f"stronger than {than}, but whether by a factor of {margin:g} is open"
    if high < 1:
        return CANNOT_TELL, f"weaker than {than}, but whether by a factor of {margin:g} is open"
    return CANNOT_TELL, f"the interval is too wide to say whether it is stronger or weaker than {than}"


def _odds_ratio_of(index: int, scan: Scan, positive: np.ndarray) -> Ratio | str:
    """The odds ratio, or in words why there is none."""
    heuristic = scan.heuristics[index]
    asked = scan.asked(heuristic)
    holds, positives = scan.holds[asked, index], positive[asked]
    if not holds.any() or holds.all():
        return f"it holds of {'no row' if not holds.any() else 'every row'}"
    if not positives.any() or positives.all():
        return f"{'no' if not positives.any() else 'every'} row is {heuristic.predicts}"
    return odds_ratio(scan.holds[:, index], positive, scan.premises, asked)


@dataclass(frozen=True)
class OneField:
    """A baseline that tells the label from one field alone: a logistic regression on words and word pairs.

    Poliak et al. 2018 and Gururangan et al. 2018 introduced it; here with 32,768 hashed features and an L2 penalty, a
    lower bound of what a larger model finds. A fifth of the sample is held out, by groups of rows: rows that share a text of
    any field stay on one side, since minimal pairs would tell each other's labels. Where most rows hang together that way, as
    in texts from few templates, only those that share the field's own text do. Categories (`clusters.categories`) hold no
    rows together. `reason` says why there is none.
    """

    field: str
    reason: str = ""
    num_training: int = 0
    accuracy: Share | None = None
    majority: Share | None = None
    """The accuracy of always saying the training rows' most frequent label."""
    lift: Estimate | None = None
    """Accuracy minus the majority's, paired by held-out row, with the normal interval, clustered by group."""


def one_field(sample: pa.Table, field: str) -> OneField:
    """The baseline on a sample of rows: a column of labels, and that of the field."""
    names = sorted(set(sample["label"].to_pylist()))
    if len(names) < 2:
        return OneField(field, f"all rows have the label {names[0]!r}")
    if sample.num_rows < MIN_BASELINE_ROWS:
        return OneField(field, f"{sample.num_rows:,} rows are too few; it takes {MIN_BASELINE_ROWS:,}")
    codes = pd.Categorical(sample["label"].to_pylist(), categories=names).codes.astype(np.int64)
    words, offsets = word_hashes(sample[field].combine_chunks())
    group, hashes = _groups(sample, field, (words, offsets))
    held_out = mixed(hashes[group] + np.uint64(1)) % np.uint64(HELD_OUT) == 0
    if held_out.all() or not held_out.any() or len(set(codes[~held_out])) < 2:
        return OneField(field, "the texts are too much alike to hold some out")
    features = hashed_features(words, offsets)
    # The last feature is every text's.
    known = features[held_out][:, features[~held_out].getnnz(axis=0) > 0].getnnz(axis=1) > 1
    if known.mean() < 0.5:
        return OneField(field, f"most held-out texts have no word of the others: {(~known).sum():,} of {len(known):,} rows")
    weights = fit_logistic(features[~held_out], codes[~held_out], len(names))
    predicted = np.asarray(features[held_out] @ weights).argmax(axis=1)
    truth = codes[held_out]
    majority = truth == np.bincount(codes[~held_out]).argmax()
    correct = predicted == truth
    return OneField(
        field,
        "",
        int((~held_out).sum()),
        share_of(correct.sum(), len(truth)),
        share_of(majority.sum(), len(truth)),
        _paired(correct.astype(float) - majority, group[held_out]),
    )


def one_field_each(samples: Mapping[str, pa.Table], fields: Sequence[str]) -> dict[str, dict[str, OneField]]:
    """The baseline on each of the samples and fields, by sample and then by field; two at a time."""
    wanted = [(name, field) for name in samples for field in fields]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: one_field(samples[each[0]], each[1]), wanted))
    by_sample: dict[str, dict[str, OneField]] = {name: {} for name in samples}
    for (name, field), baseline in zip(wanted, found, strict=True):
        by_sample[name][field] = baseline
    return by_sample


def _groups(sample: pa.Table, field: str, words: Hashed) -> tuple[np.ndarray, np.ndarray]:
    """Which rows stay together, int [num_rows], and a hash of each group that its texts decide, whatever the order of rows.

    `words` are those of the field's texts. Rows that share a text of any field that is no category, directly or through others,
    are a group.
    """
    names = [name for name in sample.column_names if name not in ("priority", "row", "label", field)]
    each = [words, *(word_hashes(sample[name].combine_chunks()) for name in names)]
    own, *others = (in_order(*of_field) for of_field in each)
    num_rows = len(own)
    is_category, *are_categories = categories((field, *names), each)
    if is_category:
        # Its text says nothing of where a row belongs; all of the row's do.
        for hashes in others:
            own = mixed(own + hashes)
    ends, start = [], num_rows
    for hashes in (own, *itertools.compress(others, np.logical_not(are_categories))):
        unique, text = np.unique(hashes, return_inverse=True)
        ends.append(start + text)
        start += len(unique)
    rows = np.tile(np.arange(num_rows), len(ends))
    links = sparse.coo_matrix((np.ones(len(rows), bool), (rows, np.concatenate(ends))), (start, start))
    group = csgraph.connected_components(links, directed=False)[1][:num_rows]
    if np.bincount(group).max() > MAX_GROUP * num_rows:
        group = np.unique(own, return_inverse=True)[1]
    group = np.unique(group, return_inverse=True)[1]
    least = np.full(group.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, group, own)
    return group, least


def _paired(differences: np.ndarray, group: np.ndarray) -> Estimate:
    mean, n = float(differences.mean()), len(differences)
    sums = np.bincount(group, differences - mean)
    num_groups = len(np.unique(group))
    error = math.sqrt(float((sums**2).sum()) * num_groups / max(1, num_groups - 1)) / n
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * error
    around = Interval(mean - half, mean + half)
    return Estimate(
        mean,
        n,
        float(differences.min()),
        float(differences.max()),
        around,
        f"normal over {n} held-out rows of {num_groups} groups",
    )


def hashed_features(words: np.ndarray, offsets: np.ndarray) -> Any:
    """Hashed words and word pairs, 1 where in the text: sparse, of shape (num_texts, NUM_FEATURES + 1); the last is 1."""
    num_texts = len(offsets) - 1
    text = np.repeat(np.arange(num_texts), np.diff(offsets))
    hashed = np.concatenate([words, word_pairs(words, offsets)]) % np.uint64(NUM_FEATURES)
    rows = np.concatenate([text, text, np.arange(num_texts)])
    columns = np.concatenate([hashed.astype(np.int64), np.full(num_texts, NUM_FEATURES)])
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float64), (rows, columns)), (num_texts, NUM_FEATURES + 1))
    matrix.data[:] = 1.0  # a word twice in a text is there, no more
    return matrix


def fit_logistic(features: Any, codes: np.ndarray, num_labels: int) -> np.ndarray:
    """Weights of a multinomial logistic regression, of shape (num_features, num_labels)."""
    # A feature that no row has keeps the weight 0: few words are few parameters.
    used = np.flatnonzero(features.getnnz(axis=0))
    weights = np.zeros((features.shape[1], num_labels))
    features = features[:, used]
    shape = (len(used), num_labels)
    targets = np.zeros((features.shape[0], num_labels))
    targets[np.arange(len(codes)), codes] = 1
    transposed = features.T.tocsr()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = features @ weights
        highest = logits.max(axis=1, keepdims=True)
        shares = np.exp(logits - highest)
        sums = shares.sum(axis=1, keepdims=True)
        shares /= sums
        gradient = transposed @ (shares - targets) + PENALTY * weights
        log_likelihood = logits[np.arange(len(codes)), codes].sum() - (highest + np.log(sums)).sum()
        value = float(0.5 * PENALTY * (flat @ flat) - log_likelihood)
        return value / len(codes), gradient.ravel() / len(codes)

    # More steps change the weights of rare words, and no accuracy.
    fitted = optimize.minimize(
        loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": NUM_STEPS, "maxcor": 5}
    )
    weights[used] = fitted.x.reshape(shape)
    return weights


@dataclass(frozen=True)
class Length:
    """Words of one field of one label's rows: mean with a t interval over rows, and quantiles."""

    label: str
    field: str
    mean: Estimate
    median: float
    percentile_5: float
    percentile_95: float


def lengths(scan: Scan) -> list[Length]:
    """Lengths in words, by label and field."""
    measured = []
    for code, name in enumerate(scan.labels):
        of_label = scan.lengths[scan.label == code]
        forget(scan.lengths)
        for index, field in enumerate(scan.fields):
            values = of_label[:, index]
            n, mean = len(values), float(values.mean())
            around = None
            if n > 1:
                half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
                around = Interval(mean - half, mean + half)
            estimate = Estimate(mean, n, float(values.min()), float(values.max()), around, f"t over {n} rows")
            measured.append(Length(name, field, estimate, *map(float, np.percentile(values, (50, 5, 95)))))
    return measured


@dataclass(frozen=True)
class Diversity:
    """Distinct-n of one field: different word n-grams over all, in blocks of 5,000 words of sampled rows in random order.

    The blocks make files of any size comparable; distinct-1 is the type-token ratio. `distinct` maps n to the mean over blocks
    with its t interval. `reason` says why there is none.
    """

    field: str
    distinct: dict[int, Estimate]
    reason: str = ""


def diversity(sample: pa.Table, fields: Sequence[str]) -> list[Diversity]:
    """Distinct-1, -2 and -3 (Li et al. 2016) of each field of a sample."""
    measured = []
    for field in fields:
        words, offsets = word_hashes(sample[field].combine_chunks())
        num_blocks = min(MAX_BLOCKS, len(words) // BLOCK_WORDS)
        if not num_blocks:
            measured.append(Diversity(field, {}, f"{len(words):,} words are too few; it takes {BLOCK_WORDS:,}"))
            continue
        position = np.arange(len(words)) - np.repeat(offsets[:-1], np.diff(offsets))
        grams, values = words, {}
        for n in range(1, MAX_N + 1):
            if n > 1:
                grams = mixed(np.concatenate([grams[:1], grams[:-1]]) * np.uint64(31) + words)
            shares = []
            for start in range(0, num_blocks * BLOCK_WORDS, BLOCK_WORDS):
                block = slice(start, start + BLOCK_WORDS)
                whole = grams[block][position[block] >= n - 1]
                if len(whole):
                    shares.append(len(np.unique(whole)) / len(whole))
            if shares:
                values[n] = mean_estimate(shares)
        measured.append(Diversity(field, values))
    return measured


def difference(first: Estimate, second: Estimate) -> Interval | None:
    """Interval of the difference of two independent means whose own t intervals are known (Welch 1947)."""
    if first.interval is None or second.interval is None:
        return None
    parts = []
    for estimate in (first, second):
        assert estimate.interval is not None
        half = (estimate.interval.high - estimate.interval.low) / 2
        parts.append(float(half / stats.t.ppf(0.5 + CONFIDENCE / 2, estimate.n - 1)) ** 2)
    freedom = sum(parts) ** 2 / sum(part**2 / (e.n - 1) for part, e in zip(parts, (first, second), strict=True))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(sum(parts))
    return Interval(first.mean - second.mean - half, first.mean - second.mean + half)
