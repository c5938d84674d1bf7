"""Intervals and verdicts on real runs: 100 BERT finetunings that differ in nothing but the seed (McCoy, Min and Linzen 2020).

Runs are drawn at random and compared with further ones, so that there is no difference, or with the mean of the rest. All runs
saw the same test items: what is tested here is what is said of further seeds. The file is `bert_100_runs.csv` in
https://github.com/tommccoy1/hans (it has accuracies by subcase, no items), and is no part of this project.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.simulation.scenarios import Scenario
from analysis.stats.intervals import half_width
from analysis.stats.shares import share_ends
from pipelines.errors import UserError

SEEDS = (3, 5, 10, 20)
SUBCASE_PREFIXES = ("ln_", "le_", "sn_", "se_", "cn_", "ce_")
SETS = {
    "MNLI dev acc.": "MultiNLI",
    "Overall accuracy": "HANS",
    "Lexical (nonent)": "lexical overlap, non-entailment",
    "Subseq (nonent)": "subsequence, non-entailment",
    "Constituent (nonent)": "constituent, non-entailment",
    "Lexical (entailed)": "lexical overlap, entailment",
    "Subseq (entailed)": "subsequence, entailment",
    "Constituent (entailed)": "constituent, entailment",
}
"""Columns of the file and how the page calls them."""
SUBCASE_ITEMS = 1000


@dataclass(frozen=True)
class RunCoverage:
    """Of random draws of `num_seeds` runs: `rejected` of two disjoint draws differ at a two-sided 5%, `covered` hold the mean
    of the runs that were not drawn.

    `level` and `seed_sd` are over all runs. Draws whose runs agree exactly show no difference.
    """

    name: str
    num_seeds: int
    level: float
    seed_sd: float
    rejected: float
    covered: float


def read_runs(path: Path) -> dict[str, np.ndarray]:
    """Accuracies (0..1) by column, float [num_runs]. Raises UserError for a file that is not the one of the 100 runs."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Below the runs the file has their mean, range and standard deviation.
        rows = [row for row in csv.DictReader(file) if row.get("Run", "").startswith("Run ")]
    if missing := SETS.keys() - (rows[0].keys() if rows else set()):
        raise UserError(f"{path}: no run has {min(missing)!r}; give bert_100_runs.csv of https://github.com/tommccoy1/hans")
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "Run"}


def subcases(runs: Mapping[str, np.ndarray]) -> list[str]:
    """The columns that are subcases of 1,000 items and not the same number in every run."""
    return [name for name, values in runs.items() if name.startswith(SUBCASE_PREFIXES) and np.ptp(values) > 0]


def run_coverage(
    name: str, values: np.ndarray, num_seeds: int, *, seed: int, num: int, num_items: float = np.inf
) -> RunCoverage:
    """Draws from accuracies `values` (float [num_runs]) of runs that saw the same items, so that seeds alone count.

    The rest is a mean of runs, too, and adds its own variance. With `num_items` an interval is no narrower than so many
    independent items make it: subcases are often all right or all wrong.
    """
    random = np.random.default_rng([seed, num_seeds])
    order = np.argsort(random.random((num, len(values))), axis=1)
    drawn, others = values[order[:, :num_seeds]], values[order[:, num_seeds : 2 * num_seeds]]
    rest = values[order[:, num_seeds:]].mean(axis=1)
    differences = drawn - others
    df = num_seeds - 1
    half = half_width(differences.var(axis=1, ddof=1) / num_seeds, df, 0.0, np.inf)
    rejected = (np.abs(differences.mean(axis=1)) > half) & (half > 0)
    variance = drawn.var(axis=1, ddof=1) * (1 / num_seeds + 1 / (len(values) - num_seeds))
    low, high = share_ends(drawn.mean(axis=1), variance, df, 0.0, np.inf, num_items)
    covered = (low <= rest) & (rest <= high)
    return RunCoverage(
        name, num_seeds, float(values.mean()), float(values.std(ddof=1)), float(rejected.mean()), float(covered.mean())
    )


def simulated_runs(scenario: Scenario, num_runs: int, num: int, *, seed: int) -> np.ndarray:
    """Accuracies of `num` times as many runs on the same items, float [num, num_runs], as the simulation has them."""
    right, _ = scenario.draw(num_runs, num, np.random.default_rng(seed))
    return np.asarray(right.sum(axis=-1) / scenario.sizes.sum())
