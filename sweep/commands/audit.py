"""`blindsweep audit`: what a file of labelled texts teaches besides its task."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from pipelines.extras import check_installed
from sweep.commands.options import tell

if TYPE_CHECKING:
    from analysis.audit.audit import Audit, AuditSettings
    from analysis.audit.evidence import Judging
    from analysis.corpus.scan import Report
    from pipelines.repair.rows import Repair
    from pipelines.tasks.task import Task

CONDITION_MET = 3
"""The exit code where a condition of --fail-on is met."""


def audit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Labelled texts: Parquet, CSV, JSONL, a dataset's folder, …")],
    reference: Annotated[str | None, typer.Option(metavar="FILE", help="Compare with these rows: the original data.")] = None,
    generator_training: Annotated[
        str | None, typer.Option(metavar="FILE", help="Count copies of these rows: what the generator was trained on.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A test set that the file must not give away; may be repeated."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="The texts' task: its fields are columns, its labels the only ones."),
    ] = None,
    entailment: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="A label that means entailment; may be repeated. [default: entailment]"),
    ] = None,
    label_name: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=MEANING", help="What a label means, as 2=contradiction; may be repeated.")
    ] = None,
    keep_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="-1 or -, where it is a label and no mark of a missing one.")
    ] = None,
    premise: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: premise, sentence1, …]")] = None,
    hypothesis: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: hypothesis, sentence2, …]")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Single texts. [default: text, sentence, …]")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help="The column of a field of another name, as of a task's; may be repeated, also for one field: each file is "
            "read by the first that it has.",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: label, gold_label, …]")] = None,
    parse: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Bracketed parses of the premises, for the constituent heuristic."),
    ] = None,
    heuristic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py:NAME", help="A heuristic of your own, or that of a word, FIELD:WORD=LABEL; may be repeated."
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="Odds ratios that differ by at most this factor count as the same.")] = 1.25,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Exit with 3 where one of these asks for action: leaks,plants,… (docs/audit.md)."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Look for wrong labels with a study's task model, or a classifier's checkpoint."),
    ] = None,
    trusted: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Rows like the file's with right labels, by which a judge is judged."),
    ] = None,
    label_noise: Annotated[
        bool, typer.Option("--label-noise", help="Look for wrong labels with simple models of words, which can say little.")
    ] = False,
    repair: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.parquet", help="Write the set without leaks and copies, planted heuristics as in the reference."
        ),
    ] = None,
    repair_as: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=CHOICE,…", help="What to do about each: noisy=relabel, heuristics=weight, … (docs/audit.md)."
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="OUT.parquet", help="Every finding by row, with the row that it goes with."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the samples.")] = 0,
    processes: Annotated[int, typer.Option(min=1, max=2, help="Processes that measure.")] = 2,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Read and compare on a running Ray cluster: auto, or HOST:PORT of its head."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the page. [default: ./audit-NAME]")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All the numbers, for programs; - prints them.")
    ] = None,
) -> None:
    """Say whether a file of labelled texts is fit to train on, what is wrong, and what to do. Needs no GPU and no study.

    Rows that repeat each other, the generator's training data or a test set; heuristics and single words that tell the label,
    and how well one field alone does; variety. Each has a level: act, look, cannot tell, fine (docs/audit.md).

        blindsweep audit pool.parquet --reference multinli_1.0_train.jsonl --test multinli_1.0_dev_matched.jsonl
        blindsweep audit pairs.csv --premise text_a --hypothesis text_b --label gold --entailment 1
        blindsweep audit reviews.jsonl --task my_task.py:SENTIMENT --field sentence=review --fail-on leaks,contradictions
    """
    from analysis.audit import AuditSettings, audit_json
    from analysis.audit import audit as audit_texts
    from analysis.audit.findings import check_conditions, met
    from analysis.audit.page import summary_lines, write_page
    from analysis.audit.rows import check_parquet_path, write_rows
    from analysis.corpus.columns import ColumnNames
    from pipelines.tasks.references import find_task
    from sweep.run.progress import Work

    conditions = [name.strip() for name in (fail_on or "").split(",") if name.strip()]
    # What cannot be done is said before the files are read.
    if judge:
        check_installed("--judge", "torch", "transformers")
    if address:
        check_installed("--address", "ray")
    check_conditions(conditions)
    if rows:
        check_parquet_path("--rows", rows, "findings by row are")
    if output and output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, and the page lies in a folder; name a folder, or a new one")
    how = _repair(repair, repair_as, seed)
    given = {"premise": premise, "hypothesis": hypothesis, "text": text, "label": label, "parse": parse}
    by_name = {name: column for name, column in given.items() if column is not None}
    the_task = find_task(task) if task else None
    settings = AuditSettings(
        columns=ColumnNames(_columns(by_name, field or ()), kept_labels=tuple(keep_label or ())),
        task=the_task,
        entailment=tuple(entailment or ()),
        label_names=_each_once([_named(each, "--label-name", "LABEL=MEANING") for each in label_name or ()], "--label-name"),
        reference=reference,
        generator_training=generator_training,
        tests=_each_once(map(_test, test or ()), "--test", "give each a name of its own, NAME=FILE"),
        label_noise=label_noise,
        trusted=trusted,
        judge=_judge(judge, the_task) if judge else None,
        heuristics=tuple(heuristic or ()),
        margin=margin,
        seed=seed,
        processes=processes,
    )
    with Work() as work:
        result = audit_texts(file, settings, work) if address is None else _on_cluster(address, file, settings, work)
    check_conditions(conditions, result)
    page = write_page(result, output or Path(f"audit-{result.name}"))
    num_by_row = write_rows(rows, result.evidence, result.heuristics) if rows else 0
    # A set that cannot be repaired is audited all the same: what is said of it, and the exit code, do not hang on the repair.
    repaired: list[str] = []
    refused: UserError | None = None
    if repair:
        try:
            repaired = [*_write_repaired(result, how, repair), f"repaired set: {repair}"]
        except UserError as error:
            refused = error
    if json and str(json) != "-":
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(audit_json(result) + "\n", encoding="utf-8")
    if str(json) == "-":
        tell(audit_json(result))
    else:
        tell("\n".join(summary_lines(result)))
        if repaired:
            tell("\n".join(repaired))
        if rows:
            tell(f"rows: {rows} ({num_by_row:,} findings by row)")
        if json:
            tell(f"numbers: {json}")
        tell(f"page: {page} ({result.seconds:.1f} s)")
    failed = met(conditions, result.findings)
    for finding in failed:
        tell(f"--fail-on {finding.kind}: the data {finding.verdict}", on_stderr=True)
    if failed and refused:
        tell(f"Error: {refused}", on_stderr=True)
    if failed:
        raise typer.Exit(CONDITION_MET)
    if refused:
        raise refused


def _judge(model: str, task: "Task | None") -> "Judging":
    from pipelines.tasks.nli import NLI
    from sweep.commands.judging import check_judge, judge_tables

    check_judge(model)
    return lambda tables: judge_tables(model, tables, task or NLI)


def _repair(path: Path | None, given: str | None, seed: int) -> "Repair":
    """What --repair-as asks for. Raises UserError for what is none of the choices, and without a place to write to."""
    from analysis.audit.rows import check_parquet_path
    from pipelines.repair.rows import CHOICES, Repair

    if path:
        check_parquet_path("--repair", path, "the repaired set is")
    elif given:
        raise UserError(f"--repair-as {given!r} without --repair OUT.parquet: say where the repaired set is to lie")
    chosen = _each_once(
        [_named(each.strip(), "--repair-as", "NAME=CHOICE") for each in (given or "").split(",") if each.strip()],
        "--repair-as",
    )
    if unknown := sorted(set(chosen) - set(CHOICES)):
        raise UserError(f"--repair-as {unknown[0]}: it is none of {', '.join(CHOICES)}; name one of these")
    return Repair(seed=seed, **chosen)


def _write_repaired(result: "Audit", how: "Repair", path: Path) -> list[str]:
    from analysis.audit.repairing import cost_lines, repair_of, write_repaired

    repaired = repair_of(result, how)
    write_repaired(result.evidence, repaired, path)
    return cost_lines(result, repaired)


def _columns(by_name: dict[str, str], fields: Iterable[str]) -> "dict[str, str | tuple[str, ...]]":
    """The columns by name, of a field all that are given for it: files may call it differently."""
    of_fields: dict[str, tuple[str, ...]] = {}
    for name, column in map(_field, fields):
        _each_once([*((name, by_name[name]) for _ in by_name.keys() & {name}), (name, column)], "--field")
        of_fields[name] = tuple(dict.fromkeys((*of_fields.get(name, ()), column)))
    return {**by_name, **of_fields}


def _field(given: str) -> tuple[str, str]:
    name, column = _named(given, "--field", "NAME=COLUMN")
    if name in ("label", "parse"):
        raise UserError(f"--field {given!r}: {name} is no text of an example; give --{name} {column}")
    return name, column


def _test(given: str) -> tuple[str, str]:
    # A file that is there is itself, whatever its name.
    is_named = "=" in given and not Path(given).exists()
    return _named(given, "--test", "NAME=FILE") if is_named else (Path(given).stem, given)


def _each_once(pairs: Iterable[tuple[str, str]], option: str, way_out: str = "give it once") -> dict[str, str]:
    """The pairs by name. Raises UserError for a name that has two values, of which one would be lost."""
    by_name: dict[str, str] = {}
    for name, value in pairs:
        if by_name.setdefault(name, value) != value:
            raise UserError(f"{option}: {name} is given twice, as {by_name[name]} and as {value}; {way_out}")
    return by_name


def _on_cluster(address: str, file: str, settings: "AuditSettings", report: "Report") -> "Audit":
    import analysis
    from analysis.audit.audit import audit as audit_texts
    from sweep.run.session import joined
    from sweep.scan.on_ray import OnRay

    with joined(address, [analysis]):
        return audit_texts(file, settings, report, OnRay())


def _named(given: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if not (name and separator and value):
        raise UserError(f"{option} {given!r} is no {form}; give it that form")
    return name, value
