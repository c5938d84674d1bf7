"""A step of the graph: one artifact to be, and what it is built from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.resources import Resources
from sweep.graph import identity
from sweep.graph.records import ArtifactId
from sweep.graph.stages import REGISTRY


@dataclass(frozen=True, eq=False)
class Step:
    """One artifact to be: a stage, its config and the steps that its inputs come from.

    `slug` is for people; `fingerprint` is the identity. `coordinates` places it in the grid. `options`
    (such as the folder of the raw data) and `resources` cannot change the result.
    """

    stage: str
    slug: str
    config: Any
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    coordinates: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    options: Mapping[str, str] = field(default_factory=dict)
    is_rehearsal: bool = False

    @cached_property
    def payload(self) -> dict[str, Any]:
        inputs = {name: step.fingerprint for name, step in self.inputs.items()}
        payload = identity.payload(self.stage, REGISTRY[self.stage].version, self.config, inputs)
        # In every step's, so that not even one that a rehearsal does in full can be taken for the real one.
        return {**payload, "rehearsal": True} if self.is_rehearsal else payload

    @cached_property
    def fingerprint(self) -> str:
        return identity.fingerprint(self.payload)

    @property
    def id(self) -> ArtifactId:
        return ArtifactId(self.stage, self.slug, self.fingerprint)

    @property
    def name(self) -> str:
        return self.id.name


def dependents(steps: Iterable[Step]) -> dict[str, list[Step]]:
    """Fingerprint of each step → the steps that it is a direct input of."""
    steps = list(steps)
    users: dict[str, list[Step]] = {step.fingerprint: [] for step in steps}
    for step in steps:
        for source in step.inputs.values():
            users[source.fingerprint].append(step)
    return users
