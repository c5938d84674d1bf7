"""Heuristics: what a model may go by instead of reading, as predicates over examples.

A heuristic is a plug-in, one :class:`Heuristic`. HANS's three (McCoy, Pavlick and Linzen 2019) come with it; one of your own
takes a few lines in the file of your experiment, or in a file that a command is given by ``FILE.py:NAME``::

    def negated(premises, hypotheses):
        return np.array([not {"no", "not", "never"}.isdisjoint(tokens(text)) for text in hypotheses], dtype=bool)

    NEGATION = Heuristic("negation", negated, predicts=Label.CONTRADICTION, description="The hypothesis is negated.")

That of a single word, such as an audit finds to tell a label, is :func:`word_heuristic`; a command is given it as
``hypothesis:not=contradiction``.

Tokens are by the HANS authors' definition: split at whitespace, lower-cased, the stand-alone tokens ``.``, ``?`` and ``!``
dropped; punctuation attached to a word stays part of it (``runs.`` is not ``runs``). Each of the three implies the one before.

A predicate has a parameter for each field of its task; one over a single text is ``def negated(sentences)``, and so is one of
``Heuristic(…, fields=("hypothesis",))``.

The constituent heuristic is about a parse. :func:`is_parsed_constituent` decides it where there is one, as in HANS's own file.
Users' pairs have none, so that the plug-in goes by :func:`is_likely_constituent`; ``docs/heuristics.md`` says how often the two
agree.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import runtime
from pipelines.tasks.nli import NON_ENTAILMENT, Label
from pipelines.tasks.references import find_value
from pipelines.tasks.task import Task
from pipelines.tasks.words import has_word, normalized, words_of

DROPPED_TOKENS = frozenset(".?!")

Predicate: TypeAlias = Callable[..., np.ndarray]
"""From the texts of each field of the task, or of those that its heuristic names, to booleans of shape (num_examples,).

A pair's fields are premises and hypotheses: lists, or pyarrow columns, of num_examples texts.
"""


def tokens(sentence: str) -> list[str]:
    """The sentence's tokens, in order."""
    return [token for token in sentence.lower().split() if token not in DROPPED_TOKENS]


def has_lexical_overlap(premise: str, hypothesis: str) -> bool:
    """Whether each token of the hypothesis is a token of the premise; so true of one without tokens."""
    outer, inner = premise.lower(), hypothesis.lower().split()
    # A token of the premise is a piece of its text: most pairs fail here, before the premise has to be split.
    for token in inner:
        if token not in outer and token not in DROPPED_TOKENS:
            return False
    return DROPPED_TOKENS.issuperset(set(inner).difference(outer.split()))


def is_subsequence(premise: str, hypothesis: str) -> bool:
    """Whether the hypothesis' tokens occur in the premise contiguously and in order; so true of one without tokens."""
    return has_lexical_overlap(premise, hypothesis) and _between_spaces(hypothesis) in _between_spaces(premise)


_CLAUSE_STARTS = re.compile(
    r"""
    (?: ^ | [,;:.?!–—-]
      | (?: ^ | \s ) (?: that | who | which | whom | whose | whether | whether\ or\ not | if | unless | because | since | as
          | although | though | while | whereas | when | whenever | where | wherever | how | why | after | before | until | till
          | once | lest | in\ case | provided )
      # A conjunction with nothing before it may stand between two nouns.
      | (?: ^ | [,;:–—-]\s ) (?: and | or | but | nor | so | yet | for )
      | ^ (?: \S+ly | maybe | perhaps | indeed | of\ course | in\ fact | without\ a\ doubt | no\ doubt | for\ sure )
    ) $""",
    re.VERBOSE,
)
_ENDS_CLAUSE = tuple(",;:.?!–—-")


def is_likely_constituent(premise: str, hypothesis: str) -> bool:
    """Whether the hypothesis is a subsequence of the premise that begins and ends where a clause is likely to.

    It begins at the premise's start, after punctuation, after a word that opens a clause (that, who, if, because …), after a
    conjunction that has punctuation or nothing before it, or after an adverb that opens the premise. It ends at the premise's
    end or at punctuation. True of a hypothesis without tokens.
    """
    if not is_subsequence(premise, hypothesis):
        return False
    outer, inner = _between_spaces(premise), _between_spaces(hypothesis)
    start = 0
    while inner.strip() and (start := outer.find(inner, start)) >= 0:
        before, after = outer[:start].strip(), outer[start + len(inner) :]
        ends = not after or after.startswith(_ENDS_CLAUSE) or inner[:-1].endswith(_ENDS_CLAUSE)
        if ends and _CLAUSE_STARTS.search(before):
            return True
        start += 1
    return not inner.strip()


def is_parsed_constituent(parse: str, hypothesis: str) -> bool:
    """Whether the hypothesis' tokens are those of one complete constituent, of any category, in the premise's bracketed parse.

    ``parse`` is as in HANS's and MultiNLI's ``sentence1_parse``: ``(ROOT (S (NP (DT The) …)))``. Its words are the parser's
    tokens: where these are not the whitespace's (MultiNLI), give the words of the hypothesis' own parse. Raises
    :class:`UserError` for brackets that do not match.
    """
    wanted = tokens(hypothesis)
    return any(tokens(" ".join(words)) == wanted for words in constituents(parse))


