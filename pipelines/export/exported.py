"""How a task model was exported, for whoever tells of it: a value, without what writes it."""

from dataclasses import dataclass

BESIDE = "base"
"""The folder of an adapter's base, beside it."""
WHOLE, ADAPTER, BODY = "whole", "adapter", "body"
"""Forms of an export: all weights with the head, peft's adapter with the head, or the body alone with the head beside it."""


@dataclass(frozen=True)
class Exported:
    """What was written: `form`, the transformers class that loads it, its pad token, and an adapter's base."""

    form: str
    architecture: str
    pad_token: str
    pad_token_id: int
    reads: str
    """Which token's state the head reads: "first" or "last"."""
    base: str = ""
    """An adapter's base: its name on the hub, or `BESIDE`."""
