"""`blindsweep data check`: what would be read of a table, or of a study's data, before anything is built."""

import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweep.commands.options import Parameters

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.data.table_rows import TableRows

MOST_SHOWN = 80
"""Characters of a text that are shown."""


def check(
    what: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A table (.parquet, .csv, .tsv, .jsonl, FOLDER, FOLDER:SPLIT), or a study's .py."),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="A column of the table: a text's, or the label's. [default: the usual names]"),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="VALUE=LABEL", help="What a value of the label column stands for.")
    ] = None,
    parameters: Parameters = None,
) -> None:
    """Say what would be read of a table, or of each set of a study: rows, columns, labels, and what is left out and why.

    Without --column, texts and labels are looked for under their usual names;
    without --label, each value is a label.

        blindsweep data check reviews.tsv
        blindsweep data check my_folder:validation
        blindsweep data check pairs.csv --column premise=left --column hypothesis=right --label 1=entailment --label 0=neutral
        blindsweep data check my_study.py -p data=FOLDER
    """
    from pipelines.errors import UserError
    from sweep.study.loading import is_file

    if is_file(what):
        if column or label:
            raise UserError(f"{what} says itself what its columns and labels are; leave --column and --label out")
        _check_study(what, parameters or [])
        return
    if parameters:
        raise UserError(f"-p sets a parameter of a study, and {what} is a table; leave it out")
    _check_table(what, _pairs(column, "--column NAME=COLUMN"), _pairs(label, "--label VALUE=LABEL"))


def _pairs(given: Sequence[str] | None, form: str) -> dict[str, str]:
    from pipelines.errors import UserError

    pairs: dict[str, str] = {}
    for text in given or ():
        name, separator, value = (part.strip() for part in text.partition("="))
        if not (separator and name and value) or name in pairs:
            raise UserError(f"{text!r}: write it as {form}, and each once")
        pairs[name] = value
    return pairs


def _check_table(path: str, columns: Mapping[str, str], labels: Mapping[str, str]) -> None:
    from pipelines.data.table_rows import read_rows
    from pipelines.tables.columns import Wanted
    from pipelines.tables.files import column_names, find_files, open_table
    from pipelines.tables.remote import local_copy

    name, path = path, str(local_copy(path))
    present = column_names(*find_files(path))
    fields = [name for name in columns if name not in ("label", "id")] or _guessed_fields(path, present, columns)
    wanted = [Wanted(name, columns.get(name), is_strict=True) for name in fields]
    wanted.append(Wanted("label", columns.get("label"), is_strict=True, is_text=False))
    if "id" in columns:
        wanted.append(Wanted("id", columns["id"], is_strict=True, is_text=False, is_own=False))
    table = open_table(path, wanted, "name it: --column {name}=COLUMN")
    rows = read_rows(table, fields, labels, tuple(dict.fromkeys(labels.values())) or None)
    unused = [name for name in present if name not in table.columns.values()]
    print(f"{name}: {_count(rows.num_rows, table.unit)}")
    print(f"columns: {table.mapping}{f'; not read: {_listed(map(repr, unused))}' if unused else ''}")
    stand_for = {label: [repr(value) for value in rows.values if labels.get(value) == label] for label in labels.values()}
    _print_rows(rows.examples, fields, rows.dropped, table.unit, stand_for)
    if warning := rows.label_warning("map it: --label {mark}=LABEL"):
        print(f"marked: {warning}")
    print(f"in an audit: {_as_audit(name, rows, columns, labels)}")
    print(f"in a study: {_as_value(name, rows, columns, labels)}")


