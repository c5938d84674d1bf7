"""A model's folder for a hub: weights that transformers or peft load, tokenizer, card, and what it was built from as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from analysis.cards.card import check_card
from analysis.cards.lineage import Lineage
from analysis.cards.model_cards import generator_card, task_model_card
from pipelines.errors import UserError
from pipelines.export.exported import Exported
from pipelines.storage import fetch, join
from pipelines.tasks.task import Task
from sweep.graph.integrity import whole_folder
from sweep.graph.records import Record, Store
from sweep.publish.origins import Said, hub_name, origin_of, results_of, short_name, task_of_record

CARD, ORIGIN = "README.md", "blindsweep.json"
TASK_MODELS = ("task_model", "starting_point")


def export_model(
    store: Store,
    record: Record,
    folder: Path,
    said: Said,
    *,
    merge: bool = False,
    body: bool = False,
    dtype: str = "auto",
    here: str = "",
) -> Exported:
    """Write a task model's weights, tokenizer, card and origin to `folder`; `here` is how the card's code calls it.

    Raises UserError as `export_classifier` does, and for an artifact that is not whole.
    """
    from pipelines.export.classifiers import HubBase, export_classifier

    base = _base_of(store, record)
    lineage, task = origin_of(store, record, said), task_of_record(record)
    results = results_of(store, record)
    name, commit = hub_name(base)
    # What was quantised differs from what is on the hub, and so does what an adapter gives over it.
    is_as_published = bool(name) and base.payload["config"].get("quantization", "none") == "none"
    files = export_classifier(
        whole_folder(store, record),
        whole_folder(store, base),
        folder,
        task=task,
        merge=merge,
        body=body,
        hub_base=HubBase(name, commit) if is_as_published else None,
        dtype=dtype,
    )
    card = task_model_card(lineage, task, files, results, licence=said.licence, here=here or str(folder))
    _write(folder, card, lineage, task, files)
    return files


def describe_model(store: Store, record: Record, folder: Path, said: Said) -> None:
    """Write a task model's card and origin without its weights."""
    lineage, task = origin_of(store, record, said), task_of_record(record)
    folder.mkdir(parents=True)
    _write(folder, task_model_card(lineage, task, None, results_of(store, record), licence=said.licence), lineage, task, None)


def write_generator(store: Store, record: Record, folder: Path, said: Said, *, weights: bool) -> None:
    """Write a generator's card and origin to `folder`, with `weights` its model as well."""
    lineage, task = origin_of(store, record, said), task_of_record(record)
    if weights:
        shutil.copytree(fetch(join(whole_folder(store, record), "model")), folder)
    else:
        folder.mkdir(parents=True)
    marker = str(record.payload["config"]["end_marker"])
    card = generator_card(lineage, task, end_marker=marker, licence=said.licence, has_weights=weights)
    _write(folder, card, lineage, task, None)


def _base_of(store: Store, record: Record) -> Record:
    base = store.read_record(record.inputs["base_model"])
    where = store.folder(record.inputs["base_model"])
    if base is None:
        raise UserError(f"{where} is not there, and {record.id.name} stands on it; restore it")
    return base


def _write(folder: Path, card: str, lineage: Lineage, task: Task, files: Exported | None) -> None:
    check_card(card, "model")
    (folder / CARD).write_text(card, encoding="utf-8")
    record = lineage.records[0]
    values = {
        "artifact": short_name(record),
        "fingerprint": record.fingerprint,
        "coordinates": dict(record.coordinates),
        "marks": list(record.marks),
        "task": dataclasses.asdict(task),
        "files": dataclasses.asdict(files) if files else None,
        "built_from": [{"artifact": short_name(each), "fingerprint": each.fingerprint} for each in lineage.records[1:]],
        "versions": dict(record.versions),
    }
    (folder / ORIGIN).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
