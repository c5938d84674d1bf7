"""The rules that the template corpus is written from: vocabulary, sentences with slots, and how they are filled.

Each rule is a premise, a hypothesis and the label that holds whatever words fill the slots. Sentences are
lower case, of 3 to 14 tokens separated by spaces, with ``.`` and ``,`` as tokens of their own.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.tasks.examples import Label
from pipelines.tasks.heuristics import HANS_HEURISTICS, has_lexical_overlap, is_subsequence

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


# One block a subcase: `= <group> <subcase>`, then premises (P) and the hypotheses under each with their
# labels (E, N, C). The group is a heuristic (the rule is in the probe too), `overlap` (lexical overlap, not
# in the probe) or `plain` (no lexical overlap).
RULES = """
= lexical_overlap le_modifiers
P the {x} {a} {m} {t} the {b} [{p}]
E the {a} {t} the {b}
P the [{y}] {a} {t} the {x} {b} [{p}]
E the {a} {t} the {b}
= lexical_overlap le_passive
P the [{x}] {a} was {t} by the [{y}] {b} [{p}]
E the {b} {t} the {a}
= lexical_overlap le_relative_clause
P the {a} who {t} the {b} {i} [{p}]
E the {a} {t} the {b}
E the {a} {i}
P the {a} who the {b} {t} {i} [{p}]
E the {b} {t} the {a}
E the {a} {i}
= lexical_overlap le_conjunction
P the {a} and the {b} {t} the {c}
E the {a} {t} the {c}
P the {a} {t} the {b} and the {c}
E the {a} {t} the {c}
= lexical_overlap le_prepositional_phrase
P the {a} {near} the {b} {i} [{p}]
E the {a} {i}
P the {a} {near} the {b} {t} the {c}
E the {a} {t} the {c}
= lexical_overlap le_adverb
P the [{x}] {a} {clearly} {t} the [{y}] {b} [{p}]
E the {a} {t} the {b}
P the {a} {clearly} {i} [{p}]
E the {a} {i}
= lexical_overlap ln_subject_object_swap
P the [{x}] {a} [{m}] {t} the [{y}] {b} [{p}]
N the {b} {t} the {a}
= lexical_overlap ln_passive
P the [{x}] {a} was {t} by the [{y}] {b} [{p}]
N the {a} {t} the {b}
= lexical_overlap ln_relative_clause
P the {a} who {t} the {b} {i} [{p}]
N the {b} {t} the {a}
P the {a} who the {b} {t} {i} [{p}]
N the {a} {t} the {b}
N the {b} {i}
= lexical_overlap ln_conjunction
P the {a} {t} the {b} and the {c}
N the {b} {t} the {c}
P the {a} and the {b} {t} the {c}
N the {a} {t} the {b}
= lexical_overlap ln_prepositional_phrase
P the {a} {near} the {b} {t} the {c}
N the {a} {t} the {b}
= lexical_overlap ln_adverb
P the [{x}] {a} {maybe} {t} the [{y}] {b} [{p}]
N the {a} {t} the {b}
P the {a} {maybe} {i} [{p}]
N the {a} {i}
= lexical_overlap ln_approximator
P the [{x}] {a} {almost} {t} the [{y}] {b}
C the {a} {t} the {b}
P the {a} {almost} {i}
C the {a} {i}
= lexical_overlap ln_disjunction
P the {a} or the {b} {t} the {c}
N the {a} {t} the {c}
P the {a} {t} the {b} or the {c}
N the {a} {t} the {c}
= lexical_overlap ln_clause_swap
P the {a} {i} and the {b} {j}
N the {a} {j}
N the {b} {i}

= subsequence se_conjunction
P the {a} and the {b} {i} [{p}]
E the {b} {i} [{p}]
P the {a} {t} the {b} and the {c}
E the {a} {t} the {b}
= subsequence se_adverbial
P the [{x}] {a} {t} the [{y}] {b} {p}
E the [{x}] {a} {t} the [{y}] {b}
P the [{x}] {a} {i} {m} [{p}]
E the [{x}] {a} {i}
= subsequence se_relative_clause_on_object
P the {a} {t} the {b} who {i} [{p}]
E the {a} {t} the {b}
= subsequence sn_prepositional_phrase_on_subject
P the {a} {near} the {b} {i} [{p}]
N the {b} {i} [{p}]
P the {a} {near} the {b} {t} the {c}
N the {b} {t} the {c}
= subsequence sn_relative_clause_on_subject
P the {a} who {t} the {b} {i} [{p}]
N the {b} {i} [{p}]
= subsequence sn_clause_as_object
P the {a} {believed} the {b} {i} [{p}]
N the {a} {believed} the {b}

