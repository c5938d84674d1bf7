"""The items of a test set: their labels and slices, and which of them share wording."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.wording import HOLDS, SLICE, set_name
from pipelines.errors import UserError
from pipelines.storage import join
from pipelines.tasks.nli import NLI
from pipelines.tasks.parquet import parquet_schema, parquet_table
from pipelines.tasks.task import Task
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import Store, Study, StudyStep


@dataclass(frozen=True)
class ItemSet:
    """The items of one test set, in the order of the evaluations: arrays of shape [num_items].

    `clusters` are codes of what shares wording: the column that a described set names for it, a template, else the first text.
    `strata` are codes of the parts whose share is fixed by design: on HANS heuristic and label. `heuristics` and `subcases` are
    "" where the set has none; `columns` are those of a described set's slices, "" where an item is in none. `holds` maps the
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
    predicts: Mapping[str, str] = field(default_factory=dict)
    task: Task = NLI
    described: TestSet | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What people call the set."""
        return (self.described.title if self.described else "") or set_name(self.name)

    @property
    def folded_onto(self) -> str | None:
        """The label that the set tells from all others, or None where it has all of the task's."""
        if self.described is not None and self.described.folded_onto is not None:
            return self.described.folded_onto
        return next((label for label in self.task.labels if f"non-{label}" in self.labels), None)

    @property
    def slices(self) -> tuple[str, ...]:
        """The slices of a described set, without those by label: `<column>/<value>`, in the order of its columns."""
        return tuple(
            f"{column}/{value}" for column, values in self.columns.items() for value in np.unique(values).tolist() if value
        )

    def chosen(self, slice_name: str = "all") -> np.ndarray:
        """Items of a slice, bool [num_items]; slices are named as by `pipelines.evaluate.scoring.accuracy_rows`.

        Raises UserError when no item is in it, and for a heuristic that was not asked where it holds.
        """
        head, _, rest = slice_name.partition("/")
        if slice_name == "all":
            return np.ones(len(self.ids), dtype=bool)
        if head in self.columns:
            where = self._of_column(head, rest)
        elif slice_name.startswith(HOLDS):
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

    def _of_column(self, column: str, rest: str) -> np.ndarray:
        """Items of a slice `<column>/<value>` or `<column>/<value>/<label>`; a value may have a slash itself."""
        values = self.columns[column]
        where = values == rest
        if rest and not where.any():
            value, _, label = rest.rpartition("/")
            where = (values == value) & (self.labels == label)
        return where & (values != "")

    def asked(self, slice_name: str) -> str | None:
        """The label that alone is asked for in a slice, or None where all of the task's are told apart."""
        if slice_name.startswith(HOLDS) and slice_name.partition("/")[0] not in self.columns:
            heuristic, _, last = slice_name.removeprefix(HOLDS).partition("/")
            label = last.removeprefix("non-") or self.predicts.get(heuristic)
            if label not in self.task.labels:
                raise UserError(
                    f"slice {slice_name!r} does not end in a label or non- and a label, so what is right is not said"
                )
            return label
        return self.folded_onto

    def is_of(self, label: str) -> np.ndarray:
        """Which items have a label, bool [num_items]. Raises UserError where the set's two labels do not tell it."""
        distinct, which = np.unique(self.labels, return_inverse=True)
        return np.array([self.task.fold(str(one), label) == label for one in distinct])[which]

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


def load_item_set(
    store: Store,
    study: Study,
    step: StudyStep,
    rows: pa.Table,
    notes: list[str],
    task: Task,
    name: str,
    described: TestSet | None,
    *,
    partial: bool,
) -> ItemSet:
    """The items of the set `name` from an evaluation's `rows` of it, and their clusters from the study's sources.

    Raises UserError for sources that are missing or lack an item or the clusters' column. With `partial` missing sources are
    noted in `notes` instead: each subcase is then one cluster, and items without a subcase stand alone.
    """
    labels, heuristics, subcases = (_texts(rows, column) for column in ("label", "heuristic", "subcase"))
    columns = {column: _texts(rows, f"{SLICE}{column}") for column in described.slices} if described else {}
    sources = next((source for source in study.steps if source.fingerprint == step.inputs.get("sources")), None)
    key, ids = subcases, np.array(rows["id"].to_pylist(), dtype=str)
    text = task.field_names[0]
    if sources is None or sources.record is None:
        if not partial:
            raise UserError(
                f"the sources of study {study.experiment!r} are not in the store, and which items of {name} share a template "
                f"or a {text} is read there; restore them, or go on without (--partial)"
            )
        clustered_by = "subcase" if subcases.any() else "item"
        notes.append(f"{name}: without its sources, items are clustered by {clustered_by}, not by template or {text}")
        if clustered_by == "item":
            key = ids
    else:
        wanted = [described.cluster or text] if described else ["template", text]
        clustered_by, key = _read_clusters(store, sources, f"{name}.parquet", ids, wanted)
    strata, clusters = _strata(labels, heuristics, subcases, key)
    holds = {
        column.removeprefix(HOLDS): rows[column].to_numpy()
        for column in rows.column_names
        # Null where the heuristic is not asked for: two labels do not tell its own.
        if column.startswith(HOLDS) and not rows[column].null_count
    }
    predicts = _predicts(step)
    return ItemSet(
        name, ids, labels, heuristics, subcases, clusters, strata, clustered_by, holds, predicts, task, described, columns
    )


def _texts(rows: pa.Table, column: str) -> np.ndarray:
    """A column of texts, "" for null and where there is no such column."""
    if column not in rows.column_names:
        return np.full(rows.num_rows, "")
    return np.array(pc.fill_null(rows[column], "").to_pylist(), dtype=str)


def _predicts(evaluation: StudyStep) -> dict[str, str]:
    """The label that each heuristic of an evaluation's config predicts."""
    assert evaluation.record is not None
    heuristics = evaluation.record.payload["config"].get("heuristics", ())
    return {heuristic["name"]: str(heuristic["predicts"]) for heuristic in heuristics}


def _read_clusters(
    store: Store, sources: StudyStep, name: str, ids: np.ndarray, wanted: Sequence[str]
) -> tuple[str, np.ndarray]:
    """The first of the columns `wanted` that a file of the sources has, and its values for `ids`, str [num_items]."""
    assert sources.record is not None
    content = store.read_bytes(sources.record, name)
    path = join(store.folder(sources.id), name)
    names = parquet_schema(io.BytesIO(content), path).names
    column = next((column for column in wanted if column in names), None)
    if column is None:
        raise UserError(f"{path} has no column {wanted[-1]!r}, by which its items hang together; prepare the sources again")
    values = parquet_table(io.BytesIO(content), path, ["id", column]).to_pandas().set_index("id")[column]
    if absent := set(ids) - set(values.index):
        raise UserError(f"{path} lacks {len(absent):,} evaluated items, {min(absent)} for one; evaluate on these sources again")
    return column, values.loc[ids].to_numpy(dtype=str)


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
