import random
import re
from collections import Counter, defaultdict

import pytest

from pipelines.data.template_rules import fill, rules
from pipelines.tasks.nli import Label


def test_probe_subcases_do_not_give_the_label_away_by_the_premise():
    """A model that reads only the premise must not pass: entailed and not share premises."""
    premises = {rule.premise for rule in rules() if rule.heuristic == "lexical_overlap" and rule.label == "entailment"}
    shared = [rule for rule in rules() if rule.subcase.startswith("ln_") and rule.premise in premises]
    assert len(shared) >= 4


@pytest.mark.parametrize(
    ("subcase", "label", "premise", "hypothesis"),
    [
        ("ln_subject_object_swap", "neutral", "the {a} {t} the {b}", "the {b} {t} the {a}"),
        ("le_passive", "entailment", "the {a} was {t} by the {b}", "the {b} {t} the {a}"),
        ("ln_passive", "neutral", "the {a} was {t} by the {b}", "the {a} {t} the {b}"),
        ("cn_disjunction", "neutral", "the {a} {i} or the {b} {j}", "the {a} {i}"),
        ("ce_conjunction", "entailment", "the {a} {i} and the {b} {j}", "the {a} {i}"),
        ("negation", "contradiction", "the {a} never {t} the {b}", "the {a} {t} the {b}"),
        ("quantified", "contradiction", "every {a} {i}", "no {a} {i}"),
    ],
)
def test_rules_by_hand(subcase, label, premise, hypothesis):

    plain = [
        (
            rule.subcase,
            rule.label.value,
            " ".join(re.sub(r"\[.*?\]", "", rule.premise).split()),
            rule.hypothesis,
        )
        for rule in rules()
    ]
    assert (subcase, label, premise, hypothesis) in plain


def test_no_two_rules_label_one_pair_differently():
    rng = random.Random(0)
    labels = defaultdict(set)
    by_shape = defaultdict(set)
    for rule in rules():
        by_shape[rule.premise, rule.hypothesis].add(rule.label)
        for _ in range(60):
            if pair := fill(rule, rng, 0.3):
                labels[pair.premise, pair.hypothesis].add(rule.label)
    assert all(len(found) == 1 for found in labels.values())
    assert all(len(found) == 1 for found in by_shape.values())
    assert len(labels) > 5_000


def test_every_rule_can_be_filled_and_has_a_name_of_its_own():
    rng = random.Random(0)
    names = Counter(rule.template for rule in rules())
    assert set(names.values()) == {1}
    for rule in rules():
        assert any(fill(rule, rng, 0.3) for _ in range(200)), rule


def test_nothing_optional_is_dropped_under_never():
    """'never slept in the garden' leaves open whether it slept, so there modifiers may not come and go."""
    for rule in rules():
        if "never" in rule.premise or rule.premise.startswith(("no ", "every ")):
            assert rule.label == Label.NEUTRAL or "[" not in rule.premise or rule.subcase == "quantified", rule


def test_optional_parts_of_the_hypothesis_are_in_the_premise():
    rule = next(rule for rule in rules() if rule.subcase == "se_adverbial")
    rng = random.Random(1)
    for _ in range(200):
        if pair := fill(rule, rng, 0.5):
            assert set(pair.hypothesis.split()) <= set(pair.premise.split())
