"""Simulated studies of two kinds of training set, several seeds of each, on the same test items.

Whether task model s of kind k has an item of cluster c right is drawn with probability

    Φ(base_k + seed_sk + generator_gk + cluster_c + effect_ck + noise_csk)

with normal deviations, so that the true accuracy of further seeds, clusters and generators is known: Φ(base_k / √(1 + sum of
their variances)). Variances are such that one kind has the accuracy, and the standard deviation over seeds, of 100 BERT
finetunings (McCoy, Min and Linzen 2020): 84.3 ± 0.24% on MultiNLI, 27.7 ± 12.4% on HANS's lexical-overlap non-entailment.
Clusters have the sizes of the real sets: 25 templates of 68 to 1000 items, 3,334 premises of 1 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtr

from analysis.stats.intervals import effective_df, half_width, leverages, variances
from analysis.stats.shares import Mean

HANS_TEMPLATES = np.array(
    [236, 245, 291, 228, 505, 495, 177, 173, 152, 157, 147, 194, 82, 84, 81, 76, 81, 100, 80, 68, 92, 86, 69, 101, 1000]
)
"""Items of each template of HANS's lexical-overlap non-entailment: 5,000."""
MNLI_PREMISES = np.repeat([3, 2, 1, 6], [3151, 174, 8, 1])
"""Items of each premise of MultiNLI matched (development): 9,815."""
HANS_SEED_SD = 0.505
CHUNK = 4_000_000
"""Numbers drawn at once, so that memory does not grow with the replications."""


@dataclass(frozen=True)
class Scenario:
    """Two kinds of training set on one test set. `accuracy` is the control's, the treatment's is `accuracy + difference`.

    `seed_sd`, `cluster_sd`, `effect_sd`, `noise_sd` and `generator_sd` are standard deviations on the probit scale: of a task
    model, of a cluster for both kinds, of a cluster for one kind, of a cluster for one task model, and of a generator, which
    the treatment alone has.
    """

    name: str
    sizes: np.ndarray
    accuracy: float
    difference: float
    seed_sd: float
    cluster_sd: float
    effect_sd: float
    noise_sd: float
    generator_sd: float = 0.0

    @property
    def variance(self) -> float:
        """Of the probit within one generator."""
        return self.seed_sd**2 + self.cluster_sd**2 + self.effect_sd**2 + self.noise_sd**2

    @property
    def bases(self) -> tuple[float, float]:
        """Base of control and treatment, on the probit scale."""
        control, treatment = (float(stats.norm.ppf(share)) for share in (self.accuracy, self.accuracy + self.difference))
        return control * math.sqrt(1 + self.variance), treatment * math.sqrt(1 + self.variance + self.generator_sd**2)

    def draw(
        self,
        num_seeds: int,
        num: int,
        random: np.random.Generator,
        generators: np.ndarray | None = None,
        seeds: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Right items by cluster of control and treatment: int [num, num_seeds, num_clusters] each.

        `generators` float [num, num_generators] are the treatment's generators' deviations; seeds are dealt over them in turn.
        `seeds` float [num, num_seeds] are the control's seeds' deviations, where they have to be known.
        """
        m = len(self.sizes)
        shared = random.standard_normal((num, 1, m)) * self.cluster_sd
        sides: list[np.ndarray] = []
        for base in self.bases:
            latent = random.standard_normal((num, num_seeds, m)) * self.noise_sd
            if seeds is not None and not sides:
                latent += seeds[..., np.newaxis]
            else:
                latent += random.standard_normal((num, num_seeds, 1)) * self.seed_sd
            latent += random.standard_normal((num, 1, m)) * self.effect_sd
            latent += shared + base
            if generators is not None and len(sides) == 1:
                latent += generators[:, np.arange(num_seeds) % generators.shape[1], np.newaxis]
            sides.append(random.binomial(self.sizes, ndtr(latent)))
        return sides[0], sides[1]

    def difference_of(self, generators: np.ndarray) -> np.ndarray:
        """The true difference with each generator, for further seeds and clusters: as `generators`, their deviations."""
        return ndtr((self.bases[1] + generators) / math.sqrt(1 + self.variance)) - self.accuracy

    def chunk_sizes(self, num_seeds: int, num: int) -> Iterator[int]:
        """`num` studies in parts that fit into memory."""
        at_once = max(1, CHUNK // (num_seeds * len(self.sizes)))
        for start in range(0, num, at_once):
            yield min(at_once, num - start)


def hans(
    name: str,
    difference: float = 0.0,
    *,
    accuracy: float = 0.277,
    effect_sd: float = 0.2,
    seed_sd: float = HANS_SEED_SD,
    generator_sd: float = 0.0,
) -> Scenario:
    """BERT on HANS's lexical-overlap non-entailment; templates differ much, and somewhat in what training does to them."""
    return Scenario(name, HANS_TEMPLATES, accuracy, difference, seed_sd, 0.8, effect_sd, 0.3, generator_sd)


def mnli(name: str, difference: float = 0.0) -> Scenario:
    """BERT on MultiNLI: seeds differ by which items they happen to have right, hardly by how many."""
    return Scenario(name, MNLI_PREMISES, 0.843, difference, 0.01, 3.0, 0.2, 0.3)


@dataclass(frozen=True)
class Intervals:
    """Two-level intervals of many studies: float [num] each, `values` [num, n] and `residuals` [num, n, m] as in `Replicates`.

    `of_seeds` and `of_items` are the parts of the mean's variance, `half` the interval's half-width and `half_of_seeds` that of
    Student's t over seeds only.
    """

    values: np.ndarray
    residuals: np.ndarray
    of_seeds: np.ndarray
    of_items: np.ndarray
    items_df: float

    @property
    def means(self) -> np.ndarray:
        return self.values.mean(axis=-1)

    @property
    def seeds_df(self) -> int:
        return self.values.shape[-1] - 1

    @property
    def half(self) -> np.ndarray:
        return np.asarray(half_width(self.of_seeds, self.seeds_df, self.of_items, self.items_df))

    @property
    def half_of_seeds(self) -> np.ndarray:
        return np.asarray(half_width(self.of_seeds, self.seeds_df, 0.0, self.items_df))

    @property
    def mean(self) -> Mean:
        return self.means, self.of_seeds, self.seeds_df, self.of_items, self.items_df


def intervals_of(right: np.ndarray, sizes: np.ndarray) -> Intervals:
    """Intervals from right items, or a difference of such, by cluster: float [num, n, m]."""
    strata = np.zeros(len(sizes), dtype=int)
    values = right.sum(axis=-1) / sizes.sum()
    residuals = (right - values[..., np.newaxis] * sizes) / sizes.sum()
    of_one_seed, of_items = variances(values, residuals, leverages(sizes, strata))
    of_seeds = np.zeros_like(of_items) if values.shape[-1] == 1 else of_one_seed / values.shape[-1]
    return Intervals(values, residuals, of_seeds, of_items, effective_df(sizes, strata))
