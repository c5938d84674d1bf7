"""The slices of a described test set, by the values of its slice columns."""

from collections.abc import Mapping

import numpy as np


def slices_of(columns: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each slice of a described test set by its name, booleans [n], from its slice columns str [n] and labels str [n].

    `<column>/<value>`, and `<column>/<value>/<label>` of it by label; a null is in no slice.
    """
    slices = {}
    for column, values in columns.items():
        for value in sorted({value for value in values if value is not None}):
            chosen = values == value
            slices[f"{column}/{value}"] = chosen
            slices |= {f"{column}/{value}/{label}": chosen & (labels == label) for label in np.unique(labels[chosen])}
    return slices
