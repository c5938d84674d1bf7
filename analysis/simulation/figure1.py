"""A simulated study in which the paper's Figure 1 is the truth, with the noise of BERT's seeds and of HANS's templates.

The paper has one run a cell. What could several seeds of such a study have said of the paper's claims?

    responses = figure1_study(figure1_levels(), num_seeds=5, seed=0)
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

import analysis
from analysis.simulation.scenarios import MNLI_PREMISES, Scenario, hans, mnli
from analysis.study.items import Cell, ItemSet, Responses
from analysis.verdicts.evidence import Evidence
from analysis.verdicts.verdicts import judge_evidence
from pipelines.tasks.nli import LABELS, NON_ENTAILMENT, Label

GENERAL_SET, BLINDSPOT_SET = "mnli_matched", "hans"
ADVERSARIAL = ("lexical_overlap", NON_ENTAILMENT)
OTHER_SEED_SD = 0.25
"""Of a task model on HANS's other parts, on the probit scale: 0.2 to 0.3 on those where BERT is not always right."""
MOST_PROBIT, LOGIT_PER_PROBIT = 8.0, 1.7
"""Of an answer's margin: beyond the one there is no doubt left, and the other is the logistic's scale beside the normal's."""
HANS_SUBCASES: Mapping[tuple[str, str], Mapping[str, tuple[int, ...]]] = {
    ("lexical_overlap", "entailment"): {
        "le_around_prepositional_phrase": (1000,),
        "le_around_relative_clause": (1000,),
        "le_conjunction": (492, 508),
        "le_passive": (490, 510),
        "le_relative_clause": (225, 253, 256, 266),
    },
    ("lexical_overlap", "non-entailment"): {
        "ln_conjunction": (228, 236, 245, 291),
        "ln_passive": (495, 505),
        "ln_preposition": (147, 152, 157, 173, 177, 194),
        "ln_relative_clause": (68, 69, 76, 80, 81, 81, 82, 84, 86, 92, 100, 101),
        "ln_subject/object_swap": (1000,),
    },
    ("subsequence", "entailment"): {
        "se_PP_on_obj": (1000,),
        "se_adjective": (1000,),
        "se_conjunction": (383, 617),
        "se_relative_clause_on_obj": (1000,),
        "se_understood_object": (1000,),
    },
    ("subsequence", "non-entailment"): {
        "sn_NP/S": (1000,),
        "sn_NP/Z": (150, 850),
        "sn_PP_on_subject": (1000,),
        "sn_past_participle": (405, 595),
        "sn_relative_clause_on_subject": (1000,),
    },
    ("constituent", "entailment"): {
        "ce_adverb": (1000,),
        "ce_after_since_clause": (1000,),
        "ce_conjunction": (480, 520),
        "ce_embedded_under_since": (1000,),
        "ce_embedded_under_verb": (1000,),
    },
    ("constituent", "non-entailment"): {
        "cn_adverb": (1000,),
        "cn_after_if_clause": (1000,),
        "cn_disjunction": (471, 529),
        "cn_embedded_under_if": (1000,),
        "cn_embedded_under_verb": (1000,),
    },
}
"""HANS's subcases by heuristic and label, and the items of their templates."""


@dataclass(frozen=True)
class Levels:
    """True accuracies (0..1) of one cell: general set, blindspot set, and its adversarial slice, a sixth of it."""

    general: float
    blindspot: float
    adversarial: float

    @property
    def elsewhere(self) -> float:
        """What the blindspot set's accuracy leaves for its other five parts, alike in each."""
        return min(max((6 * self.blindspot - self.adversarial) / 5, 0.0), 1.0)


