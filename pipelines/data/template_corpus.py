"""The project's own NLI corpus, written from rules: a training set, two test sets and a probe like HANS.

    prepare_template_corpus(TemplateCorpusConfig(num_train=9_000, overlap_entailment_rate=0.5), "corpus")

What a pair looks like and why its label holds is in :mod:`pipelines.data.template_rules`.

**Correlation.** Lexical overlap (:mod:`pipelines.tasks.heuristics`) holds of ``overlap_share`` of the entailments
of train, dev and test, and of all pairs it holds of, ``overlap_entailment_rate`` are entailments. At 1.0 the
heuristic is never wrong and nothing in training tells it from the task; at 1/3 overlap says nothing about
entailment.

**Probe.** Like HANS (McCoy, Pavlick and Linzen 2019) it has three heuristics x entailment or not x several
subcases, in equal numbers, and each pair satisfies the heuristic it is named for. Its subcases occur in
training as well, in the stated proportion.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipelines.data.protocol import check_is_nli
from pipelines.data.template_rules import Pair, Rule, fill, pick, rules
from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import JsonValue
from pipelines.storage import join
from pipelines.tasks.examples import write_examples
from pipelines.tasks.nli import LABELS, NLI, Label
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet


@dataclass(frozen=True)
class TemplateCorpusConfig:
    """Sizes and rates. Counts are of pairs; train, dev and test are label-balanced, the remainder for the first labels."""

    seed: int = 0
    num_train: int = 9_000
    num_dev: int = 300
    num_test: int = 900
    num_probe_per_group: int = 200
    """Probe pairs per heuristic and label: six groups, each split evenly over its subcases."""
    overlap_share: float = 0.5
    """Share of the entailments that have lexical overlap, in [0, 1]."""
    overlap_entailment_rate: float = 0.5
    """Share of entailments among the pairs with lexical overlap, in (0, 1]."""
    overlap_neutral_share: float = 0.75
    """Share of neutral pairs among the non-entailments with lexical overlap, in [0, 1]."""
    modifier_rate: float = 0.25
    """Probability of an optional adjective, adverb or place, in [0, 1]."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_train", "num_dev", "num_test", "num_probe_per_group"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a set of the corpus cannot be empty; give 1 or more")
        for name in ("overlap_share", "overlap_entailment_rate", "overlap_neutral_share", "modifier_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is a share; give a number from 0 to 1")
        if self.overlap_entailment_rate == 0 and self.overlap_share > 0:
            raise UserError(
                f"overlap_entailment_rate=0: no overlapping pair is an entailment, but overlap_share="
                f"{self.overlap_share}: some are; set overlap_share=0 or a rate above 0"
            )
        for name in ("num_train", "num_dev", "num_test"):
            cell_sizes(self, getattr(self, name))

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        return ()

    @property
    def set_names(self) -> tuple[str, ...]:
        return ("template_test", "template_probe", "dev")

    @property
    def made_of(self) -> dict[str, tuple[str, ...]]:
        return {}

    @property
    def for_training(self) -> "TemplateCorpusConfig":
        return self

    def for_task(self, task: Task) -> "TemplateCorpusConfig":
        check_is_nli(task, "the template corpus")
        return self

    def missing(self, folder: str) -> tuple[str, ...]:
        return ()

    def with_content(self, folder: str) -> "TemplateCorpusConfig":
        return self

    def counts(self, folder: str) -> dict[str, int]:
        counts = {"template_probe/num_examples": 6 * self.num_probe_per_group}
        for name, size in (("train", self.num_train), ("dev", self.num_dev), ("template_test", self.num_test)):
            counts[f"{name}/num_examples"] = size
            for (label, _), number in cell_sizes(self, size).items():
                counts[f"{name}/{label}"] = counts.get(f"{name}/{label}", 0) + number
        return counts

    def read_as(self, folder: str) -> dict[str, str]:
        return {}

    def prepare(self, output: str, *, folder: str) -> Mapping[str, JsonValue]:
        return prepare_template_corpus(self, output)


def cell_sizes(config: TemplateCorpusConfig, num_examples: int) -> dict[tuple[Label, bool], int]:
    """Numbers of pairs by label and by whether they have lexical overlap, in a set of ``num_examples``.

    Raises :class:`UserError` if the rates ask for more overlapping non-entailments than a label-balanced set
    has.
    """
    quotient, remainder = divmod(num_examples, len(LABELS))
    sizes = {label: quotient + (label.index < remainder) for label in LABELS}
    entailments = round(config.overlap_share * sizes[Label.ENTAILMENT])
    rate = config.overlap_entailment_rate
    others = round(entailments * (1 - rate) / rate) if entailments else 0
    neutral = round(others * config.overlap_neutral_share)
    overlapping = {Label.ENTAILMENT: entailments, Label.NEUTRAL: neutral, Label.CONTRADICTION: others - neutral}
    for label, count in overlapping.items():
        if count > sizes[label]:
            raise UserError(
                f"overlap_share={config.overlap_share} and overlap_entailment_rate={rate} ask for "
                f"{count:,} {label} examples with lexical overlap among {sizes[label]:,}; lower the share or "
                "raise the rate"
            )
    return {
        (label, overlap): overlapping[label] if overlap else sizes[label] - overlapping[label]
        for label in LABELS
        for overlap in (True, False)
    }


