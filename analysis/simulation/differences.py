"""How often intervals and tests of a difference are right, by the number of seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.simulation.scenarios import Scenario, hans, intervals_of, mnli
from analysis.stats.hypotheses import sign_flip
from analysis.stats.intervals import Replicates, two_level_bootstrap

SEEDS = (3, 5, 10, 20)
VERDICT_SEEDS = (5, 10, 20, 30, 50)
BOOTSTRAP_SAMPLES = 500

SCENARIOS = (
    mnli("MultiNLI, no difference"),
    mnli("MultiNLI, 1 point less", -0.01),
    hans("HANS, no difference"),
    hans("HANS, 10 points less", -0.10),
    hans("HANS, no difference, templates differ more in it", effect_sd=0.6),
    hans("HANS, no difference, seeds agree better", seed_sd=0.1),
)


@dataclass(frozen=True)
class Coverage:
    """Shares of replications: the interval holds the truth, leaves out 0, lies below 0; sign flips reject; others cover.

    `seed_sd` is of one kind's accuracy, `width` the mean interval's. `bootstrap` is NaN where it was not run.
    """

    scenario: str
    num_seeds: int
    accuracy: float
    seed_sd: float
    covered: float
    rejected: float
    below: float
    rejected_by_sign_flip: float
    over_seeds_only: float
    bootstrap: float
    width: float


def coverage(scenario: Scenario, num_seeds: int, *, seed: int, num: int) -> Coverage:
    """Simulate `num` studies of `num_seeds` seeds. Deterministic for a `seed`."""
    random = np.random.default_rng([seed, num_seeds])
    sizes = scenario.sizes
    num_items = int(sizes.sum())
    columns: dict[str, list[np.ndarray]] = {}
    # Templates are few enough to be drawn again; for premises it would take hours.
    with_bootstrap = len(sizes) < 100
    for num_studies in scenario.chunk_sizes(num_seeds, num):
        control, treatment = scenario.draw(num_seeds, num_studies, random)
        found = intervals_of(treatment - control, sizes)
        means, half = found.means, found.half
        error = np.abs(means - scenario.difference)
        columns_of_chunk = {
            "accuracy": control.sum(axis=-1).mean(axis=-1) / num_items,
            "seed_variance": (control.sum(axis=-1) / num_items).var(axis=-1, ddof=1),
            "covered": error <= half,
            "rejected": np.abs(means) > half,
            "below": means < -half,
            "rejected_by_sign_flip": np.array([sign_flip(row, num_samples=2000) <= 0.05 for row in found.values]),
            "over_seeds_only": error <= found.half_of_seeds,
            "bootstrap": np.full(num_studies, np.nan),
            "width": 2 * half,
        }
        if with_bootstrap:
            seeds, strata = tuple(range(num_seeds)), np.zeros(len(sizes), dtype=int)
            for index, (row, of_row) in enumerate(zip(found.values, found.residuals, strict=True)):
                data = Replicates(seeds, row, of_row, sizes, strata, num_items)
                interval = two_level_bootstrap(data, seed=index, num_samples=BOOTSTRAP_SAMPLES)
                columns_of_chunk["bootstrap"][index] = interval.low <= scenario.difference <= interval.high
        for name, column in columns_of_chunk.items():
            columns.setdefault(name, []).append(column)
    means_of = {name: float(np.concatenate(parts).mean()) for name, parts in columns.items()}
    seed_sd = math.sqrt(means_of.pop("seed_variance"))
    return Coverage(scenario.name, num_seeds, seed_sd=seed_sd, **means_of)