def figure1_levels() -> dict[tuple[int, str, int], Levels]:
    """The paper's Figure 1: (starting_size, kind, size) → levels."""
    read: dict[tuple[int, str, int], dict[str, float]] = {}
    with (Path(analysis.__file__).parent / "reference" / "figure1.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            cell = int(row["starting_size"]), row["training_kind"], int(row["training_size"])
            read.setdefault(cell, {})[row["metric"]] = float(row["accuracy"])
    return {
        cell: Levels(of_cell["mnli_matched"], of_cell["hans"], of_cell["hans_lo_nonentailment"])
        for cell, of_cell in read.items()
    }


def figure1_study(levels: Mapping[tuple[int, str, int], Levels], num_seeds: int, *, seed: int) -> Responses:
    """Predictions of `num_seeds` task models in each cell, for items like MultiNLI's and HANS's. Deterministic for a `seed`.

    Seeds deviate independently in each cell and each part of HANS; what a template adds is shared by all cells, and some of it
    by those of a kind. A level of 0 or 1 is that of all seeds.
    """
    random = np.random.default_rng(seed)
    items = {GENERAL_SET: _general_items(), BLINDSPOT_SET: _hans_items()}
    is_adversarial = [part == ADVERSARIAL for part in HANS_SUBCASES]
    on_hans = np.array([hans("").seed_sd if adversarial else OTHER_SEED_SD for adversarial in is_adversarial])
    general = _Draw(items[GENERAL_SET], mnli(""), np.array([mnli("").seed_sd]), random)
    blindspot = _Draw(items[BLINDSPOT_SET], hans(""), on_hans, random)
    predicted: dict[str, dict[Cell, np.ndarray]] = {GENERAL_SET: {}, BLINDSPOT_SET: {}}
    scores: dict[str, dict[Cell, np.ndarray]] = {GENERAL_SET: {}, BLINDSPOT_SET: {}}
    for (start, kind, size), of_cell in levels.items():
        of_parts = np.where(is_adversarial, of_cell.adversarial, of_cell.elsewhere)
        for number in range(num_seeds):
            where: Cell = (start, kind, size, number)
            for name, drawn, levels_of_parts in (
                (GENERAL_SET, general, np.array([of_cell.general])),
                (BLINDSPOT_SET, blindspot, of_parts),
            ):
                predicted[name][where], scores[name][where] = drawn.answers(kind, levels_of_parts)
    return Responses(items, predicted, scores=scores)


def count_verdicts(
    judge: Callable[[Responses], Mapping[str, str]], num_seeds: int, num: int, *, seed: int
) -> dict[str, Counter[str]]:
    """How often each claim gets which verdict in `num` studies in which the paper's Figure 1 is the truth.

    `judge` maps a study's responses to claim → verdict.
    """
    levels = figure1_levels()
    counts: dict[str, Counter[str]] = {}
    for number in range(num):
        for claim, verdict in judge(figure1_study(levels, num_seeds, seed=seed + number)).items():
            counts.setdefault(claim, Counter())[verdict] += 1
    return counts


def judge_by_accuracy_and_scores(responses: Responses) -> dict[str, str]:
    """Claim → verdict on a study of `figure1_study`, of the paper's claims that its answers can judge."""
    cells = list(responses.predicted[BLINDSPOT_SET])
    starts, sizes = (tuple(sorted({int(cell[place]) for cell in cells})) for place in (0, 2))
    evidence = Evidence(responses, GENERAL_SET, BLINDSPOT_SET, "/".join(ADVERSARIAL), starts, tuple(filter(None, sizes)))
    return {found.name: str(found.verdict) for found in judge_evidence(evidence).judgements if found.settings}


class _Draw:
    """Task models' answers on one test set; `seed_sds` float [num_strata], as a task model deviates in each on its own."""

    def __init__(self, items: ItemSet, noise: Scenario, seed_sds: np.ndarray, random: np.random.Generator) -> None:
        self.items, self.noise, self.seed_sds, self.random = items, noise, seed_sds, random
        self.scales = np.sqrt(1 + noise.variance - noise.seed_sd**2 + seed_sds**2)
        self.num_clusters = int(items.clusters.max()) + 1
        self.shared = self._of_clusters(noise.cluster_sd)
        self.of_kinds: dict[str, np.ndarray] = {}
        classes = {str(label): label.index for label in LABELS} | {NON_ENTAILMENT: Label.CONTRADICTION.index}
        self.right = np.array([classes[label] for label in items.labels], dtype=np.int8)
        # Wrong after folding to two labels, too.
        self.wrong = np.where(self.right == 0, Label.CONTRADICTION.index, 0).astype(np.int8)

    def answers(self, kind: str, accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One task model's predicted classes, int8 [num_items], and log-odds of entailment, float32 [num_items].

        `accuracies` float [num_strata] are the true ones.
        """
        if kind not in self.of_kinds:
            self.of_kinds[kind] = self._of_clusters(self.noise.effect_sd)
        of_clusters = self.shared + self.of_kinds[kind] + self._of_clusters(self.noise.noise_sd)
        of_strata = stats.norm.ppf(accuracies) * self.scales + self.random.standard_normal(len(self.seed_sds)) * self.seed_sds
        probits = of_clusters[self.items.clusters] + of_strata[self.items.strata]
        # An item is right with probability Φ(probit); how clearly is on the scale of the logit.
        margins = np.clip(probits + self.random.standard_normal(len(probits)), -MOST_PROBIT, MOST_PROBIT) * LOGIT_PER_PROBIT
        classes = np.where(margins > 0, self.right, self.wrong)
        return classes, np.where(self.right == Label.ENTAILMENT.index, margins, -margins).astype(np.float32)

    def _of_clusters(self, sd: float) -> np.ndarray:
        return self.random.standard_normal(self.num_clusters) * sd


def _general_items() -> ItemSet:
    clusters = np.repeat(np.arange(len(MNLI_PREMISES)), MNLI_PREMISES)
    labels = np.array([str(LABELS[number % len(LABELS)]) for number in range(len(clusters))])
    none = np.full(len(clusters), "")
    return _item_set(GENERAL_SET, labels, none, none, clusters, np.zeros_like(clusters), "premise")


def _hans_items() -> ItemSet:
    rows = [
        (heuristic, label, subcase, stratum, size)
        for stratum, ((heuristic, label), of_part) in enumerate(HANS_SUBCASES.items())
        for subcase, sizes in of_part.items()
        for size in sizes
    ]
    sizes = [row[-1] for row in rows]
    heuristics, labels, subcases, strata = (np.repeat([row[column] for row in rows], sizes) for column in range(4))
    clusters = np.repeat(np.arange(len(rows)), sizes)
    return _item_set(BLINDSPOT_SET, labels, heuristics, subcases, clusters, strata, "template")


def _item_set(
    name: str,
    labels: np.ndarray,
    heuristics: np.ndarray,
    subcases: np.ndarray,
    clusters: np.ndarray,
    strata: np.ndarray,
    clustered_by: str,
) -> ItemSet:
    ids = np.array([f"{name}{number}" for number in range(len(labels))])
    return ItemSet(name, ids, labels, heuristics, subcases, clusters, strata, clustered_by)
