"""Data's folders for a hub: Parquet in the layout that `datasets` loads, and a card with counts, audit, licence and lineage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.cards.card import check_card
from analysis.cards.dataset_cards import AuditWords, Split, pool_card, training_sets_card
from analysis.cards.lineage import Lineage
from pipelines.errors import UserError
from pipelines.storage import fetch, join
from pipelines.tasks.examples import read_examples
from pipelines.tasks.task import Task
from sweep.graph.integrity import whole_folder
from sweep.graph.records import Record, Store
from sweep.publish.models import CARD
from sweep.publish.origins import Said, origin_of, task_of_record

ROWS_PER_FILE = 1_000_000
OWN_NAMES = ("train", "dev", "dropped")


def write_pool(
    store: Store, record: Record, folder: Path, said: Said, *, audit: bool, sources: Record | None = None
) -> AuditWords:
    """Write a synthetic pool to `folder` as a dataset of one split, `train`; returns what its audit said.

    The audit compares it with the study's `sources`.

    Raises UserError for an artifact that is not whole.
    """
    lineage, task = origin_of(store, record, said), task_of_record(record)
    examples = read_examples(join(whole_folder(store, record), "pool"), task)
    split = _write_split(examples, folder, "default", "data")
    words = _audit(store, sources, examples, task, is_generated=bool(record.inputs)) if audit else AuditWords()
    rejects = {name.partition("/")[2]: int(num) for name, num in record.metrics.items() if name.startswith("rejected/") and num}
    _write_card(folder, pool_card(lineage, task, split, words, rejects=rejects, licence=said.licence))
    return words


def write_training_sets(store: Store, study: str, records: Sequence[Record], folder: Path, said: Said) -> None:
    """Write training sets to `folder` as one dataset, each a configuration with one split, `train`.

    Raises UserError for an artifact that is not whole.
    """
    task = task_of_record(records[0])
    splits = []
    for record in records:
        lineage = origin_of(store, record, said)
        examples = read_examples(join(whole_folder(store, record), "examples.parquet"), task)
        splits.append(replace(_write_split(examples, folder, record.slug, record.slug), lineage=lineage))
    _write_card(folder, training_sets_card(study, _together(splits), task, splits, said.licence))


def _together(splits: Sequence[Split]) -> Lineage:
    """The lineage of all of several sets, each artifact once."""
    each = [split.lineage for split in splits if split.lineage is not None]
    records = {record.fingerprint: record for lineage in each for record in lineage.records}
    return Lineage(
        tuple(records.values()),
        tuple(dict.fromkeys(base for lineage in each for base in lineage.bases)),
        tuple(dict.fromkeys(source for lineage in each for source in lineage.sources)),
        each[0].language,
    )


def _write_split(examples: pa.Table, folder: Path, config: str, below: str) -> Split:
    """Write a table as the files of a split `train`, named as the hub names them."""
    (folder / below).mkdir(parents=True)
    num_files = max(1, -(-examples.num_rows // ROWS_PER_FILE))
    for number in range(num_files):
        part = examples.slice(number * ROWS_PER_FILE, ROWS_PER_FILE)
        pq.write_table(part, folder / below / f"train-{number:05d}-of-{num_files:05d}.parquet", compression="zstd")
    counts = Counter(examples["label"].to_pylist())
    columns = {field.name: str(field.type) for field in examples.schema}
    return Split(config, f"{below}/train-*.parquet", dict(counts), columns)


def _write_card(folder: Path, card: str) -> None:
    check_card(card, "dataset")
    (folder / CARD).write_text(card, encoding="utf-8")


def _audit(store: Store, sources: Record | None, examples: pa.Table, task: Task, *, is_generated: bool) -> AuditWords:
    """The audit of a pool, against the study's original data and its test sets.

    What wrote a pool that was given to the study learnt from nothing that is known.
    """
    from analysis.audit.audit import AuditSettings
    from analysis.audit.audit import audit as audit_texts
    from analysis.audit.found import NOT_ASKED

    try:
        train, tests = None, {}
        if sources is not None:
            folder = fetch(whole_folder(store, sources))
            names = sorted(path.stem for path in Path(folder).glob("*.parquet"))
            train = join(folder, "train.parquet")
            tests = {name: join(folder, f"{name}.parquet") for name in names if name not in OWN_NAMES}
        learnt = train if is_generated else None
        settings = AuditSettings(task=task, reference=train, generator_training=learnt, tests=tests, processes=1)
        found = audit_texts(examples.select([*task.field_names, "label"]), settings)
    except UserError as error:
        return AuditWords(refused=str(error))
    findings = tuple(
        (finding.level, finding.verdict, finding.action) for finding in found.findings if finding.level != NOT_ASKED
    )
    against = f"the study's original training data, and its test sets {', '.join(tests)}" if tests else ""
    return AuditWords(found.answer, findings, against=against)
