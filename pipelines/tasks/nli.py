"""Natural language inference, the paper's task: three labels of a premise and a hypothesis."""

from enum import StrEnum

from pipelines.tasks.task import Field, Task


class Label(StrEnum):
    """The three classes, in the classification head's order: entailment 0, neutral 1, contradiction 2."""

    ENTAILMENT = "entailment"
    NEUTRAL = "neutral"
    CONTRADICTION = "contradiction"

    # StrEnum inherits str.index(), which nobody calls on a label; the position in the head is what `.index` means here.
    @property
    def index(self) -> int:  # type: ignore[override]
        return LABELS.index(self)


LABELS: tuple[Label, ...] = tuple(Label)
NON_ENTAILMENT = "non-entailment"
"""The second of the two labels of HANS."""

NLI = Task(
    name="nli",
    labels=tuple(label.value for label in LABELS),
    fields=(Field("premise", "Premise:"), Field("hypothesis", "Hypothesis:")),
    classifier_prompt=(
        "Please indicate the relationship between the premise and the hypothesis with entailment, "
        "neutral or contradiction. Premise: {premise} Hypothesis: {hypothesis} "
        "The relationship between premise and hypothesis is"
    ),
    generator_prompt="This is an example where the relationship between the premise and the hypothesis is {label}",
    folded_onto=Label.ENTAILMENT.value,
)
"""The paper's templates (section 2.2.2)."""
