"""The built-in experiments, for studies that begin with one. Each is a function in `sweep/study`."""

from sweep.study.experiments import demo, mini, paper, paper_fast
from sweep.study.real_study import rate_search, study_qwen, study_smollm

__all__ = ["demo", "mini", "paper", "paper_fast", "rate_search", "study_qwen", "study_smollm"]
