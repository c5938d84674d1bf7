"""A simulation of how often intervals and verdicts are right, where the truth is known.

    python -m analysis.stats.simulation      # writes docs/coverage.md, in minutes on one core

Each replication is a study of two kinds of training set, several seeds of each, on the same test items. Whether task model s of
kind k has an item of cluster c right is drawn with probability

    Φ(base_k + seed_sk + cluster_c + effect_ck + noise_csk)

with normal deviations, so that the true accuracy of further seeds *and* further clusters is known: Φ(base_k / √(1 + sum of
their variances)). Variances are such that one kind has the accuracy, and the standard deviation over seeds, of 100 BERT
finetunings (McCoy, Min and Linzen 2020): 84.3 ± 0.24 % on MultiNLI, 27.7 ± 12.4 % on HANS's lexical-overlap non-entailment.
Clusters have the sizes of the real sets: 25 templates of 68 to 1000 items, 3 334 premises of 1 to 6.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.special import ndtr

from analysis.stats.hypotheses import sign_flip
from analysis.stats.intervals import Replicates, effective_df, half_width, leverages, two_level_bootstrap, variances

SEEDS = (3, 5, 10, 20)
VERDICT_SEEDS = (5, 10, 20, 30, 50)
NUM_REPLICATIONS = 2000
BOOTSTRAP_SAMPLES = 500
HANS_TEMPLATES = np.array(
    [236, 245, 291, 228, 505, 495, 177, 173, 152, 157, 147, 194, 82, 84, 81, 76, 81, 100, 80, 68, 92, 86, 69, 101, 1000]
)
"""Items of each template of HANS's lexical-overlap non-entailment: 5 000."""
MNLI_PREMISES = np.repeat([3, 2, 1, 6], [3151, 174, 8, 1])
"""Items of each premise of MultiNLI matched (development): 9 815."""
CHUNK = 4_000_000
"""Numbers drawn at once, so that memory does not grow with the replications."""


