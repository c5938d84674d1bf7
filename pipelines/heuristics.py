"""The old name of what studies import from `sweep` now."""

from pipelines.tasks.heuristics import HEURISTICS, LEXICAL_OVERLAP, Heuristic, find_heuristic, tokens

__all__ = ["HEURISTICS", "LEXICAL_OVERLAP", "Heuristic", "find_heuristic", "tokens"]
