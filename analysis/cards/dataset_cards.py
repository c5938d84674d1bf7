"""The cards of data: a synthetic pool, with its counts and its audit; a study's training sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cards.card import dataset_card_text, fenced, plain, size_category, table
from analysis.cards.licences import UNKNOWN
from analysis.cards.lineage import PAPER, Lineage, licence_section, lineage_section, marks_note, settings_lines
from pipelines.tasks.task import Task

SAMPLING = {
    "temperature": "temperature",
    "top_p": "top-p",
    "top_k": "top-k (-1: all)",
    "max_new_tokens": "at most so many new tokens",
    "seed": "seed",
}


GIVEN = "They were given to the study; who labelled them is unknown."
MACHINE_MADE = "They are machine-made: their labels are those that were asked for, and nobody checked them."


@dataclass(frozen=True)
class AuditWords:
    """What an audit said of data: its answer, and for each finding its level, verdict and what to do.

    `refused` is why it could not be made.
    """

    answer: str = ""
    findings: tuple[tuple[str, str, str], ...] = ()
    refused: str = ""
    against: str = ""
    """What it was compared with."""


@dataclass(frozen=True)
class Split:
    """A table as the hub has it: its configuration's name, the pattern of its files and its rows by label."""

    config: str
    path: str
    counts: Mapping[str, int]
    columns: Mapping[str, str]
    lineage: Lineage | None = None
    """Of one of several sets, its own."""

    @property
    def num_rows(self) -> int:
        return sum(self.counts.values())


def pool_card(
    lineage: Lineage, task: Task, split: Split, audit: AuditWords, *, rejects: Mapping[str, int], licence: str = ""
) -> str:
    """The card of a synthetic pool; `rejects` are the texts that were no example, by reason."""
    record = lineage.records[0]
    is_own = record.payload["config"].get("type") == "OwnPoolConfig"
    reasons = [(reason, f"{num:,}") for reason, num in rejects.items()]
    parts = [
        f"# {record.slug}",
        marks_note(lineage),
        f"Labelled examples of the task *{task.name}*. " + (GIVEN if is_own else MACHINE_MADE),
        "## Counts\n\n" + _counts([split], task),
        table(("left out because", "texts"), reasons) if reasons else "",
        "## Columns\n\n" + _columns(split, task),
        "## How it was made\n\n" + _making(lineage, task, is_own),
        "## Audit\n\n" + _audit(audit),
        *_ending(lineage, licence),
    ]
    tags = ["blindsweep", *(() if is_own else ("synthetic",)), task.name]
    return dataset_card_text(_metadata(lineage, [split], tags, licence), "\n\n".join(filter(None, parts)))


def _making(lineage: Lineage, task: Task, is_own: bool) -> str:
    record = lineage.records[0]
    if is_own:
        return "It was given to the study as its pool; how it was made is unknown. A row that is no example is left out."
    config = record.payload["config"]
    trained = next((other for other in lineage.records if other.stage == "generator"), None)
    by = f"the generator `{trained.fingerprint[:12]}`" if trained else "a model that was prompted, and not finetuned"
    if endpoint := config.get("endpoint"):
        by = f"{plain(endpoint.get('model', 'a model'))}, at an endpoint"
    parts = [f"Written by {by}, asked for a label and then parsed; a text that is no example is left out and counted."]
    parts.append("\n".join(settings_lines(record, SAMPLING)))
    if trained:
        parts.append("The prompt, for the first label:\n\n" + fenced(task.prompted(task.labels[0])))
    return "\n\n".join(filter(None, parts))


def training_sets_card(study: str, lineage: Lineage, task: Task, splits: Sequence[Split], licence: str = "") -> str:
    """The card of a study's training sets, each a configuration of its own; `lineage` is that of all of them."""
    rows = [
        (split.config, f"`{split.lineage.records[0].fingerprint[:12]}`" if split.lineage else "", f"{split.num_rows:,}")
        for split in splits
    ]
    parts = [
        f"# Training sets of {study}",
        marks_note(lineage),
        f"The sets that task models of *{task.name}* were finetuned on, each a configuration. Sets of one seed and kind are "
        "nested: a smaller one lies in the larger.",
        "## Sets\n\n" + table(("configuration", "fingerprint", "examples"), rows),
        "## Counts\n\n" + _counts(splits, task),
        "## Columns\n\n" + _columns(splits[0], task),
        *_ending(lineage, licence),
    ]
    tags = ["blindsweep", task.name]
    return dataset_card_text(_metadata(lineage, splits, tags, licence), "\n\n".join(filter(None, parts)))


def _metadata(lineage: Lineage, splits: Sequence[Split], tags: list[str], licence: str) -> dict[str, Any]:
    return {
        "license": licence or UNKNOWN,
        "language": [lineage.language] if lineage.language else None,
        "size_categories": [size_category(sum(split.num_rows for split in splits))],
        "task_categories": ["text-classification"],
        "annotations_creators": ["machine-generated"] if "synthetic" in tags else None,
        "tags": [*tags, *(["not-the-real-thing"] if lineage.is_rehearsal else [])],
        "configs": [{"config_name": split.config, "data_files": [{"split": "train", "path": split.path}]} for split in splits],
    }


def _ending(lineage: Lineage, licence: str) -> tuple[str, ...]:
    return (
        "## Licence\n\n" + licence_section(lineage, licence or UNKNOWN, licence),
        "## Lineage\n\n" + lineage_section(lineage),
        f"## Reference\n\n{PAPER}.",
    )


def _counts(splits: Sequence[Split], task: Task) -> str:
    labels = [*task.labels, *sorted({label for split in splits for label in split.counts} - set(task.labels))]
    rows = [(split.config, *(f"{split.counts.get(label, 0):,}" for label in labels), f"{split.num_rows:,}") for split in splits]
    return table(("configuration", *labels, "in all"), rows)


def _columns(split: Split, task: Task) -> str:
    meanings = {"id": "unique in the set", "label": "one of " + ", ".join(task.labels)}
    meanings |= {name: "a text of the example" for name in task.field_names}
    return table(("column", "type", "holds"), [(name, kind, meanings.get(name, "–")) for name, kind in split.columns.items()])


def _audit(audit: AuditWords) -> str:
    if audit.refused:
        return f"It was not audited: {plain(audit.refused)}"
    if not audit.answer:
        return "It was not audited."
    against = f"Compared with {plain(audit.against)}." if audit.against else "Compared with nothing."
    rows = [(level, verdict, action or "–") for level, verdict, action in audit.findings]
    return "\n\n".join([f"> {plain(audit.answer)}", against, table(("level", "the data …", "what to do"), rows)])
