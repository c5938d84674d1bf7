"""The old name of what studies import from `sweep` now."""

from sweep.study.experiment import Experiment

__all__ = ["Experiment"]
