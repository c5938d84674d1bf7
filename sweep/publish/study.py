"""A study's folders for a hub: its pools and generators, training sets and task models where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis.cards.lineage import restrictions
from pipelines.errors import UserError
from sweep.graph.integrity import check
from sweep.graph.records import Record, Store, Study
from sweep.publish.datasets import write_pool, write_training_sets
from sweep.publish.models import TASK_MODELS, describe_model, export_model, write_generator
from sweep.publish.naming import find_artifact
from sweep.publish.origins import Said, origin_of


@dataclass(frozen=True)
class Repository:
    """A folder in a repository's form. `kind` is the hub's type of it; `restrictions` are what licences ask, a line each."""

    name: str
    kind: Literal["model", "dataset"]
    folder: Path
    restrictions: tuple[str, ...]


def publish_study(
    store: Store,
    study: Study,
    folder: Path,
    said: Said,
    *,
    models: Sequence[str] = (),
    training_sets: bool = False,
    weights: bool = True,
    audit: bool = True,
    pushed_as: str = "",
) -> list[Repository]:
    """Write the study's repositories to folders in `folder`: pools, generators, and `models`, task models by any name.

    `pushed_as` is the beginning of their names on the hub, where they are to go there.

    Adapters are merged, unless their base is on the hub as it is. Without `weights` models are their cards alone. Raises
    UserError for a study without a built pool, generator or named model, for weights that are not in the store, and where
    `folder` holds files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and not empty; name a folder that is not there, so that nothing is replaced")
    built = {step.fingerprint: step.record for step in study.steps if step.record is not None}
    of_stage = {
        stage: [record for record in built.values() if record.stage == stage] for stage in ("synthetic_pool", "generator")
    }
    # What cannot be found is said before anything is written.
    named = [find_artifact(store, name, TASK_MODELS, within=built)[1] for name in models]
    chosen = list({record.fingerprint: record for record in named}.values())
    # Of two preparations, that with the blindspot sets, which has all that the other has.
    prepared = [record for record in built.values() if record.stage == "sources"]
    sources = max(prepared, key=lambda record: len(record.files), default=None)
    sets = [record for record in built.values() if record.stage == "training_set"] if training_sets else []
    if training_sets and not sets:
        raise UserError(f"study {study.experiment} has no built training set in {store.uri}; run it first")
    if not any((*of_stage.values(), chosen, sets)):
        raise UserError(f"study {study.experiment} has no built pool and no generator in {store.uri}; name --model CELL")
    if weights:
        _check_weights(store, [*of_stage["generator"], *chosen])
    repositories: list[Repository] = []

    def add(name: str, kind: Literal["model", "dataset"], records: Sequence[Record]) -> Path:
        asked = dict.fromkeys(line for record in records for line in restrictions(origin_of(store, record, said)))
        repositories.append(Repository(name, kind, folder / name, tuple(asked)))
        print(f"{kind}: {folder / name}")
        return folder / name

    for record in of_stage["synthetic_pool"]:
        target = add(record.slug, "dataset", [record])
        words = write_pool(store, record, target, said, audit=audit, sources=sources)
        if words.answer or words.refused:
            print(f"  audit: {words.answer or words.refused}")
    if sets:
        write_training_sets(store, study.experiment, sets, add("training-sets", "dataset", sets), said)
    for record in of_stage["generator"]:
        write_generator(store, record, add(record.slug, "model", [record]), said, weights=weights)
    for record in chosen:
        target = add(record.slug, "model", [record])
        here = f"{pushed_as}-{record.slug}" if pushed_as else record.slug
        if weights:
            export_model(store, record, target, said, merge=not _is_over_hub(store, record), here=here)
        else:
            describe_model(store, record, target, said)
    return repositories


def _check_weights(store: Store, records: Sequence[Record]) -> None:
    """Raise UserError for a model whose weights are not in the store."""
    for record in records:
        if lost := next((damage for damage in check(store, record, "sizes") if damage.is_lost_weights), None):
            raise UserError(
                f"{lost}: its weights are not here, as after a bundle; --no-weights writes cards alone of models, or publish "
                "where they were built"
            )


def _is_over_hub(store: Store, record: Record) -> bool:
    from sweep.publish.origins import hub_name

    base = store.read_record(record.inputs["base_model"])
    if base is None or base.payload["config"].get("quantization", "none") != "none":
        return False
    # A starting point of all weights is no base on the hub.
    return bool(hub_name(base)[0]) and not any(name.startswith("model/") for name in record.files)
