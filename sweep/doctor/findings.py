"""What a look at one thing found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how that went, and what was found; `way_out` is what to do about a warning or a fault."""

    what: str
    verdict: Verdict
    found: str
    way_out: str = ""

    def __post_init__(self) -> None:
        assert (self.verdict == "ok") == (not self.way_out), f"{self.what}: a warning or a fault, and no other, has a way out"

    def __str__(self) -> str:
        return self.found + (f"; {self.way_out}" if self.way_out else "")


def lines(findings: Sequence[Finding]) -> list[str]:
    """A line each, in the order in which they were looked at."""
    width = max((len(finding.what) for finding in findings), default=0)
    return [f"{finding.verdict:<7}  {finding.what:<{width}}  {finding}" for finding in findings]
