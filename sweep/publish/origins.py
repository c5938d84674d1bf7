"""The lineage of an artifact for its card: base models, sources, licences, results; from the records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from analysis.cards.card import Result
from analysis.cards.licences import (
    HANS,
    LANGUAGES,
    MULTINLI,
    UNKNOWN_LICENCE,
    Source,
    given_licence,
    licence_of_base,
    sources_of,
)
from analysis.cards.lineage import Base, Lineage
from analysis.study.described import recorded_task
from analysis.wording import HOLDS, set_name
from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from sweep.graph.explain import lineage_of
from sweep.graph.identity import SHORT
from sweep.graph.records import ArtifactId, Record, Store

ON_THE_HUB = {
    "mnli_matched": (MULTINLI.hub_name, "validation_matched"),
    "mnli_mismatched": (MULTINLI.hub_name, "validation_mismatched"),
    "hans": (HANS.hub_name, "validation"),
}
"""Test set → its dataset on the hub, and the split."""


@dataclass(frozen=True)
class Said:
    """What only the user can say of the licences, each the hub's identifier, and of the language, an ISO 639 code."""

    licence: str = ""
    base_licence: str = ""
    source_licence: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        for option, value in (
            ("--license", self.licence),
            ("--base-license", self.base_licence),
            ("--source-license", self.source_licence),
        ):
            if value:
                given_licence(value, option)
        if self.language and not (self.language.isalpha() and self.language.islower() and len(self.language) in (2, 3)):
            raise UserError(f"--language {self.language}: give an ISO 639 code, such as en")


def hub_name(base: Record) -> tuple[str, str]:
    """The repository and commit of a base model's record, "" for one that is of no hub."""
    name, _, commit = str(base.payload["config"].get("revision") or "").partition("@")
    return (name, commit) if "/" in name and commit else ("", "")


def origin_of(store: Store, record: Record, said: Said) -> Lineage:
    """All that an artifact was built from. Raises UserError for a record that is gone."""
    records = tuple(ancestor for _, ancestor in lineage_of(record, store))
    sources: dict[Source, None] = {}
    language = said.language
    for ancestor in records:
        config = ancestor.payload["config"]
        if ancestor.stage == "sources":
            sources |= dict.fromkeys(sources_of(config, ancestor.metrics, said.source_licence))
            language = language or LANGUAGES.get(str(config.get("type")), "")
        elif ancestor.stage == "synthetic_pool" and config.get("type") == "OwnPoolConfig":
            sources |= dict.fromkeys(sources_of(config, {}, said.source_licence))
        elif config.get("endpoint"):
            model = config["endpoint"].get("model", "a model")
            sources[Source(f"texts that {model} wrote at an endpoint", UNKNOWN_LICENCE)] = None
    bases = tuple(dict.fromkeys(_base(ancestor, said) for ancestor in records if ancestor.stage == "base_model"))
    return Lineage(records, bases, tuple(sources), language)


def _base(record: Record, said: Said) -> Base:
    config: dict[str, Any] = record.payload["config"]
    if config.get("type") == "ScratchModelConfig":
        return Base(made_here=True)
    name, commit = hub_name(record)
    quantized = str(config.get("quantization") or "none")
    return Base(name, commit, licence_of_base(name, said.base_licence), quantized=quantized if quantized != "none" else "")


def task_of_record(record: Record) -> Task:
    """The task that an artifact was built for; NLI where its record names none."""
    values = record.payload["config"].get("task")
    return recorded_task(values, f"the record of {record.id.name}") if values else NLI


def results_of(store: Store, model: Record) -> tuple[Result, ...]:
    """A task model's accuracies, of all its evaluations in the store, by set and slice; subcases and predicates left out."""
    found: dict[tuple[str, str, int], Result] = {}
    for short in store.folders("evaluation").get(model.slug, ()):
        record = store.read_record(ArtifactId("evaluation", model.slug, short))
        if record is None or record.inputs["task_model"].fingerprint != model.fingerprint:
            continue
        for row in json.loads(store.read_bytes(record, "metrics.json"))["rows"]:
            if row["folding"] == "argmax" and not row["slice"].startswith(("subcase/", HOLDS)):
                found.setdefault((row["set"], row["slice"], row["num_labels"]), _result(row))
    return tuple(found.values())


def _result(row: dict[str, Any]) -> Result:
    name = row["set"]
    hub_dataset, split = ON_THE_HUB.get(name, ("", "test"))
    return Result(
        name, set_name(name), row["slice"], row["num_labels"], row["accuracy"], row["num_correct"], row["num_examples"],
        hub_dataset, split,
    )  # fmt: skip


def short_name(record: Record) -> str:
    """`stage/slug-fingerprint`, as the store's folders are called."""
    return f"{record.stage}/{record.slug}-{record.fingerprint[:SHORT]}"
