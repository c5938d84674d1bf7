"""Scores of logits on a test set: predictions of all labels and of two, accuracy by slice, and log-odds.

A set may have two labels that the task's are folded to: on HANS a predicted neutral or contradiction counts as non-entailment
(paper, section 2.2.3). Sets of all labels are reported as they are and, where the task says onto which label, folded to two.
Folding comes after the argmax, as in the paper, or before it, on the summed probabilities; HANS's authors (McCoy, Pavlick and
Linzen 2019) use the first and name the second.

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

from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import NLI
from pipelines.tasks.slices import slices_of
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet

FOLDINGS = ("argmax", "summed")
"""How the scores of all labels become two labels: see `is_predicted`."""


def is_predicted(logits: np.ndarray, label: int, folding: str) -> np.ndarray:
    """Whether each of n items is predicted to be of a label, booleans [n], from class logits [n, num_labels] folded to two.

    "argmax": the label's logit is the largest, and only then the others merge (paper, section 2.2.3). "summed": its p is above
    the sum of the others', p being the softmax. What is predicted by "summed" is so by "argmax". A tie between logits goes to
    the first label, one between p and 1 - p to the others. Raises ValueError for another folding.
    """
    if folding == "argmax":
        return np.argmax(logits, axis=1) == label
    if folding == "summed":
        # p > 1/2, without an exponential that could overflow.
        return scores(logits, label) > 0
    raise ValueError(f"folding={folding!r} is none of {', '.join(FOLDINGS)}")


def scores(logits: np.ndarray, label: int) -> np.ndarray:
    """The log-odds log p(label) - log(1 - p(label)) of n items, float64 [n], from class logits [n, num_labels].

    `label` is its place in the head. The other labels are folded by their summed probabilities, p being the softmax. A number
    added to the label's logit is added to the score, so that it says something where accuracy is at 0 or 1.
    """
    others = np.delete(np.asarray(logits, dtype=np.float64), label, axis=1)
    return np.asarray(logits, dtype=np.float64)[:, label] - np.logaddexp.reduce(others, axis=1)


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


def is_right(predicted: np.ndarray, labels: np.ndarray, task: Task, asked: str | None = None) -> np.ndarray:
    """Which of n items are right, booleans [n], from predicted classes int [n] (argmax of the logits) and labels str [n].

    With `asked`, both are first folded to two: that label and any other. Labels that are folded themselves need it.
    """
    if asked is None:
        return np.array(task.labels)[predicted] == labels
    return (predicted == task.index(asked)) == (labels == str(asked))


def where_held(table: pa.Table, heuristics: Sequence[Heuristic], task: Task = NLI) -> list[tuple[Heuristic, np.ndarray]]:
    """Each of `heuristics` with where it holds in an examples table [n], booleans [n]: the same for every task model.

    One that predicts another label than the one that a set's labels are folded onto is left out of that set.
    """
    onto = folded_onto(table, task)
    return [(heuristic, heuristic.of(table, task)) for heuristic in heuristics if onto is None or heuristic.predicts == onto]


def folded_onto(table: pa.Table, task: Task) -> str | None:
    """The label that an examples table's labels are folded onto, or None where they are the task's own."""
    folded = [label for label in pc.unique(table["label"]).to_pylist() if label not in task.labels]
    return folded[0].removeprefix("non-") if folded else None


def slice_column(column: str) -> str:
    """The column of `logits.parquet` that holds the values of a described set's slice column."""
    return f"slice/{column}"


def _slice_columns(table: pa.Table, described: TestSet | None) -> dict[str, np.ndarray]:
    columns = described.slices if described else ()
    return {column: np.array(table[column].to_pylist(), dtype=object) for column in columns}


def accuracy_rows(
    name: str,
    table: pa.Table,
    logits: np.ndarray,
    held: Sequence[tuple[Heuristic, np.ndarray]] = (),
    task: Task = NLI,
    described: TestSet | None = None,
) -> list[dict[str, Any]]:
    """Accuracy of `logits` float [n, num_labels] on an examples table [n], over all and by slice.

    A row has set, slice, num_labels, folding, accuracy (0..1), num_correct and num_examples. Slices: "all"; those of the set's
    description (`slices_of`); else, with columns heuristic and subcase, "<heuristic>", "<heuristic>/<label>" and
    "subcase/<subcase>"; for each heuristic of `held`, from `where_held`, "holds/<name>", where it holds, and that by whether
    the label is the predicted one: "holds/<name>/<label>" and "holds/<name>/non-<label>". There, only this is asked of the
    model, too. A slice exists only if an example is in it. Two labels that others are folded to are scored by each of FOLDINGS;
    all labels, where nothing is folded, and what a heuristic holds of are under "argmax". The slices of a description are
    scored by the labels that the set has. Raises ValueError if there is no example.
    """
    if table.num_rows == 0 or len(logits) != table.num_rows:
        raise ValueError(
            f"{name}: {len(logits):,} logits for {table.num_rows:,} examples; one for each of at least one is needed"
        )
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
    onto = folded_onto(table, task)
    slices = slices_of(_slice_columns(table, described), labels) if described else _probe_slices(table, labels)
    if onto is None:
        right = is_right(predicted, labels, task)
        add("all", len(task.labels), "argmax", right)
        for slice_name, chosen in slices.items() if described else ():
            add(slice_name, len(task.labels), "argmax", right[chosen])
    if (asked := onto or task.folded_onto) is not None:
        is_asked = _folded(lambda label: task.fold(label, asked), labels) == asked
        for folding in FOLDINGS:
            two_way = is_predicted(logits, task.index(asked), folding) == is_asked
            add("all", 2, folding, two_way)
            for slice_name, chosen in slices.items() if onto or not described else ():
                add(slice_name, 2, folding, two_way[chosen])
    for heuristic, holds in held:
        two_labels = _folded(lambda label, to=heuristic.predicts: task.fold(label, to), labels)  # type: ignore[misc]
        correct = is_right(predicted, labels, task, heuristic.predicts)
        slices = {f"holds/{heuristic.name}": holds}
        slices |= {f"holds/{heuristic.name}/{label}": holds & (two_labels == label) for label in np.unique(two_labels)}
        for slice_name, chosen in slices.items():
            if chosen.any():
                add(slice_name, 2, "argmax", correct[chosen])
    return rows


