"""MLflow as an index of the store: one parent run per study, a child run per artifact.

Only one process writes: the `Tracker`, in a Ray actor while a study runs (many writers lock or corrupt a
fresh SQLite file). Workers send it step metrics without waiting. Nothing depends on it: a finished step is
logged again from its record and its metrics.jsonl, so what was lost on the way is filled in then, and
`blindsweep reindex` builds the whole database from the store.
"""

import contextlib
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from pipelines.finetune.checkpoints import METRICS_FILE
from pipelines.hashing import user_cache
from pipelines.storage import join
from sweep.graph.identity import SHORT, flatten
from sweep.graph.records import BLINDSPOT_SLICE, COORDINATES, DIALS, KINDS, ArtifactId, Record, Store, shown
from sweep.graph.step import Step
from sweep.index.address import mask, sqlite_path, sqlite_uri
from sweep.index.client import Client
from sweep.index.database import exclusive
from sweep.index.kept_database import KeptDatabase

NOTE_TAG = "mlflow.note.content"
MAX_VALUE = 500
"""Characters of a parameter's value that MLflow is sent; the record has the whole."""

NOTE = """\
**Compare kinds across cells** with a saved view (the *Views* button above the table of runs):

- [Kinds, mean over seeds]({kinds}): a group a starting size × size × kind, its runs inside; the chart tab then
  shows a bar a group.
- [Cells]({cells}): a row a task model, baselines (`kind` none) included, in the order of the grid.

Each task model and starting point carries the accuracies of its own evaluation. Everything else that was
built is below the study's run; filter by `tags.stage = "generator"`, for one. `tags.current = "no"` marks
artifacts of earlier settings.
"""

COMPARED = ("starting_point", "task_model")
"""Stages whose runs are compared."""

# Kinds of one size stand side by side.
COLUMNS = ("starting_size", "size", "kind", "seed")

# What a step reports for the display, and says nothing afterwards.
NOT_LOGGED = ("fraction_done",)


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


