"""What a study's results can be measured by, beside accuracy."""

from enum import StrEnum


class Measure(StrEnum):
    """A number that a task model has on a test set.

    All but accuracy go by an item's score: the log-odds of the label that the study's heuristic predicts
    (`pipelines.evaluate.scoring.scores`). They still move where accuracy is at 0 or 1.
    """

    ACCURACY = "accuracy"
    """The share of right items."""
    MARGIN = "margin"
    """The mean score, in log-odds. It sees a shift of the threshold between labels."""
    AUC = "auc"
    """The chance that an item where going by the heuristic is right scores above one where it is wrong, ties counting half."""
    PULL = "pull"
    """The chance that an adversarial item scores above a general item of the same label, ties counting half. One half is no
    pull; its level also holds the difference of the two texts' domains, so that only differences between kinds speak."""
