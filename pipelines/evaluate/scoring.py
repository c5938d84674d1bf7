"""Scores of logits on a test set: predictions of two and three labels, accuracy by slice, and log-odds.

HANS and the template probe have two labels: a predicted neutral or contradiction counts as non-entailment (paper, section
2.2.3). Three-label sets are reported as they are and folded to two. Folding comes after the argmax, as in the paper, or before
it, on the summed probabilities; HANS's authors (McCoy, Pavlick and Linzen 2019) use the first and name the second.

An accuracy at 0 or 1 shows no change. Scores, the log-odds of a label, go on: margin, AUC and pull are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.tasks.examples import LABELS, NON_ENTAILMENT, Label, fold
from pipelines.tasks.heuristics import Heuristic

FOLDINGS = ("argmax", "summed")
"""How three class scores become two labels: see `entails`."""


def entails(logits: np.ndarray, folding: str) -> np.ndarray:
    """Whether each of n items is predicted to be entailment, booleans [n], from class logits [n, 3] folded to two labels.

    "argmax": entailment has the largest logit, and only then neutral and contradiction merge (paper, section 2.2.3). "summed":
    p(entailment) > p(neutral) + p(contradiction), p being the softmax. Every entailment by "summed" is one by "argmax". A tie
    between logits goes to the first label, one between p and 1 - p to non-entailment. Raises ValueError for another folding.
    """
    if folding == "argmax":
        return np.argmax(logits, axis=1) == Label.ENTAILMENT.index
    if folding == "summed":
        # p(entailment) > 1/2, without an exponential that could overflow.
        return scores(logits) > 0
    raise ValueError(f"folding={folding!r} is none of {', '.join(FOLDINGS)}")


def scores(logits: np.ndarray, label: Label = Label.ENTAILMENT) -> np.ndarray:
    """The log-odds log p(label) - log(1 - p(label)) of n items, float64 [n], from class logits [n, 3].

    The other labels are folded by their summed probabilities, p being the softmax. A number added to the label's logit is added
    to the score, so that it says something where accuracy is at 0 or 1.
    """
    others = np.delete(np.asarray(logits, dtype=np.float64), label.index, axis=1)
    return np.asarray(logits, dtype=np.float64)[:, label.index] - np.logaddexp.reduce(others, axis=1)


def placements(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each positive's share of negatives below it, [n], and each negative's share of positives above it, [m]; ties count half.

    From scores [n] and [m]. The mean of either is the AUC: P(a positive scores above a negative). They are the components of
    its variance of DeLong, DeLong and Clarke-Pearson (1988). Raises ValueError where a side is empty, or a score is NaN.
    """
    if 0 in (len(positives), len(negatives)):
        raise ValueError(f"{len(positives)} positives and {len(negatives)} negatives; an AUC needs both")
    if np.isnan(positives).any() or np.isnan(negatives).any():
        raise ValueError("a score is NaN, which has no rank")
    return _share_below(positives, negatives), 1 - _share_below(negatives, positives)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(others))


def is_right(predicted: np.ndarray, labels: np.ndarray, asked: Label | None = None) -> np.ndarray:
    """Which of n items are right, booleans [n], from predicted classes int [n] (argmax of the logits) and labels str [n].

    With `asked`, both are first folded to two: that label and any other. Labels that are folded themselves need it.
    """
    if asked is None:
        return np.array([str(label) for label in LABELS])[predicted] == labels
    return (predicted == asked.index) == (labels == str(asked))


def where_held(table: pa.Table, heuristics: Sequence[Heuristic]) -> list[tuple[Heuristic, np.ndarray]]:
    """Each of `heuristics` with where it holds in an examples table [n], booleans [n]: the same for every task model.

    One that predicts another label than entailment is left out of a set whose labels do not tell that one.
    """
    is_folded = _is_folded(table)
    return [
        (heuristic, heuristic(table["premise"], table["hypothesis"]))
        for heuristic in heuristics
        if not is_folded or heuristic.predicts == Label.ENTAILMENT
    ]


def _is_folded(table: pa.Table) -> bool:
    return NON_ENTAILMENT in pc.unique(table["label"]).to_pylist()


