"""MLflow as an index of the store: one parent run per study, a child run per artifact.

Only one process writes: the `Tracker`, in a Ray actor while a study runs (many writers lock or corrupt a
fresh SQLite file). Workers send it step metrics without waiting. Nothing depends on it: a finished step is
logged again from its record and its metrics.jsonl, so what was lost on the way is filled in then, and
`blindsweep reindex` builds the whole database from the store.
"""

import contextlib
import getpass
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.finetune.checkpoints import METRICS_FILE
from pipelines.hashing import user_cache
from pipelines.storage import join
from sweep.graph.identity import SHORT, flatten
from sweep.graph.records import COORDINATES, DIALS, KINDS, ArtifactId, Record, Store, Study, shown
from sweep.graph.step import Step
from sweep.index.address import mask, sqlite_path, sqlite_uri
from sweep.index.client import Client
from sweep.index.database import exclusive
from sweep.index.kept_database import KeptDatabase
from sweep.index.lineage import MODEL_STAGES, URI, dataset_input, log_inputs, log_model
from sweep.index.measures import Compared, as_curves, as_total, as_totals, is_number
from sweep.index.study_page import NOTE_TAG, as_markdown
from sweep.index.views import CELL, COLOURS, PLACES, view_link, view_tags

MAX_VALUE = 500
"""Characters of a parameter's value that MLflow is sent; the record has the whole."""
FORM = "2"
"""Of what is logged of an artifact: a run that says another is completed from the record, though nothing was built."""
SETTINGS_FILE = "study.json"
"""Artifact of a study's run: its parameters in full, claims and test sets included."""

NOTE = """\
**Compare kinds across cells** with a saved view (the *Views* button above the table of runs):

- [Kinds, mean over seeds]({kinds}): a group a starting size × size × kind, its runs inside; the chart tab then
  shows a bar a group.
- [Cells]({cells}): a row a task model, baselines (`kind` none) included, in the order of the grid, coloured by kind.

`general` is the accuracy on {general}, `blindspot` on {blindspot}, `adversarial` on its slice {slice}, where going by
the heuristic is wrong; `margin`, `auc` and `pull` are of the heuristic there. The study's own run, {study}, has its
parameters, verdicts and report. Everything else that was built is below it; filter by `tags.stage = "generator"`, for
one. `tags.current = "no"` marks artifacts of earlier settings. *Models* has the task models and generators, with their
place in the store.
"""

MOST_METRICS = 800
"""In one request; MLflow takes 1,000 values, up to 100 parameters and the tags included."""

HALF_MEASURES = ("accuracy", "accuracy_2way", "margin", "auc")
"""What is shown of a described set's adversarial half."""

MODEL_TAG = "model_id"
"""Tag of an artifact's run: the model that is logged of it."""

COMPARED = ("starting_point", "task_model")
"""Stages whose runs are compared."""


@dataclass(frozen=True)
class Card:
    """A step as the tracker is told of it: plain values only."""

    id: ArtifactId
    coordinates: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: Mapping[str, ArtifactId] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Step) -> "Card":
        inputs = {name: source.id for name, source in step.inputs.items()}
        return cls(step.id, dict(step.coordinates), step.payload["config"], inputs)

    @classmethod
    def of_record(cls, record: Record) -> "Card":
        return cls(record.id, record.coordinates, record.payload["config"], record.inputs)


def default_tracking_uri(store: Store) -> str:
    """`mlflow.db` in a local store; for a remote one a file in the user's cache, which `kept_database` keeps in the store."""
    if store.is_local:
        return sqlite_uri(Path(store.uri) / "mlflow.db")
    name = f"{store.uri.rsplit('/', 1)[-1]}-{hashlib.sha256(store.uri.encode()).hexdigest()[:SHORT]}"
    return sqlite_uri(user_cache().absolute() / "mlflow" / name / "mlflow.db")


def kept_database(store: Store, tracking_uri: str) -> KeptDatabase | None:
    """The database that is kept with a remote store, None where MLflow has a server or a file of its own."""
    if store.is_local or tracking_uri != default_tracking_uri(store):
        return None
    path = sqlite_path(tracking_uri)
    assert path is not None
    return KeptDatabase(join(store.uri, "mlflow.db"), path)


