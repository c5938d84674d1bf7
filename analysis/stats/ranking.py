"""The AUC as replicates: P(a positive scores above a negative) per seed, and what each cluster of items adds to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.stats.intervals import Replicates, clustered


def auc_replicates(
    seeds: Sequence[int], of_positives: np.ndarray, of_negatives: np.ndarray, clusters: np.ndarray, strata: np.ndarray
) -> Replicates:
    """The AUC of each seed from its items' placements (`pipelines.evaluate.scoring.placements`) [n, P] and [n, N].

    Both may be averaged over several task models, which averages their AUCs. `clusters` and `strata` int [P + N], positives
    first, each cluster within one stratum; a cluster may have items of both sides. An item adds to the AUC its component of
    DeLong, DeLong and Clarke-Pearson (1988), (placement - AUC) / P or / N, and a cluster the sum over its items (Obuchowski
    1997). An item weighs by its side's size, so that a few positives among many negatives count as few. Raises as
    `intervals.replicates` does.
    """
    num_positives, num_negatives = of_positives.shape[1], of_negatives.shape[1]
    components = np.concatenate([of_positives / num_positives, of_negatives / num_negatives], axis=1)
    num_items = num_positives + num_negatives
    weights = np.repeat([num_items / 2 / num_positives, num_items / 2 / num_negatives], [num_positives, num_negatives])
    return clustered(seeds, of_positives.mean(axis=1), components, weights, clusters, strata)
