"""The rules that the template corpus is written from: vocabulary, sentences with slots, and how they are filled.

The rules themselves are in ``template_rules.txt``. Each is a premise, a hypothesis and the label that holds
whatever words fill the slots. Sentences are lower case, of 3 to 14 tokens separated by spaces, with ``.`` and
``,`` as tokens of their own.

**Labels.** *Entailment*: the hypothesis is true of every situation that the premise describes.
*Contradiction*: of none. *Neutral*: of some. A few conventions settle what English leaves open:

- two definite descriptions with the same noun are one individual, with different nouns two;
- the two verbs, adjectives or adverbs of an antonym pair exclude each other, a synonym says the same;
- an event has one place, indoors or outdoors; what is said without a place is said of some place;
- 'never' denies the rest of its clause; 'every' and 'no' speak of at least one individual;
- what one 'almost' did one did not do;
- 'knew', 'because', 'clearly' and their like commit to the clause they introduce; 'believed', 'if', 'or' and
  'maybe' do not.

A subsequence is contiguous; a constituent is a whole clause of the premise, which the rule guarantees, and so
a subsequence too.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from pipelines.tasks.heuristics import HANS_HEURISTICS, has_lexical_overlap, is_subsequence
from pipelines.tasks.nli import Label

T = TypeVar("T")

# Concepts: a word, a synonym and an antonym, or None. Past tense and participle are the same word for every
# transitive verb, so that a passive and its active sentence have lexical overlap.
Concept = tuple[str, str | None, str | None]
TRANSITIVE: tuple[Concept, ...] = (
    ("helped", "assisted", "hindered"),
    ("praised", "complimented", "criticized"),
    ("loved", "adored", "hated"),
    ("pushed", "shoved", "pulled"),
    ("trusted", None, "suspected"),
    ("followed", "trailed", "avoided"),
    ("called", "phoned", None),
    ("watched", "observed", None),
    ("greeted", "welcomed", None),
    ("chased", "pursued", None),
    ("visited", None, None),
    ("thanked", None, None),
)
INTRANSITIVE: tuple[Concept, ...] = (
    ("slept", "dozed", None),
    ("shouted", "yelled", "whispered"),
    ("laughed", "giggled", "cried"),
    ("arrived", "came", "left"),
    ("worked", "labored", "rested"),
    ("waited", "lingered", "hurried"),
    ("smiled", "grinned", "frowned"),
    ("danced", None, None),
    ("prayed", None, None),
    ("ate", "dined", "fasted"),
)
ADJECTIVE: tuple[Concept, ...] = (
    ("old", "aged", "young"),
    ("happy", "glad", "sad"),
    ("rich", "wealthy", "poor"),
    ("tall", None, "short"),
    ("famous", None, "unknown"),
    ("tired", "weary", "fresh"),
)
ADVERB: tuple[Concept, ...] = (
    ("quickly", None, "slowly"),
    ("quietly", None, "loudly"),
    ("gladly", None, "grudgingly"),
)
PEOPLE = ("doctor", "lawyer", "judge", "teacher", "student", "artist", "baker", "farmer", "pilot", "nurse")
ANIMALS = ("dog", "cat", "horse", "fox")
OUTDOORS = ("in the garden", "in the park", "at the beach", "in the forest")
INDOORS = ("at the office", "in the kitchen", "at the hotel", "in the library")
WORDS: Mapping[str, tuple[str, ...]] = {
    "near": ("near", "behind", "beside"),
    "knew": ("knew", "realized", "remembered"),
    "thought": ("thought", "hoped", "claimed"),
    "believed": ("believed", "feared", "expected"),
    "because": ("because", "after", "when"),
    "almost": ("almost", "nearly"),
    "clearly": ("clearly", "certainly"),
    "maybe": ("maybe", "perhaps"),
}
CONCEPTS: Mapping[str, tuple[Concept, ...]] = {
    **dict.fromkeys("tu", TRANSITIVE),
    **dict.fromkeys("ij", INTRANSITIVE),
    **dict.fromkeys("xyz", ADJECTIVE),
    **dict.fromkeys("m", ADVERB),
}


@dataclass(frozen=True)
class Rule:
    """A premise and a hypothesis with slots, and the label of every filling.

    Slots: ``{a} {b} {c}`` nouns; ``{t} {u}`` transitive and ``{i} {j}`` intransitive verbs; ``{x} {y} {z}``
    adjectives; ``{m}`` an adverb; ``{p} {q}`` places; and the keys of ``WORDS``. Different slots of a kind
    are filled with unrelated words. ``{t_syn}`` and ``{t_ant}`` are the slot's synonym and antonym,
    ``{a_kind}`` the noun's hypernym, ``{p_kind}`` and ``{p_other}`` whether the place is in or outdoors, and
    the opposite. A part in square brackets is optional; in the hypothesis it occurs only where the premise
    has it.
    """

    heuristic: str
    """The probe group it belongs to, or '' if it is in the training and test sets only."""
    subcase: str
    label: Label
    premise: str
    hypothesis: str
    overlap: bool
    template: str
    """Unique: the subcase and a number."""


@dataclass(frozen=True)
class Pair:
    """A filled rule."""

    rule: Rule
    premise: str
    hypothesis: str


_SLOT = re.compile(r"\{(\w+?)(?:_(syn|ant|kind|other))?\}")
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
MAX_TOKENS = 14
RULES_FILE = Path(__file__).with_name("template_rules.txt")


@cache
def rules() -> tuple[Rule, ...]:
    """All rules of the corpus, in the order they are written."""
    labels = {"E": Label.ENTAILMENT, "N": Label.NEUTRAL, "C": Label.CONTRADICTION}
    found = []
    heuristic, subcase, overlap, premise, number = "", "", False, "", 0
    for line in RULES_FILE.read_text().splitlines():
        first, _, rest = line.partition(" ")
        if first == "=":
            group, subcase = rest.split()
            heuristic, overlap, number = group if group in HANS_HEURISTICS else "", group != "plain", 0
        elif first == "P":
            premise = rest
        elif first in labels:
            found.append(Rule(heuristic, subcase, labels[first], premise, rest, overlap, f"{subcase}/{number}"))
            number += 1
    return tuple(found)


def fill(rule: Rule, rng: random.Random, modifier_rate: float) -> Pair | None:
    """Fill a rule's slots at random, or None if this filling does not have the property that the rule is listed under.

    Sentences end in `` .``. Deterministic for a given state of ``rng``.
    """
    words = _choose_words(rule, rng)
    kept: set[str] = set()

    def keep_in_premise(match: re.Match[str]) -> str:
        if rng.random() >= modifier_rate:
            return ""
        kept.add(match[1])
        return match[1]

    def keep_in_hypothesis(match: re.Match[str]) -> str:
        return match[1] if match[1] in kept and rng.random() < 0.5 else ""

    premise = _render(_OPTIONAL.sub(keep_in_premise, rule.premise), words)
    hypothesis = _render(_OPTIONAL.sub(keep_in_hypothesis, rule.hypothesis), words)
    if len(premise.split()) > MAX_TOKENS or has_lexical_overlap(premise, hypothesis) != rule.overlap:
        return None
    # As in HANS: no pair named for lexical overlap alone is a subsequence, and every other probe pair is.
    if rule.heuristic and is_subsequence(premise, hypothesis) != (rule.heuristic != "lexical_overlap"):
        return None
    return Pair(rule, premise, hypothesis)


def _choose_words(rule: Rule, rng: random.Random) -> dict[str, str]:
    uses = _SLOT.findall(f"{rule.premise} {rule.hypothesis}")
    forms: dict[str, set[str]] = {}
    for slot, form in uses:
        forms.setdefault(slot, set()).add(form)
    words: dict[str, str] = {}
    taken: set[object] = set()
    for slot in sorted(forms):
        if slot in "abc":
            noun = pick([noun for noun in (*PEOPLE, *ANIMALS) if noun not in taken], rng)
            taken.add(noun)
            words[slot], words[f"{slot}_kind"] = noun, "a person" if noun in PEOPLE else "an animal"
        elif slot in "pq":
            place = pick([place for place in (*OUTDOORS, *INDOORS) if place not in taken], rng)
            taken.add(place)
            kinds = ("outdoors", "indoors") if place in OUTDOORS else ("indoors", "outdoors")
            words[slot], words[f"{slot}_kind"], words[f"{slot}_other"] = place, *kinds
        elif slot in CONCEPTS:
            wanted = forms[slot] - {""}
            options = [
                (concept, variant)
                for concept in CONCEPTS[slot]
                if concept not in taken
                for variant in _variants(concept)
                if all(variant[form] for form in wanted)
            ]
            concept, variant = pick(options, rng)
            taken.add(concept)
            words |= {slot: variant[""]} | {f"{slot}_{form}": variant[form] for form in wanted}
        else:
            words[slot] = pick(WORDS[slot], rng)
    return words


def _variants(concept: Concept) -> list[dict[str, str]]:
    """The concept seen from each of its words: the word is '', its synonym 'syn', its antonym 'ant'; '' where there is none."""
    word, synonym, antonym = (form or "" for form in concept)
    variants = [{"": word, "syn": synonym, "ant": antonym}]
    if synonym:
        variants.append({"": synonym, "syn": word, "ant": antonym})
    if antonym:
        variants.append({"": antonym, "syn": "", "ant": word})
    return variants


def _render(template: str, words: Mapping[str, str]) -> str:
    filled = _SLOT.sub(lambda match: words[match[0][1:-1]], template)
    return " ".join(f"{filled} .".split())


def pick(options: Sequence[T], rng: random.Random) -> T:
    """One of the options, uniformly."""
    # random() is the one method whose sequence Python promises to keep from version to version.
    return options[int(rng.random() * len(options))]