= constituent ce_conjunction
P the {a} {i} and the {b} {j}
E the {a} {i}
E the {b} {j}
= constituent ce_subordinate_clause
P {because} the {a} {i} , the {b} {j}
E the {a} {i}
E the {b} {j}
= constituent ce_factive_verb
P the {a} {knew} that the {b} {i} [{p}]
E the {b} {i} [{p}]
P the {a} {knew} that the {b} {t} the {c}
E the {b} {t} the {c}
= constituent ce_adverb
P {clearly} the {a} {i} [{p}]
E the {a} {i} [{p}]
P {clearly} the {a} {t} the {b}
E the {a} {t} the {b}
= constituent cn_disjunction
P the {a} {i} or the {b} {j}
N the {a} {i}
N the {b} {j}
= constituent cn_conditional
P if the {a} {i} , the {b} {j}
N the {a} {i}
N the {b} {j}
= constituent cn_nonfactive_verb
P the {a} {thought} that the {b} {i} [{p}]
N the {b} {i} [{p}]
P the {a} {thought} that the {b} {t} the {c}
N the {b} {t} the {c}
= constituent cn_adverb
P {maybe} the {a} {i} [{p}]
N the {a} {i} [{p}]
P {maybe} the {a} {t} the {b}
N the {a} {t} the {b}

= overlap reordered_clauses
P the {a} {i} or the {b} {j}
E the {b} {j} or the {a} {i}
P if the {a} {i} , the {b} {j}
E the {b} {j} if the {a} {i}
N the {a} {i} if the {b} {j}
P the {a} {i} and the {b} {j}
E the {b} {j} and the {a} {i}
= overlap negation
P the {a} never {t} the {b}
N the {b} {t} the {a}
C the {a} {t} the {b}
P the {a} never {i} {p}
N the {a} never {i}
C the {a} {i} {p}
P the {a} was never {t} by the {b}
E the {b} never {t} the {a}
N the {a} never {t} the {b}
C the {b} {t} the {a}
= overlap quantifier
P some {x} {a} {i} [{p}]
E some {a} {i}
P every {x} {a} {i}
N every {a} {i}
P no {x} {a} {i}
N no {a} {i}

