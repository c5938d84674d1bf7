"""Each task model's prediction for each test item, from the logits of a study's evaluations, and how items hang together."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.stats.intervals import Replicates, paired, replicates
from analysis.study.frame import describe_missing
from analysis.wording import HOLDS
from pipelines.errors import DamagedError, UserError
from pipelines.evaluate.scoring import is_right
from pipelines.storage import join
from pipelines.tasks.examples import LABELS, NON_ENTAILMENT, Label
from pipelines.tasks.parquet import parquet_schema, parquet_table
from sweep.graph.records import COORDINATES, Store, Study, StudyStep

Cell = tuple[int, str, int, int]
"""starting_size, kind, size, seed: one evaluated task model. Kind "none", size 0 is a starting point as it is."""
LOGITS = "logits.parquet"


@dataclass(frozen=True)
class ItemSet:
    """The items of one test set, in the order of the evaluations: arrays of shape [num_items].

    `clusters` are codes of what shares wording: a template, else a premise. `strata` are codes of the parts whose share is
    fixed by design: on HANS heuristic and label. `heuristics` and `subcases` are "" where the set has none. `holds` maps the
    heuristics that the study evaluates to where they hold, bool [num_items].
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
            where = self.holds[heuristic] & ((self.labels == str(label)) != rest.endswith(f"/non-{label}"))
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
            label = slice_name.rsplit("/", 1)[-1].removeprefix("non-")
            if label not in LABELS:
                raise UserError(
                    f"slice {slice_name!r} does not end in a label or non- and a label, so what is right is not said"
                )
            return Label(label)
        return Label.ENTAILMENT if NON_ENTAILMENT in self.labels else None

    def structure(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clusters and strata of the items `where` (bool [num_items]): int [num_chosen] each.

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

    `missing` names in words what the study promises and the store lacks, `notes` what had to be done without.
    """

    items: dict[str, ItemSet]
    predicted: dict[str, dict[Cell, np.ndarray]]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def change(
        self,
        test_set: str,
        slice_name: str,
        treatment: str,
        control: str,
        starting_sizes: Sequence[int],
        sizes: Sequence[int],
    ) -> Replicates:
        """Accuracy with one kind of training set minus another (or the starting point, "none"), paired by seed.

        Averaged within a seed over starting points and sizes; a seed that lacks a cell is left out. Raises UserError when no
        seed has them all.
        """
        where = self.items[test_set].chosen(slice_name)
        totals: list[dict[int, np.ndarray]] = []
        for kind in (treatment, control):
            cells = [(start, kind, 0 if kind == "none" else size) for start in starting_sizes for size in sizes]
            totals.append(self._averages(test_set, cells, where, self.items[test_set].asked(slice_name)))
        try:
            seeds, items = paired(*totals)
        except UserError as error:
            raise UserError(
                f"no seed has both {treatment} and {control} on {test_set} at every one of "
                f"starting_sizes={list(starting_sizes)}, sizes={list(sizes)}; run what is missing"
            ) from error
        return replicates(seeds, items, *self.items[test_set].structure(where))

    def accuracy(
        self, test_set: str, slice_name: str, cells: Iterable[tuple[int, str, int]], label: str | None = None
    ) -> Replicates:
        """Accuracy averaged within a seed over cells (starting_size, kind, size), on the items of one label if it is given.

        Raises UserError when no seed has all of the cells, or no item is left.
        """
        where = self.items[test_set].chosen(slice_name)
        if label is not None:
            where = where & (self.items[test_set].labels == label)
        if not where.any():
            raise UserError(f"no item of {test_set} / {slice_name} has the label {label!r}; an empty slice has no accuracy")
        averages = self._averages(test_set, list(cells), where, self.items[test_set].asked(slice_name))
        if not averages:
            raise UserError(f"no seed has all of the cells on {test_set}; run what is missing")
        seeds = tuple(sorted(averages))
        items = np.stack([averages[seed] for seed in seeds])
        return replicates(seeds, items, *self.items[test_set].structure(where))

    def _averages(
        self, test_set: str, cells: Sequence[tuple[int, str, int]], where: np.ndarray, asked: Label | None
    ) -> dict[int, np.ndarray]:
        of_set, labels = self.predicted[test_set], self.items[test_set].labels[where]
        seeds = {seed for _, _, _, seed in of_set}
        return {
            seed: np.mean([is_right(of_set[*cell, seed][where], labels, asked) for cell in cells], axis=0)
            for seed in seeds
            if cells and all((*cell, seed) in of_set for cell in cells)
        }


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
                first[name] = described
            elif not described.equals(first[name]):
                raise UserError(
                    f"evaluation {step.slug} has other items of {name} than the others; accuracies on different "
                    "items cannot be compared: evaluate all task models on the same sources"
                )
            predicted[name][where] = _predicted(rows, name)
            _check_against(frame, step, name, is_right(predicted[name][where], items[name].labels, items[name].asked("all")))
    if not items:
        raise UserError(
            f"no evaluation of study {study.experiment!r} has its {LOGITS} in the store; verdicts are made from them"
        )
    return Responses(items, predicted, tuple(missing), tuple(notes))


def _predicted(rows: pa.Table, name: str) -> np.ndarray:
    logits = np.stack([rows[f"logit_{label}"].to_numpy() for label in LABELS], axis=1)
    if not np.isfinite(logits).all():
        raise UserError(f"logits of {name} are not all finite; the task model is broken: train it again")
    return logits.argmax(axis=1).astype(np.int8)


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
    return ItemSet(name, ids, labels, heuristics, subcases, clusters, strata, clustered_by, holds)


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
