"""Each task model's prediction and score for each test item, from the logits of a study's evaluations, and what is measured on
them; items that hang together are clusters."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.stats.intervals import Replicates, replicates
from analysis.stats.ranking import auc_replicates
from analysis.study.described import described_sets, task_of
from analysis.study.frame import describe_missing
from analysis.study.item_sets import ItemSet, load_item_set
from pipelines.errors import DamagedError, UserError
from pipelines.evaluate.scoring import is_right, placements, scores
from pipelines.storage import join
from pipelines.tasks.nli import NLI
from pipelines.tasks.parquet import parquet_table
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import COORDINATES, Store, Study, StudyStep
from sweep.study.claims import NOT_FROM_POOL, Measure

Cell = tuple[int, str, int, int]
"""starting_size, kind, size, seed: one evaluated task model of an arm. Kind "none", size 0 is a starting point as it is."""
LOGITS = "logits.parquet"


@dataclass(frozen=True)
class Responses:
    """Each evaluated task model's prediction for each item, in one arm of a study: set → cell → class int8 [num_items].

    `scores`, float32 [num_items], are the log-odds of `label`, the one that the study's heuristic predicts; there are none
    where it does not always predict the same. `generator_of` maps seeds to their generators where several have made results.
    `missing` names in words what the study promises and the store lacks, `notes` what had to be done without.
    """

    items: dict[str, ItemSet]
    predicted: dict[str, dict[Cell, np.ndarray]]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: dict[str, dict[Cell, np.ndarray]] = field(default_factory=dict)
    label: str | None = NLI.folded_onto
    generator_of: Mapping[int, int] = field(default_factory=dict)

    def change(
        self,
        test_set: str,
        slice_name: str,
        treatment: str,
        control: str,
        starting_sizes: Sequence[int],
        sizes: Sequence[int],
        measure: Measure = Measure.ACCURACY,
        general_set: str | None = None,
    ) -> Replicates:
        """A measure with one kind of training set minus another (or the starting point, "none"), paired by seed.

        Averaged within a seed over starting points and sizes; a seed that lacks a cell is left out. Where the study has several
        generators and one of the kinds is made from a pool, the seeds of a generator are averaged, too, and stand as one.
        Raises UserError when no seed has them all, and as `measured` does.
        """
        treated, controls = (
            [(start, kind, 0 if kind == "none" else size) for start in starting_sizes for size in sizes]
            for kind in (treatment, control)
        )
        if not self._seeds(test_set, treated + controls):
            raise UserError(
                f"no seed has both {treatment} and {control} on {test_set} at every one of "
                f"starting_sizes={list(starting_sizes)}, sizes={list(sizes)}; run what is missing"
            )
        difference = self.measured(measure, test_set, slice_name, treated, general_set).minus(
            self.measured(measure, test_set, slice_name, controls, general_set)
        )
        return self.by_unit((treatment, control), difference)

    def by_unit(self, kinds: Iterable[str], data: Replicates) -> Replicates:
        """Seeds as they are; averaged to one value a generator where several made the data that the kinds are of."""
        from_pool = set(kinds).difference(NOT_FROM_POOL)
        return data.grouped(self.generator_of) if from_pool and len(set(self.generator_of.values())) > 1 else data

    def measured(
        self,
        measure: Measure,
        blindspot_set: str,
        slice_name: str,
        cells: Iterable[tuple[int, str, int]],
        general_set: str | None = None,
    ) -> Replicates:
        """A measure on a slice where going by the heuristic is wrong, by seed.

        Averaged within a seed over cells (starting_size, kind, size). ACCURACY and MARGIN are means over any slice. AUC sets
        the slice against its counterpart, where the heuristic holds and is right: "holds/<name>/<label>" for
        "holds/<name>/non-<label>", and a described set's aligned half for its adversarial one. PULL sets it against the other
        items of `general_set` that have the slice's label, all labels but the heuristic's being folded. Raises UserError when
        no seed has all of the cells, for a slice without a counterpart or of several labels, for want of general items, for a
        slice that asks for another label than `label`, and where there is none.
        """
        if measure == Measure.ACCURACY:
            return self.accuracy(blindspot_set, slice_name, cells)
        items = self.items[blindspot_set]
        label = self._scored_label(items, slice_name)
        score_of = self.scores[blindspot_set]
        where = items.chosen(slice_name)
        if items.described is not None and slice_name == items.described.adversarial:
            where = where & ~items.is_of(label)
        if measure == Measure.MARGIN:
            seeds, margins = self._averages(blindspot_set, cells, lambda cell: score_of[cell][where])
            return replicates(seeds, margins, *items.structure(where))
        adversarial = (blindspot_set, where)
        if measure == Measure.AUC:
            return self._auc((blindspot_set, _counterpart(items, slice_name, where, label)), adversarial, cells)
        if general_set is None:
            raise ValueError("the pull is against the items of a general set; give general_set")
        alike = _alike(items, self.items[general_set], slice_name, where, label)
        return self._auc(adversarial, (general_set, alike), cells)

    def _scored_label(self, items: ItemSet, slice_name: str) -> str:
        if self.label is None:
            raise UserError(
                f"{items.title} names no label that its heuristic always predicts, so that nothing has a score; measure its "
                "accuracy, or describe it with predicts="
            )
        asked = items.asked(slice_name)
        if asked not in (None, self.label) and len(items.task.labels) > 2:
            raise UserError(
                f"slice {slice_name!r} asks for {asked}, and scores are of {self.label}, which the study's heuristic predicts; "
                "measure its accuracy"
            )
        return self.label

    def accuracy(
        self, test_set: str, slice_name: str, cells: Iterable[tuple[int, str, int]], side: str | None = None
    ) -> Replicates:
        """Accuracy averaged within a seed over cells (starting_size, kind, size).

        With a `side`, a label or `non-` and a label, on the items that have it, all other labels being one. Raises UserError
        when no seed has all of the cells, or no item is left.
        """
        items = self.items[test_set]
        where, asked = items.chosen(slice_name), items.asked(slice_name)
        if side is not None:
            asked = side.removeprefix("non-")
            where = where & (items.is_of(asked) == (side == asked))
        if not where.any():
            raise UserError(f"no item of {test_set} / {slice_name} has the label {side!r}; an empty slice has no accuracy")
        labels, predicted = items.labels[where], self.predicted[test_set]
        if side is not None:
            labels = np.full(len(labels), side)
        seeds, right = self._averages(test_set, cells, lambda cell: is_right(predicted[cell][where], labels, items.task, asked))
        return replicates(seeds, right, *items.structure(where))

    def _auc(
        self, above: tuple[str, np.ndarray], below: tuple[str, np.ndarray], cells: Iterable[tuple[int, str, int]]
    ) -> Replicates:
        """P(an item of `above` scores above one of `below`), each a test set and a choice of its items, bool [num_items]."""
        (first, positives), (second, negatives) = ((test_set, np.flatnonzero(where)) for test_set, where in (above, below))
        if first == second:
            structure = self.items[first].structure(np.concatenate([positives, negatives]))
        else:
            structure = _side_by_side(self.items[first].structure(positives), self.items[second].structure(negatives))

        def placed(cell: Cell) -> np.ndarray:
            return np.concatenate(placements(self.scores[first][cell][positives], self.scores[second][cell][negatives]))

        seeds, of_items = self._averages(first, cells, placed)
        of_positives, of_negatives = np.split(of_items, [len(positives)], axis=1)
        return auc_replicates(seeds, of_positives, of_negatives, *structure)

    def _seeds(self, test_set: str, cells: Sequence[tuple[int, str, int]]) -> tuple[int, ...]:
        """The seeds that have all of the cells."""
        of_set = self.predicted[test_set]
        seeds = sorted({seed for _, _, _, seed in of_set})
        return tuple(seed for seed in seeds if cells and all((*cell, seed) in of_set for cell in cells))

    def _averages(
        self, test_set: str, cells: Iterable[tuple[int, str, int]], of_cell: Callable[[Cell], np.ndarray]
    ) -> tuple[tuple[int, ...], np.ndarray]:
        """The seeds that have all of the cells, and the mean over these of a number an item, float [n, num_items]."""
        cells = list(cells)
        seeds = self._seeds(test_set, cells)
        if not seeds:
            if absent := {kind for _, kind, _ in cells} - {kind for _, kind, _, _ in self.predicted[test_set]}:
                raise UserError(
                    f"nothing of {' and '.join(sorted(absent))} is evaluated on {test_set}; run what is missing, or give the "
                    "study that kind of set if it has none"
                )
            raise UserError(f"no seed has all of the cells on {test_set}; run what is missing")
        return seeds, np.stack([np.mean([of_cell((*cell, seed)) for cell in cells], axis=0, dtype=float) for seed in seeds])


def _counterpart(items: ItemSet, slice_name: str, where: np.ndarray, label: str) -> np.ndarray:
    """Where the heuristic of a slice, which predicts `label`, holds and is right, bool [num_items]."""
    described = items.described
    if described is not None and slice_name == described.adversarial and described.aligned is not None:
        return items.chosen(described.aligned) & items.is_of(label)
    head = slice_name.rpartition("/")[0]
    if head in ("", "subcase", *items.columns) or items.is_of(label)[where].any():
        raise UserError(
            f"slice {slice_name!r} has no counterpart in which its heuristic is right, and an AUC is of both; measure a "
            f"slice of a heuristic's items that are not {label}, such as lexical_overlap/non-entailment of HANS, or name the "
            "aligned half of a set that is described"
        )
    return items.chosen(f"{head}/{label}")


def _alike(items: ItemSet, general: ItemSet, slice_name: str, where: np.ndarray, label: str) -> np.ndarray:
    """The general items, bool, that have the label of the items `where` of a slice and are not among them."""
    is_label = items.is_of(label)[where]
    if is_label.any() != is_label.all():
        raise UserError(f"slice {slice_name!r} has items of {label} and others; the pull is of items of one label")
    alike = general.is_of(label) == is_label[0]
    if general.name == items.name:
        alike &= ~where
    if not alike.any():
        of = label if is_label[0] else f"non-{label}"
        raise UserError(f"{general.name} has no further item of {of} to set slice {slice_name!r} against")
    return alike


def predicted_label(slice_name: str, described: TestSet | None, task: Task) -> str | None:
    """The label that the heuristic predicts which is wrong in a slice of a blindspot set; None where none is named.

    A described set names it; else the slice does, as `non-` it; else it is the one that the task's sets are folded onto.
    """
    if described is not None and slice_name == described.adversarial:
        return described.predicts
    last = slice_name.rpartition("/")[2]
    label = last.removeprefix("non-")
    return label if last.startswith("non-") and label in task.labels else task.folded_onto


def _side_by_side(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Clusters and strata of two sets of items that share none."""
    clusters, strata = (np.concatenate([one, other + one.max() + 1]) for one, other in zip(first, second, strict=True))
    return clusters, strata


