"""The study's two text templates (paper, section 2.2.2) and the parser of texts that the generator writes. Pure.

The classifier reads the class off the last token of :func:`classifier_prompt`. The generator is trained on
:func:`generator_text` and prompted with :func:`generator_prompt`, the same text up to and with the label;
what it writes then begins with ``. Premise: ``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.tasks.examples import LABELS

EN_DASH = " – This is the end of the example."
"""The end marker of the paper."""
HYPHENS = " -- This is the end of the example."
"""The end marker of the authors' scripts."""
END_MARKERS: tuple[str, ...] = (EN_DASH, HYPHENS)
UNAMBIGUOUS_STARTS: Mapping[str, str] = MappingProxyType({EN_DASH: " –"})
"""A marker's beginning, if texts do not go on like that: MultiNLI has no en dash, and two hyphens in many rows."""

PREMISE_FIELD = "Premise:"
HYPOTHESIS_FIELD = "Hypothesis:"


def classifier_prompt(premise: str, hypothesis: str) -> str:
    """The task model's input. It ends without a full stop or space: the class is read from its last token."""
    return (
        "Please indicate the relationship between the premise and the hypothesis with entailment, "
        f"neutral or contradiction. Premise: {premise} Hypothesis: {hypothesis} "
        "The relationship between premise and hypothesis is"
    )


def generator_prompt(label: str) -> str:
    """The generator's prompt. It ends with the label, no full stop. Raises :class:`UserError` for an unknown label."""
    if label not in LABELS:
        raise UserError(f"label {label!r}: the generator writes examples of {', '.join(LABELS)}; give one of these")
    return f"This is an example where the relationship between the premise and the hypothesis is {label}"


def generator_text(label: str, premise: str, hypothesis: str, marker: str = EN_DASH) -> str:
    """One training text of the generator, from the prompt to the end marker.

    Raises :class:`UserError` for an unknown label or marker.
    """
    return f"{generator_prompt(label)}. Premise: {premise} Hypothesis: {hypothesis}{_known(marker)}"


def classifier_prompts(examples: pa.Table) -> list[str]:
    """The task model's input for each of a table's examples, in order."""
    return list(map(classifier_prompt, *_columns(examples, "premise", "hypothesis")))


def generator_texts(examples: pa.Table, marker: str = EN_DASH) -> list[str]:
    """The generator's training text for each of a table's examples, in order. Raises as :func:`generator_text`."""
    labels, premises, hypotheses = _columns(examples, "label", "premise", "hypothesis")
    return [generator_text(*example, marker) for example in zip(labels, premises, hypotheses, strict=True)]


def plain_texts(examples: pa.Table) -> list[str]:
    """Sentences without a template, from which a base model made from nothing learns to write.

    Each pair stands there twice: a model that has learnt to repeat its text can carry a premise's words into a hypothesis.
    """
    pairs = zip(*_columns(examples, "premise", "hypothesis"), strict=True)
    return [f"{premise} {hypothesis} {premise} {hypothesis}" for premise, hypothesis in pairs]


class RejectReason(StrEnum):
    """Reasons why a text is not an example, in the order in which they are looked for: a text has the first that holds."""

    NO_PREMISE = "no_premise"
    """``Premise:`` does not occur before the end marker."""
    TEXT_BEFORE_PREMISE = "text_before_premise"
    """Something other than the template's full stop stands between the label and ``Premise:``."""
    NO_HYPOTHESIS = "no_hypothesis"
    """``Hypothesis:`` does not occur between ``Premise:`` and the end marker."""
    REPEATED_FIELD_MARKER = "repeated_field_marker"
    """``Premise:`` or ``Hypothesis:`` occurs more than once before the end marker: where the fields end is a
    guess.
    """
    NO_END_MARKER = "no_end_marker"
    """The text stops before the end marker, so that its hypothesis may be cut off."""
    EMPTY_PREMISE = "empty_premise"
    EMPTY_HYPOTHESIS = "empty_hypothesis"


@dataclass(frozen=True)
class Parsed:
    """An example: both fields without surrounding whitespace, neither empty."""

    premise: str
    hypothesis: str


@dataclass(frozen=True)
class Rejected:
    """A text that is no example, whole, and why."""

    reason: RejectReason
    text: str


def parse_generated(text: str, *, marker: str = EN_DASH) -> Parsed | Rejected:
    """Parse what the generator wrote *after* its prompt.

    That is ``. Premise: <premise> Hypothesis: <hypothesis> – This is the end of the example.`` The first end
    marker ends the example; what follows it is ignored. An example whose premise and hypothesis can be
    extracted is kept; there is no other filter (paper, section 2.3.3). Raises :class:`UserError` for an
    unknown marker.
    """
    body, end, _ = text.partition(_known(marker))
    before, premise_field, fields = body.partition(PREMISE_FIELD)
    if not premise_field:
        return Rejected(RejectReason.NO_PREMISE, text)
    if before.strip() not in (".", ""):
        return Rejected(RejectReason.TEXT_BEFORE_PREMISE, text)
    premise, hypothesis_field, hypothesis = fields.partition(HYPOTHESIS_FIELD)
    if not hypothesis_field:
        return Rejected(RejectReason.NO_HYPOTHESIS, text)
    if PREMISE_FIELD in fields or HYPOTHESIS_FIELD in hypothesis:
        return Rejected(RejectReason.REPEATED_FIELD_MARKER, text)
    if not end:
        return Rejected(RejectReason.NO_END_MARKER, text)
    premise, hypothesis = premise.strip(), hypothesis.strip()
    if not premise:
        return Rejected(RejectReason.EMPTY_PREMISE, text)
    if not hypothesis:
        return Rejected(RejectReason.EMPTY_HYPOTHESIS, text)
    return Parsed(premise, hypothesis)


def _columns(examples: pa.Table, *names: str) -> list[list[str]]:
    return [examples.column(name).to_pylist() for name in names]


def _known(marker: str) -> str:
    if marker not in END_MARKERS:
        raise UserError(f"end marker {marker!r} is unknown; use one of {', '.join(map(repr, END_MARKERS))}")
    return marker