= plain transitive
P the [{x}] {a} [{m}] {t} the [{y}] {b} [{p}]
E the {a} {t_syn} the {b}
E the {a} never {t_ant} the {b}
E {a_kind} {t} the {b}
E the {a} {t} {b_kind}
E the {b} was {t} by the {a}
E the {b} was {t_syn} by the {a}
N the {a} {t} the {c}
N the {c} {t} the {b}
N the {a} {u} the {b}
N the {b} {t_syn} the {a}
N the {b} never {t} the {a}
N the {a} was {t} by the {b}
N the {z} {a} {t} the {b}
N the {b} was {z}
C the {a} never {t} the {b}
C the {a} {t_ant} the {b}
C nobody {t} the {b}
C the {b} was never {t} by the {a}
P the {a} {t} the {b}
N the {a} {m} {t} the {b}
N the {a} {t} the {b} {p}
P the {a} {m} {t} the {b} [{p}]
C the {a} {m_ant} {t} the {b}
P {a_kind} {t} the {b}
N the {a} {t} the {b}
= plain intransitive
P the [{x}] {a} {i} [{p}]
E the {a} {i_syn} [{p}]
E the {a} never {i_ant}
E {a_kind} {i} [{p}]
N the {a} {j} [{p}]
N the {c} {i} [{p}]
C the {a} never {i}
C the {a} {i_ant} [{p}]
C nobody {i}
P the [{x}] {a} {i} {p}
E the {a} {i} {p_kind}
N the {a} {j} {p_kind}
C the {a} {i} {p_other}
C the {a} {i} {q}
P the {x} {a} {i} [{p}]
E the {a} was {x}
E the {x_syn} {a} {i}
N the {a} was {y}
C the {a} was {x_ant}
C the {a} was never {x}
P the {a} {i}
N the {a} {i} {p}
P the {a} {i} {p_kind}
N the {a} {i} {p}
C the {a} {i} {p_other}
= plain passive
P the {a} was {t} by the {b} [{p}]
E the {b} {t_syn} the {a}
E {a_kind} was {t} by the {b}
N the {a} {t_syn} the {b}
N the {a} never {t} the {b}
N the {a} was {t} by the {c}
C the {b} never {t} the {a}
C the {b} {t_ant} the {a}
C the {a} was never {t} by the {b}
= plain relative_clause
P the {a} who {t} the {b} {i} [{p}]
E the {a} {t_syn} the {b}
E the {a} {i_syn}
E the {b} was {t} by the {a}
N the {b} {i_syn}
N the {b} never {i}
N the {b} {t_syn} the {a}
C the {a} never {t} the {b}
C the {a} never {i}
C the {a} {i_ant}
P the {a} who the {b} {t} {i} [{p}]
E the {b} {t_syn} the {a}
E the {a} was {t} by the {b}
N the {a} {t_syn} the {b}
N the {b} never {i}
C the {b} never {t} the {a}
C the {a} never {i}
= plain prepositional_phrase
P the {a} {near} the {b} {i} [{p}]
E the {a} {i_syn}
E the {a} was {near} the {b}
N the {b} {i_syn}
N the {b} never {i}
C the {a} never {i}
C the {a} was never {near} the {b}
= plain coordination
P the {a} and the {b} {i} [{p}]
E the {a} {i_syn}
E the {b} {i_syn}
N the {c} {i}
N the {a} {j}
C the {a} never {i}
C the {b} {i_ant}
P the {a} {i} and the {b} {j}
E the {b} {j_syn}
N the {b} {i_syn}
C the {b} never {j}
C the {a} {i_ant}
P the {a} {i} or the {b} {j}
N the {a} {i_syn}
N the {b} never {j}
P the {a} or the {b} {i}
E the {b} or the {a} {i_syn}
N the {a} never {i}
C nobody {i}
= plain subordination
P {because} the {a} {i} , the {b} {j}
E the {a} {i_syn}
N the {a} {j_syn}
C the {a} never {i}
C the {b} never {j}
P if the {a} {i} , the {b} {j}
N the {a} {i_syn}
N the {b} never {j}
P the {a} {knew} that the {b} {i} [{p}]
E the {b} {i_syn}
N the {a} {i_syn}
C the {b} never {i}
C the {a} never {knew} that the {b} {i}
P the {a} {thought} that the {b} {i} [{p}]
E the {a} {thought} that the {b} {i_syn}
N the {b} {i_syn}
N the {b} never {i}
C the {a} never {thought} that the {b} {i}
P {maybe} the {a} {i} [{p}]
E {maybe} the {a} {i_syn}
N the {a} never {i}
P {clearly} the {a} {i} [{p}]
E the {a} {i_syn}
N the {a} {j}
C the {a} never {i}
P the {a} {clearly} {t} the {b}
E the {a} {t_syn} the {b}
C the {a} never {t} the {b}
P the {a} {maybe} {t} the {b}
N the {a} {t_syn} the {b}
N the {a} never {t} the {b}
P the {a} {almost} {t} the {b}
E the {a} never {t} the {b}
N the {a} {u} the {b}
C the {a} {t_syn} the {b}
= plain negated
P the {a} never {t} the {b}
E the {a} never {t_syn} the {b}
E the {a} never {t} the {b} {p}
E the {b} was never {t} by the {a}
N the {a} never {t} the {c}
N the {a} never {u} the {b}
C the {a} {t_syn} the {b}
C the {b} was {t} by the {a}
P the {a} never {i}
E the {a} never {i} {p}
N the {a} never {j}
C the {a} {i_syn}
= plain quantified
P every {a} {i} [{p}]
E some {a} {i}
E every {x} {a} {i}
N every {c} {i}
C no {a} {i}
C some {a} never {i}
P some {a} {i} [{p}]
E some {a} {i_syn}
N every {a} {i}
N some {c} {i}
C no {a} {i}
P no {a} {i}
E no {x} {a} {i}
E no {a} {i_syn}
N no {c} {i}
C some {a} {i}
C every {a} {i}
"""

_SLOT = re.compile(r"\{(\w+?)(?:_(syn|ant|kind|other))?\}")
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
MAX_TOKENS = 14


def rules() -> tuple[Rule, ...]:
    """All rules of the corpus, in the order they are written."""
    return tuple(_rules())


def _rules() -> Iterator[Rule]:
    names = {"E": Label.ENTAILMENT, "N": Label.NEUTRAL, "C": Label.CONTRADICTION}
    heuristic, subcase, overlap, premise = "", "", False, ""
    number = 0
    for line in RULES.strip().splitlines():
        first, _, rest = line.strip().partition(" ")
        if first == "=":
            group, subcase = rest.split()
            heuristic, overlap, number = group if group in HANS_HEURISTICS else "", group != "plain", 0
        elif first == "P":
            premise = rest
        elif first in names:
            yield Rule(heuristic, subcase, names[first], premise, rest, overlap, f"{subcase}/{number}")
            number += 1


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
