"""A test set of a study's sources, described: its labels, the slices that are reported of it, and what it tests.

A described set lies in the sources as ``<name>.parquet``, with the columns of the task, those of its slices, and its cluster
column. A slice is ``<column>/<value>``, and ``<column>/<value>/<label>`` of it by label; a null is in no slice.
"""

import re
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import runtime


@dataclass(frozen=True)
class TestSet:
    """How a test set is scored and cut into slices.

    With ``folded_onto`` its rows have two labels, that one and ``non-`` it. Each of ``slices`` is a column. Rows with the same
    value of ``cluster``, a column, share wording; without one, those with the same first text do. ``aligned`` and
    ``adversarial`` are slices where going by the heuristic that the set tests is right and wrong. Where this heuristic always
    predicts one label, ``predicts`` names it, and margin, AUC and pull are measured.

    Raises :class:`UserError` for a name that cannot be a file's, and for a half that is no slice of the set.
    """

    name: str
    folded_onto: str | None = None
    slices: tuple[str, ...] = ()
    cluster: str | None = None
    aligned: str | None = None
    adversarial: str | None = None
    predicts: str | None = None
    title: str = runtime("")
    """For people: 'MED'."""
    tests: str = runtime("")
    """One sentence: which heuristic it tests, and where going by it is wrong."""
    licence: str = runtime("")
    source: str = runtime("")

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"test set name={self.name!r}: it is a file's name and part of metrics'; use a-z, 0-9 and _")
        if len(set(self.slices)) != len(self.slices):
            raise UserError(f"test set {self.name}: slices={self.slices} names a column twice; name each once")
        for half in ("aligned", "adversarial"):
            value = getattr(self, half)
            if value is not None and value.split("/")[0] not in self.slices:
                raise UserError(
                    f"test set {self.name}: {half}={value!r} is no slice of it; slices are <column>/<value> or "
                    f"<column>/<value>/<label>, with the columns {', '.join(self.slices) or 'in slices, which is empty'}"
                )
        if self.predicts is not None and self.adversarial is None:
            raise UserError(f"test set {self.name}: predicts={self.predicts!r} without adversarial measures nothing; give both")
