"""What a study is about, from its records: its task, and the test sets that are described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from analysis.wording import SET_NAMES
from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Field, Task
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import Study


def task_of(study: Study) -> Task:
    """The task that the study's artifacts were built for; NLI where their records name none.

    Raises UserError for a task that cannot be read.
    """
    found = next((config["task"] for config in _configs(study) if config.get("task")), None)
    if found is None:
        return NLI
    return recorded_task(found, f"a record of study {study.experiment!r}")


def recorded_task(values: Mapping[str, Any], where: str) -> Task:
    """The task that a record's config names. Raises UserError, naming `where`, for one that cannot be read."""
    try:
        labels, texts = tuple(values["labels"]), tuple(Field(**field) for field in values["fields"])
        return Task(**{**values, "labels": labels, "fields": texts})
    except (TypeError, KeyError) as error:
        raise UserError(f"{where} has a task that cannot be read ({error})") from error


def described_sets(study: Study) -> dict[str, TestSet]:
    """The described test sets that the study evaluates, by name; their words for people are the manifest's.

    Raises UserError for one that cannot be read.
    """
    words = {values["name"]: values for values in study.parameters.get("test_sets", ())}
    found: dict[str, TestSet] = {}
    for config in _configs(study, "evaluation"):
        for values in config.get("test_sets") or ():
            if values["name"] not in found:
                found[values["name"]] = _test_set({**words.get(values["name"], {}), **values}, study)
    return found


def titles_of(study: Study) -> dict[str, str]:
    """Name → what people call it, of the test sets that have another name for people."""
    return SET_NAMES | {name: test_set.title for name, test_set in described_sets(study).items() if test_set.title}


def _test_set(values: Mapping[str, Any], study: Study) -> TestSet:
    known = {field.name for field in fields(TestSet)}
    try:
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in known
        }
        return TestSet(**plain)
    except (TypeError, KeyError) as error:
        raise UserError(f"a record of study {study.experiment!r} has a test set that cannot be read ({error})") from error


def _configs(study: Study, stage: str | None = None) -> list[Mapping[str, Any]]:
    return [
        step.record.payload.get("config", {})
        for step in study.steps
        if step.record is not None and (stage is None or step.stage == stage)
    ]