def _probe_slices(table: pa.Table, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The slices of a set like HANS, whose examples are each made for a heuristic."""
    slices: dict[str, np.ndarray] = {}
    if "heuristic" in table.column_names:
        made_for = np.array(table.column("heuristic").to_pylist())
        subcases = np.array(table.column("subcase").to_pylist())
        for probe in np.unique(made_for):
            chosen = made_for == probe
            slices[str(probe)] = chosen
            slices |= {f"{probe}/{label}": chosen & (labels == label) for label in np.unique(labels[chosen])}
        slices |= {f"subcase/{subcase}": subcases == subcase for subcase in np.unique(subcases)}
    return slices


def _folded(fold_label: Callable[[str], str], labels: np.ndarray) -> np.ndarray:
    distinct, which = np.unique(labels, return_inverse=True)
    return np.array([fold_label(str(label)) for label in distinct])[which]


def flat_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rows' accuracies by name: `hans/accuracy`, `hans/lexical_overlap/non-entailment/accuracy`, `…/accuracy_2way`.

    The second folding has one name a set: `hans/accuracy_summed`, `mnli_matched/accuracy_2way_summed`. Its slices, and all
    subcases, stay in `metrics.json`: ninety more columns would hide the ones that are compared.
    """
    flat = {}
    unfolded = {row["set"] for row in rows if row["num_labels"] > 2}
    for row in rows:
        summed = row["folding"] == "summed"
        if row["slice"].startswith("subcase/") or (summed and row["slice"] != "all"):
            continue
        where = row["set"] if row["slice"] == "all" else f"{row['set']}/{row['slice']}"
        of_two = "_2way" if row["num_labels"] == 2 and row["set"] in unfolded else ""
        flat[f"{where}/accuracy{of_two}{'_summed' if summed else ''}"] = row["accuracy"]
    return flat


@dataclass(frozen=True)
class Evaluated:
    """A test set's examples [n], a task model's class logits [n, num_labels], and where heuristics hold, from `where_held`."""

    name: str
    table: pa.Table
    logits: np.ndarray
    held: Sequence[tuple[Heuristic, np.ndarray]] = ()
    described: TestSet | None = None


def score_metrics(sets: Sequence[Evaluated], task: Task = NLI) -> dict[str, float]:
    """The margin, AUC and pull of each heuristic in each set, by name: `hans/lexical_overlap/margin`, `…/auc`, `…/pull`.

    Of items made for a heuristic, as in HANS, of items of which one holds (`mnli_matched/holds/lexical_overlap/auc`), and of
    the halves of a described set (`scone/half/adversarial/auc`). By `scores` of the label that the heuristic predicts: the
    margin is their mean where going by it is wrong. The AUC is the chance that an item where it is right scores above one where
    it is wrong; the pull that one where it is wrong scores above another of its label in the first set whose labels are not
    folded. What has no item on a side is left out; NaN where a score is NaN.
    """
    general = next((one for one in sets if folded_onto(one.table, task) is None), None)
    metrics = {}
    for one in sets:
        for slice_name, label, wrong, right in _probes(one, task):
            score = scores(one.logits, task.index(label))
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
                metrics[f"{one.name}/{slice_name}/pull"] = _auc(score[wrong], scores(general.logits, task.index(label))[alike])
    return metrics


def _probes(one: Evaluated, task: Task) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Of each heuristic its slice, the label that it predicts, and where going by it is wrong and right, booleans [n]."""
    table = one.table
    if one.described and one.described.adversarial and (label := one.described.predicts):
        slices = slices_of(_slice_columns(table, one.described), np.array(table["label"].to_pylist()))
        nowhere = np.zeros(table.num_rows, dtype=bool)
        wrong, right = (slices.get(half or "", nowhere) for half in (one.described.adversarial, one.described.aligned))
        is_label = _is_of(table, label)
        yield one.described.adversarial, label, wrong & ~is_label, right & is_label
    probes: list[tuple[str, str, np.ndarray]] = []
    if one.described is None and "heuristic" in table.column_names and (onto := folded_onto(table, task) or task.folded_onto):
        made_for = np.array(table["heuristic"].to_pylist())
        probes += [(str(name), onto, made_for == name) for name in np.unique(made_for)]
    probes += [(f"holds/{heuristic.name}", heuristic.predicts, holds) for heuristic, holds in one.held]
    for name, label, where in probes:
        is_label = _is_of(table, label)
        yield name, label, where & ~is_label, where & is_label


def _is_of(table: pa.Table, label: str) -> np.ndarray:
    return pc.equal(table["label"], str(label)).to_numpy()


def _auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    if np.isnan(positives).any() or np.isnan(negatives).any():
        return math.nan
    return float(placements(positives, negatives)[0].mean())
