"""The recipe's names at the address that study files import them from; they live in `recipe.py`."""

from pipelines.recipe import LLAMA_PROJECTIONS, WARMUP_STABLE_DECAY, FinetuneConfig

__all__ = ["LLAMA_PROJECTIONS", "WARMUP_STABLE_DECAY", "FinetuneConfig"]
