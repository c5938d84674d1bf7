"""A task's two texts (for NLI the paper's, section 2.2.2) and the parser of texts that the generator writes. Pure.

The classifier reads the class off the last token of :func:`classifier_prompts`. The generator is trained on
:func:`generator_text` and prompted with :func:`generator_prompt`, the same text up to and with the label; what it writes then
begins with a full stop and the first field's mark, as in ``. Premise: ``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task

EN_DASH = " – This is the end of the example."
"""The end marker of the paper."""
HYPHENS = " -- This is the end of the example."
"""The end marker of the authors' scripts."""
END_MARKERS: tuple[str, ...] = (EN_DASH, HYPHENS)
UNAMBIGUOUS_STARTS: Mapping[str, str] = MappingProxyType({EN_DASH: " –"})
"""A marker's beginning, if texts do not go on like that: MultiNLI has no en dash, and two hyphens in many rows."""


def generator_prompt(label: str, task: Task = NLI) -> str:
    """The generator's prompt. It ends with the label, no full stop. Raises :class:`UserError` for an unknown label."""
    return task.prompted(label)


def classifier_prompts(examples: pa.Table, task: Task = NLI) -> list[str]:
    """The task model's input for each of a table's examples, in order."""
    return [task.classified(row) for row in examples.select(task.field_names).to_pylist()]


def generator_text(label: str, texts: Mapping[str, str], marker: str = EN_DASH, task: Task = NLI) -> str:
    """One training text of the generator, from the prompt to the end marker, of an example's texts by field.

    Raises :class:`UserError` for an unknown label or marker.
    """
    return task.written(label, texts) + _known(marker)


def generator_texts(examples: pa.Table, marker: str = EN_DASH, task: Task = NLI) -> list[str]:
    """The generator's training text for each of a table's examples, in order. Raises as :func:`generator_text`."""
    rows = examples.select([*task.field_names, "label"]).to_pylist()
    return [generator_text(row["label"], row, marker, task) for row in rows]


def plain_texts(examples: pa.Table, task: Task = NLI) -> list[str]:
    """Sentences without a template, from which a base model made from nothing learns to write.

    Each example stands there twice: a model that has learnt to repeat its text can carry a premise's words into a hypothesis.
    """
    examples = [" ".join(row[name] for name in task.field_names) for row in examples.select(task.field_names).to_pylist()]
    return [f"{text} {text}" for text in examples]


def reject_reasons(task: Task = NLI) -> tuple[str, ...]:
    """Reasons why a text is not an example, in the order in which they are looked for: a text has the first that holds.

    ``no_<field>``: its mark does not occur between the mark before it and the end marker. ``text_before_<first field>``:
    something other than the template's full stop stands between the label and the first mark. ``repeated_field_marker``: a mark
    occurs more than once before the end marker, so that where the fields end is a guess. ``no_end_marker``: the text stops
    before it, so that its last field may be cut off. ``empty_<field>``.
    """
    first, *others = task.field_names
    return (
        f"no_{first}",
        f"text_before_{first}",
        *(f"no_{name}" for name in others),
        REPEATED_FIELD_MARKER,
        NO_END_MARKER,
        *(f"empty_{name}" for name in task.field_names),
    )


REPEATED_FIELD_MARKER = "repeated_field_marker"
NO_END_MARKER = "no_end_marker"


@dataclass(frozen=True)
class Parsed:
    """An example: the text of each field by name, without surrounding whitespace, none empty."""

    fields: Mapping[str, str]


@dataclass(frozen=True)
class Rejected:
    """A text that is no example, whole, and why: one of :func:`reject_reasons`."""

    reason: str
    text: str


def parse_generated(text: str, *, marker: str = EN_DASH, task: Task = NLI) -> Parsed | Rejected:
    """Parse what the generator wrote *after* its prompt.

    That is ``. Premise: <premise> Hypothesis: <hypothesis> – This is the end of the example.`` The first end
    marker ends the example; what follows it is ignored. An example whose fields can be extracted is kept; there is no other
    filter (paper, section 2.3.3). Raises :class:`UserError` for an unknown marker.
    """
    body, end, _ = text.partition(_known(marker))
    pieces = []
    for number, field in enumerate(task.fields):
        piece, mark, body = body.partition(field.mark)
        if not mark:
            return Rejected(f"no_{field.name}", text)
        if number == 0 and piece.strip() not in (".", ""):
            return Rejected(f"text_before_{field.name}", text)
        pieces.append(piece)
    values = [*pieces[1:], body]
    if any(mark in value for value in values for mark in task.marks):
        return Rejected(REPEATED_FIELD_MARKER, text)
    if not end:
        return Rejected(NO_END_MARKER, text)
    fields = {name: value.strip() for name, value in zip(task.field_names, values, strict=True)}
    for name, value in fields.items():
        if not value:
            return Rejected(f"empty_{name}", text)
    return Parsed(fields)


def _known(marker: str) -> str:
    if marker not in END_MARKERS:
        raise UserError(f"end marker {marker!r} is unknown; use one of {', '.join(map(repr, END_MARKERS))}")
    return marker
