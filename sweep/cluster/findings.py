"""What a look at one thing found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was looked at, how that went, and why: for a problem with the way out."""

    what: str
    verdict: Literal["ok", "problem", "not checked"]
    why: str


def in_order(findings: Sequence[Finding]) -> str:
    """A line each, problems last, where they are seen."""
    width = max(len(finding.what) for finding in findings)
    verdicts = ("ok", "not checked", "problem")
    lines = sorted(findings, key=lambda finding: verdicts.index(finding.verdict))
    return "\n".join(f"{finding.verdict:<11}  {finding.what:<{width}}  {finding.why}" for finding in lines)


def short(error: Exception) -> str:
    """An error's message in one line, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