def constituents(parse: str) -> list[list[str]]:
    """The words of each constituent of a bracketed parse, inner before outer; the last is the whole sentence."""
    words: list[str] = []
    starts: list[int] = []
    closed = []
    for previous, piece in pairwise(["", *re.findall(r"[()]|[^\s()]+", parse), ""]):
        if piece == "(":
            starts.append(len(words))
        elif piece == ")" and starts:
            closed.append(words[starts.pop() :])
        elif piece == ")" or (not piece and starts) or not (piece or closed):
            raise UserError(
                f"parse {parse[:80]!r}: its brackets do not match; give a bracketed parse such as (S (NP (NN He)) …)"
            )
        elif piece and previous != "(":  # what follows an opening bracket is the category
            words.append(piece)
    return closed


def _between_spaces(sentence: str) -> str:
    """' a b ': no token has a space in it, so that a search for ' b ' finds whole tokens only."""
    return " ".join(["", *tokens(sentence), ""])


def lexical_overlap(premises: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    """:func:`has_lexical_overlap` of each pair: booleans of shape (num_pairs,). Raises ValueError if the lengths differ."""
    return _of_each(has_lexical_overlap, premises, hypotheses)


def subsequence(premises: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    """:func:`is_subsequence` of each pair: booleans of shape (num_pairs,). Raises ValueError if the lengths differ."""
    return _of_each(is_subsequence, premises, hypotheses)


def constituent(premises: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    """:func:`is_likely_constituent` of each pair: booleans of shape (num_pairs,). Raises ValueError if the lengths differ."""
    return _of_each(is_likely_constituent, premises, hypotheses)


def _texts(column: Iterable[str]) -> list[str]:
    return column.to_pylist() if isinstance(column, pa.Array | pa.ChunkedArray) else list(column)


def _of_each(holds: Callable[[str, str], bool], premises: Iterable[str], hypotheses: Iterable[str]) -> np.ndarray:
    first, second = _texts(premises), _texts(hypotheses)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} premises and {len(second)} hypotheses; each pair needs one of each")
    return np.fromiter(map(holds, first, second), dtype=bool, count=len(first))


HEURISTICS: dict[str, "Heuristic"] = {}
"""The built-in heuristics by name."""


@dataclass(frozen=True)
class Heuristic:
    """One heuristic: when it holds of an example, and which label it then predicts.

    Its identity is name, version and predicted label: give another version when the predicate's answers change. Raises
    :class:`UserError` for a name that is not lower-case letters, digits and ``_``, for that of a built-in heuristic on a
    predicate that is not its, and for a predicate that cannot be called.
    """

    name: str
    holds: Predicate = field(metadata={"role": "runtime"})
    predicts: str = Label.ENTAILMENT
    version: int = 1
    probe_slice: str | None = runtime(None)
    """The slice in which going by the heuristic is wrong, of a set that was made to test it as HANS was, such as
    ``subsequence/non-entailment``."""
    description: str = runtime("")
    """One sentence, for people: when it holds."""
    source: str = runtime("")
    """The publication or corpus that it is from."""
    fields: tuple[str, ...] = runtime(())
    """The fields whose texts the predicate takes; without any, all of the task's."""

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(
                f"heuristic name={self.name!r}: it enters slugs and identities; use a-z, 0-9 and _, from a letter on"
            )
        if self.version < 1:
            raise UserError(f"heuristic {self.name}: version={self.version}; versions start at 1")
        known = HEURISTICS.get(self.name)
        if known is not None and self.holds is not known.holds:
            raise UserError(f"heuristic name={self.name!r} is a built-in one's, and identity goes by name; choose another name")

    @property
    def blindspot_slice(self) -> str:
        """The slice of an evaluation in which going by it is wrong: the probe's, or where it holds of other labels."""
        return self.probe_slice or self.held_slice

    @property
    def held_slice(self) -> str:
        """The slice of those examples of a set of which it holds and that have another label."""
        return f"holds/{self.name}/non-{self.predicts}"

    def __call__(self, *texts: Iterable[str]) -> np.ndarray:
        """The examples of which it holds, booleans of shape (num_examples,), from the texts of each field that it is about.

        Raises :class:`UserError` if the predicate returns anything else, or ends in an error.
        """
        columns = [_texts(column) for column in texts]
        if columns and not any(columns):
            # An array of nothing has numpy's default type and not the predicate's.
            return np.zeros(0, dtype=bool)
        try:
            holds = self.holds(*columns)
        except UserError:
            raise
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"heuristic {self.name}: its predicate ended in {type(error).__name__}: {error} "
                f"({Path(at.filename).name}:{at.lineno}), asked about {len(columns[0]):,} examples; mend it"
            ) from error
        if not isinstance(holds, np.ndarray) or holds.dtype != bool or holds.shape != (len(columns[0]),):
            shape, dtype = getattr(holds, "shape", "no"), getattr(holds, "dtype", type(holds).__name__)
            raise UserError(
                f"heuristic {self.name} returned {dtype} of {shape} shape for {len(columns[0]):,} examples; a predicate "
                "returns a numpy array of one boolean an example: np.array([…], dtype=bool)"
            )
        return holds

    def of(self, examples: pa.Table, task: Task) -> np.ndarray:
        """The examples of a table of which it holds: booleans of shape (num_examples,)."""
        return self(*(examples[name] for name in self.fields_of(task.field_names)))

    def fields_of(self, field_names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of an example's fields that it is about. Raises :class:`UserError` where it is about another."""
        if unknown := [name for name in self.fields if name not in field_names]:
            raise UserError(
                f"heuristic {self.name} is about the field {unknown[0]!r}, and examples have {', '.join(field_names)}; "
                "name one of these"
            )
        return self.fields or field_names

    def check(self, task: Task) -> None:
        """Raises :class:`UserError` if it predicts a label that the task does not have, or is not over the task's fields.

        The predicate is asked about two made-up examples, so that one that fails, or returns something else than it should,
        is not found out when a generator has been trained.
        """
        if self.predicts not in task.labels:
            raise UserError(
                f"heuristic {self.name} predicts {str(self.predicts)!r}, and the labels of the task {task.name} are "
                f"{', '.join(task.labels)}; give the study a heuristic of its own, heuristic=Heuristic(…)"
            )
        fields = self.fields_of(task.field_names)
        try:
            inspect.signature(self.holds).bind(*fields)
        except TypeError:
            whose = "it is about" if self.fields else f"examples of the task {task.name} have"
            raise UserError(
                f"heuristic {self.name}: its predicate takes {inspect.signature(self.holds)}, and {whose} the fields "
                f"{', '.join(fields)}; give it a parameter for each"
            ) from None
        except ValueError:
            pass  # a function that does not say what it takes
        if HEURISTICS.get(self.name) is self:
            return
        self(*(["A judge slept.", "The judge was not tired."] for _ in fields))


HANS = "McCoy, Pavlick and Linzen 2019, Right for the Wrong Reasons, table 1"
HEURISTICS |= {
    name: Heuristic(name, holds, probe_slice=f"{name}/{NON_ENTAILMENT}", description=description, source=HANS)
    for name, holds, description in (
        ("lexical_overlap", lexical_overlap, "Each word of the hypothesis is one of the premise."),
        ("subsequence", subsequence, "The hypothesis is a contiguous part of the premise."),
        ("constituent", constituent, "The hypothesis is likely a complete clause of the premise."),
    )
}
HANS_HEURISTICS = tuple(HEURISTICS)
"""Names of HANS's heuristics; each implies the one before."""
LEXICAL_OVERLAP = HEURISTICS["lexical_overlap"]


@dataclass(frozen=True)
class _HasWord:
    """The predicate of one word; a value, so that two heuristics of a word are equal."""

    word: str

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        return np.array([has_word(text, self.word) for text in texts], dtype=bool)


def word_heuristic(field: str, word: str, predicts: str) -> Heuristic:
    """The heuristic of a single word: an example whose `field` has the word has the label `predicts`.

    Whether a text has it is asked as an audit does that tests single words: by Unicode's segmentation, whatever its case
    (:func:`pipelines.tasks.words.words_of`). Its name is ``<field>_says_<word>``, where what is no letter from a to z and no
    digit is written as its number. Raises :class:`UserError` for what is no one word.
    """
    words, spelled = words_of(word), normalized(word)
    if words != [spelled]:
        has = f"has the words {', '.join(words)}" if len(words) > 1 else f"has the word {words[0]}" if words else "has none"
        raise UserError(f"word={word!r} is no single word: by Unicode's segmentation it {has}; give one word")
    name = "".join(letter if re.fullmatch("[a-z0-9]", letter) else f"_{ord(letter):x}_" for letter in spelled)
    description = f"The {field.replace('_', ' ')} has the word '{spelled}'."
    return Heuristic(f"{field}_says_{name}", _HasWord(spelled), predicts, description=description, fields=(field,))


_OF_WORD = re.compile(r"([a-z][a-z0-9_]*):([^=]+)=(.+)", re.DOTALL)


def find_heuristic(reference: str) -> Heuristic:
    """The built-in heuristic of that name, that of a word (``FIELD:WORD=LABEL``), or what ``FILE.py:NAME`` refers to.

    ``module:NAME`` is one of a module, which must be importable wherever the heuristic is used; a file is read here only, and
    its functions travel along. Raises :class:`UserError` for an unknown name, for a reference that cannot be loaded or is no
    :class:`Heuristic`, and as :func:`word_heuristic` does.
    """
    if of_word := _OF_WORD.fullmatch(reference):
        return word_heuristic(*of_word.groups())
    try:
        return find_value(reference, Heuristic, HEURISTICS)
    except UserError as error:
        if ".py:" in reference:
            raise
        raise UserError(f"{error}; that of a word is FIELD:WORD=LABEL") from error
