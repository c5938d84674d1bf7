"""A study's file as it was written before `sweep` handed on what such a file imports. It is kept as it is."""

from dataclasses import replace

import numpy as np

from pipelines.finetuning import FinetuneConfig
from pipelines.heuristics import Heuristic, tokens
from sweep.experiment import Experiment
from sweep.experiments import demo


def shorter(premises, hypotheses):
    return np.array([len(tokens(a)) > len(tokens(b)) for a, b in zip(premises, hypotheses, strict=True)], dtype=bool)


SHORTER = Heuristic("shorter", shorter, description="The hypothesis is shorter than the premise.")


def old_study(learning_rate: float = 1e-3) -> Experiment:
    study = demo(seeds=(7,))
    return replace(
        study,
        name="old_study",
        cell=FinetuneConfig(method="full", learning_rate=learning_rate, batch_size=32, dtype="float32"),
        heuristic=SHORTER,
        evaluation=replace(study.evaluation, heuristics=(SHORTER,)),
    )
