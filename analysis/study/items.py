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
from analysis.study.frame import describe_missing
from analysis.wording import HOLDS
from pipelines.errors import DamagedError, UserError
from pipelines.evaluate.scoring import is_right, placements, scores
from pipelines.storage import join
from pipelines.tasks.nli import LABELS, NLI, NON_ENTAILMENT, Label
from pipelines.tasks.parquet import parquet_schema, parquet_table
from sweep.graph.records import COORDINATES, Store, Study, StudyStep
from sweep.study.claims import NOT_FROM_POOL
from sweep.study.measures import Measure

Cell = tuple[int, str, int, int]
"""starting_size, kind, size, seed: one evaluated task model. Kind "none", size 0 is a starting point as it is."""
LOGITS = "logits.parquet"


@dataclass(frozen=True)
class ItemSet:
    """The items of one test set, in the order of the evaluations: arrays of shape [num_items].

    `clusters` are codes of what shares wording: a template, else a premise. `strata` are codes of the parts whose share is
    fixed by design: on HANS heuristic and label. `heuristics` and `subcases` are "" where the set has none. `holds` maps the
    heuristics that the study evaluates to where they hold, bool [num_items], `predicts` to the label that they predict.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    heuristics: np.ndarray
    subcases: np.ndarray
    clusters: np.ndarray
    strata: np.ndarray
    clustered_by: str
    holds: Mapping[str, np.ndarray] = field(default_factory=dict)
    predicts: Mapping[str, Label] = field(default_factory=dict)

    def chosen(self, slice_name: str = "all") -> np.ndarray:
        """Items of a slice, bool [num_items]; slices are named as by `pipelines.evaluate.evaluation.accuracy_rows`.

        Raises UserError when no item is in it, and for a heuristic that was not asked where it holds.
        """
        head, _, rest = slice_name.partition("/")
        if slice_name == "all":
            return np.ones(len(self.ids), dtype=bool)
        if slice_name.startswith(HOLDS):
            heuristic, label = rest.split("/")[0], self.asked(slice_name)
            if heuristic not in self.holds:
                raise UserError(
                    f"the evaluations of {self.name} do not say where the heuristic {heuristic!r} holds; evaluate with "
                    "EvaluationConfig(heuristics=(…,)), or, if they are older than that, delete them and run again"
                )
            where = self.holds[heuristic]
            if rest != heuristic:
                where = where & ((self.labels == str(label)) != rest.endswith(f"/non-{label}"))
        elif head == "subcase":
            where = self.subcases == rest
        else:
            where = (self.heuristics == head) & (self.labels == rest if rest else True)
        if not where.any():
            raise UserError(f"no item of {self.name} is in the slice {slice_name!r}; an empty slice has no accuracy")
        return where

    def asked(self, slice_name: str) -> Label | None:
        """The label that alone is asked for in a slice, or None where all three are told apart."""
        if slice_name.startswith(HOLDS):
            heuristic, _, last = slice_name.removeprefix(HOLDS).partition("/")
            label = last.removeprefix("non-") or self.predicts.get(heuristic)
            if label not in LABELS:
                raise UserError(
                    f"slice {slice_name!r} does not end in a label or non- and a label, so what is right is not said"
                )
            return Label(label)
        return Label.ENTAILMENT if NON_ENTAILMENT in self.labels else None

    def is_of(self, label: Label) -> np.ndarray:
        """Which items have a label, bool [num_items]. Raises UserError where the set's two labels do not tell it."""
        distinct, which = np.unique(self.labels, return_inverse=True)
        return np.array([NLI.fold(str(one), label) == label for one in distinct])[which]

    def structure(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clusters and strata of the items `where` (bool [num_items], or their positions): int [num_chosen] each.

        Where a stratum has one cluster only, as it can where a heuristic holds, the items are one stratum. Where that has one
        cluster only, as a subcase of one template has, every item is a cluster of its own: the interval then speaks of more
        items of that template.
        """
        clusters, strata = self.clusters[where], self.strata[where]
        if pd.Series(clusters).groupby(strata).nunique().min() < 2:
            strata = np.zeros(len(clusters), dtype=np.int64)
        return (np.arange(len(clusters)) if len(np.unique(clusters)) < 2 else clusters), strata


@dataclass(frozen=True)
class Responses:
    """Each evaluated task model's prediction for each item: set → cell → class int8 [num_items].

    `scores`, float32 [num_items], are the log-odds of `label`, the one that the study's heuristic predicts. `generator_of` maps
    seeds to their generators where the study has several. `missing` names in words what the study promises and the store lacks,
    `notes` what had to be done without.
    """

    items: dict[str, ItemSet]
    predicted: dict[str, dict[Cell, np.ndarray]]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: dict[str, dict[Cell, np.ndarray]] = field(default_factory=dict)
    label: Label = Label.ENTAILMENT
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
        from_pool = {treatment, control}.difference(NOT_FROM_POOL)
        return difference.grouped(self.generator_of) if from_pool and self.generator_of else difference

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
        "holds/<name>/non-<label>". PULL sets it against the other items of `general_set` that have the slice's label, all
        labels but the heuristic's being folded. Raises UserError when no seed has all of the cells, for a slice without a
        counterpart or of several labels, for want of general items, and for a slice that asks for another label than `label`.
        """
        if measure == Measure.ACCURACY:
            return self.accuracy(blindspot_set, slice_name, cells)
        items, score_of = self.items[blindspot_set], self.scores[blindspot_set]
        if items.asked(slice_name) not in (None, self.label):
            raise UserError(
                f"slice {slice_name!r} asks for {items.asked(slice_name)}, and scores are of {self.label}, which the study's "
                "heuristic predicts; measure its accuracy"
            )
        where = items.chosen(slice_name)
        if measure == Measure.MARGIN:
            seeds, margins = self._averages(blindspot_set, cells, lambda cell: score_of[cell][where])
            return replicates(seeds, margins, *items.structure(where))
        adversarial = (blindspot_set, where)
        if measure == Measure.AUC:
            return self._auc((blindspot_set, self._counterpart(items, slice_name, where)), adversarial, cells)
        if general_set is None:
            raise ValueError("the pull is against the items of a general set; give general_set")
        alike = self._alike(items, self.items[general_set], slice_name, where)
        return self._auc(adversarial, (general_set, alike), cells)

    def accuracy(
        self, test_set: str, slice_name: str, cells: Iterable[tuple[int, str, int]], label: str | None = None
    ) -> Replicates:
        """Accuracy averaged within a seed over cells (starting_size, kind, size), on the items of one label if it is given.

        Raises UserError when no seed has all of the cells, or no item is left.
        """
        items = self.items[test_set]
        where = items.chosen(slice_name)
        if label is not None:
            where = where & (items.labels == label)
        if not where.any():
            raise UserError(f"no item of {test_set} / {slice_name} has the label {label!r}; an empty slice has no accuracy")
        labels, asked, predicted = items.labels[where], items.asked(slice_name), self.predicted[test_set]
        seeds, right = self._averages(test_set, cells, lambda cell: is_right(predicted[cell][where], labels, NLI, asked))
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

    def _counterpart(self, items: ItemSet, slice_name: str, where: np.ndarray) -> np.ndarray:
        """Where the heuristic of a slice holds and is right, bool [num_items]."""
        head = slice_name.rpartition("/")[0]
        if head in ("", "subcase") or items.is_of(self.label)[where].any():
            raise UserError(
                f"slice {slice_name!r} has no counterpart in which its heuristic is right, and an AUC is of both; measure a "
                f"slice of a heuristic's items that are not {self.label}, such as lexical_overlap/non-entailment"
            )
        return items.chosen(f"{head}/{self.label}")

    def _alike(self, items: ItemSet, general: ItemSet, slice_name: str, where: np.ndarray) -> np.ndarray:
        """The general items, bool, that have the label of the items `where` of a slice and are not among them."""
        is_label = items.is_of(self.label)[where]
        if is_label.any() != is_label.all():
            raise UserError(f"slice {slice_name!r} has items of {self.label} and others; the pull is of items of one label")
        alike = general.is_of(self.label) == is_label[0]
        if general.name == items.name:
            alike &= ~where
        if not alike.any():
            label = self.label if is_label[0] else f"non-{self.label}"
            raise UserError(f"{general.name} has no further item of {label} to set slice {slice_name!r} against")
        return alike

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
            raise UserError(f"no seed has all of the cells on {test_set}; run what is missing")
        return seeds, np.stack([np.mean([of_cell((*cell, seed)) for cell in cells], axis=0, dtype=float) for seed in seeds])


def _side_by_side(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Clusters and strata of two sets of items that share none."""
    clusters, strata = (np.concatenate([one, other + one.max() + 1]) for one, other in zip(first, second, strict=True))
    return clusters, strata


def load_responses(store: Store, study: Study, sets: Sequence[str], frame: pd.DataFrame, *, partial: bool = False) -> Responses:
    """Read the logits of every evaluation of a study, and the items' clusters from its sources.

    With two labels (HANS) a predicted neutral or contradiction counts as non-entailment, and where a heuristic holds all labels
    but its own count as one; else all three labels count.
    `frame` is the study's `evaluation_frame`. Raises UserError for logits or sources that are missing, differ in their items,
    or do not give the accuracy that the frame reports. With `partial` what is missing is left out and named; without sources,
    each subcase is one cluster, and items without a subcase stand alone.
    """
    missing = [describe_missing(result) for result in frame.attrs["missing"]]
    notes: list[str] = []
    items: dict[str, ItemSet] = {}
    first: dict[str, pa.Table] = {}
    predicted: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in sets}
    scores_of: dict[str, dict[Cell, np.ndarray]] = {name: {} for name in sets}
    label = Label.ENTAILMENT
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
            described = rows.select(["id", "label"])
            if name not in items:
                items[name] = _item_set(store, study, step, name, rows, notes, partial=partial)
                label = items[name].asked(study.blindspot_slice) or label
                first[name] = described
            elif not described.equals(first[name]):
                raise UserError(
                    f"evaluation {step.slug} has other items of {name} than the others; accuracies on different "
                    "items cannot be compared: evaluate all task models on the same sources"
                )
            logits = _logits(rows, name)
            predicted[name][where] = logits.argmax(axis=1).astype(np.int8)
            scores_of[name][where] = scores(logits, label.index).astype(np.float32)
            _check_against(
                frame, step, name, is_right(predicted[name][where], items[name].labels, NLI, items[name].asked("all"))
            )
    if not items:
        raise UserError(
            f"no evaluation of study {study.experiment!r} has its {LOGITS} in the store; verdicts are made from them"
        )
    return Responses(items, predicted, tuple(missing), tuple(notes), scores_of, label, _generators(study))


def _generators(study: Study) -> dict[int, int]:
    """Each seed's generator, of a study that has several; else nothing."""
    of_seed = {
        int(step.coordinates["seed"]): int(step.coordinates["generator"])
        for step in study.steps
        if step.stage == "evaluation" and step.coordinates.get("generator") is not None
    }
    return of_seed if len(set(of_seed.values())) > 1 else {}


def _logits(rows: pa.Table, name: str) -> np.ndarray:
    """Class logits [num_items, 3] of one task model on one set."""
    logits = np.stack([rows[f"logit_{label}"].to_numpy() for label in LABELS], axis=1)
    if not np.isfinite(logits).all():
        raise UserError(f"logits of {name} are not all finite; the task model is broken: train it again")
    return logits


def _check_against(frame: pd.DataFrame, step: StudyStep, name: str, right: np.ndarray) -> None:
    reported = frame[(frame["fingerprint"] == step.fingerprint) & (frame["set"] == name) & (frame["slice"] == "all")]
    # Most labels: the accuracy that is not folded, where there are both.
    unfolded = reported[reported["num_labels"] == reported["num_labels"].max()]
    counts = list(zip(unfolded["num_correct"], unfolded["num_examples"], strict=True))
    if (right.sum(), len(right)) not in counts:
        raise UserError(
            f"evaluation {step.slug}: its logits have {right.sum()} of {len(right)} items of {name} right, and its metrics "
            f"say {' or '.join(f'{num} of {total}' for num, total in counts) or 'nothing'}; delete the artifact and run again"
        )


def _item_set(
    store: Store, study: Study, step: StudyStep, name: str, rows: pa.Table, notes: list[str], *, partial: bool
) -> ItemSet:
    labels, heuristics, subcases = (
        np.array(pc.fill_null(rows[column], "").to_pylist(), dtype=str) for column in ("label", "heuristic", "subcase")
    )
    sources = next((source for source in study.steps if source.fingerprint == step.inputs.get("sources")), None)
    key, ids = subcases, np.array(rows["id"].to_pylist(), dtype=str)
    if sources is None or sources.record is None:
        if not partial:
            raise UserError(
                f"the sources of study {study.experiment!r} are not in the store, and which items of {name} share a template "
                "or a premise is read there; restore them, or go on without (--partial)"
            )
        clustered_by = "subcase" if subcases.any() else "item"
        notes.append(f"{name}: without its sources, items are clustered by {clustered_by}, not by template or premise")
        if clustered_by == "item":
            key = ids
    else:
        path = join(store.folder(sources.id), f"{name}.parquet")
        described = _read_columns(store, sources, f"{name}.parquet").set_index("id")
        clustered_by = "template" if "template" in described else "premise"
        if absent := set(ids) - set(described.index):
            raise UserError(
                f"{path} lacks {len(absent)} evaluated items, {min(absent)} for one; evaluate on these sources again"
            )
        key = described.loc[ids, clustered_by].to_numpy(dtype=str)
    strata, clusters = _strata(labels, heuristics, subcases, key)
    holds = {
        column.removeprefix(HOLDS): rows[column].to_numpy()
        for column in rows.column_names
        # Null where the heuristic is not asked for: two labels do not tell its own.
        if column.startswith(HOLDS) and not rows[column].null_count
    }
    return ItemSet(name, ids, labels, heuristics, subcases, clusters, strata, clustered_by, holds, _predicts(step))


def _predicts(evaluation: StudyStep) -> dict[str, Label]:
    """The label that each heuristic of an evaluation's config predicts."""
    assert evaluation.record is not None
    heuristics = evaluation.record.payload["config"].get("heuristics", ())
    return {heuristic["name"]: Label(heuristic["predicts"]) for heuristic in heuristics}


def _read_columns(store: Store, sources: StudyStep, name: str) -> pd.DataFrame:
    assert sources.record is not None
    content = store.read_bytes(sources.record, name)
    path = join(store.folder(sources.id), name)
    names = parquet_schema(io.BytesIO(content), path).names
    wanted = [column for column in ("id", "template", "premise") if column in names]
    return parquet_table(io.BytesIO(content), path, wanted).to_pandas()


def _strata(labels: np.ndarray, heuristics: np.ndarray, subcases: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of strata and of clusters within them: by heuristic and label where each part has two clusters, else none."""
    if heuristics.any():
        strata = _codes(heuristics, labels)
        # HANS numbers its templates anew for each heuristic.
        clusters = _codes(heuristics, labels, subcases, key)
        if pd.Series(clusters).groupby(strata).nunique().min() > 1:
            return strata, clusters
        return np.zeros(len(labels), dtype=np.int64), clusters
    return np.zeros(len(labels), dtype=np.int64), _codes(key)


def _codes(*columns: np.ndarray) -> np.ndarray:
    return pd.MultiIndex.from_arrays(columns).factorize()[0]
