"""The three test sets that a study is read on: general, blindspot, and the blindspot's slice where its heuristic is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.study.described import task_of, titles_of
from analysis.study.frame import why_unread
from analysis.wording import SET_NAMES, set_name, slice_name
from pipelines.errors import DamagedError, UserError
from pipelines.tasks.nli import NLI
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
        _series(general_set, "all", len(NLI.labels)),
        _series(blindspot_set, "all", 2),
        _series(blindspot_set, blindspot_slice, 2),
    )


def set_series(frame: pd.DataFrame, set_: str, slice_: str = "all", titles: Mapping[str, str] = SET_NAMES) -> Series:
    """A set, or a slice of it, as it is scored first: by as many labels as it can be.

    Raises UserError where the frame has no rows of it.
    """
    rows = frame[(frame["set"] == set_) & (frame["slice"] == slice_)]
    if rows.empty:
        raise UserError(f"no evaluation has {set_} / {slice_}; evaluate it, or name another set or slice")
    return _series(set_, slice_, int(rows["num_labels"].max()), titles)


def _series(set_: str, slice_: str, num_labels: int, titles: Mapping[str, str] = SET_NAMES) -> Series:
    title = set_name(set_, titles)
    return Series(set_, slice_, num_labels, title if slice_ == "all" else f"{title}, {slice_name(slice_)}")


def study_series(study: Study, frame: pd.DataFrame) -> tuple[Series, ...]:
    """A study's general set, its blindspot set, and the latter's blindspot slice; two series where both sets are one.

    The manifest's parameters `general_set` and `blindspot_set` say which; where it has none, it is the
    evaluated set that fits, in the order of GENERAL_SETS where several do. Raises UserError when that is not
    clear.
    """
    num_labels = len(task_of(study).labels)
    fits = {
        "general_set": frame.loc[(frame["num_labels"] == num_labels) & (frame["slice"] == "all"), "set"],
        "blindspot_set": frame.loc[frame["slice"] == study.blindspot_slice, "set"],
    }
    chosen: dict[str, str] = {}
    for name, sets in fits.items():
        fitting = sorted(sets.unique())
        usual = [known for known in GENERAL_SETS if known in fitting] if len(fitting) > 1 else fitting
        value = study.parameters.get(name, usual[0] if usual else None)
        if frame.empty:
            # What is built and cannot be read is not to be built again for a file that may be had.
            if why := why_unread(frame):
                raise DamagedError(f"study {study.experiment!r} has no evaluation that can be read: {why}")
            raise UserError(f"study {study.experiment!r} has no evaluation yet; run it to build some")
        if value not in fitting:
            raise UserError(
                f"study {study.experiment!r} has {name}={value!r}, and the evaluated sets that it can be are "
                f"{', '.join(fitting) or 'none'}; set {name} in the experiment to one of them, or evaluate it"
            )
        chosen[name] = str(value)
    places = (
        (chosen["general_set"], "all"),
        (chosen["blindspot_set"], "all"),
        (chosen["blindspot_set"], study.blindspot_slice),
    )
    titles = titles_of(study)
    return tuple(dict.fromkeys(set_series(frame, *place, titles) for place in places))
