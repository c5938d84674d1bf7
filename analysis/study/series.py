"""The three test sets that a study is read on: general, blindspot, and the blindspot's slice where its heuristic is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.wording import set_name, slice_name
from pipelines.errors import UserError
from sweep.graph.records import Study

# Matched is what the paper reports; mismatched is evaluated beside it.
GENERAL_SETS = ("mnli_matched", "template_test")


@dataclass(frozen=True)
class Series:
    """One test set, or a slice of it: which rows of a frame are its, and how it is called."""

    set: str
    slice: str
    num_labels: int
    name: str
    # As the paper scores.
    folding: str = "argmax"


def select(table: pd.DataFrame, series: Series) -> pd.DataFrame:
    """The rows of a frame or table that belong to a series."""
    of_slice = (table["set"] == series.set) & (table["slice"] == series.slice)
    return table[of_slice & (table["num_labels"] == series.num_labels) & (table["folding"] == series.folding)]


def paper_series(general_set: str, blindspot_set: str, blindspot_slice: str) -> tuple[Series, ...]:
    """The test sets of the paper's Figure 1: general, blindspot, and the blindspot's adversarial slice."""
    return (
        Series(general_set, "all", 3, set_name(general_set)),
        Series(blindspot_set, "all", 2, set_name(blindspot_set)),
        Series(blindspot_set, blindspot_slice, 2, f"{set_name(blindspot_set)}, {slice_name(blindspot_slice)}"),
    )


def study_series(study: Study, frame: pd.DataFrame) -> tuple[Series, ...]:
    """A study's general set, its blindspot set, and the latter's blindspot slice.

    The manifest's parameters `general_set` and `blindspot_set` say which; where it has none, it is the
    evaluated set that fits, in the order of GENERAL_SETS where several do. Raises UserError when that is not
    clear.
    """
    fits = {
        "general_set": frame.loc[(frame["num_labels"] == 3) & (frame["slice"] == "all"), "set"],
        "blindspot_set": frame.loc[frame["slice"] == study.blindspot_slice, "set"],
    }
    chosen: dict[str, str] = {}
    for name, sets in fits.items():
        fitting = sorted(sets.unique())
        usual = [known for known in GENERAL_SETS if known in fitting] if len(fitting) > 1 else fitting
        value = study.parameters.get(name, usual[0] if usual else None)
        if value not in fitting:
            raise UserError(
                f"study {study.experiment!r} has {name}={value!r}, and the evaluated sets that it can be are "
                f"{', '.join(fitting) or 'none'}; set {name} in the experiment to one of them, or evaluate it"
            )
        chosen[name] = str(value)
    return paper_series(chosen["general_set"], chosen["blindspot_set"], study.blindspot_slice)