def load_arms(
    store: Store, study: Study, sets: Sequence[str], frame: pd.DataFrame, *, partial: bool = False
) -> dict[str, Responses]:
    """Read the logits of every evaluation of a study, and the items' clusters from its sources: each arm's responses.

    The arm of a study of one is "". What arms share is one array.
    Where a set tells one label from the others (HANS: entailment), predictions of the others count as one, and so they do where
    a heuristic holds; else all of the task's labels count.
    `frame` is the study's `evaluation_frame`. Raises UserError for logits or sources that are missing, differ in their items,
    or do not give the accuracy that the frame reports. With `partial` what is missing is left out and named; without sources,
    each subcase is one cluster, and items without a subcase stand alone.
    """
    missing = [describe_missing(result) for result in frame.attrs["missing"]]
    notes: list[str] = []
    items: dict[str, ItemSet] = {}
    first: dict[str, pa.Table] = {}
    predicted: dict[str, dict[str, dict[Cell, np.ndarray]]] = {arm: {name: {} for name in sets} for arm in study.arms or ("",)}
    scores_of: dict[str, dict[str, dict[Cell, np.ndarray]]] = {arm: {name: {} for name in sets} for arm in predicted}
    task, described = task_of(study), described_sets(study)
    blindspot_set = str(study.parameters.get("blindspot_set", ""))
    label = predicted_label(study.blindspot_slice, described.get(blindspot_set), task)
    sets = list(dict.fromkeys(sets))
    for step in study.steps:
        if step.stage != "evaluation" or step.record is None:
            continue
        where: Cell = tuple(step.coordinates[name] for name in COORDINATES)  # type: ignore[assignment]
        try:
            content = store.read_bytes(step.record, LOGITS)
        except DamagedError as error:
            if not partial:
                raise
            missing.append(describe_missing({**step.coordinates, "what": LOGITS, "why": str(error)}))
            continue
        table = parquet_table(io.BytesIO(content), join(store.folder(step.id), LOGITS))
        for name in sets:
            rows = table.filter(pc.equal(table["set"], name))
            if rows.num_rows == 0:
                raise UserError(f"evaluation {step.slug} has no logits of {name}; evaluate that set, too")
            identifying = rows.select(["id", "label"])
            if name not in items:
                items[name] = load_item_set(store, study, step, rows, notes, task, name, described.get(name), partial=partial)
                first[name] = identifying
            elif not identifying.equals(first[name]):
                raise UserError(
                    f"evaluation {step.slug} has other items of {name} than the others; accuracies on different "
                    "items cannot be compared: evaluate all task models on the same sources"
                )
            logits = _logits(rows, name, task)
            classes = logits.argmax(axis=1).astype(np.int8)
            scored = None if label is None else scores(logits, task.index(label)).astype(np.float32)
            for arm in step.arms or ("",):
                predicted[arm][name][where] = classes
                if scored is not None:
                    scores_of[arm][name][where] = scored
            asked = items[name].asked("all")
            _check_against(frame, step, name, is_right(classes, items[name].labels, task, asked))
    if not items:
        why = f" ({missing[0]})" if missing else ""
        raise UserError(
            f"no evaluation of study {study.experiment!r} has its {LOGITS} in the store; verdicts are made from them{why}"
        )
    given = label, generator_of_seeds(study)
    return {
        arm: Responses(items, of_arm, tuple(missing), tuple(notes), scores_of[arm], *given) for arm, of_arm in predicted.items()
    }


