"""The built-in experiments, for studies that begin with one. Each is a function in `sweep/study/experiments.py`."""

from sweep.study.experiments import demo, mini, paper, paper_fast

__all__ = ["demo", "mini", "paper", "paper_fast"]