def _guessed_fields(path: str, present: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """The texts of a pair, or the one text, by the usual names of their columns. Raises UserError where there is none."""
    from pipelines.errors import UserError
    from pipelines.tables.columns import Wanted, listed

    for fields in (["premise", "hypothesis"], ["sentence"]):
        if all(Wanted(name).find(present) for name in fields):
            return fields
    has_label = "label" in columns or Wanted("label", None, is_text=False).find(present)
    what, way_out = ("a text", "") if has_label else ("a text, or of a label", ", and --column label=COLUMN")
    raise UserError(
        f"{path}: no column has a usual name of {what}; it has {listed(present)}: name a text, --column text=COLUMN, "
        f"a pair, --column premise=COLUMN --column hypothesis=COLUMN, or any others, each --column NAME=COLUMN{way_out}"
    )


def _as_audit(path: str, rows: "TableRows", columns: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """The command that audits the table as it is read here; where it takes more, what that is."""
    from analysis.corpus.columns import PAIR
    from analysis.corpus.labels import meaning_of
    from analysis.corpus.scan import MAX_LABELS
    from pipelines.tables.labels import NO_GOLD_LABEL

    there = _labels_of(rows)
    if len(there) > MAX_LABELS:
        return f"no, it has {len(there):,} labels, and an audit reads {MAX_LABELS} at most"
    words = ["blindsweep", "audit", path]
    for name, column in rows.table.columns.items():
        if name in (*PAIR, "text", "label"):
            words += [f"--{name}", column] if name in columns else []
        elif name in columns and name != "id":
            words += ["--field", f"{name}={column}"]
    for value, label in labels.items():
        words += (
            ["--label-name", f"{value}={label}"] if value != label else [f"--keep-label={value}"] * (value in NO_GOLD_LABEL)
        )
    is_pair = set(PAIR) <= set(rows.table.columns)
    if is_pair and not any(meaning_of(label) == "entailment" for label in there):
        return f"{shlex.join(words)} --entailment LABEL, which is {' or '.join(_most(there, 3))}"
    return shlex.join(words)


def _as_value(path: str, rows: "TableRows", columns: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """The table as a study's file has it. Names of labels stand for themselves; numbers are to be given names."""
    from analysis.corpus.columns import PAIR
    from analysis.corpus.labels import meaning_of
    from pipelines.tasks.nli import NLI

    named = {name: column for name, column in rows.table.columns.items() if name != column or name in columns}
    is_nli = set(PAIR) <= set(rows.table.columns)
    if labels:
        mapped = ", ".join(f"{value!r}: {label!r}" for value, label in labels.items())
    else:
        meanings = {value: meaning_of(value) if is_nli else value for value in _labels_of(rows)}
        known = NLI.labels if is_nli else [value for value in meanings if not value.replace(".", "").isdigit()]
        stand_for = {value: meaning if meaning in known else "…" for value, meaning in meanings.items() if value not in known}
        mapped = ", ".join(_most([f"{value!r}: {label!r}" for value, label in stand_for.items()]))
    of_task = "" if is_nli or mapped else f", of a Task with labels=({', '.join(_most(list(map(repr, _labels_of(rows)))))})"
    return f"Table({path!r}, columns={named}, labels={{{mapped}}}){of_task}"


def _labels_of(rows: "TableRows") -> list[str]:
    return sorted(set(rows.examples["label"].to_pylist()))


def _most(words: list[str], most: int = 20) -> list[str]:
    return words if len(words) <= most else [*words[:most], "…"]


def _check_study(name: str, assignments: Sequence[str]) -> None:
    import pyarrow.parquet as pq

    from pipelines.data.own_pool import pool_marks, read_pool
    from pipelines.errors import UserError
    from pipelines.identity import MARKS
    from pipelines.tasks.examples import read_examples
    from sweep.study.inputs import check_blindspot, check_prompts, check_sizes, copies_of_tests, missing_data, texts_of
    from sweep.study.loading import load_experiment

    experiment = load_experiment(name, assignments).experiment
    sources, folder, task = experiment.sources, experiment.sources_folder, experiment.task
    if missing := missing_data(experiment):
        raise UserError(f"{'; '.join(missing)}; put it there, or give its place")
    test_texts: dict[str, Set[tuple[str, ...]]] = {}
    with tempfile.TemporaryDirectory(prefix="blindsweep-") as output:
        metrics = sources.prepare(output, folder=folder)
        read_as = sources.read_as(folder)
        dropped_file = Path(output, "dropped.parquet")
        dropped = pq.read_table(dropped_file).to_pylist() if dropped_file.exists() else []
        for set_name in ("train", "dev", *(other for other in sources.set_names if other != "dev")):
            evaluated = "" if set_name in ("train", "dev", *experiment.evaluation.sets) else ", not evaluated"
            print(f"{set_name}: {metrics[f'{set_name}/num_examples']:,} examples{evaluated}")
            if set_name in read_as:
                print(f"    from {read_as[set_name]}")
            of_set = [row for row in dropped if row["set"] == set_name]
            examples = read_examples(Path(output, f"{set_name}.parquet"), task)
            _print_rows(examples, task.field_names, of_set, "row", {}, indent="    ")
            if set_name not in ("train", "dev"):
                test_texts[set_name] = texts_of(examples, task)
    for pool in experiment.own_pools:
        if pool.is_known:
            rows = read_pool(pool)
            print(f"pool: {rows.examples.num_rows:,} examples")
            print(f"    from {pool.name}, {rows.table.mapping}")
            _print_rows(rows.examples, task.field_names, rows.dropped, rows.table.unit, {}, indent="    ")
            for line in (*pool_marks(pool), *copies_of_tests(pool, test_texts)):
                print(f"    marked: {line}")
    for mark in metrics.get(MARKS, ()):  # type: ignore[union-attr]
        print(f"marked: {mark}")
    check_sizes(experiment)
    check_prompts(experiment)
    check_blindspot(experiment)


def _print_rows(
    examples: "pa.Table",
    fields: Sequence[str],
    dropped: Sequence[Mapping[str, Any]],
    unit: str,
    stand_for: Mapping[str, Sequence[str]],
    indent: str = "",
) -> None:
    counts = Counter(examples["label"].to_pylist())
    labels = (f"{label} {count:,}{_stands_for(stand_for.get(label, ()))}" for label, count in counts.most_common())
    print(f"{indent}labels: {_listed(labels) or 'none'}")
    if dropped:
        print(f"{indent}left out: {_count(len(dropped), unit)}")
    for reason, count in Counter(row["reason"] for row in dropped).most_common():
        first = next(row for row in dropped if row["reason"] == reason)
        number = first.get("row", first.get("line"))
        texts = [first[name] for name in (*fields, "raw") if first.get(name)]
        label = f", label {first['label']!r}" if first["label"] else ""
        shown = " | ".join(map(_cut, texts)) or "no text"
        print(f"{indent}    {count:,} {reason}, the first at {unit} {number:,}: {shown}{label}")
    rows = zip(*(examples[name].to_pylist() for name in fields), strict=True)
    longest = max(rows, key=lambda texts: sum(map(len, texts)), default=())
    print(f"{indent}longest: {sum(map(len, longest)):,} characters, {' | '.join(map(_cut, longest))}")


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _stands_for(values: Sequence[str]) -> str:
    return f" ({', '.join(values)})" if values else ""


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 1]}…")


def _listed(values: Iterable[str], most: int = 20) -> str:
    values = list(values)
    return ", ".join(values[:most]) + (f" and {len(values) - most:,} more" if len(values) > most else "")
