"""The old name of what studies import from `sweep` now."""

from pipelines.finetune.recipe import LLAMA_PROJECTIONS, WARMUP_STABLE_DECAY, FinetuneConfig

__all__ = ["LLAMA_PROJECTIONS", "WARMUP_STABLE_DECAY", "FinetuneConfig"]