def accuracy_rows(
    name: str, table: pa.Table, logits: np.ndarray, held: Sequence[tuple[Heuristic, np.ndarray]] = ()
) -> list[dict[str, Any]]:
    """Accuracy of `logits` float [n, 3] on an examples table [n], over all and by slice.

    A row has set, slice, num_labels, folding, accuracy (0..1), num_correct and num_examples. Slices: "all"; with columns
    heuristic and subcase also "<heuristic>", "<heuristic>/<label>" and "subcase/<subcase>"; for each heuristic of `held`, from
    `where_held`, "holds/<name>", where it holds, and that by whether the label is the predicted one: "holds/<name>/<label>" and
    "holds/<name>/non-<label>". There, only this is asked of the model, too. A slice exists only if an example is in it. Two
    labels are scored by each of FOLDINGS; three, where nothing is folded, and what a heuristic holds of are under "argmax".
    Raises ValueError if there is no example.
    """
    if table.num_rows == 0 or len(logits) != table.num_rows:
        raise ValueError(f"{name}: {len(logits)} logits for {table.num_rows} examples; one for each of at least one is needed")
    labels = np.array(table.column("label").to_pylist())
    rows: list[dict[str, Any]] = []

    def add(slice_name: str, num_labels: int, folding: str, correct: np.ndarray) -> None:
        rows.append(
            {
                "set": name,
                "slice": slice_name,
                "num_labels": num_labels,
                "folding": folding,
                "accuracy": float(correct.mean()),
                "num_correct": int(correct.sum()),
                "num_examples": len(correct),
            }
        )

    predicted = np.argmax(logits, axis=1)
    if NON_ENTAILMENT not in labels:
        add("all", len(LABELS), "argmax", is_right(predicted, labels))
    slices: dict[str, np.ndarray] = {}
    if "heuristic" in table.column_names:
        made_for = np.array(table.column("heuristic").to_pylist())
        subcases = np.array(table.column("subcase").to_pylist())
        for probe in np.unique(made_for):
            chosen = made_for == probe
            slices[str(probe)] = chosen
            slices |= {f"{probe}/{label}": chosen & (labels == label) for label in np.unique(labels[chosen])}
        slices |= {f"subcase/{subcase}": subcases == subcase for subcase in np.unique(subcases)}
    is_entailment = _folded(fold, labels) == Label.ENTAILMENT
    for folding in FOLDINGS:
        two_way = entails(logits, folding) == is_entailment
        add("all", 2, folding, two_way)
        for slice_name, chosen in slices.items():
            add(slice_name, 2, folding, two_way[chosen])
    for heuristic, holds in held:
        two_labels = _folded(heuristic.fold, labels)
        correct = is_right(predicted, labels, heuristic.predicts)
        slices = {f"holds/{heuristic.name}": holds}
        slices |= {f"holds/{heuristic.name}/{label}": holds & (two_labels == label) for label in np.unique(two_labels)}
        for slice_name, chosen in slices.items():
            if chosen.any():
                add(slice_name, 2, "argmax", correct[chosen])
    return rows


def _folded(fold_label: Callable[[str], str], labels: np.ndarray) -> np.ndarray:
    distinct, which = np.unique(labels, return_inverse=True)
    return np.array([fold_label(str(label)) for label in distinct])[which]


def flat_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rows' accuracies by name: `hans/accuracy`, `hans/lexical_overlap/non-entailment/accuracy`, `…/accuracy_2way`.

    The second folding has one name a set: `hans/accuracy_summed`, `mnli_matched/accuracy_2way_summed`. Its slices, and all
    subcases, stay in `metrics.json`: ninety more columns would hide the ones that are compared.
    """
    flat = {}
    three_way = {row["set"] for row in rows if row["num_labels"] == len(LABELS)}
    for row in rows:
        summed = row["folding"] == "summed"
        if row["slice"].startswith("subcase/") or (summed and row["slice"] != "all"):
            continue
        where = row["set"] if row["slice"] == "all" else f"{row['set']}/{row['slice']}"
        of_three = "_2way" if row["num_labels"] == 2 and row["set"] in three_way else ""
        flat[f"{where}/accuracy{of_three}{'_summed' if summed else ''}"] = row["accuracy"]
    return flat


@dataclass(frozen=True)
class Evaluated:
    """A test set's examples [n], a task model's class logits [n, 3], and where heuristics hold, from `where_held`."""

    name: str
    table: pa.Table
    logits: np.ndarray
    held: Sequence[tuple[Heuristic, np.ndarray]] = ()


def score_metrics(sets: Sequence[Evaluated]) -> dict[str, float]:
    """The margin, AUC and pull of each heuristic in each set, by name: `hans/lexical_overlap/margin`, `…/auc`, `…/pull`.

    Of items made for a heuristic, as in HANS, and of items of which one holds (`mnli_matched/holds/lexical_overlap/auc`). By
    `scores` of the label that the heuristic predicts: the margin is their mean where going by it is wrong. The AUC is the
    chance that an item where it is right scores above one where it is wrong; the pull that one where it is wrong scores above
    another of its label in the first set of three labels. What has no item on a side is left out; NaN where a score is NaN.
    """
    general = next((one for one in sets if not _is_folded(one.table)), None)
    metrics = {}
    for one in sets:
        for slice_name, label, where in _probes(one):
            score, is_label = scores(one.logits, label), _is_of(one.table, label)
            wrong, right = where & ~is_label, where & is_label
            if not wrong.any():
                continue
            metrics[f"{one.name}/{slice_name}/margin"] = float(score[wrong].mean())
            if right.any():
                metrics[f"{one.name}/{slice_name}/auc"] = _auc(score[right], score[wrong])
            if general is None:
                continue
            alike = ~_is_of(general.table, label)
            if general is one:
                alike &= ~wrong
            if alike.any():
                metrics[f"{one.name}/{slice_name}/pull"] = _auc(score[wrong], scores(general.logits, label)[alike])
    return metrics


def _probes(one: Evaluated) -> Iterator[tuple[str, Label, np.ndarray]]:
    """The slice of each heuristic, the label that it predicts, and the items, booleans [n]."""
    if "heuristic" in one.table.column_names:
        made_for = np.array(one.table.column("heuristic").to_pylist())
        yield from ((str(name), Label.ENTAILMENT, made_for == name) for name in np.unique(made_for))
    yield from ((f"holds/{heuristic.name}", heuristic.predicts, holds) for heuristic, holds in one.held)


def _is_of(table: pa.Table, label: Label) -> np.ndarray:
    return pc.equal(table["label"], str(label)).to_numpy()


def _auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    if np.isnan(positives).any() or np.isnan(negatives).any():
        return math.nan
    return float(placements(positives, negatives)[0].mean())
