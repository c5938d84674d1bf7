"""What a study asks of its sources, whatever they are."""

from collections.abc import Mapping
from typing import Protocol, Self

from pipelines.errors import UserError
from pipelines.identity import JsonValue
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet


class Sources(Protocol):
    """A frozen dataclass whose identity is the data's content.

    `folder` is where the data is, or "" where it needs none.

    Prepared sources are a folder with ``train``, ``dev`` and one ``<name>.parquet`` for each test set, all with the columns of
    the study's task.
    """

    @property
    def test_sets(self) -> tuple[TestSet, ...]:
        """The test sets that are described; of others the evaluation knows by name what they are."""
        ...

    @property
    def set_names(self) -> tuple[str, ...]:
        """All sets that can be evaluated."""
        ...

    @property
    def made_of(self) -> Mapping[str, tuple[str, ...]]:
        """Sets that hold all rows of others, and which those are: an evaluation of both computes such a row once."""
        ...

    @property
    def for_training(self) -> Self:
        """The same data without those test sets that nothing but an evaluation reads."""
        ...

    def for_task(self, task: Task) -> Self:
        """The same for a study's task. Raises UserError for one that they have no examples of."""
        ...

    def missing(self, folder: str) -> tuple[str, ...]:
        """A line for each thing that is not there and whose content is not known: nothing can be built without it."""
        ...

    def with_content(self, folder: str) -> Self:
        """The same, described by the content of what is there. Raises UserError where something is missing or unfit."""
        ...

    def counts(self, folder: str) -> Mapping[str, int]:
        """The examples there are, ``<set>/num_examples`` and ``<set>/<label>``, or without labels the most there can be."""
        ...

    def read_as(self, folder: str) -> Mapping[str, str]:
        """For people: a line for each set whose columns are looked for, on which are found."""
        ...

    def prepare(self, output: str, *, folder: str) -> Mapping[str, JsonValue]:
        """Write the prepared sources to `output`, and return their counts, named as in `counts`."""
        ...


def check_is_nli(task: Task, data: str) -> None:
    """Raise UserError for a task that has other fields or labels than NLI; its prompts may be others."""
    if set(task.field_names) != set(NLI.field_names) or set(task.labels) != set(NLI.labels):
        raise UserError(
            f"{data} have {', '.join(NLI.field_names)} and the labels {', '.join(NLI.labels)}, and the task {task.name} has "
            f"{', '.join(task.field_names)} and {', '.join(task.labels)}; give it data of its own: sources=TableSources(…)"
        )