def end_runs(uri: str, study: str, fingerprints: Collection[str]) -> None:
    """Set the study's run and those of `fingerprints` to KILLED where a tracker that is gone left them running.

    Another driver's artifacts of the study are left alone. What MLflow does not take is left to the next run.
    """
    with contextlib.suppress(Exception):
        client = Client(uri)
        experiment = client.get_experiment_by_name(study)
        for run in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
            if "study" in run.data.tags or run.data.tags.get("fingerprint") in fingerprints:
                client.set_terminated(run.info.run_id, "KILLED")


@dataclass
class _Pending:
    """Metrics and parameters of an artifact's run that are written with its next batch."""

    metrics: list[Any] = field(default_factory=list)
    params: list[Any] = field(default_factory=list)


class Tracker:
    """The only writer of a study's MLflow runs in its driver. Errors are collected, never raised, and forgotten where what they
    kept away has come later.

    Other drivers may have trackers of the same study. On one machine and one SQLite file they make no run twice; elsewhere
    they may, and one is left of it when a tracker opens or closes.
    """

    WRITE_EVERY_S = 1.0
    MOST_IN_VAIN = 3
    """How often the close tries what MLflow did not take before, until it is held to be away still."""
    PATIENCE_S = 60.0
    """Seconds to wait for another tracker that makes the database."""

    def __init__(self, uri: str, store_uri: str, study: Study):
        """Open the database or server and the study's parent run. Of `study` the steps are not looked at."""
        self.store = Store(store_uri)
        self.latest: dict[str, dict[str, float]] = {}
        self.runs: dict[str, Any] = {}
        self._uri = uri
        self._study = study
        self._errors: dict[str, str] = {}  # by what was not done, or the fingerprint of what MLflow has not all of
        self._untold: dict[str, tuple[str, Callable[[], None]]] = {}  # by fingerprint: how a step ended, to be told again
        self._pending: dict[str, _Pending] = defaultdict(_Pending)
        self._logged: dict[str, set[tuple[str, int]]] = {}
        self._last_write = time.monotonic()
        named = {name: str(study.parameters.get(name) or "") for name in ("general_set", "blindspot_set")}
        self._compared = Compared(**named, adversarial=study.blindspot_slice)
        self._user = _user()
        self._columns: list[str] = []
        self._places: tuple[str, ...] = PLACES
        self._marks: set[str] = set()
        self._num_rows: dict[str, int] = {}
        self._made: set[str] = set()
        self._newest: tuple[str, str] = ("", "")
        self._parent: Any = None
        self._client: Client | None = None
        with self._collecting("open"):
            if path := sqlite_path(uri):
                path.parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._client = Client(uri)
                self._open_study()

    @property
    def errors(self) -> list[str]:
        """What MLflow lacks by now, and why."""
        return list(self._errors.values())

    @property
    def client(self) -> Client:
        if self._client is None:
            raise ConnectionError("MLflow could not be opened")
        return self._client

    @property
    def parent_id(self) -> str:
        if self._parent is None:
            raise ConnectionError("MLflow could not be opened")
        return str(self._parent.info.run_id)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without other trackers of this machine, where runs are made in a SQLite file."""
        with contextlib.ExitStack() as stack:
            if path := sqlite_path(self._uri):
                # Without a lock a run may be made twice, which is seen to later.
                with contextlib.suppress(OSError):
                    stack.enter_context(exclusive(path, self.PATIENCE_S))
            yield

    def _open_study(self) -> None:
        study = self._study.experiment
        experiment = self.client.get_experiment_by_name(study)
        self._remove_empty_default()
        if experiment is None:
            try:
                self.experiment_id = self.client.create_experiment(
                    study, artifact_location=artifact_location(self.store, self._uri)
                )
            except Exception:
                # Another driver was quicker.
                if (experiment := self.client.get_experiment_by_name(study)) is None:
                    raise
        if experiment is not None:
            self.experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(self.experiment_id)
        note = self._note()
        self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, note)
        # MLflow would show its pages for chat applications instead.
        self.client.set_experiment_tag(self.experiment_id, "mlflow.experimentKind", "custom_model_development")
        self._find_runs()
        settings = _settings(self._study)
        before = self._parent.data.params if self._parent is not None else {}
        if before and before != settings:
            # A parameter cannot be changed once logged, and this is another study of the same name.
            self.client.delete_run(self.parent_id)
            self._parent = None
        if self._parent is None:
            tags = {"study": study, "stage": "study", NOTE_TAG: note, **self._source()}
            self._parent = self.client.create_run(self.experiment_id, tags=tags, run_name=study)
            self._adopt(self.runs.values())
        elif self._parent.data.tags.get(NOTE_TAG) != note:
            # An answer of the last run is none of this one's.
            self.client.set_tag(self.parent_id, NOTE_TAG, note)
        self.client.update_run(self.parent_id, status="RUNNING")
        for name in self._parent.data.tags:
            # The artifacts that the study consists of now say its marks again. Parameters were tags once.
            if name == "marks" or name.startswith("parameter."):
                self.client.delete_tag(self.parent_id, name)
        if before != settings:
            from mlflow.entities import Param

            self.client.log_batch(self.parent_id, params=[Param(name, value) for name, value in settings.items()])
            with self._collecting("parameters in full"):
                self.client.log_dict(self.parent_id, dict(self._study.parameters), SETTINGS_FILE)

    def _note(self) -> str:
        def name(text: str, otherwise: str) -> str:
            return f"`{text}`" if text else otherwise

        values = {
            "general": name(self._compared.general_set, "the general set"),
            "blindspot": name(self._compared.blindspot_set, "the blindspot's set"),
            "slice": name(self._compared.adversarial, "of the heuristic"),
            "study": name(self._study.experiment, ""),
        }
        links = {view: view_link(self.experiment_id, view) for view in ("kinds", "cells")}
        return f"{as_markdown(self._study.title)}\n\n{NOTE.format(**links, **values)}"

    def _source(self) -> dict[str, str]:
        """Tags of whoever logs a run, and of the command that it is of."""
        command = self._study.parameters.get("command") or {}
        name = f"blindsweep run {command.get('experiment') or self._study.experiment}"
        return {"mlflow.user": self._user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}

    def _remove_empty_default(self) -> None:
        """MLflow makes an experiment of this name with every database; in the store's own, nothing is logged there."""
        path, own = sqlite_path(self._uri), sqlite_path(default_tracking_uri(self.store))
        # A database that is rebuilt lies beside the one that it replaces.
        if path is not None and own is not None and path.absolute().parent == own.parent:
            with contextlib.suppress(Exception):
                is_shown = self.client.get_experiment("0").lifecycle_stage == "active"
                if is_shown and not self.client.search_runs(["0"], max_results=1):
                    self.client.delete_experiment("0")

    def _find_runs(self) -> None:
        """Learn which run is the study's and which is each artifact's; where there are several, all but one are deleted."""
        takes: dict[str, list[Any]] = defaultdict(list)
        for run in self._all_runs():
            if "study" in run.data.tags:
                takes[""].append(run)
            elif "fingerprint" in run.data.tags:
                takes[run.data.tags["fingerprint"]].append(run)
        runs = {}
        for fingerprint, candidates in takes.items():
            # Every tracker chooses the same.
            kept, *others = sorted(candidates, key=_preference)
            runs[fingerprint] = kept
            for run in others:
                # Another tracker may be at it, too; what is left is left to the next one.
                with contextlib.suppress(Exception):
                    self._delete(run)
        if parent := runs.pop("", None):
            self._parent = parent
        if parent:
            self._adopt(runs.values())
        for fingerprint, run in runs.items():
            if fingerprint in self.runs and self.runs[fingerprint].info.run_id != run.info.run_id:
                self._logged.pop(fingerprint, None)
            self.runs[fingerprint] = run

    def _adopt(self, runs: Iterable[Any]) -> None:
        """Put runs below the study's."""
        for run in runs:
            if run.data.tags.get("mlflow.parentRunId") != self.parent_id:
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_id)
                run.data.tags["mlflow.parentRunId"] = self.parent_id

    def _delete(self, run: Any) -> None:
        """Delete a run, and the model that was logged as its output."""
        if model_id := run.data.tags.get(MODEL_TAG):
            self.client.delete_logged_model(model_id)
        self.client.delete_run(run.info.run_id)

    def _all_runs(self, having: str = "") -> Iterator[Any]:
        token = None
        while True:
            # A page of them comes within the client's limit on a busy machine, too.
            page = self.client.search_runs([self.experiment_id], having, max_results=200, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def declare(self, fingerprints: Iterable[str]) -> None:
        """Say which artifacts the study consists of now; runs of others are tagged as not current, and nobody is at them."""
        current = set(fingerprints)
        for fingerprint, run in self.runs.items():
            value = "yes" if fingerprint in current else "no"
            if run.data.tags.get("current") != value:
                with self._collecting(f"tag {fingerprint[:SHORT]}"):
                    self.client.set_tag(run.info.run_id, "current", value)
                    run.data.tags["current"] = value
            if value == "no" and run.info.status == "RUNNING":
                with self._collecting(f"end {fingerprint[:SHORT]}"):
                    self.client.set_terminated(run.info.run_id, "KILLED")

    def start(self, card: Card) -> None:
        """A step begins: its run is created, or taken up again if an earlier attempt left it."""
        self._untold.pop(card.id.fingerprint, None)
        with self._collecting(f"start {card.id.name}", card.id.fingerprint):
            self._retire_run_of_removed_artifact(card.id.fingerprint)
            is_taken_up = card.id.fingerprint in self.runs
            run_id = self._run_of(card, start_ms=None)
            if is_taken_up:
                self.client.update_run(run_id, status="RUNNING")
                self._logged[card.id.fingerprint] = self._history(run_id)

    def log(self, fingerprint: str, metrics: Mapping[str, float], step: int, time_ms: int) -> None:
        """Step metrics of a running step, or of one that has just ended: nobody waits for the last ones.

        Values already logged for that name and step are left.
        """
        self.latest[fingerprint] = dict(metrics)
        with self._collecting(f"metrics of {fingerprint[:SHORT]}", fingerprint):
            self._add_metrics(fingerprint, as_curves(metrics), step, time_ms)
        self._write_if_due()

    def finish(self, record: Record, *, is_new: bool = True) -> None:
        """A step is complete: parameters, step and final metrics and lineage are all there after this."""
        self.latest.pop(record.fingerprint, None)
        self._num_rows[record.fingerprint] = sum(record.num_rows.values())
        self._newest = max(self._newest, (record.created, str(record.git.get("commit", ""))))
        self._tell(record.fingerprint, f"finish {record.id.name}", partial(self._show, record, is_new=is_new))

    def _tell(self, fingerprint: str, what: str, call: Callable[[], None]) -> None:
        """Have MLflow told how a step ended; `close` tells again what it does not take now."""
        self._untold[fingerprint] = what, call
        with self._collecting(what, fingerprint):
            call()
            del self._untold[fingerprint]
            self._errors.pop(fingerprint, None)

    def _show(self, record: Record, *, is_new: bool) -> None:
        run = self.runs.get(record.fingerprint)
        if is_new or run is None or not _is_logged(run, record):
            try:
                self._finish(record)
            except Exception:
                if not self._was_deleted(record.fingerprint):
                    raise
                self._finish(record)
        if record.stage == "evaluation":
            self._save_views(record)
        self._mark_study(record)

    def _finish(self, record: Record) -> None:
        from mlflow.entities import RunTag

        card = Card.of_record(record)
        end_ms = int(datetime.fromisoformat(record.created).timestamp() * 1000)
        start_ms = end_ms - int(1000 * record.durations.get("total_s", 0))
        run_id = self._run_of(card, start_ms)
        tags = {"complete": record.created, "form": FORM}
        if record.fingerprint not in self._made:
            # Another tracker's: what it has logged since is looked at, so that no model is logged twice.
            run = self.runs[record.fingerprint] = self.client.get_run(run_id)
            if run.data.tags.get("form") != FORM:
                self.client.update_run(run_id, name=_run_name(card))
                self._describe(run_id, card)
                tags |= _colour(card)
                # What is there already is left by MLflow, but it is told of which model and data set a metric is.
                self._logged[record.fingerprint] = set()
        for line in self._series(record):
            step = int(line.pop("step"))
            self._add_metrics(record.fingerprint, as_curves(line), step, end_ms)
        rows = {f"rows_of_{name}": value for name, value in record.num_rows.items()}
        final = {**dict(flatten(record.metrics)), **rows, **record.durations}
        if record.stage == "evaluation":
            self._log_evaluation(record, final, end_ms)
        else:
            self._add_metrics(record.fingerprint, as_totals(final), 0, end_ms)
        run = self.runs[record.fingerprint]
        if record.stage in MODEL_STAGES and MODEL_TAG not in run.data.tags:
            outputs = run.outputs.model_outputs if run.outputs else []
            tags[MODEL_TAG] = outputs[0].model_id if outputs else self._log_model(run_id, record)
        if record.marks:
            tags["marks"] = "; ".join(record.marks)
        if commit := record.git.get("commit"):
            tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(record.git.get("dirty"))).lower()}
        # With the last metrics, so that what is complete has all of them.
        self._write_of(record.fingerprint, [RunTag(name, value) for name, value in tags.items()])
        self.runs[record.fingerprint].data.tags.update(tags)
        self.client.set_terminated(run_id, "FINISHED", end_ms)

    def _log_model(self, run_id: str, record: Record) -> str:
        tags = {URI: self.store.folder(record.id), "fingerprint": record.fingerprint, "slug": record.slug}
        return log_model(
            self.client,
            self.experiment_id,
            run_id,
            name=record.slug,
            stage=record.stage,
            tags=tags,
            # Its configuration is on the run that it is from.
            params=_coordinates(Card.of_record(record)),
        )

    def fail(self, fingerprint: str, message: str) -> None:
        """A step failed."""
        self.latest.pop(fingerprint, None)
        self._tell(fingerprint, f"fail {fingerprint[:SHORT]}", partial(self._fail, fingerprint, message))

    def _fail(self, fingerprint: str, message: str) -> None:
        self._write()
        if run := self.runs.get(fingerprint):
            self.client.set_tag(run.info.run_id, "error", message[:MAX_VALUE])
            self.client.set_terminated(run.info.run_id, "FAILED")

    def annotate(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole study on its own run; a later value takes the place of an earlier one."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._collecting("metrics of the study"):
            self.client.log_batch(self.parent_id, [Metric(name, float(value), now, 0) for name, value in metrics.items()])

    def close(self, status: str) -> list[str]:
        """Write what is pending or was not taken, end the parent run with an MLflow status, return what went wrong."""
        if self._client is not None:
            self._client.wake()
            if self._parent is None:
                with self._collecting("open"):
                    self._open_study()
            with self._collecting("close"):
                self._write()
                self._tell_again()
                if sqlite_path(self._uri) is None:
                    self._find_runs()
                if commit := self._newest[1]:
                    self.client.set_tag(self.parent_id, "mlflow.source.git.commit", commit)
                self.client.set_terminated(self.parent_id, status)
        return self.errors

    def _tell_again(self) -> None:
        num_in_vain = 0
        for fingerprint, (what, call) in list(self._untold.items()):
            if num_in_vain < self.MOST_IN_VAIN:
                self._tell(fingerprint, what, call)
                num_in_vain += fingerprint in self._untold

    def snapshot(self) -> dict[str, dict[str, float]]:
        """The latest step metrics of each running step, by fingerprint.

        The driver asks for them all the time, so that what is pending is written then, whatever reports meanwhile.
        """
        self._write_if_due()
        return self.latest

    def _mark_study(self, record: Record) -> None:
        """The study's run carries the marks of all its artifacts."""
        if set(record.marks) <= self._marks:
            return
        marks = self._marks | set(record.marks)
        self.client.set_tag(self.parent_id, "marks", "; ".join(sorted(marks)))
        self._marks = marks

    def _retire_run_of_removed_artifact(self, fingerprint: str) -> None:
        run = self.runs.get(fingerprint)
        if run is not None and "complete" in run.data.tags:
            self._delete(run)
            del self.runs[fingerprint]

    def _was_deleted(self, fingerprint: str) -> bool:
        """Whether another tracker has deleted an artifact's run, for it knows a better one; then it is forgotten."""
        run = self.runs.get(fingerprint)
        if run is None or self.client.get_run(run.info.run_id).info.lifecycle_stage != "deleted":
            return False
        del self.runs[fingerprint]
        self._made.discard(fingerprint)
        return True

    def _run_of(self, card: Card, start_ms: int | None) -> str:
        """The artifact's one run in this study; parameters, tags and inputs are logged when it is made."""
        if card.id.fingerprint in self.runs:
            return str(self.runs[card.id.fingerprint].info.run_id)
        with self._alone():
            others = list(self._all_runs(f"tags.fingerprint = '{card.id.fingerprint}'"))
            if others:
                self.runs[card.id.fingerprint] = min(others, key=_preference)
                # It has what another tracker logged.
                self._logged.pop(card.id.fingerprint, None)
                return str(self.runs[card.id.fingerprint].info.run_id)
            return self._make_run(card, start_ms)

    def _make_run(self, card: Card, start_ms: int | None) -> str:
        tags = {
            "mlflow.parentRunId": self.parent_id,
            "fingerprint": card.id.fingerprint,
            "stage": card.id.stage,
            "slug": card.id.slug,
            "current": "yes",
            **self._source(),
        }
        for name, value in card.coordinates.items():
            if value is not None:
                tags["starting_point" if name == "starting_size" else name] = shown(value)
        if _is_compared(card):
            tags |= {"compare": "yes", "order": _place(card.coordinates), **_colour(card)}
        run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=_run_name(card))
        self.runs[card.id.fingerprint] = run
        self._made.add(card.id.fingerprint)
        # It is running and has no metrics yet: asking MLflow would cost as much as making it.
        self._logged[card.id.fingerprint] = set()
        self._describe(run.info.run_id, card)
        return str(run.info.run_id)

    def _describe(self, run_id: str, card: Card) -> None:
        """Log an artifact's lineage on its run, and have its parameters written soon."""
        from mlflow.entities import Param

        self._pending[card.id.fingerprint].params = [Param(name, value) for name, value in _parameters(card).items()]
        datasets, models = [], []
        for name, artifact in card.inputs.items():
            run = self.runs.get(artifact.fingerprint)
            if run is not None and MODEL_TAG in run.data.tags:
                models.append(run.data.tags[MODEL_TAG])
            elif card.id.stage != "evaluation" or artifact.stage != "sources":
                datasets.append(self._dataset(artifact.name, artifact, name))
        for set_ in _test_sets(card):
            datasets.append(self._dataset(set_, card.inputs["sources"], "evaluation", f"{set_}.parquet"))
        log_inputs(self.client, run_id, datasets, models)

    def _dataset(self, name: str, artifact: ArtifactId, context: str, file: str = "") -> Any:
        folder = self.store.folder(artifact)
        num_rows = None if file else self._num_rows.get(artifact.fingerprint)
        uri = join(folder, file) if file else folder
        digest = artifact.fingerprint[:SHORT]
        return dataset_input(name, digest, uri, context, is_local=self.store.is_local, num_rows=num_rows)

    def _save_views(self, record: Record) -> None:
        """Saved views of MLflow's page of runs, with the coordinates and the measures that matter as columns.

        Those have short names; then come the accuracies on other test sets, and all that is measured of described sets'
        adversarial halves.
        """
        names = list(dict(flatten(record.metrics)))
        short = self._compared.short_names(names)
        halves = {f"{half}/{measure}" for half in _adversarial_halves(record) for measure in HALF_MEASURES}
        others = [name for name in names if name not in short.values() and (_is_of_a_set(name) or name in halves)]
        columns = [*short, *(as_total(name) for name in others)]
        places = ("arms", *PLACES) if "arms" in record.coordinates else self._places
        if (columns, places) == (self._columns, self._places):
            return
        for tag, view in view_tags(self.parent_id, columns, places).items():
            self.client.set_experiment_tag(self.experiment_id, tag, view)
        self._columns, self._places = columns, places

    def _log_evaluation(self, record: Record, final: Mapping[str, Any], end_ms: int) -> None:
        """Log an evaluation's results on its run, as its task model's on each test set, and beside the task model's parameters.

        There kinds are compared: what they are compared by has short names.
        """
        fingerprint = record.inputs["task_model"].fingerprint if "task_model" in record.inputs else ""
        run = self.runs.get(fingerprint)
        model_id = run.data.tags.get(MODEL_TAG) if run is not None else None
        card = Card.of_record(record)
        digests = {set_: card.inputs["sources"].fingerprint[:SHORT] for set_ in _test_sets(card)}
        # To be read in a narrow column; under its own name a measure has all its digits.
        names = self._compared.short_names(final).items()
        short = {short: round(final[name], 4) for short, name in names if is_number(final[name])}
        measured = {name: value for name, value in final.items() if _is_measured(name)}
        for name, value in final.items():
            set_ = name.partition("/")[0]
            of = (set_, digests[set_]) if set_ in digests else None
            self._add_metrics(
                record.fingerprint, {as_total(name): value}, 0, end_ms, model_id if name in measured else None, of
            )
        if run is not None:
            self._add_metrics(fingerprint, as_totals(measured) | short, 0, end_ms)
            self._write_of(fingerprint)

    def _series(self, record: Record) -> list[dict[str, Any]]:
        """Lines of the artifact's metrics.jsonl, each with `step`."""
        if METRICS_FILE not in record.files:
            return []
        return [json.loads(line) for line in self.store.read_bytes(record, METRICS_FILE).splitlines()]

    def _history(self, run_id: str) -> set[tuple[str, int]]:
        names = self.client.get_run(run_id).data.metrics
        return {(metric.key, metric.step) for name in names for metric in self.client.get_metric_history(run_id, name)}

    def _add_metrics(
        self,
        fingerprint: str,
        metrics: Mapping[str, Any],
        step: int,
        time_ms: int,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Have metrics written soon: of a logged model, too, and of a data set (name, digest), where they are given."""
        from mlflow.entities import Metric

        name_of_set, digest = dataset or (None, None)

        if fingerprint not in self._logged:
            run = self.runs.get(fingerprint)
            self._logged[fingerprint] = self._history(run.info.run_id) if run else set()
        logged = self._logged[fingerprint]
        for name, value in metrics.items():
            if is_number(value) and (name, step) not in logged:
                logged.add((name, step))
                metric = Metric(name, float(value), time_ms, step, model_id, name_of_set, digest)
                self._pending[fingerprint].metrics.append(metric)

    def _write_if_due(self) -> None:
        if self._pending and time.monotonic() - self._last_write > self.WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._last_write = time.monotonic()
        for fingerprint in [pending for pending in self._pending if pending in self.runs]:
            with self._collecting(f"metrics of {fingerprint[:SHORT]}", fingerprint):
                try:
                    self._write_of(fingerprint)
                except Exception:
                    # Those of the run that is kept come when the artifact is complete.
                    if not self._was_deleted(fingerprint):
                        raise

    def _write_of(self, fingerprint: str, tags: Collection[Any] = ()) -> None:
        """Write what is pending of an artifact's run: parameters with the first of its metrics, and tags with the last."""
        pending, run_id = self._pending.pop(fingerprint, _Pending()), self.runs[fingerprint].info.run_id
        metrics, params = pending.metrics, pending.params
        try:
            while len(metrics) > MOST_METRICS:
                self.client.log_batch(run_id, metrics=metrics[:MOST_METRICS], params=params)
                metrics, params = metrics[MOST_METRICS:], []
            if metrics or params or tags:
                self.client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        except Exception:
            # MLflow is asked anew what it has when the artifact is complete, and sent the rest.
            self._logged.pop(fingerprint, None)
            if params:
                self._made.discard(fingerprint)
            raise

    @contextlib.contextmanager
    def _collecting(self, what: str, of: str = "") -> Iterator[None]:
        """Keep the first error of `what`, which counts until it is done; `of` an artifact, until MLflow has all of that."""
        try:
            yield
        except Exception as error:  # an index that is down must not stop the study
            text = f"{what}: {type(error).__name__}: {error}".splitlines()[0]
            self._errors.setdefault(of or what, mask(text, self._uri)[:300])
        else:
            if not of:
                self._errors.pop(what, None)


def _preference(run: Any) -> tuple[bool, int, str]:
    """Of several runs of one artifact or study the least is kept: a complete one, the oldest."""
    return "complete" not in run.data.tags, run.info.start_time, run.info.run_id


def artifact_location(store: Store, uri: str) -> str | None:
    """Where MLflow keeps the artifacts of a store's studies; None where a server says it."""
    path = sqlite_path(uri)
    if path is None:
        return None
    # Without a location of its own, MLflow would put a folder into the current directory. A remote store's database moves
    # between machines.
    return (path.absolute().parent / "mlflow-artifacts").as_uri() if store.is_local else join(store.uri, "mlflow-artifacts")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # One without a name, as containers have it.
        return "unknown"


def _settings(study: Study) -> dict[str, str]:
    """A study's parameters as MLflow's: short ones. Claims, notes and test sets are in the artifact that has all in full."""
    return {
        name: _shorten(value)
        for name, value in study.parameters.items()
        if isinstance(value, str | int | float | bool | None)
        or (isinstance(value, list | tuple) and not any(isinstance(member, Mapping | list | tuple) for member in value))
    }


def _coordinates(card: Card) -> dict[str, str]:
    """Where an artifact is in the grid."""
    values = {name: shown(value) for name, value in card.coordinates.items() if value is not None}
    return values | ({CELL: _cell(card.coordinates)} if _is_compared(card) else {})


def _parameters(card: Card) -> dict[str, str]:
    # A config's own `seed` or `size` goes by the full name, or it would collide with the coordinate.
    values = _coordinates(card) | {f"config.{name}": value for name, value in flatten(card.config)}
    return {name: _shorten(value) for name, value in values.items()}


def _colour(card: Card) -> dict[str, str]:
    """The tag for the colour of what is compared in MLflow's charts: its kind's."""
    colour = COLOURS.get(str(card.coordinates["kind"])) if _is_compared(card) else None
    return {"mlflow.runColor": colour} if colour else {}


def _run_name(card: Card) -> str:
    """What is compared is named by its place in the grid alone, as in `blindsweep export`."""
    return card.id.slug if _is_compared(card) else card.id.name


def _is_compared(card: Card) -> bool:
    return card.id.stage in COMPARED and set(COORDINATES) <= card.coordinates.keys()


def _cell(coordinates: Mapping[str, Any]) -> str:
    """Where in the grid a task model is, whatever its seed: what MLflow takes the mean over is of one arm, kind and size."""
    arms = "".join(f"{arm}: " for arm in coordinates.get("arms", ()))
    if not coordinates["size"]:
        return f"{arms}start {coordinates['starting_size']}"
    return f"{arms}{coordinates['kind']} {coordinates['size']}, start {coordinates['starting_size']}"


def _test_sets(card: Card) -> tuple[str, ...]:
    """The names of the sets that an evaluation is of, which lie with the sources; none of another stage."""
    is_evaluation = card.id.stage == "evaluation" and "sources" in card.inputs
    return tuple(card.config.get("sets") or ()) if is_evaluation else ()


def _is_logged(run: Any, record: Record) -> bool:
    """Whether MLflow has all of an artifact, as it is logged now."""
    return bool(run.data.tags.get("complete") == record.created and run.data.tags.get("form") == FORM)


def _is_of_a_set(name: str) -> bool:
    """Whether it is the accuracy on a whole test set."""
    return name.endswith("/accuracy") and name.count("/") == 1


def _is_measured(name: str) -> bool:
    """Whether kinds are compared by it: accuracies, margins, AUCs and pulls."""
    return "accuracy" in name or name.endswith(("/margin", "/auc", "/pull"))


def _adversarial_halves(record: Record) -> list[str]:
    """`set/slice` of the adversarial half of each described set of an evaluation that has one."""
    described = record.payload.get("config", {}).get("test_sets") or ()
    return [f"{test_set['name']}/{test_set['adversarial']}" for test_set in described if test_set.get("adversarial")]


def _place(coordinates: Mapping[str, Any]) -> str:
    """Sorts as text like the grid: MLflow sorts parameters as text, 900 after 3000."""
    kind = str(coordinates["kind"])
    rank = str(KINDS.index(kind) if kind in KINDS else len(KINDS))
    rank += "".join(f"-{coordinates[dial]:.9f}" for dial in DIALS if dial in coordinates)
    of_arms = "".join(f"{arm}-" for arm in coordinates.get("arms", ()))
    return f"{of_arms}{coordinates['starting_size']:09d}-{coordinates['size']:09d}-{rank}-{coordinates['seed']:06d}"


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= MAX_VALUE:
        return text
    return f"{text[:MAX_VALUE]}… ({len(text):,} characters; whole in the record)"


class StepReport:
    """A `Report` that sends a step's metrics to the tracker's actor. Picklable, usable in any Ray process.

    Calls return at once and raise nothing. While `MAX_OUTSTANDING` are on their way, further ones are not sent: a step does
    not wait for MLflow, and its curve is logged again from its metrics.jsonl.
    """

    MAX_OUTSTANDING = 64

    def __init__(self, tracker: Any, fingerprint: str) -> None:
        self.tracker = tracker
        self.fingerprint = fingerprint
        self._outstanding: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"tracker": self.tracker, "fingerprint": self.fingerprint, "_outstanding": []}

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        import ray

        plain = {name: float(value) for name, value in metrics.items()}
        if len(self._outstanding) >= self.MAX_OUTSTANDING:
            # Those of a tracker that has died are done, too; nobody asks for their errors.
            _, self._outstanding = ray.wait(self._outstanding, num_returns=self.MAX_OUTSTANDING, timeout=0)
            if len(self._outstanding) >= self.MAX_OUTSTANDING:
                return
        # Ray refuses a tracker that it knows to be dead.
        with contextlib.suppress(ray.exceptions.RayError):
            self._outstanding.append(self.tracker.log.remote(self.fingerprint, plain, step, int(time.time() * 1000)))