class Tracker:
    """The only writer of a study's MLflow runs in its driver. Errors are collected, never raised.

    Other drivers may have trackers of the same study. On one machine and one SQLite file they make no run twice; elsewhere
    they may, and one is left of it when a tracker opens or closes.
    """

    WRITE_EVERY_S = 1.0
    MOST_ERRORS = 1000
    PATIENCE_S = 60.0
    """Seconds to wait for another tracker that makes the database."""

    def __init__(
        self,
        uri: str,
        store_uri: str,
        study: str,
        title: str,
        parameters: Mapping[str, Any],
        blindspot: str = BLINDSPOT_SLICE,
    ):
        """Open the database or server and the study's parent run.

        `blindspot` is the slice, or `set/slice`, that the saved views show (`sweep.graph.records.Study.blindspot`).
        """
        self.store = Store(store_uri)
        self.errors: list[str] = []
        self.latest: dict[str, dict[str, float]] = {}
        self.runs: dict[str, Any] = {}
        self._uri = uri
        self._pending: dict[str, list[Any]] = defaultdict(list)
        self._logged: dict[str, set[tuple[str, int]]] = {}
        self._last_write = time.monotonic()
        self._blindspot = blindspot
        self._columns: list[str] = []
        self._places: tuple[str, ...] = COLUMNS
        self._marks: set[str] = set()
        self._parent: Any = None
        self._client: Client | None = None
        with self._collecting("open"):
            if path := sqlite_path(uri):
                path.parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._client = Client(uri)
                self._open_study(uri, study, title, parameters)

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

    def _open_study(self, uri: str, study: str, title: str, parameters: Mapping[str, Any]) -> None:
        experiment = self.client.get_experiment_by_name(study)
        if experiment is None:
            # Without a location of its own, MLflow would put a folder into the current directory.
            location = None
            if path := sqlite_path(uri):
                # A remote store's database moves between machines.
                here = (path.absolute().parent / "mlflow-artifacts").as_uri()
                location = here if self.store.is_local else join(self.store.uri, "mlflow-artifacts")
            try:
                self.experiment_id = self.client.create_experiment(study, artifact_location=location)
            except Exception:
                # Another driver was quicker.
                if (experiment := self.client.get_experiment_by_name(study)) is None:
                    raise
        if experiment is not None:
            self.experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(self.experiment_id)
        links = {view: view_link(self.experiment_id, view) for view in ("kinds", "cells")}
        note = f"{as_markdown(title)}\n\n{NOTE.format(**links)}"
        self.client.set_experiment_tag(self.experiment_id, NOTE_TAG, note)
        # MLflow would show its pages for chat applications instead.
        self.client.set_experiment_tag(self.experiment_id, "mlflow.experimentKind", "custom_model_development")
        self._find_runs()
        if self._parent is None:
            tags = {"study": study, "stage": "study", NOTE_TAG: note}
            self._parent = self.client.create_run(self.experiment_id, tags=tags, run_name=study)
        elif self._parent.data.tags.get(NOTE_TAG) != note:
            # An answer of the last run is none of this one's.
            self.client.set_tag(self.parent_id, NOTE_TAG, note)
        self.client.update_run(self.parent_id, status="RUNNING")
        # The artifacts that the study consists of now say it again.
        if "marks" in self._parent.data.tags:
            self.client.delete_tag(self.parent_id, "marks")
        for name, value in parameters.items():
            # A parameter cannot be changed once logged, and a study is run again with other settings.
            self.client.set_tag(self.parent_id, f"parameter.{name}", str(value))

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
                    self.client.delete_run(run.info.run_id)
        if parent := runs.pop("", None):
            self._parent = parent
        for fingerprint, run in runs.items():
            if parent and run.data.tags.get("mlflow.parentRunId") != parent.info.run_id:
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.info.run_id)
            if fingerprint in self.runs and self.runs[fingerprint].info.run_id != run.info.run_id:
                self._logged.pop(fingerprint, None)
            self.runs[fingerprint] = run

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
        """Say which artifacts the study consists of now; runs of others are tagged as not current."""
        current = set(fingerprints)
        for fingerprint, run in self.runs.items():
            value = "yes" if fingerprint in current else "no"
            if run.data.tags.get("current") != value:
                with self._collecting(f"tag {fingerprint[:SHORT]}"):
                    self.client.set_tag(run.info.run_id, "current", value)
                    run.data.tags["current"] = value

    def start(self, card: Card) -> None:
        """A step begins: its run is created, or taken up again if an earlier attempt left it."""
        with self._collecting(f"start {card.id.name}"):
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
        with self._collecting(f"metrics of {fingerprint[:SHORT]}"):
            self._add_metrics(fingerprint, _as_curves(metrics), step, time_ms)
            if time.monotonic() - self._last_write > self.WRITE_EVERY_S:
                self._write()

    def finish(self, record: Record, *, is_new: bool = True) -> None:
        """A step is complete: parameters, step and final metrics and lineage are all there after this."""
        self.latest.pop(record.fingerprint, None)
        run = self.runs.get(record.fingerprint)
        if record.stage == "evaluation":
            self._save_views(record)
        self._mark_study(record)
        if not is_new and run is not None and run.data.tags.get("complete") == record.created:
            return
        with self._collecting(f"finish {record.id.name}"):
            try:
                self._finish(record)
            except Exception:
                if not self._was_deleted(record.fingerprint):
                    raise
                self._finish(record)

    def _finish(self, record: Record) -> None:
        card = Card.of_record(record)
        end_ms = int(datetime.fromisoformat(record.created).timestamp() * 1000)
        start_ms = end_ms - int(1000 * record.durations.get("total_s", 0))
        run_id = self._run_of(card, start_ms)
        for line in self._series(record):
            step = int(line.pop("step"))
            self._add_metrics(record.fingerprint, _as_curves(line), step, end_ms)
        rows = {f"rows_of_{name}": value for name, value in record.num_rows.items()}
        final = _as_totals({**dict(flatten(record.metrics)), **rows, **record.durations})
        self._add_metrics(record.fingerprint, final, 0, end_ms)
        if record.stage == "evaluation":
            self._log_on_task_model(record, final, end_ms)
        self._write_of(record.fingerprint)
        if record.marks:
            self.client.set_tag(run_id, "marks", "; ".join(record.marks))
        self.client.set_tag(run_id, "complete", record.created)
        self.runs[record.fingerprint].data.tags["complete"] = record.created
        self.client.set_terminated(run_id, "FINISHED", end_ms)

    def fail(self, fingerprint: str, message: str) -> None:
        """A step failed."""
        self.latest.pop(fingerprint, None)
        with self._collecting(f"fail {fingerprint[:SHORT]}"):
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
        """Write what is pending, end the parent run with an MLflow status, return what went wrong."""
        if self._client is not None:
            self._client.wake()
            with self._collecting("close"):
                self._write()
                if sqlite_path(self._uri) is None:
                    self._find_runs()
                self.client.set_terminated(self.parent_id, status)
        return self.errors

    def snapshot(self) -> dict[str, dict[str, float]]:
        """The latest step metrics of each running step, by fingerprint."""
        return self.latest

    def _mark_study(self, record: Record) -> None:
        """The study's run carries the marks of all its artifacts."""
        if set(record.marks) <= self._marks:
            return
        self._marks.update(record.marks)
        with self._collecting("marks"):
            self.client.set_tag(self.parent_id, "marks", "; ".join(sorted(self._marks)))

    def _retire_run_of_removed_artifact(self, fingerprint: str) -> None:
        run = self.runs.get(fingerprint)
        if run is not None and "complete" in run.data.tags:
            self.client.delete_run(run.info.run_id)
            del self.runs[fingerprint]

    def _was_deleted(self, fingerprint: str) -> bool:
        """Whether another tracker has deleted an artifact's run, for it knows a better one; then it is forgotten."""
        run = self.runs.get(fingerprint)
        if run is None or self.client.get_run(run.info.run_id).info.lifecycle_stage != "deleted":
            return False
        del self.runs[fingerprint]
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
        from mlflow.entities import Param

        tags = {
            "mlflow.parentRunId": self.parent_id,
            "fingerprint": card.id.fingerprint,
            "stage": card.id.stage,
            "slug": card.id.slug,
            "current": "yes",
        }
        for name, value in card.coordinates.items():
            if value is not None:
                tags["starting_point" if name == "starting_size" else name] = shown(value)
        if card.id.stage in COMPARED and set(COORDINATES) <= card.coordinates.keys():
            tags |= {"compare": "yes", "order": _place(card.coordinates)}
        run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=card.id.name)
        self.runs[card.id.fingerprint] = run
        # It is running and has no metrics yet: asking MLflow would cost as much as making it.
        self._logged[card.id.fingerprint] = set()
        run_id = run.info.run_id
        values = {name: shown(value) for name, value in card.coordinates.items() if value is not None}
        # A config's own `seed` or `size` goes by the full name, or it would collide with the coordinate.
        values |= {f"config.{name}": value for name, value in flatten(card.config)}
        self.client.log_batch(run_id, params=[Param(name, _shorten(value)) for name, value in values.items()])
        self._log_inputs(run_id, card)
        return str(run_id)

    def _log_inputs(self, run_id: str, card: Card) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for name, artifact in card.inputs.items():
            source = json.dumps({"uri": self.store.folder(artifact)})
            kind = "local" if self.store.is_local else "uri"
            dataset = Dataset(artifact.name, artifact.fingerprint[:SHORT], kind, source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", name)]))
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def _save_views(self, record: Record) -> None:
        """Saved views of MLflow's page of runs, with the coordinates and the measures that matter as columns.

        These are the accuracy on each test set, and all that is measured of the blindspot and of described sets' adversarial
        halves.
        """
        names = list(_as_totals(dict(flatten(record.metrics))))
        blindspots = _blindspots(names, self._blindspot)
        measured = _measured(names, self._blindspot)
        wanted = {*blindspots, *measured}
        for half in _adversarial_halves(record):
            wanted |= {*_blindspots(names, half), *_measured(names, half)}
        columns = [name for name in names if name.endswith("/accuracy") or name in wanted]
        # The first, of the general set, and the blindspot side by side; then what else is measured of it.
        columns[1:] = sorted(columns[1:], key=lambda name: (name not in blindspots, name not in measured))
        # Kinds are compared within an arm, so that no mean is over several.
        places = ("arms", *COLUMNS) if "arms" in record.coordinates else self._places
        if (columns, places) == (self._columns, self._places):
            return
        self._columns, self._places = columns, places
        with self._collecting("saved views"):
            for view, (name, state) in _views(self.parent_id, columns, blindspots, self._places).items():
                now = int(time.time() * 1000)
                envelope = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
                tag = f"mlflow.sharedViewState.{view}"
                self.client.set_experiment_tag(self.experiment_id, tag, json.dumps(envelope))

    def _log_on_task_model(self, record: Record, final: Mapping[str, Any], end_ms: int) -> None:
        """Put the accuracies, margins, AUCs and pulls beside the task model's parameters, where kinds are compared."""
        fingerprint = record.inputs["task_model"].fingerprint
        if fingerprint in self.runs:
            measured = {
                name: value
                for name, value in final.items()
                if "accuracy" in name or name.endswith((".margin", ".auc", ".pull"))
            }
            self._add_metrics(fingerprint, measured, 0, end_ms)

    def _series(self, record: Record) -> list[dict[str, Any]]:
        """Lines of the artifact's metrics.jsonl, each with `step`."""
        if METRICS_FILE not in record.files:
            return []
        return [json.loads(line) for line in self.store.read_bytes(record, METRICS_FILE).splitlines()]

    def _history(self, run_id: str) -> set[tuple[str, int]]:
        names = self.client.get_run(run_id).data.metrics
        return {(metric.key, metric.step) for name in names for metric in self.client.get_metric_history(run_id, name)}

    def _add_metrics(self, fingerprint: str, metrics: Mapping[str, Any], step: int, time_ms: int) -> None:
        from mlflow.entities import Metric

        if fingerprint not in self._logged:
            run = self.runs.get(fingerprint)
            self._logged[fingerprint] = self._history(run.info.run_id) if run else set()
        logged = self._logged[fingerprint]
        for name, value in metrics.items():
            if _is_number(value) and (name, step) not in logged:
                logged.add((name, step))
                self._pending[fingerprint].append(Metric(name, float(value), time_ms, step))

    def _write(self) -> None:
        self._last_write = time.monotonic()
        for fingerprint in [pending for pending in self._pending if pending in self.runs]:
            with self._collecting(f"metrics of {fingerprint[:SHORT]}"):
                try:
                    self._write_of(fingerprint)
                except Exception:
                    # Those of the run that is kept come when the artifact is complete.
                    if not self._was_deleted(fingerprint):
                        raise

    def _write_of(self, fingerprint: str) -> None:
        metrics = self._pending[fingerprint]
        try:
            while metrics:
                # MLflow's limit of one request.
                self.client.log_batch(self.runs[fingerprint].info.run_id, metrics=metrics[:1000])
                del metrics[:1000]
        except Exception:
            # MLflow is asked anew what it has when the artifact is complete, and sent the rest.
            metrics.clear()
            self._logged.pop(fingerprint, None)
            raise

    @contextlib.contextmanager
    def _collecting(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # an index that is down must not stop the study
            if len(self.errors) < self.MOST_ERRORS:
                text = f"{what}: {type(error).__name__}: {error}".splitlines()[0]
                self.errors.append(mask(text, self._uri)[:300])


def _preference(run: Any) -> tuple[bool, int, str]:
    """Of several runs of one artifact or study the least is kept: a complete one, the oldest."""
    return "complete" not in run.data.tags, run.info.start_time, run.info.run_id


def describe_study(uri: str, study: str, said: str, command: str = "") -> None:
    """Put a study's answer before the notes of its own run and of its experiment in MLflow; `command` is shown as code.

    To be called after a tracker has opened the study, which writes the notes anew. Raises what MLflow raises.
    """
    client = Client(uri)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return
    stop = ":" if command else "."
    first = "\n\n".join([f"**{as_markdown(said)}{stop}**", *([f"    {command}"] if command else [])])
    note = f"{first}\n\n{experiment.tags.get(NOTE_TAG, '')}"
    client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, note)
    for run in client.search_runs([experiment.experiment_id], "tags.stage = 'study'"):
        client.set_tag(run.info.run_id, NOTE_TAG, note)


def as_markdown(text: str) -> str:
    """A text that Markdown shows as it stands, in one line: no tags and no links of its own in MLflow's notes."""
    return re.sub(r"([\\`*_\[\]~|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def comparisons(uri: str) -> dict[str, str]:
    """Study → path of its view of kinds, for all in an MLflow database."""
    experiments = Client(uri).search_experiments()
    with_views = [experiment for experiment in experiments if "mlflow.sharedViewState.kinds" in experiment.tags]
    return {experiment.name: view_link(experiment.experiment_id, "kinds") for experiment in with_views}


def view_link(experiment_id: str, view: str) -> str:
    """Path of a saved view ("kinds" or "cells") on an MLflow server."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"


def _blindspots(metrics: Iterable[str], blindspot: str) -> list[str]:
    """The accuracies of a slice in every set, or of a `set/slice`, among metrics as MLflow names them.

    A slice that is asked for two of more labels is named for that.
    """
    endings = tuple(f".{blindspot}/{accuracy}".replace("/", ".") for accuracy in ("accuracy", "accuracy_2way"))
    return [name for name in metrics if f".{name}".replace("/", ".").endswith(endings)]


def _measured(metrics: Iterable[str], blindspot: str) -> list[str]:
    """The margin and AUC of a `set/slice`, or of a slice in every set, among metrics as MLflow names them.

    Of a slice that ends in a label they are named without it: they are of the heuristic's items of both sides.
    """
    places = {blindspot, blindspot.rpartition("/")[0]} - {""}
    endings = tuple(f".{place}/{measure}".replace("/", ".") for place in places for measure in ("margin", "auc"))
    return [name for name in metrics if f".{name}".replace("/", ".").endswith(endings)]


def _adversarial_halves(record: Record) -> list[str]:
    """`set/slice` of the adversarial half of each described set of an evaluation that has one."""
    described = record.payload.get("config", {}).get("test_sets") or ()
    return [f"{test_set['name']}/{test_set['adversarial']}" for test_set in described if test_set.get("adversarial")]


def _views(
    parent_id: str, metrics: Sequence[str], blindspots: Sequence[str], places: Sequence[str]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Key → name and state of a saved view, in the form of MLflow's own page.

    `metrics` are what is compared, `blindspots` those of them that are of the blindspot's slice, and `places` the parameters
    that place a run in the grid.
    """
    columns = [f"params.`{name}`" for name in places] + [f"metrics.`{name}`" for name in metrics]
    accuracies = [name for name in metrics if "accuracy" in name.rpartition("/")[2].rpartition(".")[2]]
    bars = [{"type": "BAR", "metricKey": name, "uuid": name} for name in accuracies]
    others = [name for name in accuracies if name not in blindspots]
    # Of another set where there is one: a blindspot can be a slice of the general set itself.
    blindspot_sets = {name.split("/")[0] for name in blindspots}
    general = min(others, key=lambda name: name.split("/")[0] in blindspot_sets, default=None)
    scatters = [
        {
            "type": "SCATTER",
            "uuid": f"{general} × {name}",
            "xaxis": {"key": general, "type": "METRIC"},
            "yaxis": {"key": name, "type": "METRIC"},
        }
        for name in blindspots
        if general
    ]
    chart = {"deleted": False, "isGenerated": False, "metricSectionId": "accuracy", "runsCountToCompare": 100}
    cells = {
        "searchFilter": 'tags.compare = "yes" and tags.current = "yes"',
        "orderByKey": "tags.`order`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", *columns],
        "columnWidths": {"attributes.`Run Name`": 410, "params.`kind`": 130} | dict.fromkeys(columns[len(places) :], 215),
        "runsExpanded": {parent_id: True},
        "runsHiddenMode": "SHOW_ALL",
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "compareRunCharts": [chart | kind for kind in bars + scatters],
        "compareRunSections": [{"uuid": "accuracy", "name": "Accuracy", "display": True, "isReordered": False}],
        "isAccordionReordered": True,
        "groupBy": None,
    }
    keys = [{"mode": "param", "groupByData": name} for name in places if name != "seed"]
    kinds = cells | {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
        # The mean of seeds would be shown as a seed.
        "selectedColumns": [name for name in columns if name != "params.`seed`"],
    }
    return {"kinds": ("Kinds, mean over seeds", kinds), "cells": ("Cells", cells)}


def _place(coordinates: Mapping[str, Any]) -> str:
    """Sorts as text like the grid: MLflow sorts parameters as text, 900 after 3000."""
    kind = str(coordinates["kind"])
    rank = str(KINDS.index(kind) if kind in KINDS else len(KINDS))
    rank += "".join(f"-{coordinates[dial]:.9f}" for dial in DIALS if dial in coordinates)
    of_arms = "".join(f"{arm}-" for arm in coordinates.get("arms", ()))
    return f"{of_arms}{coordinates['starting_size']:09d}-{coordinates['size']:09d}-{rank}-{coordinates['seed']:06d}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_curves(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Step metrics as MLflow names them: in a section of charts that comes first."""
    return {name if "/" in name else f"curve/{name}": value for name, value in metrics.items() if name not in NOT_LOGGED}


def _as_totals(final: Mapping[str, Any]) -> dict[str, Any]:
    """Final values as MLflow names them; it sorts its sections of charts, one for each text before a `/`.

    A test set is a section: `hans/lexical_overlap.non-entailment.accuracy`. What is of no section is of
    `totals`, which comes last, and has no name in common with a curve.
    """
    named = {}
    for name, value in final.items():
        section, separator, rest = name.partition("/")
        named[f"{section}/{rest.replace('/', '.')}" if separator else f"totals/{name}"] = value
    return named


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
