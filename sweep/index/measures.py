"""How MLflow names what is measured: what kinds are compared by has a short name, and each test set is a section of charts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GENERAL, BLINDSPOT, ADVERSARIAL = "general", "blindspot", "adversarial"
MEASURES = ("margin", "auc", "pull")
SHORT_NAMES = (GENERAL, BLINDSPOT, ADVERSARIAL, *MEASURES)
"""Accuracy on the general set, on the blindspot's set, and on its items where going by the heuristic is wrong; what else is
measured of the heuristic there."""

# What a step reports for the display, and says nothing afterwards.
NOT_LOGGED = ("fraction_done",)


@dataclass(frozen=True)
class Compared:
    """What the kinds of a study are compared by. An older study's manifest may name no set: then it is the first that fits."""

    general_set: str = ""
    blindspot_set: str = ""
    adversarial: str = ""
    """The slice of the blindspot's set in which going by the heuristic is wrong."""

    def short_names(self, names: Iterable[str]) -> dict[str, str]:
        """Short name → the measure's own, of those that are among the names of an evaluation's metrics."""
        names = list(names)
        # Where two of more labels are asked for, an accuracy is named for that.
        accuracy = next((name for name in names if self._is_of(name, ("accuracy", "accuracy_2way"), self.adversarial)), "")
        blindspot_set = accuracy.partition("/")[0] or self.blindspot_set
        others = [name for name in names if name.endswith("/accuracy") and name.count("/") == 1]
        general = f"{self.general_set}/accuracy"
        if not self.general_set:
            # Of another set where there is one: a blindspot can be a slice of the general set itself.
            general = min(others, key=lambda name: name.partition("/")[0] == blindspot_set, default="")
        found = {GENERAL: general, BLINDSPOT: f"{blindspot_set}/accuracy", ADVERSARIAL: accuracy}
        if found[BLINDSPOT] == general:
            del found[BLINDSPOT]
        for measure in MEASURES:
            # A slice that ends in a label is measured without it: the items of the heuristic on both sides.
            for place in (self.adversarial.rpartition("/")[0], self.adversarial):
                found[measure] = next((name for name in names if self._is_of(name, (measure,), place)), found.get(measure, ""))
        return {short: found[short] for short in SHORT_NAMES if found.get(short) in names}

    def _is_of(self, name: str, measures: Iterable[str], place: str) -> bool:
        set_, _, rest = name.partition("/")
        return bool(place) and set_ == (self.blindspot_set or set_) and rest in {f"{place}/{measure}" for measure in measures}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_curves(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Step metrics as MLflow names them: in a section of charts that comes first."""
    return {name if "/" in name else f"curve/{name}": value for name, value in metrics.items() if name not in NOT_LOGGED}


def as_total(name: str) -> str:
    """A final value's name in MLflow; it sorts its sections of charts, one for each text before a `/`.

    A test set is a section: `hans/lexical_overlap.non-entailment.accuracy`. What is of no section is of
    `totals`, which comes last, and has no name in common with a curve.
    """
    section, separator, rest = name.partition("/")
    return f"{section}/{rest.replace('/', '.')}" if separator else f"totals/{name}"


def as_totals(final: Mapping[str, Any]) -> dict[str, Any]:
    """Final values as MLflow names them."""
    return {as_total(name): value for name, value in final.items()}
