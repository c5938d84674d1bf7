"""What a study is about, as a value: the fields of an example, its labels, and the two texts that models meet. Pure.

    SENTIMENT = Task(
        name="sentiment",
        labels=("negative", "positive"),
        fields=(Field("sentence", "Sentence:"),),
        classifier_prompt="Is the sentence negative or positive? Sentence: {sentence} The sentiment is",
        generator_prompt="This is an example where the sentiment of the sentence is {label}",
    )

A task is text and nothing else, so that its identity is its content.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.field_types import check_types

RESERVED_COLUMNS = (
    *("id", "label", "set", "shard", "seed", "generator", "reason", "raw", "file", "row"),
    *("heuristic", "subcase", "template"),
)
"""Columns that tables of examples have beside their fields."""


@dataclass(frozen=True)
class Field:
    """One text of an example: its column's name, and the mark that it stands behind in a generator's text (``Premise:``)."""

    name: str
    mark: str

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"field name={self.name!r}: it is a column's name; use a-z, 0-9 and _, from a letter on")
        if self.name in RESERVED_COLUMNS:
            raise UserError(f"field name={self.name!r} is a column that tables have beside their texts; choose another")
        if not self.mark or self.mark != self.mark.strip():
            raise UserError(f"field {self.name}: mark={self.mark!r} is to be found in texts; give one without space around it")


@dataclass(frozen=True)
class Task:
    """A classification task: labels in the head's order, one text an example or more, and the prompts.

    ``classifier_prompt`` names each field in braces, such as ``{premise}``; the class is read off its last token.
    ``generator_prompt`` ends with ``{label}``. A generator's text goes on with each field behind its mark, in their order, and
    the parser takes them apart again (:mod:`pipelines.tasks.prompts`). Test sets may have two labels, ``folded_onto`` and
    ``non-`` it, where that is given; all sets are then scored by these two as well.

    Raises :class:`UserError` for fewer than two labels or no field, for names that repeat, for a label that cannot be part of
    a file's name, for a mark within another, and for a prompt that lacks what it must name or names something else.
    """

    name: str
    labels: tuple[str, ...]
    fields: tuple[Field, ...]
    classifier_prompt: str
    generator_prompt: str
    folded_onto: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"task name={self.name!r}: use a-z, 0-9 and _, from a letter on")
        self._check_labels()
        self._check_fields()
        self._check_prompts()

    def _check_labels(self) -> None:
        if len(self.labels) < 2:
            raise UserError(
                f"task {self.name}: labels={self.labels!r}: a classifier tells at least two apart; give two or more"
            )
        for label in self.labels:
            if not re.fullmatch(r"\w([\w. -]*\w)?", label):
                raise UserError(
                    f"task {self.name}: label {label!r} is part of files' names; use letters, digits, '_', '.', '-' and spaces "
                    "between them"
                )
            if label.startswith("non-"):
                raise UserError(f"task {self.name}: label {label!r}: 'non-' is for folded labels; give it another name")
        if len({label.lower() for label in self.labels}) != len(self.labels):
            raise UserError(f"task {self.name}: labels={self.labels} has a label twice; each needs a name of its own")
        if self.folded_onto is not None and len(self.labels) == 2:
            raise UserError(f"task {self.name}: folded_onto={self.folded_onto!r}: two labels need no folding; leave it out")
        if self.folded_onto is not None and self.folded_onto not in self.labels:
            raise UserError(f"task {self.name}: folded_onto={self.folded_onto!r} is none of {', '.join(self.labels)}")

    def _check_fields(self) -> None:
        if not self.fields:
            raise UserError(f"task {self.name}: an example has at least one text; give fields=(Field('text', 'Text:'),)")
        for values, what in ((self.field_names, "name"), (self.marks, "mark")):
            if len(set(values)) != len(values):
                raise UserError(f"task {self.name}: two fields have one {what} ({', '.join(values)}); give each its own")
        for mark in self.marks:
            for other in self.marks:
                if mark != other and mark in other:
                    raise UserError(
                        f"task {self.name}: the mark {mark!r} is in the mark {other!r}, so that the parser cannot tell them "
                        "apart; choose others"
                    )

    def _check_prompts(self) -> None:
        named = _placeholders(self.classifier_prompt, f"task {self.name}: classifier_prompt")
        if set(named) != set(self.field_names):
            raise UserError(
                f"task {self.name}: classifier_prompt names {', '.join(sorted(set(named))) or 'nothing'} in braces, and the "
                f"fields are {', '.join(self.field_names)}; name each of them, and nothing else"
            )
        if self.classifier_prompt != self.classifier_prompt.rstrip():
            raise UserError(
                f"task {self.name}: classifier_prompt ends in space, and the class is read off its last token; cut it"
            )
        if _placeholders(self.generator_prompt, f"task {self.name}: generator_prompt") != ["label"]:
            raise UserError(
                f"task {self.name}: generator_prompt={self.generator_prompt!r} names {{label}} once, and nothing else"
            )
        if not self.generator_prompt.endswith("{label}"):
            raise UserError(f"task {self.name}: generator_prompt={self.generator_prompt!r} ends with {{label}}; put it last")

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(field.mark for field in self.fields)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table of examples: id, the fields, label."""
        return ("id", *self.field_names, "label")

    def index(self, label: str) -> int:
        """A label's place in the head. Raises :class:`UserError` for a label that the task does not have."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise self.unknown_label(label) from None

    def other_labels(self, label: str) -> tuple[str, ...]:
        """All labels but one, in order."""
        return tuple(other for other in self.labels if other != label)

    def fold(self, label: str, onto: str) -> str:
        """A label to two: ``onto``, and ``non-`` it for all others. A label that is folded already is returned as it is.

        Raises :class:`UserError` for a label that the task does not have, and for one folded onto another label, which does
        not say whether it is ``onto``.
        """
        if label == f"non-{onto}":
            return label
        if label.removeprefix("non-") in self.labels and label not in self.labels:
            raise UserError(
                f"an example labelled {label} may or may not be of {onto}; give examples labelled {', '.join(self.labels)}"
            )
        self.index(label)
        return onto if label == onto else f"non-{onto}"

    def is_label(self, label: str) -> bool:
        """Whether it is one of the task's labels, or ``non-`` one of them."""
        return label in self.labels or label.removeprefix("non-") in self.labels

    def unknown_label(self, label: str) -> UserError:
        """The error for a label that the task does not have."""
        return UserError(
            f"label {label!r} is none of {', '.join(self.labels)}, the labels of the task {self.name}; mend the label"
        )

    def classified(self, texts: Mapping[str, str]) -> str:
        """The task model's input for one example, from its fields' texts by name."""
        return self.classifier_prompt.format_map(texts)

    def prompted(self, label: str) -> str:
        """The generator's prompt for a label. It ends with it, no full stop. Raises :class:`UserError` for an unknown label."""
        self.index(label)
        return self.generator_prompt.format(label=label)

    def written(self, label: str, texts: Mapping[str, str]) -> str:
        """One training text of the generator, from the prompt up to the end marker, which follows."""
        return f"{self.prompted(label)}. {' '.join(f'{field.mark} {texts[field.name]}' for field in self.fields)}"


def _placeholders(template: str, where: str) -> list[str]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where}={template!r}: {error}; write a brace that is text as {{{{ or }}}}") from error
    if strange := [name for _, name, form, conversion in pieces if name is not None and (form or conversion or not name)]:
        raise UserError(f"{where}={template!r}: braces hold a name alone, not {strange[0]!r} with a format")
    return [name for _, name, _, _ in pieces if name is not None]