@dataclass(frozen=True)
class Scenario:
    """Two kinds of training set on one test set. `accuracy` is the control's, the treatment's is `accuracy + difference`.

    `seed_sd`, `cluster_sd`, `effect_sd` and `noise_sd` are standard deviations on the probit scale: of a task model, of a
    cluster for both kinds, of a cluster for one kind, and of a cluster for one task model.
    """

    name: str
    sizes: np.ndarray
    accuracy: float
    difference: float
    seed_sd: float
    cluster_sd: float
    effect_sd: float
    noise_sd: float

    def base(self, accuracy: float) -> float:
        total = self.seed_sd**2 + self.cluster_sd**2 + self.effect_sd**2 + self.noise_sd**2
        return float(stats.norm.ppf(accuracy)) * math.sqrt(1 + total)

    def draw(self, num_seeds: int, num: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Right items by cluster of control and treatment: int [num, num_seeds, num_clusters] each."""
        m = len(self.sizes)
        shared = random.standard_normal((num, 1, m)) * self.cluster_sd
        sides = []
        for accuracy in (self.accuracy, self.accuracy + self.difference):
            latent = random.standard_normal((num, num_seeds, m)) * self.noise_sd
            latent += random.standard_normal((num, num_seeds, 1)) * self.seed_sd
            latent += random.standard_normal((num, 1, m)) * self.effect_sd
            latent += shared + self.base(accuracy)
            sides.append(random.binomial(self.sizes, ndtr(latent)))
        return sides[0], sides[1]

    def chunks(self, num_seeds: int, num: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        at_once = max(1, CHUNK // (num_seeds * len(self.sizes)))
        for start in range(0, num, at_once):
            yield self.draw(num_seeds, min(at_once, num - start), random)


def hans(name: str, difference: float = 0.0, *, effect_sd: float = 0.2, seed_sd: float = 0.505) -> Scenario:
    """BERT on HANS's lexical-overlap non-entailment; templates differ much, and somewhat in what training does to them."""
    return Scenario(name, HANS_TEMPLATES, 0.277, difference, seed_sd, 0.8, effect_sd, 0.3)


def mnli(name: str, difference: float = 0.0) -> Scenario:
    """BERT on MultiNLI: seeds differ by which items they happen to have right, hardly by how many."""
    return Scenario(name, MNLI_PREMISES, 0.843, difference, 0.01, 3.0, 0.2, 0.3)


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


def coverage(scenario: Scenario, num_seeds: int, *, seed: int, num: int = NUM_REPLICATIONS) -> Coverage:
    """Simulate `num` studies of `num_seeds` seeds. Deterministic for a `seed`."""
    random = np.random.default_rng([seed, num_seeds])
    sizes, strata = scenario.sizes, np.zeros(len(scenario.sizes), dtype=int)
    num_items, leverage, df = sizes.sum(), leverages(sizes, strata), effective_df(sizes, strata)
    columns: dict[str, list[np.ndarray]] = {}
    # Templates are few enough to be drawn again; for premises it would take hours.
    with_bootstrap = len(sizes) < 100
    for control, treatment in scenario.chunks(num_seeds, num, random):
        difference = treatment - control
        values = difference.sum(axis=-1) / num_items
        residuals = (difference - values[..., np.newaxis] * sizes) / num_items
        seed_variance, item_variance = variances(values, residuals, leverage)
        half = half_width(seed_variance / num_seeds, num_seeds - 1, item_variance, df)
        half_of_seeds = half_width(seed_variance / num_seeds, num_seeds - 1, 0.0, df)
        means = values.mean(axis=-1)
        error = np.abs(means - scenario.difference)
        columns_of_chunk = {
            "accuracy": control.sum(axis=-1).mean(axis=-1) / num_items,
            "seed_variance": (control.sum(axis=-1) / num_items).var(axis=-1, ddof=1),
            "covered": error <= half,
            "rejected": np.abs(means) > half,
            "below": means < -half,
            "rejected_by_sign_flip": np.array([sign_flip(row, num_samples=2000) <= 0.05 for row in values]),
            "over_seeds_only": error <= half_of_seeds,
            "bootstrap": np.full(len(values), np.nan),
            "width": 2 * half,
        }
        if with_bootstrap:
            seeds = tuple(range(num_seeds))
            for index, (row, of_row) in enumerate(zip(values, residuals, strict=True)):
                data = Replicates(seeds, row, of_row, sizes, strata, int(num_items))
                interval = two_level_bootstrap(data, seed=index, num_samples=BOOTSTRAP_SAMPLES)
                columns_of_chunk["bootstrap"][index] = interval.low <= scenario.difference <= interval.high
        for name, column in columns_of_chunk.items():
            columns.setdefault(name, []).append(column)
    means_of = {name: float(np.concatenate(parts).mean()) for name, parts in columns.items()}
    seed_sd = math.sqrt(means_of.pop("seed_variance"))
    return Coverage(scenario.name, num_seeds, seed_sd=seed_sd, **means_of)


PAGE = """# Do the intervals cover what they promise?

Made by `python -m analysis.stats.simulation`. Each row is {num} simulated studies: two kinds of training set, paired by
seed, on the same test items, whose true difference for further seeds and further items (templates, premises) is known.
Accuracies and their standard deviations over seeds are those of 100 BERT finetunings (McCoy, Min and Linzen 2020): 84.3
± 0.24 % on MultiNLI, 27.7 ± 12.4 % on HANS's lexical-overlap non-entailment. `analysis/stats/simulation.py` has the
model. A share near 95 or 5 % has a Monte Carlo standard error of {error} points.

| simulated | seeds | accuracy ± SD, % | 95 % interval covers, % | leaves out 0, % | sign flips, p ≤ 5 %, % | \
t over seeds only covers, % | two-level bootstrap covers, % | mean width, points |
|---|---|---|---|---|---|---|---|---|
{rows}

Where there is no difference, *leaves out 0* is the type-I error. The interval is that of `analysis/stats/intervals.py`,
on which verdicts rest. Student's t over seeds alone forgets that other test items would have given another difference:
where templates matter it covers less the more seeds there are. So do sign flips, which cannot reach 5 % at all with 5
seeds or fewer. The bootstrap over seeds is too narrow for few seeds, so no verdict rests on it. The last two blocks are
not BERT's: there templates matter about as much as seeds, or more, and the interval is wider than it has to be for few
seeds.

## Ten points on HANS, by the number of runs

The same studies, 10 points less for the treatment: how often the claim 'it is less' gets which verdict. It is one claim, so
nothing is corrected for.

| runs | supported, % | cannot tell, % | interval's mean width, points |
|---|---|---|---|
{verdicts}

`blindsweep power --seed-sd 17.5` gives the number of runs for other differences (17.5 = 12.4 × √2).
"""


def page(results: Sequence[Coverage], verdicts: Sequence[Coverage], num: int) -> str:
    """docs/coverage.md."""

    def percent(share: float, digits: int = 1) -> str:
        return "–" if math.isnan(share) else f"{100 * share:.{digits}f}"

    rows = [
        [
            result.scenario,
            str(result.num_seeds),
            f"{percent(result.accuracy)} ± {percent(result.seed_sd, 2)}",
            *map(
                percent,
                (result.covered, result.rejected, result.rejected_by_sign_flip, result.over_seeds_only, result.bootstrap),
            ),
            percent(result.width),
        ]
        for result in results
    ]
    of_verdicts = [
        [str(result.num_seeds), percent(result.below), percent(1 - result.rejected), percent(result.width)]
        for result in verdicts
    ]
    return PAGE.format(
        num=f"{num:,}".replace(",", " "),
        error=percent(math.sqrt(0.05 * 0.95 / num)),
        rows="\n".join(f"| {' | '.join(row)} |" for row in rows),
        verdicts="\n".join(f"| {' | '.join(row)} |" for row in of_verdicts),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.stats.simulation", description="Write docs/coverage.md.")
    parser.add_argument("--output", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--replications", type=int, default=NUM_REPLICATIONS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results = []
    for scenario in SCENARIOS:
        for num_seeds in SEEDS:
            results.append(coverage(scenario, num_seeds, seed=options.seed, num=options.replications))
            print(results[-1], flush=True)
    ten_points = hans("HANS, 10 points less", -0.10)
    verdicts = [coverage(ten_points, num, seed=options.seed, num=options.replications) for num in VERDICT_SEEDS]
    options.output.write_text(page(results, verdicts, options.replications))


if __name__ == "__main__":
    main()
