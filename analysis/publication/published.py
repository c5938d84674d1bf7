"""A published study: its records and results without its store, as they are kept and as a page is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.verdicts.evidence import Evidence
from sweep.graph.records import Study
from sweep.graph.sealed import seal


@dataclass(frozen=True)
class Published:
    """A study as it is kept: `study` has its records, and no store; `plan` is the pre-registration's path and sha256.

    `measures` are from scores as they were; those of `evidence` are multiples of 1 / `steps` (inf: as they were), which changes
    no estimate or interval by more than `largest_change`. `earlier` are the seeds of each state that was published before this
    one, `pilot` what decided on their number.
    """

    study: Study
    frame: pd.DataFrame
    evidence: Evidence
    measures: pd.DataFrame
    pools: pd.DataFrame
    plan: Mapping[str, str]
    estimate: Mapping[str, Any] | None
    largest_change: float
    steps: float
    earlier: tuple[tuple[int, ...], ...] = ()
    pilot: Mapping[str, Any] | None = None

    @property
    def missing_of_seed(self) -> dict[int, tuple[Mapping[str, Any], ...]]:
        """Each of the study's seeds, and what is missing of it: nothing of one that is whole."""
        seeds = sorted({int(step.coordinates["seed"]) for step in self.study.steps if step.stage == "evaluation"})
        missing = self.frame.attrs["missing"]
        return {seed: tuple(result for result in missing if result["seed"] == seed) for seed in seeds}

    @property
    def seeds_there(self) -> tuple[int, ...]:
        """Those of which anything is evaluated."""
        return tuple(sorted({int(seed) for seed in self.frame["seed"]}))


def sealed_text(values: Mapping[str, Any]) -> str:
    """A JSON file that is kept of a study: `values` with their checksum, in ASCII."""
    return json.dumps(json.loads(seal(values)), indent=1) + "\n"
