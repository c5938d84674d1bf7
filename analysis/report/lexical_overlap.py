"""Lexical overlap in MultiNLI's training rows, beside the paper's Table 1, as Markdown tables.

    python -m analysis.report.lexical_overlap FOLDER
    python -m analysis.report.lexical_overlap FOLDER --by genre

FOLDER is the one that an experiment takes as `data`. The rows are those of the training set, after the duplicates and the
dev set are taken out (`pipelines.data.sources`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.page import Table
from analysis.report.comparison import odds_table, table1_beside_table
from analysis.study.artifacts import LabelCount, count_lexical_overlap
from analysis.study.paper import table1, table1_beside
from pipelines.data.sources import SUBFOLDERS, TRAIN_FILE, nli_sources_config, prepare_nli_sources
from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples

ALL = "all rows"


def overlap_by_field(folder: str, field: str | None = None, **overrides: Any) -> dict[str, dict[str, LabelCount]]:
    """Lexical overlaps per label of the training set in `folder`: all rows, then those of each value of a field of the jsonl.

    `overrides` are those of `nli_sources_config`. Raises UserError for a folder that `pipelines.data.sources` refuses, for a
    field that a row lacks, and for rows whose pairID is not theirs alone.
    """
    with tempfile.TemporaryDirectory() as prepared:
        prepare_nli_sources(nli_sources_config(folder, **overrides), prepared, folder=folder)
        examples = read_examples(f"{prepared}/train.parquet")
    counts = {ALL: count_lexical_overlap(examples)}
    if field is None:
        return counts
    values = _field_by_pair(folder, field)
    of_rows = pa.array([values[pair] for pair in examples["pair_id"].to_pylist()])
    for value in sorted(set(of_rows.to_pylist())):
        counts[f"{field}: {value or 'none'}"] = count_lexical_overlap(examples.filter(pc.equal(of_rows, value)))
    return counts


def tables(counts: Mapping[str, Mapping[str, LabelCount]]) -> str:
    """Each group of `overlap_by_field` beside the paper's 'original' rows, and the odds ratios of all, as Markdown.

    Raises UserError for a group that lacks a label.
    """
    parts = [
        f"## {name}\n\n{markdown(table1_beside_table(table1_beside({'original': of_labels})))}\n"
        for name, of_labels in counts.items()
    ]
    odds = odds_table([*((name, {"original": of_labels}) for name, of_labels in counts.items()), ("Paper's", table1())])
    return "\n".join([*parts, f"## {odds.caption}\n\n{markdown(odds)}"])


def markdown(table: Table) -> str:
    """A table of the report as Markdown."""
    rows = [[column.name for column in table.columns], ["--:" if column.css == "number" else "---" for column in table.columns]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*rows, *table.rows])


def _field_by_pair(folder: str, field: str) -> dict[str, str]:
    paths = [Path(folder).expanduser() / subfolder / TRAIN_FILE for subfolder in SUBFOLDERS[TRAIN_FILE]]
    path = next(candidate for candidate in paths if candidate.is_file())
    values: dict[str, str] = {}
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            if field not in row:
                raise UserError(f"{path}:{number}: no field {field!r}; name one that every row has, of {', '.join(row)}")
            pair = str(row.get("pairID") or "")
            if not pair or pair in values:
                raise UserError(f"{path}:{number}: pairID {pair!r} is blank or another row's, too; leave --by out")
            values[pair] = str(row[field])
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report.lexical_overlap", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", help="folder with MultiNLI's and HANS's files")
    parser.add_argument("--by", metavar="FIELD", help="a table for each value of this field of the training file's rows, too")
    chosen = parser.parse_args(arguments)
    try:
        print(tables(overlap_by_field(chosen.folder, chosen.by)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