def generator_of_seeds(study: Study) -> dict[int, int]:
    """Each seed's generator, where several have made what is evaluated; else nothing: one generator's seeds are its draws."""
    of_seed = {
        int(step.coordinates["seed"]): int(step.coordinates["generator"])
        for step in study.steps
        if step.stage == "evaluation" and step.record is not None and step.coordinates.get("generator") is not None
    }
    return of_seed if len(set(of_seed.values())) > 1 else {}


def _logits(rows: pa.Table, name: str, task: Task) -> np.ndarray:
    """Class logits [num_items, num_labels] of one task model on one set."""
    if absent := [label for label in task.labels if f"logit_{label}" not in rows.column_names]:
        raise UserError(
            f"logits of {name} have no column logit_{absent[0]}, and the task {task.name} has that label; the file is not this "
            "study's: delete the artifact and run again"
        )
    logits = np.stack([rows[f"logit_{label}"].to_numpy() for label in task.labels], axis=1)
    if not np.isfinite(logits).all():
        raise UserError(f"logits of {name} are not all finite; the task model is broken: train it again")
    return logits


def _check_against(frame: pd.DataFrame, step: StudyStep, name: str, right: np.ndarray) -> None:
    # Of each arm that has it, the same.
    reported = frame[(frame["fingerprint"] == step.fingerprint) & (frame["set"] == name) & (frame["slice"] == "all")]
    # Most labels: the accuracy that is not folded, where there are both.
    unfolded = reported[reported["num_labels"] == reported["num_labels"].max()]
    counts = list(zip(unfolded["num_correct"], unfolded["num_examples"], strict=True))
    if (right.sum(), len(right)) not in counts:
        raise UserError(
            f"evaluation {step.slug}: its logits have {right.sum():,} of {len(right):,} items of {name} right, and its metrics "
            f"say {' or '.join(f'{num} of {total}' for num, total in counts) or 'nothing'}; delete the artifact and run again"
        )