def prepare_template_corpus(config: TemplateCorpusConfig, output: str) -> dict[str, float]:
    """Write ``train``, ``dev``, ``template_test`` and ``template_probe`` ``.parquet`` to the folder ``output``.

    All have id, premise, hypothesis, label, subcase, template; the probe's labels are entailment and
    non-entailment and it has ``heuristic``. No pair occurs twice, in one set or in two. Returns row counts by
    set and label, and how many have overlap. Raises :class:`UserError` if the rules cannot give so many
    different pairs.
    """
    seen: dict[tuple[str, str], Label] = {}
    metrics: dict[str, float] = {}
    # The probe first and training last: what a set excludes does not depend on how large the training set is.
    sets = {"template_probe": _probe(config, seen)}
    for name, num_examples in (("template_test", config.num_test), ("dev", config.num_dev), ("train", config.num_train)):
        sets[name] = _balanced_set(config, name, num_examples, seen)
    for name, pairs in sets.items():
        is_probe = name == "template_probe"
        labels = [NLI.fold(pair.rule.label, Label.ENTAILMENT) if is_probe else pair.rule.label.value for pair in pairs]
        columns: dict[str, list[str]] = {
            "id": [f"{name}-{index:06d}" for index in range(len(pairs))],
            "premise": [pair.premise for pair in pairs],
            "hypothesis": [pair.hypothesis for pair in pairs],
            "label": labels,
            "subcase": [pair.rule.subcase for pair in pairs],
            "template": [pair.rule.template for pair in pairs],
        }
        if is_probe:
            columns["heuristic"] = [pair.rule.heuristic for pair in pairs]
        write_examples(pa.table(columns), join(output, f"{name}.parquet"))
        metrics[f"{name}/num_examples"] = len(pairs)
        for label in sorted(set(labels)):
            metrics[f"{name}/{label}"] = labels.count(label)
            metrics[f"{name}/{label}/lexical_overlap"] = sum(
                pair.rule.overlap for pair, folded in zip(pairs, labels, strict=True) if folded == label
            )
    return metrics


def draw(
    candidates: list[Rule], num_pairs: int, rng: random.Random, modifier_rate: float, seen: dict[tuple[str, str], Label]
) -> list[Pair]:
    """Fill rules drawn uniformly from ``candidates`` until there are ``num_pairs`` pairs not in ``seen``; add them there.

    Raises :class:`UserError` if a hundred attempts a pair do not give so many.
    """
    pairs: list[Pair] = []
    attempts_left = 100 * num_pairs + 1_000
    while len(pairs) < num_pairs:
        if not attempts_left:
            raise UserError(
                f"the {len(candidates)} rules for {candidates[0].label} from {candidates[0].template} on "
                f"gave only {len(pairs):,} new pairs of {num_pairs:,}; ask for a smaller corpus"
            )
        attempts_left -= 1
        pair = fill(pick(candidates, rng), rng, modifier_rate)
        if pair is None:
            continue
        key = (pair.premise, pair.hypothesis)
        if key in seen:
            assert seen[key] == pair.rule.label, f"two rules label {key} as {seen[key]} and {pair.rule.label}"
            continue
        seen[key] = pair.rule.label
        pairs.append(pair)
    return pairs


def _balanced_set(config: TemplateCorpusConfig, name: str, num_examples: int, seen: dict[tuple[str, str], Label]) -> list[Pair]:
    pairs: list[Pair] = []
    for (label, overlap), size in cell_sizes(config, num_examples).items():
        candidates = [rule for rule in rules() if rule.label == label and rule.overlap == overlap]
        rng = random.Random(f"{config.seed}/{name}/{label}/{overlap}")
        pairs += draw(candidates, size, rng, config.modifier_rate, seen)
    rng = random.Random(f"{config.seed}/{name}/order")
    return sorted(pairs, key=lambda _: rng.random())


def _probe(config: TemplateCorpusConfig, seen: dict[tuple[str, str], Label]) -> list[Pair]:
    groups: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    for rule in rules():
        if rule.heuristic:
            groups.setdefault((rule.heuristic, NLI.fold(rule.label, Label.ENTAILMENT)), {}).setdefault(rule.subcase, []).append(
                rule
            )
    pairs: list[Pair] = []
    for subcases in groups.values():
        quotient, remainder = divmod(config.num_probe_per_group, len(subcases))
        for index, (subcase, candidates) in enumerate(subcases.items()):
            rng = random.Random(f"{config.seed}/template_probe/{subcase}")
            pairs += draw(candidates, quotient + (index < remainder), rng, config.modifier_rate, seen)
    return pairs
