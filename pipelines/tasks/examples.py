"""Labelled examples: the one table format that all stages share, and its reading and writing.

Columns, all strings: ``id`` (stable, unique), the task's fields (``premise``, ``hypothesis``), ``label``. Stages may add
columns: HANS and the template probe have ``heuristic``, ``subcase``, ``template``; MultiNLI ``genre``, ``pair_id``; a
synthetic pool ``shard`` (int32), ``seed`` (int64), ``generator``.
"""

import io
import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.storage import fetch, filesystem, write_bytes
from pipelines.tasks.nli import NLI
from pipelines.tasks.parquet import parquet_table
from pipelines.tasks.task import Task


def check_examples(table: pa.Table, name: str, task: Task = NLI) -> pa.Table:
    """The table with its task's columns as plain strings, or a :class:`UserError` that names ``name``, the value and the rule.

    Rules: the columns exist and are strings without nulls; labels are the task's, or of two that others are folded to
    (``non-entailment``); ids are unique; no text and no id is blank.
    """
    if missing := [column for column in task.columns if column not in table.column_names]:
        raise UserError(
            f"{name}: no column {', '.join(missing)}; examples have {', '.join(task.columns)} "
            f"and this has {', '.join(table.column_names)}"
        )
    for column in task.columns:
        values = table[column]
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise UserError(f"{name}: column {column} is of type {values.type}; write it as strings")
        if values.null_count:
            raise UserError(f"{name}: column {column} has {values.null_count:,} nulls; each example needs one")
        table = table.set_column(table.column_names.index(column), column, values.cast(pa.string()))
        if column == "label":
            continue
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table[column])), 0)
        if pc.any(blank).as_py():
            row = pc.index(blank, True).as_py()
            raise UserError(f"{name}: row {row} (id {table['id'][row]}) has a blank {column}; remove or mend the row")
    for label in pc.unique(table["label"]).to_pylist():
        if not task.is_label(label):
            row = pc.index(table["label"], label).as_py()
            folded = f" or non-{task.folded_onto}" if task.folded_onto else ""
            raise UserError(
                f"{name}: row {row} (id {table['id'][row]}) has label {label!r}; labels are {', '.join(task.labels)}{folded}"
            )
    if (num_distinct := pc.count_distinct(table["id"]).as_py()) != table.num_rows:
        raise UserError(f"{name}: {table.num_rows:,} rows have only {num_distinct:,} different ids; give each row its own")
    return table


def read_examples(path: str | os.PathLike[str], task: Task = NLI) -> pa.Table:
    """Read a ``.parquet`` file, or all of them in a folder in the order of their names; a local path or a URI.

    Raises :class:`UserError` where there is nothing, where it is not Parquet, or where :func:`check_examples`
    does; for a part of a remote artifact also as :func:`pipelines.storage.fetch` does.
    """
    file_system, root = filesystem(path)
    if not file_system.exists(root):
        raise UserError(f"{path} does not exist; give a .parquet file of examples or a folder of them")
    file_system, root = filesystem(fetch(path))
    if file_system.isdir(root):
        files = sorted(name for name in file_system.ls(root, detail=False) if name.endswith(".parquet"))
        if not files:
            raise UserError(f"{path} has no .parquet files; give a .parquet file of examples or a folder of them")
    else:
        files = [root]
    tables = []
    for name in files:
        with file_system.open(name, "rb") as file:
            tables.append(parquet_table(file, name))
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: its files differ in their columns' types ({error}); write them alike") from error
    return check_examples(table, str(path), task)


def write_examples(table: pa.Table, path: str | os.PathLike[str], task: Task = NLI) -> None:
    """Check the examples and write them as one Parquet file that appears whole or not at all."""
    write_table(check_examples(table, str(path), task), path)


def write_table(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Write any table as one Parquet file that appears whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())
